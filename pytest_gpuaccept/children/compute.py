"""Matrix products as loads: timed batches, and a burn in which every product is checked.

Owns the loops and what they report. What a product runs on is behind `Arithmetic`.
"""

from collections.abc import Generator, Iterator
from functools import partial
from statistics import fmean, median, pstdev
from typing import Any, NamedTuple, Protocol

from pytest_gpuaccept.children import detector

Record = dict[str, Any]
Script = Generator[Record, Record | None, None]
"""A load: yields records; one that says `awaits` is answered before it goes on."""

STEADY_S, STEADY_CV, LONGEST_WARM_UP_S = 2.0, 0.01, 30.0
"""Warm is a load whose rate has stayed within 1 % for 2 s, as it does when the clock has; at most half a minute."""
COST_PAIRS = 5


class Batch(NamedTuple):
    """Products of about 100 ms: each result with how many products it stands for, and the time of all in s."""

    results: list[tuple[Any, int]]
    seconds: float
    tflop: float


class Arithmetic(Protocol):
    """One GPU as a load sees it. Kinds of product: fp16, bf16, tf32, fp32, fp8, and `burn`, FP16 with a long sum."""

    uuid: str

    @property
    def xp(self) -> Any:
        """Return the array library: numpy or torch."""

    def describe(self) -> Record:
        """Return what the products run on: names, versions, and the switches that decide how sums are kept."""

    def inputs(self, seed: int, kind: str) -> tuple[Any, Any]:
        """Return two matrices of standard normals made from `seed`, the same on every GPU of a model."""

    def product(self, kind: str, a: Any, b: Any) -> Any:
        """Return a @ b as `kind` says, accumulated in FP32, in memory of its own."""

    def batch(self, kind: str, a: Any, b: Any, *, bare: bool = False) -> Batch:
        """Run products for about 100 ms and return them timed; of kind `burn` with every single result.

        What the memory of the results held before is destroyed, so that a product that was not run is found;
        a `bare` batch leaves it, as one that nobody checks.
        """


