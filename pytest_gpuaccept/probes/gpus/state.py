"""Identity and state of the GPUs: what a card says of itself, its settings, who uses it, its spare rows.

Owns how NVML's words become values, and what is compared between the start and the end of a run. Must
not judge, and changes no setting.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gpuaccept.children.telemetry import field_value
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome, Value
from pytest_gpuaccept.metric import Inputs, Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.cards import card, compute_mode, mig_mode
from pytest_gpuaccept.probes.since import attempt, begun

MIB = 2**20
HIDDEN_MIB = 256
"""MiB in use beyond the listed processes that are still nobody: an idle card shows a few, a CUDA context 300."""
LEAVES_IN_S = 10.0
"""Seconds that a process which has ended may still be listed."""
NOT_SUPPORTED = "not supported"
Said = Value | tuple[Value, str]
"""A value, or a value with a note."""


def vbios_uniform(inputs: Inputs) -> Measurement:
    """Say whether all GPUs carry one VBIOS."""
    found = {gpu: str(inputs.get("gpu.vbios", gpu).value) for gpu in inputs.profile.devices.get("gpu", ())}
    note = ", ".join(f"{gpu} {version}" for gpu, version in found.items())
    return Measurement(UNIFORM.id, inputs.device, len(set(found.values())) == 1, "flag", "calculated", note=note)


UNIFORM = Metric("gpu.vbios_uniform", "One VBIOS on all GPUs", "flag", "host", derive=vbios_uniform)
UNCHANGED = Metric("gpu.state.unchanged", "Settings are what they were at the start", "flag", "gpu")
BEFORE = Metric(
    "gpu.processes.before", "Foreign compute processes before the run", "count", "gpu", none_seen=True
)  # fmt: skip
AFTER = Metric("gpu.processes.after", "Compute processes after the run", "count", "gpu", none_seen=True)
ROWS = Metric(
    "gpu.remap.uncorrected", "Rows remapped for uncorrectable errors", "count", "gpu", needs="row_remap"
)  # fmt: skip
PENDING = Metric("gpu.remap.pending", "A row waits to be remapped", "flag", "gpu", needs="row_remap")
FAILED = Metric("gpu.remap.failed", "A row could not be remapped", "flag", "gpu", needs="row_remap")
RECOVERY = Metric("gpu.recovery", "What the driver wants done to the card", "text", "gpu")
PAGES = Metric("gpu.retired_pages", "Retired memory pages", "count", "gpu", needs="retired_pages")


def _threshold(name: str) -> Callable[[Any, Any], Said]:
    """Return what reads a temperature threshold in C; a newer driver gives margins and refuses, which is no 0."""

    def read(nvml: Any, handle: Any) -> Said:  # noqa: ANN401 - the binding is untyped
        degrees = int(nvml.nvmlDeviceGetTemperatureThreshold(handle, getattr(nvml, name)))
        if degrees <= 0:
            message = f"the threshold reads {degrees} C: the driver knows none"
            raise Unmeasurable(message)
        return degrees

    return read


def _limits(place: int) -> Callable[[Any, Any], Said]:
    """Return what reads the lowest (0) or highest (1) power limit that the board takes, in W."""
    return lambda nvml, h: nvml.nvmlDeviceGetPowerManagementLimitConstraints(h)[place] / 1000


def _slot(nvml: Any, handle: Any) -> Said:  # noqa: ANN401 - the binding is untyped
    """Say whether card and slot together can do what the card alone can; NVML's own maximum is of both together."""
    both, alone = nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle), nvml.nvmlDeviceGetGpuMaxPcieLinkGeneration(handle)
    return both >= alone, f"Gen{both} here, Gen{alone} the card alone"


def _gsp(nvml: Any, handle: Any) -> Said:  # noqa: ANN401 - the binding is untyped
    """Return the version of the firmware of the GPU system processor, `off` where the driver does its work."""
    on, _ = nvml.nvmlDeviceGetGspFirmwareMode(handle)
    version = nvml.nvmlDeviceGetGspFirmwareVersion(handle) if on else b"off"
    return version.decode(errors="replace") if isinstance(version, bytes) else str(version)


