"""The configuration space of a PCI device: whether it reports its errors, and what a bridge redirects.

Owns the walk along both capability lists, which a broken device may bend into a loop. Pure: bytes in.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pytest_gpuaccept.errors import Unmeasurable

HEADER, LEGACY, WHOLE = 64, 256, 4096
"""Bytes of the header that anybody may read, of the space without and with PCI Express."""
STATUS, HAS_LIST, FIRST = 0x06, 0x10, 0x34
PCI_EXPRESS, DEVICE_CONTROL, AER = 0x10, 0x08, 0x0001
TYPE, BRIDGE = 0x0E, 0x01
"""Place of the header's type, and that of a bridge; its top bit says that there are several functions."""
ACS, ACS_CONTROL, ACS_REDIRECT = 0x000D, 0x06, 0x0C
"""The bits of ACS that send requests and completions between devices up to the root."""


@dataclass(frozen=True, slots=True)
class Severity:
    """Where a device's readiness to report one severity stands: bits of Device Control, the mask and its bits."""

    enable: int
    mask: int
    errors: Mapping[int, str]


SEVERITIES = {
    "corrected": Severity(0x1, 0x14, {0: "RxErr", 6: "BadTLP", 7: "BadDLLP", 8: "Rollover", 12: "Timeout"}),
    "uncorrected": Severity(0x6, 0x08, {4: "DLP", 13: "FCP", 17: "RxOF", 18: "MalfTLP"}),
}
"""The errors of a link itself, in the kernel's short words (PCI Express base specification, 7.8.4).

Boards mask others, as unsupported requests, for good reasons.
"""


@dataclass(frozen=True, slots=True)
class Reporting:
    """What a device reports: None where the bytes do not reach; `masked` are the errors that it keeps to itself."""

    enabled: bool | None
    masked: tuple[str, ...] | None


def reporting(space: bytes, severity: str) -> Reporting:
    """Parse a configuration space, whole or the part that was shown; raises Unmeasurable when it is none."""
    if len(space) < HEADER or _word(space, 0) == 0xFFFF:  # noqa: PLR2004 - what an absent device reads as
        message = f"{len(space)} bytes are no PCI configuration space, or the device does not answer"
        raise Unmeasurable(message)
    express = next((at for at, name in _capabilities(space) if name == PCI_EXPRESS), None)
    extended = next((at for at, name in _extended(space) if name == AER), None)
    return Reporting(_enabled(space, express, SEVERITIES[severity]), _masked(space, extended, SEVERITIES[severity]))


def _enabled(space: bytes, at: int | None, severity: Severity) -> bool | None:
    if at is None or at + DEVICE_CONTROL + 2 > len(space):
        return None
    return _word(space, at + DEVICE_CONTROL) & severity.enable == severity.enable


def _masked(space: bytes, at: int | None, severity: Severity) -> tuple[str, ...] | None:
    place = (at or 0) + severity.mask
    if at is None or place + 4 > len(space):
        return None
    mask = int.from_bytes(space[place : place + 4], "little")
    return tuple(name for bit, name in severity.errors.items() if mask >> bit & 1)


def redirects(space: bytes) -> bool | None:
    """Say whether a bridge sends what goes from device to device up to the root (ACS); None where it is not shown.

    False for what is no bridge: it has nothing to send.
    """
    if not is_bridge(space):
        return False
    if len(space) < HEADER:
        return None
    at = next((at for at, name in _extended(space) if name == ACS), None)
    if at is None:
        return False if _is_whole(space) else None
    return None if at + ACS_CONTROL + 2 > len(space) else bool(_word(space, at + ACS_CONTROL) & ACS_REDIRECT)


def _is_whole(space: bytes) -> bool:
    """Say whether all was shown that the device has: more than the legacy part where it speaks PCI Express."""
    express = any(name == PCI_EXPRESS for _, name in _capabilities(space))
    return len(space) > LEGACY if express else len(space) >= LEGACY


def is_bridge(space: bytes) -> bool:
    """Say whether a configuration space is a bridge's: a root port, or a port of a switch."""
    return len(space) > TYPE and space[TYPE] & 0x7F == BRIDGE


def _capabilities(space: bytes) -> Iterator[tuple[int, int]]:
    """Yield place and id of every capability, each place once."""
    at, been = space[FIRST] & 0xFC if _word(space, STATUS) & HAS_LIST else 0, set[int]()
    while HEADER <= at <= min(len(space), LEGACY) - 2 and at not in been:
        been.add(at)
        yield at, space[at]
        at = space[at + 1] & 0xFC


def _extended(space: bytes) -> Iterator[tuple[int, int]]:
    """Yield place and id of every extended capability, each place once."""
    at, been = LEGACY, set[int]()
    while LEGACY <= at <= len(space) - 4 and at not in been:
        been.add(at)
        head = int.from_bytes(space[at : at + 4], "little")
        yield at, head & 0xFFFF
        at = head >> 20 & 0xFFC


def _word(space: bytes, at: int) -> int:
    return int.from_bytes(space[at : at + 2], "little")
