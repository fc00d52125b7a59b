"""The CPU burn counts wrong results, and "none" only with the proof that every CPU worked."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes import cpu
from pytest_gpuaccept.world import Completed, LiveWorld

FUZZ = settings(deadline=None, database=None)
INFO = "stress-ng: info:  [77] dispatching hogs: 2 cpu\n"
DONE = INFO + "stress-ng: info:  [77] successful run completed in 30.00s\n"
FAIL = "stress-ng: fail:  [78] cpu: fibonacci calculation of 1e+07 is wrong\n"
REPORT = """---
system-info:
      stress-ng-version: 0.15.06
      epoch-secs: 1795466899

metrics:
    - stressor: cpu
      bogo-ops: {ops}
      bogo-ops-per-second-usr-sys-time: 2249.201099
      wall-clock-time: {ran:.6f}
      user-time: 59.97

...
"""
BEFORE = "cpu  9 0 9 900 0 0 0 0 0 0\ncpu0 4 0 4 400 10 0 0 0 0 0\ncpu1 5 0 5 500 10 0 0 0 0 0\nintr 1 2\n"
ALL_BUSY = "cpu  9 0 9 900 0 0 0 0 0 0\ncpu0 2990 0 8 410 10 1 1 0 0 0\ncpu1 2995 0 10 515 10 0 0 0 0 0\nintr 3 4\n"
CPU1_IDLE = ALL_BUSY.replace("cpu1 2995 0 10 515", "cpu1 5 0 5 3500")
CPU1_GONE = ALL_BUSY.replace("cpu1 ", "cpu7 ")


class Stress(LiveWorld):
    """A machine of two CPUs made of files, and what a stress-ng on it leaves behind."""

    stderr = DONE
    status = 0
    report = REPORT.format(ops=135120, ran=30.0017)
    after = ALL_BUSY
    argv = ()

    def keep(self, *attached):
        """Take the attachment."""
        self.kept = attached

    def command(self, argv, *, timeout, watch=None):
        """Play stress-ng: write its report where it was asked to and let time pass."""
        self.argv = tuple(argv)
        assert timeout > 30
        assert self.scratch.is_dir()
        if watch:
            watch()
        if self.report:
            report = self.root / str(self.scratch / "stress-ng.yaml").lstrip("/")
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(self.report)
        (self.root / "proc/stat").write_text(self.after)
        return Completed(self.argv, self.status, "", self.stderr, 30.0)

    @property
    def scratch(self):
        """Return the folder of the report that was asked for."""
        return Path(self.argv[self.argv.index("--yaml") + 1]).parent


@pytest.fixture
def site(tmp_path):
    """Return the site of a healthy machine; a test then breaks one part of it."""
    files = {"sys/devices/system/cpu/online": "0-1\n", "proc/stat": BEFORE, "proc/loadavg": "2.04 1.1 0.5 3/90 77\n"}
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    world = Stress(tmp_path)
    return Site(world, None, "host", {"seconds": 30}, world.keep)


def burn(site, **played):
    """Burn once with parts of the machine replaced; return the measurements by metric."""
    vars(site.world).update(played)
    return {m.metric: m for m in cpu.burn(site)}


def test_a_healthy_burn_has_no_errors_and_the_proof(site):
    """No wrong result counts because every CPU is shown to have worked all the time."""
    found = burn(site)
    assert found.keys() == {"cpu.burn.errors", "cpu.burn.load", "cpu.burn.loadavg"}
    assert found["cpu.burn.load"].value == pytest.approx(100 * 2995 / 3010)
    assert found["cpu.burn.loadavg"].value == 2.04
    errors = found["cpu.burn.errors"]
    assert (errors.value, errors.proof) == (
        0,
        "2 workers verified their results for 30 s, every CPU at least 99.5 % busy",
    )
    assert errors.conditions == {"cpus": 2, "seconds": 30, "least_busy_cpu": 1}


def test_every_cpu_gets_a_worker_that_verifies(site):
    """The command line asks for verification, one worker per CPU, and the whole time."""
    burn(site)
    words = " ".join(site.world.argv)
    assert words.startswith("stress-ng ")
    assert "--cpu 2 " in words
    assert "--verify " in words
    assert "--timeout 30s" in words


def test_what_stress_ng_said_is_evidence(site):
    """Command line, output and report are attached."""
    burn(site)
    name, text = site.world.kept
    assert name == "stress-ng"
    assert all(part in text for part in ("stress-ng --cpu 2", DONE, site.world.report.strip()))


def test_an_idle_cpu_takes_the_proof_away(site):
    """Without errors and with a CPU that did not work, nothing is proven and the CPU is named."""
    found = burn(site, after=CPU1_IDLE)
    assert found["cpu.burn.load"].value == 0.0
    assert (found["cpu.burn.errors"].value, found["cpu.burn.errors"].proof) == (0, None)
    assert found["cpu.burn.errors"].conditions["least_busy_cpu"] == 1


@pytest.mark.parametrize("played", [{}, {"status": 2}, {"status": 2, "report": ""}])
def test_wrong_results_are_counted_however_the_run_ended(site, played):
    """Every verification failure counts, with any status and though no report came of the run."""
    assert burn(site, stderr=INFO + FAIL * 3 + DONE, **played)["cpu.burn.errors"].value == 3


@pytest.mark.parametrize(
    ("played", "reason"),
    [
        ({"report": REPORT.format(ops=9001, ran=1.95)}, r"says \S+ s and took \S+ s of 30 s, 9001 operations"),
        ({"report": REPORT.format(ops=0, ran=30.0)}, "0 operations"),
        ({"report": ""}, "status 0 and no complete report: .*successful run completed"),
        ({"report": REPORT.format(ops=7, ran=30.0).partition("metrics:")[0]}, "no complete report"),
        ({"status": 2, "stderr": INFO + "stress-ng: error: [77] worker was killed\n"}, "status 2.*worker was killed"),
        ({"status": 127, "stderr": "", "report": ""}, "status 127.*no output"),
        ({"after": BEFORE}, "no time passing on cpu0"),
        ({"after": CPU1_GONE}, "no time passing on cpu1"),
        ({"after": "cpu0 1 2 3\n"}, "no time passing on cpu0"),
    ],
    ids=["interrupted", "no work", "no report", "half a report", "killed", "silent", "still", "cpu gone", "old stat"],
)
def test_a_run_that_was_not_what_was_asked_for_is_no_measurement(site, played, reason):
    """An exit status of 0 does not make an incomplete burn a measurement, and its folder is removed."""
    with pytest.raises(Unmeasurable, match=reason):
        burn(site, **played)
    assert not site.world.scratch.exists()


def test_the_scratch_folder_is_gone_afterwards(site):
    """The report's folder exists during the burn only."""
    burn(site)
    assert site.world.scratch.name.startswith(".gpuaccept-")
    assert not site.world.scratch.exists()


