"""The burn of all cards: what a load that dies, hangs or is stopped leaves, and how long a burn goes on."""

import contextlib
import json
from types import SimpleNamespace

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.evidence import checked
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.gpus import burn, burnt
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.verdict import judge
from pytest_gpuaccept.world import Completed

CUDA = "unspecified launch failure"
OF_CARD = {"tflops", "temperature", "power_peak", "errors", "power_mean", "clock", "power_capped", "check_cost"}
ALONE = OF_CARD | {"throttle", "width", "start_temperature", "plateau"}


class Silent:
    """A load that says nothing: one that hangs, one that can or cannot be ended, one that has ended well or died."""

    records = ()

    def __init__(self, *, ended=False, death=""):
        self.ended, self.death, self.told = ended, death, []

    def tell(self, message):
        """Keep what it was told."""
        self.told.append(message)

    def stop(self):
        """End, or say why not."""
        if self.death:
            raise Unmeasurable(self.death)
        self.ended = True
        return self.records


class World(SimWorld):
    """A simulated machine in which some loads are not what they should be."""

    silent = None
    """What stands for the burn of gpu1."""
    blind = False
    """Telemetry dies once the burn is over."""
    stress = ""
    """What becomes of stress-ng, or '' for what the machine makes of it."""

    @contextlib.contextmanager
    def start(self, script, params):
        """Start a load, or what stands for it."""
        with super().start(script, params) as load:
            if self.silent and script == "burn" and params["uuid"] == self.second():
                yield self.silent
            elif self.blind and script == "telemetry":
                yield SimpleNamespace(stop=self.die, records=load.records)
            else:
                yield load

    def second(self):
        """Return the UUID of the second card."""
        nvml = self.nvml()
        return nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(1))

    def die(self):
        """Die of a signal."""
        raise Unmeasurable("telemetry died of SIGSEGV")  # noqa: TRY003, EM101 - a stand-in

    def command(self, argv, *, timeout, watch=None):
        """Run a command; stress-ng can fail to start, or be looked at while it runs."""
        if self.stress == "missing" and argv[0] == "stress-ng":
            raise Unmeasurable("stress-ng cannot be started")  # noqa: TRY003, EM101 - a stand-in
        if self.stress == "watched" and watch:
            for _ in range(40):
                self.clock.sleep(0.5)
                watch()
            return Completed(tuple(argv), 0, "", "", 20.0)
        return super().command(argv, timeout=timeout, watch=watch)


@pytest.fixture(scope="module")
def two(catalogue):
    """Return the profile of two cards."""
    return load_profile("2xrtx4090", catalogue, SHIPPED)


def site(profile, faults="", **params):
    """Return a site on a simulated machine with faults, its attachments in `memory`."""
    world = World(profile, load_scenario(f"healthy{faults}", SHIPPED, SHIPPED / "scenarios"))
    plan = {"seconds": 6, "period_s": 0.2, "cool_down_seconds": 0, **params}
    kept = {}
    return Site(world, profile, "host", plan, kept.setdefault, "simulated", memory={"kept": kept})


def outcomes_of(where, probe=burn.alone):
    """Return a burn's outcomes by the last word of their metric and by device."""
    outcomes = {(o.metric, o.device): checked(o) for o in probe(where)}
    return {(metric.split(".", 2)[-1], device): o for (metric, device), o in outcomes.items()}


def reasons(outcomes, device):
    """Return the reasons of a device's absent values, by metric."""
    return {m: o.reason for (m, d), o in outcomes.items() if d == device and isinstance(o, NotMeasured)}


def verdict(profile, outcome):
    """Return what the judge says of an outcome."""
    line = profile.lines[outcome.metric]
    metric = next(metric for metric in burnt.ALONE.all() if metric.id == outcome.metric)
    return judge(outcome, line, metric, profile.card.rates().get(metric.rate), profile.card)


# a load that dies, or never begins ------------------------------------------------------------------------


def test_a_healthy_burn_has_every_value_of_every_card(two):
    """What the report shows of a burn is there: eight values of each card, and four of its link and its heat."""
    outcomes = outcomes_of(site(two))
    assert {m for m, d in outcomes if d == "gpu0"} == {m for m, d in outcomes if d == "gpu1"} == ALONE
    assert {m for m, d in outcomes if d == "host"} == {"total", "power_total"}
    assert all(isinstance(o, Measurement) for o in outcomes.values())


