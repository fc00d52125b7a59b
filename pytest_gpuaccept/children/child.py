"""A load in a process of its own: `python child.py SCRIPT`, under whatever interpreter was delivered.

The first line on stdin holds the parameters, every record is a line on stdout; one with `awaits` is
answered by a line on stdin. What libraries print goes to stderr. Needs Python 3.10, the standard
library, and what the script itself is about: torch, or pynvml.
"""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
import types
from importlib import import_module
from typing import Any

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent dies."""
UNSET = (
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUDA_LAUNCH_BLOCKING", "CUDA_FORCE_PTX_JIT",
    "PYTORCH_TUNABLEOP_ENABLED", "PYTORCH_NO_CUDA_MEMORY_CACHING", "CUBLASLT_WORKSPACE_SIZE",
    "CUBLAS_EMULATE_SINGLE_PRECISION",
)  # fmt: skip
"""Settings of the shell that change what a product is or how long it takes."""

Record = dict[str, Any]
Params = dict[str, Any]


class SystemClock:
    """The clock of this computer, the same in all its processes."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)


def main() -> int:
    """Run one script to its end; return the exit status."""
    _die_with_parent()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _settle(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - texts, as in sys.path
    params = json.loads(sys.stdin.readline())
    try:
        scripts = import_module("pytest_gpuaccept.children.scripts")
        running = scripts.SCRIPTS[sys.argv[1]](params, SystemClock())
        reply = None
        while (record := running.send(reply)) is not None:
            print(json.dumps(record), file=out, flush=True)
            reply = _answer() if record.get("awaits") else None
    except StopIteration:
        return 0
    except Exception as error:  # noqa: BLE001 - whatever ends a load is its last record
        traceback.print_exc()
        print(json.dumps({"kind": "death", "reason": _sentence(error)}), file=out, flush=True)
    return 1


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _settle(folder: str) -> None:
    """Make this folder importable under its own name, without the package around it and what that needs."""
    for name in UNSET:
        os.environ.pop(name, None)
    sys.path[:] = [place for place in sys.path if place != folder]
    package = types.ModuleType("pytest_gpuaccept")
    package.__path__ = [os.path.dirname(folder)]  # noqa: PTH120 - a text, as in sys.path
    sys.modules["pytest_gpuaccept"] = package


def _answer() -> Record:
    """Return the next line on stdin; without one nobody is there any more."""
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return dict(json.loads(line))


def _sentence(error: Exception) -> str:
    """Return one line that says what is wrong; what is known to happen comes with its remedy."""
    name, first = type(error).__name__, (str(error).strip().splitlines() or [""])[0]
    if name == "OutOfMemoryError":
        return f"out of memory: {first} Who holds it? nvidia-smi shows the processes"
    if name == "ModuleNotFoundError":
        return f"{first} under {sys.executable}: name the delivered interpreter with --hw-python"
    return first if name == "Refusal" else f"{name}: {first}"


if __name__ == "__main__":
    sys.exit(main())
