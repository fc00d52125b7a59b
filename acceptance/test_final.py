"""Nothing went wrong while the machine was loaded, and what should watch over it does."""

import pytest


@pytest.mark.spec("gpu.aer.*", "gpu.xid")
def test_gpu_events(gpu, accept):
    """No GPU logged an error during the run."""
    accept(gpu.events())


@pytest.mark.spec("gpu.ecc.*")
def test_gpu_health(gpu, accept):
    """Every GPU's memory is healthy."""
    accept(gpu.health())


@pytest.mark.spec("nic.*")
def test_nic(nic, accept):
    """No network link went down during the run."""
    accept(nic.link())


@pytest.mark.spec("monitoring.*", "host.lvm.*")
def test_services(host, accept):
    """What a well delivered machine also has."""
    accept(host.services())
