"""Single matrix products as a load: a question gives shape, type and seed, the answer how many elements are wrong.

Owns the questions, the comparison with float64 and what is reported. What makes the numbers and multiplies
them is behind `Multiplier`. Which questions are worth asking is the probe's business.
"""

from typing import Any, NamedTuple, Protocol

from pytest_gpuaccept.children.compute import Clock, Record, Script
from pytest_gpuaccept.children.detector import ACCUMULATION, ROUNDING

Array = Any
LARGE = 1e9
"""What an error over its bound counts at most, NaN and Inf included: a record holds numbers."""
BEYOND = 2.0
"""Error over its bound of the smallest wrong answer that is rehearsed."""
NEXT = "the next question"


class Question(NamedTuple):
    """One product of an m x k and a k x n matrix of standard normals made from `seed`.

    `dtype` is fp16, bf16, fp32 or tf32. A turned operand lies in memory as its transpose; sliced ones lie
    inside a larger array, so that their rows are apart and begin anywhere.
    """

    m: int
    k: int
    n: int
    dtype: str
    seed: int
    turned_a: bool = False
    turned_b: bool = False
    sliced: bool = False


class Multiplier(Protocol):
    """One GPU as this load sees it."""

    uuid: str

    @property
    def xp(self) -> Any:
        """Return the array library: numpy or torch."""

    def describe(self) -> Record:
        """Return what the products run on."""

    def operands(self, question: Question) -> tuple[Array, Array]:
        """Return both matrices in float64 on the host, their numbers such as the type can hold."""

    def multiply(self, question: Question, a: Array, b: Array) -> Array:
        """Return a @ b as the GPU computes it in the type and layout of the question; float64 on the host."""


def products(gpu: Multiplier, clock: Clock) -> Script:
    """Say that all is ready, then answer every question that is told, until one says `end`.

    A question may say `spoil`, `value` or `nan`: its answer is about a result whose last element was made
    wrong, as little as counts, or NaN.
    """
    yield {"kind": "device", "uuid": gpu.uuid, **gpu.describe()}
    told = yield {"kind": "ready", "number": 0, "awaits": NEXT}
    answered = 0
    while told and not told.get("end"):
        began = clock.monotonic()
        question = Question(**{name: told[name] for name in Question._fields})
        found = _answer(gpu, question, told.get("spoil", ""))
        answered += 1
        told = yield {"kind": "answer", "number": told["number"], "t": began, **found, "awaits": NEXT}
    yield {"kind": "end", "answered": answered}


def _answer(gpu: Multiplier, question: Question, spoil: str) -> Record:
    a, b = gpu.operands(question)
    got = gpu.multiply(question, a, b)
    want = a @ b
    bound = _bound(question, a, b, want)
    return compare(gpu.xp, spoilt(gpu.xp, got, want, bound, spoil) if spoil else got, want, bound)


def _bound(question: Question, a: Array, b: Array, want: Array) -> Array:
    """Return how far off each element may be: its own rounding, and that of a sum of k products in FP32.

    At small k a single large product counts for more than k of them usually do, hence their magnitudes.
    """
    sums = abs(a) @ abs(b) + question.k
    return abs(want) * ROUNDING[question.dtype] + sums * ACCUMULATION[question.dtype]


def spoilt(xp: Any, got: Array, want: Array, bound: Array, spoil: str) -> Array:
    """Return a copy of a result whose last element is wrong: off by twice its bound (`value`), or NaN (`nan`)."""
    wrong = xp.asarray(got, copy=True)
    wrong[-1, -1] = float("nan") if spoil == "nan" else float(want[-1, -1] + BEYOND * bound[-1, -1])
    return wrong


def compare(xp: Any, got: Array, want: Array, bound: Array) -> Record:
    """Return how many elements were compared and are wrong, the largest error over its bound, and where that is."""
    if tuple(got.shape) != tuple(want.shape):
        return {"elements": 0, "wrong": 0, "shape": list(got.shape)}
    share = abs(got - want) / bound
    share = xp.where(share < LARGE, share, LARGE)
    place = int(xp.argmax(share))
    return {
        "elements": int(got.shape[0] * got.shape[1]),
        "wrong": int((share > 1.0).sum()),
        "odd": int((~xp.isfinite(got)).sum()),
        "worst": float(share.max()),
        "element": list(divmod(place, int(want.shape[1]))),
    }
