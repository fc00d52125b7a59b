"""Memory is read module by module, from udev or dmidecode, and ECC counts only where it works."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.host import dimms
from pytest_gpuaccept.world import Completed, LiveWorld

FUZZ = settings(deadline=None, database=None)
GIB = 2**30
MODULE = {
    "SIZE": f"{32 * GIB}",
    "LOCATOR": "DIMM_A1",
    "TYPE": "DDR5",
    "TYPE_DETAIL": "Synchronous Registered (Buffered)",
    "SPEED_MTS": "4800",
    "CONFIGURED_SPEED_MTS": "4800",
    "PART_NUMBER": "M321R4GA3BB6-CQKET",
}
EMPTY = {"PRESENT": "0", "SIZE": "0"}
NAMED = {"LOCATOR": "DIMM_B1", "BANK_LOCATOR": "P0 CHANNEL B"}
"""The two ways in which a slot is empty: said so, or with neither size nor speed."""
ARRAY = """# dmidecode 3.5
Getting SMBIOS data from sysfs.
SMBIOS 3.3.0 present.

Handle 0x0012, DMI type 16, 23 bytes
Physical Memory Array
\tLocation: System Board Or Motherboard
\tUse: System Memory
\tError Correction Type: Multi-bit ECC
\tMaximum Capacity: 2 TB
\tNumber Of Devices: 2
"""
DEVICE = """
Handle 0x0015, DMI type 17, 92 bytes
Memory Device
\tArray Handle: 0x0012
\tTotal Width: 72 bits
\tData Width: 64 bits
\tSize: {size}
\tForm Factor: DIMM
\tLocator: DIMM_A1
\tBank Locator: P0 CHANNEL A
\tType: DDR4
\tType Detail: Synchronous LRDIMM
\tSpeed: 3200 MT/s
\tManufacturer: SK Hynix
\tSerial Number: 12345678
\tPart Number: HMAA8GL7AMR4N-VK
\tConfigured {word}: 2666 {unit}
"""


def properties(*slots, correction="Multi-bit ECC"):
    """Write slots as udev does."""
    lines = ["DEVPATH=/devices/virtual/dmi/id", *([f"MEMORY_ARRAY_EC_TYPE={correction}"] if correction else [])]
    lines += [f"MEMORY_DEVICE_{n}_{key}={value}" for n, slot in enumerate(slots) for key, value in slot.items()]
    return "\n".join([*lines, f"MEMORY_ARRAY_NUM_DEVICES={len(slots)}", ""])


class Tools(LiveWorld):
    """A machine made of files, on which udevadm and dmidecode say what they are told."""

    def __init__(self, root):
        """Begin with eight modules of which one runs slower, and without dmidecode."""
        super().__init__(root)
        slower = MODULE | {"CONFIGURED_SPEED_MTS": "4400"}
        self.says = {"udevadm": (0, properties(*[MODULE] * 7, slower), ""), "dmidecode": (1, "", "Permission denied")}

    def command(self, argv, *, timeout, watch=None):
        """Answer with status, stdout and stderr of the tool."""
        status, out, err = self.says[argv[0]]
        return Completed(tuple(argv), status, out, err, 0.0)


@pytest.fixture
def site(tmp_path):
    """Return the site of a machine with eight modules, ECC at work; a test then breaks one part of it."""
    files = {
        "proc/meminfo": "MemTotal:       263192576 kB\nMemFree:        1 kB\n",
        "sys/class/dmi/id/modalias": "dmi:bvnAMI:\n",
        **{f"sys/devices/system/edac/mc/mc0/dimm{n}/dimm_edac_mode": "SECDED\n" for n in range(8)},
        "sys/devices/system/edac/mc/mc0/size_mb": "262144\n",
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Site(Tools(tmp_path), SimpleNamespace(name="box"), "host", {}, lambda name, text: "")


def says(site, *slots, **more):
    """Let udev list these slots."""
    site.world.says["udevadm"] = (0, properties(*slots, **more), "")


def values(site):
    """Take the readings; an absent value is its reason."""
    return {o.metric: o.value if isinstance(o, Measurement) else o.reason for o in dimms.readings(site)}


def notes(site):
    """Take the notes of the readings."""
    return {o.metric: o.note for o in dimms.readings(site) if isinstance(o, Measurement)}


@pytest.mark.parametrize(("mib", "why"), [("131072", "EDAC watches 128 of 251 GiB"), ("", "EDAC watches 0 of 251 GiB")])
def test_memory_that_nobody_watches_is_not_known_to_be_corrected(site, mib, why):
    """A controller without a driver shows nothing, and so no module without correction."""
    (site.world.root / "sys/devices/system/edac/mc/mc0/size_mb").write_text(mib)
    assert why in values(site)["host.memory.ecc"]


def test_a_healthy_machine_gives_every_reading(site):
    """Every reading has the value that its source states."""
    assert values(site) == pytest.approx(
        {
            "host.memory.visible": 251.0,
            "host.memory.ecc": True,
            "host.memory.dimms": 8,
            "host.memory.slots": 8,
            "host.memory.installed": 256.0,
            "host.memory.speed": 4400,
            "host.memory.below_rated": 1,
            "host.memory.type": "DDR5",
            "host.memory.uniform": False,
            "host.memory.correction": "Multi-bit ECC",
        }
    )


def test_the_note_lists_every_module_with_its_place(site):
    """Modules that are alike stand together, each by its place."""
    says(site, MODULE, MODULE | {"LOCATOR": "DIMM_C1"}, MODULE | {"LOCATOR": "DIMM_D1", "PART_NUMBER": "OTHER"})
    assert notes(site)["host.memory.dimms"] == (
        "udev: DIMM_A1, DIMM_C1: 32 GiB DDR5 RDIMM 4800 of 4800 MT/s M321R4GA3BB6-CQKET; "
        "DIMM_D1: 32 GiB DDR5 RDIMM 4800 of 4800 MT/s OTHER"
    )


@pytest.mark.parametrize(
    ("slots", "count"), [([MODULE] * 8, 8), ([MODULE, EMPTY, MODULE, NAMED], 2), ([EMPTY, NAMED, MODULE], 1)]
)
def test_an_empty_slot_is_no_module(site, slots, count):
    """Modules are counted by what is in the slots."""
    says(site, *slots)
    found = values(site)
    assert found["host.memory.dimms"] == count
    assert found["host.memory.installed"] == 32 * count
    assert found["host.memory.slots"] == len(slots)


def test_the_firmwares_own_chip_is_no_module(site):
    """Some boards list the flash that the firmware lies in among the modules."""
    says(site, MODULE, {"SIZE": "16777216", "TYPE": "Flash", "LOCATOR": "SYSTEM ROM"})
    assert values(site)["host.memory.dimms"] == 1


def test_a_module_of_unknown_size_is_not_left_out_of_the_sum(site):
    """A module whose size or speed is not told makes the reading absent, not smaller."""
    says(site, MODULE, {key: value for key, value in MODULE.items() if key != "SIZE"} | {"LOCATOR": "DIMM_H1"})
    found = values(site)
    assert found["host.memory.dimms"] == 2
    assert found["host.memory.installed"] == "nobody gives SIZE of the memory module DIMM_H1"
    says(site, MODULE, MODULE | {"CONFIGURED_SPEED_MTS": "?"})
    assert "CONFIGURED_SPEED_MTS" in values(site)["host.memory.speed"]


@pytest.mark.parametrize("text", ["", "DEVPATH=/devices/virtual/dmi/id\n", properties(EMPTY, NAMED)])
def test_a_machine_without_modules_has_not_been_read(site, text):
    """No memory module in udev's answer means that udev did not know, not zero modules."""
    site.world.says["udevadm"] = (0, text, "")
    found = values(site)
    assert all("no memory module" in found[metric.id] for metric in dimms.READINGS)
    assert found["host.memory.dimms"].endswith("Permission denied: run as root, with dmidecode installed")


