"""Everything that this machine really has is read: a value that a second source confirms, or a reason."""

import json
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import psutil
import pytest

from pytest_gpuaccept.bench import Bench
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.loader import load_profile
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Catalogue, Site
from pytest_gpuaccept.probes import SHIPPED
from pytest_gpuaccept.probes.kernel import aer
from pytest_gpuaccept.probes.kernel import events as kernel_events
from pytest_gpuaccept.probes.kernel import log as kernel_log
from pytest_gpuaccept.probes.kernel.aer import PCI, port_above, read_counters
from pytest_gpuaccept.probes.kernel.config_space import reporting
from pytest_gpuaccept.probes.network import ports
from pytest_gpuaccept.world import LiveWorld

pytestmark = pytest.mark.real_kernel
KINDS = ("host", "nic", "nvme")
READERS = [
    probe.name for probe in SHIPPED if probe.kind in KINDS and probe.measure and not probe.load and not probe.driver
]
PROFILE = """
title = "whatever this machine is"
inherits = ["host"]
[devices]
nic = ["nic0"]
nvme = ["disk0"]
[device.disk0]
mount = "{mount}"
"""
LONGEST_REASON = 1500
FILES = (
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/vmstat", "/proc/cmdline", "/proc/loadavg",
    "/proc/sys/kernel/tainted", "/proc/sys/kernel/random/boot_id", "/etc/os-release", "/etc/machine-id",
    "/sys/devices/system/cpu/online", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    "/sys/devices/system/edac/mc/mc0/ce_count", "/sys/class/dmi/id/board_name",
)  # fmt: skip
FOLDERS = ("/sys/block", "/sys/class/net", "/sys/class/hwmon", "/sys/class/nvme", PCI, "/sys/devices/system/edac/mc")
TOOLS = (
    ("udevadm", "info", "--query=property", "--path=/sys/devices/virtual/dmi/id"),
    ("systemctl", "list-units", "--state=failed", "--output=json"), ("timedatectl", "show"),
    ("vgs", "--reportformat", "json"), ("lsblk", "--json"), ("nvme", "list", "-o", "json"),
    ("smartctl", "--scan", "--json"), ("dmesg", "--kernel", "--json"), ("ethtool", "-S", "lo"),
)  # fmt: skip
TOOL_S = 30


class Kept:
    """A journal that remembers what was attached."""

    def __init__(self):
        """Remember nothing yet."""
        self.attached = {}

    def record(self, kind, **body):
        """Take a record."""

    def outcome(self, outcome):
        """Take an outcome."""

    def attach(self, name, text):
        """Keep a text."""
        self.attached[name] = text
        return "digest"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Return a bench on this machine whose run has begun."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "thresholds").mkdir()
    (folder / "thresholds" / "here.toml").write_text(PROFILE.format(mount=folder))
    catalogue = Catalogue(SHIPPED)
    made = Bench(load_profile("here", catalogue, folder), catalogue, Kept(), LiveWorld())
    made.begin()
    yield made
    made.close()


@pytest.fixture
def world():
    """Return this machine."""
    return LiveWorld()


@pytest.fixture
def site(world, bench):
    """Return a probe's site on this machine."""
    return Site(world, bench.profile, "nic0", {}, lambda *_: "digest")


def said(read):
    """Return what a reading gives: a value, or its reason as an Unmeasurable that a person can act on."""
    try:
        return read()
    except Unmeasurable as error:
        assert_is_a_reason(str(error))
        return error


def listed(world, path):
    """Return the names in a folder, none where it is not there."""
    names = said(partial(world.names, path))
    return [] if isinstance(names, Unmeasurable) else names


def assert_is_a_reason(text):
    """Check that a reason is one line of words, and no accident of the program."""
    assert 15 < len(text) < LONGEST_REASON, text
    assert "\n" not in text.strip(), text
    assert " " in text, text
    assert not re.search(r"Traceback|did not report it|\b(?!OS)[A-Z][a-z]\w*(?:Error|Exception):", text), text


# every probe ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_a_probe_reads_this_machine_or_says_why_not(bench, name):
    """What loads nothing runs here twice, before and after, and ends in values and reasons, never in an accident."""
    probe = bench.catalogue.probes[name]
    for device in bench.profile.devices.get(probe.kind, ()):
        bench.run(probe, device)
    journal = bench._journal
    assert [text for title, text in journal.attached.items() if title.startswith(f"traceback {name} ")] == []
    own = {metric.id for metric in probe.metrics if not metric.derive and metric.kind in KINDS}
    found = [outcome for (metric, _), outcome in bench.table.items() if metric in own]
    assert {outcome.metric for outcome in found} == own
    for outcome in found:
        assert isinstance(outcome, Measurement | NotMeasured)
        if isinstance(outcome, NotMeasured):
            assert_is_a_reason(outcome.reason)


