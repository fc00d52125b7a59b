"""What the simulated kernel counts and keeps: uptime, taint, memory errors, file systems, crashes, AER's ports.

Owns what stands in these files. Everything is worked out of the model when it is read; keeps no state, and
knows nobody who reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from pytest_gpuaccept.sim.drive_files import block_name, present
from pytest_gpuaccept.sim.machine import UPTIME_S, Machine

Text = Callable[[], str]

MODULES = 1 << 0 | 1 << 12 | 1 << 13
"""Taint of a proprietary module that is none of the kernel's own and not signed by it."""
AER_PORTS = "/sys/bus/pci_express/drivers/aer/"
PSTORE = "/sys/fs/pstore"
EDAC = "/sys/devices/system/edac/mc/mc0/"


def uptime(machine: Machine) -> str:
    """Return the seconds since the machine started, and those that its CPUs were idle."""
    up = UPTIME_S + machine.now
    return f"{up:.2f} {0.9 * up * machine.cpu.threads:.2f}"


def tainted(machine: Machine) -> str:
    """Return the kernel's taint."""
    return f"{MODULES | machine.host.taint}"


def memory_errors(machine: Machine, _real: str) -> Mapping[str, Text]:
    """Return what the memory controller has counted."""
    cpu, loaded = machine.cpu, machine.was_loaded
    if not cpu.edac:
        return {}
    counts = {"ce_count": cpu.memory_corrected, "ue_count": cpu.memory_uncorrected}
    return {f"{EDAC}{file}": partial(str, f"{count if loaded else 0}\n") for file, count in counts.items()}


def volumes(machine: Machine, _real: str) -> Mapping[str, Text]:
    """Return the errors of each drive's file system."""
    return {
        f"/sys/fs/ext4/{block_name(machine, device)}/errors_count": partial(
            str, f"{drive.file_errors if machine.was_loaded else 0}\n"
        )
        for _, device, drive in present(machine)
    }  # fmt: skip


def ports(machine: Machine, _real: str) -> Mapping[str, Text]:
    """Return the ports whose errors the kernel's AER driver receives."""
    ports = [gpu.port for gpu in machine.gpus if gpu.p.present]
    ports += [address for address, device in other_devices(machine).items() if not device.port]
    heard = ports if machine.host.aer_armed else []
    return {f"{AER_PORTS}bind": str} | {f"{AER_PORTS}{port}:pcie002/uevent": str for port in heard}


def crashes(machine: Machine, _real: str) -> Mapping[str, Text]:
    """Return what earlier boots left of their crashes."""
    return {f"{PSTORE}/dmesg-efi-{n}": lambda: "Oops#1 Part1\n" for n in range(machine.host.crashes)}


def others(machine: Machine, _real: str) -> Mapping[str, Text]:
    """Return the PCI devices of the drives and of the networks, with their counters of errors."""
    files: dict[str, Text] = {}
    for n, (address, device) in enumerate(other_devices(machine).items()):
        counted = machine.was_loaded and machine.host.aer_armed and n == 0
        lost, mended = (machine.host.device_errors, machine.host.device_corrected) if counted else (0, 0)
        files[f"{device.folder}/uevent"] = partial(str, f"{device.uevent}\nPCI_SLOT_NAME={address}\n")
        for file, word, count in (
            ("correctable", "COR", mended),
            ("nonfatal", "NONFATAL", lost),
            ("fatal", "FATAL", 0),
        ):
            files[f"{device.folder}/aer_dev_{file}"] = partial(str, f"RxErr {count}\nTOTAL_ERR_{word} {count}\n")
    return files


@dataclass(frozen=True, slots=True)
class Other:
    """A PCI device that is no GPU and no port above one: its folder, the port above it, its uevent's beginning."""

    folder: str
    port: str
    uevent: str


def other_devices(machine: Machine) -> dict[str, Other]:
    """Return the other PCI devices by address: drives, networks, and the port above each of these kinds."""
    drives = [f"0000:21:00.{n}" for n, _, _ in present(machine)]
    nics = [f"0000:42:00.{n}" for n, nic in enumerate(machine.nics.values()) if nic.present]
    found: dict[str, Other] = {}
    for port, below, uevent in (
        ("0000:20:03.1", drives, "DRIVER=nvme\nPCI_CLASS=10802\nPCI_ID=144D:A80A"),
        ("0000:40:03.1", nics, "DRIVER=ixgbe\nPCI_CLASS=20000\nPCI_ID=8086:1563"),
    ):
        root = f"{DEVICES}{port[:7]}/{port}"
        found |= {address: Other(f"{root}/{address}", port, uevent) for address in below}
        found[port] = Other(root, "", "DRIVER=pcieport\nPCI_CLASS=60400\nPCI_ID=1022:1483")
    return found


DEVICES = "/sys/devices/pci"
"""Where the PCI devices really lie."""

FILES: dict[str, Callable[[Machine], str | None]] = {
    "/proc/uptime": uptime,
    "/proc/sys/kernel/tainted": tainted,
    "/proc/sys/kernel/watchdog": lambda machine: f"{int(machine.host.lockup_detector)}",
    "/proc/sys/kernel/watchdog_thresh": lambda _: "10",
    "/proc/sys/kernel/soft_watchdog": lambda _: "1",
    "/proc/sys/kernel/hung_task_timeout_secs": lambda _: "120",
    "/proc/sys/kernel/hung_task_warnings": lambda _: "10",
    "/sys/module/rcupdate/parameters/rcu_cpu_stall_suppress": lambda _: "0",
    "/sys/module/pstore/parameters/backend": lambda machine: "efi_pstore" if machine.host.keeps_crashes else "(null)",
}
"""File of which there is one -> its text without the last line's end."""
PROVIDERS: tuple[tuple[str, Callable[[Machine, str], Mapping[str, Text]]], ...] = (
    (EDAC, memory_errors),
    ("/sys/fs/ext4/", volumes),
    (AER_PORTS, ports),
    (f"{PSTORE}/", crashes),
    (DEVICES, others),
)
"""Beginning of a path -> who knows the files there."""
EMPTY = (PSTORE,)
"""Folders that are there also when nothing is in them."""
