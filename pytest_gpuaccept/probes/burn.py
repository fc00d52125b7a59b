"""The burns: all GPUs at once, every product checked; alone, and with all CPUs loaded as well.

Owns how the records of the burn and the samples of telemetry become values. Must not judge.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import fmean
from types import ModuleType
from typing import NoReturn

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome, Value
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes import cpu
from pytest_gpuaccept.probes.cards import (
    FULL_TIME,
    Card,
    Window,
    all_ready,
    amount,
    batches,
    ceiling_tflops,
    ended,
    flaws,
    usable_cards,
    window,
)
from pytest_gpuaccept.probes.guard import Guard
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Load, Record

THERMAL_OR_BRAKE = 0x08 | 0x20 | 0x40 | 0x80
"""Clock event reasons that count: HW slowdown, SW and HW thermal, power brake; never the power cap (nvml.h)."""
REHEARSED = ("flip_by_checksum", "flip_by_compare", "nan_by_checksum", "nan_by_compare", "clean_passes")
"""What a rehearsal of the error detector must find."""
STEADY_C_PER_MIN = 0.5
PAUSE_S = 2.0
"""Seconds between two batches that a new seed may take, its golden result proven."""
COMPARED_EVERY_S = 2.5
FEW = 10
"""Samples after which a sensor must have moved under a load that began in them."""
COOL_C_PER_S = 0.05
READY_S = 300.0
"""Seconds that loading torch from a cold disk, a CUDA context and a golden result may take on all cards."""
GRACE_S = 120.0
ANSWER_S = 0.2
"""Seconds between two looks at a burn that may wait for an answer: its card rests meanwhile."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of one burn."""

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
CPU_ERRORS = Metric(
    "cpu.combined.errors", "Wrong results of the CPUs in the combined burn", "count", "host", none_seen=True
)
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


def alone(site: Site) -> Iterator[Outcome]:
    """Burn all GPUs; yield rate, heat, power, errors and throttle time of each, and the sums."""
    all_burnt = _together(_burn(site, partial(_until_flat, site)), site)
    yield from _totals(site, ALONE, all_burnt)
    for burnt in all_burnt:
        if isinstance(burnt, NotMeasured):
            yield from _absent(burnt, (*ALONE.of_card(), THROTTLE, WIDTH, START, PLATEAU))
            continue
        yield from _values(site, ALONE, burnt)
        yield _attempt(site, THROTTLE, burnt, _throttle)
        yield _attempt(site, WIDTH, burnt, lambda b: (int(min(b.window.values("width"))), None, ""))
        yield _attempt(site, START, burnt, lambda b: (sensed(b.window)[0], None, ""))
        yield _attempt(site, PLATEAU, burnt, lambda b: (plateau(b.window), None, ""))


def combined(site: Site) -> Iterator[Outcome]:
    """Burn all GPUs and all CPUs together; without proof that the CPUs were loaded nothing counts."""
    done = list[cpu.Loaded | Unmeasurable]()
    all_burnt = _burn(site, partial(_load_cpus, site, done))
    (load,) = done
    all_burnt = _together(all_burnt, site, load if isinstance(load, cpu.Loaded) else None)
    yield _cpu_errors(site, load, all_burnt)
    yield from _totals(site, COMBINED, all_burnt)
    for burnt in all_burnt:
        if isinstance(burnt, NotMeasured):
            yield from _absent(burnt, COMBINED.of_card())
        else:
            yield from _values(site, COMBINED, burnt)


def _load_cpus(site: Site, done: list[cpu.Loaded | Unmeasurable], guard: Guard) -> None:
    """Load all CPUs and put into `done` what that showed, or why it did not; raises Unmeasurable with that reason."""
    try:
        done.append(cpu.load_all(site, int(site.params["seconds"]), guard.look))
    except Unmeasurable as error:
        done.append(error)
        raise


def _cpu_errors(site: Site, load: cpu.Loaded | Unmeasurable, all_burnt: Sequence[Burnt | NotMeasured]) -> Outcome:
    """Return the wrong results of the CPUs while the GPUs burned; none seen needs a card that burned with them."""
    try:
        if isinstance(load, Unmeasurable):
            raise load
        failures = cpu.count_failures(load.done, load.report, load.seconds)
        if not failures and not any(isinstance(b, Burnt) and not b.flaw for b in all_burnt):
            _refuse(all_burnt[0])
    except Unmeasurable as error:
        return NotMeasured(CPU_ERRORS.id, site.device, str(error))
    proof = None if load.least_busy < cpu.LEAST_BUSY else f"{load.cpus} workers verified their results"
    return site.measured(CPU_ERRORS, failures, proof=proof)