def test_the_catalogue_has_probes_to_try():
    """The loop above is not empty."""
    assert len(READERS) > 5


# files and tools -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES)
def test_a_file_of_the_kernel_is_read_or_has_a_reason(world, path):
    """Text is text, a file that is not there is named."""
    text = said(partial(world.read, path))
    assert path in str(text) if isinstance(text, Unmeasurable) else text.isprintable() or "\n" in text or "\t" in text


@pytest.mark.parametrize("path", FOLDERS)
def test_a_folder_of_the_kernel_is_listed_or_has_a_reason(world, path):
    """A folder lists what the operating system lists."""
    names = said(partial(world.names, path))
    assert (
        path in str(names)
        if isinstance(names, Unmeasurable)
        else names == sorted(entry.name for entry in Path(path).iterdir())
    )


@pytest.mark.parametrize("argv", TOOLS, ids=lambda argv: argv[0])
def test_a_tool_ends_as_in_a_shell_or_is_missing_by_name(world, argv):
    """A tool that is here ends with the status, and writes the kind of text, that it has elsewhere."""
    done = said(partial(world.command, argv, timeout=TOOL_S))
    if shutil.which(argv[0]) is None:
        assert f"{argv[0]} cannot be started" in str(done)
        return
    again = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=TOOL_S)
    assert (done.status, bool(done.stdout), bool(done.stderr)) == (
        again.returncode, bool(again.stdout), bool(again.stderr)
    )  # fmt: skip


# second sources ------------------------------------------------------------------------------------------


def test_the_cpus_that_are_online_are_those_of_the_system(world):
    """/proc/cpuinfo, /proc/stat and sysconf count the same CPUs."""
    count = os.sysconf("SC_NPROCESSORS_ONLN")
    assert len(re.findall(r"^processor\s*:", world.read("/proc/cpuinfo"), re.MULTILINE)) == count
    assert len(re.findall(r"^cpu\d+ ", world.read("/proc/stat"), re.MULTILINE)) == count


def test_the_memory_is_what_the_system_counts_in_pages(world, bench):
    """MemTotal is pages times their size, and the probe's GiB are the same."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    (kib,) = re.findall(r"^MemTotal:\s+(\d+) kB$", world.read("/proc/meminfo"), re.MULTILINE)
    assert int(kib) * 1024 == pages == psutil.virtual_memory().total
    assert bench.outcome("host.memory.visible", "host").value == pytest.approx(pages / 2**30, rel=0.01)


def test_the_room_on_a_disk_is_that_of_its_file_system(world, tmp_path):
    """The free bytes behind a folder are those that statvfs gives to this user."""
    disk, there = world.disk(str(tmp_path)), os.statvfs(tmp_path)
    assert disk.free == pytest.approx(there.f_bavail * there.f_frsize, rel=0.05)
    device = tmp_path.stat().st_dev
    assert disk.number == f"{os.major(device)}:{os.minor(device)}"


def test_every_block_device_counts_its_sectors(world):
    """A device of /sys/block has one set of statistics, reached by name and by number."""
    for name in listed(world, "/sys/block"):
        number = world.read(f"/sys/block/{name}/dev")
        by_name, by_number = world.read(f"/sys/block/{name}/stat"), world.read(f"/sys/dev/block/{number}/stat")
        assert len(by_name.split()) == len(by_number.split()) >= 11


def test_every_pci_device_has_the_port_and_the_counters_of_its_folder(site):
    """A device lies in the folder of its port; its error counters are read where there is a file, and only there."""
    for address in listed(site.world, PCI):
        folder = Path(PCI, address).resolve()
        parent = folder.parent.name
        assert port_above(site, address) == (parent if re.fullmatch(aer.ADDRESS, parent) else "")
        for file in ("aer_dev_correctable", "aer_dev_nonfatal", "aer_dev_fatal"):
            counts = said(partial(read_counters, site, address, file))
            assert isinstance(counts, Unmeasurable) != (folder / file).exists()


def test_every_network_interface_has_a_carrier_that_ip_knows(site):
    """Each interface's changes are counted, and `ip` says the same of its link, name and address."""
    if shutil.which("ip") is None:
        pytest.skip("not installed: ip; apt-get install iproute2")
    done = subprocess.run(("ip", "-json", "link"), capture_output=True, text=True, check=True)
    known = {link["ifname"]: link for link in json.loads(done.stdout)}
    names = [name for name in listed(site.world, ports.NET) if Path(ports.NET, name).is_dir()]
    assert sorted(names) == sorted(known)
    for name in names:
        assert ports.read_carrier(site, name).index == known[name]["ifindex"]
        seen = ports.read_port(site, name)
        assert seen.settings["MAC"] == known[name]["address"]
        assert seen.settings["MTU"] == str(known[name]["mtu"])
        assert seen.settings["state"].upper() == known[name]["operstate"]
        assert all(isinstance(count, int) for count in seen.counters.values())


