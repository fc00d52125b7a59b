"""The loads of the simulated machine: the loops of children/ over the model's rates.

Arithmetic and comparison are real, on small numpy arrays that stand in for the large ones; how long
a batch takes, and which products are wrong, comes from the model.
"""

import errno
import math
import random
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import numpy as np

from pytest_gpuaccept.children.compute import Batch, burn, gemm
from pytest_gpuaccept.children.copies import Copy, copies
from pytest_gpuaccept.children.memory import memory
from pytest_gpuaccept.children.products import Question, products
from pytest_gpuaccept.children.steps import steps
from pytest_gpuaccept.children.telemetry import telemetry
from pytest_gpuaccept.children.watch import watch
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.profile import PCIE_GBS_PER_LANE
from pytest_gpuaccept.sim import drive_load, engines, files
from pytest_gpuaccept.sim.machine import COPY_POWER, GpuState, Machine, ScriptClock
from pytest_gpuaccept.sim.nvml import binding, uuid_of
from pytest_gpuaccept.sim.vram import Vram
from pytest_gpuaccept.world import Record

ROWS, INNER = 48, 128
"""Size of the arrays that stand in for 8192 x 8192 results."""
BATCH_S = 0.1
QUESTION_S = 0.005
"""[E] Seconds that one small product takes with its way to the GPU and back."""
VECTOR = 8
"""Numbers that a kernel loads at once: one that forgets the rest of a sum forgets up to one less."""
TFLOP = {
    **dict.fromkeys(("fp16", "bf16", "fp8"), 2 * 8192**3 / 1e12),
    **dict.fromkeys(("fp32", "tf32"), 2 * 4096**3 / 1e12),
    "burn": 2 * 8192 * 8192 * 32768 / 1e12,
}
MANTISSA = {"bf16": 7, "tf32": 10, "fp8": 3}
"""Bits that an input of a kind keeps; numpy has no such types, so FP32 arrays carry the rounded values."""
CPU_TFLOPS = 0.5
"""[E] What a product reaches when it never gets to the GPU."""
LINK_SHARE = 0.835
"""Share of a link's raw rate that a pinned copy reaches (26.3 of 31.5 GB/s, Gen4 x16)."""
COPY_SPREAD = 0.004
Array = np.ndarray[Any, Any]


@lru_cache(maxsize=64)
def _inputs(seed: int, kind: str) -> tuple[Array, Array]:
    noise, dtype = np.random.default_rng(seed), np.float16 if kind in ("fp16", "burn") else np.float32
    a, b = noise.standard_normal((ROWS, INNER)), noise.standard_normal((INNER, ROWS))
    return _rounded(a, kind).astype(dtype), _rounded(b, kind).astype(dtype)


def _rounded(array: Array, kind: str) -> Array:
    """Return an array with as many bits of mantissa as the inputs of a kind have."""
    if kind not in MANTISSA:
        return array
    fraction, exponent = np.frexp(array)
    scale = 2.0 ** (MANTISSA[kind] + 1)
    return np.ldexp(np.round(fraction * scale) / scale, exponent)


class DeadWrites(np.ndarray):
    """An array into which writes do not land: what is put there to be found is not there."""

    def __setitem__(self, key: object, value: object) -> None:
        """Lose the write."""


