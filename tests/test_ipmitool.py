"""A real ipmitool asks a controller that OpenIPMI simulates, and the probe reads what it prints."""

import os
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import replace

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.services import bmc
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import LiveWorld

pytestmark = pytest.mark.real_server

TOOLS = {"ipmitool": "ipmitool", "ipmi_sim": "openipmi"}
"""What is needed -> the package that has it."""
DEADLINE_S = 30.0
TEMPERATURE, FAN, SUPPLY = 1, 4, 8
THRESHOLDS, DISCRETE = 1, 0x6F
DEGREES, RPM, ENTRIES = 1, 18, 8
LAN = """
name "bmc"
set_working_mc 0x20
startlan 1
  addr 127.0.0.1 {lan}
  priv_limit admin
  allowed_auths_admin none md5
  guid a123456789abcdefa123456789abcdef
endlan
console 127.0.0.1 {console}
user 2 true "tester" "test" admin 10 none md5
"""
BOARD = """
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
sel_enable 0x20 {entries} 0x0a
sensor_add 0x20 0 1 {temperature} {thresholds}
sensor_set_value 0x20 0 1 45 0
sensor_set_threshold 0x20 0 1 settable 111000 0x64 0x5a 0x55 0 0 0
sensor_set_event_support 0x20 0 1 enable scanning per-state {upper} {upper} {upper} {upper}
{sdr1}
sensor_add 0x20 0 2 {fan} {thresholds}
sensor_set_value 0x20 0 2 15 0
sensor_set_threshold 0x20 0 2 settable 000111 0 0 0 1 3 5
sensor_set_event_support 0x20 0 2 enable scanning per-state {lower} {lower} {lower} {lower}
{sdr2}
sensor_add 0x20 0 3 {supply} {discrete}
sensor_set_bit 0x20 0 3 0 1 0
sensor_set_event_support 0x20 0 3 enable scanning per-state {states} {states} {states} {states}
{sdr3}
mc_enable 0x20
"""
CHILL = "sensor_set_value 0x20 0 1 45 0"
STALL, TURN = "sensor_set_value 0x20 0 2 2 1", "sensor_set_value 0x20 0 2 15 0"
FAIL, MEND = "sensor_set_bit 0x20 0 3 1 1 1", "sensor_set_bit 0x20 0 3 1 0 0"


def record(number, kind, reading, name, *, entity, unit=0, factor=1):
    """Return the command that adds a sensor's full record, after section 43.1 of the IPMI specification."""
    masks = [0x00, 0x70, 0x00, 0x70, 0x3F, 0x3F] if reading == THRESHOLDS else [0xFF, 0, 0xFF, 0, 0xFF, 0]
    body = [0x20, 0, number, entity, 1, 0x7F, 0x68, kind, reading, *masks, 0, unit, 0, 0, factor, 0]
    body += [0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0, *[0] * 6, 1, 1, 0, 0, 0, 0xC0 | len(name), *name.encode()]
    return "main_sdr_add 0x20 " + " ".join(f"0x{byte:02x}" for byte in (number, 0, 0x51, 1, len(body), *body))


def board():
    """Return the commands that make a controller with a thermometer, a fan and a power supply."""
    return BOARD.format(
        entries=ENTRIES, temperature=TEMPERATURE, fan=FAN, supply=SUPPLY, thresholds=THRESHOLDS, discrete=DISCRETE,
        upper="000111111000000", lower="000000000111111", states="000000000001111",
        sdr1=record(1, TEMPERATURE, THRESHOLDS, "CPU1 Temp", entity=3, unit=DEGREES),
        sdr2=record(2, FAN, THRESHOLDS, "FAN1", entity=29, unit=RPM, factor=100),
        sdr3=record(3, SUPPLY, DISCRETE, "PSU1 Status", entity=10),
    )  # fmt: skip


