"""The kernel log: reading it, from the journal or from the kernel's own buffer, and what is new in it.

Owns the parsers of journalctl's and of dmesg's output, and what makes a log the whole one. Records that
programs write into the kernel's log are none of the kernel's. Must not know what a message means.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.since import BOOT_ID, attempt, count_of

FIELDS = (
    "MESSAGE", "PRIORITY", "SYSLOG_FACILITY", "_TRANSPORT", "_BOOT_ID", "_KERNEL_DEVICE", "_SOURCE_MONOTONIC_TIMESTAMP",
)  # fmt: skip
JOURNAL = (
    "journalctl", "--boot", "--all", "--quiet", "--no-pager", "--output=json", f"--output-fields={','.join(FIELDS)}",
)  # fmt: skip
OWN = (
    "journalctl", "--boot", "--quiet", "--no-pager", "--output=json",
    "--output-fields=MESSAGE,_TRANSPORT,_SOURCE_MONOTONIC_TIMESTAMP", "SYSLOG_IDENTIFIER=gpuaccept",
)  # fmt: skip
KERNEL = ("_TRANSPORT=kernel", "+", "_TRANSPORT=driver")
"""The kernel's records, and the journal's own, which tell of kernel records that it lost."""
DMESG_JSON, DMESG_RAW = ("dmesg", "--kernel", "--json"), ("dmesg", "--kernel", "--raw")
LOG_S = 120
MEMORY = "kernel log"
"""Where the probes of a run remember what they have read: the rest is read from there on."""
DEFAULT_PRIORITY = 6
RAW_LINE = re.compile(r"<([0-9]{1,3})>\[ *([0-9]{1,9})\.([0-9]{6})\] (.*)")
LOST = re.compile(r"Missed ([0-9]{1,9}) kernel messages")
FIRST = "Linux version "
IDENTIFIER = "gpuaccept"
"""What our own lines in the log begin with."""
SETTLE_S = 5.0
"""Seconds behind a load in which its messages may still arrive: 3.8 s were seen on a loaded machine."""
LOADED = "load ended"
"""Where a run remembers when its last load ended, by the world's clock."""

ALIVE = "log alive"
"""Where a run remembers behind which load the log was last proven alive."""
KERNEL_CLOCK = "kernel clock"
"""Where a run remembers what the world's clock, in s, shows when the kernel's shows 0."""
PERIOD_S, LONGEST_S, TOOL_S = 0.5, 15.0, 10.0
"""Seconds between looks for a line of our own, until it is given up, and that a tool may take."""

NO_LOG = "the kernel log cannot be read: run as root, or add this user to the group adm or systemd-journal"
LARGER = {"journalctl": "raise SystemMaxUse in journald.conf", "dmesg": "add the kernel option log_buf_len=16M"}
"""Source of a log -> how it becomes larger."""
CUT_LOG = "the kernel log lacks the first lines of this boot: {}, boot, run again"
WRAPPED = "the kernel log no longer holds what it ended with at the start of the run: {}, boot, run again"
DEAD = (
    "a line written to the {} was not in the log after {:g} s: nobody takes it down any more (systemctl status "
    "systemd-journald; sysctl kernel.printk_devkmsg), restart the machine, run again"
)


class Record(NamedTuple):
    """One record: us since boot by the kernel's own clock, syslog priority, message, PCI address or ''."""

    us: int
    priority: int
    message: str
    device: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """The end of a log as it was read: how many records, and the last one."""

    count: int
    us: int
    message: str


