"""The simulated platform as files and tools in the real ones' formats: firmware, memory, CPU clocks, IOMMU, kernels.

Owns what udev and modinfo print, and what stands in the files that tell how a machine is built and set.
Everything is worked out of the model when it is read; keeps no state, and knows nobody who reads.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from pytest_gpuaccept.sim.machine import Machine

Text = Callable[[], str]

GIB = 2**30
SLOTS = 8
"""[E] Memory slots of the board."""
PARTS = {"DDR4": "HMAA8GL7AMR4N-VK"}
"""Type of memory -> part number of its usual module here; any other type has one that is made up."""
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
EFI_ATTRIBUTES = bytes((6, 0, 0, 0))
LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max open files            1024                 1048576              files
Max locked memory         67407314944          67407314944          bytes"""
NO_MODULE = "modinfo: ERROR: Module nvidia not found.\n"
CPUFREQ = "/sys/devices/system/cpu/cpufreq"


# firmware ------------------------------------------------------------------------------------


def udevadm(machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:
    """Print the properties of the DMI device, the only one that is known here."""
    device = argv[-1]
    if device != "/sys/devices/virtual/dmi/id":
        return 1, "", f'Unknown device "{device}": No such device\n'
    count = max(SLOTS, machine.cpu.dimms)
    slots = [_module(machine, n) if n < machine.cpu.dimms else {"PRESENT": "0"} for n in range(count)]
    head = {"DEVPATH": "/devices/virtual/dmi/id", "SUBSYSTEM": "dmi"}
    head |= {"MEMORY_ARRAY_LOCATION": "System Board Or Motherboard", "MEMORY_ARRAY_EC_TYPE": "Multi-bit ECC"}
    lines = [f"{key}={value}\n" for key, value in head.items()]
    lines += [f"MEMORY_DEVICE_{n}_{key}={value}\n" for n, slot in enumerate(slots) for key, value in slot.items()]
    return 0, "".join([*lines, f"MEMORY_ARRAY_NUM_DEVICES={count}\n"]), ""


def _module(machine: Machine, n: int) -> dict[str, str]:
    cpu = machine.cpu
    part = PARTS.get(cpu.dimm_type, f"SIM-{cpu.dimm_type}")
    return {
        "TOTAL_WIDTH": "72", "DATA_WIDTH": "64", "SIZE": f"{cpu.dimm_gib * GIB}", "FORM_FACTOR": "DIMM",
        "LOCATOR": f"DIMM_{n}", "TYPE": cpu.dimm_type, "TYPE_DETAIL": "Synchronous LRDIMM",
        "SPEED_MTS": f"{cpu.dimm_mts}", "MANUFACTURER": "SK Hynix", "SERIAL_NUMBER": _serial(f"{machine.seed}/dimm{n}"),
        "PART_NUMBER": f"{part}-2" if n < cpu.odd_dimms else part, "CONFIGURED_SPEED_MTS": f"{cpu.dimm_mts}",
    }  # fmt: skip


def _serial(what: str) -> str:
    return f"{zlib.crc32(what.encode()):08X}"


def _with_efi(machine: Machine, text: str) -> str | None:
    return None if machine.host.secure_boot == "legacy" else text


def _secure_boot(machine: Machine) -> bytes | None:
    known = {"off": bytes(1), "on": bytes((1,))}.get(machine.host.secure_boot)
    return None if known is None else EFI_ATTRIBUTES + known


# driver and kernels --------------------------------------------------------------------------


def modinfo(machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:
    """Print a field of the driver's module, that of the running kernel or of `-k KERNEL`."""
    host, field = machine.host, argv[argv.index("-F") + 1]
    kernel = argv[argv.index("-k") + 1] if "-k" in argv else host.kernel
    if kernel != host.kernel and not (kernel == host.new_kernel and host.new_kernel_driver):
        return 1, "", NO_MODULE
    signer = "simulated Secure Boot Module Signature key" if host.driver_signed else ""
    fields = {"version": host.driver_on_disk or host.driver, "signer": signer}
    return 0, f"{fields.get(field, '')}\n", ""


def kernels(machine: Machine, _real: str) -> Mapping[str, Text]:
    """Return what is left of the folders of the installed kernels: their lists of modules."""
    installed = filter(None, (machine.host.kernel, machine.host.new_kernel))
    return {f"/lib/modules/{kernel}/modules.dep": lambda: "kernel/fs/ext4/ext4.ko:\n" for kernel in installed}


# memory controller, CPUs, devices ------------------------------------------------------------


def controllers(machine: Machine, _real: str) -> Mapping[str, Text]:
    """Return the modes of the memory that EDAC shows."""
    if not machine.cpu.edac:
        return {}
    mode = "S4ECD4ED\n" if machine.cpu.ecc else "None\n"
    folder = "/sys/devices/system/edac/mc/mc0"
    modes = {f"{folder}/dimm{n}/dimm_edac_mode": partial(str, mode) for n in range(machine.cpu.dimms)}
    return modes | {f"{folder}/size_mb": partial(str, f"{1024 * machine.cpu.dimms * machine.cpu.dimm_gib}\n")}


def clocks(machine: Machine, _real: str) -> Mapping[str, Text]:
    """Return the governor of every online CPU, and whether they boost."""
    cpu = machine.cpu
    files: dict[str, Text] = {
        f"{CPUFREQ}/policy{n}/scaling_governor": partial(str, "powersave\n" if n < cpu.saving_cpus else cpu.governor)
        for n in range(max(1, cpu.threads - cpu.offline))
    }
    return files | {f"{CPUFREQ}/boost": partial(str, f"{int(cpu.boost)}\n")}


def nodes(machine: Machine, _real: str) -> Mapping[str, Text]:
    """Return the CPUs of every NUMA node; those of SMT have the higher numbers, as the kernel counts them."""
    cpu, folder = machine.cpu, "/sys/devices/system/node"
    each = max(1, cpu.threads // cpu.numa_nodes)
    return {
        f"{folder}/node{n}/cpulist": partial(str, f"{n * each}-{(n + 1) * each - 1}\n") for n in range(cpu.numa_nodes)
    }


def groups(machine: Machine, _real: str) -> Mapping[str, Text]:
    """Return the IOMMU's groups, one for each GPU's slot."""
    return {f"/sys/kernel/iommu_groups/{gpu.index}/type": lambda: "DMA-FQ\n" for gpu in machine.gpus}


def devices(machine: Machine, real: str) -> Mapping[str, Text]:
    """Return the node and the power saving of every GPU's device."""
    if real and not real.endswith(DEVICE_FILES):
        return {}
    folders = [f"/sys/devices/pci{g.port[:7]}/{g.port}/{g.address}" for g in machine.gpus if g.p.present]
    return {f"{folder}{file}": lambda: "0\n" for folder in folders for file in DEVICE_FILES}


DEVICE_FILES = ("/numa_node", "/link/l0s_aspm", "/link/l1_aspm")


FILES: dict[str, Callable[[Machine], str | None]] = {
    "/proc/self/limits": lambda _: LIMITS,
    "/proc/swaps": lambda _: "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/swap.img file 8388604 0 -2",
    "/sys/class/dmi/id/bios_date": lambda machine: machine.host.bios_date,
    "/sys/class/dmi/id/bios_version": lambda machine: machine.host.bios,
    "/sys/class/dmi/id/board_name": lambda machine: machine.host.board_name,
    "/sys/class/dmi/id/board_serial": lambda machine: machine.host.board_serial,
    "/sys/class/dmi/id/board_vendor": lambda machine: machine.host.board_vendor,
    "/sys/class/dmi/id/product_name": lambda machine: machine.host.product,
    "/sys/class/dmi/id/product_serial": lambda machine: _serial(f"{machine.seed}/product"),
    "/sys/devices/system/clocksource/clocksource0/current_clocksource": lambda machine: machine.host.clocksource,
    "/sys/firmware/acpi/pm_profile": lambda _: "4",
    "/sys/firmware/efi/fw_platform_size": lambda machine: _with_efi(machine, "64"),
    "/sys/kernel/mm/transparent_hugepage/enabled": lambda _: "always [madvise] never",
    "/sys/module/nvidia/version": lambda machine: machine.host.driver if machine.host.driver_loaded else None,
    "/sys/module/pcie_aspm/parameters/policy": lambda _: "[default] performance powersave powersupersave",
}
"""File of which there is one -> its text without the last line's end; None for no such file."""
BINARY: dict[str, Callable[[Machine], bytes | None]] = {SECURE_BOOT: _secure_boot}
"""File that is no text -> its bytes; None for no such file."""
PROVIDERS: tuple[tuple[str, Callable[[Machine, str], Mapping[str, Text]]], ...] = (
    ("/lib/modules/", kernels),
    ("/sys/devices/pci", devices),
    ("/sys/devices/system/edac/mc/", controllers),
    (f"{CPUFREQ}/", clocks),
    ("/sys/devices/system/node/", nodes),
    ("/sys/kernel/iommu_groups/", groups),
)
"""Beginning of a path -> who knows the files there."""
COMMANDS: dict[str, Callable[[Machine, Sequence[str]], tuple[int, str, str]]] = {"udevadm": udevadm, "modinfo": modinfo}
"""Name of a tool -> what it does."""
