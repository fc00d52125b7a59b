"""The evidence channels: whether an error would be seen, proven before anything is loaded.

Owns the proof that the kernel log is readable, complete and alive, and that the PCIe errors of each GPU's link
are reported and counted. What these lines cannot prove, no line that depends on them may pass. Must not judge.
"""

from collections.abc import Iterator
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes import aer
from pytest_gpuaccept.probes.cards import card
from pytest_gpuaccept.probes.kernel_log import CUT_LOG, IDENTIFIER, LOST, KernelLog, marked, read_log
from pytest_gpuaccept.probes.since import attempt

LOG = Metric("host.log.complete", "Kernel log readable, complete and alive", "flag", "host")
ARMED = Metric("gpu.aer.armed", "PCIe errors of the link are reported and counted", "flag", "gpu")

PERIOD_S, LONGEST_S = 0.5, 15.0
"""Seconds between looks for a mark in the log, and until it is given up; 3.8 s were seen on a loaded machine."""
TOOL_S = 10.0


def log_channel(site: Site) -> Iterator[Outcome]:
    """Yield that the kernel log shows this boot from its first line to one that was written just now."""
    log = read_log(site)
    if not log.whole:
        raise Unmeasurable(CUT_LOG)
    if lost := [record.message for record in log.records if LOST.search(record.message)]:
        message = f"the journal says {lost[0]!r}: raise its limits in journald.conf, boot, run again"
        raise Unmeasurable(message)
    began = site.world.clock.monotonic()
    through = mark(site, log)
    took = round(site.world.clock.monotonic() - began, 2)
    where: dict[str, str | float] = {
        "source": log.source,
        "records": len(log.records),
        "mark": through,
        "mark_readable_after_s": took,
    }
    yield site.measured(LOG, value=True, samples=len(log.records), conditions=where)


def mark(site: Site, log: KernelLog) -> str:
    """Write a line of our own and wait until the log shows it; return which way it took.

    Raises Unmeasurable when it does not appear, or may not be written.
    """
    text = f"channel check {site.world.clock.now().isoformat()}"
    through = _write(site, log, text)
    end = site.world.clock.monotonic() + LONGEST_S
    while not marked(site, log, text):
        if site.world.clock.monotonic() >= end:
            message = (
                f"a line written to the {through} was not in the log after {LONGEST_S:g} s: nobody takes it down any "
                "more (systemctl status systemd-journald), restart the machine, run again"
            )
            raise Unmeasurable(message)
        site.world.clock.sleep(PERIOD_S)
    return through


def _write(site: Site, log: KernelLog, text: str) -> str:
    """Write a line to the kernel's log; where that is not permitted, to the journal that has taken it down."""
    refused = attempt(lambda: site.world.mark(f"{IDENTIFIER}: {text}"))
    if refused is None:
        return "kernel log"
    if log.source == "journalctl" and site.world.has("logger"):
        done = site.world.command(("logger", "--tag", IDENTIFIER, text), timeout=TOOL_S)
        if done.status == 0:
            return "journal"
    message = f"whether the log still takes lines down cannot be tried ({refused}): run as root"
    raise Unmeasurable(message)


def link_channel(site: Site) -> Iterator[Outcome]:
    """Yield that both ends of the GPU's link report their errors, and that the kernel counts them."""
    above = aer.hops(site, aer.normal_address(card(site, site.device).bus_id))
    log = attempt(partial(read_log, site))
    for severity, files in aer.COUNTERS.items():
        if reasons := aer.deaf(site, above, severity, log):
            raise Unmeasurable("; ".join(reasons))
        for partner in above[:2]:
            for file in files:
                aer.read_counters(site, partner, file)
    yield site.measured(ARMED, value=True, conditions={"address": above[0], "port": above[1], "root_port": above[-1]})


PROBES = (
    Probe("host.channels", "channels", "host", (LOG,), log_channel),
    Probe("gpu.channels", "channels", "gpu", (ARMED,), link_channel, driver=True),
)