def test_wrong_products_before_a_crash_are_a_failure(two):
    """A card that computed wrong and then fell off the bus computed wrong; all else of it has its death's reason."""
    outcomes = outcomes_of(site(two, ",fault=gpu1.bitflip:10,fault=gpu1.lost@4s"))
    errors = outcomes["errors", "gpu1"]
    assert errors.value > 0
    assert verdict(two, errors).verdict == "FAIL"
    why = reasons(outcomes, "gpu1")
    assert why.keys() == ALONE - {"errors"}
    assert all(CUDA in reason for reason in why.values())


def test_a_card_that_dies_without_a_wrong_product_has_no_value_and_costs_the_others_none(two):
    """Half a burn is none, and says why; the other card burned to its end."""
    outcomes = outcomes_of(site(two, ",fault=gpu1.lost@4s"))
    why = reasons(outcomes, "gpu1")
    assert why.keys() == ALONE
    assert all(CUDA in reason for reason in why.values())
    assert reasons(outcomes, "gpu0") == {}
    assert outcomes["errors", "gpu0"].value == 0
    assert all(CUDA in reason for reason in reasons(outcomes, "host").values())


@pytest.mark.parametrize("death", ["", "burn cannot be killed"])
@pytest.mark.parametrize("longest", [0, 12])
def test_a_card_that_does_not_get_ready_is_left_behind(two, death, longest):
    """It is ended, and is told nothing; the others wait for it once, and not again where it cannot be ended."""
    where = site(two, longest_seconds=longest)
    left = where.world.silent = Silent(death=death)
    outcomes = outcomes_of(where)
    assert reasons(outcomes, "gpu1") == dict.fromkeys(ALONE, "it was not ready after 300 s")
    assert (left.told, left.ended) == ([], not death)
    assert not {"tflops", "errors", "power_mean"} & reasons(outcomes, "gpu0").keys()
    assert reasons(outcomes, "host")["total"] == "gpu1: it was not ready after 300 s"
    assert where.world.clock.monotonic() < 300 + longest + 20


@pytest.mark.parametrize(
    ("death", "reason"), [("", "it ended before it was ready"), ("burn died of SIGSEGV", "burn died of SIGSEGV")]
)
def test_a_card_that_is_over_before_it_is_ready_says_how(two, death, reason):
    """Its own reason, and nobody waits for it; the other card has all its values."""
    where = site(two)
    over = where.world.silent = Silent(ended=True, death=death)
    outcomes = outcomes_of(where)
    assert reasons(outcomes, "gpu1") == dict.fromkeys(ALONE, reason)
    assert over.told == []
    assert reasons(outcomes, "gpu0") == {}
    assert where.world.clock.monotonic() < 20


def test_a_card_in_slices_is_named_while_the_others_burn(two):
    """A card with MIG on is not loaded, its lines say what to do, and the other one has its values."""
    outcomes = outcomes_of(site(two, ",fault=gpu0.mig"))
    why = reasons(outcomes, "gpu0")
    assert why.keys() == ALONE
    assert all(reason.startswith("MIG is on") and "-mig 0" in reason for reason in why.values())
    assert reasons(outcomes, "gpu1") == {}
    assert outcomes["errors", "gpu1"].value == 0


def test_telemetry_that_died_leaves_only_what_is_proven_wrong(two):
    """Nobody saw the cards to the end: no value but wrong products."""
    where = site(two, ",fault=gpu1.bitflip:10")
    where.world.blind = True
    outcomes = outcomes_of(where)
    assert outcomes.pop(("errors", "gpu1")).value > 0
    assert {o.reason.removeprefix("gpu0: ") for o in outcomes.values()} == {"telemetry died of SIGSEGV"}


def test_a_card_that_died_says_so_also_without_telemetry(two):
    """The death of its own load is the nearer reason."""
    where = site(two, ",fault=gpu1.lost@4s")
    where.world.blind = True
    outcomes = outcomes_of(where)
    assert all(CUDA in reason for reason in reasons(outcomes, "gpu1").values())
    assert set(reasons(outcomes, "gpu0").values()) == {"telemetry died of SIGSEGV"}


def test_the_raw_records_of_a_burn_are_kept(two):
    """Samples of the sensors and records of each card, one JSON line each, also of a card that died."""
    where = site(two, ",fault=gpu1.lost@4s")
    outcomes_of(where)
    kept = {name: [json.loads(line) for line in text.splitlines()] for name, text in where.memory["kept"].items()}
    assert kept.keys() == {"gpu.burn: telemetry", "gpu.burn: gpu0", "gpu.burn: gpu1"}
    assert kept["gpu.burn: telemetry"][0]["kind"] == "sample"
    assert [kept[f"gpu.burn: gpu{i}"][-1]["kind"] for i in (0, 1)] == ["end", "batch"]


