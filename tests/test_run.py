"""One sign-off without pytest: stamps, undecided lines, and evidence that could not be kept."""

import pytest

from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.evidence import Writer
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Catalogue, Probe
from pytest_gpuaccept.profile import Line, Profile
from pytest_gpuaccept.run import Source, start

VOLTS = Metric("lab.volts", "Supply", "W", "host")
CATALOGUE = Catalogue([Probe("lab.meter", "idle", "host", (VOLTS,))])
PROFILE = Profile(
    name="lab", title="a lab", devices={"host": ("host",)},
    lines={"lab.volts": Line(id="lab.volts", unit="W", source="order", min=100)},
)  # fmt: skip


def recorded(folder, clock, mode, volts=120):
    """Write a bundle of the given mode with one measurement, and read it."""
    writer = Writer(folder, clock, {"mode": mode}, None)
    writer.outcome(Measurement("lab.volts", "host", volts, "W"))
    writer.close("NOT JUDGED", [])
    return read_bundle(folder)


def judged(bundle, clock, folder):
    """Judge every line of the profile over a bundle and return the run, not yet finished."""
    run = start(PROFILE, CATALOGUE, clock, Source("replayed", bundle=bundle), folder)
    for name, device in run.expected():
        run.settle(run.judge(name, device))
    return run


@pytest.mark.parametrize(
    ("mode", "decision"),
    [("live", "REPLAYED ACCEPTED"), ("published", "REPLAYED ACCEPTED"), ("simulated", "REPLAYED SIMULATED ACCEPTED")],
)
def test_the_decision_says_where_its_values_come_from(mode, decision, clock, tmp_path):
    """A replay is stamped, and so is what was simulated, also in a replay of the replay."""
    first = judged(recorded(tmp_path / "a", clock, mode), clock, tmp_path / "b")
    assert str(first.finish("")) == decision
    again = judged(read_bundle(tmp_path / "b"), clock, tmp_path / "c")
    assert str(again.finish("")) == decision
    assert (tmp_path / "c" / "verdicts.jsonl").read_bytes() == (tmp_path / "b" / "verdicts.jsonl").read_bytes()


@pytest.mark.parametrize(("volts", "word"), [(120, "INCOMPLETE"), (99, "REJECTED")])
def test_without_its_evidence_nothing_is_accepted(volts, word, clock, tmp_path):
    """When the evidence could not be written, a pass is INCOMPLETE and a proven failure still rejects."""
    run = judged(recorded(tmp_path / "a", clock, "live", volts), clock, tmp_path / "b")
    run.writer._break(OSError(28, "No space left on device"))
    decision = run.finish("")
    assert decision.word == word
    assert "No space left on device" in decision.reasons[-1]
    assert read_bundle(tmp_path / "b").manifest["decision"] is None
    run.writer._file.close()


def test_a_recording_that_is_not_whole_accepts_nothing(clock, tmp_path):
    """Behind its last checkpoint a recording without an end is covered by no digest: its replay is INCOMPLETE."""
    writer = Writer(tmp_path / "a", clock, {"mode": "live"}, None)
    writer.outcome(Measurement("lab.volts", "host", 120, "W"))
    writer._file.close()
    run = judged(read_bundle(tmp_path / "a"), clock, tmp_path / "b")
    assert run.verdicts["lab.volts", "host"].verdict == "PASS"
    decision = run.finish("")
    assert decision.word == "INCOMPLETE"
    assert "cut off" in decision.reasons[0]


def test_a_line_that_nobody_judged_is_not_run(clock, tmp_path):
    """Completeness is the profile's lines minus those that were settled."""
    run = start(PROFILE, CATALOGUE, clock, Source("replayed", bundle=recorded(tmp_path / "a", clock, "live")), None)
    assert run.finish("nobody asked").word == "INCOMPLETE"
    assert run.verdicts["lab.volts", "host"].reason == "nobody asked"
