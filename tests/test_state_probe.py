"""Identity and state of the GPUs: what is read at both ends of a run, who uses a card, and when no load may start."""

from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpuaccept.bench import Bench
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import compute_mode, mig_mode, usable
from pytest_gpuaccept.probes.gpus import gpu, state
from pytest_gpuaccept.sim.nvml import NVML
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld


@pytest.fixture(scope="session")
def two(catalogue):
    """The profile of a machine with two cards that have ECC."""
    return load_profile("2xl40", catalogue, SHIPPED)


@pytest.fixture
def site(two):
    """Return what a probe is given on gpu0 of a healthy simulated machine whose GPU has these parameters."""

    def make(**parameters):
        world = SimWorld(two, load_scenario("healthy", SHIPPED, SHIPPED / "scenarios"))
        for name, value in parameters.items():
            setattr(world.machine.gpus[0].p, name, value)
        return Site(world, two, "gpu0", {}, lambda _name, _text: "digest")

    return make


def part(where):
    """Return the parameters of gpu0."""
    return where.world.machine.gpus[0].p


def only(outcomes):
    """Return the one outcome."""
    (outcome,) = outcomes
    return outcome


class Refusing(ModuleType):
    """The binding, of which some functions answer with an error."""

    def __init__(self, nvml, **codes):
        super().__init__("nvml")
        self.nvml, self.codes = nvml, codes

    def __getattr__(self, name):
        """Return a function or constant of the binding, or one that raises."""
        if name not in self.codes:
            return getattr(self.nvml, name)

        def refuse(*_):
            raise self.nvml.NVMLError(self.codes[name])

        return refuse


def refusing(where, **codes):
    """Return the site of a machine on which some NVML functions answer with an error code."""
    healthy = where.world.nvml
    where.world.nvml = lambda: Refusing(healthy(), **codes)
    return where


# identity ------------------------------------------------------------------------------------


def identity(where):
    """Return what the inventory says of gpu0, by metric."""
    whole = replace(where, device="host")
    return {o.metric: o for o in gpu.inventory(whole) if o.device == "gpu0"}


def test_a_card_says_what_it_is(site):
    """VBIOS, BAR1 in GiB, limits in W, thresholds in C and modes stand beside what was ordered."""
    said = identity(site(vbios="96.00.9F.00.01", limit_w=250.0))
    values = {name: said[name].value for name in (m.id for m in state.IDENTITY)}
    assert values == {
        "gpu.vbios": "96.00.9F.00.01", "gpu.bar1": 64, "gpu.power.default": 300, "gpu.power.min": 100,
        "gpu.power.max": 400, "gpu.temperature.slowdown": 92, "gpu.temperature.shutdown": 95, "gpu.mig": False,
        "gpu.ecc.mode": True, "gpu.compute_mode": "default", "gpu.gsp": "590.48.01", "gpu.pcie.slot": True,
    }  # fmt: skip
    assert said["gpu.mig"].note == "the card has no MIG"


def test_a_card_that_can_be_sliced_and_is_not_needs_no_note(site):
    """Off is a reading where there is MIG; on is one everywhere."""
    assert (identity(site(compute_capability="9.0"))["gpu.mig"].note, mig(site(mig=True))) == ("", True)


def mig(where):
    """Return whether MIG is on."""
    return identity(where)["gpu.mig"].value


def test_a_threshold_that_the_driver_gives_as_a_margin_has_a_reason_and_no_value(site):
    """Not supported is no temperature, and neither is zero degrees."""
    margins = identity(refusing(site(), nvmlDeviceGetTemperatureThreshold=NVML.NVML_ERROR_NOT_SUPPORTED))
    assert margins["gpu.temperature.slowdown"] == NotMeasured("gpu.temperature.slowdown", "gpu0", "Not Supported")
    zero = identity(site(shutdown_c=0.0))["gpu.temperature.shutdown"]
    assert zero.reason == "the threshold reads 0 C: the driver knows none"


