"""Memory, module by module: what the firmware says is in the slots, what the kernel sees, and whether ECC works.

Owns the parsers of udev's memory properties, of dmidecode's tables 16 and 17 and of EDAC's modes. udev
reads the firmware's tables once at boot and everyone may ask it; dmidecode takes root and is asked
where udev does not know. Must not judge.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome
from pytest_gpuaccept.metric import Inputs, Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.host.machine import Said, placeholder, taken
from pytest_gpuaccept.probes.since import attempt
from pytest_gpuaccept.probes.tool import printed

UDEV_DMI = ("udevadm", "info", "-q", "property", "-p", "/sys/devices/virtual/dmi/id")
DMIDECODE = ("dmidecode", "-t", "16,17")
EDAC = "/sys/devices/system/edac/mc"
GIB = 2**30
UNITS = {"bytes": 1, "kB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
"""dmidecode's units of size."""
NO_CORRECTION = ("None", "Unknown", "Reserved", "PARITY", "EC")
"""EDAC modes in which no flipped bit is corrected, or nobody knows."""
KINDS = (("LRDIMM", "LRDIMM"), ("Registered", "RDIMM"), ("Unbuffered", "UDIMM"))
"""Word of a module's type detail -> kind of module."""
NAMED = 4
"""Modules that a note about ECC names."""
NO_MEMORY = ("Flash", "ROM", "EPROM", "EEPROM", "FEPROM")
"""What some firmware lists among the modules: the chip that it lies in itself."""
ALIKE = ("PART_NUMBER", "SIZE", "SPEED_MTS", "CONFIGURED_SPEED_MTS")
"""What must not differ between the modules of one machine."""
KEYS = {
    "Locator": "LOCATOR", "Type": "TYPE", "Type Detail": "TYPE_DETAIL", "Manufacturer": "MANUFACTURER",
    "Part Number": "PART_NUMBER", "Serial Number": "SERIAL_NUMBER",
}  # fmt: skip
NUMBERS = {
    "Total Width": "TOTAL_WIDTH", "Data Width": "DATA_WIDTH", "Speed": "SPEED_MTS",
    "Configured Memory Speed": "CONFIGURED_SPEED_MTS", "Configured Clock Speed": "CONFIGURED_SPEED_MTS",
}  # fmt: skip
"""dmidecode's words -> udev's, of texts and of numbers."""
Module = Mapping[str, str]
"""One memory module: udev's keys without their number."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the firmware says of the memory: who told it, its error correction ('' untold), slots, modules present."""

    source: str
    correction: str
    slots: int
    modules: tuple[Module, ...]


def memory(site: Site) -> Memory:
    """Read what the firmware says of the memory; raises Unmeasurable when neither udev nor dmidecode tells."""
    if isinstance(hidden := attempt(partial(site.world.read, "/sys/class/dmi/id/modalias")), Unmeasurable):
        message = f"{hidden}: a container or a virtual machine hides the firmware's tables, run on the host"
        raise Unmeasurable(message)
    try:
        return from_udev(printed(site, *UDEV_DMI))
    except Unmeasurable as error:
        unknown = error
    try:
        return from_dmidecode(printed(site, *DMIDECODE))
    except Unmeasurable as error:
        message = f"{unknown}; and {error}: run as root, with dmidecode installed"
        raise Unmeasurable(message) from None


def from_udev(properties: str) -> Memory:
    """Parse `MEMORY_DEVICE_<n>_<KEY>=<value>` lines; raises Unmeasurable when no module is present.

    udev leaves the error correction of an array out that has none, and of an array always tells the place.
    """
    found: dict[int, dict[str, str]] = {}
    for n, key, value in re.findall(r"^MEMORY_DEVICE_(\d{1,5})_([A-Z_]+)=(.*)$", properties, re.MULTILINE):
        found.setdefault(int(n), {})[key] = value.strip()
    correction = re.search(r"^MEMORY_ARRAY_EC_TYPE=(.+)$", properties, re.MULTILINE)
    none = "None" if re.search(r"^MEMORY_ARRAY_LOCATION=.", properties, re.MULTILINE) else ""
    told = correction[1].strip() if correction else none
    return Memory("udev", told, len(found), _present(found.values(), "udev"))


def from_dmidecode(text: str) -> Memory:
    """Parse dmidecode's blocks of types 16 and 17; raises Unmeasurable when no module is present."""
    correction, slots = "", list[dict[str, str]]()
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        fields = dict(re.findall(r"^\t([^:\t\n]+): (.*)$", block, re.MULTILINE))
        if re.search(r"^Physical Memory Array$", block, re.MULTILINE) and fields.get("Use") == "System Memory":
            correction = fields.get("Error Correction Type", "")
        elif re.search(r"^Memory Device$", block, re.MULTILINE):
            slots.append(_slot(fields))
    return Memory("dmidecode", correction, len(slots), _present(slots, "dmidecode"))


