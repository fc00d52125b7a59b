"""GPU probes: what records of loads and samples of sensors prove, and that nothing else counts."""

import contextlib
import copy
import functools
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.evidence import checked
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.burns.cpu import Loaded
from pytest_gpuaccept.probes.cards import Card, Window, amount, batches, card, cards, flaws, ran_on, tally, window
from pytest_gpuaccept.probes.gpus import burn, burnt, gemm, gpu, links
from pytest_gpuaccept.selfcheck import matrix
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import Completed

FUZZ = settings(
    deadline=None, database=None, max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
OWN = Card("gpu0", "GPU-0", "00000000:01:00.0", object())
PERIOD = 0.2
NO_CARD = SimpleNamespace(card=None)
"""A profile that names no card."""
NANO = 1e9


def samples(seconds=60.0, **readings):
    """Return telemetry of a busy card: each reading a number, or a function of the time in s."""
    usual = {"temperature": 65, "power": 450.0, "reasons": 4, "utilisation": 100, "gen": 4, "width": 16,
             "throttle_ns": 0, "sm_mhz": 2600}  # fmt: skip
    return [
        {"kind": "sample", "t": i * PERIOD, "uuid": OWN.uuid, "failed": {}}
        | {name: read(i * PERIOD) if callable(read) else read for name, read in {**usual, **readings}.items()}
        for i in range(round(seconds / PERIOD))
    ]


def seen(taken=None, ended=60.0, **readings):
    """Return a window of 60 s over samples."""
    return Window("gpu0", samples(ended, **readings) if taken is None else taken, 0.0, ended, PERIOD)


def rehearsal(seed=0, **found):
    """Return the record of a rehearsal that found all, unless told."""
    return {"kind": "rehearsal", "seed": seed, **dict.fromkeys(burnt.REHEARSED, True), **found}


def golden(seed=0, checksum=77, flaw=""):
    """Return the record of a golden result."""
    return {"kind": "golden", "seed": seed, "checksum": checksum, "flaw": flaw}


def batch(t=0.0, **other):
    """Return the record of a checked batch."""
    return {"kind": "batch", "t": t, "seconds": 0.1, "tflop": 16.0, "wrong": 0, "checked": 15, "products": 15, **other}


def whole(*timed):
    """Return the records of a burn of 60 s that went well: a batch and a bitwise comparison each second."""
    timed = timed or [batch(float(t), seconds=1.0, elements=0, checked=2, products=2) for t in range(60)]
    return [{"kind": "device", "uuid": OWN.uuid}, golden(), rehearsal(), *timed, {"kind": "end"}]


def of(records=None, view=None, *, outvoted=False):
    """Return a card's burn from its records and its window."""
    records = whole() if records is None else records
    timed = [record for record in records if record.get("kind") == "batch"]
    return burnt.Burnt(OWN, records, timed, view or seen(), outvoted)


# votes -----------------------------------------------------------------------------------------------


def votes(*sums, seed=0):
    """Return the devices that are outvoted when cards have these checksums."""
    return burnt.outvoted({f"gpu{i}": [golden(seed, value)] for i, value in enumerate(sums)})


@pytest.mark.parametrize(
    ("sums", "minority"),
    [
        ((1,), set()),
        ((1, 1), set()),
        ((1, 1, 1, 1), set()),
        ((1, 2, 1), {"gpu1"}),
        ((1, 1, 1, 2), {"gpu3"}),
        ((1, 2, 3, 1, 1), {"gpu1", "gpu2"}),
        ((1, 2), {"gpu0", "gpu1"}),
        ((1, 1, 2, 2), {"gpu0", "gpu1", "gpu2", "gpu3"}),
        ((), set()),
    ],
)
def test_a_result_counts_only_with_a_majority(sums, minority):
    """A card that computes otherwise than most is wrong; where no result has a majority, none is proven."""
    assert votes(*sums) == minority


def test_cards_are_compared_seed_by_seed():
    """One seed that differs is enough, and a seed that a card did not reach says nothing about it."""
    records = {
        "gpu0": [golden(0, 1), golden(1, 5)],
        "gpu1": [golden(0, 1), golden(1, 6)],
        "gpu2": [golden(0, 1), golden(1, 5)],
        "gpu3": [golden(0, 1)],
    }
    assert burnt.outvoted(records) == {"gpu1"}


# windows ----------------------------------------------------------------------------------------------


def test_a_window_with_small_gaps_is_a_reading():
    """NVML may take its time on many busy cards: every second sample is enough."""
    taken = [s for i, s in enumerate(samples()) if i % 2]
    assert len(seen(taken).values("temperature")) == len(taken) == 150


def test_a_window_with_large_gaps_is_none():
    """With more missing than that, the reason says how many there were."""
    taken = [s for i, s in enumerate(samples()) if i % 3 == 1]
    with pytest.raises(Unmeasurable, match="no temperature of gpu0 in the window: 100 samples where 299 were due"):
        seen(taken).values("temperature")


@pytest.mark.parametrize("unseen", [(0.0, 1.2), (30.0, 31.2), (59.0, 60.0)], ids=["beginning", "middle", "end"])
def test_a_part_of_the_window_that_nobody_saw_makes_it_no_reading(unseen):
    """However many samples there are elsewhere, more than a second without one may hide anything."""
    taken = [s for s in samples() if not unseen[0] <= s["t"] <= unseen[1]]
    with pytest.raises(Unmeasurable, match=r"no power of gpu0 for 1\.[2-4] s of the window"):
        seen(taken).values("power")


def test_a_gap_is_one_of_the_reading_not_of_the_sample():
    """A sensor that fails from some time on was not seen then, although its neighbours were."""
    taken = [{k: v for k, v in s.items() if k != "power" or s["t"] < 58.0} for s in samples()]
    assert len(seen(taken).values("temperature")) == 300
    with pytest.raises(Unmeasurable, match=r"no power of gpu0 for 2\.2 s of the window"):
        seen(taken).values("power")


@pytest.mark.parametrize(
    "order",
    [lambda s: [*s, *s], lambda s: sorted(s * 2, key=lambda one: one["t"]), lambda s: s[::-1]],
    ids=["again", "twice", "backwards"],
)
def test_samples_that_do_not_go_forward_are_no_reading(order):
    """The same samples twice are not twice the proof, and a clock that went back dates nothing."""
    with pytest.raises(Unmeasurable, match="samples of gpu0 do not go forward in time"):
        seen(order(samples())).values("power")


def test_a_reading_that_failed_is_told_in_the_words_of_nvml():
    """A reading that is absent is neither zero nor silent."""
    taken = samples()
    for one in taken:
        del one["temperature"]
        one["failed"] = {"temperature": "Not Supported"}
    with pytest.raises(Unmeasurable, match="no temperature of gpu0 in the window: Not Supported"):
        seen(taken).values("temperature")
    assert len(seen(taken).values("power")) == 300


@pytest.mark.parametrize("failed", [None, "Not Supported", ["temperature"], {}])
def test_a_reading_that_failed_without_a_reason_is_absent_all_the_same(failed):
    """Where no reason can be read, the number of samples is the reason."""
    taken = [{k: v for k, v in one.items() if k != "temperature"} | {"failed": failed} for one in samples()]
    with pytest.raises(Unmeasurable, match="0 samples where 299 were due"):
        seen(taken).values("temperature")


def test_an_empty_window_is_no_reading():
    """Not one sample, however short the window."""
    with pytest.raises(Unmeasurable, match="0 samples where 1 were due"):
        seen([], ended=0.0).values("power")


@pytest.mark.parametrize("value", [None, "65", True, -1, float("nan"), float("inf"), [65], 10**400], ids=repr)
def test_what_is_no_amount_is_no_reading(value):
    """A number is a number: no text, no truth value, nothing negative, endless or absent."""
    with pytest.raises(Unmeasurable, match="temperature"):
        seen(temperature=lambda _: value).values("temperature")
    with pytest.raises(Unmeasurable):
        amount({"x": value}, "x")


def test_a_window_holds_the_samples_of_its_card_and_time():
    """Other cards and other times are left out, both ends included."""
    taken = [*samples(), *({**one, "uuid": "GPU-1"} for one in samples())]
    got = window(OWN, taken, 10.0, 20.0, PERIOD)
    assert (got.samples[0]["t"], got.samples[-1]["t"]) == (10.0, 20.0)
    assert {one["uuid"] for one in got.samples} == {"GPU-0"}
    assert len(got.samples) == 51


def test_a_busy_card_is_proven_loaded():
    """Nine of ten samples at half utilisation or more are a proof, which says so."""
    busy = seen(utilisation=lambda t: 50 if t >= 6.0 else 0)
    assert busy.prove_loaded() == "gpu0 busy in 90% of 300 samples"


@pytest.mark.parametrize(
    "utilisation",
    [0, 49, lambda t: 100 if t >= 7.0 else 0, lambda t: 100 * (round(t / PERIOD) % 5 > 0)],
    ids=["idle", "half", "late", "gaps"],
)
def test_an_idle_card_is_not_proven_loaded(utilisation):
    """Less than that, and the load is said not to have reached it."""
    with pytest.raises(Unmeasurable, match="the load did not reach gpu0"):
        seen(utilisation=utilisation).prove_loaded()


def test_a_card_without_utilisation_is_not_proven_loaded():
    """No reading proves nothing."""
    taken = [{k: v for k, v in one.items() if k != "utilisation"} for one in samples()]
    with pytest.raises(Unmeasurable, match="no utilisation of gpu0"):
        seen(taken).prove_loaded()


# records -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([], "ran on nothing"),
        ([batch()], "ran on nothing"),
        ([{"kind": "device", "uuid": "GPU-1"}, batch()], r"ran on GPU-1: CUDA's order is not NVML's"),
        ([{"kind": "device", "uuid": "GPU-0"}, {"kind": "device", "uuid": "GPU-1"}, batch()], "ran on GPU-0, GPU-1"),
        ([{"kind": "device"}, batch()], "ran on None"),
        ([{"kind": "device", "uuid": "GPU-0"}], "timed 0 batches"),
        ([{"kind": "device", "uuid": "GPU-0"}, batch(), batch(seconds=0)], "not all took time"),
        ([{"kind": "device", "uuid": "GPU-0"}, batch(seconds=1e-9)], "not all took time"),
        ([{"kind": "device", "uuid": "GPU-0"}, batch(seconds=float("nan"))], "seconds = nan, which is no amount"),
        ([{"kind": "device", "uuid": "GPU-0"}, batch(tflop="16")], "tflop = '16', which is no amount"),
        ([{"kind": "device", "uuid": "GPU-0"}, batch(t=None)], "t = None, which is no amount"),
    ],
)
def test_batches_of_another_card_or_without_time_do_not_count(records, reason):
    """A load counts when it names its card, once, and every batch took time."""
    with pytest.raises(Unmeasurable, match=reason):
        batches(OWN, records, "batch")


