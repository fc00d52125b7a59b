"""The pytest side of a run: options, collection, items to verdicts, signals, terminal.

Owns what plugin.py's hooks do. Judges nothing; imported only when --hw is given.
"""

import os
import shutil
import signal
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import pytest

from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.evidence import row_verdict, verdict_row
from pytest_gpuaccept.expansion import Expansion, is_without_line, spec_key
from pytest_gpuaccept.faces import ItemState, LineFailed
from pytest_gpuaccept.fixtures import RUN, STATE
from pytest_gpuaccept.live import LiveView, Screen
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.probe import PHASES, Catalogue
from pytest_gpuaccept.probes import SHIPPED as PROBES
from pytest_gpuaccept.report import WORDS, summary_text
from pytest_gpuaccept.resume import fingerprint, resets_of, take, unfinished
from pytest_gpuaccept.run import Run, Source, open_bundle, start
from pytest_gpuaccept.verdict import Decision, Verdict, undecided
from pytest_gpuaccept.world import LiveWorld, SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

EVIDENCE_ROOT = "gpuaccept-evidence"
LONGEST_ITEM_S = 4 * 3600
KEEPS_ITS_STATUS = (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR)


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of this run, resolved once."""

    profile: str
    replay: Path | None
    scenario: str | None
    resume: str | None
    evidence: Path | None
    effort: str
    go_on: bool
    python: str
    folder: Path
    worker: bool


def settings(config: pytest.Config) -> Settings:
    """Resolve the options; raises UsageError for those that contradict each other."""
    option = config.option
    replays, scenarios = option.hw_replay or [], option.hw_sim or []
    if len(replays) + len(scenarios) > 1:
        message = "two worlds at once: give one of --hw-sim and --hw-replay, once"
        raise pytest.UsageError(message)
    if option.hw_evidence == "":
        message = "--hw-evidence: names no folder"
        raise pytest.UsageError(message)
    if replays and option.hw_resume is not None:
        message = "--hw-replay judges what was recorded, --hw-resume measures what is missing: give one of them"
        raise pytest.UsageError(message)
    parallel = getattr(option, "numprocesses", None) or getattr(option, "tx", None) or hasattr(config, "workerinput")
    if (parallel or getattr(option, "dist", "no") != "no") and not replays:
        message = "-n works with --hw-replay only: items share one machine, live or simulated, and disturb each other"
        raise pytest.UsageError(message)
    folder = config.invocation_params.dir
    return Settings(
        option.hw, _bundle_path(replays[0], folder) if replays else None, scenarios[0] if scenarios else None,
        option.hw_resume, (folder / option.hw_evidence).resolve() if option.hw_evidence else None,
        option.hw_effort, option.hw_go_on, _interpreter(option.hw_python, folder), folder,
        hasattr(config, "workerinput"),
    )  # fmt: skip


def _interpreter(word: str | None, folder: Path) -> str:
    """Return the delivered interpreter, this one unless told; raises UsageError for what cannot be run."""
    if word is None:
        return sys.executable
    found = shutil.which(word) if os.sep not in word else shutil.which(folder / word)
    if found is None:
        message = f"--hw-python: {word} is no program that can be run; give the path of a Python, as in venv/bin/python"
        raise pytest.UsageError(message)
    return str(Path(found).absolute())


def _bundle_path(word: str, folder: Path) -> Path:
    """Return the bundle's folder: as given, or one of those shipped."""
    for place in (folder / word, SHIPPED / word):
        if (place / "manifest.json").is_file():
            return place
    return folder / word


