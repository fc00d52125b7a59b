"""What is behind a folder is found through every layer, named by the drive itself, and refused when it is no drive."""

import os
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.drives import drive
from pytest_gpuaccept.probes.drives.drive import (
    Counters,
    Drive,
    Mount,
    behind,
    counters,
    drives_of,
    link,
    mounted,
    temperature,
)
from pytest_gpuaccept.profile import DeviceFacts, Profile
from pytest_gpuaccept.world import Disk, LiveWorld

FUZZ = settings(deadline=None, database=None)
GIB = 2**30
MODELS = "/mnt/models"
SSD = {"model": "Samsung SSD 990 PRO 2TB ", "serial": "S7KHNJ0W123456X  ", "firmware_rev": "4B2QJXD7"}
NVME = Drive("259:0", "nvme0n1", "/sys/class/nvme/nvme0")


class Box(LiveWorld):
    """A machine in a temporary folder, with the links that a real /sys has."""

    def __init__(self, root):
        super().__init__(root)
        self.number, self.lines = "259:0", ["21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw"]

    def disk(self, path):
        """Say what is behind the folder; the real one would ask the real machine."""
        return Disk(self.number, 100 * GIB)

    def put(self, folder, **files):
        """Write files into a folder of the machine; `__` in a name stands for `/`."""
        for name, text in files.items():
            file = self.root / folder / name.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        return folder

    def link(self, place, target):
        """Make a link of the machine, relative as in /sys."""
        (self.root / place).parent.mkdir(parents=True, exist_ok=True)
        (self.root / place).symlink_to(os.path.relpath(self.root / target, (self.root / place).parent))

    def block(self, number, name, folder, *below, **files):
        """Put a block device into its folder; it lies on the folders `below`."""
        self.put(f"{folder}/{name}", uevent=f"MAJOR=1\nDEVNAME={name}\nDEVTYPE=disk", dev=number, **files)
        (self.root / folder / name / "slaves").mkdir()
        for other in below:
            self.link(f"{folder}/{name}/slaves/{Path(other).name}", other)
        self.link(f"sys/dev/block/{number}", f"{folder}/{name}")
        self.link(f"sys/class/block/{name}", f"{folder}/{name}")
        return f"{folder}/{name}"

    def nvme(self, n=0, **facts):
        """Plug in an NVMe drive 259:N with a partition 259:1N."""
        pci = f"sys/devices/pci0000:40/0000:4{n}:00.0"
        own = self.put(
            f"{pci}/nvme/nvme{n}", uevent=f"MAJOR=1\nDEVNAME=nvme{n}", hwmon3__temp1_input="38850",
            hwmon3__temp1_crit="84850", **{"transport": "pcie", **SSD, **facts},
        )  # fmt: skip
        self.put(pci, current_link_speed="16.0 GT/s PCIe", current_link_width="4", numa_node="0")
        self.link(f"{own}/device", pci)
        self.link(f"sys/class/nvme/nvme{n}", own)
        stat = "0 0 1000 0 0 0 2000 0 0 5000 0"
        disk = self.block(f"259:{n}", f"nvme{n}n1", own, stat=stat, size="3907029168")
        self.link(f"{disk}/device", own)
        part = self.block(f"259:1{n}", f"nvme{n}n1p1", disk, partition="1")
        return disk, part

    def layer(self, number, name, *below, **files):
        """Lay a volume, an array or an encryption on other devices."""
        return self.block(number, name, "sys/devices/virtual/block", *below, **files)

    def mount(self, number, kind="ext4", source="/dev/nvme0n1", options="rw", point=MODELS):
        """Mount a device."""
        self.number = number
        self.lines.append(f"36 21 {number} / {point} {options},noatime shared:9 - {kind} {source} rw,errors=remount-ro")
        self.put("proc/self", mountinfo="\n".join(self.lines))


@pytest.fixture
def box(tmp_path):
    """Return an empty machine."""
    return Box(tmp_path)


def profile(**facts):
    """Return a profile with one drive."""
    return Profile(
        name="box", title="Box", devices={"nvme": ("nvme0",)}, device={"nvme0": DeviceFacts(**facts)}, lines={}
    )


