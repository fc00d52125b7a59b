"""Products at odd shapes: a wrong answer is found and made small, and no answer is never a right one."""

import json
import subprocess
import sys
from itertools import chain, repeat
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.children.products import BEYOND, LARGE, Question, compare, products, spoilt
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.gpus import numerics
from pytest_gpuaccept.probes.gpus.numerics import DTYPES, REHEARSED, Examiner, WrongProductError, hunt, planned, sizes
from pytest_gpuaccept.selfcheck.matrix import SHIPPED, load_scenario
from pytest_gpuaccept.sim.loads import _rounded
from pytest_gpuaccept.sim.world import SimWorld

FUZZ = settings(deadline=None, database=None, max_examples=80)
FEW = 25
UUID = "GPU-0"
QUESTION = Question(3, 4, 5, "fp16", 0)
EDGE = st.integers(1, 40)
QUESTIONS = st.builds(Question, EDGE, EDGE, EDGE, st.sampled_from(DTYPES), st.integers(0, 99))


class Host:
    """A multiplier that computes in the given type on the host."""

    uuid, xp = UUID, np

    def __init__(self, spoil=lambda result, question: result, sum_in=np.float32):
        self.spoil, self.sum_in = spoil, sum_in

    def describe(self):
        """Return what it is."""
        return {"library": "numpy"}

    def operands(self, question):
        """Return standard normals that the type can hold."""
        noise, kept = np.random.default_rng(question.seed), np.float16 if question.dtype == "fp16" else np.float32
        a, b = noise.standard_normal((question.m, question.k)), noise.standard_normal((question.k, question.n))
        return [_rounded(x, question.dtype).astype(kept).astype(np.float64) for x in (a, b)]

    def multiply(self, question, a, b):
        """Return the product, summed one by one in `sum_in`."""
        total = np.zeros((question.m, question.n), self.sum_in)
        for i in range(question.k):
            total += np.outer(a[:, i].astype(np.float32), b[i].astype(np.float32)).astype(self.sum_in)
        kept = np.float16 if question.dtype == "fp16" else np.float32
        return self.spoil(total.astype(kept).astype(np.float64), question)


def answered(gpu, *asked, **spoil):
    """Return the answers of the script to some questions."""
    script = products(gpu, SimpleNamespace(monotonic=lambda: 7.0))
    assert next(script) == {"kind": "device", "uuid": UUID, "library": "numpy"}
    assert next(script)["awaits"]
    answers = [script.send({"number": i, **q._asdict(), **spoil}) for i, q in enumerate(asked, 1)]
    assert script.send({"end": True}) == {"kind": "end", "answered": len(asked)}
    with pytest.raises(StopIteration):
        script.send(None)
    return json.loads(json.dumps(answers))


# the child ------------------------------------------------------------------------------------------


@FUZZ
@given(QUESTIONS)
@example(Question(40, 1, 40, "fp32", 3))
@example(Question(1, 1, 1, "fp16", 0))
def test_a_right_product_is_right_at_every_shape(question):
    """Rounding and the order of the sum never count as wrong, in no type and at no shape."""
    (answer,) = answered(Host(), question)
    assert answer["wrong"] == 0
    assert answer["elements"] == question.m * question.n
    assert 0 <= answer["worst"] <= 1


@FUZZ
@given(QUESTIONS, st.sampled_from(["value", "nan"]))
def test_the_smallest_error_that_counts_is_found_in_the_last_element(question, spoil):
    """A result with one element off by twice its bound, or NaN, has one wrong element, and that is the last."""
    (answer,) = answered(Host(), question, spoil=spoil)
    assert answer["wrong"] == 1
    assert answer["element"] == [question.m - 1, question.n - 1]
    assert answer["odd"] == (spoil == "nan")
    assert answer["worst"] == (LARGE if spoil == "nan" else pytest.approx(BEYOND))


