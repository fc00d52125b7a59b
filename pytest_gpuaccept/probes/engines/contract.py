"""What the contract says of vLLM and llama.cpp: their probes, rooflines, and one against the other.

Owns what follows from the engines' values; vllm.py and llamacpp.py own how these are taken.
"""

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.metric import Inputs, Metric
from pytest_gpuaccept.probe import Probe
from pytest_gpuaccept.probes.engines.llamacpp import LLAMACPP_PARAMS, LLAMACPP_TAKEN, llamacpp
from pytest_gpuaccept.probes.engines.load import bandwidth_bound
from pytest_gpuaccept.probes.engines.vllm import VLLM_PARAMS, VLLM_TAKEN, vllm


def roofline(inputs: Inputs) -> Measurement:
    """Return decode speed as a share of what memory bandwidth allows; see load.bandwidth_bound."""
    engine = inputs.device
    bound = bandwidth_bound(inputs.profile, engine)
    if bound is None:
        message = f"the profile gives no bytes_per_token_gb and gpus_at_once under params.{engine}"
        raise Unmeasurable(message)
    speed = inputs.number("vllm.single.decode" if engine == "vllm" else "llamacpp.decode")
    note = f"{speed:g} of at most {bound:.1f} tok/s"
    return Measurement(f"{engine}.roofline", engine, speed / bound, "ratio", "calculated", note=note)


def cross(inputs: Inputs) -> Measurement:
    """Return the single-stream speed of vLLM over that of llama.cpp.

    vLLM with tensor parallelism reads with all GPUs at once, llama.cpp's layer split with one at
    a time: below 1 the parallelism is not working, whatever the kernels are called.
    """
    vllm, llama = inputs.number("vllm.single.decode", "vllm"), inputs.number("llamacpp.decode", "llamacpp")
    note = f"vLLM {vllm:g} tok/s, llama.cpp {llama:g} tok/s"
    return Measurement("engines.cross", inputs.device, vllm / llama, "ratio", "calculated", note=note)


VLLM = (
    *VLLM_TAKEN,
    Metric("vllm.batch.latency", "Latency stated for the batch", "ms", "vllm"),
    Metric("vllm.short.latency", "Latency stated for a short answer", "ms", "vllm"),
    Metric(
        "vllm.roofline", "Decode against the memory-bandwidth bound", "ratio", "vllm", rate="share", derive=roofline
    ),
)
"""The two stated latencies are quotients that somebody published; no load measures them."""
LLAMACPP = (
    *LLAMACPP_TAKEN,
    Metric(
        "llamacpp.roofline", "Decode against the memory-bandwidth bound", "ratio", "llamacpp",
        rate="share", derive=roofline,
    ),
    Metric("engines.cross", "vLLM against llama.cpp, single stream", "ratio", "host", derive=cross),
)  # fmt: skip

PROBES = (
    Probe("vllm", "engines", "vllm", VLLM, vllm, params=VLLM_PARAMS, load=True, driver=True, loads=("vllm",)),
    Probe(
        "llamacpp", "engines", "llamacpp", LLAMACPP, llamacpp,
        params=LLAMACPP_PARAMS, load=True, driver=True, loads=("llamacpp",),
    ),
)  # fmt: skip
