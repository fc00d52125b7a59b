"""What went wrong during the run: PCIe errors and Xids of each GPU, lost network links.

Owns the parsers of AER counters, of the kernel log and of the routing table, and what makes "none
seen" a proof: the channel that would have shown an event, read at the start and at the end of the
run. An event that is seen counts whatever is proven. Must not judge.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Interval, NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.cards import card
from pytest_gpuaccept.probes.host import kernel_blindfolds

CORRECTED = Metric("gpu.aer.corrected", "Corrected PCIe errors", "count", "gpu", none_seen=True)
RATE = Metric("gpu.aer.corrected_rate", "Corrected PCIe errors per minute", "1/min", "gpu", none_seen=True)
UNCORRECTED = Metric("gpu.aer.uncorrected", "Uncorrected PCIe errors", "count", "gpu", none_seen=True)
XID = Metric("gpu.xid", "NVIDIA Xid events", "count", "gpu", none_seen=True)
FLAPS = Metric("nic.flaps", "Link went down", "count", "nic", none_seen=True)

PCI = "/sys/bus/pci/devices"
NET = "/sys/class/net"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
COUNTERS = {"corrected": ("aer_dev_correctable",), "uncorrected": ("aer_dev_nonfatal", "aer_dev_fatal")}
"""Severity -> the counter files of a link partner that add up to it."""
JOURNAL = (
    "journalctl", "--boot", "--all", "--quiet", "--no-pager", "--output=json",
    "_TRANSPORT=kernel", "+", "_TRANSPORT=driver",
)  # fmt: skip
"""The kernel's records of this boot, and the journal's own, which tell of kernel records that it lost."""
JOURNAL_S = 120
FALLEN_OFF_THE_BUS = 79

NO_LOG = "the kernel log cannot be read: add this user to the group adm or systemd-journal and log in again"
CUT_LOG = "the kernel log lacks the first lines of this boot: raise SystemMaxUse in journald.conf, boot, run again"
UNARMED = "the boot log does not show that the kernel controls AER (_OSC): enable native AER in the BIOS"
REBOOTED = "the machine was started anew during the run, its counters and log began again: find out why, run again"
NO_PORT = "no port above the GPU can be seen: a virtual machine hides it, run on the host"

BUS = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}"
ADDRESS = rf"{BUS}\.[0-7]"
AER_LINES = (
    re.compile(
        rf"({ADDRESS}): (?:AER: )?(?:Multiple )?(Correct|Uncorrect)(?:ed|able)(?: \((?:Non-)?Fatal\))? "
        rf"error (?:message )?received(?::| from) (?:id=([0-9a-fA-F]{{4}})|({ADDRESS}))"
    ),
    re.compile(rf"({ADDRESS}): (?:AER: )?PCIe Bus Error: severity=(Correct|Uncorrect)(?:ed|able)()()"),
)
"""Header and detail line of an error, in the words of kernels 4.x, 5.x and 6.8 on."""
XID_LINE = re.compile(rf"NVRM: Xid \((?:PCI:)?({BUS})(?:\.[0-7])?\): ([0-9]{{1,5}})\b")
FALLEN_LINE = re.compile(rf"NVRM: (?:(?!NVRM: ).){{0,200}}?({BUS}).{{0,200}}?fallen off the bus", re.DOTALL)
LOST_RECORDS = re.compile(r"Missed \d+ kernel messages")

HALF_MINUTE_US = 30_000_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KernelLog:
    """The kernel log of this boot as (us since boot, message); `whole` when it begins with the boot."""

    records: tuple[tuple[int, str], ...]
    whole: bool

    @property
    def end(self) -> int:
        """Time of the last record in us since boot; what comes later is new."""
        return max(us for us, _ in self.records)

    def since(self, mark: int) -> list[str]:
        """Return the messages later than `mark` us."""
        return [message for us, message in self.records if us > mark]


@dataclass(frozen=True, slots=True)
class Reading:
    """One moment of a GPU's link: counts by (partner, file) and the log, each or the reason why not."""

    boot: str
    at_s: float
    address: str
    port: str
    counters: Mapping[tuple[str, str], Mapping[str, int] | Unmeasurable]
    log: KernelLog | Unmeasurable


