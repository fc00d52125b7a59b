"""Files of the simulated machine: /proc, /sys and /etc as text, in the kernel's formats.

Owns what stands in a file and where it lies. Everything is worked out of the model when it is read;
keeps no state, and knows nobody who reads.
"""

import math
import posixpath
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from pytest_gpuaccept.sim import processes
from pytest_gpuaccept.sim.machine import UPTIME_S, GpuState, Machine
from pytest_gpuaccept.sim.parts import Nic

Text = Callable[[], str]

PCI = "/sys/bus/pci/devices"
DEVICES = "/sys/devices/pci"
"""Where the PCI devices really lie; telemetry reads there ten times a second."""
GIB_KIB = 2**20
MEMORY_FOR_US = 0.983
"""[E] Share of the installed memory that the kernel does not keep for itself before it counts."""
SECTOR = 512
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
CARRIER_AT_BOOT = 2
"""Carrier changes that bringing an interface up leaves behind."""


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
    if binary := BINARY.get(_real(machine, path)):
        return binary(machine)
    found = text(machine, path)
    return None if found is None else found.encode()


def names(machine: Machine, path: str) -> list[str] | None:
    """Return the names in a folder, sorted; None when there is no such folder."""
    folder = f"{_real(machine, path)}/"
    paths = {single for single, line in SYSTEM.items() if single.startswith(folder) and line(machine) is not None}
    paths |= {link for link in _links(machine) if link.startswith(folder)}
    for prefix, provide in PROVIDERS:
        if prefix.startswith(folder) or folder.startswith(prefix):
            paths |= {file for file in provide(machine, "") if file.startswith(folder)}
    return sorted({file.removeprefix(folder).split("/")[0] for file in paths}) or None


def boot_id(machine: Machine) -> uuid.UUID:
    """Return the id of the machine's boot."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{machine.seed}/boot")


def online(machine: Machine) -> int:
    """Return how many CPUs are online; those that are not have the highest numbers."""
    return max(1, machine.cpu.threads - machine.cpu.offline)


def _real(machine: Machine, path: str) -> str:
    """Return the path with its link and then its `..` resolved, as the kernel would."""
    for link, target in _links(machine).items() if path.startswith(PCI) else ():
        if path == link or path.startswith(f"{link}/"):
            path = target + path.removeprefix(link)
    return posixpath.normpath(path)


def _links(machine: Machine) -> dict[str, str]:
    """Return the PCI devices, each a link into the tree in which a device lies in its port's folder."""
    links = {}
    for gpu in _slots(machine):
        own, port = gpu.address, gpu.port
        links[f"{PCI}/{port}"] = f"/sys/devices/pci{port[:7]}/{port}"
        links[f"{PCI}/{own}"] = f"/sys/devices/pci{port[:7]}/{port}/{own}"
    return links


def _slots(machine: Machine) -> list[GpuState]:
    return [gpu for gpu in machine.gpus if gpu.p.present]


def _devices(machine: Machine, real: str) -> dict[str, Text]:
    """Return the files of the GPU, and of its port, among whose folders a path lies; of all for ''."""
    links = _links(machine)
    near = [gpu for gpu in _slots(machine) if not real or real.startswith(f"{links[f'{PCI}/{gpu.port}']}/")]
    return {path: write for gpu in near for path, write in _link(machine, gpu).items()}


def _processes(machine: Machine, _real: str) -> dict[str, Text]:
    """Return what /proc says of those who use a GPU."""
    return {
        f"/proc/{process.pid}/comm": partial(str, f"{process.name}\n")
        for gpu in _slots(machine)
        for process in (*processes.compute(gpu), *processes.graphics(gpu))
    }


def _networks(machine: Machine, _real: str) -> dict[str, Text]:
    """Return the files of every network interface."""
    return {path: write for nic in machine.nics for path, write in _network(machine, nic).items()}


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


