"""The inventory of the host: everything that the machine says of itself without load.

Owns which readings belong to it; the modules named in it own how each is taken. Must not judge.
"""

from collections.abc import Iterator

from pytest_gpuaccept.measurement import Outcome
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.host import dimms, next_boot, settings
from pytest_gpuaccept.probes.host import machine as host

SIMPLE = host.READINGS | settings.READINGS | next_boot.READINGS
"""Each a source of its own."""


def inventory(site: Site) -> Iterator[Outcome]:
    """Yield every reading; one that fails leaves the others alone."""
    yield from host.taken(site, site, SIMPLE)
    yield from dimms.readings(site)


PROBES = (Probe("host.inventory", "inventory", "host", (*SIMPLE, *dimms.METRICS), inventory),)