def test_without_dmi_the_place_is_wrong(site):
    """A container says that it hides the firmware, and what the kernel sees is read all the same."""
    (site.world.root / "sys/class/dmi/id/modalias").unlink()
    found = values(site)
    assert "run on the host" in found["host.memory.dimms"]
    assert found["host.memory.visible"] == pytest.approx(251.0)


def test_where_udev_does_not_know_dmidecode_is_asked(site):
    """Root gets the same readings from dmidecode's tables."""
    tables = ARRAY + DEVICE.format(size="64 GB", word="Memory Speed", unit="MT/s")
    site.world.says |= {
        "udevadm": (0, "", ""),
        "dmidecode": (0, tables + DEVICE.replace("{size}", "No Module Installed"), ""),
    }
    found = values(site)
    assert (found["host.memory.dimms"], found["host.memory.slots"], found["host.memory.installed"]) == (1, 2, 64.0)
    assert (found["host.memory.speed"], found["host.memory.below_rated"]) == (2666, 1)
    assert found["host.memory.correction"] == "Multi-bit ECC"
    assert notes(site)["host.memory.type"] == "1 x DDR4 LRDIMM"


@pytest.mark.parametrize(
    ("size", "gib"),
    [("64 GB", 64), ("65536 MB", 64), ("1 TB", 1024), ("Unknown", None), ("64 GiB", None), ("0 MB", None)],
)
def test_dmidecodes_sizes_have_units(size, gib):
    """A size is a number with one of the tool's units; any other leaves the module without one."""
    found = dimms.from_dmidecode(ARRAY + DEVICE.format(size=size, word="Clock Speed", unit="MHz"))
    assert found.modules[0]["CONFIGURED_SPEED_MTS"] == "2666"
    if gib is None:
        with pytest.raises(Unmeasurable, match="SIZE"):
            dimms.installed(found)
    else:
        assert dimms.installed(found) == gib


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"PART_NUMBER": "OTHER"}, "part_number mixed: M321R4GA3BB6-CQKET 7, OTHER 1"),
        ({"SIZE": f"{16 * GIB}"}, "size mixed: 34359738368 7, 17179869184 1"),
        ({"SPEED_MTS": "5600"}, "speed_mts mixed: 4800 7, 5600 1"),
        ({"CONFIGURED_SPEED_MTS": "4400"}, "configured_speed_mts mixed: 4800 7, 4400 1"),
    ],
)
def test_a_module_that_differs_is_named(site, change, said):
    """One module of another part number, size or speed makes the modules not alike."""
    says(site, *[MODULE] * 7, MODULE | change)
    assert values(site)["host.memory.uniform"] is False
    assert notes(site)["host.memory.uniform"] == said


