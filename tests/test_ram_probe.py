"""The memory burn proves what it touched; its bandwidth is that of a real tool, or said to be rough."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.burns import cpu, ram
from pytest_gpuaccept.probes.host import confines
from pytest_gpuaccept.world import Completed, LiveWorld
from tests.stand_ins import Files

FUZZ = settings(deadline=None, database=None)
REAL = pytest.mark.skipif(
    shutil.which("stress-ng") is None and "CI" not in os.environ, reason="not installed: stress-ng"
)
GIB, KIB = 2**30, 2**10
TOTAL, FREE, ASKED = 100 * GIB, 90 * GIB, 72 * GIB
OURS = "Name:\tpytest\nPid:\t50\nPPid:\t1\nVmRSS:\t  200000 kB\nCpus_allowed_list:\t0-3\n"
GROUP = "/sys/fs/cgroup"
LIMITED = {"/proc/self/cgroup": "0::/", f"{GROUP}/memory.max": f"{40 * GIB}", f"{GROUP}/memory.current": f"{10 * GIB}"}
BITS = "stress-ng: fail:  [61] vm: detected 1 bit errors while stressing memory\n"
REPORT = """metrics:
    - stressor: {stressor}
      bogo-ops: {ops}
      wall-clock-time: {ran:.6f}
      user-time: {cpu_s:.6f}
      system-time: 0.000000
      cpu-usage-per-instance: {each:.6f}
