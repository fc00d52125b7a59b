"""Every GPU delivers what was ordered, alone and with all others."""

import pytest


@pytest.mark.spec("gpu.pcie.gen", "gpu.pcie.width", "gpu.pcie.idle_gen")
def test_link(gpu, accept):
    """Every GPU's PCIe link runs at the ordered generation and width under load."""
    accept(gpu.links())


@pytest.mark.spec("gpu.gemm.*")
def test_matmul(gpu, accept):
    """Every GPU reaches the ordered matmul rates."""
    accept(gpu.gemm())


@pytest.mark.spec(
    "gpu.copy.device", "gpu.copy.h2d", "gpu.copy.d2h", "gpu.copy.*_pageable", "gpu.copy.*_untouched", "gpu.copy.both",
    "gpu.copy.errors",
)  # fmt: skip
def test_copy(gpu, accept):
    """Every GPU copies within itself and to and from the host at the ordered rates."""
    accept(gpu.copy())


@pytest.mark.spec("gpu_pair.*")
def test_pair(gpu_pair, accept):
    """Every pair of GPUs copies at the ordered rate."""
    accept(gpu_pair.peer())


@pytest.mark.spec("gpu.copy.*_all")
def test_copy_all(gpu, accept):
    """Every GPU copies to and from the host while all others do."""
    accept(gpu.copy_all())


@pytest.mark.spec("gpu.copy.shared_uplink")
def test_uplink(host, accept):
    """No GPU loses its rate to another one that copies."""
    accept(host.probe("gpu.copy_all"))


@pytest.mark.spec("gpu.numerics.*")
def test_numerics(gpu, accept):
    """Every GPU multiplies matrices of odd shapes as float64 does."""
    accept(gpu.numerics())


@pytest.mark.spec("gpu.burn.*")
def test_burn(gpu, accept):
    """All GPUs burn together without error, within temperature, at the ordered rate."""
    accept(gpu.burn())


@pytest.mark.spec("gpu.step.steps", "gpu.step.errors")
def test_steps(gpu, accept):
    """All GPUs go from rest to full load together, ten times, without error."""
    accept(gpu.step())


@pytest.mark.spec("gpu.step.events", "gpu.step.swing")
def test_step_events(host, accept):
    """The load steps leave no reset, no lost link and no driver error behind."""
    accept(host.probe("gpu.step"))


@pytest.mark.spec("gpu.combined.*")
def test_combined(gpu, accept):
    """All GPUs burn together with the CPU without error, within temperature, at the ordered rate."""
    accept(gpu.combined())


@pytest.mark.spec("gpu.memory.*")
def test_memory(gpu, accept):
    """The memory of every GPU holds what is written to it, nearly all of it tested."""
    accept(gpu.memory())