@pytest.mark.parametrize(
    ("records", "here"),
    [
        ([], False),
        ([{"kind": "device", "uuid": OWN.uuid}, batch()], True),
        ([{"kind": "device", "uuid": "GPU-1"}], False),
        ([{"kind": "device", "uuid": OWN.uuid}] * 2, False),
        ([{"kind": "device", "uuid": [OWN.uuid]}], False),
        ([{"kind": "batch", "uuid": OWN.uuid}], False),
    ],
)
def test_a_load_ran_on_the_one_card_that_it_names(records, here):
    """None, another and two are not it."""
    assert ran_on(OWN, records) is here


def test_a_sum_takes_what_can_be_read_and_says_why_the_rest_cannot():
    """One garbled record hides nothing of the others, and is told by the first reason."""
    assert tally([], "wrong") == (0, "")
    assert tally([batch(wrong=2), batch(wrong=3)], "wrong") == (5, "")
    spoilt = [batch(wrong="x"), batch(wrong=2), batch(wrong=None), batch(wrong=-1), batch(wrong=3)]
    assert tally(spoilt, "wrong") == (5, "a record of kind 'batch' says wrong = 'x', which is no amount")


def test_batches_of_the_card_itself_are_all_returned():
    """Warm-up and other records are left out."""
    timed = [batch(), batch(0.1)]
    assert batches(OWN, [*whole(*timed), {"kind": "warm_up"}], "batch") == timed


def test_a_golden_that_says_nothing_is_not_right():
    """Only an empty text says that a golden result was confirmed."""
    assert flaws([golden(), golden(flaw="wrong"), {"kind": "golden"}, batch()]) == [
        "", "wrong", "nothing says that it is right"
    ]  # fmt: skip


# errors ---------------------------------------------------------------------------------------------------


def test_no_error_is_proven_by_rehearsal_golden_end_and_load():
    """Zero comes with a sentence of what would have shown an error."""
    rehearsed = "a flipped bit and a NaN were found in rehearsal; golden agrees with float64"
    proof = f"120 results checked; {rehearsed}; gpu0 busy in 100% of 300 samples"
    assert burnt.errors(of()) == (0, proof, "")


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([r for r in whole() if r["kind"] != "rehearsal"], "no rehearsal of every golden result"),
        ([r for r in whole() if r["kind"] != "golden"], "no rehearsal of every golden result"),
        ([*whole(), golden(1)], "no rehearsal of every golden result"),
        ([*whole(), golden(1), {"kind": "rehearsal", "seed": 1}], "flip_by_checksum, flip_by_compare, nan_by"),
        ([*whole(), golden(1), rehearsal(1, nan_by_compare=False)], "rehearsed errors: nan_by_compare$"),
        ([*whole(), golden(1), rehearsal(1, clean_passes=None)], "rehearsed errors: clean_passes$"),
        ([*whole(), golden(1), rehearsal(1, clean_passes=1)], "rehearsed errors: clean_passes$"),
        ([r for r in whole() if r["kind"] != "end"], "the burn did not reach its end"),
        ([*whole(), golden(1), rehearsal(2)], "a golden result was not rehearsed with its own seed"),
        (whole(*(batch(t, seconds=1.0, elements=0, checked=int(t != 30)) for t in range(60))), "not every product"),
        (whole(*(batch(t, seconds=1.0, elements=0, products=15 + (t == 30)) for t in range(60))), "not every product"),
        (whole(*(batch(t, seconds=1.0, elements=0, products=0) for t in range(60))), "not every product"),
        (whole(*(batch(t, seconds=1.0) for t in range(60))), "0 bitwise comparisons in 60 s"),
        (
            whole(*(batch(t, seconds=1.0) | ({} if t % 3 else {"elements": 0}) for t in range(60))),
            "20 bitwise comparisons",
        ),
        (whole(batch(checked=None)), "checked = None"),
        (whole({k: v for k, v in batch().items() if k != "wrong"}), "wrong = None"),
    ],
)
def test_no_error_without_its_proof_is_no_reading(records, reason):
    """Where anything of the proof is missing, zero errors are not zero errors."""
    with pytest.raises(Unmeasurable, match=reason):
        burnt.errors(of(records))


def test_no_error_on_an_idle_card_is_no_reading():
    """A card that the load did not reach made no errors, and proves nothing by it."""
    with pytest.raises(Unmeasurable, match="the load did not reach gpu0"):
        burnt.errors(of(view=seen(utilisation=0)))


def test_wrong_products_are_counted_also_where_the_sum_agreed():
    """What the checksum found and what only the comparison found both count; the note says how hot it was."""
    records = whole(batch(wrong=2, elements=3), batch(elements=2), batch(elements=0), batch())
    value, proof, note = burnt.errors(of(records))
    assert (value, proof) == (3, None)
    assert note == "3 batches of 4 held a wrong product; up to 65 C"


def test_errors_need_no_proof():
    """A wrong product is one, whatever else is missing."""
    assert burnt.errors(of([batch(wrong=1)], seen([])))[0] == 1


def test_a_wrong_golden_makes_every_product_wrong():
    """Products that agree with a wrong golden are wrong, all of them."""
    value, proof, note = burnt.errors(of([*whole(), golden(1, flaw="3 of 9 sampled elements differ"), rehearsal(1)]))
    assert (value, proof) == (120, None)
    assert note == "the product itself is wrong: 3 of 9 sampled elements differ"


def test_a_wrong_golden_is_an_error_even_before_a_product_was_checked():
    """It cannot come out as zero."""
    assert burnt.errors(of([*whole(batch(checked=0)), golden(flaw="x")]))[0] == 1


def test_an_outvoted_card_has_errors_only():
    """A card that no majority agrees with computes wrong, however well it agrees with itself."""
    value, proof, note = burnt.errors(of(outvoted=True))
    assert (value, proof) == (120, None)
    assert "no majority of the cards computes what gpu0 does" in note


