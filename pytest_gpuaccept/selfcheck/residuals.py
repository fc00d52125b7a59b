"""Calibration of the simulated machine: every published figure beside the simulated one.

Owns which figures the case study's scenario was fitted to; all others are predicted. Must not judge.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Measurement, number
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.run import start
from pytest_gpuaccept.simulate import simulated

RECORDING = "case-study-2026-04-10"
PROFILE, SCENARIO = "4x4090", "case-study"
FITTED = (
    "gpu.gemm.fp*", "gpu.burn.tflops", "gpu.burn.temperature", "gpu.burn.plateau", "gpu.copy.*", "gpu_pair.copy",
    "nvme.read.*", "nvme.write.*", "llamacpp.load", "llamacpp.decode", "llamacpp.prompt", "vllm.load", "vllm.single.*",
    "vllm.batch.output",
)  # fmt: skip
"""Figures that went into the scenario's parameters."""
PREDICTED = (
    "gpu.combined.tflops", "gpu.combined.temperature", "gpu.combined.drop", "gpu.*.power_peak", "gpu.*.total",
    "gpu.*.power_total", "llamacpp.single",
)  # fmt: skip
"""Figures that follow from the model and were not looked at when fitting."""


@dataclass(frozen=True, slots=True)
class Residual:
    """One published figure, what the simulated machine shows, and how much is left, in % of the figure."""

    metric: str
    device: str
    kind: str
    published: float
    simulated: float
    unit: str

    @property
    def percent(self) -> float:
        """Return simulated over published, less one, in %."""
        return 100.0 * (self.simulated / self.published - 1.0) if self.published else 0.0


def residuals(catalogue: Catalogue) -> Iterator[Residual]:
    """Yield the residual of every published figure that the model has a say in."""
    profile = load_profile(PROFILE, catalogue, SHIPPED)
    source = simulated(profile, SCENARIO, Path(SHIPPED))
    bench = start(profile, catalogue, source.world.clock, source, None).bench if source.world else None
    for (metric, device), published in read_bundle(SHIPPED / "recordings" / RECORDING).table().items():
        kind = "fitted" if _any(metric, FITTED) else "predicted" if _any(metric, PREDICTED) else ""
        if kind and bench and isinstance(published, Measurement):
            got = bench.outcome(metric, device)
            said, shown = number(published.value), number(got.value) if isinstance(got, Measurement) else None
            if said is not None and shown is not None:
                yield Residual(metric, device, kind, said, shown, published.unit)


def _any(metric: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(metric, pattern) for pattern in patterns)


def table(found: list[Residual]) -> str:
    """Write the residuals as a Markdown table, the predicted ones last."""
    head = "| figure | device | | published | simulated | residual |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(_row(residual) for residual in sorted(found, key=lambda r: r.kind))


def _row(r: Residual) -> str:
    figures = f"{r.published:,.5g} | {r.simulated:,.5g} {r.unit} | {r.percent:+.1f} %"
    return f"| {r.metric} | {r.device} | {r.kind} | {figures} |"
