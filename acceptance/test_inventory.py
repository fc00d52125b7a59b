"""The machine is the one that was ordered."""

import pytest


@pytest.mark.spec(
    "host.cpu.*", "host.memory.*", "host.board.*", "host.product.*", "host.bios.*", "host.os.*", "host.kernel.*",
    "host.numa.*", "host.pcie.*", "host.limits.*", "host.secure_boot.*", "gpu.driver.match",
)  # fmt: skip
def test_host(host, accept):
    """CPU, memory, board, operating system and kernel are as ordered, and will be after the next start."""
    accept(host.inventory())


@pytest.mark.spec("host.psu", "host.psu.rating_w", "host.chassis", "host.cabling")
def test_attested(host, accept):
    """What no sensor shows was looked at by a named person."""
    accept(host.attested())


@pytest.mark.spec("software.*")
def test_software(host, accept):
    """The delivered software has the ordered versions."""
    accept(host.software())


@pytest.mark.spec(
    "gpu.count", "gpu.driver.version", "gpu.driver.flavour", "gpu.cuda.*", "gpu.power.limit_uniform",
    "gpu.vbios_uniform",
)  # fmt: skip
def test_gpus_together(host, accept):
    """The GPUs are all there, on the ordered driver, under one power limit and with one VBIOS."""
    accept(host.probe("gpu.inventory"))


@pytest.mark.spec(
    "gpu.name", "gpu.pci_device_id", "gpu.memory", "gpu.compute_capability", "gpu.power.limit", "gpu.persistence"
)
def test_gpu(gpu, accept):
    """Every GPU is the ordered model, in the ordered state."""
    accept(gpu.inventory())


@pytest.mark.spec(
    "gpu.vbios", "gpu.serial", "gpu.part_number", "gpu.bar1", "gpu.power.default", "gpu.power.min", "gpu.power.max",
    "gpu.temperature.*", "gpu.mig", "gpu.ecc.mode", "gpu.compute_mode", "gpu.pcie.slot", "gpu.gsp",
)  # fmt: skip
def test_gpu_identity(gpu, accept):
    """Every GPU is whole, and says of itself what was ordered."""
    accept(gpu.inventory())


@pytest.mark.spec("nvme.model", "nvme.firmware", "nvme.serial", "nvme.size")
def test_drive_identity(nvme, accept):
    """Every drive is the one that was ordered."""
    accept(nvme.identity())


@pytest.mark.spec("host.disk.*")
def test_system_disk(host, accept):
    """The operating system is on the ordered disk."""
    accept(host.disk())


@pytest.mark.spec("nvme.count")
def test_drives(host, accept):
    """The drives are all there."""
    accept(host.probe("nvme.inventory"))
