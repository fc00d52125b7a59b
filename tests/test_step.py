"""The load step: all cards rise together, what goes wrong meanwhile counts, and no doubt is a pass."""

import contextlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.children.compute import Batch
from pytest_gpuaccept.children.steps import steps
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.evidence import checked
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.gpus import step
from pytest_gpuaccept.sim.nvml import uuid_of
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld
from tests.stand_ins import Sleeper

PARAMS = {"count": 4, "on_s": 4, "off_s": 4, "period_s": 0.2}

# the load ---------------------------------------------------------------------------------------------


class Card:
    """A GPU whose batches take 0.3 s; one of them, counted from 0, comes out wrong."""

    uuid, xp = "GPU-0", np

    def __init__(self, clock, wrong=-1):
        self._clock, self._wrong, self._batches = clock, wrong, 0

    def describe(self):
        """Return what the products run on."""
        return {"library": "numpy"}

    def inputs(self, seed, kind):
        """Return two small matrices."""
        noise = np.random.default_rng(seed)
        return noise.standard_normal((8, 16)).astype(np.float16), noise.standard_normal((16, 8)).astype(np.float16)

    def product(self, kind, a, b):
        """Return a @ b, summed in float64."""
        return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float16)

    def batch(self, kind, a, b):
        """Return one product."""
        self._clock.sleep(0.3)
        result = self.product(kind, a, b)
        if self._batches == self._wrong:
            result[0, 0] += 1
        self._batches += 1
        return Batch([(result, 1)], 0.3, 2.0)


def run(wrong=-1, late=0.0, **plan):
    """Return a load's records, started `late` seconds after the common time."""
    clock = Sleeper()
    load = steps(Card(clock, wrong), clock, **({"count": 3, "on_s": 4.0, "off_s": 4.0} | plan))
    records = [next(load)]
    while not records[-1].get("awaits"):
        records.append(next(load))
    clock.sleep(2.0 + late)
    with contextlib.suppress(StopIteration):
        records.append(load.send({"at": 102.0}))
        while True:
            records.append(next(load))
    return records


def of(records, kind):
    """Return the records of a kind."""
    return [record for record in records if record["kind"] == kind]


def test_every_step_begins_at_its_own_time_whatever_the_last_one_took():
    """Batches overrun the step's end, and the next step is on time all the same."""
    records = run()
    assert [record["t"] for record in of(records, "on")] == pytest.approx([106.0, 114.0, 122.0])
    assert [record["batches"] for record in of(records, "batch")] == [14, 14, 14]
    assert [record["step"] for record in of(records, "batch")] == [0, 1, 2]
    assert records[-1] == {"kind": "end"}


def test_the_schedule_begins_with_a_rest():
    """The proof of the golden result ends just before the common time: the first step rises from a rest as well."""
    (first, *_) = of(run(off_s=3.0), "on")
    assert first["t"] == pytest.approx(105.0)


def test_a_card_that_comes_late_does_not_shift_its_steps():
    """What is lost of the first step is not added to the others."""
    records = run(late=7.0)
    assert [record["t"] for record in of(records, "on")] == pytest.approx([109.0, 114.0, 122.0])
    assert [record["batches"] for record in of(records, "batch")] == [4, 14, 14]


def test_a_step_computes_at_least_once():
    """Also when its whole time has passed before it began."""
    assert of(run(late=9.0), "batch")[0]["batches"] == 1


def test_the_steps_say_what_they_computed_and_what_was_wrong():
    """Sums of a step's batches; the wrong product is counted in its step."""
    first, second, third = of(run(wrong=20), "batch")
    assert (first["wrong"], second["wrong"], third["wrong"]) == (0, 1, 0)
    assert (first["checked"], first["tflop"], first["seconds"]) == (14, 28.0, pytest.approx(4.2))


def test_the_golden_result_is_proven_and_rehearsed_before_the_start():
    """Nothing is compared with a result that nobody confirmed."""
    records = run()
    assert [record["kind"] for record in records[:4]] == ["device", "golden", "rehearsal", "ready"]
    assert records[1]["flaw"] == ""
    assert all(value for name, value in records[2].items() if name.startswith(("flip", "nan", "clean")))


# the probe --------------------------------------------------------------------------------------------


class Told(SimWorld):
    """A simulated machine whose records pass through a function before the probe sees them."""

    changed = staticmethod(lambda script, records: records)
    begun = ()

    @contextlib.contextmanager
    def start(self, script, params):
        """Start a load whose records are changed at its end."""
        with super().start(script, params) as load:
            told = Changed(load, lambda records: self.changed(script, [dict(record) for record in records]))
            self.begun = (*self.begun, told)
            yield told


