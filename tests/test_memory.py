"""Memory: which defects the patterns find, and what the records of the load prove."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.children import memory as load
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.loader import SHIPPED
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import Card
from pytest_gpuaccept.probes.gpus import memory
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld

PARAMS = {**memory.PARAMS, "seconds": 2}
GIB = 2**30
OWN = Card("gpu0", "GPU-0", "00000000:01:00.0", object())


class Ram:
    """Cells of two unequal arrays; `reads(chunk, words)` may change what is read."""

    xp, uuid, free = np, "GPU-0", 1600

    def __init__(self, reads=None):
        self.chunks, self.reads = [], reads or (lambda chunk, words: words)

    def claim(self, share):
        """Claim all."""
        self.chunks = [np.zeros(120, np.int64), np.zeros(80, np.int64)]
        return 1600

    def read(self, chunk):
        """Return the words as they read."""
        return self.reads(chunk, self.chunks[chunk].copy())

    def heat(self, clock, seconds):
        """Let time pass."""
        clock.sleep(seconds)

    def gather(self, chunk, places):
        """Return words and a second."""
        return self.read(chunk)[places], 1.0


class Clock:
    """Time that passes only while somebody sleeps."""

    now = 0.0

    def monotonic(self):
        """Return the seconds slept."""
        return self.now

    def sleep(self, seconds):
        """Let time pass."""
        self.now += seconds


def ran(cells, clock=None, **plan):
    """Return the records of a whole test over cells."""
    script = load.memory(cells, clock or Clock(), **{"seconds": 0, "hold_s": 30, "share": 0.95, **plan})
    records = [next(script)]
    for _ in range(1000):
        try:
            records.append(script.send({"at": 1.0} if records[-1].get("awaits") else None))
        except StopIteration:
            return records
    raise AssertionError


def wrong(records):
    """Return the patterns in which words were wrong, with how many."""
    return {r["pattern"]: r["wrong"] for r in records if r["kind"] == "pass" and r["wrong"]}


# the load ---------------------------------------------------------------------------------------------


def test_memory_of_which_nothing_was_claimed_has_one_round():
    """Rounds over nothing take no time: the load does not repeat them until the time is over."""

    class Nothing(Ram):
        def claim(self, share):
            return 0

    records = ran(Nothing(), seconds=30)
    assert [r["pattern"] for r in records if r["kind"] == "pass"] == list(load.PATTERNS)
    assert {r["bytes"] for r in records if r["kind"] == "pass"} == {0}
    assert records[-1] == {"kind": "end"}


def test_sound_memory_shows_no_wrong_word_and_the_planted_bit_once():
    """Every pattern is done over all claimed bytes, and the rehearsal finds its bit and nothing else."""
    records = ran(Ram())
    kinds = [r["kind"] for r in records]
    assert kinds[:4] == ["device", "claimed", "rehearsal", "ready"]
    assert kinds[-1] == "end"
    assert records[2] == {"kind": "rehearsal", "clean": 0, "found": 1, "place": True}
    assert wrong(records) == {}
    assert [r["pattern"] for r in records if r["kind"] == "pass"] == list(load.PATTERNS)
    assert {r["bytes"] for r in records if r["kind"] == "pass"} == {1600}


@pytest.mark.parametrize("level", ["high", "low"])
@pytest.mark.parametrize("bit", [0, 33, 62])
def test_a_stuck_bit_is_found_and_named(bit, level):
    """A bit that always reads 1, or 0, shows with its address in the patterns that need the other value."""

    def stuck(chunk, words):
        if chunk:
            words[7] = words[7] | (1 << bit) if level == "high" else words[7] & ~(1 << bit)
        return words

    records = ran(Ram(stuck))
    found = wrong(records)
    assert ("zeros" if level == "high" else "ones") in found
    assert ("55" in found) != ("aa" in found)
    assert found["inversions"] and found["modulo-20"]  # noqa: PT018 - one condition
    of_zeros = next(r for r in records if r.get("wrong") and r["pattern"] in ("zeros", "ones"))
    assert of_zeros["words"] == [(127, hex(1 << bit))]
    assert of_zeros["bits"] == {str(bit): 1}
    assert json.loads(json.dumps(of_zeros))["wrong"] == 1


def test_an_address_line_shows_only_in_patterns_that_differ_from_place_to_place():
    """Two addresses of one word: solid patterns pass, addresses, random words and the gather do not."""
    found = wrong(ran(Ram(lambda chunk, words: words[np.arange(len(words)) & ~16])))
    assert {"address", "random", "gather", "fade"} <= found.keys()
    assert not {"zeros", "ones", "55", "aa", "inversions"} & found.keys()


def test_a_bit_that_is_lost_while_it_is_held_shows_in_one_of_the_two_holds():
    """Each cell is held charged once and empty once, for the time that was asked."""
    clock, last = Clock(), [0.0]

    def fading(chunk, words):
        if chunk and clock.now - last[0] >= 20:
            words[3] &= ~(1 << 9)
        last[0] = clock.now if chunk else last[0]
        return words

    found = wrong(ran(Ram(fading), clock))
    assert len(found.keys() & {"fade", "fade.complement"}) == 1
    assert not found.keys() - {"fade", "fade.complement"}
    assert clock.now == 1.0 + 2 * 30


def test_a_neighbour_that_is_disturbed_is_found():
    """Writing the words around one flips it: the complement around every 20th word shows it."""

    class Disturbed(np.ndarray):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            if isinstance(key, tuple) and isinstance(key[1], slice) and self.shape[1] == 20:
                self.view(np.ndarray)[1, 4] ^= 2

    class Cells(Ram):
        def claim(self, share):
            claimed = super().claim(share)
            self.chunks[0] = self.chunks[0].view(Disturbed)
            return claimed

        def read(self, chunk):
            return np.array(self.chunks[chunk])

    records = ran(Cells())
    assert wrong(records).keys() == {"modulo-20"}
    assert {word for r in records for word, _ in r.get("words", ())} == {24}


def test_only_so_many_wrong_words_are_looked_at():
    """All are counted; the bits of 4096 and the addresses of 16 are kept."""
    found = load.Found()
    found.compare(np, np.full(5000, 3, np.int64), 0, 10)
    found.compare(np, np.full(5000, 3, np.int64), np.zeros(5000, np.int64), np.arange(5000))
    assert (found.wrong, found.looked_at, found.bits) == (10000, 4096, {0: 4096, 1: 4096})
    assert found.words == [(10 + i, "0x3") for i in range(16)]


@given(st.integers(1, 40), st.integers(-5, 5))
@settings(database=None, max_examples=50, deadline=None)
def test_the_gather_visits_every_word_once_and_random_words_follow_from_their_address(twenties, seed):
    """The jumping order is a permutation; a slice of random words is the same whatever slice it is cut from."""
    cells = np.zeros(20 * twenties, np.int64)
    order = load.jumping(np, cells, 0)
    assert sorted(order.tolist()) == list(range(len(cells)))
    assert abs(np.diff(order)).min() >= len(cells) // 3
    whole = load.random(seed)(np, cells, 0)
    assert (load.random(seed)(np, cells[10:], 10) == whole[10:]).all()
    assert len(set(whole.tolist())) == len(cells)


def test_slices_change_nothing(monkeypatch):
    """Memory that is compared in many slices is written and read as in one."""
    monkeypatch.setattr(load, "SLICE", 40)
    records = ran(Ram())
    assert wrong(records) == {}
    assert records[2]["place"] is True


# the probe --------------------------------------------------------------------------------------------


def measured(profile, scenario="healthy", world=None, **params):
    """Return the outcomes of the probe on a simulated machine."""
    world = world or SimWorld(profile, load_scenario(scenario, SHIPPED, SHIPPED / "scenarios"))
    site = Site(world, profile, "host", {**PARAMS, **params}, lambda name, text: "digest")
    return {(o.metric.removeprefix("gpu.memory."), o.device): o for o in memory.memory(site)}


def test_a_healthy_machine_has_all_values_of_every_card(profile):
    """No wrong word with its proof, the coverage, a gather below the memory's rate, and the heat while held."""
    got = measured(profile)
    assert len(got) == 4 * profile.gpus
    assert all(isinstance(outcome, Measurement) for outcome in got.values())
    none = got["errors", "gpu2"]
    assert none.value == 0
    assert "95.0 % of the free memory" in none.proof
    assert "planted bit was found" in none.proof
    assert got["coverage", "gpu2"].value == pytest.approx(95)
    assert 0 < got["gather", "gpu2"].value < 1008
    assert 20 < got["fade_temperature", "gpu2"].value < 90


