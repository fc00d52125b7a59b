"""A link's event that is seen counts; "none seen" counts only where every port and a wire were read at both ends."""

import json
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Interval, Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.kernel.log import Record
from pytest_gpuaccept.probes.network import nic, ports
from pytest_gpuaccept.readings import decode, encode
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import Completed, LiveWorld

FUZZ = settings(deadline=None, database=None)
HEALTHY = {"nic.flaps": 0, "nic.unchanged": True, "nic.speed": 10_000, "nic.errors": 0}
ZERO = dict.fromkeys([f"statistics/{name}" for name in ports.COUNTERS], "0")
PORT = {
    "carrier_changes": "2", "carrier_down_count": "1", "ifindex": "2", "operstate": "up", "speed": "10000",
    "duplex": "full", "mtu": "1500", "address": "02:00:5e:10:00:00", "device/uevent": "DRIVER=ixgbe\n",
    **ZERO, "statistics/rx_packets": "7",
}  # fmt: skip
VIRTUAL = {file: text for file, text in PORT.items() if not file.startswith("device")}
ETHTOOL_S = """NIC statistics:
     rx_packets: 10
     rx_symbol_err: 3
     [0]: rx_symbol_error_phy: 4
     rx_crc_errors: 9
"""
SETTINGS = """Settings for eno1:
\tSupported ports: [ TP ]
\tLink partner advertised link modes:  1000baseT/Full
\t                                     10000baseT/Full
\tLink partner advertised pause frame use: Symmetric
\tSpeed: 10000Mb/s
"""


@pytest.fixture
def world(profile):
    """Return a healthy simulated machine of the commissioned kind."""
    return SimWorld(profile, Scenario("healthy"))


def site(world, profile, device="nic0"):
    """Return what a probe of `device` is given."""
    return Site(world, profile, device, {}, lambda name, text: "digest")


def whole_run(own, meanwhile=lambda: None):
    """Read the start, let something happen, then measure; return the outcomes by metric."""
    start = nic.nic_start(own)
    meanwhile()
    return {outcome.metric: outcome for outcome in nic.nic_link(replace(own, before=start))}


def minute(world, profile, meanwhile=lambda: None):
    """Burn every GPU of the simulated machine for a minute between start and end."""

    def burn():
        with world.machine.runs("burn", dict.fromkeys(range(4), 1.0)):
            world.machine.advance(60)
        meanwhile()

    return whole_run(site(world, profile), burn)


def values(outcomes):
    """Return the values of measurements, the reasons of absences."""
    return {m: o.value if isinstance(o, Measurement) else o.reason for m, o in outcomes.items()}


class Folder:
    """A live world over a folder in which interfaces are written down."""

    def __init__(self, root):
        """Take the folder; the machine has a boot."""
        self.root, self.world = root, LiveWorld(root)
        self.world.has = lambda tool: False
        self.world.command = self._command
        self.write(ports.BOOT_ID, "0123abcd-0123-4bcd-8123-0123456789ab")

    @staticmethod
    def _command(argv, **_more):
        message = "no such tool here"
        raise Unmeasurable(message)

    def write(self, path, text):
        """Write a file of the machine."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def add(self, name, files=PORT, index="2", **changed):
        """Write an interface's files."""
        for file, text in {**files, "ifindex": index, **changed}.items():
            self.write(f"{ports.NET}/{name}/{file}", text)

    def below(self, upper, *names):
        """Say that interfaces carry another one."""
        for name in names:
            (self.root / "sys/class/net" / upper / f"lower_{name}").symlink_to(f"../{name}")

    def site(self, interface="eno1"):
        """Return a probe's site whose profile names an interface."""
        profile = SimpleNamespace(device={"nic0": SimpleNamespace(interface=interface)}, devices={"nic": ("nic0",)})
        return site(self.world, profile)


@pytest.fixture
def machine(tmp_path):
    """Return a machine with one port."""
    made = Folder(tmp_path)
    made.add("eno1")
    return made


def traffic(machine, *names, frames="9"):
    """Let frames arrive."""
    for name in names:
        machine.write(f"{ports.NET}/{name}/statistics/rx_packets", frames)