def test_the_counters_of_an_interface_are_those_of_a_second_source(site):
    """psutil, which reads /proc/net/dev, has seen at least as many frames, and as many errors."""
    for name, counted in psutil.net_io_counters(pernic=True).items():
        port, later = ports.read_port(site, name), psutil.net_io_counters(pernic=True)[name]
        assert counted.packets_recv <= port.counters["rx_packets"] <= later.packets_recv
        assert counted.errin <= port.counters["rx_errors"] <= later.errin


def test_the_default_route_is_the_one_that_ip_tells(site):
    """The interface of the default route is ip's, or the reason is that there is none."""
    found = said(partial(ports.interface_of, site))
    if shutil.which("ip") is None:
        pytest.skip("not installed: ip; apt-get install iproute2")
    done = subprocess.run(("ip", "-json", "-4", "route", "show", "default"), capture_output=True, text=True, check=True)
    routes = sorted(json.loads(done.stdout or "[]"), key=lambda route: route.get("metric", 0))
    assert isinstance(found, Unmeasurable) if not routes else found == routes[0]["dev"]


def test_the_kernel_log_is_read_or_names_what_to_do(site):
    """The log has records of this boot, in order, or the reason says which group to join."""
    log = said(partial(kernel_log.read_log, site))
    if isinstance(log, Unmeasurable):
        assert re.search(r"group adm|root|install|permi", str(log)), log
    else:
        assert log.records
        assert all(record.us >= 0 for record in log.records)


# events --------------------------------------------------------------------------------------------------


def test_a_line_written_into_the_kernels_log_is_read_back_and_is_not_the_kernels(site):
    """The channel is proven by a line of our own, or the reason says what is missing; nothing counts it as an event."""
    log = said(partial(kernel_log.read_log, site))
    if isinstance(log, Unmeasurable):
        return
    through = said(partial(kernel_log.alive, site, log))
    assert through in ("kernel log", "journal") if os.geteuid() == 0 else isinstance(through, str | Unmeasurable)
    assert not any("channel check" in record.message for record in kernel_log.read_log(site).records)


def test_the_kernels_messages_are_told_apart(site):
    """Of the messages of this boot those that are events have a kind and their words, and are no new warning."""
    log = said(partial(kernel_log.read_log, site))
    if isinstance(log, Unmeasurable):
        return
    found = list(kernel_events.events(log.records))
    assert all(event.text and event.kind for event in found)
    known = {event.text for event in found}
    assert not kernel_events.novel([record for record in log.records if record.message in known])


def test_every_configuration_space_says_of_its_errors_what_lspci_reads_there(site):
    """Device Control's bit for corrected errors is lspci's CorrErr; a device without PCI Express has none."""
    if shutil.which("lspci") is None:
        pytest.skip("not installed: lspci; apt-get install pciutils")
    for address in listed(site.world, PCI):
        found = reporting(site.world.data(f"{PCI}/{address}/config"), "corrected")
        told = subprocess.run(("lspci", "-vv", "-s", address), capture_output=True, text=True, check=True).stdout
        said_there = re.search(r"DevCtl:.*CorrErr([+-])", told)
        assert found.enabled == (said_there[1] == "+" if said_there else None)


def test_a_link_whose_errors_nobody_would_see_has_a_reason(site):
    """A device without a root port that reports for it, as in a virtual machine, is never silent."""
    log = said(partial(kernel_log.read_log, site))
    for address in listed(site.world, PCI):
        for reason in aer.deaf(site, aer.hops(site, address), "corrected", log):
            assert_is_a_reason(reason)
        if not port_above(site, address):
            assert aer.deaf(site, aer.hops(site, address), "corrected", log)


def test_the_counters_are_watched_by_a_real_child(bench):
    """The poll runs beside the tests from the start of the run, and has looked at the counters ever since."""
    watched = bench.memory["watch"]
    watched.look()
    assert "/proc/vmstat" in watched.sources
    assert any(source.startswith("/sys/class/net/") for source in watched.sources)
    assert not watched.load.ended
    assert watched.standstill < 10
    assert abs(watched.boot_s) < 3600
