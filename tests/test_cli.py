"""The `gpuaccept` command: each verb's output and exit status."""

import shutil
from collections import Counter

import pytest

from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.cli import main
from pytest_gpuaccept.loader import SHIPPED


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run every command in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bundle(case_study, tmp_path):
    """A copy of the judged case study."""
    return shutil.copytree(case_study, tmp_path / "bundle")


def test_lint_says_that_the_shipped_profiles_are_good(capsys):
    """Without names, every known profile is checked."""
    assert main(["lint"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: " in out for name in ("4x4090", "8x4090", "4xpro6000", "8xl40", "1xh100", "1xh200", "host"))


def test_lint_names_every_mistake(tmp_path, capsys):
    """A bad file is exit status 4, with file, line, key and reason on standard error; the rest is still checked."""
    (tmp_path / "bad.toml").write_text('title = "t"\n[line."gpu.xit"]\nmax = 0\nunit = "count"\nsource = "s"\n')
    assert main(["lint", "bad.toml", "host"]) == 4
    captured = capsys.readouterr()
    assert "bad.toml: line gpu.xit: no probe declares this metric (did you mean 'gpu.xid'?)" in captured.err
    assert "host: " in captured.out


def test_verify_tells_intact_from_changed(bundle, capsys):
    """An intact bundle is 0 with its decision, a changed one is 1 with what was changed."""
    assert main(["verify", str(bundle)]) == 0
    assert "REPLAYED REJECTED" in capsys.readouterr().out
    (bundle / "verdicts.jsonl").write_text("")
    assert main(["verify", str(bundle)]) == 1
    assert "NOT INTACT verdicts.jsonl" in capsys.readouterr().out


def test_a_page_that_was_edited_is_not_the_evidences(bundle, capsys):
    """verify renders the page again, and names one that says something else."""
    page = bundle / "report.html"
    page.write_text(page.read_text().replace("REJECTED", "ACCEPTED"))
    assert main(["verify", str(bundle)]) == 1
    assert "NOT INTACT report.html" in capsys.readouterr().out


def test_render_of_changed_evidence_says_so(bundle, capsys):
    """A page is rendered, INCOMPLETE, and the exit status is that of a defect."""
    (bundle / "verdicts.jsonl").write_text("")
    assert main(["render", str(bundle)]) == 1
    out = capsys.readouterr().out
    assert "NOT INTACT verdicts.jsonl" in out
    assert out.splitlines()[-1].startswith("REPLAYED INCOMPLETE")


def test_rejudge_by_the_same_profile_changes_nothing(bundle, capsys, items):
    """The same measurements under the same limits give the same verdicts and the profile's digest."""
    assert main(["rejudge", str(bundle), "--hw=4x4090"]) == 1
    out = capsys.readouterr().out
    assert "(was " not in out
    assert len(out.splitlines()) == 1
    assert main(["rejudge", str(bundle), "--hw=4x4090", "-v"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == items + 1
    assert out.splitlines()[-1].startswith("REPLAYED REJECTED  profile 4x4090 sha256 ")


def test_rejudge_by_other_limits_shows_what_changed(bundle, tmp_path, capsys):
    """A verdict that differs from the recorded one is shown with both; the outcome can be kept."""
    limit = '[line."gpu.gemm.fp16"]\nmin = 165\nunit = "TFLOPS"\nsource = "stricter"\n'
    (tmp_path / "strict.toml").write_text(f'title = "strict"\ninherits = ["4x4090"]\n{limit}')
    assert main(["rejudge", str(bundle), "--hw=./strict.toml", "--evidence=again"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "(was " in line]
    assert len(lines) == 1
    assert lines[0].startswith("FAIL           gpu.gemm.fp16[gpu1]: 162.1 TFLOPS")
    assert lines[0].endswith("(was PASS)")
    assert read_bundle(tmp_path / "again").flaws == ()


def test_rejudge_says_which_verdicts_it_leaves_out(bundle, tmp_path, capsys):
    """A profile of one line does not make the failures of the others go away in silence."""
    line = '[line."host.cpu.cores"]\nmin = 1\nunit = "count"\nsource = "any"\n'
    (tmp_path / "tiny.toml").write_text(f'title = "tiny"\n{line}')
    assert main(["rejudge", str(bundle), "--hw=tiny.toml"]) == 0
    left_out = Counter(v.verdict for v in read_bundle(bundle).verdicts if v.line != "host.cpu.cores")
    told = capsys.readouterr().out.splitlines()[-2]
    assert told.startswith("not in this profile, and so not judged: ")
    assert f"{left_out['FAIL']} FAIL" in told


def test_a_profile_has_one_digest_wherever_its_files_lie(bundle, tmp_path, capsys):
    """A copy of the shipped files, in another folder, is the same order."""
    digests = []
    for prepare in (lambda: None, lambda: main(["init"])):
        prepare()
        main(["rejudge", str(bundle), "--hw=4x4090"])
        digests.append(capsys.readouterr().out.split()[-1])
    assert digests[0] == digests[1]


def test_a_changed_byte_is_one_flaw_however_many_checkpoints_follow(bundle, capsys):
    """The first checkpoint that does not fit says where; those behind it cannot."""
    text = (bundle / "evidence.jsonl").read_text()
    (bundle / "evidence.jsonl").write_text(text.replace("171.7", "199.9", 1))
    assert main(["verify", str(bundle)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("and this checkpoint was changed" in line for line in lines) <= 1


def test_a_changed_bundle_is_not_judged(bundle, capsys):
    """Evidence whose digests do not hold is bad input for rejudge."""
    text = (bundle / "evidence.jsonl").read_text()
    (bundle / "evidence.jsonl").write_text(text.replace("171.7", "199.9", 1))
    assert main(["rejudge", str(bundle), "--hw=4x4090"]) == 4
    assert "not intact" in capsys.readouterr().err


def test_render_makes_the_report_again(bundle, capsys):
    """The page is written into the bundle, whose integrity does not depend on it."""
    (bundle / "report.html").unlink()
    assert main(["render", str(bundle)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"REPLAYED REJECTED  report: {bundle / 'report.html'}"
    assert main(["verify", str(bundle)]) == 0


def test_init_copies_what_is_meant_for_editing(tmp_path, capsys):
    """acceptance/ and thresholds/ are copied once, and never over something that is there."""
    assert main(["init"]) == 0
    assert (tmp_path / "acceptance" / "test_gpu.py").read_text() == (SHIPPED / "acceptance" / "test_gpu.py").read_text()
    assert (tmp_path / "thresholds" / "cards" / "rtx4090.toml").exists()
    assert main(["init"]) == 4
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ('metric = "gpu.xit"\nunit = "count"\nvalues = {gpu0 = 0}', "did you mean 'gpu.xid'"),
        ('metric = "gpu.xid"\nunit = "W"\nvalues = {gpu0 = 0}', "measured in count"),
        ('metric = "gpu.xid"\nunit = "count"\nvalue = {gpu0 = 0}', "figure.0.values: Field required (and 1 more)"),
    ],
)
def test_transcribe_refuses_what_was_never_declared(figures, words, tmp_path, capsys):
    """Figures of unknown metrics, units or keys are bad input, and nothing is written."""
    head = 'source = "s"\nmeasured = 2026-01-01\nmachine = {}\n[[figure]]\n'
    (tmp_path / "figures.toml").write_text(head + figures)
    assert main(["transcribe", "figures.toml", "out"]) == 4
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["verify"], ["rejudge", "x"], ["verify", "no-such-folder"]])
def test_bad_usage_is_exit_status_4(argv, capsys):
    """Bad arguments and folders that are no bundles end with 4 and a message."""
    try:
        status = main(argv)
    except SystemExit as exit_:
        status = exit_.code
    assert status == 4
    assert capsys.readouterr().err
