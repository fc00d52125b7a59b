"""What a burn showed: its metrics, and how the records and the telemetry of one card become values.

Owns the gates that a value must pass. Starts nothing, must not judge.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import NoReturn

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome, Value
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import (
    Card,
    Window,
    amount,
    ceiling_tflops,
    flaws,
    tally,
)
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Record

THERMAL_OR_BRAKE = 0x08 | 0x20 | 0x40 | 0x80
"""Clock event reasons that count: HW slowdown, SW and HW thermal, power brake; never the power cap (nvml.h)."""
REHEARSED = ("flip_by_checksum", "flip_by_compare", "nan_by_checksum", "nan_by_compare", "clean_passes")
"""What a rehearsal of the error detector must find."""
STEADY_C_PER_MIN = 0.5
COMPARED_EVERY_S = 2.5
FEW = 10
"""Samples after which a sensor must have moved under a load that began in them."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of one burn."""

    prefix: str
    tflops: Metric
    temperature: Metric
    power_peak: Metric
    errors: Metric
    power_mean: Metric
    clock: Metric
    capped: Metric
    cost: Metric
    total: Metric
    power_total: Metric

    def of_card(self) -> tuple[Metric, ...]:
        """Return those that each card has."""
        return (
            self.tflops, self.temperature, self.power_peak, self.errors,
            self.power_mean, self.clock, self.capped, self.cost,
        )  # fmt: skip

    def all(self) -> tuple[Metric, ...]:
        """Return them in the order of the report."""
        return *self.of_card(), self.total, self.power_total


def metrics(prefix: str, what: str) -> Metrics:
    """Return the metrics of a burn called `prefix`."""
    return Metrics(
        prefix,
        Metric(f"{prefix}.tflops", f"FP16 rate in the {what}", "TFLOPS", "gpu", rate="fp16", max_cv=0.05),
        Metric(f"{prefix}.temperature", f"Peak temperature in the {what}", "C", "gpu"),
        Metric(f"{prefix}.power_peak", f"Peak power in the {what}", "W", "gpu"),
        Metric(f"{prefix}.errors", f"Wrong results in the {what}", "count", "gpu", none_seen=True),
        Metric(f"{prefix}.power_mean", f"Mean power in the last half of the {what}", "W", "gpu"),
        Metric(f"{prefix}.clock", f"Mean SM clock in the last half of the {what}", "MHz", "gpu"),
        Metric(f"{prefix}.power_capped", f"Time held down by the power limit in the {what}", "s", "gpu"),
        Metric(f"{prefix}.check_cost", f"Rate that checking every product costs in the {what}", "%", "gpu"),
        Metric(f"{prefix}.total", f"FP16 rate of all GPUs in the {what}", "TFLOPS", "host"),
        Metric(f"{prefix}.power_total", f"Power of all GPUs in the {what}", "W", "host"),
    )


ALONE, COMBINED = metrics("gpu.burn", "GPU burn"), metrics("gpu.combined", "combined burn")
THROTTLE = Metric("gpu.burn.throttle", "Time slowed by heat or power brake in the GPU burn", "s", "gpu", none_seen=True)
WIDTH = Metric("gpu.burn.width", "PCIe width throughout the GPU burn", "lanes", "gpu")
START = Metric("gpu.burn.start_temperature", "Temperature before the GPU burn", "C", "gpu")
PLATEAU = Metric("gpu.burn.plateau", "Time until the temperature is flat", "s", "gpu")


@dataclass(frozen=True, slots=True)
class Burnt:
    """One card's burn: its batches, the window of telemetry, what all cards' goldens say of its own."""

    card: Card
    records: Sequence[Record]
    batches: Sequence[Record]
    window: Window
    outvoted: bool = False
    flaw: str = ""
    """Why the burn was not the one that was asked for; what it proved wrong stays proven."""


