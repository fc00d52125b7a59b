"""The simulated machine's files, tools and servers have the real ones' formats and follow its parts."""

import dataclasses
import json
import re

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.burns import cpu
from pytest_gpuaccept.probes.drives import drive
from pytest_gpuaccept.probes.drives import health as drive_health
from pytest_gpuaccept.probes.gpus import gpu
from pytest_gpuaccept.probes.host import inventory as probes
from pytest_gpuaccept.probes.kernel import aer
from pytest_gpuaccept.probes.kernel import log as kernel_log
from pytest_gpuaccept.probes.network import ports
from pytest_gpuaccept.sim import drive_files, files, monitoring, platform_files, tools, upkeep
from pytest_gpuaccept.sim.machine import START, UPTIME_S, buses
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import Completed

PCI = "/sys/bus/pci/devices"
OWN, PORT = buses(4)[1]


@pytest.fixture
def world(profile):
    """Return a healthy simulated machine of the commissioned kind."""
    return SimWorld(profile, Scenario("healthy"))


@pytest.fixture
def machine(world):
    """Return its machine; a test then changes a part of it."""
    return world.machine


def inventory(world, profile):
    """Return what the host inventory reads, an absence as its reason."""
    outcomes = probes.inventory(Site(world, profile, "host", {}, lambda name, text: ""))
    return {o.metric: o.value if isinstance(o, Measurement) else o.reason for o in outcomes}


def test_the_inventory_of_a_healthy_machine_is_the_order(world, profile):
    """The real parsers read the parts' parameters out of the machine's files and udev."""
    ordered = {
        "host.cpu.model": "AMD EPYC 7542 32-Core Processor",
        "host.cpu.cores": 32,
        "host.cpu.threads": 64,
        "host.cpu.offline": 0,
        "host.memory.visible": pytest.approx(503.3, abs=0.1),
        "host.memory.installed": 512,
        "host.memory.dimms": 8,
        "host.memory.speed": 2666,
        "host.board.model": "ASRockRack ROMED8-2T/BCM",
        "host.bios.version": "P3.80",
        "host.os.release": "ubuntu 24.04",
        "host.kernel.release": "6.8.0-107-generic",
        "host.kernel.blindfolds": "none",
        "host.kernel.newest": True,
        "host.kernel.installed": True,
        "host.secure_boot.consistent": True,
        "host.memory.type": "DDR4",
        "host.memory.ecc": True,
        "host.memory.uniform": True,
        "host.cpu.governor": "performance",
        "gpu.driver.match": True,
    }
    found = inventory(world, profile)
    assert {metric: found[metric] for metric in ordered} == ordered


@pytest.mark.parametrize(
    ("part", "parameter", "value", "changed"),
    [
        ("cpu", "offline", 3, {"host.cpu.offline": 3, "host.cpu.threads": 61}),
        ("cpu", "dimms", 7, {"host.memory.dimms": 7, "host.memory.installed": 448}),
        ("cpu", "dimm_mts", 2400, {"host.memory.speed": 2400}),
        ("host", "bios", "P1.00", {"host.bios.version": "P1.00"}),
        ("host", "board_name", "X 12", {"host.board.model": "ASRockRack X 12"}),
        ("host", "os_version", "22.04", {"host.os.release": "ubuntu 22.04"}),
        ("host", "kernel", "6.5.0", {"host.kernel.release": "6.5.0"}),
        (
            "host",
            "cmdline",
            "ro pci=noaer",
            {"host.kernel.blindfolds": "pci=noaer", "host.kernel.cmdline": "ro pci=noaer"},
        ),
        ("host", "secure_boot", "legacy", {}),
        ("host", "driver_signed", False, {"host.secure_boot.consistent": False}),
        ("host", "new_kernel", "6.8.0-110-generic", {"host.kernel.newest": False}),
        ("host", "driver_on_disk", "580.65.06", {"gpu.driver.match": False}),
        ("cpu", "odd_dimms", 1, {"host.memory.uniform": False}),
        ("cpu", "ecc", False, {"host.memory.ecc": False}),
        ("cpu", "saving_cpus", 1, {"host.cpu.governor": "mixed: performance 63, powersave 1"}),
        ("cpu", "boost", False, {"host.cpu.boost": False}),
        ("cpu", "numa_nodes", 4, {"host.numa.nodes": 4}),
    ],
)
def test_a_parameter_changes_its_own_readings(world, profile, part, parameter, value, changed):
    """A part that differs is read as it is, and only its readings change."""
    before = inventory(world, profile)
    setattr(getattr(world.machine, part), parameter, value)
    after = inventory(world, profile)
    assert changed.items() <= after.items()
    same = before.keys() - changed.keys() - {"host.memory.visible"}
    assert {metric: after[metric] for metric in same} == {metric: before[metric] for metric in same}


