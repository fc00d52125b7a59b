"""Tests of single products behind torch: CPU tensors, every layout."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.children.products import Question, products
from pytest_gpuaccept.children.torch_gpu import TorchGpu
from pytest_gpuaccept.children.torch_products import TorchMultiplier, opened

torch = pytest.importorskip("torch")

DTYPES = ["fp16", "bf16", "tf32", "fp32"]
EDGE = st.one_of(st.integers(1, 20), st.sampled_from([31, 33, 64, 127, 129]))
QUESTIONS = st.builds(
    Question, EDGE, EDGE, EDGE, st.sampled_from(DTYPES), st.integers(0, 99), st.booleans(), st.booleans(), st.booleans()
)
GPU = TorchMultiplier(TorchGpu(torch, "GPU-0", "cpu"), "cpu")


def answer(gpu, question, **spoil):
    """Return the script's answer to one question."""
    script = products(gpu, SimpleNamespace(monotonic=lambda: 0.0))
    assert next(script)["uuid"] == "GPU-0"
    next(script)
    return script.send({"number": 1, **question._asdict(), **spoil})


@settings(deadline=None, database=None, max_examples=60)
@given(QUESTIONS)
def test_torch_products_agree_with_float64(question):
    """Every type and layout gives the product of the same rounded numbers; NaN around a slice is not read."""
    found = answer(GPU, question)
    assert found["wrong"] == 0
    assert found["elements"] == question.m * question.n


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spoil", ["value", "nan"])
def test_a_rehearsed_error_is_found(dtype, spoil):
    """One spoilt element is one wrong element, the last."""
    found = answer(GPU, Question(7, 31, 5, dtype, 3), spoil=spoil)
    assert (found["wrong"], found["element"]) == (1, [6, 4])


def test_the_numbers_are_made_from_the_seed():
    """The same question has the same numbers, another seed has others, whatever the layout."""
    first, again = (GPU.operands(Question(5, 6, 7, "bf16", 1, turned))[0] for turned in (False, True))
    assert torch.equal(first, again)
    assert not torch.equal(first, GPU.operands(Question(5, 6, 7, "bf16", 2))[0])


@pytest.mark.parametrize(("dtype", "bits"), [("fp16", 10), ("bf16", 7), ("tf32", 10), ("fp32", 23)])
def test_numbers_are_such_as_the_type_holds(dtype, bits):
    """An operand keeps as many bits of mantissa as its type has, and no fewer."""
    fraction, _ = torch.frexp(GPU.operands(Question(64, 64, 1, dtype, 0))[0])
    scaled = fraction * 2.0 ** (bits + 1)
    assert torch.equal(scaled, scaled.round())
    assert not torch.equal(scaled / 2, (scaled / 2).round())


def test_layouts_are_what_they_are_called():
    """A turned operand has its columns together, a sliced one its rows apart and no beginning of its own."""
    array = torch.arange(12.0).reshape(3, 4)
    laid = {
        (turned, sliced): GPU._placed(array, turned=turned, sliced=sliced)
        for turned in (False, True)
        for sliced in (False, True)
    }
    assert all(torch.equal(array, placed) for placed in laid.values())
    assert laid[False, False].is_contiguous()
    assert laid[True, False].stride() == (1, 3)
    assert laid[False, True].stride() == (7, 1)
    assert laid[True, True].stride() == (1, 6)
    assert laid[False, True].storage_offset() == 8


def test_the_switches_are_those_of_the_other_loads():
    """Nothing may sum in less than FP32, and the description says so."""
    said = GPU.describe()
    assert said["library"] == "torch"
    assert said["allow_fp16_reduced_precision_reduction"] is False


def test_a_torch_without_cuda_is_refused_like_the_other_loads():
    """The opener is the one of the other loads: a CPU build names its remedy."""
    if torch.version.cuda is None:
        with pytest.raises(RuntimeError, match="without CUDA"):
            opened(torch, "GPU-0")
