"""Findings: a cause over several values, its evidence, and what to do. Pure rules over a bundle.

Every rule reads numbers, never the name of a bundle or a machine, and stays silent where the
numbers do not speak. Must not judge: a finding explains verdicts, it changes none.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from pytest_gpuaccept.measurement import Interval, Measurement, Outcome, Value, number, show
from pytest_gpuaccept.profile import Profile
from pytest_gpuaccept.verdict import Verdict

SLOWER = 0.03
"""Share below the median from which a GPU counts as slower: equal cards of one model differ by 2 %."""
SAME = 0.03
"""Relative difference within which two figures count as the same one."""
OVERSHOOT = 0.05
"""Sampled peak over the power cap that a meter shows without a sustained excess (3.8 % was seen)."""
LEAST_LATENCY_US = 60.0
"""Mean latency of a 4 KiB request, in microseconds, below which a flash drive is not believed."""
RISING_C_PER_MIN = 10.0
"""Slope at the end of a burn that a card in free air has long left behind: 2 to 4 are usual after 60 s."""
STEADY_S = 300
"""Seconds of burn below which several cards in one chassis have not reached a steady temperature."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause, the figures that show it, and the remedy."""

    rule: str
    cause: str
    evidence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class View:
    """What a rule sees of a bundle."""

    profile: Profile
    table: Mapping[tuple[str, str], Outcome]
    verdicts: Mapping[tuple[str, str], Verdict]

    def get(self, metric: str, device: str) -> Measurement | None:
        """Return a measurement, or None where there is none."""
        outcome = self.table.get((metric, device))
        return outcome if isinstance(outcome, Measurement) else None

    def number(self, metric: str, device: str) -> float | None:
        """Return a measured number, an interval's midpoint, or None."""
        got = self.get(metric, device)
        return _finite(got.value) if got else None

    def numbers(self, metric: str) -> dict[str, float]:
        """Return a metric's numbers by device."""
        found = {device: self.number(name, device) for name, device in self.table if name == metric}
        return {device: value for device, value in found.items() if value is not None}

    def stated_as(self, metric: str, device: str) -> object:
        """Return what a published figure claims to be, or None."""
        got = self.get(metric, device)
        return got.conditions.get("stated_as") if got else None

    def condition(self, metric: str, device: str, name: str) -> float | None:
        """Return a numeric condition that a value was taken under, or None."""
        got = self.get(metric, device)
        value = got.conditions.get(name) if got else None
        return None if value is None else _finite(value)


WHY_SLOW = {
    "wrong": (
        "runs the quantised layers with a slow kernel",
        'Do not pass quantization="awq": leave it out or say "awq_marlin", then check the kernel inside the workers.',
    ),
    "": (
        "is slow, and which kernel ran is not known",
        "Check the kernel inside the workers first; a slow one is the usual cause.",
    ),
    "right": (
        "is slow although the kernel is the ordered one",
        "Check eager mode, CUDA graphs, PCIe link width, clocks and the transport between the GPUs.",
    ),
}
"""What is proven of the kernel -> what is wrong with vLLM, and what to do."""


def _finite(value: Value) -> float | None:
    plain = number(value)
    return plain if plain is not None and math.isfinite(plain) else None


Rule = Callable[[View], Iterable[Finding]]


def find(view: View) -> list[Finding]:
    """Return the findings of every rule, in the order of the rules."""
    return [finding for rule in RULES for finding in rule(view)]


def wrong_peak(view: View) -> Iterator[Finding]:
    """A rate was compared with a peak of another accumulator."""
    facts = view.profile.card.facts if view.profile.card else None
    stated = {
        g: v for g, v in view.numbers("gpu.gemm.reference_peak").items() if facts and v > facts.fp16_tflops * 1.05
    }
    rates = view.numbers("gpu.gemm.fp16")
    if not facts or not stated or not rates:
        return
    best, peak = max(rates, key=lambda g: rates[g]), max(stated.values())
    yield Finding(
        "wrong-peak",
        f"The FP16 rate was compared with {peak:g} TFLOPS, which is not the peak of what was measured: "
        "matrix products in PyTorch accumulate in FP32.",
        f"{best} reaches {rates[best]:g} TFLOPS, {rates[best] / facts.fp16_tflops:.0%} of the dense "
        f"FP32-accumulate peak of {facts.fp16_tflops:g} at {facts.boost_clock_mhz} MHz, "
        f"and {rates[best] / peak:.0%} of {peak:g}.",
        f"Compare with {facts.fp16_tflops:g}. Above 100 % means that the card boosts over its rated clock; a rate "
        f"near {peak:g} would be a measurement error.",
    )


