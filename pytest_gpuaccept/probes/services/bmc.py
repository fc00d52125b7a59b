"""The board's own controller (BMC): what it wrote into its event log during the run, and what its sensors say.

Owns the parsers of what ipmitool prints of both. Reads only: nothing is cleared, set or acknowledged. A
board without a controller, and a user who may not ask it, are absences with the remedy.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.since import Seen, attempt, begun
from pytest_gpuaccept.probes.tool import printed

EVENTS = Metric("bmc.events", "Entries that the board's controller logged in the run", "count", "host", none_seen=True)
SENSORS = Metric("bmc.sensors", "Sensors of the board's controller that are critical", "count", "host", none_seen=True)

TOOL_S = 60
"""Seconds that a controller may take for all of its sensors; some answer ten a second."""
REMEDY = "it takes root, ipmi_si and ipmi_devintf (modprobe), and a board with a BMC"
ENTRY = re.compile(r"([0-9a-f]{1,4}) +\| +\S.*", re.IGNORECASE)
ENTRY_BYTES = 16
NO_READING = "ns"
STATUS = re.compile(r"ok|ns|[lu]?(nc|cr|nr)")
BAD = ("cr", "nr")
"""What a threshold's status ends with when the sensor is critical, or beyond recovery."""
ALARMS = re.compile(
    r"failure|predictive fail|\bfailed\b|fault|ac lost|out-of-range|config error|redundancy lost|redundancy degraded"
    r"|insufficient|to critical|non-recoverable|limit exceeded|uncorrectable|critical array|ierr|thermal trip|fatal"
    r"|configuration error|pci [ps]err|bus degraded|bus timeout|throttled|\bparity\b",
    re.IGNORECASE,
)
"""States of a sensor without thresholds that are one of damage; ipmitool calls each of these sensors `ok`."""
TAKEN_BACK = re.compile(r"predictive failure deasserted", re.IGNORECASE)
STANDS = re.compile(r"0(\.0*)? RPM")
NAMED = 5


@dataclass(frozen=True, slots=True)
class Log:
    """The event log: its entries, and why one more would not be seen, '' when it would."""

    entries: tuple[str, ...]
    full: str


@dataclass(frozen=True, slots=True)
class Sensor:
    """One sensor: how it stands to its thresholds, and what it reads."""

    status: str
    reading: str


@dataclass(frozen=True, slots=True)
class Board:
    """What the controller says at one moment, each part or why not."""

    log: Log | Unmeasurable
    sensors: Mapping[str, Sensor] | Unmeasurable


def asked(site: Site, *words: str) -> str:
    """Return what the controller answers; raises Unmeasurable where there is none, or no right to it."""
    return printed(site, "ipmitool", *words, remedy=REMEDY, timeout=TOOL_S)


def start(site: Site) -> Board:
    """Read log and sensors."""
    return Board(attempt(partial(read_log, site)), attempt(partial(read_sensors, site)))


def controller(site: Site) -> Iterator[Outcome]:
    """Yield what the log gained since the start of the run, and the sensors that are critical now."""
    first, last = attempt(partial(begun, site, Board)), start(site)
    yield events(site, first, last.log)
    yield sensors(site, first, last.sensors)


# event log -----------------------------------------------------------------------------------


def read_log(site: Site) -> Log:
    """Return the event log; raises Unmeasurable when the list is shorter than the controller's own count."""
    info, listed = asked(site, "sel", "info"), asked(site, "sel", "elist")
    site.attach("BMC: event log", f"{info}\n{listed}")
    count, full = parse_info(info)
    entries = parse_entries(listed)
    if len(entries) < count:
        message = f"the controller counts {count} entries in its log and lists {len(entries)}: ask again"
        raise Unmeasurable(message)
    return Log(entries, full)


def parse_info(text: str) -> tuple[int, str]:
    """Parse `ipmitool sel info` to the count of entries, and why one more would not be kept."""
    rows = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    count, free = rows.get("Entries", ""), re.match(r"([0-9]{1,9}) bytes", rows.get("Free Space", ""))
    if not re.fullmatch(r"[0-9]{1,5}", count):
        message = f"ipmitool's word of the event log cannot be read: {text.strip()[:80]!r}"
        raise Unmeasurable(message)
    full = rows.get("Overflow") == "true" or (free is not None and int(free[1]) < ENTRY_BYTES)
    return int(count), "the event log is full: keep it, clear it (ipmitool sel clear), run again" if full else ""


