"""One acceptance run: bench, judge, evidence, decision, report, in that order.

Owns what a sign-off is, whoever drives it: the pytest plugin item by item, or `gpuaccept rejudge`
all at once. Must not know pytest.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pytest_gpuaccept import __version__
from pytest_gpuaccept.bench import Bench, Journal
from pytest_gpuaccept.bundle import Bundle, read_bundle
from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.evidence import Record, Writer, write_whole
from pytest_gpuaccept.measurement import NotMeasured, Outcome, Provenance
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.probes.resets import CUTS, Cut
from pytest_gpuaccept.profile import Profile, Waiver
from pytest_gpuaccept.report import render_html
from pytest_gpuaccept.resume import Resumption, fingerprint
from pytest_gpuaccept.verdict import Decision, DecisionWord, Verdict, decide, judge, undecided, waive
from pytest_gpuaccept.world import Clock, Mode, SystemClock, World

STAMPS = {"live": "", "simulated": "SIMULATED", "replayed": "REPLAYED", "published": "REPLAYED"}
Key = tuple[str, str]


class NullJournal:
    """Writes nothing: for workers, whose controller keeps the evidence."""

    def record(self, kind: str, **body: object) -> None:
        """Drop a record."""

    def outcome(self, outcome: Outcome) -> None:
        """Drop an outcome."""

    def attach(self, name: str, text: str) -> str:  # noqa: ARG002 - the journal's signature
        """Drop raw text."""
        return ""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a run's values come from: a world, or a bundle recorded before.

    `scenario` names a simulated world; `remarks` says at the end what a reader must know of it; `resumption`
    is the run that was cut off and that this one goes on with; `heard` are resets that cut off earlier runs on this
    machine, which nobody went on with.
    """

    mode: Mode
    world: World | None = None
    bundle: Bundle | None = None
    scenario: str = ""
    remarks: Callable[[], Iterable[str]] = tuple
    resumption: Resumption | None = None
    heard: tuple[Cut, ...] = ()

    def stamp(self) -> str:
        """Return the words that a decision carries when nothing was measured here and now."""
        origin = self.bundle.manifest.get("origin", {}).get("mode", self.bundle.mode) if self.bundle else ""
        words = [STAMPS[self.mode], "SIMULATED" if origin == "simulated" else ""]
        return " ".join(word for word in words if word)


