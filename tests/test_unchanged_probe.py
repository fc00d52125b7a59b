"""The machine at the end of a run is the one of its start; what changed is said, what was not compared too."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes import unchanged
from pytest_gpuaccept.readings import decode, encode
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld

FUZZ = settings(deadline=None, database=None)
PCI = "/sys/bus/pci/devices"


class Altered:
    """A simulated machine, some of whose files, folders or tools are otherwise."""

    def __init__(self, world):
        """Take the machine as it is."""
        self._world, self.files, self.folders, self.gone = world, {}, {}, set()

    def __getattr__(self, name):
        """Answer as the machine does."""
        return getattr(self._world, name)

    def read(self, path):
        """Return a file, or what it was altered to."""
        if path in self.gone:
            message = f"{path} cannot be read: Permission denied"
            raise Unmeasurable(message)
        return self.files[path] if path in self.files else self._world.read(path)

    def names(self, path):
        """Return a folder, or what it was altered to."""
        if path in self.gone:
            message = f"{path} cannot be listed: No such file or directory"
            raise Unmeasurable(message)
        return self.folders[path] if path in self.folders else self._world.names(path)


@pytest.fixture
def site(profile):
    """Return the site of a healthy machine with the reading of its start."""
    world = Altered(SimWorld(profile, Scenario("healthy")))
    made = Site(world, profile, "host", {}, lambda name, text: "digest")
    return replace(made, before=unchanged.start(made))


def ask(site):
    """Return the outcome at the end of the run."""
    (found,) = unchanged.unchanged(site)
    return found


def test_a_machine_that_stays_as_it_is_is_unchanged(site):
    """Everything was compared, and the note says what."""
    found = ask(site)
    assert (found.value, found.samples) == (True, 2)
    assert set(site.before.said) == set(unchanged.SUBJECTS)
    assert all(text in found.note for text in ("8 memory modules", "12 PCI devices", "2 disks", "4 GPUs", "governor"))
    assert "not shown here" not in found.note


@pytest.mark.parametrize(
    ("part", "parameter", "value", "said"),
    [
        ("host", "clocksource", "hpet", "clock source: tsc -> hpet"),
        ("host", "cmdline", "ro", "kernel options: BOOT_IMAGE=/vmlinuz root=/dev/mapper/vg0-root ro quiet -> ro"),
        ("cpu", "offline", 8, "CPUs online: 0-63 -> 0-55"),
        ("cpu", "dimms", 7, "memory: 503.3 GiB -> 440.4 GiB"),
        ("cpu", "dimms", 7, "memory modules 7 DIMM_7: 64 GiB DDR4 LRDIMM"),
        ("cpu", "dimm_mts", 2400, "memory modules 0 DIMM_0: 64 GiB DDR4 LRDIMM 2666 of 2666 MT/s"),
        ("cpu", "governor", "powersave", "governor: performance -> powersave"),
        ("cpu", "saving_cpus", 3, "governor: performance -> mixed: performance 61, powersave 3"),
        ("cpu", "boost", False, "boost: True -> False"),
        ("gpu1", "pcie_width", 8, "PCI devices 0000:41:00.0: 30000 10DE:2684 10DE:2684 nvidia x16 -> 30000 10DE:2684"),
        ("gpu1", "present", False, "GPUs gpu1:"),
        ("gpu1", "lost", True, "GPUs gpu1: 00000000:41:00.0 GPU-"),
        ("nic0", "present", False, "network interfaces eno1:"),
        ("nvme0", "present", False, "NVMe drives nvme0:"),
        ("nvme0", "firmware", "SIM1.1", "SIM1.0 live -> Simulated NVMe 2TB"),
        ("host", "other_drives", 0, "NVMe drives nvme1:"),
    ],
)  # fmt: skip
def test_what_comes_goes_or_changes_is_said(site, part, parameter, value, said):
    """Each part of the machine is looked at twice, and a change has its place, what was and what is."""
    setattr(site.world.machine.part(part), parameter, value)
    found = ask(site)
    assert (found.value, said in found.note) == (False, True), found.note


@pytest.mark.parametrize("width", ["", "0", "255"])
def test_a_width_that_nobody_knows_is_none(site, width):
    """sysfs has words for a link that is none; no width was seen then, which is said as a change."""
    folder = f"{PCI}/0000:41:00.0"
    site.world.files[f"{folder}/current_link_width"] = width
    assert f"x{width}" not in unchanged.pci_devices(site)["0000:41:00.0"]
    assert ask(site).value is False


def test_many_changes_are_counted(site):
    """A note has room for some, in the order in which they are looked at; the rest is a number."""
    for gpu in site.world.machine.gpus[1:]:
        gpu.p.present = False
    site.world.machine.cpu.dimms = 1
    note = ask(site).note
    assert note.startswith("memory: ")
    assert note.endswith(" and 6 more")


@pytest.mark.parametrize("moment", ["start", "end"])
@pytest.mark.parametrize("path", ["/proc/cmdline", "/proc/meminfo", PCI])
def test_what_could_not_be_compared_leaves_the_rest_unproven(site, moment, path):
    """A subject that every machine shows and that was not read at one end is a reason, never a pass."""
    site.world.gone.add(path)
    before = unchanged.start(site) if moment == "start" else site.before
    site.world.gone -= {path} if moment == "start" else set()
    found = ask(replace(site, before=before))
    assert isinstance(found, NotMeasured)
    assert f"at the {moment} of the run" in found.reason
    assert path in found.reason


def test_a_change_is_proven_whatever_else_was_not_read(site):
    """What did change stays so when something else could not be read."""
    site.world.gone.add("/proc/cmdline")
    site.world.machine.host.clocksource = "hpet"
    assert ask(site).value is False


def test_what_a_machine_never_shows_is_no_lack(site):
    """A machine without a CPU clock or an IOMMU is compared in all else, and the note says what it has not."""
    site.world.gone |= {"/sys/devices/system/cpu/cpufreq", "/sys/kernel/iommu_groups"}
    found = ask(replace(site, before=unchanged.start(site)))
    assert found.value is True
    assert found.note.endswith("not shown here: governor, IOMMU")


def test_what_was_shown_at_the_start_must_be_at_the_end(site):
    """A subject that falls silent in the run is not taken for one that never was there."""
    site.world.gone.add("/sys/kernel/iommu_groups")
    assert "IOMMU at the end of the run" in ask(site).reason


def test_a_machine_without_gpus_owes_none(catalogue):
    """No driver and no PCI bus are no lack where no GPU was ordered."""
    profile = load_profile("host", catalogue, SHIPPED)
    world = Altered(SimWorld(profile, Scenario("healthy")))
    world.gone.add(PCI)
    site = Site(world, profile, "host", {}, lambda name, text: "digest")
    assert ask(replace(site, before=unchanged.start(site))).value is True


def test_a_device_that_goes_while_it_is_read_is_no_pass(site):
    """Its name was listed and its file is gone: the list cannot be believed."""
    site.world.gone.add(f"{PCI}/0000:41:00.0/uevent")
    assert isinstance(ask(site), NotMeasured)


@pytest.mark.parametrize("before", [None, "x", Unmeasurable("no driver at the start")])
def test_without_the_start_nothing_is_compared(site, before):
    """A run that did not look at its start has no end to compare with."""
    with pytest.raises(Unmeasurable, match="start"):
        ask(replace(site, before=before))


def test_the_start_outlives_the_process(site):
    """A run that is resumed compares with the start that was written down."""
    assert decode(encode(site.before), unchanged.start) == site.before


ENTRIES = st.dictionaries(
    st.sampled_from(["memory", "GPUs", "boost"]), st.dictionaries(st.text(max_size=3), st.text(max_size=3))
)


@FUZZ
@given(first=ENTRIES, last=ENTRIES)
def test_a_change_is_found_exactly_where_there_is_one(first, last):
    """Of what was read at both ends, every difference is found, and nothing else."""
    found = list(unchanged.changes(unchanged.Inventory(first, {}), unchanged.Inventory(last, {})))
    both = first.keys() & last.keys()
    assert bool(found) == any(first[subject] != last[subject] for subject in both)
    assert len(found) == len(
        {
            (s, name)
            for s in both
            for name in first[s].keys() | last[s].keys()
            if first[s].get(name) != last[s].get(name)
        }
    )


@FUZZ
@given(text=st.text(max_size=30))
def test_any_text_of_a_device_is_an_entry(profile, text):
    """Whatever a file of a device says, it is listed and the run goes on."""
    world = Altered(SimWorld(profile, Scenario("healthy")))
    world.files |= {f"{PCI}/0000:41:00.0/{file}": text for file in ("uevent", "current_link_width")}
    site = Site(world, profile, "host", {}, lambda name, content: "digest")
    assert "0000:41:00.0" in unchanged.pci_devices(site)
    assert isinstance(ask(replace(site, before=unchanged.start(site))), Measurement)


def test_disks_that_come_and_go_are_no_change(site):
    """A stick, remote media and what lies on a disk are not the machine's."""
    world, passing = site.world, {"sdb": "1", "loop3": "0", "dm-7": "0", "sr0": "1"}
    world.folders[unchanged.BLOCKS] = ["sda", "sda1", *passing]
    world.files[f"{unchanged.BLOCKS}/sda1/partition"] = "1"
    for name, removable in passing.items():
        world.files |= {f"{unchanged.BLOCKS}/{name}/removable": removable, f"{unchanged.BLOCKS}/{name}/size": "1000"}
    assert set(unchanged.disks(site)) == {"sda"}


def test_a_disk_that_is_gone_is_said(site):
    """A SATA disk, or the drive behind a controller that stays, goes with all that was on it."""
    site.world.folders[unchanged.BLOCKS] = ["nvme0n1"]
    assert "disks sda:" in ask(site).note
