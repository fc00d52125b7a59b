"""The report: complete, escaped, and honest about what kind of run it shows."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.evidence import outcome_record
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured, show
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.gpus import gpu
from pytest_gpuaccept.report import render_html, summary_text
from pytest_gpuaccept.report.machine import period
from pytest_gpuaccept.report.words import blockers, decision, margin_text, word
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.verdict import Verdict

EVIL = "<script>alert('x')</script>\x1b[31m"


@pytest.fixture(scope="module")
def bundle(case_study):
    """The judged case study."""
    return read_bundle(case_study)


class Page(HTMLParser):
    """Checks that tags are balanced and collects them with their text."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        """Remember a tag."""
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Close the tag that is open."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Remember text."""
        self.text.append(data)


def test_the_page_is_one_static_file(bundle, catalogue):
    """No script, no network, balanced tags; every line of the profile is on it."""
    text = render_html(bundle, catalogue)
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "form"} & set(page.tags)
    assert not [name for name, value in page.attributes if name in ("src", "href", "onclick") or "http:" in str(value)]
    assert "http" not in re.sub(r"<meta http-equiv[^>]*>", "", text)
    assert all(line in text for line in bundle.profile.lines)


@pytest.mark.parametrize(
    "words",
    [
        "REPLAYED REJECTED",
        "PUBLISHED",
        "not the sign-off of a measured machine",
        "What stands in the way",
        "Findings",
        "Every line",
        "Recorded, not judged",
        "What was not tested",
        "Digests",
        "signature",
        "take note of: <b>REPLAYED REJECTED</b>",
        "AMD EPYC 7542",
        "order: &gt;= 150 TFLOPS FP16",
        "limit not calibrated",
        "19-22 GB/s",
        "+2.5 TFLOPS (+1.7%)",
    ],
)
def test_the_page_says_what_a_sign_off_needs(words, bundle, catalogue):
    """Decision, stamp, identity, blockers, findings, lines with source, gaps, digests, signatures."""
    assert words in render_html(bundle, catalogue)


def test_the_page_says_how_many_lines_bind(bundle, catalogue):
    """Required, advisory and uncalibrated lines are counted on the first page."""
    lines = bundle.profile.lines.values()
    required, loose = sum(v.severity == "required" for v in lines), sum(v.uncalibrated for v in lines)
    said = f"{len(lines)} lines: {required} required, {len(lines) - required} advisory, {loose} of them not calibrated"
    assert said in render_html(bundle, catalogue)


def test_the_decision_comes_before_everything_else(bundle, catalogue):
    """The first text of the page's body is the decision."""
    body = render_html(bundle, catalogue).split("<body>")[1]
    assert (
        body.index("REPLAYED REJECTED") < body.index("The machine") < body.index("Findings") < body.index("Every line")
    )


def test_strings_from_the_machine_are_text(bundle, catalogue):
    """A device, value or reason that looks like markup is shown, not obeyed."""
    verdict = replace(bundle.verdicts[0], device=EVIL, value=EVIL, reason=EVIL)
    manifest = {**bundle.manifest, "host": {EVIL: EVIL}, "profile": EVIL, "origin": {"source": EVIL, "mode": EVIL}}
    text = render_html(replace(bundle, verdicts=(verdict,), manifest=manifest, flaws=(EVIL,)), catalogue)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    Page(text)


def page_of(bundle, catalogue, **changes):
    """Return the text of the section on the machine, tags replaced by spaces."""
    text = render_html(replace(bundle, **changes), catalogue)
    section = text.split("<h2>The machine</h2>")[1].split("<h2>")[0]
    return " ".join(re.sub(r"<[^>]*>", " ", section).split())


def records(*outcomes):
    """Return outcomes as the records of a bundle."""
    return tuple({"seq": i, **outcome_record(outcome)} for i, outcome in enumerate(outcomes))


def said(metric, device, value, **conditions):
    """Return what was measured of a card."""
    return Measurement(metric, device, value, "text", conditions=conditions)


CARD = {"uuid": "GPU-1", "bus_id": "00000000:41:00.0"}