def test_a_board_without_modules_has_not_been_read(world, profile):
    """Empty slots only are what udev says where it does not know."""
    world.machine.cpu.dimms = 0
    assert "no memory module" in inventory(world, profile)["host.memory.installed"]


@pytest.mark.parametrize("flavour", ["open", "proprietary"])
def test_the_driver_says_its_flavour_and_version(machine, flavour):
    """Both modules call themselves as the real ones do; a driver that is not loaded has no file."""
    machine.host.flavour = flavour
    text = files.text(machine, "/proc/driver/nvidia/version")
    assert gpu.flavour(text) == flavour
    assert f"  {machine.host.driver}  " in text
    machine.host.driver_loaded = False
    assert files.text(machine, "/proc/driver/nvidia/version") is None


@pytest.mark.parametrize(("idle", "offline"), [(0, 0), (2, 0), (0, 4), (2, 4), (64, 0)])
def test_a_burn_shows_on_every_cpu_that_it_reaches(machine, idle, offline):
    """The ticks of working CPUs are all busy, those of the highest-numbered idle ones none, and time passes on all."""
    machine.cpu.idle_cpus, machine.cpu.offline = idle, offline
    count = 64 - offline
    before = cpu.cpu_ticks(files.text(machine, "/proc/stat"))
    with machine.runs("stress-ng", cpu=max(0, count - idle) / count):
        machine.advance(60)
    after = cpu.cpu_ticks(files.text(machine, "/proc/stat"))
    busy = [cpu.busy_percent(before, after, n) for n in range(count)]
    working = max(0, count - idle)
    assert busy == pytest.approx([100.0] * working + [0.0] * min(idle, count), abs=0.1)
    assert len(after) == count
    assert after[0][1] == 100 * (60 + UPTIME_S)


def test_the_load_average_rises_with_a_burn(machine):
    """The averages begin at zero and the shorter one rises faster."""
    assert cpu.load_average(files.text(machine, "/proc/loadavg")) == 0
    with machine.runs("stress-ng", cpu=1.0):
        machine.advance(60)
    one, five, fifteen = (float(word) for word in files.text(machine, "/proc/loadavg").split()[:3])
    assert 64 > one > five > fifteen > 0


@pytest.fixture
def behind(world, profile):
    """Return the drive that the real probes find behind the commissioned machine's mount."""
    [found] = drive.drives_of(Site(world, profile, "nvme0", {}, lambda name, text: "")).drives
    return found


def test_a_drives_statistics_are_what_it_moved(world, machine, behind):
    """Bytes moved are sectors in the statistics of the block device behind the drive's mount, busy time is ms."""
    machine.moved["nvme0"]["read"], machine.moved["nvme0"]["write"] = 512 * 1000, 512 * 7
    machine.drive_busy_s["nvme0"] = 2.5
    assert drive.counters(world, behind.block) == drive.Counters(512 * 1000, 512 * 7, 2500)


def test_somebody_else_on_a_drive_shows_in_its_statistics(world, machine, behind):
    """Foreign reads keep a drive busy and move bytes, as long as time passes."""
    machine.drives["nvme0"].foreign_busy = 0.25
    before = drive.counters(world, behind.block)
    machine.advance(10)
    after = drive.counters(world, behind.block)
    assert after.busy_ms - before.busy_ms == pytest.approx(2500)
    assert after.read - before.read == pytest.approx(2.5 * machine.drives["nvme0"].read_mbs * 1e6, rel=1e-3)
    assert after.written == before.written


