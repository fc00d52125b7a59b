"""The model of a machine: heat, power, clocks, links and faults move with time as the physics says."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.sim.machine import DROP_AT_S, Change, Machine, Script, When, buses
from pytest_gpuaccept.sim.nvml import binding
from pytest_gpuaccept.sim.parts import Cpu, Drive, Gpu, Host, LlamaCpp, Nic, Vllm

FAST = settings(deadline=None, database=None, max_examples=40)
QUIET = {"rate_noise": 0.0, "power_noise": 0.0}
ROOM_C, TARGET_C = 28.0, 83.0
DYNAMIC_W = 430.0
"""Power of the default card at its limit over idle."""
RESISTANCE = 0.0831


def machine(*gpus, seed="a seed", noise=0, **host):
    """Return a machine with these GPUs, without noise unless asked, at rest."""
    parts = [Gpu(**{**QUIET, **gpu}) for gpu in gpus or ({},)]
    return Machine(
        seed=seed, noise=noise, cpu=Cpu(), host=Host(**host), gpus=parts, drives={"nvme0": Drive()},
        nics={"nic0": Nic()}, vllm=Vllm(), llamacpp=LlamaCpp(),
    )  # fmt: skip


def burnt(seconds, **gpu):
    """Return a machine whose only GPU has been under full load for `seconds`, and still is."""
    made = machine(gpu)
    made._load(made.gpus[0], begin=1.0)
    made.advance(seconds)
    return made


def state(gpu):
    """Return everything of a GPU that moves with time."""
    return {name: getattr(gpu, name) for name in gpu.__slots__ if isinstance(getattr(gpu, name), float)}


# heat and power ----------------------------------------------------------------------------------


@pytest.mark.parametrize("airflow", [0.5, 1.0, 1.2])
def test_heat_reaches_what_resistance_and_power_give(airflow):
    """After many time constants a loaded card is at room + resistance x airflow x dynamic power."""
    gpu = burnt(300.0, airflow=airflow).gpus[0]
    assert gpu.temperature == pytest.approx(ROOM_C + RESISTANCE * airflow * DYNAMIC_W, abs=0.05)


@pytest.mark.parametrize(("tau", "at"), [(5.0, 3.0), (10.0, 10.0), (10.0, 25.0), (30.0, 20.0)])
def test_heat_follows_power_with_its_time_constant(tau, at):
    """On the way the temperature is the response of an RC element to power that lags by 1 s."""
    gpu = burnt(at, tau_s=tau).gpus[0]
    left = (tau * math.exp(-at / tau) - math.exp(-at)) / (tau - 1.0)
    rise = RESISTANCE * DYNAMIC_W
    assert gpu.temperature == pytest.approx(ROOM_C + rise * (1.0 - left), abs=0.02 * rise)


def test_a_card_that_rests_cools_to_the_room():
    """Without load power falls to idle and the temperature to that of the air."""
    made = machine()
    with made.runs("burn", {0: 1.0}):
        made.advance(100.0)
    made.advance(200.0)
    assert made.gpus[0].power == pytest.approx(20.0, abs=0.01)
    assert made.gpus[0].temperature == pytest.approx(ROOM_C, abs=0.01)


def test_power_lags_by_a_second():
    """One second after the load 63 % of the step is there, and all of it after ten."""
    gpu = burnt(1.0).gpus[0]
    assert gpu.power == pytest.approx(20.0 + DYNAMIC_W * (1.0 - math.exp(-1.0)), rel=0.05)
    assert burnt(10.0).gpus[0].power == pytest.approx(450.0, rel=1e-3)


def test_energy_is_power_over_time():
    """The energy counter is the integral of the power, in mJ, and idle power counts too."""
    made = machine()
    made.advance(100.0)
    assert made.gpus[0].energy_mj == pytest.approx(20.0 * 100.0 * 1000.0)


def test_a_partial_load_draws_its_share():
    """A copy draws its share of the dynamic power and is not held by the power limit."""
    made = machine()
    with made.runs("copies", {0: 0.3}):
        made.advance(60.0)
        assert made.gpus[0].power == pytest.approx(20.0 + 0.3 * DYNAMIC_W, rel=1e-3)
        assert not made.gpus[0].at_limit
    assert made.gpus[0].capped_ns == 0


def test_power_that_has_yet_to_fall_is_not_held_by_the_limit():
    """At the end of a load the power is still high for a moment, and nothing holds the clock down."""
    made = machine()
    with made.runs("burn", {0: 1.0}):
        made.advance(60.0)
        assert made.gpus[0].at_limit
    assert made.gpus[0].power == pytest.approx(450.0, rel=1e-3)
    assert not made.gpus[0].at_limit


def test_full_load_is_held_by_the_power_limit():
    """Time at the power limit is counted as capped, not as throttled by heat or brake."""
    gpu = burnt(60.0).gpus[0]
    assert gpu.at_limit
    assert 50e9 < gpu.capped_ns < 60e9
    assert gpu.thermal_ns == gpu.brake_ns == 0


@pytest.mark.parametrize("airflow", [1.7, 2.2, 3.0])
def test_the_governor_holds_a_hot_card_under_its_target(airflow):
    """Heat that would pass the target costs power instead, and each second of it is counted."""
    made = burnt(300.0, airflow=airflow)
    gpu = made.gpus[0]
    assert ROOM_C + RESISTANCE * airflow * DYNAMIC_W > TARGET_C
    before = gpu.thermal_ns
    made.advance(10.0)
    assert TARGET_C - 3.0 < gpu.temperature < TARGET_C
    assert gpu.thermal_ns - before == pytest.approx(10e9)
    assert gpu.clock_share < 0.95
    assert not gpu.at_limit


def test_an_idle_card_is_not_throttled_however_hot_the_room():
    """Without load there is nothing to take away, so no time is counted."""
    made = machine(room_c=90.0)
    made.advance(20.0)
    assert made.gpus[0].thermal_ns == 0
    assert made.gpus[0].throttle == 1.0


def test_a_power_brake_costs_power_and_counts_its_time_only_under_load():
    """The brake takes its share of the dynamic power; the counter stands still at rest."""
    made = machine({"power_brake": 0.3})
    made.advance(10.0)
    assert made.gpus[0].brake_ns == 0
    with made.runs("burn", {0: 1.0}):
        made.advance(60.0)
    assert made.gpus[0].brake_ns == pytest.approx(60e9)
    assert made.gpus[0].power == pytest.approx(20.0 + 0.7 * DYNAMIC_W, rel=1e-3)
    assert made.gpus[0].thermal_ns == 0


def test_busy_cpus_warm_the_air_that_the_cards_breathe():
    """225 W of CPU preheat the air by 2.5 C, and no more once they rest."""
    made = machine()
    with made.runs("stress-ng", cpu=1.0):
        made.advance(120.0)
        assert made.gpus[0].temperature == pytest.approx(ROOM_C + 2.5, abs=0.05)
        assert made.cpu_busy_s == pytest.approx(120.0)
    made.advance(200.0)
    assert made.gpus[0].temperature == pytest.approx(ROOM_C, abs=0.05)


def test_the_meter_may_overshoot_in_single_samples():
    """An overshooting meter shows some samples above the limit; the power itself stays below."""
    gpu = burnt(60.0, overshoot=0.04).gpus[0]
    seen = [gpu.meter_w() for _ in range(1000)]
    assert 1 < sum(watts == pytest.approx(468.0) for watts in seen) < 100
    assert gpu.power <= 450.0


# rates ---------------------------------------------------------------------------------------------


def test_the_warm_rate_is_the_sustained_share():
    """Minutes into a load, at the temperature of the fit, the rate is `sustained` of the cold one."""
    gpu = burnt(300.0, sustained=0.9, resistance_c_per_w=39.0 / DYNAMIC_W).gpus[0]
    assert gpu.rate("fp16", 0.0) == pytest.approx(0.9 * 167.0, rel=1e-3)


def test_a_load_begins_at_the_cold_rate():
    """In its first moment a cold card has its cold rates and clock."""
    gpu = burnt(0.1, sustained=0.9).gpus[0]
    assert gpu.rate("fp16", 0.0) == pytest.approx(167.0, rel=0.01)
    assert gpu.rate("fp32", 0.0) == pytest.approx(58.0, rel=0.01)
    assert gpu.clock_mhz == pytest.approx(167.0e6 / (128 * 512 * 0.955), rel=0.01)


def test_a_copy_does_not_wear_the_rate_down():
    """Only full load brings the sustained loss."""
    made = machine({"sustained": 0.5})
    with made.runs("copies", {0: 0.3}):
        made.advance(60.0)
    assert made.gpus[0].warm == 0.0


@pytest.mark.parametrize(
    ("parameters", "rate", "clock"),
    [
        ({"slowdown": 0.3}, 0.7, 1.0),
        ({"clock_loss": 0.3}, 0.7, 0.7),
        ({"accumulate": "fp16"}, 2.0, 1.0),
        ({"limit_w": 225.0}, 0.5**0.7, 0.5**0.7),
        ({"power_brake": 0.3}, 0.7**0.6, 0.7**0.6),
        ({"pulse": 0.1}, 0.5, 1.0),
    ],
)
def test_each_cause_of_a_rate_shows_in_the_clock_or_not(parameters, rate, clock):
    """Lost clock costs the rate with it; another kernel, FP16 accumulation and pauses leave the clock."""
    cold, seen = burnt(0.1).gpus[0], burnt(0.1, **parameters).gpus[0]
    assert seen.rate("fp16", 5.0) / cold.rate("fp16", 5.0) == pytest.approx(rate, rel=0.01)
    assert seen.clock_mhz / cold.clock_mhz == pytest.approx(clock, rel=0.01)


def test_fp16_accumulation_does_not_speed_up_fp32():
    """Only the FP16 product has a faster wrong way."""
    assert burnt(0.1, accumulate="fp16").gpus[0].rate("fp32", 0.0) == burnt(0.1).gpus[0].rate("fp32", 0.0)


@pytest.mark.parametrize(("at", "share"), [(0.0, 1.0), (0.9, 1.0), (1.1, 0.5), (9.9, 0.5), (10.5, 1.0)])
def test_a_pulsing_card_has_one_good_second_in_ten(at, share):
    """A pulse is at full rate for its share of each ten seconds and at half rate else."""
    pulsing, steady = burnt(0.1, pulse=0.1).gpus[0], burnt(0.1).gpus[0]
    assert pulsing.rate("fp16", at) == pytest.approx(share * steady.rate("fp16", at))


def test_busy_cpus_cost_the_rate_of_a_card_that_they_disturb():
    """Interference is there while the CPUs work, in proportion."""
    made = machine({"cpu_interference": 0.06})
    with made.runs("burn", {0: 1.0}):
        made.advance(30.0)
        alone = made.gpus[0].rate("fp16", 0.0)
        with made.runs("stress-ng", cpu=1.0):
            made.advance(0.1)
            assert made.gpus[0].rate("fp16", 0.0) / alone == pytest.approx(0.94, rel=1e-3)


def test_a_clock_never_goes_below_zero():
    """However large the loss, NVML is not asked to show a negative clock."""
    made = burnt(300.0, sustained=0.0, airflow=1.4)
    nvml = binding(made)
    assert nvml.nvmlDeviceGetClockInfo(nvml.nvmlDeviceGetHandleByIndex(0), nvml.NVML_CLOCK_SM) == 0
    assert made.gpus[0].rate("fp16", 0.0) == 0.0


def test_an_idle_card_shows_its_idle_clock():
    """Without load the clock is 210 MHz."""
    assert machine().gpus[0].clock_mhz == 210


# links ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generations", "full"),
    [
        ({}, 4),
        ({"slot_gen": 3}, 3),
        ({"card_gen": 3}, 3),
        ({"card_gen": 5, "slot_gen": 5, "pcie_gen": 5}, 5),
        ({"pcie_gen": 1}, 1),
    ],
)
def test_a_link_sleeps_at_gen1_and_wakes_under_load(generations, full):
    """Idle it is Gen1, full 0.2 s after the load began, still full 2 s after its end, then Gen1 again."""
    made = machine(generations)
    gpu = made.gpus[0]
    seen = [gpu.link_gen(made.now)]
    with made.runs("copies", {0: 0.3}):
        seen.append(gpu.link_gen(made.now + 0.1))
        made.advance(0.3)
        seen.append(gpu.link_gen(made.now))
    made.advance(1.9)
    seen.append(gpu.link_gen(made.now))
    made.advance(0.2)
    seen.append(gpu.link_gen(made.now))
    assert seen == [1, 1, full, full, 1]


def test_a_link_that_is_awake_does_not_fall_asleep_for_the_next_load():
    """A load that begins within 2 s of the last one finds the link at full generation."""
    made = machine({})
    with made.runs("copies", {0: 0.3}):
        made.advance(1.0)
    made.advance(1.0)
    with made.runs("copies", {0: 0.3}):
        assert made.gpus[0].link_gen(made.now) == 4


def test_of_two_loads_on_one_card_the_heavier_counts_until_it_ends():
    """The card stays loaded as long as one of them runs."""
    made = machine({})
    with made.runs("copies", {0: 0.3}):
        with made.runs("burn", {0: 1.0}):
            assert made.gpus[0].load == 1.0
        assert made.gpus[0].load == 0.3
    assert made.gpus[0].load == 0.0


def test_a_link_that_drops_does_so_in_the_middle_of_each_load():
    """Some way into every load it is at Gen1 for its time, then back."""
    made = machine({"link_drops_s": 2.0})
    for _ in range(2):
        with made.runs("copies", {0: 0.3}):
            began = made.now
            made.advance(8.0)
            seen = [made.gpus[0].link_gen(began + DROP_AT_S + at) for at in (-0.1, 0.1, 1.9, 2.1)]
        assert seen == [4, 1, 1, 4]
        made.advance(10.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 16, 33, 64])
def test_every_card_has_a_place_of_its_own_on_the_bus(count):
    """Addresses of cards and ports are distinct, in the order of the cards, and on the bus."""
    cards, ports = zip(*buses(count), strict=True)
    assert list(cards) == sorted(set(cards))
    assert len(set(ports)) == count
    assert all(len(address) == len("0000:01:00.0") for address in (*cards, *ports))


def test_four_cards_are_where_the_commissioned_machine_has_them():
    """Four slots are at 01, 41, 81 and c1."""
    assert [card[5:7] for card, _ in buses(4)] == ["01", "41", "81", "c1"]


# counters and the log ------------------------------------------------------------------------------


def test_link_errors_come_with_load_and_are_logged_one_by_one():
    """Corrected errors grow with the loaded minutes; each whole one leaves a record of the port."""
    made = machine({"aer_corrected_per_min": 4.0, "replays_per_min": 2.0})
    made.advance(60.0)
    assert made.gpus[0].corrected == made.gpus[0].replays == 0
    with made.runs("burn", {0: 1.0}):
        made.advance(91.0)
    assert int(made.gpus[0].corrected) == 6
    assert int(made.gpus[0].replays) == 3
    assert sum("AER: Correctable error" in line.message for line in made.log) == 6


def test_uncorrected_errors_and_an_xid_are_logged_once():
    """What happens once is one record, however long the load."""
    made = machine({"aer_uncorrected": 2, "xid": 31})
    for _ in range(2):
        with made.runs("burn", {0: 1.0}):
            made.advance(30.0)
    text = [line.message for line in made.log]
    assert made.gpus[0].uncorrected == 2
    assert sum("AER: Uncorrectable" in line for line in text) == 1
    assert [line for line in text if "Xid" in line] == [
        "NVRM: Xid (PCI:0000:01:00): 31, pid='<unknown>', name=<unknown>"
    ]


@pytest.mark.parametrize("side", ["gpu", "port"])
def test_a_link_error_names_the_partner_that_saw_it(side):
    """Either end of a link may count its errors; the port reports both."""
    made = machine({"aer_corrected_per_min": 60.0, "aer_side": side})
    with made.runs("burn", {0: 1.0}):
        made.advance(1.1)
    gpu = made.gpus[0]
    seen = gpu.address if side == "gpu" else gpu.port
    first, second, _ = (line for line in made.log if line.priority == 4)
    assert first.message == f"pcieport {gpu.port}: AER: Correctable error message received from {seen}"
    assert second.message.startswith(f"nvidia {seen}: PCIe Bus Error: severity=Correctable")
    assert (first.device, second.device) == (gpu.port, seen)


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ({}, False),
        ({"flips_per_s": 1.0}, True),
        ({"flips_per_s": 1.0, "flip_above_c": 60.0}, True),
        ({"flips_per_s": 1.0, "flip_above_c": 65.0}, False),
        ({"flip_above_c": 60.0}, False),
        ({"always_wrong": True, "flip_above_c": 65.0}, True),
    ],
)
def test_products_may_be_wrong_where_the_card_flips_and_is_hot_enough(parameters, wrong):
    """At 63.7 C a card that flips above 60 C may be wrong, one that flips above 65 C is not; a stuck one always is."""
    assert burnt(300.0, **parameters).gpus[0].wrong_now() == wrong


def test_a_kernel_that_does_not_control_aer_logs_nothing_of_it():
    """With AER left to the firmware the errors happen unseen."""
    made = machine({"aer_corrected_per_min": 60.0}, aer_armed=False)
    with made.runs("burn", {0: 1.0}):
        made.advance(10.0)
    assert made.gpus[0].corrected > 9
    assert not [line for line in made.log if "AER:" in line.message]


def test_a_network_link_flaps_once_while_something_runs():
    """Each carrier loss is one pair of records, and needs a load to happen."""
    made = machine()
    made.nics["nic0"].flaps = 2
    made.advance(1.0)
    assert not [line for line in made.log if "NIC" in line.message]
    for _ in range(2):
        with made.runs("fio"):
            made.advance(1.0)
    assert [line.message.split("NIC Link is ")[1][:4] for line in made.log if "NIC" in line.message] == [
        "Down", "Up 1", "Down", "Up 1"
    ]  # fmt: skip


# seeds ---------------------------------------------------------------------------------------------


def noisy(**which):
    """Return rates and meter readings of a noisy card under load."""
    made = machine({"rate_noise": 0.01, "power_noise": 0.01}, **which)
    with made.runs("burn", {0: 1.0}):
        made.advance(5.0)
        return [made.gpus[0].rate("fp16", 0.0) for _ in range(5)] + [
            made.gpus[0].meter_w(),
            made.random("fio").random(),
        ]


def test_the_same_seed_gives_the_same_everything_and_another_seed_does_not():
    """Noise follows from the seed and the run alone; state without noise does not depend on them."""
    assert noisy() == noisy()
    for other in (noisy(seed="another"), noisy(noise=1)):
        assert all(a != b for a, b in zip(noisy(), other, strict=True))
    assert state(burnt(30.0).gpus[0]) == state(burnt(30.0).gpus[0])


def test_cards_of_one_machine_have_noise_of_their_own():
    """What one card is asked does not move another one's noise."""
    first, again = (machine({"rate_noise": 0.01}, {"rate_noise": 0.01}) for _ in range(2))
    first.gpus[0].rng.random()
    assert first.gpus[1].rng.random() == again.gpus[1].rng.random()
    assert first.gpus[0].rng.random() != first.gpus[1].rng.random()