@dataclass(frozen=True, slots=True)
class Carrier:
    """One moment of a network link."""

    boot: str
    interface: str
    changes: int


@dataclass(frozen=True, slots=True)
class Seen:
    """Events counted over the run, and what is missing for the count to be the whole truth."""

    count: int
    lacking: tuple[str, ...]
    note: str

    def outcome(
        self, site: Site, metric: Metric, proof: str, conditions: Mapping[str, str | float], rate: float | None = None
    ) -> Outcome:
        """Return the count, or its `rate`: an absence for an unproven none, "at least" for an unproven count."""
        missing = "; ".join(dict.fromkeys(self.lacking))
        if missing and not self.count:
            return NotMeasured(metric.id, site.device, f"none seen proves nothing: {missing}")
        value = self.count if rate is None else rate
        if missing:
            note = f"{self.note}; at least, for {missing}"
            return site.measured(metric, Interval(value, None), conditions=conditions, note=note)
        return site.measured(metric, value, proof=proof, conditions=conditions, note=self.note)


def gpu_start(site: Site) -> Reading:
    """Read a GPU's link at the start of the run; raises Unmeasurable when the GPU has no PCI address."""
    address = normal_address(card(site, site.device).bus_id)
    return read_link(site, address, port_above(site, address))


def gpu_events(site: Site) -> Iterator[Outcome]:
    """Yield what the GPU's link and the driver showed since the start of the run."""
    start = begun(site, Reading)
    end = read_link(site, start.address, start.port)
    check_same_boot(start.boot, end.boot)
    fresh, lacking = new_messages(start.log, end.log)
    raw = site.attach(f"kernel log since the start {site.device}", "\n".join(fresh))
    minutes = (end.at_s - start.at_s) / 60
    where: dict[str, str | float] = {
        "address": start.address,
        "port": start.port,
        "minutes": round(minutes, 2),
        "raw": raw,
    }
    unarmed = arming(site, end.log)
    proof = f"AER is armed; the counters of {start.address} and {start.port} were read at both ends of the run"
    corrected = link_errors(start, end, "corrected", fresh, unarmed)
    yield corrected.outcome(site, CORRECTED, proof, where)
    if minutes > 0:
        dense = worst_minute(start.log, end.log, "corrected", (start.address, start.port))
        yield corrected.outcome(site, RATE, proof, where, max(corrected.count / minutes, float(dense)))
    yield link_errors(start, end, "uncorrected", fresh, unarmed).outcome(site, UNCORRECTED, proof, where)
    proof = "the kernel log was read from the first line of this boot, at both ends of the run"
    yield xid_events(fresh, start.address, lacking).outcome(site, XID, proof, where)


def begun(site: Site, kind: type[T]) -> T:
    """Return what was read at the start of the run; raises Unmeasurable when it could not be."""
    if isinstance(site.before, Unmeasurable):
        raise site.before
    if not isinstance(site.before, kind):
        message = "no reading from the start of the run"
        raise Unmeasurable(message)
    return site.before


def check_same_boot(start: str, end: str) -> None:
    """Raise Unmeasurable when the machine was started anew during the run."""
    if start != end:
        raise Unmeasurable(REBOOTED)


def read_link(site: Site, address: str, port: str) -> Reading:
    """Read boot id, clock in s, the counters of both link partners and the kernel log."""
    boot = site.world.read(BOOT_ID)
    places = [(partner, file) for partner in (address, port) for files in COUNTERS.values() for file in files]
    counters = {place: attempt(partial(read_counters, site, *place)) for place in places}
    return Reading(boot, site.world.clock.monotonic(), address, port, counters, attempt(lambda: read_log(site, boot)))


def attempt(read: Callable[[], T]) -> T | Unmeasurable:
    """Return what `read` returns, or the Unmeasurable that it raised."""
    try:
        return read()
    except Unmeasurable as error:
        return error


