"""Values: what one measurement said, and the absence of one.

Owns the closed vocabulary of units, device kinds and provenances. Must not judge, read or write.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Unit = Literal[
    "TFLOPS", "GB/s", "MB/s", "Mb/s", "IOPS", "tok/s", "GB", "GiB", "MT/s", "MHz", "C", "W", "h", "s", "ms", "us",
    "%", "ratio", "count", "1/min", "gen", "lanes", "text", "flag",
]  # fmt: skip
Kind = Literal["gpu", "gpu_pair", "nvme", "nic", "host", "vllm", "llamacpp"]
Provenance = Literal["measured", "calculated", "published", "attested", "simulated"]

UNITS: tuple[str, ...] = get_args(Unit)
KINDS: tuple[str, ...] = get_args(Kind)
UNSPOKEN = ("", "text", "flag", "count", "ratio", "gen", "lanes")
"""Units that are not written behind a value."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value known only as a range, judged at its worse end.

    `high` None means that no upper end is known ("errors were logged": at least one).
    """

    low: float
    high: float | None

    def __str__(self) -> str:
        """Write `19-22`, or `>=1` when the upper end is open."""
        low = f"{as_float(self.low):g}"
        return f">={low}" if self.high is None else f"{low}-{as_float(self.high):g}"


Value = bool | int | float | str | Interval


@dataclass(frozen=True, slots=True)
class Measurement:
    """One value of one metric on one device, with what it was taken under.

    Args:
        metric: the metric's id.
        device: `gpu0`, `gpu0-gpu1`, `nvme0`, `nic0`, `host`, `vllm`, `llamacpp`.
        value: in `unit`.
        unit: must be the metric's own unit, or the judge answers ERROR.
        provenance: how it came about.
        spread: standard deviation in `unit`, if several samples were taken.
        samples: how many samples stand behind the value; 0 is judged ERROR.
        ceiling: largest value that physics allows under the measured conditions, in `unit`.
        proof: for a "none seen": what shows that one would have been seen.
        conditions: parameters and circumstances, by name.
        note: one sentence for the reader.

    """

    metric: str
    device: str
    value: Value
    unit: str
    provenance: Provenance = "measured"
    spread: float | None = None
    samples: int = 1
    ceiling: float | None = None
    proof: str | None = None
    conditions: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class NotMeasured:
    """The absence of a value, with its reason; a type of its own, never None and never 0."""

    metric: str
    device: str
    reason: str


Outcome = Measurement | NotMeasured


def number(value: Value) -> float | None:
    """Return a plain number as float, the midpoint of a closed interval, else None."""
    if isinstance(value, Interval):
        low, high = as_float(value.low), value.high
        return low if high is None else (low + as_float(high)) / 2
    return None if isinstance(value, bool | str) else as_float(value)


def as_float(value: float) -> float:
    """Return a number as float; an integer beyond floats is infinite, hence never a pass."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def show(value: Value, unit: str = "") -> str:
    """Write a value for people: at most five significant digits, unit behind it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return printable(value)
    suffix = "" if unit in UNSPOKEN else f" {unit}"
    if isinstance(value, Interval):
        return f"{value}{suffix}"
    return f"{_digits(value)}{suffix}"


def printable(text: str) -> str:
    """Return text from a machine with what could steer a terminal written out."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _digits(value: float) -> str:
    value = as_float(value)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e9:  # noqa: PLR2004 - beyond it, grouping misleads
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.5g}"  # noqa: PLR2004
