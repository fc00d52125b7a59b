"""The declared proofs: which fault makes which spec line fail, and what well-known tools let pass.

Owns the declarations only; matrix.py plants the faults and compares.
"""

from dataclasses import dataclass
from typing import Literal

ENGINES = ("vllm.*", "llamacpp.*", "engines.cross")
WHOLE_CARD = ("gpu.*", "gpu_pair.*", "cpu.combined.errors", *ENGINES, "monitoring.dcgm_exporter")
ALL_RATES = ("gpu.gemm.*", "gpu.burn.tflops", "gpu.combined.tflops", "gpu.combined.drop")
BURNS = ("gpu.burn.*", "gpu.combined.*")
VLLM_SPEED = ("vllm.single.decode", "vllm.batch.output", "vllm.roofline", "engines.cross")
LLAMA_SPEED = ("llamacpp.prompt", "llamacpp.decode", "llamacpp.roofline", "engines.cross")
DRIVE = ("nvme.*",)


@dataclass(frozen=True, slots=True)
class Proof:
    """A fault, the line that is there for it, and the lines that it may change besides (patterns).

    In a fault `{limit}` stands for a power limit 5 W below the ordered one, `{cores}`, `{threads}`,
    `{dimms}`, `{mts}` for less than the healthy machine has: a fault must differ from what was ordered.
    `gpus` says on how many GPUs the proof works: "one", "several", or any number.
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
    Proof("gpu.pcie.gen", "gpu.pcie.gen", ("gpu.step.events", "gpu.copy.*", "gpu_pair.copy", *VLLM_SPEED)),
    Proof("gpu.pcie.gen", "gpu.pcie.drops", ("gpu.step.events",)),
    Proof("gpu.pcie.gen", "gpu.pcie.stuck", ("gpu.step.events", "gpu.copy.*", "gpu_pair.copy", *VLLM_SPEED)),
    Proof(
        "gpu.pcie.width",
        "gpu.pcie.width",
        ("gpu.step.events", "gpu.burn.width", "gpu.copy.*", "gpu_pair.copy", *VLLM_SPEED),
    ),
    Proof("gpu.pcie.width", "gpu.pcie.port", ("gpu.step.events", "gpu.copy.*", "gpu_pair.copy")),
    Proof("gpu.gemm.fp16", "gpu.slow", ALL_RATES),
    Proof("gpu.gemm.fp16", "gpu.accumulate.fp16", ("gpu.step.errors", *ALL_RATES, *BURNS, "gpu.numerics.errors")),
    Proof("gpu.gemm.fp16", "gpu.cuda.order", ("gpu.*", "gpu_pair.*"), "several"),
    Proof("gpu.gemm.fp32", "gpu.fp32.slow"),
    Proof("gpu.gemm.bf16", "gpu.bf16.slow"),
    Proof("gpu.gemm.efficiency", "gpu.kernel.slow", ALL_RATES),
    Proof("gpu.copy.device", "gpu.vram.slow"),
    Proof("gpu.copy.h2d", "gpu.copy.h2d"),
    Proof("gpu.copy.errors", "gpu.copy.corrupt", ("gpu.copy.*", "gpu_pair.*", "gpu.pcie.*")),
    Proof("gpu.copy.errors_all", "gpu.copy.corrupt", ("gpu.copy.*", "gpu_pair.*", "gpu.pcie.*"), "one"),
    Proof("gpu.copy.errors_all", "gpu.copy.crosstalk", ("gpu.copy.shared_uplink",), "several"),
    Proof("gpu.copy.shared_uplink", "gpu.copy.uplink", gpus="several"),
    Proof("gpu.copy.shared_uplink", "gpu.lost", WHOLE_CARD, "one"),
    Proof("gpu_pair.errors", "gpu*.copy.corrupt", ("gpu.copy.*", "gpu_pair.*", "gpu.pcie.*")),
    Proof("gpu.copy.d2h", "gpu.copy.d2h"),
    Proof("gpu.copy.d2h_pageable", "gpu.copy.pageable"),
    Proof("gpu_pair.copy", "gpu.copy.staged"),
    Proof("gpu.burn.tflops", "gpu.sag", ALL_RATES),
    Proof("gpu.burn.tflops", "gpu.pulse", ALL_RATES),
    Proof("gpu.burn.tflops", "gpu.idle", ("gpu.*",)),
    Proof("gpu.burn.temperature", "gpu.target.high", BURNS),
    Proof("gpu.burn.temperature", "gpu.sensor.zero", ("gpu.combined.temperature",)),
    Proof("gpu.burn.temperature", "gpu.sensor.gone", ("gpu.combined.temperature",)),
    Proof(
        "gpu.burn.errors",
        "gpu.bitflip",
        ("gpu.step.errors", "gpu.combined.errors", "gpu.gemm.*", "gpu.numerics.errors"),
    ),
    Proof("gpu.burn.errors", "gpu.bitflip.hot", ("gpu.step.errors", "gpu.combined.errors", "gpu.gemm.*")),
    Proof(
        "gpu.burn.errors",
        "gpu.nan",
        ("gpu.step.errors", "gpu.combined.errors", "gpu.gemm.*", "gpu.numerics.errors"),
    ),
    Proof(
        "gpu.burn.errors",
        "gpu.stripe",
        ("gpu.step.errors", "gpu.combined.errors", "gpu.gemm.*", "gpu.numerics.errors"),
    ),
    Proof(
        "gpu.burn.errors",
        "gpu.golden.wrong",
        ("gpu.step.errors", "gpu.combined.errors", "gpu.gemm.*", "gpu.numerics.errors"),
    ),
    Proof(
        "gpu.burn.errors",
        "gpu.detector.blind",
        ("gpu.step.errors", "gpu.combined.errors", "gpu.memory.errors", "gpu.numerics.errors"),
    ),
    Proof("gpu.numerics.errors", "gpu.odd.wrong"),
    Proof(
        "gpu.numerics.errors",
        "gpu.flicker",
        ("gpu.step.errors", "gpu.burn.errors", "gpu.combined.errors", "gpu.gemm.*"),
    ),
    Proof("gpu.burn.throttle", "gpu.fan.dead", (*BURNS, "gpu.gemm.*")),
    Proof("gpu.burn.throttle", "gpu.throttle.hidden", (*BURNS, "gpu.gemm.*")),
    Proof("gpu.burn.throttle", "gpu.power.brake", (*ALL_RATES, *BURNS)),
    Proof("gpu.burn.width", "gpu.pcie.width:8@burn", ("gpu.step.events", *VLLM_SPEED)),
    Proof("gpu.step.steps", "gpu.idle", ("gpu.*",)),
    Proof("gpu.step.steps", "gpu.step.lost", WHOLE_CARD),
    Proof(
        "gpu.step.errors",
        "gpu.bitflip",
        ("gpu.burn.errors", "gpu.combined.errors", "gpu.gemm.*", "gpu.numerics.errors"),
    ),
    Proof("gpu.step.events", "gpu.step.lost", WHOLE_CARD),
    Proof("gpu.step.events", "gpu.step.xid", ("gpu.xid",)),
    Proof("gpu.step.events", "gpu.step.link"),
    Proof("gpu.step.events", "nic.flap.step", ("nic.flaps",)),
    Proof("gpu.step.events", "gpu.aer.uncorrected@steps", ("gpu.aer.uncorrected",)),
    Proof("gpu.combined.tflops", "gpu.slow:0.25@combined", ("gpu.combined.drop",)),
    Proof("gpu.combined.temperature", "gpu.target.high:92@combined", ("gpu.combined.*",)),
    Proof("gpu.combined.errors", "gpu.bitflip:0.5@combined"),
    Proof("gpu.combined.drop", "gpu.cpu.interference", ("gpu.combined.tflops",)),
    Proof("gpu.memory.errors", "gpu.vram.stuck", ("gpu.memory.*",)),
    Proof("gpu.memory.errors", "gpu.vram.fades", ("gpu.memory.*",)),
    Proof("gpu.memory.errors", "gpu.vram.alias", ("gpu.memory.*",)),
    Proof("gpu.memory.errors", "gpu.detector.blind", ("gpu.*.errors",)),
    Proof("gpu.memory.coverage", "gpu.vram.claim", ("gpu.memory.*",)),
    Proof("gpu.ecc.uncorrected", "gpu.ecc.uncorrected", ("gpu.remap.pending",)),
    Proof("gpu.vbios_uniform", "gpu.vbios.other", gpus="several"),
    Proof("gpu.vbios_uniform", "gpu.lost", WHOLE_CARD, "one"),
    Proof("gpu.mig", "gpu.mig", ("gpu.*", "gpu_pair.*", "cpu.combined.errors")),
    Proof("gpu.processes.before", "gpu.process.foreign", ("gpu.processes.after", "gpu.memory.*")),
    Proof("gpu.processes.before", "gpu.process.hidden", ("gpu.processes.after", "gpu.memory.*")),
    Proof("gpu.processes.after", "gpu.process.left"),
    Proof("gpu.state.unchanged", "gpu.state.limit:{limit}@burn", ALL_RATES),
    Proof("gpu.remap.uncorrected", "gpu.remap.uncorrected"),
    Proof("gpu.remap.pending", "gpu.remap.pending"),
    Proof("gpu.remap.failed", "gpu.remap.failed"),
    Proof("gpu.aer.corrected", "gpu.aer.corrected"),
    Proof("gpu.aer.corrected", "gpu.aer.hidden", ("gpu.step.events", "gpu.aer.*")),
    Proof("gpu.aer.corrected_rate", "gpu.aer.storm", ("gpu.aer.corrected",)),
    Proof("gpu.aer.corrected_rate", "gpu.aer.port", ("gpu.aer.corrected",)),
    Proof("gpu.aer.uncorrected", "gpu.aer.uncorrected"),
    Proof("gpu.aer.uncorrected", "host.kernel.blind", ("gpu.step.events", "gpu.aer.*", "host.kernel.blindfolds")),
    Proof("gpu.xid", "gpu.xid"),
    Proof("gpu.xid", "host.log.unreadable", ("gpu.step.events", "gpu.aer.*")),
    Proof("nic.flaps", "nic.flap"),
    Proof("nic.flaps", "nic.unreadable", ("gpu.step.events",)),
    Proof("cpu.burn.errors", "cpu.burn.wrong", ("gpu.combined.*", "cpu.combined.errors")),
    Proof("cpu.combined.errors", "cpu.burn.wrong:3@combined"),
    Proof("cpu.burn.errors", "cpu.burn.short", ("cpu.burn.load", "gpu.combined.*", "cpu.combined.errors")),
    Proof("cpu.burn.load", "cpu.burn.idle", ("cpu.burn.errors", "gpu.combined.*", "cpu.combined.errors")),
    Proof("monitoring.prometheus", "host.prometheus.down"),
    Proof("monitoring.prometheus", "host.prometheus.stale"),
    Proof("monitoring.dcgm_exporter", "host.exporter.down", ("monitoring.prometheus",)),
    Proof("monitoring.dcgm_exporter", "host.exporter.partial:0"),
    Proof("monitoring.grafana", "host.grafana.down"),
    Proof("monitoring.grafana", "host.grafana.database"),
    Proof("host.lvm.unallocated", "host.lvm.unused"),
    Proof("host.cpu.model", "cpu.model"),
    Proof("host.cpu.cores", "cpu.cores:{cores}"),
    Proof("host.cpu.threads", "cpu.threads:{threads}"),
    Proof("host.cpu.offline", "cpu.offline", ("host.cpu.threads",)),
    Proof("host.memory.dimms", "cpu.dimm.missing:{dimms}", ("host.memory.installed", "host.memory.visible")),
    Proof("host.memory.installed", "cpu.dimm.missing:1", ("host.memory.dimms", "host.memory.visible")),
    Proof("host.memory.visible", "cpu.dimm.missing:0", ("host.memory.*",)),
    Proof("host.memory.speed", "cpu.dimm.slow:{mts}"),
    Proof("host.board.model", "host.board"),
    Proof("host.os.release", "host.os"),
    Proof("host.kernel.blindfolds", "host.kernel.blind", ("gpu.step.events", "gpu.aer.*")),
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
HARMLESS = ("gpu.heat", "gpu.power.overshoot", "gpu.desktop")
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
