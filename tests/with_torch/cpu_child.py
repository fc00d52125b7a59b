"""A load child like children/child.py whose GPU is the CPU by way of torch, and whose sensors are the model's.

Run as `python cpu_child.py SCRIPT` where the package is installed. Device, sizes, patience and NVML are
replaced, nothing else; the model's time is the clock's.
"""

import contextlib
import importlib.util
import sys
from pathlib import Path

from pytest_gpuaccept.children import compute, torch_cells, torch_gpu, torch_products
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.probes import SHIPPED as PROBES
from pytest_gpuaccept.sim.nvml import binding
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld

CHILD = Path(compute.__file__).with_name("child.py")
SIZES = {**dict.fromkeys(("fp16", "bf16", "fp8", "fp32", "tf32"), (64, 64, 64)), "burn": (64, 64, 256)}
COPY_BYTES, CHUNK_BYTES, MEMORY_BYTES = 1 << 24, 1 << 20, 1 << 22


def cpu_gpu(torch, uuid):
    """Return a GPU that is the CPU."""
    torch.set_num_threads(1)
    return torch_gpu.TorchGpu(torch, uuid, device="cpu", sizes=SIZES, copy_bytes=COPY_BYTES)


def cpu_cells(torch, uuid):
    """Return memory of the computer as that of a GPU."""
    return torch_cells.TorchCells(torch, uuid, "cpu", free=MEMORY_BYTES, chunk=CHUNK_BYTES, edge=32)


def cpu_products(torch, uuid):
    """Return a multiplier on the CPU."""
    return torch_products.TorchMultiplier(cpu_gpu(torch, uuid), "cpu")


@contextlib.contextmanager
def sensors_of_the_model(clock):
    """Put the NVML of a machine with two loaded cards in place of the driver's."""
    profile = load_profile("2xrtx4090", Catalogue(PROBES), SHIPPED)
    machine = SimWorld(profile, load_scenario("healthy", SHIPPED, SHIPPED / "scenarios")).machine
    sleep = clock.sleep

    def slept(self, seconds):
        sleep(self, seconds)
        machine.advance(seconds)

    clock.sleep = slept
    with machine.runs("burn", {gpu.index: 1.0 for gpu in machine.gpus}):
        machine.advance(5.0)
        sys.modules["pynvml"] = binding(machine)
        yield


def main():
    """Replace what is hardware, then be the child."""
    spec = importlib.util.spec_from_file_location("child", CHILD)
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    child._settle = lambda _folder: None
    compute.LONGEST_WARM_UP_S = 0.5
    torch_gpu.opened, torch_cells.opened, torch_products.opened = cpu_gpu, cpu_cells, cpu_products
    sensing = sys.argv[1] == "telemetry"
    with sensors_of_the_model(child.SystemClock) if sensing else contextlib.nullcontext():
        return child.main()


if __name__ == "__main__":
    sys.exit(main())