def test_a_mig_mode_that_cannot_be_read_is_not_off(site):
    """Only a card or a driver without MIG has it off; any other failure leaves it unread."""
    assert identity(refusing(site(), nvmlDeviceGetMigMode=NVML.NVML_ERROR_FUNCTION_NOT_FOUND))["gpu.mig"].value is False
    unread = identity(refusing(site(), nvmlDeviceGetMigMode=NVML.NVML_ERROR_NO_PERMISSION))["gpu.mig"]
    assert unread.reason == "Insufficient Permissions"


@given(mode=st.integers())
def test_a_compute_mode_has_a_name_or_a_reason(mode):
    """NVML's four modes are three words; what it may say in future is none of them."""
    nvml = SimpleNamespace(nvmlDeviceGetComputeMode=lambda _: mode)
    if mode in range(4):
        assert compute_mode(nvml, None) == ["default", "exclusive", "prohibited", "exclusive"][mode]
    else:
        with pytest.raises(Unmeasurable, match=f"compute mode {mode}, which has no name"):
            compute_mode(nvml, None)


@pytest.mark.parametrize(("other", "uniform"), [("95.02.47.00.01", True), ("95.02.47.00.02", False)])
def test_cards_of_one_vbios_are_uniform(two, catalogue, other, uniform):
    """One that differs from the others makes the machine not uniform, and the note says which has what."""
    journal = SimpleNamespace(record=lambda *_, **__: None, outcome=lambda _: None, attach=lambda *_: "digest")
    recorded = {
        ("gpu.vbios", device): Measurement("gpu.vbios", device, version, "text")
        for device, version in (("gpu0", "95.02.47.00.01"), ("gpu1", other))
    }
    outcome = Bench(two, catalogue, journal, None, recorded).outcome("gpu.vbios_uniform", "host")
    assert (outcome.value, outcome.note) == (uniform, f"gpu0 95.02.47.00.01, gpu1 {other}")
    missing = Bench(two, catalogue, journal).outcome("gpu.vbios_uniform", "host")
    assert missing.reason == "needs gpu.vbios[gpu0]: not recorded"


# settings ------------------------------------------------------------------------------------


def test_settings_that_stayed_are_unchanged(site):
    """The note names all of them, what the card does not support included."""
    where = site()
    outcome = only(state.unchanged(replace(where, before=state.settings(where))))
    assert outcome.value is True
    assert outcome.note.startswith(
        "power limit 300 W, persistence mode on, ECC on, MIG not supported, compute mode default, "
        "SM application clock not supported, memory application clock not supported, driver "
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"limit_w": 250.0}, "power limit 300 W -> 250 W"),
        ({"persistence": False}, "persistence mode on -> off"),
        ({"ecc": False}, "ECC on -> not supported"),
        ({"mig": True}, "MIG not supported -> on"),
        ({"compute_mode": "prohibited"}, "compute mode default -> prohibited"),
        ({"vbios": "1.2"}, "VBIOS 95.02.47.00.01 -> 1.2"),
        ({"limit_w": 250.0, "persistence": False}, "power limit 300 W -> 250 W; persistence mode on -> off"),
    ],
)
def test_a_setting_that_changed_is_told(site, changed, told):
    """Every difference is named with what was and what is."""
    where = site()
    before = state.settings(where)
    for name, value in changed.items():
        setattr(part(where), name, value)
    outcome = only(state.unchanged(replace(where, before=before)))
    assert (outcome.value, outcome.note) == (False, told)


def test_a_setting_unread_at_either_end_is_no_proof_that_nothing_changed(site):
    """The reason names the setting; a difference that was read elsewhere is proven all the same."""
    gone = {"nvmlDeviceGetPersistenceMode": NVML.NVML_ERROR_UNKNOWN}
    whole, blind = state.settings(site()), state.settings(refusing(site(), **gone))
    for where, before in ((site(), blind), (refusing(site(), **gone), whole), (refusing(site(), **gone), blind)):
        reason = only(state.unchanged(replace(where, before=before))).reason
        assert reason == "settings could not be read, persistence mode: Unknown Error"
    lowered = refusing(site(limit_w=250.0), **gone)
    outcome = only(state.unchanged(replace(lowered, before=whole)))
    assert (outcome.value, outcome.note) == (False, "power limit 300 W -> 250 W")


