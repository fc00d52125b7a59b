"""NVML of the simulated machine: the real binding, nvidia-ml-py, over a library that is the machine.

Owns what each C function answers, and with which error; every answer is worked out when it is asked
for. Must not touch the process's own `pynvml`, which may be talking to real cards, and keeps no
reading. What the model has no parameter for is a constant here, marked [E] for estimate.
"""

import ctypes
import importlib.util
import sys
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.sim import processes
from pytest_gpuaccept.sim.machine import GpuState, Machine

Parameter = Any
"""What the binding passes to a C function: a ctypes value, buffer or pointer, or byref() of one, which has no type."""
Answer = int | str | tuple[int, ...] | Mapping[str, int | str] | ctypes.c_void_p
"""One value, a text, several values, the members of a struct, or a device's handle."""

NVIDIA = 0x10DE
"""PCI vendor id."""
RESERVED_SHARE = 1 / 48
"""[E] Share of the memory that the driver keeps; 512 MiB of a 24 GiB card."""
MEMORY_MHZ, IDLE_MEMORY_MHZ = 10501, 405
"""[E] Memory clock under load and idle: an RTX 4090's, whatever the card."""
CLOCK_HEADROOM = 1.16
"""[E] Highest clock over the clock of the cold FP16 rate: 3105 over 2668 MHz on an RTX 4090."""
FAN_FROM_C, FAN_LEAST, FAN_PER_C = 40.0, 30.0, 1.5
"""[E] Fan: 30 % up to 40 C, and 1.5 % more with each degree above."""
SLICED = ("8.0", "9.0", "10.0")
"""Compute capabilities of the chips that MIG cuts into slices, besides the RTX PRO 6000's."""
POWER_RANGE = 1 / 3, 4 / 3
"""[E] Lowest and highest power limit over the default: 150 and 600 W of an RTX 4090's 450 W, whatever the card."""
SLOWS_BELOW_C = 3.0
"""[E] Degrees below its shutdown at which a card slows down: an H100's, whatever the card."""
PART_NUMBER = "900-2G000-0000-000"
"""[E] Board part number: the form of a data centre card's, whatever the card."""
COMPUTE_MODES = {"default": 0, "prohibited": 2, "exclusive": 3}
"""NVML_COMPUTEMODE_*."""
VIDEO = 0, 167_000
"""Use of the video engines in %, since no load has video, over [E] a period in us."""
GOVERNED = 0.999
"""Throttle below which the governor is at work, as in machine.py."""


def _private_binding() -> ModuleType:
    """Execute a second copy of the installed `pynvml`, under a name of ours."""
    spec = importlib.util.find_spec("pynvml")
    private = importlib.util.spec_from_file_location(f"{__name__}.pynvml", spec.origin if spec else None)
    if private is None or private.loader is None:
        message = "nvidia-ml-py is not installed as a Python file: pip install --force-reinstall nvidia-ml-py"
        raise ImportError(message)
    module = importlib.util.module_from_spec(private)
    sys.modules[private.name] = module  # the binding looks itself up to make its error classes
    private.loader.exec_module(module)
    return module


NVML: Any = _private_binding()
"""The copy; its constants are the C header's."""


def binding(machine: Machine) -> ModuleType:
    """Return the initialised binding, its library the machine; raises Unmeasurable without a driver.

    There is one in a process: what an earlier call returned speaks to this machine from now on.
    """
    if getattr(NVML.nvmlLib, "machine", None) is not machine:
        with NVML.libLoadLock:
            NVML.nvmlLib = NvmlLibrary(machine)
            NVML._nvmlGetFunctionPointer_cache.clear()  # noqa: SLF001 - it holds the last machine's functions
    try:
        NVML.nvmlInit()
    except NVML.NVMLError as error:
        message = f"no NVIDIA driver ({error}): does nvidia-smi work? Without a GPU see --hw-sim and --hw-replay"
        raise Unmeasurable(message) from None
    module: ModuleType = NVML
    return module


