"""What confines this process: its CPU affinity, and the limits of the control groups that it is in.

Owns the parsers of its affinity and of both kinds of control groups. A burn in a container that may use
four of 64 CPUs says nothing of the machine; it must be named as that. Must not judge.
"""

import re
from collections.abc import Iterator

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.host.machine import cpu_list

ROOT = "/sys/fs/cgroup"
NO_LIMIT = 2**60
"""Bytes from which on a limit of memory is none; the first kind of groups writes 2**63 less a page."""


def of_cpus(site: Site, online: list[int]) -> str:
    """Return what keeps this process from using every CPU that is online; '' when nothing does."""
    return _affinity(site, online) or _quota(site, len(online))


def _affinity(site: Site, online: list[int]) -> str:
    """Return which CPUs it may use when these are not all; a kernel that does not say so sets no bounds."""
    match = re.search(r"^Cpus_allowed_list:[ \t]*(\S+)$", shown(site, "/proc/self/status"), re.MULTILINE)
    allowed = set(cpu_list(match[1])) & set(online) if match else set(online)
    if len(allowed) == len(online):
        return ""
    return (
        f"this process may use {len(allowed)} of {len(online)} CPUs (affinity or cpuset): "
        "run outside of the container, without taskset"
    )


def _quota(site: Site, online: int) -> str:
    """Return the tightest CPU quota of its groups when it is less than all CPUs."""
    least = min(_quotas(site), default=float(online))
    if least >= online:
        return ""
    return (
        f"a control group gives this process the time of {least:g} of {online} CPUs (cpu.max): run outside of the "
        "container"
    )


def _quotas(site: Site) -> Iterator[float]:
    """Yield the CPUs' worth of time of every limit."""
    for folder in folders(site, "cpu"):
        match = re.fullmatch(r"(\d{1,12}) (\d{1,12})", shown(site, f"{folder}/cpu.max"))
        quota, period = match.groups() if match else (shown(site, f"{folder}/cpu.cfs_{k}_us") for k in FIRST)
        if re.fullmatch(r"\d{1,12}", quota) and re.fullmatch(r"[1-9]\d{0,11}", period):
            yield int(quota) / int(period)


FIRST = ("quota", "period")
"""The two files of the first kind of groups; -1 is no quota."""


def memory_left(site: Site) -> int | None:
    """Return how many bytes its groups leave to this process, None where none of them limits it."""
    left = []
    for folder in folders(site, "memory"):
        for most, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, now = shown(site, f"{folder}/{most}"), shown(site, f"{folder}/{used}")
            if re.fullmatch(r"\d{1,19}", limit) and re.fullmatch(r"\d{1,19}", now) and int(limit) < NO_LIMIT:
                left.append(max(0, int(limit) - int(now)))
    return min(left, default=None)


def folders(site: Site, controller: str) -> list[str]:
    """Return the folders of the groups that this process is in for a controller, the inner ones first."""
    found = []
    for number, _, rest in (line.partition(":") for line in shown(site, "/proc/self/cgroup").splitlines()):
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found += _upwards(ROOT, path)
        elif controller in controllers.split(","):
            found += _upwards(f"{ROOT}/{controller}", path)
    return found


def _upwards(root: str, path: str) -> list[str]:
    """Return a group's folder and those of all groups around it; a limit of any of them holds."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return ["/".join([root, *parts[:n]]) for n in range(len(parts), -1, -1)]


def shown(site: Site, path: str) -> str:
    """Return the text of a file that need not be there, '' when it cannot be read."""
    try:
        return site.world.read(path)
    except Unmeasurable:
        return ""
