"""Tools of the simulated machine: what they print, in the real ones' formats.

Owns journalctl. What tells of the platform is platform_files.py's, what looks after the machine is
upkeep.py's; fio and stress-ng, which load it, have modules of their own.
"""

import json
from collections.abc import Callable, Sequence

from pytest_gpuaccept.sim import drive_files, nic_files, platform_files
from pytest_gpuaccept.sim.files import boot_id
from pytest_gpuaccept.sim.machine import QUIET, UPTIME_S, LogLine, Machine

Command = Callable[[Machine, Sequence[str]], tuple[int, str, str]]
"""A tool: status, stdout and stderr for its command line."""


def journalctl(machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:
    """Print the kernel's records as JSON lines, or a program's own as text; nothing, with status 0, to who may not."""
    if not machine.host.log_readable:
        return 0, "", ""
    given = dict(word.partition("=")[::2] for word in argv)
    if name := given.get("SYSLOG_IDENTIFIER"):
        own = [line for line in machine.log if line.facility and line.message.startswith(f"{name}: ")]
        found = [{**_record(machine, 0, line), "MESSAGE": line.message.removeprefix(f"{name}: ")} for line in own]
        return 0, "".join(f"{json.dumps(record)}\n" for record in found), ""
    first = _place(machine, given.get("--after-cursor", ""))
    records = (_record(machine, n, line) for n, line in enumerate(machine.log) if n >= first)
    return 0, "".join(f"{json.dumps(record)}\n" for record in records), ""


def _place(machine: Machine, cursor: str) -> int:
    """Return the place behind the record of a cursor."""
    return next((n + 1 for n in range(len(machine.log)) if _cursor(machine, n) == cursor), 0)


def _cursor(machine: Machine, n: int) -> str:
    return f"s={boot_id(machine).hex};i={n:x}"


def _record(machine: Machine, n: int, line: LogLine) -> dict[str, str]:
    monotonic = round(1e6 * (line.at + UPTIME_S))
    record = {
        "__CURSOR": _cursor(machine, n),
        "__REALTIME_TIMESTAMP": f"{round(1e6 * (machine.started.timestamp() + line.at))}",
        "__MONOTONIC_TIMESTAMP": f"{monotonic}",
        "_SOURCE_MONOTONIC_TIMESTAMP": f"{monotonic}",
        "_BOOT_ID": boot_id(machine).hex,
        "_TRANSPORT": "kernel",
        "SYSLOG_FACILITY": f"{line.facility}",
        "SYSLOG_IDENTIFIER": "kernel",
        "PRIORITY": f"{line.priority}",
        "MESSAGE": _message(machine, line),
    }
    return record | ({"_KERNEL_SUBSYSTEM": "pci", "_KERNEL_DEVICE": f"+pci:{line.device}"} if line.device else {})


def _message(machine: Machine, line: LogLine) -> str:
    """Return the message; firmware that keeps AER to itself leaves it out of what it grants at boot."""
    if line.message == QUIET:
        return machine.host.kernel_said or QUIET
    granted = machine.host.aer_armed or "_OSC: OS now controls" not in line.message
    return line.message if granted else line.message.replace(" AER", "")


COMMANDS: dict[str, Command] = {
    **platform_files.COMMANDS, **drive_files.COMMANDS, "journalctl": journalctl, "ethtool": nic_files.ethtool,
}  # fmt: skip
"""Name of a tool -> what it does."""