def site(world, **facts):
    """Return the site of a drive."""
    return Site(world, profile(**facts), "nvme0", {}, lambda name, text: name)


# behind a folder ---------------------------------------------------------------------------------


def on_the_disk(box):
    """Mount a whole drive."""
    box.nvme()
    box.mount("259:0")


def on_a_partition(box):
    """Mount a partition."""
    box.nvme()
    box.mount("259:10", source="/dev/nvme0n1p1")


def on_a_volume_on_an_encrypted_partition(box):
    """Mount a logical volume of a group on an encrypted partition."""
    _, part = box.nvme()
    crypt = box.layer("252:0", "dm-0", part, dm__name="luks")
    box.layer("252:1", "dm-1", crypt, dm__name="vg-models")
    box.mount("252:1", source="/dev/mapper/vg-models")


def on_a_mirror(box):
    """Mount an array of two drives."""
    parts = [box.nvme(n)[1] for n in (0, 1)]
    box.layer("9:127", "md127", *parts)
    box.mount("9:127", source="/dev/md127")


def on_btrfs(box):
    """Mount a btrfs of two drives, named by the second."""
    disks = [box.nvme(n)[0] for n in (0, 1)]
    for disk in disks:
        box.link(f"sys/fs/btrfs/0f3c/devices/{Path(disk).name}", disk)
    box.mount("0:48", "btrfs", "/dev/nvme1n1")


def on_btrfs_on_a_volume(box):
    """Mount a btrfs on an encrypted drive, which mountinfo calls by its mapped name."""
    disk, _ = box.nvme()
    crypt = box.layer("252:0", "dm-0", disk, dm__name="luks-models")
    box.layer("252:7", "dm-7", disk, dm__name="other")
    box.link("sys/fs/btrfs/features/none", "sys")
    box.link("sys/fs/btrfs/0f3c/devices/dm-0", crypt)
    box.mount("0:48", "btrfs", "/dev/mapper/luks-models")


@pytest.mark.parametrize(
    ("build", "name", "drives"),
    [
        (on_the_disk, "nvme0n1", ["259:0"]),
        (on_a_partition, "nvme0n1p1", ["259:0"]),
        (on_a_volume_on_an_encrypted_partition, "dm-1", ["259:0"]),
        (on_a_mirror, "md127", ["259:0", "259:1"]),
        (on_btrfs, "nvme0n1", ["259:0", "259:1"]),
        (on_btrfs_on_a_volume, "dm-0", ["259:0"]),
    ],
)
def test_the_drives_are_found_through_every_layer(box, build, name, drives):
    """Partition, volume, encryption, array and btrfs end at the drives that they lie on, each once."""
    build(box)
    found = behind(box, MODELS)
    assert (found.name, [one.number for one in found.drives]) == (name, drives)
    assert found.drives[0] == NVME
    assert (found.mount.point, found.disk.free) == (MODELS, 100 * GIB)


def test_two_volumes_on_one_drive_are_one_drive(box):
    """A drive that an array reaches twice counts once: its bytes are moved once."""
    disk, part = box.nvme()
    box.layer("252:0", "dm-0", disk, part, dm__name="odd")
    box.mount("252:0")
    assert [one.number for one in behind(box, MODELS).drives] == ["259:0"]


@pytest.mark.parametrize(
    ("number", "kind", "source"),
    [
        ("0:33", "tmpfs", "tmpfs"), ("0:34", "overlay", "overlay"), ("0:35", "nfs4", "nas:/models"),
        ("0:36", "fuse.sshfs", "host:/"), ("0:37", "zfs", "tank/models"), ("0:38", "btrfs", "/dev/nvme9n1"),
        ("0:39", "btrfs", "nonsense"), ("259:77", "ext4", "/dev/gone"),
    ],
)  # fmt: skip
def test_what_is_on_no_block_device_is_refused(box, number, kind, source):
    """Memory, an overlay, the network, and a device that /sys does not know have no drive whose speed is measured."""
    box.nvme()
    box.mount(number, kind, source)
    with pytest.raises(Unmeasurable, match=re.escape(f"{MODELS} is not on a block device ({kind}, {source}:")):
        behind(box, MODELS)


