"""What watches over the machine: Prometheus, the DCGM exporter, Grafana, vLLM's queue.

Owns whom to ask, and what an answer's status means. A server that does not answer, or says that it is not
ready, is a measured no; an answer that cannot be read is an absence. Starts, stops and configures nothing.
"""

import datetime as dt
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from types import ModuleType

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome
from pytest_gpuaccept.metric import Inputs, Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.cards import Card, card, cards
from pytest_gpuaccept.probes.services import exposition, prometheus
from pytest_gpuaccept.probes.since import attempt
from pytest_gpuaccept.profile import Scalar

ANSWER_S = 5
HOSTNAME = "/proc/sys/kernel/hostname"
NEAR_C = 5.0
"""C by which the exporter and NVML may differ; read one after the other, they do by one or two."""
CATCHES_UP_S, LOOK_S = 45.0, 5.0
"""Seconds in which the exporter shows what NVML does, as it reads every 30 s by default; between two looks."""
MOVES_C = 10.0
"""C by which a burn moves a temperature that was recorded."""

SCRAPES = Metric("monitoring.prometheus", "Prometheus scrapes the machine", "flag", "host")
SERIES = Metric("monitoring.series", "Prometheus has a fresh temperature of every GPU", "flag", "host")
ALERTS = Metric("monitoring.alerts", "Alerts for temperature, Xid and PCIe errors", "count", "host")
RETENTION = Metric("monitoring.retention", "How long Prometheus keeps its data", "text", "host")
EXPORTER = Metric("monitoring.dcgm_exporter", "DCGM exporter covers every GPU", "flag", "host")
GRAFANA = Metric("monitoring.grafana", "Grafana answers", "flag", "host")
QUEUE = Metric("monitoring.vllm_queue", "Requests that vLLM works on, and that wait", "text", "host")
MOVEMENT = Metric("monitoring.movement", "Movement of the temperature that Prometheus stored in the run", "C", "gpu")

PARAMS: dict[str, Scalar] = {
    "prometheus": "http://127.0.0.1:9090", "dcgm_exporter": "http://127.0.0.1:9400",
    "grafana": "http://127.0.0.1:3000", "vllm": "http://127.0.0.1:8000", "fresh_seconds": 120,
}  # fmt: skip


class SilentError(Exception):
    """A server does not answer, or says that it is not ready; the text says which and how."""


def monitoring(site: Site) -> Iterator[Outcome]:
    """Yield what each server says; one that cannot be read leaves the others alone."""
    for metric in LOOKS:
        yield outcome(site, metric)


def outcome(site: Site, metric: Metric) -> Outcome:
    """Return what a server says of one metric: a value, or why there is none."""
    try:
        return LOOKS[metric](site, metric)
    except SilentError as error:
        return _unanswered(site, metric, str(error))
    except Unmeasurable as error:
        return NotMeasured(metric.id, site.device, str(error))


def _unanswered(site: Site, metric: Metric, why: str) -> Outcome:
    """Return what it means for a metric that its server is silent."""
    if metric is QUEUE:
        return site.measured(metric, "no server", note=why)
    if metric.unit == "flag":
        return site.measured(metric, value=False, note=why)
    return NotMeasured(metric.id, site.device, why)


def ask(site: Site, server: str, path: str) -> str:
    """Return what a server says on a path; raises SilentError or Unmeasurable with what keeps it from that."""
    url = f"{str(site.params[server]).rstrip('/')}{path}"
    place = url.split("?", maxsplit=1)[0]
    try:
        answer = site.world.answer(url, timeout=ANSWER_S)
    except Unmeasurable as error:
        raise SilentError(str(error).replace(url, place)) from None
    if answer.status == HTTPStatus.OK:
        return answer.body
    said = f"{place} answers {answer}"
    if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
        message = f"{said}: {' '.join(answer.body.split())[:80]}"
        raise SilentError(message)
    message = f"{said}, which shows nothing: give in the profile the address at which it answers without a login"
    raise Unmeasurable(message)


# Prometheus ----------------------------------------------------------------------------------


def scrapes(site: Site, metric: Metric) -> Measurement:
    """Return whether Prometheus is ready and has just scraped everything of the machine besides itself."""
    ask(site, "prometheus", prometheus.READY)
    answer = ask(site, "prometheus", prometheus.TARGETS)
    site.attach("Prometheus: targets", answer)
    oldest = site.world.clock.now() - dt.timedelta(seconds=float(site.params["fresh_seconds"]))
    hostname = attempt(lambda: site.world.read(HOSTNAME))
    named = hostname if isinstance(hostname, str) else ""
    up, note = prometheus.scraped(answer, str(site.params["prometheus"]), named, oldest)
    return site.measured(metric, up, note=note)


