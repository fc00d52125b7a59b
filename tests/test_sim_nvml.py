"""NVML of the simulated machine: the real binding runs, every value is the model's, refusals are NVML's own."""

import subprocess
import sys
from pathlib import Path

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.sim.machine import Machine
from pytest_gpuaccept.sim.nvml import DEVICE, FILLS, SYSTEM, NvmlLibrary, binding, uuid_of
from pytest_gpuaccept.sim.parts import Cpu, Gpu, Host, LlamaCpp, Vllm

GEFORCE = {"name": "NVIDIA GeForce RTX 4090"}
ECC_CARD = {"name": "NVIDIA L40", "ecc": True, "ecc_uncorrected": 3, "pci_device_id": "26b5"}
THROTTLE_FIELDS = [74, 269, 270, 271]


def machine(*gpus, seed="a seed", **host):
    """Return a machine with these GPUs, at rest."""
    return Machine(
        seed=seed, cpu=Cpu(), host=Host(**host), gpus=[Gpu(**gpu) for gpu in gpus],
        drives={}, nics={}, vllm=Vllm(), llamacpp=LlamaCpp(),
    )  # fmt: skip


def one(**parameters):
    """Return a machine with one GPU, its binding and the GPU's handle."""
    made = machine(parameters)
    nvml = binding(made)
    return made, nvml, nvml.nvmlDeviceGetHandleByIndex(0)


def refusal(function, *args):
    """Return the name of the NVML error that a call ends with."""
    nvml = sys.modules["pytest_gpuaccept.sim.nvml.pynvml"]
    with pytest.raises(nvml.NVMLError) as caught:
        function(*args)
    return type(caught.value).__name__.removeprefix("NVMLError_")


def fields(nvml, handle, *ids):
    """Return the named field values as (NVML error code, value)."""
    got = nvml.nvmlDeviceGetFieldValues(handle, list(ids))
    long = nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
    return [(f.nvmlReturn, f.value.ullVal if f.valueType == long else f.value.uiVal) for f in got]


def test_the_system_names_its_versions():
    """Driver, NVML and CUDA versions are the host's."""
    nvml = binding(machine({}, driver="590.48.01", cuda_driver="13.1"))
    assert nvml.nvmlSystemGetDriverVersion() == "590.48.01"
    assert nvml.nvmlSystemGetNVMLVersion() == "13.590.48.01"
    assert nvml.nvmlSystemGetCudaDriverVersion() == nvml.nvmlSystemGetCudaDriverVersion_v2() == 13010


