"""Tests of the GPU behind torch: CPU tensors of small sizes; what needs CUDA runs over a stand-in for torch.cuda."""

import contextlib
import itertools
from functools import partial
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpuaccept.children import compute, copies, detector, torch_gpu
from pytest_gpuaccept.children.torch_gpu import Refusal, TorchGpu, has_code, opened

torch = pytest.importorskip("torch")

UUID, OTHER = "GPU-1111abcd-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-000000000000"
KINDS = ["fp16", "bf16", "tf32", "fp32", "fp8", "burn"]
SMALL = {**dict.fromkeys(KINDS, (32, 48, 64)), "burn": (32, 48, 128)}
COPY_BYTES = 4096
COPY_KINDS = ["device", "h2d", "d2h", "h2d_pageable", "d2h_pageable", "d2h_untouched", "both"]


class Event:
    """A CUDA event; the window that it ends took what the stand-in says."""

    def __init__(self, cuda):
        self.cuda = cuda

    def record(self):
        """Note the event."""
        self.cuda.log.append("event")
        self.cuda.order.append("event")

    def synchronize(self):
        """Note the wait."""
        self.cuda.log.append("wait")

    def elapsed_time(self, _):
        """Return ms."""
        return self.cuda.window_ms


class Stream:
    """A CUDA stream that notes what it waits for."""

    def __init__(self, cuda):
        self.cuda = cuda

    def wait_event(self, _):
        """Wait for an event."""
        self.cuda.order.append((self, "event"))

    def wait_stream(self, stream):
        """Wait for another stream."""
        self.cuda.order.append((self, stream))


class Cuda:
    """The parts of torch.cuda that are used, for a machine with one or two RTX 4090."""

    def __init__(self):
        self.log, self.order, self.window_ms, self.failure = [], [], 100.0, None
        self.capability, self.archs = (8, 9), ["sm_80", "sm_90", "compute_90"]
        self.uuids, self.direct, self.l2 = [UUID, OTHER], {}, 16384
        self.main, self.side = Stream(self), Stream(self)
        self.current = self.main

    def init(self):
        """Start, or fail as the driver does."""
        if self.failure:
            raise self.failure

    def Event(self, *, enable_timing, blocking):  # noqa: N802 - torch's name
        """Return a new event, for whose end the host sleeps."""
        assert enable_timing
        assert blocking
        return Event(self)

    def Stream(self):  # noqa: N802 - torch's name
        """Return the second stream."""
        return self.side

    def current_stream(self):
        """Return the first stream."""
        return self.main

    @contextlib.contextmanager
    def stream(self, stream):
        """Make a stream the current one."""
        self.current = stream
        yield
        self.current = self.main

    def _sleep(self, cycles):
        assert cycles > 0
        self.log.append("spin")

    def device_count(self):
        """Return how many GPUs are visible."""
        return len(self.uuids)

    def get_device_properties(self, index):
        """Return UUID and cache."""
        return SimpleNamespace(uuid=self.uuids[index].removeprefix("GPU-"), L2_cache_size=self.l2)

    def get_device_capability(self, _):
        """Return major and minor number."""
        return self.capability

    def get_device_name(self, _):
        """Return the card's name."""
        return "NVIDIA GeForce RTX 4090"

    def get_arch_list(self):
        """Return what this torch is built for."""
        return self.archs

    def can_device_access_peer(self, one, other):
        """Return whether the first reaches the second."""
        return self.direct.get((one, other), False)


class CudaTorch:
    """torch, with CUDA: what it puts on a GPU lies on the host."""

    def __init__(self):
        self.cuda, self.version, self.__version__ = Cuda(), SimpleNamespace(cuda="12.8"), "2.13.0+cu128"
        self.missing = set()
        self.matrices, self.devices = [], set()

    def __getattr__(self, name):
        """Return what torch has under a name."""
        if name in self.missing:
            raise AttributeError(name)
        real = getattr(torch, name)
        return partial(self._on_host, real) if name in ("randn", "empty", "ones", "Generator") else real

    def _on_host(self, create, *args, device="cpu", pin_memory=False, **kwargs):
        self.devices.add("pinned" if pin_memory else device)
        return create(*args, **kwargs)

    def mm(self, a, b, out=None):
        """Multiply and remember what was multiplied."""
        self.matrices.append((a, b))
        return torch.mm(a, b, out=out)


