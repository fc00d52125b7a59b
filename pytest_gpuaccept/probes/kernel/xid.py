"""NVIDIA's Xids: the lines in which the driver tells of one, and what each means.

Owns the catalogue (xids.toml) and the driver's words. Must not judge.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pytest_gpuaccept.probes.kernel.aer import BUS, same_slot
from pytest_gpuaccept.probes.since import Seen

CATALOGUE = Path(__file__).with_name("xids.toml")
LINE = re.compile(rf"NVRM: Xid \((?:PCI:)?({BUS})(?:\.[0-7])?\): ([0-9]{{1,5}})\b")
FALLEN = re.compile(rf"NVRM: (?:(?!NVRM: ).){{0,200}}?({BUS}).{{0,200}}?fallen off the bus", re.DOTALL)
NAMELESS = re.compile(r"NVRM: (?:Xid|.{0,200}fallen off the bus)", re.DOTALL)
FALLEN_OFF_THE_BUS = 79
NOTE = "note"


@dataclass(frozen=True, slots=True)
class Xid:
    """One code: `fatal`, `suspect` or a mere `note`; what it means, and what to do first."""

    code: int
    kind: str
    meaning: str
    remedy: str

    def __str__(self) -> str:
        """Write `Xid 79 (fatal: the card has fallen off the bus)`."""
        return f"Xid {self.code} ({self.kind}: {self.meaning})"


@cache
def catalogue() -> dict[int, Xid]:
    """Return what is known of each code."""
    with CATALOGUE.open("rb") as file:
        known = tomllib.load(file)
    return {
        int(code): Xid(int(code), kind, meaning, known["do"][do]) for code, (kind, meaning, do) in known["xid"].items()
    }


def known(code: int) -> Xid:
    """Return what is known of a code; one that nobody knows counts."""
    return catalogue().get(code) or Xid(code, "unknown", "not in the catalogue", _unknown())


@cache
def _unknown() -> str:
    with CATALOGUE.open("rb") as file:
        return str(tomllib.load(file)["do"]["unknown"])


def in_message(message: str) -> Iterator[tuple[int, str]]:
    """Yield the Xids that a message tells of, each with the bus id of its GPU; a fall off the bus is an Xid 79."""
    xids = [(int(code), bus) for bus, code in LINE.findall(message)]
    yield from xids
    if all(code != FALLEN_OFF_THE_BUS for code, _ in xids):
        yield from ((FALLEN_OFF_THE_BUS, bus) for bus in FALLEN.findall(message))


def nameless(message: str) -> bool:
    """Say whether a message tells of an Xid and not of whose."""
    return NAMELESS.match(message) is not None and not any(in_message(message))


def of_gpu(messages: Iterable[str], address: str, lacking: Sequence[str]) -> Seen:
    """Count the Xids of the GPU at `address`; mere notes are told and not counted, a fall off the bus counts once."""
    codes, strays = list[int](), list[str]()
    for message in messages:
        codes += [code for code, bus in in_message(message) if same_slot(bus, address)]
        if nameless(message):
            strays.append(f"the kernel log does not say whose {message[:120]!r} is")
    once = [code for n, code in enumerate(codes) if code != FALLEN_OFF_THE_BUS or code not in codes[:n]]
    counted = [known(code) for code in once if known(code).kind != NOTE]
    told = dict.fromkeys(known(code) for code in once)
    remedy = f": {counted[0].remedy}" if counted else ""
    return Seen(len(counted), (*lacking, *strays), f"{', '.join(map(str, told))}{remedy}")
