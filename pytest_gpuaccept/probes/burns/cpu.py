"""CPU burn: stress-ng with verification on every CPU, and the proof that the CPUs were loaded.

Owns the burn's gates and the parser of /proc/stat; stress-ng's words are stress.py's, the sensors
sensors.py's. Must not judge.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Interval, NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.burns import stress
from pytest_gpuaccept.probes.burns.sensors import Sensors
from pytest_gpuaccept.probes.host import confines
from pytest_gpuaccept.probes.host.confines import shown
from pytest_gpuaccept.probes.host.machine import cpu_list
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Completed

ERRORS = Metric("cpu.burn.errors", "Wrong results in the CPU burn", "count", "host", none_seen=True)
LOAD = Metric("cpu.burn.load", "Least busy CPU in the CPU burn", "%", "host")
LOADAVG = Metric("cpu.burn.loadavg", "Load average at the end of the CPU burn", "ratio", "host")
TEMPERATURE = Metric("cpu.burn.temperature", "Hottest CPU in the CPU burn", "C", "host")
FREQUENCY = Metric("cpu.burn.frequency", "Slowest CPU's clock in the CPU burn", "MHz", "host")

LEAST_BUSY = 98.0
"""% of the burn that the least busy CPU must have worked for "no errors" to mean anything."""
LEAST_SHARE = 95.0
"""% of a CPU that each worker must have had in a burn of the CPUs alone."""
SHARED_SHARE = 75.0
"""% beside the loads of GPUs, each of which takes its part of a CPU."""
LEAST_LOADAVG = 0.9
"""Share of the load average that this many workers give by themselves: 0.85 of all CPUs after three minutes."""
LOADAVG_S, LOADAVG_EVERY_S = 60.0, 5.0
"""Time constant of the average, and how often the kernel looks for it, in s."""

Ticks = dict[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a run of stress-ng on every online CPU showed.

    `flaw` says what kept it from them, or that nobody knows how busy they were; '' for nothing. `loadavg` is the load
    average at its end as the kernel writes it.
    """

    cpus: int
    seconds: int
    busy: Mapping[int, float]
    done: Completed
    report: str
    began: float
    ended: float
    flaw: str = ""
    loadavg: str = ""

    @property
    def least_busy(self) -> float:
        """Return how much of the time the least busy CPU worked, in %."""
        return min(self.busy.values())


def load_all(
    site: Site, seconds: int, watch: Callable[[], object] | None = None, sensors: Sensors | None = None
) -> Loaded:
    """Run verified stress-ng on every online CPU; raises Unmeasurable when it cannot run.

    `watch` is called now and then meanwhile; what it raises ends the run, and so does a CPU that is too hot.
    """
    cpus = online(site)
    looks = [(sensors or Sensors(site, seconds, cpus)).look, *([watch] if watch else [])]
    flaw, before = confines.of_cpus(site, cpus), cpu_ticks(site.world.read("/proc/stat"))
    argv = ["--cpu", str(len(cpus)), "--cpu-method", "all"]
    ran = stress.run(site, argv, seconds, lambda: [look() for look in looks])
    average, after = shown(site, "/proc/loadavg"), cpu_ticks(shown(site, "/proc/stat"))
    try:
        busy = {cpu: busy_percent(before, after, cpu) for cpu in cpus}
    except Unmeasurable as error:
        flaw, busy = flaw or str(error), dict.fromkeys(cpus, 0.0)
    return Loaded(len(cpus), seconds, busy, ran.done, ran.report, ran.began, ran.ended, flaw, average)


def online(site: Site) -> list[int]:
    """Return the numbers of the CPUs that are online."""
    return cpu_list(site.world.read("/sys/devices/system/cpu/online"))


def burn(site: Site) -> Iterator[Outcome]:
    """Burn every online CPU for `seconds` and yield errors, least busy CPU, load average, temperature and clock."""
    seconds = int(site.params["seconds"])
    sensors = Sensors(site, seconds, online(site))
    try:
        load = load_all(site, seconds, sensors=sensors)
        failures = count_failures(load.done, load.report, load.seconds, load.cpus)
    except Unmeasurable as error:
        site.attach("cpu-sensors", sensors.text())
        yield from _sensed(site, sensors, str(error))
        yield from (NotMeasured(metric.id, site.device, str(error)) for metric in (LOAD, ERRORS, LOADAVG))
        return
    site.attach("cpu-sensors", sensors.text())
    yield from _sensed(site, sensors, "")
    yield from _worked(site, load, failures)


def _worked(site: Site, load: Loaded, failures: int) -> Iterator[Outcome]:
    """Yield errors, least busy CPU and load average of a burn that ran its time."""
    idlest = min(load.busy, key=lambda cpu: load.busy[cpu])
    conditions = {"cpus": load.cpus, "seconds": load.seconds, "least_busy_cpu": idlest}
    taken = partial(site.measured, conditions=conditions)
    yield _attempt(site, LOAD, lambda: taken(LOAD, _least_busy(load, failures), samples=load.cpus))
    yield _attempt(site, ERRORS, lambda: taken(ERRORS, failures, proof=_proof(load, failures)))
    yield _attempt(site, LOADAVG, lambda: taken(LOADAVG, load_average(load.loadavg)))