def parse_entries(text: str) -> tuple[str, ...]:
    """Parse `ipmitool sel elist` to its entries; raises Unmeasurable for a line that is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if strange := [line for line in lines if not ENTRY.fullmatch(line)]:
        message = f"ipmitool lists {strange[0][:60]!r}, which is no entry of an event log"
        raise Unmeasurable(message)
    return tuple(lines)


def events(site: Site, first: Board | Unmeasurable, last: Log | Unmeasurable) -> Outcome:
    """Return how many entries came since the start; a none is proven by a log that had room at both ends."""
    before = first if isinstance(first, Unmeasurable) else first.log
    if isinstance(last, Unmeasurable):
        return NotMeasured(EVENTS.id, site.device, str(last))
    if isinstance(before, Unmeasurable):
        return NotMeasured(EVENTS.id, site.device, f"the log at the start of the run is not known: {before}")
    return _gained(before, last).outcome(site, EVENTS, "the log was listed at both ends of the run, with room", {})


def _gained(before: Log, last: Log) -> Seen:
    new = [entry for entry in last.entries if entry not in before.entries]
    gone = len(set(before.entries) - set(last.entries))
    forgot = f"{gone} entries of the start are gone: somebody cleared the log, or it overwrites" if gone else ""
    more = f" and {len(new) - NAMED} more" if len(new) > NAMED else ""
    note = "; ".join(" ".join(entry.split()) for entry in new[:NAMED]) + more
    return Seen(len(new), tuple(filter(None, (before.full, last.full, forgot))), note)


# sensors -------------------------------------------------------------------------------------


def read_sensors(site: Site) -> Mapping[str, Sensor]:
    """Return the sensors by name and number; raises Unmeasurable when none reads anything."""
    text = asked(site, "sdr", "elist")
    site.attach("BMC: sensors", text)
    return parse_sensors(text)


def parse_sensors(text: str) -> Mapping[str, Sensor]:
    """Parse `ipmitool sdr elist`; raises Unmeasurable for a line that is none, and when no sensor reads anything."""
    rows = [[part.strip() for part in line.split("|", 4)] for line in text.splitlines() if line.strip()]
    if strange := [row for row in rows if len(row) != 5 or not STATUS.fullmatch(row[2])]:  # noqa: PLR2004 - its columns
        message = f"ipmitool lists {' | '.join(strange[0])[:60]!r}, which is no sensor"
        raise Unmeasurable(message)
    found = {f"{name} {number}": Sensor(status, reading) for name, number, status, _, reading in rows}
    if all(sensor.status == NO_READING for sensor in found.values()):
        message = f"the controller lists {len(found)} sensors, and none reads anything"
        raise Unmeasurable(message)
    return found


def sensors(site: Site, first: Board | Unmeasurable, last: Mapping[str, Sensor] | Unmeasurable) -> Outcome:
    """Return how many sensors are critical, say that something failed, or fell silent since the start."""
    if isinstance(last, Unmeasurable):
        return NotMeasured(SENSORS.id, site.device, str(last))
    before = first if isinstance(first, Unmeasurable) else first.sensors
    then = {} if isinstance(before, Unmeasurable) else before
    flaws = {name: _flaw(then.get(name), last.get(name)) for name in then.keys() | last.keys()}
    found = [f"{name.rsplit(' ', 1)[0]} {flaw}" for name, flaw in sorted(flaws.items()) if flaw]
    read = sum(1 for sensor in last.values() if sensor.status != NO_READING)
    still = [name.rsplit(" ", 1)[0] for name, sensor in sorted(last.items()) if STANDS.fullmatch(sensor.reading)]
    stand = f"at 0 RPM: {', '.join(still[:NAMED])}" if still else ""
    unknown = "" if then else "what it read at the start is not known"
    note = "; ".join(filter(None, (*found[:NAMED], stand, unknown)))
    return site.measured(SENSORS, len(found), proof=f"{read} of {len(last)} sensors read", note=note)


def _flaw(then: Sensor | None, now: Sensor | None) -> str:
    """Return what is wrong with a sensor, '' when nothing is."""
    if now is None or now.status == NO_READING:
        return f"reads nothing, {then.reading} at the start" if then and then.status != NO_READING else ""
    if now.status.endswith(BAD):
        return f"{now.status}, {now.reading}"
    if ALARMS.search(TAKEN_BACK.sub("", now.reading)):
        return now.reading
    stopped = STANDS.fullmatch(now.reading) and then and not STANDS.fullmatch(then.reading)
    return f"stands still, {then.reading} at the start" if stopped and then else ""


PROBES = (
    Probe("host.bmc", "final", "host", (EVENTS, SENSORS), controller, tools=("ipmitool",), before=start),
)  # fmt: skip