class Changed:
    """A load whose records are changed."""

    def __init__(self, load, change):
        self._load, self._change, self.told = load, change, []
        self.finish = load.finish

    def tell(self, message):
        """Answer the load, and keep the answer."""
        self.told.append(message)
        self._load.tell(message)

    @property
    def records(self):
        """Return the records as changed."""
        return self._change(self._load.records)

    @property
    def ended(self):
        """Say whether it is over."""
        return self._load.ended

    def stop(self):
        """Return the records as changed."""
        return self._change(self._load.stop())


@pytest.fixture(scope="module")
def two(catalogue):
    """Return the profile of two cards."""
    return load_profile("2xrtx4090", catalogue, SHIPPED)


def site(profile, text="healthy"):
    """Return a site on a simulated machine of two cards."""
    world = Told(profile, load_scenario(text, SHIPPED, SHIPPED / "scenarios"))
    return Site(world, profile, "host", PARAMS, lambda name, text: "", "simulated")


def taken(where):
    """Return the outcomes by the last word of the metric and the device, types checked."""
    return {(o.metric.split(".")[-1], o.device): checked(o) for o in step.step(where)}


def spoilt(two, change, script="telemetry"):
    """Return the outcomes when each record of a script is changed."""
    where = site(two)
    where.world.changed = lambda name, records: (
        [change(record) for record in records] if name == script else records
    )  # fmt: skip
    return taken(where)


def test_two_healthy_cards_take_every_step_together(two):
    """All steps, no error and no event with their proofs, and a swing of the power of both."""
    outcomes = taken(site(two))
    for device in ("gpu0", "gpu1"):
        assert outcomes["steps", device].value == PARAMS["count"]
        assert outcomes["errors", device].value == 0
        assert "4 steps checked; a flipped bit and a NaN were found" in outcomes["errors", device].proof
    assert outcomes["events", "host"].value == 0
    assert outcomes["events", "host"].proof
    assert 400 < outcomes["swing", "host"].value < 900
    assert outcomes["swing", "host"].conditions["reading"] == "power_instant"


def test_what_the_proof_of_the_golden_result_loads_is_not_taken_for_the_rest(two):
    """All cards are busy until they begin, and a second longer by their sensors: the first step counts all the same."""
    where = site(two)

    def busy_before(script, records):
        at = next((answer["at"] for load in where.world.begun for answer in load.told), 0.0) + 1.0
        return [r | {"utilisation": 100, "power": 400.0} if r.get("t", at) < at else r for r in records]

    where.world.changed = lambda script, records: busy_before(script, records) if script == "telemetry" else records
    outcomes = taken(where)
    assert [outcomes["steps", gpu].value for gpu in ("gpu0", "gpu1")] == [PARAMS["count"]] * 2


def test_a_card_that_the_load_does_not_reach_takes_no_step(two):
    """It did not rise, proves no error, and leaves the events unproven; the other card is not affected."""
    outcomes = taken(site(two, "healthy,fault=gpu1.idle"))
    assert outcomes["steps", "gpu1"].value == 0
    assert "no rise in step 1, 2, 3, 4" in outcomes["steps", "gpu1"].note
    assert "did not reach gpu1 in every step" in outcomes["errors", "gpu1"].reason
    assert outcomes["steps", "gpu0"].value == PARAMS["count"]


def later(seconds, uuid):
    """Return a change of telemetry by which a card's load shows later."""
    behind = round(seconds / PARAMS["period_s"])

    def change(script, records):
        if script != "telemetry":
            return records
        own = [sample for sample in records if sample["uuid"] == uuid]
        times = [sample["t"] for sample in own]
        held = [own[max(0, number - behind)] | {"t": t} for number, t in enumerate(times)]
        return sorted([s for s in records if s["uuid"] != uuid] + held, key=lambda sample: sample["t"])

    return change


@pytest.mark.parametrize(("late", "steps_taken"), [(0.6, 4), (1.4, 0)])
def test_cards_that_do_not_rise_within_a_second_take_no_step_together(two, late, steps_taken):
    """A supply that is loaded one card after the other has not been tested."""
    where = site(two)
    where.world.changed = later(late, uuid_of(where.world.machine, 1))
    outcomes = taken(where)
    for device in ("gpu0", "gpu1"):
        assert outcomes["steps", device].value == steps_taken
        assert ("more than 1 s from another card in step 1, 2, 3, 4" in outcomes["steps", device].note) == (late > 1)


