"""An event that is seen counts; "none seen" counts only where the channel was read at both ends of the run."""

import json
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes import events
from pytest_gpuaccept.probes.events import KernelLog
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld

FUZZ = settings(deadline=None, database=None)
BOOT = "0123abcd-0123-4bcd-8123-0123456789ab"
GPU, PORT = "0000:c1:00.0", "0000:c0:01.1"
SILENT = {"gpu.aer.corrected": 0, "gpu.aer.corrected_rate": 0.0, "gpu.aer.uncorrected": 0, "gpu.xid": 0}
AER = ("gpu.aer.corrected", "gpu.aer.corrected_rate", "gpu.aer.uncorrected")
CORRECTED_4X = (
    "pcieport 0000:c0:01.1: AER: Corrected error received: id=c100",
    "pcieport 0000:c0:01.1: AER: Multiple Corrected error received: id=c100",
    "nvidia 0000:c1:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, id=c100(Receiver ID)",
    "nvidia 0000:c1:00.0:   device [10de:2684] error status/mask=00000001/0000a000",
    "nvidia 0000:c1:00.0:    [ 0] Receiver Error         (First)",
)
CORRECTED_5X = (
    "pcieport 0000:c0:01.1: AER: Corrected error received: 0000:c1:00.0",
    "nvidia 0000:c1:00.0: AER: PCIe Bus Error: severity=Corrected, type=Data Link Layer, (Receiver ID)",
    "nvidia 0000:c1:00.0: AER: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Transmitter ID)",
    "nvidia 0000:c1:00.0: AER:    [ 6] BadTLP",
)
CORRECTED_68 = (
    "pcieport 0000:c0:01.1: AER: Multiple Correctable error message received from 0000:c1:00.0",
    "pcieport 0000:c0:01.1: AER: Correctable error message received from 0000:c1:00.0",
    "nvidia 0000:c1:00.0: PCIe Bus Error: severity=Correctable, type=Physical Layer, (Receiver ID)",
    "pcieport 0000:c0:01.1: AER: found no error details for 0000:c1:00.0",
)
NONE_OF_OURS = (
    "pcieport 0000:c0:01.1: AER: enabled with IRQ 36",
    "pcieport 0000:40:01.1: AER: Correctable error message received from 0000:41:00.0",
    "nvidia 0000:41:00.0: PCIe Bus Error: severity=Correctable, type=Physical Layer, (Receiver ID)",
    "ixgbe 0000:42:00.0 eno1: NIC Link is Down",
)


@pytest.fixture
def world(profile):
    """Return a healthy simulated machine of the commissioned kind."""
    return SimWorld(profile, Scenario("healthy"))


def site(world, profile, device):
    """Return what a probe of `device` is given."""
    return Site(world, profile, device, {}, lambda name, text: "digest")


def whole_run(world, profile, device="gpu3", meanwhile=lambda: None):
    """Read the start, burn every GPU for a minute, then measure; return the outcomes by metric."""
    own, begin, measure = site(world, profile, device), events.gpu_start, events.gpu_events
    if device.startswith("nic"):
        begin, measure = events.nic_start, events.nic_link
    start = begin(own)
    with world.machine.runs("burn", dict.fromkeys(range(4), 1.0)):
        world.machine.advance(60)
    meanwhile()
    return {outcome.metric: outcome for outcome in measure(replace(own, before=start))}


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
    assert values(found) == {**SILENT, "gpu.aer.uncorrected": 3}


def test_an_xid_is_counted_with_its_code(world, profile):
    """Every Xid of the GPU counts, and the note says which."""
    world.machine.gpus[3].p.xid = 31
    found = whole_run(world, profile)["gpu.xid"]
    assert (found.value, found.note) == (1, "Xid 31")


@pytest.mark.parametrize(
    "lines",
    [
        ["NVRM: GPU 0000:c1:00.0: GPU has fallen off the bus."],
        ["NVRM: The NVIDIA GPU 0000:c1:00.0\nNVRM: (PCI ID: 10de:2684) installed in it has\nNVRM: fallen off the bus."],
        ["NVRM: Xid (PCI:0000:c1:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
         "NVRM: GPU 0000:c1:00.0: GPU has fallen off the bus."],
    ],
)  # fmt: skip
def test_a_fall_off_the_bus_is_one_xid_79(world, profile, lines):
    """The driver's words count once, with the word Xid and without it."""
    found = whole_run(world, profile, meanwhile=lambda: [world.machine.say(line) for line in lines])["gpu.xid"]
    assert (found.value, found.note) == (1, "Xid 79")


