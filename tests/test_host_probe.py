"""The host inventory reads what the machine says, and an absent source is an absent value."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes import host
from pytest_gpuaccept.world import Completed, LiveWorld

FUZZ = settings(deadline=None, database=None)
CORES = "".join(
    f"processor\t: {n}\nmodel name\t: AMD EPYC 9354 32-Core\nphysical id\t: 0\ncore id\t\t: {n % 3}\n\n"
    for n in range(6)
)
MODULE = "MEMORY_DEVICE_{n}_SIZE=34359738368\nMEMORY_DEVICE_{n}_CONFIGURED_SPEED_MTS={speed}\n"
EMPTY_SLOTS = (
    "MEMORY_DEVICE_{n}_PRESENT=0\nMEMORY_DEVICE_{n}_SIZE=0\n",
    "MEMORY_DEVICE_{n}_LOCATOR=DIMM_{n}\n",
)
"""The two ways in which a slot is empty: said so, or without a size."""
FILES = {
    "proc/cpuinfo": CORES,
    "proc/meminfo": "MemTotal:       263192576 kB\nMemFree:        1 kB\n",
    "proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/nvme0n1p2 ro quiet\n",
    "proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
    "sys/devices/system/cpu/online": "0-4,6\n",
    "sys/devices/system/cpu/present": "0-7\n",
    "sys/class/dmi/id/board_vendor": "Supermicro\n",
    "sys/class/dmi/id/board_name": "H13SSL-N\n",
    "sys/class/dmi/id/bios_version": "1.9\n",
    "sys/class/dmi/id/modalias": "dmi:bvnAMI:\n",
    "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04"\nNAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n',
}
READ = {
    "host.cpu.model": "AMD EPYC 9354 32-Core",
    "host.cpu.cores": 3,
    "host.cpu.threads": 6,
    "host.cpu.offline": 2,
    "host.memory.visible": 251.0,
    "host.memory.installed": 256.0,
    "host.memory.dimms": 8,
    "host.memory.speed": 4400,
    "host.board.model": "Supermicro H13SSL-N",
    "host.bios.version": "1.9",
    "host.os.release": "ubuntu 24.04",
    "host.kernel.release": "6.8.0-45-generic",
    "host.kernel.blindfolds": "none",
}
UDEV = ("host.memory.installed", "host.memory.dimms", "host.memory.speed")
NEEDED_BY = {
    "proc/cpuinfo": ("host.cpu.model", "host.cpu.cores"),
    "proc/meminfo": ("host.memory.visible",),
    "proc/cmdline": ("host.kernel.blindfolds",),
    "proc/sys/kernel/osrelease": ("host.kernel.release",),
    "sys/devices/system/cpu/online": ("host.cpu.threads", "host.cpu.offline"),
    "sys/devices/system/cpu/present": ("host.cpu.offline",),
    "sys/class/dmi/id/board_vendor": ("host.board.model",),
    "sys/class/dmi/id/board_name": ("host.board.model",),
    "sys/class/dmi/id/bios_version": ("host.bios.version",),
    "sys/class/dmi/id/modalias": UDEV,
    "etc/os-release": ("host.os.release",),
}
READ_AS_THEY_STAND = ("modalias",)
"""Files of which only the presence counts."""


def slots(*speeds):
    """Write udev's properties for one slot per speed; None is a slot without a module."""
    return "DEVPATH=/devices/virtual/dmi/id\n" + "".join(
        EMPTY_SLOTS[n % 2].format(n=n) if speed is None else MODULE.format(n=n, speed=speed)
        for n, speed in enumerate(speeds)
    )


class Udev(LiveWorld):
    """A machine made of files, on which udevadm says `properties`."""

    properties = slots(*[4800] * 7, 4400)
    status = 0

    def command(self, argv, *, timeout, watch=None):
        """Answer udevadm."""
        assert argv[0] == "udevadm"
        return Completed(tuple(argv), self.status, self.properties, "no such device\n", 0.0)


@pytest.fixture
def site(tmp_path):
    """Return the site of a healthy machine; a test then breaks one part of it."""
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Site(Udev(tmp_path), SimpleNamespace(name="box", attested=()), "host", {}, lambda name, text: "")


def values(site):
    """Take the inventory; an absent value is its NotMeasured."""
    return {o.metric: o.value if isinstance(o, Measurement) else o for o in host.inventory(site)}


def test_a_healthy_machine_gives_every_reading(site):
    """Every declared reading has the value that its source states."""
    assert values(site) == pytest.approx(READ)


@pytest.mark.parametrize("name", NEEDED_BY)
def test_a_missing_file_costs_only_its_own_readings(site, name):
    """A reading whose file is missing names that file and leaves the others alone."""
    (site.world.root / name).unlink()
    found = values(site)
    absent = {metric: found.pop(metric) for metric in NEEDED_BY[name]}
    assert all(isinstance(o, NotMeasured) and name in o.reason for o in absent.values())
    assert found == pytest.approx({metric: value for metric, value in READ.items() if metric not in absent})


