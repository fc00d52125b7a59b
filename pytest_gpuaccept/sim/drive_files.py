"""The simulated drives as files and as what nvme-cli and smartctl print of them, in the real formats.

Owns a drive's place in /sys and in mountinfo, and its health log. Everything is worked out of the model when
it is read; keeps no state, and knows nobody who reads.
"""

import json
import math
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pytest_gpuaccept.sim.machine import UPTIME_S, Machine
from pytest_gpuaccept.sim.parts import Drive

SECTOR = 512
UNIT_BYTES = 512_000
KELVIN = 273
GTS = {1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0", 5: "32.0", 6: "64.0"}
HEATING_S = 25.0
"""[E] Busy seconds in which a drive gets warm; it does not cool down in a run."""
TOUCHED_S = 1.0
"""Busy seconds after which what happens to a drive under load has happened."""
Text = Callable[[], str]


def block_name(machine: Machine, device: str) -> str:
    """Return the kernel's name of a drive's block device."""
    return f"nvme{list(machine.drives).index(device)}n1"


def present(machine: Machine) -> Iterator[tuple[int, str, Drive]]:
    """Yield number, device and part of every drive that is there."""
    for number, (device, drive) in enumerate(machine.drives.items()):
        if drive.present:
            yield number, device, drive


def files(machine: Machine, _real: str) -> dict[str, Text]:
    """Return the files of the drives' controllers and block devices."""
    count, others = len(machine.drives), machine.host.other_drives
    lines = _system(machine) | {f"/sys/class/nvme/nvme{count + i}/state": "live" for i in range(others)}
    for number, device, drive in present(machine):
        block, controller = f"{BLOCKS}/259:{number}", f"/sys/class/nvme/nvme{number}"
        facts = {"model": drive.model, "serial": serial(machine, device), "firmware_rev": drive.firmware}
        lines |= {f"{place}/{name}": text for place in (f"{block}/device", controller) for name, text in facts.items()}
        lines |= {f"{block}/{name}": text for name, text in _block(machine, number, device, drive).items()}
        lines |= {f"{controller}/{name}": text for name, text in _controller(machine, device, drive).items()}
        lines[f"{block}/device/uevent"] = f"DEVNAME=nvme{number}\nNVME_TRTYPE=pcie"
    lines |= {f"{CLASS}/{name}/size": lines[f"{BLOCKS}/{number}/size"] for name, number in _disks(machine)}
    return {path: partial(str, f"{line}\n") for path, line in lines.items()}


def _disks(machine: Machine) -> Iterator[tuple[str, str]]:
    """Yield name and `major:minor` of every disk."""
    yield "sda", SYSTEM_DISK
    yield from ((block_name(machine, device), f"259:{number}") for number, device, _ in present(machine))


BLOCKS, CLASS = "/sys/dev/block", "/sys/class/block"


def _system(machine: Machine) -> dict[str, str]:
    """Return the files of the operating system's disk, a SATA drive without partitions."""
    lines = {
        "uevent": "MAJOR=8\nMINOR=0\nDEVNAME=sda\nDEVTYPE=disk", "dev": "8:0",
        "size": f"{int(machine.host.disk_gb * 1e9) // SECTOR}", "device/model": machine.host.disk_model,
    }  # fmt: skip
    return {f"{BLOCKS}/{SYSTEM_DISK}/{name}": text for name, text in lines.items()}


SYSTEM_DISK = "8:0"
"""`major:minor` of the disk that the operating system is on."""


def _block(machine: Machine, number: int, device: str, drive: Drive) -> dict[str, str]:
    moved = machine.moved[device]
    foreign_s = drive.foreign_busy * (machine.now + UPTIME_S)
    busy_ms = round(1000 * (machine.drive_busy_s[device] + foreign_s))
    read = moved["read"] + int(foreign_s * drive.read_mbs * 1e6)
    name = block_name(machine, device)
    return {
        "uevent": f"MAJOR=259\nMINOR={number}\nDEVNAME={name}\nDEVTYPE=disk", "dev": f"259:{number}",
        "size": f"{int(drive.size_gb * 1e9) // SECTOR}",
        "stat": f"0 0 {read // SECTOR} 0 0 0 {moved['write'] // SECTOR} 0 0 {busy_ms} 0 0 0 0 0 0 0",
    }  # fmt: skip


def _controller(machine: Machine, device: str, drive: Drive) -> dict[str, str]:
    sensor = {"name": "nvme", "temp1_label": "Composite", "temp1_input": f"{round(celsius(machine, device) * 1000)}"}
    if drive.critical_c:
        sensor["temp1_crit"] = f"{round(drive.critical_c * 1000)}"
    return {
        "state": "live", "transport": "pcie", "device/numa_node": "0",
        "device/current_link_speed": f"{GTS[drive.pcie_gen]} GT/s PCIe",
        "device/current_link_width": f"{drive.pcie_width}",
        **({f"hwmon1/{name}": text for name, text in sensor.items()} if drive.sensor else {}),
    }  # fmt: skip


def serial(machine: Machine, device: str) -> str:
    """Return a drive's serial number: the stated one, or one of the machine's own."""
    return machine.drives[device].serial or f"SIM{machine.random(f'{device}/serial').randrange(10**10):010d}"


def celsius(machine: Machine, device: str) -> float:
    """Return a drive's temperature, which rises while it works."""
    drive = machine.drives[device]
    return drive.idle_c + (drive.load_c - drive.idle_c) * -math.expm1(-machine.drive_busy_s[device] / HEATING_S)


def mountinfo(machine: Machine) -> str:
    """Return the mounts: the system's own, and those of the drives."""
    lines = [f"22 1 {SYSTEM_DISK} / / rw,relatime shared:1 - ext4 /dev/sda rw"]
    numbers = {device: number for number, device, _ in present(machine)}
    for mount, device in machine.mounts.items():
        if device in numbers:
            options = "ro" if machine.drives[device].read_only else "rw"
            source = f"/dev/{block_name(machine, device)}"
            lines.append(f"30 22 259:{numbers[device]} / {mount} {options},relatime shared:2 - ext4 {source} {options}")
    return "\n".join(lines)


# health ------------------------------------------------------------------------------------------


def _log(machine: Machine, device: str) -> dict[str, Any]:
    """Return a health log in smartctl's words."""
    drive = machine.drives[device]
    loaded = machine.drive_busy_s[device] > TOUCHED_S
    return {
        "critical_warning": drive.critical_warning, "temperature": round(celsius(machine, device)),
        "available_spare": drive.spare, "available_spare_threshold": 10, "percentage_used": drive.used,
        "data_units_read": machine.moved[device]["read"] // UNIT_BYTES,
        "data_units_written": machine.moved[device]["write"] // UNIT_BYTES,
        "power_cycles": 9, "power_on_hours": drive.hours, "unsafe_shutdowns": 2 + drive.power_losses * loaded,
        "media_errors": drive.media_errors, "num_err_log_entries": 0, "warning_temp_time": 0, "critical_comp_time": 0,
    }  # fmt: skip


NVME_WORDS = {"available_spare": "avail_spare", "available_spare_threshold": "spare_thresh",
              "percentage_used": "percent_used"}  # fmt: skip


def nvme(machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:
    """Print a drive's health log as nvme-cli 2.8 does: kelvin, and thermal transitions besides."""
    device = _device(machine, argv[-1])
    if not device:
        return 1, "", f"{argv[-1]}: No such file or directory\n"
    drive = machine.drives[device]
    if not drive.log_readable:
        return 1, "", f"failed to open {argv[-1]}: Permission denied\n"
    log = {NVME_WORDS.get(word, word): value for word, value in _log(machine, device).items()}
    transitions = drive.throttled * (machine.drive_busy_s[device] > TOUCHED_S)
    log |= {"temperature": log["temperature"] + KELVIN, "thm_temp1_trans_count": transitions,
            "thm_temp2_trans_count": 0, "thm_temp1_total_time": 0, "thm_temp2_total_time": 0}  # fmt: skip
    return 0, json.dumps(log, indent=2) + "\n", ""


def smartctl(machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:
    """Print a drive's report as smartctl 7.4 does: C, a bit mask as status, no thermal transitions."""
    device = _device(machine, argv[-1])
    why = "No such file or directory" if not device else "Permission denied"
    if not device or not machine.drives[device].log_readable:
        told = [{"string": f"Smartctl open device: {argv[-1]} failed: {why}", "severity": "error"}]
        return 2, json.dumps({"smartctl": {"exit_status": 2, "messages": told}}) + "\n", ""
    status = 8 if machine.drives[device].critical_warning else 0
    report = {"smartctl": {"version": [7, 4], "exit_status": status},
              "nvme_smart_health_information_log": _log(machine, device)}  # fmt: skip
    return status, json.dumps(report, indent=2) + "\n", ""


def _device(machine: Machine, path: str) -> str:
    """Return the drive behind /dev/nvmeN, '' when there is none."""
    return next((device for n, device, _ in present(machine) if path == posixpath.join("/dev", f"nvme{n}")), "")


COMMANDS: Mapping[str, Callable[[Machine, Sequence[str]], tuple[int, str, str]]] = {"nvme": nvme, "smartctl": smartctl}
SYSTEM: Mapping[str, Callable[[Machine], str | None]] = {"/proc/self/mountinfo": mountinfo}
PROVIDERS = ((f"{BLOCKS}/", files), (f"{CLASS}/", files), ("/sys/class/nvme/", files))
