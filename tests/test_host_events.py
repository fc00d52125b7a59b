"""What the kernel counted and said during the run counts; none seen needs the counter, or the log, at both ends."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.kernel import host_events
from pytest_gpuaccept.readings import decode, encode
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld
from tests.stand_ins import Files

ALL = [metric.id for metric in host_events.PROBES[0].metrics]


@pytest.fixture
def world(profile):
    """Return a healthy simulated machine of the commissioned kind."""
    return SimWorld(profile, Scenario("healthy"))


def whole_run(world, profile, meanwhile=lambda: None):
    """Read the start, burn the CPUs for a minute, then measure; return the outcomes by metric."""
    site = Site(world, profile, "host", {}, lambda _name, _text: "digest")
    start = host_events.start(site)
    with world.machine.runs("stress-ng", cpu=1.0):
        world.machine.advance(60)
    meanwhile()
    return {outcome.metric: outcome for outcome in host_events.host_events(replace(site, before=start))}


def values(outcomes):
    """Return the values of measurements, the reasons of absences."""
    return {m: o.value if isinstance(o, Measurement) else o.reason for m, o in outcomes.items()}


@pytest.mark.parametrize(("path", "off"), [(path, off) for path, (off, _) in host_events.DETECTORS.items()])
def test_what_nobody_looks_for_is_not_proven_absent(world, profile, monkeypatch, path, off):
    """A detector that is switched off spoils the proof of none, and names how to switch it on."""
    read = world.read
    monkeypatch.setattr(world, "read", lambda asked: off if asked == path else read(asked))
    found = whole_run(world, profile)["host.events.faults"]
    assert "sysctl -w kernel." in found.reason or "echo 0 >" in found.reason


@pytest.mark.parametrize("path", host_events.DETECTORS)
def test_a_detector_that_is_not_in_the_kernel_looks_for_nothing(path):
    """Its file is missing, which is not the same as on."""
    files = {**dict.fromkeys(host_events.DETECTORS, "10"), host_events.STALLS: "0"}
    assert not list(host_events.undetected(SimpleNamespace(world=Files(files))))
    assert len(list(host_events.undetected(SimpleNamespace(world=Files({**files, path: None}))))) == 1


@pytest.mark.parametrize(
    ("said", "count"),
    [
        ("NVRM: Xid (PCI:0000:C1:00): 79, GPU has fallen off the bus.", 1),
        ("NVRM: Xid (PCI:0000:C1:00): 43, pid=4711, name=python3", 1),
        ("NVRM: Xid (PCI:0000:C1:00): 45, pid=4711, name=python3", 0),
        ("nvme nvme0: I/O 512 QID 7 timeout, aborting", 1),
        ("EXT4-fs error (device nvme0n1p1): ext4_lookup:1855: inode #2", 1),
        ("INFO: task fio:4711 blocked for more than 122 seconds.", 1),
        ("eno1: Link is Down", 0),
    ],
)
def test_damage_of_this_boot_before_the_run_is_told(world, profile, said, count):
    """What a restart would hide counts as before the run, and not as of it."""
    world.machine.say(said, priority=3)
    found = values(whole_run(world, profile))
    assert found == {**dict.fromkeys(ALL, 0), "host.events.before": count}


def test_a_log_whose_beginning_is_lost_proves_no_quiet_boot(world, profile):
    """An error of it may stand in what was overwritten."""
    del world.machine.log[0]
    assert isinstance(whole_run(world, profile)["host.events.before"], NotMeasured)


def test_a_quiet_run_is_proven_quiet(world, profile):
    """Without an event every count is zero and says what would have shown one."""
    found = whole_run(world, profile)
    assert values(found) == dict.fromkeys(ALL, 0)
    assert all(outcome.proof for outcome in found.values())


@pytest.mark.parametrize(
    ("message", "metric"),
    [
        ("Oops: 0002 [#1] PREEMPT SMP NOPTI", "host.events.faults"),
        ("mce: [Hardware Error]: Machine check events logged", "host.events.faults"),
        ("watchdog: BUG: soft lockup - CPU#3 stuck for 26s!", "host.events.faults"),
        ("INFO: task fio:4711 blocked for more than 122 seconds.", "host.events.faults"),
        ("NVRM: GPU 0000:c1:00.0: RmInitAdapter failed! (0x62:0x40:2477)", "host.events.faults"),
        ("nvme nvme0: I/O 512 QID 7 timeout, aborting", "host.events.storage"),
        ("EXT4-fs error (device sda2): ext4_lookup:1855: inode #2", "host.events.storage"),
        ("Out of memory: Killed process 4711 (python3)", "host.events.oom"),
        ("something that nobody knows", "host.events.novel"),
    ],
)
def test_a_message_counts_where_it_belongs(world, profile, message, metric):
    """Each kind of message makes its own count, tells its words, and no other count."""
    found = whole_run(world, profile, meanwhile=lambda: world.machine.say(message, priority=3))
    assert values(found) == {**dict.fromkeys(ALL, 0), metric: 1}
    assert message[:20] in found[metric].note


@pytest.mark.parametrize(
    ("part", "parameter", "value", "metric"),
    [
        ("cpu", "memory_corrected", 3, "host.ecc.corrected"),
        ("cpu", "memory_uncorrected", 1, "host.ecc.uncorrected"),
        ("nvme0", "file_errors", 2, "host.events.storage"),
    ],
)
def test_a_counter_counts_without_a_message(world, profile, part, parameter, value, metric):
    """What only a counter shows is counted in full."""
    setattr(world.machine.part(part), parameter, value)
    assert values(whole_run(world, profile)) == {**dict.fromkeys(ALL, 0), metric: value}


def test_a_new_sign_of_damage_is_told_from_an_old_one(world, profile):
    """A bit of the taint that was set before the run is of before; one that is set in it is of the run."""
    world.machine.host.taint = 1 << 5
    found = whole_run(world, profile, meanwhile=lambda: setattr(world.machine.host, "taint", 1 << 5 | 1 << 9))
    assert (found["host.taint.before"].value, found["host.taint.before"].note) == (1, "bad page")
    assert (found["host.taint.new"].value, found["host.taint.new"].note) == (1, "kernel warning 1")


def test_an_unreadable_log_proves_nothing(world, profile):
    """Without a log only what has a counter is none."""
    world.machine.host.log_readable = False
    found = whole_run(world, profile)
    assert {m for m, o in found.items() if isinstance(o, NotMeasured)} == {
        "host.events.faults", "host.events.storage", "host.events.novel", "host.events.before",
    }  # fmt: skip
    assert "group adm" in found["host.events.faults"].reason


def test_what_was_seen_in_a_cut_log_is_a_lower_bound(world, profile):
    """A log without its first lines shows at least what it shows."""
    del world.machine.log[0]
    found = whole_run(world, profile, meanwhile=lambda: world.machine.say("Oops: 0002 [#1] SMP", priority=0))
    assert found["host.events.faults"].value == Interval(1, None)


def test_memory_that_nobody_watches_has_no_count(world, profile):
    """Without a memory controller in EDAC the remedy is its driver."""
    world.machine.cpu.edac = False
    found = whole_run(world, profile)
    assert "modprobe" in found["host.ecc.corrected"].reason
    assert "modprobe" in found["host.ecc.uncorrected"].reason


def test_a_counter_that_began_anew_is_no_count(world, profile):
    """A driver that was loaded anew has lost its count."""
    world.machine.was_loaded = True
    world.machine.cpu.memory_corrected = 5
    found = whole_run(world, profile, meanwhile=lambda: setattr(world.machine.cpu, "memory_corrected", 1))
    assert "went down" in found["host.ecc.corrected"].reason


def test_a_store_of_crashes_that_may_not_be_listed_says_so(world, profile, monkeypatch):
    """The firmware's store belongs to root."""
    names = world.names

    def listed(path):
        if path == host_events.PSTORE:
            message = f"{path} cannot be listed: Permission denied"
            raise Unmeasurable(message)
        return names(path)

    monkeypatch.setattr(world, "names", listed)
    with pytest.raises(Unmeasurable, match="run as root"):
        crashes(world, profile)


