"""One GPU behind torch: the products and copies that the loads time and check.

Owns switches, buffers, streams and events. Must not loop beyond one batch or one sample of copies, write
records, or read a sensor. torch is handed in by the caller, who pins the process to the GPU by its UUID and
sets CUBLAS_WORKSPACE_CONFIG before he imports it.
"""

import mmap
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from pytest_gpuaccept.children.compute import Batch
from pytest_gpuaccept.children.copies import Copy

Record = dict[str, Any]
Queue = Sequence[Callable[[], object]]
"""Work in the order in which it is handed to one stream."""

Sizes = Mapping[str, tuple[int, int, int]]
"""Kind of product -> m, n, k."""
SIZES: Sizes = {
    **dict.fromkeys(("fp16", "bf16", "fp8"), (8192, 8192, 8192)),
    **dict.fromkeys(("fp32", "tf32"), (4096, 4096, 4096)),
    "burn": (8192, 8192, 32768),
}
TYPES = {
    "fp16": "float16", "burn": "float16", "bf16": "bfloat16",
    "fp32": "float32", "tf32": "float32", "fp8": "float8_e4m3fn",
}  # fmt: skip
FP8_SINCE = (8, 9)
REDUCED = (
    "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction", "allow_fp16_accumulation",
)  # fmt: skip
"""Switches that let cuBLAS sum in less than FP32; the last came with torch 2.7."""
ARCHITECTURE = re.compile(r"(?P<form>sm|compute)_(?P<major>\d+)(?P<minor>\d)(?P<bound>[af]?)")

BATCH_S = 0.1
MOST, MOST_KEPT, GROWTH = 4096, 64, 16
"""Pieces of work in one window; results kept of one batch; growth from one window to the next."""
OUTPUTS = 3
L2_SHARE = 3
"""The inputs that are taken in turn are together larger than the L2 cache this many times."""
LARGEST_L2 = 128 << 20
"""Bytes; assumed where torch does not tell."""

COPY_BYTES, WORD = 512 << 20, 8
WARM_UP_COPIES = 4
SINGLE_COPIES = 3
"""Copies behind each timed window that are compared one by one."""
SPIN_CYCLES = 20_000_000
"""About 10 ms: the GPU waits while the host queues the copies, so that no gap between them is timed."""
ODD = 0x9E3779B97F4A7C15 - (1 << 64)
"""Times 1, 2, 3 ... modulo 2**64: words of which no two are alike, and none is zero."""
NEVER_SENT = 0
FRESH_AT_ONCE = 4
"""Untouched destinations in one window: each stays in the host's memory until its bytes are compared."""
BLOCKING = {"pageable", "untouched"}
"""Memory that the driver copies through buffers of its own while the host waits."""
ROUTES = {
    "device": (("card", "card"),),
    "h2d": (("pinned", "card"),),
    "d2h": (("card", "pinned"),),
    "h2d_pageable": (("pageable", "card"),),
    "d2h_pageable": (("card", "pageable"),),
    "d2h_untouched": (("card", "untouched"),),
    "both": (("pinned", "card"), ("card", "pinned")),
    "peer": (("card", "peer"),),
}
"""Kind of copy -> from where to where, for each of the copies that run at once."""


class Refusal(RuntimeError):  # noqa: N818 - it is an outcome, not a defect of the program
    """This torch, or what it reaches, cannot be measured with; one line that says what to do."""


class CpuTimer:
    """Windows on the host, for tests without a GPU."""

    def run(self, *queues: Queue, spin: bool = False) -> float:  # noqa: ARG002 - nothing to hide here
        """Run all work; return seconds."""
        began = time.perf_counter()
        for queue in queues:
            for work in queue:
                work()
        return time.perf_counter() - began


