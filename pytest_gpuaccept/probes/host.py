"""Host inventory: what /proc, /sys, udev and os-release say of the machine. No root, no load.

Owns the parsers of these sources. A source that is missing or unreadable is an absent value.
"""

import re
from collections.abc import Callable, Iterator

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome, Value
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site

PLACEHOLDERS = ("to be filled by o.e.m.", "default string", "system product name", "not specified", "x.x", "none", "")
BLINDFOLDS = ("pci=noaer", "mce=off", "nomce", "edac=off", "noaer")
"""Kernel options that switch off the channel by which a hardware error would be seen."""
UDEV_DMI = ("udevadm", "info", "-q", "property", "-p", "/sys/devices/virtual/dmi/id")
GIB = 2**30


def cpu_model(site: Site) -> str:
    """Return the model string of the first CPU."""
    return _field(site.world.read("/proc/cpuinfo"), r"^model name\s*:\s*(.+)$", "/proc/cpuinfo has no model name")


def cpu_cores(site: Site) -> int:
    """Return the number of physical cores online."""
    return count_cores(site.world.read("/proc/cpuinfo"))


def cpu_threads(site: Site) -> int:
    """Return the number of CPUs online."""
    return len(cpu_list(site.world.read("/sys/devices/system/cpu/online")))


def cpu_offline(site: Site) -> int:
    """Return how many CPUs are present and not online."""
    present = cpu_list(site.world.read("/sys/devices/system/cpu/present"))
    return len(set(present) - set(cpu_list(site.world.read("/sys/devices/system/cpu/online"))))


def memory_visible(site: Site) -> float:
    """Return MemTotal in GiB."""
    kib = _field(site.world.read("/proc/meminfo"), r"^MemTotal:\s*([1-9]\d{0,18}) kB$", "/proc/meminfo has no MemTotal")
    return int(kib) * 1024 / GIB


def os_release(site: Site) -> str:
    """Return `ID VERSION_ID` of /etc/os-release."""
    text = site.world.read("/etc/os-release")
    parts = [
        _field(text, rf"^{key}=[\"']?([^\"'\n]+)[\"']?$", f"os-release has no {key}") for key in ("ID", "VERSION_ID")
    ]
    return " ".join(parts)


def kernel_release(site: Site) -> str:
    """Return the running kernel's release."""
    return _text(site, "/proc/sys/kernel/osrelease")


def kernel_blindfolds(site: Site) -> str:
    """Return the kernel options that hide hardware errors, `none` when there are none."""
    options = [word.partition("=") for word in _text(site, "/proc/cmdline").split()]
    single = {f"{key}{is_}{value}" for key, is_, values in options for value in values.split(",")}
    return " ".join(sorted(single & set(BLINDFOLDS))) or "none"


def board(site: Site) -> str:
    """Return board vendor and name; refuses the placeholders that boards are shipped with."""
    parts = [site.world.read(f"/sys/class/dmi/id/{key}") for key in ("board_vendor", "board_name")]
    if any(part.lower() in PLACEHOLDERS for part in parts):
        message = f"the board calls itself {' '.join(parts)!r}, which is a placeholder"
        raise Unmeasurable(message)
    return " ".join(parts)


def bios(site: Site) -> str:
    """Return the BIOS version."""
    version = _text(site, "/sys/class/dmi/id/bios_version")
    if version.lower() in PLACEHOLDERS:
        message = f"the BIOS calls its version {version!r}, which is a placeholder"
        raise Unmeasurable(message)
    return version


def dimm_count(site: Site) -> int:
    """Return the number of memory modules present."""
    return len(dimms(udev_dmi(site)))


def memory_installed(site: Site) -> float:
    """Return the sum of all modules' sizes in GiB."""
    return sum(int(_key(d, "SIZE")) for d in dimms(udev_dmi(site))) / GIB


def memory_speed(site: Site) -> int:
    """Return the lowest configured speed of the modules in MT/s."""
    return min(int(_key(d, "CONFIGURED_SPEED_MTS")) for d in dimms(udev_dmi(site)))


def udev_dmi(site: Site) -> str:
    """Return udev's properties of the DMI device, filled once at boot and readable by everyone."""
    site.world.read("/sys/class/dmi/id/modalias")
    done = site.world.command(UDEV_DMI, timeout=10)
    if done.status != 0:
        message = f"udevadm failed: {done.stderr.strip()[:200]}"
        raise Unmeasurable(message)
    return done.stdout


def dimms(properties: str) -> list[dict[str, str]]:
    """Parse `MEMORY_DEVICE_<n>_<KEY>=<value>` lines; return the modules that are present.

    Raises Unmeasurable when there is none: a machine with no memory has not been read.
    """
    found: dict[int, dict[str, str]] = {}
    for n, key, value in re.findall(r"^MEMORY_DEVICE_(\d+)_([A-Z_]+)=(.*)$", properties, re.MULTILINE):
        found.setdefault(int(n), {})[key] = value
    present = [module for module in found.values() if module.get("PRESENT") != "0" and module.get("SIZE", "0") != "0"]
    if not present:
        message = "udev lists no memory module (no DMI here, or systemd older than 248)"
        raise Unmeasurable(message)
    return present