# time ----------------------------------------------------------------------------------------------


def stepped(pieces):
    """Return the state after a load of these pieces of time, in s."""
    made = machine({"airflow": 2.0})
    with made.runs("burn", {0: 1.0}, cpu=1.0):
        for piece in pieces:
            made.advance(piece)
    return made


@FAST
@given(pieces=st.lists(st.integers(1, 120), min_size=1, max_size=8))
def test_whole_steps_give_the_same_state_however_they_are_split(pieces):
    """Advancing by tenths of a second in any grouping is one and the same path, up to rounding."""
    whole, split = stepped([sum(pieces) / 10.0]), stepped([piece / 10.0 for piece in pieces])
    assert split.now == pytest.approx(whole.now)
    assert state(split.gpus[0]) == pytest.approx(state(whole.gpus[0]), rel=1e-6)
    assert split.preheat_c == pytest.approx(whole.preheat_c)


@FAST
@given(pieces=st.lists(st.floats(0.001, 5.0), min_size=1, max_size=8))
def test_any_split_gives_the_same_state_up_to_the_size_of_a_step(pieces):
    """Odd pieces shift the grid of the steps, which moves heat and power by less than a sensor shows."""
    whole, split = stepped([sum(pieces)]).gpus[0], stepped(pieces).gpus[0]
    assert split.temperature == pytest.approx(whole.temperature, abs=1.0)
    assert split.power == pytest.approx(whole.power, abs=0.05 * DYNAMIC_W)


