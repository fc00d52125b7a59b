"""What ends the load of a card at once: an Xid that is fatal, or a fatal error of its link.

Owns the look at both while loads run. What they mean for the contract is judged at the end of the run.
"""

from collections.abc import Iterable, Mapping
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import Card
from pytest_gpuaccept.probes.kernel import aer, xid
from pytest_gpuaccept.probes.kernel.log import KernelLog, Record, new_records, read_log
from pytest_gpuaccept.probes.since import attempt

FATAL = "fatal"
FILE = "aer_dev_fatal"
LOG_S = 5.0
"""Seconds between two looks at the kernel log: each starts a process."""


class Fatal:
    """Watches the links and the log from now on; what cannot be read stops nothing."""

    def __init__(self, site: Site, cards: Mapping[str, Card]) -> None:
        """Read where counters and log stand."""
        self._site = site
        self._above = {device: self._hops(own) for device, own in cards.items()}
        self._counts = {device: self._count(device) for device in self._above}
        log = attempt(self._log)
        self._then = log.forgotten if isinstance(log, KernelLog) else log
        self._due = site.world.clock.monotonic() + LOG_S

    def look(self) -> dict[str, str]:
        """Return the cards whose link had a fatal error, or that have a fatal Xid, each with what it was."""
        found = {}
        for device, before in self._counts.items():
            if before is not None and (now := self._count(device)) is not None and now > before:
                found[device] = f"stopped: the PCIe link of {device} had a fatal error"
        if self._site.world.clock.monotonic() >= self._due:
            self._due = self._site.world.clock.monotonic() + LOG_S
            log = attempt(self._log)
            found |= self._in_log(new_records(self._then, log)[0])
            self._then = log.forgotten if isinstance(log, KernelLog) else self._then
        return found

    def _in_log(self, fresh: Iterable[Record]) -> dict[str, str]:
        found = {}
        for code, bus in (seen for record in fresh for seen in xid.in_message(record.message)):
            for device, above in self._above.items():
                if above and aer.same_slot(bus, above[0]) and xid.known(code).kind == FATAL:
                    found[device] = f"stopped: {device} has {xid.known(code)}"
        return found

    def _log(self) -> KernelLog:
        return read_log(self._site, settle=False)

    def _hops(self, own: Card) -> tuple[str, ...]:
        address = attempt(partial(aer.normal_address, own.bus_id))
        return aer.hops(self._site, address) if isinstance(address, str) else ()

    def _count(self, device: str) -> int | None:
        """Return the most that an end of the card's link has counted, None where neither counts."""
        read = [attempt(partial(aer.read_counters, self._site, end, FILE)) for end in self._above[device][:2]]
        return max((counts["TOTAL"] for counts in read if not isinstance(counts, Unmeasurable)), default=None)
