"""Tools and servers of the simulated machine: what they print and answer, in the real ones' formats.

Owns udevadm, journalctl, vgs and the monitoring's HTTP answers. fio and stress-ng, which load the
machine, have modules of their own.
"""

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from pytest_gpuaccept.sim.files import boot_id
from pytest_gpuaccept.sim.machine import UPTIME_S, GpuState, LogLine, Machine
from pytest_gpuaccept.sim.nvml import uuid_of

GIB = 2**30
SLOTS = 8
"""[E] Memory slots of the board."""
VOLUME_GROUP_GIB = 474
"""Size of the one volume group: what a 512 GB disk leaves beside the boot partitions."""
EXTENT = 4 * 2**20
SCRAPED_S = 7
"""[E] Seconds since the last scrape."""
STALE_S = 3600
"""[E] Seconds since the last scrape of a Prometheus that no longer scrapes."""
NODE_EXPORTER, DCGM_EXPORTER, PROMETHEUS, GRAFANA = 9100, 9400, 9090, 3000

Command = Callable[[Machine, Sequence[str]], tuple[int, str, str]]
"""A tool: status, stdout and stderr for its command line."""


def http(machine: Machine, url: str) -> str | None:
    """Return what a server of the machine answers, None where nothing answers."""
    place = urlsplit(url)
    answer = ANSWERS.get((place.port, place.path))
    return None if answer is None else answer(machine)


