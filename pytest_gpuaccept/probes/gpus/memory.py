"""The memory of every GPU: patterns held, swept and gathered on all cards at once, each word compared.

Owns how the records of the load become values, and when they are none. Must not judge.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pytest_gpuaccept.children.memory import FADES, PATTERNS, ROUND
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.cards import LEAST_S, Card, Window, amount, check_ran_on, tally, usable_cards, window
from pytest_gpuaccept.probes.gpus.burnt import sensed
from pytest_gpuaccept.probes.gpus.together import run_together
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Record

ERRORS = Metric("gpu.memory.errors", "Words of memory that read back wrong", "count", "gpu", none_seen=True)
COVERAGE = Metric("gpu.memory.coverage", "Share of the free memory that was tested", "%", "gpu")
GATHER = Metric("gpu.memory.gather", "Indexed gather over the tested memory", "GB/s", "gpu", rate="memory")
FADE = Metric("gpu.memory.fade_temperature", "Mean temperature while patterns were held", "C", "gpu")
METRICS = (ERRORS, COVERAGE, GATHER, FADE)

ROUND_S, GRACE_S = 120.0, 120.0
"""Seconds that the last round and the gather may go on when the time is over, and that ending may take."""
LEAST_FREE = 0.85
"""Share of a card's memory that is free when nobody else uses it: the driver and a context leave 0.9 and more."""
SHOWN = 3
"""Flipped bits and addresses that a note names."""


@dataclass(frozen=True, slots=True)
class Tested:
    """The test of one card: what the load wrote, the telemetry of all cards, why it died if it did."""

    card: Card
    records: Sequence[Record]
    samples: Sequence[Record]
    death: str

    def one(self, kind: str) -> Record:
        """Return the only record of a kind; raises Unmeasurable when there is none, or more."""
        found = [record for record in self.records if record.get("kind") == kind]
        if len(found) != 1:
            why = self.death or f"its load wrote {len(found)} records of kind {kind!r}"
            message = f"the memory of {self.card.device} was not tested: {why}"
            raise Unmeasurable(message)
        return found[0]

    def check_ended(self) -> None:
        """Raise Unmeasurable when the load died, or stopped before its end."""
        self.one("end")
        if self.death:
            raise Unmeasurable(self.death)

    @property
    def passes(self) -> list[Record]:
        """Return the passes, in their order."""
        return [record for record in self.records if record.get("kind") == "pass"]

    def named(self, pattern: str) -> Record:
        """Return the last pass of a pattern; raises Unmeasurable when there is none."""
        found = [record for record in self.passes if record.get("pattern") == pattern]
        if not found:
            message = f"{self.card.device}: no pass {pattern!r}: {self.death or 'the load left it out'}"
            raise Unmeasurable(message)
        return found[-1]


def memory(site: Site) -> Iterator[Outcome]:
    """Test the memory of all cards at once; yield wrong words, coverage, gather rate and the heat while held."""
    tested = _together(site)
    for device in site.profile.devices.get("gpu", ()):
        test = tested[device]
        for metric, read in READINGS.items():
            yield NotMeasured(metric.id, device, test) if isinstance(test, str) else _attempt(site, metric, test, read)


def _together(site: Site) -> dict[str, Tested | str]:
    """Run the load on all cards from one time on; return each card's test, or why there is none."""
    found, absent = usable_cards(site)
    p = {name: float(site.params[name]) for name in PARAMS}
    job = {"seconds": p["seconds"], "hold_s": p["hold_seconds"], "share": p["share"]}
    longest = p["seconds"] + len(FADES) * p["hold_seconds"] + ROUND_S + GRACE_S
    watched = {"period_s": p["period_s"]}
    ran = run_together(site, "gpu.memory", found, "memory", job, watched=watched, meanwhile=lambda g: g.wait(longest))
    tested = {d: Tested(c, ran.records[d], ran.samples, ran.died.get(d, "")) for d, c in found.items()}
    return {**absent, **tested}


def _attempt(site: Site, metric: Metric, test: Tested, read: Callable[[Site, Tested], Measurement]) -> Outcome:
    try:
        test.one("device")
        check_ran_on(test.card, test.records)
        return read(site, test)
    except Unmeasurable as error:
        return NotMeasured(metric.id, test.card.device, str(error))


# readings ------------------------------------------------------------------------------------------------


def errors(site: Site, test: Tested) -> Measurement:
    """Return the wrong words; those found before a load died count, none found needs the whole test and its proof."""
    found, unread = tally(test.passes, "wrong")
    untouched, unsaid = tally([r for r in test.records if r.get("kind") == "rehearsal"], "clean")
    wrong, unread = math.ceil(found + untouched), unread or unsaid
    if unread and not wrong:
        raise Unmeasurable(unread)
    proof = None if wrong else _proof(site, test)
    note = "; ".join(filter(None, (_described(test.passes), unread))) if wrong else ""
    samples = max(1, len(test.passes))
    return site.measured(ERRORS, wrong, device=test.card.device, samples=samples, proof=proof, note=note)


def _described(passes: Sequence[Record]) -> str:
    """Return in which patterns words were wrong, which bits flipped most, and the first addresses."""
    bad = [record for record in passes if tally([record], "wrong")[0]]
    patterns = ", ".join(dict.fromkeys(str(record.get("pattern")) for record in bad)) or "the rehearsal"
    bits: dict[str, float] = {}
    for record in bad:
        for bit, times in _table(record.get("bits")).items():
            bits[str(bit)] = bits.get(str(bit), 0) + (times if isinstance(times, int) else 0)
    most = sorted(bits, key=lambda bit: -bits[bit])[:SHOWN]
    listed = bad[0].get("words") if bad else None
    words = listed[:SHOWN] if isinstance(listed, list) else []
    return f"in {patterns}; bits {', '.join(most) or 'unknown'} most; first [word, flipped bits]: {words}"


