"""What should watch over the machine: Prometheus, DCGM exporter, Grafana, and volume space nobody uses.

Owns the parsers of their answers. A server that does not answer is a measured False; an answer that
cannot be read is an absence. Starts, stops and configures nothing.
"""

import datetime as dt
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.profile import Scalar

PROMETHEUS = Metric("monitoring.prometheus", "Prometheus scrapes the machine", "flag", "host")
EXPORTER = Metric("monitoring.dcgm_exporter", "DCGM exporter covers every GPU", "flag", "host")
GRAFANA = Metric("monitoring.grafana", "Grafana answers", "flag", "host")
UNALLOCATED = Metric("host.lvm.unallocated", "Volume group space not allocated", "%", "host")

PARAMS: dict[str, Scalar] = {
    "prometheus": "http://127.0.0.1:9090", "dcgm_exporter": "http://127.0.0.1:9400",
    "grafana": "http://127.0.0.1:3000", "fresh_seconds": 120,
}  # fmt: skip
ANSWER_S = 5
VGS = ("vgs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", "vg_name,vg_size,vg_free")
TEMPERATURES = ("DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_GPU_TEMP_CELSIUS")
"""Names of the temperature series; DCGM 4.5 renamed it."""
SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: -?[0-9]+)?")
UUID = re.compile(r'(?:^|,)UUID="([^"]+)"')

Answer = tuple[bool, str]
"""Whether a service does its work, and what shows it."""


def services(site: Site) -> Iterator[Outcome]:
    """Yield every service and the unallocated space; one that cannot be read leaves the others alone."""
    for metric, look in LOOKS.items():
        try:
            yield look(site, metric)
        except Unmeasurable as error:
            yield NotMeasured(metric.id, site.device, str(error))


def prometheus(site: Site, metric: Metric) -> Measurement:
    """Return whether Prometheus is ready and has just scraped something other than itself."""
    base = str(site.params["prometheus"])
    silent = ask(site, f"{base}/-/ready")[1]
    answer, silence = ask(site, f"{base}/api/v1/targets?state=active")
    if silent or answer is None:
        return site.measured(metric, value=False, note=silent or silence)
    oldest = site.world.clock.now() - dt.timedelta(seconds=float(site.params["fresh_seconds"]))
    up, note = scraped(answer, urlsplit(base).port, oldest)
    return site.measured(metric, up, note=note)


def ask(site: Site, url: str) -> tuple[str | None, str]:
    """Return a server's answer, or None and why there is none."""
    try:
        return site.world.http(url, timeout=ANSWER_S), ""
    except Unmeasurable as error:
        return None, str(error)


def scraped(answer: str, own_port: int | None, oldest: dt.datetime) -> Answer:
    """Say whether a target that is not on `own_port` is up and was scraped after `oldest`."""
    try:
        targets = [target for target in json.loads(answer)["data"]["activeTargets"] if port_of(target) != own_port]
        fresh = [str(t["scrapeUrl"]) for t in targets if t["health"] == "up" and scrape_time(t) > oldest]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"the answer of Prometheus cannot be read ({type(error).__name__}: {error}): {answer[:80]!r}"
        raise Unmeasurable(message) from None
    note = f"{len(fresh)} of {len(targets)} targets besides itself are up and freshly scraped"
    return bool(fresh), f"{note}: {', '.join(fresh)[:200]}" if fresh else note


def port_of(target: dict[str, Any]) -> int | None:
    """Return the port that a target is scraped at."""
    return urlsplit(str(target["scrapeUrl"])).port


def scrape_time(target: dict[str, Any]) -> dt.datetime:
    """Return when a target was last scraped, UTC; a time without a zone is refused (ValueError)."""
    at = dt.datetime.fromisoformat(target["lastScrape"])
    if at.tzinfo is None:
        raise ValueError(target["lastScrape"])
    return at