class DeadMemory:
    """numpy on a device that takes no writes; what it computes arrives."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever numpy has
        """Return what numpy has under a name."""
        return getattr(np, name)

    def asarray(self, array: Array, *, dtype: Any = None, copy: bool | None = None) -> Array:  # noqa: ANN401
        """Return an array into which writes do not land."""
        return np.asarray(array, dtype=dtype, copy=copy).view(DeadWrites)


def _exact(a: Array, b: Array, accumulate: str) -> Array:
    """Return a @ b in the type of its inputs; FP16 accumulation rounds after every eighth of the sum."""
    if accumulate == "fp32" or a.dtype == np.float32:
        return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32).astype(a.dtype)
    total = np.zeros((a.shape[0], b.shape[1]), np.float16)
    for part in range(0, a.shape[1], 8):
        total += (a[:, part : part + 8].astype(np.float32) @ b[part : part + 8].astype(np.float32)).astype(np.float16)
    return total


class Silicon:
    """One simulated GPU under a load; see children/compute.Arithmetic and children/copies.Mover."""

    def __init__(self, machine: Machine, gpu: GpuState, clock: ScriptClock) -> None:
        """Take the GPU that the load reaches."""
        self._machine, self._gpu, self._clock = machine, gpu, clock
        self._last: tuple[Array, Array, str, Array] | None = None
        self.uuid = uuid_of(machine, gpu.index)

    @property
    def xp(self) -> ModuleType | DeadMemory:
        """Return numpy, over memory that may take no writes."""
        return DeadMemory() if self._gpu.p.detector_blind else np

    def describe(self) -> Record:
        """Return what the products run on."""
        return {"library": "model"}

    def inputs(self, seed: int, kind: str) -> tuple[Array, Array]:
        """Return two matrices of standard normals made from `seed`, rounded as `kind` has them."""
        return _inputs(seed, kind)

    def product(self, kind: str, a: Array, b: Array) -> Array:  # noqa: ARG002 - the arrays are rounded already
        """Return a @ b as this GPU computes it; the last one is remembered, a burn repeats it thousands of times."""
        how = self._gpu.p.accumulate
        if self._last is None or self._last[0] is not a or self._last[1] is not b or self._last[2] != how:
            self._last = (a, b, how, _exact(a, b, how))
        exact = self._last[3]
        return _spoilt(exact, self._gpu, self._gpu.rng) if self._gpu.p.always_wrong else exact

    def batch(self, kind: str, a: Array, b: Array, *, bare: bool = False) -> Batch:  # noqa: ARG002 - checks are free
        """Let products take their time; in a burn each has its own array, else one stands for all of the batch."""
        gpu = self._answering()
        rate = gpu.rate(kind, self._machine.now - gpu.busy_since) if gpu.load else CPU_TFLOPS
        if rate <= 0:
            message = f"CUDA error on {self.uuid}: the launch timed out and was terminated"
            raise Unmeasurable(message)
        count = max(1, round(BATCH_S * rate / TFLOP[kind]))
        seconds = count * TFLOP[kind] / rate
        self._clock.sleep(seconds)
        right = result = self.product(kind, a, b)
        if gpu.wrong_now() and gpu.rng.random() < -math.expm1(-gpu.p.flips_per_s * seconds):
            result = _spoilt(result, gpu, gpu.rng)
        results = [(right, 1)] * (count - 1) + [(result, 1)] if kind == "burn" else [(result, count)]
        return Batch(results, seconds, count * TFLOP[kind])

    def copy(self, kind: str, seconds: float, begin: Callable[[], float]) -> Copy:
        """Copy for `seconds`; a small array goes along and is compared byte by byte."""
        gpu = self._answering()
        noise, began = 1.0 + gpu.rng.gauss(0.0, COPY_SPREAD), begin()
        self._clock.sleep(seconds)
        sent = np.random.default_rng(gpu.index).integers(0, 256, 4096, dtype=np.uint8)
        arrived = sent.copy()
        if gpu.p.copy_corrupts or (gpu.p.crowd_corrupts and self._crowded()):
            arrived[gpu.rng.randrange(4096)] ^= 1
        moved = int(self._copy_gbs(gpu, kind) * noise * seconds * 1e9)
        return Copy(began, moved, seconds, int((arrived != sent).sum()), self._path(gpu, kind), 1)

    def _path(self, gpu: GpuState, kind: str) -> str:
        if not kind.startswith("peer:"):
            return kind
        other = _reached(self._machine, kind.removeprefix("peer:"))
        return "direct" if gpu.p.p2p == other.p.p2p == "ok" else "staged"

    def _crowded(self) -> bool:
        return self._machine.running.count("copies") > 1

    def _answering(self) -> GpuState:
        if self._gpu.p.lost or not self._gpu.p.present:
            message = f"CUDA error on {self.uuid}: unspecified launch failure"
            raise Unmeasurable(message)
        return self._gpu

    def _copy_gbs(self, gpu: GpuState, kind: str) -> float:
        if kind.startswith("peer:"):
            other = _reached(self._machine, kind.removeprefix("peer:"))
            staged = () if self._path(gpu, kind) == "direct" else (gpu.p.staged_gbs, other.p.staged_gbs)
            return min(link_gbs(gpu), link_gbs(other), *staged)
        p, link = gpu.p, link_gbs(gpu)
        h2d, d2h, pageable = min(link, p.h2d_gbs), min(link, p.d2h_gbs), min(link, p.pageable_gbs)
        own = {"h2d": h2d, "d2h": d2h, "h2d_pageable": pageable, "d2h_pageable": pageable}
        own |= {"d2h_untouched": pageable * p.untouched_share, "both": (h2d + d2h) * p.both_share}
        return p.vram_gbs if kind == "device" else own[kind] * (p.uplink_share if self._crowded() else 1.0)


def link_gbs(gpu: GpuState) -> float:
    """Return what the link of a GPU carries in one direction, in GB/s."""
    p = gpu.p
    gen = min(p.pcie_gen, p.card_gen, p.slot_gen)
    above = PCIE_GBS_PER_LANE[min(gen, p.port_gen or gen)] * (p.port_width or p.pcie_width)
    return min(PCIE_GBS_PER_LANE[gen] * p.pcie_width, above) * LINK_SHARE


def _spoilt(result: Array, gpu: GpuState, rng: random.Random) -> Array:
    """Return a copy of a result with what the GPU's fault does to it; a stuck fault hits the same place always."""
    wrong = result.copy()
    bits: Any = wrong.view(np.uint16 if wrong.dtype == np.float16 else np.uint32)
    rows, columns = wrong.shape
    stuck = min(3, rows - 1), min(5, columns - 1)
    row, column = stuck if gpu.p.always_wrong else (rng.randrange(rows), rng.randrange(columns))
    bit = bits.dtype.type(1 << (14 if gpu.p.always_wrong else gpu.p.flip_bit))
    if gpu.p.flip == "nan":
        wrong[row, column] = np.nan
    elif gpu.p.flip == "stripe":
        bits[row, ::4] ^= bit
    else:
        bits[row, column] ^= bit
    return wrong