def test_no_time_changes_nothing():
    """Advancing by zero is nothing at all."""
    made = burnt(5.0)
    before = state(made.gpus[0])
    made.advance(0.0)
    assert state(made.gpus[0]) == before


# faults --------------------------------------------------------------------------------------------


def planted(when, parameter="clock_loss", value=0.3, made=None):
    """Return a machine with a fault on its GPU."""
    made = made or machine()
    made.plan(Change(made.gpus[0].p, parameter, value, when, made.gpus[0]))
    return made


def watched(made, seconds):
    """Return the times in s, to a tenth, at which the GPU's clock loss changed, with what it became."""
    seen, last = [], made.gpus[0].p.clock_loss
    for _ in range(round(seconds * 10)):
        made.advance(0.1)
        if made.gpus[0].p.clock_loss != last:
            last = made.gpus[0].p.clock_loss
            seen.append((round(made.now, 1), last))
    return seen


def test_a_fault_without_a_time_is_there_at_once():
    """A fault that says nothing of when is there before anything runs, and stays."""
    made = planted(When())
    assert made.gpus[0].p.clock_loss == 0.3
    assert watched(made, 5.0) == []


def test_a_fault_comes_at_its_time():
    """Before its second there is no fault, from then on there is."""
    assert watched(planted(When(from_s=2.0)), 5.0) == [(2.0, 0.3)]


