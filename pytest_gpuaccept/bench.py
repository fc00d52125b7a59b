"""The table: (metric, device) -> outcome, filled by running each probe once.

Owns who runs when, what a failure means for the lines behind it, and that everything lands in the
evidence. Must not judge: what an outcome is worth is verdict.py's business.
"""

import json
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.evidence import TWICE, checked
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome, Provenance, number
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import PHASES, Catalogue, Probe, Site
from pytest_gpuaccept.probes.watch import Watch
from pytest_gpuaccept.profile import Profile, Scalar
from pytest_gpuaccept.readings import encode
from pytest_gpuaccept.world import World

FIRST_LOAD = PHASES.index("idle")
"""Place of the first phase that waits, or loads the machine."""
NO_METHOD = "no live method yet"
NOT_RECORDED = "not recorded"
SINCE_RESUMED = "counts only what came after the run was resumed"
Run = tuple[str, str]
"""A probe's name and the device that it runs on."""


class Journal(Protocol):
    """Where a bench writes what happens; the evidence writer is one."""

    def record(self, kind: str, **body: object) -> None:
        """Append one record."""

    def outcome(self, outcome: Outcome) -> None:
        """Append a measurement, or the absence of one."""

    def attach(self, name: str, text: str) -> str:
        """Keep raw text and return its digest."""


class Progress(Protocol):
    """Who shows the operator what runs."""

    def probe(self, probe: Probe, device: str, params: Mapping[str, Scalar]) -> AbstractContextManager[None]:
        """Show a probe while the block runs; must not raise."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What a run takes over from one that was cut off.

    Args:
        table: the outcomes that stay; their metrics are not measured again.
        done: the probes that do not run again.
        begun: the readings of the start that still hold.
        lost: the probes whose start cannot be compared with any more; what they count is not the whole run.
        memory: what the probes remember together.

    """

    table: Mapping[tuple[str, str], Outcome] = field(default_factory=dict)
    done: frozenset[Run] = frozenset()
    begun: Mapping[Run, object] = field(default_factory=dict)
    lost: frozenset[Run] = frozenset()
    memory: Mapping[str, Any] = field(default_factory=dict)


