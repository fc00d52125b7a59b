"""The shipped probes, in the order of a run."""

from pytest_gpuaccept.probe import Probe
from pytest_gpuaccept.probes import cpu, engines, events, gpu, host, services, storage

SHIPPED: tuple[Probe, ...] = (
    *host.PROBES,
    *gpu.PROBES,
    *storage.PROBES,
    *cpu.PROBES,
    *engines.PROBES,
    *events.PROBES,
    *services.PROBES,
)
