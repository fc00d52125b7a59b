"""The burns: all GPUs at once, every product checked; alone, and with all CPUs loaded as well.

Owns how they are run: together, watched, from rest, and for how long. Must not judge.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import ModuleType

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.burns import cpu
from pytest_gpuaccept.probes.cards import (
    FULL_TIME,
    Card,
    Window,
    batches,
    ran_on,
    usable_cards,
    window,
)
from pytest_gpuaccept.probes.gpus.burnt import (
    ALONE,
    COMBINED,
    PLATEAU,
    START,
    STEADY_C_PER_MIN,
    THROTTLE,
    WIDTH,
    Burnt,
    Metrics,
    attempt,
    moving,
    outvoted,
    plateau,
    refuse,
    sensed,
    sustained_tflops,
    throttle,
    values,
)
from pytest_gpuaccept.probes.gpus.guard import Guard
from pytest_gpuaccept.probes.gpus.together import run_together
from pytest_gpuaccept.world import Load, Record

PAUSE_S = 2.0
"""Seconds between two batches that a new seed may take, its golden result proven."""
COOL_C_PER_S = 0.05
GRACE_S = 120.0
ANSWER_S = 0.2
"""Seconds between two looks at a burn that may wait for an answer: its card rests meanwhile."""
CPU_ERRORS = Metric(
    "cpu.combined.errors", "Wrong results of the CPUs in the combined burn", "count", "host", none_seen=True
)


def alone(site: Site) -> Iterator[Outcome]:
    """Burn all GPUs; yield rate, heat, power, errors and throttle time of each, and the sums."""
    all_burnt = _together(_burn(site, ALONE, partial(_until_flat, site)), site)
    yield from _totals(site, ALONE, all_burnt)
    for burnt in all_burnt:
        if isinstance(burnt, NotMeasured):
            yield from _absent(burnt, (*ALONE.of_card(), THROTTLE, WIDTH, START, PLATEAU))
            continue
        yield from values(site, ALONE, burnt)
        yield attempt(site, THROTTLE, burnt, throttle)
        yield attempt(site, WIDTH, burnt, lambda b: (int(min(b.window.values("width"))), None, ""))
        yield attempt(site, START, burnt, lambda b: (sensed(b.window)[0], None, ""))
        yield attempt(site, PLATEAU, burnt, lambda b: (plateau(b.window), None, ""))


def combined(site: Site) -> Iterator[Outcome]:
    """Burn all GPUs and all CPUs together; without proof that the CPUs were loaded nothing counts."""
    done = list[cpu.Loaded | Unmeasurable]()
    all_burnt = _burn(site, COMBINED, partial(_load_cpus, site, done))
    (load,) = done
    all_burnt = _together(all_burnt, site, load if isinstance(load, cpu.Loaded) else None)
    yield _cpu_errors(site, load, all_burnt)
    yield from _totals(site, COMBINED, all_burnt)
    for burnt in all_burnt:
        if isinstance(burnt, NotMeasured):
            yield from _absent(burnt, COMBINED.of_card())
        else:
            yield from values(site, COMBINED, burnt)


def _load_cpus(site: Site, done: list[cpu.Loaded | Unmeasurable], guard: Guard) -> Mapping[str, str]:
    """Load all CPUs and put into `done` what that showed, or why it did not; raises Unmeasurable with that reason."""
    try:
        done.append(cpu.load_all(site, int(site.params["seconds"]), guard.look))
    except Unmeasurable as error:
        done.append(error)
        raise
    return guard.wait(GRACE_S)


def _cpu_errors(site: Site, load: cpu.Loaded | Unmeasurable, all_burnt: Sequence[Burnt | NotMeasured]) -> Outcome:
    """Return the wrong results of the CPUs while the GPUs burned; none seen needs a card that burned with them."""
    try:
        if isinstance(load, Unmeasurable):
            raise load
        failures = cpu.count_failures(load.done, load.report, load.seconds)
        if not failures and not any(isinstance(b, Burnt) and not b.flaw for b in all_burnt):
            refuse(all_burnt[0])
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
        burnt = [b if isinstance(b, Burnt) and not b.flaw else refuse(b) for b in all_burnt]
        watts = [moving(b.window, "power", "W") for b in burnt]
        yield site.measured(of.total, sum(sustained_tflops(b) for b in burnt))
        yield site.measured(of.power_total, max(sum(each) for each in zip(*watts, strict=False)))
    except Unmeasurable as error:
        yield NotMeasured(of.total.id, site.device, str(error))
        yield NotMeasured(of.power_total.id, site.device, str(error))


def _absent(reason: NotMeasured, metrics: Sequence[Metric]) -> Iterator[Outcome]:
    for metric in metrics:
        yield NotMeasured(metric.id, reason.device, reason.reason)


def _burn(site: Site, of: Metrics, meanwhile: Callable[[Guard], Mapping[str, str]]) -> list[Burnt | NotMeasured]:
    """Burn every card of the profile at once; return each one's burn, or why there is none."""
    period, (found, absent) = float(site.params["period_s"]), usable_cards(site)
    cool_down(site, found, float(site.params["cool_down_seconds"]))
    job = {"seconds": int(site.params["seconds"]), "open_ended": bool(site.params.get("longest_seconds"))}
    ran = run_together(site, of.prefix, found, "burn", job, watched={"period_s": period}, meanwhile=meanwhile)
    minority = outvoted(ran.records)
    burnt = {device: _burnt(own, ran.records[device], ran.samples, period) for device, own in found.items()}
    return [
        _marked(burnt[device], ran.died.get(device, ""), outvoted=device in minority)
        if device in burnt
        else NotMeasured("", device, absent[device])
        for device in site.profile.devices.get("gpu", ())
    ]


def _marked(burnt: Burnt | NotMeasured, died: str, *, outvoted: bool) -> Burnt | NotMeasured:
    """Return a burn with what is known from outside of it: why its load died, what the other cards say."""
    if isinstance(burnt, NotMeasured):
        return replace(burnt, reason=died or burnt.reason)
    return replace(burnt, outvoted=outvoted, flaw=died or burnt.flaw)


def _until_flat(site: Site, guard: Guard) -> Mapping[str, str]:
    """Wait until the burn is over, and return which loads ended badly, and why.

    One that is open-ended goes on leg by leg until no card grows hotter.

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
    return guard.ends("")


def _asks(load: Load, answered: int) -> bool:
    """Say whether a load's last record asks how long to go on; `answered` is how many it had at the last answer."""
    return len(load.records) > answered and load.records[-1].get("kind") == "leg"


def _burnt(card: Card, records: Sequence[Record], samples: Sequence[Record], period: float) -> Burnt | NotMeasured:
    """Return a card's burn; a garbled record flaws it, and what it proved wrong stays proven."""
    try:
        timed = batches(card, records, "batch")
        began, ended = timed[0]["t"], timed[-1]["t"] + timed[-1]["seconds"]
        return Burnt(card, records, timed, window(card, samples, began, ended, period))
    except Unmeasurable as error:
        if not ran_on(card, records):
            return NotMeasured("", card.device, str(error))
        written = [record for record in records if record.get("kind") == "batch"]
        return Burnt(card, records, written, Window(card.device, (), 0.0, 0.0, period), flaw=str(error))


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