class Bench:
    """Runs probes on first use and remembers what they said, failures included.

    With a world it measures; without one it only knows its table, and what is not in it is
    "not recorded": a replay never falls through to live hardware.
    """

    def __init__(  # noqa: PLR0913 - the parts of a bench
        self,
        profile: Profile,
        catalogue: Catalogue,
        journal: Journal,
        world: World | None = None,
        recorded: Mapping[tuple[str, str], Outcome] | None = None,
        *,
        carried: Carried | None = None,
        provenance: Provenance = "measured",
    ) -> None:
        """Start from what was recorded, what a run that was cut off leaves, and what was attested.

        `hold`, once set, is the reason why probes that load the machine are not started;
        `progress`, once set, shows those that are; `memory` is what the probes of the run remember together;
        `provenance` is that of every value taken in this world.
        """
        self.profile, self.catalogue = profile, catalogue
        self._journal, self._world, self._provenance = journal, world, provenance
        self._carried = carried or Carried()
        self._done = set(self._carried.done)
        self._before: dict[Run, object] = dict(self._carried.begun)
        self.memory: dict[str, Any] = dict(self._carried.memory)
        self._lasting = ExitStack()
        self.hold = ""
        self.progress: Progress | None = None
        self.table: dict[tuple[str, str], Outcome] = {}
        for outcome in {**(recorded or {}), **self._carried.table}.values():
            if not self._derived(outcome.metric):
                self._keep(outcome)
        for outcome in attestations(profile, catalogue):
            if (outcome.metric, outcome.device) not in self.table:
                self._keep(outcome)

    def outcome(self, metric: str, device: str) -> Outcome:
        """Return what is known of a metric on a device, running its probe if nobody asked before."""
        if (metric, device) not in self.table:
            declared = self.catalogue.metrics[metric]
            if declared.derive:
                self._keep(self._calculate(declared, device))
            else:
                probe = self.catalogue.home(metric)
                self.run(probe, device if declared.kind == probe.kind else "host")
        absent = NotMeasured(metric, device, f"the profile has no {device}")
        return self.table.setdefault((metric, device), absent)

    def begin(self) -> None:
        """Let every probe that compares with the start of the run read it now."""
        for probe in self.catalogue.probes.values():
            if probe.before and not self.unavailable(probe):
                for device in self.profile.devices.get(probe.kind, ()):
                    if (probe.name, device) not in self._before:
                        self._before[probe.name, device] = reading = self._read_before(probe, device)
                        self._keep_reading(probe, device, reading)

    def _keep_reading(self, probe: Probe, device: str, reading: object) -> None:
        """Keep a reading of the start for a run that is resumed; one without a JSON form is not kept."""
        with suppress(TypeError):
            digest = self._journal.attach(f"start of the run: {probe.name} {device}", json.dumps(encode(reading)))
            self._journal.record("before", name=probe.name, device=device, sha256=digest)

    def _read_before(self, probe: Probe, device: str) -> object:
        try:
            return probe.before(self._site(probe, device)) if probe.before and self._world else None
        except Unmeasurable as error:
            return error
        except Exception as error:  # noqa: BLE001 - a probe's failure is its lines' reason, not the run's end
            self._journal.attach(f"traceback {probe.name} {device}", traceback.format_exc())
            return Unmeasurable(f"{probe.name} failed at the start of the run: {type(error).__name__}: {error}")

    def run(self, probe: Probe, device: str) -> None:
        """Run a probe on a device unless it ran before."""
        if (probe.name, device) not in self._done:
            self._done.add((probe.name, device))
            self._run_once(probe, device)

    def unavailable(self, probe: Probe) -> str:
        """Say why a probe cannot run here, with the remedy; '' when it can."""
        if self._world is None:
            return NOT_RECORDED
        if probe.driver:
            try:
                self._world.nvml()
            except Unmeasurable as error:
                return str(error)
        if probe.measure is None:
            return f"{NO_METHOD}: {probe.name} is declared, and so far only judged from recorded evidence"
        if missing := sorted(set(probe.loads) - self._world.loads):
            return f"{NO_METHOD}: {probe.name} starts {', '.join(missing)}, which only a simulated machine can so far"
        if missing := [tool for tool in probe.tools if not self._world.has(tool)]:
            return f"{', '.join(missing)} not found; install with: apt-get install {' '.join(missing)}"
        return next(filter(None, map(self._world.refuses, probe.loads)), "")

    def unready(self, metric: str, device: str) -> str:
        """Say why a metric cannot be measured on a device, as far as shows before any load, or nothing."""
        probe = self.catalogue.home(metric)
        if reason := self.unavailable(probe):
            return reason
        if PHASES.index(probe.phase) < FIRST_LOAD and not probe.load:
            outcome = self.outcome(metric, device)
            return outcome.reason if isinstance(outcome, NotMeasured) else ""
        try:
            if probe.ready:
                probe.ready(self._site(probe, device))
        except Unmeasurable as error:
            return str(error)
        return ""

    def _run_once(self, probe: Probe, device: str) -> None:
        if reason := self.unavailable(probe) or (self.hold if probe.load else ""):
            self._fill(probe, device, reason)
            return
        self._journal.record("probe", name=probe.name, device=device, phase=probe.phase)
        reason = f"{probe.name} did not report it"
        try:
            with self._shown(probe, device), self._watched(probe):
                for outcome in self._measure(probe, device):
                    self._keep(outcome)
        except Unmeasurable as error:
            reason = str(error)
        except BaseException as error:
            reason = f"{probe.name} failed: {type(error).__name__}: {error}"
            self._journal.attach(f"traceback {probe.name} {device}", traceback.format_exc())
            if not isinstance(error, Exception):
                raise
        finally:
            self._fill(probe, device, reason)
            self._journal.record("probe_end", name=probe.name, device=device)

    def _shown(self, probe: Probe, device: str) -> AbstractContextManager[None]:
        if self.progress is None or not probe.load:
            return nullcontext()
        return self.progress.probe(probe, device, self._params(probe))

    @contextmanager
    def _watched(self, probe: Probe) -> Iterator[None]:
        """Charge what is counted meanwhile to a probe that loads the machine, and write it down at once."""
        watch = self.memory.get("watch")
        if not isinstance(watch, Watch) or not probe.load:
            yield
            return
        try:
            with watch.during(probe.name):
                yield
        finally:
            for charge in watch.unwritten():
                self._journal.record("counted", **asdict(charge))

    def close(self) -> None:
        """End what went on during the whole run."""
        self._lasting.close()

    def _params(self, probe: Probe) -> dict[str, Scalar]:
        return {**probe.params, **self.profile.params.get(probe.name, {})}

    def _measure(self, probe: Probe, device: str) -> Iterable[Outcome]:
        if probe.measure is None:
            return
        owned = {(metric.id, where): metric for metric, where in places(self.profile, probe, device)}
        lost = (probe.name, device) in self._carried.lost
        for outcome in probe.measure(self._site(probe, device)):
            got = self._believable(outcome, probe, owned.keys(), self._provenance)
            if (key := (got.metric, got.device)) not in self._carried.table:
                yield _since_resumed(got, owned[key]) if lost else got

    def _site(self, probe: Probe, device: str) -> Site:
        if self._world is None:
            raise Unmeasurable(NOT_RECORDED)
        before = self._before.get((probe.name, device))
        more = (self._provenance, before, self.memory, self._lasting)
        return Site(self._world, self.profile, device, self._params(probe), self._journal.attach, *more)

    def _believable(
        self, outcome: Outcome, probe: Probe, owned: Collection[tuple[str, str]], provenance: Provenance
    ) -> Outcome:
        """Return an outcome that the probe may yield; raises Unmeasurable for any other."""
        try:
            key = checked(outcome).metric, outcome.device
        except ValueError as error:
            message = f"{probe.name} yielded what is no outcome: {error}"
            raise Unmeasurable(message) from None
        if key not in owned:
            message = f"{probe.name} yielded {key[0]} on {key[1]}, which it does not declare or nobody ordered"
            raise Unmeasurable(message)
        if isinstance(outcome, Measurement) and outcome.provenance not in (provenance, "calculated"):
            return NotMeasured(*key, f"the probe calls its value {outcome.provenance!r}, on a machine that it measures")
        return outcome

    def _fill(self, probe: Probe, device: str, reason: str) -> None:
        """Give every metric that the probe left open its reason, so that nobody asks twice."""
        for metric, where in places(self.profile, probe, device):
            if (metric.id, where) not in self.table:
                self._keep(NotMeasured(metric.id, where, reason))

    def _keep(self, outcome: Outcome) -> None:
        """Write an outcome down, then know it; a second one for its place makes both worthless."""
        self._journal.outcome(outcome)
        key = outcome.metric, outcome.device
        self.table[key] = NotMeasured(*key, TWICE) if key in self.table else outcome

    def _derived(self, metric: str) -> bool:
        declared = self.catalogue.metrics.get(metric)
        return declared is not None and declared.derive is not None

    def _calculate(self, metric: Metric, device: str) -> Outcome:
        try:
            return metric.derive(_Inputs(self, device)) if metric.derive else NotMeasured(metric.id, device, "")
        except Unmeasurable as error:
            return NotMeasured(metric.id, device, str(error))
        except (ArithmeticError, TypeError, ValueError) as error:
            return NotMeasured(metric.id, device, f"cannot be calculated: {error}")