@pytest.mark.parametrize(
    "name", ["loop3", "zram0", "ram1", "nbd0", "rbd0", "drbd0", "zd16", "dm-4", "md3", "pmem0", "nullb0", "ublkb0"]
)
def test_what_only_looks_like_a_drive_is_refused(box, name):
    """A file, memory, the network, and a layer that lies on nothing are no drive."""
    box.layer("7:3", name)
    box.mount("7:3")
    with pytest.raises(Unmeasurable, match=f"{name} is no drive"):
        behind(box, MODELS)


def test_layers_without_a_bottom_are_refused(box):
    """Devices that lie on each other do not keep the search going."""
    box.layer("252:0", "dm-0")
    box.layer("252:1", "dm-1", "sys/devices/virtual/block/dm-0")
    box.link("sys/devices/virtual/block/dm-0/slaves/dm-1", "sys/devices/virtual/block/dm-1")
    box.mount("252:0")
    with pytest.raises(Unmeasurable, match="layers without a bottom"):
        behind(box, MODELS)


@pytest.mark.parametrize(
    ("driver", "local"), [("ahci", True), ("mpt3sas", True), ("iscsi_tcp", False), ("lpfc", False)]
)
def test_a_scsi_disk_is_where_its_host_is(box, driver, local):
    """A disk of iSCSI or Fibre Channel looks like any other, but for the driver of its host."""
    own = box.put("sys/devices/pci0/host3/target3:0:0/3:0:0:0", **{"scsi_device__3:0:0:0__uevent": ""})
    disk = box.block("8:0", "sda", f"{own}/block")
    box.link(f"{disk}/device", own)
    box.put("sys/class/scsi_host/host3", proc_name=driver)
    box.mount("8:0")
    if local:
        assert [drive.name for drive in behind(box, MODELS).drives] == ["sda"]
    else:
        with pytest.raises(Unmeasurable, match=f"sda is not in this machine: it is reached by {driver}"):
            behind(box, MODELS)


def test_an_array_that_lacks_a_drive_is_refused(box):
    """Its rate is not the one of the array that was ordered."""
    disk, _ = box.nvme()
    box.layer("9:0", "md0", disk, md__degraded="1")
    box.mount("9:0")
    with pytest.raises(Unmeasurable, match="md0 lacks 1 of its drives"):
        behind(box, MODELS)


@pytest.mark.parametrize("transport", ["tcp", "rdma", "fc", "loop"])
def test_a_drive_behind_a_network_is_refused(box, transport):
    """NVMe over a network looks like a drive, and its speed is the network's."""
    box.nvme(transport=transport)
    box.mount("259:0")
    with pytest.raises(Unmeasurable, match=f"nvme0n1 is not in this machine: it is reached by {transport}"):
        behind(box, MODELS)


@pytest.mark.parametrize(
    "folder", ["/dev/nvme0n1", "/dev/shm/x", "/proc/self", "/sys/block", "/run/user/0", "models", "", "/mnt/../dev/x"]
)
def test_what_is_no_folder_for_files_is_refused_unseen(box, folder):
    """A device node, the kernel's own folders, and a way back up are refused before anything is asked of them."""
    box.nvme()
    box.mount("259:0", point=folder or "/")
    with pytest.raises(Unmeasurable, match="is refused: name a folder of a mounted file system, never a device"):
        behind(box, folder)


@pytest.mark.parametrize("options", ["ro", "ro,nosuid"])
def test_a_read_only_mount_is_refused(box, options):
    """What cannot be written is said before anything is tried."""
    box.nvme()
    box.mount("259:0", options=options)
    with pytest.raises(Unmeasurable, match=f"{MODELS} is mounted read-only"):
        behind(box, MODELS)


def test_noexec_is_no_obstacle(box):
    """Files are written and read, not run."""
    box.nvme()
    box.mount("259:0", options="rw,noexec,nosuid")
    assert "noexec" in behind(box, MODELS).mount.options


