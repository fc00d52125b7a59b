"""llama.cpp: whether the weights really lie on the GPUs, and how fast it reads and decodes.

Owns the proof of offload, read from llama.cpp's own log. Must not judge.
"""

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_gpuaccept.measurement import Measurement, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.engines.load import (
    SHARED,
    BuildLine,
    Run,
    StageLine,
    Take,
    asked,
    check_answers,
    check_whole,
    load,
    ran,
    reduce,
    refuse,
    single_requests,
    version,
)
from pytest_gpuaccept.profile import Scalar

ON_GPUS = 0.97
"""Least share of the weights on GPUs; the token embedding, 1 to 2 %, always stays on the CPU."""
EVEN = 0.25
"""Largest deviation of one GPU's share of the weights from the mean."""

LLAMACPP_PARAMS: dict[str, Scalar] = {
    "model": "Llama-3.3-70B-Instruct-Q4_K_M.gguf", "bytes_per_token_gb": 41.9, "gpus_at_once": 1,
    "prompt_tokens": 1302, "tokens": 256, "n_ctx": 2048, "n_batch": 2048, "n_ubatch": 512, "flash_attn": True,
    "gpu": True, **SHARED,
}  # fmt: skip
"""`gpu` false is an order for the CPUs alone."""


BUFFER = re.compile(r"(\w+) +model buffer size = +(\d{1,9}(?:\.\d{1,9})?) MiB", re.ASCII)
SPLITS = re.compile(r"(?:graph splits|splits) = (\d{1,9})", re.ASCII)
MIB_PER_GIB = 1024


@dataclass(frozen=True, slots=True)
class Offload:
    """Where the weights lie, in MiB by device, and into how many pieces the graph is cut."""

    gpus: Mapping[str, float]
    cpu: float
    splits: int

    @property
    def share(self) -> float:
        """Share of the weights that lies on GPUs."""
        on = sum(self.gpus.values())
        return on / (on + self.cpu)


def placement(logged: Sequence[str]) -> Offload:
    """Read where the weights lie from llama.cpp's log; raises Unmeasurable when it does not say.

    `offloaded 81/81 layers` is not looked at: it repeats the request.
    """
    text = "\n".join(logged)
    splits = [int(count) for count in SPLITS.findall(text)]
    gpus: dict[str, float] = {}
    cpu = 0.0
    for name, size in BUFFER.findall(text):
        if name.startswith("CUDA") and name[4:].isdecimal():
            gpus[name] = gpus.get(name, 0.0) + float(size)
        else:
            cpu += float(size)
    if not sum(gpus.values()) + cpu or not splits:
        refuse("llama.cpp's log names no model buffers or no graph splits: capture it from the first backend call on")
    return Offload(gpus, cpu, max(splits))


def _check_offload(run: Run) -> dict[str, Scalar]:
    """Refuse every speed that is not the GPUs'; return what proves that it is theirs."""
    if not run.site.params["gpu"]:
        return _on_cpu(run)
    if not run.one(BuildLine).supports_gpu_offload:
        refuse(
            "llama-cpp-python is a CPU-only build and ignores n_gpu_layers: install it again with"
            ' CMAKE_ARGS="-DGGML_CUDA=on" and --no-binary llama-cpp-python --force-reinstall --no-cache-dir'
        )
    found = placement(run.logged())
    if found.share < ON_GPUS:
        total = (sum(found.gpus.values()) + found.cpu) / MIB_PER_GIB
        refuse(
            f"{found.cpu / MIB_PER_GIB:.1f} of {total:.1f} GiB of weights lie on the CPU ({found.share:.1%} on GPUs,"
            f" at least {ON_GPUS:.0%} needed): check n_gpu_layers, CUDA_VISIBLE_DEVICES and free VRAM"
        )
    _check_even(found, run.site.profile.gpus)
    if found.splits > 2 * (len(found.gpus) + 1):
        refuse(
            f"the graph is cut into {found.splits} pieces, about {len(found.gpus) + 1} are needed:"
            " operations fall back to the CPU; check the build's CUDA architectures"
        )
    return {"weights_on_gpus": round(found.share, 4), "gpus": len(found.gpus), "splits": found.splits}


def _on_cpu(run: Run) -> dict[str, Scalar]:
    """Return what shows that the CPUs alone computed, as ordered; raises Unmeasurable where GPUs hold weights."""
    found = placement(run.logged())
    if found.gpus:
        refuse(f"{', '.join(sorted(found.gpus))} hold weights, and the CPUs were ordered to compute alone")
    return {"weights_on_gpus": 0.0, "gpus": 0, "splits": found.splits}


def _check_even(found: Offload, ordered: int) -> None:
    held = ", ".join(f"{name} {size / MIB_PER_GIB:.1f}" for name, size in sorted(found.gpus.items()))
    if len(found.gpus) < ordered:
        refuse(f"{len(found.gpus)} of {ordered} GPUs hold weights ({held} GiB): check CUDA_VISIBLE_DEVICES")
    mean = statistics.mean(found.gpus.values())
    if any(abs(size - mean) > EVEN * mean for size in found.gpus.values()):
        refuse(f"the weights lie unevenly ({held} GiB): check tensor_split and free VRAM")


def _stage(run: Run, metric: Metric, kind: str, tokens: str) -> Measurement:
    proof = _check_offload(run)
    check_answers(run)
    done = [line for line in run.all(StageLine) if line.kind == kind]
    check_whole(run, kind, done, run.number(tokens))
    values = [line.tokens / line.seconds for line in done]
    streams = 1.0 if kind == "decode" else None
    return run.median(metric, values, {"tokens": run.number(tokens), **proof}, streams=streams)


def prompt(run: Run, metric: Metric) -> Measurement:
    """Return the speed of processing a random prompt, in tok/s."""
    return _stage(run, metric, "prompt", "prompt_tokens")


def decode(run: Run, metric: Metric) -> Measurement:
    """Return the speed of decoding one stream without sampling, in tok/s."""
    return _stage(run, metric, "decode", "tokens")


def single(run: Run, metric: Metric) -> Measurement:
    """Return the tokens of one answer over the time of the whole request, prompt included, in tok/s."""
    proof = _check_offload(run)
    values = [line.tokens / line.seconds for line in single_requests(run)]
    return run.median(metric, values, {**asked(run), **proof})


def llamacpp(site: Site) -> Iterator[Outcome]:
    """Load llama.cpp over every GPU, layer by layer, time it, yield what it is and how fast it is."""
    yield from reduce(site, ran(site, "llamacpp", site.params), LLAMACPP_TAKEN)


LLAMACPP_TAKEN: dict[Metric, Take] = {
    Metric("llamacpp.version", "llama-cpp-python version", "text", "llamacpp"): version,
    Metric("llamacpp.load", "Load time", "s", "llamacpp"): load,
    Metric("llamacpp.prompt", "Prompt processing", "tok/s", "llamacpp", max_cv=0.1): prompt,
    Metric("llamacpp.single", "Single request, whole", "tok/s", "llamacpp", max_cv=0.1): single,
    Metric("llamacpp.decode", "Single stream, decode", "tok/s", "llamacpp", max_cv=0.1): decode,
}