def free_port(kind):
    """Return a port on loopback that nobody has right now."""
    with socket.socket(type=kind) as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Remote(LiveWorld):
    """This computer, whose ipmitool asks the simulated controller."""

    def __init__(self, port):
        """Take the controller's port."""
        super().__init__()
        self.more = ("-I", "lan", "-H", "127.0.0.1", "-p", str(port), "-U", "tester", "-P", "test")

    def command(self, argv, *, timeout, watch=None):
        """Run a command; ipmitool with the controller's address."""
        more = self.more if argv[0] == "ipmitool" else ()
        return super().command((argv[0], *more, *argv[1:]), timeout=timeout, watch=watch)


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    """Return the ports of a running controller: where ipmitool asks, where its hardware is changed."""
    if missing := [package for tool, package in TOOLS.items() if shutil.which(tool) is None]:
        (pytest.fail if "CI" in os.environ else pytest.skip)(f"not installed: apt-get install {' '.join(missing)}")
    folder = tmp_path_factory.mktemp("bmc")
    lan, console = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
    (folder / "lan.conf").write_text(LAN.format(lan=lan, console=console))
    (folder / "board").write_text(board())
    (folder / "state").mkdir()
    argv = ["ipmi_sim", "-c", "lan.conf", "-f", "board", "-s", "state", "-n"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
        try:
            until(lambda: server.poll() is not None or answers(lan))
            assert server.poll() is None, (folder / "log").read_text()
            yield lan, console
        finally:
            server.kill()
            server.wait(timeout=30)


def until(there):
    """Look until something is there, and return it."""
    end = time.monotonic() + DEADLINE_S
    while not (found := there()):
        assert time.monotonic() < end, "it did not come in time"
        threading.Event().wait(0.05)
    return found


def answers(port):
    """Say whether the controller answers."""
    try:
        return Remote(port).command(("ipmitool", "mc", "info"), timeout=20).status == 0
    except Unmeasurable:
        return False


def change(ports, *commands):
    """Change the controller's hardware, and wait until it took each command."""
    with socket.create_connection(("127.0.0.1", ports[1]), timeout=DEADLINE_S) as console:
        for command in commands:
            told(console, b"> ")
            console.sendall(f"{command}\n".encode())
        told(console, b"> ")


def told(console, end):
    """Return what the console says up to its prompt."""
    said = b""
    while not said.rstrip(b" ").endswith(end.rstrip(b" ")):
        part = console.recv(4096)
        assert part, said
        said += part
    return said


@pytest.fixture
def site(ports, profile):
    """Return the site of a machine with this controller, healthy, its log empty, and the reading of its start."""
    change(ports, CHILL, TURN, MEND)
    world = Remote(ports[0])
    assert world.command(("ipmitool", "sel", "clear"), timeout=20).status == 0
    made = Site(world, profile, "host", {}, lambda name, text: "digest")
    until(lambda: "Entries          : 0" in bmc.asked(made, "sel", "info"))
    return replace(made, before=bmc.start(made))


def look(site):
    """Return the outcomes by the end of their names."""
    return {outcome.metric.removeprefix("bmc."): outcome for outcome in bmc.controller(site)}


def test_a_healthy_controller_has_nothing_to_tell(site):
    """An empty log and three sensors that read are zeroes with a proof."""
    found = look(site)
    assert (found["events"].value, found["sensors"].value) == (0, 0)
    assert found["sensors"].proof == "3 of 3 sensors read"


def test_a_fan_that_slows_down_is_critical_and_logged(site, ports):
    """Its sensor crosses a threshold, and the controller writes down each."""
    change(ports, STALL)
    found = look(site)
    assert (found["sensors"].value, found["sensors"].note) == (1, "FAN1 lcr, 200 RPM")
    assert found["events"].value == 2
    assert "Fan FAN1 | Lower Critical going low" in found["events"].note


def test_a_supply_that_failed_is_seen_though_its_sensor_is_ok(site, ports):
    """ipmitool prints `ok` for every sensor without thresholds."""
    change(ports, FAIL)
    found = look(site)
    assert found["sensors"].note == "PSU1 Status Presence detected, Failure detected"
    assert "Power Supply PSU1 Status | Failure detected | Asserted" in found["events"].note


def test_a_log_that_is_full_proves_nothing(site, ports):
    """The controller takes no entry more, and says so."""
    change(ports, *(command for _ in range(ENTRIES) for command in (FAIL, MEND)))
    full = replace(site, before=bmc.start(site))
    assert len(full.before.log.entries) == ENTRIES
    change(ports, STALL)
    assert "the event log is full" in look(full)["events"].reason


def test_a_log_that_is_cleared_in_the_run_proves_nothing(site, ports):
    """What the start had and the end has not is told."""
    change(ports, FAIL)
    began = replace(site, before=bmc.start(site))
    site.world.command(("ipmitool", "sel", "clear"), timeout=20)
    until(lambda: "are gone" in getattr(look(began)["events"], "reason", ""))


def test_the_simulated_board_prints_as_the_real_tool(site, profile):
    """Whatever key or column the simulated board prints, the real tool prints too."""
    made = SimWorld(profile, Scenario("healthy"))
    keys = [
        {line.partition(":")[0] for line in printed(world, "sel", "info").splitlines() if ":" in line}
        for world in (made, site.world)
    ]
    columns = [
        {line.count("|") for line in printed(world, "sdr", "elist").splitlines()} for world in (made, site.world)
    ]
    assert keys[0] <= keys[1]
    assert columns == [{4}, {4}]


def printed(world, *words):
    """Return what a world's ipmitool prints."""
    return world.command(("ipmitool", *words), timeout=20).stdout


def test_a_board_without_the_meter_says_so(site):
    """This controller has no DCMI, like most boards with a plain power supply."""
    with pytest.raises(Unmeasurable, match=r"ipmitool dcmi ended with status 1: DCMI request failed because: Invalid"):
        bmc.asked(site, "dcmi", "power", "reading")


def test_a_machine_without_a_device_says_what_it_takes(site, monkeypatch):
    """The local interface of this computer, if it has none, is refused with the tool's own words."""
    monkeypatch.setattr(site.world, "more", ("-I", "open", "-d", "77"))
    with pytest.raises(Unmeasurable, match=r"Could not open device at /dev/ipmi77.*: it takes root"):
        bmc.asked(site, "sel", "info")
