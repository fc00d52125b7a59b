"""The upkeep of the simulated machine: what systemd, apt, the clock's service and the volumes' tools print.

Owns systemctl, timedatectl, apt-mark, apt-config, dpkg-query, vgs and lsblk, in the real ones' formats.
"""

import json
from collections.abc import Callable, Sequence

from pytest_gpuaccept.sim.machine import Machine

Printed = tuple[int, str, str]
"""Status, stdout and stderr."""
GIB = 2**30
EXTENT = 4 * 2**20
VOLUME_GROUP_GIB = 474
"""Size of the one volume group: what a 512 GB disk leaves beside the boot partitions."""
NO_SYSTEMD = "System has not been booted with systemd as init system (PID 1). Can't operate.\n"
DAEMON = "/usr/bin/nvidia-persistenced --user nvidia-persistenced --verbose"
RULES = "/usr/lib/udev/rules.d/71-nvidia.rules"
RULE = 'ACTION=="add", DEVPATH=="/module/nvidia", SUBSYSTEM=="module", RUN+="/bin/systemctl start --no-block {}"\n'
FAILING = "fwupd-refresh.service"
DRIVER = ("nvidia-driver-{}-open", "nvidia-dkms-{}-open", "libnvidia-compute-{}")


def rules(machine: Machine) -> str | None:
    """Return udev's rules that come with the driver; None without its daemon."""
    there = machine.host.persistence_unit != "absent"
    return RULE.format("nvidia-persistenced.service") if there else None


def systemctl(machine: Machine, argv: Sequence[str]) -> Printed:
    """Answer for the units that are asked for here; refuse on a machine that another init booted."""
    if not machine.host.systemd:
        return 1, "offline\n" if "is-system-running" in argv else "", NO_SYSTEMD
    return {"show": _show, "list-units": _failed, "is-system-running": _running, "status": _status}[argv[1]](
        machine, argv
    )


def _show(machine: Machine, argv: Sequence[str]) -> Printed:
    unit, asked = argv[-1], argv[argv.index("-p") + 1].split(",")
    known = _persistenced(machine) if unit.startswith("nvidia-persistenced") else _usual(unit)
    return 0, "".join(f"{key}={known[key]}\n" for key in asked if key in known), ""


def _persistenced(machine: Machine) -> dict[str, str]:
    kind = machine.host.persistence_unit
    if kind in ("absent", "masked"):
        load, state = {"absent": ("not-found", ""), "masked": ("masked", "masked")}[kind]
        return {"LoadState": load, "ActiveState": "inactive", "UnitFileState": state, "WantedBy": ""}
    command = f"{DAEMON} --no-persistence-mode" if kind == "no mode" else DAEMON
    path = DAEMON.split(maxsplit=1)[0]
    return {
        "LoadState": "loaded",
        "ActiveState": "active",
        "UnitFileState": "static",
        "ExecStart": f"{{ path={path} ; argv[]={command} ; ignore_errors=no ; start_time=[n/a] ; pid=0 ; status=0/0 }}",
        "WantedBy": "",
        "FragmentPath": "/usr/lib/systemd/system/nvidia-persistenced.service",
        "DropInPaths": "" if kind == "no mode" else "/etc/systemd/system/nvidia-persistenced.service.d/mode.conf",
    }