def uuid_of(machine: Machine, index: int) -> str:
    """Return the UUID of `machine.gpus[index]`, the same in every run of the same seed."""
    return f"GPU-{_identity(machine, index)}"


def _identity(machine: Machine, index: int) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{machine.seed}/gpu{index}")


class _RefusalError(Exception):
    """A C function's answer other than success; `code` is an NVML_ERROR_*."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class NvmlLibrary:
    """The machine as `libnvidia-ml`: attributes are the C functions that it exports, and no others."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.users = machine, 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        """Return a C function; raises AttributeError for one that this library does not export."""
        if name in SYSTEM:
            return partial(self._answer, self._system, SYSTEM[name])
        if name in DEVICE:
            return partial(self._answer, self._device, partial(_reading, DEVICE[name]))
        if name in FILLS:
            return partial(self._answer, self._device, FILLS[name])
        raise AttributeError(name)

    def nvmlInitWithFlags(self, _flags: Parameter) -> int:  # noqa: N802 - the C function's name
        """Count a user in; there is no driver to talk to while the host has not loaded it."""
        if not self.machine.host.driver_loaded:
            return int(NVML.NVML_ERROR_DRIVER_NOT_LOADED)
        self.users += 1
        return int(NVML.NVML_SUCCESS)

    def nvmlShutdown(self) -> int:  # noqa: N802 - the C function's name
        """Count a user out."""
        if not self.users:
            return int(NVML.NVML_ERROR_UNINITIALIZED)
        self.users -= 1
        return int(NVML.NVML_SUCCESS)

    def _answer(self, function: Callable[..., None], *args: Parameter) -> int:
        """Have a call answered, and return what the C function returns."""
        if not self.users or not self.machine.host.driver_loaded:
            return int(NVML.NVML_ERROR_UNINITIALIZED)
        try:
            function(*args)
        except _RefusalError as refusal:
            return refusal.code
        return int(NVML.NVML_SUCCESS)

    def _system(self, read: Callable[..., Answer], *args: Parameter) -> None:
        _fill(partial(read, self.machine), *args)

    def _device(self, fill: Callable[..., None], handle: Parameter, *args: Parameter) -> None:
        fill(self.machine, _of_handle(self.machine, handle), *args)


def _of_handle(machine: Machine, handle: Parameter) -> GpuState:
    """Return the GPU that a handle of this machine is of; refuses any other, and a GPU off the bus."""
    place = (ctypes.c_void_p.from_buffer(handle).value or 0) - id(machine) - 1
    if not 0 <= place < len(machine.gpus):
        raise _RefusalError(NVML.NVML_ERROR_INVALID_ARGUMENT)
    return _answering(machine.gpus[place])


def _answering(gpu: GpuState) -> GpuState:
    """Return the GPU; refuses for one off the bus, also when it was pulled after its handle was taken."""
    if gpu.p.lost or not gpu.p.present:
        raise _RefusalError(NVML.NVML_ERROR_GPU_IS_LOST)
    return gpu


def _not_supported() -> _RefusalError:
    return _RefusalError(NVML.NVML_ERROR_NOT_SUPPORTED)


# parameters ----------------------------------------------------------------------------------


def _reading(read: Callable[..., Answer], machine: Machine, gpu: GpuState, *args: Parameter) -> None:
    _fill(partial(read, machine, gpu), *args)


def _fill(read: Callable[..., Answer], *args: Parameter) -> None:
    """Call `read` with the values passed in, and write what it returns into the places for answers.

    Values come first; what stands behind the first place is the size of a buffer.
    """
    places: list[Parameter] = []
    values: list[Parameter] = []
    for arg in args:
        if isinstance(arg, ctypes.Array) or hasattr(arg, "_obj"):
            places.append(getattr(arg, "_obj", arg))
        elif not places:
            values.append(getattr(arg, "value", arg))
    _write(places, read(*values))


def _write(places: list[Parameter], answer: Answer) -> None:
    if isinstance(answer, str):
        _write_text(places[0], answer.encode())
    elif isinstance(answer, Mapping):
        _write_struct(places[0], answer)
    elif isinstance(answer, ctypes.c_void_p):
        ctypes.c_void_p.from_buffer(places[0]).value = answer.value
    else:
        for place, value in zip(places, answer if isinstance(answer, tuple) else (answer,), strict=True):
            place.value = value


def _write_text(buffer: Parameter, text: bytes) -> None:
    if len(text) >= len(buffer):
        raise _RefusalError(NVML.NVML_ERROR_INSUFFICIENT_SIZE)
    buffer.value = text


def _write_struct(struct: Parameter, members: Mapping[str, int | str]) -> None:
    """Write members; a struct with a version says its own size in it, as nvml.h defines."""
    if hasattr(struct, "version") and struct.version & 0xFFFFFF != ctypes.sizeof(struct):
        raise _RefusalError(NVML.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
    for name, value in members.items():
        setattr(struct, name, value)


# the system ----------------------------------------------------------------------------------


def _listed(machine: Machine) -> list[GpuState]:
    """Return the GPUs that are there, a lost one included, in the order of the PCI bus: NVML's."""
    return sorted((gpu for gpu in machine.gpus if gpu.p.present), key=lambda gpu: gpu.address)


