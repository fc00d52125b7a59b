"""An engine's records count as its speed only when every gate lets them through."""

import contextlib
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Catalogue, Site
from pytest_gpuaccept.probes import SHIPPED as ALL
from pytest_gpuaccept.probes.engines import contract as engines
from pytest_gpuaccept.probes.engines import llamacpp, vllm
from pytest_gpuaccept.probes.engines import load as engine_load
from pytest_gpuaccept.profile import Profile

FUZZ = settings(deadline=None, database=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
LAYERS = {"QKVParallelLinear": 80, "MergedColumnParallelLinear": 80, "RowParallelLinear": 160}
MARLIN, AWQ = ("AWQMarlinLinearMethod", "MarlinLinearKernel"), ("AWQLinearMethod", None)
FORCED = "Detected that the model can run with awq_marlin, however you specified quantization=awq explicitly, so ..."


def log(*lines):
    """Return log records."""
    return [{"kind": "log", "text": line} for line in lines]


def kernels(*ranks, tier="worker"):
    """Return the layer groups of ranks, each given as the (method, kernel) of all its layers."""
    return [
        {"kind": "kernel", "tier": tier, "rank": i, "layer": layer, "method": method, "kernel": name, "count": count}
        for i, (method, name) in enumerate(ranks)
        for layer, count in LAYERS.items()
    ]


def request(seconds=11.0, first=0.5, tokens=512, **other):
    """Return one answer to the fixed prompt."""
    return {
        "kind": "request", "requested": 512, "tokens": tokens, "seconds": seconds, "first_token_s": first,
        "cached": 0, "digest": "a1", "top_share": 0.06, **other,
    }  # fmt: skip


def batch(seconds=16.0, **other):
    """Return one batch of 32 requests."""
    return {
        "kind": "batch", "requests": 32, "requested": 8192, "tokens": 8192, "seconds": seconds, "failures": 0,
        "cached": 0, **other,
    }  # fmt: skip


def stage(kind, tokens, seconds, **other):
    """Return one timed stage of llama.cpp."""
    return {"kind": kind, "requested": tokens, "tokens": tokens, "seconds": seconds, **other}


def vllm_records():
    """Return the records of a healthy vLLM on four ranks, by group."""
    return {
        "engine": [{"kind": "engine", "version": "0.19.0"}],
        "log": log("Using MarlinLinearKernel for AWQMarlinLinearMethod"),
        "load": [{"kind": "load", "seconds": 95.0}],
        "graphs": [{"kind": "graphs", "eager": False, "captured": 67}],
        "kernel": [
            *kernels(*[MARLIN] * 4),
            *[
                {"kind": "kernel", "tier": "worker", "rank": i, "layer": "ParallelLMHead",
                 "method": "UnquantizedEmbeddingMethod", "kernel": None, "count": 1} for i in range(4)
            ],
        ],
        "request": [request(seconds) for seconds in (11.0, 11.2, 11.1, 11.3, 10.9)],
        "batch": [batch(seconds) for seconds in (16.0, 16.1, 16.2, 16.3, 16.4)],
        "failed": [],
    }  # fmt: skip


def buffers(*gpus, cpu=560.0, splits=5):
    """Return llama.cpp's log of where the weights lie, in MiB."""
    held = [f"load_tensors:        CUDA{i} model buffer size = {size:8.2f} MiB" for i, size in enumerate(gpus)]
    return log(f"load_tensors:   CPU_Mapped model buffer size = {cpu:8.2f} MiB", *held, f"graph splits = {splits}")


def llamacpp_records():
    """Return the records of a healthy llama.cpp on four GPUs, by group."""
    return {
        "engine": [{"kind": "engine", "version": "0.3.20"}],
        "build": [{"kind": "build", "supports_gpu_offload": True}],
        "log": buffers(10000.0, 10000.0, 10000.0, 10300.0),
        "load": [{"kind": "load", "seconds": 10.8}],
        "prompt": [stage("prompt", 1302, seconds) for seconds in (0.83, 0.84, 0.82, 0.83, 0.83)],
        "decode": [stage("decode", 256, seconds) for seconds in (12.6, 12.7, 12.5, 12.6, 12.6)],
        "request": [request(13.5, 0.9, 256, requested=256)] * 5,
        "failed": [],
    }


PROBES = {
    "vllm": (vllm.VLLM_PARAMS, vllm.VLLM_TAKEN, vllm_records),
    "llamacpp": (llamacpp.LLAMACPP_PARAMS, llamacpp.LLAMACPP_TAKEN, llamacpp_records),
}
SPEEDS = {
    "vllm": ("vllm.single.decode", "vllm.single.e2e", "vllm.batch.output"),
    "llamacpp": ("llamacpp.prompt", "llamacpp.decode", "llamacpp.single"),
}


class World:
    """A world whose only load has ended with the given records, or died."""

    def __init__(self, records):
        self.records, self.started = records, []

    @contextlib.contextmanager
    def start(self, script, params):
        """Note what was started with what."""
        self.started.append((script, params))
        yield self

    def finish(self, *, timeout):
        """Return the records, or say how the load died."""
        self.timeout = timeout
        if isinstance(self.records, Unmeasurable):
            raise self.records
        return self.records


def site(engine, records=(), **params):
    """Return the site of an engine on a machine with four GPUs."""
    profile = Profile(name="box", title="Box", gpus=4, devices={engine: (engine,)}, lines={})
    return Site(World(records), profile, engine, {**PROBES[engine][0], **params}, lambda name, text: name)


def reduced(engine, params=None, /, **groups):
    """Return the outcomes by metric of a healthy engine's records, with some groups replaced."""
    _, taken, healthy = PROBES[engine]
    records = [record for group in {**healthy(), **groups}.values() for record in group]
    return {o.metric: o for o in engine_load.reduce(site(engine, **params or {}), records, taken)}


def test_a_healthy_vllm_gives_medians_with_their_spread():
    """Decode leaves the first token out, the whole request does not, a batch is output over wall time."""
    found = reduced("vllm")
    assert {name: round(m.value, 3) if isinstance(m.value, float) else m.value for name, m in found.items()} == {
        "vllm.version": "0.19.0",
        "vllm.kernel": "marlin",
        "vllm.load": 95.0,
        "vllm.single.decode": round(511 / 10.6, 3),
        "vllm.single.e2e": 11.1,
        "vllm.batch.output": round(8192 / 16.2, 3),
    }
    e2e = found["vllm.single.e2e"]
    assert (e2e.samples, round(e2e.spread, 3), e2e.note) == (5, 0.158, "")
    assert e2e.conditions == {
        "model": "casperhansen/llama-3.3-70b-instruct-awq", "raw": "vllm records", "tokens": 512,
        "prompt_tokens": 32, "first_token_s": 0.5,
    }  # fmt: skip
    note = (
        "told by each worker; marlin (AWQMarlinLinearMethod, MarlinLinearKernel): 1280 of 1280 quantised layers, on 4"
    )
    assert found["vllm.kernel"].note.startswith(note)


def test_a_healthy_llamacpp_gives_its_speeds_with_the_proof_of_offload():
    """Every speed carries where the weights lay when it was taken."""
    found = reduced("llamacpp")
    assert {name: round(found[name].value, 2) for name in SPEEDS["llamacpp"]} == {
        "llamacpp.prompt": round(1302 / 0.83, 2),
        "llamacpp.decode": round(256 / 12.6, 2),
        "llamacpp.single": round(256 / 13.5, 2),
    }
    for name in SPEEDS["llamacpp"]:
        under = found[name].conditions
        assert (under["weights_on_gpus"], under["gpus"], under["splits"]) == (0.9863, 4, 5)


@pytest.mark.parametrize(
    ("method", "kernel", "family"),
    [
        (*AWQ, "awq"),
        ("AutoAWQLinearMethod", None, "awq"),
        (*MARLIN, "marlin"),
        ("AutoAWQMarlinLinearMethod", "MarlinLinearKernel", "marlin"),
        ("CompressedTensorsWNA16", "MarlinLinearKernel", "marlin"),
        ("AWQMarlinLinearMethod", "MacheteLinearKernel", "machete"),
        ("AWQMarlinLinearMethod", "TritonW4A16LinearKernel", "triton_w4a16"),
        ("CPUAWQLinearMethod", None, "cpu_wna16"),
        ("AutoAWQMarlinLinearMethod", "CPUWNA16LinearKernel", "cpu_wna16"),
        ("AWQMarlinLinearMethod", None, "unknown:AWQMarlinLinearMethod/none"),
        ("AWQLinearMethod", "MarlinLinearKernel", "unknown:AWQLinearMethod/MarlinLinearKernel"),
        ("FooMethod", "BarKernel", "unknown:FooMethod/BarKernel"),
    ],
)
def test_a_family_needs_the_method_and_the_kernel(method, kernel, family):
    """A class name alone proves nothing, and a pair that is in no table is not guessed."""
    assert vllm.family(method, kernel) == family


@pytest.mark.parametrize(
    ("records", "lines", "value", "notes"),
    [
        (kernels(*[AWQ] * 4), [], "awq", ["1280 of 1280 quantised layers, on 4 of 4 ranks", "group size 32, 64"]),
        (kernels(*[AWQ] * 4), [FORCED], "awq", ['quantization="awq" was passed, which forces the slow kernel']),
        (
            kernels(MARLIN, MARLIN, MARLIN, AWQ), [], "awq+marlin",
            ["awq (AWQLinearMethod): 320 of 1280 quantised layers, on 1 of 4 ranks", "960 of 1280"],
        ),
        (
            kernels(*[("AWQMarlinLinearMethod", "TritonW4A16LinearKernel")] * 4), [], "triton_w4a16",
            ["unset VLLM_DISABLED_KERNELS"],
        ),
        (
            kernels(*[("FooMethod", "BarKernel")] * 4), [], "unknown:FooMethod/BarKernel",
            ["set the line's equals to 'unknown:FooMethod/BarKernel'"],
        ),
        (kernels(*[("UnquantizedLinearMethod", None)] * 4), [], "unquantized", ["no quantised layer"]),
        (kernels(*[("CPUAWQLinearMethod", None)] * 4), [], "cpu_wna16", ["CPU build"]),
    ],
)  # fmt: skip
def test_a_kernel_that_is_not_the_fast_one_is_named_with_the_remedy(records, lines, value, notes):
    """All families stand in the value, counts and what to do in the note."""
    found = reduced("vllm", kernel=records, log=log(*lines))["vllm.kernel"]
    assert found.value == value
    for note in notes:
        assert note in found.note


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([], "the log says 'Using MarlinLinearKernel for AWQMarlinLinearMethod', which is what one rank selected"),
        (kernels(MARLIN, tier="log"), "no proof: inspect the model in every worker"),
        (kernels(*[MARLIN] * 3), "the kernels of ranks [0, 1, 2] were told, and there are 4 ranks"),
        (kernels(*[MARLIN] * 5), "[0, 1, 2, 3, 4] were told"),
        (kernels(*[MARLIN] * 4)[:-1], "the ranks do not hold the same number of layers: {0: 320, 1: 320, 2: 320, 3"),
    ],
)
def test_a_kernel_that_not_every_worker_tells_is_not_known(records, reason):
    """The log, a silent rank and ranks that contradict one another prove nothing, and speeds still count."""
    found = reduced("vllm", kernel=records)
    assert reason in found["vllm.kernel"].reason
    assert all(isinstance(found[name], Measurement) for name in SPEEDS["vllm"])


