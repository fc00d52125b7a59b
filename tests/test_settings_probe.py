"""How a machine is set is read from the kernel; what it does not show, or shows otherwise, is an absence."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.host import machine as host
from pytest_gpuaccept.probes.host import settings
from pytest_gpuaccept.probes.kernel import config_space
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import LiveWorld

FUZZ = hypothesis_settings(deadline=None, database=None)
GPU = "sys/bus/pci/devices/0000:01:00.0"
FILES = {
    "proc/cmdline": "ro quiet amd_iommu=on iommu=pt\n",
    "proc/swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    "/swap.img file 8388608 0 -2\n/dev/zram0 partition 1048576 5 100\n",
    "proc/self/limits": "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max open files            1024                 1048576              files     \n"
    "Max locked memory         unlimited            unlimited            bytes     \n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpufreq/policy1/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpufreq/boost": "1\n",
    "sys/devices/system/node/node0/cpulist": "0-31\n",
    "sys/devices/system/node/node1/cpulist": "32-63\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "sys/module/pcie_aspm/parameters/policy": "[default] performance powersave powersupersave\n",
    "sys/kernel/iommu_groups/0/type": "identity\n",
    "sys/kernel/iommu_groups/1/type": "identity\n",
    f"{GPU}/numa_node": "1\n",
    f"{GPU}/link/l0s_aspm": "0\n",
    f"{GPU}/link/l1_aspm": "1\n",
    f"{GPU}/link/clkpm": "1\n",
    f"{GPU}/config": "",
}
READ = {
    "host.cpu.governor": "performance",
    "host.cpu.boost": True,
    "host.memory.swap": 9.0,
    "host.kernel.huge_pages": "madvise",
    "host.numa.nodes": 2,
    "host.numa.gpus": "1",
    "host.pcie.aspm": "default",
    "host.pcie.aspm_gpus": "clkpm l1_aspm",
    "host.pcie.acs": False,
    "host.pcie.iommu": "identity",
    "host.limits.memlock": "unlimited",
    "host.limits.nofile": "1024",
}


# a configuration space -----------------------------------------------------------------------


def space(*, bridge=True, express=True, acs=0x1D, length=4096, loop=False):
    """Return a configuration space with AER and, unless None, ACS with these bits set, cut to a length."""
    made = bytearray(4096)
    made[0:2], made[6], made[0x0E], made[0x34] = b"\x22\x10", 0x10, 0x81 if bridge else 0x80, 0x40
    made[0x40:0x42] = bytes((0x10 if express else 0x01, 0x40 if loop else 0))
    made[0x100:0x104] = (0x0001 | 1 << 16 | (0x150 if acs is not None else 0x100 if loop else 0) << 20).to_bytes(
        4, "little"
    )
    if acs is not None:
        made[0x150:0x158] = (0x000D | 1 << 16).to_bytes(4, "little") + bytes((0, 0, acs, 0))
    return bytes(made[:length])


@pytest.mark.parametrize(
    ("shown", "redirects"),
    [
        (space(), True),
        (space(acs=0x01), False),
        (space(acs=None), False),
        (space(acs=None, loop=True), False),
        (space(bridge=False), False),
        (space(length=20), None),
        (space(length=64), None),
        (space(length=256), None),
        (space(length=0x154), None),
        (space(length=256, express=False), False),
        (b"", False),
    ],
    ids=["on", "validation", "none", "loop", "endpoint", "torn", "header", "legacy", "cut", "conventional", "nothing"],
)
def test_acs_is_seen_where_the_whole_space_is(shown, redirects):
    """Source validation redirects nothing; a part of the space that was not shown proves nothing."""
    assert config_space.redirects(shown) is redirects


@FUZZ
@given(noise=st.binary(max_size=300), at=st.integers(0, 4096), length=st.integers(0, 4096))
def test_any_bytes_redirect_or_not_or_are_unknown(noise, at, length):
    """No chain of capabilities, broken or cut as it may be, is followed for ever or beyond its end."""
    whole = bytearray(space())
    whole[at : at + len(noise)] = noise
    assert config_space.redirects(bytes(whole[:length])) in (True, False, None)


# readings ------------------------------------------------------------------------------------


class Driven(LiveWorld):
    """A machine of files with one GPU."""

    def nvml(self):
        """Return the driver of a simulated machine with one GPU."""
        return self.driver


@pytest.fixture
def site(tmp_path, catalogue, profile):
    """Return the site of a machine of files; a test then breaks one part of it."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / GPU / "config").write_bytes(space(acs=1))
    world = Driven(tmp_path)
    world.driver = SimWorld(profile.model_copy(update={"gpus": 1}), Scenario("healthy")).nvml()
    return Site(world, SimpleNamespace(name="box"), "host", {}, lambda name, text: "")


