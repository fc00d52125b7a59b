"""What the contract says of vLLM and llama.cpp: metrics, rooflines, and one against the other.

Neither probe has a live method yet: they are judged from recorded evidence.
"""

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.metric import Inputs, Metric
from pytest_gpuaccept.probe import Probe

MODEL = {"bytes_per_token_gb": 37.7, "gpus_at_once": 4}
"""Weights read per decoded token in GB, and how many GPUs read theirs at the same time."""


def roofline(inputs: Inputs) -> Measurement:
    """Return decode speed as a share of what memory bandwidth allows.

    bound = GPUs reading at once x memory bandwidth / bytes read per token; decoding one stream
    reads every weight once, so no kernel can pass it.
    """
    engine = inputs.device
    card, params = inputs.profile.card, inputs.profile.params.get(engine, {})
    if card is None or not {"bytes_per_token_gb", "gpus_at_once"} <= params.keys():
        message = f"the profile gives no bytes_per_token_gb and gpus_at_once under params.{engine}"
        raise Unmeasurable(message)
    bandwidth = float(params["gpus_at_once"]) * card.facts.memory_bandwidth_gbs
    bound = bandwidth / float(params["bytes_per_token_gb"])
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
    Metric("vllm.version", "vLLM version", "text", "vllm"),
    Metric("vllm.kernel", "Kernel of the quantised layers", "text", "vllm"),
    Metric("vllm.load", "Load time", "s", "vllm"),
    Metric("vllm.single.decode", "Single stream, decode", "tok/s", "vllm", max_cv=0.1),
    Metric("vllm.single.e2e", "Single stream, whole request", "s", "vllm"),
    Metric("vllm.batch.output", "32 requests at once, output", "tok/s", "vllm", max_cv=0.1),
    Metric("vllm.batch.latency", "Latency stated for the batch", "ms", "vllm"),
    Metric("vllm.short.latency", "Latency stated for a short answer", "ms", "vllm"),
    Metric(
        "vllm.roofline", "Decode against the memory-bandwidth bound", "ratio", "vllm", rate="share", derive=roofline
    ),
)
LLAMACPP = (
    Metric("llamacpp.version", "llama-cpp-python version", "text", "llamacpp"),
    Metric("llamacpp.load", "Load time", "s", "llamacpp"),
    Metric("llamacpp.prompt", "Prompt processing", "tok/s", "llamacpp", max_cv=0.1),
    Metric("llamacpp.single", "Single request, whole", "tok/s", "llamacpp"),
    Metric("llamacpp.decode", "Single stream, decode", "tok/s", "llamacpp", max_cv=0.1),
    Metric(
        "llamacpp.roofline", "Decode against the memory-bandwidth bound", "ratio", "llamacpp",
        rate="share", derive=roofline,
    ),
    Metric("engines.cross", "vLLM against llama.cpp, single stream", "ratio", "host", derive=cross),
)  # fmt: skip

PROBES = (
    Probe("vllm", "engines", "vllm", VLLM, params=MODEL, load=True, driver=True),
    Probe("llamacpp", "engines", "llamacpp", LLAMACPP, params=MODEL, load=True, driver=True),
)
