"""Space of the volume groups that belongs to no volume: paid for, and of no use to anybody.

Owns the parsers of vgs and lsblk. `There is no volume group` and `not permitted to look` are different
absences, and neither is 0.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.tool import printed

UNALLOCATED = Metric("host.lvm.unallocated", "Volume group space not allocated", "%", "host")
VGS = ("vgs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", "vg_name,vg_size,vg_free")
LSBLK = ("lsblk", "-J", "-b", "-o", "NAME,TYPE,FSTYPE,SIZE")
UNREADABLE = (ValueError, KeyError, TypeError, ArithmeticError, AttributeError, RecursionError)
MOST_BYTES = 2**70
"""More than any volume group has."""

Groups = Mapping[str, tuple[int, int]]
"""Size and free bytes by name."""


def unallocated(site: Site, metric: Metric) -> Measurement:
    """Return the share of a volume group's space that belongs to no volume, in %, of the one with the largest.

    What vgs may not show without root is calculated from the block devices.
    """
    try:
        groups, how = _by_vgs(site), ""
        if not groups:
            groups, how = _by_lsblk(site), "; by lsblk, as vgs lists none: LVM's own share counts as free"
    except Unmeasurable as denied:
        groups, how = _by_lsblk(site), f"; by lsblk, as {denied}: LVM's own share counts as free"
    note = ", ".join(f"{name}: {part / 2**30:.0f} of {whole / 2**30:.0f} GiB" for name, (whole, part) in groups.items())
    return site.measured(metric, max(100 * free / size for size, free in groups.values()), note=note + how)


def _by_vgs(site: Site) -> Groups:
    return parse_vgs(printed(site, *VGS))


def _by_lsblk(site: Site) -> Groups:
    """Return the physical volumes taken together; raises Unmeasurable when no block device is one."""
    tree = printed(site, *LSBLK)
    site.attach("lsblk", tree)
    size, taken, seen, known = parse_lsblk(tree)
    if not size:
        raise Unmeasurable(_none(seen, known))
    return {"all volume groups": (size, size - taken)}


def _none(seen: int, known: int) -> str:
    """Return what it means that no device is a physical volume, of those seen and those whose content is known."""
    if not known:
        return f"nobody tells what is on the {seen} block devices: run vgs as root, on the host"
    return f"there is no volume group: vgs lists none, and none of the {seen} block devices belongs to LVM"


def parse_vgs(text: str) -> dict[str, tuple[int, int]]:
    """Parse vgs' JSON report to (size, free) in bytes by volume group; none where there is none, or without root."""
    try:
        rows = [row for report in json.loads(text[text.index("{") :])["report"] for row in report["vg"]]
        groups = {str(row["vg_name"]): (int(row["vg_size"]), int(row["vg_free"])) for row in rows}
    except UNREADABLE as error:
        message = f"vgs' report cannot be read ({type(error).__name__}: {str(error)[:80]}): {text[:80]!r}"
        raise Unmeasurable(message) from None
    if any(not 0 <= free <= size <= MOST_BYTES or size <= 0 for size, free in groups.values()):
        message = f"vgs lists a volume group without sizes that can be: {groups}"[:200]
        raise Unmeasurable(message)
    return groups


def parse_lsblk(text: str) -> tuple[int, int, int, int]:
    """Parse lsblk's JSON tree to bytes of all physical volumes and of their volumes, devices seen, and devices known.

    A volume over several physical volumes is listed below each of them, and counted once. What is on a
    device lsblk knows from udev, and where there is no udev it knows of none.
    """
    try:
        devices = list(_flat(json.loads(text)["blockdevices"]))
        members = {d["name"]: d for d in devices if d.get("fstype") == "LVM2_member"}
        volumes = {v["name"]: int(v["size"]) for d in members.values() for v in d.get("children") or ()}
        size, taken = sum(int(d["size"]) for d in members.values()), sum(volumes.values())
        known = sum(1 for d in devices if d.get("fstype"))
    except UNREADABLE as error:
        message = f"lsblk's report cannot be read ({type(error).__name__}: {str(error)[:80]}): {text[:80]!r}"
        raise Unmeasurable(message) from None
    if not 0 <= taken <= size <= MOST_BYTES or any(int(d["size"]) <= 0 for d in members.values()):
        message = f"lsblk shows volumes of {taken} bytes on {size} bytes of physical volumes: vgs as root knows more"
        raise Unmeasurable(message)
    return size, taken, len(devices), known


def _flat(devices: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for device in devices:
        yield device
        yield from _flat(device.get("children") or ())