STATIC = [
    ("nvmlDeviceGetName", (), {"name": "NVIDIA L40"}, "NVIDIA L40"),
    ("nvmlDeviceGetIndex", (), {}, 0),
    ("nvmlDeviceGetCudaComputeCapability", (), {"compute_capability": "12.0"}, (12, 0)),
    ("nvmlDeviceGetPersistenceMode", (), {"persistence": True}, 1),
    ("nvmlDeviceGetPersistenceMode", (), {"persistence": False}, 0),
    ("nvmlDeviceGetPowerManagementLimit", (), {"limit_w": 412.5}, 412_500),
    ("nvmlDeviceGetEnforcedPowerLimit", (), {"limit_w": 412.5}, 412_500),
    ("nvmlDeviceGetPowerManagementDefaultLimit", (), {"limit_w": 300.0, "default_limit_w": 450.0}, 450_000),
    ("nvmlDeviceGetCurrPcieLinkWidth", (), {"pcie_width": 8}, 8),
    ("nvmlDeviceGetMaxPcieLinkWidth", (), {"pcie_width": 8}, 16),
    ("nvmlDeviceGetMaxPcieLinkGeneration", (), {"card_gen": 4, "slot_gen": 3}, 3),
    ("nvmlDeviceGetMaxPcieLinkGeneration", (), {"card_gen": 4, "slot_gen": 5}, 4),
    ("nvmlDeviceGetGpuMaxPcieLinkGeneration", (), {"card_gen": 4, "slot_gen": 3}, 4),
    ("nvmlDeviceGetComputeRunningProcesses", (), {}, []),
    ("nvmlDeviceGetTemperature", (0,), {}, 28),
    ("nvmlDeviceGetTemperatureV", (0,), {}, 28),
    ("nvmlDeviceGetTemperature", (0,), {"temperature_sensor": "zero"}, 0),
    ("nvmlDeviceGetTemperatureV", (0,), {"temperature_sensor": "zero"}, 0),
    ("nvmlDeviceGetPowerUsage", (), {"idle_w": 21.0, "power_noise": 0.0}, 21_000),
    ("nvmlDeviceGetTotalEnergyConsumption", (), {}, 0),
    ("nvmlDeviceGetClockInfo", (pynvml.NVML_CLOCK_SM,), {}, 210),
    ("nvmlDeviceGetClockInfo", (pynvml.NVML_CLOCK_MEM,), {}, 405),
    ("nvmlDeviceGetPerformanceState", (), {}, 8),
    ("nvmlDeviceGetFanSpeed", (), {}, 30),
    ("nvmlDeviceGetEncoderUtilization", (), {}, [0, 167_000]),
    ("nvmlDeviceGetDecoderUtilization", (), {}, [0, 167_000]),
    ("nvmlDeviceGetCurrentClocksThrottleReasons", (), {}, 0x1),
    ("nvmlDeviceGetPcieReplayCounter", (), {}, 0),
]


@pytest.mark.parametrize(("function", "args", "parameters", "value"), STATIC)
def test_an_idle_card_reads_as_its_parameters_say(function, args, parameters, value):
    """What a card is, and how it rests, comes through the real binding in NVML's units."""
    _, nvml, handle = one(**parameters)
    assert getattr(nvml, function)(handle, *args) == value


def test_pci_info_is_that_of_the_slot():
    """Bus ids are written as NVML writes them: eight digits of domain, capitals; the vendor is in the low half."""
    nvml = binding(machine({}, {}, {}, {"pci_device_id": "2bb5"}))
    info = nvml.nvmlDeviceGetPciInfo(nvml.nvmlDeviceGetHandleByIndex(3))
    assert (info.busId, info.busIdLegacy) == ("00000000:C1:00.0", "0000:C1:00.0")
    assert (info.domain, info.bus, info.device, info.pciDeviceId) == (0, 0xC1, 0, 0x2BB510DE)


def test_memory_adds_up_in_both_versions():
    """The total is the card's; what the driver keeps is used in version 1 and reserved in version 2."""
    _, nvml, handle = one(memory_mib=24564)
    old, new = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
    assert old.total == new.total == 24564 * 2**20
    assert old.total == old.free + old.used
    assert new.total == new.free + new.used + new.reserved
    assert (old.used, new.used) == (new.reserved, 0)
    assert new.reserved > 0


def test_a_struct_of_another_version_is_refused():
    """A size that the library does not know is an error, not memory written wrongly."""
    _, nvml, handle = one()
    assert refusal(nvml.nvmlDeviceGetMemoryInfo, handle, 0x03000030) == "ArgumentVersionMismatch"


def test_a_loaded_card_reads_as_the_model_says():
    """Under load, temperature, clocks, energy, state and use are those of the model at this moment."""
    made, nvml, handle = one(power_noise=0.0)
    gpu = made.gpus[0]
    with made.runs("burn", {0: 1.0}):
        made.advance(20.0)
        assert nvml.nvmlDeviceGetTemperature(handle, 0) == round(gpu.temperature) > 40
        assert nvml.nvmlDeviceGetPowerUsage(handle) == round(gpu.power * 1000) > 440_000
        assert nvml.nvmlDeviceGetTotalEnergyConsumption(handle) == int(gpu.energy_mj) > 8_000_000
        clock = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
        assert clock == nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_GRAPHICS) == round(gpu.clock_mhz)
        assert 2000 < clock < nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)
        assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM) == 10501
        assert nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM) == 10501
        assert nvml.nvmlDeviceGetPerformanceState(handle) == nvml.NVML_PSTATE_0
        assert nvml.nvmlDeviceGetUtilizationRates(handle).gpu == 100
        assert 30 < nvml.nvmlDeviceGetFanSpeed(handle) <= 100
    assert nvml.nvmlDeviceGetUtilizationRates(handle).gpu == 0