def test_who_watches_the_burn_can_end_it(site):
    """What is raised while stress-ng runs ends it and is passed on, and the folder is gone."""

    def too_hot():
        assert site.world.scratch.is_dir()
        message = "stopped: gpu0 reached 93 C"
        raise Unmeasurable(message)

    with pytest.raises(Unmeasurable, match="stopped: gpu0 reached 93 C"):
        cpu.load_all(site, 30, too_hot)
    assert not site.world.scratch.exists()


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


NUMBERS = st.integers(0, 10**12) | st.floats(0, 1e12)


@FUZZ
@given(status=st.integers(-15, 3), stderr=st.text() | st.sampled_from([DONE, FAIL]), ran=NUMBERS, ops=NUMBERS)
def test_no_failures_means_a_complete_run(status, stderr, ran, ops):
    """Whatever is printed, zero failures are only said of a run with status 0, full time and work done."""
    with suppress(Unmeasurable):
        found = cpu.count_failures(
            Completed((), status, "", stderr, 30.0), REPORT.format(ran=float(ran), ops=f"{ops:f}"), 30
        )
        assert found > 0 or (status == 0 and ran >= 29.4 and ops > 0 and "stress-ng: fail:" not in stderr)


def test_a_burn_that_took_no_time_is_no_burn():
    """What stress-ng says of its time is held against the clock of the run."""
    with pytest.raises(Unmeasurable, match=r"took 0\.1 s of 30 s"):
        cpu.count_failures(Completed((), 0, "", DONE, 0.1), REPORT.format(ran=30.0, ops=9001), 30)


@FUZZ
@given(output=st.text(), metrics=st.text() | st.sampled_from(REPORT.split("\n")))
def test_any_text_for_a_report_is_no_zero(output, metrics):
    """Text that is not a whole report never counts as a burn without failures."""
    with suppress(Unmeasurable):
        assert cpu.count_failures(Completed((), 0, output, "", 0.0), metrics, 30) > 0


@FUZZ
@given(texts=st.tuples(*[st.text() | st.text("cpu01 9\n").map(lambda t: "cpu0 " + t) | st.just(ALL_BUSY)] * 2))
def test_any_two_readings_are_a_share_or_no_measurement(texts):
    """Whatever /proc/stat holds, a CPU is busy to at most 100 %, or not measured."""
    before, after = map(cpu.cpu_ticks, texts)
    with suppress(Unmeasurable):
        assert cpu.busy_percent(before, after, 0) <= 100
