"""The CPU burn counts wrong results, and "none" only with the proof that every CPU worked."""

import math
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Interval, Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.burns import cpu
from pytest_gpuaccept.probes.host import confines
from pytest_gpuaccept.world import Completed, LiveWorld
from tests.stand_ins import Files

FUZZ = settings(deadline=None, database=None)
REAL = pytest.mark.skipif(
    shutil.which("stress-ng") is None and "CI" not in os.environ, reason="not installed: stress-ng"
)
CPUS, SECONDS = 64, 300
FAIL = "stress-ng: fail:  [78] cpu: fibonacci calculation of 1e+07 is wrong\n"
KILLED = "stress-ng: fail:  [77] cpu instance 0 corrupted bogo-ops counter, 1364 vs 0\n"
QUOTA = {"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "400000 100000"}
TCTL = "/sys/class/hwmon/hwmon3/temp1_input"
SENSORS = {"/sys/class/hwmon/hwmon3/name": "k10temp", "/sys/class/hwmon/hwmon3/temp1_label": "Tctl", TCTL: "71000"}
CLOCKS = {f"/sys/devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq": f"{3_200_000 + n}" for n in range(CPUS)}
METRICS = {f"cpu.burn.{name}" for name in ("errors", "load", "loadavg", "temperature", "frequency")}


def report(ran=float(SECONDS), workers=CPUS, share=0.995, ops=9_000_000):
    """Return stress-ng's report of workers that each had a share of a CPU."""
    return (
        f"metrics:\n    - stressor: cpu\n      bogo-ops: {ops}\n      wall-clock-time: {ran:.6f}\n"
        f"      user-time: {ran * workers * share:.6f}\n      system-time: 0.000000\n"
        f"      cpu-usage-per-instance: {100 * share:.6f}\n"
    )


def words(workers=CPUS, more=""):
    """Return what stress-ng says."""
    return f"stress-ng: info:  [77] dispatching hogs: {workers} cpu\n{more}stress-ng: info:  [77] successful run\n"


def stat(busy_s=0, total_s=1000, **others):
    """Return /proc/stat of CPUs busy for so many seconds, some of them (`cpu7`) for others, None for not there."""
    worked = {f"cpu{n}": busy_s for n in range(CPUS)} | others
    lines = [
        f"{name} {100 * busy:.0f} 0 0 {100 * (total_s - busy):.0f} 0 0 0 0 0 0"
        for name, busy in worked.items()
        if busy is not None
    ]
    return "\n".join(["cpu  9 0 9 900 0 0 0 0 0 0", *lines, "intr 1 2", "ctxt 7"])


BEFORE = stat()
AFTER = stat(0.997 * SECONDS, 1000 + SECONDS)


class Box(Files, LiveWorld):
    """A machine of 64 CPUs made of files, and what a stress-ng on it leaves behind."""

    status, took = 0, SECONDS + 0.4

    def __init__(self, clock):
        LiveWorld.__init__(self)
        self.clock, self.argv, self.kept, self.during = clock, (), {}, [{}] * 12
        self.stderr, self.report = words(), report()
        self.after = {"/proc/stat": AFTER, "/proc/loadavg": "63.10 40.00 20.00 65/900 77"}
        self.files = {
            "/sys/devices/system/cpu/online": "0-63", "/proc/stat": BEFORE, "/proc/loadavg": "0.01 0.02 0.00 1/900 70",
            "/proc/self/status": "Name:\tpytest\nCpus_allowed_list:\t0-63", **SENSORS, **CLOCKS,
        }  # fmt: skip

    def read(self, path):
        """Return a file as the world does; only stress-ng's report is a real one."""
        return LiveWorld.read(self, path) if path.endswith("stress-ng.yaml") else super().read(path)

    def keep(self, name, text):
        """Take an attachment."""
        self.kept[name] = text

    def command(self, argv, *, timeout, watch=None):
        """Play stress-ng: let whoever watches look twelve times, write the report, and end."""
        self.argv = tuple(argv)
        for moment in self.during:
            self.clock.seconds += SECONDS / 12
            self.files |= moment
            watch()
        self.files |= self.after
        if self.report:
            Path(self.argv[self.argv.index("--yaml") + 1]).write_text(self.report)
        return Completed(self.argv, self.status, "", self.stderr, self.took)


@pytest.fixture
def box(clock):
    """A healthy machine; a test then breaks one part of it."""
    return Box(clock)


def a_site(box, **played):
    """Return the site of a machine with parts replaced; `files` and `after` are added to what is there."""
    box.files |= played.pop("files", {})
    box.after |= played.pop("after", {})
    vars(box).update(played)
    return Site(box, None, "host", {"seconds": SECONDS}, box.keep)


def burn(box, **played):
    """Burn once; return the outcomes by metric, of which there is one each."""
    outcomes = list(cpu.burn(a_site(box, **played)))
    assert sorted(outcome.metric for outcome in outcomes) == sorted(METRICS)
    return {outcome.metric.removeprefix("cpu.burn."): outcome for outcome in outcomes}


def measured(found):
    """Return the names of what was measured."""
    return {name for name, outcome in found.items() if isinstance(outcome, Measurement)}


# a healthy burn ------------------------------------------------------------------------------------


def test_a_healthy_burn_has_no_errors_and_the_proof(box):
    """No wrong result counts because every CPU is shown to have worked all the time, and with the workers."""
    found = burn(box)
    assert found["load"].value == pytest.approx(99.7)
    assert found["loadavg"].value == 63.1
    assert found["temperature"].value == 71.0
    assert found["frequency"].value == 3200.0
    assert found["errors"].value == 0
    assert found["errors"].proof == (
        "64 workers verified their results for 300 s, every CPU at least 99.7 % busy, 99.5 % of it with them, "
        "load average 63.1"
    )
    assert found["errors"].conditions == {"cpus": 64, "seconds": 300, "least_busy_cpu": 0}
    assert found["frequency"].conditions == {"slowest_cpu": 0, "source": "cpufreq"}


def test_every_cpu_gets_a_worker_with_every_method(box):
    """One worker per online CPU verifies its results for the whole time."""
    burn(box)
    assert " ".join(box.argv).startswith("stress-ng --cpu 64 --cpu-method all --verify --metrics --timeout 300s ")


def test_what_was_seen_is_evidence(box):
    """stress-ng's words and every look at the sensors are attached."""
    burn(box)
    assert box.kept.keys() == {"stress-ng", "cpu-sensors"}
    assert box.kept["cpu-sensors"].splitlines()[1] == "25.0,71.0,3200"


# what takes the proof away -------------------------------------------------------------------------

GATES = {
    "interrupted": ({"report": report(ran=1.95)}, r"says 1\.9\d? s and took 300\.4 s of 300 s"),
    "no time passed": ({"took": 0.1}, r"took 0\.1 s of 300 s"),
    "no operations": ({"report": report(ops=0)}, "came to the end of one round"),
    "no report": ({"report": ""}, "no complete report of cpu"),
    "half a report": ({"report": report().partition("system-time")[0]}, "no complete report of cpu"),
    "status": ({"status": 3}, "status 3, the machine lacks what it needs"),
    "killed": ({"status": 2, "stderr": words(more=KILLED)}, "status 2, a worker failed.*corrupted bogo-ops"),
    "failure of its own": ({"stderr": words(more=KILLED)}, "status 0: stress-ng: fail:"),
    "63 ran": ({"report": report(workers=63)}, "63 of 64 cpu workers of stress-ng ran"),
    "63 started": ({"stderr": words(63)}, "63 of 64 cpu workers of stress-ng were started"),
    "63 passed": ({"stderr": words(more="stress-ng: info:  [77] passed: 63: cpu (63)\n")}, "63 of 64 cpu .* passed"),
    "idle CPU": ({"after": {"/proc/stat": stat(299, 1300, cpu7=0)}}, "the least busy one worked 0.0 %"),
    "lazy CPU": ({"after": {"/proc/stat": stat(299, 1300, cpu7=293)}}, "the least busy one worked 97.7 %"),
    "CPU gone": ({"after": {"/proc/stat": stat(299, 1300, cpu7=None)}}, "no time passing on cpu7"),
    "time stands still": ({"after": {"/proc/stat": BEFORE}}, "no time passing on cpu0"),
    "no time at all": ({"after": {"/proc/stat": None}}, "no time passing on cpu0"),
    "load average": ({"after": {"/proc/loadavg": "57.01 9.00 9.00 1/90 7"}}, "the load average was 57.01 after 300 s"),
    "no load average": ({"after": {"/proc/loadavg": None}}, "'' is not a load average"),
    "others' work": ({"report": report(share=0.74)}, "each worker had 74.0 % of a CPU: something else used the rest"),
    "affinity": ({"files": {"/proc/self/status": "Cpus_allowed_list:\t0-3"}}, "may use 4 of 64 CPUs"),
    "quota": ({"files": QUOTA}, "the time of 4 of 64 CPUs"),
}  # fmt: skip
"""What is amiss in a burn that is healthy in all else, and the reason that it gives."""


@pytest.mark.parametrize(("played", "reason"), GATES.values(), ids=GATES)
def test_each_gate_alone_takes_the_proof_away(box, played, reason):
    """One thing is amiss, stress-ng says success: then "no errors" is not measured, and the reason is that thing."""
    errors = burn(box, **played)["errors"]
    with pytest.raises(Unmeasurable, match=reason):
        raise Unmeasurable(errors.reason)


@pytest.mark.parametrize(("played", "reason"), GATES.values(), ids=GATES)
def test_each_gate_alone_spoils_a_burn_beside_gpus(box, played, reason):
    """What GPUs lose to loaded CPUs is only measured beside CPUs that were loaded."""
    site = a_site(box, **played)
    with pytest.raises(Unmeasurable, match=reason):
        cpu.prove_loaded(cpu.load_all(site, SECONDS))


def test_beside_gpus_a_healthy_burn_is_proven(box):
    """It also may lose a quarter of its time to the loads of the GPUs, which alone would be somebody else's."""
    site = a_site(box)
    cpu.prove_loaded(cpu.load_all(site, SECONDS))
    shared = report(share=0.76)
    cpu.prove_loaded(cpu.load_all(a_site(box, report=shared, files={"/proc/stat": BEFORE}), SECONDS))
    assert "each worker had 76.0 %" in burn(box, report=shared, files={"/proc/stat": BEFORE})["errors"].reason


def test_an_idle_cpu_fails_its_own_line_and_is_named(box):
    """The load is measured all the same: it says which CPU the burn did not reach."""
    found = burn(box, after={"/proc/stat": stat(299, 1300, cpu7=0)})
    assert (found["load"].value, found["load"].conditions["least_busy_cpu"]) == (0.0, 7)


@pytest.mark.parametrize("name", ["CPU gone", "time stands still", "affinity", "quota"])
def test_a_load_that_nobody_could_see_is_no_load(box, name):
    """CPUs that were out of reach, or of which nobody knows, were not idle: that is no defect of theirs."""
    played, reason = GATES[name]
    assert reason in burn(box, **played)["load"].reason


@pytest.mark.parametrize(
    "played",
    [{}, {"status": 2}, {"status": 2, "report": ""}, {"took": 3.0}, {"after": {"/proc/stat": None}}, {"files": QUOTA}],
)
def test_wrong_results_are_counted_however_the_run_ended(box, played):
    """Every failure that a worker tells counts, with any status, no report, and whatever else was amiss."""
    errors = burn(box, stderr=words(more=3 * FAIL), **played)["errors"]
    assert (errors.value, errors.proof) == (3, None)


def test_a_run_that_was_cut_short_has_its_heat_only(box):
    """It was at least that hot, which is no pass; a load and a clock of half a burn are none."""
    found = burn(box, report=report(ran=1.95))
    assert measured(found) == {"temperature"}
    assert found["temperature"].value == Interval(71.0, None)
    assert "cut short" in found["temperature"].note


# sensors -------------------------------------------------------------------------------------------


def test_a_cpu_that_is_too_hot_ends_the_burn_and_fails_its_line(box):
    """stress-ng is ended, and the temperature that did it is measured."""
    found = burn(box, during=[{}, {TCTL: "88000"}, {TCTL: "101000"}, {TCTL: "102000"}])
    assert measured(found) == {"temperature"}
    assert found["temperature"].value == Interval(101.0, None)
    assert found["errors"].reason.startswith("stopped: k10temp Tctl reached 101 C")
    assert found["temperature"].note == found["errors"].reason


def test_a_lost_thermometer_ends_the_burn(box):
    """A burn that nobody watches is not gone on with; what it saw before is no hottest moment."""
    found = burn(box, during=[{}, {TCTL: None}])
    assert measured(found) == set()
    assert found["temperature"].reason == found["errors"].reason
    assert found["errors"].reason.startswith("stopped: k10temp Tctl has shown no temperature for 10 s")


def test_a_machine_without_sensors_burns_all_the_same(box):
    """A virtual machine has neither; its results are verified, and its heat and clocks are not measured."""
    hidden = dict.fromkeys([*SENSORS, *CLOCKS])
    found = burn(box, files=hidden | {"/proc/cpuinfo": "flags\t\t: fpu hypervisor"})
    assert measured(found) == {"errors", "load", "loadavg"}
    assert "no CPU thermometer" in found["temperature"].reason
    assert "a virtual machine does not show the clocks" in found["frequency"].reason


def test_throttle_events_stand_beside_heat_and_clock(box):
    """What Intel's kernel counts of them during the burn is a condition of both."""
    counter = "/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    found = burn(box, files={counter: "5"}, after={counter: "12"})
    assert {found[name].conditions["throttle_events"] for name in ("temperature", "frequency")} == {7}


def test_who_watches_the_burn_can_end_it(box):
    """What is raised while stress-ng runs ends it and is passed on."""

    def too_hot():
        message = "stopped: gpu0 reached 93 C"
        raise Unmeasurable(message)

    with pytest.raises(Unmeasurable, match="stopped: gpu0 reached 93 C"):
        cpu.load_all(a_site(box), SECONDS, too_hot)


# load average --------------------------------------------------------------------------------------


def the_kernels(workers, seconds, phase):
    """Return the one-minute average from rest as the kernel works it out, every 5 s, the first time after `phase`."""
    average, t = 0.0, phase
    while t <= seconds:
        average += (workers - average) * (1 - math.exp(-5.004 / 60))
        t += 5.004
    return average


@FUZZ
@given(st.integers(1, 512), st.integers(1, 1800), st.floats(0, 5))
def test_a_burn_that_ran_has_the_load_average_that_it_must_have(workers, seconds, phase):
    """Whenever the kernel looks, so many runnable workers give at least what is asked of them."""
    assert the_kernels(workers, seconds, phase) >= cpu.least_loadavg(workers, seconds)


def test_the_load_average_after_three_minutes_is_that_of_a_loaded_machine():
    """The case study saw 55 on 64 CPUs; half a machine is never enough after a minute."""
    assert 54.4 <= cpu.least_loadavg(64, 180) <= 55
    assert cpu.least_loadavg(64, 60) > the_kernels(64, 60, 0) / 2 + 1
    assert cpu.least_loadavg(64, 4) == 0


@pytest.mark.parametrize("text", ["", "nan 1 1 1/9 7", "-1.00 0.5 0.5 1/9 7", "63.90", "6 5 4 3/2 1", "1e3 1 1"])
def test_what_is_no_load_average_is_none(text):
    """It is never a zero."""
    with pytest.raises(Unmeasurable, match="is not a load average"):
        cpu.load_average(text)


# /proc/stat ----------------------------------------------------------------------------------------


def test_waiting_for_a_disk_is_not_working():
    """Idle and iowait are idle; guest time is in user time already and is not counted twice."""
    ticks = cpu.cpu_ticks("cpu3 10 0 10 30 50 0 0 0 999 999")
    assert ticks == {3: (80, 100)}
    assert cpu.busy_percent({3: (0, 0)}, ticks, 3) == pytest.approx(20)


def test_more_idle_time_than_time_is_no_reading():
    """A count that cannot be is refused instead of being shown as negative work."""
    with pytest.raises(Unmeasurable, match="200 idle ticks of 100"):
        cpu.busy_percent({0: (0, 0)}, {0: (200, 100)}, 0)


def test_iowait_that_runs_backwards_is_no_work_beyond_the_whole():
    """The kernel may take iowait back; a CPU is still busy to 100 % at most."""
    assert cpu.busy_percent({0: (100, 1000)}, {0: (90, 1100)}, 0) == 100


def test_a_kernel_that_counts_too_little_is_not_read():
    """Without idle and iowait nothing can be said."""
    assert cpu.cpu_ticks("cpu0 1 2 3\ncpu1 1 2 3 4") == {}


# any text ------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 10**12) | st.floats(0, 1e12)


@FUZZ
@given(status=st.integers(-15, 3), stderr=st.text() | st.sampled_from([words(), FAIL]), ran=NUMBERS, ops=NUMBERS)
def test_no_failures_means_a_complete_run(status, stderr, ran, ops):
    """Whatever is printed, zero failures are only said of a run with status 0, full time and work done."""
    with suppress(Unmeasurable):
        done = Completed((), status, "", stderr, 30.0)
        found = cpu.count_failures(done, report(ran=float(ran), ops=f"{ops:f}"), 30)
        assert found > 0 or (status == 0 and ran >= 29.4 and ops > 0 and "stress-ng: fail:" not in stderr)


@FUZZ
@given(output=st.text(), metrics=st.text() | st.sampled_from(report().split("\n")))
def test_any_text_for_a_report_is_no_zero(output, metrics):
    """Text that is not a whole report never counts as a burn without failures."""
    with suppress(Unmeasurable):
        assert cpu.count_failures(Completed((), 0, output, "", 0.0), metrics, 30) > 0


@FUZZ
@given(texts=st.tuples(*[st.text() | st.text("cpu01 9\n").map(lambda t: "cpu0 " + t) | st.just(AFTER)] * 2))
def test_any_two_readings_are_a_share_or_no_measurement(texts):
    """Whatever /proc/stat holds, a CPU is busy to between none and all of its time, or not measured."""
    before, after = map(cpu.cpu_ticks, texts)
    with suppress(Unmeasurable):
        assert 0 <= cpu.busy_percent(before, after, 0) <= 100


@FUZZ
@given(st.text() | st.floats(0).map("{:.2f} 1.00 1.00 1/9 7".format))
def test_any_text_is_a_load_average_or_none(text):
    """Whatever /proc/loadavg holds, it is a number, or not measured."""
    with suppress(Unmeasurable):
        assert 0 <= cpu.load_average(text) < math.inf


# the real one --------------------------------------------------------------------------------------


@REAL
def test_the_real_burn_is_measured_or_says_what_kept_it():
    """On a machine that others use too, no wrong result is seen: with the proof, or not measured for their sake."""
    site = Site(LiveWorld(), None, "host", {"seconds": 2}, lambda _name, text: text)
    if confined := confines.of_cpus(site, cpu.online(site)):
        pytest.skip(confined)
    found = {outcome.metric: outcome for outcome in cpu.burn(site)}
    errors = found["cpu.burn.errors"]
    if isinstance(errors, Measurement):
        assert (errors.value, "workers verified their results for 2 s" in errors.proof) == (0, True)
    else:
        assert "of a CPU: something else used the rest" in errors.reason or "were not loaded" in errors.reason


@REAL
def test_the_real_burn_on_one_cpu_is_not_believed():
    """Under taskset, stress-ng ends with status 0 and verified results; the machine was not tested."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        site = Site(LiveWorld(), None, "host", {"seconds": 1}, lambda _name, text: text)
        found = {outcome.metric: outcome for outcome in cpu.burn(site)}
    finally:
        os.sched_setaffinity(0, allowed)
    for metric in ("cpu.burn.errors", "cpu.burn.load"):
        assert found[metric].reason.startswith(f"this process may use 1 of {os.cpu_count()} CPUs (affinity or cpuset)")
