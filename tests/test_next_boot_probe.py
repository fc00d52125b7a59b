"""The next start finds one driver, in every kernel that may start, signed where secure boot asks for it."""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.host import machine as host
from pytest_gpuaccept.probes.host import next_boot
from pytest_gpuaccept.world import Completed, LiveWorld

FUZZ = settings(deadline=None, database=None)
RUNNING, NEWER, OLDER = "6.8.0-107-generic", "6.8.0-110-generic", "6.8.0-9-generic"
DRIVER = "590.48.01"
MODULE = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {DRIVER}  Release Build  (dvs)  Mon Dec  8\n"
MISMATCH = "the driver in the kernel is another than its library (Driver/library version mismatch): restart the machine"
LIBRARY = "usr/lib/x86_64-linux-gnu/libnvidia-ml.so"
EFI = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
ON, OFF = bytes((6, 0, 0, 0, 1)), bytes((6, 0, 0, 0, 0))


class NVMLError(Exception):
    """The binding's error."""


@dataclass
class Library:
    """The user library, of a version or with the error that it gives instead."""

    says: object
    NVMLError: type = NVMLError

    def nvmlSystemGetDriverVersion(self):  # noqa: N802 - the binding's name
        """Return the version, or raise."""
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


class Machine(LiveWorld):
    """A machine made of files, with a library and the modules that modinfo finds, by kernel."""

    def __init__(self, root):
        """Begin healthy: one driver everywhere, secure boot off, one kernel."""
        super().__init__(root)
        self.library = Library(DRIVER)
        self.modules = {RUNNING: (DRIVER, "a key"), OLDER: ("580.1.1", "")}
        self.tools = {"modinfo"}

    def has(self, tool):
        """Say whether a tool is on the path."""
        return tool in self.tools

    def nvml(self):
        """Return the library, or raise why it does not load."""
        if isinstance(self.library, Exception):
            raise self.library
        return self.library

    def command(self, argv, *, timeout, watch=None):
        """Answer as modinfo does."""
        kernel = argv[argv.index("-k") + 1] if "-k" in argv else RUNNING
        if kernel not in self.modules:
            return Completed(tuple(argv), 1, "", f"modinfo: ERROR: Module nvidia not found.\nin {kernel}\n", 0.0)
        version, signer = self.modules[kernel]
        return Completed(tuple(argv), 0, {"version": version, "signer": signer}[argv[-2]] + "\n", "", 0.0)


@pytest.fixture
def site(tmp_path):
    """Return the site of a healthy machine; a test then breaks one part of it."""
    made = Site(Machine(tmp_path), SimpleNamespace(name="box"), "host", {}, lambda name, text: "")
    put(made, "proc/sys/kernel/osrelease", RUNNING)
    put(made, "sys/module/nvidia/version", DRIVER)
    put(made, "proc/driver/nvidia/version", MODULE)
    put(made, "sys/firmware/acpi/pm_profile", "4")
    put(made, EFI, OFF)
    for kernel in (RUNNING, OLDER):
        put(made, f"lib/modules/{kernel}/modules.dep", "")
    return made


def put(site, name, content):
    """Write a file of the machine."""
    file = site.world.root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def take(site, name):
    """Return the outcome of one reading."""
    (metric,) = [metric for metric in next_boot.READINGS if metric.id == name]
    (found,) = host.taken(site, site, {metric: next_boot.READINGS[metric]})
    return found


def said(outcome):
    """Return a value with its note, or None with the reason."""
    return (outcome.value, outcome.note) if isinstance(outcome, Measurement) else (None, outcome.reason)


# driver --------------------------------------------------------------------------------------


