"""Texts that servers write for Prometheus: parsed to samples, and what DCGM's and vLLM's say.

Owns the parser, the names of the series that are required of the DCGM exporter, and what covers a GPU.
Asks no server and must not judge.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_gpuaccept.errors import Unmeasurable

SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?[0-9]+)?")
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
PREFIX = "DCGM_FI_DEV_"
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "temperature": ("GPU_TEMP", "GPU_TEMP_CELSIUS"),
    "power": ("POWER_USAGE", "BOARD_POWER_WATTS"),
    "SM clock": ("SM_CLOCK", "SM_CLOCK_HERTZ"),
    "utilisation": ("GPU_UTIL", "GPU_UTIL_RATIO"),
    "used memory": ("FB_USED",),
    "free memory": ("FB_FREE",),
    "PCIe replays": ("PCIE_REPLAY_COUNTER", "PCIE_REPLAY_TOTAL"),
    "last Xid": ("XID_ERRORS", "XID_ERROR"),
}
"""What the exporter must show of every GPU -> names, the older first; all are in its default counters."""
NEVER_ZERO = ("temperature", "power", "SM clock", "free memory")
"""What no living card shows as 0."""
TEMPERATURES = tuple(PREFIX + name for name in REQUIRED["temperature"])
QUEUE = {"running": "vllm:num_requests_running", "waiting": "vllm:num_requests_waiting"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one series."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse(text: str) -> list[Sample]:
    """Return the samples; raises Unmeasurable when the text is no exposition, such as a login page."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    found = [_sample(line) for line in lines if not line.startswith("#")]
    samples = [sample for sample in found if sample]
    if not lines or len(samples) < len(found):
        message = f"the answer is no Prometheus text: {text[:80]!r}"
        raise Unmeasurable(message)
    return samples


def _sample(line: str) -> Sample | None:
    parts = SAMPLE.fullmatch(line)
    try:
        return Sample(parts[1], dict(LABEL.findall(parts[2] or "")), float(parts[3])) if parts else None
    except ValueError:
        return None


def by_gpu(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Return what is shown of each GPU, by UUID and then by the words of REQUIRED; what is no number is not shown."""
    words = {PREFIX + name: word for word, names in REQUIRED.items() for name in names}
    shown: dict[str, dict[str, float]] = {}
    for sample in samples:
        uuid, word = sample.labels.get("UUID", ""), words.get(sample.name)
        if uuid and word and math.isfinite(sample.value):
            shown.setdefault(uuid, {})[word] = sample.value
    return shown


def flaw(shown: Mapping[str, float]) -> str:
    """Return what a GPU's series lack or show that cannot be, '' when nothing."""
    if missing := [word for word in REQUIRED if word not in shown]:
        return f"no {', '.join(missing)}"
    odd = [word for word in NEVER_ZERO if shown[word] <= 0] + [word for word in REQUIRED if shown[word] < 0]
    return f"{odd[0]} is {shown[odd[0]]:g}" if odd else ""


def queue(samples: Sequence[Sample]) -> str:
    """Return vLLM's queue as `2 running, 5 waiting`; raises Unmeasurable when the server does not show it."""
    counts = {word: [s.value for s in samples if s.name == name] for word, name in QUEUE.items()}
    if not all(counts.values()) or not all(math.isfinite(v) and v >= 0 for values in counts.values() for v in values):
        message = f"the server's metrics do not show {' and '.join(QUEUE.values())}: is it vLLM?"
        raise Unmeasurable(message)
    return ", ".join(f"{sum(values):g} {word}" for word, values in counts.items())