def test_a_fault_of_a_load_comes_with_its_first_run_and_stays():
    """It begins with the load that it names, no other, and a card that broke stays broken."""
    made = planted(When(during="burn"))
    with made.runs("gemm", {0: 1.0}):
        made.advance(1.0)
    assert made.gpus[0].p.clock_loss == 0.0
    with made.runs("burn", {0: 1.0}):
        assert made.gpus[0].p.clock_loss == 0.3
    made.advance(5.0)
    assert made.gpus[0].p.clock_loss == 0.3


def test_a_fault_of_the_combined_burn_needs_both_loads():
    """`combined` is the burn of GPUs and CPUs at the same time, whichever began first."""
    made = planted(When(during="combined"))
    for alone in ("burn", "stress-ng"):
        with made.runs(alone):
            made.advance(1.0)
    assert made.gpus[0].p.clock_loss == 0.0
    with made.runs("burn"), made.runs("stress-ng"):
        assert made.gpus[0].p.clock_loss == 0.3


def test_a_fault_with_load_and_time_waits_for_both():
    """From its second on, the next run of its load brings it."""
    made = planted(When(from_s=10.0, during="burn"))
    with made.runs("burn"):
        made.advance(1.0)
    made.advance(10.0)
    assert made.gpus[0].p.clock_loss == 0.0
    with made.runs("burn"):
        assert made.gpus[0].p.clock_loss == 0.3