SINGLE, BATCH = SPEEDS["vllm"][:2], SPEEDS["vllm"][2:]
FAILED = [{"kind": "failed", "of": "request", "reason": "EngineDeadError"}]


@pytest.mark.parametrize(
    ("engine", "groups", "lines", "reason"),
    [
        ("vllm", {"request": [request(tokens=110)] * 5}, SINGLE, "asked for 512 tokens, got 110 (request)"),
        ("vllm", {"request": [request(requested=110, tokens=110)] * 5}, SINGLE, "asked for 512 tokens, got 110"),
        ("vllm", {"request": [request(cached=16)] * 5}, SINGLE, "16 prompt tokens came from the prefix cache"),
        ("vllm", {"request": [request()] * 4}, SINGLE, "4 of 5 repetitions were reported (request)"),
        ("vllm", {"request": [request()] * 4, "failed": FAILED}, SINGLE, "1 of 5 repetitions failed (request): Engine"),
        ("vllm", {"request": [request(11.0, 11.0)] * 5}, SINGLE, "a first token came no earlier than the last"),
        ("vllm", {"request": []}, SPEEDS["vllm"], "no answer to the fixed prompt was reported"),
        ("vllm", {"request": [request(top_share=0.51)] * 5}, SPEEDS["vllm"], "degenerate output: one token is 51%"),
        (
            "vllm", {"request": [request(), *[request(digest="b2")] * 4]}, SPEEDS["vllm"],
            "2 different greedy answers to one prompt in 5 repetitions",
        ),
        ("vllm", {"batch": [batch(failures=1, tokens=7936)] * 5}, BATCH, "5 of 160 requests failed in 5 batches"),
        ("vllm", {"batch": [batch(failures=1), *[batch()] * 4]}, BATCH, "1 of 160 requests failed"),
        ("vllm", {"batch": [batch(tokens=8191)] * 5}, BATCH, "asked for 8192 tokens, got 8191 (batch)"),
        ("vllm", {"batch": [batch(requests=16)] * 5}, BATCH, "another number of requests than 32"),
        ("vllm", {"batch": [batch(cached=512)] * 5}, BATCH, "512 prompt tokens came from the prefix cache"),
        ("vllm", {"batch": [batch()] * 4}, BATCH, "4 of 5 repetitions were reported (batch)"),
        ("vllm", {"batch": []}, BATCH, "0 of 5 repetitions were reported (batch)"),
        (
            "llamacpp", {"build": [{"kind": "build", "supports_gpu_offload": False}]}, SPEEDS["llamacpp"],
            'CPU-only build and ignores n_gpu_layers: install it again with CMAKE_ARGS="-DGGML_CUDA=on"',
        ),
        ("llamacpp", {"build": []}, SPEEDS["llamacpp"], "llamacpp wrote 0 records of its build"),
        ("llamacpp", {"log": []}, SPEEDS["llamacpp"], "names no model buffers or no graph splits"),
        (
            "llamacpp", {"log": log("load_tensors: offloaded 81/81 layers to GPU")}, SPEEDS["llamacpp"],
            "names no model buffers",
        ),
        (
            "llamacpp", {"log": buffers(*[7500.0] * 4, cpu=9626.0)}, SPEEDS["llamacpp"],
            "9.4 of 38.7 GiB of weights lie on the CPU (75.7% on GPUs, at least 97% needed)",
        ),
        ("llamacpp", {"log": buffers(*[13000.0] * 3)}, SPEEDS["llamacpp"], "3 of 4 GPUs hold weights (CUDA0 12.7,"),
        ("llamacpp", {"log": buffers(13000.0, 13000.0, 13000.0, 90.0)}, SPEEDS["llamacpp"], "unevenly (CUDA0 12.7,"),
        ("llamacpp", {"log": buffers(*[10000.0] * 4, splits=164)}, SPEEDS["llamacpp"], "cut into 164 pieces, about 5"),
        ("llamacpp", {"prompt": [stage("prompt", 512, 0.3)] * 5}, ["llamacpp.prompt"], "asked for 1302 tokens"),
        (
            "llamacpp", {"failed": [{"kind": "failed", "of": "decode", "reason": "-3"}]}, ["llamacpp.decode"],
            "1 of 6 repetitions failed (decode): -3",
        ),
        ("llamacpp", {"decode": []}, ["llamacpp.decode"], "0 of 5 repetitions were reported (decode)"),
    ],
)  # fmt: skip
def test_what_is_no_evidence_of_a_speed_costs_the_lines_that_rest_on_it(engine, groups, lines, reason):
    """The reason stands in place of exactly these lines, every other one keeps its value."""
    found = reduced(engine, **groups)
    assert {name for name, o in found.items() if isinstance(o, NotMeasured)} == set(lines)
    for name in lines:
        assert reason in found[name].reason


