"""vLLM and llama.cpp: what their load scripts write, and what may be concluded from it.

Owns the records of an engine's load script (the classes that end in `Line`; one JSON line each, told
apart by `kind`), the gates that make them evidence, and the metrics. Nothing is averaged over a
failure: a line whose gate does not let it through is absent, with the reason. Runs no engine.
"""

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome, printable
from pytest_gpuaccept.metric import Inputs, Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Record

REPETITIONS = 5
"""Fewest repetitions whose spread says anything."""
DEGENERATE = 0.5
"""Share of one token in an answer above which the answer is no text."""
ON_GPUS = 0.97
"""Least share of the weights on GPUs; the token embedding, 1 to 2 %, always stays on the CPU."""
EVEN = 0.25
"""Largest deviation of one GPU's share of the weights from the mean."""

SHARED: dict[str, Scalar] = {"repetitions": REPETITIONS, "warmups": 2, "timeout_s": 3600}
VLLM_PARAMS: dict[str, Scalar] = {
    "model": "casperhansen/llama-3.3-70b-instruct-awq", "bytes_per_token_gb": 37.7, "gpus_at_once": 4,
    "max_model_len": 2048, "gpu_memory_utilization": 0.8, "prompt_tokens": 32, "tokens": 512,
    "requests": 32, "batch_tokens": 256, **SHARED,
}  # fmt: skip
"""`gpus_at_once`, the GPUs that read weights at the same time, is vLLM's tensor parallel size."""
LLAMACPP_PARAMS: dict[str, Scalar] = {
    "model": "Llama-3.3-70B-Instruct-Q4_K_M.gguf", "bytes_per_token_gb": 41.9, "gpus_at_once": 1,
    "prompt_tokens": 1302, "tokens": 256, "n_ctx": 2048, "n_batch": 2048, "n_ubatch": 512, "flash_attn": True, **SHARED,
}  # fmt: skip

# Records ---------------------------------------------------------------------------------------

Count = Annotated[int, Field(ge=0, le=10**9)]
Some = Annotated[int, Field(ge=1, le=10**9)]
Seconds = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=200)]