def uneven_caps(view: View) -> Iterator[Finding]:
    """A slow GPU has a lower power cap than the others: their ranking says nothing yet."""
    caps, rates = view.numbers("gpu.power.limit"), view.numbers("gpu.burn.tflops")
    if len(rates) < 2 or len(set(caps.values())) < 2:  # noqa: PLR2004 - two of each to compare
        return
    usual = median(rates.values())
    for gpu, rate in rates.items():
        others = [cap for other, cap in caps.items() if other != gpu]
        if 0 < rate < usual * (1 - SLOWER) and gpu in caps and others and caps[gpu] < min(others):
            yield Finding(
                "uneven-caps",
                f"{gpu} is slower, but it also has the lowest power cap: the ranking of the cards is not comparable.",
                f"{gpu} burns at {rate:g} TFLOPS, {1 - rate / usual:.1%} below the median, "
                f"with a cap of {caps[gpu]:g} W; the others have {min(others):g} to {max(others):g} W.",
                "Set one power limit on all cards (nvidia-smi -pl), repeat the burn, and only then speak of silicon.",
            )


def target_as_limit(view: View) -> Iterator[Finding]:
    """A temperature limit at the card's own thermal target passes a card that is being slowed."""
    facts = view.profile.card.facts if view.profile.card else None
    target = facts.temperature_target_c if facts else None
    limits = {line.max for name, line in view.profile.lines.items() if name.endswith(".temperature")} - {None}
    proven = [v for (name, _), v in view.verdicts.items() if name == "gpu.burn.throttle" and v.verdict == "PASS"]
    burnt = view.numbers("gpu.burn.temperature")
    if (
        target is None
        or not burnt
        or len(proven) >= len(burnt)
        or not any(m is not None and m >= target for m in limits)
    ):
        return
    yield Finding(
        "target-as-limit",
        f"{target} C is the card's thermal target, not a distance from trouble: a card that is slowed down to hold "
        f"{target} C passes a temperature limit of {target} C.",
        f"Peak {max(burnt.values()):g} C in the burn; that no time was lost to heat is proven on {len(proven)} of "
        f"{len(burnt)} GPUs.",
        "Read the thermal-slowdown time counters over the burn and require 0 beside the temperature.",
    )


def engine_below_bandwidth(view: View) -> Iterator[Finding]:
    """Decoding far below the memory-bandwidth bound, or below the other engine: the wrong kernel."""
    share, cross = view.number("vllm.roofline", "vllm"), view.number("engines.cross", "host")
    line = view.profile.lines.get("vllm.roofline")
    floor = line.min if line and line.min is not None else None
    slow = share is not None and floor is not None and share < floor
    if not slow and not (cross is not None and cross < 1):
        return
    kernel, judged = view.get("vllm.kernel", "vllm"), view.verdicts.get(("vllm.kernel", "vllm"))
    proven = "right" if judged and judged.verdict == "PASS" else "wrong" if judged and judged.verdict == "FAIL" else ""
    roofline = view.get("vllm.roofline", "vllm")
    parts = [
        f"vLLM decodes at {share:.0%} of what memory bandwidth allows ({roofline.note})" if share and roofline else "",
        f"{cross:.2f} times the speed of llama.cpp, which uses one GPU at a time" if cross is not None else "",
        f"the kernel is recorded as {kernel.value!s}" if kernel else "",
    ]
    yield Finding(
        "engine-below-bandwidth",
        f"vLLM {WHY_SLOW[proven][0]}; either comparison shows it without any kernel's name.",
        "; ".join(part for part in parts if part) + ".",
        WHY_SLOW[proven][1],
    )


