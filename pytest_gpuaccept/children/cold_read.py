"""A file read as a model loader reads it: buffered, once cold from the drive, once warm from memory.

Owns the passes and the proof that the file was not in memory before a cold one. Runs in a process of its
own, with the standard library only.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Generator
from typing import Any, Protocol

MIB = 2**20
CHUNK = 16 * MIB
Record = dict[str, Any]
Script = Generator[Record, Any, None]


class Clock(Protocol):
    """Time as the load sees it."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""


class Store(Protocol):
    """A file on the drive."""

    def write(self, size: int) -> None:
        """Write the file whole, and wait until the drive has it."""

    def evict(self) -> None:
        """Ask the kernel to forget what it keeps of the file."""

    def resident(self) -> float:
        """Return the share of the file that is in memory."""

    def read(self) -> int:
        """Read the file from its beginning to its end, buffered; return the bytes."""


def cold_read(store: Store, clock: Clock, *, size: int, passes: int) -> Script:
    """Write `size` bytes, read them cold `passes` times and warm once; yield a record for each pass.

    A record holds its kind, the share in memory before, the bytes and the seconds. `about` to begin is told
    before each pass and answered, so that somebody can read the drive's counters between them.
    """
    store.write(size)
    for kind in (*["cold"] * passes, "warm"):
        if kind == "cold":
            store.evict()
        resident = store.resident()
        yield {"kind": "about", "pass": kind, "awaits": "go"}
        began = clock.monotonic()
        moved = store.read()
        yield {"kind": kind, "resident": resident, "bytes": moved, "seconds": clock.monotonic() - began}
    yield {"kind": "read", "awaits": "end"}


class File:
    """A real file; made new, and removed by whoever made its folder."""

    def __init__(self, path: str) -> None:
        """Take a path where nothing is yet; a link there is refused."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def write(self, size: int) -> None:
        """Write random bytes, each chunk of its own, and sync them."""
        left = size
        while left:
            left -= os.write(self._file, os.urandom(min(MIB, left)))
        os.fsync(self._file)

    def evict(self) -> None:
        """Ask the kernel to forget the file's pages; what is not written yet it would keep."""
        os.fsync(self._file)
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def resident(self) -> float:
        """Return the share of the file's pages that mincore(2) finds in memory; raises OSError."""
        size = os.fstat(self._file).st_size
        pages = -(-size // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        with mmap.mmap(self._file, size, access=mmap.ACCESS_COPY) as view:
            first = ctypes.c_char.from_buffer(view)
            failed = self._libc.mincore(ctypes.byref(first), ctypes.c_size_t(size), found)
            del first
        if failed:
            number = ctypes.get_errno() or errno.EINVAL
            raise OSError(number, os.strerror(number))
        return sum(page & 1 for page in found) / pages

    def read(self) -> int:
        """Read the file in chunks, as a loader fills its tensors."""
        buffer, moved = bytearray(CHUNK), 0
        while got := os.preadv(self._file, [buffer], moved):
            moved += got
        return moved
