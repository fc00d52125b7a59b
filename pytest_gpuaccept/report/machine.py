"""Which machine and which cards a report speaks of: facts with their titles, times, one row a GPU.

Reads a bundle only. Must not judge, and must not guess: what was not told stays untold.
"""

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gpuaccept.bundle import Bundle
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome, printable, show

UNTOLD = "-"
MODEL = "gpu.name"
COLUMNS = {"Model": MODEL, "UUID": "uuid", "PCI address": "bus_id", "Serial": "gpu.serial", "VBIOS": "gpu.vbios"}
"""Column -> the metric that tells it, or the condition that the measurements of a card state."""
TITLES = {"cpu": "CPU", "gpus": "GPUs"}
"""Facts whose titles are more than their first letter made large."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card: what stands in each column, or the reason why it told nothing at all."""

    device: str
    told: Mapping[str, str]
    absent: str


def gpus(bundle: Bundle) -> list[Gpu]:
    """Return the cards that were ordered, missing ones included, and behind them any others that were measured."""
    outcomes = list(bundle.table().values())
    return [_gpu(device, [o for o in outcomes if o.device == device]) for device in _devices(bundle, outcomes)]


def _devices(bundle: Bundle, outcomes: Iterable[Outcome]) -> list[str]:
    ordered = bundle.profile.devices.get("gpu", ()) if bundle.profile else ()
    known = {o.device for o in outcomes if isinstance(o, Measurement) and re.fullmatch("gpu[0-9]{1,4}", o.device)}
    return list(dict.fromkeys([*ordered, *sorted(known, key=lambda device: int(device.removeprefix("gpu")))]))


def _gpu(device: str, outcomes: list[Outcome]) -> Gpu:
    measured = [o for o in outcomes if isinstance(o, Measurement)]
    told = {title: _told(source, measured) for title, source in COLUMNS.items()}
    if set(told.values()) != {UNTOLD}:
        return Gpu(device, told, "")
    reasons = (printable(o.reason) for o in outcomes if isinstance(o, NotMeasured) and o.metric == MODEL)
    return Gpu(device, told, next(reasons, "this evidence says nothing of it"))


def _told(source: str, measured: list[Measurement]) -> str:
    """Return what the measurements of one card say; should they differ, all of it."""
    values = [show(m.value, m.unit) for m in measured if m.metric == source]
    values += [show(m.conditions[source]) for m in measured if source in m.conditions]
    return ", ".join(dict.fromkeys(values)) or UNTOLD


@dataclass(frozen=True, slots=True)
class Counted:
    """What was seen to go wrong on one device: how often while what ran, and what."""

    device: str
    by_phase: Mapping[str, str]
    what: str


def counted(bundle: Bundle) -> list[Counted] | None:
    """Return the devices on which errors were seen, by what ran; None where nobody watched."""
    watched = [o for o in bundle.table().values() if isinstance(o, Measurement) and o.metric.endswith(WATCHED)]
    if not watched:
        return None
    loud = [o for o in watched if o.conditions]
    return [Counted(o.device, {ran: show(n) for ran, n in o.conditions.items()}, printable(o.note)) for o in loud]


WATCHED = ".watch.events"


def facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the manifest says of the machine, each fact with its title: `machine_id` is "Machine id"."""
    return [(_title(key), printable(str(value))) for key, value in manifest.get("host", {}).items()]


def _title(key: str) -> str:
    return TITLES.get(key, key[:1].upper() + key[1:].replace("_", " "))


def period(manifest: Mapping[str, Any]) -> str:
    """Return from when to when a run lasted, and how long; a run without an end was cut off."""
    began, ended = manifest.get("started", "unknown"), manifest.get("ended")
    if ended is None:
        return f"{moment(began)}, cut off"
    start, end = _time(began), _time(ended)
    lasted = f" ({_duration(end - start)})" if start and end else ""
    return f"{moment(began)} to {moment(ended)}{lasted}"


def moment(text: object) -> str:
    """Return a time of the evidence to the second; what is no such time is shown as it stands."""
    time = _time(text)
    return f"{time:%Y-%m-%d %H:%M:%S} UTC" if time else printable(str(text))


def _time(text: object) -> dt.datetime | None:
    try:
        time = dt.datetime.fromisoformat(str(text))
        return time.astimezone(dt.UTC).replace(microsecond=0) if time.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _duration(lasted: dt.timedelta) -> str:
    seconds = int(lasted.total_seconds())
    if seconds < 0:
        return "the clock was set back"
    minutes, rest = divmod(seconds, 60)
    parts = (minutes // 60, "h"), (minutes % 60, "min"), (rest, "s")
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"