class JsonLine(BaseModel):
    """Base of the records: strict values, no unknown key."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class EngineLine(JsonLine):
    """The engine, as its package calls itself."""

    kind: Literal["engine"]
    version: Text


class LoadLine(JsonLine):
    """The model is loaded and ready to answer: wall time of the constructor, in s."""

    kind: Literal["load"]
    seconds: Seconds


class GraphsLine(JsonLine):
    """Whether vLLM was told to run eagerly, and how many CUDA graphs it captured."""

    kind: Literal["graphs"]
    eager: bool
    captured: Count


class LogLine(JsonLine):
    """One line that the engine logged."""

    kind: Literal["log"]
    text: str


class KernelLine(JsonLine):
    """A group of equal layers on one rank: classes of the layer, its method and its kernel.

    `tier` is what it was read from: the worker's own model, which proves, or only its log.
    """

    kind: Literal["kernel"]
    tier: Literal["worker", "log"]
    rank: Count
    layer: Text
    method: Text
    kernel: Text | None
    count: Some


class BuildLine(JsonLine):
    """What `llama_supports_gpu_offload` answers; where it is false, nothing needs to be timed."""

    kind: Literal["build"]
    supports_gpu_offload: bool


class TimedLine(JsonLine):
    """Something timed: tokens asked for, tokens processed or produced, wall time in s."""

    requested: Some
    tokens: Count
    seconds: Seconds


class StageLine(TimedLine):
    """One stage of llama.cpp alone: processing a random prompt, or decoding one stream."""

    kind: Literal["prompt", "decode"]


class RequestLine(TimedLine):
    """A greedy answer to the fixed prompt: s to the first token, digest of the token ids.

    `cached` counts prompt tokens that were not computed, `top_share` is the most frequent token's.
    """

    kind: Literal["request"]
    first_token_s: Seconds
    cached: Count
    digest: Text
    top_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class BatchLine(TimedLine):
    """Requests sent at once, each with a prompt of its own; token counts are sums over all."""

    kind: Literal["batch"]
    requests: Some
    failures: Count
    cached: Count


class FailedLine(JsonLine):
    """A repetition that the engine answered with an error."""

    kind: Literal["failed"]
    of: Literal["request", "prompt", "decode"]
    reason: str


Line = (
    EngineLine | LoadLine | GraphsLine | LogLine | KernelLine | BuildLine | StageLine | RequestLine | BatchLine
    | FailedLine
)  # fmt: skip
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])
L = TypeVar("L", bound=JsonLine)


@dataclass(frozen=True, slots=True)
class Run:
    """What one load of an engine left: its records, and the digest under which they are kept."""

    site: Site
    lines: tuple[Line, ...]
    raw: str

    def all(self, kind: type[L]) -> list[L]:
        """Return the records of a kind, in order."""
        return [line for line in self.lines if isinstance(line, kind)]

    def one(self, kind: type[L]) -> L:
        """Return the only record of a kind; raises Unmeasurable when there are none or several."""
        found = self.all(kind)
        if len(found) != 1:
            _refuse(
                f"{self.site.device} wrote {len(found)} records of its {kind.__name__.removesuffix('Line').lower()}"
            )
        return found[0]

    def number(self, name: str) -> int:
        """Return a whole-numbered parameter."""
        return int(self.site.params[name])

    def logged(self) -> list[str]:
        """Return what the engine logged."""
        return [line.text for line in self.all(LogLine)]

    def measured(self, metric: Metric, value: float | str, note: str = "") -> Measurement:
        """Return a measurement of one sample, with the model and the raw records that it rests on."""
        return self.site.measured(metric, value, conditions=self._under({}), note=note)

    def median(
        self, metric: Metric, values: Sequence[float], conditions: Mapping[str, Scalar], note: str = ""
    ) -> Measurement:
        """Return the median of the repetitions, with their standard deviation."""
        middle, spread, under = statistics.median(values), statistics.stdev(values), self._under(conditions)
        return self.site.measured(metric, middle, spread=spread, samples=len(values), conditions=under, note=note)

    def _under(self, conditions: Mapping[str, Scalar]) -> dict[str, Scalar]:
        return {"model": self.site.params["model"], "raw": self.raw, **conditions}


def parse(engine: str, records: Sequence[Record]) -> tuple[Line, ...]:
    """Return the records of a load; raises Unmeasurable when one of them is not of a known shape."""
    lines = []
    for record in records:
        try:
            lines.append(_LINE.validate_python(record))
        except ValidationError as error:
            first = error.errors()[0]
            where = " ".join(str(part) for part in first["loc"])
            _refuse(f"{engine} wrote a record that cannot be read ({where}: {first['msg']}): {repr(record)[:120]}")
    return tuple(lines)


def _refuse(reason: str) -> NoReturn:
    raise Unmeasurable(reason)


# Gates -----------------------------------------------------------------------------------------


def _check_answers(run: Run) -> None:
    """Refuse every speed of an engine whose answers are no text, or not the same twice."""
    answers = run.all(RequestLine)
    if not answers:
        _refuse("no answer to the fixed prompt was reported: nothing shows that the output is text")
    top = max(answer.top_share for answer in answers)
    if top > DEGENERATE:
        _refuse(f"degenerate output: one token is {top:.0%} of an answer, so its speed says nothing; check the model")
    different = len({answer.digest for answer in answers})
    if different > 1:
        _refuse(
            f"{different} different greedy answers to one prompt in {len(answers)} repetitions:"
            " the engine does not compute the same twice"
        )


def _check_whole(run: Run, of: str, done: Sequence[TimedLine], requested: int) -> None:
    """Refuse repetitions that failed, are too few, or did another amount of work than was asked."""
    if failed := [line for line in run.all(FailedLine) if line.of == of]:
        tried = len(failed) + len(done)
        _refuse(f"{len(failed)} of {tried} repetitions failed ({of}): {printable(failed[0].reason[:200])}")
    needed = max(REPETITIONS, run.number("repetitions"))
    if len(done) < needed:
        _refuse(f"{len(done)} of {needed} repetitions were reported ({of})")
    for line in done:
        if not line.tokens == line.requested == requested:
            _refuse(f"asked for {requested} tokens, got {line.tokens} ({of}): no comparable speed; set ignore_eos")


def _check_uncached(done: Sequence[RequestLine | BatchLine]) -> None:
    if cached := max(line.cached for line in done):
        _refuse(
            f"{cached} prompt tokens came from the prefix cache instead of being computed:"
            " set enable_prefix_caching=False (vLLM) or reset before each request (llama.cpp)"
        )


def _single(run: Run) -> list[RequestLine]:
    """Return the answers to the fixed prompt, when they are evidence of a speed."""
    _check_answers(run)
    done = run.all(RequestLine)
    _check_whole(run, "request", done, run.number("tokens"))
    _check_uncached(done)
    if any(line.first_token_s >= line.seconds for line in done):
        _refuse("a first token came no earlier than the last: the times are not those of one request")
    return done


# Both engines ----------------------------------------------------------------------------------

Take = Callable[[Run, Metric], Measurement]


def version(run: Run, metric: Metric) -> Measurement:
    """Return the engine's version."""
    return run.measured(metric, run.one(EngineLine).version)


