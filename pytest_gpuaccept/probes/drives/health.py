"""What a drive keeps count of: media errors, warnings, wear, hours, shutdowns; by nvme-cli or smartctl.

Owns both tools' parsers: kelvin and numbers as strings here, a bit mask as exit status there. Changes
nothing on a drive and starts no self-test.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.drives.drive import COLDEST, HOTTEST, Drive, drives_of
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Completed, World

MEDIA = Metric("nvme.health.media_errors", "Drive media errors, ever", "count", "nvme")
WARNING = Metric("nvme.health.critical_warning", "Drive critical warnings, bit mask", "count", "nvme")
SPARE = Metric("nvme.health.spare", "Drive spare blocks left", "%", "nvme")
SHUTDOWNS = Metric("nvme.health.unsafe_shutdowns", "Drive lost power in the run", "count", "nvme", none_seen=True)
THROTTLE = Metric("nvme.health.throttle", "Drive slowed by heat in the run", "count", "nvme", none_seen=True)
USED = Metric("nvme.new.used", "Drive life used", "%", "nvme")
HOT = Metric("nvme.health.overheated", "Drive too hot in the run, minutes", "count", "nvme", none_seen=True)
HOURS = Metric("nvme.new.hours", "Drive power-on hours", "h", "nvme")

UNIT_BYTES = 512_000
"""Bytes of a data unit (NVMe base specification)."""
KELVIN = 273
MOST = 2**128
"""Counters of the log have 16 bytes."""
TOOL_S = 30.0
ERROR = re.compile(r'"error"\s*:\s*"([^"]+)"')
"""What nvme-cli writes instead of a log from 2.9 on."""
HOT_KEYS = ("warning_temp_time", "critical_comp_time")
BAD_CALL, NOT_OPENED = 1, 2
"""Bits of smartctl's exit status; bits 3 to 7 are findings about the drive."""
ROOT = "reading it takes root: run the suite as root"
TOOLS = "neither nvme nor smartctl found; install with: apt-get install nvme-cli"


@dataclass(frozen=True, slots=True)
class Health:
    """The SMART log of one drive.

    `hot_minutes` counts those above its warning and its critical temperature, `throttled` thermal transitions, None
    where the tool hides them.
    """

    tool: str
    critical_warning: int
    temperature_c: float
    media_errors: int
    spare: int
    spare_threshold: int
    used: int
    hours: int
    unsafe_shutdowns: int
    written_bytes: int
    error_entries: int
    hot_minutes: int
    throttled: int | None


@dataclass(frozen=True, slots=True)
class State:
    """The logs of all drives behind a mount."""

    each: tuple[Health, ...]


def parse_nvme(done: Completed) -> Health:
    """Parse `nvme smart-log -o json`; raises Unmeasurable when it is no log."""
    if done.status != 0:
        error = ERROR.search(done.stdout)
        message = f"nvme: {_refusal(error[1] if error else done.stderr or done.stdout)}"
        raise Unmeasurable(message)
    return _health("nvme", _object(done.stdout, "nvme"), {
        "temperature": "temperature", "spare": "avail_spare", "spare_threshold": "spare_thresh", "used": "percent_used",
    }, KELVIN)  # fmt: skip


