"""The bundle: what is written is what is read, and nothing that happened to it stays hidden."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.evidence import Writer, outcome_record, record_outcome, row_verdict, to_json, verdict_row
from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured
from pytest_gpuaccept.verdict import Verdict
from pytest_gpuaccept.world import SystemClock

scalars = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
intervals = st.builds(Interval, st.floats(allow_nan=False), st.none() | st.floats(allow_nan=False))
outcomes = st.builds(
    Measurement, st.text(min_size=1), st.text(min_size=1), scalars | intervals, st.text(min_size=1),
    spread=st.none() | st.floats(allow_nan=False), samples=st.integers(0, 9), proof=st.none() | st.text(min_size=1),
    conditions=st.dictionaries(st.text(), scalars), note=st.text(),
) | st.builds(NotMeasured, st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))  # fmt: skip


@given(outcome=outcomes)
def test_an_outcome_survives_the_round_trip(outcome):
    """Any outcome written as JSON is read back as it was."""
    assert record_outcome(json.loads(json.dumps(outcome_record(outcome)))) == outcome


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonsense_is_kept_as_measured(value):
    """A value that is not finite is written by its name, in valid JSON, and read back."""
    text = json.dumps(outcome_record(Measurement("m", "d", value, "W")), allow_nan=False)
    assert str(record_outcome(json.loads(text)).value) == str(value)


@given(record=st.dictionaries(st.text(), st.none() | scalars | st.lists(st.integers())))
def test_a_foreign_record_is_bad_input(record):
    """Whatever stands in a measurement record, it is an outcome or a named refusal."""
    for kind in ("measurement", "not_measured"):
        try:
            assert isinstance(record_outcome({**record, "k": kind}), Measurement | NotMeasured)
        except InputError as error:
            assert "schema" in str(error)  # noqa: PT017 - the other branch is as good


@given(value=scalars | intervals, margin=st.none() | st.floats(allow_nan=False))
def test_a_verdict_row_has_the_keys_of_the_schema(value, margin):
    """A row has the ten keys in their order and is read back as the verdict it was."""
    verdict = Verdict("l", "gpu0", "PASS", value, "W", "<= 1 W", margin, "required", "measured", "r")
    row = json.loads(json.dumps(verdict_row(verdict)))
    assert " ".join(row) == "line device verdict value unit limit margin severity provenance reason"
    assert row_verdict(row) == verdict


def make(folder, clock, profile, *, close=True):
    """Write a small bundle and return its folder."""
    writer = Writer(folder, clock, {"mode": "live", "profile_sha256": profile.digest()}, profile)
    writer.attach("fio", "raw output")
    for i in range(100):
        writer.outcome(Measurement("gpu.gemm.fp16", f"gpu{i}", 160.0 + i, "TFLOPS"))
    if not close:
        writer._file.close()
    else:
        writer.close("ACCEPTED", [Verdict("l", "gpu0", "PASS", 1, "W", "-", None, "required", "measured", "r")])
    return folder


@pytest.fixture
def bundle(tmp_path, clock, profile):
    """A whole bundle."""
    return make(tmp_path / "bundle", clock, profile)


def test_a_whole_bundle_has_no_flaw(bundle):
    """What was written is read without complaint, decision included."""
    read = read_bundle(bundle)
    assert read.flaws == ()
    assert (read.manifest["decision"], len(read.verdicts), len(read.table())) == ("ACCEPTED", 1, 100)
    assert read.records[-1]["k"] == "end"


def test_every_record_is_on_disk_before_the_next(tmp_path, clock, profile):
    """Without being closed, a bundle holds all that was recorded and says that it has no end."""
    read = read_bundle(make(tmp_path / "cut", clock, profile, close=False))
    assert len(read.table()) == 100
    assert read.flaws == ("no end record: the run was cut off and decides nothing",)


def test_a_torn_last_line_is_named(tmp_path, clock, profile):
    """A record cut in the middle is reported, those before it are kept."""
    folder = make(tmp_path / "torn", clock, profile, close=False)
    file = folder / "evidence.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    read = read_bundle(folder)
    assert any("torn" in flaw for flaw in read.flaws)
    assert len(read.table()) == 99


@pytest.fixture(scope="module")
def shared(tmp_path_factory, profile):
    """One whole bundle that every example damages and mends."""
    return make(tmp_path_factory.mktemp("shared") / "bundle", SystemClock(), profile)


@given(data=st.data())
def test_no_changed_byte_goes_unseen(data, shared):
    """Any byte of the evidence changed to any other makes a flaw."""
    file = shared / "evidence.jsonl"
    good = file.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != good[at]))
    try:
        file.write_bytes(good[:at] + bytes([byte]) + good[at + 1 :])
        assert read_bundle(shared).flaws
    finally:
        file.write_bytes(good)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("verdicts.jsonl", lambda text: text.replace("PASS", "FAIL"), "verdicts.jsonl does not match"),
        ("verdicts.jsonl", lambda text: text[:-30], "verdicts.jsonl"),
        (
            "manifest.json",
            lambda text: text.replace('"ACCEPTED"', '"REJECTED"'),
            "manifest.json: 'decision' is not what the run recorded",
        ),
        ("profile.json", lambda text: text.replace('"min": 150.0', '"min": 15.0'), "profile.json does not match"),
        ("profile.json", lambda _: "{}", "profile.json is not readable"),
        ("evidence.jsonl", lambda text: "\n".join(text.splitlines()[:-1]) + "\n", "no end record"),
        ("evidence.jsonl", lambda text: "\n".join(text.splitlines()[1:]) + "\n", "one is missing before it"),
        ("evidence.jsonl", lambda _: "", "no end record: the run was cut off"),
    ],
)
def test_every_file_is_covered_by_a_digest(file, change, words, bundle):
    """A change to verdicts, manifest, profile or evidence is named."""
    path = bundle / file
    text = path.read_text()
    changed = change(text)
    assert changed != text
    path.write_text(changed)
    assert any(words in flaw for flaw in read_bundle(bundle).flaws)


def test_a_checkpoint_shows_a_change_even_without_an_end(tmp_path, clock, profile):
    """A run that was cut off cannot be rewritten up to its last checkpoint without being seen."""
    folder = make(tmp_path / "cut", clock, profile, close=False)
    file = folder / "evidence.jsonl"
    file.write_text(file.read_text().replace("160.0", "999.0", 1))
    assert any("and this checkpoint was changed" in flaw for flaw in read_bundle(folder).flaws)


def test_missing_files_are_flaws_and_foreign_folders_bad_input(bundle, tmp_path):
    """A lost attachment is named; a folder that is no bundle is refused."""
    next((bundle / "attach").iterdir()).unlink()
    assert any("attachment 'fio' is missing" in flaw for flaw in read_bundle(bundle).flaws)
    (bundle / "evidence.jsonl").unlink()
    assert any("evidence.jsonl cannot be read" in flaw for flaw in read_bundle(bundle).flaws)
    for text in ("[]", "{}", "not json", '{"schema": 99}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(InputError):
            read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("mode", "simulated"), ("host", {"hostname": "another"}), ("profile_sha256", "0" * 64), ("ended", "later")],
)
def test_what_the_manifest_says_of_the_run_is_covered(key, value, bundle):
    """Mode, machine, profile and time in the manifest are those that the run recorded."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    assert any(f"manifest.json: {key!r}" in flaw for flaw in read_bundle(bundle).flaws)