@pytest.mark.parametrize("name", ["power limit", "VBIOS", "UUID"])
def test_what_every_card_tells_and_this_one_does_not_is_no_proof_that_nothing_changed(site, monkeypatch, name):
    """Not supported at both ends is equal and shows nothing; another setting that differs is proven all the same."""

    def refuse(nvml, _handle):
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setitem(state.SETTINGS, name, refuse)
    where = site()
    before = state.settings(where)
    reason = only(state.unchanged(replace(where, before=before))).reason
    assert reason == f"settings could not be read, {name} is not supported"
    part(where).persistence = False
    outcome = only(state.unchanged(replace(where, before=before)))
    assert (outcome.value, outcome.note) == (False, "persistence mode on -> off")


def test_a_switch_that_waits_for_a_reset_is_told(site):
    """ECC that is switched off behind a run's back shows before the reset that makes it so."""
    nvml = SimpleNamespace(NVML_FEATURE_ENABLED=1, nvmlDeviceGetEccMode=lambda _: [1, 0])
    assert state.SETTINGS["ECC"](nvml, None) == "on, off after a reset"


@pytest.mark.parametrize("before", [None, {}, Unmeasurable("gpu0 does not answer")])
def test_without_the_start_nothing_is_unchanged(site, before):
    """What was not read at the start cannot be compared."""
    with pytest.raises(Unmeasurable, match=r"no reading from the start of the run|gpu0 does not answer"):
        list(state.unchanged(replace(site(), before=before)))


def test_a_card_that_is_lost_at_the_end_is_not_unchanged(site):
    """It does not answer: no reading, and no difference either."""
    where = site()
    before = state.settings(where)
    part(where).lost = True
    with pytest.raises(Unmeasurable, match="gpu0 does not answer"):
        list(state.unchanged(replace(where, before=before)))


# processes -----------------------------------------------------------------------------------


def counted(where, before=None):
    """Return what is said of the processes of gpu0 before and after."""
    return {o.metric: o for o in state.processes(replace(where, before=before or state.users(where)))}


def test_a_card_of_ones_own_has_no_processes(site):
    """None is proven by the list that was read, and nobody waits."""
    where = site()
    for outcome in counted(where).values():
        assert (outcome.value, outcome.proof, outcome.note) == (0, "NVML's list was read", "")
    assert where.world.clock.monotonic() == 0


def test_a_foreign_process_is_counted_with_its_name_and_memory(site):
    """At both ends, in the words of the machine."""
    said = counted(site(foreign_mib=20480))
    assert {o.value for o in said.values()} == {1}
    assert said["gpu.processes.before"].note == "4700 python3 20480 MiB"


def test_a_process_that_a_container_gives_no_name_is_counted_too(site):
    """Neither a hidden name nor memory that NVML does not tell makes anybody vanish."""
    where = site(foreign_mib=512)
    where.world.read = lambda path: (_ for _ in ()).throw(Unmeasurable(f"{path} cannot be read"))
    assert counted(where)["gpu.processes.after"].note == "4700 name hidden 512 MiB"
    unknown = state._described(where, SimpleNamespace(pid=7, usedGpuMemory=None))
    assert unknown == "7 name hidden unknown MiB"


def test_a_process_that_its_load_left_behind_counts_after_the_run(site):
    """Before the load nobody was there."""
    where = site(left_mib=512)
    before = state.users(where)
    with where.world.machine.runs("burn", {0: 1.0}):
        where.world.machine.advance(2.0)
    said = counted(where, before)
    assert [said[f"gpu.processes.{end}"].value for end in ("before", "after")] == [0, 1]


