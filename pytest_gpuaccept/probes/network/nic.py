"""The network links: how often one went down during the run, its speed, its errors, and whether it stayed as it was.

Owns what is compared between the start and the end of a run, and what makes "none seen" a proof: every
port below the interface, read at both ends. An event that is seen counts whatever is proven. Must not
judge.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.kernel.events import LINK, events
from pytest_gpuaccept.probes.kernel.log import KernelLog, Record, read_log, since_start
from pytest_gpuaccept.probes.network.ports import (
    DROPS,
    ERRORS,
    NET,
    RECEIVED,
    Carrier,
    Port,
    ethtool,
    interface_of,
    parse_eee,
    parse_partner,
    parse_speed,
    read_carriers,
    read_port,
)
from pytest_gpuaccept.probes.since import BOOT_ID, Seen, attempt, begun, check_same_boot

FLAPS = Metric("nic.flaps", "Link went down", "count", "nic", none_seen=True)
SPEED = Metric("nic.speed", "Speed of the link", "Mb/s", "nic", rate="port")
UNCHANGED = Metric("nic.unchanged", "Link is what it was at the start", "flag", "nic")
BAD = Metric("nic.errors", "Frames with errors", "count", "nic", none_seen=True)


@dataclass(frozen=True, slots=True)
class Network:
    """One moment of an interface and of its ports; `carriers` and `ports` are of the same ports."""

    interface: str
    carriers: tuple[Carrier, ...]
    ports: Mapping[str, Port]
    log: KernelLog | Unmeasurable

    @property
    def hidden(self) -> tuple[str, ...]:
        """Say of each port that shows no wire why not."""
        return tuple(carrier.hidden for carrier in self.carriers if carrier.hidden)


def nic_start(site: Site) -> Network:
    """Read an interface's links at the start of the run; raises Unmeasurable when one of them is not up then."""
    start = read_network(site)
    for name in dict.fromkeys([start.interface, *start.ports]):
        state = site.world.read(f"{NET}/{name}/operstate")
        if state != "up":
            message = f"{name} is {state!r} at the start of the run: plug it in, or set another interface"
            raise Unmeasurable(message)
    return replace(start, log=start.log.forgotten) if isinstance(start.log, KernelLog) else start


def read_network(site: Site) -> Network:
    """Read the site's interface now; raises Unmeasurable when a link cannot be read."""
    interface, carriers = interface_of(site), read_carriers(site)
    ports = {carrier.interface: read_port(site, carrier.interface) for carrier in carriers}
    return Network(interface, carriers, ports, attempt(lambda: read_log(site)))


def nic_link(site: Site) -> Iterator[Outcome]:
    """Yield how often a link went down since the start of the run, whether it changed, its speed and its errors."""
    start = begun(site, Network)
    check_same_boot(start.carriers[0].boot, site.world.read(BOOT_ID))
    if left := gone(site, start):
        yield site.measured(UNCHANGED, value=False, samples=2, note=left)
        raise Unmeasurable(left)
    end = read_network(site)
    proof = f"{{}} of {' and '.join(start.ports)} read at both ends of the run"
    where = {"interface": start.interface, "ports": " ".join(start.ports)}
    yield logged(site, flaps(start.carriers, end.carriers), start).outcome(
        site, FLAPS, proof.format("carrier_changes was"), where
    )
    yield unchanged(site, start, end)
    yield speed(site, start, end)
    lost = {f"{port}.{name}": n for port in start.ports for name, n in deltas(start, end, port, DROPS).items()}
    yield errors(start, end).outcome(site, BAD, proof.format("error and packet counters were"), {**where, **lost})


def gone(site: Site, start: Network) -> str:
    """Say which of the interfaces of the start are not there any more; '' when all are."""
    there = site.world.names(NET)
    missing = [name for name in dict.fromkeys([start.interface, *start.ports]) if name not in there]
    if not missing:
        return ""
    return f"{', '.join(missing)} went away during the run: find out what unplugged it or unloaded its driver"


