"""How often a healthy machine is turned away, and how small a loss each rate line finds; on simulated machines.

Owns the sampling of healthy sign-offs, the shares over them with their intervals, and the tables. Must not
judge: each value goes through verdict.judge, with the shipped line or with one whose limit was replaced.
"""

import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from multiprocessing import get_context
from statistics import median
from typing import NamedTuple

from pytest_gpuaccept import __version__
from pytest_gpuaccept.measurement import Measurement, Unit, show
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.probes import SHIPPED as PROBES
from pytest_gpuaccept.profile import Line, Profile, Severity
from pytest_gpuaccept.selfcheck.matrix import Key, sign_off
from pytest_gpuaccept.verdict import Verdict, Word, judge

ALLOWANCE: Mapping[Unit, float] = {
    "TFLOPS": 0.03,  # comparisons of drivers allow 2 to 3 % on matrix products: clocks follow the room
    "GB/s": 0.03,  # copies repeat within 1 %; 3 % is what is usual
    "tok/s": 0.05,  # engines allow 3 to 5 %: scheduling and sampling add to the GPU's own noise
    "MB/s": 0.05,  # [E] a drive's rate moves with its fill and its cache
    "IOPS": 0.05,  # [E] the same
}
"""Share below a machine's own baseline that is still the same machine; its units are what a rate is."""
LOSSES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
BASELINE_RUNS = 5
"""Sign-offs whose median is a machine's own baseline; one more of the same machine is judged by it."""
MACHINES_PER_BASELINE = 10
"""One machine in so many is signed off again and again for a baseline: it costs six sign-offs."""
GOAL = 0.001
"""Share of healthy machines that may have a required FAIL."""
CONFIDENCE = 0.95

ALARM_HEAD = ("healthy machines with", "machines", "share", "95 % interval")
CAUSE_HEAD = ("line", "verdict", "severity", "machines", "devices")
DETECTION_HEAD = ("line", "limit", "readings", "least margin", *(f"lost {loss:.0%}" for loss in LOSSES))


class Flaw(NamedTuple):
    """A line that a healthy machine did not simply pass."""

    line: str
    device: str
    verdict: Word
    severity: Severity


@dataclass(frozen=True, slots=True)
class Sample:
    """One healthy sign-off: the machine, the run on it, what was no PASS, every rate in its line's unit."""

    seed: int
    noise: int
    flaws: tuple[Flaw, ...]
    rates: Mapping[Key, float]


@dataclass(frozen=True, slots=True)
class Study:
    """Healthy sign-offs of a profile: one of each of many machines, and several of each of some of them."""

    profile: Profile
    machines: tuple[Sample, ...]
    repeated: tuple[tuple[Sample, ...], ...]


@dataclass(frozen=True, slots=True)
class Alarm:
    """On how many of the healthy machines something happened."""

    what: str
    found: int
    of: int

    @property
    def ends(self) -> tuple[float, float]:
        """The exact interval of the share."""
        return interval(self.found, self.of)


@dataclass(frozen=True, slots=True)
class Reading:
    """A healthy rate of a device, and the line that it is judged by."""

    device: str
    value: float
    line: Line


@dataclass(frozen=True, slots=True)
class Detection:
    """What a line says of rates that lost each of LOSSES: (share FAIL, share FAIL or MARGINAL).

    `margin` is the least one of the healthy readings, as a share of the limit.
    """

    line: Line
    limit: str
    readings: int
    margin: float
    shares: tuple[tuple[float, float], ...]


# sampling ----------------------------------------------------------------------------------------


def sign_offs(profile: Profile, seeds: int, workers: int) -> Study:
    """Sign off `seeds` healthy machines once, one in ten of them six times; the outcome follows from the arguments.

    Raises InputError when the profile has a device that cannot be simulated.
    """
    some = range(math.ceil(seeds / MACHINES_PER_BASELINE))
    once = [(seed, 0) for seed in range(seeds)]
    again = [(seed, noise) for seed in some for noise in range(1, BASELINE_RUNS + 1)]
    samples = _all(partial(sample, profile), [*once, *again], workers)
    machines, more = samples[:seeds], samples[seeds:]
    runs = [more[seed * BASELINE_RUNS : (seed + 1) * BASELINE_RUNS] for seed in some]
    return Study(profile, tuple(machines), tuple((machines[seed], *runs[seed]) for seed in some))


def _all(work: Callable[[tuple[int, int]], Sample], runs: Sequence[tuple[int, int]], workers: int) -> list[Sample]:
    if workers == 1:
        return [work(run) for run in runs]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, runs, chunksize=8))