def test_a_fault_that_keeps_a_load_away_does_so_in_the_run_that_it_names():
    """A card that a burn does not reach is idle in the first burn already."""
    made = planted(When(during="burn"), "load_starts", value=False)
    with made.runs("burn", {0: 1.0}):
        assert made.gpus[0].load == 0.0


def test_a_fault_comes_and_goes_by_the_clock():
    """It is there for on_s, gone for off_s, and so on from its beginning."""
    seen = watched(planted(When(from_s=1.0, on_s=2.0, off_s=3.0)), 8.5)
    assert [value for _, value in seen] == [0.3, 0.0, 0.3, 0.0]
    assert [at for at, _ in seen] == pytest.approx([1.0, 3.0, 6.0, 8.0], abs=0.25)


def test_a_fault_of_heat_comes_and_goes_with_it():
    """It appears when the card is hotter, and disappears when it has cooled."""
    made = planted(When(above_c=50.0))
    with made.runs("burn", {0: 1.0}):
        came = watched(made, 60.0)
    went = watched(made, 60.0)
    assert [value for _, value in came + went] == [0.3, 0.0]


@FAST
@given(above=st.floats(20.0, 90.0), load=st.floats(0.0, 1.0), airflow=st.floats(0.5, 2.5))
def test_a_fault_of_heat_is_never_there_at_or_below_its_temperature(above, load, airflow):
    """At every step the fault is there exactly while the card is hotter than it says."""
    made = planted(When(above_c=above), made=machine({"airflow": airflow}))
    gpu = made.gpus[0]
    with made.runs("burn", {0: load}):
        for _ in range(120):
            made.advance(0.3)
            assert (gpu.p.clock_loss == 0.3) == (gpu.temperature > above)


