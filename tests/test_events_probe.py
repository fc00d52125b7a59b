"""An event that is seen counts; "none seen" counts only where the channel was read at both ends of the run."""

from dataclasses import replace

import pytest

from pytest_gpuaccept.bench import Bench
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.gpus import link_events as events
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld

GPU, PORT = "0000:c1:00.0", "0000:c0:01.1"
SILENT = {
    "gpu.aer.corrected": 0, "gpu.aer.corrected_rate": 0.0, "gpu.aer.replay_failed": 0, "gpu.aer.uncorrected": 0,
    "gpu.aer.since_boot": 0, "gpu.pcie.replay_rate": 0.0, "gpu.xid": 0,
    "gpu.pcie.recoveries": "NVML does not count it: Not Supported",
}  # fmt: skip
AER = ("gpu.aer.corrected", "gpu.aer.corrected_rate", "gpu.aer.replay_failed", "gpu.aer.uncorrected")


@pytest.fixture
def world(profile):
    """Return a healthy simulated machine of the commissioned kind."""
    return SimWorld(profile, Scenario("healthy"))


def site(world, profile, device):
    """Return what a probe of `device` is given."""
    return Site(world, profile, device, {}, lambda name, text: "digest")


def whole_run(world, profile, device="gpu3", meanwhile=lambda: None):
    """Read the start, burn every GPU for a minute, then measure; return the outcomes by metric."""
    own = site(world, profile, device)
    start = events.gpu_start(own)
    with world.machine.runs("burn", dict.fromkeys(range(4), 1.0)):
        world.machine.advance(60)
    meanwhile()
    return {outcome.metric: outcome for outcome in events.gpu_events(replace(own, before=start))}


def values(outcomes):
    """Return the values of measurements, the reasons of absences."""
    return {m: o.value if isinstance(o, Measurement) else o.reason for m, o in outcomes.items()}


def test_a_quiet_run_is_proven_quiet(world, profile):
    """Without an event every count is zero and says what would have shown one."""
    found = whole_run(world, profile)
    assert values(found) == SILENT
    assert all(PORT in found[metric].proof and GPU in found[metric].proof for metric in AER)
    assert "kernel log" in found["gpu.xid"].proof


@pytest.mark.parametrize("side", ["gpu", "port"])
def test_corrected_errors_count_whichever_partner_counts_them(world, profile, side):
    """The count is that of the partner that saw the errors, the rate is per minute of the run."""
    world.machine.gpus[3].p.aer_corrected_per_min = 30.0
    world.machine.gpus[3].p.aer_side = side
    found, neighbour = whole_run(world, profile), whole_run(world, profile, "gpu2")
    count = found["gpu.aer.corrected"].value
    assert count in (29, 30)
    assert found["gpu.aer.corrected_rate"].value == pytest.approx(count, abs=0.2)
    assert found["gpu.aer.corrected"].note == f"{GPU if side == 'gpu' else PORT}: RxErr {count}"
    assert found["gpu.aer.corrected"].proof
    assert values(neighbour) == SILENT


@pytest.mark.parametrize(("device", "uncorrected", "xids"), [("gpu3", 2, 1), ("gpu0", 0, 0)])
def test_uncorrected_errors_and_xids_are_this_gpus_own(world, profile, device, uncorrected, xids):
    """Uncorrected errors and Xids are counted for their GPU and for no other."""
    world.machine.gpus[3].p.aer_uncorrected = 2
    world.machine.gpus[3].p.xid = 31
    found = whole_run(world, profile, device)
    assert values(found) == {**SILENT, "gpu.aer.uncorrected": uncorrected, "gpu.xid": xids}


def test_what_came_before_the_run_does_not_count(world, profile):
    """Counters and log are compared with the start of the run."""
    world.machine.gpus[3].p.xid = 31
    world.machine.gpus[3].p.aer_uncorrected = 2
    with world.machine.runs("burn", {3: 1.0}):
        world.machine.advance(1)
    world.machine.gpus[3].p.aer_uncorrected = 5
    found = whole_run(world, profile)
    assert values(found) == {**SILENT, "gpu.aer.uncorrected": 3, "gpu.aer.since_boot": 2}


