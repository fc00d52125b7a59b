"""The guard of a burn: it ends loads before a card shuts down, and when a card is not seen any more."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probes.cards import Card
from pytest_gpuaccept.probes.guard import BLIND_S, Guard


class NoThresholdError(Exception):
    """NVML's answer of a card that tells no threshold."""


def nvml(shutdown):
    """Return a binding whose cards shut down at a temperature, or do not say."""

    def threshold(_handle, which):
        assert which == 0
        if shutdown is None:
            raise NoThresholdError
        return shutdown

    return SimpleNamespace(
        NVMLError=NoThresholdError, NVML_TEMPERATURE_THRESHOLD_SHUTDOWN=0, nvmlDeviceGetTemperatureThreshold=threshold
    )


def guard(*degrees, shutdown=95, fact=None, ended=False, now=None):
    """Return a guard of one card that showed these temperatures, one a second, None for an unread sensor."""
    samples = [
        {"kind": "sample", "t": float(t), "uuid": "GPU-0", **({} if c is None else {"temperature": c})}
        for t, c in enumerate(degrees)
    ]
    clock = SimpleNamespace(monotonic=lambda: float(len(degrees) if now is None else now))
    facts = SimpleNamespace(facts=SimpleNamespace(temperature_shutdown_c=fact)) if fact else None
    site = SimpleNamespace(
        world=SimpleNamespace(clock=clock, nvml=lambda: nvml(shutdown)), profile=SimpleNamespace(card=facts)
    )
    cards = {"gpu0": Card("gpu0", "GPU-0", "01", None)}
    built = Guard.over(site, cards, {"gpu0": SimpleNamespace(ended=ended)}, SimpleNamespace(records=samples))
    return replace(built, since=0.0)


def test_a_card_in_its_range_burns_on():
    """Nothing is said of a card below its shutdown."""
    guard(*[92] * 30).look()


def test_a_card_near_its_shutdown_is_stopped():
    """Two degrees are left for the heat that is on its way."""
    with pytest.raises(Unmeasurable, match="stopped: gpu0 reached 93 C, and shuts down at 95 C"):
        guard(*[80] * 25, 93, 85, 85).look()


def test_a_card_that_tells_no_threshold_is_held_to_the_projects_fact():
    """Newer drivers give margins instead; without any number heat stops nothing."""
    for told in (None, 0):
        with pytest.raises(Unmeasurable, match="shuts down at 90 C"):
            guard(*[89] * 30, shutdown=told, fact=90).look()
    guard(*[120] * 30, shutdown=None).look()


def test_a_sensor_that_is_lost_stops_the_load():
    """A card that showed its temperature and shows none any more could be anything."""
    with pytest.raises(Unmeasurable, match="stopped: gpu0 has shown no temperature for 10 s"):
        guard(*[80] * 20, *[None] * 12).look()
    guard(*[80] * 20, *[None] * 8).look()


def test_a_telemetry_that_stands_still_is_a_lost_sensor():
    """No samples at all are no temperature either."""
    with pytest.raises(Unmeasurable, match="no temperature"):
        guard(*[80] * 20, now=32.0).look()


def test_a_card_that_never_had_a_sensor_is_not_stopped():
    """Its temperature is not measured, which its line says."""
    guard(*[None] * 60).look()


def test_a_card_whose_load_is_over_stops_nobody():
    """A card that has fallen off the bus leaves the others burning."""
    guard(*[80] * 20, *[None] * 20, ended=True).look()


def test_nothing_is_said_before_there_is_something_to_see():
    """Telemetry takes a moment to come."""
    guard().look()
    guard(*[None] * int(BLIND_S - 2)).look()


@pytest.mark.parametrize(
    ("degrees", "rising"),
    [([70] * 120, False), ([60 + i / 10 for i in range(120)], True), ([80 - i / 20 for i in range(120)], False),
     ([None] * 120, True), ([], True)],
)  # fmt: skip
def test_a_card_that_grows_hotter_is_said_to(degrees, rising):
    """Half a degree a minute is flat; what nobody sees may be rising."""
    assert guard(*degrees).rising(0.5) is rising
