"""What the kernel counts of itself: kills for want of memory, signs of damage, memory errors, file system errors.

Owns where each count stands and how it is parsed. Must not compare, and must not judge.
"""

import re
from collections.abc import Iterator
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.since import attempt, count_of

EDAC, EXT4 = "/sys/devices/system/edac/mc", "/sys/fs/ext4"
TAINTED, VMSTAT = "/proc/sys/kernel/tainted", "/proc/vmstat"
CORRECTED, UNCORRECTED = "ce_count", "ue_count"
DAMAGE = {4: "machine check", 5: "bad page", 7: "oops", 9: "kernel warning", 14: "soft lockup"}
"""Bit of the kernel's taint -> what set it (Documentation/admin-guide/tainted-kernels); others tell of modules."""
NO_EDAC = (
    "the kernel watches no memory controller (EDAC): load amd64_edac, or skx_edac or the like (modprobe), run again"
)


def oom_kills(text: str) -> int:
    """Parse /proc/vmstat; return how many processes the OOM killer ended since boot."""
    match = re.search(r"^oom_kill (\d{1,18})$", text, re.MULTILINE)
    if match is None:
        message = "/proc/vmstat does not count what the OOM killer ends (Linux before 4.13): nobody would see it"
        raise Unmeasurable(message)
    return int(match[1])


def damage(text: str) -> dict[str, int]:
    """Parse the kernel's taint to its signs of damage, each 0 or 1; raises Unmeasurable for what is no number."""
    mask = count(text, TAINTED)
    return {what: mask >> bit & 1 for bit, what in DAMAGE.items()}


def controllers(site: Site) -> list[str]:
    """Return the memory controllers that the kernel watches."""
    return [name for name in listed(site, EDAC) if re.fullmatch(r"mc[0-9]{1,3}", name)]


def volumes(site: Site) -> list[str]:
    """Return the ext4 volumes that are mounted."""
    return [name for name in listed(site, EXT4) if re.fullmatch(r"(?!features$)[\w.-]{1,64}", name)]


def listed(site: Site, folder: str) -> list[str]:
    """Return the names in a folder, none where there is none."""
    names = attempt(lambda: site.world.names(folder))
    return [] if isinstance(names, Unmeasurable) else names


def memory_errors(site: Site, file: str) -> dict[str, int]:
    """Return a count of each memory controller; raises Unmeasurable where the kernel watches none."""
    found = {name: f"{EDAC}/{name}/{file}" for name in controllers(site)}
    if not found:
        raise Unmeasurable(NO_EDAC)
    return {name: count(site.world.read(path), path) for name, path in found.items()}


def ext4_errors(site: Site) -> dict[str, int]:
    """Return the count of errors of each ext4 volume; none where there is none."""
    return dict(_ext4(site))


def _ext4(site: Site) -> Iterator[tuple[str, int]]:
    for volume in volumes(site):
        path = f"{EXT4}/{volume}/errors_count"
        text = attempt(partial(site.world.read, path))
        if isinstance(text, str):
            yield volume, count(text, path)


def count(text: str, path: str) -> int:
    """Parse a file that is one count; raises Unmeasurable for anything else."""
    try:
        return count_of(text.strip())
    except ValueError:
        message = f"{path} says {text[:40]!r}, which is no count"
        raise Unmeasurable(message) from None
