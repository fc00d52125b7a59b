"""llama.cpp as a load: what it times, in which order, and what it never hides; the model is a stand-in."""

import pytest

from pytest_gpuaccept.children.llamacpp import llamacpp
from tests.stand_ins import Sleeper

TIMES = {"prompt_tokens": 6, "tokens": 4, "repetitions": 2, "warmups": 1}


class Stand:
    """A model that takes 1 s a call and 0.5 s a token, and answers the same each time."""

    version = "0.3.36"

    def __init__(self, clock, *, gpu=True, breaks=None):
        self.clock, self.supports_gpu_offload, self.calls, self.breaks, self.keeps = clock, gpu, [], breaks, 0
        self.lines = ["CUDA0 model buffer size = 1.00 MiB"]

    def load(self):
        """Take 10 s."""
        self.clock.sleep(10)

    def logged(self):
        """Return what was said since this was last asked."""
        said, self.lines = self.lines, []
        return said

    def vocabulary(self):
        """Know few tokens."""
        return 100

    def forget(self):
        """Note that nothing is kept."""
        self.calls.append("forget")

    def kept(self):
        """Keep what it was told to."""
        return self.keeps

    def evaluate(self, tokens):
        """Take time, and note how many tokens came."""
        self.calls.append(len(tokens))
        self.clock.sleep(1 + 0.5 * len(tokens))

    def answer(self, prompt, count):
        """Give tokens, and break where it is told to."""
        for n in range(count):
            if n == self.breaks:
                message = "llama_decode returned -3"
                raise RuntimeError(message)
            self.clock.sleep(3 if n == 0 else 1)
            yield 7 + n % 2


@pytest.fixture
def clock():
    """Return a clock that only sleeping moves."""
    return Sleeper()


def records(model, **more):
    """Return what the load writes."""
    return list(llamacpp(model, model.clock, **{**TIMES, "on_cpu": False, **more}))


def of(found, kind):
    """Return the records of a kind."""
    return [record for record in found if record["kind"] == kind]


def test_a_prompt_is_one_call_and_decoding_one_call_a_token(clock):
    """As llama-bench does it, each from an empty start, the first round not counted."""
    model = Stand(clock)
    found = records(model)
    assert model.calls[:6] == ["forget", 6, "forget", 1, 1, 1]
    assert [record["seconds"] for record in of(found, "prompt")] == [4.0, 4.0]
    assert [record["seconds"] for record in of(found, "decode")] == [6.0, 6.0]
    assert of(found, "load") == [{"kind": "load", "seconds": 10.0}]


def test_an_answer_tells_its_first_and_its_last_token_and_what_it_was(clock):
    """The same tokens have the same digest; the share of the most frequent one tells text from none."""
    first, second = of(records(Stand(clock)), "request")
    assert (first["first_token_s"], first["seconds"], first["tokens"], first["top_share"]) == (3.0, 6.0, 4, 0.5)
    assert first["digest"] == second["digest"]


def test_a_build_for_cpus_is_not_timed_unless_ordered(clock):
    """It would take hours on a large model, and no figure of it is the GPUs'."""
    model = Stand(clock, gpu=False)
    assert [record["kind"] for record in records(model)] == ["engine", "build"]
    assert len(of(records(model, on_cpu=True), "decode")) == 2


def test_what_was_kept_before_a_request_is_told(clock):
    """A prompt that was not computed has no time to its first token; the probe refuses it."""
    model = Stand(clock)
    model.keeps = 5
    assert {record["cached"] for record in of(records(model), "request")} == {5}


def test_a_request_that_breaks_is_a_failure_and_no_short_answer(clock):
    """Nothing is averaged over it."""
    found = records(Stand(clock, breaks=2))
    assert not of(found, "request")
    assert {record["reason"] for record in of(found, "failed")} == {"RuntimeError: llama_decode returned -3"}