@dataclass(slots=True)
class Run:
    """The state of one run: the verdicts so far, and what is needed to reach a decision."""

    profile: Profile
    catalogue: Catalogue
    bench: Bench
    clock: Clock
    source: Source
    writer: Writer | None = None
    verdicts: dict[Key, Verdict] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def expected(self) -> list[Key]:
        """Return every (line, device) that the profile asks for, in the order of a run."""
        return list(self.catalogue.expected(self.profile))

    def judge(self, name: str, device: str) -> Verdict:
        """Measure what a line needs, if nobody has, and return its verdict on a device."""
        line, metric = self.profile.lines[name], self.catalogue.metrics[name]
        card, rate = self.profile.card, self.profile.rate(metric.rate, device)
        decided = judge(NotMeasured(name, device, ""), line, metric, rate, card)
        if decided.verdict == "NOT_APPLICABLE":
            return decided
        outcome = self.bench.outcome(name, device)
        if self.bench.hold and isinstance(outcome, NotMeasured) and outcome.reason == self.bench.hold:
            return undecided("NOT_RUN", line, device, self.bench.hold)
        return self._waived(judge(outcome, line, metric, rate, card))

    def settle(self, verdict: Verdict) -> None:
        """Take a verdict into the run and the evidence; the last word on a line counts.

        A replay's worker may have judged it, so what it was judged by is written down here.
        """
        self.verdicts[verdict.line, verdict.device] = verdict
        if self.source.bundle and verdict.verdict not in ("NOT_RUN", "NOT_APPLICABLE"):
            self.bench.outcome(verdict.line, verdict.device)
        if self.writer:
            body = {"line": verdict.line, "device": verdict.device, "verdict": verdict.verdict}
            self.writer.record("verdict", **body, reason=verdict.reason)

    def undecidable(self) -> dict[str, list[str]]:
        """Return the required lines that cannot be measured here, by reason; runs what comes before any load."""
        found: dict[str, list[str]] = {}
        for name, device in self.expected():
            metric, line = self.catalogue.metrics[name], self.profile.lines[name]
            if metric.derive or line.severity != "required" or (name, device) in self.bench.table:
                continue
            if reason := self.bench.unready(name, device):
                lines = found.setdefault(reason.split(":")[0] if "live method" in reason else reason, [])
                lines += [name] if name not in lines else []
        return found

    def missing_tools(self) -> list[str]:
        """Return the tools that any line needs, advisory ones included, and that are not installed."""
        world = self.source.world
        needed = {tool: None for name, _ in self.expected() for tool in self.catalogue.home(name).tools}
        return [tool for tool in needed if world and not world.has(tool)]

    def waivers(self, *, expired: bool) -> list[Waiver]:
        """Return the profile's waivers that hold today, or those that do not any more."""
        today = self.clock.now().date()
        return [w for w in self.profile.waivers if (w.until < today) == expired]

    def note(self, kind: Literal["fault", "gap", "remark"], reason: str) -> None:
        """Take a reason that no line states: a fault rejects, a gap makes incomplete, a remark stays."""
        reasons = {"fault": self.faults, "gap": self.gaps, "remark": self.remarks}[kind]
        if reason not in reasons:
            reasons.append(reason)
            if self.writer:
                self.writer.record(kind, reason=reason)

    def finish(self, missed: str) -> Decision:
        """Decide, close the bundle and render the report; `missed` says why lines are undecided."""
        self.bench.close()
        keys = self.expected()
        for key in keys:
            if key not in self.verdicts:
                self.verdicts[key] = undecided("NOT_RUN", self.profile.lines[key[0]], key[1], missed)
        for flaw in self.source.bundle.flaws if self.source.bundle else ():
            self.note("gap", f"the recording is not whole: {flaw}")
        for reason in self._standing_remarks():
            self.note("remark", reason)
        decision = self._decide(keys)
        if self.writer:
            ordered = [self.verdicts[key] for key in keys]
            reasons, void = list(decision.reasons), [w.model_dump(mode="json") for w in self.waivers(expired=True)]
            self.writer.close(str(decision), ordered, reasons=reasons, expired_waivers=void)
            decision = self._check_evidence(decision, self.writer)
        return decision

    def _decide(self, keys: list[Key]) -> Decision:
        more = {"faults": self.faults, "gaps": self.gaps, "remarks": self.remarks}
        return decide(self.verdicts, keys, **more, stamp=self.source.stamp())

    def _standing_remarks(self) -> Iterator[str]:
        if self.profile.effort == "quick":
            yield "quick effort: a shortened run"
        yield from self.source.remarks()
        for line in self.profile.lines.values():
            if line.not_applicable:
                yield f"the profile declares {line.id} not applicable: {line.not_applicable}"

    def _check_evidence(self, decision: Decision, writer: Writer) -> Decision:
        """Render the report; a decision whose evidence is not whole on the disk is none."""
        flaws = [writer.broken] if writer.broken else list(read_bundle(writer.folder).flaws)
        try:
            render(writer.folder, self.catalogue)
        except OSError as error:
            flaws.append(f"the report could not be written: {error.strerror}")
        if not flaws:
            return decision
        word: DecisionWord = "REJECTED" if decision.word == "REJECTED" else "INCOMPLETE"
        return replace(decision, word=word, reasons=(*decision.reasons, *flaws))

    def _waived(self, verdict: Verdict) -> Verdict:
        if verdict.verdict not in ("FAIL", "ERROR", "MARGINAL"):
            return verdict
        match = (w for w in self.waivers(expired=False) if (w.line, w.device) == (verdict.line, verdict.device))
        waiver = next(match, None)
        return waive(verdict, waiver) if waiver else verdict


