"""How the machine is set: governor, boost, NUMA, IOMMU, ACS, ASPM, huge pages, swap, limits of processes.

Owns the parsers of these sources, all of which anyone may read but ACS. Nearly all is recorded for the
reader, who compares two machines; a profile may make a line of any. Changes nothing.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import Card, cards
from pytest_gpuaccept.probes.host.dimms import GIB, mixed
from pytest_gpuaccept.probes.host.machine import Said
from pytest_gpuaccept.probes.kernel.aer import PCI, normal_address
from pytest_gpuaccept.probes.kernel.config_space import is_bridge, redirects
from pytest_gpuaccept.probes.since import attempt

CPUFREQ = "/sys/devices/system/cpu/cpufreq"
NO_TURBO = "/sys/devices/system/cpu/intel_pstate/no_turbo"
NODES = "/sys/devices/system/node"
IOMMU = "/sys/kernel/iommu_groups"
LINK_STATES = ("l0s_aspm", "l1_aspm", "l1_1_aspm", "l1_2_aspm", "l1_1_pcipm", "l1_2_pcipm", "clkpm")
"""What a link may do to save power: files of its device, 1 where it is on."""
NAMED = 8
"""CPUs or bridges that a note names."""


def governor(site: Site) -> Said:
    """Return the CPUs' frequency governor, `mixed: ...` where they differ, which the note names."""
    seen = {policy: _word(site, f"{CPUFREQ}/{policy}/scaling_governor") for policy in policies(site)}
    counted = Counter(seen.values())
    usual = counted.most_common(1)[0][0]
    odd = [f"{policy} {name}" for policy, name in seen.items() if name != usual]
    return mixed(counted), f"{', '.join(odd[:NAMED])}{' ...' if len(odd) > NAMED else ''}"


def policies(site: Site) -> list[str]:
    """Return the frequency policies, each of a CPU or of some; raises Unmeasurable when the kernel sets no clock."""
    names = attempt(lambda: site.world.names(CPUFREQ))
    found = [] if isinstance(names, Unmeasurable) else [name for name in names if re.fullmatch(r"policy\d+", name)]
    if not found:
        message = "the kernel sets no CPU clock here: a virtual machine, or the BIOS keeps the P-states to itself"
        raise Unmeasurable(message)
    return sorted(found, key=lambda name: int(name.removeprefix("policy")))


def boost(site: Site) -> bool:
    """Say whether the CPUs may run above their base clock."""
    text, against = (attempt(partial(site.world.read, path)) for path in (f"{CPUFREQ}/boost", NO_TURBO))
    if isinstance(text, str):
        return _switch(text, f"{CPUFREQ}/boost")
    if isinstance(against, str):
        return not _switch(against, NO_TURBO)
    message = "the kernel shows no switch for boost: a virtual machine, or the BIOS keeps the P-states to itself"
    raise Unmeasurable(message)


def _switch(text: str, path: str) -> bool:
    if text not in ("0", "1"):
        message = f"{path} says {text[:40]!r}, neither 0 nor 1"
        raise Unmeasurable(message)
    return text == "1"


def numa_nodes(site: Site) -> Said:
    """Return the number of NUMA nodes, with their CPUs in the note."""
    nodes = [name for name in site.world.names(NODES) if re.fullmatch(r"node\d+", name)]
    if not nodes:
        message = f"{NODES} names no node"
        raise Unmeasurable(message)
    return len(nodes), "; ".join(f"{node} CPUs {site.world.read(f'{NODES}/{node}/cpulist')}" for node in nodes)


def numa_gpus(site: Site) -> Said:
    """Return the NUMA node of the GPUs; raises Unmeasurable when the firmware does not tell it of one."""
    nodes = {gpu: site.world.read(f"{folder}/numa_node") for gpu, folder in _gpu_folders(site).items()}
    if unknown := [gpu for gpu, node in nodes.items() if not node.isdigit()]:
        message = f"the firmware does not tell the NUMA node of {', '.join(unknown)}: set NPS or update the BIOS"
        raise Unmeasurable(message)
    return _of_gpus(nodes)


def _of_gpus(seen: dict[str, str]) -> Said:
    return mixed(Counter(seen.values())), ", ".join(f"{gpu} {said}" for gpu, said in seen.items())


def _gpu_folders(site: Site) -> dict[str, str]:
    """Return the sysfs folders of the GPUs that answer; raises Unmeasurable when none does."""
    found = {name: card for name, card in listed(site).items() if card.handle is not None}
    if not found:
        message = "no GPU answers"
        raise Unmeasurable(message)
    return {name: f"{PCI}/{normal_address(card.bus_id)}" for name, card in found.items()}


def listed(site: Site) -> dict[str, Card]:
    """Return the GPUs that NVML lists; raises Unmeasurable when it lists none."""
    nvml = site.world.nvml()
    try:
        return cards(site)
    except nvml.NVMLError as error:
        message = f"NVML does not list the GPUs: {error}"
        raise Unmeasurable(message) from None


def huge_pages(site: Site) -> str:
    """Return when the kernel makes huge pages by itself: `always`, `madvise` or `never`."""
    return chosen(site.world.read("/sys/kernel/mm/transparent_hugepage/enabled"))


def aspm_policy(site: Site) -> str:
    """Return the kernel's policy for links that save power."""
    return chosen(site.world.read("/sys/module/pcie_aspm/parameters/policy"))