# what stops a burn ----------------------------------------------------------------------------------------


def test_a_card_near_its_shutdown_stops_the_burn_of_all(two):
    """Every line of every card says which card it was and how hot; the machine is at rest again."""
    where = site(two, seconds=60)
    where.world.machine.gpus[1].p.shutdown_c = 55.0
    outcomes = outcomes_of(where)
    assert reasons(outcomes, "gpu0").keys() == reasons(outcomes, "gpu1").keys() == ALONE
    (why,) = {o.reason.removeprefix("gpu0: ") for o in outcomes.values() if o.device != "host"}
    assert why.startswith("stopped: gpu1 reached 5")
    assert why.endswith("and shuts down at 55 C")
    assert {o.reason for o in outcomes.values() if o.device == "host"} == {why}
    assert where.world.clock.monotonic() < 30
    assert where.world.machine.running == []


def test_a_sensor_that_is_lost_stops_the_burn_of_all_and_wrong_products_stay(two):
    """A card that nobody sees any more is not heated on; what it computed wrong until then is proven."""
    outcomes = outcomes_of(site(two, ",fault=gpu0.sensor.gone@8s,fault=gpu0.bitflip:10", seconds=60))
    assert outcomes.pop(("errors", "gpu0")).value > 0
    assert {o.reason for o in outcomes.values()} == {"stopped: gpu0 has shown no temperature for 10 s"}


def test_a_hot_card_stops_the_cpus_with_the_cards(two):
    """In the combined burn the look is taken while the CPUs work, and their line says why as well."""
    where = site(two, seconds=60)
    where.world.stress = "watched"
    where.world.machine.gpus[0].p.shutdown_c = 55.0
    outcomes = outcomes_of(where, burn.combined)
    assert {m for m, d in outcomes if d == "gpu1"} == OF_CARD
    (why,) = {o.reason for o in outcomes.values()}
    assert why.startswith("stopped: gpu0 reached 5")
    assert ("errors", "host") in outcomes


@pytest.mark.parametrize("faults", ["", ",fault=gpu0.mig"])
def test_cpus_that_cannot_be_loaded_leave_no_combined_burn(two, faults):
    """The reason is theirs, also beside a card that could not be loaded for a reason of its own."""
    where = site(two, faults)
    where.world.stress = "missing"
    outcomes = outcomes_of(where, burn.combined)
    assert outcomes["errors", "host"].reason == "stress-ng cannot be started"
    assert set(reasons(outcomes, "gpu1").values()) == {"stress-ng cannot be started"}


def test_cards_and_cpus_begin_together(two):
    """The CPUs wait for the cards: their loads share all of a short burn."""
    outcomes = outcomes_of(site(two), burn.combined)
    assert all(isinstance(o, Measurement) for o in outcomes.values())


# how long a burn goes on -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("longest", "seconds"), [(0, 30), (600, 120), (90, 90), (60, 60), (75, 60)])
def test_a_burn_goes_on_while_a_card_grows_hotter(two, longest, seconds):
    """Leg by leg until all are flat, and never longer than the longest time; without one, for the time asked."""
    outcomes = outcomes_of(site(two, seconds=30, longest_seconds=longest))
    for device in ("gpu0", "gpu1"):
        assert outcomes["tflops", device].conditions["seconds"] == pytest.approx(seconds, abs=0.5)
        assert outcomes["errors", device].value == 0


def test_one_card_that_still_grows_hotter_keeps_all_burning(two):
    """Slow heat of one card: the burn of both goes on until it is flat as well."""
    where = site(two, seconds=30, longest_seconds=600)
    where.world.machine.gpus[1].p.tau_s = 40.0
    outcomes = outcomes_of(where)
    seconds = [outcomes["tflops", device].conditions["seconds"] for device in ("gpu0", "gpu1")]
    assert seconds[0] == pytest.approx(seconds[1], abs=0.5)
    assert 180 <= seconds[0] <= 400