def test_power_alone_shows_a_rise(two):
    """A card without utilisation has risen when its power did."""
    outcomes = spoilt(two, lambda s: {k: v for k, v in s.items() if k != "utilisation"})
    assert outcomes["steps", "gpu0"].value == PARAMS["count"]


def test_without_utilisation_and_power_nobody_knows(two):
    """No reading is an absence with its reason, not a step that did not come."""
    outcomes = spoilt(two, lambda s: {k: v for k, v in s.items() if k not in {"utilisation", "power"}})
    assert "no utilisation of gpu0 in the window" in outcomes["steps", "gpu0"].reason
    assert isinstance(outcomes["errors", "gpu0"], NotMeasured)


def test_a_card_that_was_busy_before_has_not_risen(two):
    """A step begins at rest: a card that somebody else uses takes none."""
    outcomes = spoilt(two, lambda s: s | {"utilisation": 100, "power": 400.0})
    assert outcomes["steps", "gpu0"].value == 0


def test_wrong_products_count_and_need_no_proof(two):
    """Every wrong product of every step is one."""
    outcomes = spoilt(two, lambda r: r | {"wrong": 1} if r["kind"] == "batch" else r, "steps")
    assert outcomes["errors", "gpu0"].value == PARAMS["count"]


@pytest.mark.parametrize("garbled", [{"wrong": None}, {"checked": "x"}, {"seconds": 0}, {"t": None}, {"tflop": -1}])
def test_a_garbled_record_does_not_hide_wrong_products_of_another(two, garbled):
    """The steps whose products were wrong count, whatever the record of another one says."""

    def change(record):
        if record["kind"] != "batch":
            return record
        return record | {"wrong": 2} if record["step"] else record | garbled

    errors = spoilt(two, change, "steps")["errors", "gpu0"]
    assert (errors.value, errors.proof) == (2 * (PARAMS["count"] - 1), None)


def test_wrong_products_count_also_where_nobody_knows_among_how_many(two):
    """A count of checked products that cannot be read takes nothing from those that were wrong."""
    outcomes = spoilt(two, lambda r: r | {"wrong": 1, "checked": None} if r["kind"] == "batch" else r, "steps")
    errors = outcomes["errors", "gpu0"]
    assert (errors.value, errors.samples) == (PARAMS["count"], 1)


def test_a_garbled_record_does_not_hide_a_golden_result_that_is_wrong(two):
    """The product itself is wrong, however many of them there were."""

    def change(record):
        return record | {"golden": {"flaw": "3 elements"}, "batch": {"seconds": None}}.get(record["kind"], {})

    assert spoilt(two, change, "steps")["errors", "gpu0"].value > 100


def test_wrong_products_of_another_card_are_not_this_ones(two):
    """A load that ran elsewhere proves nothing of this card."""

    def change(record):
        return record | {"device": {"uuid": "GPU-X"}, "batch": {"wrong": 1}}.get(record["kind"], {})

    assert "ran on GPU-X" in spoilt(two, change, "steps")["errors", "gpu0"].reason


def test_wrong_products_before_a_card_died_count(two):
    """What a load proved wrong stays proven, also when it did not reach its end."""
    where = site(two, "healthy,fault=gpu1.step.lost")
    where.world.changed = lambda script, records: [
        r | {"wrong": 1} if script == "steps" and r["kind"] == "batch" else r for r in records
    ]  # fmt: skip
    assert taken(where)["errors", "gpu1"].value == 2


def test_a_golden_result_that_nobody_confirms_makes_all_products_wrong(two):
    """What is equal to a wrong result is wrong."""
    outcomes = spoilt(two, lambda r: r | {"flaw": "3 elements"} if r["kind"] == "golden" else r, "steps")
    assert outcomes["errors", "gpu0"].value > 100
    assert "3 elements" in outcomes["errors", "gpu0"].note


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("rehearsal", {"nan_by_checksum": False}, "rehearsed errors not found"),
        ("rehearsal", {"kind": "?"}, "was not rehearsed"),
        ("end", {"kind": "?"}, "did not reach their end"),
        ("batch", {"checked": 0}, "not every product was checked"),
        ("batch", {"products": 0}, "not every product was checked"),
        ("batch", {"products": None}, "which is no amount"),
        ("device", {"uuid": "GPU-X"}, "CUDA's order is not NVML's"),
        ("batch", {"wrong": None}, "which is no amount"),
    ],
)
def test_no_error_without_its_proof_is_no_reading(two, kind, change, reason):
    """Rehearsal, end, comparison and the right card: without one of them nobody knows."""
    outcomes = spoilt(two, lambda r: r | change if r["kind"] == kind else r, "steps")
    assert reason in outcomes["errors", "gpu0"].reason


