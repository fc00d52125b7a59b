"""The loads of the simulated machine: the loops of children/ over the model's rates.

Arithmetic and comparison are real, on small numpy arrays that stand in for the large ones; how long
a batch takes, and which products are wrong, comes from the model.
"""

import math
import random
from collections.abc import Callable, Generator, Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from pytest_gpuaccept.children.compute import Batch, burn, gemm
from pytest_gpuaccept.children.copies import Copy, copies
from pytest_gpuaccept.children.telemetry import telemetry
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.profile import PCIE_GBS_PER_LANE
from pytest_gpuaccept.sim import engines
from pytest_gpuaccept.sim.machine import COPY_POWER, GpuState, Machine, ScriptClock
from pytest_gpuaccept.sim.nvml import binding, uuid_of
from pytest_gpuaccept.world import Record

ROWS, INNER = 48, 128
"""Size of the arrays that stand in for 8192 x 8192 results."""
BATCH_S = 0.1
TFLOP = {"fp16": 2 * 8192**3 / 1e12, "fp32": 2 * 4096**3 / 1e12}
CPU_TFLOPS = 0.5
"""[E] What a product reaches when it never gets to the GPU."""
LINK_SHARE = 0.835
"""Share of a link's raw rate that a pinned copy reaches (26.3 of 31.5 GB/s, Gen4 x16)."""
COPY_SPREAD = 0.004
Array = np.ndarray[Any, Any]


@lru_cache(maxsize=64)
def _inputs(seed: int, kind: str) -> tuple[Array, Array]:
    noise, dtype = np.random.default_rng(seed), np.float16 if kind == "fp16" else np.float32
    a, b = noise.standard_normal((ROWS, INNER)), noise.standard_normal((INNER, ROWS))
    return a.astype(dtype), b.astype(dtype)


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
    total = np.zeros((ROWS, ROWS), np.float16)
    for part in range(0, INNER, 8):
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

    def inputs(self, seed: int, kind: str) -> tuple[Array, Array]:
        """Return two matrices of standard normals made from `seed`, in FP16 or FP32."""
        return _inputs(seed, kind)

    def product(self, a: Array, b: Array) -> Array:
        """Return a @ b as this GPU computes it; the last one is remembered, a burn repeats it thousands of times."""
        how = self._gpu.p.accumulate
        if self._last is None or self._last[0] is not a or self._last[1] is not b or self._last[2] != how:
            self._last = (a, b, how, _exact(a, b, how))
        exact = self._last[3]
        return _spoilt(exact, self._gpu, self._gpu.rng) if self._gpu.p.always_wrong else exact

    def batch(self, kind: str, a: Array, b: Array) -> Batch:
        """Let products take their time; one array stands for all of the batch."""
        gpu = self._answering()
        rate = gpu.rate(kind, self._machine.now - gpu.busy_since) if gpu.load else CPU_TFLOPS
        if rate <= 0:
            message = f"CUDA error on {self.uuid}: the launch timed out and was terminated"
            raise Unmeasurable(message)
        count = max(1, round(BATCH_S * rate / TFLOP[kind]))
        seconds = count * TFLOP[kind] / rate
        self._clock.sleep(seconds)
        result = self.product(a, b)
        if gpu.wrong_now() and gpu.rng.random() < -math.expm1(-gpu.p.flips_per_s * seconds):
            result = _spoilt(result, gpu, gpu.rng)
        return Batch([(result, count)], seconds, count * TFLOP[kind])

    def copy(self, kind: str, seconds: float) -> Copy:
        """Copy for `seconds`; a small array goes along and is compared byte by byte."""
        gpu = self._answering()
        noise = 1.0 + gpu.rng.gauss(0.0, COPY_SPREAD)
        self._clock.sleep(seconds)
        sent = np.random.default_rng(gpu.index).integers(0, 256, 4096, dtype=np.uint8)
        arrived = sent.copy()
        if gpu.p.copy_corrupts:
            arrived[gpu.rng.randrange(4096)] ^= 1
        moved = int(self._copy_gbs(gpu, kind) * noise * seconds * 1e9)
        return Copy(moved, seconds, int((arrived != sent).sum()), "staged" if kind.startswith("peer:") else kind)

    def _answering(self) -> GpuState:
        if self._gpu.p.lost or not self._gpu.p.present:
            message = f"CUDA error on {self.uuid}: unspecified launch failure"
            raise Unmeasurable(message)
        return self._gpu

    def _copy_gbs(self, gpu: GpuState, kind: str) -> float:
        if kind.startswith("peer:"):
            other = _reached(self._machine, kind.removeprefix("peer:"))
            return min(link_gbs(gpu), link_gbs(other), gpu.p.staged_gbs, other.p.staged_gbs)
        p = gpu.p
        own = {"device": p.vram_gbs, "h2d": p.h2d_gbs, "d2h": p.d2h_gbs, "d2h_pageable": p.pageable_gbs}
        return own[kind] if kind == "device" else min(link_gbs(gpu), own[kind])