def values(site):
    """Take the readings; an absent value is its reason."""
    found = host.taken(site, site, settings.READINGS)
    return {o.metric: o.value if isinstance(o, Measurement) else o.reason for o in found}


def put(site, name, text):
    """Change one file."""
    (site.world.root / name).write_text(text)


def test_a_machine_gives_every_reading(site):
    """Every declared reading has the value that its source states."""
    assert values(site) == READ


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_costs_only_its_own_readings(site, name):
    """What is not shown is absent, or the reading has another source, and nothing else changes."""
    (site.world.root / name).unlink()
    found = values(site)
    changed = {metric for metric, value in found.items() if value != READ[metric]}
    assert len(changed) <= 1 or name == "proc/self/limits"
    assert all(isinstance(found[metric], str | int) for metric in changed)


def test_odd_cpus_are_named(site):
    """One CPU that saves power is in the value and in the note."""
    put(site, "sys/devices/system/cpu/cpufreq/policy1/scaling_governor", "powersave\n")
    value, note = settings.governor(site)
    assert value == "mixed: performance 1, powersave 1"
    assert note in ("policy0 performance", "policy1 powersave")


@pytest.mark.parametrize(
    ("boost", "no_turbo", "value"),
    [("0", None, False), (None, "0", True), (None, "1", False), ("2", None, None), (None, None, None)],
)
def test_boost_is_read_from_either_driver(site, boost, no_turbo, value):
    """AMD and ACPI write it one way, Intel the other way round; what is neither 0 nor 1 is no answer."""
    (site.world.root / "sys/devices/system/cpu/cpufreq/boost").unlink()
    (site.world.root / "sys/devices/system/cpu/intel_pstate").mkdir()
    for name, text in {"cpufreq/boost": boost, "intel_pstate/no_turbo": no_turbo}.items():
        if text is not None:
            put(site, f"sys/devices/system/cpu/{name}", text)
    found = values(site)["host.cpu.boost"]
    assert found is value or (value is None and isinstance(found, str))


@pytest.mark.parametrize("node", ["-1", "", "x"])
def test_a_node_that_the_firmware_does_not_tell_is_none(site, node):
    """-1 is the kernel's word for unknown."""
    put(site, f"{GPU}/numa_node", node)
    assert "does not tell the NUMA node of gpu0" in values(site)["host.numa.gpus"]


def test_without_a_driver_only_the_readings_of_gpus_are_absent(site):
    """A machine whose driver is gone is set as it is set."""
    site.world.nvml = LiveWorld(site.world.root).nvml
    found = values(site)
    absent = {metric for metric, value in found.items() if value != READ[metric]}
    assert absent == {"host.numa.gpus", "host.pcie.aspm_gpus"}
    assert all("no NVIDIA driver" in found[metric] for metric in absent)


