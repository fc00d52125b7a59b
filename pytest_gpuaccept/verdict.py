"""Judging: one outcome against one line, and a run's verdicts to one decision. Pure.

Owns the verdict words and their order of precedence. Must not measure, read files or know pytest.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import (
    UNSPOKEN,
    Interval,
    Measurement,
    NotMeasured,
    Outcome,
    Value,
    as_float,
    printable,
    show,
)
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.profile import Card, Line, Rate, Severity, Waiver

Word = Literal["PASS", "MARGINAL", "FAIL", "ERROR", "NOT_RUN", "WAIVED", "NOT_APPLICABLE"]
DecisionWord = Literal["ACCEPTED", "ACCEPTED WITH REMARKS", "REJECTED", "INCOMPLETE"]

CLAIMED = "claimed, not proven: nothing shows that an event would have been seen"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one spec line says of one device; `margin` is in `unit`, positive inside the limit."""

    line: str
    device: str
    verdict: Word
    value: Value | None
    unit: str
    limit: str
    margin: float | None
    severity: Severity
    provenance: str
    reason: str

    def __str__(self) -> str:
        """Write `LINE[DEVICE] VERDICT: REASON`."""
        return f"{self.line}[{self.device}] {self.verdict}: {self.reason}"

    @property
    def blocks(self) -> bool:
        """Whether it stands in the way of acceptance."""
        return self.severity == "required" and self.verdict in ("FAIL", "ERROR", "NOT_RUN")

    @property
    def remark(self) -> bool:
        """Whether acceptance has to mention it."""
        if self.verdict in ("MARGINAL", "WAIVED"):
            return True
        return self.severity == "advisory" and self.verdict in ("FAIL", "ERROR", "NOT_RUN")


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of a run; `stamp` says what kind of run it was when it was not a live one."""

    word: DecisionWord
    stamp: str = ""
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Write the word with its stamp: `REPLAYED REJECTED`."""
        return f"{self.stamp} {self.word}".strip()

    def __bool__(self) -> bool:
        """Say whether the machine was accepted."""
        return self.exit_status == 0

    @property
    def exit_status(self) -> int:
        """0 accepted, 1 rejected, 10 incomplete."""
        return {"REJECTED": 1, "INCOMPLETE": 10}.get(self.word, 0)


def judge(outcome: Outcome, line: Line, metric: Metric, rate: Rate | None = None, card: Card | None = None) -> Verdict:
    """Return the one verdict of `line` on the outcome's device.

    `rate` bounds what can be true: a value above its ceiling, or above the measurement's own,
    is a measurement error and never a pass.
    """
    if why := _not_applicable(line, metric, card):
        return _verdict(outcome, line, "NOT_APPLICABLE", why)
    if isinstance(outcome, NotMeasured):
        return _verdict(outcome, line, "ERROR", outcome.reason)
    try:
        _check_sound(outcome, line, metric, rate)
        word, margin, reason = _compare(outcome, line)
    except Unmeasurable as error:
        return _verdict(outcome, line, "ERROR", str(error))
    if metric.none_seen and word != "FAIL" and not outcome.proof:
        return _verdict(outcome, line, "ERROR", CLAIMED)
    return _verdict(outcome, line, word, reason, margin)


def undecided(word: Literal["NOT_RUN", "ERROR"], line: Line, device: str, reason: str) -> Verdict:
    """Return the verdict of a line that nothing measured."""
    return _verdict(NotMeasured(line.id, device, reason), line, word, reason)


def waive(verdict: Verdict, waiver: Waiver) -> Verdict:
    """Return the verdict as waived; the reason keeps what was wrong and says who accepted it."""
    reason = f"{verdict.verdict}: {verdict.reason}; waived by {waiver.who} until {waiver.until}: {waiver.reason}"
    return replace(verdict, verdict="WAIVED", reason=reason)


def decide(  # noqa: PLR0913 - what decides, all by name
    verdicts: Mapping[tuple[str, str], Verdict],
    expected: Iterable[tuple[str, str]],
    *,
    faults: Iterable[str] = (),
    gaps: Iterable[str] = (),
    remarks: Iterable[str] = (),
    stamp: str = "",
) -> Decision:
    """Return the decision over the `expected` (line, device) pairs.

    `faults` reject, `gaps` make incomplete and `remarks` stay, whatever the lines say. A pair
    without a verdict is a gap; so is a run in which nothing at all was measured.
    """
    undecided = [f"{line}[{device}] was not decided" for line, device in expected if (line, device) not in verdicts]
    failed = [*_texts(verdicts, lambda v: v.blocks and v.verdict == "FAIL"), *faults]
    missing = [*_texts(verdicts, lambda v: v.blocks and v.verdict != "FAIL"), *undecided, *gaps]
    if not any(v.verdict in ("PASS", "MARGINAL", "FAIL") for v in verdicts.values()):
        missing.append("nothing was measured")
    noted = [*_texts(verdicts, lambda v: v.remark), *remarks]
    if failed:
        return Decision("REJECTED", stamp, (*failed, *missing))
    if missing:
        return Decision("INCOMPLETE", stamp, tuple(missing))
    return Decision("ACCEPTED WITH REMARKS" if noted else "ACCEPTED", stamp, tuple(noted))