@pytest.fixture
def cpu(monkeypatch):
    """The real torch on the host; windows are short."""
    monkeypatch.setattr(torch_gpu, "BATCH_S", 0.001)
    return TorchGpu(torch, UUID, "cpu", SMALL, COPY_BYTES)


@pytest.fixture
def fake():
    """A stand-in for torch with CUDA."""
    return CudaTorch()


@pytest.fixture
def gpu(fake):
    """A GPU behind that stand-in."""
    return TorchGpu(fake, UUID, "cuda:0", SMALL, COPY_BYTES)


class Ticking:
    """A clock that moves by itself whenever it is read."""

    def __init__(self):
        self.reads = itertools.count()

    def monotonic(self):
        """Return half a second more than before."""
        return next(self.reads) / 2

    def sleep(self, seconds):
        """Let nothing pass."""


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_every_kind_agree_with_float64(cpu, kind):
    """A product of every kind is what float64 says of its inputs, within the bound of that kind."""
    a, b = cpu.inputs(1, kind)

    assert not detector.golden_flaw(torch, kind, a, b, cpu.product(kind, a, b), step=1)


def now():
    """Return when a copy begins: at once, at a time of its own."""
    return 7.0


def test_fp8_products_have_narrow_inputs_and_bf16_results(cpu):
    """FP8 products multiply FP8 by column-major FP8, and come out as BF16."""
    a, b = cpu.inputs(1, "fp8")

    assert (a.dtype, b.dtype, b.stride()) == (torch.float8_e4m3fn, torch.float8_e4m3fn, (1, 64))
    assert cpu.product("fp8", a, b).dtype == torch.bfloat16


def test_fp8_products_are_not_summed_in_less(fake, gpu, monkeypatch):
    """FP8 products are asked for without the fast accumulation, and without scaling."""
    asked = []
    monkeypatch.setattr(fake, "_scaled_mm", lambda *args, **kwargs: asked.append((args[2:], kwargs)), raising=False)
    gpu.product("fp8", *gpu.inputs(0, "fp8"))

    ((scales, switches),) = asked
    assert [float(scale) for scale in scales] == [1.0, 1.0]
    assert switches["use_fast_accum"] is False


def test_inputs_depend_on_the_seed_alone(cpu):
    """The same seed gives the same matrices, of mean 0 and variance 1, and another seed others."""
    (a, b), (again, _), (other, _) = cpu.inputs(3, "fp32"), cpu.inputs(3, "fp32"), cpu.inputs(4, "fp32")

    assert torch.equal(a, again)
    assert not torch.equal(a, other)
    assert abs(float(b.mean())) < 0.1
    assert float(b.std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda fake: fake.missing.add("float8_e4m3fn"), "has no FP8 products: install torch 2.5 or later"),
        (lambda fake: fake.missing.add("_scaled_mm"), "install torch 2.5 or later"),
        (lambda fake: setattr(fake.cuda, "capability", (8, 6)), "has no FP8 units"),
    ],
)
def test_fp8_is_refused_where_there_is_none(fake, gpu, spoil, sentence):
    """Without FP8 in torch or on the card, a sentence says so and what to do."""
    spoil(fake)

    with pytest.raises(Refusal, match=sentence):
        gpu.inputs(0, "fp8")


def test_a_product_has_memory_of_its_own(cpu):
    """Two products of the same inputs do not share memory, so that one can be changed to rehearse."""
    a, b = cpu.inputs(1, "fp16")

    assert cpu.product("fp16", a, b).data_ptr() != cpu.product("fp16", a, b).data_ptr()


def test_sums_are_kept_in_fp32(cpu):
    """Every switch that lets cuBLAS sum in less, and TF32, is off, as torch itself says afterwards."""
    assert cpu.describe().items() >= {
        "allow_fp16_reduced_precision_reduction": False, "allow_bf16_reduced_precision_reduction": False,
        "allow_fp16_accumulation": False, "allow_tf32": False, "torch": str(torch.__version__), "device": "cpu",
    }.items()  # fmt: skip


