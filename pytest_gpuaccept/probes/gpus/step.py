"""The load step: all GPUs from rest to full load at once, again and again, and what went wrong meanwhile.

Owns how a rise is recognised, and which events between just before and just after count. Must not judge.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import (
    LEAST_BUSY,
    LEAST_SHARE,
    Card,
    Window,
    amount,
    batches,
    flaws,
    ran_on,
    tally,
    usable_cards,
    window,
)  # fmt: skip
from pytest_gpuaccept.probes.gpus.burnt import REHEARSED, unchecked
from pytest_gpuaccept.probes.gpus.link_events import Reading, link_errors, read_link
from pytest_gpuaccept.probes.gpus.links import LINK, by_hop, folders, hops, places
from pytest_gpuaccept.probes.gpus.together import run_together
from pytest_gpuaccept.probes.kernel import aer, xid
from pytest_gpuaccept.probes.kernel.log import SETTLE_S, read_log, since_start
from pytest_gpuaccept.probes.kernel.log import Record as LogRecord
from pytest_gpuaccept.probes.network.nic import flaps
from pytest_gpuaccept.probes.network.ports import Carrier, read_carriers
from pytest_gpuaccept.probes.since import Seen, attempt, check_same_boot
from pytest_gpuaccept.world import Record

STEPS = Metric("gpu.step.steps", "Load steps that the card took with all others", "count", "gpu")
ERRORS = Metric("gpu.step.errors", "Wrong results in the load steps", "count", "gpu", none_seen=True)
EVENTS = Metric(
    "gpu.step.events", "Uncorrected PCIe errors, Xids and lost links in the load steps", "count", "host", none_seen=True
)
SWING = Metric("gpu.step.swing", "Largest rise of the power of all GPUs within 1 s", "W", "host")

TOGETHER_S = 1.0
"""Seconds within which all cards must rise, and over which a rise of power is taken."""
POWER_RISE = 1.5
"""Power under load over power at rest, at least; cards draw five times as much and more."""
GRACE_S = 60.0
NOT_ORDERED = "nothing says which PCIe {} {} must have: give the profile its gpu.pcie.* lines, or a card with its facts"


@dataclass(frozen=True, slots=True)
class Plan:
    """When the steps were: the rest before the first began `at` s of the world's clock."""

    count: int
    on_s: float
    off_s: float
    period_s: float
    at: float = 0.0

    def due(self, step: int) -> float:
        """Return when a step began, in s."""
        return self.at + self.off_s + step * (self.on_s + self.off_s)


@dataclass(frozen=True, slots=True)
class Stepped:
    """All that was seen of the steps: samples by UUID, the first at `since` s.

    `left` says why a device did not step, or not to the end.
    """

    plan: Plan
    cards: Mapping[str, Card]
    above: Mapping[str, Sequence[str]]
    records: Mapping[str, Sequence[Record]]
    samples: Mapping[str, Sequence[Record]]
    since: float
    left: Mapping[str, str]

    def own(self, device: str) -> Sequence[Record]:
        """Return what the load of a card wrote, where it ran on that card; else nothing."""
        records = self.records.get(device, ())
        return records if device in self.cards and ran_on(self.cards[device], records) else ()

    def window(self, device: str, began: float, ended: float) -> Window:
        """Return a card's telemetry between two times, each hop a reading of its own."""
        own = self.cards[device]
        seen = window(own, self.samples.get(own.uuid, ()), began, ended, self.plan.period_s)
        return by_hop(seen, self.above[device])


@dataclass(frozen=True, slots=True)
class Moment:
    """The channels of events at one time: each card's link and log, each network's carrier."""

    links: Mapping[str, Reading | Unmeasurable]
    carriers: Mapping[str, Sequence[Carrier] | Unmeasurable]


def step(site: Site) -> Iterator[Outcome]:
    """Step all GPUs together; yield the steps and errors of each, the events meanwhile, and the power's swing."""
    found, left = usable_cards(site)
    above = {device: hops(site, own) for device, own in found.items()}
    before = _moment(site, found, above)
    stepped = _run(site, found, above, left)
    site.world.clock.sleep(SETTLE_S)
    after = _moment(site, found, above)
    rises = {device: attempt(partial(_rises, stepped, device)) for device in stepped.cards}
    for device in site.profile.devices.get("gpu", ()):
        yield _steps(site, rises, stepped, device)
        yield _errors(site, rises, stepped, device)
    yield _events(site, stepped, before, after)
    yield _swing(site, stepped)