def _slot(fields: Mapping[str, str]) -> dict[str, str]:
    """Return one of dmidecode's memory devices under udev's keys."""
    slot = {KEYS[name]: value.strip() for name, value in fields.items() if name in KEYS}
    for name, key in NUMBERS.items():
        if match := re.match(r"([1-9]\d{0,5}) (?:bits|MT/s|MHz)$", fields.get(name, "")):
            slot[key] = match[1]
    size = fields.get("Size", "")
    if match := re.fullmatch(r"([1-9]\d{0,9}) (bytes|kB|MB|GB|TB)", size):
        return slot | {"SIZE": str(int(match[1]) * UNITS[match[2]])}
    return slot | ({"PRESENT": "0"} if size == "No Module Installed" else {})


def _present(slots: Iterable[Module], source: str) -> tuple[Module, ...]:
    """Return the modules that are present: with a size, or with a speed where the size is unknown."""
    modules = [slot for slot in slots if _is_there(slot)]
    if not modules:
        message = f"{source} lists no memory module (no DMI here, or systemd older than 248)"
        raise Unmeasurable(message)
    return tuple(modules)


def _is_there(slot: Module) -> bool:
    if slot.get("PRESENT") == "0" or slot.get("SIZE") == "0" or slot.get("TYPE") in NO_MEMORY:
        return False
    return "SIZE" in slot or "SPEED_MTS" in slot or "CONFIGURED_SPEED_MTS" in slot


# readings of the firmware's tables -----------------------------------------------------------


def count(of: Memory) -> Said:
    """Return the number of modules, each in the note."""
    return len(of.modules), f"{of.source}: {listed(of.modules)}"


def listed(modules: Iterable[Module]) -> str:
    """Write modules with their places, those that are alike together: `A1, B1: 64 GiB DDR4 ...`."""
    places: dict[str, list[str]] = {}
    for module in modules:
        places.setdefault(described(module), []).append(module.get("LOCATOR", "?"))
    return "; ".join(f"{', '.join(where)}: {what}" for what, where in places.items())


def described(module: Module) -> str:
    """Write a module as `64 GiB DDR4 LRDIMM 2666 of 2666 MT/s PART`, `?` for what is unknown."""
    size = f"{int(_number(module, 'SIZE')) / GIB:g}" if _known(module, "SIZE") else "?"
    speed = f"{module.get('CONFIGURED_SPEED_MTS', '?')} of {module.get('SPEED_MTS', '?')} MT/s"
    return f"{size} GiB {kind(module)} {speed} {module.get('PART_NUMBER', '?')}"


def kind(module: Module) -> str:
    """Return the type of a module with its kind, `DDR4 LRDIMM`, as far as the firmware tells."""
    detail = module.get("TYPE_DETAIL", "")
    said = next((name for word, name in KINDS if word in detail), "")
    return f"{module.get('TYPE', '?')} {said}".strip()


def installed(of: Memory) -> float:
    """Return the sum of all modules' sizes in GiB."""
    return sum(int(_number(module, "SIZE")) for module in of.modules) / GIB


def speed(of: Memory) -> int:
    """Return the lowest configured speed of the modules in MT/s."""
    return min(int(_number(module, "CONFIGURED_SPEED_MTS")) for module in of.modules)


def below_rated(of: Memory) -> Said:
    """Return how many modules run below their rated speed: more modules a channel, or a CPU that takes no more."""
    slow = [m for m in of.modules if int(_number(m, "CONFIGURED_SPEED_MTS")) < int(_number(m, "SPEED_MTS"))]
    return len(slow), listed(slow)


def technology(of: Memory) -> Said:
    """Return the type of the modules, `mixed: ...` where they differ; the kind of module stands in the note."""
    types = Counter(module.get("TYPE", "") for module in of.modules)
    if "" in types or any(placeholder(name) for name in types):
        message = f"{of.source} does not give the type of every memory module"
        raise Unmeasurable(message)
    return mixed(types), ", ".join(f"{n} x {name}" for name, n in Counter(map(kind, of.modules)).items())


def mixed(seen: Counter[str]) -> str:
    """Return the one thing that was seen, or `mixed: A 7, B 1`, the most frequent first."""
    if len(seen) == 1:
        return next(iter(seen))
    return f"mixed: {', '.join(f'{name} {n}' for name, n in seen.most_common())}"


def uniform(of: Memory) -> Said:
    """Say whether all modules are alike in part number, size and speeds.

    Raises Unmeasurable when nothing differs and a part of it is not told.
    """
    seen = {key: Counter(module.get(key, "") for module in of.modules) for key in ALIKE}
    differ = [f"{key.lower()} {mixed(values)}" for key, values in seen.items() if len(values.keys() - {""}) > 1]
    if differ:
        return False, "; ".join(differ)
    if untold := [key for key, values in seen.items() if any(placeholder(value) for value in values)]:
        message = f"{of.source} does not give {', '.join(untold)} of every memory module"
        raise Unmeasurable(message)
    return True, ", ".join(f"{key.lower()} {mixed(values)}" for key, values in seen.items())


def correction(of: Memory) -> str:
    """Return the error correction of the memory array in the firmware's words: what is installed, not what works."""
    if placeholder(of.correction) and of.correction != "None":
        message = f"{of.source} does not give the memory's error correction"
        raise Unmeasurable(message)
    return of.correction


