"""Metrics: quantities declared before they are taken, and how some follow from others.

Owns the declaration and what a derivation may look at. Must not measure or judge.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pytest_gpuaccept.errors import InputError, did_you_mean
from pytest_gpuaccept.measurement import KINDS, UNITS, Kind, Measurement, Unit
from pytest_gpuaccept.profile import Profile


class Inputs(Protocol):
    """What a derivation sees: the table, the profile, and the device it is asked for."""

    @property
    def device(self) -> str:
        """The device that the derivation is asked for."""

    @property
    def profile(self) -> Profile:
        """The profile of the run."""

    def get(self, metric: str, device: str | None = None) -> Measurement:
        """Return a measurement; raises Unmeasurable with its reason when there is none."""

    def number(self, metric: str, device: str | None = None) -> float:
        """Return a measurement's value as float, an interval's midpoint; raises Unmeasurable."""


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
        attestable: no sensor shows it, so a named person may look and attest it.
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
    attestable: bool = False
    none_seen: bool = False
    conditions: tuple[str, ...] = ()
    max_cv: float | None = None
    derive: Callable[[Inputs], Measurement] | None = None

    def __post_init__(self) -> None:
        """Refuse a unit or device kind outside the vocabulary (InputError)."""
        for word, known, what in ((self.unit, UNITS, "unit"), (self.kind, KINDS, "device kind")):
            if word not in known:
                near = did_you_mean(word, known)
                message = f"metric {self.id}: unknown {what} {word!r}{near}; known: {', '.join(known)}"
                raise InputError(message)
