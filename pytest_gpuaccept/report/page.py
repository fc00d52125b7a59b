"""The sign-off page: a bundle as one static HTML file, no script, no network, printable on A4."""

from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pytest_gpuaccept import __version__
from pytest_gpuaccept.bundle import Bundle
from pytest_gpuaccept.measurement import Measurement, show
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.report import machine, words
from pytest_gpuaccept.verdict import Verdict

IDENTITY = ("host.cpu.model", "host.memory.visible", "host.board.model", "gpu.count", "gpu.driver.version")
"""What tells a reader which machine this is, where it was measured."""


def render_html(bundle: Bundle, catalogue: Catalogue) -> str:
    """Return the page; every string from the bundle is escaped."""
    judged = {(v.line, v.device) for v in bundle.verdicts}
    recorded = [o for o in bundle.table().values() if isinstance(o, Measurement)]
    return _template().render(
        bundle=bundle,
        manifest=bundle.manifest,
        identity=[(_title(m.metric, catalogue), show(m.value, m.unit)) for m in recorded if m.metric in IDENTITY],
        facts=machine.facts(bundle.manifest),
        period=machine.period(bundle.manifest),
        columns=machine.COLUMNS,
        gpus=machine.gpus(bundle),
        profile=bundle.profile,
        decision=words.decision(bundle),
        stamps=words.stamps(bundle),
        counts=_counts(bundle),
        composition=words.composition(bundle),
        blockers=_by_advice(words.blockers(bundle.verdicts)),
        reasons=words.reasons_beside_lines(bundle),
        remarks=words.remarks(bundle.verdicts),
        findings=words.findings(bundle),
        counted=machine.counted(bundle),
        chapters=_chapters(bundle, catalogue),
        proofs={(m.metric, m.device): f": {m.proof}" for m in recorded if m.proof},
        unjudged=[(m, _title(m.metric, catalogue)) for m in recorded if (m.metric, m.device) not in judged],
        attested=[m for m in recorded if m.provenance == "attested"],
        untested=_untested(bundle),
        version=__version__,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("pytest_gpuaccept", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"show": show, "margin": words.margin_text, "word": words.word, "moment": machine.moment}
    return environment.get_template("report.html.j2")


def _counts(bundle: Bundle) -> list[tuple[str, int]]:
    found = Counter(words.word(v) for v in bundle.verdicts)
    return sorted(found.items(), key=lambda pair: pair[0] in ("PASS", "N/A"))


def _chapters(bundle: Bundle, catalogue: Catalogue) -> list[dict[str, Any]]:
    """Return the lines by subsystem, each with its title, source and the verdicts of its devices."""
    chapters: dict[str, list[dict[str, Any]]] = {}
    for name, group in groupby(bundle.verdicts, key=lambda v: v.line):
        rows = list(group)
        chapters.setdefault(words.subsystem(name), []).append(_line(name, rows, bundle, catalogue))
    return [{"title": title, "lines": lines} for title, lines in chapters.items()]


def _line(name: str, rows: list[Verdict], bundle: Bundle, catalogue: Catalogue) -> dict[str, Any]:
    line = bundle.profile.lines.get(name) if bundle.profile else None
    return {
        "id": name, "title": _title(name, catalogue), "rows": _alike(rows), "severity": rows[0].severity,
        "source": line.source if line else "", "uncalibrated": bool(line and line.uncalibrated),
    }  # fmt: skip


def _alike(rows: list[Verdict]) -> list[tuple[Verdict, list[str]]]:
    """Return the verdicts that differ in more than their device, each with its devices."""
    groups: dict[Verdict, list[str]] = {}
    for v in rows:
        groups.setdefault(replace(v, device=""), []).append(v.device)
    return list(groups.items())


def _by_advice(standing: list[words.Blocker]) -> list[tuple[str, list[words.Blocker]]]:
    groups: dict[str, list[words.Blocker]] = {}
    for blocker in standing:
        groups.setdefault(blocker.advice, []).append(blocker)
    return list(groups.items())


def _title(metric: str, catalogue: Catalogue) -> str:
    declared = catalogue.metrics.get(metric)
    return declared.title if declared else metric


def _untested(bundle: Bundle) -> list[tuple[str, str]]:
    """Return the lines for which there is no value, with the reason."""
    absent = (v for v in bundle.verdicts if v.verdict in ("ERROR", "NOT_RUN") and v.value is None)
    return list(dict.fromkeys((v.line, v.reason) for v in absent))