def test_the_card_is_described(gpu, monkeypatch):
    """The description names card, capability, CUDA and the workspace of cuBLAS."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    assert gpu.describe().items() >= {
        "device": "NVIDIA GeForce RTX 4090", "capability": "8.9", "cuda": "12.8", "workspace": ":4096:8",
    }.items()  # fmt: skip


@pytest.mark.parametrize(
    ("name", "on", "off"), [("allow_tf32", True, False), ("fp32_precision", "tf32", "ieee")], ids=["older", "newer"]
)
def test_tf32_is_on_while_its_products_are_queued_alone(fake, monkeypatch, name, on, off):
    """TF32 is on in products of that kind only, under the name that this torch knows; unknown switches stay away."""
    reduced = torch_gpu.REDUCED[:2]
    matmul = SimpleNamespace(**dict.fromkeys(reduced, True), **{name: on})
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    seen = []
    monkeypatch.setattr(fake, "mm", lambda a, b, out: seen.append(getattr(matmul, name)))
    gpu = TorchGpu(fake, UUID, "cuda:0", SMALL)

    assert vars(matmul) == {**dict.fromkeys(reduced, False), name: off}
    for kind in ("tf32", "fp32"):
        gpu.product(kind, *gpu.inputs(0, kind))
    assert seen == [on, off]
    assert vars(matmul) == {**dict.fromkeys(reduced, False), name: off}
    assert gpu.describe()["allow_tf32"] is False


def test_tf32_is_off_after_a_product_that_failed(cpu):
    """A product that raises leaves TF32 off."""
    with pytest.raises(TypeError):
        cpu.product("tf32", None, None)

    assert cpu.describe()["allow_tf32"] is False


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_counts_every_product(fake, gpu, kind):
    """Results of a batch are the product, stand for all that were run, and the work is that of all."""
    a, b = gpu.inputs(0, kind)
    fake.cuda.window_ms = 12.5
    gpu.batch(kind, a, b)
    batch = gpu.batch(kind, a, b)

    m, n, k = SMALL[kind]
    assert batch.tflop == pytest.approx(8 * 2 * m * n * k / 1e12)
    assert batch.seconds == 0.0125
    golden = gpu.product(kind, a, b)
    assert all(detector.differing(torch, result, golden) == 0 for result, _ in batch.results)
    assert [count for _, count in batch.results] == ([1] * 8 if kind == "burn" else [3, 3, 2])
    assert len({result.data_ptr() for result, _ in batch.results}) == len(batch.results)


def test_the_number_of_products_follows_their_time(fake, gpu):
    """A batch holds as many products as take 100 ms by the events of the last one."""
    a, b = gpu.inputs(0, "burn")
    counts = []
    for window_ms in (25.0, 200.0, 100.0):
        fake.cuda.window_ms = window_ms
        counts.append(len(gpu.batch("burn", a, b).results))

    assert counts == [1, 4, 2]


@pytest.mark.parametrize(("kind", "most"), [("burn", 64), ("fp16", 4096)])
def test_a_wrong_clock_does_not_fill_the_memory(fake, gpu, kind, most):
    """However short products seem, a batch grows in steps, and only so many results are kept."""
    a, b = gpu.inputs(0, kind)
    fake.cuda.window_ms = 0.001
    counts = [sum(count for _, count in gpu.batch(kind, a, b).results) for _ in range(5)]

    assert counts == [min(most, 16**step) for step in range(5)]


def test_only_the_end_of_a_batch_is_waited_for(fake, gpu):
    """A batch is two events and one wait, and no spin that would let the card cool."""
    gpu.batch("fp16", *gpu.inputs(0, "fp16"))

    assert fake.cuda.log == ["event", "event", "wait"]


def test_inputs_are_taken_in_turn_beyond_the_cache(fake, gpu):
    """The inputs of a batch are together more than three times the L2 cache, each the same numbers."""
    a, b = gpu.inputs(0, "fp16")
    fake.cuda.window_ms = 1.0
    gpu.batch("fp16", a, b)
    fake.matrices.clear()
    gpu.batch("fp16", a, b)

    used = {(x.data_ptr(), y.data_ptr()): x.nbytes + y.nbytes for x, y in fake.matrices}
    assert sum(used.values()) > 3 * fake.cuda.l2
    assert all(torch.equal(x, a) and torch.equal(y, b) for x, y in fake.matrices)


def test_new_inputs_are_used_at_once(cpu):
    """A batch of new inputs gives their product, not the product of those before."""
    cpu.batch("burn", *cpu.inputs(0, "burn"))
    a, b = cpu.inputs(1, "burn")

    for other in (b, b.clone() + 1):
        (result, _), *_ = cpu.batch("burn", a, other).results
        assert torch.equal(result, cpu.product("burn", a, other))


@pytest.mark.parametrize("kind", ["fp16", "burn"])
def test_a_product_that_was_not_run_is_found(fake, gpu, kind):
    """Products that write nothing leave NaN, not the right result of the batch before."""
    a, b = gpu.inputs(0, kind)
    gpu.batch(kind, a, b)
    fake.mm = lambda a, b, out=None: out

    assert all(bool(result.isnan().all()) for result, _ in gpu.batch(kind, a, b).results)


@pytest.mark.parametrize("window_ms", [0.0, -1.0, float("nan")])
def test_work_that_took_no_time_is_refused(fake, gpu, window_ms):
    """Events that say no time has passed give no rate."""
    fake.cuda.window_ms = window_ms

    with pytest.raises(Refusal, match="its events are broken"):
        gpu.batch("fp16", *gpu.inputs(0, "fp16"))


def test_a_burn_runs_over_it(cpu):
    """The burn's own script proves, rehearses and checks its products over torch."""
    script = compute.burn(cpu, Ticking(), seconds=5)
    records, reply = [], None
    with contextlib.suppress(StopIteration):
        while True:
            records.append(script.send(reply))
            reply = {"at": 0.0} if "awaits" in records[-1] else None

    kinds = [record["kind"] for record in records]
    assert kinds[:4] == ["device", "golden", "rehearsal", "ready"]
    assert all(value is True for key, value in records[2].items() if key not in ("kind", "seed"))
    timed = [record for record in records if record["kind"] == "batch"]
    assert timed
    assert not records[1]["flaw"]
    assert not any(record["wrong"] or record.get("elements") for record in timed)
    assert all(record["checked"] == record["products"] for record in timed)


