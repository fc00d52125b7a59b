"""CPU and drives deliver what was ordered."""

import pytest


@pytest.mark.spec("host.idle.*")
def test_idle(host, accept):
    """The machine at rest counts no error."""
    accept(host.idle())


@pytest.mark.spec("cpu.burn.*")
def test_cpu_burn(host, accept):
    """Every CPU is loaded and computes without error."""
    accept(host.probe("cpu.burn"))


@pytest.mark.spec("ram.burn.*")
def test_ram_burn(host, accept):
    """Most of the memory is written and read back without error."""
    accept(host.probe("ram.burn"))


@pytest.mark.spec("ram.bandwidth")
def test_ram_bandwidth(host, accept):
    """All CPUs together move what the memory's channels can."""
    accept(host.probe("ram.bandwidth"))


@pytest.mark.spec("cpu.combined.*")
def test_cpu_combined(host, accept):
    """Every CPU computes without error while all GPUs burn."""
    accept(host.probe("gpu.combined"))


@pytest.mark.spec("nvme.read.*", "nvme.write.*", "nvme.verify.*", "nvme.temperature*", "nvme.link.*", "nvme.drop")
def test_drive(nvme, accept):
    """Every drive reads and writes at the ordered rates, keeps its data, its link and its cool."""
    accept(nvme.fio())


@pytest.mark.spec("nvme.cold_load")
def test_cold_load(nvme, accept):
    """A model comes from the drive, and not from memory, at the ordered rate."""
    accept(nvme.cold_load())