def refuse(burnt: Burnt | NotMeasured) -> NoReturn:
    """Raise Unmeasurable with what keeps a burn from giving a value."""
    if isinstance(burnt, Burnt):
        raise Unmeasurable(burnt.flaw)
    message = f"{burnt.device}: {burnt.reason}"
    raise Unmeasurable(message)


def outvoted(records: Mapping[str, Sequence[Record]]) -> set[str]:
    """Return the devices whose golden results no majority of the cards has, seed by seed."""
    goldens = {
        device: {str(r.get("seed")): str(r.get("checksum")) for r in rs if r.get("kind") == "golden"}
        for device, rs in records.items()
    }
    found = set()
    for seed in {seed for sums in goldens.values() for seed in sums}:
        sums = {device: of[seed] for device, of in goldens.items() if seed in of}
        (usual, votes), *_ = Counter(sums.values()).most_common(1)
        found |= {device for device, value in sums.items() if votes <= len(sums) / 2 or value != usual}
    return found


Reading = tuple[Value, str | None, str]
"""Value, proof, note."""


def values(site: Site, of: Metrics, burnt: Burnt) -> Iterator[Outcome]:
    """Yield what each card has in a burn of these metrics."""
    yield attempt(site, of.tflops, burnt, lambda b: (sustained_tflops(b), None, ""))
    yield attempt(site, of.temperature, burnt, temperature)
    yield attempt(site, of.power_peak, burnt, power)
    yield attempt(site, of.errors, burnt, errors)
    yield attempt(site, of.power_mean, burnt, lambda b: (fmean(late(moving(b.window, "power", "W"))), None, ""))
    yield attempt(site, of.clock, burnt, lambda b: (clock_mhz(b), None, ""))
    yield attempt(site, of.capped, burnt, lambda b: (_spent(b, "power_cap_ns"), None, ""))
    yield attempt(site, of.cost, burnt, cost)


def attempt(site: Site, metric: Metric, burnt: Burnt, read: Callable[[Burnt], Reading]) -> Outcome:
    """Return one reading of a burn with its conditions; a flawed burn shows wrong products and nothing else."""
    samples = max(1, len(burnt.batches)) if metric.unit in ("TFLOPS", "count") else len(burnt.window.samples)
    try:
        if burnt.flaw and read is not errors:
            refuse(burnt)
        value, proof, note = read(burnt)
        ceiling = ceiling_tflops(site, "fp16", clock_mhz(burnt)) if metric.unit == "TFLOPS" else None
        return site.measured(
            metric, value, device=burnt.card.device, samples=samples, ceiling=ceiling, proof=proof, note=note,
            conditions=_conditions(metric, burnt),
        )  # fmt: skip
    except Unmeasurable as error:
        return NotMeasured(metric.id, burnt.card.device, str(error))


def _conditions(metric: Metric, burnt: Burnt) -> dict[str, Scalar]:
    """Return under what a value was taken: when and where, and what belongs to a rate, a heat, a throttle."""
    seconds = round(burnt.window.ended - burnt.window.began, 1)
    found = dict[str, Scalar](seconds=seconds, bus_id=burnt.card.bus_id, uuid=burnt.card.uuid)
    if metric.unit == "TFLOPS":
        found["clock_mhz"] = round(clock_mhz(burnt))
    if metric.id == THROTTLE.id:
        found |= by_cause(burnt)
    if metric.unit == "C" and (slope := slope_per_min(burnt.window)) is not None:
        found["slope_c_per_min"] = round(slope, 1)
    return found