@dataclass(frozen=True, slots=True)
class KernelLog:
    """The kernel log of this boot; `whole` when it begins with the boot.

    `cursor` is where the journal goes on; `source` is the tool that showed the log.
    """

    records: tuple[Record, ...]
    whole: bool
    mark: Mark
    source: str = JOURNAL[0]
    cursor: str = ""

    @property
    def forgotten(self) -> "KernelLog":
        """Return the log without its records: all that the end of a run needs to know of the start."""
        return replace(self, records=())

    def place(self, mark: Mark) -> int:
        """Return the index of the first record behind `mark`; raises Unmeasurable when it is not there any more.

        By place and not by time: the journal's own records and the kernel's have clocks that drift apart.
        """
        if mark.count <= len(self.records) and self._is(mark.count - 1, mark):
            return mark.count
        found = next((i for i in range(len(self.records)) if self._is(i, mark)), None)
        if found is None:
            raise Unmeasurable(self.says(WRAPPED))
        return found + 1

    def says(self, text: str) -> str:
        """Return a reason with how this log becomes larger."""
        return text.format(LARGER.get(self.source, LARGER["journalctl"]))

    def _is(self, index: int, mark: Mark) -> bool:
        return self.records[index].us == mark.us and self.records[index].message == mark.message


def log_of(records: tuple[Record, ...], source: str, cursor: str = "") -> KernelLog:
    """Return a log; raises Unmeasurable when there is no record, for an empty log is none."""
    if not records:
        raise Unmeasurable(NO_LOG)
    whole = any(record.message.startswith(FIRST) for record in records)
    return KernelLog(records, whole, Mark(len(records), records[-1].us, records[-1].message), source, cursor)


def read_log(site: Site, *, settle: bool = True) -> KernelLog:
    """Read the kernel log of this boot, of what was read before in this run only the rest; raises Unmeasurable.

    journalctl prints nothing and ends with 0 where it may not look; then the kernel's own buffer is asked.
    Just behind a load it waits, until what the load caused is written down; not where that is not to `settle`.
    """
    boot = site.world.read(BOOT_ID)
    if settle and (left := site.memory.get(LOADED, -SETTLE_S) + SETTLE_S - site.world.clock.monotonic()) > 0:
        site.world.clock.sleep(left)
    known = site.memory.get(f"{MEMORY} {boot}")
    log = _rest(site, boot, known) if isinstance(known, KernelLog) and known.cursor else _all(site, boot)
    site.memory[f"{MEMORY} {boot}"] = log
    return log


# alive -----------------------------------------------------------------------------------------


def alive(site: Site, log: KernelLog) -> str:
    """Write a line of our own and wait until the log shows it; return which way it took, and keep what time it was.

    Raises Unmeasurable when it does not appear, or may not be written.
    """
    clock = site.world.clock
    text = f"channel check {clock.now().isoformat()}"
    began, through = clock.monotonic(), _write(site, log, text)
    while not (shown := _shown(site, log, text)):
        if clock.monotonic() >= began + LONGEST_S:
            raise Unmeasurable(DEAD.format(through, LONGEST_S))
        clock.sleep(PERIOD_S)
    if shown[0] is not None:
        site.memory[KERNEL_CLOCK] = began - shown[0]
    return through


def _write(site: Site, log: KernelLog, text: str) -> str:
    """Write a line to the kernel's log; where that is not permitted, to the journal that has taken it down."""
    refused = attempt(lambda: site.world.mark(f"{IDENTIFIER}: {text}"))
    if refused is None:
        return "kernel log"
    if log.source == JOURNAL[0] and site.world.has("logger"):
        done = site.world.command(("logger", "--tag", IDENTIFIER, text), timeout=TOOL_S)
        if done.status == 0:
            return "journal"
    message = f"whether the log still takes lines down cannot be tried ({refused}): run as root"
    raise Unmeasurable(message)


def _shown(site: Site, log: KernelLog, text: str) -> tuple[float | None] | None:
    """Return the kernel's time of our line in s, None in it where that is not told; None where it is not shown."""
    if log.source == JOURNAL[0]:
        entries = [entry for entry, _ in _entries(site.world.command(OWN, timeout=LOG_S).stdout)]
        own = [entry for entry in entries if isinstance(entry, dict) and entry.get("MESSAGE") == text]
        told = [e.get("_SOURCE_MONOTONIC_TIMESTAMP") if e.get("_TRANSPORT") == "kernel" else None for e in own]
        return (int(told[0]) / 1e6 if told[0] and str(told[0]).isdecimal() else None,) if told else None
    done = site.world.command(("dmesg",), timeout=LOG_S)
    found = re.search(rf"^\[ *([0-9]{{1,9}}\.[0-9]{{6}})\] {IDENTIFIER}: {re.escape(text)}$", done.stdout, re.MULTILINE)
    return (float(found[1]),) if found else None