def load(run: Run, metric: Metric) -> Measurement:
    """Return the time until the engine could answer, in s."""
    return run.measured(metric, run.one(LoadLine).seconds)


def reduce(site: Site, records: Sequence[Record], take: Mapping[Metric, Take]) -> Iterator[Outcome]:
    """Yield an outcome for each metric; raises Unmeasurable when a record cannot be read."""
    raw = site.attach(f"{site.device} records", "\n".join(json.dumps(record) for record in records))
    run = Run(site, parse(site.device, records), raw)
    for metric, taken in take.items():
        try:
            yield taken(run, metric)
        except Unmeasurable as error:
            yield NotMeasured(metric.id, site.device, str(error))


def _records(site: Site, script: str, params: Mapping[str, Scalar]) -> list[Record]:
    """Return what a load wrote to its end; raises Unmeasurable when it dies or does not end."""
    with site.world.start(script, params) as started:
        return started.finish(timeout=float(site.params["timeout_s"]))


# vLLM ------------------------------------------------------------------------------------------

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
        _refuse(
            f"no worker told which kernel its layers use; the log says {said[:300]!r},"
            " which is what one rank selected and no proof: inspect the model in every worker"
        )
    layers: Counter[int] = Counter()
    for line in told:
        layers[line.rank] += line.count
    if set(layers) != set(range(ranks)):
        _refuse(f"the kernels of ranks {sorted(layers)} were told, and there are {ranks} ranks")
    if len(set(layers.values())) > 1:
        _refuse(f"the ranks do not hold the same number of layers: {dict(sorted(layers.items()))}")


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
    done = _single(run)
    if run.number("tokens") < 2:  # noqa: PLR2004 - the first token is the prompt's
        _refuse("an answer of one token has no decode speed: raise tokens")
    values = [(line.tokens - 1) / (line.seconds - line.first_token_s) for line in done]
    return run.median(metric, values, _asked(run), _graphs(run))


def single_e2e(run: Run, metric: Metric) -> Measurement:
    """Return the time of one whole request, in s."""
    return run.median(metric, [line.seconds for line in _single(run)], _asked(run))


def _asked(run: Run) -> dict[str, Scalar]:
    first = statistics.median(line.first_token_s for line in run.all(RequestLine))
    return {"tokens": run.number("tokens"), "prompt_tokens": run.number("prompt_tokens"), "first_token_s": first}


def batch_output(run: Run, metric: Metric) -> Measurement:
    """Return the output of all requests at once over their wall time, in tok/s."""
    _check_answers(run)
    done, requests, tokens = run.all(BatchLine), run.number("requests"), run.number("batch_tokens")
    if any(line.requests != requests for line in done):
        _refuse(f"a batch held another number of requests than {requests}")
    if failures := sum(line.failures for line in done):
        _refuse(f"{failures} of {requests * len(done)} requests failed in {len(done)} batches")
    _check_whole(run, "batch", done, requests * tokens)
    _check_uncached(done)
    values = [line.tokens / line.seconds for line in done]
    return run.median(metric, values, {"requests": requests, "tokens": tokens}, _graphs(run))