def _handle(machine: Machine, gpu: GpuState) -> ctypes.c_void_p:
    """Return an address that no other machine gives out, so that a stale handle is refused."""
    return ctypes.c_void_p(id(machine) + 1 + _answering(gpu).index)


def _by_index(machine: Machine, index: int) -> ctypes.c_void_p:
    listed = _listed(machine)
    if index >= len(listed):
        raise _RefusalError(NVML.NVML_ERROR_INVALID_ARGUMENT)
    return _handle(machine, listed[index])


def _by_uuid(machine: Machine, wanted: bytes) -> ctypes.c_void_p:
    return _found(machine, lambda gpu: uuid_of(machine, gpu.index).encode() == wanted)


def _by_bus_id(machine: Machine, wanted: bytes) -> ctypes.c_void_p:
    """Find `00000000:C1:00.0`; NVML also takes a short domain or none, and small letters."""
    short = wanted.lower().lstrip(b"0:")
    return _found(machine, lambda gpu: gpu.address.encode().lstrip(b"0:") == short)


def _found(machine: Machine, matches: Callable[[GpuState], bool]) -> ctypes.c_void_p:
    for gpu in _listed(machine):
        if matches(gpu):
            return _handle(machine, gpu)
    raise _RefusalError(NVML.NVML_ERROR_NOT_FOUND)


def _cuda(machine: Machine) -> int:
    major, minor = _numbers(machine.host.cuda_driver)
    return major * 1000 + minor * 10


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


SYSTEM: dict[str, Callable[..., Answer]] = {
    "nvmlSystemGetDriverVersion": lambda m: m.host.driver,
    "nvmlSystemGetNVMLVersion": lambda m: f"{_numbers(m.host.cuda_driver)[0]}.{m.host.driver}",
    "nvmlSystemGetCudaDriverVersion": _cuda,
    "nvmlSystemGetCudaDriverVersion_v2": _cuda,
    "nvmlDeviceGetCount_v2": lambda m: len(_listed(m)),
    "nvmlDeviceGetHandleByIndex_v2": _by_index,
    "nvmlDeviceGetHandleByUUID": _by_uuid,
    "nvmlDeviceGetHandleByPciBusId_v2": _by_bus_id,
}
"""C function -> what it answers for a machine."""


# devices -------------------------------------------------------------------------------------


def _milli(value: float) -> int:
    return round(max(0.0, value) * 1000)


def _labelled(gpu: GpuState) -> GpuState:
    """Return the GPU; refuses for GeForce cards, on which nobody wrote what stands on the label."""
    if "GeForce" in gpu.p.name:
        raise _not_supported()
    return gpu


def _serial(machine: Machine, gpu: GpuState) -> str:
    """Return 13 digits."""
    return f"{_identity(machine, _labelled(gpu).index).int % 10**13:013d}"


