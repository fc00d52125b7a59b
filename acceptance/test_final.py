"""Nothing went wrong while the machine was loaded, and what should watch over it does."""

import pytest


@pytest.mark.spec(
    "gpu.aer.corrected", "gpu.aer.corrected_rate", "gpu.aer.uncorrected", "gpu.aer.replay_failed", "gpu.aer.since_boot",
    "gpu.pcie.replay_rate", "gpu.pcie.recoveries", "gpu.xid",
)  # fmt: skip
def test_gpu_events(gpu, accept):
    """No GPU's link or driver showed an error during the run."""
    accept(gpu.events())


@pytest.mark.spec("gpu.aer.outlier")
def test_links_alike(host, accept):
    """No GPU's link has errors that those of the others have not."""
    accept(host.probe("gpu.events"))


@pytest.mark.spec("gpu.recovery")
def test_gpu_recovery(gpu, accept):
    """The driver wants nothing done to any GPU."""
    accept(gpu.recovery())


@pytest.mark.spec("gpu.watch.*")
def test_gpu_watch(gpu, accept):
    """What was seen on each GPU, by what ran."""
    accept(gpu.probe("host.watch"))


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


@pytest.mark.spec("host.resets")
def test_resets(host, accept):
    """The machine was not started anew during the run."""
    accept(host.resets())


@pytest.mark.spec("nvme.health.*", "nvme.new.*")
def test_drive_health(nvme, accept):
    """Every drive is new, and says that nothing is wrong with it."""
    accept(nvme.health())


@pytest.mark.spec("host.events.*", "host.taint.*", "host.ecc.*")
def test_host_events(host, accept):
    """The kernel saw no crash, no hardware error and no error of memory, drives or file systems."""
    accept(host.events())


@pytest.mark.spec("host.crashes")
def test_crashes(host, accept):
    """No kernel of this machine has left a crash on record."""
    accept(host.crashes())


@pytest.mark.spec("host.pcie_errors.*")
def test_device_errors(host, accept):
    """No drive, network, controller or bridge had a PCIe error."""
    accept(host.pcie_errors())


@pytest.mark.spec("nic.flaps", "nic.unchanged", "nic.speed", "nic.errors")
def test_nic(nic, accept):
    """No network link went down, changed or damaged frames during the run."""
    accept(nic.link())


@pytest.mark.spec("host.inventory.*")
def test_host_unchanged(host, accept):
    """No part of the machine came, went or changed during the run."""
    accept(host.unchanged())


@pytest.mark.spec(
    "monitoring.prometheus", "monitoring.series", "monitoring.alerts", "monitoring.retention",
    "monitoring.dcgm_exporter", "monitoring.grafana", "monitoring.vllm_queue",
)  # fmt: skip
def test_monitoring(host, accept):
    """What should watch over the machine does."""
    accept(host.monitoring())


@pytest.mark.spec("monitoring.end_to_end")
def test_end_to_end(host, accept):
    """The heat of the burn arrived in Prometheus."""
    accept(host.end_to_end())


@pytest.mark.spec("service.*", "host.lvm.*")
def test_upkeep(host, accept):
    """The machine stays as it was delivered."""
    accept(host.upkeep())


@pytest.mark.spec("bmc.*")
def test_bmc(host, accept):
    """The board's own controller saw nothing go wrong, and no sensor of it is critical."""
    accept(host.bmc())


@pytest.mark.spec("power.*")
def test_electrical(host, accept):
    """Circuit and power supplies carry the machine at its limits."""
    accept(host.electrical())


@pytest.mark.spec("host.watch.*")
def test_watch(host, accept):
    """The counters were looked at throughout the run."""
    accept(host.watch())
