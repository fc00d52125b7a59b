"""The memory of a simulated GPU: small arrays that stand for it, with the faults that memory has.

Owns what a word reads as, and how long reading takes. Which patterns are written is children/memory.py's.
"""

from types import ModuleType
from typing import Any

import numpy as np

from pytest_gpuaccept.children.compute import Clock
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.sim.machine import GpuState, Machine, ScriptClock
from pytest_gpuaccept.sim.nvml import uuid_of

CHUNKS, WORDS = 2, 640
"""Arrays, and words of each, that stand for the memory of a card."""
LINE = 256
"""The address line that sticks, in words."""
STUCK, FADING = (77, 5), (300, 41)
"""Word of the last array and its bit: the one that is stuck, and the one that fades."""
FREE_SHARE = 0.97
"""[E] Share of the memory that driver and context leave free."""
WRITE_AND_READ = 2
"""A read takes the time of the write before it too."""
GATHER_SHARE = 0.25
"""[E] A word of 8 bytes is fetched as 32."""
LEAST_PASS_S = 0.001
"""[E] Seconds that a pass over however few words takes, with its way to the GPU and back."""
Array = np.ndarray[Any, Any]


class BlindCells(np.ndarray):
    """Memory in which a word that is put to be found is not there; whole slices arrive."""

    def __setitem__(self, key: object, value: object) -> None:
        """Lose what is written to one word alone."""
        if not isinstance(key, int):
            super().__setitem__(key, value)  # type: ignore[call-overload]


class Vram:
    """The memory of one simulated GPU; see children/memory.Cells."""

    def __init__(self, machine: Machine, gpu: GpuState, clock: ScriptClock) -> None:
        """Take the GPU that the load reaches."""
        self._gpu, self._clock = gpu, clock
        self._cells: list[Array] = []
        self._read_at = [clock.monotonic()] * CHUNKS
        self._claimed = 0
        self.uuid = uuid_of(machine, gpu.index)

    @property
    def xp(self) -> ModuleType:
        """Return numpy."""
        return np

    @property
    def free(self) -> int:
        """Return the bytes that nobody holds."""
        p = self._gpu.p
        return int(max(0.0, p.memory_mib * FREE_SHARE - p.foreign_mib - p.desktop_mib) * 2**20)

    @property
    def chunks(self) -> list[Array]:
        """Return the arrays, to be written."""
        return [cells.view(BlindCells) for cells in self._cells] if self._gpu.p.detector_blind else self._cells

    def claim(self, share: float) -> int:
        """Claim the share that can be claimed; return how many bytes the arrays stand for."""
        self._cells = [np.zeros(WORDS, np.int64) for _ in range(CHUNKS)]
        self._claimed = int(min(share, self._gpu.p.vram_claim) * self.free)
        return self._claimed

    def read(self, chunk: int) -> Array:
        """Let the time of a sweep pass and return the words as they read now."""
        self._pass_time(WRITE_AND_READ / CHUNKS)
        held = self._clock.monotonic() - self._read_at[chunk]
        self._read_at[chunk] = self._clock.monotonic()
        if chunk == CHUNKS - 1 and 0 < self._gpu.p.vram_fades_s <= held:
            self._cells[chunk][FADING[0]] &= ~(1 << FADING[1])
        return self._seen(chunk)

    def heat(self, clock: Clock, seconds: float) -> None:
        """Let time pass: the card is loaded all along."""
        clock.sleep(seconds)

    def gather(self, chunk: int, places: Array) -> tuple[Array, float]:
        """Let the time of a gather pass and return the words at `places`, and the seconds."""
        seconds = self._pass_time(len(places) / (CHUNKS * WORDS * GATHER_SHARE))
        return self._seen(chunk)[places], seconds

    def _seen(self, chunk: int) -> Array:
        p, words = self._gpu.p, self._cells[chunk].copy()
        if chunk == CHUNKS - 1 and p.vram_stuck:
            words[STUCK[0]] |= 1 << STUCK[1]
        return words[np.arange(WORDS) & ~LINE] if p.vram_alias else words

    def _pass_time(self, share: float) -> float:
        """Let the time pass that a share of the claimed bytes takes, and return it in s."""
        p = self._gpu.p
        if p.lost or not p.present or not p.vram_gbs:
            message = f"CUDA error on {self.uuid}: unspecified launch failure"
            raise Unmeasurable(message)
        seconds = max(LEAST_PASS_S, share * self._claimed / (p.vram_gbs * 1e9))
        self._clock.sleep(seconds)
        return seconds