def parse_smartctl(done: Completed) -> Health:
    """Parse `smartctl --json -a` of an NVMe drive; raises Unmeasurable when it holds no log."""
    report = _object(done.stdout, "smartctl")
    log = report.get("nvme_smart_health_information_log")
    if done.status & (BAD_CALL | NOT_OPENED) or not isinstance(log, dict):
        about = report.get("smartctl", {})
        messages = about.get("messages", []) if isinstance(about, dict) else []
        said = [str(m.get("string")) for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
        message = f"smartctl: {_refusal('; '.join(said) or 'no NVMe health log in its report')}"
        raise Unmeasurable(message)
    return _health("smartctl", log, {
        "temperature": "temperature", "spare": "available_spare", "spare_threshold": "available_spare_threshold",
        "used": "percentage_used",
    }, 0)  # fmt: skip


def _object(text: str, tool: str) -> dict[str, Any]:
    try:
        report = json.loads(text)
    except (ValueError, RecursionError):
        report = None
    if not isinstance(report, dict):
        message = f"{tool}: {_refusal(text) if text.strip() else 'said nothing'}"
        raise Unmeasurable(message)
    return report


def _refusal(text: str) -> str:
    line = (text.strip().splitlines() or ["no reason given"])[0][:200]
    denied = any(word in text.lower() for word in ("permission denied", "operation not permitted", "eacces"))
    return f"{line}: {ROOT}" if denied else line


def _health(tool: str, log: Mapping[str, Any], keys: Mapping[str, str], zero: int) -> Health:
    """Return a log as a reading; `keys` are the tool's own names, `zero` what stands for 0 C."""
    try:
        warning = log["critical_warning"]
        warning = warning["value"] if isinstance(warning, dict) else warning
        thermal = [log.get(f"thm_temp{n}_trans_count") for n in (1, 2)]
        return Health(
            tool, _count(warning), _celsius(log[keys["temperature"]], zero), _count(log["media_errors"]),
            _count(log[keys["spare"]]), _count(log[keys["spare_threshold"]]), _count(log[keys["used"]]),
            _count(log["power_on_hours"]), _count(log["unsafe_shutdowns"]),
            _count(log["data_units_written"]) * UNIT_BYTES, _count(log["num_err_log_entries"]),
            sum(_count(log[key]) for key in HOT_KEYS), None if None in thermal else sum(map(_count, thermal)),
        )  # fmt: skip
    except (KeyError, ValueError, TypeError) as error:
        message = f"{tool}: the drive's log cannot be read ({type(error).__name__}: {error})"
        raise Unmeasurable(message) from None


def _celsius(value: Any, zero: int) -> float:  # noqa: ANN401 - whatever stands in the log
    """Return a temperature in C; raises ValueError for none: a bridge may make up a log of zeros."""
    celsius = _count(value) - zero
    if not COLDEST <= celsius <= HOTTEST:
        message = f"{celsius} C is no temperature of a drive"
        raise ValueError(message)
    return float(celsius)


def _count(value: Any) -> int:  # noqa: ANN401 - whatever stands in the log
    """Return a counter that is a number, or a string of digits; raises ValueError for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value) if len(value) < 40 else -1  # noqa: PLR2004 - 16 bytes are 39 digits
    whole = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value) and value == int(value))
    if isinstance(value, bool) or not whole or not 0 <= value < MOST:
        message = f"{value!r} is no counter"
        raise ValueError(message)
    return int(value)


# probe -------------------------------------------------------------------------------------------

READERS: tuple[tuple[str, tuple[str, ...], Callable[[Completed], Health]], ...] = (
    ("nvme", ("smart-log", "--output-format=json"), parse_nvme),
    ("smartctl", ("--json", "-a"), parse_smartctl),
)
"""Tool, its arguments before the device, its parser; the first that answers is taken."""


def read(world: World, drive: Drive) -> Health:
    """Return a drive's log by the first tool that gives it; raises Unmeasurable with what each said."""
    if not drive.controller:
        several = drive.name.startswith("nvme")
        why = "has several NVMe controllers, of which none is its own" if several else "is no NVMe drive"
        message = f"{drive.name} {why}: it has no NVMe health log"
        raise Unmeasurable(message)
    device, reasons = f"/dev/{drive.controller.rpartition('/')[2]}", []
    for tool, arguments, parse in READERS:
        if world.has(tool):
            try:
                return parse(world.command([tool, *arguments, device], timeout=TOOL_S))
            except Unmeasurable as error:
                reasons.append(str(error))
    raise Unmeasurable("; ".join(reasons) or TOOLS)


def start(site: Site) -> State:
    """Read the logs at the start of the run."""
    return State(tuple(read(site.world, drive) for drive in drives_of(site).drives))


def health(site: Site) -> Iterator[Outcome]:
    """Yield what the drives' logs say, and what was added to them in the run."""
    now = start(site).each
    where = _conditions(now)
    warnings = 0
    for one in now:
        warnings |= one.critical_warning
    values = (
        (MEDIA, sum(one.media_errors for one in now)), (WARNING, warnings), (SPARE, min(one.spare for one in now)),
        (USED, max(one.used for one in now)), (HOURS, max(one.hours for one in now)),
    )  # fmt: skip
    for metric, value in values:
        yield site.measured(metric, value, conditions=where)
    yield _added(site, SHUTDOWNS, now, lambda one: one.unsafe_shutdowns)
    yield _added(site, THROTTLE, now, lambda one: one.throttled)
    yield _added(site, HOT, now, lambda one: one.hot_minutes)


def _conditions(now: tuple[Health, ...]) -> Mapping[str, Scalar]:
    return {
        "tool": now[0].tool, "written_tb": round(sum(one.written_bytes for one in now) / 1e12, 3),
        "spare_threshold": max(one.spare_threshold for one in now), "temperature_c": max(o.temperature_c for o in now),
    }  # fmt: skip


def _added(site: Site, metric: Metric, now: tuple[Health, ...], count: Callable[[Health], int | None]) -> Outcome:
    """Return how far a counter went up in the run."""
    before = site.before
    if not isinstance(before, State):
        return NotMeasured(metric.id, site.device, str(before or "nothing was read at the start of the run"))
    pairs = [(count(a), count(b)) for a, b in zip(before.each, now, strict=False)]
    if len(before.each) != len(now) or any(a is not None and b is not None and b < a for a, b in pairs):
        reason = "the log at the end is not of the drive that was read at the start: a counter fell, or a drive is gone"
        return NotMeasured(metric.id, site.device, reason)
    grown = [b - a for a, b in pairs if a is not None and b is not None]
    if len(grown) < len(pairs):
        reason = f"{now[0].tool} does not report it; install nvme-cli: apt-get install nvme-cli"
        return NotMeasured(metric.id, site.device, reason)
    entries = sum(one.error_entries for one in now) - sum(one.error_entries for one in before.each)
    proof = f"the drive's own counter, read by {now[0].tool} at both ends of the run"
    return site.measured(metric, sum(grown), proof=proof, conditions={"error_log_entries_added": entries})


PROBES = (
    Probe(
        "nvme.health",
        "final",
        "nvme",
        (MEDIA, WARNING, SPARE, SHUTDOWNS, THROTTLE, HOT, USED, HOURS),
        health,
        before=start,
    ),
)