def test_a_drive_gets_warm_while_it_works(world, machine, behind):
    """The sensor follows the busy time towards the temperature under load; without a sensor there is none."""
    assert drive.temperature(world, behind) == (38.0, 85.0)
    machine.drive_busy_s["nvme0"] = 600.0
    assert drive.temperature(world, behind)[0] == pytest.approx(61.0, abs=0.1)
    machine.drives["nvme0"].critical_c = 0.0
    assert drive.temperature(world, behind)[1] is None
    machine.drives["nvme0"].sensor = False
    with pytest.raises(Unmeasurable, match="modprobe nvme"):
        drive.temperature(world, behind)


def test_a_drive_says_who_it_is(world, machine, behind):
    """Model, firmware and serial are the part's; a serial that is not stated follows from the seed."""
    assert [drive.fact(world, behind, what) for what in ("model", "firmware")] == ["Simulated NVMe 2TB", "SIM1.0"]
    assert re.fullmatch(r"SIM\d{10}", drive.fact(world, behind, "serial"))
    machine.drives["nvme0"].serial = "S7"
    assert drive.fact(world, behind, "serial") == "S7"


@pytest.mark.parametrize(("gen", "width"), [(4, 4), (3, 2), (5, 4)])
def test_a_drives_link_is_the_parts(world, machine, behind, gen, width):
    """Speed and width stand in the kernel's words, which the real parser reads."""
    machine.drives["nvme0"].pcie_gen, machine.drives["nvme0"].pcie_width = gen, width
    assert list(drive.link(world, behind)) == [gen, width]


def test_both_tools_tell_of_one_log(world, machine, behind):
    """nvme-cli in kelvin and smartctl in Celsius give one reading, but for what smartctl hides."""
    part = machine.drives["nvme0"]
    part.media_errors, part.critical_warning, part.used, part.hours, part.spare = 2, 4, 3, 99, 80
    machine.drive_busy_s["nvme0"], part.throttled, part.power_losses = 5.0, 6, 1
    first = drive_health.read(world, behind)
    status, out, _ = drive_files.smartctl(machine, ["smartctl", "--json", "-a", "/dev/nvme0"])
    second = drive_health.parse_smartctl(Completed((), status, out, "", 0.0))
    assert (first.media_errors, first.critical_warning, first.used, first.hours, first.spare) == (2, 4, 3, 99, 80)
    assert (first.throttled, first.unsafe_shutdowns, status) == (6, 3, 8)
    assert dataclasses.replace(second, tool="nvme", throttled=6) == first


def test_a_log_that_takes_root_is_refused_by_both_tools(world, machine, behind):
    """Each says so in its own words, and the remedy is named."""
    machine.drives["nvme0"].log_readable = False
    with pytest.raises(
        Unmeasurable, match=r"nvme: failed to open /dev/nvme0: Permission denied: .*root.*; smartctl: .*root"
    ):
        drive_health.read(world, behind)


def test_a_drive_that_is_not_there_has_no_controller(machine):
    """Only drives that are present are shown."""
    machine.host.other_drives = 1
    assert set(files.names(machine, "/sys/class/nvme")) == {*machine.drives, "nvme1"}
    machine.drives["nvme0"].present = False
    assert files.text(machine, "/sys/class/nvme/nvme0/state") is None
    assert files.text(machine, "/sys/dev/block/259:0/stat") is None


def test_a_card_lies_in_the_folder_of_its_port(machine):
    """The PCI devices are links into a tree in which `..` leads from a card to the port above it."""
    assert {OWN, PORT} <= set(files.names(machine, PCI))
    assert OWN in files.names(machine, f"{PCI}/{PORT}")
    assert f"PCI_SLOT_NAME={PORT}\n" in files.text(machine, f"{PCI}/{OWN}/../uevent")
    assert f"PCI_SLOT_NAME={OWN}\n" in files.text(machine, f"{PCI}/{PORT}/{OWN}/uevent")


