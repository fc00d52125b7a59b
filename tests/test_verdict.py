"""Judging and deciding, stated as laws that hold for every input."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.profile import Line, Rate, Waiver
from pytest_gpuaccept.verdict import CLAIMED, Verdict, decide, judge, undecided, waive

RATE = Metric("x.rate", "a rate", "TFLOPS", "gpu", max_cv=0.05)
ZERO = Metric("x.errors", "errors", "count", "gpu", none_seen=True)
TEXT = Metric("x.text", "a text", "text", "gpu")
FLAG = Metric("x.flag", "a flag", "flag", "gpu")
WORDS = {"PASS", "MARGINAL", "FAIL", "ERROR"}

finite = st.floats(allow_nan=False, allow_infinity=False)
moderate = st.floats(min_value=-1e12, max_value=1e12)


def line(metric=RATE, **limits):
    """Return a line of `metric` with the given limits."""
    return Line(id=metric.id, unit=metric.unit, source="test", **limits)


def got(value, metric=RATE, **more):
    """Return a measurement of `metric`."""
    return Measurement(metric.id, "gpu0", value, more.pop("unit", metric.unit), **more)


def word(value, metric=RATE, limits=None, rate=None, **more):
    """Return the verdict's word for a value."""
    return judge(got(value, metric, **more), line(metric, **(limits or {"min": 150})), metric, rate).verdict


@given(value=finite, low=finite, guard=st.floats(min_value=0, max_value=1e6))
def test_every_finite_value_has_exactly_one_verdict(value, low, guard):
    """Any finite value against any limit gives one of four words and a reason."""
    verdict = judge(got(value), line(min=low, guard=guard), RATE)
    assert verdict.verdict in WORDS
    assert verdict.reason
    assert (verdict.verdict in ("PASS", "MARGINAL")) == (value >= low)


@given(low=finite, high=finite, value=st.sampled_from([math.nan, math.inf, -math.inf, 10**400]))
def test_what_is_not_finite_never_passes(value, low, high):
    """NaN, infinity and numbers beyond a float are ERROR whatever the limits are."""
    low, high = min(low, high), max(low, high)
    for limits in ({"min": low}, {"max": high}, {"min": low, "max": high}, {"equals": low}):
        assert word(value, limits=limits) == "ERROR"
    assert word(Interval(0.0, value)) == "ERROR"
    assert word(Interval(value, None), limits={"max": high}) == "ERROR"


@given(value=moderate, limit=moderate, guard=st.floats(min_value=0, max_value=1e6))
def test_mirroring_value_and_limit_mirrors_nothing_else(value, limit, guard):
    """Swapping min and max together with the sign leaves the verdict and the margin as they were."""
    floor = judge(got(value), line(min=limit, guard=guard), RATE)
    roof = judge(got(-value), line(max=-limit, guard=guard), RATE)
    assert (floor.verdict, floor.margin) == (roof.verdict, roof.margin)


@given(ceiling=st.floats(min_value=1, max_value=1e9), over=st.floats(min_value=1.0001, max_value=10))
def test_a_value_above_physics_is_an_error(ceiling, over):
    """More than the card, or the measured clock, allows is a measurement error and no pass."""
    assert word(ceiling * over, limits={"min": 0}, rate=Rate(None, ceiling, "TFLOPS")) == "ERROR"
    assert word(ceiling * over, limits={"min": 0}, ceiling=ceiling) == "ERROR"
    assert word(ceiling, limits={"min": 0}, rate=Rate(None, ceiling, "TFLOPS")) == "PASS"
    assert word(1.0, limits={"min": 0}, ceiling=math.nan, rate=Rate(None, ceiling, "TFLOPS")) == "ERROR"


@given(low=moderate, width=st.floats(min_value=0, max_value=1e6), limit=moderate)
def test_an_interval_is_judged_at_its_worse_end(low, width, limit):
    """A range has the verdict of its lower end against a floor and of its upper end against a roof."""
    interval = Interval(low, low + width)
    assert word(interval, limits={"min": limit}) == word(interval.low, limits={"min": limit})
    assert word(interval, limits={"max": limit}) == word(interval.high, limits={"max": limit})


