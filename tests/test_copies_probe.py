"""Copies: what their records prove of rates, paths and bytes, and that nothing else counts."""

import contextlib
import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.children.copies import Copy
from pytest_gpuaccept.children.copies import copies as script
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.evidence import checked
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import cards
from pytest_gpuaccept.probes.gpus import copies
from pytest_gpuaccept.sim.nvml import binding
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld

FUZZ = settings(
    deadline=None, database=None, max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
SMALL = {"samples": 3, "sample_seconds": 0.3, "every_seconds": 1.0}
PROBES = {
    "alone": (copies.copy, "gpu0"), "all": (copies.copy_all, "host"), "peer": (copies.peer, "gpu0-gpu1"),
}  # fmt: skip
NO_RATE = "of 3 copies were timed"


# the loop ------------------------------------------------------------------------------------------------


class Clock:
    """A clock that sleeping and copying move."""

    def __init__(self, now=0.0):
        self.now = now

    def monotonic(self):
        """Return the seconds passed."""
        return self.now

    def sleep(self, seconds):
        """Let time pass, never backwards."""
        assert seconds >= 0
        self.now += seconds


class Mover:
    """A GPU that copies at 100 bytes a sample and takes its time to compare them."""

    uuid = "GPU-7"

    def __init__(self, compares=0.0):
        self.clock, self.asked, self.compares = Clock(), [], compares

    def copy(self, kind, seconds, begin):
        """Copy and compare."""
        self.asked.append(kind)
        began = begin()
        self.clock.sleep(seconds + self.compares)
        return Copy(began, 100, seconds, 2, f"by {kind}", 4)


def test_copies_go_each_way_after_one_to_warm_up():
    """Each way has one warm-up and its samples, in the order asked, with what arrived wrong and its path."""
    mover = Mover()
    device, *records = script(mover, mover.clock, kinds=["h2d", "d2h"], samples=2, sample_s=0.5)
    assert device == {"kind": "device", "uuid": "GPU-7"}
    assert mover.asked == ["h2d"] * 3 + ["d2h"] * 3
    assert [record["kind"] for record in records] == ["warm_up", "copy", "copy"] * 2
    assert records[1] == {
        "kind": "copy", "t": 0.5, "way": "h2d", "moved": 100, "seconds": 0.5, "wrong": 2, "path": "by h2d",
        "compared": 4,
    }  # fmt: skip
    assert (records[3]["way"], records[3]["wrong"]) == ("d2h", 2)
    assert (records[5]["t"], records[5]["way"]) == (2.5, "d2h")


@pytest.mark.parametrize(("compares", "second"), [(0.0, 21.0), (0.3, 21.0), (0.7, 21.2)])
def test_copies_together_keep_to_one_schedule(compares, second):
    """However long a GPU compares, its copies begin when those of the others do; one that was late catches up."""
    mover = Mover(compares)
    running = script(mover, mover.clock, kinds=["h2d", "d2h"], samples=1, sample_s=0.5, together=1.0)
    assert next(running)["kind"] == "device"
    assert next(running)["awaits"]
    assert mover.asked == []
    records = [running.send({"at": 20.0})]
    mover.compares = 0.0
    records += running
    assert [(r["kind"], r["way"], r["t"]) for r in records] == [
        ("warm_up", "h2d", 20.0), ("copy", "h2d", second), ("warm_up", "d2h", 22.0), ("copy", "d2h", 23.0),
    ]  # fmt: skip


# worlds --------------------------------------------------------------------------------------------------


class PlayedLoad:
    """A load that has already written everything: over once it was told to start, waited for or ended."""

    def __init__(self, records, death):
        self.records, self.death, self.ended, self.cut = records, death, False, False

    def tell(self, _message):
        """Start, and with that be over."""
        self.ended = True

    def finish(self, *, timeout):
        """Be over."""
        assert timeout > 0
        self.ended = True
        return self.stop()

    def stop(self):
        """Die as was told."""
        self.cut |= not self.ended
        self.ended = True
        if self.death:
            raise Unmeasurable(self.death)
        return self.records


class Played(SimWorld):
    """A simulated machine whose copies write the records they are given, by card; None lets the machine write them."""

    records = None
    deaths = {}
    """Card -> why its load dies after its records."""
    stopped = ()
    """Cards whose loads were ended before they were over."""

    @contextlib.contextmanager
    def start(self, script, params):
        """Start the machine's own telemetry, or a load that has already written everything."""
        if script == "telemetry" or self.records is None:
            with super().start(script, params) as load:
                if script == "copies":
                    self.kept = {**getattr(self, "kept", {}), params["uuid"]: load.records}
                yield load
            return
        uuid = params["uuid"]
        played = PlayedLoad(self.records[uuid], self.deaths.get(uuid, ""))
        yield played
        self.stopped += (uuid,) if played.cut else ()


@pytest.fixture(scope="module")
def two(catalogue):
    """Return the profile of two cards."""
    return load_profile("2xrtx4090", catalogue, SHIPPED)


def site(profile, device="host", text="healthy"):
    """Return a site on a played machine of a profile."""
    world = Played(profile, load_scenario(text, SHIPPED, SHIPPED / "scenarios"))
    return Site(world, profile, device, SMALL, lambda name, text: "", "simulated")


def taken(name, where):
    """Return a probe's outcomes by metric and device, each with the types that the bench demands."""
    return {(o.metric, o.device): checked(o) for o in PROBES[name][0](where)}


def simulated(profile, name, text="healthy"):
    """Return a probe's outcomes on a simulated machine."""
    return taken(name, site(profile, PROBES[name][1], text))


@pytest.fixture(scope="module")
def healthy(two):
    """Return what each probe's loads write on a healthy machine, by probe and card."""
    kept = {}
    for name, (_, device) in PROBES.items():
        where = site(two, device)
        assert all(isinstance(outcome, Measurement) for outcome in taken(name, where).values())
        kept[name] = where.world.kept
    return kept


@pytest.fixture(scope="module")
def uuids(two):
    """Return the UUIDs of the two cards."""
    return [card.uuid for card in cards(site(two)).values()]


def replayed(two, name, records, deaths=()):
    """Return a probe's outcomes from records, its loads dying as told."""
    where = site(two, PROBES[name][1])
    where.world.records, where.world.deaths = records, dict(deaths)
    return taken(name, where)


def of_kind(records, kind, way=None):
    """Return the records of a kind, and of a way where one is named."""
    return [r for r in records if r["kind"] == kind and way in (None, r["way"])]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("alone", ["gpu.copy: gpu0"]),
        ("peer", ["gpu_pair.peer: gpu0-gpu1"]),
        ("all", ["gpu.copy_all: telemetry", "gpu.copy_all: gpu0", "gpu.copy_all: gpu1"]),
    ],
)
@pytest.mark.parametrize("death", ["", "CUDA error: launch failure"])
def test_what_the_loads_wrote_is_kept(two, healthy, uuids, name, kept, death):
    """Each record is a line of the evidence, in the order written, also of a load that died."""
    where, attached = site(two, PROBES[name][1]), {}
    where.world.records, where.world.deaths = healthy[name], {uuids[0]: death}
    taken(name, replace(where, attach=lambda title, text: attached.update({title: text}) or ""))
    assert list(attached) == kept
    of_first = next(text for title, text in attached.items() if "gpu0" in title)
    assert [json.loads(line) for line in of_first.splitlines()] == healthy[name][uuids[0]]