def test_an_order_for_the_cpus_is_measured_where_they_compute_alone():
    """Then no GPU may hold weights, and no GPU's memory bounds the rate."""
    alone = reduced("llamacpp", {"gpu": False}, log=buffers(cpu=40_000.0, splits=1))
    assert alone["llamacpp.decode"].conditions["weights_on_gpus"] == 0
    helped = reduced("llamacpp", {"gpu": False})
    assert "hold weights, and the CPUs were ordered to compute alone" in helped["llamacpp.decode"].reason
    card = load_profile("4x4090", Catalogue(ALL), SHIPPED)
    ordered = card.model_copy(update={"params": {**card.params, "llamacpp": {**card.params["llamacpp"], "gpu": False}}})
    assert engine_load.bandwidth_bound(card, "llamacpp") > 0
    assert engine_load.bandwidth_bound(ordered, "llamacpp") is None


def test_graph_splits_are_read_in_the_words_of_newer_builds_too():
    """0.3.36 writes the splits behind the nodes, and a host buffer of CUDA's is no GPU's."""
    lines = ["CUDA0 model buffer size = 900.0 MiB", "CUDA_Host model buffer size = 100.0 MiB"]
    found = llamacpp.placement([*lines, "llama_context: graph: nodes = 2647, splits = 2"])
    assert (dict(found.gpus), found.cpu, found.splits, found.share) == ({"CUDA0": 900.0}, 100.0, 2, 0.9)


