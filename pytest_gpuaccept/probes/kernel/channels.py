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
from pytest_gpuaccept.probes.cards import card
from pytest_gpuaccept.probes.kernel import aer
from pytest_gpuaccept.probes.kernel.log import CUT_LOG, LOST, alive, read_log
from pytest_gpuaccept.probes.since import attempt

LOG = Metric("host.log.complete", "Kernel log readable, complete and alive", "flag", "host")
ARMED = Metric("gpu.aer.armed", "PCIe errors of the link are reported and counted", "flag", "gpu")


def log_channel(site: Site) -> Iterator[Outcome]:
    """Yield that the kernel log shows this boot from its first line to one that was written just now."""
    log = read_log(site)
    if not log.whole:
        raise Unmeasurable(log.says(CUT_LOG))
    if lost := [record.message for record in log.records if LOST.search(record.message)]:
        message = f"the journal says {lost[0]!r}: {log.says('{}')}, set log_buf_len=16M, boot, run again"
        raise Unmeasurable(message)
    began = site.world.clock.monotonic()
    through = alive(site, log)
    took = round(site.world.clock.monotonic() - began, 2)
    where: dict[str, str | float] = {"source": log.source, "records": len(log.records), "mark": through}
    yield site.measured(LOG, value=True, samples=len(log.records), conditions={**where, "mark_readable_after_s": took})


def link_channel(site: Site) -> Iterator[Outcome]:
    """Yield that both ends of the GPU's link report their errors, and that the kernel counts them."""
    above = aer.hops(site, aer.normal_address(card(site, site.device).bus_id))
    log = attempt(partial(read_log, site))
    for severity, files in aer.COUNTERS.items():
        if reasons := aer.deaf(site, above, severity, log):
            raise Unmeasurable("; ".join(reasons))
        for partner in above:
            for file in files:
                aer.read_counters(site, partner, file)
    yield site.measured(ARMED, value=True, conditions={"address": above[0], "port": above[1], "root_port": above[-1]})


PROBES = (
    Probe("host.channels", "channels", "host", (LOG,), log_channel),
    Probe("gpu.channels", "channels", "gpu", (ARMED,), link_channel, driver=True),
)
