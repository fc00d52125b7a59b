"""The GPUs as NVML lists them: which handle is `gpu2`, and what telemetry says of a window of load.

Owns the mapping of device ids to cards (order of the PCI bus, never CUDA's), and the proof that a
load reached its card. Must not judge.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.world import Clock, Load, Record

LEAST_BUSY = 50.0
"""% of utilisation that a loaded card shows at least; matrix products and copies show 90 and more."""
LEAST_SHARE = 0.9
"""Share of the samples of a window that must show the load."""
LEAST_READ = 0.5
"""Share of the samples due that must be there: NVML takes its time on many busy cards, and gaps are checked besides."""
FULL_TIME = 0.95
"""Share of the asked seconds that a load must have run."""
GAP_S = 1.0
"""Seconds without a sample that hide nothing; at a longer period, five of these."""

CLOCK_ROUNDING = 1.02
"""Room above FLOP/clk/SM x SMs x clock for the clock's own sampling."""
LEAST_S = 1e-6
"""Seconds that anything timed takes at least."""
MOST = 1e18
"""Larger than any amount that a load or a sensor states."""
READY_POLL_S, START_IN_S = 0.1, 0.5
"""Seconds between two looks at loads that get ready, and from the last one's readiness to the common start."""
FIRST = " "
"""Sorts before every bus id."""
COMPUTE_MODES = {0: "default", 1: "exclusive", 2: "prohibited", 3: "exclusive"}
"""NVML's compute modes; 1 let one thread of a process in, and is gone from newer drivers."""
AMOUNTS = {"batch": ("t", "tflop", "wrong"), "copy": ("t", "moved", "wrong")}
"""What a timed record states besides its seconds."""


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU as NVML shows it."""

    device: str
    uuid: str
    bus_id: str
    handle: Any


def cards(site: Site) -> dict[str, Card]:
    """Return the cards by device id, in the order of their PCI bus ids; raises Unmeasurable without a driver.

    A card that does not answer keeps its place, and each keeps the id of the first look of the run: when
    one goes, its neighbour does not take its name.
    """
    found = _found(site)
    first: dict[str, Card] = site.memory.setdefault("cards", found)
    answering = {card.uuid: card for card in found.values() if card.handle is not None}
    new = sorted(answering.keys() - {card.uuid for card in first.values()})
    places = {device: card.uuid for device, card in first.items()}
    places |= {f"gpu{len(first) + i}": uuid for i, uuid in enumerate(new)}
    return {
        device: replace(answering[uuid], device=device) if uuid in answering else _gone(first[device])
        for device, uuid in places.items()
    }


def _gone(card: Card) -> Card:
    reason = card.uuid if card.handle is None else f"{card.uuid} at {card.bus_id} was there when the run began"
    return Card(card.device, reason, card.bus_id, None)


def _found(site: Site) -> dict[str, Card]:
    nvml = site.world.nvml()
    found: list[tuple[str, str, Any]] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found.append((nvml.nvmlDeviceGetPciInfo(handle).busId, nvml.nvmlDeviceGetUUID(handle), handle))
        except nvml.NVMLError as error:
            behind = found[-1][0] if found else FIRST
            found.append((f"{behind}?", str(error), None))
    found.sort(key=lambda entry: entry[0])
    return {f"gpu{i}": Card(f"gpu{i}", uuid, bus, handle) for i, (bus, uuid, handle) in enumerate(found)}


def card(site: Site, device: str) -> Card:
    """Return the card of a device id; raises Unmeasurable when it is missing or lost, saying which."""
    found = cards(site)
    if device not in found:
        message = f"the driver shows {len(found)} GPUs, there is no {device}: is it seated, powered and seen by lspci?"
        raise Unmeasurable(message)
    if found[device].handle is None:
        message = f"{device} does not answer ({found[device].uuid}): look for Xid 79 in the kernel log"
        raise Unmeasurable(message)
    return found[device]


def usable(site: Site, device: str) -> Card:
    """Return the card of a device id; raises Unmeasurable, with the remedy, where a load would not measure the card."""
    own, nvml = card(site, device), site.world.nvml()
    try:
        refusal = _refusal(site, own)
    except nvml.NVMLError as error:
        message = f"whether a load can have {device} to itself cannot be read: {error}"
        raise Unmeasurable(message) from None
    if refusal:
        raise Unmeasurable(refusal)
    return own


def _refusal(site: Site, own: Card) -> str:
    nvml, smi = site.world.nvml(), f"nvidia-smi -i {own.bus_id}"
    if mig_mode(nvml, own.handle)[0]:
        return f"MIG is on: loads would measure a slice of {own.device}: {smi} -mig 0, then run again"
    mode = compute_mode(nvml, own.handle)
    if mode == "prohibited":
        return f"the compute mode of {own.device} is prohibited, no load can start: {smi} -c 0, then run again"
    others = nvml.nvmlDeviceGetComputeRunningProcesses(own.handle) if mode == "exclusive" else ()
    pids = ", ".join(str(process.pid) for process in others)
    return f"{own.device} is exclusive and held by {pids}: end it or {smi} -c 0, then run again" if pids else ""


def mig_mode(nvml: Any, handle: Any) -> tuple[bool, str]:  # noqa: ANN401 - the binding is untyped
    """Say whether MIG is on, with a note where the card or the driver has no MIG."""
    try:
        return nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE, ""
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return False, "the card has no MIG"


def compute_mode(nvml: Any, handle: Any) -> str:  # noqa: ANN401 - the binding is untyped
    """Return `default`, `exclusive` or `prohibited`; raises Unmeasurable for a mode that has no name here."""
    mode = nvml.nvmlDeviceGetComputeMode(handle)
    if mode not in COMPUTE_MODES:
        message = f"NVML says compute mode {mode}, which has no name"
        raise Unmeasurable(message)
    return COMPUTE_MODES[mode]


def usable_cards(site: Site) -> tuple[dict[str, Card], dict[str, str]]:
    """Return the ordered cards that can be loaded, and why the others cannot; raises Unmeasurable when none can."""
    found, refused = dict[str, Card](), dict[str, str]()
    for device in site.profile.devices.get("gpu", ()):
        try:
            found[device] = usable(site, device)
        except Unmeasurable as error:
            refused[device] = str(error)
    if not found:
        raise Unmeasurable(next(iter(refused.values()), "the profile has no GPU"))
    return found, refused


@dataclass(frozen=True, slots=True)
class Window:
    """The telemetry of one card between two times of a load."""

    device: str
    samples: Sequence[Record]
    began: float
    ended: float
    period_s: float

    def values(self, name: str) -> list[float]:
        """Return a reading's values; raises Unmeasurable when too many are missing, with NVML's reason."""
        read = [sample for sample in self.samples if name in sample]
        got = [amount(sample, name) for sample in read]
        expected = max(1.0, (self.ended - self.began) / self.period_s - 1)
        if len(got) < LEAST_READ * expected:
            reasons = [sample.get("failed") for sample in self.samples]
            failed = [reason[name] for reason in reasons if isinstance(reason, dict) and name in reason]
            why = failed[-1] if failed else f"{len(got)} samples where {expected:.0f} were due"
            message = f"no {name} of {self.device} in the window: {why}"
            raise Unmeasurable(message)
        self._check_gaps(name, [amount(sample, "t") for sample in read])
        return got

    def _check_gaps(self, name: str, times: Sequence[float]) -> None:
        """Raise Unmeasurable when the samples leave a part of the window unseen, or do not go forward."""
        steps = [later - sooner for sooner, later in pairwise([self.began, *times, self.ended])]
        if min(steps[1:-1], default=1.0) <= 0:
            message = f"the samples of {self.device} do not go forward in time"
            raise Unmeasurable(message)
        if max(steps) > max(GAP_S, 5 * self.period_s):
            message = f"no {name} of {self.device} for {max(steps):.1f} s of the window"
            raise Unmeasurable(message)

    def prove_loaded(self) -> str:
        """Return the proof that the card was busy; raises Unmeasurable when it was not."""
        busy = self.values("utilisation")
        share = sum(1 for value in busy if value >= LEAST_BUSY) / len(busy)
        if share < LEAST_SHARE:
            message = f"the load did not reach {self.device}: busy in {share:.0%} of {len(busy)} samples"
            raise Unmeasurable(message)
        return f"{self.device} busy in {share:.0%} of {len(busy)} samples"


def window(card: Card, samples: Sequence[Record], began: float, ended: float, period_s: float) -> Window:
    """Return the samples of a card between two times, both in s of the world's clock."""
    inside = [s for s in samples if s.get("uuid") == card.uuid and began <= amount(s, "t") <= ended]
    return Window(card.device, inside, began, ended, period_s)