def test_a_healthy_machine_gives_every_reading(site):
    """One driver, no newer kernel, secure boot off."""
    assert {metric.id: take(site, metric.id).value for metric in next_boot.READINGS} == {
        "host.kernel.newest": True, "host.kernel.installed": True, "host.secure_boot.consistent": True,
        "gpu.driver.match": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("loaded", "disk", "library", "value", "text"),
    [
        (DRIVER, DRIVER, DRIVER, True, f"loaded {DRIVER}, on the disk {DRIVER}, library {DRIVER}"),
        (DRIVER, "580.65.06", DRIVER, False, "on the disk 580.65.06"),
        ("580.65.06", DRIVER, DRIVER, False, "loaded 580.65.06"),
        (DRIVER, DRIVER, "580.65.06", False, "library 580.65.06"),
        (DRIVER, DRIVER, NVMLError("lost"), None, "NVML does not tell its version: lost"),
        (DRIVER, "580.65.06", NVMLError("lost"), False, "on the disk 580.65.06"),
        (DRIVER, None, DRIVER, None, "there is no module of the driver for the running kernel"),
        ("", DRIVER, DRIVER, None, "'', which is no version"),
        (DRIVER, "(none)", DRIVER, None, "'(none)', which is no version"),
    ],
)
def test_the_driver_is_one_in_memory_on_the_disk_and_in_the_library(site, loaded, disk, library, value, text):
    """Two that differ are proven whatever the third says; agreement takes all three."""
    put(site, "sys/module/nvidia/version", loaded)
    site.world.library = Library(library)
    site.world.modules = {} if disk is None else {RUNNING: (disk, "")}
    found, note = said(take(site, "gpu.driver.match"))
    assert (found, text in note) == (value, True), note
    assert "\n" not in note


@pytest.mark.parametrize(
    ("files", "value"),
    [
        ((), None),
        (("1", "580.65.06"), False),
        (("1", DRIVER), True),
        (("580.65.06", DRIVER), None),
        (("1", "590"), None),
    ],
    ids=["none", "another", "same", "both", "no version"],
)
def test_a_library_that_does_not_work_is_known_by_its_file(site, files, value):
    """An update half done leaves a library that refuses the driver; its file bears its version."""
    site.world.library = Unmeasurable(MISMATCH)
    for version in files:
        put(site, f"{LIBRARY}.{version}", "")
    found, note = said(take(site, "gpu.driver.match"))
    assert found is value
    assert value is not None or MISMATCH in note


def test_a_driver_without_its_folder_is_read_from_its_own_file(site):
    """Where /sys/module does not tell the version, the driver's own file does."""
    (site.world.root / "sys/module/nvidia/version").unlink()
    assert next_boot.loaded(site) == DRIVER
    put(site, "proc/driver/nvidia/version", "NVRM version: something else\n")
    with pytest.raises(Unmeasurable, match="no version of a driver"):
        next_boot.loaded(site)


def test_modinfo_is_found_where_users_do_not_look(site):
    """Some systems keep it in /sbin; without it the reason says what to install."""
    site.world.tools = {"/sbin/modinfo"}
    assert next_boot.on_disk(site) == DRIVER
    site.world.tools = set()
    with pytest.raises(Unmeasurable, match="apt-get install kmod"):
        next_boot.on_disk(site)


# kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "newest", "installed", "text"),
    [
        ((DRIVER, ""), False, True, f"{NEWER} has {DRIVER}"),
        (None, False, False, f"no module of the driver for {NEWER}"),
        (("595.10.01", ""), False, False, f"{RUNNING} has {DRIVER}; {NEWER} has 595.10.01"),
    ],
    ids=["built", "not built", "another"],
)
def test_a_newer_kernel_must_have_the_driver(site, module, newest, installed, text):
    """The next start takes it; a driver that was not built for it, or another one, is found before."""
    put(site, f"lib/modules/{NEWER}/modules.dep", "")
    site.world.modules |= {} if module is None else {NEWER: module}
    assert take(site, "host.kernel.newest").value is newest
    found = take(site, "host.kernel.installed")
    assert (found.value, text in found.note) == (installed, True), found.note


def test_what_a_removed_kernel_left_behind_is_none(site):
    """A folder without its list of modules starts nothing."""
    put(site, f"lib/modules/{NEWER}/kernel/drivers/x.ko", "")
    assert take(site, "host.kernel.newest").value is True


def test_a_kernel_that_was_removed_while_it_runs_is_said(site):
    """The running kernel's own folder is gone: what starts next is unknown."""
    (site.world.root / f"lib/modules/{RUNNING}/modules.dep").unlink()
    assert "restart into an installed kernel" in take(site, "host.kernel.newest").reason
    assert "restart into an installed kernel" in take(site, "host.kernel.installed").reason


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (OLDER, RUNNING),
        ("6.8.0-107-generic", "6.11.0-8-generic"),
        ("6.8.12", "6.8.100"),
        ("5.15.0-9-generic", "6.1.0-2"),
    ],
)
def test_releases_are_compared_by_their_numbers(older, newer):
    """100 is newer than 12, whatever the alphabet says."""
    assert next_boot.age(older) < next_boot.age(newer)


