"""Every load as it runs live: in a child process, over torch, told and read by lines, beside a telemetry child.

The GPU is the CPU by way of torch, and the sensors are the model's in real time (cpu_child.py): what is real here
is the world with its children, the scripts, torch's arithmetic, and the probes that judge whether a load was one.
"""

import sys
from pathlib import Path

import pytest

from pytest_gpuaccept import supervisor, world
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Catalogue, Site
from pytest_gpuaccept.probes import SHIPPED as PROBES
from pytest_gpuaccept.probes.gpus import copies, memory
from pytest_gpuaccept.sim.nvml import binding
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import LiveWorld

HERE = Path(__file__).parent
SMALL = {
    "gpu.gemm": {"seconds": 2, "warmup_seconds": 0, "period_s": 0.1},
    "gpu.burn": {"seconds": 4, "period_s": 0.1, "cool_down_seconds": 0, "longest_seconds": 0},
    "gpu.combined": {"seconds": 4, "period_s": 0.1, "cool_down_seconds": 0},
    "gpu.copy": {"samples": 2, "sample_seconds": 0.05},
    "gpu.copy_all": {"samples": 2, "sample_seconds": 0.4, "every_seconds": 1.5},
    "gpu.links": {"seconds": 3, "period_s": 0.1},
    "gpu.step": {"count": 2, "on_s": 2, "off_s": 2},
    "gpu.memory": {"seconds": 1, "hold_seconds": 1, "period_s": 0.1},
    "gpu.numerics": {"examples": 20, "largest": 64},
}


class CpuWorld(LiveWorld):
    """This computer as a machine with two GPUs: its loads are real children on the CPU."""

    def __init__(self, profile):
        super().__init__(python=sys.executable)
        self.machine = SimWorld(profile, load_scenario("healthy", SHIPPED, SHIPPED / "scenarios"))

    def refuses(self, script):
        """Refuse nothing."""
        return ""

    def nvml(self):
        """Return the model's cards."""
        return binding(self.machine.machine)

    def read(self, path):
        """Return the model's files, but hide its ports, as a virtual machine does: children read real files."""
        if path.startswith("/sys/bus/pci"):
            message = f"{path} cannot be read: No such file or directory"
            raise Unmeasurable(message)
        return self.machine.read(path)

    def command(self, argv, *, timeout, watch=None):
        """Run what loads the CPU for real, and have the model answer for its log."""
        if argv[0] == "journalctl":
            return self.machine.command(argv, timeout=timeout)
        return super().command(argv, timeout=timeout, watch=watch)


@pytest.fixture(scope="module")
def profile():
    """Return the profile of two cards."""
    return load_profile("2xrtx4090", Catalogue(PROBES), SHIPPED)


@pytest.fixture
def live(profile, monkeypatch):
    """Return the world, its children those of cpu_child.py, ended without much patience."""
    monkeypatch.setattr(world, "CHILD", HERE / "cpu_child.py")
    monkeypatch.setattr(supervisor, "GRACE_S", 0.5)
    monkeypatch.setattr(memory, "LEAST_FREE", 0.0)
    return CpuWorld(profile)


def taken(live, profile, name, device):
    """Return what a probe of that name measures, by metric and device, and why it does not."""
    probe = Catalogue(PROBES).probes[name]
    where = Site(live, profile, device, {**probe.params, **SMALL[name]}, lambda _name, _text: "", memory={})
    found = list(probe.measure(where))
    values = {(o.metric, o.device): o.value for o in found if isinstance(o, Measurement)}
    reasons = {(o.metric, o.device): o.reason for o in found if not isinstance(o, Measurement)}
    return values, reasons


def test_products_are_timed_in_a_child(live, profile):
    """Every kind of product has a rate, and its golden was confirmed by float64."""
    values, reasons = taken(live, profile, "gpu.gemm", "gpu0")
    assert reasons == {}
    rates = {metric for metric, _ in values}
    assert rates == {f"gpu.gemm.{kind}" for kind in ("fp16", "bf16", "fp32", "tf32", "fp8", "clock")}


def test_a_burn_checks_every_product_in_children_that_start_together(live, profile):
    """Two cards burn at once, no product is wrong, the detector was rehearsed, and the checks' cost is told."""
    values, reasons = taken(live, profile, "gpu.burn", "host")
    assert reasons == {}
    assert {values["gpu.burn.errors", gpu] for gpu in ("gpu0", "gpu1")} == {0}
    assert values["gpu.burn.tflops", "gpu0"] > 0


def test_copies_arrive(live, profile):
    """Each way is copied and compared; the CPU has no other side, so the bytes are those of memory."""
    values, reasons = taken(live, profile, "gpu.copy", "gpu0")
    assert reasons == {}
    assert values["gpu.copy.errors", "gpu0"] == 0


def test_copies_of_all_cards_overlap(live, profile, monkeypatch):
    """The children keep one schedule, as well as two cores can."""
    monkeypatch.setattr(copies, "AT_ONCE", 0.4)
    values, reasons = taken(live, profile, "gpu.copy_all", "host")
    assert reasons == {}
    assert values["gpu.copy.errors_all", "gpu0"] == 0


def test_links_are_watched_under_a_real_load(live, profile):
    """The sensors' child samples at 10 Hz while the copies' child works."""
    values, reasons = taken(live, profile, "gpu.links", "gpu0")
    assert reasons == {}
    assert (values["gpu.pcie.gen", "gpu0"], values["gpu.pcie.width", "gpu0"]) == (4, 16)


def test_steps_are_taken_together(live, profile):
    """The children step on one schedule; the model's sensors do not step with them, so no step counts as taken."""
    values, reasons = taken(live, profile, "gpu.step", "host")
    assert values["gpu.step.steps", "gpu0"] == 0
    assert reasons["gpu.step.errors", "gpu0"] == "the load did not reach gpu0 in every step"


def test_memory_is_written_and_read_back(live, profile):
    """Every pattern over every word, and a planted bit is found."""
    values, reasons = taken(live, profile, "gpu.memory", "host")
    assert reasons == {}
    assert values["gpu.memory.errors", "gpu0"] == 0
    assert values["gpu.memory.coverage", "gpu1"] >= 90


def test_numerics_are_asked_and_answered(live, profile):
    """Hypothesis here, torch there, lines between them."""
    values, reasons = taken(live, profile, "gpu.numerics", "gpu0")
    assert reasons == {}
    assert values["gpu.numerics.errors", "gpu0"] == 0


def test_a_torch_without_cuda_is_refused_with_the_remedy():
    """The CPU build that these tests use is no torch to sign off a GPU with."""
    reason = LiveWorld(python=sys.executable).refuses("burn")
    assert "is built without CUDA: install the CUDA wheel" in reason


def test_versions_are_told_by_the_delivered_interpreter():
    """torch is found, transformers is told to be absent."""
    with LiveWorld(python=sys.executable).start("versions", {}) as load:
        (found,) = load.finish(timeout=60)
    assert found["torch"].startswith("2.")
    assert set(found) == {"torch", "transformers", "cuda_toolkit", "cudnn"}


def test_the_sensors_child_says_that_there_is_no_driver():
    """Without a driver telemetry dies of NVML's own word."""
    watched = {"uuids": ["GPU-0"], "period_s": 0.2}
    with LiveWorld().start("telemetry", watched) as load, pytest.raises(Unmeasurable, match="NVML"):
        load.finish(timeout=60)