@pytest.mark.parametrize("kind", ["fp16", "fp8"])
def test_timed_products_run_over_it(cpu, kind):
    """The script that times products finds none wrong over torch."""
    records = list(compute.gemm(cpu, Ticking(), kind=kind, warm_up_s=1, seconds=2))

    timed = [record for record in records if record["kind"] == "batch"]
    assert timed
    assert not any(record["wrong"] for record in timed)
    assert not next(record for record in records if record["kind"] == "golden")["flaw"]


@pytest.mark.parametrize("kind", COPY_KINDS)
def test_copies_arrive(cpu, kind):
    """Every way of copying moves whole buffers, and none arrives wrong."""
    copy = cpu.copy(kind, 0.002, now)

    unit = COPY_BYTES * (2 if kind in ("device", "both") else 1)
    assert copy.moved % unit == 0
    assert copy.moved > 0
    assert (copy.wrong, copy.path) == (0, kind)
    assert copy.seconds > 0


def test_copies_run_over_it(cpu):
    """The script that copies gives one record a sample over torch."""
    plan = {"kinds": ["h2d", "d2h"], "samples": 2, "sample_s": 0.001}
    records = [record for record in copies.copies(cpu, Ticking(), **plan) if record["kind"] == "copy"]

    assert [(record["way"], record["wrong"]) for record in records] == [("h2d", 0)] * 2 + [("d2h", 0)] * 2


@pytest.mark.parametrize("kind", COPY_KINDS)
def test_a_copy_that_did_nothing_is_found(cpu, monkeypatch, kind):
    """The bytes of an earlier copy do not count for one that moved nothing."""
    cpu.copy(kind, 0.0, now)
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, source, non_blocking: self)

    copy = cpu.copy(kind, 0.0, now)
    assert copy.wrong > 0.98 * COPY_BYTES * copy.compared


