"""llama.cpp as a load: prompts and decoding timed as llama-bench times them, then whole greedy answers.

Owns the loop and what it reports. What loads and computes is behind `Model`. Needs the standard library only.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

Record = dict[str, Any]
Script = Generator[Record, Any, None]
SEED = 20260410
"""Of the random prompts: the same in every run."""


class Clock(Protocol):
    """Time as the load sees it."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""


class Model(Protocol):
    """One model in one process, as llama.cpp has it."""

    version: str
    supports_gpu_offload: bool

    def load(self) -> None:
        """Load the model, and make room for a conversation."""

    def logged(self) -> list[str]:
        """Return the lines that were logged since this was last asked."""

    def vocabulary(self) -> int:
        """Return how many tokens the model knows."""

    def forget(self) -> None:
        """Forget everything that was computed, so that nothing of it is used again."""

    def kept(self) -> int:
        """Return how many tokens are computed already."""

    def evaluate(self, tokens: Sequence[int]) -> None:
        """Compute these tokens behind those before, and wait until it is done."""

    def answer(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """Yield `count` greedy tokens behind a prompt; what ends a text does not end it."""


def llamacpp(  # noqa: PLR0913 - what is timed, how long and how often, all by name
    model: Model, clock: Clock, *, prompt_tokens: int, tokens: int, repetitions: int, warmups: int, on_cpu: bool
) -> Script:
    """Load the model and time it; a build for CPUs alone is only timed where that is what was ordered."""
    yield {"kind": "engine", "version": model.version}
    yield {"kind": "build", "supports_gpu_offload": model.supports_gpu_offload}
    if not (model.supports_gpu_offload or on_cpu):
        return
    began = clock.monotonic()
    model.load()
    seconds = clock.monotonic() - began
    yield from ({"kind": "log", "text": line} for line in model.logged())
    yield {"kind": "load", "seconds": seconds}
    words = random.Random(SEED)  # noqa: S311 - any tokens will do
    for number in range(-warmups, repetitions):
        for kind, count in (("prompt", prompt_tokens), ("decode", tokens)):
            ids = [words.randrange(model.vocabulary()) for _ in range(count)]
            took = _timed(model, clock, ids, whole=kind == "prompt")
            if number >= 0:
                yield {"kind": kind, "requested": count, "tokens": len(ids), "seconds": took}
    prompt = [words.randrange(model.vocabulary()) for _ in range(prompt_tokens)]
    for _ in range(repetitions):
        yield _request(model, clock, prompt, tokens)
    yield from ({"kind": "log", "text": line} for line in model.logged())


def _timed(model: Model, clock: Clock, ids: Sequence[int], *, whole: bool) -> float:
    """Return the s that these tokens take from an empty start: as one prompt, or one behind the other."""
    model.forget()
    began = clock.monotonic()
    for part in [ids] if whole else [[one] for one in ids]:
        model.evaluate(part)
    return clock.monotonic() - began


def _request(model: Model, clock: Clock, prompt: Sequence[int], count: int) -> Record:
    """Answer a prompt, and return when its first and its last token came, and what it was."""
    model.forget()
    cached = model.kept()
    began = first = clock.monotonic()
    said = list[int]()
    try:
        for token in model.answer(prompt, count):
            said.append(token)
            first = clock.monotonic() if len(said) == 1 else first
    except RuntimeError as error:
        return {"kind": "failed", "of": "request", "reason": f"{type(error).__name__}: {error}"[:200]}
    ended = clock.monotonic()
    most = max(Counter(said).values(), default=0)
    return {
        "kind": "request", "requested": count, "tokens": len(said), "seconds": ended - began,
        "first_token_s": first - began, "cached": cached,
        "digest": hashlib.sha256(repr(said).encode()).hexdigest(), "top_share": most / max(1, len(said)),
    }  # fmt: skip