# secure boot ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "signer", "value", "text"),
    [
        (ON, "a key", True, "signed by a key"),
        (ON, "", False, "the module is not signed"),
        (OFF, "", True, "secure boot is off"),
        (b"", "a key", None, "has 0 bytes"),
        (bytes((6, 0, 0, 0, 2)), "a key", None, "which says nothing"),
        (bytes((1,)), "a key", None, "has 1 bytes"),
        (ON + b"\x00", "a key", None, "has 6 bytes"),
    ],
)
def test_secure_boot_asks_for_a_signature(site, variable, signer, value, text):
    """The fifth byte says whether it is on; anything but one byte of 0 or 1 says nothing."""
    put(site, EFI, variable)
    site.world.modules = {RUNNING: (DRIVER, signer)}
    found, note = said(take(site, "host.secure_boot.consistent"))
    assert (found, text in note) == (value, True), note


def test_a_machine_without_efi_has_no_secure_boot(site):
    """Tables of another firmware prove that it started without EFI; no tables at all prove nothing."""
    shutil.rmtree(site.world.root / "sys/firmware/efi")
    assert said(take(site, "host.secure_boot.consistent")) == (True, "started without EFI, which has no secure boot")
    shutil.rmtree(site.world.root / "sys/firmware/acpi")
    assert "run on the host" in take(site, "host.secure_boot.consistent").reason


def test_a_variable_that_may_not_be_read_is_an_absence(site):
    """EFI without its variables, as in a container, is neither on nor off."""
    (site.world.root / EFI).unlink()
    assert "cannot be read" in take(site, "host.secure_boot.consistent").reason


# any text ------------------------------------------------------------------------------------


@FUZZ
@given(text=st.text(max_size=60) | st.sampled_from([DRIVER, "590.48", RUNNING, "6", "."]))
def test_any_text_is_a_version_or_none(text):
    """What is taken for a version is made of numbers, and releases of any form can be compared."""
    with suppress(Unmeasurable):
        assert all(part.isdigit() for part in next_boot.version(text, "x").split("."))
    assert next_boot.age(text) <= next_boot.age(text)


@FUZZ
@given(variable=st.binary(max_size=8))
def test_any_variable_is_on_off_or_neither(variable):
    """Only five bytes with a last one of 0 or 1 say anything."""
    world = SimpleNamespace(names=lambda path: ["efi"], data=lambda path: variable)
    site = Site(world, SimpleNamespace(name="box"), "host", {}, lambda name, text: "")
    with suppress(Unmeasurable):
        assert next_boot.secure_boot(site) is (variable[4] == 1)
        assert len(variable) == 5


@pytest.mark.parametrize(
    ("file", "text", "value"),
    [
        ("boot/grub/grubenv", f"saved_entry=gnulinux-advanced-1234>gnulinux-{OLDER}-advanced-1234\n", False),
        ("boot/grub2/grubenv", f"next_entry=0123456789abcdef-{OLDER}\n", False),
        ("etc/default/grub", f'GRUB_DEFAULT="Advanced options for Ubuntu>Ubuntu, with Linux {OLDER}"\n', False),
        ("etc/default/grub", f"GRUB_DEFAULT=0\n# {OLDER}\n", True),
        ("boot/grub/grubenv", "saved_entry=0\n", True),
    ],
)
def test_a_kernel_that_the_boot_loader_names_must_have_the_driver(site, file, text, value):
    """The next start takes what was saved, and not the newest."""
    put(site, file, text)
    site.world.modules.pop(OLDER, None)
    assert take(site, "host.kernel.installed").value is value


def test_a_saved_choice_counts_where_the_boot_loader_looks_at_it(site):
    """Without `saved` as default, what stands there is of some time ago."""
    site.world.modules.pop(OLDER, None)
    put(site, "boot/grub/grubenv", f"saved_entry=gnulinux-{OLDER}\n")
    for default, value in (("saved", False), ('"saved"', False), ("0", True)):
        put(site, "etc/default/grub", f"GRUB_DEFAULT={default}\n")
        assert take(site, "host.kernel.installed").value is value
