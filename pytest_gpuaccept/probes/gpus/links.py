"""The PCIe link of a GPU while it is used: every hop from the card up to the root port, and NVML.

Owns the walk up the tree and how samples of a link become its worst state. Must not judge: the order is
compared with what is measured here, never NVML's own maximum, which an old slot lowers too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import Card, Window, batches, check_lasted, usable, window
from pytest_gpuaccept.probes.gpus.together import keep
from pytest_gpuaccept.probes.kernel import aer
from pytest_gpuaccept.probes.kernel.aer import PCI, normal_address
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Record

LINKS = (
    Metric("gpu.pcie.gen", "PCIe generation under load", "gen", "gpu"),
    Metric("gpu.pcie.width", "PCIe width under load", "lanes", "gpu"),
    Metric("gpu.pcie.idle_gen", "PCIe generation at idle", "gen", "gpu"),
)
SETTLE_S = 0.5
"""Seconds of a link's load that are not looked at: it rises from Gen1 meanwhile."""
GRACE_S = 300.0
"""Seconds that a load may take besides: torch from a cold disk, a CUDA context."""
LINK = ("gen", "width")
"""What a sample says of NVML's link and, in this order, of each hop."""
NVML = "NVML"
ALONE = "no port above the GPU can be seen, as in a virtual machine: {}, and nothing of the links above"


def links(site: Site) -> Iterator[Outcome]:
    """Sample all hops each 0.1 s while pinned copies keep the link busy; yield the worst seen of any.

    Generation: every sample at one value, or the lowest that two samples in a row or 1 % of all show.
    """
    own = usable(site, site.device)
    seconds, period = float(site.params["seconds"]), float(site.params["period_s"])
    yield _idle_generation(site, own)
    above = hops(site, own)
    job = {"uuid": own.uuid, "kinds": ["h2d"], "samples": 8, "sample_s": seconds / 8}
    watched = {"uuids": [own.uuid], "period_s": period, "links": {own.uuid: folders(above)}}
    with site.world.start("telemetry", watched) as watch:
        with site.world.start("copies", job) as load:
            try:
                records = load.finish(timeout=seconds + GRACE_S)
            finally:
                keep(site, "gpu.links", {"telemetry": watch.records, site.device: load.records})
        samples = watch.stop()
    timed = batches(own, records, "copy")
    check_lasted(site.device, timed, seconds)
    began, ended = timed[0]["t"] + SETTLE_S, timed[-1]["t"] + timed[-1]["seconds"]
    seen = by_hop(_while_copying(window(own, samples, began, ended, period), timed), above)
    moved = sum(record["moved"] for record in timed) / 1e9
    proof = f"{len(seen.samples)} samples were taken while copies ran, {moved:.0f} GB in all"
    yield from _worst_of_all(site, seen, above, proof)


def _while_copying(seen: Window, timed: Sequence[Record]) -> Window:
    """Return the samples that were taken while a copy ran: the copy engines do not count as utilisation."""
    spans = [(record["t"], record["t"] + record["seconds"]) for record in timed]
    inside = [sample for sample in seen.samples if any(began <= sample["t"] <= ended for began, ended in spans)]
    return replace(seen, samples=inside)


def _idle_generation(site: Site, own: Card) -> Outcome:
    nvml = site.world.nvml()
    try:
        return site.measured(LINKS[2], int(nvml.nvmlDeviceGetCurrPcieLinkGeneration(own.handle)))
    except nvml.NVMLError as error:
        return NotMeasured(LINKS[2].id, site.device, str(error))


def hops(site: Site, own: Card) -> tuple[str, ...]:
    """Return the PCI addresses from the GPU up to its root port; the GPU's alone where its ports are hidden."""
    return aer.hops(site, normal_address(own.bus_id))


def folders(above: Sequence[str]) -> list[str]:
    """Return the sysfs folders of PCI addresses."""
    return [f"{PCI}/{address}" for address in above]


def by_hop(seen: Window, above: Sequence[str]) -> Window:
    """Return a window in which generation and width of each hop are readings: `gen 0000:00:01.1`."""
    return replace(seen, samples=[_split(sample, above) for sample in seen.samples])


def _split(sample: Record, above: Sequence[str]) -> Record:
    read, failed = sample.get("hops"), sample.get("failed")
    told = read if isinstance(read, list) and len(read) == len(above) else [None] * len(above)
    reasons = dict(failed) if isinstance(failed, dict) else {}
    split = dict(sample)
    for number, (address, hop) in enumerate(zip(above, told, strict=True)):
        if isinstance(hop, list) and len(hop) == len(LINK):
            split |= {f"{name} {address}": value for name, value in zip(LINK, hop, strict=True)}
        else:
            reason = reasons.get(f"hop {number}", f"the sample holds no hop {address}")
            reasons |= {f"{name} {address}": reason for name in LINK}
    return {**split, "failed": reasons}


def places(seen: Window, above: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return where the link was read, each with the suffix of its readings' names, and a note where hops are hidden.

    Raises Unmeasurable when a hop that can be seen cannot be read.
    """
    if len(above) > 1:
        return {NVML: "", **{address: f" {address}" for address in above}}, ""
    (own,) = above
    try:
        seen.values(f"gen {own}")
    except Unmeasurable:
        return {NVML: ""}, ALONE.format(NVML)
    return {NVML: "", own: f" {own}"}, ALONE.format(f"{NVML} and {own}")


def _worst_of_all(site: Site, seen: Window, above: Sequence[str], proof: str) -> Iterator[Outcome]:
    read, hidden = places(seen, above)
    for metric, name, lowest in ((LINKS[0], "gen", worst), (LINKS[1], "width", min)):
        values = {place: seen.values(name + suffix) for place, suffix in read.items()}
        found = {place: lowest(of_place) for place, of_place in values.items()}
        place = min(found, key=lambda where: found[where])
        conditions = dict[str, Scalar](
            proof_of_load=proof, hops=", ".join(above), transitions=max(map(transitions, values.values())),
            worst_hop=place if max(found.values()) > found[place] else "all alike",
        )  # fmt: skip
        note = "; ".join(filter(None, (spread(values[place]), hidden)))
        yield site.measured(metric, int(found[place]), samples=len(values[place]), conditions=conditions, note=note)


def worst(values: Sequence[float]) -> float:
    """Return the lowest value seen twice in a row or in more than 1 % of the samples, else the usual one."""
    usual = median(values)
    low = [value < usual for value in values]
    twice = any(a and b for a, b in pairwise(low))
    return min(values) if twice or sum(low) > 0.01 * len(values) else usual


def transitions(values: Sequence[float]) -> int:
    """Return how often a value changed from one sample to the next."""
    return sum(a != b for a, b in pairwise(values))


def spread(values: Sequence[float]) -> str:
    """Write how often each value was seen."""
    counts: Mapping[float, int] = {value: values.count(value) for value in sorted(set(values))}
    return ", ".join(f"{value:g} in {n} of {len(values)} samples" for value, n in counts.items())
