"""Products at odd shapes: Hypothesis asks a GPU for matrix products, and shrinks the first wrong one.

Owns which questions are asked, how they are put to the load, and what its answers prove. Hypothesis is
imported only where it is used: it comes with an extra, and keeps its folder out of the user's. Must not judge.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any

from pytest_gpuaccept.children.products import Question
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.cards import amount, usable
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Clock, Load, Record

ERRORS = Metric("gpu.numerics.errors", "Wrong matrix products at odd shapes", "count", "gpu", none_seen=True)

DTYPES = ("fp16", "bf16", "tf32", "fp32")
SEEDS = 100
EVERY_SIZE = 64
"""Edge length up to which every one is asked for."""
LARGEST = 8192
"""Edge length whose product still takes a CPU seconds in float64."""
LAYOUTS = 8
FAR = 10**23
"""Added to every drawn number: Hypothesis mixes constants of the loaded modules into integers, and has none there,
so that the examples do not depend on what else is loaded."""
RANDOM_SEED = 20
POLL_S = 0.002
READY_S, ANSWER_S, END_S = 300.0, 60.0, 30.0
"""Seconds until a load is ready (torch from a cold disk), until it answers a question, until it has ended."""
REHEARSED = Question(17, 33, 9, "fp16", 0)
REMEDY = "the products at odd shapes need Hypothesis: pip install pytest-gpuaccept[cuda]"


class WrongProductError(Exception):
    """What tells Hypothesis that an example failed."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """A question whose answer was wrong, and that answer."""

    question: Question
    answer: Record

    def __str__(self) -> str:
        """Write the question and how wrong it was: `fp16 17x1x33 seed 0: 3 of 561 elements ...`."""
        q, found = self.question, self.answer
        sides = [side for side, on in (("a turned", q.turned_a), ("b turned", q.turned_b), ("sliced", q.sliced)) if on]
        layout = f" ({', '.join(sides)})" if sides else ""
        extent = f"off by up to {amount(found, 'worst'):.3g}x the bound"
        if odd := int(amount(found, "odd")):
            extent = f"wrong, {odd} of them NaN or infinite"
        return (
            f"{q.dtype} {q.m}x{q.k}x{q.n} seed {q.seed}{layout}: {amount(found, 'wrong'):.0f} of {q.m * q.n} elements "
            f"{extent}, worst at {found.get('element')}"
        )


@dataclass(slots=True)
class Examiner:
    """Puts questions to a load and keeps the wrong answers; once one is not answered, none is asked any more."""

    load: Load
    clock: Clock
    asked: int = 0
    wrong: list[Wrong] = field(default_factory=list)
    stopped: str = ""

    def ready(self, uuid: str) -> None:
        """Wait for the load; raises Unmeasurable when it does not get ready, or on another card."""
        self._record(0, READY_S, "did not get ready")
        ran_on = [str(record.get("uuid")) for record in self.load.records if record.get("kind") == "device"]
        if ran_on != [uuid]:
            message = f"the products for {uuid} ran on {', '.join(ran_on) or 'nothing'}: CUDA's order is not NVML's"
            raise Unmeasurable(message)

    def examine(self, question: Question) -> None:
        """Ask one question; raises WrongProductError for a wrong answer. What keeps it from answering is `stopped`."""
        if self.stopped:
            return
        try:
            answer = self.ask(question)
        except Unmeasurable as error:
            self.stopped = str(error)
            return
        if answer["wrong"]:
            self.wrong.append(Wrong(question, answer))
            raise WrongProductError

    def ask(self, question: Question, spoil: str = "") -> Record:
        """Return the answer to a question; raises Unmeasurable when there is none, or not about every element."""
        self.asked += 1
        self.load.tell({"number": self.asked, **question._asdict(), "spoil": spoil})
        answer = self._record(self.asked, ANSWER_S, f"did not answer {tuple(question)}")
        wrong, compared = amount(answer, "wrong"), amount(answer, "elements")
        if compared != question.m * question.n or wrong != int(wrong):
            message = f"{compared:g} of {question.m * question.n} elements of a product were compared"
            raise Unmeasurable(message)
        return answer

    def _record(self, number: int, longest_s: float, otherwise: str) -> Record:
        """Return the record of a number as soon as it is the load's last."""
        end = self.clock.monotonic() + longest_s
        while self.clock.monotonic() < end:
            ended = self.load.ended
            if self.load.records and self.load.records[-1].get("number") == number:
                return self.load.records[-1]
            if ended:
                self.load.stop()
                message = f"the load of products ended before its end: it {otherwise}"
                raise Unmeasurable(message)
            self.clock.sleep(POLL_S)
        message = f"the load of products {otherwise} within {longest_s:g} s: it hangs"
        raise Unmeasurable(message)


def numerics(site: Site) -> Iterator[Outcome]:
    """Ask for products at odd shapes and yield how many came out wrong, with the smallest; raises Unmeasurable."""
    own = usable(site, site.device)
    examples, largest = _whole(site, "examples", 10**6), _whole(site, "largest", LARGEST)
    questions = planned(examples, largest)
    with site.world.start("products", {"uuid": own.uuid}) as load:
        examiner = Examiner(load, site.world.clock)
        examiner.ready(own.uuid)
        repeatable = _asked(examiner, questions) or hunt(examples, largest, examiner.examine)
        proof = None if examiner.wrong else _proof(examiner, examples)
    conditions = dict[str, Scalar](examples=examples, largest=largest)
    found = len({wrong.question for wrong in examiner.wrong})
    note = _note(examiner, repeatable=repeatable)
    yield site.measured(ERRORS, found, samples=examiner.asked, proof=proof, conditions=conditions, note=note)


