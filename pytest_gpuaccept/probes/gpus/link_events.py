"""What went wrong on each GPU during the run: PCIe errors of its link, and Xids.

Owns the comparison of the start of the run with its end, and what makes "none seen" a proof: the channel
that would have shown an event, read at both ends. An event that is seen counts whatever is proven. Must
not judge.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pytest_gpuaccept.children.watch import FIELDS, REPLAYS, RETRAINED, link_counters
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome, show
from pytest_gpuaccept.metric import Inputs, Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.cards import card
from pytest_gpuaccept.probes.kernel import aer, xid
from pytest_gpuaccept.probes.kernel.aer import COUNTERS, grown, logged_errors
from pytest_gpuaccept.probes.kernel.log import KernelLog, Record, read_log, since_start
from pytest_gpuaccept.probes.since import BOOT_ID, Seen, attempt, begun, check_same_boot
from pytest_gpuaccept.probes.watch import HARMLESS, during, watching, worst_minute
from pytest_gpuaccept.profile import Scalar

CORRECTED = Metric("gpu.aer.corrected", "Corrected PCIe errors", "count", "gpu", none_seen=True)
RATE = Metric(
    "gpu.aer.corrected_rate", "Corrected PCIe errors per minute, worst minute", "1/min", "gpu", none_seen=True
)
UNCORRECTED = Metric("gpu.aer.uncorrected", "Uncorrected PCIe errors", "count", "gpu", none_seen=True)
RAN_OUT = Metric("gpu.aer.replay_failed", "PCIe replays that ran out", "count", "gpu", none_seen=True)
BEFORE = Metric("gpu.aer.since_boot", "PCIe errors before the run, since the start", "count", "gpu", none_seen=True)
REPLAYS_RATE = Metric("gpu.pcie.replay_rate", "PCIe replays per minute, by NVML", "1/min", "gpu")
RECOVERIES = Metric("gpu.pcie.recoveries", "Times that the link was trained anew, by NVML", "count", "gpu")
XID = Metric("gpu.xid", "NVIDIA Xid events", "count", "gpu", none_seen=True)

MINUTE_US = 60_000_000
HALF_MINUTE_US = MINUTE_US // 2
NO_OUTLIER = "none"


@dataclass(frozen=True, slots=True)
class Reading:
    """One moment of a GPU's link: counts by (partner, file), NVML's, and the log, each or the reason why not.

    `above` are the addresses from the GPU up to its root port, `links` the ends of each link between them; the log of
    a reading that is kept has no records.
    """

    boot: str
    at_s: float
    uuid: str
    above: tuple[str, ...]
    links: tuple[tuple[str, ...], ...]
    counters: Mapping[tuple[str, str], Mapping[str, int] | Unmeasurable]
    nvml: Mapping[str, int | Unmeasurable]
    log: KernelLog | Unmeasurable

    @property
    def address(self) -> str:
        """The GPU's own address."""
        return self.above[0]

    @property
    def port(self) -> str:
        """The address of the port at the other end, '' where it is hidden."""
        return self.above[1] if len(self.above) > 1 else ""

    @property
    def partners(self) -> tuple[str, ...]:
        """All ends of all links."""
        return tuple(partner for link in self.links for partner in link)


def gpu_start(site: Site) -> Reading:
    """Read a GPU's link at the start of the run; raises Unmeasurable when the GPU has no PCI address."""
    own = card(site, site.device)
    above = aer.hops(site, aer.normal_address(own.bus_id))
    return read_link(site, above, aer.links(site, above), own.uuid)


def read_link(site: Site, above: tuple[str, ...], links: tuple[tuple[str, ...], ...], uuid: str) -> Reading:
    """Read boot id, clock in s, the counters of all ends of the links, and where the kernel log ends."""
    ends = [partner for link in links for partner in link] + ([""] if len(above) == 1 else [])
    places = [(partner, file) for partner in ends for files in COUNTERS.values() for file in files]
    counters = {place: attempt(partial(aer.read_counters, site, *place)) for place in places}
    log = attempt(partial(read_log, site))
    kept = log.forgotten if isinstance(log, KernelLog) else log
    now, boot = site.world.clock.monotonic(), site.world.read(BOOT_ID)
    return Reading(boot, now, uuid, above, links, counters, _nvml(site, uuid), kept)


def _nvml(site: Site, uuid: str) -> dict[str, int | Unmeasurable]:
    """Return NVML's counters of the link by name; what it does not support is no 0."""
    told = link_counters(site.world.nvml(), uuid)
    names = {f"nvml/{uuid}/{name}": name for name in (REPLAYS, *FIELDS)}
    return {names[key]: Unmeasurable(reason) if reason else int(text) for key, (text, reason) in told.items()}