# reading ---------------------------------------------------------------------------------------


def since_start(
    site: Site, start: KernelLog | Unmeasurable, *, anew: bool = False
) -> tuple[tuple[Record, ...], tuple[str, ...]]:  # fmt: skip
    """Return the records since the start of the run, and what is missing for them to be all.

    A log that was alive at the start may be dead by now: behind each load it is tried again, and `anew` in any case.
    """
    log = attempt(lambda: read_log(site))
    if not isinstance(log, KernelLog):
        return new_records(start, log)
    dead = attempt(lambda: _still_alive(site, log, anew=anew))
    fresh, lacking = new_records(start, attempt(lambda: read_log(site)))
    return fresh, (*lacking, *([str(dead)] if isinstance(dead, Unmeasurable) else []))


def _still_alive(site: Site, log: KernelLog, *, anew: bool) -> None:
    behind = site.memory.get(LOADED, 0.0)
    if anew or site.memory.get(ALIVE) != behind:
        alive(site, log)
        site.memory[ALIVE] = behind


def _all(site: Site, boot: str) -> KernelLog:
    log = attempt(lambda: parse_journal(_journal(site), boot))
    if isinstance(log, KernelLog):
        return log
    try:
        return _buffer(site)
    except Unmeasurable as error:
        message = f"{log} (dmesg: {error})"
        raise Unmeasurable(message) from None


def _rest(site: Site, boot: str, known: KernelLog) -> KernelLog:
    """Return a log that was read before with what came since; all of it where the journal cannot go on."""
    text = attempt(lambda: _journal(site, f"--after-cursor={known.cursor}"))
    if isinstance(text, Unmeasurable):
        return _all(site, boot)
    records, cursor = journal_records(text, boot)
    return log_of((*known.records, *records), known.source, cursor or known.cursor) if records else known


def _journal(site: Site, *more: str) -> str:
    done = site.world.command((*JOURNAL, *more, *KERNEL), timeout=LOG_S)
    if done.status != 0:
        message = f"journalctl ended with status {done.status}: {done.stderr.strip()[:200]}"
        raise Unmeasurable(message)
    return done.stdout


def _buffer(site: Site) -> KernelLog:
    """Read the kernel's own buffer; raises Unmeasurable where that is not permitted."""
    done = site.world.command(DMESG_JSON, timeout=LOG_S)
    parse = parse_dmesg
    if done.status != 0 and "option" in done.stderr:
        done, parse = site.world.command(DMESG_RAW, timeout=LOG_S), parse_raw
    if done.status != 0:
        message = done.stderr.strip()[:200] or f"it ended with status {done.status}"
        raise Unmeasurable(message)
    return parse(done.stdout)


def parse_journal(text: str, boot: str) -> KernelLog:
    """Parse the journal's JSON lines; raises Unmeasurable for what is none and when no record is of this boot."""
    records, cursor = journal_records(text, boot)
    return log_of(records, JOURNAL[0], cursor)