def test_a_drive_with_several_paths_has_one_controller(box):
    """With native multipath the block device hangs on a subsystem, which lists its controllers."""
    disk, _ = box.nvme()
    box.put("sys/devices/virtual/nvme-subsystem/nvme-subsys0", subsysnqn="nqn")
    box.link("sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0", "sys/class/nvme/nvme0")
    (box.root / disk / "device").unlink()
    box.link(f"{disk}/device", "sys/devices/virtual/nvme-subsystem/nvme-subsys0")
    box.mount("259:0")
    assert behind(box, MODELS).drives == (NVME,)
    box.link("sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme1", "sys/class/nvme/nvme0")
    assert behind(box, MODELS).drives[0].controller == ""


def test_a_disk_that_is_no_nvme_has_no_controller(box):
    """A SATA or virtual disk is a drive all the same; it has no link and no NVMe log."""
    box.block("8:16", "sdb", "sys/devices/pci0000:00/ata1", stat="0")
    box.mount("8:16", source="/dev/sdb")
    [found] = behind(box, MODELS).drives
    assert found == Drive("8:16", "sdb", "")
    with pytest.raises(Unmeasurable, match="sdb has no PCIe link of its own: it is no NVMe drive"):
        link(box, found)


# mountinfo ---------------------------------------------------------------------------------------

MOUNTINFO = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
30 21 259:10 / /mnt rw,relatime shared:2 master:7 - xfs /dev/nvme0n1p1 rw
31 30 259:11 / /mnt/a\040b rw - ext4 /dev/nvme0n1p2 ro
32 30 259:12 / /mnt/models rw - ext4 /dev/nvme1n1 rw
33 30 259:13 / /mnt/models rw - ext4 /dev/nvme2n1 rw
34 21 259:10 /sub /srv rw - xfs /dev/nvme0n1p1 rw
rubbish
"""


@pytest.mark.parametrize(
    ("number", "folder", "source"),
    [
        ("8:1", "/home/x", "/dev/sda1"),
        ("259:10", "/mnt/modelsx", "/dev/nvme0n1p1"),
        ("259:11", "/mnt/a b/c", "/dev/nvme0n1p2"),
        ("259:13", "/mnt/models", "/dev/nvme2n1"),
        ("259:12", "/mnt/models", "/dev/nvme1n1"),
        ("259:10", "/srv/", "/dev/nvme0n1p1"),
        ("259:12", "/elsewhere", "/dev/nvme1n1"),
        ("0:99", "/mnt/models/x", "/dev/nvme2n1"),
    ],
)
def test_a_folder_lies_on_the_innermost_mount_of_its_device(number, folder, source):
    """The longest mount point of the folder's own device counts, the last of two, and the device before the name."""
    assert mounted(MOUNTINFO, number, folder).source == source


def test_a_line_of_mountinfo_is_read_whole():
    """Options of the mount and of the file system are both options; a space in a name is spelt out."""
    found = mounted(MOUNTINFO, "259:11", "/mnt/a b")
    assert found == Mount("259:11", "/mnt/a b", "ext4", "/dev/nvme0n1p2", ("ro", "rw"))


@pytest.mark.parametrize("text", ["", "rubbish", "30 21 259:10 / /mnt rw", "1 2 3 4 5 6 - ext4"])
def test_mountinfo_that_is_none_is_told(text):
    """A folder that no line is about has no drive."""
    with pytest.raises(Unmeasurable, match=r"mountinfo does not say on what /mnt/x is mounted"):
        mounted(text, "259:10", "/mnt/x")


MOUNT_LINES = st.lists(st.one_of(st.text(), st.sampled_from(MOUNTINFO.splitlines()), st.from_regex(r"[0-9 :/a\\-]+")))


@FUZZ
@given(lines=MOUNT_LINES, number=st.sampled_from(["8:1", "259:10", "0:1", ""]), folder=st.text().map("/".__add__))
def test_any_mountinfo_gives_a_mount_or_a_reason(lines, number, folder):
    """Whatever stands there, a mount comes back as it was written, or Unmeasurable."""
    text = "\n".join(lines)
    with suppress(Unmeasurable):
        assert mounted(text, number, folder).source in text


# the drive itself --------------------------------------------------------------------------------