def test_without_groups_the_iommu_is_off(site):
    """An empty folder is an IOMMU that does not translate; the kernel's options stand beside it."""
    for group in ("0", "1"):
        (site.world.root / f"sys/kernel/iommu_groups/{group}/type").unlink()
        (site.world.root / f"sys/kernel/iommu_groups/{group}").rmdir()
    assert settings.iommu(site) == ("off", "amd_iommu=on iommu=pt")


def test_groups_that_differ_are_counted(site):
    """A group of another type is in the value."""
    put(site, "sys/kernel/iommu_groups/1/type", "DMA-FQ\n")
    assert settings.iommu(site)[0] == "mixed: identity 1, DMA-FQ 1"


def test_acs_takes_root_unless_it_is_seen(site):
    """A bridge that redirects is proven without the others; a bridge that is not shown whole proves no other off."""
    (site.world.root / GPU / "config").write_bytes(space(length=64))
    assert values(site)["host.pcie.acs"].endswith("run as root")
    other = site.world.root / "sys/bus/pci/devices/0000:00:01.1"
    other.mkdir()
    (other / "config").write_bytes(space())
    assert settings.acs(site) == (True, "2 bridges; 0000:00:01.1 redirects")


def test_a_machine_without_bridges_has_not_been_seen(site):
    """A container shows endpoints alone."""
    (site.world.root / GPU / "config").write_bytes(space(bridge=False))
    assert values(site)["host.pcie.acs"] == "no PCI bridge is shown here: run on the host"


@pytest.mark.parametrize(
    ("text", "gib"),
    [
        ("Filename\tType\tSize\tUsed\tPriority", 0.0),
        ("Filename\tType\tSize\tUsed\tPriority\n/a\\040b file 1048576 0 -2", 1.0),
        ("", None),
        ("/swap.img file 1 0 -2", None),
        ("Filename\n/swap.img file lots 0 -2", None),
    ],
)
def test_swap_is_a_table_with_a_head(text, gib):
    """No swap is a table without rows; without its head it is no table."""
    if gib is None:
        with pytest.raises(Unmeasurable, match="no table"):
            settings.parse_swap(text)
    else:
        assert settings.parse_swap(text)[0] == gib


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("always [madvise] never", "madvise"),
        ("[x]", "x"),
        ("default", "default"),
        ("a b", None),
        ("", None),
        ("[a] [b]", None),
    ],
)
def test_what_is_chosen_stands_in_brackets(text, word):
    """One word alone is chosen too; two, or none, are no choice."""
    if word is None:
        with pytest.raises(Unmeasurable, match="chooses nothing"):
            settings.chosen(text)
    else:
        assert settings.chosen(text) == word


def test_a_limit_that_is_not_named_is_none():
    """Another resource's limit is not taken for it."""
    with pytest.raises(Unmeasurable, match="Max locked memory"):
        settings.parse_limit("Max locked memory pages 5 5 pages", "Max locked memory")


# any text ------------------------------------------------------------------------------------


class Anything:
    """A machine that answers every question with the same."""

    def __init__(self, text, names):
        self.text, self.listed = text, names

    def read(self, path):
        """Return the text."""
        return self.text

    def data(self, path):
        """Return the text's bytes."""
        return self.text.encode(errors="replace")

    def names(self, path):
        """Return the names."""
        return self.listed

    def nvml(self):
        """Refuse."""
        message = "no driver"
        raise Unmeasurable(message)


@FUZZ
@given(
    text=st.text(max_size=80) | st.sampled_from([text.strip() for text in FILES.values()]),
    names=st.lists(st.text(max_size=9) | st.sampled_from(["policy0", "node0", "0", "0000:01:00.0"]), max_size=4),
)
def test_whatever_a_machine_shows_is_a_value_or_a_reason(text, names):
    """Any text in any file, any names in any folder: a reading answers with something, or says why not."""
    site = Site(Anything(text, names), SimpleNamespace(name="box"), "host", {}, lambda name, text: "")
    for read in (settings.READINGS | host.READINGS).values():
        with suppress(Unmeasurable):
            assert read(site) not in (None, "")