@pytest.mark.parametrize(("kind", "wrong"), [("h2d", 1), ("device", 1), ("both", 2)])
def test_one_wrong_byte_is_counted(cpu, monkeypatch, kind, wrong):
    """One flipped bit is one wrong byte, in each direction, in the timed copy and in three more that are compared."""
    real = torch.Tensor.copy_

    def flipping(self, source, non_blocking):
        real(self, source)
        self[7] ^= 1 << 20

    monkeypatch.setattr(torch.Tensor, "copy_", flipping)
    copy = cpu.copy(kind, 0.0, now)
    assert (copy.wrong, copy.compared) == (4 * wrong, 4 * wrong)


def test_untouched_destinations_are_new_at_every_copy(gpu, monkeypatch):
    """Copies into untouched memory go to a place of their own each, and every one is compared."""
    real, targets = torch.Tensor.copy_, []

    def remembering(self, source, non_blocking):
        targets.append((self.data_ptr(), int(self.count_nonzero())))
        real(self, source)
        self[0] ^= 1

    monkeypatch.setattr(torch.Tensor, "copy_", remembering)
    copy = gpu.copy("d2h_untouched", 10.0, now)
    timed = targets[-copy.compared : -torch_gpu.SINGLE_COPIES]
    assert len({place for place, _ in timed}) == len(timed) == copy.moved // COPY_BYTES == 4
    assert copy.wrong == copy.compared == 7
    assert not any(filled for _, filled in targets)


@pytest.mark.parametrize(
    ("kind", "spins", "queued"),
    [("device", 1, True), ("h2d", 1, True), ("both", 1, True), ("h2d_pageable", 0, False), ("d2h_untouched", 0, False)],
)
def test_gaps_are_hidden_where_copies_can_be_queued(fake, gpu, monkeypatch, kind, spins, queued):
    """The GPU spins before the first event while pinned copies are queued; pageable ones hold the host up anyway."""
    real, flags = torch.Tensor.copy_, set()
    monkeypatch.setattr(torch.Tensor, "copy_", lambda s, o, non_blocking: (flags.add(non_blocking), real(s, o)))

    gpu.copy(kind, 0.1, now)
    assert fake.cuda.log == 8 * (spins * ["spin"] + ["event", "event", "wait"])
    assert ("pinned" in fake.devices) == (kind in ("h2d", "both"))
    assert flags == {queued}


def test_a_torch_without_a_spin_copies_too(fake, gpu, monkeypatch):
    """The spin is not public: where it is missing, copies go without."""
    monkeypatch.delattr(Cuda, "_sleep")

    assert gpu.copy("h2d", 0.1, now).wrong == 0


def test_four_copies_warm_up_and_the_next_window_follows_their_time(fake, gpu):
    """Four copies warm up once for each kind; the window after them holds what fits."""
    fake.cuda.window_ms = 40.0

    assert gpu.copy("h2d", 0.1, now) == (7.0, 10 * COPY_BYTES, 0.04, 0, "h2d", 4)
    assert fake.cuda.log.count("wait") == 8
    assert gpu.copy("h2d", 0.1, now).moved == 25 * COPY_BYTES
    assert fake.cuda.log.count("wait") == 12


def test_both_directions_run_on_two_streams(fake, gpu, monkeypatch):
    """Each direction has a stream of its own; both begin after the first event and end before the last."""
    real, order = torch.Tensor.copy_, fake.cuda.order
    monkeypatch.setattr(torch.Tensor, "copy_", lambda s, o, non_blocking: (order.append(fake.cuda.current), real(s, o)))
    fake.cuda.window_ms = 400.0
    gpu.copy("both", 0.1, now)

    main, side = fake.cuda.main, fake.cuda.side
    window = ["event", (main, "event"), main, (side, "event"), side, (main, side), "event"]
    assert order[-len(window) :] == window