def test_another_drive_than_the_profiles_is_refused(box):
    """A mount that lies on another serial or model is not the ordered drive, and both are named."""
    box.nvme()
    box.mount("259:0")
    assert drives_of(site(box, mount=MODELS, serial="S7KHNJ0W123456X", model="Samsung SSD 990 PRO 2TB")).drives == (
        NVME,
    )
    for facts in ({"serial": "S7KHNJ0W999999X"}, {"model": "CT1000P3SSD8"}):
        [(what, wanted)] = facts.items()
        with pytest.raises(
            Unmeasurable, match=f"{MODELS} lies on the drive with {what} S.*, the profile names {wanted}"
        ):
            drives_of(site(box, mount=MODELS, **facts))


def test_a_drive_that_does_not_say_who_it_is_is_not_the_ordered_one(box):
    """Without a serial number nothing can be compared."""
    box.nvme(serial="")
    box.mount("259:0")
    with pytest.raises(Unmeasurable, match="nvme0n1 does not say its serial"):
        drives_of(site(box, mount=MODELS, serial="S7"))


@pytest.mark.parametrize("device", ["nvme0", "nvme7"])
def test_a_drive_without_a_mount_asks_for_one(box, device):
    """The profile must say where on the drive may be written."""
    place = Site(box, profile(), device, {}, lambda name, text: name)
    with pytest.raises(Unmeasurable, match=rf"set device\.{device}\.mount"):
        drives_of(place)


def test_identity_is_what_the_drive_says(box):
    """Model, firmware, serial without its padding, and the size in GB, with the layers in between."""
    on_a_volume_on_an_encrypted_partition(box)
    found = {m.metric: m for m in drive.identity(site(box, mount=MODELS))}
    assert {metric: m.value for metric, m in found.items()} == {
        "nvme.model": "Samsung SSD 990 PRO 2TB", "nvme.firmware": "4B2QJXD7", "nvme.serial": "S7KHNJ0W123456X",
        "nvme.size": pytest.approx(2000.4, abs=0.01),
    }  # fmt: skip
    assert found["nvme.model"].conditions == {"drives": "nvme0n1", "layer": "dm-1", "file_system": "ext4"}


def test_an_array_says_each_drive_once(box):
    """Two drives of one model are one model, two serials, and both their sizes."""
    on_a_mirror(box)
    box.put("sys/class/nvme/nvme1", serial="S8", firmware_rev="")
    found = {o.metric: o for o in drive.identity(site(box, mount=MODELS))}
    assert found["nvme.model"].value == "Samsung SSD 990 PRO 2TB"
    assert found["nvme.serial"].value == "S7KHNJ0W123456X, S8"
    assert found["nvme.size"].value == pytest.approx(4000.8, abs=0.01)
    assert found["nvme.firmware"] == NotMeasured(
        "nvme.firmware", "nvme0", "nvme1n1 does not say its firmware in /sys/dev/block/259:1/device/firmware_rev"
    )


@pytest.mark.parametrize("size", ["", "0", "-5", "many", "9" * 30])
def test_a_size_that_is_none_is_told(box, size):
    """A drive of no size is a reason, not a drive of 0 GB."""
    on_the_disk(box)
    box.put("sys/dev/block/259:0", size=size)
    with pytest.raises(Unmeasurable, match="259:0/size is no size"):
        list(drive.identity(site(box, mount=MODELS)))


def test_drives_are_counted_by_their_controllers(box):
    """Each NVMe controller is a drive, whatever its partitions; without the driver there is no count."""
    with pytest.raises(Unmeasurable, match="cannot be listed"):
        list(drive.inventory(site(box)))
    box.nvme(0)
    box.nvme(1)
    box.put("sys/class/nvme/nvme-fabrics", uevent="")
    [count] = drive.inventory(site(box))
    assert (count.value, count.conditions["drives"]) == (2, "nvme0 nvme1")


def test_counters_are_bytes_since_boot(box):
    """Sectors are of 512 bytes, whatever the drive's own."""
    box.nvme()
    assert counters(box, NVME.block) == Counters(512_000, 1_024_000, 5000)