def _whole(site: Site, name: str, most: int) -> int:
    """Return a parameter that is a whole number from 1 to `most`; raises Unmeasurable for any other."""
    value = site.params[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        message = f"gpu.numerics: {name} = {value!r} is no number from 1 to {most}"
        raise Unmeasurable(message)
    return value


def _proof(examiner: Examiner, examples: int) -> str:
    """Return what shows that a wrong product would have been seen; raises Unmeasurable when nothing does."""
    asked = examiner.asked
    if examiner.stopped or asked < examples:
        raise Unmeasurable(examiner.stopped or f"{asked} of {examples} examples were asked")
    corner = [REHEARSED.m - 1, REHEARSED.n - 1]
    for spoil in ("value", "nan"):
        answer = examiner.ask(REHEARSED, spoil)
        if answer["wrong"] != 1 or answer.get("element") != corner:
            message = f"the comparison did not find its rehearsed error ({spoil}): a pass would mean nothing"
            raise Unmeasurable(message)
    examiner.load.tell({"end": True})
    examiner.load.finish(timeout=END_S)
    return f"{asked} products compared with float64; a wrong element and a NaN were found in rehearsal"


def _note(examiner: Examiner, *, repeatable: bool) -> str:
    """Return the smallest wrong example, the last that Hypothesis asks; the first where it did not come again."""
    if not examiner.wrong:
        return ""
    if examiner.stopped:
        return f"first: {examiner.wrong[0]}; then {examiner.stopped}"
    return f"smallest: {examiner.wrong[-1]}" if repeatable else f"not repeatable; first: {examiner.wrong[0]}"


def sizes(largest: int) -> list[int]:
    """Return the edge lengths to ask for: all small ones, then powers of two with their neighbours, and primes."""
    powers = [2**n + d for n in range(largest.bit_length() + 1) for d in (-1, 0, 1)]
    primes = [_prime_below(round(EVERY_SIZE * 2 ** (step / 2))) for step in range(1, 2 * largest.bit_length())]
    return sorted({size for size in (*range(1, EVERY_SIZE + 1), *powers, *primes) if 1 <= size <= largest})


def _prime_below(most: int) -> int:
    return next(n for n in range(most, 1, -1) if all(n % d for d in range(2, math.isqrt(n) + 1)))


def _asked(examiner: Examiner, questions: Sequence[Question]) -> bool:
    """Ask until an answer is wrong; say whether none was."""
    try:
        for question in questions:
            examiner.examine(question)
    except WrongProductError:
        return False
    return True


@lru_cache(maxsize=4)
def planned(examples: int, largest: int) -> tuple[Question, ...]:
    """Return what Hypothesis asks while all answers are right, on every card; raises Unmeasurable without it."""
    questions: list[Question] = []
    hunt(examples, largest, questions.append)
    return tuple(questions)


def hunt(examples: int, largest: int, examine: Callable[[Question], None]) -> bool:
    """Have Hypothesis ask and shrink; say whether it ended with a wrong answer that came again."""
    try:
        hypothesis, errors = import_module("hypothesis"), import_module("hypothesis.errors")
    except ImportError:
        raise Unmeasurable(REMEDY) from None

    def ask(question: Question) -> None:
        examine(question)

    asking = hypothesis.given(_questions(hypothesis.strategies, largest))(ask)
    with _no_folder(import_module("hypothesis.configuration")), suppress(errors.Flaky):
        try:
            hypothesis.seed(RANDOM_SEED)(_quiet(hypothesis, examples)(asking))()
        except WrongProductError:
            return True
    return False


def _quiet(hypothesis: Any, examples: int) -> Any:  # noqa: ANN401 - a module that may not be there
    """Return settings under which Hypothesis keeps no database, prints nothing and is in no hurry."""
    return hypothesis.settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, print_blob=False,
        report_multiple_bugs=False, verbosity=hypothesis.Verbosity.quiet,
        suppress_health_check=list(hypothesis.HealthCheck), phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )  # fmt: skip


def _questions(st: Any, largest: int) -> Any:  # noqa: ANN401 - as above
    """Return the strategy of the questions; each part shrinks to its first."""
    edges = sizes(largest)

    def one_of(count: int) -> Any:  # noqa: ANN401 - as above
        return st.integers(FAR, FAR + count - 1)

    def question(drawn: tuple[int, ...]) -> Question:
        m, k, n, dtype, seed, layout = (number - FAR for number in drawn)
        bits = bool(layout & 1), bool(layout & 2), bool(layout & 4)
        return Question(edges[m], edges[k], edges[n], DTYPES[dtype], seed, *bits)

    edge = one_of(len(edges))
    return st.tuples(edge, edge, edge, one_of(len(DTYPES)), one_of(SEEDS), one_of(LAYOUTS)).map(question)


@contextmanager
def _no_folder(configuration: Any) -> Iterator[None]:  # noqa: ANN401 - as above
    """Give Hypothesis a folder that cannot be made: it keeps what it reads of the loaded modules in memory alone."""
    before = getattr(configuration, "__hypothesis_home_directory", None)
    configuration.set_hypothesis_home_dir(os.path.join(os.devnull, "hypothesis"))  # noqa: PTH118 - it takes a text
    try:
        yield
    finally:
        configuration.set_hypothesis_home_dir(before)


PROBE = Probe(
    "gpu.numerics", "gpu", "gpu", (ERRORS,), numerics,
    params={"examples": 100, "largest": 512}, load=True, driver=True, loads=("products",),
)  # fmt: skip
