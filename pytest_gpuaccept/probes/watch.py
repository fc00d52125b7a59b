"""What was counted while what ran: every counter of an error, each second, charged to the probes that ran.

Owns which counters are watched, and to whom a count is charged. Limits on the counts are those of the
probes that own the counters; this one says when they came.
"""

import json
import math
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product

from pytest_gpuaccept.children.watch import ALIVE_S, FIELDS, REPLAYS, RETRAINED
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Kind, NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.cards import amount, cards
from pytest_gpuaccept.probes.drives import health as drive_health
from pytest_gpuaccept.probes.drives.drive import Drive, drives_of
from pytest_gpuaccept.probes.kernel import aer
from pytest_gpuaccept.probes.kernel import counts as kernel_counts
from pytest_gpuaccept.probes.kernel import events as kernel_events
from pytest_gpuaccept.probes.kernel.aer import COUNTERS, PCI, normal_address, parse_aer, port_above
from pytest_gpuaccept.probes.kernel.counts import EDAC, EXT4, TAINTED, VMSTAT, damage
from pytest_gpuaccept.probes.kernel.log import KERNEL_CLOCK, LOADED, KernelLog, read_log, since_start
from pytest_gpuaccept.probes.kernel.log import Record as LogRecord
from pytest_gpuaccept.probes.network.ports import ERRORS, NET, interface_of, ports_below
from pytest_gpuaccept.probes.since import Seen, attempt, begun
from pytest_gpuaccept.world import Load, Record

GAP = Metric("host.watch.gap", "Longest time between two looks at the counters", "s", "host")
IDLE = Metric("host.idle.events", "Errors counted while nothing ran", "count", "host", none_seen=True)
BY_PHASE: dict[Kind, Metric] = {
    "gpu": Metric("gpu.watch.events", "Errors seen on the GPU, by what ran", "count", "gpu"),
    "nic": Metric("nic.watch.events", "Errors seen on the network link, by what ran", "count", "nic"),
    "nvme": Metric("nvme.watch.events", "Errors seen on the drive, by what ran", "count", "nvme"),
    "host": Metric("host.watch.events", "Errors seen on the host, by what ran", "count", "host"),
}

BETWEEN = "between probes"
HARMLESS = ("link trained anew",)
"""Counted, and no error: a link that changes its speed for a load is trained anew."""
SILENT_S = ALIVE_S + 5.0
"""Seconds after which a poll that told nothing has stood still."""
LATE_S = 2.0
"""Seconds behind a load in which what it caused may still be counted: ixgbe reads its registers every 2 s."""
CLOCKS_S = 0.5
"""Seconds by which the kernel's clock and ours may drift apart within a run: 20 in a million are usual."""
MINUTE_S = 60.0
SEVERE = ("non-fatal", "fatal")
COUNTED = (kernel_events.CORRECTED, kernel_events.UNCORRECTED, kernel_events.OOM, kernel_events.MEMORY)
"""Events of the log that counters count too."""


@dataclass(frozen=True, slots=True)
class Source:
    """One thing that is watched: whose it is, what it counts, and how its text is read.

    What sources of one `family` count may be the same errors, so they are not added up. `ask` gives the text of
    what is looked at only before and after a probe.
    """

    device: str
    what: str
    counts: Callable[[str], Mapping[str, int]]
    family: str = ""
    ask: Callable[[], str] | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """A growth of one counter between two looks, in s, and the probes that ran in between."""

    since: float
    t: float
    device: str
    what: str
    count: int
    detail: str
    during: tuple[str, ...]
    family: str = ""


@dataclass(slots=True)
class Span:
    """A probe at work, in s; without an end while it is."""

    name: str
    began: float
    ended: float = math.inf


