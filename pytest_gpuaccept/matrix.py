"""The proof that every check can fail: fault by fault, which lines change, and which were to.

Owns the declared proofs, the run of one simulated sign-off without pytest, and the tables that the
documentation shows. Must not judge: it calls the run that everybody calls.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from typing import Literal

from pytest_gpuaccept.errors import InputError, did_you_mean
from pytest_gpuaccept.loader import SHIPPED
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.profile import Profile
from pytest_gpuaccept.run import Source, start
from pytest_gpuaccept.sim.faults import FAULTS, Fault
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.verdict import Verdict

Key = tuple[str, str]
ENGINES = ("vllm.*", "llamacpp.*", "engines.cross")
WHOLE_CARD = ("gpu.*", "gpu_pair.*", *ENGINES, "monitoring.dcgm_exporter")
ALL_RATES = ("gpu.gemm.*", "gpu.burn.tflops", "gpu.combined.tflops", "gpu.combined.drop")
BURNS = ("gpu.burn.*", "gpu.combined.*")
VLLM_SPEED = ("vllm.single.decode", "vllm.batch.output", "vllm.roofline", "engines.cross")
LLAMA_SPEED = ("llamacpp.prompt", "llamacpp.decode", "llamacpp.roofline", "engines.cross")
DRIVE = ("nvme.*",)
DOCUMENT = """# Every check can fail

SIMULATED. Printed by `gpuaccept matrix {profile} --table`; `gpuaccept matrix` repeats the proof for every shipped
profile, and a test of ours does so on every change. A fault is planted in a machine that passes every line; its
line must fail, and no line may change that is not declared. {proofs} faults prove the {lines} lines of `{profile}`.

## What well-known tools pass

{gaps}

## Line by line

`DEVICE.FAULT:VALUE@WHEN`, as in `--hw-sim='healthy,fault=...'`. FAIL and ERROR both stand in the way of acceptance:
FAIL rejects, ERROR leaves the sign-off incomplete.

{matrix}

## The {faults} faults

`DEVICE` is `gpu0`, `nvme0` (a drive), `nic0`, `cpu`, `host`, `vllm` or `llamacpp`. {harmless} are harmless, and
nothing may fail.

