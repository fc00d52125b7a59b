"""The electrical plan is a calculation and says so; the meters of the whole machine are believed when they move."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.services import electrical
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import Completed

READING = """
    Instantaneous power reading:                   {now} Watts
    Minimum during sampling period:                 14 Watts
    Maximum during sampling period:                {most} Watts
    Average power reading over sample period:      191 Watts
    IPMI timestamp:                           Thu Jan  1 00:00:00 1970
    Sampling period:                          00000001 Seconds.
    Power reading state is:                   {state}
"""
LIMITS = {"gpu0": 480, "gpu1": 450, "gpu2": 500, "gpu3": 480}


class Inputs:
    """Measurements by metric, or by metric and device, under the eyes of a derivation."""

    device = "host"

    def __init__(self, profile, **table):
        self.profile = profile
        self.table = {name.replace("__", "."): value for name, value in table.items()}

    def get(self, metric, device=None):
        """Return a measurement, or raise that there is none."""
        if metric not in self.table:
            message = f"needs {metric}: not recorded"
            raise Unmeasurable(message)
        value = self.table[metric]
        value = value[device] if isinstance(value, dict) else value
        return Measurement(metric, device or "host", value, "W")

    def number(self, metric, device=None):
        """Return its value."""
        return float(self.get(metric, device).value)


def planned(profile, **params):
    """Return a profile whose plan has other parameters; None takes one away."""
    plan = {**profile.params["host.electrical"], **params}
    stated = {name: value for name, value in plan.items() if value is not None}
    return profile.model_copy(update={"params": {**profile.params, "host.electrical": stated}})


@pytest.mark.parametrize(
    ("limits", "share", "said"),
    [(LIMITS, 68.8, "11.0 A"), (450, 65.5, "10.5 A of 16 A at 230 V"), (600, 83.6, "2770 W DC, 3078 W AC at 90%")],
)
def test_the_circuit_carries_what_is_drawn_at_the_limits(profile, limits, share, said):
    """The plan of the commissioned machine: as found, normalised, and in short peaks."""
    found = electrical.circuit(Inputs(profile, gpu__power__limit=limits))
    assert (round(found.value, 1), found.unit, found.provenance) == (share, "%", "calculated")
    assert said in found.note


def test_the_supplies_are_asked_for_before_they_are_judged(profile):
    """A rating that the order does not state is no rating; once it is, the share is of it."""
    inputs = Inputs(profile, gpu__power__limit=450)
    with pytest.raises(Unmeasurable, match=r'does not state psu_w: add it to \[params."host.electrical"\]'):
        electrical.supplies(inputs)
    inputs.profile = planned(profile, psu_w=3200)
    assert electrical.supplies(inputs).value == pytest.approx(100 * 2170 / 3200)


@pytest.mark.parametrize(("read", "share"), [(3200, 67.8), (0, None), (None, None)])
def test_a_rating_that_somebody_read_on_the_label_will_do(profile, read, share):
    """What the order does not state is taken from the person who attested it; nobody's word is none."""
    inputs = Inputs(profile, gpu__power__limit=450, **({} if read is None else {"host__psu__rating_w": read}))
    if share:
        assert electrical.supplies(inputs).value == pytest.approx(share, abs=0.1)
    else:
        with pytest.raises(Unmeasurable, match=r"or attest host\.psu\.rating_w"):
            electrical.supplies(inputs)


@pytest.mark.parametrize("name", ["cpu_w", "rest_w", "efficiency", "volts", "circuit_a"])
def test_what_the_order_does_not_state_is_never_assumed(profile, name):
    """Each parameter of the plan that is missing is named."""
    inputs = Inputs(planned(profile, **{name: None}), gpu__power__limit=450)
    with pytest.raises(Unmeasurable, match=name):
        electrical.circuit(inputs)


def test_an_efficiency_in_percent_is_refused(profile):
    """90 instead of 0.9 would make a plan that always fits."""
    with pytest.raises(Unmeasurable, match=r"write 0\.9"):
        electrical.circuit(Inputs(planned(profile, efficiency=90.0), gpu__power__limit=450))