def test_the_page_tells_the_cards_apart(bundle, catalogue):
    """Each ordered card has its row: what it told, `-` for what it did not, or why it told nothing."""
    found = records(
        said("gpu.name", "gpu0", "NVIDIA L40", **CARD), said("gpu.serial", "gpu0", "1654523003308", **CARD),
        said("gpu.vbios", "gpu0", "95.02.47.00.01"), said("gpu.name", "gpu1", "NVIDIA L40"),
        NotMeasured("gpu.serial", "gpu1", "Not Supported"), NotMeasured("gpu.name", "gpu2", "there is no gpu2"),
    )  # fmt: skip
    text = page_of(bundle, catalogue, records=found)
    assert text.endswith(
        "GPUs Device Model UUID PCI address Serial VBIOS "
        "gpu0 NVIDIA L40 GPU-1 00000000:41:00.0 1654523003308 95.02.47.00.01 gpu1 NVIDIA L40 - - - - "
        "gpu2 Not identified: there is no gpu2 gpu3 Not identified: this evidence says nothing of it"
    )


def test_what_the_inventory_says_reaches_the_page(bundle, catalogue):
    """The columns are named as the probe names its metrics and conditions, and a missing card has its row."""
    two = load_profile("2xl40", catalogue, SHIPPED)
    world = SimWorld(two, load_scenario("healthy,fault=gpu1.missing", SHIPPED, SHIPPED / "scenarios"))
    found = records(*gpu.inventory(Site(world, two, "host", {}, lambda _name, _text: "digest")))
    row, missing = page_of(bundle, catalogue, profile=two, records=found).split(" gpu0 ")[1].split(" gpu1 ", 1)
    assert re.fullmatch(r"NVIDIA L40 GPU-[0-9a-f-]{36} 00000000:01:00\.0 \d{13} 95\.02\.47\.00\.01", row)
    assert missing.startswith("Not identified: the driver shows 1 GPUs, there is no gpu1")


def test_a_card_that_changes_its_name_shows_both(bundle, catalogue):
    """Two UUIDs under one device are two cards, and neither of them is left out."""
    both = records(said("gpu.name", "gpu0", "L40", **CARD), said("gpu.vbios", "gpu0", "1", uuid="GPU-2"))
    assert "gpu0 L40 GPU-1, GPU-2 00000000:41:00.0 - 1 gpu1" in page_of(bundle, catalogue, records=both)


def test_without_a_profile_the_cards_are_those_measured(bundle, catalogue):
    """A recording that nobody judged lists its cards by number; without any there is no table."""
    cards = [said("gpu.name", device, "NVIDIA L40") for device in ("gpu10", "gpu2", "gpu0-gpu1", "host")]
    text = page_of(bundle, catalogue, profile=None, records=records(*cards))
    assert text.endswith("VBIOS gpu2 NVIDIA L40 - - - - gpu10 NVIDIA L40 - - - -")
    assert "PCI address" not in page_of(bundle, catalogue, profile=None, records=records(cards[-1]))


def test_what_a_card_says_is_text(bundle, catalogue):
    """A name, an address or a reason that looks like markup is shown, and the page stays whole."""
    evil = records(said("gpu.name", "gpu0", EVIL, uuid=EVIL), NotMeasured("gpu.name", "gpu1", EVIL))
    text = render_html(replace(bundle, records=evil), catalogue)
    assert "<script" not in text
    assert "\x1b" not in text
    Page(text)


def test_the_machine_is_described_in_words(bundle, catalogue):
    """Facts have titles, and the times of the run are to the second, with how long it took."""
    manifest = {
        "host": {"architecture": "x86_64", "machine_id": "7f", "boot_id": "b1", "cpu": "EPYC"},
        "profile": "lab", "mode": "live",
        "started": "2026-11-23T21:51:37.952101+00:00", "ended": "2026-11-24T00:53:40.100000+01:00",
        "origin": {"started": "2026-11-22T01:02:03.4+00:00", "mode": "live"},
    }  # fmt: skip
    text = page_of(bundle, catalogue, manifest=manifest)
    assert text.startswith("Architecture x86_64 Machine id 7f Boot id b1 CPU EPYC ")
    assert "Run 2026-11-23 21:51:37 UTC to 2026-11-23 23:53:40 UTC (2 h 2 min 3 s), live" in text
    assert "Values from 2026-11-22 01:02:03 UTC (live)" in text


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({}, "unknown, cut off"),
        ({"started": "2026-11-23T21:51:37+00:00"}, "2026-11-23 21:51:37 UTC, cut off"),
        ({"started": "noon", "ended": "2026-11-23T21:51:37+00:00"}, "noon to 2026-11-23 21:51:37 UTC"),
        ({"started": "2026-11-23T21:51:37", "ended": 7}, "2026-11-23T21:51:37 to 7"),
        ({"started": "0001-01-01T00:00:00+14:00"}, "0001-01-01T00:00:00+14:00, cut off"),
        (
            {"started": "2026-11-23T21:51:37+00:00", "ended": "2026-11-23T21:51:36+00:00"},
            "2026-11-23 21:51:37 UTC to 2026-11-23 21:51:36 UTC (the clock was set back)",
        ),
        (
            {"started": "2026-11-23T21:51:37.1+00:00", "ended": "2026-11-23T21:51:37.9+00:00"},
            "2026-11-23 21:51:37 UTC to 2026-11-23 21:51:37 UTC (0 s)",
        ),
    ],
)
def test_times_that_are_none_are_shown_as_they_stand(times, words):
    """A run without an end was cut off; no duration is made up for times that give none."""
    assert period(times) == words