IDENTITY: dict[Metric, Callable[[Any, Any], Said]] = {
    Metric("gpu.vbios", "VBIOS", "text", "gpu"): lambda nvml, h: nvml.nvmlDeviceGetVbiosVersion(h),
    Metric("gpu.bar1", "Memory that the host sees (BAR1)", "GiB", "gpu"): lambda nvml, h: (
        nvml.nvmlDeviceGetBAR1MemoryInfo(h).bar1Total / 2**30
    ),
    Metric("gpu.power.default", "Power limit by default", "W", "gpu"): lambda nvml, h: (
        nvml.nvmlDeviceGetPowerManagementDefaultLimit(h) / 1000
    ),
    Metric("gpu.power.min", "Lowest power limit", "W", "gpu"): _limits(0),
    Metric("gpu.power.max", "Highest power limit", "W", "gpu"): _limits(1),
    Metric("gpu.temperature.slowdown", "Temperature at which the card slows down", "C", "gpu"): _threshold(
        "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN"
    ),
    Metric("gpu.temperature.shutdown", "Temperature at which the card shuts down", "C", "gpu"): _threshold(
        "NVML_TEMPERATURE_THRESHOLD_SHUTDOWN"
    ),
    Metric("gpu.mig", "MIG", "flag", "gpu"): mig_mode,
    Metric("gpu.ecc.mode", "ECC", "flag", "gpu", needs="ecc"): lambda nvml, h: (
        nvml.nvmlDeviceGetEccMode(h)[0] == nvml.NVML_FEATURE_ENABLED
    ),
    Metric("gpu.compute_mode", "Compute mode", "text", "gpu"): compute_mode,
    Metric("gpu.pcie.slot", "The slot allows the card's own PCIe generation", "flag", "gpu"): _slot,
    Metric("gpu.gsp", "Firmware of the GPU system processor", "text", "gpu"): _gsp,
}
"""What NVML says of one card besides what was ordered by name."""


# settings ------------------------------------------------------------------------------------


def _switch(function: str) -> Callable[[Any, Any], str]:
    """Return what reads a switch of the card that is changed by a reset: now, and after the reset where it differs."""

    def read(nvml: Any, handle: Any) -> str:  # noqa: ANN401 - the binding is untyped
        now, later = (
            "on" if state == nvml.NVML_FEATURE_ENABLED else "off" for state in getattr(nvml, function)(handle)
        )
        return now if now == later else f"{now}, {later} after a reset"

    return read


def _clock(kind: str) -> Callable[[Any, Any], str]:
    return lambda nvml, h: f"{nvml.nvmlDeviceGetApplicationsClock(h, getattr(nvml, kind))} MHz"


SETTINGS: dict[str, Callable[[Any, Any], str]] = {
    "power limit": lambda nvml, h: f"{nvml.nvmlDeviceGetPowerManagementLimit(h) / 1000:g} W",
    "persistence mode": lambda nvml, h: (
        "on" if nvml.nvmlDeviceGetPersistenceMode(h) == nvml.NVML_FEATURE_ENABLED else "off"
    ),
    "ECC": _switch("nvmlDeviceGetEccMode"),
    "MIG": _switch("nvmlDeviceGetMigMode"),
    "compute mode": compute_mode,
    "SM application clock": _clock("NVML_CLOCK_SM"),
    "memory application clock": _clock("NVML_CLOCK_MEM"),
    "driver": lambda nvml, _: str(nvml.nvmlSystemGetDriverVersion()),
    "VBIOS": lambda nvml, h: str(nvml.nvmlDeviceGetVbiosVersion(h)),
    "UUID": lambda nvml, h: str(nvml.nvmlDeviceGetUUID(h)),
}
"""What must not change during a run; a locked clock has no reading in NVML."""
TOLD = "power limit", "VBIOS", "UUID"
"""Settings that every card tells: where one is not supported, nothing shows that the rest was read."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one card at one moment, each a text or the reason why it could not be read."""

    said: Mapping[str, str | Unmeasurable]

    @property
    def unread(self) -> list[str]:
        """Name the settings that could not be read, with the reason."""
        return [f"{name}: {said}" for name, said in self.said.items() if isinstance(said, Unmeasurable)]


