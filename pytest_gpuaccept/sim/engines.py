"""vLLM and llama.cpp on a simulated machine: the records and log lines of their load scripts.

Owns how fast an engine is on a machine: weights are read once per token, at a share of the memory
bandwidth that the kernel decides. Knows no metric and no limit. A record is written when the work
that it tells of begins; the script then waits for as long as the work takes.
"""

import hashlib
import random
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.sim.machine import Machine, ScriptClock
from pytest_gpuaccept.sim.parts import LlamaCpp, Vllm
from pytest_gpuaccept.world import Record

Records = Generator[Record, Record | None, None]

LOAD_SHARE = 0.6
"""[E] Share of full load that decoding puts on a GPU."""
EAGER = 0.6
"""[E] Decode rate without CUDA graphs over the rate with them."""
CPU_ROOFLINE = 0.5
"""[E] Share of the host's memory bandwidth that decoding on the CPU reaches."""
CPU_PROMPT = 0.03
"""[E] Rate of processing a prompt on the CPU over that on GPUs."""
EMBEDDING = 0.6 / 41.9
"""Token embedding, which llama.cpp keeps on the CPU, over the weights that a token reads."""
BLOCK = 16
"""Tokens of one block of the prefix cache."""
BYTES_PER_TRANSFER = 8
HANG_LOG_S = 60.0


@dataclass(frozen=True, slots=True)
class Kernel:
    """A family of kernels: its classes, and its rates over those of the fast one."""

    method: str
    name: str | None
    decode: float = 1.0
    batch: float = 1.0


SLOW = Kernel("AWQLinearMethod", None, 0.075 / 0.43, 22.3 / 13.0)
"""Expands all weights to FP16 in every step: 7.5 % of the bound alone, and a batch shares that work."""
KERNELS = {
    "marlin": Kernel("AWQMarlinLinearMethod", "MarlinLinearKernel"),
    "awq": SLOW,
    "machete": Kernel("AWQMarlinLinearMethod", "MacheteLinearKernel"),
    "cpu_wna16": Kernel("CPUAWQLinearMethod", None, 0.05),
}
LAYERS = {"QKVParallelLinear": 80, "MergedColumnParallelLinear": 80, "RowParallelLinear": 160}
"""Quantised layers of Llama 3.3 70B on each rank."""


# vLLM ------------------------------------------------------------------------------------------


def vllm(machine: Machine, params: Mapping[str, Any], clock: ScriptClock) -> Records:
    """Load vLLM over `tensor_parallel_size` GPUs and time it; raises Unmeasurable when it dies."""
    v = machine.vllm
    wanted = int(params["tensor_parallel_size"])
    used = _gpus(machine)[:wanted]
    if len(used) < wanted:
        _die(
            f"vllm ended with status 1: ValueError: World size ({wanted}) is larger than the number of"
            f" available GPUs ({len(used)}) in this node."
        )
    with machine.runs("vllm", dict.fromkeys(used, LOAD_SHARE)):
        if not v.starts:
            _die("vllm ended with status 1: RuntimeError: Engine core initialization failed. See root cause above.")
        yield from _vllm_loads(v, params, clock)
        if v.hangs:
            yield from _hang(clock)
        yield from _while_alive(machine, v, used, _vllm_answers(machine, params, clock, used))


def _vllm_loads(v: Vllm, params: Mapping[str, Any], clock: ScriptClock) -> Records:
    yield {"kind": "engine", "version": v.version}
    yield from map(_log, _vllm_log(v, params))
    clock.sleep(v.load_s)
    yield {"kind": "load", "seconds": v.load_s}
    yield {"kind": "graphs", "eager": v.eager, "captured": 0 if v.eager else 67}
    yield from _kernels(v, int(params["tensor_parallel_size"]))


