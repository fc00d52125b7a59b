"""A simulated engine is as fast as its machine lets it be, and every fault of it reaches the lines that it must."""

import contextlib
from itertools import islice

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.engines import contract as probes
from pytest_gpuaccept.profile import Profile
from pytest_gpuaccept.sim import engines
from pytest_gpuaccept.sim.machine import Machine, Script, ScriptClock
from pytest_gpuaccept.sim.parts import Cpu, Gpu, Host, LlamaCpp, Vllm

RUN = {"vllm": engines.vllm, "llamacpp": engines.llamacpp}
PARAMS = {"vllm": {**probes.VLLM_PARAMS, "tensor_parallel_size": 4}, "llamacpp": probes.LLAMACPP_PARAMS}
SINGLE = ("vllm.single.decode", "vllm.single.e2e")
VLLM = (*SINGLE, "vllm.batch.output")
LLAMACPP = ("llamacpp.prompt", "llamacpp.decode", "llamacpp.single")


def machine(seed="a", **parts):
    """Return a machine with four GPUs of 1008 GB/s."""
    parts = {"vllm": Vllm(), "llamacpp": LlamaCpp(), "gpus": [Gpu() for _ in range(4)], **parts}
    made = Machine(seed=seed, cpu=Cpu(), host=Host(), drives={}, nics={}, **parts)
    made.bandwidth_gbs = 1008.0
    return made


def altered(engine, **parameters):
    """Return a machine whose engine has other parameters."""
    return machine(**{engine: {"vllm": Vllm, "llamacpp": LlamaCpp}[engine](**parameters)})


def records(made, engine):
    """Return all records of an engine's script, without waiting for the machine."""
    return list(RUN[engine](made, PARAMS[engine], ScriptClock(made)))


class World:
    """A world whose loads are those of a simulated machine."""

    def __init__(self, made):
        self.machine = made

    @contextlib.contextmanager
    def start(self, script, params):
        """Prepare a load."""
        self.records = RUN[script](self.machine, params, ScriptClock(self.machine))
        yield self

    def finish(self, *, timeout):
        """Play it to its end."""
        return list(self.records)


def measured(made, engine):
    """Return the outcomes of an engine's probe on a machine, by metric."""
    profile = Profile(name="box", title="Box", gpus=4, devices={engine: (engine,)}, lines={})
    probe = next(probe for probe in probes.PROBES if probe.name == engine)
    site = Site(World(made), profile, engine, probe.params, lambda name, text: name, "simulated")
    return {o.metric: o for o in probe.measure(site)}


def near(value, tolerance=0.03):
    """Return what a value within the noise compares equal to."""
    return pytest.approx(value, rel=tolerance)


def test_a_healthy_vllm_reaches_its_share_of_the_bound():
    """Four GPUs read 37.7 GB per token at 1008 GB/s each, at 0.43 of that; a batch yields 13 times as much."""
    found = measured(machine(), "vllm")
    single = 0.43 * 4 * 1008 / 37.7
    assert {name: o.value for name, o in found.items()} == {
        "vllm.version": "0.19.0",
        "vllm.kernel": "marlin",
        "vllm.load": 95.0,
        "vllm.single.decode": near(single),
        "vllm.single.e2e": near(0.15 + 511 / single),
        "vllm.batch.output": near(13 * single),
    }
    assert 0 < found["vllm.single.decode"].spread < 0.03 * single
    assert {o.provenance for o in found.values()} == {"simulated"}


def test_a_healthy_llamacpp_reads_with_one_gpu_at_a_time():
    """41.9 GB per token at 1008 GB/s, at 0.84 of that; a whole request includes its prompt."""
    found = measured(machine(), "llamacpp")
    decode = 0.84 * 1008 / 41.9
    assert {name: o.value for name, o in found.items()} == {
        "llamacpp.version": "0.3.20",
        "llamacpp.load": 10.8,
        "llamacpp.prompt": near(1568),
        "llamacpp.decode": near(decode),
        "llamacpp.single": near(256 / (1302 / 1568 + 255 / decode)),
    }


def test_the_slow_kernel_is_the_one_of_the_published_machine():
    """Forced AWQ decodes at 8 tok/s, 179 for a batch, takes 64 s for 512 tokens, and names the argument."""
    found = measured(altered("vllm", kernel="awq"), "vllm")
    assert {name: o.value for name, o in found.items()} == {
        "vllm.version": "0.19.0",
        "vllm.kernel": "awq",
        "vllm.load": 95.0,
        "vllm.single.decode": near(8.0),
        "vllm.single.e2e": near(64.3),
        "vllm.batch.output": near(179.3),
    }
    assert 'quantization="awq" was passed, which forces the slow kernel' in found["vllm.kernel"].note