{catalogue}
"""
FEW = 4
"""Lines changed besides that a table names."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A fault, the line that is there for it, and the lines that it may change besides (patterns).

    `{limit}` in a fault stands for a power limit 5 W below the card's. `gpus` says on how many GPUs
    the proof works: "one", "several", or any number.
    """

    line: str
    fault: str
    also: tuple[str, ...] = ()
    gpus: Literal["any", "one", "several"] = "any"


PROOFS: tuple[Proof, ...] = (
    Proof("gpu.count", "gpu.missing", WHOLE_CARD),
    Proof("gpu.count", "gpu.lost", WHOLE_CARD),
    Proof("gpu.name", "gpu.model"),
    Proof("gpu.pci_device_id", "gpu.edition"),
    Proof("gpu.compute_capability", "gpu.capability"),
    Proof("gpu.power.limit", "gpu.power.limit:{limit}", ("gpu.power.limit_uniform",)),
    Proof("gpu.power.limit_uniform", "gpu.power.limit:{limit}", ("gpu.power.limit",), "several"),
    Proof("gpu.power.limit_uniform", "gpu.lost", WHOLE_CARD, "one"),
    Proof("gpu.persistence", "gpu.persistence.off"),
    Proof("gpu.driver.version", "host.driver"),
    Proof("gpu.driver.flavour", "host.driver.flavour"),
    Proof("gpu.cuda.driver", "host.cuda"),
    Proof("gpu.pcie.gen", "gpu.pcie.gen", ("gpu.copy.*", "gpu_pair.copy", *VLLM_SPEED)),
    Proof("gpu.pcie.gen", "gpu.pcie.drops"),
    Proof("gpu.pcie.gen", "gpu.pcie.stuck", ("gpu.copy.*", "gpu_pair.copy", *VLLM_SPEED)),
    Proof("gpu.pcie.width", "gpu.pcie.width", ("gpu.copy.*", "gpu_pair.copy", *VLLM_SPEED)),
    Proof("gpu.gemm.fp16", "gpu.slow", ALL_RATES),
    Proof("gpu.gemm.fp16", "gpu.accumulate.fp16", (*ALL_RATES, *BURNS)),
    Proof("gpu.gemm.fp16", "gpu.cuda.order", ("gpu.*", "gpu_pair.*"), "several"),
    Proof("gpu.gemm.fp32", "gpu.fp32.slow"),
    Proof("gpu.gemm.efficiency", "gpu.kernel.slow", ALL_RATES),
    Proof("gpu.copy.device", "gpu.vram.slow"),
    Proof("gpu.copy.h2d", "gpu.copy.h2d"),
    Proof("gpu.copy.h2d", "gpu.copy.corrupt", ("gpu.copy.*", "gpu_pair.copy")),
    Proof("gpu.copy.d2h", "gpu.copy.d2h"),
    Proof("gpu.copy.d2h_pageable", "gpu.copy.pageable"),
    Proof("gpu_pair.copy", "gpu.copy.staged"),
    Proof("gpu.burn.tflops", "gpu.sag", ("gpu.combined.tflops",)),
    Proof("gpu.burn.tflops", "gpu.pulse", ALL_RATES),
    Proof("gpu.burn.tflops", "gpu.idle", ("gpu.*",)),
    Proof("gpu.burn.temperature", "gpu.target.high", BURNS),
    Proof("gpu.burn.temperature", "gpu.sensor.zero", ("gpu.combined.temperature",)),
    Proof("gpu.burn.temperature", "gpu.sensor.gone", ("gpu.combined.temperature",)),
    Proof("gpu.burn.errors", "gpu.bitflip", ("gpu.combined.errors",)),
    Proof("gpu.burn.errors", "gpu.bitflip.hot", ("gpu.combined.errors",)),
    Proof("gpu.burn.errors", "gpu.nan", ("gpu.combined.errors",)),
    Proof("gpu.burn.errors", "gpu.stripe", ("gpu.combined.errors",)),
    Proof("gpu.burn.errors", "gpu.golden.wrong", ("gpu.combined.errors", "gpu.gemm.*")),
    Proof("gpu.burn.errors", "gpu.detector.blind", ("gpu.combined.errors",)),
    Proof("gpu.burn.throttle", "gpu.fan.dead", (*BURNS,)),
    Proof("gpu.burn.throttle", "gpu.throttle.hidden", (*BURNS,)),
    Proof("gpu.burn.throttle", "gpu.power.brake", (*ALL_RATES, *BURNS)),
    Proof("gpu.combined.tflops", "gpu.slow:0.25@combined", ("gpu.combined.drop",)),
    Proof("gpu.combined.temperature", "gpu.target.high:92@combined", ("gpu.combined.*",)),
    Proof("gpu.combined.errors", "gpu.bitflip:0.5@combined"),
    Proof("gpu.combined.drop", "gpu.cpu.interference", ("gpu.combined.tflops",)),
    Proof("gpu.ecc.uncorrected", "gpu.ecc.uncorrected"),
    Proof("gpu.aer.corrected", "gpu.aer.corrected"),
    Proof("gpu.aer.corrected", "gpu.aer.hidden", ("gpu.aer.*",)),
    Proof("gpu.aer.corrected_rate", "gpu.aer.storm", ("gpu.aer.corrected",)),
    Proof("gpu.aer.corrected_rate", "gpu.aer.port", ("gpu.aer.corrected",)),
    Proof("gpu.aer.uncorrected", "gpu.aer.uncorrected"),
    Proof("gpu.aer.uncorrected", "host.kernel.blind", ("gpu.aer.*", "host.kernel.blindfolds")),
    Proof("gpu.xid", "gpu.xid"),
    Proof("gpu.xid", "host.log.unreadable", ("gpu.aer.*",)),
    Proof("nic.flaps", "nic.flap"),
    Proof("nic.flaps", "nic.unreadable"),
    Proof("cpu.burn.errors", "cpu.burn.wrong", ("gpu.combined.*",)),
    Proof("cpu.burn.errors", "cpu.burn.short", ("cpu.burn.load", "gpu.combined.*")),
    Proof("cpu.burn.load", "cpu.burn.idle", ("cpu.burn.errors", "gpu.combined.*")),
    Proof("monitoring.prometheus", "host.prometheus.down"),
    Proof("monitoring.prometheus", "host.prometheus.stale"),
    Proof("monitoring.dcgm_exporter", "host.exporter.down", ("monitoring.prometheus",)),
    Proof("monitoring.dcgm_exporter", "host.exporter.partial:0"),
    Proof("monitoring.grafana", "host.grafana.down"),
    Proof("monitoring.grafana", "host.grafana.database"),
    Proof("host.lvm.unallocated", "host.lvm.unused"),
    Proof("host.cpu.model", "cpu.model"),
    Proof("host.cpu.cores", "cpu.cores"),
    Proof("host.cpu.threads", "cpu.threads"),
    Proof("host.cpu.offline", "cpu.offline", ("host.cpu.threads",)),
    Proof("host.memory.dimms", "cpu.dimm.missing", ("host.memory.installed", "host.memory.visible")),
    Proof("host.memory.installed", "cpu.dimm.missing", ("host.memory.dimms", "host.memory.visible")),
    Proof("host.memory.visible", "cpu.dimm.missing:0", ("host.memory.*",)),
    Proof("host.memory.speed", "cpu.dimm.slow"),
    Proof("host.board.model", "host.board"),
    Proof("host.os.release", "host.os"),
    Proof("host.kernel.blindfolds", "host.kernel.blind", ("gpu.aer.*",)),
    Proof("host.psu", "host.psu"),
    Proof("host.chassis", "host.chassis"),
    Proof("software.cuda_toolkit", "host.toolkit"),
    Proof("software.cudnn", "host.cudnn"),
    Proof("software.torch", "host.torch"),
    Proof("software.transformers", "host.transformers"),
    Proof("nvme.count", "host.drives.few"),
    Proof("nvme.read.seq", "drive.read.slow:150"),
    Proof("nvme.read.seq", "drive.page.cache", DRIVE),
    Proof("nvme.read.seq", "drive.interrupted", DRIVE),
    Proof("nvme.read.seq", "drive.missing", DRIVE),
    Proof("nvme.write.seq", "drive.write.slow:50"),
    Proof("nvme.write.seq", "drive.cache.small", DRIVE),
    Proof("nvme.write.seq", "drive.error", DRIVE),
    Proof("nvme.read.rand", "drive.iops.read:2000"),
    Proof("nvme.write.rand", "drive.iops.write:2000"),
    Proof("vllm.version", "vllm.version"),
    Proof("vllm.kernel", "vllm.kernel.unknown"),
    Proof("vllm.kernel", "vllm.kernel.slow", VLLM_SPEED),
    Proof("vllm.kernel", "vllm.kernel.hidden"),
    Proof("vllm.kernel", "vllm.layers", VLLM_SPEED),
    Proof("vllm.kernel", "vllm.rank", VLLM_SPEED),
    Proof("vllm.load", "vllm.load.slow"),
    Proof("vllm.single.decode", "vllm.slow", VLLM_SPEED),
    Proof("vllm.single.decode", "vllm.degenerate", VLLM_SPEED),
    Proof("vllm.single.decode", "vllm.unsteady", VLLM_SPEED),
    Proof("vllm.single.decode", "vllm.prefix.cache", VLLM_SPEED),
    Proof("vllm.single.decode", "vllm.eos", VLLM_SPEED),
    Proof("vllm.single.decode", "vllm.failing", VLLM_SPEED),
    Proof("vllm.roofline", "vllm.slow", VLLM_SPEED),
    Proof("engines.cross", "vllm.slow", VLLM_SPEED),
    Proof("vllm.batch.output", "vllm.batch:2.0"),
    Proof("vllm.load", "vllm.crash", ("vllm.*", "engines.cross")),
    Proof("vllm.load", "vllm.hang", ("vllm.*", "engines.cross")),
    Proof("vllm.load", "vllm.absent", ("vllm.*", "engines.cross")),
    Proof("llamacpp.version", "llamacpp.version"),
    Proof("llamacpp.load", "llamacpp.load.slow"),
    Proof("llamacpp.load", "llamacpp.absent", ("llamacpp.*", "engines.cross")),
    Proof("llamacpp.prompt", "llamacpp.prompt.slow"),
    Proof("llamacpp.prompt", "llamacpp.cpu.build", LLAMA_SPEED),
    Proof("llamacpp.decode", "llamacpp.slow", LLAMA_SPEED),
    Proof("llamacpp.decode", "llamacpp.offload", LLAMA_SPEED),
    Proof("llamacpp.decode", "llamacpp.degenerate", LLAMA_SPEED),
    Proof("llamacpp.roofline", "llamacpp.slow", LLAMA_SPEED),
    Proof("gpu.count", "host.driver.gone", WHOLE_CARD),
)
"""Every shipped line has at least one; a test of ours says so."""
HARMLESS = ("gpu.heat", "gpu.power.overshoot")
"""What may look odd and must change no verdict."""


@dataclass(frozen=True, slots=True)
class PeerGap:
    """A fault that a well-known tool passes; proven by a line, or by `where` no line is needed."""

    number: int
    what: str
    passed_by: str
    line: str = ""
    fault: str = ""
    where: str = ""


PEER_GAPS: tuple[PeerGap, ...] = (
    PeerGap(1, "a product holds a NaN", "gpu-burn", "gpu.burn.errors", "gpu.nan"),
    PeerGap(2, "every product equally wrong", "gpu-burn, DCGM diagnostic", "gpu.burn.errors", "gpu.golden.wrong"),
    PeerGap(3, "one low mantissa bit flipped", "gpu-burn, DCGM", "gpu.burn.errors", "gpu.bitflip"),
    PeerGap(4, "all GPUs 30 % slow", "gpu-fryer", "gpu.burn.tflops", "gpu*.slow:0.3"),
    PeerGap(5, "one good second, slow otherwise", "DCGM targeted tests", "gpu.burn.tflops", "gpu.pulse"),
    PeerGap(6, "power cap and thermal bits together", "gpu-fryer, AzNHC", "gpu.burn.throttle", "gpu.throttle.hidden"),
    PeerGap(7, "thermal throttling, no other failure", "DCGM, AzNHC", "gpu.burn.throttle", "gpu.fan.dead"),
    PeerGap(8, "card in a Gen3 slot, current = max", "current == max checks", "gpu.pcie.gen", "gpu.pcie.gen"),
    PeerGap(9, "link at Gen1 under load for seconds", "all", "gpu.pcie.gen", "gpu.pcie.drops:5"),
    PeerGap(10, "a GPU is missing", "tools that test what they find", "gpu.count", "gpu.missing"),
    PeerGap(11, "all tests skipped", "cluster-health-scanner", where="the decision: INCOMPLETE"),
    PeerGap(12, "a metric's name misspelt", "superbench", where="the profile's lint: exit status 4"),
    PeerGap(13, "kernel log unreadable", "AzNHC", "gpu.xid", "host.log.unreadable"),
    PeerGap(14, "limit off by a decimal", "DCGM L40, A100, H200, H100", where="the profile's lint: exit status 4"),
    PeerGap(15, "a sensor reads 0", "gpu-fryer, DCGM", "gpu.burn.temperature", "gpu.sensor.zero"),
    PeerGap(16, "CUDA's order is not NVML's", "gpu-fryer", "gpu.gemm.fp16", "gpu.cuda.order"),
    PeerGap(17, "one power limit lowered", "all but a fingerprint diff", "gpu.power.limit", "gpu.power.limit"),
    PeerGap(18, "run aborted half-way", "gpu-burn prints OK so far", where="the decision: INCOMPLETE"),
    PeerGap(19, "the load never started", "most", "gpu.burn.tflops", "gpu.idle"),
    PeerGap(20, "FP16 accumulation", "all", "gpu.gemm.fp16", "gpu.accumulate.fp16"),
    PeerGap(21, "vLLM falls back to another kernel", "all", "vllm.kernel", "vllm.kernel.slow"),
    PeerGap(22, "reads from the page cache", "buffered readers", "nvme.read.seq", "drive.page.cache"),
)


@dataclass(frozen=True, slots=True)
class Changed:
    """What a fault changed in a profile's verdicts."""

    proof: Proof
    planted: str
    verdicts: Mapping[Key, Verdict]

    def flaws(self) -> Iterator[str]:
        """Yield why the proof does not hold: its line did not fail, or another one did."""
        if not any(
            line == self.proof.line and v.verdict in ("FAIL", "ERROR") for (line, _), v in self.verdicts.items()
        ):
            yield f"{self.planted} does not make {self.proof.line} fail"
        for line, device in self.verdicts:
            if line != self.proof.line and not any(fnmatch(line, pattern) for pattern in self.proof.also):
                yield f"{self.planted} changes {line}[{device}] too, which {self.proof.line}'s proof does not declare"


