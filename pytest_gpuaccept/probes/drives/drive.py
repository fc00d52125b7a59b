"""Drives: what is behind a mount, who they are, and what the kernel shows of them.

Owns the way from a folder through LVM, encryption and RAID down to the drives whose bytes count, and the
parsers of their files in /sys. Writes nothing, and knows no load.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pytest_gpuaccept.children.telemetry import hop
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.since import attempt
from pytest_gpuaccept.world import Disk, World

MODEL = Metric("nvme.model", "Drive model", "text", "nvme")
FIRMWARE = Metric("nvme.firmware", "Drive firmware", "text", "nvme")
SERIAL = Metric("nvme.serial", "Drive serial number", "text", "nvme")
SIZE = Metric("nvme.size", "Drive size", "GB", "nvme")
SYSTEM_MODEL = Metric("host.disk.model", "Disk of the operating system", "text", "host")
SYSTEM_SIZE = Metric("host.disk.size", "Size of the operating system's disk", "GB", "host")
COUNT = Metric("nvme.count", "NVMe drives", "count", "host")

BLOCK = "/sys/dev/block"
SECTOR = 512
DEEPEST = 8
"""Layers of LVM, encryption and RAID after which a chain is taken for a loop."""
READS, WRITES, BUSY_MS = 2, 6, 9
"""Columns of a block device's `stat`: sectors read, sectors written, ms with requests (kernel: Documentation/block)."""
COLDEST, HOTTEST = 1.0, 150.0
"""C between which a sensor's figure is a temperature."""
NO_DRIVE, LAYER = re.compile("loop|zram|ram|pmem|nullb|nbd|rbd|rnbd|drbd|ublk|zloop|zd"), re.compile("dm-|md")
"""Block devices that are files, memory, a network's or a volume of ZFS; those that lie on others."""
NETWORKED = re.compile(
    "iscsi|iser|bnx2i|cxgb[34]i|be2iscsi|qedi|fnic|lpfc|qla2|bfa|fcoe|bnx2fc|qedf|ib_srp|zfcp|storvsc"
)
"""Drivers of SCSI hosts whose disks are elsewhere."""
FABRICS = ("tcp", "rdma", "fc", "loop")
"""Transports of an NVMe controller that is not in this machine."""
SECRET = ("/dev", "/proc", "/sys", "/run")
"""Where nothing is written, whatever is mounted there."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo: where, of what type, from what, with which options."""

    number: str
    point: str
    kind: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drive:
    """One physical drive: `major:minor`, the kernel's name, and the folder of its NVMe controller ('' without one)."""

    number: str
    name: str
    controller: str

    @property
    def block(self) -> str:
        """The folder of its block device."""
        return f"{BLOCK}/{self.number}"


