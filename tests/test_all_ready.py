"""What loads share: the cards that can be loaded, the time at which all start, and the rate that none exceeds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import START_IN_S, all_ready, ceiling_tflops, usable_cards
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld

LATE, DEATH = "it was not ready after 30 s", "CUDA error: out of memory"


# the common start ----------------------------------------------------------------------------------------


class Clock:
    """A clock that sleeping moves."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        """Return the seconds passed."""
        return self.now

    def sleep(self, seconds):
        """Let time pass."""
        self.now += seconds


class Load:
    """A load that is ready some seconds from now, or over some seconds from now; ending it may take its time."""

    def __init__(self, clock, ready=None, over=None, death="", ending=0.0):
        self._clock, self._ready, self._over = clock, ready, over
        self._began, self._death, self._ending = clock.now, death, ending
        self.told, self.stopped = [], False

    def _due(self, seconds):
        return seconds is not None and self._clock.now >= self._began + seconds

    @property
    def records(self):
        """Return its card, and that it is ready once it is."""
        return [{"kind": "device"}, *([{"kind": "ready"}] if self._due(self._ready) else [])]

    @property
    def ended(self):
        """Say whether it is over."""
        return self.stopped or self._due(self._over)

    def tell(self, message):
        """Take the answer, with the time at which it came."""
        self.told.append((self._clock.now, message))

    def stop(self):
        """End it; a load that had died, or dies of that, says why."""
        self._clock.now += 0.0 if self.ended else self._ending
        self.stopped = True
        if self._death:
            raise Unmeasurable(self._death)
        return self.records


def started(*loads, timeout=30.0):
    """Return the common start and who is left behind, after each load was made with one clock."""
    clock = Clock()
    made = {f"gpu{number}": Load(clock, **load) for number, load in enumerate(loads)}
    at, left = all_ready(made, clock, timeout)
    return clock, made, at, left


def test_loads_that_are_ready_start_at_one_time_ahead_of_them():
    """Each is told the same moment, once, a little later than the slowest was ready."""
    clock, made, at, left = started({"ready": 0.0}, {"ready": 7.0}, {"ready": 2.0})
    assert left == {}
    assert [load.told for load in made.values()] == [[(clock.now, {"at": at})]] * 3
    assert at == pytest.approx(107.0 + START_IN_S, abs=0.2)
    assert not any(load.stopped for load in made.values())


@pytest.mark.parametrize(
    ("behind", "reason", "waited"),
    [
        ({}, LATE, 30.0),
        ({"ready": 31.0}, LATE, 30.0),
        ({"death": DEATH}, LATE, 30.0),
        ({"over": 3.0, "death": DEATH}, DEATH, 3.0),
        ({"ready": 0.5, "over": 1.0, "death": DEATH}, DEATH, 2.0),
        ({"over": 3.0}, "it ended before it was ready", 3.0),
    ],
    ids=["never ready", "ready too late", "dies of its end", "dies before", "dies when ready", "ends before"],
)
def test_who_does_not_get_ready_is_left_behind_with_the_reason(behind, reason, waited):
    """It is not told to start and is over; the others start without it, no later than they must."""
    clock, made, at, left = started({"ready": 2.0}, behind, {"ready": 0.0})
    assert left == {"gpu1": reason}
    assert made["gpu1"].told == []
    assert made["gpu1"].ended
    assert [made[name].told for name in ("gpu0", "gpu2")] == [[(clock.now, {"at": at})]] * 2
    assert clock.now == pytest.approx(100.0 + waited, abs=0.2)


def test_the_start_is_ahead_of_all_also_when_a_late_load_takes_long_to_end():
    """A load that hangs in the driver must not make those that were told before it start without the others."""
    _, made, at, left = started({"ready": 0.0}, {"ending": 20.0}, {"ready": 0.0})
    assert left == {"gpu1": LATE}
    assert [told for load in made.values() for told, _ in load.told] == [at - START_IN_S] * 2


def test_without_a_load_that_gets_ready_nobody_is_waited_for_without_end():
    """Every load has its reason, after the time that was given."""
    clock, made, _, left = started({}, {"over": 1.0, "death": DEATH})
    assert left == {"gpu0": LATE, "gpu1": DEATH}
    assert clock.now == pytest.approx(130.0, abs=0.2)
    assert not any(load.told for load in made.values())


TIMES = st.none() | st.floats(0, 60)


@settings(deadline=None, database=None)
@given(
    st.lists(
        st.fixed_dictionaries({
            "ready": TIMES, "over": TIMES, "death": st.sampled_from(["", DEATH]), "ending": st.floats(0, 20),
        }),
        max_size=4,
    )
)  # fmt: skip
def test_every_load_is_told_once_or_has_a_reason_and_is_over(loads):
    """Whoever gets ready, dies or hangs, and when: nobody is told and left behind, or neither."""
    clock, made, at, left = started(*loads)
    assert at == clock.now + START_IN_S
    for name, load in made.items():
        assert (load.told == []) == (name in left)
        assert name not in left or (left[name] and load.ended)
        assert name in left or load.told == [(clock.now, {"at": at})]


def test_burns_of_the_simulated_machine_begin_together(two):
    """The first batch of every card begins at the common time, whenever it was started."""
    where = site(two)
    uuids = [card.uuid for card in usable_cards(where)[0].values()]
    job = {"seconds": 2, "open_ended": False}
    with where.world.start("burn", {"uuid": uuids[0], **job}) as first:
        where.world.clock.sleep(3.0)
        with where.world.start("burn", {"uuid": uuids[1], **job}) as second:
            at, left = all_ready({"gpu0": first, "gpu1": second}, where.world.clock, 300.0)
            began = [next(r["t"] for r in load.finish(timeout=60) if r["kind"] == "batch") for load in (first, second)]
    assert left == {}
    assert began == [pytest.approx(at)] * 2


# the cards -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(catalogue):
    """Return the profile of two cards."""
    return load_profile("2xrtx4090", catalogue, SHIPPED)


def site(profile, text="healthy", built=None):
    """Return a site on a simulated machine, built as ordered or as another profile orders it."""
    world = SimWorld(built or profile, load_scenario(text, SHIPPED, SHIPPED / "scenarios"))
    return Site(world, profile, "host", {}, lambda name, text: "", "simulated")


def ordering(profile, *gpus):
    """Return a profile that orders these GPUs."""
    return profile.model_copy(update={"devices": {**profile.devices, "gpu": gpus}})


def test_all_ordered_cards_of_a_healthy_machine_can_be_loaded(two):
    """Each by its device id, and nothing is refused."""
    found, refused = usable_cards(site(two))
    assert [(device, card.device) for device, card in found.items()] == [("gpu0", "gpu0"), ("gpu1", "gpu1")]
    assert refused == {}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("missing", "the driver shows 1 GPUs, there is no gpu1"),
        ("lost", "gpu1 does not answer"),
        ("mig", "MIG is on: loads would measure a slice of gpu1"),
    ],
)
def test_a_card_that_cannot_be_loaded_is_refused_with_the_reason_and_the_others_are_not(two, fault, reason):
    """One bad card does not keep the good ones from being measured."""
    found, refused = usable_cards(site(two, f"healthy,fault=gpu1.{fault}"))
    assert list(found) == ["gpu0"]
    assert list(refused) == ["gpu1"]
    assert reason in refused["gpu1"]


def test_a_card_that_nobody_ordered_is_not_loaded(two):
    """What is in the machine besides is neither loaded nor a reason for anything."""
    assert list(usable_cards(site(ordering(two, "gpu1"), built=two))[0]) == ["gpu1"]
    found, refused = usable_cards(site(ordering(two, "gpu0"), "healthy,fault=gpu1.mig", built=two))
    assert (list(found), refused) == (["gpu0"], {})


def test_without_a_usable_card_the_first_reason_is_given(two):
    """Nothing can be loaded then, and the caller must not go on; a card that nobody ordered does not help."""
    with pytest.raises(Unmeasurable, match="gpu0 does not answer"):
        usable_cards(site(two, "healthy,fault=gpu0.lost,fault=gpu1.mig"))
    with pytest.raises(Unmeasurable, match="gpu0 does not answer"):
        usable_cards(site(ordering(two, "gpu0"), "healthy,fault=gpu0.lost", built=two))
    with pytest.raises(Unmeasurable, match="the profile has no GPU"):
        usable_cards(site(ordering(two), built=two))


# the ceiling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [("fp16", 128 * 512 / 400), ("bf16", 128 * 512 / 400), ("fp32", 128 * 256 / 400),
     ("tf32", 128 * 512 / 400 * 82.6 / 165.2), ("fp8", 128 * 512 / 400 * 330.3 / 165.2)],
)  # fmt: skip
def test_no_product_exceeds_what_the_ordered_card_does_at_the_sampled_clock(two, kind, tflops):
    """SMs x FLOP per clock and SM x clock, of an RTX 4090 at 2500 MHz, with 2 % for how the clock is sampled."""
    assert ceiling_tflops(site(two), kind, 2500.0) == pytest.approx(1.02 * tflops)
    assert ceiling_tflops(site(two), kind, 1250.0) == pytest.approx(0.51 * tflops)


def test_where_nobody_knows_a_ceiling_there_is_none(two):
    """Without a card, or without the card's rate, None is no limit; it is never a rate of 0."""
    nothing = two.model_copy(update={"card": None})
    assert ceiling_tflops(site(nothing, built=two), "fp16", 2500.0) is None
    facts = two.card.facts.model_copy(update={"fp8_tflops": None})
    silent = two.model_copy(update={"card": two.card.model_copy(update={"facts": facts})})
    assert ceiling_tflops(site(silent, built=two), "fp8", 2500.0) is None
    assert ceiling_tflops(site(silent, built=two), "fp16", 2500.0) > 100
