"""The scripts that a child can run, by name, over real hardware.

Owns how a script gets its library and its device; what it does is in the module of its name. The
simulated machine has scripts of the same names and parameters.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pytest_gpuaccept.children.cold_read import File, cold_read
from pytest_gpuaccept.children.compute import Script, burn, gemm
from pytest_gpuaccept.children.copies import copies
from pytest_gpuaccept.children.llamacpp import llamacpp
from pytest_gpuaccept.children.memory import memory
from pytest_gpuaccept.children.products import products
from pytest_gpuaccept.children.steps import steps
from pytest_gpuaccept.children.telemetry import telemetry
from pytest_gpuaccept.children.watch import watch

Params = dict[str, Any]
Clock = Any
PEER = "peer:"
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""What CUDA takes the GPUs from when it starts; a load's own are those of its parameters."""
NVCC = "/usr/local/cuda/bin/nvcc"


def _torch(params: Params) -> Any:
    """Return torch, which sees the GPUs that the parameters name and no others, in their order."""
    peers = [kind[len(PEER) :] for kind in params.get("kinds", ()) if kind.startswith(PEER)]
    os.environ[VISIBLE] = ",".join([params["uuid"], *peers])
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return import_module("torch")


def _on(module: str, maker: str, script: Callable[..., Script]) -> Callable[[Params, Clock], Script]:
    """Return `script` on what `maker` of a module makes of torch and a UUID; the other parameters are its own."""

    def run(params: Params, clock: Clock) -> Script:
        make = getattr(import_module(f"pytest_gpuaccept.children.{module}"), maker)
        own = {name: value for name, value in params.items() if name != "uuid"}
        yield from script(make(_torch(params), params["uuid"]), clock, **own)

    return run


def _telemetry(params: Params, clock: Clock) -> Script:
    nvml = import_module("pynvml")
    nvml.nvmlInit()
    yield from telemetry(nvml, clock, read=_read, **params)


def _watch(params: Params, clock: Clock) -> Script:
    nvml = import_module("pynvml") if params["uuids"] else None
    if nvml:
        nvml.nvmlInit()
    yield from watch(_read, clock, nvml=nvml, **params)


def _read(path: str) -> str:
    return Path(path).read_text(errors="replace").strip()


def _check(_params: Params, _clock: Clock) -> Script:
    """Say whether this interpreter's torch can use a GPU at all, and if not, why; as the loads, heed no shell."""
    os.environ.pop(VISIBLE, None)
    torch = import_module("torch")
    torch_gpu = import_module("pytest_gpuaccept.children.torch_gpu")
    torch_gpu.check(torch)
    yield {"kind": "check", "torch": str(torch.__version__), "cuda": str(torch.version.cuda)}


def _llamacpp(params: Params, clock: Clock) -> Script:
    binding = import_module("pytest_gpuaccept.children.llama_model")
    settings = {**params, "n_gpu_layers": -1 if params["gpu"] else 0}
    model = binding.LlamaModel(import_module("llama_cpp"), params["model"], settings)
    own = {name: params[name] for name in ("prompt_tokens", "tokens", "repetitions", "warmups")}
    yield from llamacpp(model, clock, on_cpu=not params["gpu"], **own)


def _check_llamacpp(_params: Params, _clock: Clock) -> Script:
    """Say whether this interpreter has llama.cpp at all."""
    yield {"kind": "check", "llama_cpp": str(import_module("llama_cpp").__version__)}


def _cold_read(params: Params, clock: Clock) -> Script:
    own = {name: value for name, value in params.items() if name != "path"}
    yield from cold_read(File(params["path"]), clock, **own)


def _versions(_params: Params, _clock: Clock) -> Script:
    """Say what this interpreter finds installed; None for what is not there."""
    found: dict[str, str | None] = {"torch": None, "cudnn": None}
    with suppress(ImportError):
        torch = import_module("torch")
        number = torch.backends.cudnn.version()
        found["torch"] = str(torch.__version__)
        found["cudnn"] = f"{number // 10000}.{number // 100 % 100}.{number % 100}" if number else None
    found["transformers"] = None
    with suppress(PackageNotFoundError):
        found["transformers"] = version("transformers")
    yield {**found, "cuda_toolkit": _toolkit()}


def _toolkit() -> str | None:
    """Return the release that nvcc states."""
    compiler = shutil.which("nvcc") or NVCC
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"release (\d{1,3}\.\d{1,3})", done.stdout)
    return match[1] if match else None


SCRIPTS: dict[str, Callable[[Params, Clock], Script]] = {
    "telemetry": _telemetry,
    "watch": _watch,
    "burn": _on("torch_gpu", "opened", burn),
    "gemm": _on("torch_gpu", "opened", gemm),
    "steps": _on("torch_gpu", "opened", steps),
    "copies": _on("torch_gpu", "opened", copies),
    "memory": _on("torch_cells", "opened", memory),
    "products": _on("torch_products", "opened", products),
    "check": _check,
    "check_llamacpp": _check_llamacpp,
    "llamacpp": _llamacpp,
    "versions": _versions,
    "cold_read": _cold_read,
}
"""Name of a load -> what it does on hardware."""
