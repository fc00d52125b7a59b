"""Nothing went wrong while the machine was loaded, and what should watch over it does."""

import pytest


@pytest.mark.spec("gpu.aer.*", "gpu.xid")
def test_gpu_events(gpu, accept):
    """No GPU logged an error during the run."""
    accept(gpu.events())


@pytest.mark.spec("gpu.ecc.uncorrected")
def test_gpu_health(gpu, accept):
    """Every GPU's memory is healthy."""
    accept(gpu.health())


@pytest.mark.spec("gpu.remap.*", "gpu.retired_pages")
def test_gpu_remap(gpu, accept):
    """No GPU had to take memory out of use."""
    accept(gpu.remap())


@pytest.mark.spec("gpu.processes.*")
def test_gpu_processes(gpu, accept):
    """Nobody else used a GPU, and nobody stays on it."""
    accept(gpu.processes())


@pytest.mark.spec("gpu.state.*")
def test_gpu_state(gpu, accept):
    """No setting of a GPU changed during the run."""
    accept(gpu.state())


@pytest.mark.spec("nic.*")
def test_nic(nic, accept):
    """No network link went down during the run."""
    accept(nic.link())


@pytest.mark.spec("monitoring.*", "host.lvm.*")
def test_services(host, accept):
    """What a well delivered machine also has."""
    accept(host.services())
