"""From a profile and a scenario to a machine: the preset of a card, what was ordered, overrides, faults.

Owns what a healthy machine of a profile is. Identity comes from the order; GPU rates come from the
card's facts, never from a limit.
"""

import random
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from pytest_gpuaccept.errors import InputError, did_you_mean
from pytest_gpuaccept.profile import PCIE_GBS_PER_LANE, Card, Profile
from pytest_gpuaccept.sim.loads import LINK_SHARE
from pytest_gpuaccept.sim.machine import Change, Machine
from pytest_gpuaccept.sim.parts import Cpu, Drive, Gpu, Host, LlamaCpp, Nic, Part, Vllm
from pytest_gpuaccept.sim.scenario import PlannedFault, Scenario, kind_of

FLOOR_SHARE = 0.9
"""A card's GEMM floor is about 0.9 of the lowest published rate, so a healthy card reaches floor / 0.9."""
FP32_SHARE = 0.70
"""Published SGEMM rates reach 0.61 to 0.75 of the datasheet."""
BF16_SHARE = 0.62
"""BF16 products reach 0.61 of the datasheet (H100 PCIe) and more."""
TENSOR_SHARE = 0.7
"""Published FP8 rates reach 0.71 and 0.73 of the datasheet; [E] for TF32."""
TENSOR_EFFICIENCY = 0.955
"""[E] Share of FLOP/clk/SM x SMs x clock that cuBLAS reaches where the clock, and not the power, limits."""
LEAST_EFFICIENCY = 0.6
"""Healthy cards reach 0.6 to 1.0 at the clock that they run at; one that its power limit holds runs below its boost."""
VRAM_SHARE = {"NVIDIA GeForce RTX 4090": 0.913}
VRAM_SHARE_USUAL = 0.81
"""Published device copies reach 0.76 to 0.91 of the nominal bandwidth."""
PAGEABLE_SHARE = 0.33
STAGED_SHARE = 0.65
"""[E] Pageable and staged copies over the raw link rate."""
RISE_C = 38.0
"""[E] Rise of a card at its power limit in a healthy chassis: the commissioned machine shows 34 to 44."""
ORDERED_SHARE = 0.85
"""A drive's floors are 0.85 of what was recorded, so a healthy one reaches floor / 0.85."""
SILICON_SD = 0.018
"""Card to card: the deviation of six published RTX 4090 FP16 rates, 162.4 to 171.1 TFLOPS
(zzc0721/torch-performance-test-data)."""
SLOT_SD = 0.04
"""[E] Slot to slot spread of the thermal resistance."""
COPY_SD = 0.01
DIMM_SIZES = (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024)
P = TypeVar("P", bound=Part)


def build(profile: Profile, scenario: Scenario) -> Machine:
    """Return the machine; raises InputError when the scenario names a device that it has not."""
    seed = f"{profile.card_name}/{scenario.seed}"
    drives = {d: _part(Drive, scenario, d, _drive(profile, d)) for d in profile.devices.get("nvme", ())}
    nics = {d: _part(Nic, scenario, d, _nic(profile, d)) for d in profile.devices.get("nic", ())}
    preset = _gpu(profile.card)
    if limit := _least(profile, "gpu.power.limit"):
        preset |= {"limit_w": limit}
    gpus = [_part(Gpu, scenario, f"gpu{i}", _varied(preset, seed, i)) for i in range(profile.gpus)]
    machine = Machine(
        seed=seed, noise=scenario.noise, gpus=gpus, drives=drives, nics=nics,
        cpu=_part(Cpu, scenario, "cpu", {**_memory(profile), **_ordered(profile, CPU_LINES)}),
        host=_part(Host, scenario, "host", {**_ordered(profile, HOST_LINES), "other_drives": _other_drives(profile)}),
        vllm=_part(Vllm, scenario, "vllm", _ordered(profile, {"vllm.version": "version"})),
        llamacpp=_part(LlamaCpp, scenario, "llamacpp", _ordered(profile, {"llamacpp.version": "version"})),
    )  # fmt: skip
    machine.engines = frozenset(profile.devices.keys() & {"vllm", "llamacpp"})
    machine.mounts = {facts.mount: d for d, facts in profile.device.items() if facts.mount and d in drives}
    machine.bandwidth_gbs = profile.card.facts.memory_bandwidth_gbs if profile.card else 0.0
    for device in scenario.parts:
        if device != kind_of(device) or device in ("cpu", "host", "vllm", "llamacpp"):
            _existing(machine, device, f"scenario {scenario.name}")
    for fault in scenario.faults:
        plant(machine, fault, scenario.name)
    return machine