def test_hidden_counters_prove_nothing(world, profile):
    """Without counters no error is an absence, and logged errors are a lower bound."""
    world.machine.gpus[3].p.aer_counters = False
    found = whole_run(world, profile)
    assert all(isinstance(found[metric], NotMeasured) for metric in AER)
    assert all(f"no AER counters of {partner}" in found[metric].reason for metric in AER for partner in (GPU, PORT))
    world.machine.gpus[3].p.aer_corrected_per_min = 30.0
    seen = whole_run(world, profile)["gpu.aer.corrected"]
    assert isinstance(seen.value, Interval)
    assert (seen.value.low in (29, 30), seen.value.high, seen.proof) == (True, None, None)


def test_an_unreadable_log_names_the_group_to_join(world, profile):
    """journalctl that prints nothing is no quiet log; what the counters show does not depend on it."""
    world.machine.host.log_readable = False
    found = whole_run(world, profile)
    assert "group adm" in found["gpu.xid"].reason
    assert [found[metric].value for metric in AER] == [0, 0.0, 0, 0]
    world.machine.gpus[3].p.aer_corrected_per_min = 30.0
    world.machine.gpus[3].p.xid = 31
    seen = values(whole_run(world, profile))
    assert seen["gpu.aer.corrected"] in (29, 30)
    assert "group adm" in seen["gpu.xid"]


@pytest.mark.parametrize(
    ("parameter", "value", "said"),
    [("aer_armed", False, "AER driver does not listen"), ("cmdline", "BOOT_IMAGE=/vmlinuz ro pci=noaer", "pci=noaer")],
)
def test_silence_of_a_kernel_that_does_not_listen_is_no_measurement(world, profile, parameter, value, said):
    """Zeros of counters that nobody feeds are absent values; Xids do not depend on AER."""
    setattr(world.machine.host, parameter, value)
    found = values(whole_run(world, profile))
    assert all(said in found[metric] for metric in AER)
    assert found["gpu.xid"] == 0


def test_a_log_without_the_boots_first_lines_proves_no_silence(world, profile):
    """A rotated log may have lost the event, so none seen is absent and what was seen is a lower bound."""
    del world.machine.log[0]
    assert "first lines" in values(whole_run(world, profile))["gpu.xid"]
    world.machine.gpus[3].p.xid = 31
    assert values(whole_run(world, profile))["gpu.xid"] == Interval(1, None)


def test_kernel_records_that_the_journal_lost_are_no_silence(world, profile):
    """The journal's own admission that it missed records spoils the proof."""
    found = values(whole_run(world, profile, meanwhile=lambda: world.machine.say("Missed 12 kernel messages")))
    assert "Missed 12" in found["gpu.xid"]


def test_a_log_that_stops_during_the_run_proves_nothing_behind_it(world, profile):
    """It took lines down at the start; a line written at the end is missing, and so might be an Xid."""
    quiet = whole_run(world, profile, meanwhile=lambda: setattr(world.machine.host, "log_stopped", True))
    assert "was not in the log after 15 s" in values(quiet)["gpu.xid"]
    assert [quiet[metric].value for metric in AER] == [0, 0.0, 0, 0]


def test_a_counter_that_went_down_is_no_measurement(world, profile):
    """A device that went and came again has lost its counts, of the other severity too."""
    gpu = world.machine.gpus[3]
    gpu.corrected = 5.0
    found = values(whole_run(world, profile, meanwhile=lambda: setattr(gpu, "corrected", 1.0)))
    assert "went down" in found["gpu.aer.corrected"]
    assert "went down" in found["gpu.aer.uncorrected"]


def test_a_restart_during_the_run_measures_nothing(world, profile):
    """Counts of another boot are not compared."""
    with pytest.raises(Unmeasurable, match="started anew"):
        whole_run(world, profile, meanwhile=lambda: setattr(world.machine.host, "boot", 1))


def test_without_a_start_there_is_no_difference(world, profile):
    """A start that was not read, or could not be, is the reason of every absence."""
    own = site(world, profile, "gpu0")
    with pytest.raises(Unmeasurable, match="no reading from the start"):
        next(events.gpu_events(own))
    with pytest.raises(Unmeasurable, match="as at the start"):
        next(events.gpu_events(replace(own, before=Unmeasurable("as at the start"))))


