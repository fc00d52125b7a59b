"""stress-ng: its report is believed when the run was what was asked for, and only then."""

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.burns import stress
from pytest_gpuaccept.world import Completed, LiveWorld

FUZZ = settings(deadline=None, database=None)
REAL = pytest.mark.skipif(
    shutil.which("stress-ng") is None and "CI" not in os.environ, reason="not installed: stress-ng"
)
WORDS = """stress-ng: info:  [10161] setting to a 3 second run per stressor
stress-ng: info:  [10161] dispatching hogs: 2 cpu
stress-ng: metrc: [10161] cpu               13412      3.00      5.79      0.02      4469.97        2309.51        96.77
stress-ng: info:  [10161] successful run completed in 3.00s
"""
REPORT = """---
system-info:
      stress-ng-version: 0.15.06
      hostname: vm
      version: '#1 SMP PREEMPT_DYNAMIC @0'
      cpus: 2
      cpus-online: 2
      ticks-per-second: 100

metrics:
    - stressor: cpu
      bogo-ops: 13412
      bogo-ops-per-second-usr-sys-time: 2309.513761
      bogo-ops-per-second-real-time: 4469.974833
      wall-clock-time: 3.000464
      user-time: 5.790973
      system-time: 0.016310
      cpu-usage-per-instance: 96.773072
      max-rss: 6328

...
"""
SUMMARY = """stress-ng: info:  [10161] skipped: 0
stress-ng: info:  [10161] passed: 2: cpu (2)
stress-ng: info:  [10161] failed: 0
stress-ng: info:  [10161] metrics untrustworthy: 0
"""
INSTANCES = """      max-rss: 6328
      instances:
          - instance: 0
            bogo-ops: 6706
            wall-clock-time: 3.000464
            user-time: 2.895486
            system-time: 0.008155
            cpu-usage: 96.773072
"""
WRONG = "stress-ng: fail:  [10162] cpu: prime error detected, number of primes has been miscalculated\n"
KILLED = """stress-ng: fail:  [11973] cpu instance 0 corrupted bogo-ops counter, 1364 vs 0
stress-ng: fail:  [11973] cpu instance 0 hash error in bogo-ops counter and run flag, 1080555094 vs 0
stress-ng: fail:  [11973] metrics-check: stressor metrics corrupted, data is compromised
"""
WHOLE = stress.Work(3.000464, pytest.approx(5.807283), 13412.0, 2)


def the_work(report=REPORT, words=WORDS, status=0, seconds=3.0, workers=2):
    """Return what is read of a run of 3 s that was healthy but for what is given."""
    return stress.work(Completed(("stress-ng",), status, "", words, seconds), report, 3, "cpu", workers)


def changed(**figures):
    """Return the report with other figures, by key with underscores."""
    lines = REPORT.splitlines(keepends=True)
    for key, value in figures.items():
        name = key.replace("_", "-")
        assert f"      {name}:" in REPORT
        lines = [f"      {name}: {value}\n" if line.startswith(f"      {name}:") else line for line in lines]
    return "".join(lines)


def test_a_whole_run_is_read_as_stress_ng_writes_it():
    """Time, CPU time and operations are those of the report of version 0.15.06, and so is how many workers ran."""
    assert the_work() == WHOLE
    assert the_work().share_of(2) == pytest.approx(96.773, abs=1e-3)


def test_a_newer_report_says_the_same():
    """Version 0.17 tells how many workers passed, 0.22 what each did; neither changes what the run was."""
    words = WORDS.replace("stress-ng: info:  [10161] successful", f"{SUMMARY}stress-ng: info:  [10161] successful")
    assert the_work(REPORT.replace("      max-rss: 6328\n", INSTANCES), words) == WHOLE


def test_zones_without_a_thermometer_are_no_flaw():
    """With --tz and no thermal zone, the report ends in a key without a value."""
    assert the_work(REPORT.replace("...", "thermal-zones:\n...")) == WHOLE
    assert the_work(REPORT.replace("metrics:", "thermal-zones: null\n\nmetrics:")) == WHOLE


@pytest.mark.parametrize(
    ("figures", "seconds"),
    [({"wall_clock_time": "1.500420"}, 3.0), ({}, 1.5), ({"wall_clock_time": "2.939999"}, 3.0), ({}, 2.93)],
)
def test_a_run_that_was_cut_short_is_none(figures, seconds):
    """An interrupted run ends with status 0 and "successful": its own clock shows it, and so does ours."""
    with pytest.raises(Unmeasurable, match="the burn was cut short"):
        the_work(changed(**figures), seconds=seconds)