def _together(
    all_burnt: Sequence[Burnt | NotMeasured], site: Site, load: cpu.Loaded | None = None
) -> list[Burnt | NotMeasured]:
    """Return the burns, flawed where they were cut short, held pauses, or did not run at the same time.

    One that has a flaw already, as a card that died in it, costs the others nothing.
    """
    seconds = float(site.params["seconds"])
    windows = [(b.window.began, b.window.ended) for b in all_burnt if isinstance(b, Burnt) and not b.flaw]
    windows += [(load.began, load.ended)] if load else []
    common = min((ended for _, ended in windows), default=0.0) - max((began for began, _ in windows), default=0.0)
    flaw = _cpu_flaw(load) if load else ""
    if common < FULL_TIME * seconds:
        flaw = flaw or f"the loads ran together for {max(common, 0.0):.1f} s of {seconds:.0f} s"
    return [replace(b, flaw=b.flaw or _pause(b) or flaw) if isinstance(b, Burnt) else b for b in all_burnt]


def _cpu_flaw(load: cpu.Loaded) -> str:
    try:
        cpu.prove_loaded(load)
    except Unmeasurable as error:
        return str(error)
    return ""


def _pause(burnt: Burnt) -> str:
    """Return where a burn stood still, or went back in time; '' when it did not."""
    for sooner, later in pairwise(burnt.batches):
        pause, into = later["t"] - sooner["t"] - sooner["seconds"], later["t"] - burnt.window.began
        if later["t"] <= sooner["t"]:
            return f"the burn of {burnt.card.device} went back in time, {into:.0f} s into it"
        if pause > PAUSE_S:
            return f"the burn of {burnt.card.device} paused for {pause:.1f} s, {into:.0f} s into it"
    return ""


def _totals(site: Site, of: Metrics, all_burnt: Sequence[Burnt | NotMeasured]) -> Iterator[Outcome]:
    """Yield rate and power of all cards together; nothing when one card is missing."""
    try:
        burnt = [b if isinstance(b, Burnt) and not b.flaw else _refuse(b) for b in all_burnt]
        watts = [_moving(b.window, "power", "W") for b in burnt]
        yield site.measured(of.total, sum(sustained_tflops(b) for b in burnt))
        yield site.measured(of.power_total, max(sum(each) for each in zip(*watts, strict=False)))
    except Unmeasurable as error:
        yield NotMeasured(of.total.id, site.device, str(error))
        yield NotMeasured(of.power_total.id, site.device, str(error))


def _refuse(burnt: Burnt | NotMeasured) -> NoReturn:
    if isinstance(burnt, Burnt):
        raise Unmeasurable(burnt.flaw)
    message = f"{burnt.device}: {burnt.reason}"
    raise Unmeasurable(message)


def _absent(reason: NotMeasured, metrics: Sequence[Metric]) -> Iterator[Outcome]:
    for metric in metrics:
        yield NotMeasured(metric.id, reason.device, reason.reason)