def _vllm_log(v: Vllm, params: Mapping[str, Any]) -> Iterator[str]:
    """Yield what vLLM logs while it loads."""
    asked = "awq" if v.kernel == "awq" else "awq_marlin"
    yield (
        f"Initializing a V1 LLM engine (v{v.version}) with config: model={params['model']!r},"
        f" tensor_parallel_size={params['tensor_parallel_size']}, quantization={asked}, enforce_eager={v.eager},"
        f" enable_prefix_caching={v.prefix_cache}"
    )
    if v.kernel == "awq":
        yield (
            "Detected that the model can run with awq_marlin, however you specified quantization=awq explicitly,"
            " so forcing awq. Use quantization=awq_marlin for faster inference"
        )
    else:
        kernel = _kernel(v.kernel)
        yield "The model is convertible to awq_marlin during runtime. Using awq_marlin kernel."
        yield f"Using {kernel.name or kernel.method} for {kernel.method}"
    if v.fallback:
        yield (
            "Layer 'model.layers.0.mlp.down_proj' is not supported by AWQMarlin."
            " Falling back to unoptimized AWQ kernels."
        )
    yield "Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN', 'FLASHINFER', 'TRITON_ATTN']"
    if not v.eager:
        yield "Graph capturing finished in 21 secs, took 1.37 GiB"
    yield f"init engine (profile, create kv cache, warmup model) took {0.4 * v.load_s:.2f} seconds"


def _kernel(family: str) -> Kernel:
    """Return a family's kernel; a name that is no family is the class of a kernel in Marlin's place."""
    return KERNELS.get(family) or Kernel("AWQMarlinLinearMethod", family or None)


def _kernels(v: Vllm, ranks: int) -> Iterator[Record]:
    """Yield each rank's groups of layers; without the workers' word, what one rank logged."""
    for rank in range(1 if v.log_only else ranks):
        for layer, count in LAYERS.items():
            slow = count if rank == v.wrong_rank else round(count * v.fallback)
            for kernel, number in ((SLOW, slow), (_kernel(v.kernel), count - slow)):
                if number:
                    yield _group(v, rank, layer, kernel.method, kernel.name, number)
        yield _group(v, rank, "ParallelLMHead", "UnquantizedEmbeddingMethod", None, 1)


def _group(v: Vllm, rank: int, layer: str, method: str, kernel: str | None, count: int) -> Record:  # noqa: PLR0913, PLR0917 - a record's fields
    tier = "log" if v.log_only else "worker"
    return {
        "kind": "kernel", "tier": tier, "rank": rank, "layer": layer, "method": method, "kernel": kernel,
        "count": count,
    }  # fmt: skip


def _vllm_answers(machine: Machine, params: Mapping[str, Any], clock: ScriptClock, gpus: list[int]) -> Records:
    """Yield the timed requests, one at a time, then the batches; each warms up for itself."""
    v, noise = machine.vllm, machine.random("vllm/noise")
    tokens, repetitions = int(params["tokens"]), int(params["repetitions"])
    for number in range(-int(params["warmups"]), repetitions):
        rate = _vllm_rate(machine, params, gpus, alone=True) * _shaken(noise, v.noise)
        clock.sleep(v.first_token_s + tokens / rate)
        if number < 0:
            continue
        if _fails(number, v.failing):
            yield _failed("request", "EngineDeadError: EngineCore encountered an issue.")
        else:
            cached = (int(params["prompt_tokens"]) - 1) // BLOCK * BLOCK if v.prefix_cache else 0
            yield _answer(machine, v, tokens, v.first_token_s, rate, number, cached)
    for _ in range(repetitions):
        rate = _vllm_rate(machine, params, gpus, alone=False) * _shaken(noise, v.noise)
        record = _batch(v, int(params["requests"]), int(params["batch_tokens"]), rate)
        clock.sleep(record["seconds"])
        yield record


