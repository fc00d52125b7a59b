"""The simulated network as files in the kernel's formats, and what ethtool prints of it.

Owns what stands in /sys/class/net and in the routing table. Everything is worked out of the model when it
is read; keeps no state, and knows nobody who reads.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from pytest_gpuaccept.sim.machine import UPTIME_S, Machine
from pytest_gpuaccept.sim.parts import Nic

NET = "/sys/class/net"
CARRIER_AT_BOOT = 2
"""Carrier changes that bringing an interface up leaves behind."""
FRAMES_PER_S = 40
"""[E] Frames that a quiet machine on a network receives, and half as many that it sends."""
ZEROES = (
    "rx_length_errors", "rx_over_errors", "rx_fifo_errors", "rx_frame_errors", "rx_missed_errors", "tx_errors",
    "tx_aborted_errors", "tx_carrier_errors", "tx_fifo_errors", "tx_heartbeat_errors", "tx_window_errors",
    "rx_dropped", "tx_dropped", "collisions",
)  # fmt: skip
"""Counters that stay at zero here."""


def networks(machine: Machine, _real: str) -> dict[str, Callable[[], str]]:
    """Return the files of every network interface, the loopback among them."""
    files: dict[str, Callable[[], str]] = {f"{NET}/lo/operstate": partial(str, "unknown\n")}
    for name, nic in machine.nics.items():
        if nic.present:
            lines = {**_own(machine, name, nic), **_statistics(machine, nic)}
            files |= {f"{NET}/{nic.interface}/{file}": partial(str, f"{line}\n") for file, line in lines.items()}
    return files


def _own(machine: Machine, name: str, nic: Nic) -> Mapping[str, str]:
    """Return the files of the link and of its device; none of an interface that cannot be read."""
    if not nic.readable:
        return {}
    number, flaps = list(machine.nics).index(name), machine.flapped[name]
    return {
        "carrier_changes": f"{CARRIER_AT_BOOT + 2 * flaps}",
        "carrier_down_count": f"{CARRIER_AT_BOOT // 2 + flaps}",
        "ifindex": f"{2 + number}",
        "operstate": "up",
        "speed": f"{nic.speed_mbps}",
        "duplex": nic.duplex,
        "mtu": f"{nic.mtu}",
        "address": f"02:00:5e:10:00:{number:02x}",
        "device/uevent": f"DRIVER={nic.driver}\nPCI_SLOT_NAME=0000:42:00.{number}",
    }


def _statistics(machine: Machine, nic: Nic) -> Mapping[str, str]:
    if not nic.readable or not nic.counters:
        return {}
    frames, bad = _since_boot(machine, FRAMES_PER_S), _bad(machine, nic.crc_errors_per_min)
    counts = dict.fromkeys(ZEROES, 0) | {"rx_errors": bad, "rx_crc_errors": bad}
    counts |= {"rx_packets": frames if nic.traffic else 0, "tx_packets": frames // 2 if nic.traffic else 0}
    return {f"statistics/{name}": f"{count}" for name, count in counts.items()}


def _since_boot(machine: Machine, per_s: float) -> int:
    return int(per_s * (UPTIME_S + machine.now))


def _bad(machine: Machine, per_min: float) -> int:
    return int(per_min * machine.now / 60)


def route(machine: Machine) -> str:
    """Return the routing table; the default route is the first interface's, addresses are in network byte order."""
    head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
    there = [nic.interface for nic in machine.nics.values()]
    rows = [head, *(f"{name}\t00000000\t010200C0\t0003\t0\t0\t{n}\t00000000\t0\t0\t0" for n, name in enumerate(there))]
    return "\n".join(f"{row:<127}" for row in rows)


def ethtool(machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:
    """Print an interface's own counters, its Energy-Efficient Ethernet, or what both ends offer."""
    nic = next((nic for nic in machine.nics.values() if nic.interface == argv[-1] and nic.present), None)
    if nic is None:
        return 75, "", "netlink error: No such device\n"
    return 0, {"-S": _counters, "--show-eee": _eee}.get(argv[1], _modes)(machine, nic), ""


def _counters(machine: Machine, nic: Nic) -> str:
    symbols = _bad(machine, nic.symbol_errors_per_min)
    return f"NIC statistics:\n     rx_packets: {_since_boot(machine, FRAMES_PER_S)}\n     rx_symbol_errors: {symbols}\n"


def _eee(_machine: Machine, nic: Nic) -> str:
    return f"EEE settings for {nic.interface}:\n\tEEE status: disabled\n\tTx LPI: disabled\n"


def _modes(_machine: Machine, nic: Nic) -> str:
    modes = [f"{mbps}baseT/Full" for mbps in (1000, 10000) if mbps <= nic.speed_mbps]
    offered = ("\n\t" + " " * 37).join(modes) or "Not reported"
    return (
        f"Settings for {nic.interface}:\n\tLink partner advertised link modes:  {offered}\n"
        f"\tLink partner advertised pause frame use: No\n\tSpeed: {nic.speed_mbps}Mb/s\n\tLink detected: yes\n"
    )
