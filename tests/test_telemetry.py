"""The poll of the sensors: what it reads, when, and how it says what it could not read."""

from itertools import pairwise

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpuaccept.children.telemetry import FIELDS, NAMES, hop, sample, telemetry
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.sim import files
from pytest_gpuaccept.sim.nvml import binding, uuid_of
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld

LOST = dict.fromkeys(NAMES, "GPU is lost")


@pytest.fixture
def world(catalogue):
    """Return a healthy machine of two cards."""
    return SimWorld(load_profile("2xrtx4090", catalogue, SHIPPED), Scenario("healthy"))


def polled(world, rounds, then=lambda i: None, **more):
    """Return the samples of rounds of a poll of both cards, with something done between the rounds."""
    uuids = [uuid_of(world.machine, i) for i in range(2)]
    poll = telemetry(binding(world.machine), world.clock, uuids=uuids, period_s=0.5, **more)
    taken = []
    for i in range(rounds):
        taken.append([next(poll) for _ in uuids])
        then(i)
    return taken


def first_card(world):
    """Return one sample of the first card."""
    nvml = binding(world.machine)
    return sample(nvml, nvml.nvmlDeviceGetHandleByIndex(0))


# pace -------------------------------------------------------------------------------------------------


class SlowClock:
    """A clock each of whose reads costs time."""

    def __init__(self, cost):
        self.now, self._cost = 0.0, cost

    def monotonic(self):
        """Return the seconds passed, some of them in this call."""
        self.now += self._cost
        return self.now

    def sleep(self, seconds):
        """Let time pass; time does not pass backwards."""
        assert seconds >= 0
        self.now += seconds


def times(world, clock, rounds, then=lambda i: None):
    """Return when a poll of one card with a period of 0.2 s took its samples."""
    poll = telemetry(binding(world.machine), clock, uuids=["GPU-0"], period_s=0.2)
    taken = []
    for i in range(rounds):
        taken.append(next(poll)["t"])
        then(i)
    return taken


def test_a_poll_reads_every_card_each_period(world):
    """One sample a card and round, at the time of the round, with nothing failed on a healthy card."""
    rounds = polled(world, 3)
    assert [[one["t"] for one in both] for both in rounds] == [pytest.approx([at, at]) for at in (0.0, 0.5, 1.0)]
    for one in rounds[0]:
        assert one["failed"] == {}
        assert one.keys() == {"kind", "t", "uuid", "failed", *NAMES}


def test_a_poll_does_not_drift_when_its_calls_take_time(world):
    """The time that a round takes is part of its period, not added to it."""
    taken = times(world, SlowClock(0.01), 101)
    assert taken[-1] - taken[0] == pytest.approx(20.0, abs=0.02)


@pytest.mark.parametrize("cost", [0.05, 0.5])
def test_a_poll_that_comes_too_late_goes_on(world, cost):
    """Where calls take longer than the period there are fewer samples, at times that go forward, and no rush after."""
    steps = [later - sooner for sooner, later in pairwise(times(world, SlowClock(cost), 20))]
    assert min(steps) > 0.02


def test_a_call_that_hangs_is_a_gap_and_not_made_up_for(world):
    """After 3 s without an answer the next sample is 3 s later, and those behind it keep the period."""
    clock = SlowClock(0.0)
    taken = times(world, clock, 8, lambda i: clock.sleep(3.0) if i == 3 else None)
    steps = [later - sooner for sooner, later in pairwise(taken)]
    assert steps == pytest.approx([0.2, 0.2, 0.2, 3.02, 0.2, 0.2, 0.2])


# readings ---------------------------------------------------------------------------------------------


