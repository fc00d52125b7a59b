"""Faces: the devices of a run as objects on which probes are methods.

Owns what a fixture hands to a test, and what an item remembers. Judges nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from pytest_gpuaccept.measurement import Kind, Outcome
from pytest_gpuaccept.run import Run
from pytest_gpuaccept.verdict import Verdict

FACES: dict[str, Kind] = {
    "gpu": "gpu", "gpu_pair": "gpu_pair", "nvme": "nvme", "nic": "nic", "host": "host",
    "vllm_engine": "vllm", "llamacpp_engine": "llamacpp",
}  # fmt: skip
"""Fixture -> kind of device."""


@dataclass(slots=True)
class ItemState:
    """What one item is to decide, and what it has decided so far."""

    line: str
    device: str
    verdict: Verdict | None = None
    calls: int = 0


class LineFailed(pytest.fail.Exception):  # type: ignore[name-defined,misc]
    """The item stands in the way of acceptance; raised once its verdict is known."""


class Readings(Mapping[str, Outcome]):
    """What one probe said of one device: by metric id, or by its short name as an attribute."""

    def __init__(self, probe: str, outcomes: Mapping[str, Outcome]) -> None:
        """Take a probe's name and what it said, by metric id."""
        self._probe, self._outcomes = probe, outcomes

    def __getitem__(self, metric: str) -> Outcome:
        """Return the outcome of a metric id."""
        return self._outcomes[metric]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the metric ids."""
        return iter(self._outcomes)

    def __len__(self) -> int:
        """Return how many metrics were read."""
        return len(self._outcomes)

    def __getattr__(self, short: str) -> Outcome:
        """Return an outcome by the end of its id: `gpu.gemm().fp16`; a failed one has a `reason`, no value."""
        named = [outcome for name, outcome in self._outcomes.items() if name.endswith(f".{short}")]
        if len(named) == 1:
            return named[0]
        message = f"{self._probe} reads {', '.join(self._outcomes)}: {short!r} names {len(named)} of them"
        raise AttributeError(message)


class Face:
    """One device of the machine; every probe that acts on its kind is a method."""

    def __init__(self, run: Run, kind: str, device: str) -> None:
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


def face(run: Run, state: ItemState | None, kind: str, device: str | None) -> Face:
    """Return the device that the item's spec line is of, else the one it is parametrised with."""
    if state and run.catalogue.metrics[state.line].kind == kind:
        return Face(run, kind, state.device)
    return Face(run, kind, device or _only(run, kind))


def _only(run: Run, kind: str) -> str:
    devices = run.profile.devices.get(kind, ())  # type: ignore[call-overload]
    if len(devices) != 1:
        pytest.skip(f"the profile orders {len(devices)} devices of kind {kind!r}, this test wants one")
    return str(devices[0])


def acceptance(run: Run, state: ItemState) -> Callable[[Readings], Verdict]:
    """Return the `accept` of an item: it judges the item's line and fails when that stands in the way."""

    def accept(readings: Readings) -> Verdict:
        state.calls += 1
        if state.line not in readings:
            message = f"accept() was given {', '.join(readings)}, which does not decide {state.line}"
            raise pytest.UsageError(message)
        state.verdict = run.judge(state.line, state.device)
        if state.verdict.blocks:
            raise LineFailed(str(state.verdict), pytrace=False)
        return state.verdict

    return accept