class CudaTimer:
    """Windows between two CUDA events; the host waits at the end alone, asleep.

    A host that spins is set aside where all CPUs are loaded, and its GPU rests until its turn comes.
    """

    def __init__(self, cuda: Any) -> None:
        """Take `torch.cuda`."""
        self._cuda, self._side = cuda, cuda.Stream()

    def run(self, *queues: Queue, spin: bool = False) -> float:
        """Run one queue on the current stream, and a second one beside it; return seconds until both end."""
        cuda, main = self._cuda, self._cuda.current_stream()
        began, ended = (cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
        if spin and (sleep := getattr(cuda, "_sleep", None)):
            sleep(SPIN_CYCLES)
        began.record()
        for stream, queue in zip((main, self._side), queues, strict=False):
            stream.wait_event(began)
            with cuda.stream(stream):
                for work in queue:
                    work()
        main.wait_stream(self._side)
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1000


class Windows:
    """Timed windows: how much work fits into one is found from the last one of its name."""

    def __init__(self, timer: CpuTimer | CudaTimer) -> None:
        """Take what times the work."""
        self._timer = timer
        self._last: dict[str, tuple[int, float]] = {}

    def count(self, name: str, seconds: float, *, first: int, most: int) -> int:
        """Return how often work of that name is to be queued for `seconds` s; `first` when it was never timed."""
        if name not in self._last:
            return first
        count, took = self._last[name]
        return max(1, min(most, GROWTH * count, round(count * seconds / took)))

    def run(self, name: str, count: int, *queues: Queue, spin: bool = False) -> float:
        """Time work that holds `count` pieces; return seconds; raises Refusal when it took none."""
        took = self._timer.run(*queues, spin=spin)
        if not took > 0:
            message = f"{count} times {name} took {took} s by the GPU's own clock: its events are broken, restart it"
            raise Refusal(message)
        self._last[name] = count, took
        return took

    def untimed(self, *queues: Queue, spin: bool = False) -> float:
        """Do work that nobody counts by; return seconds."""
        return self._timer.run(*queues, spin=spin)


class Switches:
    """What decides how cuBLAS keeps its sums: FP32 always, TF32 in products of that kind alone."""

    def __init__(self, torch: Any) -> None:
        """Switch all off that sums in less than FP32, and TF32."""
        self._matmul = torch.backends.cuda.matmul
        for name in self._known():
            setattr(self._matmul, name, False)
        self._set_tf32(on=False)

    def _known(self) -> list[str]:
        return [name for name in REDUCED if hasattr(self._matmul, name)]

    def describe(self) -> Record:
        """Return the switches as torch has them now; one that this torch does not have is left out."""
        return {name: getattr(self._matmul, name) for name in self._known()} | {"allow_tf32": self._has_tf32()}

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Allow TF32 while products of that kind are queued."""
        self._set_tf32(on=kind == "tf32")
        try:
            yield
        finally:
            self._set_tf32(on=False)

    def _set_tf32(self, *, on: bool) -> None:
        """Use one name only: since torch 2.9 the older one warns, and the two must not be mixed."""
        if hasattr(self._matmul, "fp32_precision"):
            self._matmul.fp32_precision = "tf32" if on else "ieee"
        else:
            self._matmul.allow_tf32 = on

    def _has_tf32(self) -> bool:
        if hasattr(self._matmul, "fp32_precision"):
            return bool(self._matmul.fp32_precision == "tf32")
        return bool(self._matmul.allow_tf32)


class Memory:
    """Buffers of one size, on the GPU, on its peer, and on the host."""

    def __init__(self, torch: Any, device: str, size: int) -> None:
        """Take the size in bytes, a multiple of 8."""
        self._torch, self._device, self.size = torch, device, size

    def at(self, place: str) -> Any:
        """Return a buffer of 64-bit words; a place that is not one of ROUTES is a device of torch."""
        words, kind = self.size // WORD, self._torch.int64
        if place == "untouched":
            pages = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            return self._torch.frombuffer(pages, dtype=kind)
        if place == "pinned":
            return self._torch.empty(words, dtype=kind, pin_memory=self._device != "cpu")
        device = {"card": self._device, "pageable": "cpu"}.get(place, place)
        return self._torch.empty(words, dtype=kind, device=device)

    def pattern(self, place: str) -> Any:
        """Return a buffer filled by the processor that it belongs to."""
        buffer = self.at(place)
        self._torch.arange(1, self.size // WORD + 1, out=buffer)
        return buffer.mul_(ODD)

    def wrong_bytes(self, arrived: Any, expected: Any) -> int:
        """Return how many bytes differ; counted word by word first, most often there is nothing to count."""
        if not int((arrived != expected).sum()):
            return 0
        single = self._torch.uint8
        return int((arrived.view(single) != expected.view(single)).sum())


class Ring(NamedTuple):
    """Inputs in copies, to be taken in turn so that none is found in the cache, and outputs."""

    a: Any
    b: Any
    inputs: list[tuple[Any, Any]]
    outputs: list[Any]


class Lane(NamedTuple):
    """One direction of a copy; `target` None is memory that nobody has touched, new at every copy."""

    source: Any
    target: Any
    expected: Any
    queued: bool
    """The host goes on while the copy runs."""


class Route(NamedTuple):
    """All that one kind of copy needs; `buffers` count as moved each time that all lanes are used once."""

    kind: str
    path: str
    lanes: list[Lane]
    buffers: int


class TorchGpu:
    """One GPU under a load; see children/compute.Arithmetic and children/copies.Mover.

    Keeps the buffers of the last pair of inputs and of the last kind of copy.
    """

    def __init__(
        self, torch: Any, uuid: str, device: str = "cuda:0", sizes: Sizes = SIZES, copy_bytes: int = COPY_BYTES
    ) -> None:  # fmt: skip
        """Take `device` ("cpu" in tests), the sizes of the products, and of one copy in bytes, a multiple of 8."""
        self.uuid = uuid
        self._torch, self._device, self._sizes = torch, device, sizes
        self._cuda = None if device == "cpu" else torch.cuda
        self._switches, self._memory = Switches(torch), Memory(torch, device, copy_bytes)
        self._windows = Windows(CudaTimer(self._cuda) if self._cuda else CpuTimer())
        self._one = torch.ones((), device=device, dtype=torch.float32)
        self._ring: Ring | None = None
        self._route: Route | None = None

    @property
    def xp(self) -> Any:
        """Return torch."""
        return self._torch

    def describe(self) -> Record:
        """Return torch, CUDA, the device, and the switches that decide how sums are kept."""
        torch, cuda = self._torch, self._cuda
        made: Record = {"library": "torch", "torch": str(torch.__version__), "device": self._device}
        if cuda:
            capability = ".".join(str(part) for part in cuda.get_device_capability(0))
            made |= {"cuda": torch.version.cuda, "device": cuda.get_device_name(0), "capability": capability}
        return {**made, "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "default"), **self._switches.describe()}

    def inputs(self, seed: int, kind: str) -> tuple[Any, Any]:
        """Return two matrices of standard normals made from `seed`; raises Refusal where there is no FP8."""
        m, n, k = self._sizes[kind]
        noise = self._torch.Generator(device=self._device)
        noise.manual_seed(seed)
        draw = partial(self._torch.randn, generator=noise, device=self._device)
        if kind != "fp8":
            dtype = getattr(self._torch, TYPES[kind])
            return draw(m, k, dtype=dtype), draw(k, n, dtype=dtype)
        narrow = self._fp8()
        return draw(m, k).to(narrow), draw(n, k).to(narrow).t()

    def product(self, kind: str, a: Any, b: Any) -> Any:
        """Return a @ b in memory of its own; FP8 products are BF16."""
        with self._switches.of(kind):
            return self._multiply(kind, a, b)

    def batch(self, kind: str, a: Any, b: Any, *, bare: bool = False) -> Batch:
        """Run products for about 100 ms; outputs hold NaN before, unless the batch is `bare`.

        So a product that was not run is found.

        Raises Refusal when they took no time.
        """
        kept = kind == "burn"
        count = self._windows.count(kind, BATCH_S, first=1, most=MOST_KEPT if kept else MOST)
        ring = self._ring_for(a, b)
        outputs = self._outputs(kind, ring, count if kept else min(count, OUTPUTS))
        if not bare:
            for output in outputs:
                output.fill_(float("nan"))
        shares = [len(range(place, count, len(outputs))) for place in range(len(outputs))]
        with self._switches.of(kind):
            seconds = self._windows.run(kind, count, self._products(kind, ring, outputs, count))
        tflop = 2 * a.shape[0] * a.shape[1] * b.shape[1] * count / 1e12
        return Batch(list(zip(outputs, shares, strict=True)), seconds, tflop)

    def copy(self, kind: str, seconds: float, begin: Callable[[], float]) -> Copy:
        """Copy for about `seconds` s; raises Refusal when the GPU of `peer:UUID` is not visible."""
        if self._route is None or self._route.kind != kind:
            self._route = None
            self._route = self._route_for(kind)
            self._copied(self._route, seconds, time.monotonic)
        return self._copied(self._route, seconds, begin)

    def _fp8(self) -> Any:
        torch, cuda = self._torch, self._cuda
        if not hasattr(torch, TYPES["fp8"]) or not hasattr(torch, "_scaled_mm"):
            message = f"torch {torch.__version__} has no FP8 products: install torch 2.5 or later"
            raise Refusal(message)
        if cuda and tuple(cuda.get_device_capability(0)) < FP8_SINCE:
            message = f"{cuda.get_device_name(0)} has no FP8 units: leave FP8 out of what is measured"
            raise Refusal(message)
        return getattr(torch, TYPES["fp8"])

    def _multiply(self, kind: str, a: Any, b: Any, out: Any = None) -> Any:
        """Return a @ b, written to `out` unless that is None."""
        if kind != "fp8":
            return self._torch.mm(a, b, out=out)
        scaled = self._torch._scaled_mm  # noqa: SLF001 - torch has no other FP8 product
        return scaled(a, b, self._one, self._one, out_dtype=self._torch.bfloat16, use_fast_accum=False, out=out)

    def _products(self, kind: str, ring: Ring, outputs: Sequence[Any], count: int) -> Queue:
        """Return the products of one batch, inputs and outputs taken in turn."""
        return [
            partial(self._multiply, kind, *ring.inputs[at % len(ring.inputs)], outputs[at % len(outputs)])
            for at in range(count)
        ]

    def _ring_for(self, a: Any, b: Any) -> Ring:
        """Return the ring of these inputs, with copies until they are larger than the L2 cache by far."""
        if self._ring is None or self._ring.a is not a or self._ring.b is not b:
            self._ring = None
            more = L2_SHARE * self._l2_bytes() // (a.nbytes + b.nbytes)
            self._ring = Ring(a, b, [(a, b), *((a.clone(), b.clone()) for _ in range(more))], [])
        return self._ring

    def _l2_bytes(self) -> int:
        return int(getattr(self._cuda.get_device_properties(0), "L2_cache_size", LARGEST_L2)) if self._cuda else 0

    def _outputs(self, kind: str, ring: Ring, number: int) -> list[Any]:
        """Return so many outputs of a ring."""
        shape, dtype = (ring.a.shape[0], ring.b.shape[1]), self._torch.bfloat16 if kind == "fp8" else ring.a.dtype
        while len(ring.outputs) < number:
            ring.outputs.append(self._torch.empty(shape, dtype=dtype, device=self._device))
        return ring.outputs[:number]

    def _route_for(self, kind: str) -> Route:
        """Allocate the buffers of one kind of copy."""
        name, _, other = kind.partition(":")
        path, peer = kind, ""
        if name == "peer":
            number = self._number_of(other)
            path, peer = "direct" if self._torch.cuda.can_device_access_peer(0, number) else "staged", f"cuda:{number}"
        lanes = [self._lane(begin, peer if end == "peer" else end) for begin, end in ROUTES[name]]
        return Route(kind, path, lanes, buffers=2 if kind == "device" else len(lanes))

    def _number_of(self, uuid: str) -> int:
        """Return the number under which this process sees another GPU."""
        for number in range(1, self._torch.cuda.device_count()):
            if same_gpu(uuid_of(self._torch, number), uuid):
                return number
        message = f"{uuid} is not visible beside {self.uuid}: set CUDA_VISIBLE_DEVICES to both, this one first"
        raise Refusal(message)

    def _lane(self, begin: str, end: str) -> Lane:
        fresh, on_host = end == "untouched", end in ("pinned", "pageable", "untouched")
        target = None if fresh else self._memory.at(end)
        expected = self._memory.pattern("pageable" if on_host else end)
        return Lane(self._memory.pattern(begin), target, expected, queued=not {begin, end} & BLOCKING)

    def _copied(self, route: Route, seconds: float, begin: Callable[[], float]) -> Copy:
        """Copy in one window, four copies where none of the kind was timed before; compare what the last one brought.

        Those before it were overwritten, so single copies follow, none of them timed, all of them compared.
        """
        fresh = any(lane.target is None for lane in route.lanes)
        rounds = self._windows.count(
            route.kind, seconds, first=WARM_UP_COPIES, most=FRESH_AT_ONCE if fresh else MOST
        )  # fmt: skip
        began, took, wrong, compared = self._window(route, rounds, begin)
        for _ in range(SINGLE_COPIES):
            _, _, more, beside = self._window(route, 1, time.monotonic, timed=False)
            wrong, compared = wrong + more, compared + beside
        return Copy(began, route.buffers * self._memory.size * rounds, took, wrong, route.path, compared)

    def _window(
        self, route: Route, rounds: int, begin: Callable[[], float], *, timed: bool = True
    ) -> tuple[float, float, int, int]:  # fmt: skip
        """Copy `rounds` times; return when that began, its seconds, and wrong bytes among so many copies compared."""
        arrivals = [self._targets(lane, rounds) for lane in route.lanes]
        queues = [_queue(lane, targets, rounds) for lane, targets in zip(route.lanes, arrivals, strict=True)]
        spin = all(lane.queued for lane in route.lanes)
        began = begin()
        run = partial(self._windows.run, route.kind, rounds) if timed else self._windows.untimed
        took = run(*queues, spin=spin)
        arrived = [
            (target, lane.expected) for lane, targets in zip(route.lanes, arrivals, strict=True) for target in targets
        ]
        return began, took, sum(self._memory.wrong_bytes(*pair) for pair in arrived), len(arrived)

    def _targets(self, lane: Lane, rounds: int) -> list[Any]:
        """Return where copies go: one buffer, overwritten, or untouched memory for each."""
        if lane.target is None:
            return [self._memory.at("untouched") for _ in range(rounds)]
        return [lane.target.fill_(NEVER_SENT)]


def _queue(lane: Lane, targets: Sequence[Any], rounds: int) -> Queue:
    return [
        partial(targets[at % len(targets)].copy_, lane.source, non_blocking=lane.queued) for at in range(rounds)
    ]  # fmt: skip


def opened(torch: Any, uuid: str) -> TorchGpu:
    """Return the GPU that this process is pinned to; raises Refusal when torch cannot run on it, or sees another."""
    check(torch)
    if not same_gpu(found := uuid_of(torch, 0), uuid):
        message = f"torch runs on {found} where {uuid} was to be measured: set CUDA_VISIBLE_DEVICES={uuid} before"
        raise Refusal(message)
    return TorchGpu(torch, uuid)


def check(torch: Any) -> None:
    """Start CUDA; raises Refusal when this torch cannot run on the first GPU that it sees."""
    _check_build(torch)
    _check_driver(torch)
    _check_code(torch)


def _check_build(torch: Any) -> None:
    if torch.version.cuda is None:
        release = str(torch.__version__).partition("+")[0]
        wheel = f"pip install --force-reinstall torch=={release}"
        message = f"torch {torch.__version__} is built without CUDA: install the CUDA wheel, on Linux with {wheel}"
        raise Refusal(message)


def _check_driver(torch: Any) -> None:
    """Start CUDA; its warnings are left to the checks that follow, which refuse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.init()
    except Exception as error:
        said = " ".join(str(error).split())
        build = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
        message = f"{build} reaches no GPU: {said}; check the driver's version, MIG mode and CUDA_VISIBLE_DEVICES"
        raise Refusal(message) from error


def _check_code(torch: Any) -> None:
    capability, built = tuple(torch.cuda.get_device_capability(0)), torch.cuda.get_arch_list()
    if not has_code(built, capability):
        card = f"{torch.cuda.get_device_name(0)} (sm_{capability[0]}{capability[1]})"
        message = (
            f"torch {torch.__version__} has no code for {card}, only for {' '.join(built) or 'nothing'}: "
            "install a torch that is built for it, a later one for a new card"
        )
        raise Refusal(message)


def has_code(built: Sequence[str], capability: tuple[int, ...]) -> bool:
    """Return whether code built for these architectures runs on a card.

    `sm_89` is a binary for its major number, from its minor on; `compute_90` is compiled anew for any later card;
    a suffix `a` binds code to that one architecture, `f` to its major number.
    """
    return any(_runs(match, capability) for arch in built if (match := ARCHITECTURE.fullmatch(arch)))


def _runs(match: re.Match[str], capability: tuple[int, ...]) -> bool:
    of = int(match["major"]), int(match["minor"])
    if match["bound"] == "a":
        return of == capability
    later = of <= capability
    return later if match["form"] == "compute" and not match["bound"] else later and of[0] == capability[0]


def uuid_of(torch: Any, index: int) -> str:
    """Return the UUID of a visible GPU as NVML writes it; raises Refusal when this torch does not tell."""
    found = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if found is None:
        message = f"torch {torch.__version__} does not say which GPU it runs on: install torch 2.5 or later"
        raise Refusal(message)
    return f"GPU-{str(found).removeprefix('GPU-')}"


def same_gpu(one: str, other: str) -> bool:
    """Return whether two UUIDs are the same, with or without the prefix."""
    return one.removeprefix("GPU-").lower() == other.removeprefix("GPU-").lower()