def series(site: Site, metric: Metric) -> Measurement:
    """Return whether a temperature of every ordered GPU of this machine, by its UUID, was just stored."""
    ordered = _ordered(site)
    answer = ask(site, "prometheus", prometheus.stored_query(float(site.params["fresh_seconds"])))
    found = prometheus.stored(answer)
    names = {own.uuid: device for device, own in _named(site).items()}
    there = [names[uuid] for uuid, samples in found.items() if samples and uuid in names]
    strange = len(found.keys() - names.keys())
    note = f"{len(there)} of {len(ordered)} GPUs: {', '.join(sorted(there)) or 'none'}"
    note += f", and {strange} of other machines" if strange else ""
    return site.measured(metric, len(there) >= len(ordered), note=note)


def alert_count(site: Site, metric: Metric) -> Measurement:
    """Return for how many of the topics Prometheus evaluates an alert."""
    found = prometheus.alerts(ask(site, "prometheus", prometheus.RULES))
    note = "; ".join(f"{topic}: {', '.join(names[:3]) or 'none'}" for topic, names in found.items())
    return site.measured(metric, sum(1 for names in found.values() if names), note=note)


def kept(site: Site, metric: Metric) -> Measurement:
    """Return how long Prometheus keeps its data."""
    return site.measured(metric, prometheus.retention(ask(site, "prometheus", prometheus.RUNTIME)))


def _ordered(site: Site) -> tuple[str, ...]:
    ordered = site.profile.devices.get("gpu", ())
    if not ordered:
        message = "the profile orders no GPU that could be watched"
        raise Unmeasurable(message)
    return ordered


def _named(site: Site) -> dict[str, Card]:
    """Return the ordered cards that answer, by device; raises Unmeasurable without a driver."""
    ordered = site.profile.devices.get("gpu", ())
    return {device: own for device, own in cards(site).items() if own.handle is not None and device in ordered}


# exporter ------------------------------------------------------------------------------------


def exporter(site: Site, metric: Metric) -> Measurement:
    """Return whether the exporter shows every ordered GPU whole, and with the temperature that NVML reads."""
    ordered, own = _ordered(site), _named(site)
    text = ask(site, "dcgm_exporter", "/metrics")
    site.attach("DCGM exporter: metrics", text)
    flaws = _flaws(own, text)
    flaws |= _contradictions(site, {device: own[device] for device in own.keys() - flaws.keys()})
    covered = len(own) - len(flaws)
    note = f"{covered} of {len(ordered)} GPUs are shown whole"
    note += "".join(f"; {device}: {flaw}" for device, flaw in sorted(flaws.items()))
    return site.measured(metric, covered >= len(ordered), note=note)


def _flaws(own: dict[str, Card], text: str) -> dict[str, str]:
    """Return what the exporter's text lacks, by device."""
    shown = exposition.by_gpu(exposition.parse(text))
    found = {d: exposition.flaw(shown[c.uuid]) if c.uuid in shown else "is not shown" for d, c in own.items()}
    return {device: flaw for device, flaw in found.items() if flaw}


def _contradictions(site: Site, own: dict[str, Card]) -> dict[str, str]:
    """Return by device how the exporter contradicts NVML, and goes on to: it reads less often."""
    nvml, clock = site.world.nvml(), site.world.clock
    end = clock.monotonic() + CATCHES_UP_S
    while True:
        shown = exposition.by_gpu(exposition.parse(ask(site, "dcgm_exporter", "/metrics")))
        read = {device: _temperature(nvml, c) for device, c in own.items()}
        pairs = {device: (shown.get(c.uuid, {}).get("temperature", 0.0), read[device]) for device, c in own.items()}
        apart = {device: pair for device, pair in pairs.items() if abs(pair[0] - pair[1]) > NEAR_C}
        if not apart or clock.monotonic() >= end:
            return {device: f"{theirs:.0f} C where NVML reads {ours:.0f} C" for device, (theirs, ours) in apart.items()}
        clock.sleep(LOOK_S)


def _temperature(nvml: ModuleType, own: Card) -> float:
    try:
        return float(nvml.nvmlDeviceGetTemperature(own.handle, nvml.NVML_TEMPERATURE_GPU))
    except nvml.NVMLError as error:
        message = f"what the exporter shows of {own.device} cannot be compared: its temperature is {error}"
        raise Unmeasurable(message) from None


