"""The processes of the simulated machine that use a GPU, other than the loads of the run.

Owns who they are; how they are listed is nvml.py's, and how they are named files.py's business.
"""

from dataclasses import dataclass

from pytest_gpuaccept.sim.machine import GpuState

FOREIGN_PID, LEFT_PID, DESKTOP_PID = 4700, 5200, 1800
"""Process ids on GPU 0; on the next GPU one more."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process on one GPU and the memory there that it has, in MiB."""

    pid: int
    name: str
    mib: int


def compute(gpu: GpuState) -> list[Process]:
    """Return who computes: a stranger, and what a load left behind once there was one."""
    loaded = gpu.load > 0 or gpu.idle_since >= 0
    there = (
        Process(FOREIGN_PID + gpu.index, "python3", gpu.p.foreign_mib),
        Process(LEFT_PID + gpu.index, "gpuaccept-load", gpu.p.left_mib if loaded else 0),
    )
    return [process for process in there if process.mib]


def graphics(gpu: GpuState) -> list[Process]:
    """Return who draws: a desktop."""
    return [Process(DESKTOP_PID + gpu.index, "Xorg", gpu.p.desktop_mib)] if gpu.p.desktop_mib else []


def used_mib(gpu: GpuState) -> int:
    """Return the memory that all of them have, in MiB."""
    return sum(process.mib for process in (*compute(gpu), *graphics(gpu)))