# one GPU -------------------------------------------------------------------------------------------------


def test_every_way_of_a_copy_has_its_own_rate(two):
    """The rates are the machine's: both ways at once more than one, untouched pages slower than touched ones."""
    rate = {metric.split(".")[-1]: o.value for (metric, _), o in simulated(two, "alone").items()}
    assert rate["d2h_untouched"] == pytest.approx(0.3 * rate["d2h_pageable"], rel=0.03)
    assert rate["h2d_pageable"] == pytest.approx(rate["d2h_pageable"], rel=0.03)
    assert rate["both"] == pytest.approx(0.9 * (rate["h2d"] + rate["d2h"]), rel=0.03)
    assert rate["device"] > 800


def test_wrong_bytes_make_a_copy_no_rate(two, healthy, uuids):
    """One byte in one sample is enough, and its way alone is affected."""
    records = copy.deepcopy(healthy["alone"])
    of_kind(records[uuids[0]], "copy", "d2h")[0]["wrong"] = 1
    outcomes = replayed(two, "alone", records)
    assert "1 bytes arrived wrong" in outcomes["gpu.copy.d2h", "gpu0"].reason
    assert isinstance(outcomes["gpu.copy.h2d", "gpu0"], Measurement)
    assert outcomes["gpu.copy.errors", "gpu0"].value == 1