def test_two_samples_of_the_power_meter_differ():
    """Nothing is kept between calls: the meter is read, with its noise, each time."""
    _, nvml, handle = one()
    assert len({nvml.nvmlDeviceGetPowerUsage(handle) for _ in range(5)}) > 1


def test_a_parameter_that_changes_is_seen_by_the_next_call():
    """A fault that comes while a handle is held shows at once, and goes again."""
    made, nvml, handle = one()
    for width in (4, 16):
        made.gpus[0].p.pcie_width = width
        assert nvml.nvmlDeviceGetCurrPcieLinkWidth(handle) == width


def test_the_link_sleeps_until_a_load_has_run_for_a_moment():
    """Gen1 at rest and at the start of a load, Gen4 0.3 s into it."""
    made, nvml, handle = one()
    seen = [nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle)]
    with made.runs("copy", {0: 0.3}):
        for seconds in (0.1, 0.2):
            made.advance(seconds)
            seen.append(nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle))
    assert seen == [1, 1, 4]


REASONS = [
    ({}, 0.0, 5.0, 0x1),
    ({}, 1.0, 0.1, 0x0),
    ({}, 1.0, 10.0, 0x4),
    ({}, 0.3, 10.0, 0x0),
    ({"airflow": 2.5}, 1.0, 20.0, 0x20),
    ({"power_brake": 0.5}, 1.0, 10.0, 0x80),
    ({"power_brake": 0.5, "airflow": 6.0}, 1.0, 120.0, 0xA0),
]


@pytest.mark.parametrize(("parameters", "load", "seconds", "mask"), REASONS)
def test_the_mask_says_what_holds_the_clock_down(parameters, load, seconds, mask):
    """Idle, power cap at full load, governor, external brake: a bit each, together where both are there."""
    made, nvml, handle = one(**parameters)
    with made.runs("load", {0: load}):
        made.advance(seconds)
        assert nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == mask
        assert nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) == mask


def test_throttle_time_is_counted_by_cause():
    """The time counters grow with the bits of the mask: here the governor and the brake, in ns."""
    made, nvml, handle = one(power_brake=0.5, airflow=6.0)
    assert fields(nvml, handle, *THROTTLE_FIELDS) == [(0, 0)] * 4
    with made.runs("burn", {0: 1.0}):
        made.advance(120.0)
    (_, cap), (_, soft), (_, hard), (_, brake) = fields(nvml, handle, *THROTTLE_FIELDS)
    assert (cap, hard) == (0, 0)
    assert brake == pytest.approx(120e9)
    assert 10e9 < soft < 120e9
    policy = nvml.nvmlDeviceGetViolationStatus(handle, nvml.NVML_PERF_POLICY_THERMAL)
    assert policy.violationTime == soft


def test_time_at_the_power_limit_is_counted():
    """A healthy burn spends nearly all of its time at the power limit, and none of it throttled by heat."""
    made, nvml, handle = one()
    with made.runs("burn", {0: 1.0}):
        made.advance(30.0)
    (_, cap), *rest = fields(nvml, handle, *THROTTLE_FIELDS)
    assert 25e9 < cap < 30e9
    assert rest == [(0, 0)] * 3
    assert nvml.nvmlDeviceGetViolationStatus(handle, nvml.NVML_PERF_POLICY_POWER).violationTime == cap


