"""The guard of a burn: it ends loads before a card shuts down, and when a card is not seen any more."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import Card, cards
from pytest_gpuaccept.probes.gpus.guard import BLIND_S, Guard
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld


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


def unread(*_args, **_more):
    """Refuse: this machine shows neither files nor a log."""
    message = "not here"
    raise Unmeasurable(message)


def guard(*degrees, shutdown=95, fact=None, ended=False, now=None):
    """Return a guard of one card that showed these temperatures, one a second, None for an unread sensor."""
    samples = [
        {"kind": "sample", "t": float(t), "uuid": "GPU-0", **({} if c is None else {"temperature": c})}
        for t, c in enumerate(degrees)
    ]
    clock = SimpleNamespace(monotonic=lambda: float(len(degrees) if now is None else now))
    facts = SimpleNamespace(facts=SimpleNamespace(temperature_shutdown_c=fact)) if fact else None
    site = SimpleNamespace(
        world=SimpleNamespace(clock=clock, nvml=lambda: nvml(shutdown), read=unread),
        profile=SimpleNamespace(card=facts),
    )
    found = {"gpu0": Card("gpu0", "GPU-0", "01", None)}
    built = Guard.over(site, found, {"gpu0": SimpleNamespace(ended=ended)}, SimpleNamespace(records=samples))
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


def test_a_telemetry_that_never_says_a_word_stops_the_load():
    """A load that nobody watches is not burned on: there is no first sample after ten seconds."""
    guard(now=BLIND_S).look()
    with pytest.raises(Unmeasurable, match="stopped: no sensor of any card was read for 10 s"):
        guard(now=BLIND_S + 1).look()


@pytest.mark.parametrize(
    ("degrees", "rising"),
    [([70] * 120, False), ([60 + i / 10 for i in range(120)], True), ([80 - i / 20 for i in range(120)], False),
     ([None] * 120, True), ([], True)],
)  # fmt: skip
def test_a_card_that_grows_hotter_is_said_to(degrees, rising):
    """Half a degree a minute is flat; what nobody sees may be rising."""
    assert guard(*degrees).rising(0.5) is rising


class Burning:
    """A load that runs until it is stopped."""

    records = ()

    def __init__(self):
        self.ended = False

    def stop(self):
        """End."""
        self.ended = True


@pytest.fixture
def burning(profile):
    """Return a guard over four simulated cards that burn, and their machine."""
    world = SimWorld(profile, Scenario("healthy"))
    site = Site(world, profile, "host", {}, lambda _name, _text: "")
    found = cards(site)
    return Guard.over(site, found, {device: Burning() for device in found}, SimpleNamespace(records=[])), world


def later(burning, seconds=6.0):
    """Let time pass, look, and return the cards whose loads were ended, with the reason."""
    guard, world = burning
    world.clock.sleep(seconds)
    guard.look()
    assert {device for device, load in guard.loads.items() if load.ended} == guard.stopped.keys()
    return guard.ends("still running") | guard.stopped


def test_a_fatal_xid_ends_the_load_of_its_card_alone(burning):
    """A card that has fallen off the bus is named with what its Xid means; the others burn on."""
    burning[1].machine.say("NVRM: Xid (PCI:0000:c1:00): 79, pid=1", priority=3)
    ends = later(burning)
    assert ends["gpu3"] == "stopped: gpu3 has Xid 79 (fatal: the card has fallen off the bus)"
    assert {ends[gpu] for gpu in ("gpu0", "gpu1", "gpu2")} == {"still running"}


@pytest.mark.parametrize("line", ["NVRM: Xid (PCI:0000:c1:00): 31, pid=1", "NVRM: Xid (PCI:0000:09:00): 79, pid=1"])
def test_what_is_not_fatal_or_not_ours_stops_nothing(burning, line):
    """A suspect Xid is judged at the end; a card that is not loaded is not ours."""
    burning[1].machine.say(line, priority=3)
    assert set(later(burning).values()) == {"still running"}


def test_a_fatal_error_of_a_link_ends_the_load_of_its_card(burning, monkeypatch):
    """The counter of either end is enough, and is looked at each second."""
    read, port = burning[1].read, burning[1].machine.gpus[2].port
    text = "Undefined 0\nTOTAL_ERR_FATAL 1"
    monkeypatch.setattr(burning[1], "read", lambda path: text if path.endswith(f"{port}/aer_dev_fatal") else read(path))
    assert later(burning, 1.0)["gpu2"] == "stopped: the PCIe link of gpu2 had a fatal error"