def chosen(text: str) -> str:
    """Parse `always [madvise] never`; return what is in brackets, else the only word; raises Unmeasurable."""
    match = re.fullmatch(r"(?:[\w-]+ )*\[([\w-]+)\](?: [\w-]+)*|([\w-]+)", text)
    if match is None:
        message = f"{text[:60]!r} chooses nothing"
        raise Unmeasurable(message)
    return match[1] or match[2]


def aspm_gpus(site: Site) -> Said:
    """Return which ways of saving power the GPUs' links have switched on, `none` for none."""
    return _of_gpus({gpu: _saving(site, folder) for gpu, folder in _gpu_folders(site).items()})


def _saving(site: Site, folder: str) -> str:
    names = site.world.names(f"{folder}/link")
    on = [name for name in names if name in LINK_STATES and site.world.read(f"{folder}/link/{name}") == "1"]
    return " ".join(on) or "none"


def iommu(site: Site) -> Said:
    """Return how the IOMMU translates, `off` where there are no groups; the kernel's options stand in the note."""
    options = [word for word in site.world.read("/proc/cmdline").split() if "iommu" in word]
    note = " ".join(options) or "no option of the kernel names it"
    groups = site.world.names(IOMMU)
    if not groups:
        return "off", note
    return mixed(Counter(_word(site, f"{IOMMU}/{group}/type") for group in groups)), note


def acs(site: Site) -> Said:
    """Say whether a bridge sends copies between devices up to the root: peer-to-peer copies then take the long way.

    Raises Unmeasurable without root, who alone may read a whole configuration space.
    """
    spaces = {address: site.world.data(f"{PCI}/{address}/config") for address in site.world.names(PCI)}
    known = {address: redirects(space) for address, space in spaces.items() if is_bridge(space)}
    found = [address for address, on in known.items() if on]
    if not found and (unseen := [address for address, on in known.items() if on is None]):
        message = f"ACS of {len(unseen)} bridges was not shown, {unseen[0]} among them: run as root"
        raise Unmeasurable(message)
    if not known:
        message = "no PCI bridge is shown here: run on the host"
        raise Unmeasurable(message)
    return bool(found), f"{len(known)} bridges; {', '.join(found[:NAMED]) or 'none'} redirects"


def swap(site: Site) -> Said:
    """Return the size of the swap space in GiB."""
    return parse_swap(site.world.read("/proc/swaps"))


def parse_swap(text: str) -> Said:
    """Parse /proc/swaps; raises Unmeasurable for anything else."""
    head, *rows = text.splitlines() or [""]
    sizes = [re.fullmatch(r"(\S+)\s+\w+\s+([0-9]{1,15})\s+[0-9]+\s+-?[0-9]+", row.strip()) for row in rows]
    if not head.startswith("Filename") or None in sizes:
        message = f"/proc/swaps says {text[:60]!r}, which is no table of swap spaces"
        raise Unmeasurable(message)
    known = [match for match in sizes if match]
    return sum(int(match[2]) for match in known) * 1024 / GIB, ", ".join(match[1] for match in known)


def limit(site: Site, name: str) -> Said:
    """Return the soft limit of a resource for the process that runs the tests, the hard one in the note."""
    return parse_limit(site.world.read("/proc/self/limits"), name)


def parse_limit(text: str, name: str) -> Said:
    """Parse /proc/PID/limits; raises Unmeasurable when it has no such limit."""
    size = r"([0-9]{1,20}|unlimited)"
    match = re.search(rf"^{re.escape(name)} +{size} +{size}(?: +(\w+))?", text, re.MULTILINE)
    if match is None:
        message = f"/proc/self/limits names no {name!r}"
        raise Unmeasurable(message)
    return match[1], f"hard limit {match[2]}, in {match[3] or 'no unit'}, of the process that runs the tests"


def _word(site: Site, path: str) -> str:
    text = site.world.read(path)
    if not re.fullmatch(r"[\w.:-]{1,60}", text):
        message = f"{path} says {text[:40]!r}, which is no name"
        raise Unmeasurable(message)
    return text


READINGS: dict[Metric, Callable[[Site], Said]] = {
    Metric("host.cpu.governor", "Frequency governor of the CPUs", "text", "host"): governor,
    Metric("host.cpu.boost", "CPUs may boost", "flag", "host"): boost,
    Metric("host.memory.swap", "Swap space", "GiB", "host"): swap,
    Metric("host.kernel.huge_pages", "Transparent huge pages", "text", "host"): huge_pages,
    Metric("host.numa.nodes", "NUMA nodes", "count", "host"): numa_nodes,
    Metric("host.numa.gpus", "NUMA node of the GPUs", "text", "host"): numa_gpus,
    Metric("host.pcie.aspm", "Policy for links that save power (ASPM)", "text", "host"): aspm_policy,
    Metric("host.pcie.aspm_gpus", "Power saving switched on at the GPUs' links", "text", "host"): aspm_gpus,
    Metric("host.pcie.acs", "Bridges redirect peer-to-peer copies (ACS)", "flag", "host"): acs,
    Metric("host.pcie.iommu", "Translation of the IOMMU", "text", "host"): iommu,
    Metric("host.limits.memlock", "Limit of locked memory", "text", "host"): partial(limit, name="Max locked memory"),
    Metric("host.limits.nofile", "Limit of open files", "text", "host"): partial(limit, name="Max open files"),
}
"""Recorded settings; what is not applicable to a machine without GPUs is an absent value there."""