def test_one_large_product_may_be_off_by_its_own_rounding():
    """At an inner length of one the bound follows the product: half a last place of FP32 is right, however large."""

    class Large(Host):
        def operands(self, question):
            return np.full((1, 1), 1000.0), np.full((1, 1), 1000.0)

        def multiply(self, question, a, b):
            return a @ b * (1 + 2.0**-24)

    (answer,) = answered(Large(), Question(1, 1, 1, "fp32", 0))
    assert answer["wrong"] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_what_is_no_number_is_wrong_and_counts_finitely(value):
    """NaN, infinities and absurd numbers are wrong elements, and the record still holds JSON numbers."""
    want = np.ones((2, 3))
    got = want.copy()
    got[0, 2] = value
    found = compare(np, got, want, np.full((2, 3), 1e-3))
    assert (found["wrong"], found["worst"], found["element"]) == (1, LARGE, [0, 2])


def test_an_error_at_its_bound_is_right_and_beyond_it_wrong():
    """The bound itself is allowed; the smallest step beyond is not."""
    want, bound = np.zeros((1, 2)), np.full((1, 2), 0.5)
    found = compare(np, np.array([[0.5, np.nextafter(0.5, 1)]]), want, bound)
    assert (found["wrong"], found["element"]) == (1, [0, 1])


def test_a_rehearsal_leaves_the_result_alone():
    """What is spoilt is a copy."""
    got = np.zeros((2, 2))
    assert spoilt(np, got, got, np.ones((2, 2)), "value")[1, 1] == BEYOND
    assert not got.any()


@pytest.mark.parametrize(
    ("spoil", "sum_in"),
    [
        (lambda result, q: result, np.float16),
        (lambda result, q: result * (1 + 2.0**-7), np.float32),
        (lambda result, q: np.roll(result, 1, axis=1), np.float32),
        (lambda result, q: np.where(np.arange(q.n) == q.n - 1, 0.0, result), np.float32),
    ],
    ids=["summed in FP16", "too large", "columns moved", "last column forgotten"],
)
def test_wrong_products_are_found(spoil, sum_in):
    """A sum in FP16, a scaled result, moved columns and a forgotten edge are all beyond the bound."""
    (answer,) = answered(Host(spoil, sum_in), Question(17, 129, 33, "fp16", 1))
    assert answer["wrong"] > 0


def test_answers_carry_the_number_of_their_question():
    """Each answer says which question it is of, when it was asked, and that it waits for the next one."""
    first, second = answered(Host(), QUESTION, QUESTION)
    assert (first["number"], second["number"], first["t"]) == (1, 2, 7.0)
    assert first["awaits"] == second["awaits"] == "the next question"


# the questions --------------------------------------------------------------------------------------


@FUZZ
@given(st.integers(1, 8192))
def test_edges_are_every_small_one_and_odd_large_ones(largest):
    """Edge lengths go up to the largest, leave out no small one, and have both neighbours of a power of two."""
    edges = sizes(largest)
    assert edges[: min(64, largest)] == list(range(1, min(64, largest) + 1))
    assert edges == sorted(set(edges))
    assert edges[-1] <= largest
    power = 1 << (largest.bit_length() - 1)
    assert {size for size in (power - 1, power, power + 1) if 1 <= size <= largest} <= set(edges)


def test_the_questions_are_many_and_of_all_kinds():
    """As many different questions are asked as were ordered, of all types and layouts, most of an odd inner length."""
    asked = planned(100, 512)
    assert len(set(asked)) == 100
    assert {q.dtype for q in asked} == set(DTYPES)
    assert {q.sliced for q in asked} == {q.turned_a for q in asked} == {q.turned_b for q in asked} == {True, False}
    assert sum(q.k % 8 > 0 for q in asked) > 60


def test_the_questions_are_the_same_whatever_else_is_loaded(monkeypatch):
    """Hypothesis mixes constants of the modules that are loaded into its numbers; they change no question."""
    providers = pytest.importorskip("hypothesis.internal.conjecture.providers")
    first = planned.__wrapped__(100, 512)
    own = SimpleNamespace(set_for_type=lambda _: range(100))
    monkeypatch.setattr(providers.HypothesisProvider, "_local_constants", own)
    providers.CONSTANTS_CACHE.cache.clear()
    again = planned.__wrapped__(100, 512)
    providers.CONSTANTS_CACHE.cache.clear()
    assert again == first


