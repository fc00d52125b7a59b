"""Detection of wrong results: checksum of the raw bits, bitwise compare, golden against float64.

Works on numpy arrays and torch tensors alike; `xp` is that library. No tolerance anywhere but in
the float64 check, whose bound is rounding alone: a tolerance of 1e-3 hides a flipped low bit, and
`abs(NaN) > tolerance` is false.
"""

from collections.abc import Callable
from typing import Any

Array = Any

FP16_BYTES = 2
FP16_ROUNDING = 2.0**-10
"""Relative: one unit in the last place of FP16 is 2**-11 of the value, twice that at a power of two."""
FP32_ACCUMULATION = 2.0**-22
"""Per summed product of two standard normals: FP32 accumulation stays far below, FP16 far above."""


def _bits(xp: Any, array: Array) -> Array:
    """Return an array's bits as integers of its width."""
    return array.view(xp.int16 if array.dtype.itemsize == FP16_BYTES else xp.int32)


def checksum(xp: Any, result: Array) -> int:
    """Return the sum of the result's bits as 64-bit integer: any single flip, NaN or Inf changes it."""
    return int(_bits(xp, result).sum(dtype=xp.int64))


def differing(xp: Any, result: Array, golden: Array) -> int:
    """Return how many elements differ in any bit; NaN is a bit pattern like any other."""
    return int((_bits(xp, result) != _bits(xp, golden)).sum())


def golden_flaw(xp: Any, a: Array, b: Array, golden: Array, step: int = 7) -> str:
    """Return why `golden`, FP16 or FP32, is not a @ b as FP32 accumulation gives it; '' when it is.

    Refuses FP16 accumulation, and inputs rounded to TF32. Checks every `step`-th row against every
    `step`-th column in float64, and all for NaN and Inf.
    """
    wide = xp.float64
    want = xp.asarray(a[::step], dtype=wide) @ xp.asarray(b[:, ::step], dtype=wide)
    got = xp.asarray(golden[::step, ::step], dtype=wide)
    rounding = FP16_ROUNDING if golden.dtype.itemsize == FP16_BYTES else 0.0
    bound = abs(want) * rounding + a.shape[1] * FP32_ACCUMULATION
    wrong = int((~(abs(got - want) <= bound)).sum())
    if wrong:
        return f"{wrong} of {want.shape[0] * want.shape[1]} sampled elements differ from float64"
    finite = int(xp.isfinite(golden).sum())
    total = golden.shape[0] * golden.shape[1]
    return "" if finite == total else f"{total - finite} elements are NaN or infinite"


def moved_flaw(xp: Any, product: Callable[[Array, Array], Array], a: Array, b: Array, golden: Array) -> str:
    """Return why the same product, computed in other places of the chip, is another one; '' when it is not.

    The rows of `a` and the columns of `b` are turned round, so that every element is computed
    elsewhere from the same numbers in the same order: a fault that sits in one place is not there
    any more, and what it did to the golden shows, bit by bit and without another card.
    """
    turned = xp.flip(product(xp.flip(a, (0,)), xp.flip(b, (1,))), (0, 1))
    wrong = differing(xp, xp.asarray(turned, copy=True), golden)
    return f"{wrong} elements come out otherwise when computed in another place" if wrong else ""


def rehearse(xp: Any, golden: Array) -> dict[str, bool]:
    """Flip one low bit and place one NaN in copies of `golden`; return which were found, and how."""
    expected = checksum(xp, golden)
    flipped, spoilt = xp.asarray(golden, copy=True), xp.asarray(golden, copy=True)
    _bits(xp, flipped)[1, 2] ^= 1
    spoilt[2, 1] = float("nan")
    return {
        "flip_by_checksum": checksum(xp, flipped) != expected,
        "flip_by_compare": differing(xp, flipped, golden) == 1,
        "nan_by_checksum": checksum(xp, spoilt) != expected,
        "nan_by_compare": differing(xp, spoilt, golden) == 1,
        "clean_passes": checksum(xp, golden) == expected and differing(xp, golden, golden) == 0,
    }