def gpu_events(site: Site) -> Iterator[Outcome]:
    """Yield what the GPU's link and the driver showed since the start of the run."""
    start = begun(site, Reading)
    end = read_link(site, start.above, start.links, start.uuid)
    check_same_boot(start.boot, end.boot)
    fresh, lacking = since_start(site, start.log)
    log = attempt(partial(read_log, site))
    raw = site.attach(f"kernel log since the start {site.device}", "\n".join(record.message for record in fresh))
    minutes = (end.at_s - start.at_s) / 60
    where: dict[str, Scalar] = {"address": start.address, "port": start.port, "minutes": round(minutes, 2), "raw": raw}
    yield from _pcie(site, start, end, fresh, log, where)
    yield from _by_nvml(site, start, end, minutes)
    proof = "the kernel log was read from the first line of this boot, at both ends of the run"
    yield xid.of_gpu(_messages(fresh), start.address, lacking).outcome(site, XID, proof, where)


def _messages(records: Iterable[Record]) -> list[str]:
    return [record.message for record in records]


# PCIe errors -----------------------------------------------------------------------------------


def _pcie(  # noqa: PLR0913, PLR0917 - both ends of a run, and what lies between
    site: Site, start: Reading, end: Reading, fresh: Sequence[Record], log: KernelLog | Unmeasurable,
    where: Mapping[str, Scalar],
) -> Iterator[Outcome]:  # fmt: skip
    proof = f"AER is armed; the counters of {' and '.join(start.partners)} were read at both ends of the run"
    deaf = {severity: aer.deaf(site, start.above, severity, log) for severity in COUNTERS}
    corrected = link_errors(start, end, "corrected", _messages(fresh), deaf["corrected"])
    said = {**where, **_direction(start, end), **_during(site, "corrected PCIe errors")}
    yield corrected.outcome(site, CORRECTED, proof, said)
    if (minutes := (end.at_s - start.at_s) / 60) > 0:
        dense = worst(site, fresh, start.partners)
        yield corrected.outcome(site, RATE, proof, said, max(corrected.count / minutes, float(dense)))
    yield ran_out(start, end, deaf["corrected"]).outcome(site, RAN_OUT, proof, said)
    yield _since_boot(site, start, deaf["corrected"])
    uncorrected = link_errors(start, end, "uncorrected", _messages(fresh), deaf["uncorrected"])
    yield uncorrected.outcome(site, UNCORRECTED, proof, {**where, **_during(site, "uncorrected PCIe errors")})


def link_errors(start: Reading, end: Reading, severity: str, fresh: Sequence[str], unarmed: Sequence[str]) -> Seen:
    """Count errors of one severity: of each link the larger of its ends' counters and of the log's lines."""
    total, lacking, notes = 0, list[str](), list[str]()
    for link in start.links:
        counts = [logged_errors(fresh, severity, link)]
        for partner in (*link, *([""] if not start.port else [])):
            kinds, reasons = growth(start, end, severity, partner)
            lacking += reasons
            counts.append(kinds.pop("TOTAL", 0))
            notes += [f"{partner}: {kind} {count}" for kind, count in kinds.items() if count]
        total += max(counts)
    lacking += () if total else unarmed
    return Seen(total, tuple(lacking), ", ".join(notes) or f"{total} in the kernel log")


def growth(start: Reading, end: Reading, severity: str, partner: str) -> tuple[Counter[str], list[str]]:
    """Return by how much a partner's counters of a severity grew, by kind, and what could not be compared.

    All its counters are looked at: one that went down shows that the others began anew as well.
    """
    kinds, lacking = Counter[str](), list[str]()
    for of, file in ((of, file) for of, files in COUNTERS.items() for file in files):
        try:
            more = grown(f"{file} of {partner}", start.counters[partner, file], end.counters[partner, file])
        except Unmeasurable as error:
            lacking.append(str(error))
        else:
            kinds.update(more if of == severity else {})
    return kinds, lacking


def ran_out(start: Reading, end: Reading, unarmed: Sequence[str]) -> Seen:
    """Count what was sent again until nobody waited any longer, over all ends of all links."""
    parts = {partner: growth(start, end, "corrected", partner) for partner in start.partners}
    counts = {partner: sum(kinds[kind] for kind in aer.RAN_OUT) for partner, (kinds, _) in parts.items()}
    lacking = [reason for _, reasons in parts.values() for reason in reasons] + list(unarmed)
    note = ", ".join(f"{partner}: {count}" for partner, count in counts.items() if count)
    return Seen(sum(counts.values()), tuple(lacking), note)


def _direction(start: Reading, end: Reading) -> dict[str, Scalar]:
    """Return which direction of the card's own link the errors speak of, and what each end counted of them."""
    cards, ports = Counter[str](), Counter[str]()
    for partner in start.links[0]:
        (ports if partner == start.port else cards).update(growth(start, end, "corrected", partner)[0])
    before, after = start.nvml.get(REPLAYS), end.nvml.get(REPLAYS)
    replays = after - before if isinstance(before, int) and isinstance(after, int) else 0
    said = aer.direction(cards, ports, max(0, replays))
    return {"direction": said, "card_counted": cards["TOTAL"], "port_counted": ports["TOTAL"]} if said else {}