# rate, heat and throttle -----------------------------------------------------------------------------------


def test_the_sustained_rate_is_the_mean_of_the_last_half():
    """One good second at the end does not carry it, and a good beginning does not count."""
    timed = [batch(tflop=t, seconds=s) for t, s in [(90.0, 0.1), (90.0, 0.1), (10.0, 0.1), (10.0, 0.3)]]
    assert burnt.sustained_tflops(of(whole(*timed))) == pytest.approx(50.0)


def test_time_between_batches_is_time():
    """A card that stands still between its batches is as slow as it is, however fast each batch was."""
    timed = [batch(t=t, tflop=10.0) for t in (0.0, 0.4, 0.8, 1.2)]
    assert burnt.sustained_tflops(of(whole(*timed))) == pytest.approx(20.0 / 0.5)


def test_a_rate_of_an_idle_card_is_none():
    """A rate needs the proof that it was the card's."""
    with pytest.raises(Unmeasurable, match="did not reach"):
        burnt.sustained_tflops(of(view=seen(utilisation=3)))


def test_the_peak_temperature_is_the_largest_and_a_rise_is_said():
    """A temperature that still rises at the end is no steady one, and the note says so."""
    assert burnt.temperature(of(view=seen(temperature=lambda t: 70 if t == 30.0 else 65))) == (70, None, "")
    value, _, note = burnt.temperature(of(view=seen(temperature=lambda t: 40 + t / 3)))
    assert value == pytest.approx(59.9, abs=0.1)
    assert note == "still rising by 20.0 C/min at the end"


@pytest.mark.parametrize("temperature", [0, lambda t: 0 if t == 30.0 else 65])
def test_a_sensor_that_says_zero_measures_nothing(temperature):
    """Zero degrees is below every limit and no temperature: neither peak nor start nor plateau."""
    view = seen(temperature=temperature)
    for read in (burnt.temperature, lambda b: burnt.sensed(b.window), lambda b: burnt.plateau(b.window)):
        with pytest.raises(Unmeasurable, match="the temperature of gpu0 reads 0 C throughout the load"):
            read(of(view=view))


@pytest.mark.parametrize(
    ("name", "read", "stuck"),
    [("temperature", burnt.temperature, 65), ("power", burnt.power, 450.0), ("power", burnt.power, 0.0)],
)
def test_a_sensor_that_does_not_move_measures_nothing(name, read, stuck):
    """A value that shows nothing of the load is none; ten samples are too few to say so."""
    with pytest.raises(Unmeasurable, match=f"the {name} of gpu0 reads {stuck:g} . throughout the load"):
        read(of(view=seen(**{name: stuck})))
    assert read(of(view=seen(**{name: lambda t: 60.0 if t < 1.0 else 65.0})))[0] == 65.0
    few = seen(ended=2.0, **{name: 65.0})
    assert (read(of(view=few))[0], len(few.samples)) == (65.0, burnt.FEW)


@pytest.mark.parametrize(("per_s", "expected"), [(0.0, 0.0), (0.05, 3.0), (-0.1, -6.0)])
def test_the_slope_is_that_of_the_last_seconds(per_s, expected):
    """Whatever came before, the last 20 s count, in C per minute."""
    view = seen(temperature=lambda t: 50 + per_s * t if t >= 39.0 else 30)
    assert burnt.slope_per_min(view) == pytest.approx(expected, abs=0.05)


def test_a_slope_needs_four_samples_and_passes_over_gaps():
    """Too few samples show none, which is not a flat one; a sample without a temperature is left out."""
    assert burnt.slope_per_min(seen(samples()[-3:])) is None
    taken = samples(temperature=lambda t: 40 + t / 10)
    del taken[-5]["temperature"]
    assert burnt.slope_per_min(seen(taken)) == pytest.approx(6.0, abs=0.1)
    at_once = [{**one, "t": 60.0} for one in samples(temperature=lambda t: 40 + t)]
    assert burnt.slope_per_min(seen(at_once)) is None


def test_the_plateau_is_where_the_temperature_stays_near_its_last():
    """Seconds until it is within 1 C for good; one that hardly moves is there from the start."""
    assert burnt.plateau(seen(temperature=lambda t: 65 if t >= 20.0 else 64)) == 0.0
    assert burnt.plateau(seen(temperature=lambda t: 65 if t >= 20.0 else 45)) == pytest.approx(20.0)
    assert burnt.plateau(seen(temperature=lambda t: 64 if t >= 20.0 else 45 + t)) == pytest.approx(18.0)
    assert burnt.plateau(seen(temperature=lambda t: 70 if t == 30.0 else 65)) == pytest.approx(30.2)


def throttled(**readings):
    """Return the throttle time of a card with these readings."""
    return burnt.throttle(of(view=seen(**readings)))


def test_throttle_is_what_the_time_counters_gained():
    """Seconds between the first and the last reading; what was lost before the burn is not its own."""
    value, proof, note = throttled(throttle_ns=lambda t: 5 * NANO + (t - 30 if t > 30 else 0) * NANO)
    assert value == pytest.approx(29.8)
    assert proof == "time counters read 300 times; reasons sampled 300 times; gpu0 busy in 100% of 300 samples"
    assert note == ""
    assert throttled(throttle_ns=5 * NANO)[0] == 0


@pytest.mark.parametrize(
    "counter",
    [lambda t: (60 - t) * NANO, lambda t: 0 if t == 30.0 else NANO, lambda t: (t % 40) * NANO],
    ids=["always", "once", "reset"],
)
def test_a_counter_that_goes_backwards_is_no_reading(counter):
    """A driver that was reset has forgotten what it counted, wherever in the burn that was."""
    with pytest.raises(Unmeasurable, match="throttle_ns of gpu0 went backwards"):
        throttled(throttle_ns=counter)


@pytest.mark.parametrize(
    ("mask", "counts"),
    [(0x00, False), (0x04, False), (0x05, False), (0x08, True), (0x20, True), (0x40, True), (0x80, True),
     (0x04 | 0x20, True), (0x04 | 0x80, True), (0x10, False), (0x02, False), (0x100, False)],
)  # fmt: skip
def test_without_counters_the_mask_is_sampled(mask, counts):
    """Heat and brake count, alone or beside the power cap; the power cap alone never does."""
    taken = samples(reasons=lambda t: mask if t >= 30.0 else 4)
    for one in taken:
        del one["throttle_ns"]
        one["failed"] = {"throttle_ns": "Not Supported"}
    value, proof, note = burnt.throttle(of(view=seen(taken)))
    assert value == (29.8 if counts else 0.0)
    assert proof == "reasons sampled 300 times; gpu0 busy in 100% of 300 samples"
    assert note == "no time counters: sampled"


def test_a_mask_that_is_set_counts_although_the_counters_stand_still():
    """Of counters and mask the one that saw more is believed."""
    value, proof, _ = throttled(reasons=lambda t: 0x20 if t >= 30.0 else 4)
    assert value == 29.8
    assert proof.startswith("time counters read 300 times; reasons sampled 300 times")
    both = throttled(reasons=lambda t: 0x20 if t >= 59.0 else 4, throttle_ns=lambda t: t * NANO)
    assert both[0] == pytest.approx(59.8)


@pytest.mark.parametrize(("long", "seconds"), [(0.2, 0.0), (0.4, 0.2)])
def test_one_sample_of_the_mask_alone_is_a_change_of_clocks(long, seconds):
    """Slowing shows in two samples in a row."""
    assert throttled(reasons=lambda t: 0x20 if 30.0 <= t + 1e-9 < 30.0 + long else 4)[0] == seconds


def test_without_counters_and_mask_there_is_no_throttle_time():
    """Nothing that would have shown a throttle means no reading of it."""
    taken = [{k: v for k, v in one.items() if k not in ("throttle_ns", "reasons")} for one in samples()]
    with pytest.raises(Unmeasurable, match="no reasons of gpu0"):
        burnt.throttle(of(view=seen(taken)))


def test_an_idle_card_was_not_throttled_and_proves_nothing():
    """A card without load has no throttle time, not zero."""
    with pytest.raises(Unmeasurable, match="did not reach"):
        throttled(utilisation=0)