def sustained_tflops(burnt: Burnt) -> float:
    """Return the mean rate of the last half; a mean, so that one good second does not carry it.

    The time is the wall's where that is longer: a card that stands still between its batches is slow.
    """
    burnt.window.prove_loaded()
    half = burnt.batches[len(burnt.batches) // 2 :]
    wall = half[-1]["t"] + half[-1]["seconds"] - half[0]["t"]
    return float(sum(b["tflop"] for b in half) / max(wall, sum(b["seconds"] for b in half)))


def late(values: Sequence[float]) -> Sequence[float]:
    """Return the last half of a window's values."""
    return values[len(values) // 2 :]


def clock_mhz(burnt: Burnt) -> float:
    """Return the mean SM clock of the last half, the one that the sustained rate belongs to."""
    return fmean(late(burnt.window.values("sm_mhz")))


def cost(burnt: Burnt) -> Reading:
    """Return by how many % the checks lengthen a product, from batches with and without them in turn."""
    record = next((r for r in burnt.records if r.get("kind") == "cost"), {"kind": "cost"})
    bare, checked = amount(record, "unchecked"), amount(record, "checked")
    if not bare:
        message = f"the unchecked batches of {burnt.card.device} took no time"
        raise Unmeasurable(message)
    return 100.0 * (1.0 - bare / max(bare, checked)), None, ""


def _spent(burnt: Burnt, counter: str) -> float:
    """Return by how many seconds a time counter of the driver grew; raises Unmeasurable when it went back."""
    counted = burnt.window.values(counter)
    if any(later < sooner for sooner, later in pairwise(counted)):
        message = f"{counter} of {burnt.card.device} went backwards: the driver was reset"
        raise Unmeasurable(message)
    return round((counted[-1] - counted[0]) / 1e9, 3)


def by_cause(burnt: Burnt) -> dict[str, Scalar]:
    """Return the seconds of each cause of throttling that the driver counts."""
    found = dict[str, Scalar]()
    for counter in ("sw_thermal_ns", "hw_thermal_ns", "brake_ns", "power_cap_ns"):
        with suppress(Unmeasurable):
            found[counter.replace("_ns", "_s")] = _spent(burnt, counter)
    return found


def temperature(burnt: Burnt) -> Reading:
    """Return the peak; a sensor that says 0 is none, and a rising end is said."""
    seen = sensed(burnt.window)
    burnt.window.prove_loaded()
    rise = slope_per_min(burnt.window)
    rising = f"still rising by {rise:.1f} C/min at the end" if rise and rise > STEADY_C_PER_MIN else ""
    return max(seen), None, rising


def sensed(window: Window) -> list[float]:
    """Return the temperatures in C; raises Unmeasurable when the sensor is absent, says 0 or does not move."""
    return moving(window, "temperature", "C")


def power(burnt: Burnt) -> Reading:
    """Return the peak of the power in W."""
    return max(moving(burnt.window, "power", "W")), None, ""


def moving(window: Window, name: str, unit: str) -> list[float]:
    """Return a sensor's values over a load; one that shows nothing of the load measures nothing."""
    seen = window.values(name)
    if min(seen) <= 0 or (len(seen) > FEW and max(seen) == min(seen)):
        message = f"the {name} of {window.device} reads {min(seen):g} {unit} throughout the load: it measures nothing"
        raise Unmeasurable(message)
    return seen


def slope_per_min(window: Window, seconds: float = 20.0) -> float | None:
    """Return the temperature's slope over the last `seconds` in C per minute, None where too few samples show it.

    The mean of one half against that of the other.
    """
    read = [s for s in window.samples if "temperature" in s]
    late = [(s["t"], amount(s, "temperature")) for s in read if s["t"] >= window.ended - seconds]
    if len(late) < 4:  # noqa: PLR2004 - two in each half
        return None
    first, second = late[: len(late) // 2], late[len(late) // 2 :]
    rise = fmean(t for _, t in second) - fmean(t for _, t in first)
    apart = fmean(t for t, _ in second) - fmean(t for t, _ in first)
    return 60.0 * rise / apart if apart > 0 else None


def errors(burnt: Burnt) -> Reading:
    """Return the wrong products; a golden that float64 or the other cards refute makes all of them wrong."""
    wrong = sum(map(_wrong, burnt.batches))
    checked = int(tally(burnt.batches, "checked")[0])
    if flaw := next(filter(None, flaws(burnt.records)), ""):
        return max(checked, 1), None, f"the product itself is wrong: {flaw}"
    if burnt.outvoted:
        note = f"no majority of the cards computes what {burnt.card.device} does from the same numbers"
        return max(checked, 1), None, note
    if wrong:
        hot = max((tally([s], "temperature")[0] for s in burnt.window.samples if "temperature" in s), default=math.nan)
        return wrong, None, f"{wrong} batches of {len(burnt.batches)} held a wrong product; up to {hot:.0f} C"
    return 0, _proof(burnt, checked), ""


def _wrong(batch: Record) -> int:
    """Return the wrong results of a batch; flips that cancel out in the checksum show in the comparison."""
    found, differing = (tally([batch], key)[0] for key in ("wrong", "elements"))
    return math.ceil(found) or int(differing > 0)


def _proof(burnt: Burnt, checked: int) -> str:
    """Return what shows that a wrong product would have been seen; raises Unmeasurable when nothing does."""
    if burnt.flaw:
        refuse(burnt)
    compared = [batch for batch in burnt.batches if "elements" in batch]
    if unread := tally(burnt.batches, "wrong")[1] or tally(compared, "elements")[1]:
        raise Unmeasurable(unread)
    rehearsals = [r for r in burnt.records if r.get("kind") == "rehearsal"]
    missed = [name for name in REHEARSED if any(r.get(name) is not True for r in rehearsals)]
    if missed or not 0 < len(flaws(burnt.records)) <= len(rehearsals):
        what = ", ".join(missed) or "no rehearsal of every golden result"
        message = f"the error detector did not find its rehearsed errors: {what}"
        raise Unmeasurable(message)
    if gap := _unchecked(burnt):
        raise Unmeasurable(gap)
    busy = burnt.window.prove_loaded()
    rehearsed = "a flipped bit and a NaN were found in rehearsal; golden agrees with float64"
    return f"{checked} results checked; {rehearsed}; {busy}"


def unchecked(batch: Record) -> bool:
    """Say whether a batch holds products that nobody checked."""
    return not 0 < amount(batch, "products") <= amount(batch, "checked")


def _unchecked(burnt: Burnt) -> str:
    """Return which part of a burn nobody checked; '' when there is none."""
    seeds = [{str(r.get("seed")) for r in burnt.records if r.get("kind") == kind} for kind in ("golden", "rehearsal")]
    compared = sum(1 for batch in burnt.batches if "elements" in batch)
    asked = burnt.window.ended - burnt.window.began
    gates = (
        (not any(r.get("kind") == "end" for r in burnt.records), "the burn did not reach its end"),
        (any(unchecked(batch) for batch in burnt.batches), "not every product was checked"),
        (compared < asked / COMPARED_EVERY_S, f"{compared} bitwise comparisons in {asked:.0f} s"),
        (seeds[0] != seeds[1], "a golden result was not rehearsed with its own seed"),
    )
    return next((reason for bad, reason in gates if bad), "")


def throttle(burnt: Burnt) -> Reading:
    """Return the seconds lost to heat or brake: by NVML's time counters or the sampled mask, whichever is more.

    One sample alone may be a change of clocks (nvml.h), two in a row are slowing.
    """
    seen, busy = burnt.window, burnt.window.prove_loaded()
    hits = [bool(int(mask) & THERMAL_OR_BRAKE) for mask in seen.values("reasons")]
    sampled = round(seen.period_s * sum(a and b for a, b in pairwise(hits)), 3)
    proof = f"reasons sampled {len(hits)} times; {busy}"
    try:
        read = len(seen.values("throttle_ns"))
    except Unmeasurable:
        return sampled, proof, "no time counters: sampled"
    return max(_spent(burnt, "throttle_ns"), sampled), f"time counters read {read} times; {proof}", ""


def plateau(window: Window) -> float:
    """Return the seconds after which the temperature stays within 1 C of its last value."""
    seen = sensed(window)
    last = max((i for i, value in enumerate(seen) if abs(value - seen[-1]) > 1.0), default=-1)
    return (last + 1) * window.period_s