@pytest.mark.parametrize(
    ("fault", "pattern", "not_in"),
    [("vram.stuck", "zeros", "ones"), ("vram.alias", "address", "zeros"), ("vram.fades", "fade", "random")],
)
def test_defects_are_counted_with_where_they_show(profile, fault, pattern, not_in):
    """Wrong words are a value without a proof, with patterns, bits and addresses; other cards are not concerned."""
    got = measured(profile, f"healthy,fault=gpu1.{fault}")
    of_one = got["errors", "gpu1"]
    assert of_one.value > 0
    assert of_one.proof is None
    assert pattern in of_one.note
    assert not_in not in of_one.note
    assert got["errors", "gpu0"].value == 0


def test_a_blind_comparison_proves_nothing(profile):
    """A planted bit that is not found makes no wrong words an absence, never a zero."""
    got = measured(profile, "healthy,fault=gpu1.detector.blind")
    assert isinstance(got["errors", "gpu1"], NotMeasured)
    assert "was planted" in got["errors", "gpu1"].reason


def test_memory_that_cannot_be_claimed_lowers_the_coverage(profile):
    """What was not claimed is not covered."""
    assert measured(profile, "healthy,fault=gpu1.vram.claim")["coverage", "gpu1"].value == pytest.approx(60)


def test_a_pass_over_little_memory_takes_its_time(profile):
    """Also where next to nothing could be claimed, the simulated rounds come to their end."""
    got = measured(profile, "healthy,fault=gpu1.vram.claim:0.000001")
    assert 0 < got["coverage", "gpu1"].value < 0.001
    assert got["errors", "gpu1"].samples < 1000