def _least_busy(load: Loaded, failures: int) -> float:
    """Return how busy the least busy CPU was; raises Unmeasurable where it was so with somebody else's work."""
    if load.flaw:
        raise Unmeasurable(load.flaw)
    if load.least_busy >= LEAST_BUSY and not failures:
        _had_a_cpu(load, LEAST_SHARE)
    return load.least_busy


def _attempt(site: Site, metric: Metric, take: Callable[[], Outcome]) -> Outcome:
    try:
        return take()
    except Unmeasurable as error:
        return NotMeasured(metric.id, site.device, str(error))


def _sensed(site: Site, sensors: Sensors, cut: str) -> Iterator[Outcome]:
    """Yield what the sensors showed; a burn that was `cut` short was at least that hot, and had no clock."""
    besides = sensors.besides()
    try:
        hottest, looks = sensors.hottest()
        value = Interval(hottest, None) if cut else hottest
        yield site.measured(TEMPERATURE, value, samples=looks, conditions=besides, note=cut)
    except Unmeasurable as error:
        yield NotMeasured(TEMPERATURE.id, site.device, cut or str(error))
    if cut:
        yield NotMeasured(FREQUENCY.id, site.device, cut)
    else:
        yield _attempt(site, FREQUENCY, lambda: _clock(site, sensors, besides))


def _clock(site: Site, sensors: Sensors, besides: Mapping[str, Scalar]) -> Outcome:
    mhz, slowest, looks = sensors.slowest()
    conditions = {"slowest_cpu": slowest, "source": sensors.clocks, **besides}
    return site.measured(FREQUENCY, mhz, samples=looks, conditions=conditions)


def prove_loaded(load: Loaded) -> None:
    """Return when every CPU worked throughout beside other loads; raises Unmeasurable with what was amiss."""
    failures = count_failures(load.done, load.report, load.seconds)
    _reached(load)
    if not failures:
        _worked_by_us(load, SHARED_SHARE)


def _proof(load: Loaded, failures: int) -> str | None:
    """Return what shows that an error would have been seen, None when there were some.

    Raises Unmeasurable with what was amiss.
    """
    if failures:
        return None
    _reached(load)
    share, average = _worked_by_us(load, LEAST_SHARE)
    return (
        f"{load.cpus} workers verified their results for {load.seconds} s, every CPU at least {load.least_busy:.1f} % "
        f"busy, {share:.1f} % of it with them, load average {average:g}"
    )


def _reached(load: Loaded) -> None:
    """Raise Unmeasurable unless every CPU was busy."""
    if load.flaw:
        raise Unmeasurable(load.flaw)
    if load.least_busy < LEAST_BUSY:
        message = f"the CPUs were not loaded: the least busy one worked {load.least_busy:.1f} % of the time"
        raise Unmeasurable(message)


def _worked_by_us(load: Loaded, least: float) -> tuple[float, float]:
    """Return the % of a CPU that each worker had, and the load average; raises Unmeasurable when they are too low."""
    share = _had_a_cpu(load, least)
    average, few = load_average(load.loadavg), least_loadavg(load.cpus, load.seconds)
    if average < few:
        message = f"the load average was {average:g} after {load.seconds} s, and {load.cpus} workers give {few:.1f}"
        raise Unmeasurable(message)
    return share, average


def _had_a_cpu(load: Loaded, least: float) -> float:
    """Return the % of a CPU that each worker had; raises Unmeasurable when it is too little."""
    share = stress.work(load.done, load.report, load.seconds, "cpu", load.cpus).share_of(load.cpus)
    if share < least:
        message = f"each worker had {share:.1f} % of a CPU: something else used the rest; end it and run again"
        raise Unmeasurable(message)
    return share


def least_loadavg(workers: int, seconds: float) -> float:
    """Return the load average that this many workers give at least in so many seconds, from rest."""
    return LEAST_LOADAVG * workers * (1.0 - math.exp(-max(0.0, seconds - LOADAVG_EVERY_S) / LOADAVG_S))


def count_failures(done: Completed, report: str, seconds: int, workers: int = 0) -> int:
    """Return how many wrong results the workers told; `workers` 0 for however many it started.

    Raises Unmeasurable when there were none and the run was not what was asked for.
    """
    failures = stress.failures(done, "cpu")
    if not failures:
        stress.work(done, report, seconds, "cpu", workers)
    return failures


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
        "cpu.burn", "cpu", "host", (ERRORS, LOAD, LOADAVG, TEMPERATURE, FREQUENCY), burn,
        params={"seconds": 60}, load=True, tools=("stress-ng",),
    ),
)  # fmt: skip