def latency_that_is_none(view: View) -> Iterator[Finding]:
    """Latencies that are arithmetic: tokens over speed sold as first token, wall time over requests."""
    speed, short = view.number("vllm.single.decode", "vllm"), view.number("vllm.short.latency", "vllm")
    tokens = view.condition("vllm.short.latency", "vllm", "tokens")
    parts = []
    first = view.stated_as("vllm.short.latency", "vllm") == "time to first token"
    if first and speed and short and tokens and tokens > 1 and _same(short, 1000 * tokens / speed):
        parts.append(f"{short:g} ms is {tokens:.0f} tokens at {speed:g} tok/s, not the time to a first token")
    output, each = view.number("vllm.batch.output", "vllm"), view.number("vllm.batch.latency", "vllm")
    requests = view.condition("vllm.batch.latency", "vllm", "requests")
    produced = view.condition("vllm.batch.latency", "vllm", "tokens")
    request = view.stated_as("vllm.batch.latency", "vllm") == "latency of a request"
    if request and output and each and requests and produced and requests > 1:
        wall = requests * produced / output
        if _same(each * requests, 1000 * wall):
            parts.append(f"{each:g} ms is {wall:.1f} s / {requests:.0f}: no request ever had that latency")
    if parts:
        yield Finding(
            "latency-that-is-none",
            "A stated latency is a quotient of other figures, not a latency that a request had.",
            "; ".join(parts) + ".",
            "Measure time to first token from a streamed answer, and report percentiles over requests.",
        )


def peer_copy_without_peer(view: View) -> Iterator[Finding]:
    """GPU to GPU copies on a card whose driver offers no peer access."""
    card, copies = view.profile.card, view.numbers("gpu_pair.copy")
    unknown = [pair for pair in copies if (got := view.get("gpu_pair.copy", pair)) and "path" not in got.conditions]
    if card is None or "p2p" not in card.lacks or not unknown:
        return
    values = {str(got.value) for pair in copies if (got := view.get("gpu_pair.copy", pair))}
    span = ", ".join(sorted(values))
    yield Finding(
        "peer-copy-without-peer",
        f"The stock driver offers no peer access on {card.name}: the copy was very likely staged through the host.",
        f"{len(copies)} pairs at {span} GB/s; the path was not recorded on {len(unknown)} of them.",
        "Record what the driver says of peer access and which path the copy took; do not sell it as peer to peer.",
    )


def pageable_only(view: View) -> Iterator[Finding]:
    """Device to host was measured with pageable memory only."""
    pageable, pinned = view.numbers("gpu.copy.d2h_pageable"), view.numbers("gpu.copy.d2h")
    missing = sorted(pageable.keys() - pinned.keys())
    if missing:
        yield Finding(
            "pageable-only",
            "Device to host was measured with pageable memory, which shows the host's copying and not the link.",
            ", ".join(f"{gpu} {pageable[gpu]:g} GB/s" for gpu in missing) + ", and no pinned figure beside it.",
            "Measure pinned memory beside it; it is what the link carries (Gen4 x16: 23 GB/s and more).",
        )


def too_fast_for_depth(view: View) -> Iterator[Finding]:
    """Random I/O that its stated queue depth cannot carry: the number of jobs is missing."""
    parts = []
    for metric in ("nvme.read.rand", "nvme.write.rand"):
        for drive, iops in view.numbers(metric).items():
            depth = view.condition(metric, drive, "iodepth")
            jobs = view.condition(metric, drive, "numjobs")
            if depth and iops > 0 and jobs is None and 1e6 * depth / iops < LEAST_LATENCY_US:
                latency = 1e6 * depth / iops
                parts.append(
                    f"{metric}: {iops:,.0f} IOPS at a total depth of {depth:.0f} is a mean of {latency:.0f} us"
                )
    if parts:
        yield Finding(
            "too-fast-for-depth",
            "The random rates are too fast for the queue depth stated with them: the number of jobs was not recorded.",
            "; ".join(parts) + ".",
            "State block size, queue depth and number of jobs with every random rate, and measure again.",
        )