def cpu_list(text: str) -> list[int]:
    """Parse the kernel's list format, `0-3,8`; raises Unmeasurable on anything else."""
    if not re.fullmatch(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", text):
        message = f"{text[:40]!r} is not a CPU list"
        raise Unmeasurable(message)
    spans = [(int(low), int(high or low)) for low, _, high in (part.partition("-") for part in text.split(","))]
    if any(low > high for low, high in spans):
        message = f"{text[:40]!r} is a CPU list that counts backwards"
        raise Unmeasurable(message)
    return [cpu for low, high in spans for cpu in range(low, high + 1)]


def count_cores(cpuinfo: str) -> int:
    """Return the number of distinct (package, core) pairs in /proc/cpuinfo."""
    packages = re.findall(r"^physical id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    cores = re.findall(r"^core id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    if not cores or len(packages) != len(cores):
        message = "/proc/cpuinfo tells no cores apart"
        raise Unmeasurable(message)
    return len(set(zip(packages, cores, strict=True)))


def _text(site: Site, path: str) -> str:
    """Return a file's text; an empty one says nothing and is refused."""
    text = site.world.read(path)
    if not text:
        message = f"{path} is empty"
        raise Unmeasurable(message)
    return text


def _field(text: str, pattern: str, absent: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise Unmeasurable(absent)
    return match[1].strip()


def _key(module: dict[str, str], key: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,18}", module.get(key, "")):
        message = f"udev gives no {key} for a memory module"
        raise Unmeasurable(message)
    return module[key]


READINGS: dict[Metric, Callable[[Site], Value]] = {
    Metric("host.cpu.model", "CPU", "text", "host"): cpu_model,
    Metric("host.cpu.cores", "CPU cores", "count", "host"): cpu_cores,
    Metric("host.cpu.threads", "CPU threads", "count", "host"): cpu_threads,
    Metric("host.cpu.offline", "CPUs present but offline", "count", "host"): cpu_offline,
    Metric("host.memory.visible", "Memory visible to the kernel", "GiB", "host"): memory_visible,
    Metric("host.memory.installed", "Memory installed", "GiB", "host"): memory_installed,
    Metric("host.memory.dimms", "Memory modules", "count", "host"): dimm_count,
    Metric("host.memory.speed", "Memory speed configured", "MT/s", "host"): memory_speed,
    Metric("host.board.model", "Board", "text", "host"): board,
    Metric("host.bios.version", "BIOS version", "text", "host"): bios,
    Metric("host.os.release", "Operating system", "text", "host"): os_release,
    Metric("host.kernel.release", "Kernel", "text", "host"): kernel_release,
    Metric("host.kernel.blindfolds", "Kernel options that hide errors", "text", "host"): kernel_blindfolds,
}


def inventory(site: Site) -> Iterator[Outcome]:
    """Yield every reading; one that fails leaves the others alone."""
    for metric, read in READINGS.items():
        try:
            yield site.measured(metric, read(site))
        except Unmeasurable as error:
            yield NotMeasured(metric.id, site.device, str(error))


ATTESTED = {
    "power supplies": Metric("host.psu", "Power supplies", "text", "host", attestable=True),
    "chassis": Metric("host.chassis", "Chassis and airflow", "text", "host", attestable=True),
}
"""What no sensor shows: what a person has to look at -> metric."""


def look_for_yourself(site: Site) -> Iterator[Outcome]:
    """Yield what was seen, or its absence with the file that takes a person's word for it."""
    attested = {entry.line for entry in site.profile.attested}
    for subject, metric in ATTESTED.items():
        if metric.id in attested:
            continue
        try:
            yield site.measured(metric, site.world.look(subject))
        except Unmeasurable as error:
            reason = f"{error}: look, and attest it in thresholds/{site.profile.name}.attested.toml"
            yield NotMeasured(metric.id, site.device, reason)


SOFTWARE = {
    Metric("software.cuda_toolkit", "CUDA toolkit", "text", "host"): "cuda_toolkit",
    Metric("software.cudnn", "cuDNN", "text", "host"): "cudnn",
    Metric("software.torch", "PyTorch", "text", "host"): "torch",
    Metric("software.transformers", "transformers", "text", "host"): "transformers",
}
"""Metric -> its key in the record of the load script."""
VERSIONS_S = 60


def software(site: Site) -> Iterator[Outcome]:
    """Yield the versions that the delivered interpreter finds; what it lacks is an absence."""
    with site.world.start("versions", {}) as load:
        records = load.finish(timeout=VERSIONS_S)
    if len(records) != 1:
        message = f"the delivered interpreter reported its versions {len(records)} times instead of once"
        raise Unmeasurable(message)
    for metric, key in SOFTWARE.items():
        version = records[0].get(key)
        if isinstance(version, str) and version:
            yield site.measured(metric, version)
        else:
            reason = f"{metric.title} is not found by the delivered interpreter: install it, or see --hw-python"
            yield NotMeasured(metric.id, site.device, reason)


PROBES = (
    Probe("host.inventory", "inventory", "host", tuple(READINGS), inventory),
    Probe("host.attested", "inventory", "host", tuple(ATTESTED.values()), look_for_yourself),
    Probe("host.software", "inventory", "host", tuple(SOFTWARE), software, loads=("versions",)),
)
