"""What went wrong on the host during the run: crashes and hardware errors, memory, storage, taint, warnings.

Owns the comparison of the start of a run with its end, and what makes "none seen" a proof: the counter, or
the kernel log, read at both ends. An event that is seen counts whatever is proven. Must not judge.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.kernel import counts as kernel_counts
from pytest_gpuaccept.probes.kernel import events as kernel_events
from pytest_gpuaccept.probes.kernel import xid
from pytest_gpuaccept.probes.kernel.aer import grown
from pytest_gpuaccept.probes.kernel.counts import TAINTED, VMSTAT
from pytest_gpuaccept.probes.kernel.events import Event, events
from pytest_gpuaccept.probes.kernel.log import CUT_LOG, KernelLog, read_log, since_start
from pytest_gpuaccept.probes.since import BOOT_ID, Seen, attempt, begun, check_same_boot

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
TAINT = Metric("host.taint.new", "Signs of damage that the kernel set", "count", "host", none_seen=True)
TAINT_BEFORE = Metric(
    "host.taint.before", "Signs of damage that the kernel had set before", "count", "host", none_seen=True
)
BEFORE = Metric("host.events.before", "Signs of damage in this boot before the run", "count", "host", none_seen=True)
CRASHES = Metric("host.crashes", "Crashes of earlier boots that are on record", "count", "host", none_seen=True)

PSTORE, KEPT = "/sys/fs/pstore", "/var/lib/systemd/pstore"
"""Where the kernel shows what an earlier one wrote when it crashed, and where systemd moves that at the next start."""
BACKEND = "/sys/module/pstore/parameters/backend"
NO_BACKEND = ("(null)", "", "N")
STALLS = "/sys/module/rcupdate/parameters/rcu_cpu_stall_suppress"
DETECTORS = {
    "/proc/sys/kernel/watchdog": ("0", "lockups: sysctl -w kernel.watchdog=1"),
    "/proc/sys/kernel/watchdog_thresh": ("0", "lockups: sysctl -w kernel.watchdog_thresh=10"),
    "/proc/sys/kernel/soft_watchdog": ("0", "lockups: sysctl -w kernel.soft_watchdog=1"),
    "/proc/sys/kernel/hung_task_timeout_secs": ("0", "hung tasks: sysctl -w kernel.hung_task_timeout_secs=120"),
    "/proc/sys/kernel/hung_task_warnings": ("0", "more hung tasks: sysctl -w kernel.hung_task_warnings=10"),
    STALLS: ("1", f"stalls of RCU: echo 0 > {STALLS}"),
}
"""File -> what it says where nobody looks for something; for what, and the remedy.

nmi_watchdog is none of them: many machines cannot have it, and a CPU that hangs with its interrupts off is told
by the stalls of RCU.
"""
COLLECTOR = "Correctable Errors collector initialized"
COLLECTED = (
    "the kernel collects corrected memory errors for itself and counts none (RAS CEC): add the kernel option "
    "ras=cec_disable, boot, run again"
)
LOGGED = "the kernel log was read from the first line of this boot, at both ends of the run, and takes lines down"
COUNTED = "the kernel's own counter was read at both ends of the run"
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
    before: Seen | Unmeasurable


COUNTS: dict[str, Callable[[Site], dict[str, int]]] = {
    "taint": lambda site: kernel_counts.damage(site.world.read(TAINTED)),
    "oom": lambda site: {"": kernel_counts.oom_kills(site.world.read(VMSTAT))},
    "corrected": partial(kernel_counts.memory_errors, file=kernel_counts.CORRECTED),
    "uncorrected": partial(kernel_counts.memory_errors, file=kernel_counts.UNCORRECTED),
    "ext4": kernel_counts.ext4_errors,
}


def start(site: Site) -> Kernel:
    """Read the kernel's counts, and where its log ends."""
    log = attempt(partial(read_log, site))
    read: dict[str, Counts] = {name: attempt(partial(ask, site)) for name, ask in COUNTS.items()}
    damage = log if isinstance(log, Unmeasurable) else _damage(log, read["uncorrected"])
    end = log.forgotten if isinstance(log, KernelLog) else log
    return Kernel(site.world.read(BOOT_ID), **read, log=end, before=damage)