def settings(site: Site) -> Settings:
    """Read every setting of the card; raises Unmeasurable when it does not answer at all."""
    nvml, own = site.world.nvml(), card(site, site.device)
    return Settings({name: _setting(nvml, read, own.handle) for name, read in SETTINGS.items()})


def _setting(nvml: Any, read: Callable[[Any, Any], str], handle: Any) -> str | Unmeasurable:  # noqa: ANN401
    lacking = nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_DEPRECATED
    try:
        return read(nvml, handle)
    except nvml.NVMLError as error:
        return NOT_SUPPORTED if error.value in lacking else Unmeasurable(str(error))
    except Unmeasurable as error:
        return error


def unchanged(site: Site) -> Iterator[Outcome]:
    """Yield whether every setting is what it was; one that differs is proven, whatever else could not be read."""
    start, end = begun(site, Settings), settings(site)
    unread = dict.fromkeys([*start.unread, *end.unread])
    pairs = {name: (start.said[name], end.said[name]) for name in SETTINGS}
    read = {name: (a, b) for name, (a, b) in pairs.items() if isinstance(a, str) and isinstance(b, str)}
    differ = [f"{name} {a} -> {b}" for name, (a, b) in read.items() if a != b]
    unread |= {f"{name} is {NOT_SUPPORTED}": None for name in TOLD if end.said[name] == NOT_SUPPORTED}
    if unread and not differ:
        yield NotMeasured(UNCHANGED.id, site.device, f"settings could not be read, {'; '.join(unread)}")
    else:
        note = "; ".join(differ) or ", ".join(f"{name} {now}" for name, (_, now) in pairs.items())
        yield site.measured(UNCHANGED, not differ, samples=2, note=note)


# processes -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Users:
    """Who uses one card at one moment: foreign compute processes and others by pid, and MiB that nobody explains."""

    foreign: Mapping[int, str]
    others: Mapping[int, str]
    unexplained_mib: float

    @property
    def hidden(self) -> bool:
        """Say whether somebody is there whom NVML does not list."""
        return self.unexplained_mib > HIDDEN_MIB

    def outcome(self, site: Site, metric: Metric) -> Outcome:
        """Return the count of foreign compute processes; NotMeasured when memory in use says that the list is cut."""
        if self.hidden and not self.foreign:
            known = math.isfinite(self.unexplained_mib)
            used = f"{self.unexplained_mib:.0f} MiB" if known else "an unknown amount"
            reason = f"{used} of memory is in use on {site.device}, and NVML lists nobody who has it: "
            remedy = "a container hides the host's processes, run where they can be seen"
            return NotMeasured(metric.id, site.device, reason + remedy)
        note = "; ".join([*self.foreign.values(), *self.others.values()])
        proof = "NVML's list was read"
        return site.measured(metric, len(self.foreign), proof=proof, note=note)


def users(site: Site) -> Users:
    """Read who uses the card; raises Unmeasurable when NVML does not list it."""
    nvml, own = site.world.nvml(), card(site, site.device)
    try:
        compute = {p.pid: p for p in nvml.nvmlDeviceGetComputeRunningProcesses(own.handle)}
    except nvml.NVMLError as error:
        message = f"the compute processes of {site.device} cannot be listed: {error}"
        raise Unmeasurable(message) from None
    graphics = {p.pid: p for p in _graphics(nvml, own.handle) if p.pid not in compute}
    ours = attempt(lambda: int(site.world.read("/proc/self/stat").split()[0]))
    foreign = {pid: _described(site, p) for pid, p in compute.items() if pid != ours}
    others = {pid: f"{_described(site, p)}, graphics" for pid, p in graphics.items()}
    others |= {pid: f"{_described(site, p)}, this test run itself" for pid, p in compute.items() if pid == ours}
    listed = [*compute.values(), *graphics.values()]
    return Users(foreign, others, _unexplained(nvml, own.handle, listed))


def _graphics(nvml: Any, handle: Any) -> list[Any]:  # noqa: ANN401 - the binding is untyped
    try:
        return list(nvml.nvmlDeviceGetGraphicsRunningProcesses(handle))
    except nvml.NVMLError:
        return []


def _described(site: Site, process: Any) -> str:  # noqa: ANN401 - a struct of the binding
    name = attempt(lambda: site.world.read(f"/proc/{process.pid}/comm"))
    size = "unknown" if process.usedGpuMemory is None else f"{process.usedGpuMemory / MIB:.0f}"
    return f"{process.pid} {name if isinstance(name, str) else 'name hidden'} {size} MiB"