def test_a_fiftieth_of_the_time_may_be_lost():
    """Workers that began a moment later still ran their time."""
    assert the_work(changed(wall_clock_time="2.940001"), seconds=2.95).seconds == 2.940001


def test_a_run_without_operations_is_none():
    """Workers that did nothing for all of the time verified nothing."""
    with pytest.raises(Unmeasurable, match="came to the end of one round"):
        the_work(changed(bogo_ops="0"))


def test_a_run_that_was_asked_to_take_no_time_is_none():
    """Nothing is a share of no time."""
    with pytest.raises(Unmeasurable, match=r"says 0\.0 s"):
        stress.work(Completed((), 0, "", WORDS, 0.0), changed(wall_clock_time="0.000000"), 0, "cpu")


@pytest.mark.parametrize(
    ("status", "meant"),
    [
        (1, "could not do what it was asked"), (2, "a worker failed"), (3, "lacks what it needs"),
        (4, "this build"), (5, "a signal ended a worker"), (6, "did not expect"), (7, "cannot be trusted"),
        (8, "does not explain"), (127, "does not explain"), (-9, "signal 9 ended it"),
    ],
)  # fmt: skip
def test_a_status_is_named(status, meant):
    """A run that is healthy but for its status is none, and the reason says what the status means."""
    with pytest.raises(Unmeasurable, match=rf"ended with status {status}, .*{meant}.*: stress-ng: "):
        the_work(status=status)


def test_what_stress_ng_complains_of_is_the_reason():
    """The last line that tells of something amiss is quoted, not the last line of all."""
    words = WORDS.replace("stress-ng: metrc", "stress-ng: error: [1] cannot fork: errno=11\nstress-ng: metrc")
    with pytest.raises(Unmeasurable, match=r"it needs, memory or processes: stress-ng: error: \[1\] cannot fork"):
        the_work(words=words, status=3)


@pytest.mark.parametrize(
    "report",
    [
        "", "not YAML at all", REPORT.partition("metrics:")[0], REPORT.partition("      system-time")[0],
        REPORT.replace("stressor: cpu", "stressor: vm"), REPORT.replace("      wall-clock-time: 3.000464\n", ""),
        REPORT + REPORT, REPORT.replace("      user-time: 5.790973\n", 2 * "      user-time: 5.790973\n"),
        changed(bogo_ops="nan"), changed(wall_clock_time="-3.000464"), changed(user_time="inf"),
        changed(system_time="1e9"), changed(cpu_usage_per_instance="null"), REPORT.replace("\n", "\r\n"),
    ],
)  # fmt: skip
def test_a_report_that_is_not_whole_is_none(report):
    """What is missing, cut off, there twice or no number is never a zero, whatever the status says."""
    with pytest.raises(Unmeasurable, match="ended with status 0 and no complete report of cpu: stress-ng: "):
        the_work(report)


def test_a_worker_that_never_started_is_missed():
    """One of two workers could not be forked; stress-ng says that it dispatched two and ran them successfully.

    As version 0.15.06 wrote it under a limit of processes.
    """
    report = changed(bogo_ops=11331, wall_clock_time="3.000101", user_time="3.000000", system_time="0.000000",
                     cpu_usage_per_instance="99.996634")  # fmt: skip
    with pytest.raises(Unmeasurable, match="1 of 2 cpu workers of stress-ng ran"):
        the_work(report)


def of_64(ran=64, started=64, passed=64):
    """Return a run of 30 s on 64 CPUs whose workers had all of a CPU, and what it was."""
    report = changed(bogo_ops=4_000_000, wall_clock_time="30.000000", user_time=f"{ran * 29.7:.6f}",
                     system_time="0.000000", cpu_usage_per_instance="99.000000")  # fmt: skip
    words = f"stress-ng: info:  [9] dispatching hogs: {started} cpu\nstress-ng: info:  [9] passed: 64: cpu ({passed})\n"
    return stress.work(Completed((), 0, "", words, 30.2), report, 30, "cpu", 64)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [({"ran": 63}, "63 of 64 cpu workers of stress-ng ran"),
     ({"started": 63}, "63 of 64 cpu workers of stress-ng were started"),
     ({"passed": 63}, "63 of 64 cpu workers of stress-ng passed")],
)  # fmt: skip
def test_one_of_64_is_missed(missing, reason):
    """The time that 63 workers had is 97 % of 64 CPUs, which no gate on time sees; each count alone does."""
    assert of_64().share_of(64) == pytest.approx(99)
    with pytest.raises(Unmeasurable, match=reason):
        of_64(**missing)


def test_workers_of_which_nothing_is_said_are_none():
    """A run that does not say how many it started has not started them."""
    with pytest.raises(Unmeasurable, match="0 of 2 cpu workers of stress-ng were started"):
        the_work(words="stress-ng: info:  [9] successful run completed in 3.00s\n")