class Bed:
    """A profile on simulated machines: every line judged, with and without a fault."""

    def __init__(self, profile: Profile, catalogue: Catalogue) -> None:
        """Take a profile."""
        self.profile, self.catalogue = profile, catalogue
        self._seen: dict[str, dict[Key, Verdict]] = {}

    def judged(self, scenario: str) -> dict[Key, Verdict]:
        """Return every verdict of a sign-off of a scenario; raises InputError when it cannot be used."""
        if scenario not in self._seen:
            self._seen[scenario] = sign_off(self.profile, self.catalogue, scenario)
        return self._seen[scenario]

    @cached_property
    def healthy(self) -> dict[Key, Verdict]:
        """Return the verdicts of a healthy machine."""
        return self.judged("healthy")

    def proofs(self) -> Iterator[Proof]:
        """Yield the proofs whose line the profile has, on machines that have the part."""
        fits = ("any", "one" if self.profile.gpus == 1 else "several")
        for proof in PROOFS:
            if proof.line in self.lines() and proof.gpus in fits and self.planted(proof.fault):
                yield proof

    def lines(self) -> set[str]:
        """Return the lines that a healthy machine of the profile decides."""
        return {line for (line, _), v in self.healthy.items() if v.verdict != "NOT_APPLICABLE"}

    def planted(self, fault: str) -> str:
        """Return a fault on a device of this profile, '' when it has none; `gpu*` plants it on all."""
        part, _, name = fault.partition(".")
        devices = self._devices(part)
        limit = self.profile.card.facts.power_limit_w - 5 if self.profile.card else 0
        return ",".join(f"fault={device}.{name.format(limit=limit)}" for device in devices if device)

    def _devices(self, part: str) -> list[str]:
        of_kind = {"gpu": "gpu", "gpu*": "gpu", "drive": "nvme", "nic": "nic"}
        if part not in of_kind:
            return [part] if part in ("cpu", "host") or part in self.profile.devices else []
        devices = list(self.profile.devices.get(of_kind[part], ()))  # type: ignore[call-overload]
        return devices if part == "gpu*" else devices[-1:]

    def changed(self, proof: Proof) -> Changed:
        """Return what a proof's fault changes against the healthy machine."""
        planted = self.planted(proof.fault)
        got = self.judged(f"healthy,{planted}")
        return Changed(proof, planted, {k: v for k, v in got.items() if v.verdict != self.healthy[k].verdict})