def _during(site: Site, what: str) -> dict[str, Scalar]:
    """Return what was counted while what ran, as the watch saw it; nothing where nobody watched."""
    told = attempt(lambda: during(watching(site), site.device, what))
    return {"during": told} if isinstance(told, str) and told else {}


def worst(site: Site, fresh: Sequence[Record], partners: Sequence[str]) -> int:
    """Return the most corrected errors within one minute, by the log and by the watch over the counters.

    A storm under one load must not be thinned out by the minutes in which nothing ran.
    """
    minutes: dict[int, list[str]] = {}
    for record in fresh:
        for half in (record.us // HALF_MINUTE_US, record.us // HALF_MINUTE_US - 1):
            minutes.setdefault(half, []).append(record.message)
    logged = max((logged_errors(messages, "corrected", partners) for messages in minutes.values()), default=0)
    watched = attempt(lambda: worst_minute(watching(site), site.device, "corrected PCIe errors"))
    return max(logged, watched if isinstance(watched, int) else 0)


def _since_boot(site: Site, start: Reading, unarmed: Sequence[str]) -> Outcome:
    """Return what the counters held when the run began: nobody knows what ran then."""
    counts, lacking = Counter[str](), list(unarmed)
    for (partner, _), read in start.counters.items():
        if isinstance(read, Unmeasurable):
            lacking.append(str(read))
        else:
            counts[partner] += read["TOTAL"]
    note = ", ".join(f"{partner}: {count}" for partner, count in counts.items() if count)
    proof = f"AER is armed; the counters of {', '.join(counts)} were read at the start of the run"
    return Seen(max(counts.values(), default=0), tuple(lacking), note).outcome(site, BEFORE, proof, {})


# NVML ------------------------------------------------------------------------------------------


def _by_nvml(site: Site, start: Reading, end: Reading, minutes: float) -> Iterator[Outcome]:
    """Yield the card's own replays per minute, and how often its link was trained anew; GeForce may show neither."""
    for metric, name in ((REPLAYS_RATE, REPLAYS), (RECOVERIES, RETRAINED)):
        count = attempt(partial(_nvml_growth, start, end, name))
        if isinstance(count, Unmeasurable):
            yield NotMeasured(metric.id, site.device, str(count))
        elif metric is RECOVERIES:
            yield site.measured(
                metric, count, conditions=_during(site, HARMLESS[0]), note="a change of speed is one too"
            )
        elif minutes > 0:
            dense = attempt(lambda: worst_minute(watching(site), site.device, f"PCIe {REPLAYS}"))
            most = max(count / minutes, float(dense) if isinstance(dense, int) else 0.0)
            yield site.measured(metric, most, conditions=_during(site, f"PCIe {REPLAYS}, by NVML"))


def _nvml_growth(start: Reading, end: Reading, name: str) -> int:
    return grown(f"NVML's count of {name}", _one(start.nvml[name]), _one(end.nvml[name]))[""]


def _one(count: int | Unmeasurable) -> dict[str, int] | Unmeasurable:
    return {"": count} if isinstance(count, int) else Unmeasurable(f"NVML does not count it: {count}")


# links compared --------------------------------------------------------------------------------


def outlier(inputs: Inputs) -> Measurement:
    """Name the GPUs whose link counts errors while those of the others count none; `none` when there is none.

    Raises Unmeasurable when no link is known to have errors, and of one it is not proven that it has none.
    """
    seen = {gpu: inputs.get(CORRECTED.id, gpu) for gpu in inputs.profile.devices.get("gpu", ())}
    loud = [gpu for gpu in seen if inputs.number(CORRECTED.id, gpu)]
    if not loud and (unproven := [gpu for gpu, measured in seen.items() if not measured.proof]):
        message = f"needs {CORRECTED.id}[{unproven[0]}]: none seen is not proven"
        raise Unmeasurable(message)
    alone = loud if len(loud) < len(seen) else []
    note = ", ".join(f"{gpu} {show(measured.value)}" for gpu, measured in seen.items())
    return Measurement(OUTLIER.id, inputs.device, " ".join(alone) or NO_OUTLIER, "text", "calculated", note=note)


OUTLIER = Metric("gpu.aer.outlier", "GPUs whose link alone has PCIe errors", "text", "host", derive=outlier)

PROBES = (
    Probe(
        "gpu.events", "final", "gpu",
        (CORRECTED, RATE, RAN_OUT, UNCORRECTED, BEFORE, REPLAYS_RATE, RECOVERIES, XID, OUTLIER), gpu_events,
        driver=True, before=gpu_start,
    ),
)  # fmt: skip
