"""The monitoring of the simulated machine: Prometheus with what it stored, DCGM exporter, Grafana.

Owns their HTTP answers in the real ones' formats, and the scrapes, which go on while the machine works.
"""

import datetime as dt
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from http import HTTPStatus
from urllib.parse import SplitResult, parse_qs, urlsplit

from pytest_gpuaccept.sim.machine import GpuState, Machine, Script, ScriptClock
from pytest_gpuaccept.sim.nvml import uuid_of
from pytest_gpuaccept.world import Answer, Record

SCRAPE_S = 15.0
"""Seconds between two scrapes."""
SCRAPED_S = 7
"""[E] Seconds since the last scrape, as the targets show it."""
STALE_S = 3600
"""[E] Seconds since the last scrape of a Prometheus that no longer scrapes."""
SCRAPES = "prometheus"
"""Name of the script that scrapes."""
NODE_EXPORTER, DCGM_EXPORTER, PROMETHEUS, GRAFANA = 9100, 9400, 9090, 3000
TEMPERATURE = "DCGM_FI_DEV_GPU_TEMP"
FROZEN_C = 30.0
"""Temperature that an exporter shows for ever whose engine hangs."""
RULES = {
    "GpuHot": f"{TEMPERATURE} > 85",
    "GpuXid": "DCGM_FI_DEV_XID_ERRORS != 0",
    "GpuReplays": "rate(DCGM_FI_DEV_PCIE_REPLAY_COUNTER[5m]) > 0.1",
}
"""Alert -> its expression."""


def answer(machine: Machine, url: str) -> Answer | None:
    """Return what a server of the machine answers, None where nothing answers."""
    place = urlsplit(url)
    give = ANSWERS.get((place.port, place.path))
    return None if give is None else give(machine, place)


def watch(machine: Machine) -> None:
    """Let Prometheus scrape the temperatures from now on."""

    def scrape(clock: ScriptClock) -> Generator[Record, Record | None, None]:
        while True:
            yield {"at": clock.now().timestamp(), "temperatures": _scraped(machine)}
            clock.sleep(SCRAPE_S)

    machine.services.append(Script(SCRAPES, scrape, machine))


def _scraped(machine: Machine) -> dict[int, float]:
    """Return the temperatures by GPU that a scrape would store now."""
    if machine.host.prometheus != "up" or not _exports(machine):
        return {}
    shown = {gpu.index: _temperature(machine, gpu) for gpu in _covered(machine)}
    return {index: value for index, value in shown.items() if value is not None}


# Prometheus ----------------------------------------------------------------------------------


def _ready(machine: Machine, _place: SplitResult) -> Answer | None:
    if machine.host.prometheus == "down":
        return None
    return Answer(HTTPStatus.OK, "Prometheus Server is Ready.\n")


def _success(machine: Machine, data: object) -> Answer | None:
    if machine.host.prometheus == "down":
        return None
    return Answer(HTTPStatus.OK, json.dumps({"status": "success", "data": data}))


def _targets(machine: Machine, _place: SplitResult) -> Answer | None:
    """Return Prometheus' targets: itself, the machine, the GPUs."""
    age = STALE_S if machine.host.prometheus == "stale" else SCRAPED_S
    scraped = machine.started + dt.timedelta(seconds=machine.now - age)
    ups = {"prometheus": (PROMETHEUS, True), "node": (NODE_EXPORTER, machine.host.node_exporter),
           "dcgm": (DCGM_EXPORTER, _exports(machine))}  # fmt: skip
    targets = [_target(job, port, scraped, up=up) for job, (port, up) in ups.items()]
    return _success(machine, {"activeTargets": targets, "droppedTargets": []})


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


def _query(machine: Machine, place: SplitResult) -> Answer | None:
    """Return the stored temperatures of a range selector, the only query that is known here."""
    asked = re.fullmatch(r"\{__name__=~\".*\"\}\[(\d+)s\]", parse_qs(place.query).get("query", [""])[0])
    if not asked:
        return Answer(HTTPStatus.BAD_REQUEST, json.dumps({"status": "error", "errorType": "bad_data", "error": "?"}))
    since = machine.started.timestamp() + machine.now - int(asked[1])
    scrapes = [record for script in machine.services if script.name == SCRAPES for record in script.records]
    stored = [record for record in scrapes if record["at"] > since]
    values: dict[int, list[tuple[float, str]]] = {}
    for record in stored:
        for index, value in record["temperatures"].items():
            values.setdefault(index, []).append((round(record["at"], 3), f"{value:g}"))
    labels = {"__name__": TEMPERATURE, "instance": f"127.0.0.1:{DCGM_EXPORTER}", "job": "dcgm"}
    result = [{"metric": labels | _labels(machine, machine.gpus[i]), "values": of} for i, of in values.items()]
    return _success(machine, {"resultType": "matrix", "result": result})


def _rules(machine: Machine, _place: SplitResult) -> Answer | None:
    rules = [
        {"type": "alerting", "name": name, "query": query, "health": "ok", "state": "inactive", "alerts": []}
        for name, query in RULES.items()
        if machine.host.alert_rules
    ]
    groups = [{"name": "gpu", "file": "/etc/prometheus/gpu.yml", "interval": 15, "rules": rules}] if rules else []
    return _success(machine, {"groups": groups})


