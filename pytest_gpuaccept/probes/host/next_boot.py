"""What the next start of the machine will bring: one driver everywhere, in every kernel that may start, and signed.

Owns the comparison of the driver in memory, on the disk and in the library, of the kernels that are
installed, and of secure boot with the module's signature. Must not judge, and builds nothing.
"""

import re
from collections.abc import Callable
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.host.machine import Said
from pytest_gpuaccept.probes.kernel.options import kernel_release
from pytest_gpuaccept.probes.since import attempt
from pytest_gpuaccept.probes.tool import TOOL_S, refusal

MODULE_VERSION = "/sys/module/nvidia/version"
DRIVER_VERSION = "/proc/driver/nvidia/version"
MODULES = "/lib/modules"
FIRMWARE = "/sys/firmware"
SECURE_BOOT = f"{FIRMWARE}/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
ATTRIBUTES = 4
"""Bytes of an EFI variable before its value."""
LIBRARIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")
VERSION = r"[0-9]{1,5}(?:\.[0-9]{1,5}){1,3}"


def driver_match(site: Site) -> Said:
    """Say whether the driver in memory, its module on the disk and the library are one version.

    Raises Unmeasurable when those that can be read agree and one cannot be read.
    """
    places = {"loaded": loaded, "on the disk": on_disk, "library": library}
    read = {place: attempt(partial(ask, site)) for place, ask in places.items()}
    versions = {place: said for place, said in read.items() if isinstance(said, str)}
    note = ", ".join(f"{place} {version}" for place, version in versions.items())
    if len(set(versions.values())) > 1:
        return False, f"{note}: another driver, or none, will work after the next start; install one, then restart"
    if unread := [f"{place}: {said}" for place, said in read.items() if isinstance(said, Unmeasurable)]:
        message = f"not every version can be read, {'; '.join(unread)}"
        raise Unmeasurable(message)
    return True, note


def loaded(site: Site) -> str:
    """Return the version of the driver in memory; raises Unmeasurable when none is loaded."""
    text = attempt(lambda: site.world.read(MODULE_VERSION))
    if isinstance(text, str):
        return version(text, MODULE_VERSION)
    match = re.search(rf"^NVRM version: .*?  ({VERSION})(?:  |$)", site.world.read(DRIVER_VERSION), re.MULTILINE)
    return version(match[1] if match else "", DRIVER_VERSION)


def on_disk(site: Site, kernel: str = "") -> str:
    """Return the version of the module that a kernel, else the running one, loads; raises Unmeasurable for none."""
    return version(modinfo(site, "version", kernel), "modinfo")


def library(site: Site) -> str:
    """Return the version of the user library: as it says, else as its file is called where it does not work."""
    nvml = attempt(site.world.nvml)
    if isinstance(nvml, Unmeasurable):
        return _called(site, nvml)
    try:
        return version(str(nvml.nvmlSystemGetDriverVersion()), "NVML")
    except nvml.NVMLError as error:
        message = f"NVML does not tell its version: {error}"
        raise Unmeasurable(message) from None


def _called(site: Site, why: Unmeasurable) -> str:
    """Return the version in the library's file name; raises `why` when there is none, or several."""
    folders = [attempt(partial(site.world.names, folder)) for folder in LIBRARIES]
    names = [name for folder in folders if not isinstance(folder, Unmeasurable) for name in folder]
    found = {match[1] for name in names if (match := re.fullmatch(rf"libnvidia-ml\.so\.({VERSION})", name))}
    if len(found) != 1:
        raise why
    return found.pop()


def version(text: str, where: str) -> str:
    """Return a driver's version as it is; raises Unmeasurable for what is none."""
    if not re.fullmatch(VERSION, text):
        message = f"{where} says {text[:40]!r}, which is no version of a driver"
        raise Unmeasurable(message)
    return text


def modinfo(site: Site, field: str, kernel: str = "") -> str:
    """Return a field of the driver's module; raises Unmeasurable without such a module, or without modinfo."""
    of_kernel = ("-k", kernel) if kernel else ()
    done = site.world.command((tool(site), *of_kernel, "-F", field, "nvidia"), timeout=TOOL_S)
    if done.status != 0:
        message = f"there is no module of the driver for {kernel or 'the running kernel'}: {refusal(done)}"
        raise Unmeasurable(message)
    return done.stdout.strip()


def tool(site: Site) -> str:
    """Return modinfo, which some systems keep from the path of ordinary users; raises Unmeasurable without it."""
    for name in ("modinfo", "/sbin/modinfo"):
        if site.world.has(name):
            return name
    message = "modinfo not found; install with: apt-get install kmod"
    raise Unmeasurable(message)


# kernels -------------------------------------------------------------------------------------


def kernel_newest(site: Site) -> Said:
    """Say whether the running kernel is the newest that is installed: the one that the next start takes."""
    running, newer = kernel_release(site), newer_kernels(site)
    return not newer, f"{running} runs, {', '.join(newer)} is installed" if newer else f"{running} is the newest"