@dataclass(frozen=True, slots=True)
class _Inputs:
    """A derivation's view of the bench; see metric.Inputs."""

    bench: Bench
    device: str

    @property
    def profile(self) -> Profile:
        return self.bench.profile

    def get(self, metric: str, device: str | None = None) -> Measurement:
        outcome = self.bench.outcome(metric, device or self.device)
        if isinstance(outcome, NotMeasured):
            where = "" if outcome.device == self.device else f"[{outcome.device}]"
            message = f"needs {metric}{where}: {outcome.reason}"
            raise Unmeasurable(message)
        return outcome

    def number(self, metric: str, device: str | None = None) -> float:
        value = number(self.get(metric, device).value)
        if value is None:
            message = f"needs a number in {metric}[{device or self.device}]"
            raise Unmeasurable(message)
        return value


def places(profile: Profile, probe: Probe, device: str) -> Iterator[tuple[Metric, str]]:
    """Yield the metrics that a probe measures with their device: its own, or all of the metric's kind."""
    for metric in probe.metrics:
        if not metric.derive:
            own = metric.kind == probe.kind
            for where in (device,) if own else profile.devices.get(metric.kind, ()):
                yield metric, where


def _since_resumed(outcome: Outcome, metric: Metric) -> Outcome:
    """Return what a probe says that saw only the end of the run: an event still counts, "none seen" proves nothing."""
    if isinstance(outcome, NotMeasured):
        return outcome
    if metric.none_seen:
        return replace(outcome, proof=None, note="; ".join(filter(None, [outcome.note, SINCE_RESUMED])))
    return NotMeasured(outcome.metric, outcome.device, f"not comparable with the start of the run: {SINCE_RESUMED}")


def attestations(profile: Profile, catalogue: Catalogue) -> Iterable[Measurement]:
    """Yield the values that a named person took by looking."""
    for a in profile.attested:
        attested: Provenance = "attested"
        note = f"attested by {a.who} on {a.when}, who looked at: {a.looked_at}"
        yield Measurement(a.line, a.device, a.value, catalogue.metrics[a.line].unit, attested, note=note)