def test_a_missing_card_has_no_device(machine):
    """A slot without a card shows neither the card nor a link."""
    machine.gpus[1].p.present = False
    assert OWN not in files.names(machine, PCI)
    assert files.names(machine, f"{PCI}/{OWN}") is None
    assert files.text(machine, f"{PCI}/{OWN}/uevent") is None


@pytest.mark.parametrize("address", [OWN, PORT])
def test_a_link_rises_under_load(machine, address):
    """Both ends of a link show Gen1 at idle, the full speed under load, and always the width."""
    machine.gpus[1].p.pcie_width = 8
    assert files.text(machine, f"{PCI}/{address}/current_link_speed") == "2.5 GT/s PCIe\n"
    with machine.runs("burn", {1: 1.0}):
        machine.advance(1)
        assert files.text(machine, f"{PCI}/{address}/current_link_speed") == "16.0 GT/s PCIe\n"
    assert files.text(machine, f"{PCI}/{address}/current_link_width") == "8\n"


def test_the_ends_of_a_link_know_their_own_maximum(machine):
    """A slow slot is the port's limit and not the card's; a card that is lost shows no speed."""
    machine.gpus[1].p.slot_gen = 3
    assert files.text(machine, f"{PCI}/{OWN}/max_link_speed") == "16.0 GT/s PCIe\n"
    assert files.text(machine, f"{PCI}/{PORT}/max_link_speed") == "8.0 GT/s PCIe\n"
    machine.gpus[1].p.lost = True
    assert files.text(machine, f"{PCI}/{OWN}/current_link_speed") == "Unknown\n"


@pytest.mark.parametrize(("side", "other"), [("gpu", PORT), ("port", OWN)])
def test_errors_are_counted_by_the_partner_that_sees_them(machine, side, other):
    """One partner counts, the other does not; the total is the file's last line."""
    part = machine.gpus[1]
    part.p.aer_side, part.corrected, part.uncorrected = side, 7.9, 2
    counting = {"gpu": OWN, "port": PORT}[side]
    totals = {
        (address, file): aer.parse_aer(files.text(machine, f"{PCI}/{address}/{file}"))["TOTAL"]
        for address in (OWN, PORT)
        for file in ("aer_dev_correctable", "aer_dev_nonfatal", "aer_dev_fatal")
    }
    assert totals[counting, "aer_dev_correctable"] == 7
    assert totals[counting, "aer_dev_nonfatal"] == 2
    assert not any(total for (address, file), total in totals.items() if address == other or file == "aer_dev_fatal")


def test_counters_that_are_hidden_or_not_fed_show_nothing(machine):
    """Hidden counters are no files; where firmware keeps AER to itself they are files that stay at zero."""
    machine.gpus[1].corrected = 7.0
    machine.host.aer_armed = False
    assert aer.parse_aer(files.text(machine, f"{PCI}/{OWN}/aer_dev_correctable"))["TOTAL"] == 0
    machine.gpus[1].p.aer_counters = False
    assert files.text(machine, f"{PCI}/{OWN}/aer_dev_correctable") is None


def test_a_network_interface_counts_its_carrier_changes(machine):
    """A flap is two changes; the default route names the interface; without counters it is not there."""
    name = machine.nics["nic0"].interface
    before = int(files.text(machine, f"/sys/class/net/{name}/carrier_changes"))
    machine.flapped["nic0"] = 3
    assert int(files.text(machine, f"/sys/class/net/{name}/carrier_changes")) == before + 6
    assert ports.default_interface(files.text(machine, "/proc/net/route").strip()) == name
    machine.nics["nic0"].readable = False
    assert files.names(machine, f"/sys/class/net/{name}") is None


@pytest.mark.parametrize("path", ["", "/", "/etc/shadow", "/proc", "/sys/bus/pci/devices/../../../../etc", PCI + "/x"])
def test_what_the_machine_does_not_have_is_no_file(machine, path):
    """An unknown path, and a folder, has no text."""
    assert files.text(machine, path) is None