def test_a_process_that_ends_late_is_waited_for(site):
    """Whoever leaves the list within ten seconds has left the card."""
    where = site(foreign_mib=512)
    before, sleep = state.users(where), where.world.clock.sleep

    def ends(seconds):
        sleep(seconds)
        part(where).foreign_mib = 512 if where.world.clock.monotonic() < 5 else 0

    where.world.clock.sleep = ends
    assert counted(where, before)["gpu.processes.after"].value == 0
    assert 5 <= where.world.clock.monotonic() < 7


def test_a_desktop_is_noted_and_not_counted(site):
    """Graphics processes are no compute."""
    said = counted(site(desktop_mib=300))["gpu.processes.after"]
    assert (said.value, said.note) == (0, "1800 Xorg 300 MiB, graphics")


def test_this_test_run_itself_is_noted_and_not_counted(site):
    """A test of one's own that uses the card is not a stranger."""
    where = site(foreign_mib=512)
    read = where.world.read
    where.world.read = lambda path: "4700 (pytest) S 1" if path == "/proc/self/stat" else read(path)
    said = counted(where)["gpu.processes.before"]
    assert (said.value, said.note) == (0, "4700 python3 512 MiB, this test run itself")


def listing(where, **lists):
    """Let NVML list these processes of gpu0, each (pid, MiB or None)."""
    nvml = Refusing(where.world.nvml())
    for kind, found in lists.items():
        made = [SimpleNamespace(pid=pid, usedGpuMemory=mib if mib is None else mib << 20) for pid, mib in found]
        setattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses", lambda _, made=made: made)
    where.world.nvml = lambda: nvml
    return where


def test_a_process_that_computes_and_draws_is_one(site):
    """It is counted among those that compute, and its memory once."""
    seen = state.users(listing(site(foreign_mib=512), Compute=[(4700, 512)], Graphics=[(4700, 512), (9, 0)]))
    assert (list(seen.foreign), list(seen.others), seen.unexplained_mib) == ([4700], [9], 0)


def test_a_process_that_does_not_tell_its_memory_explains_none(site):
    """What it has is unknown, so much memory in use may be that of somebody who is not listed."""
    seen = state.users(listing(site(desktop_mib=9000), Compute=[], Graphics=[(1800, None)]))
    reason = seen.outcome(site(), state.AFTER).reason
    assert reason.startswith("9000 MiB of memory is in use on gpu0, and NVML lists nobody who has it: ")
    little = state.users(listing(site(desktop_mib=256), Compute=[], Graphics=[(1800, None)]))
    assert little.outcome(site(), state.AFTER).value == 0


def test_memory_in_use_that_nobody_tells_leaves_an_empty_list_without_proof(site):
    """A list alone may hide some: empty or with a desktop it is no zero, and whoever computes in it is proven."""
    untold = {"nvmlDeviceGetMemoryInfo": NVML.NVML_ERROR_FUNCTION_NOT_FOUND}
    for parameters in ({}, {"desktop_mib": 300}):
        for outcome in counted(refusing(site(**parameters), **untold)).values():
            assert outcome.reason.startswith("an unknown amount of memory is in use on gpu0, and NVML lists nobody")
    assert [o.value for o in counted(refusing(site(foreign_mib=512), **untold)).values()] == [1, 1]


def test_an_empty_list_beside_memory_in_use_proves_nothing(site):
    """A container hides processes, not what they have: neither end is then zero."""
    for outcome in counted(site(foreign_mib=20480, processes_hidden=True)).values():
        assert outcome.reason.startswith("20480 MiB of memory is in use on gpu0, and NVML lists nobody who has it")
    assert counted(site(foreign_mib=256, processes_hidden=True))["gpu.processes.after"].value == 0


def test_processes_beside_hidden_ones_are_counted(site):
    """Whoever is listed is proven, whoever else there may be."""
    seen = state.Users({1: "1 python3 unknown MiB"}, {}, 9000.0)
    assert seen.outcome(site(), state.BEFORE).value == 1


