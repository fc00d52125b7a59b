"""What is looked at while fio runs: the drives' counters, their temperature and link, and the room that is left.

Owns the samples of a run, what follows from them, and when a job must be ended. Starts nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.drives.drive import Backing, Counters, counters, link, temperature
from pytest_gpuaccept.profile import PCIE_GBS_PER_LANE

GIB = 2**30
TOO_HOT_C = 3.0
"""C below its critical temperature at which a drive is let rest."""
USUAL_CRITICAL_C = 85.0
"""Taken for a drive that states none."""
LEAST_INTERVALS = 6
"""Intervals between two looks from which thirds of a run can be compared."""


@dataclass(frozen=True, slots=True)
class Look:
    """The drives at one moment: seconds, what each has moved, and what the one, or the volume over several, has."""

    at: float
    each: tuple[Counters, ...]
    above: Counters

    def moved(self, side: str) -> int:
        """Return the bytes that all have read, or written."""
        return sum(one.read if side == "read" else one.written for one in self.each)

    @property
    def both(self) -> int:
        """The bytes that all have moved."""
        return self.moved("read") + self.moved("write")


class Watch:
    """Looks at the drives when it is called; raises Unmeasurable to end what runs.

    `over` is why nothing more may be run, once that is so.
    """

    def __init__(self, site: Site, found: Backing) -> None:
        """Look for the first time."""
        self.over, self.no_sensor, self.no_link = "", "", "the drive was not seen at work"
        self._site, self._found = site, found
        self._floor = float(site.params["keep_free_gib"]) * GIB / 2
        self._budget = float(site.params.get("write_budget_gib", math.inf)) * GIB
        self.temperatures: list[float] = []
        self.links: list[tuple[int, int]] = []
        self._carried = 0.0
        self.critical: float | None = None
        self.looks: list[Look] = []
        self()

    def __call__(self) -> None:
        """Look once; raises Unmeasurable when room or budget run out, a drive gets too hot, or its sensor is lost."""
        self.looks.append(self.look())
        if self.looks[-1].both > self.looks[-2 if len(self.looks) > 1 else -1].both:
            self._look_at_link()
        self.over = self.over or self._no_room() or self._over_budget() or self._too_hot()
        if self.over:
            raise Unmeasurable(self.over)

    def look(self) -> Look:
        """Return the drives' counters now."""
        world, found = self._site.world, self._found
        each = tuple(counters(world, drive.block) for drive in found.drives)
        alone = len(each) == 1 or not found.block
        return Look(world.clock.monotonic(), each, each[0] if alone else counters(world, found.block))

    def _no_room(self) -> str:
        mount = self._found.mount.point
        free = self._site.world.disk(self._folder).free
        return f"only {free / GIB:.1f} GiB are left on {mount}: somebody else fills it" if free < self._floor else ""

    def _over_budget(self) -> str:
        written = self.looks[-1].moved("write") - self.looks[0].moved("write")
        message = f"{written / GIB:.0f} GiB were written, write_budget_gib is {self._budget / GIB:.0f}"
        return message if written > self._budget else ""

    @property
    def _folder(self) -> str:
        facts = self._site.profile.device[self._site.device]
        return facts.mount or self._found.mount.point

    def _too_hot(self) -> str:
        try:
            seen = [temperature(self._site.world, drive) for drive in self._found.drives]
        except Unmeasurable as error:
            self.no_sensor = str(error)
            return f"the drive's temperature is lost: {error}" if self.temperatures else ""
        self.temperatures.append(max(now for now, _ in seen))
        known = [critical for _, critical in seen if critical is not None]
        self.critical = min(known, default=None)
        limits = [(now, USUAL_CRITICAL_C if most is None else most) for now, most in seen]
        over = [(now, most) for now, most in limits if now >= most - TOO_HOT_C]
        return f"the drive has {over[0][0]:g} C and is critical at {over[0][1]:g} C: cool it" if over else ""

    def _look_at_link(self) -> None:
        try:
            seen = [link(self._site.world, drive) for drive in self._found.drives]
        except Unmeasurable as error:
            self.no_link = str(error)
        else:
            self.links.append((min(gen for gen, _ in seen), min(lanes for _, lanes in seen)))
            self._carried = max(self._carried, sum(PCIE_GBS_PER_LANE[gen] * lanes * 1000 for gen, lanes in seen))

    def ceiling(self) -> float | None:
        """Return the most that the links carry, MB/s: the profile's or those seen, whichever is less; None without."""
        rate = self._site.profile.rate("drive_link", self._site.device)
        ordered = rate.ceiling * len(self._found.drives) if rate else math.inf
        most = min(ordered, self._carried or math.inf)
        return round(most, 3) if math.isfinite(most) else None


def wait_until_quiet(site: Site, watch: Watch) -> None:
    """Wait for a window in which nobody uses the drive; raises Unmeasurable when there is none."""
    clock, seconds = site.world.clock, float(site.params["idle_seconds"])
    end = clock.monotonic() + float(site.params["idle_longest_seconds"])
    while True:
        before = watch.look()
        clock.sleep(seconds)
        after = watch.look()
        busy = busy_percent(before, after, after.at - before.at)
        if busy <= float(site.params["foreign_percent"]):
            return
        if clock.monotonic() + seconds > end:
            message = (
                f"somebody else uses the drive, {busy:.0f} % of the time before the test: stop it (iotop shows who; "
                "a new ext4 initialises itself for some minutes), then run again"
            )
            raise Unmeasurable(message)


def busy_percent(before: Look, after: Look, seconds: float) -> float:
    """Return the % of `seconds` in which the busiest drive had requests."""
    worked = [b.busy_ms - a.busy_ms for a, b in zip(before.each, after.each, strict=True)]
    return max(worked) / 10 / seconds if seconds > 0 else 0.0


def thirds(looks: Sequence[Look], side: str) -> tuple[float, float]:
    """Return the rate in MB/s of the first and of the last third of a run; raises Unmeasurable for too few looks.

    Looks before the first byte and the two intervals in which fio began and ended are left out.
    """
    pairs = [(a, b) for a, b in pairwise(looks) if b.moved(side) > a.moved(side) and b.at > a.at]
    inner = pairs[1:-1]
    if len(inner) < LEAST_INTERVALS:
        message = f"only {len(inner)} intervals were seen: too short a run to compare its thirds"
        raise Unmeasurable(message)
    third = len(inner) // 3
    return _rate(inner[:third], side), _rate(inner[-third:], side)


def _rate(pairs: Sequence[tuple[Look, Look]], side: str) -> float:
    moved = sum(b.moved(side) - a.moved(side) for a, b in pairs)
    return moved / sum(b.at - a.at for a, b in pairs) / 1e6
