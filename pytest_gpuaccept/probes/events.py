"""What the contract says of events and services around the GPUs.

None of these probes has a live method yet: they are judged from recorded evidence.
"""

from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe

EVENTS = (
    Metric("gpu.aer.corrected", "Corrected PCIe errors", "count", "gpu", none_seen=True),
    Metric("gpu.aer.corrected_rate", "Corrected PCIe errors per minute", "1/min", "gpu", none_seen=True),
    Metric("gpu.aer.uncorrected", "Uncorrected PCIe errors", "count", "gpu", none_seen=True),
    Metric("gpu.xid", "NVIDIA Xid events", "count", "gpu", none_seen=True),
)
SERVICES = (
    Metric("monitoring.prometheus", "Prometheus scrapes the machine", "flag", "host"),
    Metric("monitoring.dcgm_exporter", "DCGM exporter covers every GPU", "flag", "host"),
    Metric("monitoring.grafana", "Grafana answers", "flag", "host"),
    Metric("host.lvm.unallocated", "Volume group space not allocated", "%", "host"),
)

PROBES = (
    Probe("gpu.events", "final", "gpu", EVENTS, driver=True),
    Probe("nic.link", "final", "nic", (Metric("nic.flaps", "Link went down", "count", "nic", none_seen=True),)),
    Probe("host.services", "final", "host", SERVICES),
)