@dataclass(slots=True)
class Watch:
    """The counters of a run as they grew, and what ran meanwhile.

    `boot_s` is when the machine started by the world's clock; the kernel's own times are placed by it where no line
    of ours has told how the two clocks stand.
    """

    site: Site
    sources: Mapping[str, Source]
    load: Load
    log: KernelLog | Unmeasurable = field(default_factory=lambda: Unmeasurable("no kernel log was read at the start"))
    boot_s: float = 0.0
    ran: list[Span] = field(default_factory=list)
    charged: list[Charge] = field(default_factory=list)
    gap: float = 0.0
    told: float = -math.inf
    unread: dict[str, str] = field(default_factory=dict)
    _texts: dict[str, str] = field(default_factory=dict)
    _taken: int = 0
    _written: int = 0
    _last: float = 0.0

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Charge what is counted while the block runs to `name`; look at once before and after it."""
        self.look()
        span = Span(name, self.site.world.clock.monotonic())
        self.ran.append(span)
        try:
            yield
        finally:
            self.look()
            span.ended = self.site.memory[LOADED] = self.site.world.clock.monotonic()

    def look(self) -> Sequence[Charge]:
        """Take what the poll told, then read every file now; return what grew since the last look."""
        known = len(self.charged)
        self._take_rounds()
        now, texts, failed = self.site.world.clock.monotonic(), dict[str, str](), dict[str, str]()
        for name, source in self.sources.items():
            if (source.ask and name not in self.unread) or is_file(name):
                try:
                    texts[name] = source.ask() if source.ask else self._read(name)
                except Unmeasurable as error:
                    failed[name] = str(error)
        self._take(self._last or now, now, texts, failed)
        return self.charged[known:]

    def unwritten(self) -> list[Charge]:
        """Return the charges since the last call."""
        known, self._written = self._written, len(self.charged)
        return self.charged[known:]

    def _read(self, path: str) -> str:
        text = self.site.world.read(path)
        beginning = PICKED.get(path, "")
        return "\n".join(line for line in text.splitlines() if line.startswith(beginning)) if beginning else text

    def _take_rounds(self) -> None:
        rounds = self.load.records
        for record in filter(is_round, rounds[self._taken :]):
            t, late = amount(record, "t"), amount(record, "t") < self._last
            now = {source: text for source, text in record["now"].items() if not (late and is_file(source))}
            self._take(min(amount(record, "since"), t), t, now, record["failed"])
            self.gap = max(self.gap, amount(record, "gap"))
            self.told = t
        self._taken = len(rounds)

    @property
    def standstill(self) -> float:
        """Return the longest time between two looks in s, the time since the poll last told something included."""
        silent = self.site.world.clock.monotonic() - self.told
        return max(self.gap, silent if silent > SILENT_S else 0.0)

    def _take(self, since: float, t: float, now: Mapping[str, str], failed: Mapping[str, str]) -> None:
        """Charge what the texts count more than those before; what cannot be read any more is known to be so."""
        for source, reason in failed.items():
            self.unread.setdefault(source, reason)
        for source, text in now.items():
            before = self._texts.get(source)
            self._texts[source] = text
            if before is not None and before != text and source in self.sources:
                self.charged += self._grown(source, before, text, since, t)
        self._last = max(self._last, t)

    def _grown(self, name: str, before: str, after: str, since: float, t: float) -> Iterator[Charge]:
        source = self.sources[name]
        try:
            old, new = source.counts(before), source.counts(after)
        except Unmeasurable as error:
            self.unread[name] = str(error)
            return
        growth = Counter({kind: count - old[kind] for kind, count in new.items() if kind in old})
        total = growth.pop("TOTAL", None)
        count = sum(growth.values()) if total is None else total
        if count > 0:
            detail = ", ".join(f"{kind} {n}" for kind, n in growth.items() if n > 0 and kind)
            ran = self.running(since, t)
            yield Charge(since, t, source.device, source.what, count, detail, ran, source.family or source.what)

    def running(self, since: float, until: float) -> tuple[str, ...]:
        """Return the probes that ran at some time from `since` to `until` s, or had ended just before all of it."""
        ran = [s.name for s in self.ran if s.began <= until and (s.ended >= since or s.ended + LATE_S >= until)]
        return tuple(dict.fromkeys(ran))


def is_file(source: str) -> bool:
    """Say whether a source is a file, which is also read at the edges of a probe; NVML is asked by the poll alone."""
    return source.startswith("/")


def is_round(record: Record) -> bool:
    """Say whether a record is what the poll tells of a round: three times, and texts by source."""
    times = (record.get(key) for key in ("t", "since", "gap"))
    told = (record.get("now"), record.get("failed"))
    return (
        record.get("kind") == "round"
        and all(isinstance(t, int | float) and math.isfinite(t) for t in times)
        and all(isinstance(of, dict) and all(isinstance(text, str) for text in of.values()) for of in told)
    )


def vmstat(text: str) -> dict[str, int]:
    """Parse the line of /proc/vmstat that is watched; raises Unmeasurable."""
    return {"": kernel_counts.oom_kills(text.strip())}


def plain(text: str) -> dict[str, int]:
    """Parse a file that is one count; raises Unmeasurable."""
    return {"": kernel_counts.count(text, "the file")}


PICKED = {VMSTAT: "oom_kill"}
"""File -> the beginning of the line that matters in it: the others of these change with every look."""


def sources(site: Site) -> dict[str, Source]:
    """Return what can be watched here, by path, or `nvml/UUID/name`, or `health/DRIVE`."""
    found = {VMSTAT: Source("host", "out-of-memory kills", vmstat), TAINTED: Source("host", "damage", damage)}
    for controller in kernel_counts.controllers(site):
        for file, what in ((kernel_counts.CORRECTED, "corrected"), (kernel_counts.UNCORRECTED, "uncorrected")):
            found[f"{EDAC}/{controller}/{file}"] = Source("host", f"{what} memory errors, {controller}", plain)
    for volume in kernel_counts.volumes(site):
        found[f"{EXT4}/{volume}/errors_count"] = Source("host", f"ext4 errors, {volume}", plain)
    for device in site.profile.devices.get("nic", ()):
        found |= _network(replace(site, device=device))
    for device in site.profile.devices.get("nvme", ()):
        found |= _drives(replace(site, device=device))
    return found | _links(site)


def _network(site: Site) -> dict[str, Source]:
    """Return the carrier's changes and the frames with errors of the ports of an interface."""
    ports = attempt(lambda: ports_below(site, interface_of(site)))
    found = {}
    for port in () if isinstance(ports, Unmeasurable) else ports:
        found[f"{NET}/{port}/carrier_changes"] = Source(site.device, f"carrier changes, {port}", plain)
        for total in ERRORS:
            found[f"{NET}/{port}/statistics/{total}"] = Source(site.device, f"{total}, {port}", plain)
    return found


