"""The poll of the sensors: one record a GPU and period, what could not be read named beside it.

Owns which readings of NVML and of sysfs are taken. One that fails is a reason in the record, never a zero.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

Record = dict[str, Any]
Read = Callable[[str], str]
"""Returns a file's text; raises OSError."""
LEAST_PERIOD_S = 0.02
"""NVML's own readings change no faster."""
GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
"""GT/s of a lane -> PCIe generation."""
WIDTHS = (1, 2, 4, 8, 12, 16, 32)


class Clock(Protocol):
    """Time as the poll sees it."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""


def telemetry(  # noqa: PLR0913 - all but two by name
    nvml: Any,
    clock: Clock,
    *,
    uuids: Sequence[str],
    period_s: float,
    read: Read | None = None,
    links: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Record]:
    """Poll every GPU each `period_s` until ended, and `read` the sysfs folders that `links` names for its UUID.

    A card that was lost once is not asked again, since a call on it may hang: its reason is in every later sample.
    """
    handles: dict[str, Any] = {}
    lost: dict[str, str] = {}
    due = clock.monotonic()
    while True:
        for uuid in uuids:
            taken = {"kind": "sample", "t": clock.monotonic(), "uuid": uuid, **_ask(nvml, handles, lost, uuid)}
            folders = (links or {}).get(uuid)
            yield _with_hops(taken, folders, read) if read and folders else taken
        now = clock.monotonic()
        due = max(due + period_s, now + LEAST_PERIOD_S)
        clock.sleep(due - now)


def _ask(nvml: Any, handles: dict[str, Any], lost: dict[str, str], uuid: str) -> Record:
    if uuid in lost:
        return {"failed": dict.fromkeys(NAMES, lost[uuid])}
    try:
        handle = handles.get(uuid) or handles.setdefault(uuid, nvml.nvmlDeviceGetHandleByUUID(uuid))
        taken = sample(nvml, handle)
    except nvml.NVMLError as error:
        taken = {"failed": dict.fromkeys(NAMES, str(error))}
    gone = str(nvml.NVMLError(nvml.NVML_ERROR_GPU_IS_LOST))
    if gone in taken["failed"].values():
        lost[uuid] = gone
    return taken


def sample(nvml: Any, handle: Any) -> Record:
    """Return one GPU's readings: C, W, mJ, MHz, %, masks, ns; `failed` says why a reading is absent."""
    values: Record = {}
    failed: dict[str, str] = {}
    for name, read in READINGS.items():
        try:
            values[name] = read(nvml, handle)
        except nvml.NVMLError as error:
            failed[name] = str(error)
    _fields(nvml, handle, values, failed)
    return {**values, "failed": failed}


def _fields(nvml: Any, handle: Any, values: Record, failed: dict[str, str]) -> None:
    """Read what NVML gives as field values, all in one call, and add up the times that count as slowing."""
    try:
        answers = nvml.nvmlDeviceGetFieldValues(handle, [(number, GPU_SCOPE) for number, _ in FIELDS.values()])
    except nvml.NVMLError as error:
        failed.update(dict.fromkeys([*FIELDS, THROTTLE], str(error)))
        return
    other = _other_meaning(nvml)
    for (name, (_, unit)), answer in zip(FIELDS.items(), answers, strict=True):
        if other and name in SLOWING:
            failed[name] = other
        elif answer.nvmlReturn == nvml.NVML_SUCCESS:
            values[name] = field_value(nvml, answer) * unit
        else:
            failed[name] = str(nvml.NVMLError(answer.nvmlReturn))
    if missing := [failed[name] for name in SLOWING if name in failed]:
        failed[THROTTLE] = missing[0]
    else:
        values[THROTTLE] = sum(values[name] for name in SLOWING)