class Session:
    """One pytest session with --hw."""

    def __init__(self, config: pytest.Config) -> None:
        """Load profile and source; raises UsageError for bad input."""
        self.config, self.settings = config, settings(config)
        extra = config.hook.pytest_gpuaccept_probes()
        self.catalogue = Catalogue([*PROBES, *(probe for probes in extra for probe in probes)])
        s = self.settings
        self.profile = load_profile(s.profile, self.catalogue, s.folder, s.effort)
        self.expansion = Expansion(self.profile, self.catalogue)
        self.source = self._resumed(self._source())
        self.clock = self.source.world.clock if self.source.world else SystemClock()
        self.folder = None if s.worker else s.evidence or self._new_folder()
        self.run: Run | None = None
        self.decision: Decision | None = None
        self._mistakes: list[str] = []
        self._before: list[tuple[Literal["fault", "gap", "remark"], str]] = []
        self._cut_off = False
        self._restore: list[Callable[[], object]] = []
        config.stash[RUN] = start(self.profile, self.catalogue, self.clock, self.source, None)

    def _source(self) -> Source:
        s = self.settings
        if s.replay:
            return Source("replayed", bundle=open_bundle(s.replay))
        if s.scenario is not None:
            from pytest_gpuaccept.simulate import simulated  # noqa: PLC0415 - a live run carries no model and no numpy

            return simulated(self.profile, s.scenario, s.folder)
        return Source("live", LiveWorld(python=s.python))

    def _resumed(self, source: Source) -> Source:
        """Return the source with the run that it goes on with, if one was asked for; raises InputError."""
        s = self.settings
        if s.resume is None or source.world is None:
            return source
        cut_off = [folder for folder, name in self._unfinished(source).items() if name == self.profile.name]
        left = [s.folder / s.resume] if s.resume else cut_off
        if not left:
            place = f"{EVIDENCE_ROOT}/; name the folder of one elsewhere: --hw-resume=FOLDER"
            message = f"--hw-resume: no run of {self.profile.name} on this machine was cut off in {place}"
            raise InputError(message)
        how = source.mode, source.scenario, source.world
        return replace(source, resumption=take(left[0], self.profile, self.catalogue, *how))

    def _unfinished(self, source: Source) -> dict[Path, str]:
        roots = [
            self.settings.folder / EVIDENCE_ROOT,
            *([self.settings.evidence.parent] if self.settings.evidence else []),
        ]
        return unfinished(roots, source.mode, fingerprint(source.world))

    def _new_folder(self) -> Path:
        stamp = self.clock.now().strftime("%Y%m%dT%H%M%SZ")
        return self.settings.folder / EVIDENCE_ROOT / f"{self.profile.name}-{stamp}-{os.getpid()}"

    def header(self) -> str:
        """Return the line that pytest shows first."""
        s = self.settings
        what = (
            f"replay of {s.replay}"
            if s.replay
            else "this machine, live"
            if s.scenario is None
            else f"SIMULATED, {s.scenario}"
        )
        resumed = f", resumed from {self.source.resumption.bundle.folder}" if self.source.resumption else ""
        return f"gpuaccept: {self.profile.title} ({self.profile.name}), {what}{resumed}; evidence in {self.folder}"

    # collection ------------------------------------------------------------------------------

    def parametrize(self, metafunc: pytest.Metafunc) -> None:
        """Make one item of each (line, device) that a test's spec marker names."""
        self.expansion.parametrize(metafunc)

    def arrange(self, items: list[pytest.Item]) -> None:
        """Drop tests that this profile has no line for, refuse what is amiss, order by phase."""
        expected = set(self.catalogue.expected(self.profile))
        self._mistakes += self.expansion.mistakes
        kept = [item for item in items if not is_without_line(item)]
        owners: dict[tuple[str, str], str] = {}
        for item in kept:
            if key := spec_key(item):
                if key not in expected:
                    self._mistakes.append(f"{item.nodeid}: {key!r} is no line and device of the profile")
                    continue
                if (other := owners.setdefault(key, item.nodeid)) != item.nodeid:
                    self._mistakes.append(f"{key[0]}[{key[1]}] is decided by two tests: {other} and {item.nodeid}")
                item.stash[STATE] = ItemState(*key)
                self._give_time(item)
        if self._mistakes:
            raise pytest.UsageError("\n".join(self._mistakes))
        items[:] = sorted(kept, key=self._rank)

    def _give_time(self, item: pytest.Item) -> None:
        """Give an item time for a soak: every load has its deadline, a suite's default is for tests of code."""
        timed = self.config.pluginmanager.hasplugin("timeout") and self.config.getoption("timeout", None) is None
        if timed and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONGEST_ITEM_S))

    def _rank(self, item: pytest.Item) -> int:
        key = spec_key(item)
        return PHASES.index(self.catalogue.home(key[0]).phase) if key else len(PHASES)

    # running ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take the signals and open the evidence; loads are held back when the run cannot be decided."""
        if not self.settings.worker:
            self._take_signals()
        left = self._unfinished(self.source) if self.source.world and not self.source.resumption else {}
        if left:
            heard = resets_of(left, fingerprint(self.source.world)["boot_id"])
            self.source = replace(self.source, heard=heard)
        self.run = start(self.profile, self.catalogue, self.clock, self.source, self.folder)
        self.config.stash[RUN] = self.run
        if left:
            self._tell_unfinished(self.run, *next(iter(left.items())))
        if self.folder and self.folder.parent.name == EVIDENCE_ROOT:
            (self.folder.parent / ".gitignore").write_text("*\n")
        for kind, reason in self._before:
            self.run.note(kind, reason)
        if isinstance(self.source.world, LiveWorld):
            self._clear_scratch(self.run, self.source.world)
            self._show_loads(self.run, self.source.world)
            self._note_hidden_gpus(self.run)
        self.run.bench.begin()
        if self.source.world and not self.settings.go_on:
            self._preflight(self.run)

    def _clear_scratch(self, run: Run, world: LiveWorld) -> None:
        """Remove what runs that died left on the drives; the free space is checked later."""
        for mount in {tempfile.gettempdir(), *(facts.mount for facts in self.profile.device.values() if facts.mount)}:
            for folder in world.clear(mount):
                self.write(f"gpuaccept: removed {folder}, left by a run that died")
                if run.writer:
                    run.writer.record("mark", event=f"removed {folder}, left by a run that died")

    def _note_hidden_gpus(self, run: Run) -> None:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None and self.profile.gpus:
            heeded = "loads do not heed it, engines started from this shell do: unset it"
            run.note("remark", f"CUDA_VISIBLE_DEVICES={hidden} is set: {heeded}")

    def _tell_unfinished(self, run: Run, left: Path, name: str) -> None:
        """Say that a run before this one was cut off: of what it found only a reset is in this run's verdicts."""
        reset = any(cut.folder == left.name for cut in self.source.heard)
        since = " by a restart of the machine, which counts in this run" if reset else ""
        place = os.path.relpath(left, self.settings.folder)
        what = f"a run of {name} was cut off{since}: {place}; --hw={name} --hw-resume={place} goes on with it"
        self.write(f"gpuaccept: {what}")
        run.note("remark", what)

    def _show_loads(self, run: Run, world: LiveWorld) -> None:
        """Show the operator what loads do, past pytest's capture; without a reporter or a stdout, nobody looks."""
        reporter: pytest.TerminalReporter | None = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None:
            return
        try:
            with self._uncaptured():
                screen = Screen(os.dup(sys.stdout.fileno()), colour=reporter.hasmarkup)
        except (OSError, ValueError):
            return
        view = LiveView(self.profile, world.clock, run.bench.memory, screen, _Begun(reporter, self._uncaptured))
        run.bench.progress = world.watcher = view
        self._restore.append(view.close)

    def _uncaptured(self) -> AbstractContextManager[None]:
        capture = self.config.pluginmanager.get_plugin("capturemanager")
        lifted: AbstractContextManager[None] = capture.global_and_fixture_disabled() if capture else nullcontext()
        return lifted

    def _preflight(self, run: Run) -> None:
        if tools := run.missing_tools():
            self.write(f"gpuaccept preflight: not installed: {', '.join(tools)}; apt-get install {' '.join(tools)}")
        undecidable = run.undecidable()
        if not undecidable:
            return
        run.bench.hold = "not started: required lines cannot be decided here (--hw-go-on runs what can be run)"
        lines = [f"  {reason}: {', '.join(names)}" for reason, names in undecidable.items()]
        self.write("gpuaccept preflight: these required lines cannot be decided here, so no load is started.", *lines)
        self.write("  Put it right, or run what can be run with --hw-go-on.")

    def write(self, *lines: str) -> None:
        """Write lines to the terminal, through pytest's reporter."""
        reporter: pytest.TerminalReporter | None = self.config.pluginmanager.get_plugin("terminalreporter")
        for line in lines if reporter else ():
            reporter.write_line(line)  # type: ignore[union-attr]

    def _take_signals(self) -> None:
        for number, handler in ((signal.SIGTERM, _as_interrupt), (signal.SIGHUP, self._lose_terminal)):
            before = signal.signal(number, handler)
            self._restore.append(partial(signal.signal, number, before))

    def _lose_terminal(self, _number: int, _frame: FrameType | None) -> None:
        """Go on without a terminal: what was going to it goes to a file beside the evidence."""
        file = (self.folder or self.settings.folder) / "terminal.log"
        log = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if fd != log and _is_terminal(fd):
                os.dup2(log, fd)
        if self.run and self.run.writer:
            self.run.writer.record("mark", event="terminal lost, the run goes on")

    def release(self) -> None:
        """Give the signals back."""
        while self._restore:
            self._restore.pop()()

    # items -----------------------------------------------------------------------------------

    def report(self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        """Give the item its one verdict, whatever happened to it, and put it on the report."""
        state = item.stash.get(STATE, None)
        if state is None:
            return
        verdict = state.verdict = self._verdict(state, call, report)
        if verdict is None:
            return
        if report.when == "call":
            _align(report, verdict)
        if report.when == "teardown":
            stamp = [("gpuaccept.stamp", self.source.stamp())] if self.source.stamp() else []
            report.user_properties = [*report.user_properties, *stamp, *_properties(verdict)]
        report.gpuaccept = verdict_row(verdict)  # type: ignore[attr-defined]

    def _verdict(self, state: ItemState, call: pytest.CallInfo[None], report: pytest.TestReport) -> Verdict | None:
        error = call.excinfo.value if call.excinfo else None
        if error is None:
            return self._after(state, report)
        if isinstance(error, LineFailed):
            return state.verdict
        if state.verdict and state.verdict.verdict == "FAIL":
            return replace(
                state.verdict, reason=f"{state.verdict.reason}; then {type(error).__name__} in {report.when}"
            )
        if isinstance(error, pytest.skip.Exception):
            return undecided("NOT_RUN", self.profile.lines[state.line], state.device, f"skipped: {error}")
        text = (str(error).strip().splitlines() or [""])[0]
        return self._error(state, f"{report.when} failed: {type(error).__name__}: {text}")

    def _after(self, state: ItemState, report: pytest.TestReport) -> Verdict | None:
        """Return the verdict after a phase that went well: `accept` must have been called once."""
        if report.when == "call" and state.calls != 1:
            return self._error(state, f"the test called accept() {state.calls} times, and a line is decided once")
        return state.verdict

    def _error(self, state: ItemState, reason: str) -> Verdict:
        return undecided("ERROR", self.profile.lines[state.line], state.device, reason)

    def take(self, report: pytest.TestReport) -> None:
        """Take an item's final verdict into the run; a failed test of one's own rejects."""
        row = getattr(report, "gpuaccept", None)
        if self.run is None:
            return
        if row is not None:
            verdict = row_verdict(row)
            if self.run.verdicts.get((verdict.line, verdict.device)) != verdict:
                self.run.settle(verdict)
        elif report.failed:
            self.run.note("fault", f"{report.nodeid} failed in {report.when}; it decides no line, so it rejects")
        elif report.skipped:
            self.run.note("remark", f"{report.nodeid} was skipped or expected to fail")

    def miss(self, reason: str) -> None:
        """Take a gap: something that belongs to the suite did not run."""
        if self.run:
            self.run.note("gap", reason)
        else:
            self._before.append(("gap", reason))

    def cut_off(self) -> None:
        """Remember that the run was ended before its end."""
        self._cut_off = True

    # the end ---------------------------------------------------------------------------------

    def finish(self, session: pytest.Session, exitstatus: int) -> None:
        """Decide, close the evidence, render the report, set the exit status."""
        if self.run is None or self.settings.worker:
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._restore.append(partial(signal.signal, number, signal.signal(number, signal.SIG_IGN)))
        interrupted = self._cut_off or exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)
        if interrupted:
            self.run.note("gap", "the run was cut off")
        option = self.config.option
        narrowed = getattr(option, "numprocesses", None) and (option.keyword or option.markexpr or option.deselect)
        if narrowed or any("::" in word for word in self.config.args):
            self.run.note("gap", "a part of the suite was asked for")
        stopped = interrupted or session.shouldfail or session.shouldstop
        missed = "the run ended before it was decided" if stopped else "not selected, or no test of this run names it"
        self.decision = self.run.finish(missed)
        if exitstatus not in KEEPS_ITS_STATUS:
            session.exitstatus = self.decision.exit_status

    def summary(self, reporter: pytest.TerminalReporter) -> None:
        """Print the table of verdicts, what stands in the way, and the findings."""
        if self.run and self.folder and self.decision is not None:
            bundle = read_bundle(self.folder)
            width = shutil.get_terminal_size((110, 24)).columns
            reporter.write(summary_text(bundle, width, colour=reporter.hasmarkup))

    def last_word(self) -> None:
        """Print the decision and where the report is, after everything else."""
        if self.decision is not None and self.folder:
            self.write(f"{self.decision}  report: {self.folder / 'report.html'}")