def _run(
    site: Site, found: Mapping[str, Card], above: Mapping[str, Sequence[str]], left: Mapping[str, str]
) -> Stepped:  # fmt: skip
    """Start a load on every card, have them step together, and return what all wrote."""
    p = site.params
    plan = Plan(int(p["count"]), float(p["on_s"]), float(p["off_s"]), float(p["period_s"]))
    job = {"count": plan.count, "on_s": plan.on_s, "off_s": plan.off_s}
    chains = {own.uuid: folders(above[device]) for device, own in found.items()}
    watched = {"period_s": plan.period_s, "links": chains}
    timeout = plan.due(plan.count) + GRACE_S
    ran = run_together(site, "gpu.step", found, "steps", job, watched=watched, meanwhile=lambda g: g.wait(timeout))
    dead = dict(ran.died)
    try:
        since = min((amount(sample, "t") for sample in ran.samples), default=ran.at)
    except Unmeasurable as error:
        since, dead = ran.at, dict.fromkeys(found, str(error)) | dead
    seen = {own.uuid: [sample for sample in ran.samples if sample.get("uuid") == own.uuid] for own in found.values()}
    return Stepped(replace(plan, at=ran.at), found, above, ran.records, seen, since, {**left, **dead})


# steps ---------------------------------------------------------------------------------------


def _rises(stepped: Stepped, device: str) -> list[float | None]:
    """Return when the card rose in each step, in s, None where it did not; raises Unmeasurable when nobody can say."""
    if device in stepped.left:
        raise Unmeasurable(stepped.left[device])
    batches(stepped.cards[device], stepped.records[device], "batch")
    return [_rise(stepped, device, number) for number in range(stepped.plan.count)]


def _rise(stepped: Stepped, device: str, number: int) -> float | None:
    """Return when utilisation or power rose from rest to load in a step, whichever shows it first."""
    found = [attempt(partial(_rise_of, stepped, device, number, name)) for name in ("utilisation", "power")]
    unread = [reading for reading in found if isinstance(reading, Unmeasurable)]
    if len(unread) == len(found):
        raise unread[0]
    return min((at for at in found if isinstance(at, float)), default=None)