def _unexplained(nvml: Any, handle: Any, listed: list[Any]) -> float:  # noqa: ANN401 - the binding is untyped
    """Return the MiB in use beyond what the listed processes are known to have.

    Infinite when nobody tells what is in use: a list of processes alone may hide some.
    """
    try:
        used = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2).used
    except nvml.NVMLError:
        return math.inf
    return float(used - sum(process.usedGpuMemory or 0 for process in listed)) / MIB


def processes(site: Site) -> Iterator[Outcome]:
    """Yield who used the card before the run, and who does after it, once those that end have left the list."""
    try:
        yield begun(site, Users).outcome(site, BEFORE)
    except Unmeasurable as error:
        yield NotMeasured(BEFORE.id, site.device, str(error))
    end = site.world.clock.monotonic() + LEAVES_IN_S
    seen = users(site)
    while (seen.foreign or seen.hidden) and site.world.clock.monotonic() < end:
        site.world.clock.sleep(1.0)
        seen = users(site)
    yield seen.outcome(site, AFTER)


# memory --------------------------------------------------------------------------------------


def remap(site: Site) -> Iterator[Outcome]:
    """Yield the rows and pages of the memory that were taken out of use, as the board remembers them."""
    nvml, own = site.world.nvml(), card(site, site.device)
    try:
        _, rows, pending, failed = nvml.nvmlDeviceGetRemappedRows(own.handle)
    except nvml.NVMLError as error:
        yield from (NotMeasured(m.id, site.device, f"remapped rows: {error}") for m in (ROWS, PENDING, FAILED))
    else:
        yield site.measured(ROWS, int(rows))
        yield site.measured(PENDING, bool(pending), note="reset the GPU, and the row is remapped" if pending else "")
        yield site.measured(FAILED, bool(failed), note="no spare row is left: return the card" if failed else "")
    try:
        causes = range(nvml.NVML_PAGE_RETIREMENT_CAUSE_COUNT)
        yield site.measured(PAGES, sum(len(nvml.nvmlDeviceGetRetiredPages(own.handle, cause)) for cause in causes))
    except nvml.NVMLError as error:
        yield NotMeasured(PAGES.id, site.device, f"retired pages: {error}")


# recovery ------------------------------------------------------------------------------------

RECOVERY_FIELD = 230
"""NVML_FI_DEV_GET_GPU_RECOVERY_ACTION (nvml.h), by number, since older bindings lack the name."""
ACTIONS = (
    "none", "reset the GPU", "restart the machine", "drain peer-to-peer traffic", "drain it and reset the GPU",
    "recover the IMEX domain", "reset its bus", "restart the system",
)  # fmt: skip
"""NVML_GPU_RECOVERY_ACTION_*, by number."""


def recovery(site: Site) -> Iterator[Outcome]:
    """Yield what the driver wants done to the card before it is used again."""
    nvml, own = site.world.nvml(), card(site, site.device)
    try:
        (answer,) = nvml.nvmlDeviceGetFieldValues(own.handle, [RECOVERY_FIELD])
    except nvml.NVMLError as error:
        message = f"the recovery action of {site.device}: {error}"
        raise Unmeasurable(message) from None
    if answer.nvmlReturn != nvml.NVML_SUCCESS:
        message = (
            f"the recovery action of {site.device}: {nvml.NVMLError(answer.nvmlReturn)}; update to driver 565 or later"
        )
        raise Unmeasurable(message)
    number = int(field_value(nvml, answer))
    yield site.measured(RECOVERY, ACTIONS[number] if 0 <= number < len(ACTIONS) else f"unknown action {number}")


PROBES = (
    Probe("gpu.recovery", "final", "gpu", (RECOVERY,), recovery, driver=True),
    Probe("gpu.remap", "final", "gpu", (ROWS, PENDING, FAILED, PAGES), remap, driver=True),
    Probe("gpu.processes", "final", "gpu", (BEFORE, AFTER), processes, driver=True, before=users),
    Probe("gpu.state", "final", "gpu", (UNCHANGED,), unchanged, driver=True, before=settings),
)