@pytest.mark.parametrize(
    ("name", "metric", "compared"),
    [("alone", "gpu.copy.errors", 28), ("peer", "gpu_pair.errors", 4), ("all", "gpu.copy.errors_all", 8)],
)
def test_wrong_bytes_count_also_in_a_copy_to_warm_up(two, healthy, uuids, name, metric, compared):
    """What is not timed is compared all the same, and no byte wrong is proven by the copies that were compared."""
    records, device = copy.deepcopy(healthy[name]), {"peer": "gpu0-gpu1"}.get(name, "gpu0")
    clean = replayed(two, name, records)[metric, device]
    proof = f"{compared} copies compared byte by byte, among them one of every sample"
    assert (clean.value, clean.samples, clean.proof) == (0, compared, proof)
    of_kind(records[uuids[0]], "warm_up")[0]["wrong"] = 3
    assert replayed(two, name, records)[metric, device].value == 3


@pytest.mark.parametrize(
    ("compared", "reason"), [(0, "a sample in which no copy was compared"), (None, "compared = None")]
)
def test_a_sample_of_which_nothing_was_compared_leaves_no_proof(two, healthy, uuids, compared, reason):
    """No wrong byte among none says nothing; the rate stays, and so does a byte that another sample has wrong."""
    records = copy.deepcopy(healthy["alone"])
    first, second, *_ = of_kind(records[uuids[0]], "copy", "d2h")
    first["compared"] = compared
    outcomes = replayed(two, "alone", records)
    assert reason in outcomes["gpu.copy.errors", "gpu0"].reason
    assert isinstance(outcomes["gpu.copy.d2h", "gpu0"], Measurement)
    second["wrong"] = 1
    assert replayed(two, "alone", records)["gpu.copy.errors", "gpu0"].value == 1


def test_ways_that_were_not_copied_leave_no_proof_that_no_byte_was_wrong(two, healthy, uuids):
    """Without the copies of one way the others prove nothing for it; a byte that is wrong needs no proof."""
    records = copy.deepcopy(healthy["alone"])
    written = records[uuids[0]]
    written[:] = [r for r in written if r.get("way") != "d2h"]
    assert replayed(two, "alone", records)["gpu.copy.errors", "gpu0"].reason == "not every copy was compared: d2h"
    written[-1]["wrong"] = 1
    assert replayed(two, "alone", records)["gpu.copy.errors", "gpu0"].value == 1


@pytest.mark.parametrize("wrong", [0, 5])
def test_a_load_that_dies_keeps_what_it_copied_and_what_it_proved_wrong(two, healthy, uuids, wrong):
    """Ways that were copied have their rates, the others the reason of the death; wrong bytes count all the same."""
    records = copy.deepcopy(healthy["alone"])
    written = records[uuids[0]]
    written[:] = [r for r in written if r.get("way") in (None, "device", "h2d")]
    of_kind(written, "warm_up", "h2d")[0]["wrong"] = wrong
    outcomes = replayed(two, "alone", records, {uuids[0]: "CUDA error: launch failure"})
    assert outcomes["gpu.copy.h2d", "gpu0"].value > 20
    assert outcomes["gpu.copy.both", "gpu0"].reason == f"0 {NO_RATE}: CUDA error: launch failure"
    errors = outcomes["gpu.copy.errors", "gpu0"]
    assert errors.value == 5 if wrong else errors.reason == "CUDA error: launch failure"


def test_a_load_that_dies_before_its_first_copy_says_why(two, uuids):
    """No record at all: every value is absent, with the reason of the death."""
    outcomes = replayed(two, "alone", {uuids[0]: []}, {uuids[0]: "out of memory"})
    assert len(outcomes) == 8
    assert all(o.reason in (f"0 {NO_RATE}: out of memory", "out of memory") for o in outcomes.values())


def test_wrong_bytes_of_another_card_are_not_this_ones(two, healthy, uuids):
    """A load that ran elsewhere proves nothing of this card, neither rates nor wrong bytes."""
    records = copy.deepcopy(healthy["alone"])
    records[uuids[0]][0]["uuid"] = uuids[1]
    for record in of_kind(records[uuids[0]], "copy"):
        record["wrong"] = 1
    outcomes = replayed(two, "alone", records)
    assert all("CUDA's order is not NVML's" in outcome.reason for outcome in outcomes.values())