def test_power_and_clock_are_means_of_the_last_half():
    """They belong to the sustained rate: what the card drew and clocked when it was cold does not count."""
    view = seen(power=lambda t: 100.0 if t < 30.0 else 440.0, sm_mhz=lambda t: 2900 if t < 30.0 else 2500)
    outcomes = {o.metric: o for o in burnt.values(Site(None, NO_CARD, "host", {}, None), burnt.ALONE, of(view=view))}
    assert outcomes["gpu.burn.power_mean"].value == 440.0
    assert outcomes["gpu.burn.clock"].value == 2500.0
    assert (outcomes["gpu.burn.power_mean"].samples, outcomes["gpu.burn.tflops"].samples) == (300, 60)


def test_a_rate_whose_clock_nobody_saw_is_none_and_wrong_products_stay():
    """Without its clock nothing shows that the rate is possible; everything else of the burn has its reading."""
    blind = [{k: v for k, v in one.items() if k != "sm_mhz"} | {"power": 400.0 + one["t"]} for one in samples()]
    where = Site(None, NO_CARD, "host", {}, None)
    wrong = of(whole(*(batch(float(t), seconds=1.0, elements=0, wrong=1) for t in range(60))), seen(blind))
    outcomes = {o.metric: o for o in burnt.values(where, burnt.ALONE, wrong)}
    for metric in ("gpu.burn.tflops", "gpu.burn.clock"):
        assert outcomes[metric].reason == "no sm_mhz of gpu0 in the window: 0 samples where 299 were due"
    assert outcomes["gpu.burn.errors"].value == 60
    assert isinstance(outcomes["gpu.burn.power_peak"], Measurement)


def test_no_error_of_a_burn_that_died_is_told_by_its_death():
    """Whatever else its records lack, they lack it because it died."""
    records = [r for r in whole() if r["kind"] not in ("end", "rehearsal")]
    with pytest.raises(Unmeasurable, match=r"^out of memory$"):
        burnt.errors(replace(of(records), flaw="out of memory"))


@pytest.mark.parametrize(
    ("unchecked", "checked", "percent"), [(0.0095, 0.01, 5.0), (0.01, 0.01, 0.0), (0.011, 0.01, 0.0)]
)
def test_the_cost_of_checking_is_the_rate_that_it_takes(unchecked, checked, percent):
    """In % of the rate without checks; one that came out slower without them cost nothing."""
    value, _, _ = burnt.cost(of([*whole(), {"kind": "cost", "unchecked": unchecked, "checked": checked}]))
    assert value == pytest.approx(percent)


@pytest.mark.parametrize(
    ("cost", "reason"),
    [
        ([], "says unchecked = None"),
        ([{"kind": "cost", "unchecked": 0.01}], "says checked = None"),
        ([{"kind": "cost", "unchecked": 0, "checked": 0}], "the unchecked batches of gpu0 took no time"),
    ],
)
def test_a_cost_that_nobody_measured_is_none(cost, reason):
    """A burn that was cut off before it compared both has no cost, not a cost of zero."""
    with pytest.raises(Unmeasurable, match=reason):
        burnt.cost(of([*whole(), *cost]))


def capped(**readings):
    """Return the time at the power limit of a burn with these readings."""
    where = Site(None, NO_CARD, "host", {}, None)
    return {o.metric: o for o in burnt.values(where, burnt.ALONE, of(view=seen(**readings)))}["gpu.burn.power_capped"]


def test_time_at_the_power_limit_is_counted_and_no_fault():
    """Seconds that the driver's counter gained in the burn; a driver without the counter gives no zero."""
    assert capped(power_cap_ns=lambda t: 7 * NANO + t * NANO / 2).value == pytest.approx(29.9)
    assert capped(power_cap_ns=7 * NANO).value == 0
    assert "no power_cap_ns of gpu0" in capped().reason
    assert capped(power_cap_ns=lambda t: (60 - t) * NANO).reason.startswith("power_cap_ns of gpu0 went backwards")


def test_a_throttle_states_the_seconds_of_each_cause():
    """Heat by software and by hardware, the brake and the power cap, each where the driver counts it."""
    counters = {"sw_thermal_ns": lambda t: t * NANO, "brake_ns": 5 * NANO, "power_cap_ns": lambda t: (60 - t) * NANO}
    outcome = burnt.attempt(
        Site(None, None, "host", {}, None), burnt.THROTTLE, of(view=seen(**counters)), burnt.throttle
    )
    causes = {name: value for name, value in outcome.conditions.items() if name.endswith("_s")}
    assert causes == {"sw_thermal_s": 59.8, "brake_s": 0.0}


# at the same time -----------------------------------------------------------------------------------------


def lasted(*timed, wrong=0):
    """Return a burn of batches of (start, seconds), its window as long as they are."""
    made = [batch(float(t), seconds=s, elements=0, wrong=wrong) for t, s in timed]
    began, ended = made[0]["t"], made[-1]["t"] + made[-1]["seconds"]
    return burnt.Burnt(OWN, whole(*made), made, Window("gpu0", samples(), began, ended, PERIOD), outvoted=False)


def minute(began=0.0, seconds=60, **other):
    """Return a burn of batches of a second each."""
    return lasted(*((began + i, 1.0) for i in range(seconds)), **other)


def together(*burns, load=None):
    """Return the flaws of burns that were asked to last 60 s."""
    asked = Site(None, None, "host", {"seconds": 60}, None)
    return [b.flaw for b in burn._together(burns, asked, load)]


def cpus(began=0.0, ended=60.0, busy=100.0, share=99.0):
    """Return a run of stress-ng on one CPU that verified its results, with a share of it in %."""
    done = Completed(("stress-ng",), 0, "", "stress-ng: info:  [7] dispatching hogs: 1 cpu\n", 60.0)
    times = f"  user-time: {0.6 * share}\n  system-time: 0.0\n  cpu-usage-per-instance: {share}\n"
    report = f"metrics:\n- stressor: cpu\n  bogo-ops: 5000\n  wall-clock-time: 60.0\n{times}"
    return Loaded(1, 60, {0: busy}, done, report, began, ended, loadavg="0.98 0.4 0.1 2/90 7")


def test_burns_that_ran_together_have_no_flaw():
    """A twentieth of the time may be lost to the start, of the cards and of the CPUs."""
    assert together(minute(), minute(1.0), minute(2.0), load=cpus(2.0, 63.0)) == [""] * 3


def test_a_short_burn_is_none():
    """Half a minute of a minute makes every burn of the run one that was not asked for."""
    assert together(minute(), minute(seconds=30)) == ["the loads ran together for 30.0 s of 60 s"] * 2
    assert together(minute(seconds=57)) == [""]
    assert together(minute(seconds=56)) == ["the loads ran together for 56.0 s of 60 s"]


def test_loads_that_do_not_overlap_are_no_load_together():
    """Each may have lasted as long as asked: a burn that starts 59 s late shared one second with the other."""
    assert together(minute(), minute(59.0)) == ["the loads ran together for 1.0 s of 60 s"] * 2
    assert together(minute(), minute(90.0)) == ["the loads ran together for 0.0 s of 60 s"] * 2


def test_cpus_that_worked_at_another_time_were_not_combined():
    """The load of the CPUs has its own beginning and end, which count like those of a burn."""
    assert together(minute(), load=cpus(59.0, 119.0)) == ["the loads ran together for 1.0 s of 60 s"]
    assert together(minute(), load=cpus(busy=50.0))[0].startswith("the CPUs were not loaded")
    assert together(minute(), load=cpus(share=70.0))[0].startswith("each worker had 70.0 % of a CPU")


def test_a_burn_that_paused_is_none():
    """Two seconds may pass between batches, for a new seed; in more a card cools, and the others are not blamed."""
    paused = lasted(*((i if i < 30 else i + 1.5, 1.0) for i in range(60)), *((63.0 + i, 1.0) for i in range(3)))
    assert together(paused, minute()) == [""] * 2
    paused = lasted(*((i if i < 30 else i + 2.5, 1.0) for i in range(60)))
    assert together(paused, minute()) == ["the burn of gpu0 paused for 2.5 s, 32 s into it", ""]


@pytest.mark.parametrize("again", [29.0, 28.0])
def test_a_burn_whose_clock_went_back_is_none(again):
    """Two batches that began at one time, or in the wrong order, are not dated."""
    went_back = lasted(*((i, 1.0) for i in range(30)), (again, 1.0), *((i, 1.0) for i in range(30, 60)))
    assert together(went_back)[0].startswith("the burn of gpu0 went back in time, ")