def test_one_rank_on_the_slow_kernel_slows_all():
    """Every token waits for the slowest rank, and the kernel is told with the ranks that run it."""
    found = measured(altered("vllm", wrong_rank=2), "vllm")
    assert found["vllm.kernel"].value == "awq+marlin"
    assert "awq (AWQLinearMethod): 320 of 1280 quantised layers, on 1 of 4 ranks" in found["vllm.kernel"].note
    assert found["vllm.single.decode"].value == near(8.0)


def test_layers_that_fell_back_cost_their_share():
    """A tenth of the layers on the slow kernel takes a third of the speed, and all ranks tell."""
    found = measured(altered("vllm", fallback=0.1), "vllm")
    assert found["vllm.kernel"].value == "awq+marlin"
    assert "128 of 1280 quantised layers, on 4 of 4 ranks" in found["vllm.kernel"].note
    assert found["vllm.single.decode"].value == near(46.0 / (0.9 + 0.1 * 0.43 / 0.075))


def test_another_kernel_has_its_class_as_its_name():
    """A kernel that is no known family is told by its class, as a worker would tell it."""
    found = measured(altered("vllm", kernel="TritonW4A16LinearKernel"), "vllm")["vllm.kernel"]
    assert (found.value, "unset VLLM_DISABLED_KERNELS" in found.note) == ("triton_w4a16", True)


def test_eager_mode_is_slower_and_says_why():
    """Without CUDA graphs decoding is slower; the note of each speed says what to remove."""
    found = measured(altered("vllm", eager=True), "vllm")
    assert found["vllm.single.decode"].value == near(0.6 * 46.0)
    assert all("remove enforce_eager=True" in found[name].note for name in ("vllm.single.decode", "vllm.batch.output"))


def test_a_slow_first_token_is_no_slow_decode():
    """The first token's delay is in the whole request, in the conditions, and not in the decode speed."""
    found = measured(altered("vllm", first_token_s=3.0), "vllm")
    assert found["vllm.single.decode"].value == near(46.0)
    assert found["vllm.single.e2e"].value == near(3.0 + 511 / 46.0)
    assert found["vllm.single.e2e"].conditions["first_token_s"] == 3.0


def test_a_narrow_link_slows_vllm_alone():
    """Tensor parallelism waits for the narrowest link, a layer split hardly uses it."""
    slow = machine()
    slow.gpus[2].p.pcie_width = 8
    assert measured(slow, "vllm")["vllm.single.decode"].value == near(23.0)
    assert measured(slow, "llamacpp")["llamacpp.decode"].value == near(20.2)


@pytest.mark.parametrize(
    ("engine", "fault", "lines", "reason"),
    [
        ("vllm", {"log_only": True}, ["vllm.kernel"], "Using MarlinLinearKernel for AWQMarlinLinearMethod"),
        ("vllm", {"prefix_cache": True}, SINGLE, "16 prompt tokens came from the prefix cache"),
        ("vllm", {"eos_after": 110}, VLLM, "asked for"),
        ("vllm", {"failing": 0.25}, VLLM, "failed"),
        ("vllm", {"failing": 0.02}, ["vllm.batch.output"], "5 of 160 requests failed in 5 batches"),
        ("vllm", {"degenerate": True}, VLLM, "degenerate output: one token is 97% of an answer"),
        ("vllm", {"unsteady": True}, VLLM, "5 different greedy answers to one prompt in 5 repetitions"),
        ("llamacpp", {"gpu_build": False}, LLAMACPP, "CPU-only build and ignores n_gpu_layers"),
        ("llamacpp", {"offloaded": 0.75}, LLAMACPP, "10.3 of 39.6 GiB of weights lie on the CPU (73.9% on GPUs"),
        ("llamacpp", {"extra_splits": 160}, LLAMACPP, "cut into 165 pieces, about 5 are needed"),
        ("llamacpp", {"degenerate": True}, LLAMACPP, "degenerate output"),
        ("llamacpp", {"unsteady": True}, LLAMACPP, "5 different greedy answers"),
        ("llamacpp", {"eos_after": 110}, ["llamacpp.single"], "asked for 256 tokens, got 110 (request)"),
        ("llamacpp", {"failing": 0.2}, ["llamacpp.single"], "1 of 5 repetitions failed (request): llama_decode"),
    ],
)
def test_a_fault_costs_exactly_the_lines_that_rest_on_it(engine, fault, lines, reason):
    """The reason stands in place of these lines, every other one keeps its value."""
    found = measured(altered(engine, **fault), engine)
    assert {name for name, o in found.items() if isinstance(o, NotMeasured)} == set(lines)
    for name in lines:
        assert reason in found[name].reason


