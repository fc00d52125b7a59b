"""The ports of a network as the kernel shows them: which lie below an interface, and what each says of itself.

Owns the way from an interface down to its ports, and the parsers of the routing table, of the files in
/sys/class/net and of ethtool. Must not judge, and compares nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.since import BOOT_ID, attempt, count_of
from pytest_gpuaccept.profile import INTERFACE

NET = "/sys/class/net"
RX = ("rx_crc_errors", "rx_frame_errors", "rx_length_errors", "rx_over_errors")
TX = ("tx_carrier_errors", "tx_aborted_errors", "tx_fifo_errors", "tx_heartbeat_errors", "tx_window_errors")
ERRORS: Mapping[str, tuple[str, ...]] = {"rx_errors": RX, "tx_errors": TX}
"""Total of a direction -> its kinds, which not every driver adds to the total."""
DROPS = ("rx_dropped", "tx_dropped", "rx_missed_errors", "rx_fifo_errors")
"""What the machine, not the wire, lost: recorded, never counted as an error."""
RECEIVED = "rx_packets"
COUNTERS = (*ERRORS, *RX, *TX, *DROPS, RECEIVED)
SETTINGS = {"speed": "speed", "duplex": "duplex", "state": "operstate", "MTU": "mtu", "MAC": "address"}
"""What must not change during a run -> its file; the driver is read from the device's own folder."""
EMULATED = ("virtio_net", "vmxnet3", "hv_netvsc", "xen-netfront", "ena", "gve", "vif", "net_failover")
"""Drivers of a virtual machine's interfaces, whose link is the hypervisor's word and no cable."""
MOST_SPEED = 10_000_000
"""Mb/s beyond which a speed is none: an unknown one is -1, which old kernels write as 4294967295."""
ETHTOOL_S = 20