def _vllm_rate(machine: Machine, params: Mapping[str, Any], gpus: list[int], *, alone: bool) -> float:
    """Return the output in tok/s of a single stream, or of a batch.

    A token waits for the slowest rank, for every layer that fell back, and for the narrowest link.
    """
    v = machine.vllm
    bound = len(gpus) * _bandwidth(machine) / float(params["bytes_per_token_gb"])
    kernel = _kernel(v.kernel)
    slow = 1.0 if 0 <= v.wrong_rank < len(gpus) else v.fallback
    rates = [k.decode * (1.0 if alone else v.batch_gain * k.batch) for k in (kernel, SLOW)]
    mixed = 1.0 / ((1.0 - slow) / rates[0] + slow / rates[1])
    link = min(machine.gpus[index].link_share for index in gpus) if len(gpus) > 1 else 1.0
    return bound * v.roofline * mixed * link * (EAGER if v.eager else 1.0)


def _batch(v: Vllm, requests: int, tokens: int, rate: float) -> Record:
    failures = round(requests * v.failing)
    produced = (requests - failures) * _produced(v, tokens)
    return {
        "kind": "batch", "requests": requests, "requested": requests * tokens, "tokens": produced,
        "seconds": max(produced, 1) / rate, "failures": failures, "cached": 0,
    }  # fmt: skip


def _hang(clock: ScriptClock) -> Records:
    """Wait for a worker that never answers."""
    while True:
        clock.sleep(HANG_LOG_S)
        yield _log("No available shared memory broadcast block found in 60 seconds.")


# llama.cpp -------------------------------------------------------------------------------------


def llamacpp(machine: Machine, params: Mapping[str, Any], clock: ScriptClock) -> Records:
    """Load llama.cpp, layers split over all GPUs, and time it; raises Unmeasurable when it dies."""
    part = machine.llamacpp
    used = _gpus(machine) if part.gpu_build else []
    share = LOAD_SHARE / max(1, len(used))  # layers are split: one GPU at a time works
    with machine.runs("llamacpp", dict.fromkeys(used, share)):
        if not part.starts:
            _die(f"llamacpp ended with status 1: ValueError: Failed to load model from file: {params['model']}")
        yield {"kind": "engine", "version": part.version}
        yield {"kind": "build", "supports_gpu_offload": part.gpu_build}
        yield from map(_log, _llamacpp_log(part, params, len(used)))
        clock.sleep(part.load_s)
        yield {"kind": "load", "seconds": part.load_s}
        if part.gpu_build:
            answers = _llamacpp_answers(machine, params, clock, len(used))
            yield from _while_alive(machine, part, used, answers)


def _llamacpp_log(part: LlamaCpp, params: Mapping[str, Any], gpus: int) -> Iterator[str]:
    """Yield what llama.cpp logs of where it puts the weights."""
    weights = float(params["bytes_per_token_gb"]) * 1e9 / 2**20
    on_gpus = part.offloaded if gpus else 0.0
    if gpus:
        yield "load_tensors: offloaded 81/81 layers to GPU"
    yield f"load_tensors:   CPU_Mapped model buffer size = {weights * (1.0 - on_gpus + EMBEDDING):8.2f} MiB"
    for index in range(gpus):
        yield f"load_tensors:        CUDA{index} model buffer size = {weights * on_gpus / gpus:8.2f} MiB"
    yield f"llama_context: graph splits = {gpus + 1 + part.extra_splits}"


def _llamacpp_answers(machine: Machine, params: Mapping[str, Any], clock: ScriptClock, gpus: int) -> Records:
    """Yield prompts, decodes and whole requests."""
    part, noise = machine.llamacpp, machine.random("llamacpp/noise")
    tokens = {"prompt": int(params["prompt_tokens"]), "decode": int(params["tokens"])}
    for number in range(-int(params["warmups"]), int(params["repetitions"])):
        for stage, count in tokens.items():
            seconds = count / (_llamacpp_rate(machine, params, stage, gpus) * _shaken(noise, part.noise))
            clock.sleep(seconds)
            if number >= 0:
                yield {"kind": stage, "requested": count, "tokens": count, "seconds": seconds}
    for number in range(int(params["repetitions"])):
        rates = [_llamacpp_rate(machine, params, s, gpus) * _shaken(noise, part.noise) for s in tokens]
        first = tokens["prompt"] / rates[0]
        clock.sleep(first + tokens["decode"] / rates[1])
        if _fails(number, part.failing):
            yield _failed("request", "llama_decode returned -3")
        else:
            yield _answer(machine, part, tokens["decode"], first, rates[1], number, 0)