@pytest.mark.parametrize("name", [name for name in NEEDED_BY if not name.endswith(READ_AS_THEY_STAND)])
def test_an_empty_file_is_an_absent_value(site, name):
    """An empty source is never read as zero or as an empty word."""
    (site.world.root / name).write_text("\n")
    found = values(site)
    absent = {metric for metric, value in found.items() if isinstance(value, NotMeasured)}
    assert absent == set(NEEDED_BY[name])


@pytest.mark.parametrize("name", ["To Be Filled By O.E.M.", "Default string", "  ", "Not Specified"])
def test_a_placeholder_is_no_board(site, name):
    """A board that carries the vendor's placeholder has no name."""
    (site.world.root / "sys/class/dmi/id/board_name").write_text(name)
    with pytest.raises(Unmeasurable, match="placeholder"):
        host.board(site)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("quiet pci=noaer ro", "pci=noaer"),
        ("pci=nommconf,noaer ro", "pci=noaer"),
        ("mce=off pci=noaer mce=off", "mce=off pci=noaer"),
        ("pci=nocrs xmce=off note=pci=noaer", "none"),
    ],
)
def test_kernel_blindfolds_are_named(site, options, found):
    """Options that hide hardware errors are found among others, and only as whole words."""
    (site.world.root / "proc/cmdline").write_text(options)
    assert host.kernel_blindfolds(site) == found


@pytest.mark.parametrize(
    ("speeds", "count"), [([4800] * 8, 8), ([4800, 4800, None, *[4800] * 5], 7), ([None, None, 4800], 1)]
)
def test_an_empty_slot_is_no_module(site, speeds, count):
    """Modules are counted by what is in the slots."""
    site.world.properties = slots(*speeds)
    assert host.dimm_count(site) == count
    assert host.memory_installed(site) == 32 * count


def test_a_module_of_unknown_size_is_not_left_out_of_the_sum(site):
    """A size or speed that is no number makes the reading absent, not smaller."""
    site.world.properties = slots(4800, 4800).replace("_1_SIZE=34359738368", "_1_SIZE=unknown").replace("=4800", "=?")
    found = values(site)
    assert "SIZE" in found["host.memory.installed"].reason
    assert "CONFIGURED_SPEED_MTS" in found["host.memory.speed"].reason


@pytest.mark.parametrize("properties", ["", "DEVPATH=/devices/virtual/dmi/id\n", slots(None, None)])
def test_a_machine_without_modules_has_not_been_read(site, properties):
    """No memory module in udev's answer means that udev did not know, not zero modules."""
    site.world.properties = properties
    assert all("no memory module" in values(site)[metric].reason for metric in UDEV)


def test_a_failing_udevadm_is_told_in_its_own_words(site):
    """An answer of a udevadm that failed is not read, however complete it looks."""
    site.world.status = 4
    assert all(values(site)[metric].reason == "udevadm failed: no such device" for metric in UDEV)


def test_what_no_sensor_shows_asks_for_an_attestation(site):
    """Power supplies and chassis are absent and name the file that a person signs."""
    reasons = {o.metric: o.reason for o in host.look_for_yourself(site)}
    assert reasons.keys() == {"host.psu", "host.chassis"}
    assert all("thresholds/box.attested.toml" in reason for reason in reasons.values())


@pytest.mark.parametrize(("text", "cpus"), [("0", [0]), ("0-3,8", [0, 1, 2, 3, 8]), ("0-1,4-5", [0, 1, 4, 5])])
def test_the_kernels_list_format_is_read(text, cpus):
    """Ranges and single CPUs are spelt out."""
    assert host.cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["", "0-", "-1", "0,,1", "0 1", "0-3\n", "3-1", "0x3", "all", "0-123456"])
def test_anything_else_is_no_cpu_list(text):
    """What is not the kernel's list format is refused."""
    with pytest.raises(Unmeasurable, match="CPU list"):
        host.cpu_list(text)


def test_threads_of_one_core_and_equal_ids_in_two_packages_are_told_apart():
    """A core is a pair of package and core id."""
    pairs = [(0, 0), (0, 1), (0, 0), (1, 0)]
    assert host.count_cores("".join(f"physical id : {p}\ncore id : {c}\n" for p, c in pairs)) == 3


@pytest.mark.parametrize("parse", [host.cpu_list, host.count_cores, host.dimms])
@FUZZ
@given(
    text=st.one_of(
        st.text(),
        st.lists(
            st.sampled_from([*CORES.split("\n")[:4], *slots(4800, None).split("\n"), "core id : x", "0-3", ",", "7"]),
            max_size=8,
        ).map("\n".join),
    )
)
def test_any_text_is_a_value_or_no_measurement(parse, text):
    """A parser answers with something countable or says why not, and never with nothing."""
    with suppress(Unmeasurable):
        assert parse(text)