def waiting(site: Site, metric: Metric) -> Measurement:
    """Return vLLM's queue."""
    return site.measured(metric, exposition.queue(exposition.parse(ask(site, "vllm", "/metrics"))))


# Grafana -------------------------------------------------------------------------------------


def grafana(site: Site, metric: Metric) -> Measurement:
    """Return whether Grafana answers and reaches its database; dashboards would need a login and are not looked at."""
    state = database_state(ask(site, "grafana", "/api/health"))
    return site.measured(metric, state == "ok", note=f"database {state}; dashboards are not looked at")


def database_state(answer: str) -> str:
    """Return what Grafana says of its database; raises Unmeasurable when it says nothing."""
    try:
        return str(json.loads(answer)["database"].strip())
    except prometheus.UNREADABLE as error:
        message = f"Grafana's answer cannot be read ({type(error).__name__}: {error}): {answer[:80]!r}"
        raise Unmeasurable(message) from None


# end to end ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """When the run began, in seconds since 1970."""

    at: float


def started(site: Site) -> Started:
    """Return the time now."""
    return Started(site.world.clock.now().timestamp())


def moved(site: Site) -> Iterator[Outcome]:
    """Yield by how much each GPU's stored temperature moved since the run began; nothing stored is no movement."""
    if not isinstance(site.before, Started):
        message = f"the start of the run is not known: {site.before}"
        raise Unmeasurable(message)
    asked = replace(site, params={**PARAMS, **site.profile.params.get("host.monitoring", {})})
    path = prometheus.stored_query(site.world.clock.now().timestamp() - site.before.at)
    try:
        answer, why = ask(asked, "prometheus", path), "Prometheus stored no temperature of it in the run"
    except SilentError as error:
        answer, why = "", str(error)
    site.attach("Prometheus: temperatures of the run", answer)
    found = prometheus.stored(answer) if answer else {}
    for device in site.profile.devices.get("gpu", ()):
        try:
            samples = [s for s in found.get(card(site, device).uuid, ()) if s[0] >= site.before.at]
            note = f"{len(samples)} samples" if samples else why
            yield site.measured(MOVEMENT, prometheus.movement(samples), device=device, note=note)
        except Unmeasurable as error:
            yield NotMeasured(MOVEMENT.id, device, str(error))


def end_to_end(inputs: Inputs) -> Measurement:
    """Say whether the heat of the burn arrived in Prometheus, for every GPU.

    Raises Unmeasurable when the burn's own telemetry does not show that there was something to arrive.
    """
    gpus, still = inputs.profile.devices.get("gpu", ()), list[str]()
    burnt = {gpu: _burn_rise(inputs, gpu) for gpu in gpus}
    for gpu in gpus:
        got = inputs.get(MOVEMENT.id, gpu)
        rise = inputs.number(MOVEMENT.id, gpu)
        if rise <= MOVES_C:
            still.append(f"{gpu} {rise:.0f} C stored, {_expected(burnt[gpu]):.0f} C in the burn; {got.note}")
    note = " | ".join(still[:2]) or f"the temperature of all {len(gpus)} GPUs moved by more than {MOVES_C:.0f} C"
    return Measurement(END_TO_END.id, inputs.device, bool(gpus) and not still, "flag", "calculated", note=note)


def _burn_rise(inputs: Inputs, gpu: str) -> float | Unmeasurable:
    """Return by how many C the burn heated a card; asked before what was stored, so that the burn comes first."""
    try:
        return inputs.number("gpu.burn.temperature", gpu) - inputs.number("gpu.burn.start_temperature", gpu)
    except Unmeasurable as error:
        return error


def _expected(rise: float | Unmeasurable) -> float:
    if isinstance(rise, Unmeasurable):
        raise rise
    if rise <= MOVES_C:
        message = f"the burn itself moved the temperature by only {rise:.0f} C: too little to look for"
        raise Unmeasurable(message)
    return rise


END_TO_END = Metric(
    "monitoring.end_to_end", "The burn's heat is seen in Prometheus", "flag", "host", derive=end_to_end
)  # fmt: skip
LOOKS: dict[Metric, Callable[[Site, Metric], Measurement]] = {
    SCRAPES: scrapes, SERIES: series, ALERTS: alert_count, RETENTION: kept,
    EXPORTER: exporter, GRAFANA: grafana, QUEUE: waiting,
}  # fmt: skip

PROBES = (
    Probe("host.monitoring", "final", "host", tuple(LOOKS), monitoring, params=PARAMS),
    Probe(
        "host.end_to_end", "final", "host", (MOVEMENT, END_TO_END), moved,
        before=started,
    ),
)  # fmt: skip