def _part_number(_machine: Machine, gpu: GpuState) -> str:
    _labelled(gpu)
    return PART_NUMBER


def _pci(_machine: Machine, gpu: GpuState) -> Mapping[str, int | str]:
    """Return the place on the bus and the card's id; the board maker's id is not modelled."""
    legacy = gpu.address.upper()
    domain, bus, rest = legacy.split(":")
    return {
        "busId": f"0000{legacy}", "busIdLegacy": legacy,
        "domain": int(domain, 16), "bus": int(bus, 16), "device": int(rest.split(".")[0], 16),
        "pciDeviceId": int(gpu.p.pci_device_id, 16) << 16 | NVIDIA,
    }  # fmt: skip


def _memory(_machine: Machine, gpu: GpuState) -> Mapping[str, int]:
    """Return bytes; version 1 counts what the driver keeps as used."""
    total = gpu.p.memory_mib << 20
    kept = int(total * RESERVED_SHARE)
    used = min(total, kept + (processes.used_mib(gpu) << 20))
    return {"total": total, "free": total - used, "used": used}


def _memory_v2(machine: Machine, gpu: GpuState) -> Mapping[str, int]:
    memory = _memory(machine, gpu)
    kept = int(memory["total"] * RESERVED_SHARE)
    return {**memory, "reserved": kept, "used": memory["used"] - kept}


def _temperature(_machine: Machine, gpu: GpuState, sensor: int) -> int:
    if sensor != NVML.NVML_TEMPERATURE_GPU:
        raise _RefusalError(NVML.NVML_ERROR_INVALID_ARGUMENT)
    if gpu.p.temperature_sensor == "unsupported":
        raise _not_supported()
    return 0 if gpu.p.temperature_sensor == "zero" else round(gpu.temperature)


def _clock(_machine: Machine, gpu: GpuState, kind: int) -> int:
    return _of_kind(kind, gpu.clock_mhz, MEMORY_MHZ if gpu.load else IDLE_MEMORY_MHZ)


def _max_clock(_machine: Machine, gpu: GpuState, kind: int) -> int:
    return _of_kind(kind, gpu.cold_clock_mhz * CLOCK_HEADROOM, MEMORY_MHZ)


def _of_kind(kind: int, sm_mhz: float, memory_mhz: float) -> int:
    clocks = {NVML.NVML_CLOCK_GRAPHICS: sm_mhz, NVML.NVML_CLOCK_SM: sm_mhz, NVML.NVML_CLOCK_MEM: memory_mhz}
    if kind not in clocks:
        raise _not_supported()
    return round(clocks[kind])


def _fan(_machine: Machine, gpu: GpuState) -> int:
    return round(min(100.0, FAN_LEAST + FAN_PER_C * max(0.0, gpu.temperature - FAN_FROM_C)))


def _busy(_machine: Machine, gpu: GpuState) -> Mapping[str, int]:
    share = 100 if gpu.load else 0
    return {"gpu": share, "memory": share}


def _reasons(_machine: Machine, gpu: GpuState) -> int:
    """Return the mask of what holds the clock down."""
    holds = {
        NVML.nvmlClocksEventReasonGpuIdle: not gpu.load,
        NVML.nvmlClocksEventReasonSwPowerCap: gpu.at_limit,
        NVML.nvmlClocksEventReasonSwThermalSlowdown: gpu.throttle < GOVERNED,
        NVML.nvmlClocksEventReasonHwPowerBrakeSlowdown: gpu.p.power_brake > 0,
    }
    return sum(bit for bit, held in holds.items() if held)


def _with_ecc(gpu: GpuState) -> GpuState:
    if not gpu.p.ecc:
        raise _not_supported()
    return gpu


def _ecc_mode(_machine: Machine, gpu: GpuState) -> tuple[int, ...]:
    return (int(_with_ecc(gpu).p.ecc),) * 2