def test_a_list_that_nvml_refuses_is_no_zero(site):
    """The end has its reason, the start keeps what was read."""
    where = site()
    before = state.users(where)
    refusing(where, nvmlDeviceGetComputeRunningProcesses=NVML.NVML_ERROR_NO_PERMISSION)
    outcomes = state.processes(replace(where, before=before))
    assert next(outcomes).value == 0
    with pytest.raises(Unmeasurable, match="the compute processes of gpu0 cannot be listed: Insufficient Permissions"):
        next(outcomes)


def test_a_start_that_was_not_read_leaves_the_end(site):
    """Who is there after the run is known without it."""
    start, end = state.processes(site())
    assert (start.reason, end.value) == ("no reading from the start of the run", 0)


# memory --------------------------------------------------------------------------------------


def test_rows_that_were_remapped_are_what_the_board_says(site):
    """Count and flags are the registers'; a card without retired pages says so."""
    where = site(rows_remapped=2, remap_pending=True, remap_failed=True)
    *rows, pages = state.remap(where)
    assert [(o.metric, o.value) for o in rows] == [
        ("gpu.remap.uncorrected", 2), ("gpu.remap.pending", True), ("gpu.remap.failed", True)
    ]  # fmt: skip
    assert pages == NotMeasured("gpu.retired_pages", "gpu0", "retired pages: Not Supported")


def test_rows_that_cannot_be_read_are_not_zero(site):
    """Each of the three has NVML's reason."""
    where = refusing(site(), nvmlDeviceGetRemappedRows=NVML.NVML_ERROR_NOT_SUPPORTED)
    assert {o.reason for o in list(state.remap(where))[:3]} == {"remapped rows: Not Supported"}


def test_retired_pages_of_both_causes_add_up(site):
    """An older card lists its pages by cause."""
    where, pages = site(), {0: [4096], 1: [8192, 12288]}
    nvml = Refusing(where.world.nvml())
    nvml.nvmlDeviceGetRetiredPages = lambda _, cause: pages[cause]
    where.world.nvml = lambda: nvml
    assert list(state.remap(where))[-1].value == 3


# loads ---------------------------------------------------------------------------------------


def test_a_card_of_ones_own_is_usable(site):
    """A foreign process does not refuse a card that both may use."""
    assert usable(site(), "gpu0").device == "gpu0"
    assert usable(site(foreign_mib=512), "gpu0").device == "gpu0"
    assert usable(site(compute_mode="exclusive"), "gpu0").device == "gpu0"


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"mig": True}, "MIG is on: loads would measure a slice of gpu0: nvidia-smi -i 00000000:01:00.0 -mig 0, then"),
        (
            {"compute_mode": "prohibited"},
            "of gpu0 is prohibited, no load can start: nvidia-smi -i 00000000:01:00.0 -c 0",
        ),
        ({"compute_mode": "exclusive", "foreign_mib": 9}, "gpu0 is exclusive and held by 4700: end it or nvidia-smi"),
        ({"lost": True}, "gpu0 does not answer"),
    ],
)
def test_a_card_that_a_load_cannot_have_is_refused_with_the_remedy(site, parameters, reason):
    """What would measure a slice, or cannot start, is not started."""
    with pytest.raises(Unmeasurable, match=reason):
        usable(site(**parameters), "gpu0")


def test_a_card_whose_mode_cannot_be_read_is_refused(site):
    """Nobody knows then what a load would measure."""
    where = refusing(site(), nvmlDeviceGetMigMode=NVML.NVML_ERROR_UNKNOWN)
    with pytest.raises(Unmeasurable, match="whether a load can have gpu0 to itself cannot be read: Unknown Error"):
        usable(where, "gpu0")


def test_mig_is_off_where_there_is_none(site):
    """Not supported is an answer about MIG."""
    where = site()
    assert mig_mode(where.world.nvml(), usable(where, "gpu0").handle) == (False, "the card has no MIG")