def test_a_step_that_has_no_record_proves_nothing(two):
    """All steps must have been computed and compared."""
    outcomes = spoilt(two, lambda r: r | {"kind": "?"} if r.get("step") == 2 and r["kind"] == "batch" else r, "steps")
    assert "3 steps of 4 ended" in outcomes["errors", "gpu0"].reason


def test_a_card_that_falls_off_the_bus_at_a_step_is_an_event(two):
    """The Xid counts, the card has no steps and no errors, the other has its own, and no sum is made."""
    outcomes = taken(site(two, "healthy,fault=gpu1.step.lost"))
    events = outcomes["events", "host"]
    assert isinstance(events.value, Interval)
    assert events.value.low == 1
    assert "gpu1: Xid 79" in events.note
    for metric in ("steps", "errors"):
        assert "launch failure" in outcomes[metric, "gpu1"].reason
        assert isinstance(outcomes[metric, "gpu0"], Measurement)
    assert outcomes["swing", "host"].reason.startswith("gpu1: CUDA error")


def test_what_the_log_tells_a_moment_later_counts_too(two):
    """All cards fall off at once, nothing runs any more, and the Xids are logged a moment later."""
    events = taken(site(two, "healthy,fault=gpu0.step.lost,fault=gpu1.step.lost"))["events", "host"]
    assert events.value.low == 2


@pytest.mark.parametrize(
    ("fault", "note"),
    [
        ("gpu1.step.xid", "gpu1: Xid 62"),
        ("gpu1.step.link", "gpu1: link below the ordered one in step 3"),
        ("gpu0.pcie.port", "gpu0: link below the ordered one in step 1, 2, 3, 4"),
        ("nic0.flap.step", "eno1 went down"),
        ("gpu0.aer.uncorrected", "gpu0: uncorrected PCIe errors"),
    ],
)
def test_what_happens_at_a_step_is_an_event_and_says_where(two, fault, note):
    """Xids, links, networks and uncorrected PCIe errors between just before and just after count."""
    events = taken(site(two, f"healthy,fault={fault}"))["events", "host"]
    assert getattr(events.value, "low", events.value) > 0
    assert note in events.note


@pytest.mark.parametrize("fault", ["aer.corrected:600", "aer.storm"])
def test_corrected_pcie_errors_are_no_event(two, fault):
    """They have a line of their own, which allows some: however many there are, none of another kind was seen."""
    where = site(two, f"healthy,fault=gpu0.{fault}")
    events = taken(where)["events", "host"]
    assert where.world.machine.gpus[0].corrected > 1
    assert (events.value, bool(events.proof)) == (0, True)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("host.log.unreadable", "the kernel log cannot be read"),
        ("host.kernel.blind", "pci=noaer hides PCIe errors"),
        ("gpu0.aer.hidden", "no AER counters"),
        ("nic0.unreadable", "carrier_changes cannot be read"),
        ("gpu1.missing", "there is no gpu1"),
    ],
)
def test_no_event_is_proven_by_every_channel(two, fault, reason):
    """A channel that cannot be read, or a card that did not step, leaves none seen unproven."""
    events = taken(site(two, f"healthy,fault={fault}"))["events", "host"]
    assert "none seen proves nothing" in events.reason
    assert reason in events.reason


def test_a_machine_that_was_started_anew_has_no_events(two):
    """Counters and log of another boot say nothing of the one before."""
    where = site(two)
    read = where.world.read
    boots = iter(range(100))

    where.world.read = lambda path: str(next(boots)) if path.endswith("boot_id") else read(path)
    assert "started anew during the run" in taken(where)["events", "host"].reason


def test_links_that_nobody_saw_are_no_intact_links(two):
    """Without the link in the second half of a step there is no proof that it held."""
    events = spoilt(two, lambda s: {k: v for k, v in s.items() if k != "gen"})["events", "host"]
    assert "no gen of gpu0 in the window" in events.reason


def test_without_a_card_there_is_no_step(two):
    """A machine none of whose cards answers has no outcome but the reason."""
    with pytest.raises(Unmeasurable, match="gpu0"):
        taken(site(two, "healthy,fault=gpu0.lost,fault=gpu1.lost"))