@dataclass(frozen=True, slots=True)
class Backing:
    """What is behind a folder: the block device of the file system, and the drives below it."""

    disk: Disk
    mount: Mount
    name: str
    drives: tuple[Drive, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The kernel's names of all of them."""
        return (self.name, *(drive.name for drive in self.drives))

    @property
    def block(self) -> str:
        """The folder of the file system's block device, '' where it is of several."""
        return "" if self.disk.number.startswith("0:") else f"{BLOCK}/{self.disk.number}"


@dataclass(frozen=True, slots=True)
class Counters:
    """Bytes that a drive has read and written since boot, and the ms in which it had requests."""

    read: int
    written: int
    busy_ms: int


# behind a folder ---------------------------------------------------------------------------------


def drives_of(site: Site) -> Backing:
    """Return what is behind the mount of the site's device; raises Unmeasurable for what is no drive, or another."""
    facts = site.profile.device.get(site.device)
    if facts is None or facts.mount is None:
        message = f"the profile gives no mount for {site.device}: set device.{site.device}.mount"
        raise Unmeasurable(message)
    try:
        found = behind(site.world, facts.mount)
    except Unmeasurable as error:
        message = f"mount of {site.device}: {error}"
        raise Unmeasurable(message) from None
    for what, wanted in (("serial", facts.serial), ("model", facts.model)):
        seen = [fact(site.world, drive, what) for drive in found.drives] if wanted else []
        if wanted and wanted not in seen:
            message = f"{facts.mount} lies on the drive with {what} {', '.join(seen)}, the profile names {wanted}"
            raise Unmeasurable(message)
    return found


def behind(world: World, folder: str) -> Backing:
    """Return what is behind a folder; raises Unmeasurable for what is no local, writable file system on a drive."""
    if not folder.startswith("/") or ".." in folder.split("/") or folder.startswith(tuple(f"{s}/" for s in SECRET)):
        message = f"{folder} is refused: name a folder of a mounted file system, never a device"
        raise Unmeasurable(message)
    disk = world.disk(folder)
    mount = mounted(world.read("/proc/self/mountinfo"), disk.number, folder)
    numbers = _devices(world, disk.number, mount)
    if not numbers:
        what = f"{mount.kind}, {mount.source}"
        message = f"{folder} is not on a block device ({what}: memory, overlay or network): its speed is not a drive's"
        raise Unmeasurable(message)
    if "ro" in mount.options:
        message = f"{folder} is mounted read-only: no file can be laid out there"
        raise Unmeasurable(message)
    drives = {drive.number: drive for number in numbers for drive in _below(world, number, 0)}
    return Backing(disk, mount, device_name(world, numbers[0]), tuple(drives.values()))


def mounted(text: str, number: str, folder: str) -> Mount:
    """Return the mount that a folder on device `number` lies on; raises Unmeasurable when mountinfo has none."""
    mounts = [mount for line in text.splitlines() if (mount := _mount(line))]
    inside = [m for m in mounts if f"{folder.rstrip('/')}/".startswith(f"{m.point.rstrip('/')}/")]
    same = [mount for mount in mounts if mount.number == number]
    found = [mount for mount in inside if mount in same] or same or inside
    if not found:
        message = f"/proc/self/mountinfo does not say on what {folder} is mounted"
        raise Unmeasurable(message)
    longest = max(len(mount.point) for mount in found)
    return [mount for mount in found if len(mount.point) == longest][-1]


def _mount(line: str) -> Mount | None:
    """Parse a line of mountinfo; None for what is none."""
    own, _, rest = line.partition(" - ")
    fields, more = own.split(" "), rest.split(" ")
    if len(fields) < 6 or len(more) < 2:  # noqa: PLR2004 - proc(5): six fields, any number of tags; type, source
        return None
    point = re.sub(r"\\([0-3][0-7]{2})", lambda octal: chr(int(octal[1], 8)), fields[4])
    options = {*fields[5].split(","), *(more[2].split(",") if len(more) > 2 else ())}  # noqa: PLR2004 - as above
    return Mount(fields[2], point, more[0], more[1], tuple(sorted(options)))


def _devices(world: World, number: str, mount: Mount) -> list[str]:
    """Return the block devices of a file system, none for one that has none; btrfs hides its own, and may have more."""
    if not number.startswith("0:"):
        return [number] if _names(world, f"{BLOCK}/{number}") else []
    if mount.kind != "btrfs":
        return []
    name = mount.source.rpartition("/")[2]
    for pool in _names(world, "/sys/fs/btrfs"):
        members = _names(world, f"/sys/fs/btrfs/{pool}/devices")
        if name in members or _mapped(world, name) in members:
            return [world.read(f"/sys/fs/btrfs/{pool}/devices/{member}/dev") for member in members]
    return []


def _mapped(world: World, name: str) -> str:
    """Return the kernel's name of a device-mapper volume, '' when there is none of that name."""
    for device in _names(world, "/sys/class/block"):
        if device.startswith("dm-") and world.read(f"/sys/class/block/{device}/dm/name") == name:
            return device
    return ""


def _below(world: World, number: str, depth: int) -> Iterator[Drive]:
    """Yield the drives at the bottom of a block device."""
    folder, name = f"{BLOCK}/{number}", device_name(world, number)
    inside = _names(world, folder)
    layers = _names(world, f"{folder}/slaves") if "slaves" in inside else []
    if depth > DEEPEST or NO_DRIVE.match(name) or (LAYER.match(name) and not layers):
        message = f"{name} is no drive: a file, memory, the network, or layers without a bottom"
        raise Unmeasurable(message)
    if layers:
        missing = attempt(partial(world.read, f"{folder}/md/degraded"))
        if isinstance(missing, str) and missing != "0":
            message = f"{name} lacks {missing} of its drives: replace it, let the array rebuild, run again"
            raise Unmeasurable(message)
        for layer in layers:
            yield from _below(world, world.read(f"{folder}/slaves/{layer}/dev"), depth + 1)
    elif "partition" in inside:
        yield from _below(world, world.read(f"{folder}/../dev"), depth + 1)
    else:
        yield _local(world, Drive(number, name, _controller(world, folder, name)))


def _local(world: World, drive: Drive) -> Drive:
    """Return a drive of this machine; raises Unmeasurable for one behind a network."""
    for address in _names(world, f"{drive.block}/device/scsi_device"):
        driver = attempt(partial(world.read, f"/sys/class/scsi_host/host{address.partition(':')[0]}/proc_name"))
        if isinstance(driver, str) and NETWORKED.match(driver):
            message = f"{drive.name} is not in this machine: it is reached by {driver}"
            raise Unmeasurable(message)
    if drive.controller and "transport" in _names(world, drive.controller):
        transport = world.read(f"{drive.controller}/transport")
        if transport in FABRICS:
            message = f"{drive.name} is not in this machine: it is reached by {transport}"
            raise Unmeasurable(message)
    return drive


def _controller(world: World, folder: str, name: str) -> str:
    """Return the folder of a drive's NVMe controller, '' when it is no NVMe drive or has several."""
    if not name.startswith("nvme"):
        return ""
    try:
        own = value_of(world.read(f"{folder}/device/uevent"), "DEVNAME")
    except Unmeasurable:
        own = ""
    beside = [entry for entry in _names(world, f"{folder}/device") if re.fullmatch(r"nvme[0-9]+", entry)]
    found = own or (beside[0] if len(beside) == 1 else "")
    return f"/sys/class/nvme/{found}" if re.fullmatch(r"nvme[0-9]+", found) else ""


def device_name(world: World, number: str) -> str:
    """Return the kernel's name of a block device."""
    text = world.read(f"{BLOCK}/{number}/uevent")
    name = value_of(text, "DEVNAME")
    if not name:
        message = f"{BLOCK}/{number}/uevent gives no name: {text[:80]!r}"
        raise Unmeasurable(message)
    return name


def value_of(text: str, key: str) -> str:
    """Return the value of a `KEY=value` line, '' without one."""
    found = re.search(rf"^{key}=(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _names(world: World, folder: str) -> list[str]:
    try:
        return world.names(folder)
    except Unmeasurable:
        return []


# what the kernel shows ---------------------------------------------------------------------------


def counters(world: World, block: str) -> Counters:
    """Return what a block device has moved since boot; raises Unmeasurable when its statistics are none."""
    words = world.read(f"{block}/stat").split()
    taken = [words[column] if column < len(words) else "" for column in (READS, WRITES, BUSY_MS)]
    if not all(re.fullmatch("[0-9]{1,20}", word) for word in taken):
        message = f"{block}/stat is not a block device's statistics"
        raise Unmeasurable(message)
    read, written, busy_ms = map(int, taken)
    return Counters(read * SECTOR, written * SECTOR, busy_ms)


def temperature(world: World, drive: Drive) -> tuple[float, float | None]:
    """Return a drive's temperature in C and its critical one, if it states one; raises Unmeasurable without any."""
    folder = _sensor(world, drive)
    now = _celsius(world.read(f"{folder}/temp1_input"))
    if now is None:
        message = f"{folder}/temp1_input is no temperature of a drive"
        raise Unmeasurable(message)
    try:
        return now, _celsius(world.read(f"{folder}/temp1_crit"))
    except Unmeasurable:
        return now, None


def _sensor(world: World, drive: Drive) -> str:
    """Return the folder of a drive's hwmon sensor, which kernels put in several places."""
    own = drive.controller
    places = (own, f"{own}/hwmon", f"{own}/device/hwmon") if own else (f"{drive.block}/device/hwmon",)
    for place in places:
        for name in _names(world, place):
            if re.fullmatch(r"hwmon[0-9]+", name):
                return f"{place}/{name}"
    module = "nvme" if own else "drivetemp"
    message = f"{drive.name} has no temperature sensor here: modprobe {module}, if it is not loaded"
    raise Unmeasurable(message)


def _celsius(text: str) -> float | None:
    """Return millidegrees as C; None for what is no temperature of a drive."""
    if not re.fullmatch(r"-?[0-9]{1,9}", text.strip()):
        return None
    value = int(text) / 1000
    return value if COLDEST <= value <= HOTTEST else None


def link(world: World, drive: Drive) -> tuple[int, int]:
    """Return generation and lanes of a drive's PCIe link now; raises Unmeasurable when it has none of its own."""
    if not drive.controller:
        message = f"{drive.name} has no PCIe link of its own: it is no NVMe drive"
        raise Unmeasurable(message)
    folder = f"{drive.controller}/device"
    speed, width = world.read(f"{folder}/current_link_speed"), world.read(f"{folder}/current_link_width")
    try:
        generation, lanes = hop(speed, width)
    except ValueError:
        message = f"{folder}: {speed!r} x {width!r} is no PCIe link"
        raise Unmeasurable(message) from None
    return generation, lanes


PLACES = {
    "model": ("device/model",), "firmware": ("device/firmware_rev", "device/rev"),
    "serial": ("device/serial", "serial"),
}  # fmt: skip
"""What a drive says of itself -> files below its block device, the first that says something."""


def fact(world: World, drive: Drive, what: str) -> str:
    """Return what a drive says of itself: model, firmware or serial; raises Unmeasurable when it says nothing."""
    for place in PLACES[what]:
        try:
            text = " ".join(world.read(f"{drive.block}/{place}").replace("\0", " ").split())
        except Unmeasurable:
            continue
        if text and text.isprintable():
            return text
    message = f"{drive.name} does not say its {what} in {drive.block}/{PLACES[what][0]}"
    raise Unmeasurable(message)


# probes ------------------------------------------------------------------------------------------


def identity(site: Site) -> Iterator[Outcome]:
    """Yield model, firmware, serial and size of the drives behind a mount."""
    found = drives_of(site)
    names = " ".join(drive.name for drive in found.drives)
    where = {"drives": names, "layer": found.name, "file_system": found.mount.kind}
    for metric, what in ((MODEL, "model"), (FIRMWARE, "firmware"), (SERIAL, "serial")):
        try:
            said = [fact(site.world, drive, what) for drive in found.drives]
            yield site.measured(metric, ", ".join(dict.fromkeys(said)), conditions=where)
        except Unmeasurable as error:
            yield NotMeasured(metric.id, site.device, str(error))
    yield site.measured(SIZE, sum(_size(site.world, drive) for drive in found.drives) / 1e9, conditions=where)


def system_disk(site: Site) -> Iterator[Outcome]:
    """Yield model and size of the drives behind the root file system."""
    found = behind(site.world, "/")
    size = sum(_size(site.world, drive) for drive in found.drives) / 1e9
    names = " ".join(drive.name for drive in found.drives)
    where = {"drives": names, "layer": found.name, "file_system": found.mount.kind}
    yield site.measured(SYSTEM_SIZE, size, conditions=where)
    yield site.measured(SYSTEM_MODEL, ", ".join(fact(site.world, drive, "model") for drive in found.drives))


def _size(world: World, drive: Drive) -> int:
    text = world.read(f"{drive.block}/size")
    if not re.fullmatch("[1-9][0-9]{0,18}", text):
        message = f"{drive.block}/size is no size: {text[:40]!r}"
        raise Unmeasurable(message)
    return int(text) * SECTOR


def inventory(site: Site) -> Iterator[Outcome]:
    """Yield the number of NVMe drives; raises Unmeasurable where the kernel has no NVMe driver loaded."""
    drives: Sequence[str] = [name for name in site.world.names("/sys/class/nvme") if re.fullmatch(r"nvme[0-9]+", name)]
    yield site.measured(COUNT, len(drives), conditions={"drives": " ".join(drives)})


PROBES = (
    Probe("host.disk", "inventory", "host", (SYSTEM_MODEL, SYSTEM_SIZE), system_disk),
    Probe("nvme.inventory", "inventory", "host", (COUNT,), inventory),
    Probe("nvme.identity", "inventory", "nvme", (MODEL, FIRMWARE, SERIAL, SIZE), identity),
)