def test_a_bundle_with_flaws_is_incomplete_on_every_view(bundle, catalogue):
    """Whatever the manifest claims, evidence that is not whole decides nothing."""
    broken = replace(bundle, flaws=("a byte was changed",), manifest={**bundle.manifest, "decision": "ACCEPTED"})
    assert decision(broken) == "REPLAYED INCOMPLETE"
    assert "a byte was changed" in render_html(broken, catalogue)
    assert "<h1>REPLAYED INCOMPLETE</h1>" in render_html(broken, catalogue)


def test_a_bundle_without_profile_or_verdicts_still_renders(bundle, catalogue):
    """A recording of published figures, which nobody judged, has a page too."""
    bare = replace(bundle, profile=None, verdicts=(), manifest={"schema": 1, "mode": "published"})
    assert "<h1>INCOMPLETE</h1>" in render_html(bare, catalogue)
    assert "INCOMPLETE" in decision(bare)


@pytest.mark.parametrize("width", [60, 80, 110, 200])
def test_the_terminal_table_fits_its_width(width, bundle):
    """No line of the summary is wider than the terminal, and each verdict is in it."""
    text = summary_text(bundle, width, colour=False)
    assert max(len(line) for line in text.splitlines()) <= max(width, 60)
    assert "\x1b" not in text
    assert "Findings (12)" in text


def test_colour_is_used_only_where_there_is_a_terminal(bundle):
    """With colour there are escape sequences, and they are ours alone."""
    assert "\x1b[" in summary_text(bundle, 100, colour=True)
    evil = replace(bundle, verdicts=(replace(bundle.verdicts[0], value=EVIL),))
    assert "\x1b" not in summary_text(evil, 100, colour=False)


def verdict(kind, severity="required", **more):
    """Return a verdict of the given word."""
    return Verdict("a", "gpu0", kind, 99, "W", ">= 100 W", -1.0, severity, "measured", "because")


def test_what_blocks_is_listed_failures_first():
    """FAIL comes before ERROR; what does not block is not listed; equal reasons share a row."""
    fail = verdict("FAIL")
    rows = [verdict("ERROR"), fail, replace(fail, device="gpu1"), replace(fail, line="b"), verdict("FAIL", "advisory")]
    listed = blockers([*rows, verdict("PASS"), verdict("WAIVED")])
    assert [(b.verdict, b.places) for b in listed] == [
        ("FAIL", ("a [gpu0, gpu1]", "b [gpu0]")),
        ("ERROR", ("a [gpu0]",)),
    ]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (word(verdict("FAIL")), "FAIL"),
        (word(verdict("FAIL", "advisory")), "REMARK (fail)"),
        (word(verdict("NOT_APPLICABLE")), "N/A"),
        (margin_text(verdict("FAIL")), "-1 W (-1.0%)"),
        (margin_text(verdict("FAIL"), short=True), "-1.0%"),
        (margin_text(replace(verdict("FAIL"), limit="<= 0")), "-1 W"),
        (margin_text(replace(verdict("FAIL"), margin=None)), ""),
        (show(149.96, "TFLOPS"), "149.96 TFLOPS"),
        (show(568_000, "IOPS"), "568,000 IOPS"),
        (show(Interval(1, None), "count"), ">=1"),
        (show(float("nan"), "C"), "nan C"),
        (show(10**400, "count"), "inf"),
        (show(True), "yes"),
    ],
)
def test_values_and_verdicts_are_written_for_people(shown, expected):
    """Numbers are grouped and short, booleans are words, an advisory failure is a remark."""
    assert shown == expected
