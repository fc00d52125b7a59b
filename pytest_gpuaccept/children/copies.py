"""Copies as loads: timed, and compared byte by byte with what was sent.

Owns the loop and what it reports. What moves the bytes is behind `Mover`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

Record = dict[str, Any]


class Copy(NamedTuple):
    """One sample of copies: bytes moved, seconds, bytes that arrived wrong, and the path taken."""

    moved: int
    seconds: float
    wrong: int
    path: str


class Mover(Protocol):
    """One GPU as a copy sees it."""

    uuid: str

    def copy(self, kind: str, seconds: float) -> Copy:
        """Copy for about `seconds` s: `device`, `h2d`, `d2h`, `d2h_pageable`, or `peer:UUID`."""


class Clock(Protocol):
    """Time as a load sees it."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""


def copies(gpu: Mover, clock: Clock, *, kinds: Sequence[str], samples: int, sample_s: float) -> Iterator[Record]:
    """Copy each way in `samples` samples after one to warm up; one record a sample."""
    yield {"kind": "device", "uuid": gpu.uuid}
    for kind in kinds:
        yield {"kind": "warm_up", "way": kind, "wrong": gpu.copy(kind, sample_s).wrong}
        for _ in range(samples):
            began = clock.monotonic()
            copy = gpu.copy(kind, sample_s)
            yield {"kind": "copy", "t": began, "way": kind, **copy._asdict()}