def kernel_installed(site: Site) -> Said:
    """Say whether the next start finds the driver: for the running kernel, each newer one, and one that GRUB names."""
    kernels = list(dict.fromkeys([kernel_release(site), *newer_kernels(site), *_chosen(site)]))
    tool(site)
    found = {kernel: attempt(partial(on_disk, site, kernel)) for kernel in kernels}
    without = [str(said) for said in found.values() if isinstance(said, Unmeasurable)]
    versions = {said for said in found.values() if isinstance(said, str)}
    note = "; ".join(f"{kernel} has {said}" for kernel, said in found.items() if isinstance(said, str))
    if without:
        return False, f"{'; '.join(without)}: build it (dkms autoinstall -k KERNEL), or take that kernel away"
    return len(versions) == 1, note


def newer_kernels(site: Site) -> list[str]:
    """Return the kernels installed that are newer than the running one; raises Unmeasurable when that is not there.

    What a removed kernel leaves behind, a folder without a list of its modules, is none.
    """
    running = kernel_release(site)
    there = attempt(partial(site.world.names, MODULES))
    installed = [] if isinstance(there, Unmeasurable) else [name for name in there if _whole(site, name)]
    if running not in installed:
        message = f"the modules of the running kernel {running} are not in {MODULES}: a container, or it was removed; "
        message += "restart into an installed kernel, run again"
        raise Unmeasurable(message)
    return sorted((name for name in installed if age(name) > age(running)), key=age)


def _chosen(site: Site) -> list[str]:
    """Return the installed kernels that the boot loader's own choice names: for once, by default, or saved for that."""
    texts = [attempt(partial(site.world.read, path)) for path in GRUB]
    said = [line for text in texts if isinstance(text, str) for line in text.splitlines() if CHOICE.match(line)]
    if any(re.match(r"GRUB_DEFAULT=(?!.?saved)", line) for line in said):
        said = [line for line in said if not line.startswith("saved_entry=")]
    return [k for k in site.world.names(MODULES) if _whole(site, k) and any(_names(line, k) for line in said)]


def _names(line: str, kernel: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(kernel)}(?![\w.]|-[0-9])", line) is not None


GRUB = ("/boot/grub/grubenv", "/boot/grub2/grubenv", "/etc/default/grub")
CHOICE = re.compile("saved_entry=|next_entry=|GRUB_DEFAULT=")


def _whole(site: Site, kernel: str) -> bool:
    names = attempt(lambda: site.world.names(f"{MODULES}/{kernel}"))
    return not isinstance(names, Unmeasurable) and "modules.dep" in names


def age(release: str) -> tuple[tuple[int, ...], str]:
    """Return what sorts kernel releases from old to new: the numbers before the flavour, then the rest."""
    numbers = re.match(r"[0-9]{1,9}(?:[.-][0-9]{1,9})*", release)
    return tuple(int(n) for n in re.findall(r"[0-9]+", numbers[0])) if numbers else (), release


# secure boot ---------------------------------------------------------------------------------


def secure_boot_consistent(site: Site) -> Said:
    """Say whether the driver's module is signed where secure boot asks for it."""
    if not (on := secure_boot(site)):
        return True, "secure boot is off" if on is False else "started without EFI, which has no secure boot"
    signer = modinfo(site, "signer")
    if not signer:
        return False, "secure boot is on and the module is not signed: sign it and enrol the key, or switch it off"
    return True, f"secure boot is on, the module is signed by {signer[:60]}"


def secure_boot(site: Site) -> bool | None:
    """Say whether secure boot is on; None for a machine that was started without EFI.

    Raises Unmeasurable when the firmware cannot be asked.
    """
    tables = site.world.names(FIRMWARE)
    if "efi" not in tables:
        if tables:
            return None
        message = f"{FIRMWARE} is empty: a container hides the firmware, run on the host"
        raise Unmeasurable(message)
    variable = site.world.data(SECURE_BOOT)
    if len(variable) != ATTRIBUTES + 1 or variable[ATTRIBUTES] not in (0, 1):
        message = f"the EFI variable SecureBoot has {len(variable)} bytes, {variable[:8].hex()}, which says nothing"
        raise Unmeasurable(message)
    return variable[ATTRIBUTES] == 1


MATCH = Metric("gpu.driver.match", "One driver in memory, on the disk and in the library", "flag", "host")
READINGS: dict[Metric, Callable[[Site], Said]] = {
    Metric("host.kernel.newest", "The running kernel is the newest installed", "flag", "host"): kernel_newest,
    Metric("host.kernel.installed", "Every kernel that may start has the driver", "flag", "host"): kernel_installed,
    Metric("host.secure_boot.consistent", "Secure boot takes the driver", "flag", "host"): secure_boot_consistent,
    MATCH: driver_match,
}