def plant(machine: Machine, planned: PlannedFault, scenario: str) -> None:
    """Put a fault into a machine; raises InputError when it has no such device."""
    part = _existing(machine, planned.device, f"scenario {scenario}: fault {planned.fault.name}")
    gpu = machine.gpus[int(planned.device[3:])] if planned.fault.part == "gpu" else None
    for parameter, value in {planned.fault.sets: planned.value, **planned.fault.also}.items():
        machine.plan(Change(part, parameter, value, planned.when, gpu, f"{planned.device}.{planned.fault.name}"))


def _existing(machine: Machine, device: str, where: str) -> Part:
    part = machine.part(device)
    if part is None:
        gpus = (f"gpu{g.index}" for g in machine.gpus)
        known = ["cpu", "host", *gpus, *machine.drives, *machine.nics, *sorted(machine.engines)]
        message = f"{where}: this machine has no {device}{did_you_mean(device, known)}; it has {', '.join(known)}"
        raise InputError(message)
    return part


def _part(model: type[P], scenario: Scenario, device: str, preset: Mapping[str, Any]) -> P:
    """Return a part: preset, then what the scenario says of its kind, then of itself."""
    try:
        return model(**{**preset, **scenario.parts.get(kind_of(device), {}), **scenario.parts.get(device, {})})
    except ValidationError as error:
        flaw = error.errors()[0]
        message = f"{device}: no simulated one has {flaw['loc'][0]} = {flaw['input']!r}, as ordered: {flaw['msg']}"
        raise InputError(message) from None


def _gpu(card: Card | None) -> dict[str, Any]:
    """Return a healthy GPU of a card, from the card's facts."""
    if card is None:
        return {}
    f = card.facts
    link = PCIE_GBS_PER_LANE[f.pcie_gen] * f.pcie_width
    rate = f.gemm_fp16_floor_tflops / FLOOR_SHARE
    rated = card.tensor_ceiling(f.boost_clock_mhz)
    return {
        "name": card.name, "pci_device_id": card.pci_device_id, "compute_capability": f.compute_capability,
        "memory_mib": f.memory_mib, "sm_count": f.sm_count, "flop_per_clk_sm_fp16": f.flop_per_clk_sm_fp16,
        "ecc": "ecc" not in card.lacks, "row_remap": "row_remap" not in card.lacks,
        "limit_w": float(f.power_limit_w), "rated_limit_w": float(f.power_limit_w),
        "default_limit_w": float(f.power_limit_w),
        "resistance_c_per_w": RISE_C / f.power_limit_w,
        "target_c": float(f.temperature_target_c or f.temperature_limit_c),
        "fp16_tflops": rate, "fp32_tflops": f.fp32_tflops * FP32_SHARE,
        "bf16_tflops": max(rate, f.fp16_tflops * BF16_SHARE), "tf32_tflops": (f.tf32_tflops or 0.0) * TENSOR_SHARE,
        "fp8_tflops": (f.fp8_tflops or 0.0) * TENSOR_SHARE,
        "tensor_efficiency": min(TENSOR_EFFICIENCY, max(LEAST_EFFICIENCY, rate / rated)),
        "pcie_gen": f.pcie_gen, "card_gen": f.pcie_gen, "slot_gen": f.pcie_gen, "pcie_width": f.pcie_width,
        "h2d_gbs": link * (LINK_SHARE - 0.002), "d2h_gbs": link * LINK_SHARE,
        "pageable_gbs": link * PAGEABLE_SHARE, "staged_gbs": link * STAGED_SHARE,
        "vram_gbs": f.memory_bandwidth_gbs * VRAM_SHARE.get(card.name, VRAM_SHARE_USUAL),
        "p2p": "chipset" if "p2p" in card.lacks else "ok",
    }  # fmt: skip


def _varied(preset: Mapping[str, Any], seed: str, index: int) -> dict[str, Any]:
    """Return a GPU's preset with the differences that silicon and slots have."""
    rng = random.Random(f"{seed}/silicon/{index}")  # noqa: S311 - noise of a model
    speed = 1.0 + rng.gauss(0.0, SILICON_SD)
    factors = {"fp16_tflops": speed, "fp32_tflops": speed, "resistance_c_per_w": 1.0 + rng.gauss(0.0, SLOT_SD)}
    for name in ("bf16_tflops", "tf32_tflops", "fp8_tflops"):
        factors[name] = speed
    for name in ("h2d_gbs", "d2h_gbs", "staged_gbs", "vram_gbs"):
        factors[name] = 1.0 + min(2.0, rng.gauss(0.0, 1.0)) * COPY_SD
    return {name: value * factors[name] if name in factors else value for name, value in preset.items()}


