"""The poll of the sensors: one record a GPU and period, what could not be read named beside it.

Owns which NVML readings are taken. A reading that fails is a reason in the record, never a zero.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

Record = dict[str, Any]
SW_THERMAL_NS, HW_THERMAL_NS, BRAKE_NS = 269, 270, 271
"""NVML field ids of the throttle time counters, in ns (nvml.h)."""
LEAST_PERIOD_S = 0.02
"""NVML's own readings change no faster."""


class Clock(Protocol):
    """Time as the poll sees it."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""


def telemetry(nvml: Any, clock: Clock, *, uuids: Sequence[str], period_s: float) -> Iterator[Record]:
    """Poll every GPU each `period_s` until ended; one that is lost is asked again each time."""
    handles: dict[str, Any] = {}
    due = clock.monotonic()
    while True:
        for uuid in uuids:
            yield {"kind": "sample", "t": clock.monotonic(), "uuid": uuid, **_ask(nvml, handles, uuid)}
        now = clock.monotonic()
        due = max(due + period_s, now + LEAST_PERIOD_S)
        clock.sleep(due - now)


def _ask(nvml: Any, handles: dict[str, Any], uuid: str) -> Record:
    try:
        handle = handles.get(uuid) or handles.setdefault(uuid, nvml.nvmlDeviceGetHandleByUUID(uuid))
    except nvml.NVMLError as error:
        return {"failed": dict.fromkeys([*READINGS, "throttle_ns"], str(error))}
    return sample(nvml, handle)


def sample(nvml: Any, handle: Any) -> Record:
    """Return one GPU's readings: C, W, mJ, MHz, masks, ns; `failed` says why a reading is absent."""
    values: Record = {}
    failed: dict[str, str] = {}
    for name, read in READINGS.items():
        try:
            values[name] = read(nvml, handle)
        except nvml.NVMLError as error:
            failed[name] = str(error)
    _time_counters(nvml, handle, values, failed)
    return {**values, "failed": failed}


def _time_counters(nvml: Any, handle: Any, values: Record, failed: dict[str, str]) -> None:
    try:
        fields = nvml.nvmlDeviceGetFieldValues(handle, [SW_THERMAL_NS, HW_THERMAL_NS, BRAKE_NS])
    except nvml.NVMLError as error:
        failed["throttle_ns"] = str(error)
        return
    wrong = [field.nvmlReturn for field in fields if field.nvmlReturn != nvml.NVML_SUCCESS]
    if wrong:
        failed["throttle_ns"] = str(nvml.NVMLError(wrong[0]))
    else:
        values["throttle_ns"] = sum(field.value.ullVal for field in fields)


READINGS: dict[str, Callable[[Any, Any], float]] = {
    "temperature": lambda nvml, h: nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU),
    "power": lambda nvml, h: nvml.nvmlDeviceGetPowerUsage(h) / 1000,
    "energy_mj": lambda nvml, h: nvml.nvmlDeviceGetTotalEnergyConsumption(h),
    "sm_mhz": lambda nvml, h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_SM),
    "reasons": lambda nvml, h: nvml.nvmlDeviceGetCurrentClocksEventReasons(h),
    "pstate": lambda nvml, h: nvml.nvmlDeviceGetPerformanceState(h),
    "utilisation": lambda nvml, h: nvml.nvmlDeviceGetUtilizationRates(h).gpu,
    "gen": lambda nvml, h: nvml.nvmlDeviceGetCurrPcieLinkGeneration(h),
    "width": lambda nvml, h: nvml.nvmlDeviceGetCurrPcieLinkWidth(h),
}
"""Name of a reading -> how NVML gives it."""