def udevadm(machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:
    """Print the properties of the DMI device, the only one that is known here."""
    device = argv[-1]
    if device != "/sys/devices/virtual/dmi/id":
        return 1, "", f'Unknown device "{device}": No such device\n'
    cpu = machine.cpu
    slots = [_module(n, cpu.dimm_gib, cpu.dimm_mts) if n < cpu.dimms else {f"MEMORY_DEVICE_{n}_PRESENT": "0"}
             for n in range(max(SLOTS, cpu.dimms))]  # fmt: skip
    head = {"DEVPATH": "/devices/virtual/dmi/id", "SUBSYSTEM": "dmi", "MEMORY_ARRAY_NUM_DEVICES": f"{len(slots)}"}
    return 0, "".join(f"{key}={value}\n" for part in (head, *slots) for key, value in part.items()), ""


def _module(n: int, gib: int, mts: int) -> dict[str, str]:
    facts = {"TOTAL_WIDTH": "72", "DATA_WIDTH": "64", "SIZE": f"{gib * GIB}", "FORM_FACTOR": "DIMM", "TYPE": "DDR4",
             "LOCATOR": f"DIMM_{n}", "SPEED_MTS": f"{mts}", "CONFIGURED_SPEED_MTS": f"{mts}"}  # fmt: skip
    return {f"MEMORY_DEVICE_{n}_{key}": value for key, value in facts.items()}


def journalctl(machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:  # noqa: ARG001 - it knows the kernel log only
    """Print the kernel's records as JSON lines; nothing, with status 0, to who may not look."""
    if not machine.host.log_readable:
        return 0, "", ""
    return 0, "".join(f"{json.dumps(_record(machine, n, line))}\n" for n, line in enumerate(machine.log)), ""


def _record(machine: Machine, n: int, line: LogLine) -> dict[str, str]:
    monotonic = round(1e6 * (line.at + UPTIME_S))
    record = {
        "__CURSOR": f"s={boot_id(machine).hex};i={n:x}",
        "__REALTIME_TIMESTAMP": f"{round(1e6 * (machine.started.timestamp() + line.at))}",
        "__MONOTONIC_TIMESTAMP": f"{monotonic}",
        "_SOURCE_MONOTONIC_TIMESTAMP": f"{monotonic}",
        "_BOOT_ID": boot_id(machine).hex,
        "_TRANSPORT": "kernel",
        "SYSLOG_IDENTIFIER": "kernel",
        "PRIORITY": f"{line.priority}",
        "MESSAGE": _message(machine, line),
    }
    return record | ({"_KERNEL_SUBSYSTEM": "pci", "_KERNEL_DEVICE": f"+pci:{line.device}"} if line.device else {})


def _message(machine: Machine, line: LogLine) -> str:
    """Return the message; firmware that keeps AER to itself leaves it out of what it grants at boot."""
    granted = machine.host.aer_armed or "_OSC: OS now controls" not in line.message
    return line.message if granted else line.message.replace(" AER", "")


def vgs(machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:  # noqa: ARG001 - one report whatever is asked
    """Print the volume group's name, size and free bytes."""
    size = VOLUME_GROUP_GIB * GIB
    free = int(size * machine.host.lvm_free) // EXTENT * EXTENT
    report = {"report": [{"vg": [{"vg_name": "vg0", "vg_size": f"{size}", "vg_free": f"{free}"}]}], "log": []}
    return 0, json.dumps(report, indent=2) + "\n", ""


def _ready(machine: Machine) -> str | None:
    return None if machine.host.prometheus == "down" else "Prometheus Server is Ready.\n"


def _targets(machine: Machine) -> str | None:
    """Return Prometheus' targets: itself, the machine, the GPUs."""
    if machine.host.prometheus == "down":
        return None
    age = STALE_S if machine.host.prometheus == "stale" else SCRAPED_S
    scraped = machine.started + dt.timedelta(seconds=machine.now - age)
    ups = {"prometheus": (PROMETHEUS, True), "node": (NODE_EXPORTER, True),
           "dcgm": (DCGM_EXPORTER, _exporter(machine) is not None)}  # fmt: skip
    targets = [_target(job, port, scraped, up=up) for job, (port, up) in ups.items()]
    return json.dumps({"status": "success", "data": {"activeTargets": targets, "droppedTargets": []}})


def _target(job: str, port: int, scraped: dt.datetime, *, up: bool) -> dict[str, object]:
    url = f"http://127.0.0.1:{port}/metrics"
    return {
        "labels": {"instance": f"127.0.0.1:{port}", "job": job},
        "scrapePool": job,
        "scrapeUrl": url,
        "lastError": "" if up else f'Get "{url}": dial tcp 127.0.0.1:{port}: connect: connection refused',
        "lastScrape": f"{scraped:%Y-%m-%dT%H:%M:%S.%f}123Z",
        "health": "up" if up else "down",
        "scrapeInterval": "15s",
    }


def _exporter(machine: Machine) -> str | None:
    """Return the DCGM exporter's metrics of the GPUs that it covers."""
    host = machine.host
    if not host.exporter or not host.driver_loaded:
        return None
    present = [gpu for gpu in machine.gpus if gpu.p.present and not gpu.p.lost]
    covered = present if host.exporter_gpus < 0 else present[: host.exporter_gpus]
    lines = [line for series in SERIES for line in _series(machine, series, covered)]
    return "\n".join(lines) + "\n"


SERIES: Mapping[str, tuple[str, Callable[[GpuState], float]]] = {
    "DCGM_FI_DEV_GPU_TEMP": ("GPU temperature (in C).", lambda gpu: round(gpu.temperature)),
    "DCGM_FI_DEV_POWER_USAGE": ("Power draw (in W).", lambda gpu: round(gpu.power, 3)),
    "DCGM_FI_DEV_SM_CLOCK": ("SM clock frequency (in MHz).", lambda gpu: round(gpu.clock_mhz)),
}
"""Series of the exporter -> help and value."""


def _series(machine: Machine, name: str, covered: Sequence[GpuState]) -> list[str]:
    explained, value = SERIES[name]
    samples = [f"{name}{{{_labels(machine, gpu)}}} {value(gpu):g}" for gpu in covered]
    return [f"# HELP {name} {explained}", f"# TYPE {name} gauge", *samples]


def _labels(machine: Machine, gpu: GpuState) -> str:
    labels = {
        "gpu": f"{gpu.index}",
        "UUID": uuid_of(machine, gpu.index),
        "pci_bus_id": f"0000{gpu.address.upper()}",
        "device": f"nvidia{gpu.index}",
        "modelName": gpu.p.name,
        "Hostname": "simulated",
    }
    return ",".join(f"{key}={json.dumps(value)}" for key, value in labels.items())


def _grafana(machine: Machine) -> str | None:
    if machine.host.grafana == "down":
        return None
    state = "failing" if machine.host.grafana == "database" else "ok"
    return json.dumps({"database": state, "version": "12.3.0", "commit": "0000000000"}, indent=2)


COMMANDS: dict[str, Command] = {"udevadm": udevadm, "journalctl": journalctl, "vgs": vgs}
"""Name of a tool -> what it does."""
ANSWERS: dict[tuple[int | None, str], Callable[[Machine], str | None]] = {
    (PROMETHEUS, "/-/ready"): _ready,
    (PROMETHEUS, "/api/v1/targets"): _targets,
    (DCGM_EXPORTER, "/metrics"): _exporter,
    (GRAFANA, "/api/health"): _grafana,
}
"""Port and path -> what is answered there."""