def _known(module: Module, key: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,18}", module.get(key, "")) is not None


def _number(module: Module, key: str) -> str:
    if not _known(module, key):
        message = f"nobody gives {key} of the memory module {module.get('LOCATOR', '?')}"
        raise Unmeasurable(message)
    return module[key]


READINGS: dict[Metric, Callable[[Memory], Said]] = {
    Metric("host.memory.dimms", "Memory modules", "count", "host"): count,
    Metric("host.memory.slots", "Memory slots", "count", "host"): lambda of: of.slots,
    Metric("host.memory.installed", "Memory installed", "GiB", "host"): installed,
    Metric("host.memory.speed", "Memory speed configured", "MT/s", "host"): speed,
    Metric("host.memory.below_rated", "Memory modules below their rated speed", "count", "host"): below_rated,
    Metric("host.memory.type", "Memory type", "text", "host"): technology,
    Metric("host.memory.uniform", "Memory modules are all alike", "flag", "host"): uniform,
    Metric("host.memory.correction", "Error correction of the memory installed", "text", "host"): correction,
}


# what the kernel sees ------------------------------------------------------------------------


def visible(site: Site) -> float:
    """Return MemTotal in GiB."""
    match = re.search(r"^MemTotal:\s*([1-9]\d{0,18}) kB$", site.world.read("/proc/meminfo"), re.MULTILINE)
    if match is None:
        message = "/proc/meminfo has no MemTotal"
        raise Unmeasurable(message)
    return int(match[1]) * 1024 / GIB


def ecc(site: Site) -> Said:
    """Say whether the memory controller corrects errors now; installed ECC modules alone do not.

    Raises Unmeasurable where no EDAC driver shows it.
    """
    modes = edac_modes(site)
    _check_whole(site)
    without = [place for place, mode in modes.items() if mode in NO_CORRECTION]
    if unknown := [place for place in without if modes[place] == "Unknown"]:
        message = f"EDAC does not know the mode of {', '.join(unknown)}"
        raise Unmeasurable(message)
    note = ", ".join(f"{n} x {mode}" for mode, n in Counter(modes.values()).items())
    return not without, note + (f"; {', '.join(without[:NAMED])} without correction" if without else "")


def controllers(site: Site) -> list[str]:
    """Return the memory controllers that an EDAC driver watches; raises Unmeasurable without EDAC."""
    return [name for name in site.world.names(EDAC) if re.fullmatch(r"mc\d+", name)]


def _check_whole(site: Site) -> None:
    """Raise Unmeasurable where EDAC watches less memory than the kernel uses."""
    sizes = [site.world.read(f"{EDAC}/{controller}/size_mb") for controller in controllers(site)]
    watched = sum(int(size) for size in sizes if re.fullmatch("[0-9]{1,9}", size)) / 1024
    if watched < (used := visible(site)):
        message = f"EDAC watches {watched:.0f} of {used:.0f} GiB: a controller has no driver, see dmesg | grep EDAC"
        raise Unmeasurable(message)


def edac_modes(site: Site) -> dict[str, str]:
    """Return EDAC's mode of every `mc<n>/dimm<n>`; raises Unmeasurable when there is none."""
    there = attempt(partial(controllers, site))
    found = {}
    for controller in [] if isinstance(there, Unmeasurable) else there:
        for dimm in site.world.names(f"{EDAC}/{controller}"):
            if re.fullmatch(r"(dimm|rank)\d+", dimm):
                found[f"{controller}/{dimm}"] = site.world.read(f"{EDAC}/{controller}/{dimm}/dimm_edac_mode")
    if not all(found.values()) or not found:
        message = "no EDAC driver shows the memory controller: switch ECC on in the BIOS, load the driver (amd64_edac, "
        message += "skx_edac, i10nm_edac ...), run again; a virtual machine hides it"
        raise Unmeasurable(message)
    return found


SEEN: dict[Metric, Callable[[Site], Said]] = {
    Metric("host.memory.visible", "Memory visible to the kernel", "GiB", "host"): visible,
    Metric("host.memory.ecc", "Memory errors are corrected", "flag", "host"): ecc,
}


def share(inputs: Inputs) -> Measurement:
    """Return the memory that the kernel sees as a share of what is installed."""
    seen, there = inputs.number("host.memory.visible"), inputs.number("host.memory.installed")
    note = f"{seen:.1f} of {there:g} GiB"
    return Measurement(SHARE.id, inputs.device, seen / there, "ratio", "calculated", ceiling=1.0, note=note)


SHARE = Metric("host.memory.share", "Share of the memory that the kernel sees", "ratio", "host", derive=share)
METRICS = (*READINGS, *SEEN, SHARE)


def readings(site: Site) -> Iterator[Outcome]:
    """Yield what the firmware says of the memory, and what the kernel sees of it."""
    yield from taken(site, site, SEEN)
    try:
        told = memory(site)
    except Unmeasurable as error:
        yield from (NotMeasured(metric.id, site.device, str(error)) for metric in READINGS)
    else:
        yield from taken(site, told, READINGS)