def port_above(site: Site, address: str) -> str:
    """Return the PCI address of the port at the other end of a GPU's link, '' when there is none to be seen.

    A PCI device's folder lies in that of its port, and `..` behind the link in /sys leads there.
    """
    uevent = attempt(lambda: site.world.read(f"{PCI}/{address}/../uevent"))
    match = re.search(rf"^PCI_SLOT_NAME=({ADDRESS})$", uevent, re.MULTILINE) if isinstance(uevent, str) else None
    return match[1] if match else ""


def read_counters(site: Site, partner: str, file: str) -> dict[str, int]:
    """Read one AER counter file of a link partner."""
    if not partner:
        raise Unmeasurable(NO_PORT)
    text = attempt(lambda: site.world.read(f"{PCI}/{partner}/{file}"))
    if isinstance(text, Unmeasurable):
        message = f"no AER counters of {partner} can be read: enable native AER in the BIOS, boot, run again"
        raise Unmeasurable(message)
    return parse_aer(text)


def parse_aer(text: str) -> dict[str, int]:
    """Parse an AER counter file to counts by kind, the sum of messages as `TOTAL`; raises Unmeasurable."""
    found = [re.fullmatch(r"(\S.{0,60}?) ([0-9]{1,19})", line.strip()) for line in text.splitlines()]
    counts = {match[1]: int(match[2]) for match in found if match}
    totals = [name for name in counts if name.startswith("TOTAL_ERR_")]
    if len(counts) != len(found) or len(totals) != 1:
        message = f"{text[:60]!r} is no AER counter"
        raise Unmeasurable(message)
    return {"TOTAL" if name in totals else name: count for name, count in counts.items()}


def link_errors(start: Reading, end: Reading, severity: str, fresh: Iterable[str], unarmed: Sequence[str]) -> Seen:
    """Count errors of one severity: the larger of both partners' counters and of the log's lines."""
    counts, lacking, notes = [logged_errors(fresh, severity, (start.address, start.port))], list[str](), list[str]()
    for partner in (start.address, start.port):
        kinds = Counter[str]()
        for file in COUNTERS[severity]:
            try:
                kinds.update(grown(f"{file} of {partner}", start.counters[partner, file], end.counters[partner, file]))
            except Unmeasurable as error:
                lacking.append(str(error))
        counts.append(kinds.pop("TOTAL", 0))
        notes += [f"{partner}: {kind} {count}" for kind, count in kinds.items() if count]
    lacking += () if any(counts) else unarmed
    return Seen(max(counts), tuple(lacking), ", ".join(notes) or f"{counts[0]} in the kernel log")


def grown(
    what: str, before: Mapping[str, int] | Unmeasurable, after: Mapping[str, int] | Unmeasurable
) -> dict[str, int]:
    """Return by how much each count grew; raises Unmeasurable when one was not read or went down."""
    if isinstance(before, Unmeasurable):
        raise before
    if isinstance(after, Unmeasurable):
        raise after
    growth = {kind: after.get(kind, -1) - count for kind, count in before.items()}
    if min(growth.values()) < 0:
        message = f"{what} went down: the device was reset during the run"
        raise Unmeasurable(message)
    return growth


def read_log(site: Site, boot: str) -> KernelLog:
    """Read the kernel log of this boot; raises Unmeasurable when it shows nothing.

    journalctl prints nothing and ends with 0 where it may not look, so an empty log is none.
    """
    done = site.world.command(JOURNAL, timeout=JOURNAL_S)
    if done.status != 0:
        message = f"journalctl ended with status {done.status}: {done.stderr.strip()[:200]}"
        raise Unmeasurable(message)
    return parse_journal(done.stdout, boot)


def parse_journal(text: str, boot: str) -> KernelLog:
    """Parse the journal's JSON lines; raises Unmeasurable for what is none and when no record is of this boot."""
    own = boot.replace("-", "")
    entries = [parse_entry(line) for line in text.split("\n") if line.strip()]
    records = tuple((us, message) for of, us, message in entries if of == own)
    if not records:
        raise Unmeasurable(NO_LOG)
    return KernelLog(records, whole=any(message.startswith("Linux version ") for _, message in records))


