"""The error detection of the loads: what each of its parts finds, and that a right product passes all of them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.children import detector
from pytest_gpuaccept.children.compute import Batch, burn, gemm
from pytest_gpuaccept.probes.gpus.burnt import REHEARSED, outvoted
from pytest_gpuaccept.sim.loads import DeadMemory

FAST = settings(deadline=None, database=None, max_examples=150)
ROWS, INNER = 24, 128
SEEDS = st.integers(0, 2**32 - 1)
PLACES = st.tuples(st.integers(0, ROWS - 1), st.integers(0, ROWS - 1))


def checksum(result):
    """Return the checksum of one result."""
    return detector.checksums(np, [result])[0]


def inputs(seed, kind="fp16"):
    """Return two matrices of standard normals in FP16 or FP32."""
    noise, dtype = np.random.default_rng(seed), np.float16 if kind in ("fp16", "burn") else np.float32
    a, b = noise.standard_normal((ROWS, INNER)), noise.standard_normal((INNER, ROWS))
    return a.astype(dtype), b.astype(dtype)


def right(a, b):
    """Return a @ b in the type of its inputs, accumulated in FP32 in the order of the elements."""
    wide = a.astype(np.float32)[:, :, None] * b.astype(np.float32)[None, :, :]
    return np.add.accumulate(wide, axis=1)[:, -1, :].astype(a.dtype)


def rounded_to_tf32(a, b):
    """Return a @ b of inputs that have lost the last 13 bits of their mantissa."""
    lossy = [(matrix.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000) for matrix in (a, b)]
    return right(*(bits.view(np.float32) for bits in lossy))


def accumulated_in_fp16(a, b):
    """Return a @ b with every partial sum rounded to FP16."""
    total = np.zeros((a.shape[0], b.shape[1]), np.float16)
    for k in range(a.shape[1]):
        total = (total + a[:, k : k + 1] * b[k : k + 1]).astype(np.float16)
    return total


def one_place_up(a, b):
    """Return a @ b with every element one unit in the last place further from zero."""
    return (right(a, b).view(np.int16) + np.int16(1)).view(np.float16)


def flipped(result, row, column, bit):
    """Return a copy with one bit turned over."""
    wrong = result.copy()
    bits = wrong.view(np.uint16 if wrong.dtype == np.float16 else np.uint32)
    bits[row, column] ^= bits.dtype.type(1 << bit)
    return wrong


def at_one_place(row, column, bit=3):
    """Return a product that turns one bit over wherever it computes this element of its output."""
    return lambda a, b: flipped(right(a, b), row, column, bit)


def cancelling(result):
    """Return a copy in which one element's bits went up by one and another's down by one."""
    wrong = result.copy()
    bits = wrong.view(np.int16)
    bits[0, 0] += 1
    bits[1, 4] -= 1
    return wrong


GOLDEN = right(*inputs(0))


# checksum and comparison ----------------------------------------------------------------------------


@FAST
@given(seed=SEEDS, place=PLACES, bit=st.integers(0, 15))
def test_any_single_flipped_bit_is_found_by_checksum_and_by_comparison(seed, place, bit):
    """Whichever bit of whichever element: the checksum changes, and exactly one element differs."""
    golden = np.random.default_rng(seed).standard_normal((ROWS, ROWS)).astype(np.float16)
    wrong = flipped(golden, *place, bit)
    assert checksum(wrong) != checksum(golden)
    assert detector.differing(np, wrong, golden) == 1


@FAST
@given(seed=SEEDS, place=PLACES, bit=st.integers(0, 31))
def test_any_single_flipped_bit_of_an_fp32_result_is_found(seed, place, bit):
    """The wider type is watched in all of its 32 bits."""
    golden = np.random.default_rng(seed).standard_normal((ROWS, ROWS)).astype(np.float32)
    wrong = flipped(golden, *place, bit)
    assert checksum(wrong) != checksum(golden)
    assert detector.differing(np, wrong, golden) == 1


def test_every_place_and_every_bit_of_one_product_is_watched():
    """No corner of the matrix is left out."""
    small = np.ascontiguousarray(GOLDEN[:6, :8])
    expected = checksum(small)
    for row, column, bit in itertools.product(range(6), range(8), range(16)):
        assert checksum(flipped(small, row, column, bit)) != expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0], ids=str)
def test_a_value_that_is_no_number_is_found(value):
    """NaN and infinity are bit patterns like any other, and so is an element that stayed zero."""
    wrong = GOLDEN.copy()
    wrong[5, 7] = value
    assert checksum(wrong) != checksum(GOLDEN)
    assert detector.differing(np, wrong, GOLDEN) == 1


def test_the_sign_of_a_zero_is_a_difference():
    """Minus zero equals zero as a number, not as a result."""
    zero = np.zeros((4, 4), np.float16)
    minus = zero.copy()
    minus[2, 2] = -0.0
    assert detector.differing(np, minus, zero) == 1
    assert checksum(minus) != checksum(zero)


def test_a_nan_equals_itself():
    """A golden with a NaN compares equal to itself bit by bit; float64 is what refuses it."""
    odd = GOLDEN.copy()
    odd[1, 1] = np.nan
    assert detector.differing(np, odd.copy(), odd) == 0


def test_a_stripe_is_found():
    """A pattern over a row differs in as many elements as it covers."""
    wrong = GOLDEN.copy()
    wrong.view(np.uint16)[4, ::4] |= np.uint16(0x4000)
    wrong.view(np.uint16)[4, ::4] ^= np.uint16(0x0001)
    assert detector.differing(np, wrong, GOLDEN) == ROWS // 4
    assert checksum(wrong) != checksum(GOLDEN)


def test_flips_that_cancel_out_escape_the_checksum_and_not_the_comparison():
    """One up and one down leave the sum as it was; that is why products are compared too."""
    assert checksum(cancelling(GOLDEN)) == checksum(GOLDEN)
    assert detector.differing(np, cancelling(GOLDEN), GOLDEN) == 2


def test_a_large_matrix_wraps_around_without_a_complaint():
    """The sum is taken modulo 2**64: one flipped bit among a million of the largest elements shows."""
    full = np.full((1024, 1024), 0x7FFF, np.int16).view(np.float16)
    assert checksum(flipped(full, 1000, 1001, 15)) != checksum(full)


def test_an_even_number_of_flips_of_the_highest_bits_needs_the_comparison():
    """The highest bit of a 64-bit word weighs 2**63, and two of them nothing: the comparison counts both."""
    wrong = flipped(flipped(GOLDEN, 2, 3, 15), 9, 7, 15)
    assert checksum(wrong) == checksum(GOLDEN)
    assert detector.differing(np, wrong, GOLDEN) == 2


# float64 --------------------------------------------------------------------------------------------


@FAST
@given(seed=SEEDS)
def test_a_right_product_agrees_with_float64(seed):
    """Rounding to FP16 and FP32 accumulation stay within the bound, whatever the numbers."""
    a, b = inputs(seed)
    assert detector.golden_flaw(np, "fp16", a, b, right(a, b)) == ""
    assert detector.golden_flaw(np, "fp16", a, b, right(a, b), step=1) == ""


@FAST
@given(seed=SEEDS)
def test_fp16_accumulation_does_not_agree_with_float64(seed):
    """Partial sums in FP16 lose what the bound forbids, whatever the numbers."""
    a, b = inputs(seed)
    assert "differ from float64" in detector.golden_flaw(np, "fp16", a, b, accumulated_in_fp16(a, b))


@FAST
@given(seed=SEEDS)
def test_an_fp32_product_agrees_with_float64_and_one_of_tf32_does_not(seed):
    """FP32 has no rounding of the result to hide behind: inputs cut to ten bits of mantissa show."""
    a, b = inputs(seed, "fp32")
    assert detector.golden_flaw(np, "fp32", a, b, right(a, b)) == ""
    assert "differ from float64" in detector.golden_flaw(np, "fp32", a, b, rounded_to_tf32(a, b))


@FAST
@given(place=PLACES)
def test_a_nan_anywhere_is_refused(place):
    """The check for NaN and infinity looks at every element, not only at the sampled ones."""
    for value in (np.nan, np.inf):
        wrong = GOLDEN.copy()
        wrong[place] = value
        assert detector.golden_flaw(np, "fp16", *inputs(0), wrong)


@pytest.mark.parametrize("place", [(0, 0), (7, 14), (21, 21)])
def test_a_sampled_element_that_is_wrong_is_refused(place):
    """One bit in the middle of the mantissa of one sampled element is enough."""
    flaw = detector.golden_flaw(np, "fp16", *inputs(0), flipped(GOLDEN, *place, 4))
    assert flaw == "1 of 16 sampled elements differ from float64"


def test_a_nan_among_the_samples_differs_from_float64():
    """No comparison with a NaN is true, so that one which asks for larger than the bound would pass it."""
    wrong = GOLDEN.copy()
    wrong[7, 14] = np.nan
    assert detector.golden_flaw(np, "fp16", *inputs(0), wrong) == "1 of 16 sampled elements differ from float64"


def test_an_element_between_the_samples_escapes_float64():
    """That is the gap which the second place on the chip closes."""
    assert detector.golden_flaw(np, "fp16", *inputs(0), flipped(GOLDEN, 3, 5, 14)) == ""


# another place --------------------------------------------------------------------------------------


@FAST
@given(place=PLACES, bit=st.integers(0, 15))
def test_a_fault_that_sits_in_one_place_shows_in_another(place, bit):
    """Wherever it sits, computing the same elements elsewhere gives another result in two places."""
    product = at_one_place(*place, bit)
    a, b = inputs(0)
    share = detector.moved(np, product, a, b, product(a, b))
    assert share == 2 / ROWS**2
    assert detector.moved_flaw(share) == "0.3472% of the elements come out otherwise when computed in another place"


@FAST
@given(seed=SEEDS)
def test_a_clean_product_is_the_same_in_every_place(seed):
    """Bit by bit, whatever the numbers."""
    a, b = inputs(seed)
    assert detector.moved(np, right, a, b, right(a, b)) == 0.0
    assert detector.moved_flaw(0.0) == ""


def in_another_order_from(row):
    """Return a product that sums from the other end in the rows from `row` on, as the last tiles of a library may."""
    return lambda a, b: np.concatenate([right(a[:row], b), right(a[row:, ::-1], b[::-1])])


@FAST
@given(seed=SEEDS, row=st.sampled_from([1, 12, ROWS - 1]), kind=st.sampled_from(["fp16", "fp32"]))
def test_a_library_that_sums_in_another_order_elsewhere_is_no_fault(seed, row, kind):
    """However few or many elements are summed in another order there: with exact sums all come out alike."""
    a, b = inputs(seed, kind)
    product = in_another_order_from(row)
    golden = product(a, b)
    assert kind == "fp16" or detector.differing(np, right(a, b), golden)
    assert detector.moved(np, product, a, b, golden) == 0.0


@FAST
@given(place=PLACES, bit=st.integers(0, 15))
def test_a_fault_shows_behind_another_order(place, bit):
    """Where a library sums in another order, a bit that is turned over in one place still shows in two."""
    a, b = inputs(0)
    sums = in_another_order_from(ROWS // 2)

    def product(a, b):
        return flipped(sums(a, b), *place, bit)

    assert detector.moved(np, product, a, b, product(a, b)) in {1 / ROWS**2, 2 / ROWS**2}


def test_a_large_error_counts_even_where_exact_sums_do_not_show_it():
    """A fault that only some numbers wake is told from another order by what it did to the golden."""
    a, b = inputs(0)
    assert detector.moved(np, right, a, b, flipped(GOLDEN, 3, 5, 14)) == 1 / ROWS**2


def cut_to_tf32(matrix):
    """Return a matrix without the last 13 bits of its mantissa, cut and not rounded."""
    return (matrix.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def test_inputs_that_a_tensor_core_cuts_to_tf32_are_no_fault():
    """Cutting makes every product smaller: an error that grows with the result, and FP32's bound does not take."""
    a = np.random.default_rng(0).standard_normal((16, 4096)).astype(np.float32)
    product = cut_to_tf32(a) @ cut_to_tf32(a.T)
    assert detector.golden_flaw(np, "tf32", a, a.T, product, step=1) == ""
    assert "differ from float64" in detector.golden_flaw(np, "fp32", a, a.T, product, step=1)