def test_workers_without_any_time_of_a_cpu_are_none():
    """Whoever had no time of a CPU did not run."""
    report = changed(user_time="0.000000", system_time="0.000000", cpu_usage_per_instance="0.000000")
    with pytest.raises(Unmeasurable, match="0 of 2 cpu workers of stress-ng ran"):
        the_work(report)


def told(words, stressor="cpu"):
    """Return how many wrong results are counted in words on either stream."""
    counts = {stress.failures(Completed((), 2, *streams, 3.0), stressor) for streams in ((words, ""), ("", words))}
    (count,) = counts
    return count


def test_a_wrong_result_is_one_that_a_worker_tells():
    """Each line of a worker counts, and none of another stressor's."""
    assert told(WORDS) == 0
    assert told(WORDS + 3 * WRONG) == 3
    assert told("stress-ng: fail:  [7] vm: detected 1 bit errors while stressing memory\n") == 0
    assert told("stress-ng: fail:  [7] vm: detected 1 bit errors while stressing memory\n", "vm") == 1
    assert told("stress-ng: fail:  [7] stress-ng-cpu: sqrt error detected on sqrt(8)\n") == 1


def test_a_killed_worker_is_no_wrong_result():
    """stress-ng calls the counter of a worker that was killed corrupted, in three failures of its own."""
    assert told(WORDS + KILLED) == 0
    with pytest.raises(Unmeasurable, match=r"status 2, a worker failed.*metrics corrupted"):
        the_work(words=WORDS + KILLED, status=2)


def test_a_failure_of_any_kind_voids_the_run():
    """Status 0 beside a failure is a contradiction, and no measurement."""
    with pytest.raises(Unmeasurable, match="ended with status 0: stress-ng: fail:"):
        the_work(words=WORDS + KILLED)


LINES = st.sampled_from([*WORDS.splitlines(), *REPORT.splitlines(), *INSTANCES.splitlines(), WRONG.strip()])
TEXT = st.text() | st.lists(LINES | st.text(max_size=20)).map("\n".join)


@FUZZ
@given(st.integers(-15, 8), TEXT, TEXT | st.just(REPORT), st.floats(0, 10), st.integers(0, 4))
def test_any_output_is_a_whole_run_or_none(status, words, report, took, workers):
    """Whatever is printed and written, a run that is believed ended well, took its time and did something."""
    with suppress(Unmeasurable):
        work = the_work(report, words, status, took, workers)
        assert (status, "stress-ng: fail:" in words) == (0, False)
        assert min(work.seconds, took) >= 0.98 * 3
        assert work.operations > 0
        assert workers in (0, work.workers)


FIGURES = st.integers(0, 10**18).map(str) | st.floats(0, 1e12).map("{:.6f}".format) | st.text()


@FUZZ
@given(*[FIGURES] * 5)
def test_any_figures_are_a_whole_run_or_none(operations, seconds, user_s, system_s, each):
    """Numbers of any size are no other error than that the run was not what was asked for."""
    report = changed(bogo_ops=operations, wall_clock_time=seconds, user_time=user_s, system_time=system_s,
                     cpu_usage_per_instance=each)  # fmt: skip
    with suppress(Unmeasurable):
        work = the_work(report, workers=0)
        assert work.share_of(2) >= 0
        assert work.workers >= 0


# how it is run -------------------------------------------------------------------------------------


class Played(LiveWorld):
    """A machine on which stress-ng writes its report and ends."""

    report = REPORT

    def command(self, argv, *, timeout, watch=None):
        """Play stress-ng: look on once, and write the report where it was asked for."""
        self.argv, self.timeout = tuple(argv), timeout
        watch()
        if self.report:
            Path(self.argv[self.argv.index("--yaml") + 1]).write_text(self.report)
        return Completed(self.argv, 0, "out\n", WORDS, 3.0)


@pytest.fixture
def kept():
    """What was attached."""
    return {}


def a_site(world, kept):
    """Return a site that keeps what is attached."""
    return Site(world, None, "host", {}, kept.setdefault)


def test_it_runs_with_verification_for_its_time(kept):
    """What it is to do is followed by what makes it evidence, and it gets time to start and stop its workers."""
    world = Played()
    ran = stress.run(a_site(world, kept), ["--cpu", "2"], 3, lambda: None)
    folder = world.argv[-1]
    words = ("--verify", "--metrics", "--timeout", "3s", "--yaml", f"{folder}/stress-ng.yaml", "--temp-path", folder)
    assert world.argv == ("stress-ng", "--cpu", "2", *words)
    assert world.timeout == 3 + stress.SETTLE_S
    assert (ran.report, ran.done.stderr) == (REPORT.strip(), WORDS)
    assert ran.began <= ran.ended