def test_half_of_the_samples_are_no_rate(two, healthy, uuids):
    """Fewer samples than were asked for, good as they are, are no reading."""
    records = copy.deepcopy(healthy["alone"])
    records[uuids[0]].remove(of_kind(records[uuids[0]], "copy", "d2h")[0])
    outcomes = replayed(two, "alone", records)
    assert outcomes["gpu.copy.d2h", "gpu0"].reason == f"2 {NO_RATE}"
    assert outcomes["gpu.copy.errors", "gpu0"].reason == "not every copy was compared: d2h"
    assert isinstance(outcomes["gpu.copy.both", "gpu0"], Measurement)


# all GPUs at once ----------------------------------------------------------------------------------------


def test_a_shared_uplink_shows_only_when_all_copy(two):
    """Alone the card has its full rate, with the others half of it; the other card keeps its own."""
    text = "healthy,fault=gpu1.copy.uplink"
    where = site(two, "gpu1", text)
    assert taken("alone", where)["gpu.copy.h2d", "gpu1"].value > 25
    outcomes = simulated(two, "all", text)
    assert outcomes["gpu.copy.h2d_all", "gpu1"].value == pytest.approx(13.1, rel=0.03)
    assert outcomes["gpu.copy.d2h_all", "gpu1"].value == pytest.approx(13.1, rel=0.03)
    assert outcomes["gpu.copy.h2d_all", "gpu0"].value > 25


def test_the_share_that_is_left_is_the_least_of_all_gpus(two):
    """Each GPU's rate beside the others is compared with its own alone, and the worst one is named with the rest."""
    rates = {("h2d", "gpu0"): 26.0, ("h2d_all", "gpu0"): 26.0, ("h2d", "gpu1"): 20.0, ("h2d_all", "gpu1"): 15.0}
    number = lambda metric, device: rates[metric.removeprefix("gpu.copy."), device]  # noqa: E731 - a stand-in
    share = copies.shared_uplink(SimpleNamespace(profile=two, device="host", number=number))
    assert (share.value, share.note) == (0.75, "gpu0 keeps 100%, gpu1 keeps 75%")


def test_bytes_that_are_wrong_only_in_company_are_found(two):
    """A card that copies well alone and badly beside others has wrong bytes, and the other one has none."""
    text = "healthy,fault=gpu1.copy.crosstalk"
    assert taken("alone", site(two, "gpu1", text))["gpu.copy.errors", "gpu1"].value == 0
    outcomes = simulated(two, "all", text)
    assert outcomes["gpu.copy.errors_all", "gpu1"].value == 8
    assert outcomes["gpu.copy.errors_all", "gpu0"].value == 0
    assert "bytes arrived wrong" in outcomes["gpu.copy.h2d_all", "gpu1"].reason
    assert isinstance(outcomes["gpu.copy.h2d_all", "gpu0"], Measurement)


@pytest.mark.parametrize("wrong", [0, 2])
def test_copies_that_were_not_at_once_are_no_reading_of_any_gpu(two, healthy, uuids, wrong):
    """One GPU that copied later leaves neither a rate nor an absence of errors; a wrong byte stays wrong."""
    records = copy.deepcopy(healthy["all"])
    for record in of_kind(records[uuids[1]], "copy", "d2h"):
        record["t"] += 0.1
    of_kind(records[uuids[0]], "copy", "h2d")[0]["wrong"] = wrong
    outcomes = replayed(two, "all", records)
    for device in ("gpu0", "gpu1"):
        assert outcomes["gpu.copy.d2h_all", device].reason == "all copied at once for 0.6 s of 0.9 s"
    assert isinstance(outcomes["gpu.copy.h2d_all", "gpu1"], Measurement)
    assert outcomes["gpu.copy.errors_all", "gpu1"].reason == "all copied at once for 0.6 s of 0.9 s"
    errors = outcomes["gpu.copy.errors_all", "gpu0"]
    assert errors.value == 2 if wrong else isinstance(errors, NotMeasured)


@pytest.mark.parametrize(("later", "once"), [(0.057, True), (0.063, False)])
def test_the_gate_allows_a_fifth_of_a_copy_apart(two, healthy, uuids, later, once):
    """Copies that overlap for four fifths of their time were made at once, and those that do so for less were not."""
    records = copy.deepcopy(healthy["all"])
    for record in of_kind(records[uuids[1]], "copy"):
        record["t"] += later
    outcomes = replayed(two, "all", records).values()
    assert {isinstance(outcome, Measurement) for outcome in outcomes} == {once}