@dataclass(frozen=True, slots=True)
class _Begun:
    """The line that pytest's reporter has begun to write; see live.Begun."""

    reporter: pytest.TerminalReporter
    uncaptured: "Callable[[], AbstractContextManager[None]]"

    def column(self) -> int:
        with self.uncaptured():
            self.reporter.flush()
        return self.reporter._tw.width_of_current_line  # noqa: SLF001 - said nowhere else

    def end(self) -> None:
        with self.uncaptured():
            self.reporter.ensure_newline()
            self.reporter.write("\n" if self.column() else "")


def _align(report: pytest.TestReport, verdict: Verdict) -> None:
    """Make pytest's outcome follow the verdict: failed exactly when it stands in the way."""
    report.outcome = "failed" if verdict.blocks else "passed"
    if not verdict.blocks:
        report.longrepr = None
    elif not report.longrepr or isinstance(report.longrepr, tuple):
        report.longrepr = str(verdict)


def _properties(verdict: Verdict) -> list[tuple[str, object]]:
    row = verdict_row(verdict)
    return [(f"gpuaccept.{key}", "" if value is None else str(value)) for key, value in row.items()]


def status(report: pytest.TestReport) -> tuple[str, str, Any] | None:
    """Return pytest's category, letter and word for an item's verdict."""
    row = getattr(report, "gpuaccept", None)
    if row is None or report.when != "call":
        return None
    verdict = row_verdict(row)
    word = WORDS[verdict.verdict][0]
    if verdict.blocks:
        return "failed", word[0], (word, {"red": True})
    if verdict.verdict == "PASS":
        return "passed", ".", (word, {"green": True})
    shown = "REMARK" if verdict.verdict in ("FAIL", "ERROR", "NOT_RUN") else word
    return shown.lower(), shown[0].lower(), (shown, {"yellow": True})


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    """End the run as Ctrl-C does: loads stopped, evidence closed."""
    raise KeyboardInterrupt


def _is_terminal(fd: int) -> bool:
    """Say whether a descriptor belongs to a terminal, a hung-up one included."""
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink()).startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False


def as_usage_error(error: InputError) -> pytest.UsageError:
    """Return bad input as pytest's usage error: exit status 4, no traceback."""
    return pytest.UsageError(f"gpuaccept: {error}")