def peak_over_cap(view: View) -> Iterator[Finding]:
    """Sampled power above the cap: a meter's peak when small, an excess when not."""
    caps = view.numbers("gpu.power.limit")
    for metric in ("gpu.burn.power_peak", "gpu.combined.power_peak"):
        for gpu, peak in view.numbers(metric).items():
            over = peak / caps[gpu] - 1 if caps.get(gpu) else 0.0
            if over > 0.01:  # noqa: PLR2004 - the meters' own error
                small = over <= OVERSHOOT
                yield Finding(
                    "peak-over-cap",
                    f"{gpu} was seen above its power cap: "
                    + ("a peak of single samples, not a sustained excess." if small else "more than samples explain."),
                    f"{peak:g} W at a cap of {caps[gpu]:g} W is {over:+.1%} ({metric}).",
                    "Judge the mean of a second against the cap; size the supply for the peaks."
                    if small
                    else "Check that the power limit is in force and what the meter shows.",
                )


def thinnest_margin(view: View) -> Iterator[Finding]:
    """The line that passed by least, when it lies inside its guard band."""
    good = [v for v in view.verdicts.values() if v.verdict in ("PASS", "MARGINAL") and v.margin is not None]
    shares = {(v.line, v.device): (v.margin or 0.0) / floor for v in good if (floor := _floor(view, v))}
    if not shares:
        return
    line, device = min(shares, key=lambda key: shares[key])
    verdict = view.verdicts[line, device]
    if verdict.verdict != "MARGINAL":
        return
    yield Finding(
        "thinnest-margin",
        f"{line} on {device} is the thinnest margin of all rates: a little noise away from failing.",
        f"{verdict.reason} ({shares[line, device]:+.1%}).",
        "Repeat the measurement and find out what this device lacks before the machine ages or the room warms up.",
    )


def not_steady(view: View) -> Iterator[Finding]:
    """A burn too short to show what several cards in one chassis settle at."""
    times: dict[str, list[float]] = {}
    for metric, device in view.table:
        if metric in ("gpu.burn.temperature", "gpu.combined.temperature"):
            times.setdefault(metric, []).append(view.condition(metric, device, "seconds") or math.inf)
    short = {metric: min(seconds) for metric, seconds in times.items() if 0 < min(seconds) < STEADY_S}
    if short and view.profile.gpus > 1:
        yield Finding(
            "not-steady",
            f"{max(short.values()):.0f} s of burn is not thermal steady state: "
            f"{view.profile.gpus} cards share one chassis.",
            ", ".join(f"{metric} after {seconds:.0f} s" for metric, seconds in short.items()) + ".",
            "Burn until the temperature is flat, at least five minutes, with the chassis closed.",
        )


def still_rising(view: View) -> Iterator[Finding]:
    """A peak temperature that was only the last one: the burn ended before the heat did."""
    slopes = {
        (metric, device): slope
        for metric, device in view.table
        if metric.endswith(".temperature") and (slope := view.condition(metric, device, "slope_c_per_min"))
    }
    rising = {key: slope for key, slope in slopes.items() if slope > RISING_C_PER_MIN}
    if rising:
        yield Finding(
            "still-rising",
            "Temperatures were still rising when the burn ended: the peaks are not what the cards settle at.",
            ", ".join(f"{metric} of {device} by {slope:g} C/min" for (metric, device), slope in rising.items()) + ".",
            "Burn until the temperature is flat (--hw-effort=soak), then judge the peak.",
        )


def machine_reset(view: View) -> Iterator[Finding]:
    """The machine was started anew while something ran."""
    got, count = view.get("host.resets", "host"), view.number("host.resets", "host")
    if got is None or not count:
        return
    phases = str(got.conditions.get("phases") or "")
    yield Finding(
        "machine-reset",
        f"The machine was reset during {phases or 'the run'}: whatever else it reaches, it does not stay up.",
        f"{got.note} ({count:g} in all).",
        "Look at what the firmware and the last kernel kept (the BMC's event log, /sys/fs/pstore, journalctl -b -1). "
        "Nothing there speaks for power: check supply, cables and circuit, then repeat the load steps; a panic or a "
        "machine check names its own cause.",
    )


