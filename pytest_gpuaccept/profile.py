"""What was ordered: card, spec lines, profile, waivers, attestations, as frozen values.

Owns their schema and the physical rates that follow from a card's facts. Reading TOML is
loader.py, the rules that make a line believable are lint.py.
"""

import datetime as dt
import hashlib
from itertools import combinations
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from pytest_gpuaccept.measurement import Kind, show

Scalar = bool | int | float | str
Words = Annotated[tuple[str, ...], Strict(strict=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(gt=0, lt=10**7)]
Real = Annotated[float, Field(gt=0, lt=1e7, allow_inf_nan=False)]
Severity = Literal["required", "advisory"]
INTERFACE = r"^[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,14}$"
"""Name of a network interface that can be no path and no option."""
Capability = Literal["ecc", "row_remap", "p2p", "nvlink", "memory_temperature", "fp8", "retired_pages"]

SHADER_OVERSHOOT = 1.25
"""Ceiling over the datasheet rate where a card's highest clock is unknown: GeForce cards boost
up to 1.15 above their rated clock (RTX 5090, published GEMM rates), so 1.25 can only be an error."""
ROUNDING = 1.02
"""Room for the rounding of datasheet figures when they serve as a ceiling."""
PCIE_GBS_PER_LANE = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
"""GB/s per lane and direction after line coding (PCI Express base specification)."""


class StrictModel(BaseModel):
    """Base of everything read from TOML: no coercion, no unknown key, no change afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Rate(NamedTuple):
    """What physics says of a rate: the datasheet's figure and the most that is possible."""

    nominal: float | None
    ceiling: float
    unit: str


class Facts(StrictModel):
    """Facts of one GPU model; units are in the names, rates are dense (no sparsity)."""

    compute_capability: str
    sm_count: Whole
    flop_per_clk_sm_fp16: Whole
    flop_per_clk_sm_fp32: Whole
    boost_clock_mhz: Whole
    fp16_tflops: Real
    fp32_tflops: Real
    memory_mib: Whole
    memory_bandwidth_gbs: Real
    pcie_gen: Annotated[int, Field(ge=1, le=6)]
    pcie_width: Annotated[int, Field(ge=1, le=16)]
    power_limit_w: Whole
    temperature_limit_c: Whole
    gemm_fp16_floor_tflops: Real
    max_clock_mhz: Whole | None = None
    fp16_accumulate_tflops: Real | None = None
    tf32_tflops: Real | None = None
    fp8_tflops: Real | None = None
    power_min_w: Whole | None = None
    power_max_w: Whole | None = None
    temperature_target_c: Whole | None = None
    temperature_slowdown_c: Whole | None = None
    temperature_shutdown_c: Whole | None = None


class Card(StrictModel):
    """One GPU model: identity, sourced facts, and what it does not have."""

    name: str
    aliases: Words
    pci_device_id: Annotated[str, Field(pattern="^[0-9a-f]{4}$")]
    lacks: Annotated[tuple[Capability, ...], Strict(strict=False)]
    unverified: Words
    facts: Facts
    sources: dict[str, str]

    @model_validator(mode="after")
    def _every_fact_is_sourced(self) -> "Card":
        stated = self.facts.model_dump(exclude_none=True).keys()
        if missing := stated - self.sources.keys():
            message = f"facts without a source: {', '.join(sorted(missing))}"
            raise ValueError(message)
        if unknown := (self.sources.keys() | set(self.unverified)) - stated:
            message = f"sources or unverified name facts that are not stated: {', '.join(sorted(unknown))}"
            raise ValueError(message)
        return self

    def tensor_ceiling(self, clock_mhz: float) -> float:
        """Return the FP16 rate in TFLOPS that no kernel can exceed at `clock_mhz`."""
        return self.facts.sm_count * self.facts.flop_per_clk_sm_fp16 * clock_mhz / 1e6

    def ceiling(self, kind: str, clock_mhz: float) -> float | None:
        """Return the rate in TFLOPS that no product of `kind` can exceed at `clock_mhz`; None where nothing is known.

        TF32 and FP8 run on the tensor cores, at the ratio to FP16 that the datasheet gives them.
        """
        f = self.facts
        if kind == "fp32":
            return f.sm_count * f.flop_per_clk_sm_fp32 * clock_mhz / 1e6
        ratio = {"tf32": f.tf32_tflops, "fp8": f.fp8_tflops}.get(kind, f.fp16_tflops)
        return self.tensor_ceiling(clock_mhz) * ratio / f.fp16_tflops if ratio else None

    def rates(self) -> dict[str, Rate]:
        """Return the physical rates of the card by name."""
        f = self.facts
        over = f.max_clock_mhz / f.boost_clock_mhz if f.max_clock_mhz else SHADER_OVERSHOOT
        over = max(over, 1.0) * ROUNDING
        lanes = PCIE_GBS_PER_LANE[f.pcie_gen] * f.pcie_width
        tensor = {"tf32": f.tf32_tflops, "fp8": f.fp8_tflops}
        return {
            "fp16": Rate(f.fp16_tflops, f.fp16_tflops * over, "TFLOPS"),
            "fp32": Rate(f.fp32_tflops, f.fp32_tflops * over, "TFLOPS"),
            **{name: Rate(value, value * over, "TFLOPS") for name, value in tensor.items() if value},
            "efficiency": Rate(1.0, ROUNDING, "ratio"),
            "share": Rate(None, ROUNDING, "ratio"),
            "memory": Rate(f.memory_bandwidth_gbs, f.memory_bandwidth_gbs * ROUNDING, "GB/s"),
            "pcie": Rate(lanes, lanes, "GB/s"),
            "pcie_any_path": Rate(None, lanes, "GB/s"),
        }


class Line(StrictModel):
    """A metric with its limit; the id is the metric's.

    `guard` is the absolute width, in `unit`, of the MARGINAL band inside the limit.
    """

    id: str
    unit: str
    source: Annotated[str, Field(min_length=1)]
    min: Number | None = None
    max: Number | None = None
    equals: Scalar | None = None
    one_of: Annotated[tuple[Scalar, ...], Strict(strict=False)] | None = None
    guard: Annotated[Number, Field(ge=0)] = 0.0
    severity: Severity = "required"
    uncalibrated: bool = False
    not_applicable: str | None = None
    devices: Words | None = None
    file: str = ""

    def limit_text(self) -> str:
        """Write the limit for people, without unit: `>= 150`, `<= 83`, `= marlin`."""
        if self.equals is not None:
            return f"= {show(self.equals)}"
        if self.one_of is not None:
            return "one of " + ", ".join(show(choice) for choice in self.one_of)
        if self.min is not None and self.max is not None:
            return f"{show(self.min)} to {show(self.max)}"
        if self.min is None:
            return "-" if self.max is None else f"<= {show(self.max)}"
        return f">= {show(self.min)}"


class DeviceFacts(StrictModel):
    """What a profile says of one device that is not a GPU.

    `mount` is the scratch folder of a drive; `pcie_gen` and `pcie_width` are its link's; `serial` and `model`
    are of the drive that is meant, and a mount on another one is refused.
    `interface` is a network's, `speed_mbps` the most that its port can do.
    """

    mount: str | None = None
    serial: str | None = None
    model: str | None = None
    interface: Annotated[str, Field(pattern=INTERFACE)] | None = None
    speed_mbps: Whole | None = None
    pcie_gen: Annotated[int, Field(ge=1, le=6)] | None = None
    pcie_width: Annotated[int, Field(ge=1, le=16)] | None = None


class Waiver(StrictModel):
    """A named person's decision to accept one line on one device until a date."""

    line: str
    device: str
    reason: Annotated[str, Field(min_length=1)]
    who: Annotated[str, Field(min_length=1)]
    until: dt.date


class Attestation(StrictModel):
    """A value that no sensor shows, taken by a named person who looked."""

    line: str
    device: str
    value: Scalar
    who: Annotated[str, Field(min_length=1)]
    when: dt.date
    looked_at: Annotated[str, Field(min_length=1)]


class Profile(StrictModel):
    """The machine as ordered, resolved: nothing in it refers to another file any more."""

    name: str
    title: str
    card_name: str | None = None
    card: Card | None = None
    gpus: int = 0
    devices: dict[Kind, tuple[str, ...]]
    device: dict[str, DeviceFacts] = {}
    params: dict[str, dict[str, Scalar]] = {}
    effort: str = "standard"
    lines: dict[str, Line]
    waivers: tuple[Waiver, ...] = ()
    attested: tuple[Attestation, ...] = ()

    def digest(self) -> str:
        """Return the SHA-256 of the resolved profile, waivers and attestations included, wherever its files lie."""
        lines = {name: line.model_copy(update={"file": ""}) for name, line in self.lines.items()}
        return hashlib.sha256(self.model_copy(update={"lines": lines}).model_dump_json().encode()).hexdigest()

    def devices_of(self, line: Line, kind: Kind) -> tuple[str, ...]:
        """Return the devices on which `line`, whose metric is of `kind`, is decided."""
        ordered = self.devices.get(kind, ())
        return ordered if line.devices is None else tuple(d for d in ordered if d in line.devices)

    def rate(self, name: str | None, device: str) -> Rate | None:
        """Return the physical rate `name` on `device`, or None where nothing is known of it."""
        if name == "drive_link":
            return _drive_rate(self.device.get(device))
        if name == "port":
            return _port_rate(self.device.get(device))
        return self.card.rates().get(name) if self.card and name else None


def _drive_rate(facts: DeviceFacts | None) -> Rate | None:
    if facts is None or facts.pcie_gen is None or facts.pcie_width is None:
        return None
    link = PCIE_GBS_PER_LANE[facts.pcie_gen] * facts.pcie_width * 1000
    return Rate(None, link, "MB/s")


def _port_rate(facts: DeviceFacts | None) -> Rate | None:
    return Rate(None, facts.speed_mbps, "Mb/s") if facts and facts.speed_mbps else None


def gpu_devices(count: int) -> dict[Kind, tuple[str, ...]]:
    """Return the ids of `count` GPUs and of their unordered pairs: gpu0, gpu0-gpu1."""
    gpus = tuple(f"gpu{i}" for i in range(count))
    return {"gpu": gpus, "gpu_pair": tuple(f"{a}-{b}" for a, b in combinations(gpus, 2))}
