"""PCIe errors of everything but the GPUs and their links: drives, networks, controllers, bridges.

Owns which devices these are, and the comparison of their counters and of the kernel log between the start
and the end of a run. Must not judge.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.cards import cards
from pytest_gpuaccept.probes.kernel import aer
from pytest_gpuaccept.probes.kernel import events as kernel_events
from pytest_gpuaccept.probes.kernel.events import events
from pytest_gpuaccept.probes.kernel.log import KernelLog, read_log, since_start
from pytest_gpuaccept.probes.since import BOOT_ID, Seen, attempt, begun, check_same_boot

UNCORRECTED = Metric(
    "host.pcie_errors.uncorrected", "Uncorrected PCIe errors of other devices", "count", "host", none_seen=True
)
CORRECTED = Metric(
    "host.pcie_errors.corrected", "Corrected PCIe errors of other devices", "count", "host", none_seen=True
)
KINDS = {
    "uncorrected": (UNCORRECTED, kernel_events.UNCORRECTED),
    "corrected": (CORRECTED, kernel_events.CORRECTED),
}
"""Severity -> the metric, and the kind of event in the log."""
PORT = 0x0604
"""PCI class of a port, as of a switch or of the root."""
DATA = (0x01, 0x02, 0x03, 0x12)
"""PCI base classes of what moves data: drives, networks, displays, accelerators; on these an error must be seen."""
NONE_COUNTS = "no PCI device but the GPUs counts errors: enable native AER in the BIOS; a virtual machine shows none"


@dataclass(frozen=True, slots=True)
class Devices:
    """One moment of the other devices: what each counted by severity, and where the log ends."""

    boot: str
    counts: Mapping[str, Mapping[str, int]]
    log: KernelLog | Unmeasurable


def start(site: Site) -> Devices:
    """Read what every other device has counted; raises Unmeasurable where none counts."""
    ours = set(gpu_ends(site))
    read = {a: attempt(partial(aer.counts_of, site, a)) for a in site.world.names(aer.PCI) if a not in ours}
    counts = {address: of for address, of in read.items() if not isinstance(of, Unmeasurable)}
    if not counts:
        raise Unmeasurable(NONE_COUNTS)
    log = attempt(partial(read_log, site))
    return Devices(site.world.read(BOOT_ID), counts, log.forgotten if isinstance(log, KernelLog) else log)


def gpu_ends(site: Site) -> Iterator[str]:
    """Yield the ends of the links of all GPUs; none without a driver, where a GPU is a device like others."""
    listed = attempt(partial(cards, site))
    for own in {} if isinstance(listed, Unmeasurable) else listed.values():
        address = attempt(partial(aer.normal_address, own.bus_id))
        if isinstance(address, str):
            yield from (end for link in aer.links(site, aer.hops(site, address)) for end in link)


def device_errors(site: Site) -> Iterator[Outcome]:
    """Yield the errors of all other devices since the start of the run: of each the larger of counter and log."""
    first, last = begun(site, Devices), start(site)
    check_same_boot(first.boot, last.boot)
    fresh, lacking = since_start(site, first.log)
    said, ours = list(events(fresh)), set(gpu_ends(site))
    log = attempt(partial(read_log, site))
    for severity, (metric, kind) in KINDS.items():
        deaf = dict.fromkeys(why for address in last.counts for why in _unheard(site, address, severity, log))
        logged = Counter(event.where for event in said if event.kind == kind and event.where not in ours)
        seen = _seen(first, last, severity, logged)
        proof = f"the counters of {len(first.counts)} PCI devices were read at both ends of the run, and the kernel log"
        where = {"devices": len(first.counts)}
        reasons = (*seen.lacking, *lacking, *_few(list(deaf)))
        yield Seen(seen.count, reasons, seen.note).outcome(site, metric, proof, where)


def _unheard(site: Site, address: str, severity: str, log: KernelLog | Unmeasurable) -> Sequence[str]:
    """Return why an error of a port, or of a device that moves data, might go unseen.

    What is on no link, being part of the root, is left out, and so is a virtual function, which reports by another.
    """
    above = aer.hops(site, address)
    uevent = attempt(partial(site.world.read, f"{aer.PCI}/{address}/uevent"))
    if isinstance(uevent, Unmeasurable):
        return (f"what {address} is cannot be told: {uevent}",)
    found = re.search(r"^PCI_CLASS=([0-9A-F]{1,6})$", uevent, re.MULTILINE)
    kind = int(found[1], 16) >> 8 if found else 0
    virtual = isinstance(attempt(partial(site.world.read, f"{aer.PCI}/{address}/physfn/uevent")), str)
    if kind != PORT and (virtual or len(above) == 1 or kind >> 8 not in DATA):
        return ()
    return aer.unheard(site, above, severity, log)


def _seen(first: Devices, last: Devices, severity: str, logged: Mapping[str, int]) -> Seen:
    """Count the errors of one severity; a device whose counter is gone or went down proves nothing."""
    grown, missing = dict(logged), list[str]()
    for address, counts in first.counts.items():
        after = last.counts.get(address)
        if after is None or any(after[of] < counts[of] for of in counts):
            missing.append(f"the counters of {address} are gone, or began anew")
        else:
            grown[address] = max(after[severity] - counts[severity], grown.get(address, 0))
    note = ", ".join(f"{address} {count}" for address, count in sorted(grown.items()) if count)
    return Seen(sum(grown.values()), tuple(_few(missing)), note)


def _few(reasons: Sequence[str]) -> list[str]:
    """Return the first reason, and how many there are more."""
    return [f"{reasons[0]} (and {len(reasons) - 1} more)"] if reasons[1:] else list(reasons)


PROBES = (Probe("host.pcie_errors", "final", "host", (UNCORRECTED, CORRECTED), device_errors, before=start),)
