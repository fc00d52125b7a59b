"""Probes: named activities that yield metrics, and the catalogue of those that exist.

Owns the declaration of a probe and what it is given (Site). Must not judge, and holds no device
access of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.measurement import Kind, Measurement, Outcome, Provenance, Value
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.profile import Profile, Scalar
from pytest_gpuaccept.world import World

Phase = Literal[
    "inventory", "channels", "idle", "links", "storage", "cpu", "gpu", "gpus", "combined", "engines", "final",
]  # fmt: skip
PHASES: tuple[str, ...] = get_args(Phase)
"""The order of a run: what disturbs least comes first, what heats comes late."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a probe is given: where it acts, on what, with which parameters.

    `attach(name, text)` keeps raw tool output in the evidence and returns its digest. `before` is
    what the probe's own `before` read at the start of the run, or the Unmeasurable that it raised;
    `memory` is what the probes of one run remember together, such as which card is `gpu2`; what `lasting` is
    given goes on until the end of the run.
    """

    world: World
    profile: Profile
    device: str
    params: Mapping[str, Scalar]
    attach: Callable[[str, str], str]
    provenance: Provenance = "measured"
    before: object = None
    memory: dict[str, Any] = field(default_factory=dict)
    lasting: ExitStack = field(default_factory=ExitStack)

    def measured(  # noqa: PLR0913 - the parts of a measurement, all but two by name
        self,
        metric: Metric,
        value: Value,
        *,
        device: str | None = None,
        spread: float | None = None,
        samples: int = 1,
        ceiling: float | None = None,
        proof: str | None = None,
        conditions: Mapping[str, Scalar] | None = None,
        note: str = "",
    ) -> Measurement:
        """Return a measurement of `metric`, on this site's device unless told, in the metric's own unit."""
        return Measurement(
            metric.id, device or self.device, value, metric.unit, self.provenance,
            spread=spread, samples=samples, ceiling=ceiling, proof=proof, conditions=conditions or {}, note=note,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Probe:
    """A named activity that yields metrics.

    Args:
        name: dotted; `gpu.gemm` is reached as `gpu.gemm()` in a test.
        phase: when in a run it belongs.
        kind: the kind of device that it is run on, once for each.
        metrics: what it yields.
        measure: yields an outcome for each of its metrics; None where no live method exists yet.
        params: names and defaults of its parameters; a profile may set these and no others.
        load: it loads or writes to the machine, so the preflight may hold it back.
        tools: commands that it needs.
        driver: it needs the NVIDIA driver.
        loads: load scripts that it starts.
        before: reads what `measure` will compare with, once, at the start of the run.
        ready: raises Unmeasurable where it shows before any load that `measure` cannot do its work.

    """

    name: str
    phase: Phase
    kind: Kind
    metrics: tuple[Metric, ...]
    measure: Callable[[Site], Iterable[Outcome]] | None = None
    params: Mapping[str, Scalar] = field(default_factory=dict)
    load: bool = False
    tools: tuple[str, ...] = ()
    driver: bool = False
    loads: tuple[str, ...] = ()
    before: Callable[[Site], object] | None = None
    ready: Callable[[Site], object] | None = None


class Catalogue:
    """The probes and metrics known to this run."""

    def __init__(self, probes: Iterable[Probe]) -> None:
        """Index the probes; raises InputError when a probe or a metric is declared twice."""
        self.probes: dict[str, Probe] = {}
        self.metrics: dict[str, Metric] = {}
        self._home: dict[str, Probe] = {}
        for probe in probes:
            self._add(probe)

    def _add(self, probe: Probe) -> None:
        if self.probes.setdefault(probe.name, probe) is not probe:
            message = f"probe {probe.name} is declared twice"
            raise InputError(message)
        for metric in probe.metrics:
            if metric.id in self.metrics:
                message = f"metric {metric.id} is declared by {self._home[metric.id].name} and by {probe.name}"
                raise InputError(message)
            self.metrics[metric.id], self._home[metric.id] = metric, probe

    def home(self, metric: str) -> Probe:
        """Return the probe that yields `metric`."""
        return self._home[metric]

    def expected(self, profile: Profile) -> Iterator[tuple[str, str]]:
        """Yield every (line, device) of the profile, in the order of a run."""
        known = [(metric, probe) for probe in self.probes.values() for metric in probe.metrics]
        known.sort(key=lambda pair: PHASES.index(pair[1].phase))
        for metric, _ in known:
            if line := profile.lines.get(metric.id):
                for device in profile.devices_of(line, metric.kind):
                    yield line.id, device