def test_a_driver_without_time_counters_says_so_for_each_of_them():
    """The counters are refused one by one; power and replays beside them are still there."""
    made, nvml, handle = one(throttle_counters=False, power_noise=0.0, idle_w=20.0)
    got = fields(nvml, handle, *THROTTLE_FIELDS, nvml.NVML_FI_DEV_POWER_INSTANT)
    assert got[:4] == [(nvml.NVML_ERROR_NOT_SUPPORTED, 0)] * 4
    assert got[4] == (0, 20_000)
    assert refusal(nvml.nvmlDeviceGetViolationStatus, handle, nvml.NVML_PERF_POLICY_THERMAL) == "NotSupported"
    made.gpus[0].p.throttle_counters = True
    assert fields(nvml, handle, *THROTTLE_FIELDS) == [(0, 0)] * 4


def test_the_field_ids_are_those_of_the_binding():
    """The numbers that the library knows are what nvml.h calls the time counters."""
    names = ["SW_POWER_CAP", "SW_THERM_SLOWDOWN", "HW_THERM_SLOWDOWN", "HW_POWER_BRAKE_SLOWDOWN"]
    assert [getattr(pynvml, f"NVML_FI_DEV_CLOCKS_EVENT_REASON_{name}") for name in names] == THROTTLE_FIELDS


def test_power_energy_and_replays_are_fields_too():
    """The average has no noise, the instant is the meter; a link that replays counts while it is busy."""
    made, nvml, handle = one(replays_per_min=60.0, power_noise=0.0)
    ids = (nvml.NVML_FI_DEV_POWER_AVERAGE, nvml.NVML_FI_DEV_POWER_INSTANT, nvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION)
    made.advance(60.0)
    assert nvml.nvmlDeviceGetPcieReplayCounter(handle) == 0
    with made.runs("copy", {0: 0.3}):
        made.advance(60.05)
        watts = round(made.gpus[0].power * 1000)
        assert fields(nvml, handle, *ids) == [(0, watts), (0, watts), (0, int(made.gpus[0].energy_mj))]
    assert nvml.nvmlDeviceGetPcieReplayCounter(handle) == 60
    assert fields(nvml, handle, nvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER) == [(0, 60)]


@pytest.mark.parametrize("field", [0, 1, (186, 2), 307, 2**31])
def test_a_field_that_the_model_lacks_is_not_supported(field):
    """An unknown field, and a scope other than the GPU, is refused by itself and never a zero that looks read."""
    _, nvml, handle = one()
    (code, _), (known, _) = fields(nvml, handle, field, nvml.NVML_FI_DEV_POWER_AVERAGE)
    assert (code, known) == (nvml.NVML_ERROR_NOT_SUPPORTED, 0)


def test_a_field_carries_the_time_of_the_machine():
    """Time stamps are the virtual clock's, in microseconds since 1970."""
    made, nvml, handle = one()
    stamps = []
    for _ in range(2):
        stamps.append(nvml.nvmlDeviceGetFieldValues(handle, [94])[0].timestamp)
        made.advance(2.5)
    assert stamps[1] - stamps[0] == 2_500_000
    assert stamps[0] == 1_767_254_400_000_000


ECC_CALLS = {
    "nvmlDeviceGetEccMode": ((), [1, 1]),
    "nvmlDeviceGetTotalEccErrors": ((pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, 0), 3),
    "nvmlDeviceGetMemoryErrorCounter": ((pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, 0, 2), 3),
    "nvmlDeviceGetRemappedRows": ((), (0, 0, 1, 0)),
}