def _other_meaning(nvml: Any) -> str:
    """Return why the fields of SLOWING are something else to this driver, or may be; '' when they are not."""
    try:
        version = str(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError as error:
        return str(error)
    if tuple(int(part) for part in re.findall(r"[0-9]{1,6}", version)[:2]) >= NUMBERED_SINCE:
        return ""
    return f"driver {version} has no time of slowing under its present number: install 580.82 or later"


def field_value(nvml: Any, answer: Any) -> float:
    """Return a field's value from the member of the union that its type says."""
    member = {
        nvml.NVML_VALUE_TYPE_DOUBLE: "dVal", nvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        nvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal", nvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    }  # fmt: skip
    value: float = getattr(answer.value, member.get(answer.valueType, "ullVal"))
    return value


def _with_hops(taken: Record, folders: Sequence[str], read: Read) -> Record:
    """Return a sample with generation and width of each hop, None and a reason where there is none."""
    hops: list[list[int] | None] = []
    failed = dict(taken["failed"])
    for number, folder in enumerate(folders):
        try:
            hops.append(hop(read(f"{folder}/current_link_speed"), read(f"{folder}/current_link_width")))
        except (OSError, ValueError) as error:
            hops.append(None)
            failed[f"hop {number}"] = f"{folder}: {getattr(error, 'strerror', None) or error}"
    return {**taken, "hops": hops, "failed": failed}


def hop(speed: str, width: str) -> list[int]:
    """Parse sysfs' `16.0 GT/s PCIe` and `16` to generation and lanes; raises ValueError for what is no link."""
    rate = re.fullmatch(r"([0-9]{1,2}(?:\.[0-9])?) GT/s(?: PCIe)?", speed.strip())
    generation = GENERATIONS.get(float(rate[1])) if rate else None
    lanes = int(width) if re.fullmatch(r"[0-9]{1,2}", width.strip(), re.ASCII) else 0
    if generation is None or lanes not in WIDTHS:
        message = f"{speed.strip()[:40]!r} and {width.strip()[:40]!r} are no speed and width of a link"
        raise ValueError(message)
    return [generation, lanes]


READINGS: dict[str, Callable[[Any, Any], float]] = {
    "temperature": lambda nvml, h: nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU),
    "power": lambda nvml, h: nvml.nvmlDeviceGetPowerUsage(h) / 1000,
    "energy_mj": lambda nvml, h: nvml.nvmlDeviceGetTotalEnergyConsumption(h),
    "sm_mhz": lambda nvml, h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_SM),
    "mem_mhz": lambda nvml, h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_MEM),
    "fan": lambda nvml, h: nvml.nvmlDeviceGetFanSpeed(h),
    "reasons": lambda nvml, h: nvml.nvmlDeviceGetCurrentClocksEventReasons(h),
    "pstate": lambda nvml, h: nvml.nvmlDeviceGetPerformanceState(h),
    "utilisation": lambda nvml, h: nvml.nvmlDeviceGetUtilizationRates(h).gpu,
    "gen": lambda nvml, h: nvml.nvmlDeviceGetCurrPcieLinkGeneration(h),
    "width": lambda nvml, h: nvml.nvmlDeviceGetCurrPcieLinkWidth(h),
}
"""Name of a reading -> how NVML gives it."""
GPU_SCOPE = 0
"""Power fields are of the GPU (nvml.h: NVML_POWER_SCOPE_GPU), not of the module around it."""
FIELDS: dict[str, tuple[int, float]] = {
    "power_average": (185, 0.001), "power_instant": (186, 0.001),
    "power_cap_ns": (74, 1), "sw_thermal_ns": (269, 1), "hw_thermal_ns": (270, 1), "brake_ns": (271, 1),
}  # fmt: skip
"""Name -> NVML field id, and the factor to W or ns: nvml.h gives power in mW, the times of the clocks' event
reasons (SW_POWER_CAP, SW_THERM_SLOWDOWN, HW_THERM_SLOWDOWN, HW_POWER_BRAKE_SLOWDOWN) in ns.

Numbers, not the binding's names: older bindings lack the three last or number them 251 to 253, and the driver
decides what a number means.
"""
NUMBERED_SINCE = 580, 82
"""Driver from which on the three last have these numbers; from 575 to 580.65 they are settings of power smoothing."""
SLOWING = ("sw_thermal_ns", "hw_thermal_ns", "brake_ns")
"""Time that counts as slowing; the power cap's is what a loaded card does."""
THROTTLE = "throttle_ns"
NAMES = (*READINGS, *FIELDS, THROTTLE)
"""What a sample of NVML holds when nothing fails."""