def _burn(site: Site, meanwhile: Callable[[Guard], object]) -> list[Burnt | NotMeasured]:
    """Burn every card of the profile at once; return each one's burn, or why there is none.

    `meanwhile` has the time in which they burn; when it raises Unmeasurable, what still runs is ended.
    """
    clock, period = site.world.clock, float(site.params["period_s"])
    found, absent = usable_cards(site)
    cool_down(site, found, float(site.params["cool_down_seconds"]))
    job = {"seconds": int(site.params["seconds"]), "open_ended": bool(site.params.get("longest_seconds"))}
    watched = {"uuids": [c.uuid for c in found.values()], "period_s": period}
    with site.world.start("telemetry", watched) as watch:
        with ExitStack() as stack:
            loads = {
                device: stack.enter_context(site.world.start("burn", {"uuid": c.uuid, **job}))
                for device, c in found.items()
            }
            at, died = all_ready(loads, clock, READY_S)
            ready = {device: load for device, load in loads.items() if device not in died}
            guard = Guard(site, {device: found[device] for device in ready}, ready, watch)
            try:
                clock.sleep(max(0.0, at - clock.monotonic()))
                meanwhile(guard)
                died |= guard.wait(GRACE_S)
            except Unmeasurable as error:
                died |= guard.ends(str(error))
        samples, blind = ended(watch)
    died = dict.fromkeys(loads if blind else (), blind) | died
    records = {device: load.records for device, load in loads.items()}
    keep(site, samples, records)
    minority = outvoted(records)
    burnt = {device: _burnt(found[device], records[device], samples, period) for device in records}
    return [
        _marked(burnt[device], died.get(device, ""), outvoted=device in minority)
        if device in burnt
        else NotMeasured("", device, absent[device])
        for device in site.profile.devices.get("gpu", ())
    ]


def _marked(burnt: Burnt | NotMeasured, died: str, *, outvoted: bool) -> Burnt | NotMeasured:
    """Return a burn with what is known from outside of it: why its load died, what the other cards say."""
    if isinstance(burnt, NotMeasured):
        return replace(burnt, reason=died or burnt.reason)
    return replace(burnt, outvoted=outvoted, flaw=died)


def _until_flat(site: Site, guard: Guard) -> None:
    """Wait until the burn is over; one that is open-ended goes on leg by leg until no card grows hotter.

    Raises Unmeasurable when the guard stops it, or when a leg outlasts its time.
    """
    clock, leg = site.world.clock, float(site.params["seconds"])
    longest = float(site.params.get("longest_seconds", 0))
    answered = dict.fromkeys(guard.loads, 0)
    burned, began = leg, clock.monotonic()
    while running := {device: load for device, load in guard.loads.items() if not load.ended}:
        guard.look()
        if all(_asks(load, answered[device]) for device, load in running.items()):
            more = burned + leg <= longest and guard.rising(STEADY_C_PER_MIN)
            for device, load in running.items():
                answered[device] = len(load.records)
                load.tell({"seconds": leg if more else 0})
            burned, began = burned + leg, clock.monotonic()
        elif clock.monotonic() > began + leg + GRACE_S:
            message = f"the burn was still running after {clock.monotonic() - began:.0f} s of {leg:.0f} s and was ended"
            raise Unmeasurable(message)
        clock.sleep(ANSWER_S)


def _asks(load: Load, answered: int) -> bool:
    """Say whether a load's last record asks how long to go on; `answered` is how many it had at the last answer."""
    return len(load.records) > answered and load.records[-1].get("kind") == "leg"


def keep(site: Site, samples: Sequence[Record], records: Mapping[str, Sequence[Record]]) -> None:
    """Keep the raw records of a burn in the evidence, one JSON line each."""
    for name, lines in {"telemetry": samples, **records}.items():
        site.attach(f"{name} of the burn", "\n".join(json.dumps(record) for record in lines))


def _burnt(card: Card, records: Sequence[Record], samples: Sequence[Record], period: float) -> Burnt | NotMeasured:
    try:
        timed = batches(card, records, "batch")
        began, ended = timed[0]["t"], timed[-1]["t"] + timed[-1]["seconds"]
        return Burnt(card, records, timed, window(card, samples, began, ended, period))
    except Unmeasurable as error:
        return NotMeasured("", card.device, str(error))


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


def _values(site: Site, of: Metrics, burnt: Burnt) -> Iterator[Outcome]:
    yield _attempt(site, of.tflops, burnt, lambda b: (sustained_tflops(b), None, ""))
    yield _attempt(site, of.temperature, burnt, _temperature)
    yield _attempt(site, of.power_peak, burnt, _power)
    yield _attempt(site, of.errors, burnt, _errors)
    yield _attempt(site, of.power_mean, burnt, lambda b: (fmean(late(_moving(b.window, "power", "W"))), None, ""))
    yield _attempt(site, of.clock, burnt, lambda b: (clock_mhz(b), None, ""))
    yield _attempt(site, of.capped, burnt, lambda b: (_spent(b, "power_cap_ns"), None, ""))
    yield _attempt(site, of.cost, burnt, _cost)


