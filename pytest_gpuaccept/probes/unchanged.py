"""Whether the machine at the end of the run is the one of its start: parts, places, numbers, settings.

Owns what is looked at twice, and its comparison. The settings of the GPUs are gpus/state.py's, the state of
the network links network/nic.py's. Must not judge.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.host import dimms, settings
from pytest_gpuaccept.probes.kernel.aer import PCI
from pytest_gpuaccept.probes.since import attempt, begun

UNCHANGED = Metric("host.inventory.unchanged", "The machine is the one of the start", "flag", "host")
NET = "/sys/class/net"
NVME = "/sys/class/nvme"
FILES = {
    "kernel": "/proc/sys/kernel/osrelease",
    "kernel options": "/proc/cmdline",
    "CPUs online": "/sys/devices/system/cpu/online",
    "clock source": "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "machine": "/etc/machine-id",
    "BIOS": "/sys/class/dmi/id/bios_version",
}
"""What stands in one file."""
ALWAYS = "kernel", "kernel options", "CPUs online", "memory"
"""What every machine shows: where one of these is not read, nothing shows that the rest was."""
WITH_GPUS = "GPUs", "PCI devices"
"""What a machine with GPUs shows besides."""
UNKNOWN_WIDTHS = ("", "0", "255")
"""What sysfs says of a link that is none, or of which it knows nothing."""
MOST = 12
"""Changes that a note names."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The machine at one moment: per subject its entries, each a text; or why the subject could not be read."""

    said: Mapping[str, Mapping[str, str]]
    silent: Mapping[str, str]


def start(site: Site) -> Inventory:
    """Read the machine; a subject that cannot be read says why."""
    read = {subject: attempt(partial(ask, site)) for subject, ask in SUBJECTS.items()}
    said = {subject: found for subject, found in read.items() if not isinstance(found, Unmeasurable)}
    return Inventory(said, {subject: str(why) for subject, why in read.items() if isinstance(why, Unmeasurable)})


def unchanged(site: Site) -> Iterator[Outcome]:
    """Yield whether nothing changed; a change is proven, whatever else could not be read."""
    first, last = begun(site, Inventory), start(site)
    found = list(changes(first, last))
    lacking = [why for subject, why in missing(first, last) if subject in owed(site) or subject in first.said]
    if found:
        more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
        yield site.measured(UNCHANGED, value=False, samples=2, note="; ".join(found[:MOST]) + more)
    elif lacking:
        yield NotMeasured(UNCHANGED.id, site.device, f"not everything could be compared: {'; '.join(lacking)}")
    else:
        yield site.measured(UNCHANGED, value=True, samples=2, note=_seen(first))


def owed(site: Site) -> tuple[str, ...]:
    """Return the subjects that a machine of this profile must show."""
    return (*ALWAYS, *WITH_GPUS) if site.profile.gpus else ALWAYS


def changes(first: Inventory, last: Inventory) -> Iterator[str]:
    """Yield every entry that came, went or reads otherwise, of the subjects that were read at both ends."""
    for subject in (subject for subject in first.said if subject in last.said):
        before, after = first.said[subject], last.said[subject]
        for name in sorted(before.keys() | after.keys()):
            was, now = before.get(name, "not there"), after.get(name, "gone")
            if was != now:
                yield f"{f'{subject} {name}'.strip()}: {_brief(was)} -> {_brief(now)}"


