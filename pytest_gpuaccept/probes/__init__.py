"""The shipped probes, in the order of a run."""

from pytest_gpuaccept.probe import Probe
from pytest_gpuaccept.probes import resets, unchanged, watch
from pytest_gpuaccept.probes.burns import cpu, ram
from pytest_gpuaccept.probes.drives import storage
from pytest_gpuaccept.probes.engines import contract
from pytest_gpuaccept.probes.gpus import gpu, link_events
from pytest_gpuaccept.probes.host import inventory, machine
from pytest_gpuaccept.probes.kernel import channels, device_errors, host_events
from pytest_gpuaccept.probes.network import nic
from pytest_gpuaccept.probes.services import bmc, electrical, monitoring, upkeep

SHIPPED: tuple[Probe, ...] = (
    *inventory.PROBES,
    *machine.PROBES,
    *channels.PROBES,
    *gpu.PROBES,
    *storage.PROBES,
    *cpu.PROBES,
    *ram.PROBES,
    *contract.PROBES,
    *link_events.PROBES,
    *host_events.PROBES,
    *device_errors.PROBES,
    *nic.PROBES,
    *monitoring.PROBES,
    *upkeep.PROBES,
    *bmc.PROBES,
    *electrical.PROBES,
    *unchanged.PROBES,
    *watch.PROBES,
    *resets.PROBES,
)
