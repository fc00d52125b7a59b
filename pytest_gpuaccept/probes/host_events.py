"""What went wrong on the host during the run: crashes and hardware errors, memory, storage, taint, warnings.

Owns the counters that the kernel keeps of these, and what makes "none seen" a proof: the counter, or the
kernel log, read at both ends of the run. An event that is seen counts whatever is proven. Must not judge.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes import kernel_events
from pytest_gpuaccept.probes.aer import grown
from pytest_gpuaccept.probes.kernel_events import Event, events
from pytest_gpuaccept.probes.kernel_log import KernelLog, new_records, read_log
from pytest_gpuaccept.probes.since import BOOT_ID, Seen, attempt, begun, check_same_boot, count_of

FAULTS = Metric(
    "host.events.faults", "Crashes, hardware errors, lockups and hung tasks", "count", "host", none_seen=True
)
STORAGE = Metric("host.events.storage", "Errors of drives and file systems", "count", "host", none_seen=True)
OOM = Metric("host.events.oom", "Processes that were killed for want of memory", "count", "host", none_seen=True)
NOVEL = Metric("host.events.novel", "Kinds of kernel warnings that nothing here knows", "count", "host", none_seen=True)
CORRECTED = Metric("host.ecc.corrected", "Memory errors that ECC corrected", "count", "host", none_seen=True)
UNCORRECTED = Metric(
    "host.ecc.uncorrected", "Memory errors that ECC could not correct", "count", "host", none_seen=True
)
TAINTED = Metric("host.taint.new", "Signs of damage that the kernel set", "count", "host", none_seen=True)
TAINT = Metric("host.taint.before", "Signs of damage that the kernel had set before", "count", "host", none_seen=True)
CRASHES = Metric("host.crashes", "Crashes that the firmware's store holds", "count", "host", none_seen=True)

EDAC, EXT4, PSTORE = "/sys/devices/system/edac/mc", "/sys/fs/ext4", "/sys/fs/pstore"
TAINT_FILE, VMSTAT = "/proc/sys/kernel/tainted", "/proc/vmstat"
DAMAGE = {4: "machine check", 5: "bad page", 7: "oops", 9: "kernel warning", 14: "soft lockup"}
"""Bit of the kernel's taint -> what set it (Documentation/admin-guide/tainted-kernels); others tell of modules."""
NO_EDAC = (
    "the kernel watches no memory controller (EDAC): load amd64_edac, or skx_edac or the like (modprobe), run again"
)
NAMED = 6

Counts = Mapping[str, int] | Unmeasurable


@dataclass(frozen=True, slots=True)
class Kernel:
    """One moment of the kernel's own counts, each or the reason why not, and of its log."""

    boot: str
    taint: Counts
    oom: Counts
    corrected: Counts
    uncorrected: Counts
    ext4: Counts
    log: KernelLog | Unmeasurable


def start(site: Site) -> Kernel:
    """Read the kernel's counts, and where its log ends."""
    log = attempt(partial(read_log, site))
    read: dict[str, Counts] = {name: attempt(partial(ask, site)) for name, ask in COUNTS.items()}
    return Kernel(site.world.read(BOOT_ID), **read, log=log.forgotten if isinstance(log, KernelLog) else log)


def host_events(site: Site) -> Iterator[Outcome]:
    """Yield what the kernel counted and said since the start of the run."""
    first = begun(site, Kernel)
    last = start(site)
    check_same_boot(first.boot, last.boot)
    fresh, lacking = new_records(first.log, attempt(partial(read_log, site)))
    said = list(events(fresh))
    proof = "the kernel log was read from the first line of this boot, at both ends of the run"
    yield _of(said, kernel_events.FAULTS, lacking).outcome(site, FAULTS, proof, {})
    yield _storage(first, last, said, lacking).outcome(site, STORAGE, proof, {})
    counted = "the kernel's own counter was read at both ends of the run"
    yield _counted("processes killed", first.oom, last.oom, _of(said, (kernel_events.OOM,), ())).outcome(
        site, OOM, counted, {}
    )
    for metric, name in ((CORRECTED, "corrected"), (UNCORRECTED, "uncorrected")):
        yield _counted(f"{name} memory errors", getattr(first, name), getattr(last, name)).outcome(
            site, metric, counted, {}
        )
    yield _counted("taint", first.taint, last.taint).outcome(site, TAINTED, counted, {})
    yield _before(site, first)
    warnings = kernel_events.novel(fresh)
    site.attach("kernel warnings by kind", "\n".join(f"{n:6} {text}" for text, n in warnings.most_common()))
    yield _novel(warnings, lacking).outcome(site, NOVEL, proof, {})
    yield _crashes(site)


def _of(said: Iterable[Event], kinds: Sequence[str], lacking: Sequence[str]) -> Seen:
    """Count the events of some kinds, the first few told."""
    own = [event for event in said if event.kind in kinds]
    told = "; ".join(f"{event.kind}: {event.text.strip()[:100]}" for event in own[:NAMED])
    return Seen(len(own), tuple(lacking), told)