def test_a_flawed_burn_proves_wrong_products_and_nothing_else():
    """No rate, no heat, no absence of errors; a product that was wrong stays wrong."""
    where = Site(None, None, "host", {"seconds": 60}, None)
    (short,) = burn._together([minute(seconds=30)], where)
    outcomes = list(burnt.values(where, burnt.ALONE, short))
    assert [o.reason for o in outcomes] == ["the loads ran together for 30.0 s of 60 s"] * 8
    (short,) = burn._together([minute(seconds=30, wrong=1)], where)
    outcomes = {o.metric: o for o in burnt.values(where, burnt.ALONE, short)}
    errors = outcomes.pop("gpu.burn.errors")
    assert (errors.value, errors.proof) == (30, None)
    assert all(isinstance(o, NotMeasured) for o in outcomes.values())


GARBLED = [{"seconds": None}, {"t": "x"}, {"tflop": -1}, {"wrong": None}, {"checked": []}, {"elements": "many"}]


def garbled(change, wrong=3, view=None, extra=()):
    """Return the outcomes of a burn of a minute of which one batch is garbled and the first hold wrong products."""
    timed = [batch(float(t), seconds=1.0, wrong=int(t < wrong), elements=int(t < wrong)) for t in range(60)]
    timed[30].update(change)
    of_card = burn._burnt(OWN, [*whole(*timed), *extra], view or samples(), PERIOD)
    where = Site(None, SimpleNamespace(card=None), "host", {"seconds": 60}, None)
    return {o.metric.split(".")[-1]: o for o in burnt.values(where, burnt.ALONE, of_card)}


@pytest.mark.parametrize("change", GARBLED)
def test_a_garbled_record_does_not_hide_what_was_proven_wrong(change):
    """A batch that took no time makes the burn worthless, and the wrong products of the others stay wrong."""
    errors = garbled(change)["errors"]
    assert (errors.value, errors.proof) == (3, None)
    assert errors.note.startswith("3 batches of 60 held a wrong product")
    key = next(iter(change))
    assert f"says {key} = " in garbled(change, wrong=0)["errors"].reason


def test_a_garbled_burn_has_no_other_value():
    """No rate of batches one of which took no time; a burn of another card has no errors either."""
    outcomes = garbled({"seconds": None})
    assert {name for name, o in outcomes.items() if isinstance(o, Measurement)} == {"errors"}
    other = [{"kind": "device", "uuid": "GPU-other"}, *whole(batch(wrong=1))[1:]]
    assert isinstance(burn._burnt(OWN, other, samples(), PERIOD), NotMeasured)


def test_a_garbled_record_does_not_hide_a_wrong_golden():
    """Products that agree with a wrong result are wrong, whatever one of their records says."""
    assert garbled({"seconds": None}, wrong=0, extra=[golden(1, flaw="3 of 9")])["errors"].value == 60 * 15


def test_a_wrong_golden_counts_although_nothing_was_burned():
    """A load that died before its first batch has computed a wrong result all the same, and of one sample."""
    of_card = burn._burnt(OWN, [{"kind": "device", "uuid": OWN.uuid}, golden(flaw="3 of 9")], samples(), PERIOD)
    where = Site(None, None, "host", {"seconds": 60}, None)
    errors = next(o for o in burnt.values(where, burnt.ALONE, of_card) if o.metric == "gpu.burn.errors")
    assert (errors.value, errors.samples) == (1, 1)
    assert "timed 0 batches" in of_card.flaw


def test_a_garbled_temperature_does_not_hide_what_was_proven_wrong():
    """The heat belongs to the note, not to the proof."""
    view = [{**sample, "temperature": "hot"} if i == 7 else sample for i, sample in enumerate(samples())]
    assert garbled({}, view=view)["errors"].value == 3


def test_a_garbled_burn_does_not_cost_the_others_theirs():
    """What one load wrote says nothing of when the others ran."""
    spoilt = burn._burnt(OWN, whole(batch(wrong=1), batch(seconds=None)), samples(), PERIOD)
    assert together(spoilt, minute(), minute(1.0)) == [spoilt.flaw, "", ""]
    assert "seconds = None" in spoilt.flaw


# worlds ---------------------------------------------------------------------------------------------------

SMALL = {"seconds": 6, "period_s": PERIOD, "cool_down_seconds": 0, "warmup_seconds": 1, "samples": 3,
         "sample_seconds": 0.3}  # fmt: skip


class Written:
    """A load that has written everything before it is told to start, and ends then; without `ready` it has ended."""

    def __init__(self, records):
        self.records = records
        self.ended = not any(record.get("kind") == "ready" for record in records)

    def tell(self, message):
        """End."""
        self.ended = True

    def finish(self, *, timeout):
        """Return the records."""
        return self.records

    stop = functools.partialmethod(finish, timeout=0)


class Played(SimWorld):
    """A simulated machine whose load scripts write the records that it is given, by the order of their start."""

    records = None
    """Script, which start it was, card -> records, or None to let the machine play them and keep what they wrote."""

    @contextlib.contextmanager
    def start(self, script, params):
        """Start a load, or one that has already written everything."""
        self.kept = getattr(self, "kept", {})
        key = f"{script} {len(self.kept) + 1} {params.get('uuid', '')}".strip()
        with super().start(script, params) as load:
            shown = load if self.records is None else Written(self.records[key])
            self.kept[key] = shown.records
            yield shown


@pytest.fixture(scope="module")
def two(catalogue):
    """Return the profile of two cards."""
    return load_profile("2xrtx4090", catalogue, SHIPPED)


def site(profile, device="host", text="healthy"):
    """Return a site on a played machine of a profile."""
    world = Played(profile, load_scenario(text, SHIPPED, SHIPPED / "scenarios"))
    return Site(world, profile, device, SMALL, lambda name, text: "", "simulated")


def taken(probe, where):
    """Return a probe's outcomes by metric and device, each with the types that the bench demands."""
    return {(o.metric, o.device): checked(o) for o in probe(where)}


PROBES = {
    "gpu.links": (links.links, "gpu0"), "gpu.gemm": (gemm.gemm, "gpu0"), "gpu.burn": (burn.alone, "host"),
    "gpu.combined": (burn.combined, "host"),
}  # fmt: skip
NONE_SEEN = {m.id for probe in gpu.PROBES for m in probe.metrics if m.none_seen}


@pytest.fixture(scope="module")
def healthy(two):
    """Return what each probe's loads write on a healthy machine, by probe and script."""
    kept = {}
    for name, (probe, device) in PROBES.items():
        where = site(two, device)
        assert all(isinstance(outcome, Measurement) for outcome in taken(probe, where).values())
        kept[name] = where.world.kept
    return kept


def replayed(two, name, records):
    """Return a probe's outcomes from records, none where it is Unmeasurable."""
    probe, device = PROBES[name]
    where = site(two, device)
    where.world.records = records
    with contextlib.suppress(Unmeasurable):
        return taken(probe, where)
    return {}


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**30)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=3,
)
KINDS = st.sampled_from(["device", "golden", "rehearsal", "ready", "batch", "copy", "sample", "cost", "end", "warm_up"])
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["drop", "remove", "replace", "kind", "double"]), KINDS, st.integers(0, 99), st.integers(0, 20),
        JSON, st.booleans(),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def spoilt(records, changes):
    """Return a load's records with some dropped, doubled, or a key of them removed or replaced; or all of a kind."""
    result = copy.deepcopy(records)
    for what, kind, place, key, value, everywhere in changes:
        for written in result.values():
            of_kind = [record for record in written if record.get("kind") == kind]
            for record in of_kind if everywhere else of_kind[place % len(of_kind) :][:1] if of_kind else []:
                _spoil(written, record, what, sorted(record), key, value)
    return result


def _spoil(written, record, what, keys, key, value):
    if what == "drop":
        written.remove(record)
    elif what == "double":
        written.append(copy.deepcopy(record))
    elif what == "kind":
        record["kind"] = value
    elif keys and what == "remove":
        del record[keys[key % len(keys)]]
    elif keys:
        record[keys[key % len(keys)]] = value


def first(records, script):
    """Return the records of the first load of a script."""
    return next(written for key, written in records.items() if key.split()[0] == script)


