"""The poll of the counters of a whole run: once a second, what changed since the round before.

Owns the pacing and what is told of a round. What a counter means is the reader's business.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_gpuaccept.children.telemetry import Clock, Read, Record, field_value

ALIVE_S = 30.0
"""Seconds after which a round is told although nothing changed."""
LEAST_PAUSE_S = 0.1
"""Rest between two rounds, however late the last one ended."""
RETRAINED = "retrained"
FIELDS = {
    "replay rollovers": 95, RETRAINED: 169, "corrected": 173, "NAKs received": 174, "receiver errors": 175,
    "bad TLPs": 176, "NAKs sent": 177, "bad DLLPs": 178, "non-fatal": 179, "fatal": 180, "LCRC errors": 182,
}  # fmt: skip
"""What NVML counts of a link -> field id (nvml.h, NVML_FI_DEV_PCIE_*)."""
REPLAYS = "replays"
Answers = dict[str, tuple[str, str]]
"""Source -> its text, or '' and why there is none."""


def watch(  # noqa: PLR0913 - all but two by name
    read: Read,
    clock: Clock,
    *,
    files: Mapping[str, str],
    period_s: float,
    uuids: Sequence[str] = (),
    nvml: Any = None,
) -> Iterator[Record]:
    """Read every file, and NVML's link counters of every GPU, each `period_s` until ended.

    `files` maps a path to the beginning of the lines that matter in it, '' for all. A round is told when
    something in it changed, and each ALIVE_S: `t` and `since` are the times in s of this round and the one
    before, `now` the new texts by source, `failed` the reasons, `gap` the longest time between rounds so far.
    """
    known: Answers = {}
    lost: set[str] = set()
    begun = told = since = clock.monotonic()
    gap = 0.0
    while True:
        t = clock.monotonic()
        gap = max(gap, t - since)
        taken = {path: _lines(read, path, beginning) for path, beginning in files.items()}
        for uuid in (uuid for uuid in uuids if uuid not in lost):
            taken |= (answers := link_counters(nvml, uuid))
            lost |= {uuid} if _is_lost(nvml, answers) else set()
        changed = {source: answer for source, answer in taken.items() if known.get(source) != answer}
        known |= changed
        if changed or t - told >= ALIVE_S:
            told = t
            yield {"kind": "round", "t": t, "since": since, "gap": gap, **_told(changed)}
        since = t
        due = begun + period_s * (1 + (clock.monotonic() - begun) // period_s)
        clock.sleep(max(due - clock.monotonic(), LEAST_PAUSE_S))


def _told(changed: Answers) -> Record:
    now = {source: text for source, (text, reason) in changed.items() if not reason}
    return {"now": now, "failed": {source: reason for source, (_, reason) in changed.items() if reason}}


def _is_lost(nvml: Any, answers: Answers) -> bool:
    """Say whether a card has fallen off the bus: it is not asked again, since a call on it may hang."""
    return str(nvml.NVMLError(nvml.NVML_ERROR_GPU_IS_LOST)) in {reason for _, reason in answers.values()}


def _lines(read: Read, path: str, beginning: str) -> tuple[str, str]:
    """Return the lines of a file that begin so, or why it cannot be read."""
    try:
        text = read(path)
    except OSError as error:
        return "", str(error.strerror or error)
    return "\n".join(line for line in text.splitlines() if line.startswith(beginning)) if beginning else text, ""


def link_counters(nvml: Any, uuid: str) -> Answers:
    """Return NVML's counters of a GPU's link by `nvml/UUID/name`, each as (text, reason why not)."""
    names = [f"nvml/{uuid}/{name}" for name in (REPLAYS, *FIELDS)]
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        fields = [_field(nvml, answer) for answer in nvml.nvmlDeviceGetFieldValues(handle, list(FIELDS.values()))]
        return dict(zip(names, [_replays(nvml, handle), *fields], strict=True))
    except nvml.NVMLError as error:
        return dict.fromkeys(names, ("", str(error)))


def _field(nvml: Any, answer: Any) -> tuple[str, str]:
    if answer.nvmlReturn == nvml.NVML_SUCCESS:
        return f"{field_value(nvml, answer):.0f}", ""
    return "", str(nvml.NVMLError(answer.nvmlReturn))


def _replays(nvml: Any, handle: Any) -> tuple[str, str]:
    try:
        return str(nvml.nvmlDeviceGetPcieReplayCounter(handle)), ""
    except nvml.NVMLError_NotSupported as error:
        return "", str(error)
