"""Speed of the simulated machine: whole sign-offs through pytest, and the model alone.

    python benchmarks/simulation.py [ROUNDS]

Prints medians over interleaved rounds; wall time in s, peak memory of the process in MiB.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.probes import SHIPPED as PROBES
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld

PROFILES = ("4x4090", "8x4090")
HOUR_S = 3600.0


def sign_off(profile: str) -> tuple[float, float]:
    """Sign off a healthy simulated machine in a process of its own; return seconds and MiB."""
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--hw={profile}", "--hw-sim", f"--hw-evidence={folder}/ev", "--tb=no", "-q"]
        argv = [sys.executable, "-m", "pytest", str(SHIPPED / "acceptance"), *options]
        began = time.perf_counter()
        child = subprocess.Popen(argv, cwd=folder, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        message = f"the sign-off of {profile} ended with {child.returncode}"
        raise SystemExit(message)
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def model_alone() -> float:
    """Return the seconds that an hour of four GPUs under full load takes, at ten steps a second."""
    machine = SimWorld(load_profile("4x4090", Catalogue(PROBES), SHIPPED), Scenario("healthy")).machine
    with machine.runs("burn", dict.fromkeys(range(4), 1.0)):
        began = time.perf_counter()
        machine.advance(HOUR_S)
        return time.perf_counter() - began


def main() -> None:
    """Run all, interleaved, and print the medians."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    hours, signed = [], dict[str, list[tuple[float, float]]]()
    for _ in range(rounds):
        hours.append(model_alone())
        for profile in PROFILES:
            signed.setdefault(profile, []).append(sign_off(profile))
    for profile, runs in signed.items():
        seconds, mib = (statistics.median(values) for values in zip(*runs, strict=True))
        sys.stdout.write(f"{profile} signed off through pytest: {seconds:.2f} s, {mib:.0f} MiB\n")
    sys.stdout.write(f"model alone, 4 GPUs, 1 h at 10 Hz: {statistics.median(hours):.2f} s\n")


if __name__ == "__main__":
    main()
