"""The machine by name: CPU, board, firmware, operating system, delivered software, what a person has to look at.

Owns the parsers of /proc/cpuinfo, /sys/class/dmi/id and os-release. A source that is missing or
unreadable is an absent value, and so is a name that says nothing. No root, no load.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome, Value
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.kernel.options import kernel_blindfolds, kernel_cmdline, kernel_release

PLACEHOLDERS = frozenset({
    "to be filled by o.e.m.", "to be filled by o.e.m", "o.e.m.", "o.e.m", "oem", "default string", "default",
    "system manufacturer", "system product name", "system version", "system serial number", "system name",
    "base board manufacturer", "base board product name", "base board serial number", "base board version",
    "chassis manufacturer", "chassis serial number", "chassis version", "not specified", "not applicable",
    "not available", "undefined", "unknown", "invalid", "empty", "none", "null", "n/a", "na", "t.b.d.", "tbd",
    "insyde", "type1productconfigid", "0123456789", "123456789", "1234567890", "sku", "asset tag",
})  # fmt: skip
"""What firmware says where nobody wrote anything."""
NO_NAME = re.compile(r"x[x.\-_ ]*|[0.\-_*? ]*", re.IGNORECASE)
"""A text of these alone is a mask that was never filled."""
SAMPLE = re.compile(r"\beng(ineering)?\.? sample\b|0{6}|0{4}%", re.IGNORECASE)
"""How processors call themselves that were never sold."""
DENIED = "Permission denied"
T = TypeVar("T")
Said = Value | tuple[Value, str]
"""A value, or a value with a note."""


def taken(site: Site, of: T, readings: Mapping[Metric, Callable[[T], Said]]) -> Iterator[Outcome]:
    """Yield every reading of one thing; one that fails leaves the others alone."""
    for metric, read in readings.items():
        try:
            said = read(of)
        except Unmeasurable as error:
            yield NotMeasured(metric.id, site.device, str(error))
        else:
            value, note = said if isinstance(said, tuple) else (said, "")
            yield site.measured(metric, value, note=note)


def cpu_model(site: Site) -> str:
    """Return the model of all CPUs, `A + B` where they differ; refuses an engineering sample."""
    models = re.findall(r"^model name[ \t]*:[ \t]*(\S.*)$", site.world.read("/proc/cpuinfo"), re.MULTILINE)
    model = " + ".join(dict.fromkeys(name.strip() for name in models))
    if not model:
        message = "/proc/cpuinfo has no model name"
        raise Unmeasurable(message)
    if SAMPLE.search(model):
        message = f"the CPU calls itself {model!r}: an engineering sample is no delivered product, ask for another"
        raise Unmeasurable(message)
    return model


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


def os_release(site: Site) -> str:
    """Return `ID VERSION_ID` of /etc/os-release."""
    text = site.world.read("/etc/os-release")
    parts = [
        _field(text, rf"^{key}=[\"']?([^\"'\n]+)[\"']?$", f"os-release has no {key}") for key in ("ID", "VERSION_ID")
    ]
    return " ".join(parts)


def board(site: Site) -> str:
    """Return board vendor and name; refuses the placeholders that boards are shipped with."""
    return f"{_named(site, 'board_vendor', 'board')} {_named(site, 'board_name', 'board')}"


def bios(site: Site) -> str:
    """Return the BIOS version."""
    return _named(site, "bios_version", "BIOS")


def bios_date(site: Site) -> str:
    """Return the day of the BIOS, year first."""
    text = _named(site, "bios_date", "BIOS")
    match = re.fullmatch(r"(0[1-9]|1[0-2])/(0[1-9]|[12]\d|3[01])/((?:19|20)\d\d)", text)
    if match is None:
        message = f"the BIOS gives its day as {text[:40]!r}, which is none (month/day/year)"
        raise Unmeasurable(message)
    return f"{match[3]}-{match[1]}-{match[2]}"


def _identity(key: str, what: str) -> Callable[[Site], str]:
    return lambda site: _named(site, key, what)


def _named(site: Site, key: str, what: str) -> str:
    """Return what the firmware calls a thing; raises Unmeasurable for a placeholder; serial numbers take root."""
    try:
        name = site.world.read(f"/sys/class/dmi/id/{key}")
    except Unmeasurable as error:
        remedy = "run as root" if DENIED in str(error) else "a container or a virtual machine hides it, run on the host"
        message = f"{error}: {remedy}"
        raise Unmeasurable(message) from None
    if placeholder(name):
        message = f"the {what} says {name!r} as its {key.replace('_', ' ')}, which is a placeholder"
        raise Unmeasurable(message)
    return name


def placeholder(name: str) -> bool:
    """Say whether a name is what firmware says where nobody wrote one."""
    return name.lower().strip() in PLACEHOLDERS or NO_NAME.fullmatch(name) is not None


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


def _field(text: str, pattern: str, absent: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise Unmeasurable(absent)
    return match[1].strip()


READINGS: dict[Metric, Callable[[Site], Said]] = {
    Metric("host.cpu.model", "CPU", "text", "host"): cpu_model,
    Metric("host.cpu.cores", "CPU cores", "count", "host"): cpu_cores,
    Metric("host.cpu.threads", "CPU threads", "count", "host"): cpu_threads,
    Metric("host.cpu.offline", "CPUs present but offline", "count", "host"): cpu_offline,
    Metric("host.board.model", "Board", "text", "host"): board,
    Metric("host.board.serial", "Serial number of the board", "text", "host"): _identity("board_serial", "board"),
    Metric("host.product.name", "Product", "text", "host"): _identity("product_name", "machine"),
    Metric("host.product.serial", "Serial number of the machine", "text", "host"): _identity(
        "product_serial", "machine"
    ),
    Metric("host.bios.version", "BIOS version", "text", "host"): bios,
    Metric("host.bios.date", "BIOS day", "text", "host"): bios_date,
    Metric("host.os.release", "Operating system", "text", "host"): os_release,
    Metric("host.kernel.release", "Kernel", "text", "host"): kernel_release,
    Metric("host.kernel.cmdline", "Options with which the kernel was started", "text", "host"): kernel_cmdline,
    Metric("host.kernel.blindfolds", "Kernel options that hide errors", "text", "host"): kernel_blindfolds,
}


ATTESTED = {
    "power supplies": Metric("host.psu", "Power supplies", "text", "host", attestable=True),
    "chassis": Metric("host.chassis", "Chassis and airflow", "text", "host", attestable=True),
    "rating of the power supplies": Metric(
        "host.psu.rating_w", "Rating of the power supplies", "W", "host", attestable=True
    ),
    "cabling": Metric("host.cabling", "Cabling", "text", "host", attestable=True),
}
"""What no sensor shows: what a person has to look at -> metric."""


def look_for_yourself(site: Site) -> Iterator[Outcome]:
    """Yield what was seen, or its absence with the file that takes a person's word for it."""
    attested = {entry.line for entry in site.profile.attested}
    for subject, metric in ATTESTED.items():
        if metric.id in attested:
            continue
        try:
            yield site.measured(metric, _seen(site, subject, metric))
        except Unmeasurable as error:
            reason = f"{error}: look, and attest it in thresholds/{site.profile.name}.attested.toml"
            yield NotMeasured(metric.id, site.device, reason)


def _seen(site: Site, subject: str, metric: Metric) -> Value:
    """Return what was seen, as a number where the metric is one."""
    text = site.world.look(subject)
    if metric.unit == "text":
        return text
    if not re.fullmatch(r"\d{1,6}", text):
        message = f"{text[:40]!r} is no number of {metric.unit}"
        raise Unmeasurable(message)
    return int(text)


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
    Probe("host.attested", "inventory", "host", tuple(ATTESTED.values()), look_for_yourself),
    Probe("host.software", "inventory", "host", tuple(SOFTWARE), software, loads=("versions",)),
)
