"""What the kernel's messages mean: hardware errors, crashes, storage, memory, links; and what nobody knew.

Owns the words by which an event is known, and where it happened. Counts nothing and must not judge.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pytest_gpuaccept.probes.kernel import aer, xid
from pytest_gpuaccept.probes.kernel.log import LOST, Record

CORRECTED, UNCORRECTED = "corrected PCIe error", "uncorrected PCIe error"
MACHINE_CHECK, MENDED, CRASH = "hardware error", "corrected hardware error", "kernel crash"
LOCKUP, HUNG, IOMMU, UNPLUGGED, STALLED = "lockup", "hung task", "IOMMU fault", "PCIe link lost", "network stalled"
OOM, STORAGE, FILES, MEMORY = "out of memory", "storage", "file system", "memory error"
LINK, SLOWED, DRIVER, CUT, XID = "link down", "CPU slowed by heat", "GPU driver", "records lost", "Xid"
FAULTS = (MACHINE_CHECK, CRASH, LOCKUP, HUNG, DRIVER, IOMMU, UNPLUGGED, STALLED)
"""What the kernel itself says when the machine, it, or a driver is broken."""
WARNING = 4
"""Syslog priority from which on a message is a warning or worse."""
NAME = r"[\w.@-]{1,32}"

SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (CRASH, re.compile(
        r"Kernel panic|\bkernel BUG at |\bBUG: (?!soft lockup)|\bOops: |^general protection fault|"
        r"Unable to handle kernel |double fault|(?:divide error|invalid opcode|stack segment): 0000"
    )),
    (LOCKUP, re.compile(r"soft lockup|hard LOCKUP|self-detected stall|rcu\w* detected (?:expedited )?stalls")),
    (HUNG, re.compile(r"blocked for more than \d+ seconds")),
    (MEMORY, re.compile(r"EDAC (MC\d+): \d+ [CU]E\b|RAS: Soft-offlining pfn")),
    (MACHINE_CHECK, re.compile(
        r"\[Hardware Error\]|Machine [Cc]heck (?:[Ee]xception|events logged)|Uhhuh\. NMI received|"
        r"NMI: (?:PCI system|IOCK) error|Uncorrected hardware memory error|"
        r"Memory failure: .{0,80}(?:memory corruption|recovery action)"
    )),
    (OOM, re.compile(r"Killed process \d+")),
    (STORAGE, re.compile(
        r"(?:[Bb]uffer I/O|\bI/O|timeout|device offline|recoverable transport|protection|critical \w+(?: \w+)?) error"
        rf"[, ].{{0,20}}\bdev(?:ice)? (?!(?:sr|fd|loop)\d)({NAME})"
    )),
    (STORAGE, re.compile(rf"blk_update_request: .{{0,40}}error.{{0,20}}\bdev (?!(?:sr|fd|loop)\d)({NAME})")),
    (STORAGE, re.compile(
        r"\b(nvme\d+)(?:n\d+)?: (?:I/O .{0,80}(?:timeout|abort)|controller is down|Disabling device|Device not ready|"
        r"resetting controller|Abort status|Device shutdown incomplete|Removing after probe failure|frozen state error|"
        r"detected capacity change from \d+ to 0)"
    )),
    (STORAGE, re.compile(
        r"\b(ata\d+)(?:\.\d+)?: (?:exception Emask|failed command|hard resetting link|SError|disabled?\b)|"
        r"\[(sd[a-z]{1,3})\].{0,20} FAILED Result: hostbyte=(?!DID_OK)"
    )),
    (STORAGE, re.compile(
        rf"device-mapper: .{{0,80}}(?:[Cc]hecksum failed|I/O error|[Cc]orrupt|Failing path)|"
        rf"Pool '{NAME}' has encountered an uncorrectable I/O failure|"
        rf"md/raid\S*:? ?({NAME}): Disk failure|attempt to access beyond end of device|"
        r"rejecting I/O to (?:offline|dead)"
    )),
    (FILES, re.compile(
        rf"EXT4-fs (?:error \(device ({NAME})\)|warning \(device ({NAME})\): .{{0,60}}I/O error)|"
        rf"Aborting journal on device ({NAME})|JBD2: Detected IO errors|"
        rf"EXT4-fs \(({NAME})\): (?:Remounting filesystem read-only|Delayed block allocation failed|.{{0,60}}I/O error)"
    )),
    (FILES, re.compile(
        rf"XFS \(({NAME})\): .{{0,120}}(?:[Cc]orrupt|I/O [Ee]rror|CRC error|[Ss]hutting down|log error)"
    )),
    (FILES, re.compile(
        rf"BTRFS (?:error|critical|alert) \(device ({NAME})|BTRFS warning \(device ({NAME})\): .{{0,80}}csum failed|"
        r"Remounting filesystem read-only"
    )),
    (IOMMU, re.compile(
        rf"({aer.ADDRESS}): AMD-Vi: Event logged \[|AMD-Vi: (?:Event logged \[|Completion-Wait loop timed out)|"
        r"DMAR: .{0,80}\bfault addr|DMAR: \[DMA (?:Read|Write)"
    )),
    (UNPLUGGED, re.compile(
        rf"({aer.ADDRESS}): (?:pciehp: Slot\(\S+\): (?:Link Down|Card not present)|"
        r".{0,60}from D3cold.{0,40}inaccessible)"
    )),
    (STALLED, re.compile(rf"NETDEV WATCHDOG: ({NAME})")),
    (LINK, re.compile(rf"\b(?!SATA )({NAME}):? (?:NIC )?[Ll]ink(?: is)? [Dd]own\b")),
    (SLOWED, re.compile(r"temperature(?:/speed)? (?:is )?above threshold")),
    (DRIVER, re.compile(
        rf"NVRM: (?:GPU )?({aer.BUS})?\S* ?(?:RmInitAdapter|rm_init_adapter) failed|NVRM: .{{0,60}}API mismatch|"
        r"NVRM: .{0,80}(?:GSP.{0,40}(?:error|timeout)|[Hh]eartbeat)"
    )),
    (UNCORRECTED, re.compile(rf"({aer.ADDRESS}): DPC: containment event")),
    (CUT, re.compile(rf"{LOST.pattern}|(\d+) callbacks suppressed")),
)  # fmt: skip
"""Kind of event -> its words, the first group that matched being where it happened."""
MAYBE = re.compile(
    r"PCIe Bus Error|AER: |NVRM|DPC: |EDAC MC|Hardware Error|[Mm]achine [Cc]heck|NMI|panic|BUG|Oops|fault|Unable to|"
    r": 0000|lockup|LOCKUP|stall|blocked for|Killed process|rror|nvme|ata\d|Disk failure|beyond end|read-only|RAS: |"
    r"EXT4-fs|XFS|BTRFS|[Ll]ink|above threshold|Missed|suppressed|rejecting I/O|journal|AMD-Vi|DMAR|WATCHDOG|Slot\(|"
    r"Memory failure|FAILED Result|device-mapper|I/O failure|D3cold"
)
"""What a message must hold to be looked at closely: nearly all of a log does not."""
REPAIRED = re.compile(r"Corrected error|severity: (?:corrected|info)|\|CE\||Corrected hardware|EDAC MC\d+: \d+ CE\b")
BROKEN = re.compile(
    r"[Uu]ncorrected|\|UE\||[Ff]atal|Deferred|severity: recoverable|Exception|panic|EDAC MC\d+: \d+ UE\b|Memory failure"
)
"""What one of the lines of a hardware error says of all of them."""
OF_PCIE = re.compile(rf"section_type: PCIe error.*?device_id: ({aer.ADDRESS})", re.DOTALL)
"""Whose error the firmware tells of, where it is one of PCIe."""
VOLATILE = re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]|\b[0-9a-f]{8,}\b|\d+")
LONGEST = 160
SAME_ERROR_US = 1_000_000
"""us behind a header line in which a detail line tells of the same error."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: us since boot, what, where (PCI address, interface, drive; '' unknown), its words."""

    us: int
    kind: str
    where: str
    text: str