def test_a_temperature_exactly_at_the_limit_is_not_above_it():
    """Above means above."""
    assert planted(When(above_c=ROOM_C)).gpus[0].p.clock_loss == 0.0


def test_a_fault_that_goes_leaves_exactly_what_was_there():
    """The healthy value comes back bit by bit, an odd one too."""
    odd = 0.1 + 0.2
    made = machine({"sustained": odd})
    made.plan(Change(made.gpus[0].p, "sustained", 0.5, When(on_s=1.0, off_s=1.0), made.gpus[0]))
    assert made.gpus[0].p.sustained == 0.5
    made.advance(1.5)
    assert made.gpus[0].p.sustained == odd


@FAST
@given(
    cycles=st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=3, unique=True
    )
)
def test_faults_on_one_parameter_do_not_leave_each_other_behind(cycles):
    """At any time the last planned of those that are there holds, and the healthy value when none is."""
    made = machine()
    for i, (begin, on, off) in enumerate(cycles):
        planted(When(from_s=begin, on_s=on, off_s=off), value=0.1 * (i + 1), made=made)
    for second in range(25):
        made.advance((second + 0.5) - made.now)
        there = [
            0.1 * (i + 1) for i, (begin, on, off) in enumerate(cycles)
            if made.now >= begin and (made.now - begin) % (on + off) < on
        ]  # fmt: skip
        assert made.gpus[0].p.clock_loss == (there[-1] if there else 0.0)