def _llamacpp_rate(machine: Machine, params: Mapping[str, Any], stage: str, gpus: int) -> float:
    """Return the tok/s of a stage: what lies on GPUs is read by one at a time, the rest by the CPU."""
    part, cpu = machine.llamacpp, machine.cpu
    on_gpus = part.offloaded if gpus else 0.0
    if stage == "prompt":
        return part.prompt_toks / (on_gpus + (1.0 - on_gpus) / CPU_PROMPT)
    host = CPU_ROOFLINE * cpu.dimms * cpu.dimm_mts * BYTES_PER_TRANSFER / 1000.0
    seconds_per_gb = on_gpus / (_bandwidth(machine) * part.roofline) + (1.0 - on_gpus) / max(host, 1.0)
    return 1.0 / (float(params["bytes_per_token_gb"]) * seconds_per_gb)


# Both ------------------------------------------------------------------------------------------


def _gpus(machine: Machine) -> list[int]:
    return [gpu.index for gpu in machine.gpus if gpu.p.present and not gpu.p.lost]


def _bandwidth(machine: Machine) -> float:
    """Return the memory bandwidth of one GPU in GB/s; raises Unmeasurable when no card gives it."""
    if machine.bandwidth_gbs <= 0:
        _die("the simulated GPUs have no memory bandwidth: name a card in the profile")
    return machine.bandwidth_gbs


def _die(message: str) -> NoReturn:
    raise Unmeasurable(message)


def _log(text: str) -> Record:
    return {"kind": "log", "text": text}


def _failed(of: str, reason: str) -> Record:
    return {"kind": "failed", "of": of, "reason": reason}


def _shaken(noise: random.Random, deviation: float) -> float:
    return max(0.1, noise.gauss(1.0, deviation))


def _fails(number: int, share: float) -> bool:
    """Say whether request `number` fails when `share` of all do, evenly spread."""
    return int((number + 1) * share) > int(number * share)


def _produced(part: Vllm | LlamaCpp, requested: int) -> int:
    return min(requested, part.eos_after) if part.eos_after else requested


def _answer(  # noqa: PLR0913, PLR0917 - what an answer is made of
    machine: Machine, part: Vllm | LlamaCpp, requested: int, first_token_s: float, rate: float, number: int, cached: int
) -> Record:
    """Return the record of one request: its tokens are the same in every repetition of a sound engine."""
    produced = _produced(part, requested)
    text = f"{machine.seed}/{produced}/{part.degenerate}/{number if part.unsteady else ''}"
    return {
        "kind": "request", "requested": requested, "tokens": produced, "first_token_s": first_token_s,
        "seconds": first_token_s + max(produced - 1, 1) / rate, "cached": cached,
        "digest": hashlib.sha256(text.encode()).hexdigest(), "top_share": 0.97 if part.degenerate else 0.06,
    }  # fmt: skip


def _while_alive(machine: Machine, part: Vllm | LlamaCpp, gpus: list[int], records: Records) -> Records:
    """Pass records on until a GPU is lost, or as many requests were answered as the engine survives."""
    answered = 0
    for record in records:
        yield record
        answered += record["kind"] in {"request", "batch"}
        if any(machine.gpus[index].p.lost for index in gpus):
            _die("the engine ended with status 1: CUDA error: unspecified launch failure")
        if part.crashes_after and answered >= part.crashes_after:
            _die(f"the engine was ended by signal 11 (SIGSEGV) after {answered} answers")