def _ecc_errors(_machine: Machine, gpu: GpuState, kind: int, _since: int, location: int = 2) -> int:
    """Return the count of one kind; all errors are of the device's memory, NVML_MEMORY_LOCATION_DRAM."""
    seen = kind == NVML.NVML_MEMORY_ERROR_TYPE_UNCORRECTED and location == NVML.NVML_MEMORY_LOCATION_DRAM
    return _with_ecc(gpu).p.ecc_uncorrected if seen else 0


def _peer_access(machine: Machine, gpu: GpuState, other: Parameter, _direction: int) -> int:
    """Return the NVML_P2P_STATUS_* of a pair: what refuses either of its cards; ours are the same both ways."""
    return P2P_STATUS[gpu.p.p2p] or P2P_STATUS[_of_handle(machine, other).p.p2p]


P2P_STATUS: dict[str, int] = {
    "ok": NVML.NVML_P2P_STATUS_OK, "chipset": NVML.NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED,
    "gpu": NVML.NVML_P2P_STATUS_GPU_NOT_SUPPORTED, "topology": NVML.NVML_P2P_STATUS_IOH_TOPOLOGY_NOT_SUPPORTED,
    "regkey": NVML.NVML_P2P_STATUS_DISABLED_BY_REGKEY, "unsupported": NVML.NVML_P2P_STATUS_NOT_SUPPORTED,
    "unknown": NVML.NVML_P2P_STATUS_UNKNOWN,
}  # fmt: skip
"""What refuses peer access -> how NVML says it."""


def _remapped(_machine: Machine, gpu: GpuState) -> tuple[int, ...]:
    """Return rows remapped for corrected and uncorrected errors, whether one waits for a reset, whether one failed."""
    p = gpu.p if gpu.p.row_remap else _with_ecc(gpu).p
    return 0, p.rows_remapped, int(p.remap_pending or p.ecc_uncorrected > 0), int(p.remap_failed)


def _retired(*_: object) -> int:
    """Refuse: cards that remap rows retire no pages."""
    raise _not_supported()


def _bar1(_machine: Machine, gpu: GpuState) -> Mapping[str, int]:
    """Return bytes: [E] a resizable BAR is as large as the memory, rounded up to a power of two."""
    total = gpu.p.bar1_mib << 20 or 1 << ((gpu.p.memory_mib << 20) - 1).bit_length()
    return {"bar1Total": total, "bar1Free": total, "bar1Used": 0}


def _constraints(_machine: Machine, gpu: GpuState) -> tuple[int, ...]:
    least, most = POWER_RANGE
    return _milli(gpu.p.default_limit_w * least), _milli(gpu.p.default_limit_w * most)


def _threshold(_machine: Machine, gpu: GpuState, kind: int) -> int:
    below = {NVML.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN: 0.0, NVML.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN: SLOWS_BELOW_C}
    if kind not in below:
        raise _not_supported()
    return round(gpu.p.shutdown_c - below[kind])


def _mig(_machine: Machine, gpu: GpuState) -> tuple[int, ...]:
    """Return whether MIG is on, now and after a reset; a card that cannot be cut into slices has no such mode."""
    if not gpu.p.mig and gpu.p.compute_capability not in SLICED and "RTX PRO 6000" not in gpu.p.name:
        raise _not_supported()
    return (int(gpu.p.mig),) * 2


def _violation(machine: Machine, gpu: GpuState, policy: int) -> Mapping[str, int]:
    """Return the time lost to a policy in ns, and the time of the reading in us."""
    lost = {NVML.NVML_PERF_POLICY_POWER: gpu.capped_ns, NVML.NVML_PERF_POLICY_THERMAL: gpu.thermal_ns}
    if policy not in lost or not gpu.p.throttle_counters:
        raise _not_supported()
    return {"referenceTime": _now_us(machine), "violationTime": int(lost[policy])}


def _now_us(machine: Machine) -> int:
    return round((machine.started.timestamp() + machine.now) * 1e6)