# a run ---------------------------------------------------------------------------------------------------


def test_a_quiet_run_is_proven_quiet(world, profile):
    """Every value is that of a healthy link; zeros name the port that was read and the other end is recorded."""
    found = minute(world, profile)
    assert values(found) == HEALTHY
    assert all("eno1" in found[metric].proof for metric in ("nic.flaps", "nic.errors"))
    assert found["nic.speed"].conditions == {
        "eno1.link partner": "1000baseT/Full 10000baseT/Full", "eno1.EEE": "disabled",
    }  # fmt: skip
    assert "driver ixgbe" in found["nic.unchanged"].note


@pytest.mark.parametrize("flaps", [1, 3])
def test_a_flap_is_a_link_that_went_down(world, profile, flaps):
    """Down and up are two changes of the carrier and one flap; the kernel log says so too."""
    world.machine.nics["nic0"].flaps = flaps
    found = minute(world, profile)["nic.flaps"]
    assert found.value == flaps
    assert f"link down in the kernel log: {flaps}" in found.note


def test_what_the_log_alone_shows_counts(world, profile):
    """A driver that says the link is down is believed, whatever its counter says; others' links do not count."""
    lines = ["igb 0000:42:00.0 eno1: igb: eno1 NIC Link is Down", "r8169 0000:05:00.0 eno11: Link is Down",
             "IPv6: ADDRCONF(NETDEV_UP): eno1: link is not ready"]  # fmt: skip
    found = minute(world, profile, lambda: [world.machine.say(line) for line in lines])
    assert found["nic.flaps"].value == 1


def test_a_log_that_cannot_be_read_leaves_the_counters(world, profile):
    """The kernel log corroborates; without it the counters still prove, and the note says so."""
    world.machine.host.log_readable = False
    found = minute(world, profile)["nic.flaps"]
    assert (found.value, bool(found.proof)) == (0, True)
    assert "the kernel log cannot say more" in found.note


@pytest.mark.parametrize(
    ("parameter", "value", "said"),
    [("speed_mbps", 1000, "speed 10000 -> 1000"), ("duplex", "half", "duplex full -> half"),
     ("mtu", 9000, "MTU 1500 -> 9000"), ("driver", "ixgbevf", "driver ixgbe -> ixgbevf")],
)  # fmt: skip
def test_a_link_that_changed_is_told(world, profile, parameter, value, said):
    """What differs at the end is named with both values; the speed is the lower one."""
    found = minute(world, profile, lambda: setattr(world.machine.nics["nic0"], parameter, value))
    assert found["nic.unchanged"].value is False
    assert said in found["nic.unchanged"].note
    assert found["nic.speed"].value == (1000 if parameter == "speed_mbps" else 10_000)


def test_an_interface_that_went_away_changed(world, profile):
    """What is gone has changed, its flaps and errors have a reason."""
    start = nic.nic_start(site(world, profile))
    world.machine.nics["nic0"].present = False
    outcomes = nic.nic_link(replace(site(world, profile), before=start))
    first = next(outcomes)
    assert (first.metric, first.value) == ("nic.unchanged", False)
    with pytest.raises(Unmeasurable, match="eno1 went away during the run"):
        next(outcomes)


def test_damaged_frames_are_counted(world, profile):
    """Errors of the kernel's counters and of ethtool's count, each named."""
    world.machine.nics["nic0"].crc_errors_per_min = 30.0
    world.machine.nics["nic0"].symbol_errors_per_min = 5.0
    found = minute(world, profile)["nic.errors"]
    assert (found.value, found.note) == (35, "eno1: rx_errors 30, rx_crc_errors 30, rx_symbol_errors 5")


@pytest.mark.parametrize(("parameter", "said"), [("counters", "rx_errors cannot be read"), ("traffic", "received not")])
def test_errors_that_could_not_show_are_no_zero(world, profile, parameter, said):
    """Without counters, and without a frame, none seen is an absence."""
    setattr(world.machine.nics["nic0"], parameter, False)
    found = values(minute(world, profile))
    assert said in found["nic.errors"]
    assert {**found, "nic.errors": 0} == HEALTHY