def sign_off(profile: Profile, catalogue: Catalogue, scenario: str) -> dict[Key, Verdict]:
    """Return the verdict of every line of a profile on a simulated machine; keeps no evidence."""
    world = SimWorld(profile, load_scenario(scenario, SHIPPED, SHIPPED / "scenarios"))
    run = start(profile, catalogue, world.clock, Source("simulated", world, scenario=scenario), None)
    run.bench.begin()
    return {key: run.judge(*key) for key in run.expected()}


def unproven(bed: Bed) -> list[str]:
    """Return the lines of a profile that no proof names: checks of which nobody knows that they can fail."""
    named = {proof.line for proof in bed.proofs()}
    return sorted(bed.lines() - named)


def flaws(bed: Bed) -> Iterator[str]:
    """Yield what does not hold on a profile: lines without a proof, proofs that fail, harmless faults that harm."""
    for line in unproven(bed):
        yield f"{line}: no fault is known that makes it fail"
    for proof in bed.proofs():
        yield from bed.changed(proof).flaws()
    for fault in HARMLESS:
        for line, device in bed.changed(Proof("", fault)).verdicts if bed.planted(fault) else ():
            yield f"{fault} is harmless, and changes {line}[{device}]"


def unused() -> list[str]:
    """Return the faults of the catalogue that no proof plants."""
    planted = {proof.fault.split(":")[0].split("@")[0] for proof in PROOFS} | set(HARMLESS)
    return sorted(FAULTS.keys() - planted)