@pytest.mark.parametrize("fault", ["missing", "lost", "lost@copies"])
def test_a_card_that_did_not_copy_along_is_named_at_all_others(two, fault):
    """Without one of the ordered cards the others did not copy beside all of them."""
    outcomes = simulated(two, "all", f"healthy,fault=gpu1.{fault}")
    assert len(outcomes) == 6
    for metric in ("gpu.copy.h2d_all", "gpu.copy.d2h_all", "gpu.copy.errors_all"):
        assert outcomes[metric, "gpu0"].reason.startswith(f"gpu1 did not copy along: 0 {NO_RATE}: ")
        assert "did not copy along" not in outcomes[metric, "gpu1"].reason


def test_a_load_that_gets_not_ready_is_left_behind(two, healthy, uuids):
    """What is not ready is not waited for without end: it is ended, and copied nothing."""
    records = {**healthy["all"], uuids[1]: healthy["all"][uuids[1]][:1]}
    where = site(two)
    where.world.records, where.world.deaths = records, {uuids[1]: "its end was waited for"}
    outcomes = taken("all", where)
    assert where.world.stopped == (uuids[1],)
    assert outcomes["gpu.copy.errors_all", "gpu1"].reason == "it was not ready after 300 s"


# pairs ---------------------------------------------------------------------------------------------------


def test_a_copy_through_the_host_is_not_sold_as_peer_to_peer(two):
    """Where the driver refuses peer access, why is said, and that the copy was staged."""
    outcomes = simulated(two, "peer")
    assert outcomes["gpu_pair.access", "gpu0-gpu1"].value == "chipset not supported"
    assert outcomes["gpu_pair.path", "gpu0-gpu1"].value == "staged"
    staged = outcomes["gpu_pair.copy", "gpu0-gpu1"]
    assert (staged.note, staged.conditions["path"]) == ("staged through the host", "staged")


def test_a_direct_copy_is_one_that_the_driver_allows(catalogue):
    """Cards with peer access copy directly, at the rate of the link."""
    outcomes = simulated(load_profile("2xh100-pcie", catalogue, SHIPPED), "peer")
    assert outcomes["gpu_pair.access", "gpu0-gpu1"].value == "OK"
    assert outcomes["gpu_pair.path", "gpu0-gpu1"].value == "direct"
    direct = outcomes["gpu_pair.copy", "gpu0-gpu1"]
    assert direct.value == pytest.approx(52.6, rel=0.02)
    assert direct.note == ""


@pytest.mark.parametrize(
    ("path", "statement"), [("direct", "went direct"), (None, "which is none"), ("sideways", "which is none")]
)
def test_a_path_that_contradicts_the_driver_is_no_reading(two, healthy, uuids, path, statement):
    """A copy that claims a path which the driver denies, or claims none, has neither path nor rate."""
    records = copy.deepcopy(healthy["peer"])
    for record in of_kind(records[uuids[0]], "copy"):
        record["path"] = path
    outcomes = replayed(two, "peer", records)
    for metric in ("gpu_pair.path", "gpu_pair.copy"):
        assert statement in outcomes[metric, "gpu0-gpu1"].reason
        assert outcomes[metric, "gpu0-gpu1"].reason.endswith("the driver, of peer access: chipset not supported")
    assert outcomes["gpu_pair.errors", "gpu0-gpu1"].value == 0


def test_a_path_that_changes_between_copies_is_none(two, healthy, uuids):
    """One copy of three that went otherwise leaves no path."""
    records = copy.deepcopy(healthy["peer"])
    of_kind(records[uuids[0]], "copy")[-1]["path"] = "direct"
    reason = replayed(two, "peer", records)["gpu_pair.path", "gpu0-gpu1"].reason
    assert reason.startswith("the copies say ['staged', 'staged', 'direct'] of their path")


def test_without_the_drivers_word_only_a_staged_copy_is_believed(two, healthy, uuids, monkeypatch):
    """A driver that does not answer leaves no access; then a direct copy is not confirmed, a staged one needs none."""
    where = site(two, "gpu0-gpu1")
    nvml = binding(where.world.machine)

    def refuse(*_):
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(nvml, "nvmlDeviceGetP2PStatus", refuse)
    where.world.records = copy.deepcopy(healthy["peer"])
    outcomes = taken("peer", where)
    assert outcomes["gpu_pair.access", "gpu0-gpu1"].reason == "Not Supported"
    assert isinstance(outcomes["gpu_pair.copy", "gpu0-gpu1"], Measurement)
    for record in of_kind(where.world.records[uuids[0]], "copy"):
        record["path"] = "direct"
    assert taken("peer", where)["gpu_pair.copy", "gpu0-gpu1"].reason.endswith("of peer access: Not Supported")


