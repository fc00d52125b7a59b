"""CPU burn: stress-ng with verification on every CPU, and the proof that the CPUs were loaded.

Owns the parsers of stress-ng's output and /proc/stat. stress-ng's exit status proves nothing by
itself: it is 0 after an interrupted run and with all workers pinned to one CPU.
"""

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.host import cpu_list
from pytest_gpuaccept.world import Completed

ERRORS = Metric("cpu.burn.errors", "Wrong results in the CPU burn", "count", "host", none_seen=True)
LOAD = Metric("cpu.burn.load", "Least busy CPU in the CPU burn", "%", "host")
LOADAVG = Metric("cpu.burn.loadavg", "Load average at the end of the CPU burn", "ratio", "host")

LEAST_BUSY = 98.0
"""% of the burn that the least busy CPU must have worked for "no errors" to mean anything."""
FULL_TIME = 0.98
"""Share of the requested time that stress-ng must have run."""
SETTLE_S = 30
"""Seconds that stress-ng gets on top of its own timeout to start and stop its workers."""

Ticks = dict[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a run of stress-ng on every online CPU showed."""

    cpus: int
    seconds: int
    busy: Mapping[int, float]
    done: Completed
    report: str
    began: float
    ended: float

    @property
    def least_busy(self) -> float:
        """Return how much of the time the least busy CPU worked, in %."""
        return min(self.busy.values())


def load_all(site: Site, seconds: int, watch: Callable[[], object] | None = None) -> Loaded:
    """Run verified stress-ng on every online CPU; raises Unmeasurable when it cannot run or /proc/stat stands still.

    `watch` is called now and then meanwhile; what it raises ends the run.
    """
    cpus = cpu_list(site.world.read("/sys/devices/system/cpu/online"))
    with site.world.folder() as folder:
        file = f"{folder}/stress-ng.yaml"
        before, began = cpu_ticks(site.world.read("/proc/stat")), site.world.clock.monotonic()
        done = site.world.command(_argv(len(cpus), seconds, file), timeout=seconds + SETTLE_S, watch=watch)
        after, ended = cpu_ticks(site.world.read("/proc/stat")), site.world.clock.monotonic()
        report = _written(site, file)
    site.attach("stress-ng", f"{' '.join(done.argv)}\n{done.stdout}{done.stderr}{report}")
    busy = {cpu: busy_percent(before, after, cpu) for cpu in cpus}
    return Loaded(len(cpus), seconds, busy, done, report, began, ended)


def burn(site: Site) -> Iterator[Outcome]:
    """Burn every online CPU for `seconds` and yield errors, least busy CPU and load average."""
    load = load_all(site, int(site.params["seconds"]))
    failures = count_failures(load.done, load.report, load.seconds)
    idlest = min(load.busy, key=lambda cpu: load.busy[cpu])
    conditions = {"cpus": load.cpus, "seconds": load.seconds, "least_busy_cpu": idlest}
    yield site.measured(LOAD, load.least_busy, samples=load.cpus, conditions=conditions)
    proof = _proof(load.least_busy, load.cpus, load.seconds)
    yield site.measured(ERRORS, failures, proof=proof, conditions=conditions)
    yield site.measured(LOADAVG, load_average(site.world.read("/proc/loadavg")), conditions=conditions)


def prove_loaded(load: Loaded) -> None:
    """Return when every CPU worked throughout; raises Unmeasurable with what was amiss."""
    count_failures(load.done, load.report, load.seconds)
    if load.least_busy < LEAST_BUSY:
        message = f"the CPUs were not loaded: the least busy one worked {load.least_busy:.1f} % of the time"
        raise Unmeasurable(message)


def _written(site: Site, report: str) -> str:
    """Return the report that stress-ng wrote, '' when it wrote none."""
    try:
        return site.world.read(report)
    except Unmeasurable:
        return ""


def _argv(workers: int, seconds: int, report: str) -> list[str]:
    burn = ["--cpu", str(workers), "--cpu-method", "all", "--verify", "--metrics", "--timeout", f"{seconds}s"]
    return ["stress-ng", *burn, "--yaml", report, "--temp-path", posixpath.dirname(report)]


def _proof(least: float, workers: int, seconds: int) -> str | None:
    """Return what shows that an error would have been seen; None when the CPUs were not loaded."""
    if least < LEAST_BUSY:
        return None
    return f"{workers} workers verified their results for {seconds} s, every CPU at least {least:.1f} % busy"


def count_failures(done: Completed, metrics: str, seconds: int) -> int:
    """Return how many verification failures stress-ng printed; `metrics` is its YAML report.

    Raises Unmeasurable when the run was not what was asked for: cut short, no metrics, no work.
    """
    text = f"{done.stdout}\n{done.stderr}"
    failures = len(re.findall(r"^stress-ng: fail:", text, re.MULTILINE))
    if failures:
        return failures
    ran = re.search(r"^\s*wall-clock-time: (\d{1,9}(?:\.\d{1,9})?)$", metrics, re.MULTILINE)
    work = re.search(r"^\s*bogo-ops: (\d{1,18}(?:\.\d{1,9})?)$", metrics, re.MULTILINE)
    if done.status != 0 or ran is None or work is None:
        last = (text.strip().splitlines() or ["no output"])[-1]
        message = f"stress-ng ended with status {done.status} and no complete report: {last}"
        raise Unmeasurable(message)
    if min(float(ran[1]), done.seconds) < FULL_TIME * seconds or float(work[1]) <= 0:
        message = (
            f"stress-ng says {float(ran[1]):.1f} s and took {done.seconds:.1f} s of {seconds} s, "
            f"{work[1]} operations: the burn was cut short"
        )
        raise Unmeasurable(message)
    return 0


def load_average(text: str) -> float:
    """Parse /proc/loadavg; return the one-minute average."""
    match = re.match(r"(\d{1,9}\.\d{1,4}) ", text)
    if match is None:
        message = f"{text[:40]!r} is not a load average"
        raise Unmeasurable(message)
    return float(match[1])


def cpu_ticks(stat: str) -> Ticks:
    """Parse /proc/stat; return (idle and iowait, total) ticks by CPU."""
    ticks: Ticks = {}
    for cpu, rest in re.findall(r"^cpu(\d{1,5})((?: +\d{1,19})+) *$", stat, re.MULTILINE):
        times = [int(word) for word in rest.split()][:8]
        if len(times) > 4:  # noqa: PLR2004 - user, nice, system, idle, iowait
            ticks[int(cpu)] = (times[3] + times[4], sum(times))
    return ticks


def busy_percent(before: Ticks, after: Ticks, cpu: int) -> float:
    """Return how much of the time between two readings a CPU was not idle, in %.

    Raises Unmeasurable when the CPU is in neither reading or no time passed.
    """
    if cpu not in before or cpu not in after or after[cpu][1] <= before[cpu][1]:
        message = f"/proc/stat shows no time passing on cpu{cpu}"
        raise Unmeasurable(message)
    idle, total = (after[cpu][i] - before[cpu][i] for i in (0, 1))
    if idle > total:
        message = f"/proc/stat counts {idle} idle ticks of {total} on cpu{cpu}: that is no time"
        raise Unmeasurable(message)
    return 100.0 * (1 - max(idle, 0) / total)


PROBES = (
    Probe(
        "cpu.burn", "cpu", "host", (ERRORS, LOAD, LOADAVG), burn,
        params={"seconds": 60}, load=True, tools=("stress-ng",),
    ),
)  # fmt: skip