class Questioned(Silicon):
    """One simulated GPU that is asked for single products; see children/products.Multiplier."""

    def operands(self, question: Question) -> tuple[Array, Array]:
        """Return both matrices in float64, rounded as the type has them."""
        noise = np.random.default_rng(question.seed)
        kept = np.float16 if question.dtype == "fp16" else np.float32
        shapes = (question.m, question.k), (question.k, question.n)
        a, b = (_rounded(noise.standard_normal(shape), question.dtype).astype(kept) for shape in shapes)
        return a.astype(np.float64), b.astype(np.float64)

    def multiply(self, question: Question, a: Array, b: Array) -> Array:
        """Return a @ b as this GPU computes it; how the operands lie in memory makes no difference here."""
        gpu = self._answering()
        self._clock.sleep(QUESTION_S)
        kept = np.float16 if question.dtype == "fp16" else np.float32
        summed = question.k - question.k % VECTOR if gpu.p.odd_shapes_wrong else question.k
        result = _exact(a[:, :summed].astype(kept), b[:summed].astype(kept), gpu.p.accumulate)
        flips = gpu.p.always_wrong or (
            gpu.wrong_now() and gpu.rng.random() < -math.expm1(-gpu.p.flips_per_s * QUESTION_S)
        )
        return (_spoilt(result, gpu, gpu.rng) if flips else result).astype(np.float64)


def _reached(machine: Machine, uuid: str) -> GpuState:
    """Return the GPU that a load for `uuid` reaches."""
    for gpu in machine.gpus:
        if uuid_of(machine, gpu.index) == uuid:
            on = gpu.p.runs_on
            return machine.gpus[on] if 0 <= on < len(machine.gpus) else gpu
    message = f"CUDA sees no device {uuid}"
    raise Unmeasurable(message)


Script = Generator[Record, Record | None, None]
Params = Mapping[str, Any]


def _telemetry(machine: Machine, params: Params, clock: ScriptClock) -> Script:
    plan = {key: params[key] for key in ("uuids", "period_s", "links") if key in params}
    yield from telemetry(binding(machine), clock, read=partial(_file, machine), **plan)


def _watch(machine: Machine, params: Params, clock: ScriptClock) -> Script:
    nvml = binding(machine) if params["uuids"] else None
    for told in watch(partial(_file, machine), clock, nvml=nvml, **params):
        yield told
        clock.sleep(machine.host.stalls_s)


def _file(machine: Machine, path: str) -> str:
    """Return a file's text; raises OSError as a kernel does."""
    text = files.text(machine, path)
    if text is None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
    return text


