"""Single products on one GPU behind torch, in every layout that a library has kernels for.

Owns the numbers and how they lie in memory. The product itself, with the switches that decide how it is
summed, is torch_gpu's.
"""

from typing import Any

from pytest_gpuaccept.children import torch_gpu
from pytest_gpuaccept.children.products import Question

Record = dict[str, Any]
TF32_HALF, TF32_MASK = 1 << 12, -(1 << 13)
"""Half of the last of the 10 bits that TF32 keeps of 23, and the mask of what it keeps."""
BEFORE, BEHIND = 1, 2
"""Rows and columns around a sliced operand: it begins at an odd place, and its rows are apart."""


class TorchMultiplier:
    """One GPU under this load; see children/products.Multiplier."""

    def __init__(self, gpu: torch_gpu.TorchGpu, device: str = "cuda:0") -> None:
        """Take the GPU, and where its operands go ("cpu" in tests)."""
        self.uuid, self._gpu, self._device = gpu.uuid, gpu, device

    @property
    def xp(self) -> Any:
        """Return torch."""
        return self._gpu.xp

    def describe(self) -> Record:
        """Return what the products run on, and the switches."""
        return self._gpu.describe()

    def operands(self, question: Question) -> tuple[Any, Any]:
        """Return both matrices in float64 on the host; TF32 keeps 10 bits of FP32's mantissa."""
        noise = self.xp.Generator().manual_seed(question.seed)
        shapes = (question.m, question.k), (question.k, question.n)
        a, b = (self._rounded(self.xp.randn(shape, generator=noise), question.dtype) for shape in shapes)
        return a.to(self.xp.float64), b.to(self.xp.float64)

    def multiply(self, question: Question, a: Any, b: Any) -> Any:
        """Return a @ b as the GPU computes it."""
        dtype = getattr(self.xp, torch_gpu.TYPES[question.dtype])
        left = self._placed(a.to(dtype), turned=question.turned_a, sliced=question.sliced)
        right = self._placed(b.to(dtype), turned=question.turned_b, sliced=question.sliced)
        return self._gpu.product(question.dtype, left, right).to("cpu", self.xp.float64)

    def _rounded(self, array: Any, dtype: str) -> Any:
        if dtype == "tf32":
            return ((array.view(self.xp.int32) + TF32_HALF) & TF32_MASK).view(self.xp.float32)
        return array.to(getattr(self.xp, torch_gpu.TYPES[dtype]))

    def _placed(self, array: Any, *, turned: bool, sliced: bool) -> Any:
        """Return an array on the device, laid out as asked; NaN lies around a slice, so that a read beyond it shows."""
        stored = (array.t() if turned else array).contiguous().to(self._device)
        if sliced:
            rows, columns = stored.shape
            around = (rows + BEFORE + BEHIND, columns + BEFORE + BEHIND)
            larger = self.xp.full(around, float("nan"), dtype=stored.dtype, device=self._device)
            inside = larger[BEFORE : BEFORE + rows, BEFORE : BEFORE + columns]
            inside.copy_(stored)
            stored = inside
        return stored.t() if turned else stored


def opened(torch: Any, uuid: str) -> TorchMultiplier:
    """Return the GPU that this process sees first; raises Refusal where it is not usable."""
    return TorchMultiplier(torch_gpu.opened(torch, uuid))
