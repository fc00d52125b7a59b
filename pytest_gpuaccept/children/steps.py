"""Load steps: rest and full load in turn, at times that are the same for all cards.

Owns the schedule. A power supply that holds a steady load may still trip when all cards begin at once.
"""

from collections.abc import Iterator

from pytest_gpuaccept.children import detector
from pytest_gpuaccept.children.compute import Arithmetic, Clock, Proven, Record, Script, prove, start

KIND = "burn"
"""The kind whose batches hold every result: the products right after a step are what this load is about."""


def steps(gpu: Arithmetic, clock: Clock, *, count: int, on_s: float, off_s: float) -> Script:
    """Rest for `off_s` and multiply for `on_s`, `count` times from the told time on; every result is compared.

    The rest comes first: what proved the golden result has just loaded the card. A step has two records: `on`
    before its first product, `batch` with all that it computed. The times do not depend on how long anything
    took, so that all cards step together until the last.
    """
    yield {"kind": "device", "uuid": gpu.uuid, **gpu.describe()}
    proven = yield from prove(gpu, KIND, 0)
    yield {"kind": "rehearsal", "seed": 0, **detector.rehearse(gpu.xp, proven.golden)}
    began = yield from start(clock)
    for step in range(count):
        due = began + off_s + step * (on_s + off_s)
        clock.sleep(max(0.0, due - clock.monotonic()))
        yield {"kind": "on", "step": step, "t": clock.monotonic()}
        yield from _step(gpu, clock, proven, step, due + on_s)
    yield {"kind": "end"}


def _step(gpu: Arithmetic, clock: Clock, proven: Proven, step: int, until: float) -> Iterator[Record]:
    """Compute until a time, at least once."""
    began, seconds, tflop, batches, products, wrong, checked = clock.monotonic(), 0.0, 0.0, 0, 0, 0, 0
    while not batches or clock.monotonic() < until:
        batch = gpu.batch(KIND, proven.a, proven.b)
        sums = detector.checksums(gpu.xp, [result for result, _ in batch.results])
        wrong += sum(found != proven.checksum for found in sums)
        seconds, tflop = seconds + batch.seconds, tflop + batch.tflop
        products += sum(count for _, count in batch.results)
        batches, checked = batches + 1, checked + len(sums)
    yield {
        "kind": "batch", "step": step, "t": began, "seconds": seconds, "tflop": tflop, "batches": batches,
        "wrong": wrong, "checked": checked, "products": products,
    }  # fmt: skip