def test_a_missing_card_has_no_start(world, profile):
    """A GPU that is not there has no link to read."""
    world.machine.gpus[1].p.present = False
    with pytest.raises(Unmeasurable, match="gpu3"):
        events.gpu_start(site(world, profile, "gpu3"))


def test_a_link_whose_port_is_hidden_proves_nothing(world, profile, monkeypatch):
    """A virtual machine shows the GPU and not its port, which might have counted the errors."""
    read = world.read
    monkeypatch.setattr(world, "read", lambda path: "" if path.endswith("uevent") else read(path))
    assert "virtual machine" in values(whole_run(world, profile))["gpu.aer.corrected"]


def test_a_storm_is_not_thinned_out_by_quiet_minutes(world, profile):
    """The rate is that of the worst minute in the log, however long the run goes on without errors."""
    world.machine.gpus[3].p.aer_corrected_per_min = 60.0
    found = whole_run(world, profile, meanwhile=lambda: world.machine.advance(1800.0))
    assert found["gpu.aer.corrected_rate"].value >= 59


def test_a_card_that_falls_off_the_bus_is_told_by_its_xid(world, profile):
    """A card that is gone at the end has its Xid 79 all the same, and counters that are gone are no zero."""
    found = whole_run(
        world, profile, meanwhile=lambda: setattr(world.machine.gpus[3].p, "lost", True) or world.machine.advance(1)
    )
    assert (found["gpu.xid"].value, found["gpu.xid"].note[:6]) == (1, "Xid 79")
    assert isinstance(found["gpu.pcie.replay_rate"], NotMeasured)


@pytest.mark.parametrize(("side", "said"), [("gpu", "host to GPU"), ("port", "GPU to host")])
def test_errors_tell_which_direction_is_damaged(world, profile, side, said):
    """The end that counts receiver errors says on which way the packets are damaged."""
    world.machine.gpus[3].p.aer_corrected_per_min = 30.0
    world.machine.gpus[3].p.aer_side = side
    conditions = whole_run(world, profile)["gpu.aer.corrected"].conditions
    assert conditions["direction"] == said
    assert conditions["card_counted" if side == "gpu" else "port_counted"] in (29, 30)


def test_replays_that_ran_out_are_counted_apart(world, profile):
    """A replay counter that ran over is more than a corrected error."""
    world.machine.gpus[3].p.aer_corrected_per_min = 2.5
    world.machine.gpus[3].p.aer_kind = "Rollover"
    found = whole_run(world, profile)
    assert (found["gpu.aer.replay_failed"].value, found["gpu.aer.replay_failed"].note) == (2, f"{GPU}: 2")


def test_nvmls_own_replays_are_a_rate(world, profile):
    """What only the card counts is told per minute of the run."""
    world.machine.gpus[3].p.replays_per_min = 60.0
    assert whole_run(world, profile)["gpu.pcie.replay_rate"].value == pytest.approx(60, abs=2)


def link_counts(profile, catalogue, proof, *loud):
    """Return what is said of the links where those of `loud` have errors."""
    table = {}
    for device in ("gpu0", "gpu1", "gpu2", "gpu3"):
        own = Measurement(events.CORRECTED.id, device, int(device in loud), "count", proof=proof)
        table[own.metric, device] = own
    return Bench(profile, catalogue, Silence(), recorded=table).outcome("gpu.aer.outlier", "host")


@pytest.mark.parametrize(
    ("loud", "said"),
    [(["gpu3"], "gpu3"), ([], "none"), (["gpu0", "gpu1", "gpu2", "gpu3"], "none"), (["gpu0", "gpu2"], "gpu0 gpu2")],
)
def test_an_outlier_is_the_link_that_has_errors_alone(profile, catalogue, loud, said):
    """One link among silent ones is named; errors on all of them, or on none, name nobody."""
    assert link_counts(profile, catalogue, "AER is armed", *loud).value == said


def test_links_that_are_not_proven_silent_have_no_outlier_by_silence(profile, catalogue):
    """Without a proof nobody is said to be like the others; who has errors is an outlier all the same."""
    assert "not proven" in link_counts(profile, catalogue, None).reason
    assert link_counts(profile, catalogue, None, "gpu3").value == "gpu3"


class Silence:
    """A journal that keeps nothing."""

    def outcome(self, outcome):
        """Forget it."""