def test_the_swing_is_the_largest_rise_within_a_second(two):
    """Each of two cards draws 10 W more every 0.2 s: the sum rises by five of these steps within 1 s."""
    outcomes = spoilt(two, lambda s: s | {"power_instant": 10.0 * round(s["t"] / PARAMS["period_s"])})
    assert outcomes["swing", "host"].value == pytest.approx(100.0)


def test_steps_of_the_model_load_and_rest(two):
    """In the simulated machine the cards draw full power in each step, and little after each."""
    where = site(two)
    seen = []

    def keep(script, records):
        seen[:] = records if script == "telemetry" else seen
        return records

    where.world.changed = keep
    taken(where)
    busy = [sample["utilisation"] for sample in seen if sample["uuid"] == seen[0]["uuid"]]
    assert sum(b > a for a, b in pairwise(busy)) == PARAMS["count"]
    assert sum(b < a for a, b in pairwise(busy)) == PARAMS["count"]
    power = [sample["power"] for sample in seen]
    assert min(power) < 60
    assert max(power) > 400


def unordered(two, name, text="healthy", **update):
    """Return a site whose profile has no line of this name, changed besides as told."""
    lines = {line: of for line, of in two.lines.items() if not line.startswith(name)}
    return replace(site(two, text), profile=two.model_copy(update={"lines": lines, **update}))


def test_links_without_lines_are_compared_with_what_the_card_has(two):
    """A link that is not ordered by a line is that of the card: a lost lane is an event all the same."""
    events = taken(unordered(two, "gpu.pcie.", "healthy,fault=gpu0.pcie.port"))["events", "host"]
    assert events.value == PARAMS["count"]
    assert "gpu0: link below the ordered one in step 1, 2, 3, 4" in events.note
    assert taken(unordered(two, "gpu.pcie."))["events", "host"].proof


@pytest.mark.parametrize(
    ("line", "what"), [("gpu.pcie.", "gen and width"), ("gpu.pcie.gen", "gen"), ("gpu.pcie.width", "width")]
)
def test_links_that_are_compared_with_nothing_prove_nothing(two, line, what):
    """Without a line and without the facts of the card nobody knows what a lost link is."""
    events = taken(unordered(two, line, card=None))["events", "host"]
    assert "none seen proves nothing" in events.reason
    assert f"nothing says which PCIe {what} gpu0 must have" in events.reason


def test_a_link_of_which_half_is_ordered_is_still_compared(two):
    """What is ordered and lost is an event, whatever else nobody ordered."""
    events = taken(unordered(two, "gpu.pcie.width", "healthy,fault=gpu1.step.link", card=None))["events", "host"]
    assert events.value.low == 1
    assert "gpu1: link below the ordered one in step 3" in events.note


def test_a_card_that_never_gets_ready_is_left_behind(two):
    """It has its reason, and the other card steps without it."""
    where = site(two)
    slow = uuid_of(where.world.machine, 1)

    def never_ready(script, records):
        mine = script == "steps" and records and records[0]["uuid"] == slow
        return [record for record in records if record["kind"] != "ready"] if mine else records

    where.world.changed = never_ready
    outcomes = taken(where)
    assert outcomes["steps", "gpu1"].reason == "it was not ready after 300 s"
    assert outcomes["steps", "gpu0"].value == PARAMS["count"]


NUMBERS = st.booleans() | st.integers() | st.floats()
JSON = st.none() | NUMBERS | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
KEYS = (
    "t", "uuid", "utilisation", "power", "power_instant", "gen", "hops", "failed", "wrong", "checked", "kind", "flaw",
)  # fmt: skip


@settings(
    deadline=None, database=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
@given(script=st.sampled_from(["telemetry", "steps"]), key=st.sampled_from(KEYS), value=JSON, every=st.integers(1, 9))
def test_whatever_the_loads_write_is_an_outcome_with_its_proof(two, script, key, value, every):
    """Any value in any key gives outcomes, and none seen only with a proof."""
    where = site(two)

    def changed(name, records):
        ready = [record for record in records if record["kind"] == "ready"]
        spoilt = [r | {key: value} if i % every == 0 else r for i, r in enumerate(records)]
        return spoilt + ready if name == script else records

    where.world.changed = changed
    for (metric, _), outcome in taken(where).items():
        if metric in {"errors", "events"} and isinstance(outcome, Measurement) and outcome.value == 0:
            assert outcome.proof