def _drives(machine: Machine, _real: str) -> dict[str, Text]:
    """Return the drives' controllers and the statistics of their block devices."""
    spare = range(machine.host.other_drives)
    files = {f"/sys/class/nvme/nvme{len(machine.drives) + i}/state": "live" for i in spare}
    for number, (name, drive) in enumerate(machine.drives.items()):
        if drive.present:
            moved = {side: count // SECTOR for side, count in machine.moved[name].items()}
            files[f"/sys/class/nvme/{name}/state"] = "live"
            files[f"/sys/dev/block/259:{number}/stat"] = (
                f"0 0 {moved['read']} 0 0 0 {moved['write']} 0 0 0 0 0 0 0 0 0 0"
            )
    return {path: partial(str, f"{line}\n") for path, line in files.items()}


def _network(machine: Machine, name: str) -> dict[str, Text]:
    nic = machine.nics[name]
    changes = CARRIER_AT_BOOT + 2 * machine.flapped[name]
    lines = {"carrier_changes": f"{changes}", "operstate": "up", "speed": "10000"} if nic.readable else {}
    return {f"/sys/class/net/{nic.interface}/{file}": partial(str, f"{line}\n") for file, line in lines.items()}


def _route(nics: Iterable[Nic]) -> str:
    """Return the routing table; the default route is the first interface's, addresses are in network byte order."""
    head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
    rows = [
        head,
        *(f"{nic.interface}\t00000000\t010200C0\t0003\t0\t0\t{n}\t00000000\t0\t0\t0" for n, nic in enumerate(nics)),
    ]
    return "\n".join(f"{row:<127}" for row in rows)


def _link(machine: Machine, gpu: GpuState) -> dict[str, Text]:
    """Return the files of a GPU's PCI device and of the port above it."""
    own, port = gpu.address, gpu.port
    links = _links(machine)
    files: dict[str, Text] = {}
    for side, address, gen in (("gpu", own, gpu.p.card_gen), ("port", port, gpu.p.slot_gen)):
        folder = links[f"{PCI}/{address}"]
        files[f"{folder}/uevent"] = partial(str, f"PCI_SLOT_NAME={address}\n")
        files[f"{folder}/max_link_speed"] = partial(str, f"{GTS[gen]} GT/s PCIe\n")
        files[f"{folder}/max_link_width"] = partial(str, "16\n")
        differs = side == "port" and not gpu.p.lost
        width = gpu.p.port_width if differs and gpu.p.port_width else gpu.p.pcie_width
        files[f"{folder}/current_link_speed"] = partial(_speed, machine, gpu, gpu.p.port_gen if differs else 0)
        files[f"{folder}/current_link_width"] = partial(str, f"{0 if gpu.p.lost else width}\n")
        if gpu.p.aer_counters:
            counted = machine.host.aer_armed and side == gpu.p.aer_side
            files |= {f"{folder}/{file}": write for file, write in _aer(gpu, counted=counted).items()}
    return files


def _speed(machine: Machine, gpu: GpuState, most: int) -> str:
    """Return a link's speed, at most that of generation `most` unless it is 0."""
    gen = min(gpu.link_gen(machine.now), most or gpu.p.card_gen)
    return "Unknown\n" if gpu.p.lost else f"{GTS[gen]} GT/s PCIe\n"


def _aer(gpu: GpuState, *, counted: bool) -> Mapping[str, Text]:
    """Return the counter files of one link partner; what the kernel does not listen to it does not count."""
    corrected, uncorrected = (int(gpu.corrected), gpu.uncorrected) if counted else (0, 0)
    return {
        "aer_dev_correctable": partial(_counters, CORRECTABLE, "RxErr", corrected, "COR"),
        "aer_dev_nonfatal": partial(_counters, UNCORRECTABLE, "TLP", uncorrected, "NONFATAL"),
        "aer_dev_fatal": partial(_counters, UNCORRECTABLE, "TLP", 0, "FATAL"),
    }


def _counters(kinds: Iterable[str], kind: str, count: int, severity: str) -> str:
    lines = [f"{name} {count if name == kind else 0}\n" for name in kinds]
    return "".join([*lines, f"TOTAL_ERR_{severity} {count}\n"])


def _modalias(machine: Machine) -> str:
    host = machine.host
    return f"dmi:bvr{host.bios}:rvn{host.board_vendor}:rn{host.board_name}:".replace(" ", "")


def _meminfo(machine: Machine) -> str:
    cpu = machine.cpu
    return f"MemTotal:       {int(cpu.dimms * cpu.dimm_gib * GIB_KIB * MEMORY_FOR_US)} kB"


def _os_release(machine: Machine) -> str:
    host = machine.host
    return f'NAME="{host.os_id.title()}"\nVERSION_ID="{host.os_version}"\nID={host.os_id}'


SYSTEM: dict[str, Callable[[Machine], str | None]] = {
    "/etc/machine-id": lambda machine: uuid.uuid5(uuid.NAMESPACE_OID, f"{machine.seed}/machine").hex,
    "/etc/os-release": _os_release,
    "/proc/cmdline": lambda machine: machine.host.cmdline,
    "/proc/cpuinfo": _cpuinfo,
    "/proc/driver/nvidia/version": _driver,
    "/proc/loadavg": _loadavg,
    "/proc/meminfo": _meminfo,
    "/proc/net/route": lambda machine: _route(machine.nics.values()),
    "/proc/stat": _stat,
    "/proc/sys/kernel/hostname": lambda _: "simulated",
    "/proc/sys/kernel/osrelease": lambda machine: machine.host.kernel,
    "/proc/sys/kernel/random/boot_id": lambda machine: str(boot_id(machine)),
    "/sys/class/dmi/id/bios_version": lambda machine: machine.host.bios,
    "/sys/class/dmi/id/board_name": lambda machine: machine.host.board_name,
    "/sys/class/dmi/id/board_vendor": lambda machine: machine.host.board_vendor,
    "/sys/class/dmi/id/modalias": _modalias,
    "/sys/devices/system/cpu/online": lambda machine: _cpu_list(online(machine)),
    "/sys/devices/system/cpu/present": lambda machine: _cpu_list(machine.cpu.threads),
}
"""File of which there is one -> its text without the last line's end; None for no such file."""
BINARY: dict[str, Callable[[Machine], bytes | None]] = {}
"""File that is no text -> its bytes; None for no such file."""
Provider = Callable[[Machine, str], Mapping[str, Text]]
"""Files of a part of the tree, at least the one of the given path; all of them for ''."""
PROVIDERS: tuple[tuple[str, Provider], ...] = (
    (DEVICES, _devices),
    ("/sys/class/net/", _networks),
    ("/sys/class/nvme/", _drives),
    ("/sys/dev/block/", _drives),
    ("/proc/", _processes),
)
"""Beginning of a path -> who knows the files there."""