@pytest.mark.parametrize(
    ("graphs", "note"),
    [
        ({"eager": True, "captured": 0}, "remove enforce_eager=True"),
        ({"eager": False, "captured": 0}, "lower gpu_memory_utilization"),
    ],
)
def test_a_decode_without_graphs_says_so(graphs, note):
    """The speed is what it is; its note says what it owes to the missing CUDA graphs."""
    found = reduced("vllm", graphs=[{"kind": "graphs", **graphs}])
    for name in ("vllm.single.decode", "vllm.batch.output"):
        assert note in found[name].note


def test_two_loads_in_one_are_none():
    """A record that must be the only one of its kind says nothing when there are two."""
    versions = [{"kind": "engine", "version": version} for version in ("0.19.0", "0.33.0")]
    assert reduced("vllm", engine=versions)["vllm.version"].reason == "vllm wrote 2 records of its engine"


def test_one_token_has_no_decode_speed():
    """An answer of one token is a first token, and no speed of 0."""
    answers = [request(tokens=1, requested=1)] * 5
    assert "one token" in reduced("vllm", {"tokens": 1}, request=answers)["vllm.single.decode"].reason


def test_a_profile_may_ask_for_more_repetitions_and_never_for_fewer():
    """Five repetitions suffice unless more were ordered; to order one does not make one suffice."""
    for asked, reason in ((7, "5 of 7 repetitions"), (1, None)):
        found = reduced("vllm", {"repetitions": asked})["vllm.single.e2e"]
        assert found.samples == 5 if reason is None else reason in found.reason