def _drives(site: Site) -> dict[str, Source]:
    """Return the health logs of the NVMe drives behind a mount, which are asked for only before and after a probe."""
    backing = attempt(lambda: drives_of(site))
    drives = () if isinstance(backing, Unmeasurable) else backing.drives
    return {
        f"health/{drive.name}": Source(
            site.device, f"health log, {drive.name}", health_counts, ask=partial(_health, site, drive)
        )
        for drive in drives
        if drive.name.startswith("nvme")
    }  # fmt: skip


def _health(site: Site, drive: Drive) -> str:
    log = drive_health.read(site.world, drive)
    return json.dumps({
        "media errors": log.media_errors, "unsafe shutdowns": log.unsafe_shutdowns,
        **({} if log.throttled is None else {"slowed by heat": log.throttled}),
        **{f"warning bit {bit}": log.critical_warning >> bit & 1 for bit in range(8)},
    })  # fmt: skip


def health_counts(text: str) -> dict[str, int]:
    """Parse what `_health` wrote."""
    return {str(kind): int(count) for kind, count in json.loads(text).items()}


def _links(site: Site) -> dict[str, Source]:
    """Return the counters of both partners of every GPU's link, and NVML's."""
    listed = attempt(lambda: cards(site))
    found: dict[str, Source] = {}
    for device, own in {} if isinstance(listed, Unmeasurable) else listed.items():
        address = attempt(partial(normal_address, own.bus_id))
        if own.handle is None or isinstance(address, Unmeasurable):
            continue
        for number, link in enumerate(aer.links(site, aer.hops(site, address))):
            for partner, (severity, files) in product(link, COUNTERS.items()):
                what, of = f"{severity} PCIe errors", f", link {number + 1}" if number else ""
                seen = Source(device, f"{what} that {_side(number, partner, address)} saw", parse_aer, f"{what}{of}")
                found |= {f"{PCI}/{partner}/{file}": seen for file in files}
        for name in (REPLAYS, *FIELDS):
            found[f"nvml/{own.uuid}/{name}"] = Source(device, f"PCIe {name}, by NVML", plain, _family(name))
    return found


def _side(number: int, partner: str, card: str) -> str:
    """Return in words which end of which link an address is."""
    if number:
        return f"{partner}, further up,"
    if partner == card:
        return "the card"
    return (
        f"function {partner[-1]} of the card" if partner.rpartition(".")[0] == card.rpartition(".")[0] else "the port"
    )