def journal_records(text: str, boot: str) -> tuple[tuple[Record, ...], str]:
    """Parse the journal's JSON lines to the kernel's records of a boot, and the last one's cursor."""
    own, found, cursor = boot.replace("-", ""), list[Record](), ""
    for entry, line in _entries(text):
        try:
            if entry["_BOOT_ID"] == own and (record := journal_record(entry)):
                found.append(record)
            cursor = entry.get("__CURSOR") or cursor
        except (ValueError, KeyError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
            raise _no_record(text[line : line + 80], error) from None
    return tuple(found), str(cursor)


def _entries(text: str) -> Iterator[tuple[Any, int]]:
    """Yield the JSON value of every line that is not blank, with where it begins.

    An object that ends where its line does is what parsing the line alone would give, without a copy of the line.
    """
    decode, at = json.JSONDecoder().raw_decode, 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        try:
            value, stop = decode(text, at) if text[at] == "{" else (None, -1)
            if stop != end:
                line = text[at:end]
                value = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise _no_record(text[at:end], error) from None
        if value is not None or text[at:end].strip():
            yield value, at
        at = end + 1


def _no_record(line: str, error: Exception) -> Unmeasurable:
    return Unmeasurable(f"journalctl printed what is no record ({type(error).__name__}): {line[:80]!r}")


def journal_record(entry: dict[str, Any]) -> Record | None:
    """Return an entry's record; None for what is neither the kernel's nor tells of kernel records that were lost."""
    source, own = entry.get("_SOURCE_MONOTONIC_TIMESTAMP"), count_of(entry["__MONOTONIC_TIMESTAMP"])
    us = count_of(source) if source is not None else own
    message = message_text(entry.get("MESSAGE"))
    if entry.get("_TRANSPORT") == "driver":
        return Record(us, DEFAULT_PRIORITY, message) if LOST.search(message) else None
    if entry.get("SYSLOG_FACILITY", "0") != "0":
        return None
    device = str(entry.get("_KERNEL_DEVICE", ""))
    priority = count_of(entry.get("PRIORITY", f"{DEFAULT_PRIORITY}"))
    return Record(us, priority, message, device.removeprefix("+pci:") if device.startswith("+pci:") else "")


def message_text(message: object) -> str:
    """Return a record's message: text, the bytes of what is not UTF-8, or several of these; '' for null."""
    if isinstance(message, list):
        if message and all(isinstance(part, int) for part in message):
            return bytes(message).decode(errors="replace")
        return "\n".join(message_text(part) for part in message)
    return message if isinstance(message, str) else ""


def parse_dmesg(text: str) -> KernelLog:
    """Parse `dmesg --json`; raises Unmeasurable for what is none."""
    try:
        found = [
            Record(round(float(line["time"]) * 1e6), int(line["pri"]) & 7, str(line["msg"]))
            for line in json.loads(text)["dmesg"]
        ]
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        message = f"it printed what is no log ({type(error).__name__}): {text[:80]!r}"
        raise Unmeasurable(message) from None
    return log_of(tuple(found), "dmesg")


def parse_raw(text: str) -> KernelLog:
    """Parse `dmesg --raw`, a line without a head being the last one's next; raises Unmeasurable for what is none."""
    found = list[Record]()
    for line in text.splitlines():
        if match := RAW_LINE.fullmatch(line):
            found.append(Record(int(match[2]) * 10**6 + int(match[3]), int(match[1]) & 7, match[4]))
        elif found:
            found[-1] = found[-1]._replace(message=f"{found[-1].message}\n{line}")
        elif line.strip():
            message = f"it printed what is no log: {line[:80]!r}"
            raise Unmeasurable(message)
    return log_of(tuple(found), "dmesg")


def new_records(
    start: KernelLog | Unmeasurable, end: KernelLog | Unmeasurable
) -> tuple[tuple[Record, ...], tuple[str, ...]]:  # fmt: skip
    """Return the records since the start of the run, and what is missing for them to be all."""
    if isinstance(start, Unmeasurable) or isinstance(end, Unmeasurable):
        return (), tuple(str(log) for log in (start, end) if isinstance(log, Unmeasurable))
    cut = () if start.whole and end.whole else (end.says(CUT_LOG),)
    place = attempt(partial(end.place, start.mark))
    if isinstance(place, Unmeasurable):
        later = tuple(record for record in end.records if record.us > start.mark.us)
        return later, (*cut, str(place))
    fresh = end.records[place:]
    return fresh, (*cut, *(f"the journal says {r.message!r}" for r in fresh if LOST.search(r.message)))