def test_a_kernel_that_collects_memory_errors_for_itself_counts_none(world, profile):
    """Counters that the collector starves prove nothing, but for a kernel that was told not to collect."""
    world.machine.say("RAS: Correctable Errors collector initialized.", priority=6)
    assert "ras=cec_disable" in whole_run(world, profile)["host.ecc.corrected"].reason
    world.machine.host.cmdline += " ras=cec_disable"
    assert whole_run(world, profile)["host.ecc.corrected"].value == 0


def test_corrected_errors_that_the_log_tells_count_as_such(world, profile):
    """A firmware that tells the kernel of a corrected error is no fault, and one message of it counts once."""
    lines = (
        "{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 1",
        "{1}[Hardware Error]: It has been corrected by h/w and requires no further action",
        "{1}[Hardware Error]: event severity: corrected",
    )
    found = whole_run(world, profile, meanwhile=lambda: [world.machine.say(line, priority=6) for line in lines])
    assert values(found) == {**dict.fromkeys(ALL, 0), "host.ecc.corrected": 1}


def test_errors_of_a_volume_that_came_later_are_not_of_the_run(world, profile, monkeypatch):
    """A volume that is mounted meanwhile brings its past along; one that was there counts what is new."""
    ext4 = iter([{"sda1": 4}, {"sda1": 4, "sdb1": 9}, {"sda1": 4}, {"sda1": 5, "sdb1": 9}])
    monkeypatch.setitem(host_events.COUNTS, "ext4", lambda _site: next(ext4))
    assert whole_run(world, profile)["host.events.storage"].value == 0
    assert whole_run(world, profile)["host.events.storage"].value == 1