def test_no_limits_are_no_plan(profile):
    """A card whose limit was not read, or reads 0, cannot be planned with."""
    with pytest.raises(Unmeasurable, match=r"gpu\.power\.limit"):
        electrical.circuit(Inputs(profile))
    with pytest.raises(Unmeasurable, match="0"):
        electrical.circuit(Inputs(profile, gpu__power__limit=LIMITS | {"gpu2": 0}))


def test_the_cards_power_is_compared_with_their_limits(profile):
    """The mean in the burn counts, over all cards."""
    inputs = Inputs(profile, gpu__power__limit=LIMITS, gpu__burn__power_mean=450)
    assert electrical.rails(inputs).value == pytest.approx(1800 / 1910)


def test_the_cards_share_of_the_wall_is_that_of_the_higher_burn(profile):
    """The whole machine's highest power belongs to the burn with the higher one of the cards."""
    totals = {"gpu__burn__power_total": 1790, "gpu__combined__power_total": 1800}
    found = electrical.wall_share(Inputs(profile, power__wall=2400, **totals))
    assert found.value == pytest.approx(0.75)


# the controller's reading --------------------------------------------------------------------


def reading(now=220, most=411, state="activated"):
    """Return what ipmitool prints."""
    return READING.format(now=now, most=most, state=state)


@pytest.fixture
def site(profile):
    """Return what the probe is given, with a reading of 220 W at the start."""
    world = SimWorld(profile, Scenario("healthy"))
    before = electrical.Reading(220, 411, 1)
    return Site(world, profile, "host", electrical.PARAMS, lambda name, text: "digest", before=before)


def printing(site, monkeypatch, status, out, err=""):
    """Let ipmitool print something."""
    monkeypatch.setattr(site.world, "command", lambda argv, *, timeout: Completed(argv, status, out, err, 0.1))


def test_a_reading_that_follows_the_burn_is_the_machines(site, monkeypatch):
    """A maximum that grew in the run, well above the start, is believed."""
    printing(site, monkeypatch, 0, reading(300, 2400))
    (found,) = electrical.wall(site)
    assert (found.metric, found.value) == ("power.wall", 2400)


@pytest.mark.parametrize(
    ("most", "said"), [(411, "not reached in this run"), (300, "not reached in this run"), (415, None)]
)
def test_a_reading_that_does_not_move_shows_nothing(site, monkeypatch, most, said):
    """A maximum of another day, or one that hardly differs from rest, is no power of the burns."""
    at = replace(site, before=electrical.Reading(400 if said is None else 220, 411, 1))
    printing(site, monkeypatch, 0, reading(220, most))
    with pytest.raises(Unmeasurable, match=said or "moved by 15 W only"):
        list(electrical.wall(at))


@pytest.mark.parametrize("before", [None, Unmeasurable("ipmitool cannot be started")])
def test_without_a_reading_at_the_start_there_is_none(site, before):
    """A reading of the end alone could be another day's."""
    with pytest.raises(Unmeasurable, match="start of the run"):
        list(electrical.wall(replace(site, before=before)))


def test_a_board_without_the_reading_says_what_it_takes(site, monkeypatch):
    """The tool's own words, and the remedy."""
    printing(
        site, monkeypatch, 1, "", "Could not open device at /dev/ipmi0 or /dev/ipmi/0: No such file or directory\n"
    )
    with pytest.raises(Unmeasurable, match=r"/dev/ipmi0.*: it takes root"):
        electrical.read_dcmi(site)


@pytest.mark.parametrize(
    "text", ["", reading(state="deactivated"), reading(now=0), reading(now=500, most=400), reading(now="N/A"),
             reading(most=10**9), reading().replace("Watts", "")],
)  # fmt: skip
def test_a_reading_that_cannot_be_is_none(text):
    """0 W, more now than at most, and words are no power."""
    with pytest.raises(Unmeasurable, match="board"):
        electrical.parse_dcmi(text)


@settings(deadline=None, database=None)
@given(
    text=st.text()
    | st.lists(st.sampled_from([*reading().splitlines(), *reading("N/A", 10**9).splitlines(), ":"])).map("\n".join)
)
def test_any_text_is_a_reading_or_none(text):
    """A parser answers with a power or says why not."""
    with suppress(Unmeasurable):
        assert electrical.parse_dcmi(text).now > 0