def catalogue_text() -> str:
    """Write the names of all faults, one a line, with the beginning of their page."""
    width = max(len(name) for name in FAULTS)
    return "\n".join(f"{name:<{width}}  {fault.page.split('. ')[0].rstrip('.')}" for name, fault in FAULTS.items())


def _settings(fault: Fault) -> str:
    return ", ".join(f"{parameter} = {value}" for parameter, value in {fault.sets: fault.value, **fault.also}.items())


def page(name: str) -> str:
    """Write the page of one fault; raises InputError with the nearest known name."""
    if name not in FAULTS:
        message = f"no fault {name!r}{did_you_mean(name, FAULTS)}; see: gpuaccept faults"
        raise InputError(message)
    fault = FAULTS[name]
    lines = sorted({proof.line for proof in PROOFS if proof.fault.split(":")[0].split("@")[0] == name})
    device = {"gpu": "gpu0", "drive": "nvme0", "nic": "nic0"}.get(fault.part, fault.part)
    return "\n".join([
        name, "", fault.page, "",
        f"sets:    {_settings(fault)}",
        f"seen by: {', '.join(lines) or 'nothing, and nothing may fail'}",
        f"use:     --hw-sim='healthy,fault={device}.{fault.name}'   (:VALUE for another; @120s, @burn, @>65C for when)",
    ])  # fmt: skip