def damaged_link(view: View) -> Iterator[Finding]:
    """A GPU's link has PCIe errors: which, when, which way, whether alone, and how to find what is broken."""
    counts = {
        gpu: [o for metric in LINK_ERRORS if (o := view.get(metric, gpu)) and (_low(o.value) or 0) > 0]
        for gpu in view.profile.devices.get("gpu", ())
    }
    loud = {gpu: seen for gpu, seen in counts.items() if seen}
    for gpu, seen in loud.items():
        quiet = [other for other in counts if other not in loud]
        proven = all((m := view.get(LINK_ERRORS[0], other)) and m.proof for other in quiet)
        others = f"{', '.join(quiet)} {'show none' if proven else 'have none on record'}"
        yield Finding(
            "damaged-link",
            f"The PCIe link of {gpu} damages packets{_way(seen)}{_when(seen)}"
            + (f"; those of {others}: it is this card, its slot or its riser." if quiet else "."),
            "; ".join(f"{m.metric} {show(m.value)}{f' ({m.note})' if m.note else ''}" for m in seen)
            + ". ".join(["", *filter(None, [_identity(view, gpu)]), ""]).rstrip(),
            _swap(view, gpu, quiet),
        )


LINK_ERRORS = ("gpu.aer.corrected", "gpu.aer.uncorrected")


def _low(value: Value) -> float | None:
    return value.low if isinstance(value, Interval) else _finite(value)


def _way(seen: Iterable[Measurement]) -> str:
    ways = dict.fromkeys(str(m.conditions["direction"]) for m in seen if m.conditions.get("direction"))
    return f" on the way {' and '.join(ways)}" if ways else ""


def _when(seen: Iterable[Measurement]) -> str:
    times = [str(m.conditions.get("during") or m.conditions.get("phase") or "") for m in seen]
    told = ", ".join(dict.fromkeys(filter(None, times)))
    return f" (during: {told})" if told else ""


def _identity(view: View, gpu: str) -> str:
    """Return what tells the card from the others: address, UUID and serial number, as far as they are known."""
    named, serial = view.get("gpu.name", gpu), view.get("gpu.serial", gpu)
    where = [m.conditions.get(key) for m in (view.get("gpu.aer.corrected", gpu), named) if m for key in PLACES]
    told = [str(text) for text in where if text] + ([f"serial {serial.value}"] if serial else [])
    return f"{gpu} is {', '.join(dict.fromkeys(told))}" if told else ""


PLACES = ("address", "bus", "bus_id", "uuid")


def _swap(view: View, gpu: str, quiet: list[str]) -> str:
    """Return how to find out what is broken: the card, or what it is plugged into."""
    known = f" ({_identity(view, quiet[0])})" if quiet and _identity(view, quiet[0]) else ""
    places = f"let {gpu} and {quiet[0]} change places{known}" if quiet else ""
    return (
        f"1. Power off, seat {gpu}, its riser and its power connectors again, run the same load again. "
        "2. Update the BIOS and the card's firmware if the board's maker names PCIe in the notes, run it again. "
        f"3. If it stays, {places or f'put {gpu} into another slot'}, run the same load again: errors that move with "
        "the card are the card's, errors that stay with the slot are the slot's or the riser's. "
        "4. Write down serial numbers and slots before and after; replace what the errors follow."
    )


def _floor(view: View, verdict: Verdict) -> float:
    """Return the floor of a rate's line, 0 where the line has none or its quantity is no rate with a guard."""
    line = view.profile.lines.get(verdict.line)
    return abs(line.min) if line and line.min and line.guard else 0.0


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= SAME * max(abs(a), abs(b))


RULES: tuple[Rule, ...] = (
    wrong_peak,
    uneven_caps,
    target_as_limit,
    engine_below_bandwidth,
    latency_that_is_none,
    peer_copy_without_peer,
    pageable_only,
    too_fast_for_depth,
    peak_over_cap,
    thinnest_margin,
    not_steady,
    still_rising,
    damaged_link,
    machine_reset,
)