def sample(profile: Profile, run: tuple[int, int]) -> Sample:
    """Sign off one healthy machine; `run` is its seed and that of its noise."""
    seed, noise = run
    verdicts = sign_off(profile, catalogue(), f"healthy,seed={seed},noise={noise}")
    flaws = (
        Flaw(line, device, v.verdict, v.severity)
        for (line, device), v in verdicts.items()
        if v.verdict not in ("PASS", "NOT_APPLICABLE")
    )
    return Sample(seed, noise, tuple(flaws), dict(_rates(profile, verdicts)))


def _rates(profile: Profile, verdicts: Mapping[Key, Verdict]) -> Iterator[tuple[Key, float]]:
    wanted = {line.id for line in rate_lines(profile)}
    for key, verdict in verdicts.items():
        if key[0] in wanted and verdict.margin is not None and isinstance(verdict.value, int | float):
            yield key, float(verdict.value)


@cache
def catalogue() -> Catalogue:
    """Return the shipped probes; each process makes its own."""
    return Catalogue(PROBES)


def rate_lines(profile: Profile) -> list[Line]:
    """Return the lines with a floor on a rate; shares and ratios that are calculated from rates are none."""
    return [
        line
        for line in profile.lines.values()
        if line.min and not line.not_applicable and _metric(line).unit in ALLOWANCE
    ]


def _metric(line: Line) -> Metric:
    return catalogue().metrics[line.id]


# false alarms ------------------------------------------------------------------------------------


def interval(found: int, of: int) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) interval of a share at CONFIDENCE."""
    return 1.0 - _upper(of - found, of), _upper(found, of)


def _upper(found: int, of: int) -> float:
    """Return the share at which `found` or fewer have the probability of one tail; bisection."""
    low, high = found / of, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if found < of and at_most(found, of, middle) < (1.0 - CONFIDENCE) / 2.0:
            high = middle
        else:
            low = middle
    return high


def at_most(found: int, of: int, share: float) -> float:
    """Return the binomial probability of `found` or fewer successes; 0 < share < 1."""
    return math.fsum(math.exp(_log_choose(of, i) + i * math.log(share) + (of - i) * math.log1p(-share))
                     for i in range(found + 1))  # fmt: skip


def _log_choose(of: int, i: int) -> float:
    return math.lgamma(of + 1) - math.lgamma(i + 1) - math.lgamma(of - i + 1)


def alarms(samples: Sequence[Sample]) -> list[Alarm]:
    """Return on how many healthy machines anything was not PASS, by kind."""
    kinds: dict[str, Callable[[Flaw], bool]] = {
        "any required FAIL": lambda flaw: flaw.severity == "required" and flaw.verdict == "FAIL",
        "any required ERROR or NOT_RUN": lambda flaw: (
            flaw.severity == "required" and flaw.verdict in ("ERROR", "NOT_RUN")
        ),
        "any MARGINAL": lambda flaw: flaw.verdict == "MARGINAL",
        "any advisory line that is not PASS": lambda flaw: flaw.severity == "advisory",
    }
    return [Alarm(what, sum(any(map(fits, s.flaws)) for s in samples), len(samples)) for what, fits in kinds.items()]


def causes(samples: Iterable[Sample]) -> list[tuple[str, Word, Severity, int, int]]:
    """Return line, verdict, severity, machines and devices of everything that was not PASS, most often first."""
    devices = Counter((f.line, f.verdict, f.severity) for s in samples for f in s.flaws)
    machines = Counter(key for s in samples for key in {(f.line, f.verdict, f.severity) for f in s.flaws})
    return [(*key, machines[key], count) for key, count in devices.most_common()]


def goal(alarm: Alarm) -> str:
    """Say whether the goal for required FAILs was met, and whether so many machines can prove it."""
    share, end = alarm.found / alarm.of, alarm.ends[1]
    asked = f"Goal: a required FAIL on under {GOAL:.1%} of the healthy machines"
    if share >= GOAL:
        return f"{asked}. MISSED: {alarm.found:,} of {alarm.of:,}."
    proof = (
        "The interval lies below it." if end < GOAL else f"The interval reaches {end:.3%}: more seeds would prove it."
    )
    return f"{asked}. Met: {alarm.found:,} of {alarm.of:,}. {proof}"


# detection ---------------------------------------------------------------------------------------


def shipped(study: Study, line: Line) -> list[Reading]:
    """Return every healthy reading of a line, to be judged by the line as it is shipped."""
    return [Reading(key[1], rate, line) for s in study.machines for key, rate in s.rates.items() if key[0] == line.id]


def own(study: Study, line: Line) -> list[Reading]:
    """Return readings to be judged by their machine's baseline: each run in turn, the others' median its limit."""
    return [reading for runs in study.repeated for reading in _own(runs, line)]


def _own(runs: Sequence[Sample], line: Line) -> Iterator[Reading]:
    for key in (key for key in runs[0].rates if key[0] == line.id):
        rates = [run.rates[key] for run in runs if key in run.rates]
        for turn, rate in enumerate(rates):
            if others := [*rates[:turn], *rates[turn + 1 :]]:
                yield Reading(key[1], rate, limited(line, median(others) * (1.0 - ALLOWANCE[_metric(line).unit])))


def limited(line: Line, limit: float) -> Line:
    """Return a line with another floor; its guard stays the same share of it."""
    share = line.guard / line.min if line.min else 0.0
    return line.model_copy(update={"min": limit, "guard": share * limit})


def words(readings: Iterable[Reading], loss: float) -> Counter[Word]:
    """Return how often each verdict is given when every reading has lost a share of its rate."""
    return Counter(judge(_lost(reading, loss), reading.line, _metric(reading.line)).verdict for reading in readings)


def _lost(reading: Reading, loss: float) -> Measurement:
    """Return what is measured after the loss; that the reading is sound was judged when it was taken."""
    metric = _metric(reading.line)
    taken: dict[str, bool | int | float | str] = dict.fromkeys(metric.conditions, "as in the healthy run")
    value = reading.value * (1.0 - loss)
    return Measurement(metric.id, reading.device, value, metric.unit, "simulated", conditions=taken)


def detection(line: Line, limit: str, readings: Sequence[Reading]) -> Detection:
    """Return what readings of one line are judged after each of LOSSES; there must be a reading."""
    shares = []
    for loss in LOSSES:
        got = words(readings, loss)
        shares.append((got["FAIL"] / len(readings), (got["FAIL"] + got["MARGINAL"]) / len(readings)))
    margin = min(r.value / r.line.min - 1.0 for r in readings if r.line.min)
    return Detection(line, limit, len(readings), margin, tuple(shares))


def detections(study: Study) -> Iterator[Detection]:
    """Yield each rate line twice: by its shipped limit, and by its machine's own baseline."""
    for line in rate_lines(study.profile):
        below = f"own baseline - {ALLOWANCE[_metric(line).unit]:.0%}"
        for limit, readings in (
            (f">= {show(line.min or 0.0, line.unit)}", shipped(study, line)),
            (below, own(study, line)),
        ):
            if readings:
                yield detection(line, limit, readings)