def test_an_option_that_an_older_version_does_not_know_is_left_out(kept):
    """Version 0.13 knows no --oom-avoid-bytes, and burns as well without."""
    asked = []

    class Old(Played):
        def command(self, argv, *, timeout, watch=None):
            asked.append("--oom-avoid-bytes" in argv)
            if asked[-1]:
                return Completed(tuple(argv), 1, "", "stress-ng: unrecognized option '--oom-avoid-bytes'\n", 0.1)
            return super().command(argv, timeout=timeout, watch=watch)

    ran = stress.run(a_site(Old(), kept), ["--vm", "2"], 3, lambda: None, besides=("--oom-avoid-bytes", "5%"))
    assert (asked, ran.done.status) == ([True, False], 0)


def test_what_it_said_and_wrote_is_evidence(kept):
    """Command line, both streams and the report are attached; a run that wrote no report has none."""
    world = Played()
    stress.run(a_site(world, kept), ["--cpu", "2"], 3, lambda: None)
    assert kept["stress-ng"] == f"{' '.join(world.argv)}\nout\n{WORDS}{REPORT.strip()}"
    world.report = ""
    assert stress.run(a_site(world, {}), ["--cpu", "2"], 3, lambda: None).report == ""


def test_its_folder_is_gone_however_it_ends(kept):
    """The report's folder exists while it runs, and not when who watches has ended it."""
    world, seen = Played(), []

    def too_hot():
        seen.append(Path(world.argv[-1]).is_dir())
        message = "stopped: a CPU is too hot"
        raise Unmeasurable(message)

    with pytest.raises(Unmeasurable, match="stopped: a CPU is too hot"):
        stress.run(a_site(world, kept), ["--cpu", "2"], 3, too_hot)
    assert seen == [True]
    assert not Path(world.argv[-1]).exists()


# the real one --------------------------------------------------------------------------------------


def really(seconds, watch=lambda: None, workers=2, kept=None):
    """Run the real stress-ng on so many CPUs."""
    return stress.run(a_site(LiveWorld(), {} if kept is None else kept), ["--cpu", f"{workers}"], seconds, watch)


def ours(name):
    """Return the processes of that name that this one started, and what they started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [process] if process.name() == name else []
    return found


@REAL
def test_the_real_one_is_read():
    """Two workers ran for a second and did something, and none told of a wrong result."""
    ran = really(1)
    work = stress.work(ran.done, ran.report, 1, "cpu", 2)
    assert work.workers == 2
    assert 0.98 <= work.seconds < 30
    assert stress.failures(ran.done, "cpu") == 0


@REAL
def test_the_real_one_interrupted_says_success_and_is_none():
    """After SIGINT it ends at once, with status 0 and "successful run"; its time gives it away."""

    def interrupt():
        for process in ours("stress-ng") if ours("stress-ng-cpu") else ():
            process.send_signal(signal.SIGINT)

    ran = really(30, interrupt)
    assert ran.done.status == 0
    assert "successful run completed" in stress.said(ran.done)
    with pytest.raises(Unmeasurable, match=r"of 30 s, \d+\S* operations: the burn was cut short"):
        stress.work(ran.done, ran.report, 30, "cpu", 2)


@REAL
def test_the_real_one_with_a_killed_worker_is_none():
    """A worker that somebody kills is no wrong result, and no complete burn."""
    victims = []

    def kill():
        if not victims and (workers := ours("stress-ng-cpu")):
            victims.append(workers[0].pid)
            workers[0].kill()

    ran = really(2, kill)
    assert victims
    assert stress.failures(ran.done, "cpu") == 0
    with pytest.raises(Unmeasurable, match="stress-ng ended with status 2, a worker failed"):
        stress.work(ran.done, ran.report, 2, "cpu", 2)


@REAL
def test_the_real_one_on_one_cpu_shows_half_of_two():
    """Workers that share a CPU end with status 0; each had at most half of it."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        ran = really(1)
    finally:
        os.sched_setaffinity(0, allowed)
    assert ran.done.status == 0
    assert stress.work(ran.done, ran.report, 1, "cpu", 2).share_of(2) < 60


@REAL
def test_what_the_real_one_cannot_do_is_named():
    """A command line that it does not know ends it with status 1 and its own words."""
    ran = stress.run(a_site(LiveWorld(), {}), ["--no-such-stressor", "2"], 1)
    with pytest.raises(Unmeasurable, match=r"status 1, it could not do what it was asked: .*no-such-stressor"):
        stress.work(ran.done, ran.report, 1, "cpu", 2)