def test_a_fault_of_a_part_without_temperature_never_gets_hot():
    """Only a GPU has a temperature that a fault can wait for."""
    made = machine()
    made.plan(Change(made.host, "driver", "1", When(above_c=0.0)))
    made.advance(10.0)
    assert made.host.driver != "1"


def test_parts_have_the_names_of_scenarios():
    """Every part is found by its name, and nothing by another."""
    made = machine({}, {})
    assert made.part("gpu1") is made.gpus[1].p
    assert made.part("cpu") is made.cpu
    assert made.part("nvme0") is made.drives["nvme0"]
    assert made.part("nic0") is made.nics["nic0"]
    assert made.part("gpu2") is made.part("gpu") is made.part("") is None


def test_a_load_for_a_card_that_is_lost_does_not_reach_it():
    """Neither a card off the bus nor a missing one can be loaded."""
    made = machine({"lost": True}, {"present": False}, {})
    with made.runs("burn", {0: 1.0, 1: 1.0, 2: 1.0}):
        assert [gpu.load for gpu in made.gpus] == [0.0, 0.0, 1.0]
    assert [gpu.load for gpu in made.gpus] == [0.0, 0.0, 0.0]
    assert made.running == []


# scripts -------------------------------------------------------------------------------------------


def script(made, body):
    """Return a script that the machine runs."""
    running = Script("a script", body, made)
    made.scripts.append(running)
    running.resume(made.now)
    return running