"""


def report(stressor="vm", ran=30.0, workers=4, ops=9000):
    """Return the report of a run in which every worker had all of a CPU."""
    return REPORT.format(stressor=stressor, ops=ops, ran=ran, cpu_s=ran * workers, each=100.0)


def words(stressor="vm", workers=4):
    """Return what stress-ng says when all goes well."""
    return f"stress-ng: info:  [60] dispatching hogs: {workers} {stressor}\nstress-ng: info:  [60] successful run\n"


def meminfo(available):
    """Return /proc/meminfo with so many bytes available."""
    return f"MemTotal:       {TOTAL // KIB} kB\nMemFree:        1 kB\nMemAvailable:   {available // KIB} kB"


def held(*sizes, name="stress-ng-vm", parent=50, first=60):
    """Return stress-ng's processes below ours: itself, and for each worker one that waits and one that holds memory."""
    lines = {first: ("stress-ng", parent, 10_140)}
    for n, size in enumerate(sizes):
        lines[first + 1 + 2 * n] = (name, first, 2784)
        lines[first + 2 + 2 * n] = (name, first + 1 + 2 * n, size // KIB)
    return {
        f"/proc/{pid}/status": f"Name:\t{name}\nPid:\t{pid}\nPPid:\t{parent}\nVmRSS:\t{kib} kB\n"
        for pid, (name, parent, kib) in lines.items()
    }


class Box(Files, LiveWorld):
    """A machine of four CPUs and 100 GiB made of files, and what stress-ng does on it.

    `during` are the files of each moment, three seconds apart, of the burn.
    """

    status, stderr, report, took = 0, words(), report(), 30.0
    tools = ()
    likwid = ""

    def __init__(self, clock):
        LiveWorld.__init__(self)
        self.clock, self.argv = clock, ()
        self.files = {
            "/sys/devices/system/cpu/online": "0-3", "/proc/meminfo": meminfo(FREE), "/proc/vmstat": "oom_kill 7",
            "/proc/self/status": OURS, "/proc/1/status": "Name:\tinit\nPid:\t1\nPPid:\t0", "/proc/2/maps": "",
        }  # fmt: skip
        self.during = ({}, {**held(*[ASKED // 4] * 4), "/proc/meminfo": meminfo(FREE - ASKED)})
        self.after = {}

    def has(self, tool):
        """Say which tools there are."""
        return tool in self.tools

    def read(self, path):
        """Return a file as the world does; only stress-ng's report is a real one."""
        return LiveWorld.read(self, path) if path.endswith("stress-ng.yaml") else super().read(path)

    def command(self, argv, *, timeout, watch=None):
        """Play a tool: let the moments come and whoever watches look, then end."""
        self.argv, self.timeout = tuple(argv), timeout
        if argv[0] == "likwid-bench":
            watch()
            return Completed(self.argv, self.status, self.likwid, "", self.took)
        before = self.files
        for moment in self.during:
            self.clock.seconds += 3
            self.files = before | moment
            watch()
        self.files = before | self.after
        if self.report:
            Path(self.argv[self.argv.index("--yaml") + 1]).write_text(self.report)
        return Completed(self.argv, self.status, "", self.stderr, self.took)


@pytest.fixture
def box(clock):
    """A healthy machine; a test then breaks one part of it."""
    return Box(clock)


def burn(box, **parts):
    """Burn 80 % of the free memory for 30 s with parts of the machine replaced; return the outcomes by metric."""
    vars(box).update(parts)
    kept = {}
    site = Site(box, None, "host", {"seconds": 30, "percent": 80}, kept.setdefault)
    found = {outcome.metric: outcome for outcome in ram.burn(site)}
    assert found.keys() == {"ram.burn.errors", "ram.burn.coverage"}
    assert kept.keys() == {"stress-ng"}
    return found


# the burn ------------------------------------------------------------------------------------------


def test_a_healthy_burn_has_no_errors_and_the_proof(box):
    """No wrong bit counts because every worker was seen to hold what it was to verify."""
    found = burn(box)
    errors, coverage = found["ram.burn.errors"], found["ram.burn.coverage"]
    assert (errors.value, errors.proof) == (
        0, "4 workers wrote patterns to 72.0 GiB and verified them for 30 s; the OOM killer ended nothing",
    )  # fmt: skip
    assert (coverage.value, coverage.ceiling, coverage.note) == (pytest.approx(72.01, abs=0.01), 100.0, "")
    assert errors.conditions == {
        "workers": 4, "seconds": 30, "asked_gib": 72.0, "touched_gib": 72.01, "available_fell_gib": 72.0,
    }  # fmt: skip


def test_it_verifies_patterns_of_every_kind_in_memory_that_it_keeps(box):
    """One worker for each CPU shares what was asked for, and gets time to give it back."""
    burn(box)
    asked = "--vm 4 --vm-bytes 73728m --vm-method all --vm-keep --oom-avoid-bytes 5% --verify"
    assert " ".join(box.argv).startswith(f"stress-ng {asked} ")
    assert box.timeout == 30 + ram.SETTLE_S


@pytest.mark.parametrize("played", [{}, {"status": 2}, {"status": 2, "report": ""}])
def test_wrong_bits_are_counted_however_the_run_ended(box, played):
    """Every failure that a worker tells counts, with any status and though no report came of the run."""
    errors = burn(box, stderr=words() + 2 * BITS, **played)["ram.burn.errors"]
    assert (errors.value, errors.proof) == (2, None)


def moments(**changed):
    """Return the moments of a burn in which something is other than healthy."""
    return ({}, {**held(*[ASKED // 4] * 4), "/proc/meminfo": meminfo(FREE - ASKED), **changed})


@pytest.mark.parametrize(
    ("played", "reason"),
    [
        ({"during": moments(**held(*[int(0.89 * ASKED / 4)] * 4))}, "touched 64.1 GiB of the 72.0 GiB"),
        ({"during": moments(**held(*[ASKED // 4] * 3, int(0.89 * ASKED / 4)))}, "3 of 4 workers held the memory"),
        ({"during": moments(**held(*[ASKED // 3] * 3, 0))}, "3 of 4 workers held the memory"),
        ({"after": {"/proc/vmstat": "oom_kill 9"}}, "OOM killer ended 2 processes on this machine"),
        ({"after": {"/proc/vmstat": "nr_free_pages 1"}}, "does not count what the OOM killer ends"),
    ],
    ids=["not touched", "a worker with less", "a worker without", "OOM", "uncounted"],
)
def test_memory_that_was_not_verified_has_no_errors_to_count(box, played, reason):
    """stress-ng ends with status 0 and a whole report; what was seen of it meanwhile is what voids it."""
    found = burn(box, **played)
    assert reason in found["ram.burn.errors"].reason
    assert isinstance(found["ram.burn.coverage"], Measurement)


@pytest.mark.parametrize(
    ("played", "reason"),
    [
        ({"report": report(ran=12.0)}, "says 12.0 s and took 30.0 s of 30 s"),
        ({"took": 12.0}, "says 30.0 s and took 12.0 s of 30 s"),
        ({"report": report(ops=0)}, "came to the end of one round"),
        ({"report": report(workers=3)}, "3 of 4 vm workers of stress-ng ran"),
        ({"stderr": words(workers=3)}, "3 of 4 vm workers of stress-ng were started"),
        ({"status": 3}, "status 3, the machine lacks what it needs, memory or processes"),
        ({"report": report("cpu")}, "no complete report of vm"),
        ({"report": ""}, "no complete report of vm"),
    ],
)
def test_a_run_that_was_not_what_was_asked_for_covers_nothing(box, played, reason):
    """Memory of a burn that ended early was touched, and not verified."""
    found = burn(box, **played)
    assert reason in found["ram.burn.errors"].reason
    assert found["ram.burn.coverage"].reason == found["ram.burn.errors"].reason


@pytest.mark.parametrize(
    "strangers",
    [held(*[ASKED // 4] * 4, parent=1), held(*[ASKED // 4] * 4, name="python3"), {}],
    ids=["another run's", "other names", "nobody"],
)
def test_only_our_own_workers_count(box, strangers):
    """Memory that somebody else's stress-ng holds was not verified by ours."""
    found = burn(box, during=({}, strangers))
    assert "touched 0.0 GiB" in found["ram.burn.errors"].reason
    assert found["ram.burn.coverage"].reason == "no worker of stress-ng was seen to hold memory"


def test_workers_of_old_versions_keep_their_parents_name(box):
    """Before version 0.14 whoever holds the memory is called as the one that waits for it; only the first counts."""
    found = burn(box, during=moments(**held(*[ASKED // 4] * 4, name="stress-ng")))
    assert found["ram.burn.errors"].value == 0
    assert found["ram.burn.coverage"].value == pytest.approx(100 * ASKED / TOTAL, abs=0.01)


def test_processes_that_end_meanwhile_are_none(box):
    """What /proc lists may be gone, or half there, when it is read."""
    gone = {"/proc/777/status": "", "/proc/778/status": "Name:\tx\nPid:\t778", "/proc/acpi/status": "off"}
    assert burn(box, during=moments(**gone))["ram.burn.errors"].value == 0


def test_the_best_moment_counts(box):
    """Workers fill their memory one after the other, and one method may give some of it back."""
    part = held(*[ASKED // 8] * 4)
    assert burn(box, during=(part, *moments(), part))["ram.burn.errors"].value == 0


def test_memory_that_others_take_meanwhile_ends_the_burn(box):
    """Of what was to stay free half may be taken; then the burn is ended before the machine kills somebody."""
    assert burn(box, during=moments(**{"/proc/meminfo": meminfo(int(2.6 * GIB))}))["ram.burn.errors"].value == 0
    with pytest.raises(Unmeasurable, match=r"stopped: 2\.4 GiB of memory were left; something else took it"):
        burn(box, during=moments(**{"/proc/meminfo": meminfo(int(2.4 * GIB))}))


def test_a_cpu_that_is_too_hot_ends_the_burn(box):
    """A memory burn heats the CPUs as well."""
    own = {"name": "k10temp", "temp1_label": "Tctl", "temp1_input": "101000"}
    files = {f"/sys/class/hwmon/hwmon3/{file}": text for file, text in own.items()}
    with pytest.raises(Unmeasurable, match="stopped: k10temp Tctl reached 101 C"):
        burn(box, files=box.files | files)


def test_a_container_burns_what_its_group_leaves(box):
    """The limit bounds what is asked for, the coverage is still of the machine, and says why it is low."""
    box.files |= LIMITED
    box.during = (held(*[6 * GIB] * 4),)
    coverage = burn(box)["ram.burn.coverage"]
    assert "--vm-bytes 24576m" in " ".join(box.argv)
    assert coverage.value == pytest.approx(24.0, abs=0.1)
    assert coverage.note == "a control group limits this process's memory"


def test_a_group_that_runs_full_ends_the_burn(box):
    """What the kernel would kill for is watched, not only the machine's memory."""
    box.files |= LIMITED
    with pytest.raises(Unmeasurable, match=r"stopped: 2\.0 GiB of memory were left"):
        burn(box, during=({f"{GROUP}/memory.current": f"{38 * GIB}"},))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"/proc/meminfo": meminfo(5 * GIB)}, r"only 5\.0 GiB of memory are free for a burn"),
        ({**LIMITED, f"{GROUP}/memory.max": f"{14 * GIB}"}, r"only 4\.0 GiB of memory are free for a burn"),
        ({"/proc/meminfo": "MemTotal: 5 kB"}, "does not say how much memory there is"),
        ({"/proc/vmstat": ""}, "does not count what the OOM killer ends"),
        ({"/proc/self/status": "Name:\tpytest"}, "is not the state of a process"),
    ],
)
def test_a_burn_that_could_prove_nothing_is_not_begun(box, files, reason):
    """Without room, or without what would show an error, no memory is touched."""
    box.files |= files
    with pytest.raises(Unmeasurable, match=reason):
        burn(box)
    assert box.argv == ()


@pytest.mark.parametrize(
    ("available", "percent", "asked", "workers"),
    [(90 * GIB, 80, 72 * GIB, 4), (90 * GIB, 100, 85 * GIB, 4), (5 * GIB + 150 * 2**20, 100, 150 * 2**20, 2)],
)
def test_some_memory_is_left_and_no_worker_gets_too_little(box, available, percent, asked, workers):
    """A twentieth of the memory stays free whatever is asked for; a worker has 64 MiB or is not started."""
    box.files["/proc/meminfo"] = meminfo(available)
    own = ram.room(Site(box, None, "host", {}, None), percent)
    assert (own.asked, own.workers) == (asked, workers)


def test_a_small_machine_keeps_two_gib():
    """A twentieth of 16 GiB would be too little to live in."""
    assert ram.reserve(16 * GIB) == 2 * GIB
    assert ram.reserve(512 * GIB) == pytest.approx(25.6 * GIB, abs=1)


TEXT = st.text() | st.lists(
    st.sampled_from(
        ["MemTotal: 9 kB", "MemAvailable: 4 kB", "oom_kill 3", "Pid:\t7", "PPid:\t1", "VmRSS:\t5 kB", "Name:"]
    )
    | st.text(max_size=9)
).map("\n".join)


@FUZZ
@given(TEXT)
def test_any_text_of_the_kernel_is_a_number_or_none(text):
    """Whatever stands in meminfo, vmstat or a process's status, it is a count, or Unmeasurable."""
    with suppress(Unmeasurable):
        found = ram.meminfo(text)
        assert 0 <= found["MemAvailable"] <= found["MemTotal"]
        assert found["MemTotal"] > 0
    with suppress(Unmeasurable):
        assert ram.oom_kills(text) >= 0
        assert "oom_kill " in text
    with suppress(Unmeasurable):
        assert min(ram.process(text).pid, ram.process(text).parent, ram.process(text).bytes) >= 0
        assert "Pid:" in text


@REAL
def test_the_real_one_touches_what_it_is_to():
    """A hundredth of this machine's memory is filled, verified and seen to be held."""
    site = Site(LiveWorld(), None, "host", {"seconds": 3, "percent": 1}, lambda _name, text: text)
    own = ram.room(site, 1)
    found = {outcome.metric: outcome for outcome in ram.burn(site)}
    errors, coverage = found["ram.burn.errors"], found["ram.burn.coverage"]
    assert (errors.value, errors.conditions["workers"]) == (0, own.workers)
    assert f"{own.workers} workers wrote patterns to " in errors.proof
    assert 0.9 * own.asked / own.total < coverage.value / 100 < 1.5 * own.asked / own.total


# bandwidth -----------------------------------------------------------------------------------------

LIKWID = """Allocate: Process running on hwthread 0 (Domain N) - Vector length 166666666 Offset 0
--------------------------------------------------------------------------------
LIKWID MICRO BENCHMARK
Test: stream_mem
--------------------------------------------------------------------------------
Using 1 work groups
Using 4 threads
--------------------------------------------------------------------------------
Time:                   1.012301e+01 sec
Size (Byte):            3999999984
MFlops/s:               10325.13
Data volume (Byte):     1272939294720
MByte/s:                123901.57
Cycles per update:      1.004471
"""
RATES = "".join(
    f"stress-ng: info:  [{61 + n}] stream: memory rate: {rate}.00 MB read/sec, 1000.00 MB write/sec, "
    f"1170.45 {kind}Mflop/sec (instance {n})\n"
    for n, (rate, kind) in enumerate([(2000, ""), (2100, "double precision "), (1900, ""), (2000, "")])
)
GBS = (8000 + 4000) * 2**20 / 1e9


def bandwidth(box, **parts):
    """Measure the bandwidth for 10 s with parts of the machine replaced."""
    played = {"stderr": words("stream") + RATES, "report": report("stream", ran=10.0), "took": 10.1, "during": ({},)}
    vars(box).update(played | parts)
    site = Site(box, None, "host", {"seconds": 10}, lambda _name, text: text)
    (found,) = ram.bandwidth(site)
    return found


def test_old_versions_tell_what_is_read_and_written_together():
    """Before version 0.15 each worker tells one rate, of bytes read and written."""
    text = "".join(
        f"stress-ng: info:  [7] stress-ng-stream: memory rate: 31449.73 MB/sec, 12579.89 Mflop/sec (instance {n})\n"
        for n in range(2)
    )
    assert ram.stream_gbs(text, 2) == pytest.approx(2 * 31449.73 * 2**20 / 1e9)


def test_likwid_is_believed_where_it_is(box):
    """Its stream triad over all CPUs, in GB/s, with its name."""
    found = bandwidth(box, tools=("likwid-bench",), likwid=LIKWID)
    assert (found.value, found.note) == (pytest.approx(123.90157), "")
    assert found.conditions == {"method": "likwid-bench stream_mem", "seconds": 10, "cpus": 4}
    assert " ".join(box.argv) == "likwid-bench -t stream_mem -s 10 -W N:4GB"


def test_without_likwid_the_rate_is_rough(box):
    """The workers' reads and writes in MiB/s add up, and the reader is told that it is no benchmark."""
    found = bandwidth(box)
    assert found.value == pytest.approx(GBS)
    assert found.conditions["method"] == "stress-ng stream"
    assert found.note == ram.ROUGH
    assert " ".join(box.argv).startswith("stress-ng --stream 4 --stream-l3-size 32m --verify ")


@pytest.mark.parametrize("likwid", ["", "MByte/s:\n", "MByte/s: 0.00", "MByte/s: nan", "x MByte/s: 5"])
def test_a_likwid_that_gives_no_rate_is_passed_over(box, likwid):
    """In a virtual machine it dies, on an odd processor it prints nothing; the other tool is asked then."""
    assert bandwidth(box, tools=("likwid-bench",), likwid=likwid).value == pytest.approx(GBS)


def test_a_likwid_that_failed_is_not_believed():
    """A rate beside a status other than 0 is none."""
    for status in (1, -11, 139):
        with pytest.raises(Unmeasurable, match=f"likwid-bench ended with status {status} and no rate"):
            ram.likwid_gbs(Completed((), status, LIKWID, "", 10.0))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"stderr": words("stream") + RATES.replace("2100.00 MB read", "0.00 MB read").replace("1000.00", "0.00")},
         "4 of 4 workers"),
        ({"stderr": words("stream") + RATES.replace("(instance 3)", "(instance 2)")}, "3 of 4 workers"),
        ({"stderr": words("stream") + "stress-ng: info:  [61] stream: run duration too short to determine memory rate"},
         "0 of 4 workers of stress-ng's stream told their rate: let it run for 10 s or more"),
        ({"report": report("stream", ran=5.0)}, "the burn was cut short"),
        ({"status": 2}, "status 2"),
        ({"report": report("stream", ran=10.0, workers=3)}, "3 of 4 stream workers of stress-ng ran"),
    ],
    ids=["zero", "one silent", "too short", "interrupted", "failed", "one missing"],
)  # fmt: skip
def test_a_rate_of_some_workers_is_none(box, parts, reason):
    """The sum of all is the machine's bandwidth; that of some is not."""
    with pytest.raises(Unmeasurable, match=reason):
        bandwidth(box, **parts)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"/proc/meminfo": meminfo(int(5.9 * GIB))}, r"5\.9 GiB of free memory are too little for 4 workers"),
        ({"/proc/self/status": OURS.replace("0-3", "0-1")}, "this process may use 2 of 4 CPUs"),
        ({"/proc/self/cgroup": "0::/", f"{GROUP}/cpu.max": "100000 100000"}, "the time of 1 of 4 CPUs"),
    ],
)
def test_a_bandwidth_of_a_part_of_the_machine_is_none(box, files, reason):
    """Fewer CPUs or less memory than the machine has show less than it can."""
    box.files |= files
    with pytest.raises(Unmeasurable, match=reason):
        bandwidth(box)
    assert box.argv == ()


@pytest.mark.parametrize("tools", [(), ("likwid-bench",)])
def test_a_cpu_that_is_too_hot_ends_the_measurement(box, tools):
    """It is a load like the others; no other tool is asked then."""
    own = {"name": "k10temp", "temp1_label": "Tctl", "temp1_input": "101000"}
    box.files |= {f"/sys/class/hwmon/hwmon3/{file}": text for file, text in own.items()}
    with pytest.raises(Unmeasurable, match="stopped: k10temp Tctl reached 101 C"):
        bandwidth(box, tools=tools, likwid=LIKWID)


@FUZZ
@given(st.text() | st.lists(st.sampled_from([*LIKWID.splitlines(), *RATES.splitlines()])).map("\n".join))
def test_any_output_is_a_rate_or_none(text):
    """Whatever a tool prints, a rate is more than nothing."""
    with suppress(Unmeasurable):
        assert ram.likwid_gbs(Completed((), 0, text, "", 1.0)) > 0
    with suppress(Unmeasurable):
        assert ram.stream_gbs(text, 1) > 0


@REAL
def test_the_real_stream_tells_a_rate():
    """It runs for the seconds that it needs; this machine moves more than 100 MB/s and less than 10 TB/s."""
    site = Site(LiveWorld(), None, "host", {"seconds": 8}, lambda _name, text: text)
    if confined := confines.of_cpus(site, cpu.online(site)):
        pytest.skip(confined)
    (found,) = ram.bandwidth(site)
    assert 0.1 < found.value < 10_000
    assert found.conditions["cpus"] == os.cpu_count()