def _texts(verdicts: Mapping[tuple[str, str], Verdict], wanted: Callable[[Verdict], bool]) -> list[str]:
    return [str(v) for v in verdicts.values() if wanted(v)]


def _not_applicable(line: Line, metric: Metric, card: Card | None) -> str:
    if line.not_applicable:
        return line.not_applicable
    if metric.needs and card and metric.needs in card.lacks:
        return f"{card.name} does not report {metric.needs.replace('_', ' ')}"
    return ""


def _check_sound(got: Measurement, line: Line, metric: Metric, rate: Rate | None) -> None:
    """Raise Unmeasurable when the value is not a measurement that could be judged."""
    if not got.unit == metric.unit == line.unit:
        _nonsense(f"unit {got.unit!r} where {metric.unit!r} was declared and the line says {line.unit!r}")
    expected = {"text": str, "flag": bool}.get(metric.unit)
    if expected is None and isinstance(got.value, bool | str):
        _nonsense(f"{got.value!r} is not a number of {metric.unit}")
    if expected is not None and not isinstance(got.value, expected):
        _nonsense(f"{got.value!r} is not a {metric.unit}")
    if got.samples < 1:
        _nonsense("the sample is empty")
    if missing := [name for name in metric.conditions if name not in got.conditions]:
        _nonsense(f"measured under unknown conditions, {', '.join(missing)}: not recorded")
    ends = _ends(got.value)
    for end in ends:
        _check_number(end, got, metric, rate)
    if list(ends) != sorted(ends):
        _nonsense(f"the range {got.value} is upside down")


def _check_number(end: float, got: Measurement, metric: Metric, rate: Rate | None) -> None:
    if not math.isfinite(end):
        _nonsense(f"{end} is not a value")
    ceilings = [c for c in (got.ceiling, rate.ceiling if rate else None) if c is not None]
    if ceilings and not end <= min(ceilings):
        what = "more than physics allows here: a measurement error"
        _nonsense(f"{show(end, metric.unit)} is above {show(min(ceilings), metric.unit)}, {what}")
    if metric.max_cv is not None and got.spread is not None and not abs(got.spread) <= metric.max_cv * abs(end):
        _nonsense(f"unstable: spread {show(got.spread, metric.unit)} is over {metric.max_cv:.1%} of the value")


def _ends(value: Value) -> tuple[float, ...]:
    if isinstance(value, Interval):
        return tuple(as_float(end) for end in (value.low, value.high) if end is not None)
    return () if isinstance(value, bool | str) else (as_float(value),)


def _nonsense(reason: str) -> NoReturn:
    raise Unmeasurable(reason)


def _compare(got: Measurement, line: Line) -> tuple[Word, float | None, str]:
    if line.equals is not None or line.one_of is not None:
        return _compare_exact(got.value, line)
    margin = min(_margins(got.value, line))
    text = f"{show(got.value, got.unit)}, limit {line.limit_text()}"
    if margin < 0:
        return "FAIL", margin, f"{text}: outside by {show(-margin, got.unit)}"
    if margin < line.guard:
        return "MARGINAL", margin, f"{text}: inside by {show(margin, got.unit)}, guard {show(line.guard, got.unit)}"
    return "PASS", margin, text


def _compare_exact(value: Value, line: Line) -> tuple[Word, None, str]:
    wanted = line.one_of if line.one_of is not None else (line.equals,)
    if isinstance(value, Interval):
        _nonsense(f"{value} is a range, and {line.limit_text()} asks for one value")
    good = any(value == want and isinstance(value, bool) == isinstance(want, bool) for want in wanted)
    return ("PASS" if good else "FAIL"), None, f"{show(value, line.unit)}, ordered {line.limit_text()[2:]}"


def _margins(value: Value, line: Line) -> list[float]:
    """Return the signed distances to the limits at the interval's worse end."""
    low, high = (value.low, value.high) if isinstance(value, Interval) else (float(value), float(value))
    margins = []
    if line.min is not None:
        margins.append(low - line.min)
    if line.max is not None:
        if high is None and low <= line.max:
            _nonsense(f"{value}: the upper end was not recorded, so {line.limit_text()} cannot be decided")
        margins.append(line.max - (low if high is None else high))
    if not margins:
        _nonsense("the line states no limit")
    return margins


def _verdict(outcome: Outcome, line: Line, word: Word, reason: str, margin: float | None = None) -> Verdict:
    got = outcome if isinstance(outcome, Measurement) else None
    limit = line.limit_text() + ("" if line.unit in UNSPOKEN else f" {line.unit}")
    note = f" ({got.note})" if got and got.note and word != "PASS" else ""
    return Verdict(
        line.id, outcome.device, word, got.value if got else None, line.unit, limit, margin,
        line.severity, got.provenance if got else "", printable(reason + note),
    )  # fmt: skip