def _damage(log: KernelLog, uncorrected: Counts) -> Seen:
    """Count what this boot's log, from its first line on, tells of damage, and the memory errors counted so far."""
    kinds = (*kernel_events.FAULTS, kernel_events.STORAGE, kernel_events.FILES, kernel_events.UNCORRECTED)
    said = [event for event in events(log.records) if event.kind in kinds or _is_grave(event.kind)]
    told = _of(said, [event.kind for event in said], () if log.whole else (log.says(CUT_LOG),))
    lost = 0 if isinstance(uncorrected, Unmeasurable) else sum(uncorrected.values())
    note = "; ".join(filter(None, (told.note, f"uncorrected memory errors {lost}" if lost else "")))
    return Seen(told.count + lost, told.lacking, note)


def _is_grave(kind: str) -> bool:
    """Say whether an event is an Xid that is more than a note."""
    name, _, code = kind.partition(" ")
    return name == kernel_events.XID and (not code or xid.known(int(code)).kind != xid.NOTE)


def host_events(site: Site) -> Iterator[Outcome]:
    """Yield what the kernel counted and said since the start of the run."""
    first, last = begun(site, Kernel), start(site)
    check_same_boot(first.boot, last.boot)
    fresh, lacking = since_start(site, first.log)
    said, warnings = list(events(fresh)), kernel_events.novel(fresh)
    killed = _counted("processes killed", first.oom, last.oom, _of(said, (kernel_events.OOM,), ()))
    lost = _counted("uncorrected memory errors", first.uncorrected, last.uncorrected)
    site.attach("kernel warnings by kind", "\n".join(f"{n:6} {text}" for text, n in warnings.most_common()))
    for metric, seen, proof in (
        (FAULTS, _of(said, kernel_events.FAULTS, (*lacking, *undetected(site))), LOGGED),
        (STORAGE, _storage(first, last, said, lacking), LOGGED), (OOM, killed, COUNTED),
        (CORRECTED, _corrected(site, first, last, said), COUNTED), (UNCORRECTED, lost, COUNTED),
        (TAINT, _counted("taint", first.taint, last.taint), COUNTED), (NOVEL, _novel(warnings, lacking), LOGGED),
    ):  # fmt: skip
        yield seen.outcome(site, metric, proof, {})
    yield _before(site, first)
    if isinstance(first.before, Unmeasurable):
        yield NotMeasured(BEFORE.id, site.device, str(first.before))
    else:
        yield first.before.outcome(site, BEFORE, "the kernel log was read from the first line of this boot", {})


def undetected(site: Site) -> Iterator[str]:
    """Yield what nobody would see, because its detector is switched off, or not part of the kernel."""
    for path, (off, what) in DETECTORS.items():
        said = attempt(partial(site.world.read, path))
        if said == off:
            yield f"the kernel looks for no {what}"
        elif isinstance(said, Unmeasurable):
            yield f"whether the kernel looks for {what.split(':')[0]} cannot be read ({said}): run a kernel that does"


def _of(said: Iterable[Event], kinds: Sequence[str], lacking: Sequence[str]) -> Seen:
    """Count the events of some kinds, the first few told."""
    own = [event for event in said if event.kind in kinds]
    told = "; ".join(f"{event.kind}: {event.text.strip()[:100]}" for event in own[:NAMED])
    return Seen(len(own), tuple(lacking), told)