def test_two_machines_of_different_seeds_have_their_own_ids(machine, profile):
    """Boot and machine ids belong to one machine and stay the same while it runs."""
    other = SimWorld(profile, Scenario("healthy", seed=1)).machine
    for path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        machine.advance(1)
        assert files.text(machine, path) == files.text(machine, path) != files.text(other, path)


def test_the_journal_is_one_json_object_a_line(machine):
    """Records carry boot, time since boot, priority and the PCI device as the real journal's do."""
    machine.advance(2)
    machine.say("nvidia 0000:41:00.0: x", priority=4, device=OWN)
    status, out, err = tools.journalctl(machine, (*kernel_log.JOURNAL, *kernel_log.KERNEL))
    records = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert records[0]["MESSAGE"].startswith("Linux version ")
    assert records[-1]["_KERNEL_DEVICE"] == f"+pci:{OWN}"
    assert (records[-1]["PRIORITY"], records[-1]["_TRANSPORT"]) == ("4", "kernel")
    assert int(records[-1]["__MONOTONIC_TIMESTAMP"]) == round(1e6 * (UPTIME_S + 2))
    assert {record["_BOOT_ID"] for record in records} == {files.boot_id(machine).hex}


def test_a_journal_that_may_not_be_read_is_silent(machine):
    """journalctl without permission prints nothing and ends with 0."""
    machine.host.log_readable = False
    assert tools.journalctl(machine, (*kernel_log.JOURNAL, *kernel_log.KERNEL)) == (0, "", "")


def test_udev_knows_no_other_device(machine):
    """Anything but the DMI device is refused in udevadm's words."""
    status, out, err = platform_files.udevadm(machine, ["udevadm", "info", "-p", "/sys/block/sda"])
    assert (status, out) == (1, "")
    assert "No such device" in err


@pytest.mark.parametrize("share", [0.0, 0.05, 0.79, 1.0])
def test_the_volume_group_has_the_free_share(machine, share):
    """Free bytes are whole extents of the share that is not allocated."""
    machine.host.lvm_free = share
    size, free = storage_group(machine)
    assert free / size == pytest.approx(share, abs=1e-4)
    assert free % (4 * 2**20) == 0


def storage_group(machine):
    """Return size and free bytes of the volume group as vgs prints them."""
    (group,) = json.loads(upkeep.vgs(machine, ["vgs"])[1])["report"][0]["vg"]
    return int(group["vg_size"]), int(group["vg_free"])


def test_scrapes_are_as_old_as_prometheus_is_stale(machine):
    """The last scrape moves with the machine's time, and lies an hour back when Prometheus has stopped."""
    machine.advance(100)
    fresh = json.loads(monitoring.answer(machine, "http://127.0.0.1:9090/api/v1/targets").body)["data"]["activeTargets"]
    machine.host.prometheus = "stale"
    stale = json.loads(monitoring.answer(machine, "http://127.0.0.1:9090/api/v1/targets").body)["data"]["activeTargets"]
    assert fresh[0]["lastScrape"].startswith("2026-01-01T08:01:33")
    assert stale[0]["lastScrape"] < f"{START:%Y-%m-%dT%H:%M:%S}"


def test_the_exporter_shows_the_moments_temperature(machine):
    """Each card that answers has its temperature; one that is lost or missing has none."""
    machine.gpus[0].temperature, machine.gpus[1].p.lost, machine.gpus[2].p.present = 66.4, True, False
    lines = monitoring.answer(machine, "http://127.0.0.1:9400/metrics").body.splitlines()
    temperatures = [line for line in lines if line.startswith("DCGM_FI_DEV_GPU_TEMP{")]
    assert len(temperatures) == 2
    assert temperatures[0].endswith(" 66")
    assert 'pci_bus_id="00000000:01:00.0"' in temperatures[0]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9999/", "http://127.0.0.1:3000/login", "http://127.0.0.1/metrics"])
def test_nothing_answers_elsewhere(world, url):
    """Other ports and paths are refused."""
    assert monitoring.answer(world.machine, url) is None
    with pytest.raises(Unmeasurable, match="does not answer"):
        world.answer(url, timeout=1)