def test_memory_that_somebody_else_holds_is_not_left_out_in_silence(profile):
    """Free memory is what others leave: where that is little, its coverage and its soundness are absent."""
    got = measured(profile, "healthy,fault=gpu1.process.foreign")
    assert "end what else uses the card" in got["coverage", "gpu1"].reason
    assert "end what else uses the card" in got["errors", "gpu1"].reason
    assert measured(profile, "healthy,fault=gpu1.desktop")["coverage", "gpu1"].value == pytest.approx(95)


def test_a_missing_card_and_a_wrong_one_have_no_values(profile):
    """A card that is not there, and one whose load ran elsewhere, are absent with the reason."""
    assert "there is no gpu3" in measured(profile, "healthy,fault=gpu3.missing")["errors", "gpu3"].reason
    elsewhere = measured(profile, "healthy,fault=gpu3.cuda.order")
    assert {"CUDA's order" in elsewhere[name, "gpu3"].reason for name in ("errors", "coverage", "gather")} == {True}


def test_a_machine_without_a_usable_card_says_why(profile):
    """Where no card answers there is the reason and nothing else, and nothing is started."""
    lost = ",".join(f"fault=gpu{i}.lost" for i in range(profile.gpus))
    world = SimWorld(profile, load_scenario(f"healthy,{lost}", SHIPPED, SHIPPED / "scenarios"))
    world.start = None
    with pytest.raises(Unmeasurable, match="gpu0 does not answer"):
        measured(profile, world=world)


@pytest.mark.parametrize("claim", ["vram.claim:0.0", "process.foreign:100000"])
def test_a_card_of_which_nothing_can_be_claimed_is_not_tested(profile, claim):
    """Rounds over nothing end all the same; nothing was wrong there, which proves nothing."""
    got = measured(profile, f"healthy,fault=gpu1.{claim}")
    assert "covered 0 of 0 claimed bytes" in got["errors", "gpu1"].reason
    assert got["errors", "gpu0"].value == 0


def test_wrong_words_found_before_a_card_was_lost_still_count(profile):
    """A card that falls off the bus in the middle of the test has failed already; the others are tested to the end."""
    got = measured(profile, "healthy,fault=gpu1.vram.stuck,fault=gpu1.lost@45s,fault=gpu2.lost@55s")
    assert got["errors", "gpu1"].value > 0
    for metric, device in (("errors", "gpu2"), ("gather", "gpu1"), ("coverage", "gpu1")):
        assert f"stopped: {device} has Xid 79 (fatal: the card has fallen off the bus)" in got[metric, device].reason
    assert got["errors", "gpu0"].value == 0
    assert got["coverage", "gpu3"].value > 90


def test_wrong_words_found_before_a_load_died_still_count(profile):
    """Where no kernel log tells why, the load's own words do."""
    got = measured(profile, "healthy,fault=gpu1.vram.stuck,fault=gpu1.lost@55s,fault=host.log.unreadable")
    assert got["errors", "gpu1"].value > 0
    assert "unspecified launch failure" in got["gather", "gpu1"].reason


def test_wrong_words_found_before_a_card_went_blind_still_count(profile):
    """A card that nobody sees any more while patterns are held ends the test of all, and each says so."""
    got = measured(profile, "healthy,fault=gpu1.vram.stuck,fault=gpu1.lost@45s,fault=host.log.unreadable")
    assert got["errors", "gpu1"].value > 0
    for metric, device in (("gather", "gpu1"), ("errors", "gpu0"), ("gather", "gpu0")):
        assert "stopped: gpu1 has shown no temperature for 10 s" in got[metric, device].reason


