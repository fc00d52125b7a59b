"""Matrix products as loads: timed batches, and a burn in which every product is checked.

Owns the loops and what they report. What a product runs on is behind `Arithmetic`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from pytest_gpuaccept.children import detector

Record = dict[str, Any]


class Batch(NamedTuple):
    """Products of about 100 ms: each result with how many products it stands for, and the time of all in s."""

    results: list[tuple[Any, int]]
    seconds: float
    tflop: float


class Arithmetic(Protocol):
    """One GPU as a load sees it."""

    uuid: str

    @property
    def xp(self) -> Any:
        """Return the array library: numpy or torch."""

    def inputs(self, seed: int, kind: str) -> tuple[Any, Any]:
        """Return two matrices of standard normals made from `seed`, the same on every GPU; `kind` fp16 or fp32."""

    def product(self, a: Any, b: Any) -> Any:
        """Return a @ b in the type of its inputs, accumulated in FP32."""

    def batch(self, kind: str, a: Any, b: Any) -> Batch:
        """Run products of `kind` (`fp16`, `fp32`) for about 100 ms and return them timed."""


class Clock(Protocol):
    """Time as a load sees it."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""


def gemm(gpu: Arithmetic, clock: Clock, *, kind: str, warm_up_s: float, seconds: float) -> Iterator[Record]:
    """Time products of one kind: the device, the golden check, then one record a batch, its results compared."""
    yield {"kind": "device", "uuid": gpu.uuid}
    a, b = gpu.inputs(0, kind)
    golden = gpu.product(a, b)
    expected = detector.checksum(gpu.xp, golden)
    yield {"kind": "golden", "flaw": _flaw(gpu, a, b, golden)}
    warm = clock.monotonic() + warm_up_s
    while clock.monotonic() < warm:
        gpu.batch(kind, a, b)
        yield {"kind": "warm_up"}
    end = clock.monotonic() + seconds
    while clock.monotonic() < end:
        began = clock.monotonic()
        batch = gpu.batch(kind, a, b)
        wrong = _wrong(gpu, batch, expected)
        yield {"kind": "batch", "t": began, "seconds": batch.seconds, "tflop": batch.tflop, "wrong": wrong}


def _wrong(gpu: Arithmetic, batch: Batch, expected: int) -> int:
    """Return how many results of a batch have another checksum."""
    return sum(1 for result, _ in batch.results if detector.checksum(gpu.xp, result) != expected)


def _flaw(gpu: Arithmetic, a: Any, b: Any, golden: Any) -> str:
    """Return why a first result is not to be compared with; '' when float64 and a second place confirm it."""
    return detector.golden_flaw(gpu.xp, a, b, golden) or detector.moved_flaw(gpu.xp, gpu.product, a, b, golden)


def burn(
    gpu: Arithmetic, clock: Clock, *, seconds: float, reseed_s: float = 60.0, compare_s: float = 1.0
) -> Iterator[Record]:
    """Multiply for `seconds`, check every product by checksum and one a second bit by bit."""
    yield {"kind": "device", "uuid": gpu.uuid}
    end, seed = clock.monotonic() + seconds, 0
    while clock.monotonic() < end:
        until = min(end, clock.monotonic() + reseed_s)
        yield from _burn_one_seed(gpu, clock, seed, until, compare_s)
        seed += 1
    yield {"kind": "end"}


def _burn_one_seed(gpu: Arithmetic, clock: Clock, seed: int, until: float, compare_s: float) -> Iterator[Record]:
    """Burn with one pair of inputs: golden, its proof, the rehearsal, then batches."""
    a, b = gpu.inputs(seed, "fp16")
    golden = gpu.product(a, b)
    expected = detector.checksum(gpu.xp, golden)
    yield {"kind": "golden", "seed": seed, "checksum": expected, "flaw": _flaw(gpu, a, b, golden)}
    yield {"kind": "rehearsal", "seed": seed, **detector.rehearse(gpu.xp, golden)}
    compared = clock.monotonic()
    while clock.monotonic() < until:
        began = clock.monotonic()
        batch = gpu.batch("fp16", a, b)
        wrong = _wrong(gpu, batch, expected)
        record = {"kind": "batch", "t": began, "seconds": batch.seconds, "tflop": batch.tflop, "wrong": wrong}
        record |= {"checked": len(batch.results), "products": sum(count for _, count in batch.results)}
        if wrong or clock.monotonic() - compared >= compare_s:
            compared = clock.monotonic()
            record["elements"] = sum(detector.differing(gpu.xp, result, golden) for result, _ in batch.results)
        yield record