def test_alike_is_proven_by_what_is_told(site):
    """Modules that differ in nothing are alike only where all of it is told."""
    says(site, MODULE, MODULE)
    assert values(site)["host.memory.uniform"] is True
    says(site, MODULE | {"PART_NUMBER": "Not Specified"}, MODULE | {"PART_NUMBER": "Not Specified"})
    assert "does not give PART_NUMBER" in values(site)["host.memory.uniform"]


def test_types_that_differ_are_all_said(site):
    """Mixed types are the value; a type that is not told of one module is none at all."""
    says(site, MODULE, MODULE, MODULE | {"TYPE": "DDR4"})
    assert values(site)["host.memory.type"] == "mixed: DDR5 2, DDR4 1"
    says(site, MODULE, MODULE | {"TYPE": "Unknown"})
    assert "does not give the type" in values(site)["host.memory.type"]


@pytest.mark.parametrize(
    ("told", "value"), [("None", "None"), ("Single-bit ECC", "Single-bit ECC"), ("", None), ("Unknown", None)]
)
def test_installed_error_correction_is_the_firmwares_word(site, told, value):
    """`None` is an answer, `Unknown` and silence are not."""
    says(site, MODULE, correction=told)
    found = values(site)["host.memory.correction"]
    assert found == (value or "udev does not give the memory's error correction")