def _rise_of(stepped: Stepped, device: str, number: int, name: str) -> float | None:
    plan, due = stepped.plan, stepped.plan.due(number)
    rest = stepped.window(device, max(due - plan.off_s, stepped.since), due).values(name)
    seen = stepped.window(device, due, due + plan.on_s)
    values = seen.values(name)
    level = LEAST_BUSY if name == "utilisation" else (min(rest) + max(values)) / 2
    if min(rest) >= level or (name == "power" and max(values) < POWER_RISE * min(rest)):
        return None
    late = values[len(values) // 2 :]
    if sum(value >= level for value in late) < LEAST_SHARE * len(late):
        return None
    return next(amount(s, "t") for s in seen.samples if name in s and amount(s, name) >= level)


Rises = Mapping[str, list[float | None] | Unmeasurable]


def _steps(site: Site, rises: Rises, stepped: Stepped, device: str) -> Outcome:
    """Return the steps that a card took within 1 s of every other card that took them."""
    own = rises.get(device)
    if not isinstance(own, list):
        return NotMeasured(STEPS.id, device, stepped.left.get(device) or str(own))
    others = [other for other in rises.values() if isinstance(other, list)]
    missed = [number + 1 for number, at in enumerate(own) if at is None]
    alone = [
        number + 1 for number, at in enumerate(own)
        if at is not None and max(abs(at - o) for of in others if (o := of[number]) is not None) > TOGETHER_S
    ]  # fmt: skip
    said = (("no rise in step", missed), ("more than 1 s from another card in step", alone))
    note = "; ".join(f"{what} {', '.join(map(str, which))}" for what, which in said if which)
    taken = len(own) - len(missed) - len(alone)
    conditions = {"cards": len(others), "on_s": stepped.plan.on_s, "off_s": stepped.plan.off_s}
    return site.measured(STEPS, taken, device=device, samples=len(own), conditions=conditions, note=note)


# errors --------------------------------------------------------------------------------------


def _errors(site: Site, rises: Rises, stepped: Stepped, device: str) -> Outcome:
    """Return a card's wrong products; none seen needs every step, its load and a rehearsal of the detector."""
    records = stepped.own(device)
    timed = [record for record in records if record.get("kind") == "batch"]
    wrong, checked = (math.ceil(tally(timed, key)[0]) for key in ("wrong", "checked"))
    flaw = next(filter(None, flaws(records)), "")
    if flaw or wrong:
        note = f"the product itself is wrong: {flaw}" if flaw else f"of {checked} products"
        found, samples = max(checked, 1) if flaw else wrong, max(checked, 1)
        return site.measured(ERRORS, found, device=device, samples=samples, note=note)
    try:
        proof = _proof(rises.get(device), stepped, device, checked)
    except Unmeasurable as error:
        return NotMeasured(ERRORS.id, device, str(error))
    return site.measured(ERRORS, 0, device=device, samples=checked, proof=proof)


def _proof(own: list[float | None] | Unmeasurable | None, stepped: Stepped, device: str, checked: int) -> str:
    """Return what shows that a wrong product would have been seen; raises Unmeasurable when nothing does."""
    if not isinstance(own, list):
        raise Unmeasurable(stepped.left.get(device) or str(own))
    records = stepped.records[device]
    kinds = {kind: [r for r in records if r.get("kind") == kind] for kind in ("golden", "rehearsal", "batch", "end")}
    gates = (
        (None in own, f"the load did not reach {device} in every step"),
        (not kinds["end"], f"the steps of {device} did not reach their end"),
        (len(kinds["batch"]) != stepped.plan.count, f"{len(kinds['batch'])} steps of {stepped.plan.count} ended"),
        (any(unchecked(batch) for batch in kinds["batch"]), "not every product was checked"),
        (len(kinds["golden"]) != 1 or len(kinds["rehearsal"]) != 1, "the golden result was not rehearsed"),
        (any(r.get(name) is not True for r in kinds["rehearsal"] for name in REHEARSED), "rehearsed errors not found"),
    )  # fmt: skip
    if flawed := next((reason for bad, reason in gates if bad), ""):
        raise Unmeasurable(flawed)
    return f"{checked} results of {len(own)} steps checked; a flipped bit and a NaN were found in rehearsal"


# events --------------------------------------------------------------------------------------

Said = tuple[tuple[LogRecord, ...], tuple[str, ...]]
"""What the kernel said since the start of the steps, and what is missing for it to be all."""


def _moment(site: Site, found: Mapping[str, Card], above: Mapping[str, Sequence[str]]) -> Moment:
    nics = [replace(site, device=nic) for nic in site.profile.devices.get("nic", ())]
    return Moment(
        {device: attempt(partial(read_link, site, tuple(chain), aer.links(site, chain), found[device].uuid))
         for device, chain in above.items()},
        {nic.device: attempt(partial(read_carriers, nic)) for nic in nics},
    )  # fmt: skip


def _events(site: Site, stepped: Stepped, before: Moment, after: Moment) -> Outcome:
    """Return the events of all channels; none seen needs every channel, and all cards in every step."""
    seen = [Seen(0, tuple(f"{device}: {reason}" for device, reason in stepped.left.items()), "")]
    logs = [start.log for start in before.links.values() if isinstance(start, Reading)]
    said = since_start(site, logs[0], anew=True) if logs else ((), ())
    try:
        for device, start in before.links.items():
            seen += _of_card(site, said, start, after.links[device], device)
            seen.append(_lost_links(site, stepped, device))
        for nic, begun in before.carriers.items():
            seen.append(_of_nic(begun, after.carriers[nic]))
    except Unmeasurable as error:
        return NotMeasured(EVENTS.id, site.device, str(error))
    notes = ", ".join(one.note for one in seen if one.count)
    total = Seen(sum(one.count for one in seen), tuple(reason for one in seen for reason in one.lacking), notes)
    proof = "AER, kernel log, links and carriers were read just before and just after the steps"
    return total.outcome(site, EVENTS, proof, {"cards": len(stepped.cards), "networks": len(before.carriers)})


def _of_card(
    site: Site, said: Said, start: Reading | Unmeasurable, end: Reading | Unmeasurable, device: str
) -> Iterator[Seen]:
    """Yield a card's uncorrected PCIe errors and its Xids; raises Unmeasurable when the machine was started anew.

    Corrected errors have a line of their own, which allows some: one of them here must not reject a machine.
    """
    if isinstance(start, Unmeasurable) or isinstance(end, Unmeasurable):
        yield Seen(0, tuple(f"{device}: {of}" for of in (start, end) if isinstance(of, Unmeasurable)), "")
        return
    check_same_boot(start.boot, end.boot)
    fresh, lacking = said
    messages = [record.message for record in fresh]
    deaf = aer.deaf(site, start.above, "uncorrected", attempt(partial(read_log, site)))
    errors = link_errors(start, end, "uncorrected", messages, deaf)
    yield replace(errors, note=f"{device}: uncorrected PCIe errors, {errors.note}")
    xids = xid.of_gpu(messages, start.address, lacking)
    yield replace(xids, note=f"{device}: {xids.note}")


def _of_nic(start: Sequence[Carrier] | Unmeasurable, end: Sequence[Carrier] | Unmeasurable) -> Seen:
    """Return how often a network's link went down; raises Unmeasurable when the machine was started anew."""
    if isinstance(start, Unmeasurable) or isinstance(end, Unmeasurable):
        return Seen(0, tuple(str(of) for of in (start, end) if isinstance(of, Unmeasurable)), "")
    return flaps(start, end)


def _lost_links(site: Site, stepped: Stepped, device: str) -> Seen:
    """Count the steps in whose second half the card's link was below the ordered one."""
    ordered = {name: limit for name in LINK if (limit := _ordered(site, name)) is not None}
    unordered = " and ".join(name for name in LINK if name not in ordered)
    lost, lacking = list[str](), [NOT_ORDERED.format(unordered, device)] if unordered else []
    for number in range(stepped.plan.count):
        try:
            lost += [str(number + 1)] if _below(stepped, device, number, ordered) else []
        except Unmeasurable as error:
            lacking.append(f"step {number + 1}: {error}")
    return Seen(len(lost), tuple(lacking[:1]), f"{device}: link below the ordered one in step {', '.join(lost)}")


def _ordered(site: Site, name: str) -> float | None:
    """Return the generation or width that the profile demands, else the card's own, None where nobody says it."""
    line, card = site.profile.lines.get(f"gpu.pcie.{name}"), site.profile.card
    limit = None if line is None else line.min if line.equals is None else line.equals
    own = {"gen": card.facts.pcie_gen, "width": card.facts.pcie_width}[name] if card else None
    return float(limit) if isinstance(limit, int | float) else own


def _below(stepped: Stepped, device: str, number: int, ordered: Mapping[str, float]) -> bool:
    """Say whether a hop lacked a lane once, or generation twice in a row, in a step's second half."""
    half, ended = stepped.plan.on_s / 2, stepped.plan.due(number) + stepped.plan.on_s
    seen = stepped.window(device, ended - half, ended)
    read, _ = places(seen, stepped.above[device])
    lows = {
        name: [[value < limit for value in seen.values(name + suffix)] for suffix in read.values()]
        for name, limit in ordered.items()
    }
    slow = any(all(low) or any(a and b for a, b in pairwise(low)) for low in lows.get("gen", ()))
    return slow or any(any(low) for low in lows.get("width", ()))


# power ---------------------------------------------------------------------------------------


def _swing(site: Site, stepped: Stepped) -> Outcome:
    """Return the largest rise of the summed power within 1 s; nothing when one card is missing."""
    for device, reason in stepped.left.items():
        return NotMeasured(SWING.id, site.device, f"{device}: {reason}")
    try:
        name, rounds = _summed(stepped)
    except Unmeasurable as error:
        return NotMeasured(SWING.id, site.device, str(error))
    rise = max(
        later - watts for number, (at, watts) in enumerate(rounds)
        for then, later in rounds[number:] if then - at <= TOGETHER_S
    )  # fmt: skip
    return site.measured(SWING, rise, samples=len(rounds), conditions={"reading": name, "cards": len(stepped.cards)})


def _summed(stepped: Stepped) -> tuple[str, list[tuple[float, float]]]:
    """Return the power of all cards over time and the reading that it is; raises Unmeasurable where one lacks it."""
    first, ended = max(stepped.plan.at, stepped.since), stepped.plan.due(stepped.plan.count) - stepped.plan.off_s
    windows = [stepped.window(device, first, ended) for device in stepped.cards]
    name = "power_instant" if all("power_instant" in s for of in windows for s in of.samples) else "power"
    for of in windows:
        of.values(name)
    rounds = zip(*(of.samples for of in windows), strict=False)
    whole = [of_all for of_all in rounds if all(name in sample for sample in of_all)]
    return name, [(amount(of_all[0], "t"), sum(amount(sample, name) for sample in of_all)) for of_all in whole]