def vllm(site: Site) -> Iterator[Outcome]:
    """Load vLLM with one rank per GPU, time it, yield what it is and how fast it is."""
    params = {**site.params, "tensor_parallel_size": int(site.params["gpus_at_once"])}
    yield from reduce(site, _records(site, "vllm", params), VLLM_TAKEN)


# llama.cpp -------------------------------------------------------------------------------------

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
        _refuse("llama.cpp's log names no model buffers or no graph splits: capture it from the first backend call on")
    return Offload(gpus, cpu, max(splits))


def _check_offload(run: Run) -> dict[str, Scalar]:
    """Refuse every speed that is not the GPUs'; return what proves that it is theirs."""
    if not run.one(BuildLine).supports_gpu_offload:
        _refuse(
            "llama-cpp-python is a CPU-only build and ignores n_gpu_layers: install it again with"
            ' CMAKE_ARGS="-DGGML_CUDA=on" and --no-binary llama-cpp-python --force-reinstall --no-cache-dir'
        )
    found = placement(run.logged())
    if found.share < ON_GPUS:
        total = (sum(found.gpus.values()) + found.cpu) / MIB_PER_GIB
        _refuse(
            f"{found.cpu / MIB_PER_GIB:.1f} of {total:.1f} GiB of weights lie on the CPU ({found.share:.1%} on GPUs,"
            f" at least {ON_GPUS:.0%} needed): check n_gpu_layers, CUDA_VISIBLE_DEVICES and free VRAM"
        )
    _check_even(found, run.site.profile.gpus)
    if found.splits > 2 * (len(found.gpus) + 1):
        _refuse(
            f"the graph is cut into {found.splits} pieces, about {len(found.gpus) + 1} are needed:"
            " operations fall back to the CPU; check the build's CUDA architectures"
        )
    return {"weights_on_gpus": round(found.share, 4), "gpus": len(found.gpus), "splits": found.splits}


def _check_even(found: Offload, ordered: int) -> None:
    held = ", ".join(f"{name} {size / MIB_PER_GIB:.1f}" for name, size in sorted(found.gpus.items()))
    if len(found.gpus) < ordered:
        _refuse(f"{len(found.gpus)} of {ordered} GPUs hold weights ({held} GiB): check CUDA_VISIBLE_DEVICES")
    mean = statistics.mean(found.gpus.values())
    if any(abs(size - mean) > EVEN * mean for size in found.gpus.values()):
        _refuse(f"the weights lie unevenly ({held} GiB): check tensor_split and free VRAM")


def _stage(run: Run, metric: Metric, kind: str, tokens: str) -> Measurement:
    proof = _check_offload(run)
    _check_answers(run)
    done = [line for line in run.all(StageLine) if line.kind == kind]
    _check_whole(run, kind, done, run.number(tokens))
    values = [line.tokens / line.seconds for line in done]
    return run.median(metric, values, {"tokens": run.number(tokens), **proof})


def prompt(run: Run, metric: Metric) -> Measurement:
    """Return the speed of processing a random prompt, in tok/s."""
    return _stage(run, metric, "prompt", "prompt_tokens")


def decode(run: Run, metric: Metric) -> Measurement:
    """Return the speed of decoding one stream without sampling, in tok/s."""
    return _stage(run, metric, "decode", "tokens")


def single(run: Run, metric: Metric) -> Measurement:
    """Return the tokens of one answer over the time of the whole request, prompt included, in tok/s."""
    proof = _check_offload(run)
    values = [line.tokens / line.seconds for line in _single(run)]
    return run.median(metric, values, {**_asked(run), **proof})


def llamacpp(site: Site) -> Iterator[Outcome]:
    """Load llama.cpp over every GPU, layer by layer, time it, yield what it is and how fast it is."""
    yield from reduce(site, _records(site, "llamacpp", site.params), LLAMACPP_TAKEN)


# Metrics ---------------------------------------------------------------------------------------