def test_a_virtual_machines_link_proves_nothing(world, profile):
    """A hypervisor's link is no wire: every line is absent and says where to run."""
    world.machine.nics["nic0"].driver = "virtio_net"
    assert all("run on the host" in str(value) for value in values(minute(world, profile)).values())


def test_a_restart_during_the_run_measures_nothing(world, profile):
    """Counts of another boot are not compared."""
    with pytest.raises(Unmeasurable, match="started anew"):
        minute(world, profile, lambda: setattr(world.machine, "seed", "another boot"))


def test_without_a_start_there_is_no_difference(world, profile):
    """A start that was not read, or could not be, is the reason of every absence."""
    own = site(world, profile)
    with pytest.raises(Unmeasurable, match="no reading from the start"):
        next(nic.nic_link(own))
    with pytest.raises(Unmeasurable, match="as at the start"):
        next(nic.nic_link(replace(own, before=Unmeasurable("as at the start"))))


def test_a_link_without_counter_is_no_measurement(world, profile):
    """An interface that cannot be read has no flaps, not zero."""
    world.machine.nics["nic0"].readable = False
    with pytest.raises(Unmeasurable, match="carrier_changes"):
        nic.nic_start(site(world, profile))


def test_a_resumed_run_goes_on_from_the_start(world, profile):
    """What was read at the start survives being written down."""
    start = nic.nic_start(site(world, profile))
    assert decode(json.loads(json.dumps(encode(start))), nic.nic_start) == start


# the kernel's files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "flaps"), [(1, 1), (2, 1), (5, 3)])
def test_a_link_that_stays_down_went_down(machine, changes, flaps):
    """A last change without its counterpart is a link that went down and is down still."""
    found = whole_run(machine.site(), lambda: machine.add("eno1", carrier_changes=f"{2 + changes}"))
    assert found["nic.flaps"].value == flaps


def test_the_kernels_own_count_of_losses_is_believed(machine):
    """Where carrier_down_count grew more than the changes say, it counts."""
    found = whole_run(machine.site(), lambda: machine.add("eno1", carrier_changes="4", carrier_down_count="4"))
    assert found["nic.flaps"].value == 3


def test_a_kernel_without_that_count_has_the_changes(tmp_path):
    """Kernels before 4.16 have no carrier_down_count."""
    old = Folder(tmp_path)
    old.add("eno1", {file: text for file, text in PORT.items() if file != "carrier_down_count"})
    assert whole_run(old.site())["nic.flaps"].value == 0


@pytest.mark.parametrize("changed", [{"carrier_changes": "0"}, {"index": "9"}])
def test_a_driver_that_was_loaded_anew_measures_nothing(machine, changed):
    """A counter that went down, or another interface of the same name, has forgotten what it counted."""
    found = whole_run(machine.site(), lambda: machine.add("eno1", **changed))
    assert "began anew" in values(found)["nic.flaps"]


def test_error_counters_that_went_down_are_no_zero(machine):
    """A counter that went down has forgotten its errors."""
    machine.write(f"{ports.NET}/eno1/statistics/rx_errors", "5")
    found = whole_run(machine.site(), lambda: machine.add("eno1"))
    assert "rx_errors of eno1 went down" in values(found)["nic.errors"]


def test_kinds_that_the_total_leaves_out_are_counted(machine):
    """Some drivers count a kind and not the total; errors are counted once, drops are recorded apart."""

    def meanwhile():
        traffic(machine, "eno1")
        for name, count in {"rx_errors": 2, "rx_crc_errors": 2, "rx_frame_errors": 1, "rx_dropped": 8}.items():
            machine.write(f"{ports.NET}/eno1/statistics/{name}", f"{count}")

    found = whole_run(machine.site(), meanwhile)["nic.errors"]
    assert (found.value, found.conditions["eno1.rx_dropped"]) == (3, 8)
    assert "install ethtool" in found.note


def test_errors_beside_a_counter_that_is_missing_are_at_least(machine):
    """What was seen counts though not everything was read."""
    (machine.root / "sys/class/net/eno1/statistics/tx_errors").unlink()
    found = whole_run(machine.site(), lambda: machine.write(f"{ports.NET}/eno1/statistics/rx_errors", "2"))
    assert found["nic.errors"].value == Interval(2, None)


