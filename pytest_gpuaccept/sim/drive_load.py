"""The cold read of the simulated machine: the loop of children/cold_read.py over a drive of the model."""

from collections.abc import Generator, Mapping
from typing import Any

from pytest_gpuaccept.children.cold_read import cold_read
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.sim.fio import CACHED_SHARE, MEMORY_BYTES_S, SECTOR, mount_of
from pytest_gpuaccept.sim.machine import Machine, ScriptClock
from pytest_gpuaccept.world import Record

MEMORY_SHARE = 0.3
"""[E] Share of the memory's rate that a warm buffered read reaches: it copies once."""


class ColdFile:
    """A file on a simulated drive; see children/cold_read.Store."""

    def __init__(self, machine: Machine, path: str, clock: ScriptClock) -> None:
        """Take the path of the file; raises Unmeasurable when no drive is there."""
        self._machine, self._clock, self._size, self._warm = machine, clock, 0, True
        self._name = machine.mounts.get(mount_of(machine, path), "")
        drive = machine.drives.get(self._name)
        if drive is None or not drive.present:
            message = f"FileNotFoundError: No such file or directory: {path!r}"
            raise Unmeasurable(message)
        self._drive = drive

    def write(self, size: int) -> None:
        """Let the drive take the file."""
        self._size = size
        self._takes(size, self._drive.write_mbs * 1e6, "write", size)

    def evict(self) -> None:
        """Forget the file; a machine that answers from memory does not."""
        self._warm = self._drive.page_cached

    def resident(self) -> float:
        """Return the share that is in memory."""
        return 1.0 if self._warm else self._drive.resident

    def read(self) -> int:
        """Read the file: from the drive, or from memory once it is there."""
        memory = MEMORY_BYTES_S * MEMORY_SHARE
        rate = memory if self._warm else min(self._drive.buffered_gbs * 1e9, self._drive.read_mbs * 1e6)
        moved = int(self._size * (CACHED_SHARE if self._drive.page_cached else 0)) if self._warm else self._size
        self._takes(self._size, rate, "read", moved // SECTOR * SECTOR)
        self._warm = True
        return self._size

    def _takes(self, size: int, rate: float, side: str, moved: int) -> None:
        if self._drive.error or rate <= 0:
            message = f"OSError: [Errno {self._drive.error or 5}] the drive does not answer"
            raise Unmeasurable(message)
        seconds = size / rate
        self._machine.moved[self._name][side] += moved
        self._machine.drive_busy_s[self._name] += seconds if moved else 0.0
        self._clock.sleep(seconds)


def script(machine: Machine, params: Mapping[str, Any], clock: ScriptClock) -> Generator[Record, Record | None, None]:
    """Write a file and read it cold and warm in virtual time."""
    store = ColdFile(machine, params["path"], clock)
    yield from cold_read(store, clock, size=params["size"], passes=params["passes"])
