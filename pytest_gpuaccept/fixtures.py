"""What authors of acceptance tests use: `accept` and the faces of the devices.

A face turns `gpu.gemm()` into one run of the probe `gpu.gemm` on that GPU. Must stay cheap to
import: it is loaded whenever pytest is.
"""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_gpuaccept.faces import Face, ItemState, Readings
    from pytest_gpuaccept.run import Run
    from pytest_gpuaccept.simulate import Simulation
    from pytest_gpuaccept.verdict import Verdict

RUN = pytest.StashKey["Run"]()
STATE = pytest.StashKey["ItemState"]()


def _run(request: pytest.FixtureRequest) -> "Run":
    run = request.node.stash.get(RUN, None) or request.config.stash.get(RUN, None)
    if run is None:
        pytest.skip("needs a machine: run with --hw=PROFILE, or mark the test simulated")
    return run


def _face(request: pytest.FixtureRequest, kind: str) -> "Face":
    run = _run(request)
    from pytest_gpuaccept.faces import face  # noqa: PLC0415 - only with --hw

    return face(run, request.node.stash.get(STATE, None), kind, getattr(request, "param", None))


@pytest.fixture
def spec(request: pytest.FixtureRequest) -> "ItemState":
    """The spec line and device that this item decides."""
    _run(request)
    state: ItemState = request.node.stash[STATE]
    return state


@pytest.fixture
def simulated(request: pytest.FixtureRequest) -> "Simulation":
    """The test's own simulated machine: `simulated.sign_off()`, `simulated.verdict(line, device)`."""
    run = request.node.stash.get(RUN, None)
    if run is None:
        message = 'the fixture needs the marker beside it: @pytest.mark.simulated("4x4090")'
        raise pytest.UsageError(message)
    from pytest_gpuaccept.simulate import Simulation  # noqa: PLC0415 - only in simulated tests

    return Simulation(run)


@pytest.fixture
def accept(request: pytest.FixtureRequest, spec: "ItemState") -> "Callable[[Readings], Verdict]":
    """Decide this item's spec line from what a probe said; fails when it stands in the way."""
    run = _run(request)
    from pytest_gpuaccept.faces import acceptance  # noqa: PLC0415 - only with --hw

    return acceptance(run, spec)


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> "Face":
    """One GPU: `gpu.gemm()`, `gpu.copy()`, `gpu.links()`."""
    return _face(request, "gpu")


@pytest.fixture
def gpu_pair(request: pytest.FixtureRequest) -> "Face":
    """Two GPUs: `gpu_pair.peer()`."""
    return _face(request, "gpu_pair")


@pytest.fixture
def gpus(request: pytest.FixtureRequest) -> "list[Face]":
    """All GPUs of the profile."""
    run = _run(request)
    from pytest_gpuaccept.faces import Face  # noqa: PLC0415 - only with --hw

    return [Face(run, "gpu", device) for device in run.profile.devices.get("gpu", ())]


@pytest.fixture
def nvme(request: pytest.FixtureRequest) -> "Face":
    """One drive: `nvme.fio()`."""
    return _face(request, "nvme")


@pytest.fixture
def nic(request: pytest.FixtureRequest) -> "Face":
    """One network interface: `nic.link()`."""
    return _face(request, "nic")


@pytest.fixture
def host(request: pytest.FixtureRequest) -> "Face":
    """The machine itself: `host.inventory()`, `host.probe("cpu.burn")`."""
    return _face(request, "host")


@pytest.fixture
def vllm_engine(request: pytest.FixtureRequest) -> "Face":
    """The delivered vLLM: `vllm_engine()`."""
    return _face(request, "vllm")


@pytest.fixture
def llamacpp_engine(request: pytest.FixtureRequest) -> "Face":
    """The delivered llama.cpp: `llamacpp_engine()`."""
    return _face(request, "llamacpp")