def _burn(machine: Machine, params: Params, clock: ScriptClock) -> Script:
    gpu = _reached(machine, params["uuid"])
    with machine.runs("burn", {gpu.index: 1.0}):
        plan = {key: params[key] for key in ("seconds", "open_ended")}
        yield from burn(Silicon(machine, gpu, clock), clock, **plan)


def _gemm(machine: Machine, params: Params, clock: ScriptClock) -> Script:
    gpu = _reached(machine, params["uuid"])
    times = {"warm_up_s": params["warm_up_s"], "seconds": params["seconds"]}
    with machine.runs("gemm", {gpu.index: 1.0}):
        yield from gemm(Silicon(machine, gpu, clock), clock, kind=params["kind"], **times)


def _copies(machine: Machine, params: Params, clock: ScriptClock) -> Script:
    gpu = _reached(machine, params["uuid"])
    plan = {key: params[key] for key in ("kinds", "samples", "sample_s", "together") if key in params}
    with machine.runs("copies", {gpu.index: COPY_POWER}):
        yield from copies(Silicon(machine, gpu, clock), clock, **plan)


def _memory(machine: Machine, params: Params, clock: ScriptClock) -> Script:
    gpu = _reached(machine, params["uuid"])
    plan = {key: params[key] for key in ("seconds", "hold_s", "share")}
    with machine.runs("memory", {gpu.index: 1.0}):
        yield from memory(Vram(machine, gpu, clock), clock, **plan)


class Duty:
    """The clock of a load that rests: its GPU is loaded from the next batch on until the script sleeps."""

    def __init__(self, machine: Machine, gpu: GpuState, clock: ScriptClock) -> None:
        """Take the GPU, at rest."""
        self._machine, self._gpu, self._clock = machine, gpu, clock
        self._load = ExitStack()
        self._works = False

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""
        return self._clock.monotonic()

    def work(self) -> None:
        """Load the GPU, if it is not loaded yet."""
        if not self._works:
            self._works = True
            self._machine.count_step(self._gpu)
            self._load.enter_context(self._machine.runs("steps", {self._gpu.index: 1.0}))

    def sleep(self, seconds: float) -> None:
        """Rest, and let time pass."""
        self.rest()
        self._clock.sleep(seconds)

    def rest(self) -> None:
        """Take the load away."""
        self._works = False
        self._load.close()


class Stepping(Silicon):
    """A GPU whose load comes with the batches."""

    def __init__(self, machine: Machine, gpu: GpuState, clock: ScriptClock, duty: Duty) -> None:
        """Take the GPU that the load reaches, and what loads it."""
        super().__init__(machine, gpu, clock)
        self._duty = duty

    def batch(self, kind: str, a: Array, b: Array, *, bare: bool = False) -> Batch:  # noqa: ARG002 - checks are free
        """Load the GPU and let products take their time."""
        self._duty.work()
        return super().batch(kind, a, b)


def _steps(machine: Machine, params: Params, clock: ScriptClock) -> Script:
    gpu = _reached(machine, params["uuid"])
    plan = {key: params[key] for key in ("count", "on_s", "off_s")}
    duty = Duty(machine, gpu, clock)
    try:
        yield from steps(Stepping(machine, gpu, clock, duty), duty, **plan)
    finally:
        duty.rest()


def _versions(machine: Machine, _: Params, clock: ScriptClock) -> Script:
    clock.sleep(5.0)
    yield {name: getattr(machine.host, name) or None for name in ("torch", "transformers", "cuda_toolkit", "cudnn")}


def _products(machine: Machine, params: Params, clock: ScriptClock) -> Script:
    gpu = _reached(machine, params["uuid"])
    with machine.runs("products", {gpu.index: COPY_POWER}):
        yield from products(Questioned(machine, gpu, clock), clock)


SCRIPTS: dict[str, Callable[[Machine, Params, ScriptClock], Script]] = {
    "telemetry": _telemetry, "watch": _watch, "burn": _burn, "gemm": _gemm, "copies": _copies, "memory": _memory,
    "steps": _steps, "versions": _versions, "products": _products, "cold_read": drive_load.script,
    "vllm": engines.vllm, "llamacpp": engines.llamacpp,
}  # fmt: skip
"""Name of a load -> what it does in virtual time."""