def _family(name: str) -> str:
    """Return what a counter of NVML counts in the words of AER."""
    if name == RETRAINED:
        return HARMLESS[0]
    return f"{'un' if name in SEVERE else ''}corrected PCIe errors"


def start(site: Site) -> Watch:
    """Begin to watch, until the end of the run; raises Unmeasurable when the poll cannot start."""
    found = sources(site)
    uuids = sorted({name.split("/")[1] for name in found if name.startswith("nvml/")})
    files = {path: PICKED.get(path, "") for path in found if path.startswith("/")}
    job = {"files": files, "uuids": uuids, "period_s": float(site.params["period_seconds"])}
    load = site.lasting.enter_context(site.world.start("watch", job))
    watch = site.memory["watch"] = Watch(site, found, load, attempt(lambda: read_log(site)), started(site))
    watch.look()
    return watch


def started(site: Site) -> float:
    """Return when the machine started, by the world's clock in s; raises Unmeasurable when nothing says it."""
    text = site.world.read("/proc/uptime")
    if not re.fullmatch(r"[0-9]{1,10}\.[0-9]{2} [0-9]{1,13}\.[0-9]{2}", text):
        message = f"/proc/uptime says {text[:40]!r}, which is no time"
        raise Unmeasurable(message)
    return site.world.clock.monotonic() - float(text.split()[0])


def idle(site: Site) -> Iterator[Outcome]:
    """Let the machine rest and yield what was counted meanwhile."""
    watch = watching(site)
    seconds = float(site.params["seconds"])
    known = len(watch.charged)
    began = site.world.clock.monotonic()
    watch.look()
    site.world.clock.sleep(seconds)
    watch.look()
    seen = [charge for charge in watch.charged[known:] if charge.t > began and not harmless(charge)]
    unread = [f"{name}: {why}" for name, why in watch.unread.items() if is_file(name) or watch.sources[name].ask]
    lacking = (
        [f"{len(unread)} of {len(watch.sources)} counters cannot be read, the first is {unread[0]}"] if unread else []
    )
    note = "; ".join(f"{charge.device}: {charge.what} {charge.count}" for charge in seen)
    read = len(watch.sources) - len(watch.unread)
    proof = f"{read} counters were read before and after {seconds:g} s of rest"
    count, where = sum(by_phase(seen).values()), {"seconds": seconds, "counters": read}
    yield Seen(count, tuple(lacking), note).outcome(site, IDLE, proof, where)


def watching(site: Site) -> Watch:
    """Return the watch of this run; raises Unmeasurable when there is none."""
    watch = site.memory.get("watch")
    if not isinstance(watch, Watch):
        message = "no counters were watched during this run"
        raise Unmeasurable(message)
    return watch


def harmless(charge: Charge) -> bool:
    """Say whether what was counted is no error."""
    return charge.family in HARMLESS


def watched(site: Site) -> Iterator[Outcome]:
    """Yield what was seen on every device, by what ran, and the longest time in which nobody looked."""
    watch = begun(site, Watch)
    watch.look()
    fresh, _ = since_start(site, watch.log)
    charges = [*watch.charged, *in_log(watch, fresh)]
    site.attach("events by phase", "\n".join(json.dumps(asdict(charge)) for charge in charges))
    site.attach("counters that could not be read", json.dumps(watch.unread, indent=1))
    yield _gap(site, watch)
    for kind, metric in BY_PHASE.items():
        for device in ("host",) if kind == "host" else site.profile.devices.get(kind, ()):
            if any(source.device == device for source in watch.sources.values()):
                own = [charge for charge in charges if charge.device == device and not harmless(charge)]
                counts = by_phase(own)
                yield site.measured(metric, sum(counts.values()), device=device, conditions=counts, note=kinds(own))
            else:
                yield NotMeasured(metric.id, device, "nothing of it is counted here: no link, no port, no health log")


def in_log(watch: Watch, fresh: Iterable[LogRecord]) -> Iterator[Charge]:
    """Yield the events of the kernel log that no counter counts, each charged to what ran when the kernel wrote it."""
    where, began = places(watch.site), watch.site.memory.get(KERNEL_CLOCK, watch.boot_s)
    for event in kernel_events.events(fresh):
        if event.kind not in COUNTED:
            t = event.us / 1e6 + began
            device = device_of(where, event.where)
            ran = watch.running(t - CLOCKS_S, t + CLOCKS_S)
            yield Charge(t, t, device, event.kind, 1, event.text[:LONGEST], ran, event.kind)