def parse_entry(line: str) -> tuple[str, int, str]:
    """Parse one record of the journal to boot id, us since boot and message."""
    try:
        entry = json.loads(line)
        boot, us = entry["_BOOT_ID"], entry["__MONOTONIC_TIMESTAMP"]
        return str(boot), count_of(us), message_text(entry.get("MESSAGE"))
    except (ValueError, KeyError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        message = f"journalctl printed what is no record ({type(error).__name__}): {line[:80]!r}"
        raise Unmeasurable(message) from None


def count_of(text: str) -> int:
    """Parse a count; raises ValueError for anything but its digits."""
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise ValueError(text)
    return int(text)


def message_text(message: object) -> str:
    """Return a record's message: text, the bytes of what is not UTF-8, or several of these; '' for null."""
    if isinstance(message, list):
        if message and all(isinstance(part, int) for part in message):
            return bytes(message).decode(errors="replace")
        return "\n".join(message_text(part) for part in message)
    return message if isinstance(message, str) else ""


def new_messages(start: KernelLog | Unmeasurable, end: KernelLog | Unmeasurable) -> tuple[list[str], tuple[str, ...]]:
    """Return the messages since the start of the run, and what is missing for them to be all."""
    if isinstance(start, Unmeasurable) or isinstance(end, Unmeasurable):
        return [], tuple(str(log) for log in (start, end) if isinstance(log, Unmeasurable))
    fresh = end.since(start.end)
    cut = () if start.whole and end.whole else (CUT_LOG,)
    return fresh, (*cut, *(f"the journal says {message!r}" for message in fresh if LOST_RECORDS.search(message)))


def worst_minute(
    start: KernelLog | Unmeasurable, end: KernelLog | Unmeasurable, severity: str, partners: Sequence[str]
) -> int:
    """Return the most errors that the log ascribes to the partners within one minute since the start of the run.

    A storm under one load must not be thinned out by the minutes in which nothing ran.
    """
    if isinstance(start, Unmeasurable) or isinstance(end, Unmeasurable):
        return 0
    minutes: dict[int, list[str]] = {}
    for us, message in end.records:
        if us > start.end:
            for half in (us // HALF_MINUTE_US, us // HALF_MINUTE_US - 1):
                minutes.setdefault(half, []).append(message)
    return max((logged_errors(messages, severity, partners) for messages in minutes.values()), default=0)


def arming(site: Site, log: KernelLog | Unmeasurable) -> tuple[str, ...]:
    """Return why a PCIe error might go unseen, nothing when the kernel is proven to listen."""
    if isinstance(log, Unmeasurable):
        return (str(log),)
    options = attempt(lambda: kernel_blindfolds(site))
    if isinstance(options, Unmeasurable):
        return (str(options),)
    if "noaer" in options:
        return (f"the kernel option {options} hides PCIe errors: remove it, boot, run again",)
    control = [message for _, message in log.records if "_OSC: OS now controls" in message]
    retained = any("_OSC: platform retains control" in message for _, message in log.records)
    if not control or retained or not all(re.search(r"[\[ ]AER\b", message) for message in control):
        return (UNARMED if log.whole else CUT_LOG,)
    return ()


def logged_errors(messages: Iterable[str], severity: str, partners: Iterable[str]) -> int:
    """Return how many errors of a severity the log's headers, or its details, ascribe to one of the partners."""
    seen = Counter[tuple[int, str]]()
    for message in messages:
        for kind, pattern in enumerate(AER_LINES):
            for reporter, word, requester, source in pattern.findall(message):
                whose = source or (requester_address(reporter, requester) if requester else reporter)
                if severity.startswith(word.lower()):
                    seen[kind, normal_address(whose)] += 1
    return max((count for (_, whose), count in seen.items() if whose in partners), default=0)


def requester_address(reporter: str, requester: str) -> str:
    """Return the address behind a 4-digit requester id (bus, device, function) in the reporter's domain."""
    number = int(requester, 16)
    return f"{reporter.split(':', maxsplit=1)[0]}:{number >> 8:02x}:{number >> 3 & 31:02x}.{number & 7}"


def normal_address(text: str) -> str:
    """Return a PCI address as sysfs writes it: NVML's 00000000:C1:00.0 is 0000:c1:00.0; raises Unmeasurable."""
    if not re.fullmatch(ADDRESS, text):
        message = f"{text[:40]!r} is no PCI address"
        raise Unmeasurable(message)
    domain, rest = text.lower().split(":", maxsplit=1)
    return f"{int(domain, 16):04x}:{rest}"


def xid_events(messages: Iterable[str], address: str, lacking: Sequence[str]) -> Seen:
    """Count the Xids of the GPU at `address`; a fall off the bus counts though it may come without the word."""
    codes, fallen, strays = list[int](), False, list[str]()
    for message in messages:
        xids, falls = XID_LINE.findall(message), FALLEN_LINE.findall(message)
        codes += [int(code) for bus, code in xids if same_slot(bus, address)]
        fallen |= any(same_slot(bus, address) for bus in falls)
        if not xids and not falls and re.match(r"NVRM: (?:Xid|.{0,200}fallen off the bus)", message, re.DOTALL):
            strays.append(f"the kernel log does not say whose {message[:120]!r} is")
    codes += [FALLEN_OFF_THE_BUS] if fallen and FALLEN_OFF_THE_BUS not in codes else []
    return Seen(len(codes), (*lacking, *strays), "Xid " + ", ".join(map(str, codes)) if codes else "")


def same_slot(bus: str, address: str) -> bool:
    """Say whether a driver's bus id (no function) is that of a PCI address."""
    return normal_address(f"{bus}.0")[:-2] == address[:-2]


def nic_start(site: Site) -> Carrier:
    """Read an interface's carrier at the start of the run; raises Unmeasurable when it has no link then."""
    carrier = read_carrier(site, interface_of(site))
    state = site.world.read(f"{NET}/{carrier.interface}/operstate")
    if state != "up":
        message = f"{carrier.interface} is {state!r} at the start of the run: plug it in, or set another interface"
        raise Unmeasurable(message)
    return carrier


def nic_link(site: Site) -> Iterator[Outcome]:
    """Yield how often the link went down since the start of the run; a flap counts down and up."""
    start = begun(site, Carrier)
    end = read_carrier(site, start.interface)
    check_same_boot(start.boot, end.boot)
    if end.changes < start.changes:
        message = f"carrier_changes of {start.interface} went down: its driver was loaded anew during the run"
        raise Unmeasurable(message)
    proof = f"carrier_changes of {start.interface} was read at both ends of the run: {start.changes}, {end.changes}"
    flaps = (end.changes - start.changes + 1) // 2
    yield site.measured(FLAPS, flaps, proof=proof, conditions={"interface": start.interface})


def read_carrier(site: Site, interface: str) -> Carrier:
    """Read boot id and the carrier's changes since then."""
    text = site.world.read(f"{NET}/{interface}/carrier_changes")
    try:
        return Carrier(site.world.read(BOOT_ID), interface, count_of(text))
    except ValueError:
        message = f"carrier_changes of {interface} is {text[:40]!r}, which is no count"
        raise Unmeasurable(message) from None


def interface_of(site: Site) -> str:
    """Return the profile's interface, else that of the default route; raises Unmeasurable when neither is clear."""
    facts = site.profile.device.get(site.device)
    if facts and facts.interface:
        return facts.interface
    if len(site.profile.devices.get("nic", ())) > 1:
        message = (
            f"the profile has several networks and no interface for {site.device}: set device.{site.device}.interface"
        )
        raise Unmeasurable(message)
    return default_interface(site.world.read("/proc/net/route"))


def default_interface(table: str) -> str:
    """Parse /proc/net/route; return the interface of the default route with the lowest metric."""
    rows = re.findall(r"^(\S+)\t0{8}\t[0-9A-F]{8}\t[0-9A-F]{4}\t\d+\t\d+\t([0-9]{1,10})\t0{8}\t", table, re.MULTILINE)
    if not rows:
        message = "there is no default route: set device.nic0.interface in the profile"
        raise Unmeasurable(message)
    return str(min(rows, key=lambda row: int(row[1]))[0])


PROBES = (
    Probe(
        "gpu.events", "final", "gpu", (CORRECTED, RATE, UNCORRECTED, XID), gpu_events, driver=True, before=gpu_start,
    ),
    Probe("nic.link", "final", "nic", (FLAPS,), nic_link, before=nic_start),
)  # fmt: skip
