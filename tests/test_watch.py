"""The watch over the counters: what is told, and to whom a count is charged."""

import errno
import json
from types import SimpleNamespace

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpuaccept.bench import Bench
from pytest_gpuaccept.children.watch import watch
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Catalogue, Probe, Site
from pytest_gpuaccept.probes import watch as probe
from pytest_gpuaccept.probes.drives.drive import Drive
from pytest_gpuaccept.probes.kernel.counts import damage
from pytest_gpuaccept.probes.watch import Charge, Source, Watch
from pytest_gpuaccept.sim.nvml import binding, uuid_of
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld
from tests.stand_ins import Sleeper


class Files:
    """Files by path; each read takes `cost` s, an OSError in place of a text is raised."""

    def __init__(self, clock=None, cost=0.0, **texts):
        self.texts, self._clock, self._cost = dict(texts), clock, cost

    def __call__(self, path):
        """Return a text as the kernel would."""
        if self._cost:
            self._clock.sleep(self._cost)
        if isinstance(self.texts[path], OSError):
            raise self.texts[path]
        return self.texts[path]


# the poll ---------------------------------------------------------------------------------------------


def test_first_all_then_changes():
    """The first round tells every text, a later one what changed since, with the time of the round before."""
    files, clock = Files(a="1", b="2"), Sleeper()
    poll = watch(files, clock, files={"a": "", "b": ""}, period_s=1)
    first = next(poll)
    files.texts["b"] = "3"
    second = next(poll)
    assert first["now"] == {"a": "1", "b": "2"}
    assert (second["now"], second["since"], second["t"]) == ({"b": "3"}, 100.0, 101.0)


def test_unreadable():
    """A file that cannot be read is told once with its reason, and again when it can be."""
    files, clock = Files(a=PermissionError(errno.EACCES, "Permission denied")), Sleeper()
    poll = watch(files, clock, files={"a": ""}, period_s=1)
    assert next(poll)["failed"] == {"a": "Permission denied"}
    assert clock.now == 100.0
    files.texts["a"] = "7"
    assert next(poll)["now"] == {"a": "7"}


def test_picked_lines():
    """Of a file in which much changes only the lines that matter are told."""
    files = Files(a="pgfault 8\noom_kill 1\npgfree 3")
    assert next(watch(files, Sleeper(), files={"a": "oom_kill"}, period_s=1))["now"] == {"a": "oom_kill 1"}


def test_sign_of_life():
    """A poll that sees nothing change says every half minute that it still looks."""
    poll = watch(Files(a="1"), Sleeper(), files={"a": ""}, period_s=1)
    assert [next(poll)["t"] for _ in range(3)] == [100.0, 130.0, 160.0]


@pytest.mark.parametrize(
    "record",
    [
        {"t": float("nan")}, {"t": "7"}, {"since": None}, {"gap": float("inf")}, {"now": {"a": 1}}, {"now": ["a"]},
        {"failed": {"a": None}}, {"failed": None}, {"kind": "sample"},
    ],
)  # fmt: skip
def test_what_is_no_round(record):
    """A record counts only when every part of it is what the poll writes."""
    good = {"kind": "round", "t": 2.0, "since": 1.0, "gap": 1.0, "now": {"a": "1"}, "failed": {"b": "gone"}}
    assert probe.is_round(good)
    assert not probe.is_round(good | record)


def test_slow_reads():
    """Reads that take longer than a period leave rounds out, rest in between, and tell the gap."""
    clock = Sleeper()
    files = Files(clock, 2.5, a="1")
    rounds = []
    poll = watch(files, clock, files={"a": ""}, period_s=1)
    for text in "123":
        files.texts["a"] = text
        rounds.append(next(poll))
    assert [record["t"] for record in rounds] == [100.0, 103.0, 106.0]
    assert rounds[-1]["gap"] == 3.0


def test_lost_card():
    """A card that has fallen off the bus is told as lost and never asked again."""
    asked = []
    lost = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    def handle(uuid):
        asked.append(uuid)
        raise lost

    nvml = SimpleNamespace(
        NVMLError=pynvml.NVMLError,
        NVML_ERROR_GPU_IS_LOST=pynvml.NVML_ERROR_GPU_IS_LOST,
        nvmlDeviceGetHandleByUUID=handle,
    )
    poll = watch(Files(a="1"), Sleeper(), files={"a": ""}, period_s=1, uuids=["GPU-1"], nvml=nvml)
    first = next(poll)
    next(poll)
    assert asked == ["GPU-1"]
    assert set(first["failed"].values()) == {str(lost)}