def _runtime(machine: Machine, _place: SplitResult) -> Answer | None:
    return _success(machine, {"startTime": f"{machine.started:%Y-%m-%dT%H:%M:%SZ}", "storageRetention": "15d"})


# exporter ------------------------------------------------------------------------------------


def _exports(machine: Machine) -> bool:
    return machine.host.exporter and machine.host.driver_loaded


def _covered(machine: Machine) -> list[GpuState]:
    """Return the GPUs that the exporter covers."""
    present = [gpu for gpu in machine.gpus if gpu.p.present and not gpu.p.lost]
    return present if machine.host.exporter_gpus < 0 else present[: machine.host.exporter_gpus]


def _exporter(machine: Machine, _place: SplitResult) -> Answer | None:
    """Return the DCGM exporter's metrics of the GPUs that it covers."""
    if not _exports(machine):
        return None
    shown = [name for name in SERIES if name != machine.host.exporter_lacks]
    lines = [line for name in shown for line in _series(machine, name, _covered(machine))]
    return Answer(HTTPStatus.OK, "\n".join(lines) + "\n")


def _temperature(machine: Machine, gpu: GpuState) -> float | None:
    known = {"ok": round(gpu.temperature), "zero": 0.0, "unsupported": None}[gpu.p.temperature_sensor]
    return FROZEN_C if machine.host.exporter_frozen and known is not None else known


def _used_mib(gpu: GpuState) -> float:
    return round(gpu.p.memory_mib * (0.9 if gpu.load else 0.02))


Shown = Callable[[Machine, GpuState], float | None]
SERIES: Mapping[str, tuple[str, Shown]] = {
    TEMPERATURE: ("GPU temperature (in C).", _temperature),
    "DCGM_FI_DEV_POWER_USAGE": ("Power draw (in W).", lambda _, gpu: round(gpu.power, 3)),
    "DCGM_FI_DEV_SM_CLOCK": ("SM clock frequency (in MHz).", lambda _, gpu: round(gpu.clock_mhz)),
    "DCGM_FI_DEV_GPU_UTIL": ("GPU utilization (in %).", lambda _, gpu: 100 if gpu.load else 0),
    "DCGM_FI_DEV_FB_USED": ("Framebuffer memory used (in MiB).", lambda _, gpu: _used_mib(gpu)),
    "DCGM_FI_DEV_FB_FREE": ("Framebuffer memory free (in MiB).", lambda _, gpu: gpu.p.memory_mib - _used_mib(gpu)),
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": ("Total number of PCIe retries.", lambda _, gpu: int(gpu.replays)),
    "DCGM_FI_DEV_XID_ERRORS": ("Value of the last XID error encountered.", lambda _, gpu: gpu.p.xid),
}
"""Series of the exporter -> help and value, None where the card gives none."""


def _series(machine: Machine, name: str, covered: Sequence[GpuState]) -> list[str]:
    explained, value = SERIES[name]
    shown = [(gpu, value(machine, gpu)) for gpu in covered]
    samples = [f"{name}{{{_label_text(machine, gpu)}}} {of:g}" for gpu, of in shown if of is not None]
    return [f"# HELP {name} {explained}", f"# TYPE {name} gauge", *samples]


def _labels(machine: Machine, gpu: GpuState) -> dict[str, str]:
    return {
        "gpu": f"{gpu.index}",
        "UUID": uuid_of(machine, gpu.index),
        "pci_bus_id": f"0000{gpu.address.upper()}",
        "device": f"nvidia{gpu.index}",
        "modelName": gpu.p.name,
        "Hostname": "simulated",
    }


def _label_text(machine: Machine, gpu: GpuState) -> str:
    return ",".join(f"{key}={json.dumps(value)}" for key, value in _labels(machine, gpu).items())


# Grafana -------------------------------------------------------------------------------------


def _grafana(machine: Machine, _place: SplitResult) -> Answer | None:
    if machine.host.grafana == "down":
        return None
    failing = machine.host.grafana == "database"
    status = HTTPStatus.SERVICE_UNAVAILABLE if failing else HTTPStatus.OK
    said = {"database": "failing" if failing else "ok", "version": "12.3.0", "commit": "0000000000"}
    return Answer(status, json.dumps(said, indent=2))


ANSWERS: dict[tuple[int | None, str], Callable[[Machine, SplitResult], Answer | None]] = {
    (PROMETHEUS, "/-/ready"): _ready,
    (PROMETHEUS, "/api/v1/targets"): _targets,
    (PROMETHEUS, "/api/v1/query"): _query,
    (PROMETHEUS, "/api/v1/rules"): _rules,
    (PROMETHEUS, "/api/v1/status/runtimeinfo"): _runtime,
    (DCGM_EXPORTER, "/metrics"): _exporter,
    (GRAFANA, "/api/health"): _grafana,
}
"""Port and path -> what is answered there."""
