"""The memory of a GPU by way of torch, for the load of children/memory.py.

Owns how memory is claimed and read; the module itself is given, so that nothing is imported here.
"""

import time
from typing import Any

from pytest_gpuaccept.children.compute import Clock
from pytest_gpuaccept.children.memory import MODULUS

CHUNK = 2**30
"""Bytes of one array at most."""
WORD_BYTES = 8
HEAT_EDGE, HEAT_PRODUCTS = 2048, 32
"""Size and number of the products between two looks at the clock: 32 MiB in all, and some milliseconds."""


def opened(torch: Any, uuid: str) -> "TorchCells":
    """Return the memory of the first GPU that CUDA shows, under the UUID that CUDA gives it.

    Where this torch does not tell it, it is the one by which the process was pinned to the GPU.
    """
    told = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    return TorchCells(torch, f"GPU-{told}" if told else uuid, "cuda:0")


class TorchCells:
    """Memory of one device as torch gives it; see children/memory.Cells."""

    def __init__(  # noqa: PLR0913, PLR0917 - a device, and what tests make small
        self, torch: Any, uuid: str, device: str, free: int | None = None, chunk: int = CHUNK, edge: int = HEAT_EDGE
    ) -> None:
        """Take the torch module and a device; `free` are its free bytes where CUDA does not know them.

        `chunk` is the size of an array in bytes, `edge` that of the matrices which heat.
        """
        self.xp, self.uuid = torch, uuid
        self.chunks: list[Any] = []
        self._device, self._free, self._chunk, self._edge = torch.device(device), free, chunk, edge

    @property
    def free(self) -> int:
        """Return the bytes that nobody holds."""
        return int(self.xp.cuda.mem_get_info(self._device)[0]) if self._free is None else self._free

    def claim(self, share: float) -> int:
        """Claim up to a share of the free bytes and return how many it became; room for one array less if too many.

        What cannot be had costs one array more, in which the comparisons then have room.
        """
        left = int(self.free * share)
        try:
            while words := min(left, self._chunk) // (WORD_BYTES * MODULUS) * MODULUS:
                self.chunks.append(self.xp.empty(words, dtype=self.xp.int64, device=self._device))
                left -= words * WORD_BYTES
        except self.xp.cuda.OutOfMemoryError:
            self.chunks = self.chunks[:-1]
            if self._device.type == "cuda":
                self.xp.cuda.empty_cache()
        return sum(int(cells.shape[0]) for cells in self.chunks) * WORD_BYTES

    def read(self, chunk: int) -> Any:
        """Return an array; what is done with it reads the device's memory."""
        return self.chunks[chunk]

    def heat(self, clock: Clock, seconds: float) -> None:
        """Multiply matrices for `seconds` s, in memory that no pattern lies in."""
        end = clock.monotonic() + seconds
        matrix = self.xp.randn(self._edge, self._edge, device=self._device).to(self.xp.bfloat16)
        while clock.monotonic() < end:
            for _ in range(HEAT_PRODUCTS):
                self.xp.mm(matrix, matrix)
            self._wait()

    def gather(self, chunk: int, places: Any) -> tuple[Any, float]:
        """Return an array's words at `places`, and the seconds from an idle device to the fetched words."""
        self._wait()
        began = time.perf_counter()
        words = self.chunks[chunk][places]
        self._wait()
        return words, time.perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            self.xp.cuda.synchronize(self._device)
