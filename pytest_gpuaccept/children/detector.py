"""Detection of wrong results: checksum of the raw bits, bitwise compare, golden against float64.

Works on numpy arrays and torch tensors alike; `xp` is that library. No tolerance anywhere but in
the float64 check, whose bound is rounding alone: a tolerance of 1e-3 hides a flipped low bit, and
`abs(NaN) > tolerance` is false.
"""

from collections.abc import Callable, Sequence
from typing import Any

Array = Any

FP16_BYTES = 2
ROUNDING = {"fp16": 2.0**-10, "burn": 2.0**-10, "bf16": 2.0**-7, "fp32": 0.0, "tf32": 0.0, "fp8": 2.0**-7}
"""Relative, of a result: one unit in the last place of its type, which is twice that at a power of two.

FP8 products are returned in BF16.
"""
ACCUMULATION = {
    "fp16": 2.0**-18, "burn": 2.0**-18, "bf16": 2.0**-18, "fp32": 2.0**-21, "tf32": 2.0**-14, "fp8": 2.0**-13,
}  # fmt: skip
"""Absolute, per summed product of two standard normals.

Tensor cores truncate the running sum at each step, so FP32 accumulation of 32768 products is off by up to
0.05 where the sum is small and 0.1 where it is large (bound 0.125 and 0.7), FP16 accumulation by more than 1.
FP32 without tensor cores, one product after the other, is off by up to 0.0007 after 4096 (bound 0.002); inputs
rounded to TF32 are by 0.01 and more. FP8 sums keep 14 bits on Hopper.
"""
CUT = {"tf32": 2.0**-10}
"""Relative, of a result whose inputs are cut to their type rather than rounded: all of its products shrink alike."""
GRID = 2.0**-4
"""Sums of products of standard normals rounded to it fit into FP32, so that their order does not matter; the
normals themselves fit into every type that is checked with them."""
FAR = 2.0**-7, 2.0**-17
"""Relative of an element and absolute per summed product: no order of a sum makes a result differ by more."""
LARGE = 1e9
"""What NaN and Inf count as beside numbers."""


def _bits(xp: Any, array: Array) -> Array:
    """Return an array's bits as integers of its width."""
    return array.view(xp.int16 if array.dtype.itemsize == FP16_BYTES else xp.int32)


def checksums(xp: Any, results: Sequence[Array]) -> list[int]:
    """Return of each result the sum of its bits, read as 64-bit integers, modulo 2**64; one wait for all of them.

    Any single flip, NaN or Inf changes it. Rows must be contiguous and a multiple of 8 bytes long.
    """
    return [int(total) for total in xp.stack([result.view(xp.int64).sum() for result in results]).tolist()]


def differing(xp: Any, result: Array, golden: Array) -> int:
    """Return how many elements differ in any bit; NaN is a bit pattern like any other."""
    return int((_bits(xp, result) != _bits(xp, golden)).sum())


def golden_flaw(xp: Any, kind: str, a: Array, b: Array, golden: Array, step: int = 7) -> str:  # noqa: PLR0913, PLR0917
    """Return why `golden` is not a @ b as products of `kind` come out; '' when it is.

    Refuses FP16 accumulation, and FP32 inputs rounded to TF32. Checks every `step`-th row against every
    `step`-th column in float64, and all for NaN and Inf.
    """
    wide = xp.float64
    want = xp.asarray(a[::step], dtype=wide) @ xp.asarray(b[:, ::step], dtype=wide)
    got = xp.asarray(golden[::step, ::step], dtype=wide)
    bound = abs(want) * (ROUNDING[kind] + CUT.get(kind, 0.0)) + a.shape[1] * ACCUMULATION[kind]
    wrong = int((~(abs(got - want) <= bound)).sum())
    if wrong:
        return f"{wrong} of {want.shape[0] * want.shape[1]} sampled elements differ from float64"
    finite = int(xp.isfinite(golden).sum())
    total = golden.shape[0] * golden.shape[1]
    return "" if finite == total else f"{total - finite} elements are NaN or infinite"


def moved(xp: Any, product: Callable[[Array, Array], Array], a: Array, b: Array, golden: Array) -> float:
    """Return the share of elements that come out otherwise when they are computed in another place of the chip.

    The rows of `a` and the columns of `b` are turned round, so that every element is computed elsewhere from the
    same numbers: a fault that sits in one place is not there any more, and what it did to the golden shows, bit
    by bit and without another card. A library may sum in another order there, in all of its tiles or in the last
    ones only, and round otherwise: then the elements count that differ when all is computed again from numbers
    whose sums are exact in any order, or else those that differ by more than an order explains.
    """
    elsewhere = _elsewhere(xp, product, a, b)
    if not differing(xp, elsewhere, golden):
        return 0.0
    a, b = (xp.round(matrix / GRID) * GRID for matrix in (a, b))
    wrong = differing(xp, _elsewhere(xp, product, a, b), product(a, b)) or _far(xp, elsewhere, golden, a.shape[1])
    share: float = wrong / (golden.shape[0] * golden.shape[1])
    return share


def _elsewhere(xp: Any, product: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """Return a @ b, computed with its rows and columns turned round, and turned back."""
    turned = xp.flip(product(xp.flip(a, (0,)), xp.flip(b, (1,))), (0, 1))
    return xp.asarray(turned, copy=True)


def _far(xp: Any, result: Array, golden: Array, inner: int) -> int:
    """Return how many elements differ by more than the order of a sum of `inner` products explains."""
    otherwise = _bits(xp, result) != _bits(xp, golden)
    wide = (xp.asarray(array[otherwise], dtype=xp.float64) for array in (result, golden))
    one, other = (xp.nan_to_num(array, nan=LARGE, posinf=LARGE, neginf=-LARGE) for array in wide)
    relative, absolute = FAR
    return int((~(abs(one - other) <= abs(other) * relative + inner * absolute)).sum())


def moved_flaw(share: float) -> str:
    """Return why a product is not to be trusted of which `share` came out otherwise elsewhere; '' when it may be."""
    return f"{share:.4%} of the elements come out otherwise when computed in another place" if share else ""


def rehearse(xp: Any, golden: Array) -> dict[str, bool]:
    """Flip one low bit and place one NaN in copies of `golden`; return which were found, and how."""
    flipped, spoilt = xp.asarray(golden, copy=True), xp.asarray(golden, copy=True)
    _bits(xp, flipped)[1, 2] ^= 1
    spoilt[2, 1] = float("nan")
    expected, of_flipped, of_spoilt, again = checksums(xp, [golden, flipped, spoilt, golden])
    return {
        "flip_by_checksum": of_flipped != expected,
        "flip_by_compare": differing(xp, flipped, golden) == 1,
        "nan_by_checksum": of_spoilt != expected,
        "nan_by_compare": differing(xp, spoilt, golden) == 1,
        "clean_passes": again == expected and differing(xp, golden, golden) == 0,
    }
