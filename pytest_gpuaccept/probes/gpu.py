"""What the contract says of the GPUs: metrics, and those that follow from others.

None of these probes has a live method yet: they are judged from recorded evidence.
"""

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.metric import Inputs, Metric
from pytest_gpuaccept.probe import Probe


def efficiency(inputs: Inputs) -> Measurement:
    """Return the FP16 rate as a share of what the card's tensor cores can do at the measured clock.

    TFLOPS / (SMs x FLOP per clock and SM x mean SM clock); the FLOP count is the card's.
    """
    card = inputs.profile.card
    if card is None:
        message = "the profile names no card"
        raise Unmeasurable(message)
    clock = inputs.number("gpu.gemm.clock")
    share = inputs.number("gpu.gemm.fp16") / card.tensor_ceiling(clock)
    note = f"at {clock:.0f} MHz the card's ceiling is {card.tensor_ceiling(clock):.1f} TFLOPS"
    return Measurement("gpu.gemm.efficiency", inputs.device, share, "ratio", "calculated", note=note)


def limit_uniform(inputs: Inputs) -> Measurement:
    """Return the spread of the power limits over all GPUs in W."""
    gpus = inputs.profile.devices.get("gpu", ())
    limits = {gpu: inputs.number("gpu.power.limit", gpu) for gpu in gpus}
    spread = max(limits.values()) - min(limits.values())
    note = ", ".join(f"{gpu} {watts:.0f} W" for gpu, watts in limits.items())
    return Measurement("gpu.power.limit_uniform", inputs.device, spread, "W", "calculated", note=note)


def combined_drop(inputs: Inputs) -> Measurement:
    """Return how much of a GPU's burn rate is lost when the CPU burns too, in %."""
    alone, both = inputs.number("gpu.burn.tflops"), inputs.number("gpu.combined.tflops")
    return Measurement("gpu.combined.drop", inputs.device, 100 * (alone - both) / alone, "%", "calculated")


INVENTORY = (
    Metric("gpu.count", "GPUs present", "count", "host"),
    Metric("gpu.name", "Model", "text", "gpu"),
    Metric("gpu.pci_device_id", "PCI device id", "text", "gpu"),
    Metric("gpu.memory", "Memory", "GiB", "gpu"),
    Metric("gpu.compute_capability", "Compute capability", "text", "gpu"),
    Metric("gpu.driver.version", "Driver version", "text", "host"),
    Metric("gpu.driver.flavour", "Kernel module flavour", "text", "host"),
    Metric("gpu.cuda.driver", "CUDA version of the driver", "text", "host"),
    Metric("gpu.power.limit", "Power limit set", "W", "gpu"),
    Metric("gpu.power.limit_uniform", "Power limits differ by", "W", "host", derive=limit_uniform),
    Metric("gpu.persistence", "Persistence mode", "flag", "gpu"),
)

LINKS = (
    Metric("gpu.pcie.gen", "PCIe generation under load", "gen", "gpu"),
    Metric("gpu.pcie.width", "PCIe width under load", "lanes", "gpu"),
    Metric("gpu.pcie.idle_gen", "PCIe generation at idle", "gen", "gpu"),
)

COPY = (
    Metric("gpu.copy.device", "Device memory copy", "GB/s", "gpu", rate="memory", max_cv=0.05),
    Metric("gpu.copy.h2d", "Copy host to device, pinned", "GB/s", "gpu", rate="pcie", max_cv=0.05),
    Metric("gpu.copy.d2h", "Copy device to host, pinned", "GB/s", "gpu", rate="pcie", max_cv=0.05),
    Metric("gpu.copy.d2h_pageable", "Copy device to host, pageable", "GB/s", "gpu", rate="pcie_any_path"),
)

GEMM = (
    Metric("gpu.gemm.fp16", "FP16 matrix product, FP32 accumulate", "TFLOPS", "gpu", rate="fp16", max_cv=0.05),
    Metric("gpu.gemm.fp32", "FP32 matrix product", "TFLOPS", "gpu", rate="fp32", max_cv=0.05),
    Metric("gpu.gemm.clock", "Mean SM clock of the FP16 product", "MHz", "gpu"),
    Metric(
        "gpu.gemm.efficiency", "FP16 rate against the card's at the measured clock", "ratio", "gpu",
        rate="efficiency", derive=efficiency,
    ),
    Metric("gpu.gemm.reference_peak", "Peak that the seller compares with", "TFLOPS", "gpu"),
)  # fmt: skip


def _burn(prefix: str, what: str) -> tuple[Metric, ...]:
    return (
        Metric(f"{prefix}.tflops", f"FP16 rate in the {what}", "TFLOPS", "gpu", rate="fp16", max_cv=0.05),
        Metric(f"{prefix}.temperature", f"Peak temperature in the {what}", "C", "gpu"),
        Metric(f"{prefix}.power_peak", f"Peak power in the {what}", "W", "gpu"),
        Metric(f"{prefix}.errors", f"Wrong results in the {what}", "count", "gpu", none_seen=True),
        Metric(f"{prefix}.total", f"FP16 rate of all GPUs in the {what}", "TFLOPS", "host"),
        Metric(f"{prefix}.power_total", f"Power of all GPUs in the {what}", "W", "host"),
    )


BURN = (
    *_burn("gpu.burn", "GPU burn"),
    Metric("gpu.burn.throttle", "Time slowed by heat or power brake in the GPU burn", "s", "gpu", none_seen=True),
    Metric("gpu.burn.start_temperature", "Temperature before the GPU burn", "C", "gpu"),
    Metric("gpu.burn.plateau", "Time until the temperature is flat", "s", "gpu"),
)
COMBINED = (
    *_burn("gpu.combined", "combined burn"),
    Metric("gpu.combined.drop", "FP16 rate lost when the CPU burns too", "%", "gpu", derive=combined_drop),
    Metric("gpu.combined.system_power", "Power of the whole machine in the combined burn", "W", "host"),
)

HEALTH = (Metric("gpu.ecc.uncorrected", "Uncorrected memory errors", "count", "gpu", needs="ecc", none_seen=True),)

PROBES = (
    Probe("gpu.inventory", "inventory", "host", INVENTORY, driver=True),
    Probe("gpu.links", "links", "gpu", LINKS, load=True, driver=True),
    Probe("gpu.gemm", "gpu", "gpu", GEMM, load=True, driver=True),
    Probe("gpu.copy", "gpu", "gpu", COPY, load=True, driver=True),
    Probe(
        "gpu_pair.peer", "gpu", "gpu_pair",
        (Metric("gpu_pair.copy", "Copy GPU to GPU", "GB/s", "gpu_pair", rate="pcie_any_path"),),
        load=True, driver=True,
    ),
    Probe("gpu.burn", "gpus", "host", BURN, load=True, driver=True),
    Probe("gpu.combined", "combined", "host", COMBINED, load=True, driver=True),
    Probe("gpu.health", "final", "gpu", HEALTH, driver=True),
)  # fmt: skip
