"""What authors of acceptance tests use: `accept` and the faces of the devices.

A face turns `gpu.gemm()` into one run of the probe `gpu.gemm` on that GPU. Must stay cheap to
import: it is loaded whenever pytest is.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_gpuaccept.measurement import Outcome
    from pytest_gpuaccept.run import Run
    from pytest_gpuaccept.verdict import Verdict

FACES = {
    "gpu": "gpu", "gpu_pair": "gpu_pair", "nvme": "nvme", "nic": "nic", "host": "host",
    "vllm_engine": "vllm", "llamacpp_engine": "llamacpp",
}  # fmt: skip
"""Fixture -> kind of device."""

RUN = pytest.StashKey["Run"]()
STATE = pytest.StashKey["ItemState"]()


@dataclass(slots=True)
class ItemState:
    """What one item is to decide, and what it has decided so far."""

    line: str
    device: str
    verdict: "Verdict | None" = None
    calls: int = 0


class LineFailed(pytest.fail.Exception):  # type: ignore[name-defined,misc]
    """The item stands in the way of acceptance; raised once its verdict is known."""


class Readings(Mapping[str, "Outcome"]):
    """What one probe said of one device: by metric id, or by its short name as an attribute."""

    def __init__(self, probe: str, outcomes: Mapping[str, "Outcome"]) -> None:
        """Take a probe's name and what it said, by metric id."""
        self._probe, self._outcomes = probe, outcomes

    def __getitem__(self, metric: str) -> "Outcome":
        """Return the outcome of a metric id."""
        return self._outcomes[metric]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the metric ids."""
        return iter(self._outcomes)

    def __len__(self) -> int:
        """Return how many metrics were read."""
        return len(self._outcomes)

    def __getattr__(self, short: str) -> "Outcome":
        """Return an outcome by the end of its id: `gpu.gemm().fp16`; a failed one has a `reason`, no value."""
        named = [outcome for name, outcome in self._outcomes.items() if name.endswith(f".{short}")]
        if len(named) == 1:
            return named[0]
        message = f"{self._probe} reads {', '.join(self._outcomes)}: {short!r} names {len(named)} of them"
        raise AttributeError(message)


class Face:
    """One device of the machine; every probe that acts on its kind is a method."""

    def __init__(self, run: "Run", kind: str, device: str) -> None:
        """Take the run and the device's id."""
        self._run, self._kind, self.device = run, kind, device

    def __getattr__(self, name: str) -> Callable[[], Readings]:
        """Return the probe called `<kind>.<name>` as a function that runs it once."""
        return lambda: self.probe(f"{self._kind}.{name}")

    def __call__(self) -> Readings:
        """Run the probe that is called as the kind itself: `vllm_engine()`."""
        return self.probe(self._kind)

    def probe(self, name: str) -> Readings:
        """Run a probe by its full name, once, and return what it says of this device."""
        probe = self._run.catalogue.probes.get(name)
        if probe is None:
            known = ", ".join(sorted(self._run.catalogue.probes))
            message = f"no probe {name!r}; known: {known}"
            raise pytest.UsageError(message)
        mine = [m.id for m in probe.metrics if m.kind in (self._kind, "host")]
        where = {m.id: self.device if m.kind == self._kind else "host" for m in probe.metrics}
        return Readings(name, {metric: self._run.bench.outcome(metric, where[metric]) for metric in mine})


def _run(request: pytest.FixtureRequest) -> "Run":
    run = request.config.stash.get(RUN, None)
    if run is None:
        pytest.skip("needs a machine: run with --hw=PROFILE")
    return run


def _face(request: pytest.FixtureRequest, kind: str) -> Face:
    """Return the device that the item's spec line is of, else the one it is parametrised with."""
    run, state = _run(request), request.node.stash.get(STATE, None)
    metric = run.catalogue.metrics[state.line] if state else None
    if state and metric and metric.kind == kind:
        return Face(run, kind, state.device)
    return Face(run, kind, request.param if hasattr(request, "param") else _only(run, kind))


def _only(run: "Run", kind: str) -> str:
    devices = run.profile.devices.get(kind, ())  # type: ignore[call-overload]
    if len(devices) != 1:
        pytest.skip(f"the profile orders {len(devices)} devices of kind {kind!r}, this test wants one")
    return str(devices[0])


@pytest.fixture
def spec(request: pytest.FixtureRequest) -> "ItemState":
    """The spec line and device that this item decides."""
    _run(request)
    state: ItemState = request.node.stash[STATE]
    return state


@pytest.fixture
def accept(request: pytest.FixtureRequest, spec: "ItemState") -> Callable[[Readings], "Verdict"]:
    """Decide this item's spec line from what a probe said; fails when it stands in the way."""
    run = _run(request)

    def decide(readings: Readings) -> "Verdict":
        spec.calls += 1
        if spec.line not in readings:
            message = f"accept() was given {', '.join(readings)}, which does not decide {spec.line}"
            raise pytest.UsageError(message)
        spec.verdict = run.judge(spec.line, spec.device)
        if spec.verdict.blocks:
            raise LineFailed(str(spec.verdict), pytrace=False)
        return spec.verdict

    return decide


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> Face:
    """One GPU: `gpu.gemm()`, `gpu.copy()`, `gpu.links()`."""
    return _face(request, "gpu")


@pytest.fixture
def gpu_pair(request: pytest.FixtureRequest) -> Face:
    """Two GPUs: `gpu_pair.peer()`."""
    return _face(request, "gpu_pair")


@pytest.fixture
def gpus(request: pytest.FixtureRequest) -> list[Face]:
    """All GPUs of the profile."""
    run = _run(request)
    return [Face(run, "gpu", device) for device in run.profile.devices.get("gpu", ())]


@pytest.fixture
def nvme(request: pytest.FixtureRequest) -> Face:
    """One drive: `nvme.fio()`."""
    return _face(request, "nvme")


@pytest.fixture
def nic(request: pytest.FixtureRequest) -> Face:
    """One network interface: `nic.link()`."""
    return _face(request, "nic")


@pytest.fixture
def host(request: pytest.FixtureRequest) -> Face:
    """The machine itself: `host.inventory()`, `host.probe("cpu.burn")`."""
    return _face(request, "host")


@pytest.fixture
def vllm_engine(request: pytest.FixtureRequest) -> Face:
    """The delivered vLLM: `vllm_engine()`."""
    return _face(request, "vllm")


@pytest.fixture
def llamacpp_engine(request: pytest.FixtureRequest) -> Face:
    """The delivered llama.cpp: `llamacpp_engine()`."""
    return _face(request, "llamacpp")