def _counted(what: str, first: Counts, last: Counts, logged: Seen | None = None) -> Seen:
    """Count by how much a counter grew; what the log says besides counts too."""
    said = logged or Seen(0, (), "")
    try:
        growth = {kind: count for kind, count in grown(what, _all(first, last), last).items() if count}
    except Unmeasurable as error:
        return replace(said, lacking=(str(error),))
    note = ", ".join(f"{kind} {count}".strip() for kind, count in growth.items())
    return Seen(max(sum(growth.values()), said.count), (), "; ".join(filter(None, (note, said.note))))


def _all(first: Counts, last: Counts) -> Counts:
    """Return the counts of the start with a 0 for what came since: a bit that was not set, a volume not mounted."""
    if isinstance(first, Unmeasurable) or isinstance(last, Unmeasurable):
        return first
    return dict.fromkeys(last, 0) | dict(first)


def _storage(first: Kernel, last: Kernel, said: Iterable[Event], lacking: Sequence[str]) -> Seen:
    """Count what drives and file systems complained of: in the log, and by ext4's own counter where there is one."""
    logged = _of(said, (kernel_events.STORAGE, kernel_events.FILES), lacking)
    counted = _counted("ext4 errors", first.ext4, last.ext4)
    notes = "; ".join(filter(None, (logged.note, counted.note)))
    return Seen(max(logged.count, counted.count), logged.lacking, notes)


def _novel(warnings: Counter[str], lacking: Sequence[str]) -> Seen:
    told = "; ".join(f"{n} x {text}" for text, n in warnings.most_common(NAMED))
    return Seen(len(warnings), tuple(lacking), told)


def _before(site: Site, first: Kernel) -> Outcome:
    """Return which signs of damage were there when the run began."""
    if isinstance(first.taint, Unmeasurable):
        return NotMeasured(TAINT.id, site.device, str(first.taint))
    proof = f"{TAINT_FILE} was read at the start of the run"
    note = ", ".join(kind for kind, n in first.taint.items() if n)
    return site.measured(TAINT, sum(first.taint.values()), proof=proof, note=note)


def _crashes(site: Site) -> Outcome:
    """Return how many records of a crash the firmware kept from earlier boots."""
    try:
        kept = site.world.names(PSTORE)
    except Unmeasurable as error:
        return NotMeasured(CRASHES.id, site.device, f"{error}: run as root")
    note = f"look at {', '.join(kept[:NAMED])} in {PSTORE}" if kept else ""
    return site.measured(CRASHES, len(kept), proof=f"{PSTORE} was listed", note=note)


# the kernel's counts ---------------------------------------------------------------------------


def taint(site: Site) -> dict[str, int]:
    """Return the signs of damage in the kernel's taint, each 0 or 1."""
    return parse_taint(site.world.read(TAINT_FILE))


def parse_taint(text: str) -> dict[str, int]:
    """Parse the kernel's taint; raises Unmeasurable for what is no number."""
    mask = _count(text, TAINT_FILE)
    return {what: mask >> bit & 1 for bit, what in DAMAGE.items()}


def oom_kills(site: Site) -> dict[str, int]:
    """Return how many processes the kernel has killed for want of memory."""
    match = re.search(r"^oom_kill ([0-9]{1,19})$", site.world.read(VMSTAT), re.MULTILINE)
    if match is None:
        message = "/proc/vmstat does not count what is killed for want of memory (Linux before 4.13)"
        raise Unmeasurable(message)
    return {"": int(match[1])}


def memory_errors(site: Site, file: str) -> dict[str, int]:
    """Return a count of each memory controller; raises Unmeasurable where the kernel watches none."""
    listed = attempt(lambda: site.world.names(EDAC))
    controllers = [] if isinstance(listed, Unmeasurable) else [n for n in listed if re.fullmatch(r"mc[0-9]{1,3}", n)]
    if not controllers:
        raise Unmeasurable(NO_EDAC)
    return {name: _count(site.world.read(f"{EDAC}/{name}/{file}"), f"{EDAC}/{name}/{file}") for name in controllers}


def ext4_errors(site: Site) -> dict[str, int]:
    """Return the count of errors of each ext4 volume; none where there is none."""
    listed = attempt(lambda: site.world.names(EXT4))
    found = {}
    for volume in () if isinstance(listed, Unmeasurable) else listed:
        text = attempt(partial(site.world.read, f"{EXT4}/{volume}/errors_count"))
        if isinstance(text, str):
            found[volume] = _count(text, f"{EXT4}/{volume}/errors_count")
    return found


def _count(text: str, path: str) -> int:
    try:
        return count_of(text)
    except ValueError:
        message = f"{path} says {text[:40]!r}, which is no count"
        raise Unmeasurable(message) from None


COUNTS: dict[str, Callable[[Site], dict[str, int]]] = {
    "taint": taint,
    "oom": oom_kills,
    "corrected": partial(memory_errors, file="ce_count"),
    "uncorrected": partial(memory_errors, file="ue_count"),
    "ext4": ext4_errors,
}

PROBES = (
    Probe(
        "host.events", "final", "host",
        (FAULTS, STORAGE, OOM, CORRECTED, UNCORRECTED, TAINTED, TAINT, NOVEL, CRASHES), host_events, before=start,
    ),
)  # fmt: skip
