"""The shipped probes, in the order of a run."""

from pytest_gpuaccept.probe import Probe
from pytest_gpuaccept.probes import (
    bmc,
    channels,
    cpu,
    electrical,
    engines,
    events,
    gpu,
    host,
    host_events,
    inventory,
    monitoring,
    nic,
    ram,
    resets,
    storage,
    unchanged,
    upkeep,
    watch,
)

SHIPPED: tuple[Probe, ...] = (
    *inventory.PROBES,
    *host.PROBES,
    *channels.PROBES,
    *gpu.PROBES,
    *storage.PROBES,
    *cpu.PROBES,
    *ram.PROBES,
    *engines.PROBES,
    *events.PROBES,
    *host_events.PROBES,
    *nic.PROBES,
    *monitoring.PROBES,
    *upkeep.PROBES,
    *bmc.PROBES,
    *electrical.PROBES,
    *unchanged.PROBES,
    *watch.PROBES,
    *resets.PROBES,
)
