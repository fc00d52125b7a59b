"""The controller of the simulated board: what ipmitool prints of its event log, its sensors and its power meter.

Owns the texts in the real tool's formats, and the meter's samples, which go on while the machine works.
"""

from collections.abc import Callable, Generator, Sequence

from pytest_gpuaccept.sim.machine import Machine, Script, ScriptClock
from pytest_gpuaccept.world import Record

Printed = tuple[int, str, str]
"""Status, stdout and stderr."""
SAMPLE_S = 1.0
"""[E] Seconds between two samples of the power meter."""
REST_W, EFFICIENCY = 145.0, 0.9
"""[E] W of all but CPU and GPUs, and the efficiency of the power supplies."""
FAN_RPM = 1500
ENTRIES_AT_START = 2
LOG_BYTES, ENTRY_BYTES = 9216, 18
NO_DEVICE = (
    "Could not open device at /dev/ipmi0 or /dev/ipmi/0 or /dev/ipmidev/0: No such file or directory\n"
)  # fmt: skip
SENSOR = "{:<16} | {} | {:<3} | {:>4} | {}\n"


def watch(machine: Machine) -> None:
    """Let the power meter sample from now on."""

    def sample(clock: ScriptClock) -> Generator[Record, Record | None, None]:
        while True:
            yield {"watts": watts(machine)}
            clock.sleep(SAMPLE_S)

    machine.services.append(Script("bmc", sample, machine))


def watts(machine: Machine) -> float:
    """Return what the machine draws from the wall now."""
    drawn = sum(gpu.power for gpu in machine.gpus if gpu.p.present)
    return (drawn + machine.cpu_load * machine.cpu.power_w + REST_W) / EFFICIENCY


def ipmitool(machine: Machine, argv: Sequence[str]) -> Printed:
    """Answer for the log, the sensors and the power; refuse on a board without a controller."""
    if not machine.host.bmc:
        return 1, "", NO_DEVICE
    words = " ".join(argv[1:])
    if words not in ANSWERS:
        return 1, "", f"Invalid command: {words}\n"
    return 0, ANSWERS[words](machine), ""


def _entries(machine: Machine) -> list[str]:
    """Return the log: what a board keeps of its delivery, and what a fault adds."""
    before = [f"{n:>4x} | 12/01/2025 | 08:0{n}:00 UTC | System Event #0x83 | OEM System boot event | Asserted"
              for n in range(1, ENTRIES_AT_START + 1)]  # fmt: skip
    new = [f"{n:>4x} | 01/01/2026 | 08:10:00 UTC | Power Supply PSU2 Status | Power Supply AC lost | Asserted"
           for n in range(ENTRIES_AT_START + 1, ENTRIES_AT_START + 1 + machine.host.bmc_events)]  # fmt: skip
    return before + new


def _elist(machine: Machine) -> str:
    return "".join(f"{entry}\n" for entry in _entries(machine))


def _info(machine: Machine) -> str:
    count, full = len(_entries(machine)), machine.host.bmc_log_full
    free = 0 if full else LOG_BYTES - ENTRY_BYTES * count
    return (
        "SEL Information\nVersion          : 1.5 (v1.5, v2 compliant)\n"
        f"Entries          : {count}\nFree Space       : {free} bytes \n"
        f"Overflow         : {str(full).lower()}\nSupported Cmds   : 'Reserve' 'Get Alloc Info' \n"
    )


def _sensors(machine: Machine) -> str:
    """Return the CPU's temperature, two fans and two power supplies."""
    status, rpm = {"turns": ("ok", f"{FAN_RPM} RPM"), "slow": ("lcr", "200 RPM"), "silent": ("ns", "No Reading")}[
        machine.host.bmc_fan
    ]
    state = "Presence detected" + (", Failure detected" if machine.host.bmc_supply_failed else "")
    rows = [
        ("CPU1 Temp", "31h", "ok", "3.1", f"{machine.cpu_c:.0f} degrees C"),
        ("FAN1", "41h", status, "29.1", rpm),
        ("FAN2", "42h", "ok", "29.2", f"{FAN_RPM} RPM"),
        ("PSU1 Status", "C4h", "ok", "10.1", "Presence detected"),
        ("PSU2 Status", "C5h", "ok", "10.2", state),
    ]
    return "".join(SENSOR.format(*row) for row in rows)


def _power(machine: Machine) -> str:
    samples = [record["watts"] for script in machine.services if script.name == "bmc" for record in script.records]
    seen = [*samples, watts(machine)]
    return f"""
    Instantaneous power reading:              {seen[-1]:>8.0f} Watts
    Minimum during sampling period:           {min(seen):>8.0f} Watts
    Maximum during sampling period:           {max(seen):>8.0f} Watts
    Average power reading over sample period: {sum(seen) / len(seen):>8.0f} Watts
    IPMI timestamp:                           Thu Jan  1 08:00:00 2026
    Sampling period:                          {len(seen) * SAMPLE_S:08.0f} Seconds.
    Power reading state is:                   activated

"""


ANSWERS: dict[str, Callable[[Machine], str]] = {
    "sel info": _info, "sel elist": _elist, "sdr elist": _sensors, "dcmi power reading": _power,
}  # fmt: skip
"""Words behind `ipmitool` -> what it prints."""
COMMANDS: dict[str, Callable[[Machine, Sequence[str]], Printed]] = {"ipmitool": ipmitool}
"""Name of a tool -> what it does."""
