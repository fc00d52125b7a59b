"""What the contract says of the GPUs: inventory, memory health, what follows from other values.

Owns the catalogue of the GPU probes; the modules named in it own the loads. Must not judge.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome, Value
from pytest_gpuaccept.metric import Inputs, Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.cards import card, cards
from pytest_gpuaccept.probes.gpus import burn, burnt, copies, gemm, links, memory, numerics, state, step


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


def _label(function: str) -> Callable[[Any, Any], state.Said]:
    """Return what reads a text of the board's label; blanks and zeros stand where nobody wrote one."""

    def read(nvml: Any, handle: Any) -> state.Said:  # noqa: ANN401 - the binding is untyped
        text = str(getattr(nvml, function)(handle)).strip()
        if not text.strip("0"):
            message = f"the board says {text!r}, which identifies nothing: read the label on the card"
            raise Unmeasurable(message)
        return text

    return read


COUNT = Metric("gpu.count", "GPUs present", "count", "host")
DRIVER: dict[Metric, Callable[[Site], Value]] = {
    Metric("gpu.driver.version", "Driver version", "text", "host"): lambda site: (
        site.world.nvml().nvmlSystemGetDriverVersion()
    ),
    Metric("gpu.driver.flavour", "Kernel module flavour", "text", "host"): lambda site: flavour(
        site.world.read("/proc/driver/nvidia/version")
    ),
    Metric("gpu.cuda.driver", "CUDA version of the driver", "text", "host"): lambda site: cuda_version(
        site.world.nvml().nvmlSystemGetCudaDriverVersion()
    ),
}
"""What NVML and the driver say of themselves."""
IDENTITY: dict[Metric, Callable[[Any, Any], state.Said]] = {
    Metric("gpu.name", "Model", "text", "gpu"): lambda nvml, h: nvml.nvmlDeviceGetName(h),
    Metric("gpu.pci_device_id", "PCI device id", "text", "gpu"): lambda nvml, h: (
        f"{nvml.nvmlDeviceGetPciInfo(h).pciDeviceId >> 16:04x}"
    ),
    Metric("gpu.memory", "Memory", "GiB", "gpu"): lambda nvml, h: nvml.nvmlDeviceGetMemoryInfo(h).total / 2**30,
    Metric("gpu.compute_capability", "Compute capability", "text", "gpu"): lambda nvml, h: "{}.{}".format(
        *nvml.nvmlDeviceGetCudaComputeCapability(h)
    ),
    Metric("gpu.power.limit", "Power limit set", "W", "gpu"): lambda nvml, h: (
        nvml.nvmlDeviceGetPowerManagementLimit(h) / 1000
    ),
    Metric("gpu.persistence", "Persistence mode", "flag", "gpu"): lambda nvml, h: (
        nvml.nvmlDeviceGetPersistenceMode(h) == nvml.NVML_FEATURE_ENABLED
    ),
    Metric("gpu.serial", "Serial number", "text", "gpu"): _label("nvmlDeviceGetSerial"),
    Metric("gpu.part_number", "Board part number", "text", "gpu"): _label("nvmlDeviceGetBoardPartNumber"),
    **state.IDENTITY,
}
"""What NVML says of one card."""
UNIFORM = Metric("gpu.power.limit_uniform", "Power limits differ by", "W", "host", derive=limit_uniform)
EFFICIENCY = Metric(
    "gpu.gemm.efficiency", "FP16 rate against the card's at the measured clock", "ratio", "gpu",
    rate="efficiency", derive=efficiency,
)  # fmt: skip
PEAK = Metric("gpu.gemm.reference_peak", "Peak that the seller compares with", "TFLOPS", "gpu")
DROP = Metric("gpu.combined.drop", "FP16 rate lost when the CPU burns too", "%", "gpu", derive=combined_drop)
SYSTEM = Metric("gpu.combined.system_power", "Power of the whole machine in the combined burn", "W", "host")
ECC = Metric("gpu.ecc.uncorrected", "Uncorrected memory errors", "count", "gpu", needs="ecc", none_seen=True)


def inventory(site: Site) -> Iterator[Outcome]:
    """Yield what the driver says of itself and of every ordered GPU; one failing reading leaves the others alone.

    A card that does not answer is not counted.
    """
    nvml, found = site.world.nvml(), cards(site).values()
    seen = ", ".join(f"{c.device} {c.bus_id if c.handle else c.uuid}" for c in found)
    yield site.measured(COUNT, sum(1 for c in found if c.handle), note=seen)
    for metric, of_driver in DRIVER.items():
        try:
            yield site.measured(metric, of_driver(site))
        except (Unmeasurable, nvml.NVMLError) as error:
            yield NotMeasured(metric.id, site.device, str(error))
    for device in site.profile.devices.get("gpu", ()):
        yield from _identity(site, nvml, device)