# four detectors, four faults ------------------------------------------------------------------------


class Clock:
    """A clock that the chip moves."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        """Return the seconds passed."""
        return self.now

    def sleep(self, seconds):
        """Let them pass."""
        self.now += seconds


class Chip:
    """A GPU whose products, and whose batches after the golden, can be spoilt."""

    uuid = "GPU-0"

    def __init__(self, product=right, spoil=None, *, xp=np, took=0.1):
        self.clock, self.batches, self.xp = Clock(), 0, xp
        self._product, self._spoil, self._took = product, spoil or (lambda _, result: result), took

    def describe(self):
        """Return what it is."""
        return {"library": "numpy"}

    def product(self, kind, a, b):
        """Return the product, whatever its kind."""
        return self._product(a, b)

    def inputs(self, seed, kind):
        """Return the numbers of a seed."""
        return inputs(seed, kind)

    def batch(self, kind, a, b, *, bare=False):
        """Return two products, standing for ten, of which the second may be spoilt."""
        self.batches += 1
        self.clock.now += self._took
        result = self.product(kind, a, b)
        return Batch([(result, 7), (self._spoil(self.batches, result), 3)], self._took, 1.1 if kind != "fp32" else 0.5)


KINDS = "golden", "rehearsal", "batch", "device", "ready", "leg", "cost", "end"


def played(script, answers=()):
    """Return the records of a load that is answered each time it asks."""
    records, answer, left = [], None, list(answers)
    while True:
        try:
            record = script.send(answer)
        except StopIteration:
            return records
        records.append(record)
        answer = left.pop(0) if record.get("awaits") else None


def burnt(chip, seconds=3.0, answers=({"at": 0.0},), **how):
    """Return the records of a burn by kind."""
    records = played(burn(chip, chip.clock, seconds=seconds, **how), answers)
    return {kind: [r for r in records if r["kind"] == kind] for kind in KINDS}


def noticed(chip, **how):
    """Return which of checksum, comparison, float64 and second place notice something in a burn."""
    seen = burnt(chip, **how)
    flaws = " ".join(record["flaw"] for record in seen["golden"])
    found = {
        "checksum": any(batch["wrong"] for batch in seen["batch"]),
        "comparison": any(batch.get("elements") for batch in seen["batch"]),
        "float64": "float64" in flaws or "NaN" in flaws,
        "another place": "another place" in flaws,
    }
    return {name for name, yes in found.items() if yes}


def test_a_clean_burn_is_noticed_by_none():
    """A right chip gives no detector anything, and its golden results are those of other right chips."""
    assert noticed(Chip()) == set()


def test_only_the_checksum_sees_a_flip_between_two_comparisons():
    """One wrong product in three seconds, while a comparison is not due: every product is summed."""
    seen = burnt(Chip(spoil=lambda i, r: flipped(r, 2, 2, 0) if i == 5 else r), compare_s=100.0)
    assert [batch["wrong"] for batch in seen["batch"]][:6] == [0, 0, 0, 0, 1, 0]
    assert [batch.get("elements") for batch in seen["batch"]][:6] == [None, None, None, None, 1, None]


def test_only_the_comparison_sees_flips_that_cancel_out():
    """Sums agree, bits do not."""
    assert noticed(Chip(spoil=lambda _, r: cancelling(r))) == {"comparison"}


def test_only_float64_sees_a_product_that_is_wrong_everywhere_in_the_same_way():
    """FP16 accumulation repeats itself bit by bit, in every place and on every card."""
    assert noticed(Chip(accumulated_in_fp16)) == {"float64"}


def test_only_another_place_sees_a_fault_between_the_samples():
    """A stuck element that float64 does not sample is there in the golden already, so products agree with it."""
    assert noticed(Chip(at_one_place(3, 5, 14))) == {"another place"}


def test_only_the_other_cards_see_results_within_rounding():
    """One unit in the last place everywhere passes all that a card can do alone; its neighbours compute otherwise."""
    assert noticed(Chip(one_place_up)) == set()
    chips = {"gpu0": Chip(), "gpu1": Chip(), "gpu2": Chip(one_place_up)}
    assert outvoted({device: burnt(chip)["golden"] for device, chip in chips.items()}) == {"gpu2"}


# the loops ------------------------------------------------------------------------------------------


def test_a_rehearsal_finds_what_it_plants():
    """A flip and a NaN are found by both detectors, and a clean product passes; the probe asks for these by name."""
    for kind in ("fp16", "fp32"):
        assert detector.rehearse(np, right(*inputs(0, kind))) == dict.fromkeys(REHEARSED, True)


def test_a_rehearsal_leaves_the_golden_as_it_was():
    """What is planted is planted in copies."""
    before = GOLDEN.copy()
    detector.rehearse(np, GOLDEN)
    assert detector.differing(np, GOLDEN, before) == 0


@pytest.mark.parametrize("kind", ["fp16", "fp32"])
def test_a_blind_device_finds_nothing_in_rehearsal(kind):
    """Memory that loses writes shows no planted error, while the clean product passes as ever."""
    found = detector.rehearse(DeadMemory(), right(*inputs(0, kind)))
    assert {name for name, yes in found.items() if yes} == {"clean_passes"}
    (rehearsal,) = burnt(Chip(xp=DeadMemory()))["rehearsal"]
    assert rehearsal == {"kind": "rehearsal", "seed": 0, **found}


def test_a_burn_says_what_it_did():
    """Device, golden, rehearsal, batches with what was compared and what that stands for, and its end."""
    seen = burnt(Chip(), seconds=1.0)
    assert seen["device"] == [{"kind": "device", "uuid": "GPU-0", "library": "numpy"}]
    assert seen["golden"] == [{"kind": "golden", "seed": 0, "checksum": checksum(GOLDEN), "flaw": "", "moved": 0.0}]
    assert len(seen["batch"]) in (10, 11)
    said = {(b["seconds"], b["tflop"], b["checked"], b["products"], b["wrong"]) for b in seen["batch"]}
    assert said == {(0.1, 1.1, 2, 10, 0)}
    assert [b["t"] for b in seen["batch"]] == pytest.approx([i / 10 for i in range(len(seen["batch"]))])
    assert seen["end"] == [{"kind": "end"}]


def test_a_burn_begins_when_it_is_told():
    """All is proven and rehearsed before the common start, and the asked seconds count from there."""
    seen = burnt(Chip(), seconds=1.0, answers=[{"at": 42.0}])
    assert seen["ready"] == [{"kind": "ready", "t": 0.0, "awaits": "the time to start"}]
    assert seen["batch"][0]["t"] == 42.0
    assert seen["batch"][-1]["t"] < 43.0


def test_an_open_ended_burn_asks_how_long_to_go_on():
    """Leg by leg until it is told 0; the numbers change as ever."""
    seen = burnt(Chip(), seconds=2.0, open_ended=True, answers=[{"at": 0.0}, {"seconds": 2.0}, {"seconds": 0}])
    assert len(seen["leg"]) == 2
    assert 40 <= len(seen["batch"]) <= 42
    assert seen["end"]


def test_a_burn_tells_what_its_checks_cost():
    """Batches with and without checks are taken in turn at the end, in s per TFLOP."""
    (cost,) = burnt(Chip(), seconds=1.0)["cost"]
    assert cost == {"kind": "cost", "unchecked": pytest.approx(0.1 / 1.1), "checked": pytest.approx(0.1 / 1.1)}


def test_a_burn_takes_new_numbers_now_and_then():
    """After reseed_s come other inputs with their own golden and rehearsal, and no longer than asked in all."""
    seen = burnt(Chip(), seconds=5.0, reseed_s=2.0)
    assert [golden["seed"] for golden in seen["golden"]] == [0, 1, 2]
    assert [rehearsal["seed"] for rehearsal in seen["rehearsal"]] == [0, 1, 2]
    assert len({golden["checksum"] for golden in seen["golden"]}) == 3
    assert 50 <= len(seen["batch"]) <= 53


def test_one_product_a_second_is_compared():
    """A comparison is due each compare_s, not with each batch."""
    seen = burnt(Chip(), seconds=5.0)["batch"]
    assert [batch["elements"] for batch in seen if "elements" in batch] == [0] * 4
    assert "elements" not in seen[0]


def test_a_wrong_product_is_compared_at_once():
    """Every wrong result of a batch is counted, and how many elements differ is told."""
    batches = burnt(Chip(spoil=lambda _, r: flipped(flipped(r, 1, 1, 1), 2, 2, 2)), seconds=1.0)["batch"]
    assert {(batch["wrong"], batch["elements"]) for batch in batches} == {(1, 2)}


def timed(chip, **how):
    """Return the records of a timed product."""
    return list(gemm(chip, chip.clock, **{"kind": "fp16", "warm_up_s": 0.5, "seconds": 1.0, **how}))


def test_a_timed_product_is_proven_first_and_warmed_up():
    """The golden check comes before anything is timed, and warm-up is not timed."""
    kinds = [kind for kind, _ in itertools.groupby(record["kind"] for record in timed(Chip()))]
    assert kinds == ["device", "golden", "warm_up", "batch"]
    first = next(record for record in timed(Chip()) if record["kind"] == "batch")
    assert first == {"kind": "batch", "t": pytest.approx(2.0), "seconds": 0.1, "tflop": 1.1, "wrong": 0}
    assert {r["tflop"] for r in timed(Chip(), kind="fp32") if r["kind"] == "batch"} == {0.5}


class Unsteady(Chip):
    """A chip whose clock still moves for so many batches."""

    def __init__(self, moves):
        super().__init__()
        self._moves = moves

    def batch(self, kind, a, b, *, bare=False):
        """Return a batch, every second of the first ones slower."""
        self._took = 0.1 if self.batches > self._moves or self.batches % 2 else 0.12
        return super().batch(kind, a, b)


@pytest.mark.parametrize(("moves", "from_s", "to_s"), [(0, 2.0, 2.2), (100, 12.5, 13.5), (1000, 30.0, 30.2)])
def test_a_timed_product_is_warm_when_its_rate_stands(moves, from_s, to_s):
    """Nothing is timed before the rate has kept within 1 % for 2 s, and nothing waits longer than half a minute."""
    first = next(record for record in timed(Unsteady(moves)) if record["kind"] == "batch")
    assert from_s <= first["t"] <= to_s


@pytest.mark.parametrize(
    ("product", "flaw"), [(accumulated_in_fp16, "float64"), (at_one_place(3, 5, 14), "another place"), (right, "")]
)
def test_a_timed_product_names_its_flaw(product, flaw):
    """Both checks of the golden are there for a rate too."""
    (golden,) = [record for record in timed(Chip(product)) if record["kind"] == "golden"]
    assert flaw in golden["flaw"]
    assert bool(flaw) == bool(golden["flaw"])


def test_a_timed_fp32_product_is_refused_when_it_is_one_of_tf32():
    """The golden check of an FP32 rate sees inputs that were rounded on the way."""
    golden = next(r for r in timed(Chip(rounded_to_tf32), kind="fp32") if r["kind"] == "golden")
    assert "differ from float64" in golden["flaw"]


@pytest.mark.parametrize("kind", ["fp16", "fp32"])
def test_a_wrong_product_in_a_timed_batch_is_counted(kind):
    """Of two results of each batch the one with a flipped lowest bit is wrong, and is wrong in that batch only."""
    chip = Chip(spoil=lambda i, r: flipped(r, 4, 4, 0) if i == 23 else r)
    wrong = [record["wrong"] for record in timed(chip, kind=kind) if record["kind"] == "batch"]
    assert wrong[:4] == [0, 0, 1, 0]
    assert sum(wrong) == 1