DEVICE: dict[str, Callable[..., Answer]] = {
    "nvmlDeviceGetName": lambda _, g: g.p.name,
    "nvmlDeviceGetUUID": lambda m, g: uuid_of(m, g.index),
    "nvmlDeviceGetSerial": _serial,
    "nvmlDeviceGetBoardPartNumber": _part_number,
    "nvmlDeviceGetIndex": lambda m, g: _listed(m).index(g),
    "nvmlDeviceGetPciInfo_v3": _pci,
    "nvmlDeviceGetCudaComputeCapability": lambda _, g: _numbers(g.p.compute_capability),
    "nvmlDeviceGetPersistenceMode": lambda _, g: int(g.p.persistence),
    "nvmlDeviceGetMemoryInfo": _memory,
    "nvmlDeviceGetMemoryInfo_v2": _memory_v2,
    "nvmlDeviceGetPowerManagementLimit": lambda _, g: _milli(g.p.limit_w),
    "nvmlDeviceGetPowerManagementDefaultLimit": lambda _, g: _milli(g.p.default_limit_w),
    "nvmlDeviceGetEnforcedPowerLimit": lambda _, g: _milli(g.p.limit_w),
    "nvmlDeviceGetPowerUsage": lambda _, g: _milli(g.meter_w()),
    "nvmlDeviceGetTotalEnergyConsumption": lambda _, g: int(g.energy_mj),
    "nvmlDeviceGetTemperature": _temperature,
    "nvmlDeviceGetClockInfo": _clock,
    "nvmlDeviceGetMaxClockInfo": _max_clock,
    "nvmlDeviceGetPerformanceState": lambda _, g: NVML.NVML_PSTATE_0 if g.load else NVML.NVML_PSTATE_8,
    "nvmlDeviceGetFanSpeed": _fan,
    "nvmlDeviceGetUtilizationRates": _busy,
    "nvmlDeviceGetEncoderUtilization": lambda *_: VIDEO,
    "nvmlDeviceGetDecoderUtilization": lambda *_: VIDEO,
    "nvmlDeviceGetCurrentClocksEventReasons": _reasons,
    "nvmlDeviceGetCurrentClocksThrottleReasons": _reasons,
    "nvmlDeviceGetCurrPcieLinkGeneration": lambda m, g: g.link_gen(m.now),
    "nvmlDeviceGetMaxPcieLinkGeneration": lambda _, g: min(g.p.card_gen, g.p.slot_gen),
    "nvmlDeviceGetGpuMaxPcieLinkGeneration": lambda _, g: g.p.card_gen,
    "nvmlDeviceGetCurrPcieLinkWidth": lambda _, g: g.p.pcie_width,
    "nvmlDeviceGetMaxPcieLinkWidth": lambda *_: 16,
    "nvmlDeviceGetPcieReplayCounter": lambda _, g: int(g.replays),
    "nvmlDeviceGetEccMode": _ecc_mode,
    "nvmlDeviceGetTotalEccErrors": _ecc_errors,
    "nvmlDeviceGetMemoryErrorCounter": _ecc_errors,
    "nvmlDeviceGetRemappedRows": _remapped,
    "nvmlDeviceGetP2PStatus": _peer_access,
    "nvmlDeviceGetViolationStatus": _violation,
    "nvmlDeviceGetRetiredPages": _retired,
    "nvmlDeviceGetVbiosVersion": lambda _, g: g.p.vbios,
    "nvmlDeviceGetGspFirmwareMode": lambda *_: (1, 1),
    "nvmlDeviceGetGspFirmwareVersion": lambda m, _: m.host.driver,
    "nvmlDeviceGetBAR1MemoryInfo": _bar1,
    "nvmlDeviceGetPowerManagementLimitConstraints": _constraints,
    "nvmlDeviceGetTemperatureThreshold": _threshold,
    "nvmlDeviceGetMigMode": _mig,
    "nvmlDeviceGetComputeMode": lambda _, g: COMPUTE_MODES[g.p.compute_mode],
}
"""C function -> what it answers for a machine, one of its GPUs and the values passed in."""


# requests that stand in the struct -----------------------------------------------------------


def _temperature_v(machine: Machine, gpu: GpuState, place: Parameter) -> None:
    struct = place._obj  # noqa: SLF001 - byref() has no other name for it
    _write_struct(struct, {"temperature": _temperature(machine, gpu, struct.sensorType)})


