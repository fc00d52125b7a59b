"""Files of the simulated machine: /proc, /sys and /etc as text, in the kernel's formats.

Owns what stands in a file and where it lies. Everything is worked out of the model when it is read;
keeps no state, and knows nobody who reads.
"""

import math
import posixpath
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial

from pytest_gpuaccept.sim import (
    cpu_files,
    drive_files,
    kernel_files,
    nic_files,
    pci_config,
    platform_files,
    processes,
    upkeep,
)
from pytest_gpuaccept.sim.machine import UPTIME_S, GpuState, Machine

Text = Callable[[], str]

PCI = "/sys/bus/pci/devices"
"""Links to where the PCI devices really lie; telemetry reads there ten times a second."""
GTS = {1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0", 5: "32.0", 6: "64.0"}
"""PCIe generation -> GT/s as sysfs writes it."""
CORRECTABLE = ("RxErr", "BadTLP", "BadDLLP", "Rollover", "Timeout", "NonFatalErr", "CorrIntErr", "HeaderOF")
UNCORRECTABLE = (
    "Undefined", "DLP", "SDES", "TLP", "FCP", "CmpltTO", "CmpltAbrt", "UnxCmplt", "RxOF", "MalfTLP", "ECRC", "UnsupReq",
    "ACSViol", "UncorrIntErr", "BlockedTLP", "AtomicOpBlocked", "TLPBlockedErr", "PoisonTLPBlocked",
)  # fmt: skip
MODULES = {
    "open": "Open Kernel Module for x86_64  {}  Release Build  (dvs-builder@U22-I3-4)  Mon Dec  8 14:02:18 UTC 2025",
    "proprietary": "x86_64 Kernel Module  {}  Mon Dec  8 14:02:18 UTC 2025",
}
"""Flavour -> how the driver's module calls itself."""


def text(machine: Machine, path: str) -> str | None:
    """Return a file's text, None when there is no such file."""
    real = _real(machine, path)
    if single := SYSTEM.get(real):
        line = single(machine)
        return None if line is None else f"{line}\n"
    for prefix, provide in PROVIDERS:
        if real.startswith(prefix) and (write := provide(machine, real).get(real)):
            return write()
    return None


def data(machine: Machine, path: str) -> bytes | None:
    """Return a file's bytes, None when there is no such file."""
    real = _real(machine, path)
    if binary := BINARY.get(real):
        return binary(machine)
    if posixpath.basename(real) == "config":
        return pci_config.config(machine, posixpath.basename(posixpath.dirname(real)))
    found = text(machine, path)
    return None if found is None else found.encode()


def names(machine: Machine, path: str) -> list[str] | None:
    """Return the names in a folder, sorted; None when there is no such folder."""
    folder = f"{_real(machine, path)}/"
    paths = {single for single, line in SYSTEM.items() if single.startswith(folder) and line(machine) is not None}
    paths |= {link for address in _links(machine) if (link := f"{PCI}/{address}").startswith(folder)}
    for prefix, provide in PROVIDERS:
        if prefix.startswith(folder) or folder.startswith(prefix):
            paths |= {file for file in provide(machine, "") if file.startswith(folder)}
    found = sorted({file.removeprefix(folder).split("/")[0] for file in paths})
    return found if found or path in kernel_files.EMPTY else None


def boot_id(machine: Machine) -> uuid.UUID:
    """Return the id of the machine's boot."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{machine.seed}/boot/{machine.host.boot}")


def online(machine: Machine) -> int:
    """Return how many CPUs are online; those that are not have the highest numbers."""
    return max(1, machine.cpu.threads - machine.cpu.offline)


def _real(machine: Machine, path: str) -> str:
    """Return the path with its link and then its `..` resolved, as the kernel would."""
    if path.startswith(f"{PCI}/"):
        address, slash, rest = path[len(PCI) + 1 :].partition("/")
        target = _links(machine).get(address)
        path = f"{target}{slash}{rest}" if target else path
    return posixpath.normpath(path)


def _links(machine: Machine) -> Mapping[str, str]:
    """Return the folder of every PCI device by its address."""
    others = {address: device.folder for address, device in kernel_files.other_devices(machine).items()}
    return {**others, **_tree(_places(machine)).links}


@dataclass(frozen=True, slots=True)
class Tree:
    """The PCI devices: by address the folder, in that of the port; by folder the number of the GPU and its side."""

    links: Mapping[str, str]
    sides: Mapping[str, tuple[int, str]]


def _places(machine: Machine) -> tuple[tuple[str, str], ...]:
    return tuple((gpu.address, gpu.port) for gpu in _slots(machine))


@cache
def _tree(places: tuple[tuple[str, str], ...]) -> Tree:
    ports = {port: f"/sys/devices/pci{port[:7]}/{port}" for _, port in places}
    links = ports | {own: f"{ports[port]}/{own}" for own, port in places}
    sides = {links[address]: (n, side) for n, of in enumerate(places) for address, side in zip(of, SIDES, strict=True)}
    return Tree(links, sides)


SIDES = ("gpu", "port")


def _slots(machine: Machine) -> list[GpuState]:
    return [gpu for gpu in machine.gpus if gpu.p.present]


def _devices(machine: Machine, real: str) -> dict[str, Text]:
    """Return the files of the GPU or of the port in whose folder a path lies; of all for ''."""
    sides, slots, near = _tree(_places(machine)).sides, _slots(machine), posixpath.dirname(real)
    wanted = sides if not real else [near] if near in sides else []
    files: dict[str, Text] = {}
    for folder in wanted:
        number, side = sides[folder]
        files |= _side(machine, slots[number], side, folder)
    return files


def _processes(machine: Machine, _real: str) -> dict[str, Text]:
    """Return what /proc says of those who use a GPU."""
    return {
        f"/proc/{process.pid}/comm": partial(str, f"{process.name}\n")
        for gpu in _slots(machine)
        for process in (*processes.compute(gpu), *processes.graphics(gpu))
    }


def _driver(machine: Machine) -> str | None:
    if not machine.host.driver_loaded:
        return None
    module = MODULES[machine.host.flavour].format(machine.host.driver)
    return f"NVRM version: NVIDIA UNIX {module}\nGCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)"


def _cpu_list(count: int) -> str:
    return "0" if count == 1 else f"0-{count - 1}"


def _cpuinfo(machine: Machine) -> str:
    cpu = machine.cpu
    vendor = "GenuineIntel" if "Intel" in cpu.model else "AuthenticAMD"
    return "".join(
        f"processor\t: {n}\nvendor_id\t: {vendor}\nmodel name\t: {cpu.model}\nphysical id\t: 0\n"
        f"siblings\t: {online(machine)}\ncore id\t\t: {n % cpu.cores}\ncpu cores\t: {cpu.cores}\n\n"
        for n in range(online(machine))
    )


def _loadavg(machine: Machine) -> str:
    """Return the averages over 1, 5 and 15 min; [E] they rise with every burn and do not fall after it."""
    averages = (online(machine) * (1 - math.exp(-machine.cpu_busy_s / over)) for over in (60, 300, 900))
    return " ".join([*(f"{average:.2f}" for average in averages), f"1/{8 * online(machine)}", "4711"])


def _stat(machine: Machine) -> str:
    """Return the ticks of each CPU (100 per s), of which a burn leaves the highest-numbered idle."""
    count, total = online(machine), round(100 * (machine.now + UPTIME_S))
    busy = [round(100 * sum(s for idle, s in machine.worked_s.items() if n < count - idle)) for n in range(count)]
    cpus = [f"cpu{n} {_ticks(ticks, total)}" for n, ticks in enumerate(busy)]
    boot = int(machine.started.timestamp() - UPTIME_S)
    return "\n".join([f"cpu  {_ticks(sum(busy), total * count)}", *cpus, "ctxt 1", f"btime {boot}", ""])


def _ticks(busy: int, total: int) -> str:
    """Return user, nice, system, idle, iowait, irq, softirq, steal, guest and guest_nice."""
    return f"{busy} 0 0 {total - busy} 0 0 0 0 0 0"


def _side(machine: Machine, gpu: GpuState, side: str, folder: str) -> dict[str, Text]:
    """Return the files of a GPU's PCI device, or of the port above it."""
    gen, address = (gpu.p.card_gen, gpu.address) if side == "gpu" else (gpu.p.slot_gen, gpu.port)
    differs = side == "port" and not gpu.p.lost
    width = gpu.p.port_width if differs and gpu.p.port_width else gpu.p.pcie_width
    files: dict[str, Text] = {
        "uevent": lambda: f"{_ids(gpu, side)}PCI_SLOT_NAME={address}\n",
        "max_link_speed": lambda: f"{GTS[gen]} GT/s PCIe\n",
        "max_link_width": lambda: "16\n",
        "current_link_speed": partial(_speed, machine, gpu, gpu.p.port_gen if differs else 0),
        "current_link_width": lambda: f"{0 if gpu.p.lost else width}\n",
    }
    if gpu.p.aer_counters:
        files |= _aer(gpu, counted=machine.host.aer_armed and side == gpu.p.aer_side)
    return {f"{folder}/{name}": write for name, write in files.items()}


def _ids(gpu: GpuState, side: str) -> str:
    """Return driver, class and ids of a GPU or of the port above it."""
    if side == "port":
        return "DRIVER=pcieport\nPCI_CLASS=60400\nPCI_ID=1022:1483\nPCI_SUBSYS_ID=1022:1453\n"
    ids = f"PCI_ID=10DE:{gpu.p.pci_device_id.upper()}\nPCI_SUBSYS_ID=10DE:{gpu.p.pci_device_id.upper()}\n"
    return f"DRIVER=nvidia\nPCI_CLASS=30000\n{ids}"


def _speed(machine: Machine, gpu: GpuState, most: int) -> str:
    """Return a link's speed, at most that of generation `most` unless it is 0."""
    gen = min(gpu.link_gen(machine.now), most or gpu.p.card_gen)
    return "Unknown\n" if gpu.p.lost else f"{GTS[gen]} GT/s PCIe\n"


def _aer(gpu: GpuState, *, counted: bool) -> Mapping[str, Text]:
    """Return the counter files of one link partner; what the kernel does not listen to it does not count."""
    corrected, uncorrected = (gpu.p.aer_before + int(gpu.corrected), gpu.uncorrected) if counted else (0, 0)
    return {
        "aer_dev_correctable": partial(_counters, CORRECTABLE, gpu.p.aer_kind, corrected, "COR"),
        "aer_dev_nonfatal": partial(_counters, UNCORRECTABLE, "TLP", uncorrected, "NONFATAL"),
        "aer_dev_fatal": partial(_counters, UNCORRECTABLE, "TLP", 0, "FATAL"),
    }


def _counters(kinds: Iterable[str], kind: str, count: int, severity: str) -> str:
    lines = [f"{name} {count if name == kind else 0}\n" for name in kinds]
    return "".join([*lines, f"TOTAL_ERR_{severity} {count}\n"])


def _modalias(machine: Machine) -> str:
    host = machine.host
    return f"dmi:bvr{host.bios}:rvn{host.board_vendor}:rn{host.board_name}:".replace(" ", "")


def _os_release(machine: Machine) -> str:
    host = machine.host
    return f'NAME="{host.os_id.title()}"\nVERSION_ID="{host.os_version}"\nID={host.os_id}'


SYSTEM: dict[str, Callable[[Machine], str | None]] = {
    **cpu_files.SYSTEM,
    **drive_files.SYSTEM,
    **kernel_files.FILES,
    **platform_files.FILES,
    "/etc/machine-id": lambda machine: uuid.uuid5(uuid.NAMESPACE_OID, f"{machine.seed}/machine").hex,
    "/etc/os-release": _os_release,
    "/proc/cmdline": lambda machine: machine.host.cmdline,
    "/proc/cpuinfo": _cpuinfo,
    "/proc/driver/nvidia/version": _driver,
    "/proc/loadavg": _loadavg,
    "/proc/net/route": nic_files.route,
    "/proc/stat": _stat,
    "/proc/sys/kernel/hostname": lambda _: "simulated",
    "/proc/sys/kernel/osrelease": lambda machine: machine.host.kernel,
    "/proc/sys/kernel/random/boot_id": lambda machine: str(boot_id(machine)),
    "/sys/class/dmi/id/modalias": _modalias,
    "/sys/devices/system/cpu/online": lambda machine: _cpu_list(online(machine)),
    "/sys/devices/system/cpu/present": lambda machine: _cpu_list(machine.cpu.threads),
    upkeep.RULES: upkeep.rules,
}
"""File of which there is one -> its text without the last line's end; None for no such file."""
BINARY: dict[str, Callable[[Machine], bytes | None]] = {**platform_files.BINARY}
"""File that is no text -> its bytes; None for no such file."""
Provider = Callable[[Machine, str], Mapping[str, Text]]
"""Files of a part of the tree, at least the one of the given path; all of them for ''."""
PROVIDERS: tuple[tuple[str, Provider], ...] = (
    *platform_files.PROVIDERS,
    (kernel_files.DEVICES, _devices),
    ("/sys/class/net/", nic_files.networks),
    *drive_files.PROVIDERS,
    *kernel_files.PROVIDERS,
    *cpu_files.PROVIDERS,
    ("/proc/", _processes),
)
"""Beginning of a path -> who knows the files there."""