STATS = [
    "",
    "9 0",
    "a b c d e f g h i j",
    "9 0 -1 7 9 0 -1 7 0 5",
    "9 0 1 7 9 0 2 7 0",
    "9 0 1 7 9 0 2 7 0 " + "9" * 21,
]


@pytest.mark.parametrize("text", STATS)
def test_statistics_that_are_none_move_nothing(box, text):
    """A drive whose counters cannot be read has not moved zero bytes."""
    box.nvme()
    box.put("sys/dev/block/259:0", stat=text)
    with pytest.raises(Unmeasurable, match="259:0/stat is not a block device's statistics"):
        counters(box, NVME.block)


class Paper:
    """A world of one text: every file says the same, and there are no folders."""

    def __init__(self, text):
        self.text = text

    def read(self, path):
        """Return the text."""
        return self.text

    def names(self, path):
        """Return a sensor in every folder."""
        return ["hwmon0"]


@FUZZ
@given(text=st.text() | st.from_regex(r"[0-9 \-+.]+") | st.integers().map(str))
def test_any_text_of_the_kernel_is_a_reading_or_a_reason(text):
    """Statistics, temperature and link: a value that stands in the text, or Unmeasurable."""
    with suppress(Unmeasurable):
        seen = counters(Paper(text), "/sys/dev/block/259:0")
        assert f"{seen.read // 512}" in {word.lstrip("0") or "0" for word in text.split()}
    with suppress(Unmeasurable):
        now, critical = temperature(Paper(text), NVME)
        assert now == critical == int(text) / 1000
    with pytest.raises(Unmeasurable):
        link(Paper(text), NVME)


@pytest.mark.parametrize(
    "place",
    ["sys/class/nvme/nvme0/hwmon4", "sys/class/nvme/nvme0/hwmon/hwmon4", "sys/class/nvme/nvme0/device/hwmon/hwmon4"],
)
def test_the_sensor_is_found_wherever_the_kernel_put_it(box, place):
    """Kernels differ in where a drive's hwmon folder hangs."""
    box.put(place, temp1_input="41850", temp1_crit="84850")
    assert temperature(box, NVME) == (41.85, 84.85)


def test_a_sata_drive_has_its_sensor_below_its_device(box):
    """drivetemp hangs on the disk, and without it its module is named."""
    sata = Drive("8:16", "sdb", "")
    with pytest.raises(Unmeasurable, match="sdb has no temperature sensor here: modprobe drivetemp"):
        temperature(box, sata)
    box.put("sys/dev/block/8:16/device/hwmon/hwmon2", temp1_input="33000")
    assert temperature(box, sata) == (33.0, None)


@pytest.mark.parametrize("text", ["", "0", "-273150", "255000", "hot", "38.8", "N/A"])
def test_a_figure_that_no_drive_has_is_no_temperature(box, text):
    """A sensor that reads 0 or 255 C measures nothing; a critical temperature like that is not stated."""
    box.put("sys/class/nvme/nvme0/hwmon4", temp1_input=text, temp1_crit="84850")
    with pytest.raises(Unmeasurable, match="temp1_input is no temperature of a drive"):
        temperature(box, NVME)
    box.put("sys/class/nvme/nvme0/hwmon4", temp1_input="38850", temp1_crit=text)
    assert temperature(box, NVME) == (38.85, None)


@pytest.mark.parametrize("speed", ["", "Unknown", "16.0", "17.0 GT/s PCIe", "GT/s"])
def test_a_link_that_is_none_is_told(box, speed):
    """What is no PCIe rate is quoted, never a generation."""
    box.nvme()
    assert link(box, NVME) == (4, 4)
    box.put("sys/class/nvme/nvme0/device", current_link_speed=speed)
    with pytest.raises(Unmeasurable, match="is no PCIe link"):
        link(box, NVME)


@pytest.mark.parametrize("width", ["", "0", "255", "3", "four"])
def test_a_width_that_no_link_has_is_told(box, width):
    """Width 0 and 255 are what a dead link reads as."""
    box.nvme()
    box.put("sys/class/nvme/nvme0/device", current_link_width=width)
    with pytest.raises(Unmeasurable, match="is no PCIe link"):
        link(box, NVME)
