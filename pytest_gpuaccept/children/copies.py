"""Copies as loads: timed, and compared byte by byte with what was sent.

Owns the loop and what it reports. What moves the bytes is behind `Mover`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from pytest_gpuaccept.children.compute import Clock, Script, start


class Copy(NamedTuple):
    """One sample of copies: when it began, bytes moved, seconds, bytes that arrived wrong, path, copies compared."""

    t: float
    moved: int
    seconds: float
    wrong: int
    path: str
    compared: int


class Mover(Protocol):
    """One GPU as a copy sees it.

    Kinds: `device`; `h2d` and `d2h`, pinned; `h2d_pageable`, and `d2h_pageable` into pages that were touched;
    `d2h_untouched`, into pages that are new at every copy; `both`, h2d and d2h at once; `peer:UUID`.
    """

    uuid: str

    def copy(self, kind: str, seconds: float, begin: Callable[[], float]) -> Copy:
        """Copy for about `seconds` s; `both` moves the sum of its directions, a peer's path is `direct` or `staged`.

        When all buffers are there, `begin` is called: it waits until it is time, and returns the time.
        """


def copies(  # noqa: PLR0913 - what is copied, how often and when, all by name
    gpu: Mover, clock: Clock, *, kinds: Sequence[str], samples: int, sample_s: float, together: float = 0.0
) -> Script:
    """Copy each way in `samples` samples after one to warm up; one record a sample.

    With `together` the copies begin that many seconds apart, at the same moments on every GPU that is told
    one time to start: preparing and comparing take longer on some than on others, and must not draw them apart.
    """
    yield {"kind": "device", "uuid": gpu.uuid}
    due = (yield from start(clock)) if together else 0.0
    for kind in kinds:
        for sample in range(samples + 1):
            copy = gpu.copy(kind, sample_s, partial(_begin, clock, due))
            due += together
            yield {"kind": "copy" if sample else "warm_up", "way": kind, **copy._asdict()}


def _begin(clock: Clock, due: float) -> float:
    clock.sleep(max(0.0, due - clock.monotonic()))
    return clock.monotonic()