def test_an_xid_that_names_no_gpu_spoils_every_none_seen(world, profile):
    """A line that nobody can ascribe is an absent value for each GPU, and quoted."""
    found = whole_run(world, profile, meanwhile=lambda: world.machine.say("NVRM: Xid: 999, whatever"))
    assert "NVRM: Xid: 999" in values(found)["gpu.xid"]
    assert values(found)["gpu.aer.corrected"] == 0


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
    """journalctl that prints nothing is no quiet log; errors that the counters show still count in full."""
    world.machine.host.log_readable = False
    found = whole_run(world, profile)
    assert all("group adm" in found[metric].reason for metric in SILENT)
    world.machine.gpus[3].p.aer_corrected_per_min = 30.0
    world.machine.gpus[3].p.xid = 31
    seen = values(whole_run(world, profile))
    assert seen["gpu.aer.corrected"] in (29, 30)
    assert "group adm" in seen["gpu.xid"]


@pytest.mark.parametrize(
    ("parameter", "value", "said"),
    [("aer_armed", False, "_OSC"), ("cmdline", "BOOT_IMAGE=/vmlinuz ro pci=noaer", "pci=noaer")],
)
def test_silence_of_a_kernel_that_does_not_listen_is_no_measurement(world, profile, parameter, value, said):
    """Zeros of counters that nobody feeds are absent values; Xids do not depend on AER."""
    setattr(world.machine.host, parameter, value)
    found = values(whole_run(world, profile))
    assert all(said in found[metric] for metric in AER)
    assert found["gpu.xid"] == 0


@pytest.mark.parametrize(
    "line",
    ["acpi PNP0A08:01: _OSC: OS now controls [PME LTR]", "acpi: _OSC: platform retains control of PCIe features"],
)
def test_one_bridge_without_aer_is_enough_to_doubt(world, profile, line):
    """Where firmware keeps AER of one bridge, the silence of the others is not enough."""
    world.machine.say(line)
    assert "native AER" in values(whole_run(world, profile))["gpu.aer.corrected"]


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


def test_a_counter_that_went_down_is_no_measurement(world, profile):
    """A device that was reset has lost its count."""
    gpu = world.machine.gpus[3]
    gpu.corrected = 5.0
    found = values(whole_run(world, profile, meanwhile=lambda: setattr(gpu, "corrected", 1.0)))
    assert "went down" in found["gpu.aer.corrected"]
    assert found["gpu.aer.uncorrected"] == 0


@pytest.mark.parametrize("device", ["gpu3", "nic0"])
def test_a_restart_during_the_run_measures_nothing(world, profile, device):
    """Counts of another boot are not compared."""
    with pytest.raises(Unmeasurable, match="started anew"):
        whole_run(world, profile, device, meanwhile=lambda: setattr(world.machine, "seed", "another boot"))


@pytest.mark.parametrize("measure", [events.gpu_events, events.nic_link])
def test_without_a_start_there_is_no_difference(world, profile, measure):
    """A start that was not read, or could not be, is the reason of every absence."""
    own = site(world, profile, "gpu0")
    with pytest.raises(Unmeasurable, match="no reading from the start"):
        next(measure(own))
    with pytest.raises(Unmeasurable, match="as at the start"):
        next(measure(replace(own, before=Unmeasurable("as at the start"))))


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


@pytest.mark.parametrize("text", ["", "0\n", "RxErr 0\n", "RxErr 0\nTOTAL_ERR_COR x\n", "RxErr\nTOTAL_ERR_COR 0\n"])
def test_what_is_no_counter_file_is_refused(text):
    """A counter file that is cut or garbled is never read as zero."""
    with pytest.raises(Unmeasurable, match="no AER counter"):
        events.parse_aer(text)


def test_long_and_short_names_of_counters_are_read():
    """A kind's name may have spaces; the total is the count of messages, not the sum of kinds."""
    text = "Receiver Error 3\nBad TLP 2\nTOTAL_ERR_COR 4\n"
    assert events.parse_aer(text) == {"Receiver Error": 3, "Bad TLP": 2, "TOTAL": 4}


