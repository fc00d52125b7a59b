"""The main job on real input: the published case study, judged as ordered."""

import json
from pathlib import Path

import pytest

from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.transcribe import transcribe

GOLDEN = Path(__file__).parent / "golden" / "case-study-2026-04-10.txt"


@pytest.fixture(scope="module")
def judged(case_study):
    """The judged bundle."""
    return read_bundle(case_study)


def test_every_verdict_is_the_golden_one(judged):
    """Line by line and device by device, verdict and reason are those of the golden file."""
    assert [str(v) for v in judged.verdicts] == GOLDEN.read_text().splitlines()


def test_the_machine_is_rejected(case_study, judged):
    """The decision is REJECTED, stamped as a replay, with exit status 1."""
    assert judged.manifest["decision"] == "REPLAYED REJECTED"
    assert judged.manifest["origin"]["mode"] == "published"
    assert (case_study / "status.txt").read_text() == "1"
    last = (case_study / "terminal.txt").read_text().splitlines()[-1]
    assert last == f"REPLAYED REJECTED  report: {case_study / 'report.html'}"


@pytest.mark.parametrize(
    ("line", "device", "word"),
    [
        ("vllm.kernel", "vllm", "FAIL"),
        ("vllm.single.decode", "vllm", "FAIL"),
        ("vllm.roofline", "vllm", "FAIL"),
        ("engines.cross", "host", "FAIL"),
        ("gpu.power.limit_uniform", "host", "FAIL"),
        ("gpu.persistence", "gpu0", "FAIL"),
        ("nic.flaps", "nic0", "FAIL"),
        ("gpu.aer.corrected", "gpu3", "FAIL"),
        ("gpu.aer.outlier", "host", "FAIL"),
        ("monitoring.prometheus", "host", "FAIL"),
        ("service.persistence_boot", "host", "FAIL"),
        ("power.circuit", "host", "PASS"),
        ("host.lvm.unallocated", "host", "FAIL"),
        ("gpu.combined.tflops", "gpu1", "MARGINAL"),
        ("gpu.burn.errors", "gpu0", "ERROR"),
        ("gpu.burn.throttle", "gpu3", "ERROR"),
        ("nvme.read.rand", "nvme0", "ERROR"),
        ("gpu.copy.d2h", "gpu0", "ERROR"),
        ("gpu.ecc.uncorrected", "gpu0", "NOT_APPLICABLE"),
        ("gpu.gemm.fp16", "gpu1", "PASS"),
        ("gpu.burn.tflops", "gpu1", "PASS"),
        ("nvme.read.seq", "nvme0", "PASS"),
        ("gpu.pcie.width", "gpu3", "PASS"),
    ],
)
def test_what_the_article_did_not_say_is_said(line, device, word, judged):
    """The verdicts that matter most, apart from the golden file."""
    assert next(v.verdict for v in judged.verdicts if (v.line, v.device) == (line, device)) == word


def test_the_shipped_suite_leaves_no_line_open(judged):
    """Unfiltered, every line of the profile is decided by an item of the suite."""
    assert not [v for v in judged.verdicts if v.verdict == "NOT_RUN"]
    assert [[v.line, v.device] for v in judged.verdicts] == judged.manifest["expected"]


def test_the_recording_is_what_its_figures_file_says(recording, catalogue, tmp_path):
    """Transcribing the figures again gives the shipped measurements; the recording is intact."""
    transcribe(Path(f"{recording}.figures.toml"), tmp_path / "again", catalogue)
    shipped = read_bundle(recording)
    assert shipped.flaws == ()
    assert read_bundle(tmp_path / "again").table() == shipped.table()
    assert {outcome.provenance for outcome in shipped.table().values()} == {"published"}


def test_verdicts_are_json_lines_with_ten_keys(case_study, items):
    """Each line of verdicts.jsonl is an object with the documented keys."""
    rows = [json.loads(row) for row in (case_study / "verdicts.jsonl").read_text().splitlines()]
    assert len(rows) == items
    assert {" ".join(row) for row in rows} == {"line device verdict value unit limit margin severity provenance reason"}