def test_an_open_interval_fails_or_is_undecided_but_never_passes_a_roof():
    """At least one error fails a limit of none, and cannot be said to be below a hundred."""
    assert word(Interval(1, None), ZERO, {"max": 0}) == "FAIL"
    assert word(Interval(1, None), ZERO, {"max": 100}, proof="channel alive") == "ERROR"
    assert word(Interval(160, None), limits={"min": 150}) == "PASS"
    assert word(Interval(2, 1), limits={"min": 0}) == "ERROR"


@pytest.mark.parametrize(
    ("value", "expected"), [(149.9, "FAIL"), (150, "MARGINAL"), (152.5, "MARGINAL"), (153, "PASS"), (171.7, "PASS")]
)
def test_the_guard_band_lies_inside_the_limit(value, expected):
    """Within the guard a value is MARGINAL, from its inner edge on it passes."""
    assert word(value, limits={"min": 150, "guard": 3}) == expected


@pytest.mark.parametrize("value", [0, 0.0, Interval(0, 0)])
def test_none_seen_without_proof_is_an_error(value):
    """A zero passes only when something shows that an event would have been seen."""
    bare = judge(got(value, ZERO), line(ZERO, max=0), ZERO)
    assert (bare.verdict, bare.reason) == ("ERROR", CLAIMED)
    assert word(value, ZERO, {"max": 0}, proof="") == "ERROR"
    assert word(value, ZERO, {"max": 0}, proof="detector rehearsed") == "PASS"
    assert word(1, ZERO, {"max": 0}) == "FAIL"


@pytest.mark.parametrize(
    ("value", "metric", "limits", "more"),
    [
        ("170", RATE, {"min": 150}, {}),
        (True, RATE, {"min": 0}, {}),
        (True, ZERO, {"equals": 1}, {"proof": "p"}),
        (1, FLAG, {"equals": True}, {}),
        (8.9, TEXT, {"equals": "8.9"}, {}),
        (170, RATE, {"min": 150}, {"unit": "GB/s"}),
        (170, RATE, {"min": 150}, {"samples": 0}),
        (170, RATE, {"min": 150}, {"spread": 20}),
        (170, RATE, {"min": 150}, {"spread": math.nan}),
        (Interval(1, 2), RATE, {"equals": 1}, {}),
    ],
)
def test_nonsense_is_an_error(value, metric, limits, more):
    """A value of the wrong type or unit, without samples, or unstable, is not judged."""
    assert word(value, metric, limits, **more) == "ERROR"


def test_a_measurement_must_state_its_conditions():
    """A rate whose number of jobs was not recorded is ERROR, with it it is judged."""
    metric = replace(RATE, conditions=("iodepth", "numjobs"))
    verdict = judge(got(170, metric, conditions={"iodepth": 32}), line(min=150), metric)
    assert verdict.verdict == "ERROR"
    assert "numjobs" in verdict.reason
    assert word(170, metric, conditions={"iodepth": 32, "numjobs": 4}) == "PASS"


@pytest.mark.parametrize(
    ("value", "limits", "expected"),
    [
        ("marlin", {"equals": "marlin"}, "PASS"),
        ("awq", {"equals": "marlin"}, "FAIL"),
        ("awq", {"one_of": ("marlin", "machete")}, "FAIL"),
        ("machete", {"one_of": ("marlin", "machete")}, "PASS"),
    ],
)
def test_exact_limits_compare_exactly(value, limits, expected):
    """Text is equal or it is not; there is no nearly."""
    assert word(value, TEXT, limits) == expected


def test_a_line_without_a_limit_passes_nothing():
    """A line that states no limit decides nothing."""
    assert judge(got(170), line(), RATE).verdict == "ERROR"