def test_readings_are_in_the_units_that_they_say(world):
    """C, W, mJ, MHz, % and masks, as the machine has them."""
    with world.machine.runs("burn", {0: 1.0}):
        world.machine.advance(60.0)
        one = first_card(world)
    gpu0 = world.machine.gpus[0]
    assert one["temperature"] == round(gpu0.temperature)
    assert [one[name] for name in ("power", "power_instant", "power_average")] == pytest.approx([450.0] * 3, rel=0.02)
    assert one["energy_mj"] == int(gpu0.energy_mj)
    assert (one["gen"], one["width"], one["utilisation"], one["pstate"], one["mem_mhz"]) == (4, 16, 100, 0, 10501)
    assert one["reasons"] == 4
    assert 30 < one["fan"] <= 100


def test_the_numbers_of_the_fields_are_those_of_the_binding():
    """The installed binding gives each field id the same name."""
    assert {name: number for name, (number, _) in FIELDS.items()} == {
        "power_average": pynvml.NVML_FI_DEV_POWER_AVERAGE,
        "power_instant": pynvml.NVML_FI_DEV_POWER_INSTANT,
        "power_cap_ns": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP,
        "sw_thermal_ns": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,
        "hw_thermal_ns": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN,
        "brake_ns": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN,
    }


def test_each_cause_of_slowing_has_its_counter_and_the_power_cap_is_none(world):
    """Heat and brake are told apart and added up in ns; what the power limit takes is not in the sum."""
    gpu0 = world.machine.gpus[0]
    gpu0.thermal_ns, gpu0.brake_ns, gpu0.capped_ns = 5.0, 70.0, 900.0
    one = first_card(world)
    counters = ("sw_thermal_ns", "hw_thermal_ns", "brake_ns", "power_cap_ns", "throttle_ns")
    assert [one[name] for name in counters] == [5, 0, 70, 900, 75]


def test_what_a_card_does_not_support_is_named_and_never_zero(world):
    """A reading without a sensor is a reason under `failed`, and no value beside it."""
    world.machine.gpus[0].p.temperature_sensor = "unsupported"
    world.machine.gpus[0].p.throttle_counters = False
    gone = {"temperature", "sw_thermal_ns", "hw_thermal_ns", "brake_ns", "power_cap_ns", "throttle_ns"}
    ((first, second),) = polled(world, 1)
    assert first["failed"] == dict.fromkeys(gone, "Not Supported")
    assert not gone & first.keys()
    assert first["power_instant"] > 0
    assert second["failed"] == {}


@pytest.mark.parametrize(
    ("driver", "known"),
    [("570.172.08", False), ("580.65.06", False), ("580.82.07", True), ("580.105.08", True), ("610.43", True)],
)
def test_a_driver_to_which_the_numbers_mean_something_else_gives_no_time_of_slowing(world, driver, known):
    """Before 580.82 the same numbers are settings of power smoothing: a constant would look like no slowing."""
    world.machine.host.driver = driver
    ((first, _),) = polled(world, 1)
    unread = set() if known else {"sw_thermal_ns", "hw_thermal_ns", "brake_ns", "throttle_ns"}
    assert first["failed"].keys() == unread
    assert all(reason.startswith(f"driver {driver} has no time") for reason in first["failed"].values())
    assert not unread & first.keys()
    assert first["power_cap_ns"] == 0


def test_all_fields_are_asked_for_in_one_call(world, monkeypatch):
    """A sample costs one call for all field values, however many there are."""
    nvml = binding(world.machine)
    asked, ask = [], nvml.nvmlDeviceGetFieldValues
    monkeypatch.setattr(nvml, "nvmlDeviceGetFieldValues", lambda h, ids: asked.append(ids) or ask(h, ids))
    first_card(world)
    assert asked == [[(number, 0) for number, _ in FIELDS.values()]]


# lost cards -------------------------------------------------------------------------------------------


def test_a_card_lost_from_the_start_fails_by_name(world):
    """Every reading of it is a reason, and the other card is read."""
    world.machine.gpus[0].p.lost = True
    ((first, second),) = polled(world, 1)
    assert first["failed"] == LOST
    assert first.keys() == {"kind", "t", "uuid", "failed"}
    assert second["failed"] == {}