class Clock(Protocol):
    """Time as a load sees it."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""


class Proven(NamedTuple):
    """Inputs with their result, which was compared with float64 and with itself elsewhere on the chip."""

    a: Any
    b: Any
    golden: Any
    checksum: int


def prove(gpu: Arithmetic, kind: str, seed: int) -> Generator[Record, Record | None, Proven]:
    """Compute the first result of new inputs and yield what was found of it.

    The first call of all is dropped: a library may choose another algorithm for it.
    """
    a, b = gpu.inputs(seed, kind)
    gpu.product(kind, a, b)
    golden = gpu.product(kind, a, b)
    flaw = detector.golden_flaw(gpu.xp, kind, a, b, golden)
    elsewhere = 0.0 if kind == "fp8" else detector.moved(gpu.xp, partial(gpu.product, kind), a, b, golden)
    (checksum,) = detector.checksums(gpu.xp, [golden])
    found = {"flaw": flaw or detector.moved_flaw(elsewhere), "moved": elsewhere}
    yield {"kind": "golden", "seed": seed, "checksum": checksum, **found}
    return Proven(a, b, golden, checksum)


def gemm(gpu: Arithmetic, clock: Clock, *, kind: str, warm_up_s: float, seconds: float) -> Script:
    """Time products of one kind: the device, the golden check, then one record a batch, its results compared."""
    yield {"kind": "device", "uuid": gpu.uuid, **gpu.describe()}
    proven = yield from prove(gpu, kind, 0)
    yield from _warm_up(gpu, clock, kind, proven, warm_up_s)
    end, timed_to = clock.monotonic() + seconds, 0.0
    while timed_to < end:
        began = clock.monotonic()
        batch = gpu.batch(kind, proven.a, proven.b)
        timed_to = began + batch.seconds
        wrong = _wrong(gpu, batch, proven.checksum)
        yield {"kind": "batch", "t": began, "seconds": batch.seconds, "tflop": batch.tflop, "wrong": wrong}


def _warm_up(gpu: Arithmetic, clock: Clock, kind: str, proven: Proven, least_s: float) -> Script:
    began = clock.monotonic()
    rates: list[tuple[float, float]] = []
    while (now := clock.monotonic()) < began + LONGEST_WARM_UP_S:
        late = [rate for at, rate in rates if at >= now - STEADY_S]
        if now >= began + least_s and now >= began + STEADY_S and pstdev(late) <= STEADY_CV * fmean(late):
            return
        batch = gpu.batch(kind, proven.a, proven.b)
        rates.append((now, batch.tflop / batch.seconds))
        yield {"kind": "warm_up"}


def _wrong(gpu: Arithmetic, batch: Batch, expected: int) -> int:
    """Return how many results of a batch have another checksum."""
    return sum(found != expected for found in detector.checksums(gpu.xp, [result for result, _ in batch.results]))


def burn(  # noqa: PLR0913 - what varies, by name
    gpu: Arithmetic,
    clock: Clock,
    *,
    seconds: float,
    open_ended: bool = False,
    reseed_s: float = 60.0,
    compare_s: float = 1.0,
) -> Script:
    """Multiply for `seconds` from the told time on, check every product by checksum and one a second bit by bit.

    One that is open-ended asks after these seconds how many more it is to go on.
    """
    yield {"kind": "device", "uuid": gpu.uuid, **gpu.describe()}
    proven = yield from _rehearsed(gpu, 0)
    began = yield from start(clock)
    end, seed = began + seconds, 0
    while True:
        yield from _burn_one_seed(gpu, clock, proven, min(end, began + (seed + 1) * reseed_s), compare_s)
        if clock.monotonic() >= end and open_ended:
            answer = yield {"kind": "leg", "awaits": "how many more seconds"}
            end += float((answer or {}).get("seconds", 0.0))
        if clock.monotonic() >= end:
            break
        seed += 1
        proven = yield from _rehearsed(gpu, seed)
    yield _cost(gpu, clock, proven)
    yield {"kind": "end"}


def start(clock: Clock) -> Generator[Record, Record | None, float]:
    """Say that all is ready, wait for the time at which all cards begin, and return it, in s of `clock`."""
    answer = yield {"kind": "ready", "t": clock.monotonic(), "awaits": "the time to start"}
    at = float((answer or {})["at"])
    clock.sleep(max(0.0, at - clock.monotonic()))
    return at


def _rehearsed(gpu: Arithmetic, seed: int) -> Generator[Record, Record | None, Proven]:
    """Prove a golden result, and that its errors would be found."""
    proven = yield from prove(gpu, "burn", seed)
    yield {"kind": "rehearsal", "seed": seed, **detector.rehearse(gpu.xp, proven.golden)}
    return proven


def _burn_one_seed(gpu: Arithmetic, clock: Clock, proven: Proven, until: float, compare_s: float) -> Iterator[Record]:
    """Burn with one pair of inputs."""
    compared = clock.monotonic()
    while clock.monotonic() < until:
        began = clock.monotonic()
        batch = gpu.batch("burn", proven.a, proven.b)
        wrong = _wrong(gpu, batch, proven.checksum)
        record = {"kind": "batch", "t": began, "seconds": batch.seconds, "tflop": batch.tflop, "wrong": wrong}
        record |= {"checked": len(batch.results), "products": sum(count for _, count in batch.results)}
        if wrong or clock.monotonic() - compared >= compare_s:
            compared = clock.monotonic()
            record["elements"] = sum(detector.differing(gpu.xp, result, proven.golden) for result, _ in batch.results)
        yield record


def _cost(gpu: Arithmetic, clock: Clock, proven: Proven) -> Record:
    """Return the median time of batches with and without their checks, in s, taken in turn while all is hot."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(COST_PAIRS):
        for check in (False, True):
            began = clock.monotonic()
            batch = gpu.batch("burn", proven.a, proven.b, bare=not check)
            if check:
                _wrong(gpu, batch, proven.checksum)
            times[check].append((clock.monotonic() - began) / batch.tflop)
    return {"kind": "cost", "unchecked": median(times[False]), "checked": median(times[True])}