# what records prove -----------------------------------------------------------------------------------


def healthy_records():
    """Return the records of a test that went well, a pass each two seconds."""
    held = dict.fromkeys(load.FADES, 30.0)
    passes, t = [], 1.0
    for pattern in load.PATTERNS:
        seconds = held.get(pattern, 2.0)
        passes.append({"kind": "pass", "pattern": pattern, "t": t, "seconds": seconds, "wrong": 0, "bytes": 19 * GIB})
        t += seconds
    passes[-1]["gather_s"] = 0.1
    return [
        {"kind": "device", "uuid": OWN.uuid}, {"kind": "claimed", "free": 20 * GIB, "claimed": 19 * GIB},
        {"kind": "rehearsal", "clean": 0, "found": 1, "place": True}, *passes, {"kind": "end"},
    ]  # fmt: skip


def outcomes(records, utilisation=100, death="", total=21 * GIB):
    """Return a card's outcomes from records and a busy card's telemetry."""
    samples = [
        {"kind": "sample", "t": i / 2, "uuid": OWN.uuid, "utilisation": utilisation, "temperature": 50 + i % 3}
        for i in range(240)
    ]
    nvml = SimpleNamespace(
        NVMLError=type("NVMLError", (Exception,), {}),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=total),
    )
    site = Site(SimpleNamespace(nvml=lambda: nvml), None, "host", memory.PARAMS, None)
    test = memory.Tested(OWN, records, samples, death)
    read = memory.READINGS.items()
    return {metric.id.removeprefix("gpu.memory."): memory._attempt(site, metric, test, of) for metric, of in read}


def changed(kind, index=0, **values):
    """Return healthy records of which one of a kind says otherwise."""
    records = healthy_records()
    [record for record in records if record["kind"] == kind][index].update(values)
    return records


def test_a_whole_test_proves_that_nothing_was_wrong():
    """Records of a test that went well give 0 with a proof; the other refusals here start from these."""
    got = outcomes(healthy_records())
    assert got["errors"].value == 0
    assert got["errors"].proof
    assert got["coverage"].value == 95
    assert got["gather"].value == pytest.approx(19 * GIB / 1e9 / 0.1)


@pytest.mark.parametrize(
    ("records", "why"),
    [
        (changed("rehearsal", found=0), "was planted"),
        (changed("rehearsal", found=2), "was planted"),
        (changed("rehearsal", place=False), "was planted"),
        (changed("pass", 3, bytes=GIB), "covered"),
        (changed("pass", 3, seconds=0), "nothing was read"),
        (changed("pass", 0, seconds=5.0), "nothing was held"),
        (changed("pass", 4, pattern="another"), "no pass"),
        (changed("pass", 4, wrong=None), "no amount"),
        (changed("rehearsal", clean=None), "no amount"),
        (changed("pass", 4, wrong=float("nan")), "no amount"),
        (changed("claimed", claimed=0), "covered"),
        (changed("claimed", free=10 * GIB, claimed=9 * GIB), "end what else uses the card"),
        (changed("claimed", claimed=21 * GIB), "covered"),
        (changed("device", uuid="GPU-1"), "CUDA's order"),
        (healthy_records()[:-1], "kind 'end'"),
        (healthy_records() + healthy_records(), "2 records of kind 'device'"),
        ([], "0 records of kind 'device'"),
    ],
)
def test_anything_less_proves_nothing(records, why):
    """No wrong word without rehearsal, coverage, time, hold, every pattern and the end is no measurement."""
    outcome = outcomes(records)["errors"]
    assert isinstance(outcome, NotMeasured)
    assert why in outcome.reason


def test_a_card_that_was_idle_was_not_swept():
    """A load of which the sensors show nothing did not reach the card."""
    assert "did not reach gpu0" in outcomes(healthy_records(), utilisation=0)["errors"].reason


@pytest.mark.parametrize(
    ("changes", "value"),
    [({"bytes": GIB}, 5), ({"bytes": 0}, 0), ({"bytes": 21 * GIB}, 95), ({"bytes": 0, "seconds": 0}, 0)],
)
@pytest.mark.parametrize("number", [0, 3, -1])
def test_the_coverage_is_what_every_pattern_went_over(number, changes, value):
    """What was claimed and left out by one pattern is not covered, and more than was claimed cannot be."""
    assert outcomes(changed("pass", number, **changes))["coverage"].value == value