@pytest.mark.parametrize("lines", [CORRECTED_4X, CORRECTED_5X, CORRECTED_68], ids=["4.x", "5.x", "6.8"])
def test_three_generations_of_kernels_are_understood(lines):
    """Two errors are two, in the words of each kernel; others' lines and details do not count."""
    assert events.logged_errors([*lines, *NONE_OF_OURS], "corrected", (GPU, PORT)) == 2
    assert events.logged_errors([*lines, *NONE_OF_OURS], "uncorrected", (GPU, PORT)) == 0


@pytest.mark.parametrize(
    "line",
    [
        "pcieport 0000:c0:01.1: AER: Uncorrected (Fatal) error received: id=c009",
        "pcieport 0000:c0:01.1: AER: Uncorrected (Non-Fatal) error received: 0000:c1:00.0",
        "pcieport 0000:c0:01.1: AER: Uncorrectable (Fatal) error message received from 0000:C1:00.0",
        "nvidia 0000:c1:00.0: PCIe Bus Error: severity=Uncorrectable (Non-Fatal), type=Transaction Layer",
    ],
)
def test_uncorrected_errors_are_told_from_corrected_ones(line):
    """Fatal or not, an uncorrected error is counted as one."""
    assert events.logged_errors([line], "uncorrected", (GPU, PORT)) == 1
    assert events.logged_errors([line], "corrected", (GPU, PORT)) == 0


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("NVRM: Xid (PCI:0000:c1:00): 79, pid=1, name=python3", 79),
        ("NVRM: Xid (0000:c1:00): 14, Channel 00000001", 14),
        ("NVRM: Xid (PCI:00000000:C1:00): 145, RLW_REMAP Nonfatal", 145),
    ],
)
def test_xid_lines_are_understood(line, code):
    """With and without PCI:, in both ways of writing the domain, an Xid is ascribed to its GPU."""
    assert events.xid_events([line], GPU, ()).note == f"Xid {code}"
    assert events.xid_events([line], "0000:41:00.0", ()).count == 0


def entry(message, us="7", **more):
    """Return one line of the journal."""
    return json.dumps({"_BOOT_ID": BOOT.replace("-", ""), "__MONOTONIC_TIMESTAMP": us, "MESSAGE": message, **more})


def test_every_form_of_a_journal_message_is_read():
    """Bytes that are no UTF-8, several fields of one name and null are all messages; other boots are left out."""
    lines = [entry("Linux version 6"), entry([255, 65]), entry(["a", "b"]), entry(None), entry("old", _BOOT_ID="ff")]
    log = events.parse_journal("\n".join(lines), BOOT)
    assert log == KernelLog(tuple((7, text) for text in ("Linux version 6", "\ufffdA", "a\nb", "")), whole=True)


@pytest.mark.parametrize(
    "line", ["-- No entries --", "{}", "[]", '"x"', entry("m", us=None), entry("m", us="-1"), "[" * 9999]
)
def test_what_is_no_journal_is_refused(line):
    """A line that is no record makes the log unreadable, not shorter."""
    with pytest.raises(Unmeasurable, match="no record"):
        events.parse_journal(f"{entry('Linux version 6')}\n{line}", BOOT)


@pytest.mark.parametrize("flaps", [0, 1, 3])
def test_a_flap_is_a_link_that_went_down(world, profile, flaps):
    """Down and up are two changes of the carrier and one flap."""
    world.machine.nics["nic0"].flaps = flaps
    found = whole_run(world, profile, "nic0")["nic.flaps"]
    assert (found.value, found.conditions["interface"]) == (flaps, world.machine.nics["nic0"].interface)
    assert "both ends" in found.proof


@pytest.mark.parametrize(("changes", "flaps"), [(1, 1), (2, 1), (5, 3)])
def test_a_link_that_stays_down_went_down(world, profile, monkeypatch, changes, flaps):
    """A last change without its counterpart is a link that went down and is down still."""
    read = world.read
    start = events.nic_start(site(world, profile, "nic0"))
    now = f"{start.changes + changes}"
    monkeypatch.setattr(world, "read", lambda path: now if path.endswith("carrier_changes") else read(path))
    (found,) = events.nic_link(replace(site(world, profile, "nic0"), before=start))
    assert found.value == flaps


