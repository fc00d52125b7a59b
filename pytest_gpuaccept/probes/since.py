"""What happened since the start of the run: readings of both ends, and when a "none seen" is proven.

Owns what every comparison with the start of the run needs. Must not know a channel, and must not judge.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Interval, NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site

BOOT_ID = "/proc/sys/kernel/random/boot_id"
REBOOTED = "the machine was started anew during the run, its counters and log began again: find out why, run again"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    """Events counted over the run, and what is missing for the count to be the whole truth."""

    count: int
    lacking: tuple[str, ...]
    note: str

    def outcome(
        self, site: Site, metric: Metric, proof: str, conditions: Mapping[str, str | float], rate: float | None = None
    ) -> Outcome:
        """Return the count, or its `rate`: an absence for an unproven none, "at least" for an unproven count."""
        missing = "; ".join(dict.fromkeys(self.lacking))
        if missing and not self.count:
            return NotMeasured(metric.id, site.device, f"none seen proves nothing: {missing}")
        value = self.count if rate is None else rate
        if missing:
            note = f"{self.note}; at least, for {missing}"
            return site.measured(metric, Interval(value, None), conditions=conditions, note=note)
        return site.measured(metric, value, proof=proof, conditions=conditions, note=self.note)


def begun(site: Site, kind: type[T]) -> T:
    """Return what was read at the start of the run; raises Unmeasurable when it could not be."""
    if isinstance(site.before, Unmeasurable):
        raise site.before
    if not isinstance(site.before, kind):
        message = "no reading from the start of the run"
        raise Unmeasurable(message)
    return site.before


def check_same_boot(start: str, end: str) -> None:
    """Raise Unmeasurable when the machine was started anew during the run."""
    if start != end:
        raise Unmeasurable(REBOOTED)


def attempt(read: Callable[[], T]) -> T | Unmeasurable:
    """Return what `read` returns, or the Unmeasurable that it raised."""
    try:
        return read()
    except Unmeasurable as error:
        return error


def count_of(text: str) -> int:
    """Parse a count; raises ValueError for anything but its digits."""
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise ValueError(text)
    return int(text)