@pytest.mark.parametrize("engine", PROBES)
def test_the_probe_starts_its_script_with_its_parameters(engine):
    """vLLM gets one rank per GPU that reads at once; the load must end within the timeout."""
    _, _, healthy = PROBES[engine]
    place = site(engine, [record for group in healthy().values() for record in group], timeout_s=120)
    probe = next(probe for probe in engines.PROBES if probe.name == engine)
    found = {o.metric for o in probe.measure(place)}
    assert (probe.loads, found) == ((engine,), {metric.id for metric in PROBES[engine][1]})
    [(script, params)] = place.world.started
    assert (script, params.get("tensor_parallel_size")) == (engine, 4 if engine == "vllm" else None)
    assert (place.world.timeout, params["timeout_s"]) == (120.0, 120)


@pytest.mark.parametrize("engine", PROBES)
def test_an_engine_that_dies_measures_nothing(engine):
    """How it died is the reason of every line; nothing of a load that died is kept."""
    place = site(engine, Unmeasurable("it was ended by signal 11"))
    with pytest.raises(Unmeasurable, match="signal 11"):
        list(getattr(engines, engine)(place))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"kind": "speed", "value": 1},
        {"kind": "load"},
        {"kind": "load", "seconds": 0.0},
        {"kind": "load", "seconds": math.nan},
        {"kind": "load", "seconds": "95"},
        {"kind": "load", "seconds": 95.0, "cold": True},
        {"kind": "request", "requested": 512},
        request(tokens=True),
        request(top_share=1.5),
        "text",
        None,
    ],
)
def test_a_record_of_no_known_shape_makes_the_whole_load_unreadable(record):
    """What is not understood is quoted, and no line is judged without it."""
    with pytest.raises(Unmeasurable, match="vllm wrote a record that cannot be read"):
        reduced("vllm", failed=[record])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