def burn_proves_no_error(records):
    """Say, independently of the probes, whether a burn's records may stand for "no error seen"."""
    kinds = {kind: [r for r in records if r.get("kind") == kind] for kind in ("golden", "rehearsal", "batch", "end")}
    seeds = [sorted({repr(r.get("seed")) for r in kinds[kind]}) for kind in ("golden", "rehearsal")]
    return (
        all(kinds.values())
        and seeds[0] == seeds[1]
        and all(r.get("flaw") == "" for r in kinds["golden"])
        and all(r.get(name) is True for r in kinds["rehearsal"] for name in burnt.REHEARSED)
        and all(r.get("wrong") == 0 and not r.get("elements") for r in kinds["batch"])
        and all(r.get("checked") for r in kinds["batch"])
        and sum("elements" in r for r in kinds["batch"]) >= 2
    )


def proves_no_error(two, records, metric, device):
    """Say whether what the loads wrote may stand for a metric's "none seen"."""
    found = {name: card.uuid for name, card in cards(site(two)).items()}
    burns = [
        written for key, written in records.items() if key.startswith("burn") and key.endswith(found.get(device, ""))
    ]
    if metric == "cpu.combined.errors":
        return any(r.get("kind") == "batch" for written in burns for r in written)
    return burn_proves_no_error(*burns)


ALL_GONE = [("drop", "golden", 0, 0, None, True)]
NOT_COMPARED = [("replace", "rehearsal", 0, 2, None, True)]
NULL_HEAT = [("remove", "sample", 9, 7, None, False)]


@pytest.mark.parametrize("name", PROBES)
@FUZZ
@given(changes=CHANGES)
@example(changes=ALL_GONE)
@example(changes=NOT_COMPARED)
@example(changes=NULL_HEAT)
def test_whatever_a_load_writes_is_a_reading_or_has_a_reason(two, healthy, name, changes):
    """Any records give outcomes or Unmeasurable, and "none seen" only with everything that proves it."""
    records = spoilt(healthy[name], changes)
    for (metric, device), outcome in replayed(two, name, records).items():
        assert isinstance(outcome, Measurement) or outcome.reason
        if metric.endswith(".errors") and isinstance(outcome, Measurement) and outcome.value == 0:
            assert outcome.proof
            assert proves_no_error(two, records, metric, device)
        elif metric in NONE_SEEN and isinstance(outcome, Measurement):
            assert outcome.proof or outcome.value > 0


@pytest.mark.parametrize("name", PROBES)
def test_a_load_that_writes_nothing_gives_no_reading(two, healthy, name):
    """No record at all is no value at all."""
    outcomes = replayed(two, name, {script: [] for script in healthy[name]})
    assert not [outcome for outcome in outcomes.values() if isinstance(outcome, Measurement)]


def test_a_card_that_was_idle_meanwhile_has_no_rate(two, healthy):
    """Records of a load prove nothing while the card's own utilisation says that it rested."""
    records = copy.deepcopy(healthy["gpu.gemm"])
    for one in first(records, "telemetry"):
        one["utilisation"] = 0
    assert not isinstance(replayed(two, "gpu.gemm", records).get(("gpu.gemm.fp16", "gpu0")), Measurement)


def test_a_link_is_looked_at_only_while_copies_run(two, healthy):
    """Copies do not count as utilisation; a sample taken between two of them shows nothing of a busy link."""
    records = copy.deepcopy(healthy["gpu.links"])
    for one in first(records, "telemetry"):
        one["utilisation"] = 0
    assert replayed(two, "gpu.links", records)["gpu.pcie.gen", "gpu0"].value == 4
    for one in first(records, "copies"):
        if one["kind"] == "copy" and one is not [r for r in first(records, "copies") if r["kind"] == "copy"][-1]:
            one["seconds"] = 0.01
    assert not isinstance(replayed(two, "gpu.links", records).get(("gpu.pcie.gen", "gpu0")), Measurement)


def test_cards_that_disagree_have_wrong_results(two, healthy):
    """Two cards with two results prove neither: both have errors, although each agrees with itself."""
    records = copy.deepcopy(healthy["gpu.burn"])
    next(r for r in first(records, "burn") if r["kind"] == "golden")["checksum"] += 1
    outcomes = replayed(two, "gpu.burn", records)
    for device in ("gpu0", "gpu1"):
        assert outcomes["gpu.burn.errors", device].value > 0
        assert "no majority" in outcomes["gpu.burn.errors", device].note


def test_a_combined_burn_without_the_cpus_is_none(two):
    """When some CPUs rested there was no combined load, whatever the cards did."""
    outcomes = taken(burn.combined, site(two, text="healthy,fault=cpu.burn.idle"))
    assert {key for key, outcome in outcomes.items() if "CPUs were not loaded" not in outcome.reason} == set()


def test_a_wrong_product_is_proven_although_the_cpus_rested(two):
    """What a card computed wrong does not need the CPUs; that another made no error needs them."""
    outcomes = taken(burn.combined, site(two, text="healthy,fault=cpu.burn.idle,fault=gpu0.bitflip:10"))
    assert outcomes["gpu.combined.errors", "gpu0"].value > 0
    assert "CPUs were not loaded" in outcomes["gpu.combined.errors", "gpu1"].reason
    assert "CPUs were not loaded" in outcomes["gpu.combined.tflops", "gpu0"].reason


def test_wrong_results_of_the_cpus_are_counted_in_the_combined_burn(two):
    """Each that stress-ng reports counts, and the cards' own results stand."""
    outcomes = taken(burn.combined, site(two, text="healthy,fault=cpu.burn.wrong:3"))
    assert outcomes["cpu.combined.errors", "host"].value == 3
    assert outcomes["gpu.combined.errors", "gpu0"].value == 0
    healthy = taken(burn.combined, site(two))["cpu.combined.errors", "host"]
    assert (healthy.value, healthy.proof.split()[1:]) == (0, ["workers", "verified", "their", "results"])


def test_cpus_without_cards_made_no_combined_burn(two, healthy):
    """That the CPUs made no error while no card burned proves nothing of the combined burn."""
    records = {key: [] if key.startswith("burn") else written for key, written in healthy["gpu.combined"].items()}
    outcome = replayed(two, "gpu.combined", records)["cpu.combined.errors", "host"]
    assert outcome.reason == "gpu0: it ended before it was ready"


def test_a_card_that_burned_a_minute_later_leaves_no_reading_of_either(two, healthy):
    """A burn of all cards at once is one at the same time, as their own records and samples date it."""
    records = copy.deepcopy(healthy["gpu.burn"])
    late = cards(site(two))["gpu1"].uuid
    for key, written in records.items():
        for one in written:
            if "t" in one and (key.endswith(late) or one.get("uuid") == late):
                one["t"] += 59.0
    outcomes = replayed(two, "gpu.burn", records)
    assert {outcome.reason for outcome in outcomes.values()} == {"the loads ran together for 0.0 s of 6 s"}


def test_a_power_sensor_that_stands_still_is_in_no_sum(two, healthy):
    """Its card has no peak, the machine no power, and the other card keeps its own."""
    records = copy.deepcopy(healthy["gpu.burn"])
    for one in first(records, "telemetry"):
        one["power"] = 300.0 if one["uuid"] == cards(site(two))["gpu0"].uuid else one["power"]
    outcomes = replayed(two, "gpu.burn", records)
    for key in (("gpu.burn.power_peak", "gpu0"), ("gpu.burn.power_total", "host")):
        assert outcomes[key].reason.startswith("the power of gpu0 reads 300 W throughout the load")
    assert outcomes["gpu.burn.power_peak", "gpu1"].value > 400


def test_a_sensor_that_says_zero_gives_no_temperature_of_a_burn(two):
    """Neither the peak, nor where it began, nor when it was flat; the rate needs no temperature."""
    outcomes = taken(burn.alone, site(two, text="healthy,fault=gpu0.sensor.zero"))
    for metric in ("gpu.burn.temperature", "gpu.burn.start_temperature", "gpu.burn.plateau"):
        assert "reads 0 C throughout" in outcomes[metric, "gpu0"].reason
        assert isinstance(outcomes[metric, "gpu1"], Measurement)
    assert isinstance(outcomes["gpu.burn.tflops", "gpu0"], Measurement)


