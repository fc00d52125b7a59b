"""PCIe errors (AER): what both ends of a link count, what the kernel log says, and whether anybody listens.

Owns the counters in sysfs, three generations of log lines, the proof that an error would be seen, and what
an error says of the direction that is damaged. Must not judge.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.kernel.config_space import reporting
from pytest_gpuaccept.probes.kernel.log import CUT_LOG, KernelLog
from pytest_gpuaccept.probes.kernel.options import kernel_blindfolds
from pytest_gpuaccept.probes.since import attempt

PCI = "/sys/bus/pci/devices"
SERVICE = "/sys/bus/pci_express/drivers/aer"
"""Lists the ports whose error messages the kernel's AER driver receives, as `0000:c0:01.1:pcie002`."""
COUNTERS = {"corrected": ("aer_dev_correctable",), "uncorrected": ("aer_dev_nonfatal", "aer_dev_fatal")}
"""Severity -> the counter files of a link partner that add up to it."""
SHORT = {
    "Receiver Error": "RxErr", "Bad TLP": "BadTLP", "Bad DLLP": "BadDLLP", "RELAY_NUM Rollover": "Rollover",
    "Replay Timer Timeout": "Timeout", "Advisory Non-Fatal": "NonFatalErr", "Corrected Internal Error": "CorrIntErr",
    "Header Log Overflow": "HeaderOF",
}  # fmt: skip
"""Long names of corrected errors, as kernels before 5.7 write them -> the short ones."""
RECEIVED = ("RxErr", "BadTLP", "BadDLLP")
"""Errors of what a partner received."""
RAN_OUT = ("Rollover", "Timeout")
"""Errors of what a partner sent: it was not acknowledged, or not in time."""
MOST_PORTS = 16

NO_PORT = "no port above the GPU can be seen: a virtual machine hides it, run on the host"
UNARMED = "the boot log does not show that the kernel controls AER (_OSC): enable native AER in the BIOS"
NO_SERVICE = "the kernel's AER driver does not listen to {}: enable native AER in the BIOS, remove pcie_ports=compat"
SILENT = "{} does not report {} errors (Device Control): enable AER in the BIOS, or start a kernel from 6.1 on"
MASKED = "{} masks {}: a setting of its firmware hides these errors, update the BIOS"
HIDDEN = "whether {} masks PCIe errors is shown to root only: run as root"

BUS = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}"
ADDRESS = rf"{BUS}\.[0-7]"
LINES = (
    re.compile(
        rf"({ADDRESS}): (?:AER: )?(?:Multiple )?(Correct|Uncorrect)(?:ed|able)(?: \((?:Non-)?Fatal\))? "
        rf"error (?:message )?received(?::| from) (?:id=([0-9a-fA-F]{{4}})|({ADDRESS}))"
    ),
    re.compile(rf"({ADDRESS}): (?:AER: )?PCIe Bus Error: severity=(Correct|Uncorrect)(?:ed|able)()()"),
)
"""Header and detail line of an error, in the words of kernels 4.x, 5.x and 6.8 on."""


# addresses -------------------------------------------------------------------------------------


def normal_address(text: str) -> str:
    """Return a PCI address as sysfs writes it: NVML's 00000000:C1:00.0 is 0000:c1:00.0; raises Unmeasurable."""
    if not re.fullmatch(ADDRESS, text):
        message = f"{text[:40]!r} is no PCI address"
        raise Unmeasurable(message)
    domain, rest = text.lower().split(":", maxsplit=1)
    return f"{int(domain, 16):04x}:{rest}"


def same_slot(bus: str, address: str) -> bool:
    """Say whether a driver's bus id (no function) is that of a PCI address."""
    return normal_address(f"{bus}.0")[:-2] == address[:-2]


def port_above(site: Site, address: str) -> str:
    """Return the PCI address of the port at the other end of a device's link, '' when there is none to be seen.

    A PCI device's folder lies in that of its port, and `..` behind the link in /sys leads there.
    """
    uevent = attempt(lambda: site.world.read(f"{PCI}/{address}/../uevent"))
    match = re.search(rf"^PCI_SLOT_NAME=({ADDRESS})$", uevent, re.MULTILINE) if isinstance(uevent, str) else None
    return match[1] if match else ""


