"""What an engine's load script writes, and the gates that make it evidence.

Owns the records (the classes that end in `Line`; one JSON line each, told apart by `kind`) and what
both engines share of judging whether a speed may be stated. Nothing is averaged over a failure: a line
whose gate does not let it through is absent, with the reason. Runs no engine.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome, printable
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.profile import ROUNDING, Profile, Scalar
from pytest_gpuaccept.world import Record

REPETITIONS = 5
"""Fewest repetitions whose spread says anything."""
DEGENERATE = 0.5
"""Share of one token in an answer from which on the answer is no text."""
SHARED: dict[str, Scalar] = {"repetitions": REPETITIONS, "warmups": 2, "timeout_s": 3600}

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
            refuse(f"{self.site.device} wrote {len(found)} records of its {kind.__name__.removesuffix('Line').lower()}")
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
        self,
        metric: Metric,
        values: Sequence[float],
        conditions: Mapping[str, Scalar],
        note: str = "",
        streams: float | None = None,
    ) -> Measurement:
        """Return the median of the repetitions, with their standard deviation.

        With `streams`, so many of them at once decode at most so many times the memory-bandwidth bound.
        """
        middle, spread, under = statistics.median(values), statistics.stdev(values), self._under(conditions)
        bound = bandwidth_bound(self.site.profile, self.site.device) if streams else None
        ceiling = streams * bound * ROUNDING if streams and bound else None
        return self.site.measured(
            metric, middle, spread=spread, samples=len(values), conditions=under, note=note, ceiling=ceiling
        )

    def _under(self, conditions: Mapping[str, Scalar]) -> dict[str, Scalar]:
        return {"model": self.site.params["model"], "raw": self.raw, **conditions}


def bandwidth_bound(profile: Profile, engine: str) -> float | None:
    """Return the tok/s that the GPUs' memory bandwidth allows one stream, None where the profile does not say.

    GPUs reading at once x memory bandwidth / bytes read per token; decoding one stream reads every
    weight once, so no kernel can pass it.
    """
    card, params = profile.card, profile.params.get(engine, {})
    on_cpu = params.get("gpu") is False
    if card is None or on_cpu or not {"bytes_per_token_gb", "gpus_at_once"} <= params.keys():
        return None
    bandwidth = float(params["gpus_at_once"]) * card.facts.memory_bandwidth_gbs
    return bandwidth / float(params["bytes_per_token_gb"])


def parse(engine: str, records: Sequence[Record]) -> tuple[Line, ...]:
    """Return the records of a load; raises Unmeasurable when one of them is not of a known shape."""
    lines = []
    for record in records:
        try:
            lines.append(_LINE.validate_python(record))
        except ValidationError as error:
            first = error.errors()[0]
            where = " ".join(str(part) for part in first["loc"])
            refuse(f"{engine} wrote a record that cannot be read ({where}: {first['msg']}): {repr(record)[:120]}")
    return tuple(lines)


def refuse(reason: str) -> NoReturn:
    """Raise Unmeasurable with `reason`."""
    raise Unmeasurable(reason)


# Gates -----------------------------------------------------------------------------------------


def check_answers(run: Run) -> None:
    """Refuse every speed of an engine whose answers are no text, or not the same twice."""
    answers = run.all(RequestLine)
    if not answers:
        refuse("no answer to the fixed prompt was reported: nothing shows that the output is text")
    top = max(answer.top_share for answer in answers)
    if top >= DEGENERATE:
        refuse(f"degenerate output: one token is {top:.0%} of an answer, so its speed says nothing; check the model")
    different = len({answer.digest for answer in answers})
    if different > 1:
        refuse(
            f"{different} different greedy answers to one prompt in {len(answers)} repetitions:"
            " the engine does not compute the same twice"
        )


def check_whole(run: Run, of: str, done: Sequence[TimedLine], requested: int) -> None:
    """Refuse repetitions that failed, are too few, or did another amount of work than was asked."""
    if failed := [line for line in run.all(FailedLine) if line.of == of]:
        tried = len(failed) + len(done)
        refuse(f"{len(failed)} of {tried} repetitions failed ({of}): {printable(failed[0].reason[:200])}")
    needed = max(REPETITIONS, run.number("repetitions"))
    if len(done) < needed:
        refuse(f"{len(done)} of {needed} repetitions were reported ({of})")
    for line in done:
        if not line.tokens == line.requested == requested:
            refuse(f"asked for {requested} tokens, got {line.tokens} ({of}): no comparable speed; set ignore_eos")


def check_uncached(done: Sequence[RequestLine | BatchLine]) -> None:
    """Raise Unmeasurable when a prompt was answered from the cache instead of being computed."""
    if cached := max(line.cached for line in done):
        refuse(
            f"{cached} prompt tokens came from the prefix cache instead of being computed:"
            " set enable_prefix_caching=False (vLLM) or reset before each request (llama.cpp)"
        )


def single_requests(run: Run) -> list[RequestLine]:
    """Return the timed requests of one stream, every gate passed; raises Unmeasurable with the first that is not."""
    check_answers(run)
    done = run.all(RequestLine)
    check_whole(run, "request", done, run.number("tokens"))
    check_uncached(done)
    if any(line.first_token_s >= line.seconds for line in done):
        refuse("a first token came no earlier than the last: the times are not those of one request")
    return done


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


def asked(run: Run) -> dict[str, Scalar]:
    """Return what a request was asked for, and the median time to its first token in s."""
    first = statistics.median(line.first_token_s for line in run.all(RequestLine))
    return {"tokens": run.number("tokens"), "prompt_tokens": run.number("prompt_tokens"), "first_token_s": first}


def ran(site: Site, script: str, params: Mapping[str, Scalar]) -> list[Record]:
    """Return what a load wrote to its end; raises Unmeasurable when it dies or does not end."""
    with site.world.start(script, params) as started:
        return started.finish(timeout=float(site.params["timeout_s"]))