def _table(value: object) -> Mapping[object, object]:
    return value if isinstance(value, dict) else {}


def _proof(site: Site, test: Tested) -> str:
    """Return what shows that a wrong word would have been seen; raises Unmeasurable when something does not."""
    test.check_ended()
    rehearsal = test.one("rehearsal")
    if amount(rehearsal, "found") != 1 or rehearsal.get("place") is not True:
        message = f"one flipped bit was planted in the memory of {test.card.device}, and it was not found as that"
        raise Unmeasurable(message)
    claimed = amount(test.one("claimed"), "claimed")
    for pattern in PATTERNS:
        _check_whole(test.named(pattern), claimed, float(site.params["hold_seconds"]))
    busy = _swept(site, test).prove_loaded()
    share = coverage(site, test).value
    return f"{len(test.passes)} passes over {share:.1f} % of the free memory; a planted bit was found; {busy}"


def _check_whole(record: Record, claimed: float, hold_s: float) -> None:
    """Raise Unmeasurable when a pass left words out, or was not held."""
    name, seconds = record["pattern"], amount(record, "seconds")
    if not claimed or amount(record, "bytes") < claimed:
        message = f"pass {name!r} covered {amount(record, 'bytes'):.0f} of {claimed:.0f} claimed bytes"
        raise Unmeasurable(message)
    if name in FADES and seconds < hold_s:
        message = f"pass {name!r} took {seconds:g} s: nothing was held"
        raise Unmeasurable(message)


def _swept(site: Site, test: Tested) -> Window:
    """Return the telemetry of the rounds."""
    rounds = [record for record in test.passes if record.get("pattern") in ROUND]
    return _window(site, test, rounds[0], rounds[-1])


def _window(site: Site, test: Tested, first: Record, last: Record) -> Window:
    ended = amount(last, "t") + amount(last, "seconds")
    return window(test.card, test.samples, amount(first, "t"), ended, float(site.params["period_s"]))


def coverage(site: Site, test: Tested) -> Measurement:
    """Return the share of the free memory that every pattern went over; none while another program holds much of it."""
    test.check_ended()
    record = test.one("claimed")
    free, claimed = amount(record, "free"), amount(record, "claimed")
    total = _total(site, test.card)
    if not LEAST_FREE * total <= free <= total or claimed > free:
        message = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB of {test.card.device} were free"
        message += f", {claimed / 2**30:.1f} GiB were claimed: end what else uses the card (nvidia-smi)"
        raise Unmeasurable(message)
    tested = _tested(test, claimed)
    sizes = {"tested": tested, "claimed": claimed, "free": free, "total": total}
    conditions = dict[str, Scalar]({f"{name}_gib": round(size / 2**30, 2) for name, size in sizes.items()})
    return site.measured(COVERAGE, 100.0 * tested / free, device=test.card.device, conditions=conditions)


def _tested(test: Tested, claimed: float) -> float:
    """Return the least bytes that a pass went over; raises Unmeasurable when a pattern is missing, or took no time."""
    for record in (*map(test.named, PATTERNS), *test.passes):
        if amount(record, "bytes") and amount(record, "seconds") < LEAST_S:
            message = f"pass {record.get('pattern')!r} of {test.card.device} took no time: nothing was read"
            raise Unmeasurable(message)
    return min(claimed, *(amount(record, "bytes") for record in test.passes))


def _total(site: Site, own: Card) -> float:
    nvml = site.world.nvml()
    try:
        return float(nvml.nvmlDeviceGetMemoryInfo(own.handle).total)
    except nvml.NVMLError as error:
        message = f"the size of the memory of {own.device} cannot be read: {error}"
        raise Unmeasurable(message) from None


def gather(site: Site, test: Tested) -> Measurement:
    """Return the rate at which single words were fetched; wrong ones make it none."""
    record = test.named("gather")
    if amount(record, "wrong") or amount(record, "gather_s") < LEAST_S:
        message = f"the gather of {test.card.device} fetched wrong words, or took no time"
        raise Unmeasurable(message)
    rate = amount(record, "bytes") / amount(record, "gather_s") / 1e9
    return site.measured(GATHER, rate, device=test.card.device, conditions={"word_bytes": 8})


def held_temperature(site: Site, test: Tested) -> Measurement:
    """Return the mean temperature while patterns were held; a sensor that says 0 or does not move is none."""
    held = [test.named(pattern) for pattern in FADES]
    degrees = sensed(_window(site, test, held[0], held[-1]))
    note = f"from {degrees[0]:.0f} to {degrees[-1]:.0f} C"
    return site.measured(FADE, fmean(degrees), device=test.card.device, samples=len(degrees), note=note)


READINGS: dict[Metric, Callable[[Site, Tested], Measurement]] = {
    ERRORS: errors, COVERAGE: coverage, GATHER: gather, FADE: held_temperature,
}  # fmt: skip
PARAMS = {"seconds": 30, "hold_seconds": 30, "share": 0.95, "period_s": 0.5}
PROBE = Probe(
    "gpu.memory", "combined", "host", METRICS, memory,
    params=PARAMS, load=True, driver=True, loads=("telemetry", "memory"),
)  # fmt: skip