@pytest.mark.parametrize("function", ECC_CALLS)
def test_ecc_is_there_on_a_card_that_has_it_and_refused_on_geforce(function):
    """A GeForce card has no ECC counters: not supported, which is not zero errors."""
    args, value = ECC_CALLS[function]
    nvml = binding(machine(GEFORCE, ECC_CARD))
    geforce, ecc = (nvml.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    assert refusal(getattr(nvml, function), geforce, *args) == "NotSupported"
    assert getattr(nvml, function)(ecc, *args) == value


def test_only_uncorrected_errors_of_the_memory_are_counted():
    """The model has no corrected errors, and none in caches."""
    _, nvml, handle = one(**ECC_CARD)
    assert nvml.nvmlDeviceGetTotalEccErrors(handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, 0) == 0
    assert nvml.nvmlDeviceGetMemoryErrorCounter(handle, 1, 0, nvml.NVML_MEMORY_LOCATION_L2_CACHE) == 0


def test_a_geforce_card_has_neither_serial_nor_part_number():
    """Others have a serial number of 13 digits, each its own, and one part number of the board."""
    nvml = binding(machine(GEFORCE, ECC_CARD, ECC_CARD))
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(3)]
    functions = nvml.nvmlDeviceGetSerial, nvml.nvmlDeviceGetBoardPartNumber
    assert [refusal(function, handles[0]) for function in functions] == ["NotSupported", "NotSupported"]
    serials = {nvml.nvmlDeviceGetSerial(handle) for handle in handles[1:]}
    assert len(serials) == 2
    assert all(len(serial) == 13 and serial.isdigit() for serial in serials)
    assert {nvml.nvmlDeviceGetBoardPartNumber(handle) for handle in handles[1:]} == {"900-2G000-0000-000"}


REFUSED = [
    ("nvmlDeviceGetTemperature", (0,), {"temperature_sensor": "unsupported"}, "NotSupported"),
    ("nvmlDeviceGetTemperatureV", (0,), {"temperature_sensor": "unsupported"}, "NotSupported"),
    ("nvmlDeviceGetTemperature", (1,), {}, "InvalidArgument"),
    ("nvmlDeviceGetTemperatureV", (1,), {}, "InvalidArgument"),
    ("nvmlDeviceGetClockInfo", (pynvml.NVML_CLOCK_VIDEO,), {}, "NotSupported"),
    ("nvmlDeviceGetViolationStatus", (pynvml.NVML_PERF_POLICY_RELIABILITY,), {}, "NotSupported"),
    ("nvmlDeviceGetName", (), {"name": "x" * 96}, "InsufficientSize"),
    ("nvmlDeviceGetBoardId", (), {}, "FunctionNotFound"),
]


@pytest.mark.parametrize(("function", "args", "parameters", "error"), REFUSED)
def test_what_is_not_there_is_refused_by_name(function, args, parameters, error):
    """A sensor, a clock or a function that does not exist is NVML's own error and never a zero."""
    _, nvml, handle = one(**parameters)
    assert refusal(getattr(nvml, function), handle, *args) == error


def test_a_lost_card_refuses_every_call_and_the_others_answer():
    """A card off the bus keeps its place; nothing of it can be read, by an old handle or a new one."""
    made = machine({}, {}, {})
    nvml = binding(made)
    handle = nvml.nvmlDeviceGetHandleByIndex(1)
    bus_id, identity = nvml.nvmlDeviceGetPciInfo(handle).busId, nvml.nvmlDeviceGetUUID(handle)
    made.gpus[1].p.lost = True
    calls = [
        (nvml.nvmlDeviceGetName, handle), (nvml.nvmlDeviceGetUUID, handle), (nvml.nvmlDeviceGetPowerUsage, handle),
        (nvml.nvmlDeviceGetTemperature, handle, 0), (nvml.nvmlDeviceGetTemperatureV, handle, 0),
        (nvml.nvmlDeviceGetFieldValues, handle, [94]), (nvml.nvmlDeviceGetComputeRunningProcesses, handle),
        (nvml.nvmlDeviceGetHandleByIndex, 1), (nvml.nvmlDeviceGetHandleByUUID, identity),
        (nvml.nvmlDeviceGetHandleByPciBusId, bus_id),
    ]  # fmt: skip
    assert {refusal(*call) for call in calls} == {"GpuIsLost"}
    assert nvml.nvmlDeviceGetCount() == 3
    assert nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(2)) == uuid_of(made, 2)


