"""Our GPU figures against plain ones, side by side in one run: products, burn, copies, and what telemetry costs.

    python benchmarks/gpu.py [ROUNDS] [--cpu]

Needs torch; triton's do_bench joins where it is installed. Everything is interleaved; ratios are medians of the
rounds, ours over the best of the others. `--cpu` runs the same on small sizes on the CPU, to try the script.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from pytest_gpuaccept.children import detector, torch_gpu
from pytest_gpuaccept.children.torch_gpu import TorchGpu, uuid_of

LOOP = 50
POLL_S = 20.0
SMALL = dict.fromkeys(torch_gpu.SIZES, (512, 512, 512))
Rates = dict[str, Callable[[], float]]
"""Name of a way to measure -> the rate that it finds, in TFLOPS or GB/s."""


def say(line: object) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def timed(torch: Any, work: Callable[[], object], cuda: bool) -> float:  # noqa: ANN401, FBT001
    """Return the seconds of one piece of work from a plain loop, by CUDA events where there is a GPU."""
    work()
    if not cuda:
        began = time.perf_counter()
        for _ in range(LOOP):
            work()
        return (time.perf_counter() - began) / LOOP
    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(LOOP):
        work()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000 / LOOP


def products(torch: Any, gpu: TorchGpu, sizes: torch_gpu.Sizes, cuda: bool) -> Rates:  # noqa: ANN401, FBT001
    """Return the ways to time an FP16 product."""
    m, n, k = sizes["fp16"]
    tflop = 2 * m * n * k / 1e12
    a, b = gpu.inputs(0, "fp16")

    def ours() -> float:
        return statistics.median(batch.tflop / batch.seconds for batch in (gpu.batch("fp16", a, b) for _ in range(10)))

    ways: Rates = {"ours": ours, "plain loop": lambda: tflop / timed(torch, partial(torch.mm, a, b), cuda)}
    if cuda:
        try:
            bench = import_module("triton.testing").do_bench
            ways["do_bench"] = lambda: tflop / (bench(partial(torch.mm, a, b), return_mode="median") / 1000)
        except ImportError:
            say("triton is not installed: no do_bench")
    return ways


def burns(torch: Any, gpu: TorchGpu, seconds: float) -> Rates:  # noqa: ANN401
    """Return the burn with every product checked, and without: rate by the wall clock."""
    a, b = gpu.inputs(0, "burn")
    (expected,) = detector.checksums(torch, [gpu.product("burn", a, b)])

    def run(*, check: bool) -> float:
        done, began = 0.0, time.perf_counter()
        while time.perf_counter() < began + seconds:
            batch = gpu.batch("burn", a, b, bare=not check)
            if check and set(detector.checksums(torch, [result for result, _ in batch.results])) != {expected}:
                sys.exit("a product was wrong: this card is broken, do not benchmark it")
            done += batch.tflop
        return done / (time.perf_counter() - began)

    return {"ours": partial(run, check=True), "unchecked": partial(run, check=False)}


def copies(torch: Any, gpu: TorchGpu, kind: str, size: int, device: str) -> Rates:  # noqa: ANN401
    """Return the ways to time one kind of copy."""
    pinned = device != "cpu"
    here = partial(torch.ones, size // 8, dtype=torch.int64, device=device)
    there = partial(torch.ones, size // 8, dtype=torch.int64, pin_memory=pinned)
    source, target = {"device": (here, here), "h2d": (there, here), "d2h": (here, there)}[kind]
    begin, end = source(), target()
    moved = size * (2 if kind == "device" else 1)

    def ours() -> float:
        copy = gpu.copy(kind, 0.5, time.monotonic)
        return copy.moved / copy.seconds / 1e9

    return {
        "ours": ours,
        "plain loop": lambda: moved / timed(torch, partial(end.copy_, begin, non_blocking=True), pinned) / 1e9,
    }


def compare(title: str, ways: Rates, rounds: int) -> None:
    """Measure all ways in turn and print medians, and the ratio of ours to the best other."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    best = [max(values) for values in zip(*(found[name] for name in ways if name != "ours"), strict=True)]
    ratios = [own / other for own, other in zip(found["ours"], best, strict=True)]
    shown = ", ".join(f"{name} {statistics.median(values):.4g}" for name, values in found.items())
    spread = f"{min(ratios):.4f} to {max(ratios):.4f}"
    say(f"{title}: {shown}; ratio {statistics.median(ratios):.4f} ({spread}, {rounds} rounds)")


POLL = """
import sys, time, pynvml
from pytest_gpuaccept.children.telemetry import telemetry
class Clock:
    monotonic, sleep = staticmethod(time.monotonic), staticmethod(time.sleep)
pynvml.nvmlInit()
cards = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
end = time.monotonic() + float(sys.argv[1])
for sample in telemetry(pynvml, Clock(), uuids=[pynvml.nvmlDeviceGetUUID(card) for card in cards], period_s=0.2):
    if sample["t"] > end:
        break
"""


def telemetry_cost() -> None:
    """Print the share of one core that polling all cards at 5 Hz takes, start-up included."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-c", POLL, str(POLL_S)], check=True)  # noqa: S603 - our own script
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    say(f"telemetry at 5 Hz: {100 * used / seconds:.2f} % of one core over {seconds:.0f} s")


def main() -> None:
    """Run all and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rounds", type=int, nargs="?", default=7)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    torch = import_module("torch")
    device, cuda = ("cpu", False) if options.cpu else ("cuda:0", True)
    sizes, size = (SMALL, 1 << 24) if options.cpu else (torch_gpu.SIZES, torch_gpu.COPY_BYTES)
    gpu = TorchGpu(torch, uuid_of(torch, 0) if cuda else "CPU", device, sizes, size)
    say(gpu.describe())
    compare("FP16 product, TFLOPS", products(torch, gpu, sizes, cuda), options.rounds)
    compare("burn, TFLOPS", burns(torch, gpu, 5.0 if cuda else 0.5), options.rounds)
    for kind in ("device", "h2d", "d2h"):
        compare(f"copy {kind}, GB/s", copies(torch, gpu, kind, size, device), options.rounds)
    if cuda:
        telemetry_cost()


if __name__ == "__main__":
    main()