def crashes(world, profile):
    """Return what is on record of crashes."""
    (found,) = host_events.crashes(Site(world, profile, "host", {}, lambda _name, _text: "digest"))
    return found


def test_an_empty_store_of_crashes_is_proven_empty(world, profile):
    """Both places were listed, and the kernel has where to keep one."""
    assert (crashes(world, profile).value, "efi_pstore" in crashes(world, profile).proof) == (0, True)


def test_a_kernel_without_a_place_for_a_crash_proves_none(world, profile):
    """An empty store proves nothing where nothing is stored."""
    world.machine.host.keeps_crashes = False
    with pytest.raises(Unmeasurable, match="pstore has no backend"):
        crashes(world, profile)


def test_a_crash_counts_after_a_restart_too(world, profile):
    """What the kernel that died in this run has left is read all the same."""
    world.machine.host.boot, world.machine.host.crashes = 1, 2
    assert crashes(world, profile).value == 2


def test_a_crash_that_systemd_has_moved_away_counts(world, profile, monkeypatch):
    """At the next start the records go from /sys/fs/pstore to /var/lib/systemd/pstore."""
    names = world.names
    monkeypatch.setattr(world, "names", lambda path: ["171234567"] if path == host_events.KEPT else names(path))
    found = crashes(world, profile)
    assert (found.value, "171234567" in found.note) == (1, True)


def test_a_restart_during_the_run_measures_nothing(world, profile):
    """Counts of another boot are not compared."""
    with pytest.raises(Unmeasurable, match="started anew"):
        whole_run(world, profile, meanwhile=lambda: setattr(world.machine.host, "boot", 1))


def test_the_start_survives_a_resumed_run(world, profile):
    """What was read at the start can be kept as JSON and read back."""
    start = host_events.start(Site(world, profile, "host", {}, lambda _name, _text: "digest"))
    assert decode(encode(start), host_events.start) == start


def test_a_machine_without_ext4_is_quiet_too(world, profile):
    """Where no file system counts its errors, the log alone is the channel."""
    world.machine.drives["nvme0"].present = False
    assert values(whole_run(world, profile))["host.events.storage"] == 0