@pytest.fixture
def world(catalogue):
    """Return a machine of two cards, the second with link errors in both words of the driver."""
    profile = load_profile("2xrtx4090", catalogue, SHIPPED)
    scenario = "healthy,fault=gpu1.aer.corrected:60"
    return SimWorld(profile, load_scenario(scenario, SHIPPED, SHIPPED / "scenarios"))


def test_nvml(world):
    """NVML's link counters are told as counts, and what a card does not count as the reason."""
    uuid = uuid_of(world.machine, 0)
    told = next(watch(Files(), Sleeper(), files={}, period_s=1, uuids=[uuid], nvml=binding(world.machine)))
    assert told["now"] == {f"nvml/{uuid}/replays": "0"}
    assert told["failed"][f"nvml/{uuid}/corrected"] == "Not Supported"


# what is charged to whom ------------------------------------------------------------------------------


class Poll:
    """A poll whose records the test writes."""

    def __init__(self):
        self.records, self.ended = [], False


class Machine:
    """A world of one file and a clock."""

    def __init__(self):
        self.clock, self.text = Sleeper(), "5"

    def read(self, path):
        """Return the file."""
        if self.text is None:
            message = f"{path} cannot be read: No such device"
            raise Unmeasurable(message)
        return self.text


@pytest.fixture
def watched():
    """Return a watch over one file, which reads 5, and over one counter of NVML."""
    machine = Machine()
    site = Site(machine, None, "host", {"seconds": 20}, lambda name, text: "")
    found = {"/a": Source("gpu0", "errors", probe.plain), "nvml/u/replays": Source("gpu0", "replays", probe.plain)}
    taken = Watch(site, found, Poll())
    taken.look()
    return taken


def told(t, since, **now):
    """Return a record of the poll."""
    return {"kind": "round", "t": t, "since": since, "now": now, "failed": {}, "gap": 1.0}


def test_charged_to_what_ran(watched):
    """What a counter grew by while a probe ran is charged to that probe alone."""
    world = watched.site.world
    with watched.during("quiet"):
        world.clock.sleep(10)
    world.clock.sleep(1)
    with watched.during("loud"):
        world.clock.sleep(10)
        world.text = "8"
    assert [(c.count, c.during) for c in watched.charged] == [(3, ("loud",))]


def test_rounds_give_the_time(watched):
    """A round of the poll says within a second when a count came, and it is counted once."""
    world = watched.site.world
    with watched.during("loud"):
        world.clock.sleep(10)
        world.text = "6"
        watched.load.records.append(told(105.0, 104.0, **{"/a": "6"}))
    assert [(c.since, c.t, c.count) for c in watched.charged] == [(104.0, 105.0, 1)]


def test_late_counts(watched):
    """What is counted just behind a probe is its own; what is counted later, while nothing ran, is nobody's."""
    world = watched.site.world
    with watched.during("loud"):
        world.clock.sleep(10)
    for seconds, text in ((1, "6"), (10, "7")):
        world.clock.sleep(seconds)
        world.text = text
        watched.look()
    assert [charge.during for charge in watched.charged] == [("loud",), ()]


def test_between(watched):
    """What grew while nothing ran is charged to nobody."""
    watched.site.world.text = "6"
    watched.site.world.clock.sleep(1)
    watched.look()
    assert [charge.during for charge in watched.charged] == [()]
    assert probe.by_phase(watched.charged) == {"between probes": 1}


def test_late_round(watched):
    """A round that is told late is taken for what the poll alone reads, and not for a file that was read since."""
    world, poll = watched.site.world, watched.load
    poll.records.append(told(100.5, 99.5, **{"/a": "5", "nvml/u/replays": "0"}))
    world.clock.sleep(2)
    world.text = "7"
    watched.look()
    poll.records.append(told(101.5, 100.5, **{"/a": "6", "nvml/u/replays": "4"}))
    watched.look()
    assert [(c.what, c.count) for c in watched.charged] == [("errors", 2), ("replays", 4)]


def test_reset_counter(watched):
    """A counter that went down was reset, which is no count; from there on it counts again."""
    for watched.site.world.text in ("2", "3"):
        watched.look()
    assert [charge.count for charge in watched.charged] == [1]


@pytest.mark.parametrize("text", ["many", None])
def test_not_a_count(watched, text):
    """A counter that cannot be read, or is none, is named as unread and charges nothing."""
    watched.site.world.text = text
    watched.look()
    assert "/a" in watched.unread
    assert not watched.charged