def test_a_copy_that_went_another_way_is_not_the_copy_asked_for(two, healthy, uuids):
    """A pair's copy counts only as the copy to that very card."""
    records = copy.deepcopy(healthy["peer"])
    for record in of_kind(records[uuids[0]], "copy"):
        record["way"] = "device"
    outcomes = replayed(two, "peer", records)
    assert outcomes["gpu_pair.copy", "gpu0-gpu1"].reason == f"0 {NO_RATE}"
    assert isinstance(outcomes["gpu_pair.path", "gpu0-gpu1"], NotMeasured)
    assert outcomes["gpu_pair.errors", "gpu0-gpu1"].reason == f"not every copy was compared: peer:{uuids[1]}"


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        ("chipset", "chipset not supported"), ("gpu", "GPU not supported"), ("topology", "topology not supported"),
        ("regkey", "disabled by registry key"), ("unsupported", "not supported"), ("unknown", "unknown"),
    ],
)  # fmt: skip
def test_the_driver_says_why_it_refuses_peer_access(two, refused, text):
    """Either card's reason is the pair's, in NVML's own words, whichever of them is asked."""
    where = site(two, "gpu0-gpu1")
    first, second = (gpu.p for gpu in where.world.machine.gpus)
    for one, other in ((first, second), (second, first)):
        one.p2p, other.p2p = refused, "ok"
        outcomes = taken("peer", where)
        assert outcomes["gpu_pair.access", "gpu0-gpu1"].value == text
        assert outcomes["gpu_pair.path", "gpu0-gpu1"].value == "staged"


# anything ------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**30)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=3,
)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["drop", "remove", "replace", "double"]), st.sampled_from(["device", "copy", "warm_up"]),
        st.integers(0, 99), st.sampled_from(["kind", "uuid", "t", "way", "moved", "seconds", "wrong", "path"]), JSON,
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def spoil(written, changes):
    """Drop or double records, or remove or replace a key of them."""
    for what, kind, place, key, value in changes:
        chosen = [record for record in written if record.get("kind") == kind]
        for record in chosen[place % len(chosen) :][:1] if chosen else []:
            if what == "drop":
                written.remove(record)
            elif what == "double":
                written.append(copy.deepcopy(record))
            elif what == "replace":
                record[key] = value
            else:
                record.pop(key, None)


@pytest.mark.parametrize("name", PROBES)
@FUZZ
@given(changes=CHANGES, death=st.sampled_from(["", "it died"]))
@example(changes=[("replace", "warm_up", 0, "wrong", 0.4)], death="")
@example(changes=[("remove", "warm_up", 0, "wrong", None)], death="")
@example(changes=[("replace", "copy", 0, "way", [0])], death="")
@example(changes=[("replace", "copy", 0, "path", [0])], death="")
@example(changes=[("drop", "copy", 0, "t", None)], death="it died")
def test_whatever_a_load_writes_is_a_reading_or_has_a_reason(two, healthy, uuids, name, changes, death):
    """Any records give outcomes, and "none seen" only where each copy of each way was compared and was right."""
    records = copy.deepcopy(healthy[name])
    written = records[uuids[0]]
    spoil(written, changes)
    outcomes = replayed(two, name, records, {uuids[0]: death} if death else {})
    assert all(isinstance(outcome, Measurement) or outcome.reason for outcome in outcomes.values())
    ways = {"alone": list(copies.COPIES), "all": list(copies.ALL), "peer": [f"peer:{uuids[1]}"]}[name]
    compared = [r for r in written if r.get("kind") in ("warm_up", "copy")]
    came = [r.get("way") for r in compared if r["kind"] == "copy"]
    clean = all(r.get("wrong") == 0 for r in compared) and all(came.count(way) >= SMALL["samples"] for way in ways)
    own = [o for (metric, device), o in outcomes.items() if "errors" in metric and device != "gpu1"]
    assert len(own) == 1
    if isinstance(own[0], Measurement) and own[0].value == 0:
        assert clean
        assert not death
        assert own[0].proof