def test_a_wrong_answer_is_made_small():
    """What is wrong from 18 on in one type alone is shrunk to 18 and the smallest of everything else."""
    wrong = []

    def examine(question):
        if question.k >= 18 and question.dtype == "bf16":
            wrong.append(question)
            raise WrongProductError

    assert hunt(100, 512, examine)
    assert wrong[-1] == Question(1, 18, 1, "bf16", 0)


def test_a_wrong_answer_that_does_not_come_again_is_said_to():
    """What is wrong once and then right is no example to show."""
    fails = chain([False] * 10, [True], repeat(False))

    def examine(_):
        if next(fails):
            raise WrongProductError

    assert not hunt(30, 64, examine)


def test_hypothesis_leaves_and_prints_nothing(tmp_path):
    """In a process of its own it makes no folder where it was started, and says nothing, also of what is wrong."""
    wrong = "from pytest_gpuaccept.probes.gpus.numerics import WrongProductError as W, hunt, planned\n"
    wrong += "def examine(question):\n    if question.k > 9: raise W\n"
    program = f"{wrong}assert len(planned(100, 512)) == 100\nassert hunt(100, 512, examine)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_hypothesis_keeps_the_folder_that_it_had(tmp_path, monkeypatch):
    """The folder that a user's own tests have is the same afterwards, also after an error."""
    configuration = pytest.importorskip("hypothesis.configuration")
    monkeypatch.setattr(configuration, "__hypothesis_home_directory", tmp_path)
    hunt(5, 64, lambda question: None)
    with pytest.raises(ZeroDivisionError):
        hunt(5, 64, lambda question: 1 / 0)
    assert vars(configuration)["__hypothesis_home_directory"] == tmp_path


# the probe ------------------------------------------------------------------------------------------


class Line:
    """A load that answers from a list, and says nothing once that is used up."""

    def __init__(self, *answers, uuid=UUID, dies=False):
        self.answers, self.dies, self.ended, self.told = list(answers), dies, False, []
        self.records = [{"kind": "device", "uuid": uuid}, {"kind": "ready", "number": 0, "awaits": "x"}]

    def tell(self, message):
        """Answer, die or be silent."""
        self.told.append(message)
        if self.answers:
            self.records.append({"kind": "answer", "number": message.get("number"), **self.answers.pop(0)})
        else:
            self.ended = self.dies

    def stop(self):
        """Say how it died."""
        message = "products died of SIGSEGV"
        raise Unmeasurable(message)


class Ticking:
    """A clock that goes on when slept by."""

    now = 0.0

    def monotonic(self):
        """Return seconds."""
        return self.now

    def sleep(self, seconds):
        """Go on."""
        self.now += max(seconds, 0.5)


def examiner(*answers, **more):
    """Return an examiner before a load that gives some answers."""
    return Examiner(Line(*answers, **more), Ticking())


RIGHT = {"elements": 15, "wrong": 0, "odd": 0, "worst": 0.3, "element": [0, 0]}
WRONG = {**RIGHT, "wrong": 2, "worst": 12.4, "element": [0, 4]}


def test_a_question_without_an_answer_is_no_measurement():
    """A load that hangs is waited for a minute and then said to hang."""
    asked = examiner()
    with pytest.raises(Unmeasurable, match=r"did not answer .*within 60 s: it hangs"):
        asked.ask(QUESTION)
    assert 60 <= asked.clock.now < 62


def test_a_load_that_dies_says_of_what():
    """The reason of the death is the reason of the absence."""
    with pytest.raises(Unmeasurable, match="SIGSEGV"):
        examiner(dies=True).ask(QUESTION)