def test_rubbish_of_the_poll(watched):
    """A record that is no round is passed over."""
    watched.load.records += [{"kind": "round"}, {"kind": "death", "reason": "gone"}]
    watched.look()
    assert not watched.charged


def test_standstill(watched):
    """A poll that has told nothing for longer than its sign of life takes has stood still all that time."""
    watched.load.records.append(told(100.0, 100.0))
    watched.look()
    watched.site.world.clock.sleep(30)
    assert watched.standstill == 1.0
    watched.site.world.clock.sleep(30)
    assert watched.standstill == 60.0


def test_errors_seen_by_several_count_once():
    """Both partners of a link and NVML may count one error: of a family only the counter that saw most counts."""
    family = "corrected PCIe errors"
    charges = [
        Charge(0, 1, "gpu0", what, n, "", ("vllm",), family) for what, n in (("card", 3), ("port", 5), ("NVML", 5))
    ]
    charges.append(Charge(0, 1, "gpu0", "Xid 13", 1, "", ("vllm",), "Xid 13"))
    assert probe.by_phase(charges) == {"vllm": 6}
    assert probe.during(Watch(None, {}, Poll(), charged=charges), "gpu0", family) == "vllm 5"


def test_where_an_event_happened():
    """A PCI address in any form, a partition and an interface are devices of the profile; the rest is the host."""
    where = {"0000:c1:00.0": "gpu3", "nvme0n1": "nvme0", "eno1": "nic0"}
    names = ("00000000:C1:00.0", "nvme0n1p2", "eno1", "sda", "")
    assert [probe.device_of(where, name) for name in names] == ["gpu3", "nvme0", "nic0", "host", "host"]


def test_worst_minute():
    """The worst minute is that of one link partner: both may see the same error."""
    what = "corrected PCIe errors that the {} saw"
    charges = [Charge(t - 1, t, "gpu0", what.format(side), n, "", ()) for side in ("card", "port") for t, n in
               ((1, 2), (50, 3), (100, 4))]  # fmt: skip
    taken = Watch(None, {}, Poll(), charged=[*charges, Charge(0, 1, "gpu1", what.format("card"), 99, "", ())])
    assert probe.worst_minute(taken, "gpu0", "corrected PCIe") == 7


def test_a_minute_is_any_minute():
    """The window slides with the errors; one that is a minute old is out of it."""
    charges = [Charge(t, t, "gpu0", "corrected PCIe errors that the card saw", 1, "", ()) for t in (0, 59, 60, 61, 119)]
    assert probe.worst_minute(Watch(None, {}, Poll(), charged=charges), "gpu0", "corrected PCIe") == 3


@given(st.text())
@pytest.mark.parametrize("parse", [probe.vmstat, probe.plain, damage])
def test_parsers(parse, text):
    """Whatever stands in a counter's file is counts or the reason why it is none."""
    try:
        counts = parse(text)
    except Unmeasurable:
        return
    assert all(count >= 0 for count in counts.values())


def test_taint_bits():
    """A taint is told bit by bit, so that new damage counts beside old; what tells of modules is none."""
    assert damage(f"{1 << 0 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 4}\n") == {
        "machine check": 1, "bad page": 0, "oops": 0, "kernel warning": 0, "soft lockup": 0
    }  # fmt: skip


# in a run ---------------------------------------------------------------------------------------------


class Notes:
    """A journal that keeps everything."""

    def __init__(self):
        self.records, self.attached = [], {}

    def record(self, kind, **body):
        """Keep a record."""
        self.records.append((kind, body))

    def outcome(self, outcome):
        """Keep an outcome."""
        self.records.append(("outcome", outcome))

    def attach(self, name, text):
        """Keep a text."""
        self.attached[name] = text
        return name


def loading(site):
    """Load the second card for a minute."""
    with site.world.machine.runs("burn", {1: 1.0}):
        site.world.clock.sleep(60)
    return []


def run_on(world, catalogue):
    """Return a bench over a machine, begun, with a probe that loads its second card; and the bench's journal."""
    profile = load_profile("2xrtx4090", catalogue, SHIPPED)
    journal = Notes()
    bench = Bench(
        profile, Catalogue([*probe.PROBES, Probe("x.load", "gpus", "host", (), loading, load=True)]), journal, world
    )
    bench.begin()
    return bench, journal