def hops(site: Site, address: str) -> tuple[str, ...]:
    """Return the PCI addresses from a device up to its root port; its own alone where its ports are hidden."""
    found = [address]
    while len(found) < MOST_PORTS and (port := port_above(site, found[-1])) and port not in found:
        found.append(port)
    return tuple(found)


def links(site: Site, above: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return both ends of every link on the way from a device up to its root port, its own first.

    The device's other functions stand beside it: some boards report the link's errors by them. What lies between two
    ports of a switch is no link.
    """
    slot = above[0].rpartition(".")[0]
    listed = attempt(lambda: site.world.names(PCI))
    known = [] if isinstance(listed, Unmeasurable) else listed
    others = [address for address in known if address.startswith(f"{slot}.") and address != above[0]]
    counting = [a for a in others if not isinstance(attempt(partial(counts_of, site, a)), Unmeasurable)]
    pairs = [tuple(above[n : n + 2]) for n in range(0, len(above), 2)]
    return ((*pairs[0], *counting), *(pair for pair in pairs[1:] if len(pair) > 1))


def counts_of(site: Site, address: str) -> dict[str, int]:
    """Return how many errors of each severity a device has counted; raises Unmeasurable for one that counts none."""
    return {
        severity: sum(read_counters(site, address, file)["TOTAL"] for file in files)
        for severity, files in COUNTERS.items()
    }


# counters --------------------------------------------------------------------------------------


def read_counters(site: Site, partner: str, file: str) -> dict[str, int]:
    """Read one AER counter file of a link partner."""
    if not partner:
        raise Unmeasurable(NO_PORT)
    text = attempt(lambda: site.world.read(f"{PCI}/{partner}/{file}"))
    if isinstance(text, Unmeasurable):
        message = f"no AER counters of {partner} can be read: enable native AER in the BIOS, boot, run again"
        raise Unmeasurable(message)
    return parse_aer(text)


def parse_aer(text: str) -> dict[str, int]:
    """Parse an AER counter file to counts by short name, the sum of messages as `TOTAL`; raises Unmeasurable.

    The total need not be the sum: one message may tell of several errors.
    """
    found = [re.fullmatch(r"(\S.{0,60}?) ([0-9]{1,19})", line.strip()) for line in text.splitlines()]
    counts = {match[1]: int(match[2]) for match in found if match}
    totals = [name for name in counts if name.startswith("TOTAL_ERR_")]
    if len(counts) != len(found) or len(totals) != 1:
        message = f"{text[:60]!r} is no AER counter"
        raise Unmeasurable(message)
    return {"TOTAL" if name in totals else SHORT.get(name, name): count for name, count in counts.items()}


def grown(
    what: str, before: Mapping[str, int] | Unmeasurable, after: Mapping[str, int] | Unmeasurable
) -> dict[str, int]:
    """Return by how much each count grew; raises Unmeasurable when one was not read or went down."""
    if isinstance(before, Unmeasurable):
        raise before
    if isinstance(after, Unmeasurable):
        raise after
    growth = {kind: after.get(kind, -1) - count for kind, count in before.items()}
    if min(growth.values(), default=0) < 0:
        message = f"{what} went down: the device was reset during the run"
        raise Unmeasurable(message)
    return growth


# the log ---------------------------------------------------------------------------------------


def in_message(message: str) -> Iterator[tuple[int, str, str]]:
    """Yield the PCIe errors that a message tells of: 0 for a header, 1 for a detail line; severity; whose."""
    for kind, pattern in enumerate(LINES):
        for reporter, word, requester, source in pattern.findall(message):
            whose = source or (requester_address(reporter, requester) if requester else reporter)
            yield kind, f"{word.lower()}ed", normal_address(whose)


def logged_errors(messages: Iterable[str], severity: str, partners: Iterable[str]) -> int:
    """Return how many errors of a severity the log's headers, or its details, ascribe to one of the partners."""
    seen = Counter[tuple[int, str]]()
    for message in messages:
        seen.update((kind, whose) for kind, of, whose in in_message(message) if of == severity)
    return max((count for (_, whose), count in seen.items() if whose in partners), default=0)


def requester_address(reporter: str, requester: str) -> str:
    """Return the address behind a 4-digit requester id (bus, device, function) in the reporter's domain."""
    number = int(requester, 16)
    return f"{reporter.split(':', maxsplit=1)[0]}:{number >> 8:02x}:{number >> 3 & 31:02x}.{number & 7}"


# whether anybody listens -----------------------------------------------------------------------


def deaf(site: Site, above: Sequence[str], severity: str, log: KernelLog | Unmeasurable) -> tuple[str, ...]:
    """Return why an error of a link might go unseen, each with its remedy; nothing when one would be seen.

    `above` are the addresses from the device up to its root port: all of them must report, and the root port must
    be listened to.
    """
    if len(above) < 2:  # noqa: PLR2004 - a link has two ends
        return (NO_PORT,)
    return unheard(site, above, severity, log)


def unheard(site: Site, above: Sequence[str], severity: str, log: KernelLog | Unmeasurable) -> tuple[str, ...]:
    """Return why an error of one of these addresses might go unseen; the last one is a root port."""
    told = [attempt(partial(_registers, site, partner, severity)) for partner in above]
    registers = [str(said) for said in told if said]
    return (*_options(site), *_service(site, above[-1], log), *registers)


def _options(site: Site) -> tuple[str, ...]:
    options = attempt(lambda: kernel_blindfolds(site))
    if isinstance(options, Unmeasurable):
        return (str(options),)
    return (f"the kernel option {options} hides PCIe errors: remove it, boot, run again",) if "noaer" in options else ()


def _service(site: Site, root: str, log: KernelLog | Unmeasurable) -> tuple[str, ...]:
    """Return why the kernel does not receive what a root port reports; asks the boot log where no driver is shown."""
    ports = attempt(lambda: site.world.names(SERVICE))
    if isinstance(ports, Unmeasurable):
        return _granted(log)
    return () if any(port.startswith(f"{root}:") for port in ports) else (NO_SERVICE.format(root),)


def _granted(log: KernelLog | Unmeasurable) -> tuple[str, ...]:
    """Return why the firmware may keep the errors to itself; one bridge of which it does is enough to doubt."""
    if isinstance(log, Unmeasurable):
        return (str(log),)
    control = [record.message for record in log.records if "_OSC: OS now controls" in record.message]
    retained = any("_OSC: platform retains control" in record.message for record in log.records)
    if not control or retained or not all(re.search(r"[\[ ]AER\b", message) for message in control):
        return (UNARMED if log.whole else log.says(CUT_LOG),)
    return ()


def _registers(site: Site, partner: str, severity: str) -> str:
    """Return why a link partner may keep an error to itself; '' when it does not."""
    found = reporting(site.world.data(f"{PCI}/{partner}/config"), severity)
    if found.enabled is None or found.masked is None:
        return HIDDEN.format(partner)
    if not found.enabled:
        return SILENT.format(partner, severity)
    return MASKED.format(partner, ", ".join(found.masked)) if found.masked else ""


# what an error says ----------------------------------------------------------------------------


def direction(card: Mapping[str, int], port: Mapping[str, int], replays: int = 0) -> str:
    """Return which direction of a link is damaged, from the corrected errors of both ends; '' when nothing says it.

    What an end receives damaged was damaged on the way to it; what it must send again, on the way from it (PCI
    Express base specification, data link layer). `replays` are the card's own, by NVML.
    """
    to_card = sum(card.get(kind, 0) for kind in RECEIVED) + sum(port.get(kind, 0) for kind in RAN_OUT)
    to_host = sum(port.get(kind, 0) for kind in RECEIVED) + sum(card.get(kind, 0) for kind in RAN_OUT) + replays
    if to_card and to_host:
        return "both directions"
    return "host to GPU" if to_card else "GPU to host" if to_host else ""