def test_a_burn_goes_on_without_a_lost_card(two):
    """The card that answers is burnt, the other one is said not to answer, and there is no total."""
    outcomes = taken(burn.alone, site(two, text="healthy,fault=gpu0.lost"))
    reason = "gpu0 does not answer (GPU is lost): look for Xid 79 in the kernel log"
    assert outcomes["gpu.burn.errors", "gpu0"].reason == reason
    assert outcomes["gpu.burn.errors", "gpu1"].value == 0
    assert outcomes["gpu.burn.total", "host"].reason == f"gpu0: {reason}"


def test_a_product_that_nobody_confirmed_has_no_rate(two, healthy):
    """A rate without a golden check is a rate of anything."""
    records = spoilt(healthy["gpu.gemm"], ALL_GONE)
    assert "none was compared with float64" in replayed(two, "gpu.gemm", records)["gpu.gemm.fp16", "gpu0"].reason


@pytest.mark.parametrize(("name", "script", "kind", "lines"), [
    ("gpu.links", "copies", "copy", {"gpu.pcie.gen", "gpu.pcie.width"}),
    ("gpu.gemm", "gemm", "batch", {"gpu.gemm.fp16"}),
])  # fmt: skip
def test_a_load_that_was_timed_for_a_part_of_it_gives_no_value(two, healthy, name, script, kind, lines):
    """Half of the records that were asked for, good as they are, are no reading of a link or a rate."""
    records = copy.deepcopy(healthy[name])
    written = first(records, script)
    timed = [r for r in written if r["kind"] == kind]
    written[:] = [r for r in written if r["kind"] != kind or any(r is kept for kept in timed[: len(timed) // 2])]
    outcomes = replayed(two, name, records)
    assert not [m for (m, _), o in outcomes.items() if m in lines and isinstance(o, Measurement)]


KINDS_OF_PRODUCT = ["fp16", "bf16", "fp32", "tf32", "fp8"]


@pytest.mark.parametrize("kind", KINDS_OF_PRODUCT)
def test_a_wrong_product_in_a_timed_batch_leaves_no_rate(two, healthy, kind):
    """A rate of wrong products is none; the other types' rates are not affected."""
    records = copy.deepcopy(healthy["gpu.gemm"])
    written = [of_load for key, of_load in records.items() if key.startswith("gemm")]
    next(r for r in written[KINDS_OF_PRODUCT.index(kind)] if r["kind"] == "batch")["wrong"] = 1
    outcomes = replayed(two, "gpu.gemm", records)
    reason = outcomes.pop((f"gpu.gemm.{kind}", "gpu0")).reason
    assert reason == "1 timed batches of gpu0 held a wrong product: a defect"
    assert sum(isinstance(outcome, Measurement) for outcome in outcomes.values()) == (4 if kind == "fp16" else 5)


@pytest.mark.parametrize("kind", KINDS_OF_PRODUCT)
def test_the_ceiling_of_a_rate_is_that_of_its_kind_at_the_clock_that_was_seen(two, healthy, kind):
    """No product is faster than its units allow at that clock: a tripled rate of any kind is above its own ceiling."""
    rate = replayed(two, "gpu.gemm", healthy["gpu.gemm"])[f"gpu.gemm.{kind}", "gpu0"]
    at = rate.ceiling / (1.02 * two.card.ceiling(kind, 1.0))
    assert round(at) == rate.conditions["clock_mhz"] > 1000
    assert rate.value < rate.ceiling < 3 * rate.value


def test_a_kind_of_product_that_the_card_lacks_is_not_run(catalogue):
    """A card without FP8 has no outcome of it, and those of the others."""
    outcomes = taken(gemm.gemm, site(load_profile("1xa100-pcie-80gb", catalogue, SHIPPED), "gpu0"))
    expected = {f"gpu.gemm.{kind}" for kind in KINDS_OF_PRODUCT} - {"gpu.gemm.fp8"}
    assert {metric for metric, _ in outcomes} == {*expected, "gpu.gemm.clock"}


def test_a_rate_states_what_its_products_ran_on(two, healthy):
    """Texts and switches of the load's first record are conditions; which card it was is not said twice."""
    records = copy.deepcopy(healthy["gpu.gemm"])
    said = {"library": "torch 2.10.0", "reduced_fp16_sums": False, "blas": ["cublas"], "algorithms": None}
    first(records, "gemm")[0] |= said
    conditions = replayed(two, "gpu.gemm", records)["gpu.gemm.fp16", "gpu0"].conditions
    assert (conditions["library"], conditions["reduced_fp16_sums"]) == ("torch 2.10.0", False)
    assert not {"blas", "algorithms", "kind", "uuid"} & conditions.keys()


def test_a_card_that_computes_wrong_has_no_fp32_rate(two):
    """The arrays of the FP32 load are real, and a flipped bit in them is found."""
    outcomes = taken(gemm.gemm, site(two, "gpu0", "healthy,fault=gpu0.bitflip:10"))
    assert "held a wrong product" in outcomes["gpu.gemm.fp32", "gpu0"].reason


def test_a_rate_is_the_median_with_spread_ceiling_and_conditions(two, healthy):
    """One odd batch moves the spread, not the value; the ceiling follows from the clock that was seen."""
    records = copy.deepcopy(healthy["gpu.gemm"])
    plain = replayed(two, "gpu.gemm", records)["gpu.gemm.fp16", "gpu0"]
    next(r for r in first(records, "gemm") if r["kind"] == "batch")["tflop"] *= 3
    odd = replayed(two, "gpu.gemm", records)["gpu.gemm.fp16", "gpu0"]
    assert odd.value == pytest.approx(plain.value, rel=0.01)
    assert odd.spread > 10 * plain.spread
    clock = replayed(two, "gpu.gemm", records)["gpu.gemm.clock", "gpu0"]
    assert plain.ceiling == pytest.approx(two.card.tensor_ceiling(clock.value) * 1.02)
    assert plain.conditions["clock_mhz"] == round(clock.value)


def test_totals_are_sums_of_the_cards_and_peaks_the_largest_sample(two, healthy):
    """The machine's rate is the sum of its cards' rates, its power the largest sum of one moment."""
    records = copy.deepcopy(healthy["gpu.burn"])
    watched = first(records, "telemetry")
    for one in watched:
        one["power"] = 300.0
    for one in watched[20:22]:
        one["power"] = 470.0
    outcomes = {key: outcome.value for key, outcome in replayed(two, "gpu.burn", records).items()}
    rates_of = [outcomes["gpu.burn.tflops", device] for device in ("gpu0", "gpu1")]
    assert outcomes["gpu.burn.total", "host"] == pytest.approx(sum(rates_of))
    assert outcomes["gpu.burn.power_total", "host"] == 940.0
    assert [outcomes["gpu.burn.power_peak", device] for device in ("gpu0", "gpu1")] == [470.0, 470.0]
    assert outcomes["gpu.burn.start_temperature", "gpu0"] < outcomes["gpu.burn.temperature", "gpu0"]
    assert outcomes["gpu.burn.plateau", "gpu0"] > 1.0


def test_sums_need_every_card(two, healthy):
    """When one card has no window, the total of all is not that of the others."""
    records = copy.deepcopy(healthy["gpu.burn"])
    (watched,) = (key for key in records if key.startswith("telemetry"))
    own = records[watched][0]["uuid"]
    records[watched] = [one for one in records[watched] if one["uuid"] == own]
    outcomes = replayed(two, "gpu.burn", records)
    for metric in ("gpu.burn.total", "gpu.burn.power_total"):
        assert isinstance(outcomes[metric, "host"], NotMeasured)


# cards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [(0,), (1,), (3,), (0, 1), (0, 2), (1, 2), (0, 1, 2), (2, 3)])
def test_a_lost_card_keeps_its_place(profile, lost):
    """Whichever cards are off the bus, the others keep their names, and a lost one is said to be lost."""
    where = site(profile, text="healthy," + ",".join(f"fault=gpu{i}.lost" for i in lost))
    found = cards(where)
    machine = where.world.machine
    assert list(found) == ["gpu0", "gpu1", "gpu2", "gpu3"]
    for i in range(4):
        if i in lost:
            with pytest.raises(Unmeasurable, match=f"gpu{i} does not answer .GPU is lost.: look for Xid 79"):
                card(where, f"gpu{i}")
        else:
            assert found[f"gpu{i}"].bus_id == f"0000{machine.gpus[i].address.upper()}"


def test_cards_are_counted_along_the_bus_whatever_the_drivers_order():
    """gpu0 is the card with the lowest bus id, not the first that the driver names."""
    places = ["00000000:C1:00.0", "00000000:01:00.0", "00000000:41:00.0"]
    nvml = SimpleNamespace(
        NVMLError=OSError,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda i: places[i],
        nvmlDeviceGetPciInfo=lambda h: SimpleNamespace(busId=h),
        nvmlDeviceGetUUID=lambda h: f"GPU-{h}",
    )
    found = cards(Site(SimpleNamespace(nvml=lambda: nvml), None, "host", {}, None))
    assert [(device, c.bus_id) for device, c in found.items()] == list(
        zip(["gpu0", "gpu1", "gpu2"], sorted(places), strict=True)
    )


def test_a_missing_card_is_named_by_its_absence(profile):
    """With three cards there is no gpu3, and where to look is said."""
    where = site(profile, text="healthy,fault=gpu3.missing")
    with pytest.raises(Unmeasurable, match=r"the driver shows 3 GPUs, there is no gpu3.*seen by lspci"):
        card(where, "gpu3")


def test_a_card_that_vanishes_between_two_probes_leaves_a_gap(profile):
    """Its neighbour does not take its name, where it was is said, and it has its own name back when it returns."""
    where = site(profile)
    machine, before = where.world.machine, cards(where)
    machine.gpus[1].p.present = False
    later = replace(where, device="gpu1")
    after = cards(later)
    assert {d: c.uuid for d, c in after.items() if c.handle} == {d: c.uuid for d, c in before.items() if d != "gpu1"}
    with pytest.raises(Unmeasurable, match=f"{before['gpu1'].uuid} at {before['gpu1'].bus_id} was there when"):
        card(later, "gpu1")
    machine.gpus[1].p.present = True
    assert card(later, "gpu1").uuid == before["gpu1"].uuid


def test_a_card_that_comes_later_gets_a_name_of_its_own(profile):
    """The cards of the first look keep theirs, wherever on the bus the new one is."""
    where = site(profile, text="healthy,fault=gpu0.missing")
    before = cards(where)
    where.world.machine.gpus[0].p.present = True
    after = cards(where)
    assert list(after) == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert {device: after[device].uuid for device in before} == {device: c.uuid for device, c in before.items()}
    assert after["gpu3"].bus_id < after["gpu0"].bus_id


@pytest.fixture(scope="module")
def lost_in_the_burn(profile, catalogue):
    """Return the verdicts of a machine whose second card falls off the bus in the burn."""
    return matrix.sign_off(profile, catalogue, "healthy,fault=gpu1.lost@burn,fault=gpu2.sensor.gone")


def test_a_card_that_is_lost_in_the_burn_has_no_reading_and_costs_the_others_none(lost_in_the_burn):
    """Its lines of the burn are ERROR with CUDA's reason, those of the others are judged."""
    of_burn = {device: v for (line, device), v in lost_in_the_burn.items() if line == "gpu.burn.errors"}
    assert [of_burn[f"gpu{i}"].verdict for i in range(4)] == ["PASS", "ERROR", "PASS", "PASS"]
    assert "unspecified launch failure" in of_burn["gpu1"].reason
    assert lost_in_the_burn["gpu.gemm.fp16", "gpu1"].verdict == "PASS"


def test_a_sensor_that_is_gone_costs_its_own_lines_only(lost_in_the_burn):
    """Without temperature there is no peak, and the rate is judged all the same."""
    assert lost_in_the_burn["gpu.burn.temperature", "gpu2"].verdict == "ERROR"
    assert "Not Supported" in lost_in_the_burn["gpu.burn.temperature", "gpu2"].reason
    assert lost_in_the_burn["gpu.burn.tflops", "gpu2"].verdict == "PASS"


# inventory and derived values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  590.48.01  Release", "open"),
        ("x\nNVRM version: NVIDIA UNIX x86_64 Kernel Module  590.48.01  Thu", "proprietary"),
    ],
)
def test_the_flavour_of_the_kernel_module_is_read_from_its_version(text, expected):
    """The driver's own version line tells the open module from the proprietary one."""
    assert gpu.flavour(text) == expected


@given(text=st.text())
def test_any_other_version_line_names_no_flavour(text):
    """A text that names no kernel module is no flavour."""
    with pytest.raises(Unmeasurable, match="names no kernel module"):
        gpu.flavour(text)


@pytest.mark.parametrize(("number", "version"), [(13010, "13.1"), (12080, "12.8"), (12000, "12.0"), (11020, "11.2")])
def test_cuda_versions_are_written_as_people_do(number, version):
    """NVML's thousands are major, its tens minor."""
    assert gpu.cuda_version(number) == version


def test_ecc_that_is_off_proves_no_error(catalogue):
    """Counters of a card with ECC on are a proof; a card without ECC has no reading."""
    with_ecc = load_profile("1xl40", catalogue, SHIPPED)
    (outcome,) = gpu.health(site(with_ecc, "gpu0"))
    assert (outcome.value, outcome.proof) == (0, "ECC is on and its counters were read")
    where = site(with_ecc, "gpu0")
    where.world.machine.gpus[0].p.ecc = False
    with pytest.raises(Unmeasurable, match="ECC of gpu0: Not Supported"):
        list(gpu.health(where))


def test_one_failing_reading_of_the_inventory_leaves_the_others_alone(two):
    """A lost card has reasons, the other one its identity, and the count is of those that answer."""
    outcomes = taken(gpu.inventory, site(two, text="healthy,fault=gpu1.lost"))
    assert outcomes["gpu.count", "host"].value == 1
    assert outcomes["gpu.name", "gpu0"].value == two.card.name
    assert "does not answer" in outcomes["gpu.name", "gpu1"].reason
    assert outcomes["gpu.memory", "gpu0"].value == pytest.approx(24, abs=0.1)


def test_a_card_without_a_serial_number_says_why(two):
    """What a GeForce card refuses is an absence with NVML's reason, and never an empty text."""
    outcomes = taken(gpu.inventory, site(two))
    for metric in ("gpu.serial", "gpu.part_number"):
        assert outcomes[metric, "gpu0"] == NotMeasured(metric, "gpu0", "Not Supported")


@pytest.mark.parametrize(
    ("label", "expected"),
    [("1654523003308", "1654523003308"), (" 900-2G193-0000-001 ", "900-2G193-0000-001"), ("0000123", "0000123")],
)
def test_a_label_is_read_from_the_board(two, label, expected):
    """Serial and part number are what the board says, blanks around them cut."""
    assert [outcome.value for outcome in labels(two, label)] == [expected, expected]


@pytest.mark.parametrize("label", ["", "  ", "0", "0000000000000"])
def test_blanks_and_zeros_identify_no_board(two, label):
    """A board on which nobody wrote a number has none, with the text that it gave instead."""
    assert {outcome.reason for outcome in labels(two, label)} == {
        f"the board says {label.strip()!r}, which identifies nothing: read the label on the card"
    }


def labels(two, text):
    """Return what the inventory says of the serial and part number of gpu0, on whose board stands a text."""
    where = site(two)
    healthy = where.world.nvml()
    told = SimpleNamespace(**vars(healthy))
    told.nvmlDeviceGetSerial = told.nvmlDeviceGetBoardPartNumber = lambda _: text
    where.world.nvml = lambda: told
    outcomes = taken(gpu.inventory, where)
    return [outcomes[metric, "gpu0"] for metric in ("gpu.serial", "gpu.part_number")]


# cooling down ---------------------------------------------------------------------------------------------------


def cooled(two, longest, *, hot):
    """Return the seconds that cooling down took."""
    where = site(two)
    machine = where.world.machine
    if hot:
        with machine.runs("burn", {0: 1.0}):
            machine.advance(100.0)
    began = machine.now
    burn.cool_down(where, cards(where), longest)
    return machine.now - began


def test_a_burn_starts_from_rest(two):
    """A hot card is waited for until it hardly cools any more, a cool one for one look."""
    assert 30.0 <= cooled(two, 300.0, hot=True) <= 80.0
    assert cooled(two, 300.0, hot=False) == pytest.approx(10.0)
    assert cooled(two, 15.0, hot=True) == pytest.approx(20.0)
    assert cooled(two, 0.0, hot=True) == 0.0