@pytest.mark.parametrize(
    "bad",
    [{"elements": 14}, {"elements": None}, {"wrong": -1}, {"wrong": "0"}, {"wrong": None}, {"wrong": 0.5},
     {"wrong": float("nan")}],
)  # fmt: skip
def test_an_answer_that_is_not_about_every_element_is_none(bad):
    """Fewer elements than the product has, or a count that is none: not measured, never 0."""
    with pytest.raises(Unmeasurable):
        examiner({**RIGHT, **bad}).ask(QUESTION)


def test_an_answer_to_another_question_is_none():
    """A record of another number is waited past."""
    asked = examiner({**RIGHT, "number": 7})
    with pytest.raises(Unmeasurable, match="hangs"):
        asked.ask(QUESTION)


def test_after_a_question_without_an_answer_nobody_is_asked():
    """One hang ends the questions, so that a run does not wait for each of a hundred."""
    asked = examiner(RIGHT)
    for _ in range(5):
        asked.examine(QUESTION)
    assert "hangs" in asked.stopped
    assert len(asked.load.told) == 2


def test_products_of_another_card_are_none_of_this_one():
    """The load must say the UUID of the card that is asked for."""
    with pytest.raises(Unmeasurable, match="CUDA's order"):
        examiner(uuid="GPU-9").ready(UUID)
    examiner().ready(UUID)


def test_a_wrong_answer_tells_what_was_asked_and_how_wrong_it_is():
    """Type, shape, seed, layout, how many elements, how far off and where."""
    asked = examiner(WRONG)
    with pytest.raises(WrongProductError):
        asked.examine(QUESTION._replace(seed=9, turned_a=True, sliced=True))
    words = "fp16 3x4x5 seed 9 (a turned, sliced): 2 of 15 elements off by up to 12.4x the bound, worst at [0, 4]"
    assert str(asked.wrong[0]) == words
    asked = examiner({**WRONG, "odd": 1, "worst": LARGE})
    with pytest.raises(WrongProductError):
        asked.examine(QUESTION)
    assert "2 of 15 elements wrong, 1 of them NaN or infinite" in str(asked.wrong[0])


def measured(profile, scenario="healthy", device="gpu1", **params):
    """Return what the probe yields of one card of a simulated machine."""
    world = SimWorld(profile, load_scenario(scenario, SHIPPED, SHIPPED / "scenarios"))
    site = Site(world, profile, device, {"examples": FEW, "largest": 512, **params}, lambda *_: "", "simulated")
    (outcome,) = numerics.numerics(site)
    return outcome


def test_a_healthy_card_passes_with_a_proof(profile):
    """None seen says how many products were compared, and that rehearsed errors were found."""
    outcome = measured(profile)
    assert (outcome.value, outcome.samples) == (0, FEW + 2)
    assert outcome.proof == f"{FEW} products compared with float64; a wrong element and a NaN were found in rehearsal"
    assert outcome.conditions == {"examples": FEW, "largest": 512}


def test_sums_that_lose_their_rest_are_found_and_shrunk_the_same_each_time(profile):
    """The smallest wrong product is shown, and is the same in a second run; the count is at least one."""
    outcome = measured(profile, "healthy,fault=gpu1.odd.wrong")
    assert outcome.value >= 1
    assert outcome.proof is None
    assert outcome.note.startswith("smallest: fp16 1x1x1 seed 0: 1 of 1 elements off by up to ")
    assert measured(profile, "healthy,fault=gpu1.odd.wrong").note == outcome.note


def test_a_wrong_product_that_does_not_come_again_still_counts(profile):
    """An intermittent fault is an error, shown by the first example, and said not to be repeatable."""
    outcome = measured(profile, "healthy,fault=gpu1.flicker", examples=100)
    assert outcome.value >= 1
    assert outcome.note.startswith("not repeatable; first: ")
    assert "NaN or infinite" in outcome.note


def test_a_neighbour_of_a_broken_card_is_right(profile):
    """The fault of one card is not another one's."""
    assert measured(profile, "healthy,fault=gpu1.odd.wrong", device="gpu0").value == 0


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("gpu1.detector.blind", "did not find its rehearsed error"), ("gpu1.cuda.order", "CUDA's order"),
     ("gpu1.lost", "does not answer")],
)  # fmt: skip
def test_a_comparison_that_proves_nothing_measures_nothing(profile, fault, reason):
    """A blind comparison, another card's products and a lost card give no value."""
    with pytest.raises(Unmeasurable, match=reason):
        measured(profile, f"healthy,fault={fault}")


