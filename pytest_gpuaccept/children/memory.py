"""Patterns over the memory of a GPU as a load: written, read back, compared word by word on the device.

Owns the patterns, the comparison and what is reported. What holds the words is behind `Cells`. Whole sweeps
are far larger than any cache, so what is compared was in memory.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from pytest_gpuaccept.children.compute import Clock, Record, Script, start

Array = Any
Pattern = Callable[[Any, Array, int], Array]
"""(array library, a slice of memory, address of its first word) -> what the slice must hold: an array or one word."""

MODULUS = 20
"""Of modulo-20; every array of memory is a multiple of it long."""
SLICE = MODULUS * 2**18
"""Words that are compared at once: 42 MB, of which some four temporaries are alive at a time."""
LOOKED_AT, LISTED = 4096, 16
"""Wrong words of a pass whose bits are counted, and those that are listed."""
WORD = 2**64
MIX = (0x9E3779B97F4A7C15 - WORD, 0x94D049BB133111EB - WORD)
"""Odd factors with well mixed bits (Weyl's step and the last of SplitMix64), as signed words."""
ALTERNATING = 0x5555555555555555
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class Cells(Protocol):
    """The memory of one GPU as a load sees it: arrays of int64, multiples of 20 words long."""

    uuid: str

    @property
    def xp(self) -> Any:
        """Return the array library: numpy or torch."""

    @property
    def free(self) -> int:
        """Return the bytes that nobody holds."""

    @property
    def chunks(self) -> Sequence[Array]:
        """Return the claimed arrays, to be written."""

    def claim(self, share: float) -> int:
        """Claim up to a share of the free bytes, and return how many it became."""

    def read(self, chunk: int) -> Array:
        """Return an array as the device reads it now."""

    def heat(self, clock: Clock, seconds: float) -> None:
        """Keep the device busy for `seconds` s without touching the arrays: what they hold is held hot."""

    def gather(self, chunk: int, places: Array) -> tuple[Array, float]:
        """Return an array's words at `places`, and the seconds that fetching them took."""


@dataclass(slots=True)
class Found:
    """The wrong words of a pass: all counted, the bits of the first 4096, and the first 16 one by one."""

    wrong: int = 0
    looked_at: int = 0
    bits: dict[int, int] = field(default_factory=dict)
    words: list[tuple[int, str]] = field(default_factory=list)

    def compare(self, xp: Any, got: Array, want: Array, addresses: Array) -> None:
        """Compare words with what they must be, an array or one word; `addresses` are theirs, or the first one's."""
        differ = got != want
        wrong = int(differ.sum())
        self.wrong += wrong
        if wrong and self.looked_at < LOOKED_AT:
            places = xp.argwhere(differ)[: LOOKED_AT - self.looked_at, 0]
            flipped = got[places] ^ (want if isinstance(want, int) else want[places])
            at = places + addresses if isinstance(addresses, int) else addresses[places]
            self._look(at.tolist(), flipped.tolist())

    def _look(self, addresses: Sequence[int], flipped: Sequence[int]) -> None:
        self.looked_at += len(flipped)
        for address, mask in zip(addresses, flipped, strict=True):
            for bit in range(64):
                if mask >> bit & 1:
                    self.bits[bit] = self.bits.get(bit, 0) + 1
            if len(self.words) < LISTED:
                self.words.append((address, f"{mask % WORD:#x}"))

    def record(self) -> Record:
        """Return what was found: `wrong` words, and of wrong ones flipped `bits` and [address, xor] `words`."""
        details = {"bits": {str(bit): n for bit, n in sorted(self.bits.items())}, "words": self.words}
        return {"wrong": self.wrong, **(details if self.wrong else {})}


# patterns ------------------------------------------------------------------------------------------------


def solid(word: int) -> Pattern:
    """Return the pattern that is one signed word everywhere."""
    return lambda xp, cells, first: word  # noqa: ARG005 - the same wherever it is


def address(xp: Any, cells: Array, first: int) -> Array:
    """Return each word's address: what is read from another place shows."""
    return xp.arange(first, first + cells.shape[0], dtype=xp.int64, device=cells.device)


def random(seed: int) -> Pattern:
    """Return the pattern of pseudo-random words, calculated again wherever they are compared."""
    return lambda xp, cells, first: mixed(address(xp, cells, first), seed)


def complement(pattern: Pattern) -> Pattern:
    """Return the pattern with every bit turned round."""
    return lambda xp, cells, first: ~pattern(xp, cells, first)


def mixed(words: Array, seed: int) -> Array:
    """Mix the bits of int64 words in place and return them; sums and products wrap round."""
    words += scrambled(seed)
    for factor, shift in zip(MIX, (32, 29), strict=True):
        words *= factor
        words ^= words >> shift
    return words


def scrambled(seed: int) -> int:
    """Return a signed word that has little to do with the one of the next seed."""
    word = (seed + 1) * MIX[0] % WORD
    return word - WORD if word >= WORD // 2 else word


def every_20th(offset: int, word: int) -> Pattern:
    """Return the pattern that is `word` at every 20th place, and its complement between them."""
    return lambda xp, cells, first: xp.where(address(xp, cells, first) % MODULUS == offset, word, ~word)


# passes --------------------------------------------------------------------------------------------------


def sweep(
    gpu: Cells, found: Found, want: Pattern | None, then: Pattern | None = None, *, down: bool = False
) -> Found:  # fmt: skip
    """Go through all words, up or down: compare with `want`, then write `then`; either may be missing."""
    firsts = _firsts(gpu)
    for chunk in _turned(range(len(firsts)), down=down):
        cells, data = gpu.chunks[chunk], gpu.read(chunk) if want else None
        for begin in _turned(range(0, cells.shape[0], SLICE), down=down):
            part, first = slice(begin, begin + SLICE), firsts[chunk] + begin
            if want and data is not None:
                found.compare(gpu.xp, data[part], want(gpu.xp, data[part], first), first)
            if then:
                cells[part] = then(gpu.xp, cells[part], first)
    return found


def _turned(steps: range, *, down: bool) -> range:
    return steps[::-1] if down else steps


def _firsts(gpu: Cells) -> list[int]:
    """Return the address of each array's first word: they are numbered through."""
    lengths = [int(cells.shape[0]) for cells in gpu.chunks]
    return [sum(lengths[:chunk]) for chunk in range(len(lengths))]


def _kept(pattern: Pattern) -> Callable[[Cells, int], Found]:
    """Return the pass that writes a pattern everywhere and compares it."""

    def run(gpu: Cells, turn: int) -> Found:  # noqa: ARG001 - the same in every round
        sweep(gpu, found := Found(), None, pattern)
        return sweep(gpu, found, pattern)

    return run


def _random(gpu: Cells, turn: int) -> Found:
    return _kept(random(turn))(gpu, turn)


def _inversions(gpu: Cells, turn: int) -> Found:
    """Write a random word; upwards turn each place round behind the comparison, downwards turn it back."""
    pattern, found = solid(scrambled(turn)), Found()
    sweep(gpu, found, None, pattern)
    sweep(gpu, found, pattern, complement(pattern))
    sweep(gpu, found, complement(pattern), pattern, down=True)
    return sweep(gpu, found, pattern)


def _modulo(gpu: Cells, turn: int) -> Found:
    """Write every 20th word, then its complement all around it; once for each of the 20 places."""
    word, found = scrambled(~turn), Found()
    for offset in range(MODULUS):
        for cells in gpu.chunks:
            rows = cells.reshape(-1, MODULUS)
            rows[:, offset] = word
            rows[:, :offset] = ~word
            rows[:, offset + 1 :] = ~word
        sweep(gpu, found, every_20th(offset, word))
    return found


ROUND: dict[str, Callable[[Cells, int], Found]] = {
    "address": _kept(address), "zeros": _kept(solid(0)), "ones": _kept(solid(~0)),
    "55": _kept(solid(ALTERNATING)), "aa": _kept(solid(~ALTERNATING)),
    "inversions": _inversions, "modulo-20": _modulo, "random": _random,
}  # fmt: skip
"""Name of a pattern of a round -> its pass, given the number of the round."""
FADES: dict[str, Pattern] = {"fade": random(-1), "fade.complement": complement(random(-1))}
"""Held for a while, so that every cell is held once charged and once empty."""
PATTERNS = (*FADES, *ROUND, "gather")
"""What a complete test has done at least once."""


def memory(gpu: Cells, clock: Clock, *, seconds: float, hold_s: float, share: float) -> Script:
    """Claim a `share` of the free memory, hold patterns for `hold_s`, repeat rounds for `seconds`, and gather.

    The device, what was claimed, the rehearsal, readiness; then from the told time on one record a pass. The
    held patterns come first: the memory is as hot as what ran before has left it. Rounds over nothing take no
    time: where nothing could be claimed, there is one.
    """
    yield {"kind": "device", "uuid": gpu.uuid}
    free, claimed = gpu.free, gpu.claim(share)
    yield {"kind": "claimed", "free": free, "claimed": claimed}
    yield {"kind": "rehearsal", **rehearse(gpu)}
    yield from start(clock)
    for record in _passes(gpu, clock, seconds if claimed else 0.0, hold_s):
        yield {**record, "bytes": claimed}
    yield {"kind": "end"}


def rehearse(gpu: Cells) -> Record:
    """Compare untouched words, turn one bit round and compare again; return how many were wrong each time.

    `place` says whether the word and its bit were named rightly.
    """
    pattern = random(-2)
    clean = sweep(gpu, sweep(gpu, Found(), None, pattern), pattern)
    planted, at = Found(), -1
    if gpu.chunks:
        middle = int(gpu.chunks[-1].shape[0]) // 2
        gpu.chunks[-1][middle] ^= 1
        at = _firsts(gpu)[-1] + middle
        sweep(gpu, planted, pattern)
    return {"clean": clean.wrong, "found": planted.wrong, "place": planted.words == [(at, "0x1")]}


def _passes(gpu: Cells, clock: Clock, seconds: float, hold_s: float) -> Iterator[Record]:
    for name, pattern in FADES.items():
        yield _timed(clock, name, partial(_hold, gpu, clock, pattern, hold_s))
    end, turn = clock.monotonic() + seconds, 0
    while not turn or clock.monotonic() < end:
        for name, run in ROUND.items():
            yield {**_timed(clock, name, partial(run, gpu, turn)), "round": turn}
        turn += 1
    took: list[float] = []
    yield {**_timed(clock, "gather", partial(_gather, gpu, took)), "gather_s": sum(took)}


def _timed(clock: Clock, name: str, run: Callable[[], Found]) -> Record:
    began = clock.monotonic()
    found = run()
    return {"kind": "pass", "pattern": name, "t": began, "seconds": clock.monotonic() - began, **found.record()}


def _hold(gpu: Cells, clock: Clock, pattern: Pattern, hold_s: float) -> Found:
    sweep(gpu, found := Found(), None, pattern)
    gpu.heat(clock, hold_s)
    return sweep(gpu, found, pattern)


def _gather(gpu: Cells, took: list[float]) -> Found:
    """Fetch every word of every array once, by an index that jumps about, compare it; add the seconds of fetching."""
    sweep(gpu, found := Found(), None, random(-3))
    for chunk, first in enumerate(_firsts(gpu)):
        cells = gpu.chunks[chunk]
        for begin in range(0, cells.shape[0], SLICE):
            places = jumping(gpu.xp, cells, begin)
            got, seconds = gpu.gather(chunk, places)
            took.append(seconds)
            places += first
            found.compare(gpu.xp, got, mixed(places + 0, -3), places)
    return found


def jumping(xp: Any, cells: Array, begin: int) -> Array:
    """Return a slice, from `begin` on, of an order in which each place of an array comes once, neighbours far apart."""
    length = int(cells.shape[0])
    step = max(1, round(length * GOLDEN_RATIO))
    while math.gcd(step, length) > 1:
        step += 1
    order = address(xp, cells[begin : begin + SLICE], begin)
    order *= step
    order %= length
    return order