SYMBOLS = re.compile(r"^[ \t]+(?:\[\d+\]: )?(\S*symbol\S*): ([0-9]{1,20})$", re.MULTILINE)
PARTNER = re.compile(r"^\tLink partner advertised link modes:([^\n]*(?:\n\t {4,}[^\n]*)*)", re.MULTILINE)
EEE = re.compile(r"^\s*EEE status: ?(\S[^\n]*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Carrier:
    """One moment of a port's link; `downs` where the kernel counts these, `hidden` says why no wire can be seen."""

    boot: str
    interface: str
    index: int
    changes: int
    downs: int | None
    hidden: str


@dataclass(frozen=True, slots=True)
class Port:
    """What a port says of itself at one moment, each a value or the reason why there is none."""

    settings: Mapping[str, str | Unmeasurable]
    counters: Mapping[str, int | Unmeasurable]
    symbols: Mapping[str, int] | Unmeasurable


# which ports -----------------------------------------------------------------------------------


def interface_of(site: Site) -> str:
    """Return the profile's interface, else that of the default route; raises Unmeasurable when neither is clear."""
    facts = site.profile.device.get(site.device)
    if facts and facts.interface:
        return named(facts.interface)
    if len(site.profile.devices.get("nic", ())) > 1:
        message = (
            f"the profile has several networks and no interface for {site.device}: set device.{site.device}.interface"
        )
        raise Unmeasurable(message)
    return named(default_interface(site.world.read("/proc/net/route")))


def default_interface(table: str) -> str:
    """Parse /proc/net/route; return the interface of the default route with the lowest metric."""
    rows = re.findall(r"^(\S+)\t0{8}\t[0-9A-F]{8}\t[0-9A-F]{4}\t\d+\t\d+\t([0-9]{1,10})\t0{8}\t", table, re.MULTILINE)
    if not rows:
        message = "there is no default route: set device.nic0.interface in the profile"
        raise Unmeasurable(message)
    return str(min(rows, key=lambda row: int(row[1]))[0])


def named(name: str) -> str:
    """Return an interface's name as it is; raises Unmeasurable for what could be a path or an option."""
    if not re.fullmatch(INTERFACE, name):
        message = f"{name[:40]!r} is no name of a network interface: set device.nic0.interface in the profile"
        raise Unmeasurable(message)
    return name


def ports_below(site: Site, interface: str) -> tuple[str, ...]:
    """Return the ports that carry an interface: itself, or the ends of a bond, a bridge or a VLAN.

    A bridge also has ports of virtual machines; where one with a device is among them, these do not count.
    """
    waiting, seen, ends = [interface], set[str](), list[str]()
    while waiting:
        name = waiting.pop(0)
        if name not in seen:
            seen.add(name)
            below = _lower(site, name)
            waiting += below
            ends += [] if below else [name]
    return tuple(name for name in ends if driver_of(site, name)) or tuple(ends) or (interface,)


def _lower(site: Site, name: str) -> list[str]:
    """Return the interfaces just below one; none for one that cannot be listed."""
    entries = attempt(lambda: site.world.names(f"{NET}/{name}"))
    if isinstance(entries, Unmeasurable):
        return []
    lower = [entry.removeprefix("lower_") for entry in entries if entry.startswith("lower_")]
    if not lower and "bonding" in entries:
        lower = site.world.read(f"{NET}/{name}/bonding/slaves").split()
    return [named(below) for below in lower]


def driver_of(site: Site, name: str) -> str:
    """Return the driver of an interface's device; '' where it has no device."""
    uevent = attempt(lambda: site.world.read(f"{NET}/{name}/device/uevent"))
    match = re.search(r"^DRIVER=(\S+)$", uevent, re.MULTILINE) if isinstance(uevent, str) else None
    return match[1] if match else ""


def hidden(site: Site, name: str) -> str:
    """Say why what an interface shows is not the state of a wire, with the remedy; '' where it is."""
    driver = driver_of(site, name)
    if not driver:
        return f"{name} is virtual and shows no wire: run on the host, or set device.{site.device}.interface to a port"
    return f"{name} is a virtual machine's ({driver}) and shows no wire: run on the host" if driver in EMULATED else ""


# what a port says ------------------------------------------------------------------------------


def read_carriers(site: Site) -> tuple[Carrier, ...]:
    """Read the links of all ports below the site's interface; raises Unmeasurable when one cannot be read."""
    return tuple(read_carrier(site, port) for port in ports_below(site, interface_of(site)))


def read_carrier(site: Site, port: str) -> Carrier:
    """Read boot id and the carrier's changes since then."""
    boot, changes = site.world.read(BOOT_ID), read_count(site, port, "carrier_changes")
    downs = attempt(lambda: read_count(site, port, "carrier_down_count"))
    known = None if isinstance(downs, Unmeasurable) else downs
    return Carrier(boot, port, read_count(site, port, "ifindex"), changes, known, hidden(site, port))


def read_count(site: Site, port: str, file: str) -> int:
    """Read a count of a port; raises Unmeasurable for anything else."""
    text = site.world.read(f"{NET}/{port}/{file}")
    try:
        return count_of(text)
    except ValueError:
        message = f"{file} of {port} is {text[:40]!r}, which is no count"
        raise Unmeasurable(message) from None


def read_port(site: Site, port: str) -> Port:
    """Read the settings and counters of a port."""
    settings = {name: attempt(partial(site.world.read, f"{NET}/{port}/{file}")) for name, file in SETTINGS.items()}
    counters = {name: attempt(partial(read_count, site, port, f"statistics/{name}")) for name in COUNTERS}
    symbols = attempt(lambda: parse_symbols(ethtool(site, "-S", port)))
    return Port({**settings, "driver": driver_of(site, port) or "none"}, counters, symbols)


def parse_speed(text: str) -> int:
    """Parse a link's speed in Mb/s; raises Unmeasurable where the driver tells none."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 0 < int(text) <= MOST_SPEED:
        message = f"the driver tells no speed ({text[:40]!r})"
        raise Unmeasurable(message)
    return int(text)


# ethtool ---------------------------------------------------------------------------------------


def ethtool(site: Site, option: str, port: str) -> str:
    """Return what ethtool prints of a port; raises Unmeasurable with the remedy when there is no such tool."""
    if not site.world.has("ethtool"):
        message = "ethtool not found; install with: apt-get install ethtool"
        raise Unmeasurable(message)
    done = site.world.command(("ethtool", *filter(None, (option, port))), timeout=ETHTOOL_S)
    if done.status != 0:
        message = f"ethtool {option} {port} ended with status {done.status}: {done.stderr.strip()[:100]}"
        raise Unmeasurable(message)
    return done.stdout


def parse_symbols(text: str) -> dict[str, int]:
    """Parse `ethtool -S`: its counters of symbol errors; raises Unmeasurable when it names none."""
    found = {name: int(count) for name, count in SYMBOLS.findall(text)}
    if not found:
        message = "ethtool -S counts no symbol errors"
        raise Unmeasurable(message)
    return found


def parse_partner(text: str) -> str:
    """Parse `ethtool`: the link modes that the other end offers; raises Unmeasurable when it tells none."""
    match = PARTNER.search(text)
    modes = " ".join(match[1].split()) if match else ""
    if not modes or modes == "Not reported":
        message = "ethtool tells nothing of the other end"
        raise Unmeasurable(message)
    return modes


def parse_eee(text: str) -> str:
    """Parse `ethtool --show-eee`: the state of Energy-Efficient Ethernet; raises Unmeasurable when it tells none."""
    match = EEE.search(text)
    if not match:
        message = "ethtool tells nothing of EEE"
        raise Unmeasurable(message)
    return match[1].strip()
