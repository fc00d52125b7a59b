"""The real readers of a firmware's tables, udev's and dmidecode, print what the parsers read, of tables made here."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probes.host import dimms

HELPER = Path("/usr/lib/udev/dmi_memory_id")
DDR4, FLASH = 0x1A, 0x09
SYNCHRONOUS, REGISTERED, UNBUFFERED, LRDIMM = 1 << 7, 1 << 13, 1 << 14, 1 << 15
MULTI_BIT, NO_CORRECTION = 6, 3
AT = 32
"""Where the tables begin in a dump, behind the entry point."""


def structure(kind, handle, body, *texts):
    """Return a structure of the SMBIOS specification with its texts."""
    head = struct.pack("<BBH", kind, 4 + len(body), handle)
    return head + body + b"".join(text.encode() + b"\0" for text in texts) + (b"\0" if texts else b"\0\0")


def array(count, correction=MULTI_BIT):
    """Return a memory array (type 16) of system memory."""
    return structure(16, 0x10, struct.pack("<BBBIHHQ", 3, 3, correction, 2**31, 0xFFFE, count, 2**41))


def device(number, gib, *, kind=DDR4, detail=LRDIMM, rated=3200, configured=2666, part="HMAA8GL7AMR4N-VK"):
    """Return a memory device (type 17) of a size in GiB; 0 for an empty slot."""
    size = 0x7FFF if gib >= 32 else int(gib * 1024)
    body = struct.pack(
        "<HHHHHBBBBBHHBBBBBIHHHH", 0x10, 0xFFFE, 72, 64, size, 9, 0, 1, 2, kind, SYNCHRONOUS | detail, rated, 3, 4, 5,
        6, 2, int(gib * 1024), configured, 0, 0, 1200,
    )  # fmt: skip
    return structure(
        17, 0x11 + number, body, f"DIMM_{number}", f"BANK {number}", "SK Hynix", f"S{number}", "none", part
    )


def dump(path, *structures):
    """Write tables as dmidecode dumps them, and return the file."""
    tables = b"".join([*structures, structure(127, 0x7F, b"")])
    entry = bytearray(struct.pack("<5sBBBBBBBIQ", b"_SM3_", 0, 24, 3, 2, 0, 1, 0, len(tables), AT))
    entry[5] = -sum(entry) % 256
    path.write_bytes(bytes(entry).ljust(AT, b"\0") + tables)
    return path


def by_udev(file):
    """Return what udev's helper makes of a dump."""
    return dimms.from_udev(printed(HELPER, "-F", file) if HELPER.exists() else pytest.skip("not installed: udev"))


def by_dmidecode(file):
    """Return what dmidecode makes of a dump."""
    tool = shutil.which("dmidecode") or pytest.skip("not installed: dmidecode")
    return dimms.from_dmidecode(printed(tool, "--from-dump", file, "-t", "16,17"))


def printed(*argv):
    """Return what a tool prints."""
    return subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("read", [by_udev, by_dmidecode])
def test_modules_are_read_as_they_are_in_the_slots(read, tmp_path):
    """Sizes beyond 32 GiB, empty slots, the firmware's own flash, kinds and both speeds are those of the tables."""
    flash = device(3, 1 / 64, kind=FLASH, detail=0, rated=0, configured=0)
    found = read(dump(tmp_path / "dmi", array(4), device(0, 64), device(1, 0), device(2, 16, detail=REGISTERED), flash))
    assert (found.correction, found.slots) == ("Multi-bit ECC", 4)
    assert dimms.listed(found.modules) == (
        "DIMM_0: 64 GiB DDR4 LRDIMM 2666 of 3200 MT/s HMAA8GL7AMR4N-VK; "
        "DIMM_2: 16 GiB DDR4 RDIMM 2666 of 3200 MT/s HMAA8GL7AMR4N-VK"
    )
    assert (dimms.installed(found), dimms.speed(found), dimms.below_rated(found)[0]) == (80.0, 2666, 2)
    assert dimms.uniform(found)[0] is False


@pytest.mark.parametrize("read", [by_udev, by_dmidecode])
def test_a_module_without_speed_or_correction_says_so(read, tmp_path):
    """What the tables do not state is an absence; no correction is an answer."""
    file = dump(tmp_path / "dmi", array(1, NO_CORRECTION), device(0, 32, detail=UNBUFFERED, configured=0))
    found = read(file)
    assert dimms.correction(found) == "None"
    assert dimms.technology(found) == ("DDR4", "1 x DDR4 UDIMM")
    with pytest.raises(Unmeasurable, match="CONFIGURED_SPEED_MTS of the memory module DIMM_0"):
        dimms.speed(found)


@pytest.mark.parametrize("read", [by_udev, by_dmidecode])
def test_tables_without_a_module_are_none(read, tmp_path):
    """Empty slots alone are a machine that was not read."""
    with pytest.raises(Unmeasurable, match="no memory module"):
        read(dump(tmp_path / "dmi", array(2), device(0, 0), device(1, 0)))