def device_of(where: Mapping[str, str], name: str) -> str:
    """Return the device of the profile that the kernel calls so; a partition is its drive, an unknown one the host."""
    address = attempt(lambda: normal_address(name))
    whole = re.sub(r"(?<=[0-9])p[0-9]{1,3}$", "", name)
    return where.get(address if isinstance(address, str) else whole, "host")


LONGEST = 200


def places(site: Site) -> dict[str, str]:
    """Return which device of the profile a PCI address, an interface or a drive is."""
    found: dict[str, str] = {}
    listed = attempt(lambda: cards(site))
    for device, own in {} if isinstance(listed, Unmeasurable) else listed.items():
        address = attempt(partial(normal_address, own.bus_id))
        if isinstance(address, str):
            found |= dict.fromkeys((address, port_above(site, address)), device)
    for device in site.profile.devices.get("nic", ()):
        ports = attempt(partial(_ports, replace(site, device=device)))
        found |= dict.fromkeys(() if isinstance(ports, Unmeasurable) else ports, device)
    for device in site.profile.devices.get("nvme", ()):
        backing = attempt(partial(drives_of, replace(site, device=device)))
        for drive in () if isinstance(backing, Unmeasurable) else backing.drives:
            found |= {drive.name: device, drive.controller.rpartition("/")[2]: device}
    return {name: device for name, device in found.items() if name}


def _ports(site: Site) -> tuple[str, ...]:
    return ports_below(site, interface_of(site))


def _gap(site: Site, watch: Watch) -> Outcome:
    """Return the longest time in which nobody looked; it is not known of a poll that died."""
    try:
        if watch.load.ended:
            watch.load.stop()
    except Unmeasurable as error:
        return NotMeasured(GAP.id, site.device, f"the poll of the counters died: {error}")
    if not watch.standstill:
        return NotMeasured(GAP.id, site.device, "the run was over before anybody looked twice")
    note = f"{len(watch.unread)} of {len(watch.sources)} counters could not be read" if watch.unread else ""
    return site.measured(GAP, round(watch.standstill, 3), conditions={"counters": len(watch.sources)}, note=note)


def by_phase(charges: Iterable[Charge]) -> dict[str, int]:
    """Return the counts by what ran; what several ran for is charged to all of them together.

    Of counters that may have seen the same errors only the one that saw most counts.
    """
    seen: dict[tuple[str, str], Counter[str]] = {}
    for charge in charges:
        ran = " and ".join(charge.during) or BETWEEN
        seen.setdefault((ran, charge.family or charge.what), Counter())[charge.what] += charge.count
    counts = Counter[str]()
    for (ran, _), of in seen.items():
        counts[ran] += max(of.values())
    return dict(counts)


def during(watch: Watch, device: str, family: str) -> str:
    """Return in words what of a family was counted on a device while what ran: `vllm 12, between probes 1`."""
    own = [c for c in watch.charged if c.device == device and (c.family.startswith(family) or c.what == family)]
    return ", ".join(f"{ran} {count}" for ran, count in by_phase(own).items())


def kinds(charges: Iterable[Charge]) -> str:
    """Return in words how often each counter grew."""
    counts = Counter[str]()
    for charge in charges:
        counts[f"{charge.what} ({charge.detail.split()[0]})" if charge.detail else charge.what] += charge.count
    return ", ".join(f"{what}: {count}" for what, count in counts.items())


def worst_minute(watch: Watch, device: str, what: str) -> int:
    """Return the most that any one counter of `what` grew by within a minute on a device.

    Both partners of a link may count the same error, so their counts are not added up.
    """
    most = 0
    for counter in {charge.what for charge in watch.charged if charge.device == device and what in charge.what}:
        window, total = deque[Charge](), 0
        for charge in (c for c in watch.charged if c.device == device and c.what == counter):
            window.append(charge)
            total += charge.count
            while window[0].t <= charge.t - MINUTE_S:
                total -= window.popleft().count
            most = max(most, total)
    return most


PROBES = (
    Probe("host.idle", "idle", "host", (IDLE,), idle, params={"seconds": 60}, load=True),
    Probe(
        "host.watch", "final", "host", (GAP, *BY_PHASE.values()), watched,
        params={"period_seconds": 1}, loads=("watch",), before=start,
    ),
)  # fmt: skip