def link_gbs(gpu: GpuState) -> float:
    """Return what the link of a GPU carries in one direction, in GB/s."""
    gen = min(gpu.p.pcie_gen, gpu.p.card_gen, gpu.p.slot_gen)
    return PCIE_GBS_PER_LANE[gen] * gpu.p.pcie_width * LINK_SHARE


def _spoilt(result: Array, gpu: GpuState, rng: random.Random) -> Array:
    """Return a copy of a result with what the GPU's fault does to it; a stuck fault hits the same place always."""
    wrong = result.copy()
    bits: Any = wrong.view(np.uint16 if wrong.dtype == np.float16 else np.uint32)
    row, column = (3, 5) if gpu.p.always_wrong else (rng.randrange(ROWS), rng.randrange(ROWS))
    bit = bits.dtype.type(1 << (14 if gpu.p.always_wrong else gpu.p.flip_bit))
    if gpu.p.flip == "nan":
        wrong[row, column] = np.nan
    elif gpu.p.flip == "stripe":
        bits[row, ::4] ^= bit
    else:
        bits[row, column] ^= bit
    return wrong


def _reached(machine: Machine, uuid: str) -> GpuState:
    """Return the GPU that a load for `uuid` reaches."""
    for gpu in machine.gpus:
        if uuid_of(machine, gpu.index) == uuid:
            on = gpu.p.runs_on
            return machine.gpus[on] if 0 <= on < len(machine.gpus) else gpu
    message = f"CUDA sees no device {uuid}"
    raise Unmeasurable(message)


Script = Generator[Record, None, None]
Params = Mapping[str, Any]


def _watch(machine: Machine, params: Params, clock: ScriptClock) -> Script:
    yield from telemetry(binding(machine), clock, uuids=params["uuids"], period_s=params["period_s"])


def _burn(machine: Machine, params: Params, clock: ScriptClock) -> Script:
    gpu = _reached(machine, params["uuid"])
    with machine.runs("burn", {gpu.index: 1.0}):
        yield from burn(Silicon(machine, gpu, clock), clock, seconds=params["seconds"])


def _gemm(machine: Machine, params: Params, clock: ScriptClock) -> Script:
    gpu = _reached(machine, params["uuid"])
    times = {"warm_up_s": params["warm_up_s"], "seconds": params["seconds"]}
    with machine.runs("gemm", {gpu.index: 1.0}):
        yield from gemm(Silicon(machine, gpu, clock), clock, kind=params["kind"], **times)


def _copies(machine: Machine, params: Params, clock: ScriptClock) -> Script:
    gpu = _reached(machine, params["uuid"])
    plan = {key: params[key] for key in ("kinds", "samples", "sample_s")}
    with machine.runs("copies", {gpu.index: COPY_POWER}):
        yield from copies(Silicon(machine, gpu, clock), clock, **plan)


def _versions(machine: Machine, _: Params, clock: ScriptClock) -> Script:
    clock.sleep(5.0)
    yield {name: getattr(machine.host, name) or None for name in ("torch", "transformers", "cuda_toolkit", "cudnn")}


SCRIPTS: dict[str, Callable[[Machine, Params, ScriptClock], Script]] = {
    "telemetry": _watch, "burn": _burn, "gemm": _gemm, "copies": _copies, "versions": _versions,
    "vllm": engines.vllm, "llamacpp": engines.llamacpp,
}  # fmt: skip
"""Name of a load -> what it does in virtual time."""