def test_udev_leaves_out_what_does_not_correct(site):
    """An array that is told, and no correction of it, is one without."""
    site.world.says["udevadm"] = (0, "MEMORY_ARRAY_LOCATION=System Board\n" + properties(MODULE, correction=""), "")
    assert values(site)["host.memory.correction"] == "None"


@pytest.mark.parametrize(
    ("mode", "works"), [("SECDED", True), ("S4ECD4ED", True), ("S16ECD16ED", True), ("None", False), ("EC", False)]
)
def test_ecc_is_what_the_controller_does(site, mode, works):
    """One module without correction is enough, and it is named."""
    (site.world.root / "sys/devices/system/edac/mc/mc0/dimm3/dimm_edac_mode").write_text(f"{mode}\n")
    assert values(site)["host.memory.ecc"] is works
    assert ("mc0/dimm3 without correction" in notes(site)["host.memory.ecc"]) is not works


def test_an_unknown_mode_is_no_answer(site):
    """Where EDAC itself does not know, nobody does."""
    (site.world.root / "sys/devices/system/edac/mc/mc0/dimm3/dimm_edac_mode").write_text("Unknown\n")
    assert values(site)["host.memory.ecc"] == "EDAC does not know the mode of mc0/dimm3"


@pytest.mark.parametrize("hide", ["mc0", "mc0/dimm*", "."])
def test_without_edac_nobody_knows_whether_ecc_works(site, hide):
    """ECC modules in the slots prove nothing: without a controller in EDAC there is a remedy and no value."""
    folder = site.world.root / "sys/devices/system/edac/mc"
    for found in [folder] if hide == "." else list(folder.glob(hide)):
        found.rename(site.world.root / f"hidden-{found.name}")
    assert "load the driver (amd64_edac" in values(site)["host.memory.ecc"]


def test_an_empty_mode_is_not_taken_for_one(site):
    """A file without a word is no mode."""
    (site.world.root / "sys/devices/system/edac/mc/mc0/dimm3/dimm_edac_mode").write_text("\n")
    assert "no EDAC driver" in values(site)["host.memory.ecc"]


@pytest.mark.parametrize(("seen", "installed", "share"), [(503.3, 512.0, 0.983), (448.0, 512.0, 0.875)])
def test_the_visible_share_is_calculated(seen, installed, share):
    """The share is what the kernel sees over what is installed, and can never be above all of it."""
    numbers = {"host.memory.visible": seen, "host.memory.installed": installed}
    found = dimms.share(SimpleNamespace(device="host", number=numbers.__getitem__))
    assert found.value == pytest.approx(share, abs=1e-3)
    assert (found.provenance, found.ceiling) == ("calculated", 1.0)


@pytest.mark.parametrize("parse", [dimms.from_udev, dimms.from_dmidecode])
@FUZZ
@given(
    text=st.one_of(
        st.text(),
        st.lists(
            st.sampled_from(
                [*properties(MODULE, EMPTY).split("\n"), *(ARRAY + DEVICE).split("\n"), "\tSize: 8 GB", "\r", ""]
            ),
            max_size=30,
        ).map("\n".join),
    )
)
def test_any_text_is_modules_or_no_measurement(parse, text):
    """A parser answers with at least one module or says why not; every reading of these is a value or a reason."""
    with suppress(Unmeasurable):
        found = parse(text)
        assert found.modules
        for read in dimms.READINGS.values():
            with suppress(Unmeasurable):
                assert read(found) is not None