def start(
    profile: Profile, catalogue: Catalogue, clock: Clock, source: Source, folder: Path | None
) -> Run:  # fmt: skip
    """Open a run; without a folder it keeps no evidence. Raises InputError when evidence cannot be kept."""
    future = [a.line for a in profile.attested if a.when > clock.now().date()]
    if future:
        message = f"attested in the future: {', '.join(future)}; `when` is the day on which somebody looked"
        raise InputError(message)
    writer = Writer(folder, clock, _manifest(profile, catalogue, source), profile) if folder else None
    journal: Journal = writer or NullJournal()
    if source.resumption and writer:
        source.resumption.hand_over(writer)
    recorded = source.bundle.table() if source.bundle else None
    carried = source.resumption.carried if source.resumption else None
    taken: Provenance = "simulated" if source.mode == "simulated" else "measured"
    bench = Bench(profile, catalogue, journal, source.world, recorded, carried=carried, provenance=taken)
    run = Run(profile, catalogue, bench, clock, source, writer)
    if source.resumption:
        _take_over(run, source.resumption)
    elif source.heard:
        bench.memory[CUTS] = source.heard
    return run


def _take_over(run: Run, resumption: Resumption) -> None:
    for reason in resumption.faults():
        run.note("fault", reason)
    for reason in resumption.remarks():
        run.note("remark", reason)
    if run.writer:
        resumption.close(run.writer)


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle to judge from; raises InputError when its integrity is broken.

    A run that was cut off may be judged, and accepts nothing: what is missing in it is "not recorded".
    """
    bundle = read_bundle(folder)
    broken = [flaw for flaw in bundle.flaws if "cut off" not in flaw]
    if broken:
        message = f"bundle {folder} is not intact:\n" + "\n".join(f"  {flaw}" for flaw in broken)
        raise InputError(message)
    return bundle


def render(folder: Path, catalogue: Catalogue) -> Path:
    """Render the report of a bundle into it and return its path."""
    file = folder / "report.html"
    write_whole(file, page_of(read_bundle(folder), catalogue))
    return file


def page_of(bundle: Bundle, catalogue: Catalogue) -> str:
    """Return the report of a bundle as HTML."""
    return render_html(decided(bundle, catalogue), catalogue)


def decided(bundle: Bundle, catalogue: Catalogue) -> Bundle:
    """Return a bundle with a verdict of every line, also where the run was cut off before it came to one."""
    if bundle.finished or bundle.profile is None:
        return bundle
    told = {(outcome.metric, outcome.device) for outcome in bundle.outcomes()}
    run = start(bundle.profile, catalogue, SystemClock(), Source("replayed", bundle=bundle), None)
    cut = "the run was cut off before it was measured"
    verdicts = (
        run.judge(name, device)
        if (name, device) in told
        else undecided("NOT_RUN", run.profile.lines[name], device, cut)
        for name, device in run.expected()
    )
    return replace(bundle, verdicts=tuple(verdicts))


def _manifest(profile: Profile, catalogue: Catalogue, source: Source) -> Record:
    manifest: Record = {
        "mode": source.mode,
        "versions": _versions(),
        "profile": profile.name,
        "profile_sha256": profile.digest(),
        "host": _fingerprint(source),
        "devices": {kind: list(ids) for kind, ids in profile.devices.items()},
        "expected": [list(key) for key in catalogue.expected(profile)],
    }
    if source.bundle:
        manifest["origin"] = _origin(source.bundle)
    if source.resumption:
        manifest |= source.resumption.manifest()
    elif source.heard:
        manifest["heard"] = [cut.folder for cut in source.heard]
    if source.scenario:
        manifest["scenario"] = source.scenario
    return manifest


def _origin(bundle: Bundle) -> Record:
    first = {} if bundle.manifest.get("cuts") else bundle.manifest.get("origin", {})
    kept = {key: bundle.manifest.get(key) for key in ("mode", "source", "scenario", "started", "decision", "chain")}
    return {**kept, **first, "flaws": list(bundle.flaws)}


def _versions() -> dict[str, str]:
    found = {"gpuaccept": __version__, "python": platform.python_version()}
    for name in ("pytest", "pydantic", "nvidia-ml-py"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _fingerprint(source: Source) -> Mapping[str, str]:
    """Return what tells this machine from another; a replay keeps the one of its bundle."""
    if source.bundle:
        return dict(source.bundle.manifest.get("host", {}))
    return {"architecture": platform.machine(), **fingerprint(source.world)}