def ran_on(card: Card, records: Sequence[Record]) -> bool:
    """Say whether a load ran on its card and on no other: only then what it wrote is said of this card."""
    return _devices(records) == [card.uuid]


def check_ran_on(card: Card, records: Sequence[Record]) -> None:
    """Raise Unmeasurable, with where it ran, when a load did not run on its card."""
    if not ran_on(card, records):
        where = ", ".join(map(str, _devices(records))) or "nothing"
        message = f"the load of {card.device} ({card.uuid}) ran on {where}: CUDA's order is not NVML's"
        raise Unmeasurable(message)


def _devices(records: Sequence[Record]) -> list[object]:
    return [record.get("uuid") for record in records if record.get("kind") == "device"]


def batches(card: Card, records: Sequence[Record], kind: str) -> list[Record]:
    """Return a load's timed records; raises Unmeasurable when it ran on another card or timed nothing."""
    check_ran_on(card, records)
    timed = [record for record in records if record.get("kind") == kind]
    if not timed or any(amount(record, "seconds") < LEAST_S for record in timed):
        message = f"the load of {card.device} timed {len(timed)} batches, and not all took time"
        raise Unmeasurable(message)
    for record in timed:
        for key in AMOUNTS[kind]:
            amount(record, key)
    return timed


def check_lasted(device: str, timed: Sequence[Record], seconds: float) -> None:
    """Raise Unmeasurable when a load's timed records cover less than it was asked to run, in s."""
    lasted = timed[-1]["t"] + timed[-1]["seconds"] - timed[0]["t"]
    if lasted < FULL_TIME * seconds:
        message = f"the load of {device} was timed for {lasted:.1f} s of {seconds:g} s"
        raise Unmeasurable(message)


