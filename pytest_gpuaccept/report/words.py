"""The words that both views share: verdicts, advice, subsystems, findings of a bundle."""

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_gpuaccept.bench import NO_METHOD, NOT_RECORDED
from pytest_gpuaccept.bundle import Bundle
from pytest_gpuaccept.findings import Finding, View, find
from pytest_gpuaccept.measurement import show
from pytest_gpuaccept.verdict import CLAIMED, Verdict

WORDS = {
    "PASS": ("PASS", "green"),
    "MARGINAL": ("MARGINAL", "yellow"),
    "FAIL": ("FAIL", "red"),
    "ERROR": ("ERROR", "magenta"),
    "NOT_RUN": ("NOT RUN", "magenta"),
    "WAIVED": ("WAIVED", "yellow"),
    "NOT_APPLICABLE": ("N/A", "cyan"),
}
"""Verdict -> what people read, and its colour on a terminal."""

SUBSYSTEMS = {
    "host": "Machine", "software": "Software", "gpu": "GPUs", "gpu_pair": "GPUs", "cpu": "CPU", "nvme": "Storage",
    "nic": "Network", "vllm": "Engines", "llamacpp": "Engines", "engines": "Engines", "ram": "Memory",
    "monitoring": "Monitoring and upkeep", "service": "Monitoring and upkeep", "bmc": "Monitoring and upkeep",
    "power": "Power",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Blocker:
    """One reason that stands in the way, the lines with their devices that it concerns, what to do."""

    places: tuple[str, ...]
    verdict: str
    reason: str
    advice: str


def word(verdict: Verdict) -> str:
    """Return the word that people read: an advisory line that is not good is a REMARK."""
    if verdict.remark and verdict.verdict in ("FAIL", "ERROR", "NOT_RUN"):
        return f"REMARK ({WORDS[verdict.verdict][0].lower()})"
    return WORDS[verdict.verdict][0]


def subsystem(line: str) -> str:
    """Return the chapter of the report that a line belongs to."""
    return SUBSYSTEMS.get(line.split(".", 1)[0], "Other")


def margin_text(verdict: Verdict, *, short: bool = False) -> str:
    """Write the margin with its sign, in percent of the limit too; `short` prefers the percentage."""
    if verdict.margin is None:
        return ""
    sign = "+" if verdict.margin >= 0 else "-"
    text = f"{sign}{show(abs(verdict.margin), verdict.unit)}"
    share = _share(verdict)
    if share is None:
        return text
    return f"{share:+.1%}" if short else f"{text} ({share:+.1%})"


def _share(verdict: Verdict) -> float | None:
    words = verdict.limit.replace(",", "").split()
    if len(words) < 2 or words[0] not in (">=", "<="):  # noqa: PLR2004 - an operator and a number
        return None
    limit = float(words[1])
    return (verdict.margin or 0.0) / abs(limit) if limit else None


def advice(verdict: Verdict) -> str:
    """Return what to do about a verdict that stands in the way."""
    if verdict.verdict == "FAIL":
        return "Put it right and measure again, or agree on it in writing as a waiver."
    if verdict.reason.startswith(CLAIMED):
        return "Measure it with a channel that is proven alive."
    if verdict.reason.endswith(NOT_RECORDED):
        return "Measure it: the recording does not hold it."
    if NO_METHOD in verdict.reason:
        return "Use a version that measures it, or agree on it in writing as a waiver."
    if verdict.verdict == "NOT_RUN":
        return "Run the whole suite."
    return "Remove the cause and measure again."


def blockers(verdicts: Iterable[Verdict]) -> list[Blocker]:
    """Return what stands in the way of acceptance, FAIL first, equal reasons together."""
    return sorted(_grouped(v for v in verdicts if v.blocks), key=lambda b: b.verdict != "FAIL")


def _grouped(verdicts: Iterable[Verdict]) -> list[Blocker]:
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for v in verdicts:
        groups.setdefault((word(v), v.reason), []).append(v)
    return [Blocker(tuple(_places(group)), kind, reason, advice(group[0])) for (kind, reason), group in groups.items()]


def _places(group: Iterable[Verdict]) -> list[str]:
    devices: dict[str, list[str]] = {}
    for v in group:
        devices.setdefault(v.line, []).append(v.device)
    return [f"{line} [{', '.join(names)}]" for line, names in devices.items()]


def composition(bundle: Bundle) -> str:
    """Say how many lines the profile has, how many of them bind, and how many limits nobody calibrated."""
    lines = bundle.profile.lines.values() if bundle.profile else ()
    required = sum(line.severity == "required" for line in lines)
    loose = sum(line.uncalibrated for line in lines)
    return f"{len(lines)} lines: {required} required, {len(lines) - required} advisory, {loose} of them not calibrated"


def remarks(verdicts: Iterable[Verdict]) -> list[Blocker]:
    """Return what acceptance has to mention, equal reasons together."""
    return _grouped(v for v in verdicts if v.remark)


def reasons_beside_lines(bundle: Bundle) -> list[str]:
    """Return why the decision is what it is, as far as no line says so: a cut-off run, a failed own test."""
    said = {str(v) for v in bundle.verdicts}
    return [reason for reason in bundle.manifest.get("reasons", []) if reason not in said]


def findings(bundle: Bundle) -> list[Finding]:
    """Return the findings over a bundle's measurements and verdicts."""
    if bundle.profile is None:
        return []
    verdicts = {(v.line, v.device): v for v in bundle.verdicts}
    return find(View(bundle.profile, bundle.table(), verdicts))


def stamps(bundle: Bundle) -> list[str]:
    """Return the words that must stand on every view of a run that was not a live one."""
    origin = bundle.manifest.get("origin", {}).get("mode", "")
    return [mode.upper() for mode in dict.fromkeys((bundle.mode, origin)) if mode and mode != "live"]


def decision(bundle: Bundle) -> str:
    """Return the bundle's decision; a run that was cut off, or was changed, is INCOMPLETE."""
    if bundle.flaws:
        return " ".join([*(s for s in stamps(bundle) if s in ("SIMULATED", "REPLAYED")), "INCOMPLETE"])
    return str(bundle.manifest.get("decision") or "INCOMPLETE")
