"""vLLM: which kernel its workers really run, and how fast it decodes.

Owns the table of kernel families and the remedies. Log lines alone prove no kernel. Must not judge.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from pytest_gpuaccept.measurement import Measurement, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.engines.load import (
    SHARED,
    BatchLine,
    GraphsLine,
    KernelLine,
    Run,
    Take,
    asked,
    check_answers,
    check_uncached,
    check_whole,
    load,
    ran,
    reduce,
    refuse,
    single_requests,
    version,
)
from pytest_gpuaccept.profile import Scalar

VLLM_PARAMS: dict[str, Scalar] = {
    "model": "casperhansen/llama-3.3-70b-instruct-awq", "bytes_per_token_gb": 37.7, "gpus_at_once": 4,
    "max_model_len": 2048, "gpu_memory_utilization": 0.8, "prompt_tokens": 32, "tokens": 512,
    "requests": 32, "batch_tokens": 256, **SHARED,
}  # fmt: skip
"""`gpus_at_once`, the GPUs that read weights at the same time, is vLLM's tensor parallel size."""


FAMILIES = (
    (r"(Auto)?AWQLinearMethod/none", "awq"),
    (r"\w*(Marlin|WNA16)\w*/MarlinLinearKernel", "marlin"),
    (r"\w+/MacheteLinearKernel", "machete"),
    (r"CPUAWQLinearMethod/none|\w+/CPUWNA16LinearKernel", "cpu_wna16"),
    (r"\w+/ZentorchWNA16LinearKernel", "zentorch"),
    (r"\w+/ConchLinearKernel", "conch"),
    (r"\w+/ExllamaLinearKernel", "exllama"),
    (r"\w+/TritonW4A16LinearKernel", "triton_w4a16"),
    (r"\w+/HummingLinearKernel", "humming"),
)
"""Pattern of `method class/kernel class` -> family. A class name alone proves nothing: on a CPU the
method is called Marlin too."""

ELIGIBLE = (
    "Marlin was not eligible: use a checkpoint of group size 32, 64 or 128 that no rank boundary cuts,"
    " and unset VLLM_BATCH_INVARIANT"
)
DIVERTED = "another kernel was chosen before Marlin: unset VLLM_DISABLED_KERNELS and linear_backend"
CPU_BUILD = "this vLLM is a CPU build: install the CUDA wheel"
REMEDIES = {
    "awq": ELIGIBLE, "cpu_wna16": CPU_BUILD, "zentorch": CPU_BUILD, "conch": DIVERTED, "exllama": DIVERTED,
    "triton_w4a16": DIVERTED, "humming": DIVERTED,
    "unquantized": "the model has no quantised layer: check the model's path",
}  # fmt: skip
FORCED = "specified quantization=awq explicitly"
"""In vLLM's log up to 0.23 when the fast kernel could run and the argument forbids it."""
NAMES_A_KERNEL = re.compile(r"Using \w+Kernel for|quantization=awq explicitly|unoptimized AWQ")


def family(method: str, kernel_class: str | None) -> str:
    """Return the family of a layer's kernel, or `unknown:<method>/<kernel>`; never a guess."""
    classes = f"{method}/{kernel_class or 'none'}"
    return next((name for pattern, name in FAMILIES if re.fullmatch(pattern, classes)), f"unknown:{classes}")


def kernel(run: Run, metric: Metric) -> Measurement:
    """Return the families of the quantised layers over all ranks: `marlin`, `awq+marlin`.

    The note names layers and ranks of each, and the remedy. Raises Unmeasurable when only the log
    tells the kernel, when a rank is silent, or when the ranks do not hold the same layers.
    """
    told = [line for line in run.all(KernelLine) if line.tier == "worker"]
    ranks = run.number("gpus_at_once")
    _check_ranks(run, told, ranks)
    quantised = [line for line in told if not line.method.startswith("Unquantized")]
    families = sorted({family(line.method, line.kernel) for line in quantised}) or ["unquantized"]
    note = "; ".join(["told by each worker", *_counts(quantised, ranks), *_remedies(families, run.logged())])
    return run.measured(metric, "+".join(families), note)


