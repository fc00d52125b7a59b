"""CPU and drives deliver what was ordered."""

import pytest


@pytest.mark.spec("cpu.burn.*")
def test_cpu_burn(host, accept):
    """Every CPU is loaded and computes without error."""
    accept(host.probe("cpu.burn"))


@pytest.mark.spec("cpu.combined.*")
def test_cpu_combined(host, accept):
    """Every CPU computes without error while all GPUs burn."""
    accept(host.probe("gpu.combined"))


@pytest.mark.spec("nvme.read.*", "nvme.write.*")
def test_drive(nvme, accept):
    """Every drive reads and writes at the ordered rates."""
    accept(nvme.fio())