class Slow:
    """A load that takes its time between an answer and its next record, as one that proves a new golden result."""

    def __init__(self, clock, thinks=0.0):
        self.clock, self.thinks = clock, thinks
        self._since, self.told, self.kinds = 0.0, [], ["leg"]

    @property
    def records(self):
        """Return what it has written by now."""
        if self.told and self.kinds[-1] == "leg" and self.clock.now >= self._since + self.thinks:
            self.kinds += ["batch"]
        if self.kinds[-1] == "batch" and self.clock.now >= self._since + 30.0 and self.told[-1]["seconds"]:
            self.kinds += ["leg"]
        return [{"kind": kind} for kind in self.kinds]

    @property
    def ended(self):
        """Say whether it was told to stop, and did."""
        return bool(self.told) and not self.told[-1]["seconds"] and self.records[-1]["kind"] == "batch"

    def tell(self, message):
        """Take an answer."""
        self.told.append(message)
        self._since = self.clock.now


class Time:
    """A clock that moves when somebody sleeps."""

    now = 0.0

    def monotonic(self):
        """Return the seconds passed."""
        return self.now

    def sleep(self, seconds):
        """Let time pass."""
        self.now += seconds


def legs(loads, clock, longest, *, rising=lambda _: True, seconds=30):
    """Wait for loads as the burn does, with a guard that says whether a card grows hotter."""
    params = {"seconds": seconds, "longest_seconds": longest}
    where = SimpleNamespace(world=SimpleNamespace(clock=clock), params=params)
    burn._until_flat(where, SimpleNamespace(loads=loads, look=lambda: None, rising=rising, ends=lambda _: {}))


@pytest.mark.parametrize("thinks", [0.0, 5.0])
def test_a_leg_is_answered_once_however_long_the_card_thinks(thinks):
    """A second answer to one question would lie there as the answer to the next one."""
    clock = Time()
    loads = {"gpu0": Slow(clock), "gpu1": Slow(clock, thinks)}
    legs(loads, clock, 90)
    assert [message["seconds"] for message in loads["gpu0"].told] == [30.0, 30.0, 0]
    assert loads["gpu1"].told == loads["gpu0"].told


def test_a_card_that_died_does_not_keep_the_others_waiting():
    """Only those that still burn are asked for."""
    clock = Time()
    loads = {"gpu0": Slow(clock), "gpu1": SimpleNamespace(ended=True, records=[])}
    legs(loads, clock, 90, rising=lambda _: False)
    assert loads["gpu0"].told == [{"seconds": 0}]


@pytest.mark.parametrize("longest", [0, 5400])
def test_a_burn_that_hangs_is_ended_after_its_leg(longest):
    """Two minutes are left for what comes besides, and not the longest time that legs may add up to."""
    clock = Time()
    with pytest.raises(Unmeasurable, match=r"still running after 150 s of 30 s and was ended"):
        legs({"gpu0": Slow(clock), "gpu1": Silent()}, clock, longest)


# rate and ceiling ------------------------------------------------------------------------------------------


def test_a_rate_above_its_ceiling_is_an_error_and_the_products_are_wrong(two):
    """FP16 accumulation doubles the rate: more than the tensor cores can do at the clock that was sampled."""
    outcomes = outcomes_of(site(two, ",fault=gpu0.accumulate.fp16"))
    rate, clock = outcomes["tflops", "gpu0"], outcomes["clock", "gpu0"].value
    assert rate.ceiling == pytest.approx(1.02 * two.card.ceiling("fp16", clock))
    assert (verdict(two, rate).verdict, verdict(two, outcomes["tflops", "gpu1"]).verdict) == ("ERROR", "PASS")
    assert "more than physics allows" in verdict(two, rate).reason
    assert verdict(two, outcomes["errors", "gpu0"]).verdict == "FAIL"


def test_a_low_clock_lowers_the_ceiling(two):
    """What a slow clock allows counts, not what the datasheet says: the rate of a full one is no rate of it."""
    outcomes = outcomes_of(site(two, ",fault=gpu0.slow"))
    slow, usual = (outcomes["tflops", device] for device in ("gpu0", "gpu1"))
    assert slow.value < slow.ceiling < usual.value < usual.ceiling
    assert slow.conditions["clock_mhz"] < 0.8 * usual.conditions["clock_mhz"]


def test_checks_cost_nothing_here_and_the_cap_is_counted(two):
    """The model's checks are free; a card that reaches its power limit counts the time there, in every burn."""
    outcomes = outcomes_of(site(two, seconds=30))
    assert outcomes["check_cost", "gpu0"].value == pytest.approx(0.0, abs=1.0)
    assert 20 < outcomes["power_capped", "gpu0"].value <= 30
    assert outcomes["power_mean", "gpu0"].value == pytest.approx(450, rel=0.02)
    assert outcomes["throttle", "gpu0"].conditions["power_cap_s"] == outcomes["power_capped", "gpu0"].value