@pytest.mark.parametrize(("kind", "buffers"), [("device", 2), ("both", 2), ("h2d", 1), (f"peer:{OTHER}", 1)])
def test_bytes_read_and_written_on_the_card_count_both(fake, gpu, kind, buffers):
    """A copy within the card counts what is read and what is written, one in both directions their sum."""
    fake.cuda.window_ms = 40.0

    assert gpu.copy(kind, 0.1, now).moved == 10 * buffers * COPY_BYTES


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(("uuids", "number"), [([UUID, OTHER], 1), ([UUID, "GPU-0", OTHER], 2)], ids=["one", "two"])
def test_copies_to_a_peer_say_their_path(fake, gpu, uuids, number, direct):
    """A copy to another GPU goes to the one of that UUID, and is direct where CUDA can reach it, else staged."""
    fake.cuda.uuids, fake.cuda.direct = uuids, {(0, number): direct}

    copy = gpu.copy(f"peer:{OTHER}", 0.1, now)
    assert (copy.wrong, copy.path) == (0, "direct" if direct else "staged")
    assert f"cuda:{number}" in fake.devices


@pytest.mark.parametrize("uuids", [[UUID], [UUID, UUID], [OTHER]], ids=["alone", "another", "itself"])
def test_a_copy_to_the_wrong_peer_is_refused(fake, gpu, uuids):
    """A copy to a GPU that is not visible beside this one is not made."""
    fake.cuda.uuids = uuids

    with pytest.raises(Refusal, match=f"{OTHER} is not visible beside {UUID}"):
        gpu.copy(f"peer:{OTHER}", 0.1, now)


@pytest.mark.parametrize("wanted", [UUID, UUID.removeprefix("GPU-"), UUID.upper()])
def test_a_gpu_is_opened_by_its_uuid(fake, wanted):
    """The UUID is compared without prefix and case, which differ between versions."""
    assert opened(fake, wanted).uuid == wanted


def no_cuda(fake):
    """Make it a CPU build."""
    fake.version.cuda, fake.__version__ = None, "2.13.0+cpu"


def old_driver(fake):
    """Make CUDA refuse to start."""
    fake.cuda.failure = RuntimeError("The NVIDIA driver on your system is too old\n(found version 11040).")


def newer_card(fake):
    """Give the machine a card that this torch has no code for."""
    fake.cuda.capability, fake.cuda.archs = (12, 0), ["sm_80", "sm_90"]


def nameless(fake):
    """Make it a torch that does not give UUIDs."""
    fake.cuda.get_device_properties = lambda index: SimpleNamespace()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (no_cuda, r"torch 2.13.0\+cpu is built without CUDA: install the CUDA wheel.*torch==2.13.0$"),
        (old_driver, r"reaches no GPU: The NVIDIA driver on your system is too old \(found version 11040\)\.; check"),
        (newer_card, r"no code for NVIDIA GeForce RTX 4090 \(sm_120\), only for sm_80 sm_90: install"),
        (nameless, r"does not say which GPU it runs on: install torch 2.5"),
        (lambda fake: fake.cuda.uuids.reverse(), f"torch runs on {OTHER} where {UUID} was"),
    ],
)
def test_what_cannot_be_measured_with_is_refused_in_one_line(fake, spoil, sentence):
    """A torch or a card that does not fit is refused, with what is wrong and what to do, in one line."""
    spoil(fake)

    with pytest.raises(Refusal, match=sentence) as refusal:
        opened(fake, UUID)
    assert "\n" not in str(refusal.value)


def test_the_torch_at_hand_is_refused_without_cuda():
    """The real torch of these tests is a CPU build, and is refused as one."""
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")

    with pytest.raises(Refusal, match="is built without CUDA"):
        opened(torch, UUID)


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ("sm_86", (8, 9), True),
        ("sm_89", (8, 6), False),
        ("sm_90", (12, 0), False),
        ("compute_90", (12, 0), True),
        ("compute_90", (8, 9), False),
        ("sm_90a", (9, 0), True),
        ("sm_100a", (10, 3), False),
        ("compute_90a", (12, 0), False),
        ("sm_100f", (10, 3), True),
        ("compute_100f", (12, 0), False),
        ("sm_120", (12, 0), True),
        ("gfx942", (9, 4), False),
    ],
)
def test_code_runs_where_the_rules_of_cuda_say(built, capability, runs):
    """Binaries run within their major number from their minor on, PTX on all that is later."""
    assert has_code(["sm_50", built], capability) is runs


@given(st.lists(st.text() | st.from_regex(r"(sm|compute)_\d+[a-z]?")))
def test_strange_architectures_are_none(built):
    """Whatever a build says of itself, the answer is yes or no."""
    assert has_code(built, (8, 9)) in (True, False)