def test_more_than_was_claimed_is_not_covered():
    """Passes that say that they went over more than the load claimed do not cover it."""
    more = [r | {"bytes": 20 * GIB} if r["kind"] == "pass" else r for r in healthy_records()]
    assert outcomes(more)["coverage"].value == 95


def test_later_rounds_do_not_make_up_for_one_that_left_words_out():
    """Of the passes of a pattern, too, the one over the least words counts."""
    records = healthy_records()
    again = [dict(r) for r in records if r.get("pattern") in load.ROUND]
    changed_one = next(r for r in records if r.get("pattern") == "zeros")
    changed_one["bytes"] = 10 * GIB
    assert outcomes([*records[:-2], *again, *records[-2:]])["coverage"].value == 50


@pytest.mark.parametrize(
    ("records", "death", "why"),
    [
        (healthy_records(), "it died", "it died"),
        (healthy_records()[:-1], "", "kind 'end'"),
        (healthy_records()[:2], "", "kind 'end'"),
        (healthy_records()[:2], "it died", "it died"),
        ([*healthy_records()[:3], {"kind": "end"}], "", "no pass 'fade'"),
        (changed("pass", 4, pattern="another"), "", "no pass 'ones'"),
        (changed("pass", 4, seconds=0), "", "nothing was read"),
        (changed("pass", 4, bytes=None), "", "no amount"),
    ],
)
def test_memory_that_was_claimed_and_not_tested_is_not_covered(records, death, why):
    """A load that died, or left a pattern out, covered nobody knows what: what it claimed proves no test."""
    assert why in outcomes(records, death=death)["coverage"].reason


def test_another_program_that_holds_the_memory_makes_the_coverage_none():
    """95 % of little is not 95 % of the card."""
    assert "nvidia-smi" in outcomes(healthy_records(), total=40 * GIB)["coverage"].reason


@pytest.mark.parametrize("records", [changed("pass", 5, wrong=3), changed("rehearsal", clean=3)])
def test_wrong_words_are_counted_even_without_an_end(records):
    """What was found wrong stays wrong, whatever else is missing, the rehearsal's untouched words included."""
    outcome = outcomes([r for r in records if r["kind"] != "end"], utilisation=0, death="it died")["errors"]
    assert outcome.value == 3


@pytest.mark.parametrize(("kind", "key"), [("pass", "wrong"), ("rehearsal", "clean")])
@pytest.mark.parametrize("value", [None, "x", -1, float("nan")])
def test_a_garbled_record_does_not_hide_wrong_words_of_another(kind, key, value):
    """The words that were found wrong are counted, and the note says that there may be more."""
    records = changed("pass", 5, wrong=3, bits={"7": 3}, words=[[5, "0x80"]])
    next(record for record in records if record["kind"] == kind)[key] = value
    outcome = outcomes(records)["errors"]
    assert (outcome.value, outcome.proof) == (3, None)
    assert outcome.note.startswith("in 55; bits 7 most")
    assert outcome.note.endswith("which is no amount")


def test_a_gather_of_wrong_words_has_no_rate():
    """A rate of wrong words is none, and neither is one that took no time."""
    assert "wrong words" in outcomes(changed("pass", -1, wrong=1))["gather"].reason
    assert "no time" in outcomes(changed("pass", -1, gather_s=0))["gather"].reason


JSON = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)
RECORD = st.fixed_dictionaries(
    {"kind": st.sampled_from(["device", "claimed", "rehearsal", "pass", "end"])},
    optional={
        **dict.fromkeys(["t", "seconds", "wrong", "bytes", "claimed", "free", "found", "clean", "gather_s"], JSON),
        **dict.fromkeys(["bits", "words", "place"], JSON | st.dictionaries(st.text(max_size=2), JSON, max_size=2)),
        "uuid": st.just(OWN.uuid), "pattern": st.sampled_from(load.PATTERNS) | JSON,
    },
)  # fmt: skip


@given(st.lists(RECORD, max_size=6))
@settings(database=None, max_examples=200, deadline=None)
def test_whatever_a_load_writes_never_passes(records):
    """Records that are not a whole test give wrong words or a reason, never a proven zero and never a traceback."""
    got = outcomes(records)
    assert isinstance(got["errors"], NotMeasured) or got["errors"].value > 0
    assert isinstance(got["coverage"], NotMeasured)


def test_a_tested_record_is_the_only_one_of_its_kind():
    """Two devices in one load's records are a contradiction."""
    with pytest.raises(Unmeasurable, match="2 records"):
        memory.Tested(OWN, [{"kind": "device"}] * 2, [], "").one("device")
