"""Published figures to a bundle: what a seller or an article states, kept as evidence of that claim.

Owns the figures file. A published figure is judged like any other, but nothing in it proves that a
channel was alive, so its zeros are claims.
"""

import datetime as dt
import tomllib
from pathlib import Path

from pydantic import ValidationError

from pytest_gpuaccept import __version__
from pytest_gpuaccept.errors import InputError, did_you_mean
from pytest_gpuaccept.evidence import Writer
from pytest_gpuaccept.measurement import Interval, Measurement
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.profile import Scalar, StrictModel
from pytest_gpuaccept.world import SystemClock


class Range(StrictModel):
    """A figure published as a range; without `high`, "at least"."""

    low: float
    high: float | None = None


class Figure(StrictModel):
    """One published quantity with its value by device."""

    metric: str
    unit: str
    values: dict[str, Scalar | Range]
    conditions: dict[str, Scalar] = {}
    note: str = ""


class Figures(StrictModel):
    """A figures file: who published what about which machine, and when it was measured."""

    source: str
    machine: dict[str, Scalar]
    measured: dt.date
    figure: list[Figure]


def transcribe(file: Path, folder: Path, catalogue: Catalogue) -> int:
    """Write the figures of `file` as a bundle into `folder`; return how many there are.

    Raises InputError for a file that cannot be read and for figures of undeclared metrics or units.
    """
    try:
        text = file.read_text(encoding="utf-8")
        figures = Figures.model_validate(tomllib.loads(text))
    except (OSError, ValueError, RecursionError) as error:
        message = f"{file} is no file of figures: {_first(error)}"
        raise InputError(message) from None
    outcomes = [m for figure in figures.figure for m in _measurements(figure, catalogue, file)]
    places = [(m.metric, m.device) for m in outcomes]
    if twice := {place for place in places if places.count(place) > 1}:
        message = f"{file}: stated more than once: {', '.join(f'{m}[{d}]' for m, d in sorted(twice))}"
        raise InputError(message)
    host = {**figures.machine, "measured": figures.measured.isoformat()}
    manifest = {"mode": "published", "versions": {"gpuaccept": __version__}, "source": figures.source, "host": host}
    writer = Writer(folder, SystemClock(), manifest, None)
    writer.attach(file.name, text)
    for outcome in outcomes:
        writer.outcome(outcome)
    writer.close("NOT JUDGED", [])
    return len(outcomes)


def _first(error: Exception) -> str:
    """Return what is wrong in one line: of several mistakes the first, and how many there are more."""
    if not isinstance(error, ValidationError):
        return str(error)
    first, more = error.errors()[0], error.error_count() - 1
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" + (f" (and {more} more)" if more else "")


def _measurements(figure: Figure, catalogue: Catalogue, file: Path) -> list[Measurement]:
    metric = catalogue.metrics.get(figure.metric)
    if metric is None or metric.unit != figure.unit:
        near = did_you_mean(figure.metric, catalogue.metrics) if metric is None else f": measured in {metric.unit}"
        message = f"{file}: figure {figure.metric} in {figure.unit}: no such metric and unit{near}"
        raise InputError(message)
    return [
        Measurement(
            figure.metric, device, Interval(value.low, value.high) if isinstance(value, Range) else value,
            figure.unit, "published", conditions=figure.conditions, note=figure.note,
        )
        for device, value in figure.values.items()
    ]  # fmt: skip