def test_a_card_that_was_lost_once_is_lost_in_every_later_sample(world):
    """Also when it answers again: it was off the bus under load, and nobody may miss that."""

    def lose(i):
        world.machine.gpus[1].p.lost = i == 0

    before, after, later = polled(world, 3, lose)
    assert before[1]["failed"] == {}
    assert after[1]["failed"] == later[1]["failed"] == LOST
    assert not set(NAMES) & later[1].keys()
    assert later[0]["failed"] == {}


def test_a_card_that_cannot_be_found_is_asked_for_again(world):
    """Only what is lost stays lost: a UUID that nobody knew yet is looked up each time."""
    world.machine.gpus[1].p.present = False

    def plug(_):
        world.machine.gpus[1].p.present = True

    before, after = polled(world, 2, plug)
    assert before[1]["failed"] == dict.fromkeys(NAMES, "Not Found")
    assert after[1]["failed"] == {}


# hops -------------------------------------------------------------------------------------------------


def hops_of(world, links, rounds=1):
    """Return hops and reasons of the first card in the last of the rounds."""

    def read(path):
        text = files.text(world.machine, path)
        if text is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        return text

    first, second = polled(world, rounds, read=read, links={uuid_of(world.machine, 0): links})[-1]
    assert "hops" not in second
    return first["hops"], first["failed"]


def test_every_hop_is_read_with_the_sample_of_its_card(world):
    """Generation and width of the card and of the port above it, as sysfs has them; other cards have no hops."""
    gpu0 = world.machine.gpus[0]
    gpu0.p.port_width = 8
    with world.machine.runs("copies", {0: 0.3}):
        world.machine.advance(1.0)
        links = [f"/sys/bus/pci/devices/{address}" for address in (gpu0.address, gpu0.port)]
        assert hops_of(world, links) == ([[4, 16], [4, 8]], {})


def test_a_hop_that_cannot_be_read_is_none_with_its_reason(world):
    """The other hop and NVML are not affected."""
    own = f"/sys/bus/pci/devices/{world.machine.gpus[0].address}"
    hops, failed = hops_of(world, [own, "/sys/gone"])
    assert hops == [[1, 16], None]
    assert failed == {"hop 1": "/sys/gone: No such file or directory"}


def test_a_link_that_is_down_is_no_speed(world):
    """What sysfs says of a card off the bus, Unknown and 0, is a reason and not a generation."""
    gpu0 = world.machine.gpus[0]
    gpu0.p.lost = True
    own = f"/sys/bus/pci/devices/{gpu0.address}"
    hops, failed = hops_of(world, [own])
    assert hops == [None]
    assert failed == LOST | {"hop 0": f"{own}: 'Unknown' and '0' are no speed and width of a link"}


@pytest.mark.parametrize(
    ("speed", "width", "expected"),
    [
        ("2.5 GT/s PCIe\n", "16\n", [1, 16]), ("5.0 GT/s PCIe", "8", [2, 8]), ("8.0 GT/s PCIe", "4", [3, 4]),
        ("16.0 GT/s PCIe", "1", [4, 1]), ("32.0 GT/s PCIe", "2", [5, 2]), ("64.0 GT/s PCIe", "12", [6, 12]),
        ("8 GT/s", "16", [3, 16]),
    ],
)  # fmt: skip
def test_sysfs_words_are_generation_and_lanes(speed, width, expected):
    """All speeds of the standard, in the words of old and new kernels."""
    assert hop(speed, width) == expected


@given(speed=st.text() | st.sampled_from(["16.0 GT/s PCIe", "Unknown", "7.0 GT/s"]), width=st.text() | st.just("255"))
def test_whatever_else_stands_in_the_files_is_no_link(speed, width):
    """Any text gives a generation from 1 to 6 and a real width, or ValueError."""
    try:
        gen, lanes = hop(speed, width)
    except ValueError:
        return
    assert 1 <= gen <= 6
    assert lanes in {1, 2, 4, 8, 12, 16, 32}