def test_a_run(world, catalogue):
    """PCIe errors under load are charged to the load, written down when it ends, and not to the rest before it."""
    bench, journal = run_on(world, catalogue)
    rest = bench.outcome("host.idle.events", "host")
    bench.run(bench.catalogue.probes["x.load"], "host")
    written = [body for kind, body in journal.records if kind == "counted"]
    events = bench.outcome("gpu.watch.events", "gpu1")
    bench.close()
    assert (rest.value, "counters were read" in rest.proof) == (0, True)
    assert {body["device"] for body in written} == {"gpu1"}
    assert events.conditions == {"x.load": events.value}
    assert 58 <= events.value <= 61
    assert bench.outcome("gpu.watch.events", "gpu0").value == 0
    assert len(journal.attached["events by phase"].splitlines()) == len(written)
    assert json.loads(journal.attached["events by phase"].splitlines()[0])["detail"].startswith("RxErr")


def test_the_log_is_charged_too(world, catalogue):
    """An Xid has no counter: it is charged to its card and to what ran when the kernel wrote it down."""
    world.machine.gpus[1].p.xid = 31
    bench, journal = run_on(world, catalogue)
    bench.run(bench.catalogue.probes["x.load"], "host")
    world.machine.say("mce: [Hardware Error]: Machine check events logged", priority=3)
    bench.outcome("gpu.watch.events", "gpu1")
    bench.close()
    told = [json.loads(line) for line in journal.attached["events by phase"].splitlines()]
    seen = {(one["device"], one["what"]): tuple(one["during"]) for one in told}
    assert seen["gpu1", "Xid 31"] == ("x.load",)
    assert ("host", "hardware error") in seen


def test_drives_are_asked_before_and_after_a_probe_only(catalogue):
    """A drive's health log grows in a probe and is charged to it; nobody asks the drive each second."""
    profile = load_profile("4x4090", catalogue, SHIPPED)
    machine = SimWorld(profile, load_scenario("healthy,fault=nvme0.power.loss:2", SHIPPED, SHIPPED / "scenarios"))
    asked, command = [], machine.command
    machine.command = lambda argv, **more: asked.append(argv[0]) or command(argv, **more)

    def writes(site):
        site.world.machine.drive_busy_s["nvme0"] += 5
        site.world.clock.sleep(60)
        return []

    probes = Catalogue([*probe.PROBES, Probe("x.load", "storage", "host", (), writes, load=True)])
    bench = Bench(profile, probes, Notes(), machine)
    bench.begin()
    bench.run(probes.probes["x.load"], "host")
    events = bench.outcome("nvme.watch.events", "nvme0")
    bench.close()
    assert events.conditions == {"x.load": 2}
    assert asked.count("nvme") < 10


def test_errors_at_rest(world, catalogue):
    """What is counted while the machine rests is an error of the rest, with the counter named."""
    world.machine.gpus[1].loads.append(0.0)
    bench, _ = run_on(world, catalogue)
    watch_of_run = bench.memory["watch"]
    world.machine.flapped["nic0"] = 0
    sleep = world.clock.sleep

    def flap(seconds):
        world.machine.flapped["nic0"] += 1
        sleep(seconds)

    watch_of_run.site.world.clock.sleep = flap
    rest = bench.outcome("host.idle.events", "host")
    assert (rest.value, rest.note) == (2, "nic0: carrier changes, eno1 2")


def test_no_watch(catalogue, world):
    """Without a watch the rest proves nothing."""
    site = Site(world, load_profile("2xrtx4090", catalogue, SHIPPED), "host", {"seconds": 1}, lambda name, text: "")
    with pytest.raises(Unmeasurable, match="no counters were watched"):
        list(probe.idle(site))


def test_dead_poll(world, catalogue):
    """When the poll dies, the time of the longest gap is not known, and the counts are those of the edges."""
    bench, _ = run_on(world, catalogue)
    poll = bench.memory["watch"].load
    poll._script.ended, poll._script.death = True, "Killed"
    bench.run(bench.catalogue.probes["x.load"], "host")
    gap = bench.outcome("host.watch.gap", "host")
    assert isinstance(gap, NotMeasured)
    assert "Killed" in gap.reason
    assert isinstance(bench.outcome("gpu.watch.events", "gpu1"), Measurement)


@pytest.mark.parametrize(("drive", "watched"), [("nvme0n1", True), ("sda", False)])
def test_an_nvme_drive_of_several_controllers_is_not_left_out(monkeypatch, drive, watched):
    """Its log cannot be asked for, which is said; a drive that is no NVMe drive has none."""
    backing = SimpleNamespace(drives=(Drive("259:0", drive, ""),))
    monkeypatch.setattr(probe, "drives_of", lambda _site: backing)
    assert bool(probe._drives(SimpleNamespace(device="nvme0", world=None))) is watched