def ceiling_tflops(site: Site, kind: str, clock_mhz: float) -> float | None:
    """Return what no product of `kind` can exceed on the ordered card at a sampled clock; None where nobody knows."""
    most = site.profile.card.ceiling(kind, clock_mhz) if site.profile.card else None
    return most * CLOCK_ROUNDING if most else None


def all_ready(loads: Mapping[str, Load], clock: Clock, timeout: float) -> tuple[float, dict[str, str]]:
    """Wait until every load is ready and have them start together; return that time in s, and who will not, and why.

    One that is not ready after `timeout` s is left behind, and ended.
    """
    end = clock.monotonic() + timeout
    waiting = dict(loads)
    while waiting and clock.monotonic() < end:
        waiting = {name: load for name, load in waiting.items() if not (load.ended or _ready(load))}
        if waiting:
            clock.sleep(READY_POLL_S)
    late = f"it was not ready after {timeout:g} s"
    left = dict.fromkeys(waiting, late) | {name: _death(load) for name, load in loads.items() if load.ended}
    for load in waiting.values():
        with suppress(Unmeasurable):
            load.stop()
    at = clock.monotonic() + START_IN_S
    for name, load in loads.items():
        if name not in left:
            load.tell({"at": at})
    return at, left


def _ready(load: Load) -> bool:
    return any(record.get("kind") == "ready" for record in load.records)


def _death(load: Load) -> str:
    try:
        load.stop()
    except Unmeasurable as error:
        return str(error)
    return "it ended before it was ready"


def ended(watch: Load) -> tuple[Sequence[Record], str]:
    """End a load that runs until it is stopped; return its records, and why it had died before, '' when it had not."""
    try:
        return watch.stop(), ""
    except Unmeasurable as error:
        return watch.records, str(error)


def amount(record: Record, key: str) -> float:
    """Return a number of a record; raises Unmeasurable where it is absent, negative or not finite."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        message = f"a record of kind {record.get('kind')!r} says {key} = {value!r}, which is no amount"
        raise Unmeasurable(message)
    return float(value)


def tally(records: Sequence[Record], key: str) -> tuple[float, str]:
    """Return the sum of an amount over the records that can be read, and why one cannot; '' when all can."""
    total, unread = 0.0, ""
    for record in records:
        try:
            total += amount(record, key)
        except Unmeasurable as error:
            unread = unread or str(error)
    return total, unread


def flaws(records: Sequence[Record]) -> list[str]:
    """Return what a load says of each golden result, '' where float64 and a second place confirm it."""
    said = [record.get("flaw") for record in records if record.get("kind") == "golden"]
    return [text if isinstance(text, str) else "nothing says that it is right" for text in said]