def _identity(site: Site, nvml: Any, device: str) -> Iterator[Outcome]:  # noqa: ANN401 - the binding is untyped
    for metric, of_card in IDENTITY.items():
        try:
            own = card(site, device)
            where = {"bus_id": own.bus_id, "uuid": own.uuid}
            said = of_card(nvml, own.handle)
            value, note = said if isinstance(said, tuple) else (said, "")
            yield site.measured(metric, value, device=device, conditions=where, note=note)
        except (Unmeasurable, nvml.NVMLError) as error:
            yield NotMeasured(metric.id, device, str(error))


def flavour(text: str) -> str:
    """Return `open` or `proprietary` from /proc/driver/nvidia/version; raises Unmeasurable when it says neither."""
    if re.search(r"^NVRM version: NVIDIA UNIX Open Kernel Module", text, re.MULTILINE):
        return "open"
    if re.search(r"^NVRM version: NVIDIA UNIX \S+ Kernel Module", text, re.MULTILINE):
        return "proprietary"
    message = f"/proc/driver/nvidia/version says {text[:60]!r}, which names no kernel module"
    raise Unmeasurable(message)


def cuda_version(number: int) -> str:
    """Return `13.1` for NVML's 13010."""
    return f"{number // 1000}.{number % 1000 // 10}"


def health(site: Site) -> Iterator[Outcome]:
    """Yield the uncorrected memory errors since the driver loaded; ECC must be on for them to mean anything."""
    nvml, own = site.world.nvml(), card(site, site.device)
    try:
        on, _ = nvml.nvmlDeviceGetEccMode(own.handle)
        kinds = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        count = nvml.nvmlDeviceGetTotalEccErrors(own.handle, *kinds)
    except nvml.NVMLError as error:
        message = f"ECC of {site.device}: {error}"
        raise Unmeasurable(message) from None
    yield site.measured(ECC, int(count), proof="ECC is on and its counters were read" if on else None)


RATE_PARAMS = {"seconds": 3, "warmup_seconds": 2, "period_s": 0.2}
COPY_PARAMS = {"samples": 5, "sample_seconds": 0.3}
COPY_ALL_PARAMS = {"samples": 5, "sample_seconds": 1.0, "every_seconds": 4}
LINK_PARAMS = {"seconds": 8, "period_s": 0.1}
BURN_PARAMS = {"seconds": 60, "period_s": 0.2, "cool_down_seconds": 120}
STEP_PARAMS = {"count": 10, "on_s": 4, "off_s": 4, "period_s": 0.2}
ON_GPU: dict[str, Any] = {"load": True, "driver": True}

PROBES = (
    Probe(
        "gpu.inventory", "inventory", "host", (COUNT, *DRIVER, *IDENTITY, UNIFORM, state.UNIFORM), inventory,
        driver=True,
    ),
    Probe(
        "gpu.links", "links", "gpu", links.LINKS, links.links,
        params=LINK_PARAMS, loads=("telemetry", "copies"), **ON_GPU,
    ),
    Probe(
        "gpu.gemm", "gpu", "gpu", (*gemm.PRODUCTS.values(), gemm.CLOCK, EFFICIENCY, PEAK), gemm.gemm,
        params=RATE_PARAMS, loads=("telemetry", "gemm"), **ON_GPU,
    ),
    Probe(
        "gpu.copy", "gpu", "gpu", (*copies.COPIES.values(), copies.COPY_ERRORS), copies.copy,
        params=COPY_PARAMS, loads=("copies",), **ON_GPU,
    ),
    Probe(
        "gpu_pair.peer", "gpu", "gpu_pair", (copies.ACCESS, copies.PATH, copies.PAIR, copies.PAIR_ERRORS), copies.peer,
        params=COPY_PARAMS, loads=("copies",), **ON_GPU,
    ),
    Probe(
        "gpu.copy_all", "gpus", "host", (*copies.ALL.values(), copies.ALL_ERRORS, copies.UPLINK), copies.copy_all,
        params=COPY_ALL_PARAMS, loads=("copies",), **ON_GPU,
    ),
    Probe(
        "gpu.burn", "gpus", "host",
        (*burnt.ALONE.all(), burnt.THROTTLE, burnt.WIDTH, burnt.START, burnt.PLATEAU), burn.alone,
        params={**BURN_PARAMS, "longest_seconds": 0}, loads=("telemetry", "burn"), **ON_GPU,
    ),
    Probe(
        "gpu.step", "gpus", "host", (step.STEPS, step.ERRORS, step.EVENTS, step.SWING), step.step,
        params=STEP_PARAMS, loads=("telemetry", "steps"), **ON_GPU,
    ),
    Probe(
        "gpu.combined", "combined", "host", (*burnt.COMBINED.all(), burn.CPU_ERRORS, DROP, SYSTEM), burn.combined,
        params=BURN_PARAMS, loads=("telemetry", "burn"), tools=("stress-ng",), **ON_GPU,
    ),
    numerics.PROBE,
    memory.PROBE,
    Probe("gpu.health", "final", "gpu", (ECC,), health, driver=True),
    *state.PROBES,
)  # fmt: skip