@pytest.mark.parametrize("function", sorted(DEVICE | FILLS))
def test_no_function_of_a_lost_card_answers(function):
    """Whatever is asked of a lost card, the C function returns GPU_IS_LOST before it looks at the rest."""
    made, _, handle = one(lost=False)
    library = NvmlLibrary(made)
    library.nvmlInitWithFlags(0)
    made.gpus[0].p.lost = True
    assert getattr(library, function)(handle) == pynvml.NVML_ERROR_GPU_IS_LOST


def test_a_card_that_is_pulled_is_lost_to_who_holds_it():
    """A handle from before the card went answers as for one that fell off the bus."""
    made, nvml, handle = one()
    made.gpus[0].p.present = False
    assert refusal(nvml.nvmlDeviceGetPowerUsage, handle) == "GpuIsLost"
    assert nvml.nvmlDeviceGetCount() == 0


def test_a_missing_card_closes_up_the_indices():
    """A card that is not plugged in is not counted, and not found by anything; identities stay with the slots."""
    made = machine({}, {"present": False}, {})
    nvml = binding(made)
    assert nvml.nvmlDeviceGetCount() == 2
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(2)]
    assert [nvml.nvmlDeviceGetUUID(h) for h in handles] == [uuid_of(made, 0), uuid_of(made, 2)]
    assert [nvml.nvmlDeviceGetIndex(h) for h in handles] == [0, 1]
    assert refusal(nvml.nvmlDeviceGetHandleByIndex, 2) == "InvalidArgument"
    assert refusal(nvml.nvmlDeviceGetHandleByUUID, uuid_of(made, 1)) == "NotFound"
    assert refusal(nvml.nvmlDeviceGetHandleByPciBusId, "00000000:41:00.0") == "NotFound"


def test_eight_cards_are_listed_in_the_order_of_the_bus():
    """NVML's order is that of the PCI addresses, whatever order the parts have."""
    made = machine(*[{}] * 8)
    nvml = binding(made)
    listed = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(8)]
    seen = [nvml.nvmlDeviceGetPciInfo(handle).busId for handle in listed]
    assert seen == sorted(seen)
    assert [nvml.nvmlDeviceGetIndex(handle) for handle in listed] == list(range(8))
    assert {nvml.nvmlDeviceGetUUID(handle) for handle in listed} == {uuid_of(made, i) for i in range(8)}


@pytest.mark.parametrize("written", ["00000000:81:00.0", "0000:81:00.0", "81:00.0"])
def test_a_card_is_found_by_its_bus_id_and_its_uuid(written):
    """NVML takes a bus id with a long domain, a short one or none; both ways lead to the same card."""
    made = machine({}, {}, {})
    nvml = binding(made)
    for handle in (nvml.nvmlDeviceGetHandleByPciBusId(written), nvml.nvmlDeviceGetHandleByUUID(uuid_of(made, 2))):
        assert nvml.nvmlDeviceGetIndex(handle) == 2
    assert made.gpus[2].address == "0000:81:00.0"


@given(text=st.text(st.characters(exclude_characters="\0", codec="utf-8")))
def test_no_text_is_taken_for_a_card(text):
    """Any bus id or UUID that is none is NOT_FOUND."""
    nvml = binding(machine({}))
    assert refusal(nvml.nvmlDeviceGetHandleByUUID, text) == "NotFound"
    assert refusal(nvml.nvmlDeviceGetHandleByPciBusId, f"{text}!") == "NotFound"


def test_the_same_seed_gives_the_same_cards():
    """A UUID is the seed's and the place's, and looks like one."""
    first, again, other = machine({}, {}), machine({}, {}), machine({}, seed="another")
    assert uuid_of(first, 0) == uuid_of(again, 0)
    assert len({uuid_of(first, 0), uuid_of(first, 1), uuid_of(other, 0)}) == 3
    assert len(uuid_of(first, 0)) == len("GPU-00000000-0000-0000-0000-000000000000")