def events(records: Iterable[Record]) -> Iterator[Event]:
    """Yield what the records tell of; an error once, though several lines tell of it."""
    headers: dict[str, int] = {}
    lines: list[Event] = []
    for record in records:
        if MAYBE.search(record.message):
            yield from _pcie(record, headers)
            for event in _others(record):
                if event.kind not in (MACHINE_CHECK, MEMORY):
                    yield event
                    continue
                if lines and event.us - lines[-1].us >= SAME_ERROR_US:
                    yield from _hardware_error(lines)
                    lines = []
                lines.append(event)
    if lines:
        yield from _hardware_error(lines)


def _hardware_error(lines: Sequence[Event]) -> Iterator[Event]:
    """Yield what the lines of a moment describe: one error, corrected where they say so and nothing worse.

    What EDAC says of a memory module stands for itself, and for the machine check that it explains.
    """
    memory = [line for line in lines if line.kind == MEMORY]
    yield from memory
    text = "; ".join(line.text.strip() for line in lines)
    mended = REPAIRED.search(text) is not None and not BROKEN.search(text)
    if len(memory) == len(lines) or (memory and mended):
        return
    where = next((line.where for line in lines if line.where), "")
    if pcie := OF_PCIE.search(text):
        yield replace(lines[0], kind=CORRECTED if mended else UNCORRECTED, where=pcie[1].lower(), text=text)
    else:
        yield replace(lines[0], kind=MENDED if mended else MACHINE_CHECK, where=where, text=text)


def _pcie(record: Record, headers: dict[str, int]) -> Iterator[Event]:
    """Yield the PCIe errors of a message; `headers` keeps when each device was last named by a header line."""
    for kind, severity, whose in aer.in_message(record.message):
        if kind == 0:
            headers[whose] = record.us
        if kind == 0 or record.us - headers.get(whose, -SAME_ERROR_US) >= SAME_ERROR_US:
            yield Event(record.us, CORRECTED if severity == "corrected" else UNCORRECTED, whose, record.message)


def _others(record: Record) -> Iterator[Event]:
    """Yield the Xids of a message, else the first kind of event that it is."""
    xids = [
        Event(record.us, f"{XID} {code}", f"{bus.lower()}.0", record.message)
        for code, bus in xid.in_message(record.message)
    ]
    if xids or xid.nameless(record.message):
        yield from xids or [Event(record.us, XID, "", record.message)]
        return
    for kind, words in SIGNS:
        if match := words.search(record.message):
            where = next(filter(None, match.groups()), "") if kind != CUT else ""
            yield Event(record.us, kind, where or record.device, record.message)
            return


def novel(records: Iterable[Record]) -> Counter[str]:
    """Return the warnings, and worse, that are no known event, by template: numbers and addresses left out."""
    rest = [record for record in records if record.priority <= WARNING and not any(events([record]))]
    return Counter(template(record.message) for record in rest)


def template(message: str) -> str:
    """Return the first line of a message without what differs from one of its kind to the next."""
    return VOLATILE.sub("#", message.strip().partition("\n")[0])[:LONGEST]