def test_a_profile_that_was_taken_away_is_missed(bundle):
    """A bundle that was judged by a profile is not whole without it."""
    (bundle / "profile.json").unlink()
    assert any("profile.json" in flaw for flaw in read_bundle(bundle).flaws)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 50_000, "\xff", '{"schema": 1, "mode": "live", "chain": "x"}']
)
def test_a_manifest_that_is_none_is_bad_input(text, bundle):
    """Nesting without end, wrong types and wrong bytes are refused by name, not with a traceback."""
    (bundle / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_bundle(bundle)


@pytest.mark.parametrize("row", ["null", "[1]", "[" * 100_000, '{"line": 1}', '{"verdict": "GREAT"}'])
def test_verdict_rows_that_are_none_are_flaws(row, bundle):
    """Rows of another shape are named."""
    (bundle / "verdicts.jsonl").write_text(row + "\n")
    read = read_bundle(bundle)
    assert any("verdicts.jsonl is not readable" in flaw for flaw in read.flaws)
    assert read.verdicts == ()


def test_an_attachment_is_read_from_its_folder_only(tmp_path, clock, profile):
    """A record that points elsewhere, or a link in place of the file, is not followed."""
    writer = Writer(tmp_path / "b", clock, {"mode": "live"}, None)
    writer.record("attachment", name="evil", sha256="/dev/zero", bytes=1)
    digest = writer.attach("linked", "text")
    writer.close("ACCEPTED", [])
    (tmp_path / "b" / "attach" / digest).rename(tmp_path / "elsewhere")
    (tmp_path / "b" / "attach" / digest).symlink_to(tmp_path / "elsewhere")
    assert sum("missing or changed" in flaw for flaw in read_bundle(tmp_path / "b").flaws) == 2


class FullDisk:
    """A file on a disk that has room for half of what is written."""

    def write(self, data):
        """Take a part, then nothing."""
        if len(data) < 9:
            raise OSError(28, "No space left on device")
        return len(data) // 2

    def fileno(self):
        """Have no descriptor."""
        return -1


def test_a_full_disk_leaves_no_decision(tmp_path, clock, profile):
    """When a record cannot be written whole, the writer says so and the manifest decides nothing."""
    writer = Writer(tmp_path / "b", clock, {"mode": "live", "profile_sha256": profile.digest()}, profile)
    writer._file.close()
    writer._file = FullDisk()
    writer.outcome(Measurement("m", "d", 1.0, "W"))
    writer.close("ACCEPTED", [])
    assert writer.broken == "the evidence could not be written: No space left on device"
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["decision"] is None


def test_a_measurement_recorded_twice_is_none(tmp_path, clock):
    """Two values for one metric and device in one bundle are nothing that could be judged."""
    writer = Writer(tmp_path / "b", clock, {"mode": "live"}, None)
    for value in (1.0, 500.0):
        writer.outcome(Measurement("m", "d", value, "W"))
    writer.close("ACCEPTED", [])
    assert isinstance(read_bundle(tmp_path / "b").table()["m", "d"], NotMeasured)


def test_evidence_is_never_overwritten(bundle, clock, profile):
    """A folder that holds a bundle is refused, and stays as it was."""
    with pytest.raises(InputError, match="never overwritten"):
        make(bundle, clock, profile)
    assert read_bundle(bundle).flaws == ()


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path, clock, profile):
    """A file where the folder should be is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        make(tmp_path / "file" / "bundle", clock, profile)


def test_json_has_no_other_form_for_plain_values():
    """Plain values are written as they are."""
    assert [to_json(v) for v in (1, "a", True, None, 2.5)] == [1, "a", True, None, 2.5]