def test_a_second_machine_takes_over_and_the_first_can_come_back():
    """Functions of the machine before are forgotten, and a handle of another machine is refused."""
    first, second = machine({"name": "one"}), machine({"name": "two"}, seed="another")
    old = binding(first).nvmlDeviceGetHandleByIndex(0)
    nvml = binding(second)
    assert nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(0)) == "two"
    assert refusal(nvml.nvmlDeviceGetName, old) == "InvalidArgument"
    assert binding(first).nvmlDeviceGetName(old) == "one"


def test_a_handle_outlives_another_call_for_the_binding():
    """Probes ask for the binding each for itself; their handles stay good."""
    made, nvml, handle = one()
    assert binding(made) is nvml
    assert nvml.nvmlDeviceGetIndex(handle) == 0


def test_without_a_driver_there_is_no_binding():
    """The reason is the live world's, with NVML's own words in it."""
    with pytest.raises(Unmeasurable, match=r"^no NVIDIA driver \(Driver Not Loaded\): does nvidia-smi work\?"):
        binding(machine({}, driver_loaded=False))


def test_a_driver_that_goes_takes_its_readings_along():
    """Handles from before answer no more, and the binding cannot be had again."""
    made, nvml, handle = one()
    made.host.driver_loaded = False
    assert refusal(nvml.nvmlDeviceGetName, handle) == "Uninitialized"
    with pytest.raises(Unmeasurable, match="no NVIDIA driver"):
        binding(made)


def test_after_shutdown_nothing_answers():
    """The library is in use until its last user has shut it down."""
    _, nvml, handle = one()
    nvml.nvmlShutdown()
    assert refusal(nvml.nvmlDeviceGetName, handle) == "Uninitialized"
    assert refusal(nvml.nvmlShutdown) == "Uninitialized"


def test_the_processes_own_binding_is_untouched():
    """A simulated machine is never seen through `pynvml` itself, which may be talking to real cards."""
    own = sys.modules["pynvml"]
    before = own.nvmlLib, dict(own._nvmlGetFunctionPointer_cache), own._nvmlLib_refcount
    nvml = binding(machine({}))
    nvml.nvmlDeviceGetCount()
    assert nvml is not own
    assert sys.modules["pynvml"] is own is pynvml
    assert (own.nvmlLib, own._nvmlGetFunctionPointer_cache, own._nvmlLib_refcount) == before
    assert not issubclass(nvml.NVMLError, own.NVMLError)


def test_every_function_is_one_of_the_bindings():
    """No name in the tables is misspelt: the installed binding asks for each of them."""
    source = Path(pynvml.__file__).read_text(encoding="utf-8")
    assert [name for name in SYSTEM | DEVICE | FILLS if f'"{name}"' not in source] == []


NVITOP = """
import pynvml
from pytest_gpuaccept.sim.machine import Machine
from pytest_gpuaccept.sim.nvml import NvmlLibrary
from pytest_gpuaccept.sim.parts import Cpu, Gpu, Host, LlamaCpp, Vllm

machine = Machine(seed="s", cpu=Cpu(), host=Host(), drives={}, nics={}, vllm=Vllm(), llamacpp=LlamaCpp(),
                  gpus=[Gpu(name="NVIDIA GeForce RTX 4090", power_noise=0.0), Gpu(name="NVIDIA L40", power_noise=0.0)])
pynvml.nvmlLib = NvmlLibrary(machine)
from nvitop import Device
with machine.runs("burn", {1: 1.0}):
    machine.advance(60.0)
    for device, gpu in zip(Device.all(), machine.gpus, strict=True):
        print(device.name(), device.memory_total() // 2**20, device.gpu_utilization(),
              device.temperature() - round(gpu.temperature), device.power_usage() - round(gpu.power * 1000), sep=",")
"""


def test_nvitop_runs_on_the_machine():
    """A monitor that knows nothing of us reads names, memory, use, temperature and power through the own `pynvml`."""
    done = subprocess.run([sys.executable, "-c", NVITOP], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["NVIDIA GeForce RTX 4090,24564,0,0,0", "NVIDIA L40,24564,100,0,0"]