# flaps -----------------------------------------------------------------------------------------


def flaps(start: Sequence[Carrier], end: Sequence[Carrier]) -> Seen:
    """Count how often a port's link went down; raises Unmeasurable when the machine was started anew.

    A flap is two changes, down and up; the last one may still be down.
    """
    ends, count, lacking, names = {carrier.interface: carrier for carrier in end}, 0, list[str](), list[str]()
    for first in start:
        last = ends.get(first.interface)
        if last is None:
            lacking.append(f"{first.interface} is no port of the network any more")
            continue
        check_same_boot(first.boot, last.boot)
        lacking += [first.hidden] if first.hidden else []
        if last.index != first.index or last.changes < first.changes:
            lacking.append(f"carrier_changes of {first.interface} began anew: its driver was loaded during the run")
            continue
        downs = 0 if first.downs is None or last.downs is None else last.downs - first.downs
        fell = max(downs, (last.changes - first.changes + 1) // 2)
        count += fell
        names += [first.interface] if fell else []
    return Seen(count, tuple(lacking), f"{', '.join(names)} went down" if names else "")


def logged(site: Site, seen: Seen, start: Network) -> Seen:
    """Return the flaps with what the kernel log says of them; a log that says more is believed."""
    fresh, lacking = since_start(site, start.log)
    if lacking:
        return replace(seen, note=f"{seen.note}; the kernel log cannot say more: {lacking[0]}".removeprefix("; "))
    downs = falls(fresh, {start.interface, *start.ports})
    note = f"{seen.note}; link down in the kernel log: {downs}".removeprefix("; ")
    return replace(seen, count=max(seen.count, downs), note=note)


def falls(records: Iterable[Record], names: Collection[str]) -> int:
    """Count the messages in which a driver says that the link of one of these interfaces is down."""
    return sum(event.kind == LINK and event.where in names for event in events(records))


# speed and settings ----------------------------------------------------------------------------


def unchanged(site: Site, start: Network, end: Network) -> Outcome:
    """Return whether every setting is what it was; one that differs is proven, whatever else could not be read."""
    differ, unread = list[str](), list(start.hidden)
    if start.ports.keys() != end.ports.keys():
        differ.append(f"ports {' '.join(start.ports)} -> {' '.join(end.ports)}")
    for port in start.ports.keys() & end.ports.keys():
        then, now = start.ports[port].settings, end.ports[port].settings
        unread += [f"{port}: {of[name]}" for of in (then, now) for name in of if isinstance(of[name], Unmeasurable)]
        differ += [f"{port}: {name} {then[name]} -> {now[name]}" for name in then if str(then[name]) != str(now[name])]
    if unread and not differ:
        reason = f"nothing is known to have changed, and not all was read: {'; '.join(dict.fromkeys(unread))}"
        return NotMeasured(UNCHANGED.id, site.device, reason)
    return site.measured(UNCHANGED, not differ, samples=2, note="; ".join(differ) or said(end))


def said(network: Network) -> str:
    """Write the settings of all ports."""
    return "; ".join(
        f"{name}: {', '.join(f'{key} {value}' for key, value in port.settings.items())}"
        for name, port in network.ports.items()
    )


def speed(site: Site, start: Network, end: Network) -> Outcome:
    """Return the lowest speed in Mb/s that a port had at the start or the end of the run."""
    if start.hidden:
        return NotMeasured(SPEED.id, site.device, "; ".join(start.hidden))
    try:
        speeds = [speed_of(name, port) for of in (start, end) for name, port in of.ports.items()]
    except Unmeasurable as error:
        return NotMeasured(SPEED.id, site.device, str(error))
    told = {f"{name}.{what}": text for name in end.ports for what, text in beside(site, name).items()}
    return site.measured(SPEED, min(speeds), samples=len(speeds), conditions=told)


def speed_of(name: str, port: Port) -> int:
    """Return a port's speed in Mb/s; raises Unmeasurable where it tells none."""
    text = port.settings["speed"]
    try:
        if isinstance(text, Unmeasurable):
            raise text
        return parse_speed(text)
    except Unmeasurable as error:
        message = f"{name}: {error}: look with ethtool {name}, or set device.nic0.interface to a wired port"
        raise Unmeasurable(message) from None


def beside(site: Site, port: str) -> dict[str, str]:
    """Return what ethtool says of the other end and of EEE, or why it says nothing; recorded only."""
    partner = attempt(lambda: parse_partner(ethtool(site, "", port)))
    eee = attempt(lambda: parse_eee(ethtool(site, "--show-eee", port)))
    return {"link partner": str(partner), "EEE": str(eee)}


# errors ----------------------------------------------------------------------------------------


def errors(start: Network, end: Network) -> Seen:
    """Count the frames with errors of all ports; not to have received any proves nothing."""
    parts = [_errors_of(start, end, port) for port in start.ports]
    lacking = (*start.hidden, *(reason for part in parts for reason in part.lacking))
    return Seen(sum(part.count for part in parts), lacking, "; ".join(part.note for part in parts if part.note))


def _errors_of(start: Network, end: Network, port: str) -> Seen:
    kinds = [kind for kinds in ERRORS.values() for kind in kinds]
    fresh = deltas(start, end, port, (*ERRORS, *kinds, RECEIVED))
    unread = [reason for reason in fresh.values() if isinstance(reason, str)]
    lacking = [unread[0] + (f" (and {len(unread) - 1} more)" if unread[1:] else "")] if unread else []
    if fresh[RECEIVED] == 0:
        lacking.append(f"{port} received nothing during the run, so no error could show: let it have traffic")
    seen = {name: count for name, count in fresh.items() if isinstance(count, int) and count and name != RECEIVED}
    count = sum(max(seen.get(total, 0), sum(seen.get(kind, 0) for kind in of)) for total, of in ERRORS.items())
    symbols, remark = symbol_errors(start, end, port)
    told = [f"{name} {n}" for name, n in {**seen, **symbols}.items()] + ([remark] if remark else [])
    return Seen(count + max(symbols.values(), default=0), tuple(lacking), f"{port}: {', '.join(told)}" if told else "")


def deltas(start: Network, end: Network, port: str, names: Iterable[str]) -> dict[str, int | str]:
    """Return by how much each counter of a port grew, or why that is not known."""
    first, last = start.ports[port], end.ports.get(port)
    if last is None:
        return dict.fromkeys(names, f"{port} is no port of the network any more")
    return {name: _grown(port, name, first.counters[name], last.counters[name]) for name in names}


def _grown(port: str, name: str, first: int | Unmeasurable, last: int | Unmeasurable) -> int | str:
    if isinstance(first, Unmeasurable) or isinstance(last, Unmeasurable):
        return str(first if isinstance(first, Unmeasurable) else last)
    return last - first if last >= first else f"{name} of {port} went down: its driver was loaded anew during the run"


def symbol_errors(start: Network, end: Network, port: str) -> tuple[dict[str, int], str]:
    """Return the symbol errors that ethtool counted during the run by name, and why it says nothing."""
    first, last = start.ports[port].symbols, end.ports[port].symbols if port in end.ports else {}
    if isinstance(first, Unmeasurable) or isinstance(last, Unmeasurable):
        return {}, f"symbol errors not read, {first if isinstance(first, Unmeasurable) else last}"
    grown = {name: last[name] - first[name] for name in first.keys() & last.keys()}
    return {name: n for name, n in grown.items() if n > 0}, ""


PROBES = (Probe("nic.link", "final", "nic", (FLAPS, UNCHANGED, SPEED, BAD), nic_link, before=nic_start),)