def dcgm_exporter(site: Site, metric: Metric) -> Measurement:
    """Return whether the exporter shows a temperature of as many GPUs as were ordered."""
    ordered = len(site.profile.devices.get("gpu", ()))
    if not ordered:
        message = "the profile orders no GPU that an exporter could cover"
        raise Unmeasurable(message)
    answer, silence = ask(site, f"{site.params['dcgm_exporter']}/metrics")
    if answer is None:
        return site.measured(metric, value=False, note=silence)
    covered = covered_gpus(answer)
    return site.measured(metric, len(covered) >= ordered, note=f"temperatures of {len(covered)} of {ordered} GPUs")


def covered_gpus(exposition: str) -> set[str]:
    """Return the UUIDs of the GPUs that have a temperature; raises Unmeasurable when the text is no exposition."""
    lines = [line.strip() for line in exposition.split("\n") if line.strip()]
    samples = [SAMPLE.fullmatch(line) for line in lines if not line.startswith("#")]
    if not lines or None in samples:
        message = f"the exporter's answer is no Prometheus text: {exposition[:80]!r}"
        raise Unmeasurable(message)
    series = [sample for sample in samples if sample and sample[1] in TEMPERATURES]
    return {uuid for sample in series if is_finite(sample[3]) for uuid in UUID.findall(sample[2] or "")}


def is_finite(text: str) -> bool:
    """Say whether a sample's value is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def grafana(site: Site, metric: Metric) -> Measurement:
    """Return whether Grafana answers and reaches its database."""
    answer, silence = ask(site, f"{site.params['grafana']}/api/health")
    if answer is None:
        return site.measured(metric, value=False, note=silence)
    state = database_state(answer)
    return site.measured(metric, state == "ok", note=f"database {state}")


def database_state(answer: str) -> str:
    """Return what Grafana says of its database; raises Unmeasurable when it says nothing."""
    try:
        state = json.loads(answer)["database"]
        return str(state.strip())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"Grafana's answer cannot be read ({type(error).__name__}: {error}): {answer[:80]!r}"
        raise Unmeasurable(message) from None


def unallocated(site: Site, metric: Metric) -> Measurement:
    """Return the share of all volume groups' space that belongs to no volume, in %."""
    done = site.world.command(VGS, timeout=30)
    if done.status != 0:
        message = f"vgs ended with status {done.status}: {done.stderr.strip()[:200]}"
        raise Unmeasurable(message)
    groups = parse_vgs(done.stdout)
    size, free = sum(size for size, _ in groups.values()), sum(free for _, free in groups.values())
    note = ", ".join(f"{name}: {part / 2**30:.0f} of {whole / 2**30:.0f} GiB" for name, (whole, part) in groups.items())
    return site.measured(metric, 100 * free / size, note=note)


def parse_vgs(text: str) -> dict[str, tuple[int, int]]:
    """Parse vgs' JSON report to (size, free) in bytes by volume group.

    Raises Unmeasurable when it lists none: vgs says the same where it is not permitted to look.
    """
    try:
        rows = [row for report in json.loads(text[text.index("{") :])["report"] for row in report["vg"]]
        groups = {str(row["vg_name"]): (int(row["vg_size"]), int(row["vg_free"])) for row in rows}
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        message = f"vgs' report cannot be read ({type(error).__name__}: {error}): {text[:80]!r}"
        raise Unmeasurable(message) from None
    if not groups or any(not 0 <= free <= size or size <= 0 for size, free in groups.values()):
        message = (
            "vgs lists no volume group with its sizes: there is none, or it takes root to look (run vgs with sudo)"
        )
        raise Unmeasurable(message)
    return groups


LOOKS: dict[Metric, Callable[[Site, Metric], Measurement]] = {
    PROMETHEUS: prometheus, EXPORTER: dcgm_exporter, GRAFANA: grafana, UNALLOCATED: unallocated,
}  # fmt: skip

PROBES = (Probe("host.services", "final", "host", tuple(LOOKS), services, params=PARAMS),)