def test_what_was_not_measured_is_an_error_with_its_reason():
    """An absent value is ERROR and says why it is absent."""
    verdict = judge(NotMeasured(RATE.id, "gpu0", "the card fell off the bus"), line(min=150), RATE)
    assert (verdict.verdict, verdict.reason, verdict.value) == ("ERROR", "the card fell off the bus", None)


def test_not_applicable_is_decided_before_anything_is_measured():
    """A line that the profile declares not applicable needs no value."""
    verdict = judge(NotMeasured(RATE.id, "gpu0", "x"), line(not_applicable="no such part"), RATE)
    assert (verdict.verdict, verdict.blocks, verdict.remark) == ("NOT_APPLICABLE", False, False)


def verdict_of(kind, severity="required", name="a"):
    """Return a verdict with the given word."""
    return Verdict(name, "gpu0", kind, 1.0, "W", ">= 1 W", 0.0, severity, "measured", "because")


words = st.sampled_from(["PASS", "MARGINAL", "FAIL", "ERROR", "NOT_RUN", "WAIVED", "NOT_APPLICABLE"])
verdicts = st.lists(st.tuples(words, st.sampled_from(["required", "advisory"])), max_size=6)


@given(kinds=verdicts, undecided_lines=st.integers(0, 2))
def test_nothing_is_accepted_while_a_required_line_is_undecided(kinds, undecided_lines):
    """ACCEPTED needs every expected pair decided, nothing required failed, and something measured."""
    table = {(str(i), "gpu0"): verdict_of(kind, severity, str(i)) for i, (kind, severity) in enumerate(kinds)}
    expected = [*table, *((f"open{i}", "gpu0") for i in range(undecided_lines))]
    decision = decide(table, expected)
    blocking = [v for v in table.values() if v.blocks]
    if any(v.verdict == "FAIL" for v in blocking):
        assert decision.word == "REJECTED"
    elif blocking or undecided_lines or not any(v.verdict in ("PASS", "MARGINAL", "FAIL") for v in table.values()):
        assert decision.word == "INCOMPLETE"
    else:
        assert decision.word == ("ACCEPTED WITH REMARKS" if any(v.remark for v in table.values()) else "ACCEPTED")
    assert decision.exit_status == {"REJECTED": 1, "INCOMPLETE": 10}.get(decision.word, 0)


def test_an_empty_run_is_incomplete():
    """No lines, or only lines that do not apply, accept nothing."""
    assert decide({}, []).word == "INCOMPLETE"
    assert decide({("a", "gpu0"): verdict_of("NOT_APPLICABLE")}, [("a", "gpu0")]).word == "INCOMPLETE"


def test_faults_gaps_and_remarks_count_whatever_the_lines_say():
    """A failed test of one's own rejects, a cut-off run is incomplete, a quick one has a remark."""
    table = {("a", "gpu0"): verdict_of("PASS")}
    assert decide(table, table).word == "ACCEPTED"
    assert decide(table, table, faults=["test_mine failed"]).word == "REJECTED"
    assert decide(table, table, gaps=["cut off"]).word == "INCOMPLETE"
    assert decide(table, table, remarks=["quick"]).word == "ACCEPTED WITH REMARKS"
    assert str(decide(table, table, stamp="SIMULATED")) == "SIMULATED ACCEPTED"


@given(kind=words)
def test_a_waived_verdict_keeps_what_was_wrong(kind):
    """A waiver says who accepted what until when, and leaves the value standing."""
    assume(kind != "PASS")
    waiver = Waiver.model_validate_json(
        '{"line":"a","device":"gpu0","reason":"agreed","who":"J. Roe","until":"2030-01-01"}'
    )
    waived = waive(verdict_of(kind), waiver)
    assert (waived.verdict, waived.value, waived.remark, waived.blocks) == ("WAIVED", 1.0, True, False)
    assert all(text in waived.reason for text in ("because", "agreed", "J. Roe", "2030-01-01"))


def test_undecided_lines_carry_their_reason():
    """A line that nothing decided is NOT_RUN with the reason given."""
    assert undecided("NOT_RUN", line(min=1), "gpu3", "deselected").reason == "deselected"