def _usual(_unit: str) -> dict[str, str]:
    return {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled"}


def _failed(machine: Machine, _argv: Sequence[str]) -> Printed:
    units = [
        {"unit": FAILING if n == 0 else f"job-{n}.service", "load": "loaded", "active": "failed", "sub": "failed",
         "description": "Refresh fwupd metadata and update motd"}
        for n in range(machine.host.failed_units)
    ]  # fmt: skip
    return 0, json.dumps(units) + "\n", ""


def _running(machine: Machine, _argv: Sequence[str]) -> Printed:
    return (1, "degraded\n", "") if machine.host.failed_units else (0, "running\n", "")


def _status(_machine: Machine, argv: Sequence[str]) -> Printed:
    return 3, f"x {argv[-1]}\n     Active: failed (Result: exit-code)\n", ""


def timedatectl(machine: Machine, argv: Sequence[str]) -> Printed:  # noqa: ARG001 - one property is asked for
    """Print whether the kernel's clock is synchronised."""
    return 0, f"NTPSynchronized={'yes' if machine.host.clock_synced else 'no'}\n", ""


def _installed(machine: Machine) -> list[str]:
    return [name.format(machine.host.driver.split(".", maxsplit=1)[0]) for name in DRIVER]


def dpkg_query(machine: Machine, argv: Sequence[str]) -> Printed:  # noqa: ARG001 - always the same list
    """Print the installed packages with their state."""
    return 0, "".join(f"ii {name}\n" for name in ("bash", *_installed(machine), "zlib1g")), ""


def apt_mark(machine: Machine, argv: Sequence[str]) -> Printed:  # noqa: ARG001 - it knows showhold only
    """Print the packages on hold."""
    held = _installed(machine) if machine.host.driver_pin == "hold" else []
    return 0, "".join(f"{name}\n" for name in held), ""


def apt_config(machine: Machine, argv: Sequence[str]) -> Printed:  # noqa: ARG001 - it knows dump only
    """Print the settings of unattended upgrades."""
    pin = machine.host.driver_pin
    lines = [
        'APT::Periodic::Update-Package-Lists "1";',
        f'APT::Periodic::Unattended-Upgrade "{0 if pin == "off" else 1}";',
        'Unattended-Upgrade::Allowed-Origins:: "${distro_id}:${distro_codename}-security";',
    ]
    lines += [f'Unattended-Upgrade::Package-Blacklist:: "{name}";' for name in ("nvidia-", "libnvidia-")
              if pin == "blacklist"]  # fmt: skip
    return 0, "".join(f"{line}\n" for line in lines), ""


def _sizes(machine: Machine) -> tuple[int, int]:
    """Return the volume group's size and free bytes."""
    size = VOLUME_GROUP_GIB * GIB
    return size, int(size * machine.host.lvm_free) // EXTENT * EXTENT


def vgs(machine: Machine, argv: Sequence[str]) -> Printed:  # noqa: ARG001 - one report whatever is asked
    """Print the volume group's name, size and free bytes; nothing, with a warning, to who may not look."""
    size, free = _sizes(machine)
    group = {"vg_name": "vg0", "vg_size": f"{size}", "vg_free": f"{free}"}
    may = machine.host.lvm_readable
    warning = "" if may else "  WARNING: Running as a non-root user. Functionality may be unavailable.\n"
    report = {"report": [{"vg": [group] if may else []}], "log": []}
    return 0, json.dumps(report, indent=2) + "\n", warning


def lsblk(machine: Machine, argv: Sequence[str]) -> Printed:  # noqa: ARG001 - one report whatever is asked
    """Print the disk with its partitions, and the volume that lies in one of them."""
    size, free = _sizes(machine)
    volume = {"name": "vg0-root", "type": "lvm", "fstype": "ext4", "size": size - free}
    parts = [
        {"name": "sda1", "type": "part", "fstype": "vfat", "size": GIB},
        {"name": "sda2", "type": "part", "fstype": "LVM2_member", "size": size, "children": [volume]},
    ]
    disk = {"name": "sda", "type": "disk", "fstype": None, "size": 512_110_190_592, "children": parts}
    return 0, json.dumps({"blockdevices": [disk]}, indent=3) + "\n", ""


COMMANDS: dict[str, Callable[[Machine, Sequence[str]], Printed]] = {
    "systemctl": systemctl, "timedatectl": timedatectl, "apt-mark": apt_mark, "apt-config": apt_config,
    "dpkg-query": dpkg_query, "vgs": vgs, "lsblk": lsblk,
}  # fmt: skip
"""Name of a tool -> what it does."""