def _counted(what: str, first: Counts, last: Counts, logged: Seen | None = None) -> Seen:
    """Count by how much a counter grew; what the log says besides counts too."""
    said = logged or Seen(0, (), "")
    try:
        growth = {kind: count for kind, count in grown(what, first, last).items() if count}
    except Unmeasurable as error:
        return replace(said, lacking=(str(error),))
    note = ", ".join(f"{kind} {count}".strip() for kind, count in growth.items())
    return Seen(max(sum(growth.values()), said.count), (), "; ".join(filter(None, (note, said.note))))


def _storage(first: Kernel, last: Kernel, said: Iterable[Event], lacking: Sequence[str]) -> Seen:
    """Count what drives and file systems complained of: in the log, and by ext4's own counter where there is one.

    A volume that was mounted meanwhile brings errors of its past, and one that is not there any more tells nothing.
    """
    logged = _of(said, (kernel_events.STORAGE, kernel_events.FILES), lacking)
    if isinstance(first.ext4, Unmeasurable) or isinstance(last.ext4, Unmeasurable):
        return logged
    before, after = (
        {volume: of[volume] for volume in first.ext4.keys() & last.ext4.keys()} for of in (first.ext4, last.ext4)
    )
    counted = _counted("ext4 errors", before, after)
    notes = "; ".join(filter(None, (logged.note, counted.note)))
    return Seen(max(logged.count, counted.count), (*logged.lacking, *counted.lacking), notes)


def _corrected(site: Site, first: Kernel, last: Kernel, said: Iterable[Event]) -> Seen:
    """Count the corrected memory errors; where the kernel collects them for itself, none counted is none proven."""
    logged = _of(said, (kernel_events.MEMORY, kernel_events.MENDED), ())
    seen = _counted("corrected memory errors", first.corrected, last.corrected, logged)
    log = attempt(partial(read_log, site))
    collects = isinstance(log, KernelLog) and any(COLLECTOR in record.message for record in log.records)
    options = attempt(partial(site.world.read, "/proc/cmdline"))
    return replace(seen, lacking=(*seen.lacking, COLLECTED)) if collects and "cec_disable" not in str(options) else seen


def _novel(warnings: Counter[str], lacking: Sequence[str]) -> Seen:
    told = "; ".join(f"{n} x {text}" for text, n in warnings.most_common(NAMED))
    return Seen(len(warnings), tuple(lacking), told)


def _before(site: Site, first: Kernel) -> Outcome:
    """Return which signs of damage were there when the run began."""
    if isinstance(first.taint, Unmeasurable):
        return NotMeasured(TAINT_BEFORE.id, site.device, str(first.taint))
    proof = f"{TAINTED} was read at the start of the run"
    note = ", ".join(kind for kind, n in first.taint.items() if n)
    return site.measured(TAINT_BEFORE, sum(first.taint.values()), proof=proof, note=note)


def crashes(site: Site) -> Iterator[Outcome]:
    """Yield how many records of crashes are kept from earlier boots, where there is a place to keep one."""
    try:
        backend, kept = site.world.read(BACKEND), site.world.names(PSTORE)
    except Unmeasurable as error:
        message = f"{error}: run as root, with pstore in the kernel"
        raise Unmeasurable(message) from None
    if backend in NO_BACKEND:
        message = "the kernel has no place to keep a crash (pstore has no backend): load efi_pstore or ramoops"
        raise Unmeasurable(message)
    kept += kernel_counts.listed(site, KEPT)
    note = f"look at {', '.join(kept[:NAMED])} in {PSTORE} and {KEPT}" if kept else ""
    yield site.measured(CRASHES, len(kept), proof=f"{PSTORE} ({backend}) and {KEPT} were listed", note=note)


PROBES = (
    Probe(
        "host.events", "final", "host",
        (FAULTS, STORAGE, OOM, CORRECTED, UNCORRECTED, TAINT, TAINT_BEFORE, BEFORE, NOVEL), host_events, before=start,
    ),
    Probe("host.crashes", "final", "host", (CRASHES,), crashes),
)  # fmt: skip