def _drive(profile: Profile, device: str) -> dict[str, Any]:
    """Return a healthy drive: the commissioned machine's, or as fast as was ordered."""
    rate = profile.rate("drive_link", device)
    usual = {name: field.default for name, field in Drive.model_fields.items() if name in DRIVE_LINES.values()}
    ordered = {
        parameter: line.min / ORDERED_SHARE
        for name, parameter in DRIVE_LINES.items()
        if (line := profile.lines.get(name)) and line.min is not None
    }
    best = {parameter: max(value, ordered.get(parameter, 0.0)) for parameter, value in usual.items()}
    link = rate.ceiling * 0.95 if rate else None
    rates = {p: min(value, link) if link and p.endswith("_mbs") else value for p, value in best.items()}
    return {**rates, **_drive_identity(profile, device)}


def _drive_identity(profile: Profile, device: str) -> dict[str, Any]:
    """Return what the profile says of one drive besides its rates."""
    facts = profile.device.get(device)
    named = {name: getattr(facts, name) for name in ("pcie_gen", "pcie_width", "serial", "model")} if facts else {}
    ordered = _ordered(profile, {"nvme.model": "model", "nvme.serial": "serial", "nvme.firmware": "firmware"})
    return {**ordered, **{name: value for name, value in named.items() if value is not None}}


def _least(profile: Profile, name: str) -> float:
    """Return the number that a line orders, exactly or at least; 0 when it orders none."""
    line = profile.lines.get(name)
    ordered = (line.equals if line.equals is not None else line.min) if line else None
    return float(ordered) if isinstance(ordered, int | float) and not isinstance(ordered, bool) else 0.0


def _memory(profile: Profile) -> dict[str, Any]:
    """Return modules of the ordered speed and, in sizes that are made, of the ordered sum."""
    stated = _ordered(profile, CPU_LINES)
    usual = {name: Cpu.model_fields[name].default for name in ("dimms", "dimm_gib", "dimm_mts")}
    each = _least(profile, "host.memory.installed") / max(1, int(stated.get("dimms", usual["dimms"])))
    size = next((gib for gib in DIMM_SIZES if gib >= max(each, usual["dimm_gib"])), DIMM_SIZES[-1])
    return {"dimm_gib": size, "dimm_mts": max(usual["dimm_mts"], int(_least(profile, "host.memory.speed")))}


def _other_drives(profile: Profile) -> int:
    line = profile.lines.get("nvme.count")
    return max(0, int(line.min or 0) - len(profile.devices.get("nvme", ()))) if line else 0


def _nic(profile: Profile, device: str) -> dict[str, Any]:
    facts = profile.device.get(device)
    speed = (facts.speed_mbps if facts else None) or int(_least(profile, "nic.speed"))
    named = {"interface": facts.interface} if facts and facts.interface else {}
    return named | ({"speed_mbps": speed} if speed else {})


def _ordered(profile: Profile, lines: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters that the order states by name: a healthy machine is the one that was ordered."""
    stated = {
        parameter: (line.one_of or ("",))[0] if line.equals is None else line.equals
        for name, parameter in lines.items()
        if (line := profile.lines.get(name)) and (line.equals is not None or line.one_of)
    }
    if isinstance(board := stated.pop("board", None), str) and " " in board:
        stated["board_vendor"], _, stated["board_name"] = board.partition(" ")
    if isinstance(release := stated.pop("os", None), str) and " " in release:
        stated["os_id"], _, stated["os_version"] = release.partition(" ")
    return stated


CPU_LINES = {
    "host.cpu.model": "model", "host.cpu.cores": "cores", "host.cpu.threads": "threads", "host.memory.dimms": "dimms",
    "host.memory.type": "dimm_type", "host.cpu.governor": "governor",
}  # fmt: skip
HOST_LINES = {
    "host.board.model": "board", "host.os.release": "os", "host.psu": "psu", "host.chassis": "chassis",
    "host.bios.version": "bios", "host.kernel.release": "kernel", "host.cabling": "cabling",
    "gpu.driver.version": "driver", "gpu.driver.flavour": "flavour", "gpu.cuda.driver": "cuda_driver",
    "software.cuda_toolkit": "cuda_toolkit", "software.cudnn": "cudnn", "software.torch": "torch",
    "software.transformers": "transformers",
}  # fmt: skip
DRIVE_LINES = {
    "nvme.read.seq": "read_mbs", "nvme.write.seq": "write_mbs",
    "nvme.read.rand": "read_iops", "nvme.write.rand": "write_iops",
}  # fmt: skip