def _attempt(site: Site, metric: Metric, burnt: Burnt, read: Callable[[Burnt], Reading]) -> Outcome:
    samples = len(burnt.batches) if metric.unit in ("TFLOPS", "count") else len(burnt.window.samples)
    try:
        if burnt.flaw and read is not _errors:
            _refuse(burnt)
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


def _cost(burnt: Burnt) -> Reading:
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


def _temperature(burnt: Burnt) -> Reading:
    """Return the peak; a sensor that says 0 is none, and a rising end is said."""
    seen = sensed(burnt.window)
    burnt.window.prove_loaded()
    rise = slope_per_min(burnt.window)
    rising = f"still rising by {rise:.1f} C/min at the end" if rise and rise > STEADY_C_PER_MIN else ""
    return max(seen), None, rising


def sensed(window: Window) -> list[float]:
    """Return the temperatures in C; raises Unmeasurable when the sensor is absent, says 0 or does not move."""
    return _moving(window, "temperature", "C")


def _power(burnt: Burnt) -> Reading:
    return max(_moving(burnt.window, "power", "W")), None, ""


def _moving(window: Window, name: str, unit: str) -> list[float]:
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


def _errors(burnt: Burnt) -> Reading:
    """Return the wrong products; a golden that float64 or the other cards refute makes all of them wrong."""
    wrong = sum(_wrong(batch) for batch in burnt.batches)
    checked = int(sum(amount(batch, "checked") for batch in burnt.batches))
    if flaw := next(filter(None, flaws(burnt.records)), ""):
        return max(checked, 1), None, f"the product itself is wrong: {flaw}"
    if burnt.outvoted:
        note = f"no majority of the cards computes what {burnt.card.device} does from the same numbers"
        return max(checked, 1), None, note
    if wrong:
        hot = max((amount(s, "temperature") for s in burnt.window.samples if "temperature" in s), default=math.nan)
        return wrong, None, f"{wrong} batches of {len(burnt.batches)} held a wrong product; up to {hot:.0f} C"
    return 0, _proof(burnt, checked), ""


def _wrong(batch: Record) -> int:
    """Return the wrong results of a batch; flips that cancel out in the checksum show in the comparison."""
    differing = amount(batch, "elements") if "elements" in batch else 0.0
    return math.ceil(amount(batch, "wrong")) or int(differing > 0)


def _proof(burnt: Burnt, checked: int) -> str:
    """Return what shows that a wrong product would have been seen; raises Unmeasurable when nothing does."""
    if burnt.flaw:
        _refuse(burnt)
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


def _unchecked(burnt: Burnt) -> str:
    """Return which part of a burn nobody checked; '' when there is none."""
    seeds = [{str(r.get("seed")) for r in burnt.records if r.get("kind") == kind} for kind in ("golden", "rehearsal")]
    compared = sum(1 for batch in burnt.batches if "elements" in batch)
    asked = burnt.window.ended - burnt.window.began
    gates = (
        (not any(r.get("kind") == "end" for r in burnt.records), "the burn did not reach its end"),
        (any(not amount(batch, "checked") for batch in burnt.batches), "not every batch was checked"),
        (compared < asked / COMPARED_EVERY_S, f"{compared} bitwise comparisons in {asked:.0f} s"),
        (seeds[0] != seeds[1], "a golden result was not rehearsed with its own seed"),
    )
    return next((reason for bad, reason in gates if bad), "")


def _throttle(burnt: Burnt) -> Reading:
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


def cool_down(site: Site, found: Mapping[str, Card], longest_s: float) -> None:
    """Wait until no card cools by more than 0.05 C/s, at most `longest_s` s: a burn starts from rest."""
    nvml, end = site.world.nvml(), site.world.clock.monotonic() + longest_s
    before = float("inf")
    while site.world.clock.monotonic() < end:
        now = _hottest(nvml, found)
        if now is None or before - now <= COOL_C_PER_S * 10.0:
            return
        before = now
        site.world.clock.sleep(10.0)


def _hottest(nvml: ModuleType, found: Mapping[str, Card]) -> float | None:
    try:
        return max(float(nvml.nvmlDeviceGetTemperature(c.handle, nvml.NVML_TEMPERATURE_GPU)) for c in found.values())
    except (nvml.NVMLError, ValueError):
        return None