# tables ------------------------------------------------------------------------------------------


def page(study: Study, date: str) -> str:
    """Write the tables as Markdown, and what they were made from."""
    found = alarms(study.machines)
    blocks = [
        header(study, date),
        "## False alarms",
        table(ALARM_HEAD, (_alarm_row(alarm) for alarm in found)),
        goal(found[0]),
        _causes(study.machines),
        "## Detection",
        "Share of readings, in %: FAIL / FAIL or MARGINAL.",
        table(DETECTION_HEAD, map(_detection_row, detections(study))),
    ]
    return "\n\n".join(blocks) + "\n"


def header(study: Study, date: str) -> str:
    """Write when, of what and with what the tables were made."""
    machines, some, runs = len(study.machines), len(study.repeated), BASELINE_RUNS + 1
    return "\n".join((
        "SIMULATED: no hardware was measured.",
        "",
        f"- profile: {study.profile.name}, sha256 {study.profile.digest()[:12]}",
        f"- date: {date}",
        f"- seeds: 0 to {machines - 1:,}, {machines:,} machines",
        f"- own baselines: {some:,} of them, {runs} sign-offs each, every one judged by the median of the others",
        f"- versions: gpuaccept {__version__}, Python {platform.python_version()}, numpy {version('numpy')}",
    ))  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _alarm_row(alarm: Alarm) -> tuple[str, ...]:
    low, high = alarm.ends
    return alarm.what, f"{alarm.found:,}", f"{alarm.found / alarm.of:.3%}", f"{low:.3%} to {high:.3%}"


def _causes(samples: Sequence[Sample]) -> str:
    rows = [(line, word, severity, f"{m:,}", f"{d:,}") for line, word, severity, m, d in causes(samples)]
    return table(CAUSE_HEAD, rows) if rows else "Every line of every machine was PASS."


def _detection_row(found: Detection) -> tuple[str, ...]:
    name = found.line.id + (" (advisory)" if found.line.severity == "advisory" else "")
    cells = (f"{percent(fail)} / {percent(flagged)}" for fail, flagged in found.shares)
    return name, found.limit, f"{found.readings:,}", f"{found.margin:+.1%}", *cells


def percent(share: float) -> str:
    """Write a share in percent, so that only none is 0 and only all is 100."""
    if share in (0.0, 1.0):
        return f"{share * 100:.0f}"
    return f"{min(max(share * 100, 0.1), 99.9):.1f}"