def test_a_network_driver_that_was_loaded_anew_measures_nothing(world, profile):
    """A carrier counter that went down has forgotten what it counted."""
    world.machine.flapped["nic0"] = 4
    with pytest.raises(Unmeasurable, match="went down"):
        whole_run(world, profile, "nic0", meanwhile=lambda: world.machine.flapped.update(nic0=0))


def test_a_link_without_counter_is_no_measurement(world, profile):
    """An interface that cannot be read has no flaps, not zero."""
    world.machine.nics["nic0"].readable = False
    with pytest.raises(Unmeasurable, match="carrier_changes"):
        events.nic_start(site(world, profile, "nic0"))


@pytest.mark.parametrize(
    ("file", "text", "said"), [("operstate", "down", "'down'"), ("carrier_changes", "", "no count")]
)
def test_a_link_that_is_down_or_garbled_has_no_start(world, profile, monkeypatch, file, text, said):
    """A link that is down cannot go down, and what is no number is no count."""
    read = world.read
    monkeypatch.setattr(world, "read", lambda path: text if path.endswith(file) else read(path))
    with pytest.raises(Unmeasurable, match=said):
        events.nic_start(site(world, profile, "nic0"))


def test_the_profiles_interface_goes_before_the_default_route(world):
    """The interface is the profile's, else the default route's, and never guessed for one of several."""
    named = {"nic1": SimpleNamespace(interface="enp5s0")}
    profile = SimpleNamespace(device=named, devices={"nic": ("nic0", "nic1")})
    assert events.interface_of(site(world, profile, "nic1")) == "enp5s0"
    with pytest.raises(Unmeasurable, match=r"device\.nic0\.interface"):
        events.interface_of(site(world, profile, "nic0"))


def test_the_default_route_with_the_lowest_metric_is_taken():
    """Routes to a network are no default, and of two defaults the preferred one carries the traffic."""
    row = "{}\t{}\t010200C0\t0003\t0\t0\t{}\t{}\t0\t0\t0     \n".format
    table = "Iface\tDestination\tGateway \tFlags\n" + row("lan0", "000200C0", 0, "00FFFFFF")
    defaults = row("wlan0", "00000000", 600, "00000000") + row("eno2", "00000000", 100, "00000000")
    assert events.default_interface(table + defaults) == "eno2"
    with pytest.raises(Unmeasurable, match="no default route"):
        events.default_interface(table)


LINES = st.one_of(
    st.text(),
    st.sampled_from(
        [*CORRECTED_4X, *CORRECTED_5X, *CORRECTED_68, "NVRM: Xid", "RxErr 1", "TOTAL_ERR_COR 0", entry("x")]
    ),
)
TEXTS = st.lists(LINES, max_size=6).map("\n".join)


@pytest.mark.parametrize(
    "parse",
    [
        events.parse_aer,
        lambda text: events.parse_journal(text, BOOT).records,
        events.default_interface,
        events.normal_address,
    ],
    ids=["aer", "journal", "route", "address"],
)
@FUZZ
@given(text=TEXTS)
def test_any_text_is_a_reading_or_no_measurement(parse, text):
    """A parser answers with something or says why not, and never with nothing."""
    with suppress(Unmeasurable):
        assert parse(text)


@FUZZ
@given(messages=st.lists(TEXTS, max_size=4), extra=st.integers(0, 3))
def test_any_log_is_counted(messages, extra):
    """Whatever else the log holds, each error and each Xid in it is counted."""
    log = [*messages, *[CORRECTED_68[1]] * extra, *["NVRM: Xid (PCI:0000:c1:00): 13, pid=1"] * extra]
    assert events.logged_errors(log, "corrected", (GPU, PORT)) >= extra
    assert events.xid_events(log, GPU, ()).count >= extra


def test_a_storm_is_not_thinned_out_by_quiet_minutes(world, profile):
    """The rate is that of the worst minute in the log, however long the run goes on without errors."""
    world.machine.gpus[3].p.aer_corrected_per_min = 60.0
    found = whole_run(world, profile, meanwhile=lambda: world.machine.advance(1800.0))
    assert found["gpu.aer.corrected_rate"].value >= 59