def roofline(inputs: Inputs) -> Measurement:
    """Return decode speed as a share of what memory bandwidth allows.

    bound = GPUs reading at once x memory bandwidth / bytes read per token; decoding one stream
    reads every weight once, so no kernel can pass it.
    """
    engine = inputs.device
    card, params = inputs.profile.card, inputs.profile.params.get(engine, {})
    if card is None or not {"bytes_per_token_gb", "gpus_at_once"} <= params.keys():
        message = f"the profile gives no bytes_per_token_gb and gpus_at_once under params.{engine}"
        raise Unmeasurable(message)
    bandwidth = float(params["gpus_at_once"]) * card.facts.memory_bandwidth_gbs
    bound = bandwidth / float(params["bytes_per_token_gb"])
    speed = inputs.number("vllm.single.decode" if engine == "vllm" else "llamacpp.decode")
    note = f"{speed:g} of at most {bound:.1f} tok/s"
    return Measurement(f"{engine}.roofline", engine, speed / bound, "ratio", "calculated", note=note)


def cross(inputs: Inputs) -> Measurement:
    """Return the single-stream speed of vLLM over that of llama.cpp.

    vLLM with tensor parallelism reads with all GPUs at once, llama.cpp's layer split with one at
    a time: below 1 the parallelism is not working, whatever the kernels are called.
    """
    vllm, llama = inputs.number("vllm.single.decode", "vllm"), inputs.number("llamacpp.decode", "llamacpp")
    note = f"vLLM {vllm:g} tok/s, llama.cpp {llama:g} tok/s"
    return Measurement("engines.cross", inputs.device, vllm / llama, "ratio", "calculated", note=note)


VLLM_TAKEN: dict[Metric, Take] = {
    Metric("vllm.version", "vLLM version", "text", "vllm"): version,
    Metric("vllm.kernel", "Kernel of the quantised layers", "text", "vllm"): kernel,
    Metric("vllm.load", "Load time", "s", "vllm"): load,
    Metric("vllm.single.decode", "Single stream, decode", "tok/s", "vllm", max_cv=0.1): single_decode,
    Metric("vllm.single.e2e", "Single stream, whole request", "s", "vllm", max_cv=0.1): single_e2e,
    Metric("vllm.batch.output", "32 requests at once, output", "tok/s", "vllm", max_cv=0.1): batch_output,
}
VLLM = (
    *VLLM_TAKEN,
    Metric("vllm.batch.latency", "Latency stated for the batch", "ms", "vllm"),
    Metric("vllm.short.latency", "Latency stated for a short answer", "ms", "vllm"),
    Metric(
        "vllm.roofline", "Decode against the memory-bandwidth bound", "ratio", "vllm", rate="share", derive=roofline
    ),
)
"""The two stated latencies are quotients that somebody published; no load measures them."""
LLAMACPP_TAKEN: dict[Metric, Take] = {
    Metric("llamacpp.version", "llama-cpp-python version", "text", "llamacpp"): version,
    Metric("llamacpp.load", "Load time", "s", "llamacpp"): load,
    Metric("llamacpp.prompt", "Prompt processing", "tok/s", "llamacpp", max_cv=0.1): prompt,
    Metric("llamacpp.single", "Single request, whole", "tok/s", "llamacpp", max_cv=0.1): single,
    Metric("llamacpp.decode", "Single stream, decode", "tok/s", "llamacpp", max_cv=0.1): decode,
}
LLAMACPP = (
    *LLAMACPP_TAKEN,
    Metric(
        "llamacpp.roofline", "Decode against the memory-bandwidth bound", "ratio", "llamacpp",
        rate="share", derive=roofline,
    ),
    Metric("engines.cross", "vLLM against llama.cpp, single stream", "ratio", "host", derive=cross),
)  # fmt: skip

PROBES = (
    Probe("vllm", "engines", "vllm", VLLM, vllm, params=VLLM_PARAMS, load=True, driver=True, loads=("vllm",)),
    Probe(
        "llamacpp", "engines", "llamacpp", LLAMACPP, llamacpp,
        params=LLAMACPP_PARAMS, load=True, driver=True, loads=("llamacpp",),
    ),
)  # fmt: skip
