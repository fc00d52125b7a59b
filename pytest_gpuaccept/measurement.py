"""Values: what a metric is, what one measurement of it said, and the absence of one.

Owns the closed vocabulary of units, device kinds and provenances. Must not judge, read or write.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from pytest_gpuaccept.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from pytest_gpuaccept.probe import Inputs

Unit = Literal[
    "TFLOPS", "GB/s", "MB/s", "IOPS", "tok/s", "GB", "GiB", "MT/s", "MHz", "C", "W", "s", "ms",
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
class Metric:
    """A declared quantity; nothing is measured or judged that was not declared.

    Args:
        id: dotted name; it is also the id of the spec line.
        title: what a reader of the report sees.
        unit: one of the closed vocabulary; `text` is a string, `flag` a boolean.
        kind: the kind of device that it is of.
        rate: name of the physical rate (profile.Rate) that bounds it, if one does.
        needs: capability without which the line is NOT_APPLICABLE (`ecc`, `row_remap`, ...).
        none_seen: an acceptable value says "none seen" and passes only with a proof.
        conditions: names that a measurement must state to mean anything (`iodepth`, ...).
        max_cv: largest coefficient of variation (spread / value) that is still a measurement.
        derive: computes it from other metrics; such a metric is never taken from a recording.

    """

    id: str
    title: str
    unit: Unit
    kind: Kind
    rate: str | None = None
    needs: str | None = None
    none_seen: bool = False
    conditions: tuple[str, ...] = ()
    max_cv: float | None = None
    derive: "Callable[[Inputs], Measurement] | None" = None

    def __post_init__(self) -> None:
        """Refuse a unit or device kind outside the vocabulary (InputError)."""
        for word, known, what in ((self.unit, UNITS, "unit"), (self.kind, KINDS, "device kind")):
            if word not in known:
                near = did_you_mean(word, known)
                message = f"metric {self.id}: unknown {what} {word!r}{near}; known: {', '.join(known)}"
                raise InputError(message)


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
