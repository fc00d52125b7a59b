"""The host inventory reads what the machine says, and an absent source is an absent value."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import InputError, Unmeasurable
from pytest_gpuaccept.loader import load_profile
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.host import machine as host
from pytest_gpuaccept.probes.kernel.options import kernel_blindfolds
from pytest_gpuaccept.world import LiveWorld

FUZZ = settings(deadline=None, database=None)
CORES = "".join(
    f"processor\t: {n}\nmodel name\t: AMD EPYC 9354 32-Core\nphysical id\t: 0\ncore id\t\t: {n % 3}\n\n"
    for n in range(6)
)
FILES = {
    "proc/cpuinfo": CORES,
    "proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/nvme0n1p2 ro quiet\n",
    "proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
    "sys/devices/system/cpu/online": "0-4,6\n",
    "sys/devices/system/cpu/present": "0-7\n",
    "sys/class/dmi/id/board_vendor": "Supermicro\n",
    "sys/class/dmi/id/board_name": "H13SSL-N\n",
    "sys/class/dmi/id/bios_version": "1.9\n",
    "sys/class/dmi/id/bios_date": "09/02/2024\n",
    "sys/class/dmi/id/board_serial": "OM2401234\n",
    "sys/class/dmi/id/product_name": "AS-1115S\n",
    "sys/class/dmi/id/product_serial": "S512345X\n",
    "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04"\nNAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n',
}
READ = {
    "host.cpu.model": "AMD EPYC 9354 32-Core",
    "host.cpu.cores": 3,
    "host.cpu.threads": 6,
    "host.cpu.offline": 2,
    "host.board.model": "Supermicro H13SSL-N",
    "host.board.serial": "OM2401234",
    "host.product.name": "AS-1115S",
    "host.product.serial": "S512345X",
    "host.bios.version": "1.9",
    "host.bios.date": "2024-09-02",
    "host.kernel.cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/nvme0n1p2 ro quiet",
    "host.os.release": "ubuntu 24.04",
    "host.kernel.release": "6.8.0-45-generic",
    "host.kernel.blindfolds": "none",
}
NEEDED_BY = {
    "proc/cpuinfo": ("host.cpu.model", "host.cpu.cores"),
    "proc/cmdline": ("host.kernel.cmdline", "host.kernel.blindfolds"),
    "proc/sys/kernel/osrelease": ("host.kernel.release",),
    "sys/devices/system/cpu/online": ("host.cpu.threads", "host.cpu.offline"),
    "sys/devices/system/cpu/present": ("host.cpu.offline",),
    "sys/class/dmi/id/board_vendor": ("host.board.model",),
    "sys/class/dmi/id/board_name": ("host.board.model",),
    "sys/class/dmi/id/bios_version": ("host.bios.version",),
    "sys/class/dmi/id/bios_date": ("host.bios.date",),
    "sys/class/dmi/id/board_serial": ("host.board.serial",),
    "sys/class/dmi/id/product_name": ("host.product.name",),
    "sys/class/dmi/id/product_serial": ("host.product.serial",),
    "etc/os-release": ("host.os.release",),
}


@pytest.fixture
def site(tmp_path):
    """Return the site of a healthy machine; a test then breaks one part of it."""
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Site(LiveWorld(tmp_path), SimpleNamespace(name="box", attested=()), "host", {}, lambda name, text: "")


def values(site):
    """Take the inventory; an absent value is its NotMeasured."""
    return {o.metric: o.value if isinstance(o, Measurement) else o for o in host.taken(site, site, host.READINGS)}


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


@pytest.mark.parametrize("name", NEEDED_BY)
def test_an_empty_file_is_an_absent_value(site, name):
    """An empty source is never read as zero or as an empty word."""
    (site.world.root / name).write_text("\n")
    found = values(site)
    absent = {metric for metric, value in found.items() if isinstance(value, NotMeasured)}
    assert absent == set(NEEDED_BY[name])


@pytest.mark.parametrize("name", [
    "To Be Filled By O.E.M.", "Default string", "  ", "Not Specified", "x.x", "XXXXXXXX", "System Version", "0000-00",
    "INVALID", "0123456789", "T.B.D.", "........",
])  # fmt: skip
def test_a_placeholder_is_no_board(site, name):
    """A board that carries the vendor's placeholder has no name."""
    (site.world.root / "sys/class/dmi/id/board_name").write_text(name)
    with pytest.raises(Unmeasurable, match="placeholder"):
        host.board(site)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("quiet pci=noaer ro", "pci=noaer"),
        ("pci=nocrs,noaer ro", "pci=noaer"),
        ("pci=nommconf pcie_ports=compat", "pci=nommconf pcie_ports=compat"),
        ("mce=ignore_ce mce=dont_log_ce hest_disable", "hest_disable mce=dont_log_ce mce=ignore_ce"),
        ("modprobe.blacklist=nouveau,amd64_edac", "modprobe.blacklist=amd64_edac"),
        ("module_blacklist=nouveau edac_report=on", "none"),
        ("mce=off pci=noaer mce=off", "mce=off pci=noaer"),
        ("nowatchdog quiet nosoftlockup", "nosoftlockup nowatchdog"),
        ("pci=nocrs xmce=off note=pci=noaer", "none"),
    ],
)
def test_kernel_blindfolds_are_named(site, options, found):
    """Options that hide hardware errors are found among others, and only as whole words."""
    (site.world.root / "proc/cmdline").write_text(options)
    assert kernel_blindfolds(site) == found