def _field_values(machine: Machine, gpu: GpuState, count: Parameter, places: Parameter) -> None:
    """Answer each field by itself: one that is not supported says so, and the others are there."""
    for field in places._obj[: count.value]:  # noqa: SLF001 - byref() has no other name for it
        field.timestamp = _now_us(machine)
        try:
            field.valueType, member, value = _field(gpu, field.fieldId, field.scopeId)
            setattr(field.value, member, value)
            field.nvmlReturn = NVML.NVML_SUCCESS
        except _RefusalError as refusal:
            field.nvmlReturn = refusal.code


def _processes(
    of: Callable[[GpuState], list[processes.Process]],
    _machine: Machine,
    gpu: GpuState,
    count: Parameter,
    places: Parameter,
) -> None:
    """List processes, in the two calls that NVML wants: how many there are, and then, into places for them, who."""
    number, found = count._obj, [] if gpu.p.processes_hidden else of(gpu)  # noqa: SLF001 - byref() has no other name
    room, number.value = number.value if places is not None else 0, len(found)
    if room < len(found):
        raise _RefusalError(NVML.NVML_ERROR_INSUFFICIENT_SIZE)
    for place, process in zip(places or (), found, strict=False):
        place.pid, place.usedGpuMemory = process.pid, process.mib << 20


def _field(gpu: GpuState, field: int, scope: int) -> tuple[int, str, int]:
    """Return a field's type, the member of the union that holds it, and its value; scope 0 is the GPU."""
    if scope or (field in TIME_FIELDS and not gpu.p.throttle_counters):
        raise _not_supported()
    if read := COUNTER_FIELDS.get(field) or TIME_FIELDS.get(field):
        return NVML.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, "ullVal", int(read(gpu))
    if field == RECOVERY:
        return NVML.NVML_VALUE_TYPE_UNSIGNED_INT, "uiVal", gpu.p.recovery
    if read := POWER_FIELDS.get(field):
        return NVML.NVML_VALUE_TYPE_UNSIGNED_INT, "uiVal", _milli(read(gpu))
    raise _not_supported()


RECOVERY = 230
"""NVML_FI_DEV_GET_GPU_RECOVERY_ACTION; by number, since older bindings lack the name."""
TIME_FIELDS: dict[int, Callable[[GpuState], float]] = {
    74: lambda g: g.capped_ns,  # ..._SW_POWER_CAP
    269: lambda g: g.thermal_ns,  # ..._SW_THERM_SLOWDOWN
    270: lambda _: 0,  # ..._HW_THERM_SLOWDOWN: the model's governor is the driver
    271: lambda g: g.brake_ns,  # ..._HW_POWER_BRAKE_SLOWDOWN
}
"""NVML_FI_DEV_CLOCKS_EVENT_REASON_*, ns; by number, since older bindings lack the names."""
COUNTER_FIELDS: dict[int, Callable[[GpuState], float]] = {
    NVML.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION: lambda g: g.energy_mj,
    NVML.NVML_FI_DEV_PCIE_REPLAY_COUNTER: lambda g: g.replays,
}
"""Field -> count."""
POWER_FIELDS: dict[int, Callable[[GpuState], float]] = {
    NVML.NVML_FI_DEV_POWER_AVERAGE: lambda g: g.power,
    NVML.NVML_FI_DEV_POWER_INSTANT: lambda g: g.meter_w(),
}
"""Field -> W; the model's power lags by 1 s, as an average does."""

FILLS: dict[str, Callable[..., None]] = {
    "nvmlDeviceGetTemperatureV": _temperature_v,
    "nvmlDeviceGetFieldValues": _field_values,
    "nvmlDeviceGetComputeRunningProcesses_v3": partial(_processes, processes.compute),
    "nvmlDeviceGetGraphicsRunningProcesses_v3": partial(_processes, processes.graphics),
}
"""C function -> what fills the struct that holds both the request and the answer."""