EVERY = [record for _, _, healthy in PROBES.values() for group in healthy().values() for record in group]
EVERY += [{"kind": "failed", "of": "request", "reason": "x"}]
KEYS = sorted({key for record in EVERY for key in record})
NEAR = st.sampled_from(["", "CUDA0 model buffer size = 1 MiB", "CUDA٣ model buffer size = 0 MiB splits = 0", "Using"])
ODD = st.sampled_from([0, 1, 2, 512, 1e-6, 1e6, 1e308, 5e-324, -1, 0.5, "", "a", None, True])
JUNK = st.dictionaries(st.just("kind") | st.sampled_from(KEYS), JSON | ODD | NEAR)
ALTERED = st.builds(
    lambda record, changes: {**record, **{k: v for k, v in changes.items() if k in record and k != "kind"}},
    st.sampled_from(EVERY),
    st.dictionaries(st.sampled_from(KEYS), ODD | NEAR | JSON, max_size=2),
)


@FUZZ
@given(engine=st.sampled_from(sorted(PROBES)), records=st.lists(JSON | JUNK | ALTERED, max_size=4))
def test_any_json_is_an_outcome_or_a_reason(engine, records):
    """Records of any shape yield an outcome per metric or are refused, and no speed is ever 0."""
    _, taken, healthy = PROBES[engine]
    whole = [record for group in healthy().values() for record in group]
    for lines in (records, [*whole, *records], [*records, *whole[len(records) :]]):
        with contextlib.suppress(Unmeasurable):
            found = list(engine_load.reduce(site(engine), lines, taken))
            assert [o.metric for o in found] == [metric.id for metric in taken]
            for o in found:
                assert isinstance(o, NotMeasured) or isinstance(o.value, str) or 0 < o.value < math.inf
                assert json.dumps(getattr(o, "reason", ""))


@FUZZ
@given(lines=st.lists(NEAR | st.text() | st.from_regex(llamacpp.BUFFER) | st.from_regex(llamacpp.SPLITS), max_size=6))
def test_any_log_is_a_placement_or_a_reason(lines):
    """Whatever llama.cpp logs, weights are counted or nothing is said of them."""
    with contextlib.suppress(Unmeasurable):
        assert 0 <= llamacpp.placement(lines).share <= 1