@pytest.mark.parametrize(
    ("file", "text", "said"), [("operstate", "down", "'down'"), ("carrier_changes", "", "no count")]
)
def test_a_link_that_is_down_or_garbled_has_no_start(machine, file, text, said):
    """A link that is down cannot go down, and what is no number is no count."""
    machine.write(f"{ports.NET}/eno1/{file}", text)
    with pytest.raises(Unmeasurable, match=said):
        nic.nic_start(machine.site())


@pytest.mark.parametrize("text", ["-1", "4294967295", "0", "", "fast"])
def test_a_speed_that_nobody_tells_is_absent(machine, text):
    """An unknown speed is -1, whichever way it is written, and never a number."""
    machine.write(f"{ports.NET}/eno1/speed", text)
    assert "tells no speed" in values(whole_run(machine.site()))["nic.speed"]


def test_an_interface_that_tells_no_setting_is_not_unchanged(machine):
    """Settings that cannot be read are no proof that nothing changed."""
    (machine.root / "sys/class/net/eno1/duplex").unlink()
    assert "not all was read" in values(whole_run(machine.site()))["nic.unchanged"]


# bonds, bridges, names -----------------------------------------------------------------------------------


def test_a_bond_is_as_good_as_its_worst_port(machine):
    """Flaps of one port count though the bond stays up; the speed is that of the slowest port."""
    machine.add("eno2", index="3", speed="1000")
    machine.add("bond0", VIRTUAL, index="4", speed="11000")
    machine.below("bond0", "eno1", "eno2")
    found = whole_run(machine.site("bond0"), lambda: machine.add("eno2", index="3", carrier_changes="4", speed="1000"))
    assert (found["nic.flaps"].value, found["nic.speed"].value) == (1, 1000)
    assert found["nic.flaps"].note.startswith("eno2 went down")


def test_a_bonds_ports_are_found_in_its_own_list(machine):
    """Where the kernel links no lower interfaces, the bonding driver's list names them."""
    machine.add("bond0", VIRTUAL, index="4")
    machine.write(f"{ports.NET}/bond0/bonding/slaves", "eno1")
    assert ports.ports_below(machine.site(), "bond0") == ("eno1",)


def test_a_vlan_on_a_bridge_leads_to_the_port(machine):
    """Interfaces are followed down to the port; a virtual machine's end of a bridge does not count."""
    for name, *below in (("vnet0",), ("br0", "eno1", "vnet0"), ("br0.9", "br0")):
        machine.add(name, VIRTUAL)
        machine.below(name, *below)
    assert ports.ports_below(machine.site(), "br0.9") == ("eno1",)


def test_a_ring_of_interfaces_ends(machine):
    """Interfaces that lie below each other are visited once."""
    machine.add("a", VIRTUAL)
    machine.add("b", VIRTUAL)
    machine.below("a", "b")
    machine.below("b", "a")
    assert ports.ports_below(machine.site(), "a") == ("a",)


def test_a_port_that_left_its_bond_is_told(machine):
    """A bond that lost a port has changed, and that port's silence proves nothing."""
    machine.add("eno2", index="3")
    machine.add("bond0", VIRTUAL, index="4")
    machine.below("bond0", "eno1", "eno2")
    left = machine.root / "sys/class/net/bond0/lower_eno2"
    found = whole_run(machine.site("bond0"), lambda: (traffic(machine, "eno1"), left.unlink()))
    assert found["nic.unchanged"].note == "ports eno1 eno2 -> eno1"
    assert all("eno2 is no port" in values(found)[metric] for metric in ("nic.flaps", "nic.errors"))


def test_a_virtual_interface_proves_no_silence_and_still_shows_a_flap(tmp_path):
    """A container's interface has no wire: none seen is absent, a flap that is seen counts at least."""
    inside = Folder(tmp_path)
    inside.add("eth0", VIRTUAL)
    quiet = values(whole_run(inside.site("eth0"), lambda: traffic(inside, "eth0")))
    assert all("device.nic0.interface" in str(value) for value in quiet.values())
    loud = whole_run(inside.site("eth0"), lambda: inside.add("eth0", VIRTUAL, carrier_changes="4"))
    assert loud["nic.flaps"].value == Interval(1, None)