@pytest.mark.parametrize("name", ["1.9", "H13SSL-N", "X0", "P3.80", "0ABC", "ROMED8-2T/BCM", "X-1"])
def test_a_name_is_no_placeholder(name):
    """Short names, and such as begin with a letter of the masks, are names."""
    assert not host.placeholder(name)


@pytest.mark.parametrize(
    "model",
    ["AMD Eng Sample: 100-000000054-04_32/20_N", "Genuine Intel(R) CPU 0000%@", "Engineering Sample", "eng sample x"],
)
def test_an_engineering_sample_is_no_processor(site, model):
    """A processor that was never sold has no model."""
    (site.world.root / "proc/cpuinfo").write_text(f"model name\t: {model}\n")
    with pytest.raises(Unmeasurable, match="engineering sample"):
        host.cpu_model(site)


def test_processors_of_two_kinds_are_both_named(site):
    """A second socket with another processor than ordered is not hidden by the first."""
    models = ["AMD EPYC 7542", "AMD EPYC 7542", "AMD EPYC 7302"]
    (site.world.root / "proc/cpuinfo").write_text("".join(f"model name\t: {model}\n" for model in models))
    assert host.cpu_model(site) == "AMD EPYC 7542 + AMD EPYC 7302"


@pytest.mark.parametrize("day", ["13/01/2024", "02/30", "2024-09-02", "00/10/2024", "09/02/1824", "9/2/2024"])
def test_what_is_no_day_is_no_bios_date(site, day):
    """The firmware's day has the form of the standard, or there is none."""
    (site.world.root / "sys/class/dmi/id/bios_date").write_text(day)
    with pytest.raises(Unmeasurable, match="which is none"):
        host.bios_date(site)


def test_a_serial_number_takes_root(site, monkeypatch):
    """What only root may read says so; what is not there at all asks for another place."""
    real, denied = site.world.read, Unmeasurable("/sys/class/dmi/id/board_serial cannot be read: Permission denied")

    def read(path):
        if path.endswith("board_serial"):
            raise denied
        return real(path)

    (site.world.root / "sys/class/dmi/id/product_serial").unlink()
    monkeypatch.setattr(site.world, "read", read)
    found = values(site)
    assert found["host.board.serial"].reason.endswith(": run as root")
    assert found["host.product.serial"].reason.endswith("run on the host")


class Seen(LiveWorld):
    """A machine at which somebody looked."""

    seen = ""

    def look(self, subject):
        """Answer with what was seen."""
        return self.seen


@pytest.mark.parametrize(("seen", "value"), [("1600", 1600), ("1600 W", None), ("-5", None), ("", None), ("1e3", None)])
def test_a_rating_that_was_seen_is_a_number(site, seen, value):
    """The rating of the power supplies is a number of watts, and nothing else is one."""
    world = Seen(site.world.root)
    world.seen = seen
    outcomes = host.look_for_yourself(Site(world, site.profile, "host", {}, site.attach))
    (rating,) = [o for o in outcomes if o.metric == "host.psu.rating_w"]
    assert getattr(rating, "value", None) == value


@pytest.mark.parametrize(("value", "fine"), [(1600, True), ("1600", False), (True, False)])
def test_a_rating_is_attested_as_a_number(catalogue, tmp_path, value, fine):
    """A profile may ask for the rating, and the person who looked states it in its unit."""
    (tmp_path / "thresholds").mkdir()
    order = 'title = "m"\ninherits = ["4x4090"]\n[line."host.psu.rating_w"]\nmin = 2000\nunit = "W"\nsource = "order"\n'
    (tmp_path / "thresholds/mine.toml").write_text(order)
    signed = (
        f'line = "host.psu.rating_w"\ndevice = "host"\nvalue = {str(value).lower() if value is True else repr(value)}'
    )
    (tmp_path / "thresholds/mine.attested.toml").write_text(
        f'[[attested]]\n{signed}\nwho = "A. Person"\nwhen = 2026-01-01\nlooked_at = "the label"\n'
    )
    try:
        assert load_profile("mine", catalogue, tmp_path).attested[0].value == value
        accepted = True
    except InputError as error:
        assert "is not a value of unit 'W'" in str(error)  # noqa: PT017 - both ways are under test
        accepted = False
    assert accepted is fine


def test_what_no_sensor_shows_asks_for_an_attestation(site):
    """Power supplies, chassis and cabling are absent and name the file that a person signs."""
    reasons = {o.metric: o.reason for o in host.look_for_yourself(site)}
    assert reasons.keys() == {"host.psu", "host.chassis", "host.psu.rating_w", "host.cabling"}
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


@pytest.mark.parametrize("parse", [host.cpu_list, host.count_cores])
@FUZZ
@given(
    text=st.one_of(
        st.text(),
        st.lists(
            st.sampled_from([*CORES.split("\n")[:4], "core id : x", "0-3", ",", "7"]),
            max_size=8,
        ).map("\n".join),
    )
)
def test_any_text_is_a_value_or_no_measurement(parse, text):
    """A parser answers with something countable or says why not, and never with nothing."""
    with suppress(Unmeasurable):
        assert parse(text)