def _brief(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


LONGEST = 100
"""Characters of an entry that a note shows."""


def missing(first: Inventory, last: Inventory) -> Iterator[tuple[str, str]]:
    """Yield every subject that was not read at an end, with the reason."""
    for subject in SUBJECTS:
        for inventory, moment in ((first, "start"), (last, "end")):
            if subject in inventory.silent:
                yield subject, f"{subject} at the {moment} of the run ({inventory.silent[subject]})"
                break


def _seen(inventory: Inventory) -> str:
    counts = [f"{len(entries)} {subject}" for subject, entries in inventory.said.items() if len(entries) > 1]
    singles = [subject for subject, entries in inventory.said.items() if len(entries) == 1]
    silent = f"; not shown here: {', '.join(inventory.silent)}" if inventory.silent else ""
    return f"compared: {', '.join([*counts, *singles])}{silent}"


# subjects ------------------------------------------------------------------------------------


def _file(path: str) -> Callable[[Site], dict[str, str]]:
    return lambda site: {"": site.world.read(path)}


def _reading(read: Callable[[Site], object]) -> Callable[[Site], dict[str, str]]:
    """Return what asks for a reading and leaves its note away."""

    def ask(site: Site) -> dict[str, str]:
        said = read(site)
        return {"": str(said[0] if isinstance(said, tuple) else said)}

    return ask


def modules(site: Site) -> dict[str, str]:
    """Return the memory modules by their place."""
    told = dimms.memory(site).modules
    return {
        f"{n} {m.get('LOCATOR', '?')}": f"{dimms.described(m)} {m.get('SERIAL_NUMBER', '?')}"
        for n, m in enumerate(told)
    }


def pci_devices(site: Site) -> dict[str, str]:
    """Return the PCI devices by address: their ids, and the driver that has them."""
    return {address: " ".join(_facts(site, f"{PCI}/{address}")) for address in site.world.names(PCI)}


def _facts(site: Site, folder: str) -> Iterator[str]:
    """Yield ids and driver of a PCI device, and the width of its link, which no idle changes."""
    uevent = site.world.read(f"{folder}/uevent")
    for key in ("PCI_CLASS", "PCI_ID", "PCI_SUBSYS_ID", "DRIVER"):
        if match := re.search(rf"^{key}=(\S+)$", uevent, re.MULTILINE):
            yield match[1]
    width = attempt(lambda: site.world.read(f"{folder}/current_link_width"))
    if isinstance(width, str) and width not in UNKNOWN_WIDTHS:
        yield f"x{width}"


def drives(site: Site) -> dict[str, str]:
    """Return the NVMe drives: model, serial number and firmware, as far as they are shown."""
    return {name: " ".join(_told(site, f"{NVME}/{name}")) for name in site.world.names(NVME)}


def _told(site: Site, folder: str) -> Iterator[str]:
    """Yield what a drive's controller shows of itself."""
    for file in DRIVE:
        text = attempt(partial(site.world.read, f"{folder}/{file}"))
        if isinstance(text, str):
            yield text


DRIVE = "model", "serial", "firmware_rev", "state"


def disks(site: Site) -> dict[str, str]:
    """Return the size of every disk that stays in, in sectors, without partitions and what lies on disks."""
    found = {}
    for name in site.world.names(BLOCKS):
        said = {
            file: attempt(partial(site.world.read, f"{BLOCKS}/{name}/{file}")) for file in ("partition", "removable")
        }
        if isinstance(said["partition"], Unmeasurable) and said["removable"] != "1" and not NO_DISK.match(name):
            found[name] = site.world.read(f"{BLOCKS}/{name}/size")
    return found


BLOCKS = "/sys/class/block"
NO_DISK = re.compile("loop|zram|ram|nbd|dm-|sr|fd")
"""Names of what comes and goes without a change of the machine."""


def memory_controllers(site: Site) -> dict[str, str]:
    """Return the memory that each controller corrects, in MiB."""
    return {name: site.world.read(f"{dimms.EDAC}/{name}/size_mb") for name in dimms.controllers(site)}


def interfaces(site: Site) -> dict[str, str]:
    """Return the network interfaces that have a device, with their MAC; those of containers come and go."""
    devices = {name: attempt(partial(site.world.read, f"{NET}/{name}/device/uevent")) for name in site.world.names(NET)}
    return {name: site.world.read(f"{NET}/{name}/address") for name, said in devices.items() if isinstance(said, str)}


def gpus(site: Site) -> dict[str, str]:
    """Return the GPUs: address and UUID of those that answer."""
    found = settings.listed(site)
    return {name: f"{c.bus_id} {c.uuid}" if c.handle is not None else "does not answer" for name, c in found.items()}


SUBJECTS: dict[str, Callable[[Site], dict[str, str]]] = {
    **{subject: _file(path) for subject, path in FILES.items()},
    "memory": lambda site: {"": f"{dimms.visible(site):.1f} GiB"},
    "memory modules": modules,
    "PCI devices": pci_devices,
    "memory controllers": memory_controllers,
    "NVMe drives": drives,
    "disks": disks,
    "network interfaces": interfaces,
    "GPUs": gpus,
    "governor": _reading(settings.governor),
    "boost": _reading(settings.boost),
    "huge pages": _reading(settings.huge_pages),
    "ASPM policy": _reading(settings.aspm_policy),
    "IOMMU": _reading(settings.iommu),
}
"""What is looked at, in the order of the note."""

PROBES = (Probe("host.unchanged", "final", "host", (UNCHANGED,), unchanged, before=start),)