def ticking(period, times, log, name=""):
    """Return a body that writes its clock into `log` and sleeps, a number of times."""

    def body(clock):
        for _ in range(times):
            log.append((name, round(clock.monotonic(), 6)))
            clock.sleep(period)
            yield {"name": name}

    return body


def test_scripts_resume_when_their_time_has_come():
    """A script works at its times, one record each, and ends by itself."""
    made, log = machine(), []
    running = script(made, ticking(0.5, 3, log))
    assert log == [("", 0.0)]
    made.advance(1.0)
    assert [at for _, at in log] == pytest.approx([0.0, 0.5, 1.0])
    assert not running.ended
    made.advance(1.0)
    assert running.ended
    assert len(running.records) == 3
    assert running.death == ""


def test_scripts_of_one_moment_resume_in_the_order_of_their_start():
    """Several scripts share the time; none runs ahead of another."""
    made, log = machine(), []
    for name in ("a", "b"):
        script(made, ticking(1.0, 3, log, name))
    made.advance(5.0)
    assert [name for name, _ in log] == ["a", "b"] * 3
    assert all(late >= early for (_, early), (_, late) in pairwise(log))


def test_a_scripts_clock_shows_the_time_that_it_slept_until():
    """A script that wakes between two steps of the model sees the time that it slept until, not that of the step."""
    made, log = machine(), []
    script(made, ticking(0.25, 2, log))
    made.advance(1.0)
    assert log[1][1] == pytest.approx(0.25)


def test_a_script_that_dies_keeps_its_records_and_its_reason():
    """What it had written is there, and why it died is told."""
    made = machine()

    def body(clock):
        clock.sleep(0.1)
        yield {"first": True}
        message = "CUDA error"
        raise Unmeasurable(message)

    running = script(made, body)
    made.advance(1.0)
    assert running.ended
    assert (running.records, running.death) == ([{"first": True}], "CUDA error")


def test_a_script_that_is_closed_leaves_nothing_running():
    """Ending it runs what it has to do at its end, so the card is idle again."""
    made = machine()

    def body(clock):
        with made.runs("burn", {0: 1.0}):
            while True:
                clock.sleep(0.1)
                yield {}

    running = script(made, body)
    made.advance(1.0)
    assert made.gpus[0].load == 1.0
    running.close()
    assert running.ended
    assert made.gpus[0].load == 0.0
    assert made.running == []