def test_the_profiles_interface_goes_before_the_default_route(world):
    """The interface is the profile's, else the default route's, and never guessed for one of several."""
    named = {"nic1": SimpleNamespace(interface="enp5s0")}
    profile = SimpleNamespace(device=named, devices={"nic": ("nic0", "nic1")})
    assert ports.interface_of(site(world, profile, "nic1")) == "enp5s0"
    with pytest.raises(Unmeasurable, match=r"device\.nic0\.interface"):
        ports.interface_of(site(world, profile, "nic0"))


@pytest.mark.parametrize("name", ["", ".", "..", "../eth0", "a/b", "-S", "eth0\n", "a b", "x" * 16, "é"])
def test_a_name_that_could_be_a_path_or_an_option_is_refused(name):
    """What is no interface's name never becomes a path or an argument."""
    with pytest.raises(Unmeasurable, match="no name of a network interface"):
        ports.named(name)


def test_the_default_route_with_the_lowest_metric_is_taken():
    """Routes to a network are no default, and of two defaults the preferred one carries the traffic."""
    row = "{}\t{}\t010200C0\t0003\t0\t0\t{}\t{}\t0\t0\t0     \n".format
    table = "Iface\tDestination\tGateway \tFlags\n" + row("lan0", "000200C0", 0, "00FFFFFF")
    defaults = row("wlan0", "00000000", 600, "00000000") + row("eno2", "00000000", 100, "00000000")
    assert ports.default_interface(table + defaults) == "eno2"
    with pytest.raises(Unmeasurable, match="no default route"):
        ports.default_interface(table)


# ethtool -------------------------------------------------------------------------------------------------


def test_ethtools_words_are_understood():
    """Symbol errors by name, the modes of the other end on one line, the state of EEE."""
    assert ports.parse_symbols(ETHTOOL_S) == {"rx_symbol_err": 3, "rx_symbol_error_phy": 4}
    assert ports.parse_partner(SETTINGS) == "1000baseT/Full 10000baseT/Full"
    assert ports.parse_eee("EEE settings for eno1:\n\tEEE status: enabled - inactive\n") == "enabled - inactive"


@pytest.mark.parametrize("parse", [ports.parse_symbols, ports.parse_partner, ports.parse_eee])
def test_an_ethtool_that_tells_nothing_is_no_zero(parse):
    """An empty answer, and one that says that nothing is known, is an absence."""
    for text in ("", "NIC statistics:\n", "\tLink partner advertised link modes:  Not reported\n"):
        with pytest.raises(Unmeasurable, match="ethtool"):
            parse(text)


def test_an_ethtool_that_fails_says_why(machine):
    """The tool's own words are the reason."""
    machine.world.has = lambda tool: True
    machine.world.command = lambda argv, **_: Completed(argv, 75, "", "netlink error: No such device", 0.0)
    with pytest.raises(Unmeasurable, match="No such device"):
        ports.ethtool(machine.site(), "-S", "eno1")


TEXTS = st.lists(st.one_of(st.text(), st.sampled_from([ETHTOOL_S, SETTINGS, "\tEEE status: on", "10"]))).map("\n".join)


@pytest.mark.parametrize(
    "parse",
    [
        ports.default_interface,
        ports.parse_speed,
        ports.parse_symbols,
        ports.parse_partner,
        ports.parse_eee,
        ports.named,
    ],
)
@FUZZ
@given(text=TEXTS)
def test_any_text_is_a_reading_or_no_measurement(parse, text):
    """A parser answers with something or says why not, and never with nothing."""
    with suppress(Unmeasurable):
        assert parse(text)


@FUZZ
@given(messages=st.lists(st.text()), extra=st.integers(0, 3))
def test_any_log_is_counted(messages, extra):
    """Whatever else the log holds, each loss in it is counted."""
    said = [*messages, *["ixgbe 0000:42:00.0 eno1: NIC Link is Down"] * extra]
    records = [Record(i * 1000000, 4, text) for i, text in enumerate(said)]
    assert nic.falls(records, {"eno1"}) >= extra