@pytest.mark.parametrize(
    "params", [{"examples": 0}, {"examples": True}, {"largest": 0}, {"largest": 10**6}, {"examples": 1.5}]
)
def test_parameters_that_ask_for_nothing_are_refused(profile, params):
    """No examples, or sizes that cannot be: not measured, and never none seen."""
    with pytest.raises(Unmeasurable, match="is no number from 1 to"):
        measured(profile, **params)


def test_without_hypothesis_nothing_is_measured(profile, monkeypatch):
    """The reason is one line with the remedy."""
    planned.cache_clear()
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(Unmeasurable, match=r"^[^\n]*pip install pytest-gpuaccept\[cuda\]$"):
        measured(profile)


def test_a_hang_voids_what_was_right_and_not_what_was_wrong(profile, monkeypatch):
    """A wrong product stays proven when the load hangs afterwards; none seen needs every answer."""
    monkeypatch.setattr(numerics, "ANSWER_S", 0.05)
    assert measured(profile).value == 0
    slow = iter([*[False] * 3, True])
    original = Examiner._record

    def record(self, number, longest_s, otherwise):
        if number and next(slow, False):
            message = "it hangs"
            raise Unmeasurable(message)
        return original(self, number, longest_s, otherwise)

    monkeypatch.setattr(Examiner, "_record", record)
    with pytest.raises(Unmeasurable, match="it hangs"):
        measured(profile)
    slow = iter([False, True])
    outcome = measured(profile, "healthy,fault=gpu1.odd.wrong")
    assert isinstance(outcome, Measurement)
    assert outcome.value == 1
    assert outcome.note.endswith("; then it hangs")


FOUND = {"elements": REHEARSED.m * REHEARSED.n, "wrong": 1, "element": [REHEARSED.m - 1, REHEARSED.n - 1]}


def proven(*answers, asked=FEW, stopped="", death=""):
    """Return the proof of an examiner that asked so many questions, its load answering the rehearsal."""
    done = examiner(*answers)
    done.asked, done.stopped, done.load.ended = asked, stopped, bool(death)
    done.load.finish = lambda timeout: done.load.stop() if death else []
    return numerics._proof(done, FEW)


def test_a_rehearsed_value_and_a_rehearsed_nan_are_the_proof():
    """Each is one wrong element, in the corner where it was put; the refusals here start from these."""
    assert proven(FOUND, FOUND).endswith("a wrong element and a NaN were found in rehearsal")


@pytest.mark.parametrize("change", [{"wrong": 0}, {"wrong": 2}, {"element": [0, 0]}, {"element": None}])
@pytest.mark.parametrize(("place", "spoil"), [(0, "value"), (1, "nan")])
def test_a_comparison_that_finds_something_else_was_not_rehearsed(change, place, spoil):
    """More wrong elements than were planted, or one elsewhere, are not the planted one."""
    answers = [FOUND, FOUND]
    answers[place] = {**FOUND, **change}
    with pytest.raises(Unmeasurable, match=f"did not find its rehearsed error .{spoil}."):
        proven(*answers)


@pytest.mark.parametrize(
    ("how", "reason"),
    [({"stopped": "it hangs"}, "it hangs"), ({"asked": FEW - 1}, "24 of 25 examples were asked"),
     ({"death": "x"}, "SIGSEGV")],
)  # fmt: skip
def test_products_that_were_not_all_answered_prove_nothing(how, reason):
    """The last question without an answer, a question too few and a load that dies at its end: no proof."""
    with pytest.raises(Unmeasurable, match=reason):
        proven(FOUND, FOUND, **how)


def test_the_rehearsal_is_of_an_odd_shape():
    """What is rehearsed is what the questions are about: no edge is a multiple of eight."""
    assert all(edge % 8 for edge in REHEARSED[:3])