def gaps_table(bed: Bed) -> str:
    """Write what well-known tools pass, and the line that fails here, as a Markdown table."""
    head = "| # | fault | passed by | here | verdict |\n|---|---|---|---|---|\n"
    return head + "\n".join(_gap_row(bed, gap) for gap in PEER_GAPS)


def _gap_row(bed: Bed, gap: PeerGap) -> str:
    if gap.where:
        return f"| {gap.number} | {gap.what} | {gap.passed_by} | {gap.where} | |"
    verdict = next(v for v in caught(bed, gap) if v.verdict in ("FAIL", "ERROR"))
    told = f"{verdict.verdict}: {verdict.reason}".replace("|", "/")
    return f"| {gap.number} | {gap.what} | {gap.passed_by} | `{gap.line}` | {told} |"


def caught(bed: Bed, gap: PeerGap) -> list[Verdict]:
    """Return the verdicts of a gap's line that its fault changed."""
    changed = bed.changed(Proof(gap.line, gap.fault)).verdicts
    return [verdict for (line, _), verdict in changed.items() if line == gap.line]


def faults_table() -> str:
    """Write every fault with what it is and what it sets, as a Markdown table."""
    rows = [f"| `{name}` | {fault.page} | {_settings(fault)} |" for name, fault in FAULTS.items()]
    return "| fault | on a real machine | sets |\n|---|---|---|\n" + "\n".join(rows)


def document(bed: Bed) -> str:
    """Write the page of the documentation: what others pass, line by line what fails, and all faults."""
    profile = bed.profile.name
    return DOCUMENT.format(
        profile=profile, proofs=len(list(bed.proofs())), lines=len(bed.lines()), faults=len(FAULTS),
        gaps=gaps_table(bed), matrix=matrix_table(bed), catalogue=faults_table(), harmless=" and ".join(HARMLESS),
    )  # fmt: skip


def matrix_table(bed: Bed) -> str:
    """Write line by line the faults that make it fail, what they say, and what else they change."""
    head = "| line | fault | what the line says | lines changed besides |\n|---|---|---|---|\n"
    return head + "\n".join(_matrix_row(bed, proof) for proof in sorted(bed.proofs(), key=lambda p: p.line))


def _matrix_row(bed: Bed, proof: Proof) -> str:
    changed = bed.changed(proof).verdicts
    own = next((v for (line, _), v in changed.items() if line == proof.line), None)
    said = f"{own.verdict}: {own.reason}".replace("|", "/") if own else "nothing"
    others = sorted({line for line, _ in changed} - {proof.line})
    listed = ", ".join(others[:FEW]) + (f" and {len(others) - FEW} more" if len(others) > FEW else "")
    return f"| `{proof.line}` | `{bed.planted(proof.fault).removeprefix('fault=')}` | {said} | {listed} |"