def _check_ranks(run: Run, told: Sequence[KernelLine], ranks: int) -> None:
    if not told:
        said = "; ".join(line for line in run.logged() if NAMES_A_KERNEL.search(line)) or "nothing"
        refuse(
            f"no worker told which kernel its layers use; the log says {said[:300]!r},"
            " which is what one rank selected and no proof: inspect the model in every worker"
        )
    layers: Counter[int] = Counter()
    for line in told:
        layers[line.rank] += line.count
    if set(layers) != set(range(ranks)):
        refuse(f"the kernels of ranks {sorted(layers)} were told, and there are {ranks} ranks")
    if len(set(layers.values())) > 1:
        refuse(f"the ranks do not hold the same number of layers: {dict(sorted(layers.items()))}")


def _counts(quantised: Sequence[KernelLine], ranks: int) -> Iterator[str]:
    """Yield how many layers on how many ranks use each pair of method and kernel."""
    total = sum(line.count for line in quantised)
    classes = sorted({(line.method, line.kernel or "") for line in quantised})
    for method, kernel_class in classes:
        same = [line for line in quantised if (line.method, line.kernel or "") == (method, kernel_class)]
        count, on = sum(line.count for line in same), len({line.rank for line in same})
        name = f"{method}, {kernel_class}" if kernel_class else method
        yield f"{family(method, kernel_class)} ({name}): {count} of {total} quantised layers, on {on} of {ranks} ranks"


def _remedies(families: Sequence[str], logged: Sequence[str]) -> Iterator[str]:
    """Yield what to do about the families that are not the fast one."""
    forced = any(FORCED in line for line in logged)
    for name in families:
        if name == "awq" and forced:
            yield 'quantization="awq" was passed, which forces the slow kernel: remove it or pass "awq_marlin"'
        elif name.startswith("unknown:"):
            yield f"this kernel is in no table: if it is the one ordered, set the line's equals to {name!r}"
        elif name in REMEDIES:
            yield REMEDIES[name]


def _graphs(run: Run) -> str:
    """Return what a slow decode owes to missing CUDA graphs; '' when they were captured."""
    for line in run.all(GraphsLine):
        if line.eager:
            return "no CUDA graphs were captured: remove enforce_eager=True"
        if not line.captured:
            return "no CUDA graphs were captured: lower gpu_memory_utilization if memory ran out while capturing"
    return ""


def single_decode(run: Run, metric: Metric) -> Measurement:
    """Return the decode speed of one stream after its first token, in tok/s."""
    done = single_requests(run)
    if run.number("tokens") < 2:  # noqa: PLR2004 - the first token is the prompt's
        refuse("an answer of one token has no decode speed: raise tokens")
    values = [(line.tokens - 1) / (line.seconds - line.first_token_s) for line in done]
    return run.median(metric, values, asked(run), _graphs(run), streams=1)


def single_e2e(run: Run, metric: Metric) -> Measurement:
    """Return the time of one whole request, in s."""
    return run.median(metric, [line.seconds for line in single_requests(run)], asked(run))


def batch_output(run: Run, metric: Metric) -> Measurement:
    """Return the output of all requests at once over their wall time, in tok/s."""
    check_answers(run)
    done, requests, tokens = run.all(BatchLine), run.number("requests"), run.number("batch_tokens")
    if any(line.requests != requests for line in done):
        refuse(f"a batch held another number of requests than {requests}")
    if failures := sum(line.failures for line in done):
        refuse(f"{failures} of {requests * len(done)} requests failed in {len(done)} batches")
    check_whole(run, "batch", done, requests * tokens)
    check_uncached(done)
    values = [line.tokens / line.seconds for line in done]
    return run.median(metric, values, {"requests": requests, "tokens": tokens}, _graphs(run), streams=requests)


def vllm(site: Site) -> Iterator[Outcome]:
    """Load vLLM with one rank per GPU, time it, yield what it is and how fast it is."""
    params = {**site.params, "tensor_parallel_size": int(site.params["gpus_at_once"])}
    yield from reduce(site, ran(site, "vllm", params), VLLM_TAKEN)


VLLM_TAKEN: dict[Metric, Take] = {
    Metric("vllm.version", "vLLM version", "text", "vllm"): version,
    Metric("vllm.kernel", "Kernel of the quantised layers", "text", "vllm"): kernel,
    Metric("vllm.load", "Load time", "s", "vllm"): load,
    Metric("vllm.single.decode", "Single stream, decode", "tok/s", "vllm", max_cv=0.1): single_decode,
    Metric("vllm.single.e2e", "Single stream, whole request", "s", "vllm", max_cv=0.1): single_e2e,
    Metric("vllm.batch.output", "32 requests at once, output", "tok/s", "vllm", max_cv=0.1): batch_output,
}