@pytest.mark.parametrize(
    ("engine", "fault", "reason"),
    [
        ("vllm", {"starts": False}, "vllm ended with status 1: RuntimeError: Engine core initialization failed"),
        ("vllm", {"crashes_after": 3}, r"ended by signal 11 \(SIGSEGV\) after 3 answers"),
        ("vllm", {"crashes_after": 6}, "after 6 answers"),
        ("llamacpp", {"starts": False}, "Failed to load model from file: Llama-3.3"),
        ("llamacpp", {"crashes_after": 1}, "after 1 answers"),
    ],
)
def test_an_engine_that_dies_takes_every_line_along(engine, fault, reason):
    """How it died is the reason, and it loads no GPU any more."""
    made = altered(engine, **fault)
    with pytest.raises(Unmeasurable, match=reason):
        measured(made, engine)
    assert ([gpu.load for gpu in made.gpus], made.running) == ([0.0] * 4, [])


@pytest.mark.parametrize("fault", ["present", "lost"])
def test_a_missing_gpu_stops_vllm_and_is_seen_in_llamacpp(fault):
    """vLLM needs a GPU for each rank; llama.cpp spreads its layers over the others."""
    made = machine()
    setattr(made.gpus[3].p, fault, fault == "lost")
    with pytest.raises(Unmeasurable, match=r"World size \(4\) is larger than the number of available GPUs \(3\)"):
        measured(made, "vllm")
    assert "3 of 4 GPUs hold weights" in measured(made, "llamacpp")["llamacpp.decode"].reason


@pytest.mark.parametrize("engine", RUN)
def test_a_gpu_that_falls_off_the_bus_ends_the_engine(engine):
    """An engine does not go on without a GPU that it uses."""
    made = machine()
    script = RUN[engine](made, PARAMS[engine], ScriptClock(made))
    next(record for record in script if record["kind"] == "request")
    made.gpus[1].p.lost = True
    with pytest.raises(Unmeasurable, match="CUDA error"):
        list(script)


def test_without_a_card_there_is_no_speed():
    """A machine whose memory bandwidth nobody states is not simulated as standing still."""
    for engine in RUN:
        made = machine()
        made.bandwidth_gbs = 0.0
        with pytest.raises(Unmeasurable, match="name a card in the profile"):
            measured(made, engine)


def test_an_engine_takes_virtual_time_and_loads_its_gpus():
    """A script ends when its work is done in the machine's time; until then its GPUs draw power."""
    made = machine()
    params = {**PARAMS["vllm"], "tokens": 64, "batch_tokens": 16}
    script = Script("vllm", lambda clock: engines.vllm(made, params, clock), made)
    made.scripts.append(script)
    made.advance(50.0)
    assert (script.ended, [gpu.load for gpu in made.gpus], made.running) == (False, [0.6] * 4, ["vllm"])
    assert all(gpu.power > 200 for gpu in made.gpus)
    made.advance(63.0)
    expected = 95 + 7 * (0.15 + 64 / 46) + 5 * 32 * 16 / 598
    assert (script.ended, script.clock.resume_at) == (True, near(expected))
    assert [gpu.load for gpu in made.gpus] == [0.0] * 4


def test_a_hanging_engine_logs_and_never_ends():
    """It keeps its GPUs busy and writes the line by which a waiting vLLM is known, minute by minute."""
    made = altered("vllm", hangs=True)
    clock = ScriptClock(made)
    script = engines.vllm(made, PARAMS["vllm"], clock)
    written = list(islice(script, 200))
    assert written[-1]["text"].startswith("No available shared memory broadcast block found in 60 seconds")
    assert clock.resume_at > 150 * 60
    assert not any(record["kind"] == "request" for record in written)
    assert made.gpus[0].load == 0.6
    script.close()
    assert made.gpus[0].load == 0.0


def test_a_seed_repeats_a_run_and_another_one_does_not():
    """The noise of a run is the seed's alone."""
    for engine in RUN:
        assert records(machine("a"), engine) == records(machine("a"), engine)
        assert records(machine("a"), engine) != records(machine("b"), engine)
