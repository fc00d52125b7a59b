"""Every GPU delivers what was ordered, alone and with all others."""

import pytest


@pytest.mark.spec("gpu.pcie.*")
def test_link(gpu, accept):
    """Every GPU's PCIe link runs at the ordered generation and width under load."""
    accept(gpu.links())


@pytest.mark.spec("gpu.gemm.*")
def test_matmul(gpu, accept):
    """Every GPU reaches the ordered matmul rates."""
    accept(gpu.gemm())


@pytest.mark.spec("gpu.copy.*")
def test_copy(gpu, accept):
    """Every GPU copies within itself and to and from the host at the ordered rates."""
    accept(gpu.copy())


@pytest.mark.spec("gpu_pair.*")
def test_pair(gpu_pair, accept):
    """Every pair of GPUs copies at the ordered rate."""
    accept(gpu_pair.peer())


@pytest.mark.spec("gpu.burn.*")
def test_burn(gpu, accept):
    """All GPUs burn together without error, within temperature, at the ordered rate."""
    accept(gpu.burn())


@pytest.mark.spec("gpu.combined.*")
def test_combined(gpu, accept):
    """All GPUs burn together with the CPU without error, within temperature, at the ordered rate."""
    accept(gpu.combined())
