"""Monitoring that does not do its work is a measured no, answers that cannot be read are an absence."""

import contextlib
import json
from dataclasses import replace

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.drives import drive
from pytest_gpuaccept.probes.host import machine as host
from pytest_gpuaccept.probes.services import monitoring
from pytest_gpuaccept.sim.nvml import uuid_of
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import Answer

GOOD = {
    "monitoring.prometheus": True, "monitoring.series": True, "monitoring.dcgm_exporter": True,
    "monitoring.grafana": True,
}  # fmt: skip
SHOWN = [
    f'DCGM_FI_DEV_{name}{{{{UUID="{{}}"}}}} 44\n'
    for name in (
        "GPU_TEMP",
        "POWER_USAGE",
        "SM_CLOCK",
        "GPU_UTIL",
        "FB_USED",
        "FB_FREE",
        "PCIE_REPLAY_COUNTER",
        "XID_ERRORS",
    )
]
VERSIONS = {"torch": "2.10.0+cu128", "transformers": "4.57.6", "cuda_toolkit": "13.2", "cudnn": "9.20.0"}


@pytest.fixture
def world(profile):
    """Return a healthy simulated machine of the commissioned kind, a minute after its start."""
    world = SimWorld(profile, Scenario("healthy"))
    world.clock.sleep(60)
    return world


@pytest.fixture
def site(world, profile):
    """Return what a probe of the host is given."""
    return Site(world, profile, "host", monitoring.PARAMS, lambda name, text: "digest")


def look(site):
    """Return the outcomes of the monitoring by metric."""
    return {outcome.metric: outcome for outcome in monitoring.monitoring(site)}


def answering(site, monkeypatch, path, answer):
    """Let one path of one server answer something else."""
    real = site.world.answer
    monkeypatch.setattr(
        site.world, "answer", lambda url, timeout: answer if path in url else real(url, timeout=timeout)
    )


# whole ---------------------------------------------------------------------------------------


def test_a_well_delivered_machine_is_watched(site):
    """Every server does its work; vLLM does not serve then, which is said and no failure."""
    found = {metric: outcome.value for metric, outcome in look(site).items()}
    more = {"monitoring.alerts": 3, "monitoring.retention": "15d", "monitoring.vllm_queue": "no server"}
    assert found == {**GOOD, **more}


@pytest.mark.parametrize(
    ("metric", "parameter", "value", "note"),
    [
        ("monitoring.prometheus", "prometheus", "down", "does not answer"),
        ("monitoring.prometheus", "prometheus", "stale", "0 of 2 targets"),
        ("monitoring.series", "prometheus", "down", "does not answer"),
        ("monitoring.dcgm_exporter", "exporter", False, "does not answer"),
        ("monitoring.dcgm_exporter", "exporter_gpus", 3, "3 of 4 GPUs are shown whole; gpu3: is not shown"),
        ("monitoring.dcgm_exporter", "exporter_gpus", 0, "0 of 4 GPUs"),
        ("monitoring.dcgm_exporter", "exporter_lacks", "DCGM_FI_DEV_FB_FREE", "gpu0: no free memory"),
        ("monitoring.grafana", "grafana", "down", "does not answer"),
        ("monitoring.grafana", "grafana", "database", "503 Service Unavailable"),
    ],
)
def test_a_server_that_does_not_do_its_work_is_a_measured_no(site, metric, parameter, value, note):
    """A silent, stale or partial server is False with the reason, and leaves the other servers alone."""
    setattr(site.world.machine.host, parameter, value)
    found = look(site)
    assert found[metric].value is False
    assert note in found[metric].note
    others = {m for m in GOOD if m.split(".")[1] != metric.split(".")[1]} - {
        "monitoring.series",
        "monitoring.prometheus",
    }
    assert all(found[m].value is True for m in others)


@pytest.mark.parametrize("path", ["9090", "9400", "3000"])
@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, ""),
        Answer(200, "<html>sign in</html>"),
        Answer(200, "[]"),
        Answer(200, '{"data": null}'),
        Answer(200, '{"status": "success"}'),
        Answer(200, "[" * 9999),
        Answer(401, "Unauthorized"),
        Answer(302, "", "https://login.example/"),
        Answer(404, "not found"),
        Answer(999, ""),
    ],
    ids=["empty", "page", "list", "null", "bare", "deep", "401", "302", "404", "999"],
)
def test_an_answer_that_shows_nothing_is_an_absence(site, monkeypatch, path, answer):
    """A login page, a redirect or a refusal on a server's port is no evidence for it nor against it."""
    answering(site, monkeypatch, path, answer)
    metrics = {
        "9090": ("prometheus", "series", "alerts", "retention"), "9400": ("dcgm_exporter",), "3000": ("grafana",),
    }[path]  # fmt: skip
    found = look(site)
    assert {m: type(found[f"monitoring.{m}"]) for m in metrics} == dict.fromkeys(metrics, NotMeasured)
    if answer.status != 200:
        assert f"answers {answer.status}" in found[f"monitoring.{metrics[0]}"].reason
    if answer.location:
        assert answer.location in found[f"monitoring.{metrics[0]}"].reason


def test_a_server_that_hangs_does_not_do_its_work(site, monkeypatch):
    """A time limit that runs out is silence: False for what is a yes or no, an absence for a count."""

    def hang(url, timeout):
        message = f"{url} does not answer: timed out"
        raise Unmeasurable(message)

    monkeypatch.setattr(site.world, "answer", hang)
    found = look(site)
    assert all(found[m].value is False and "timed out" in found[m].note for m in GOOD)
    assert "timed out" in found["monitoring.alerts"].reason


def test_a_server_that_is_not_ready_does_not_do_its_work(site, monkeypatch):
    """503 is Prometheus' own word for not yet."""
    answering(site, monkeypatch, "/-/ready", Answer(503, "Service Unavailable"))
    found = look(site)["monitoring.prometheus"]
    assert (found.value, "503" in found.note) == (False, True)


# Prometheus ----------------------------------------------------------------------------------


def test_another_machines_gpus_are_not_this_ones(site, monkeypatch):
    """Fresh temperatures of as many cards under other UUIDs show nothing of this machine."""
    result = [{"metric": {"UUID": f"GPU-{i}"}, "values": [[1767254400, "40"]]} for i in "abcd"]
    answer = Answer(200, json.dumps({"data": {"resultType": "matrix", "result": result}}))
    answering(site, monkeypatch, "/api/v1/query", answer)
    found = look(site)["monitoring.series"]
    assert found.value is False
    assert found.note == "0 of 4 GPUs: none, and 4 of other machines"


def test_stale_samples_are_not_asked_for(site):
    """An exporter that died a while ago has left samples, and none in the window that counts."""
    site.world.machine.host.exporter = False
    site.world.clock.sleep(150)
    assert look(site)["monitoring.series"].value is False


# exporter ------------------------------------------------------------------------------------


def test_an_exporter_that_contradicts_nvml_is_waited_for_and_then_refused(site):
    """The exporter reads every 30 s; what still differs after that is another card's temperature, or an old one."""
    machine = site.world.machine
    machine.host.exporter_frozen = True
    with machine.runs("burn", dict.fromkeys(range(4), 1.0)):
        site.world.clock.sleep(30)
        began = site.world.clock.monotonic()
        found = look(site)["monitoring.dcgm_exporter"]
    assert found.value is False
    assert "gpu0: 30 C where NVML reads" in found.note
    assert monitoring.CATCHES_UP_S <= site.world.clock.monotonic() - began < monitoring.CATCHES_UP_S + 10


def test_without_nvmls_word_there_is_nothing_to_compare_with(site, monkeypatch):
    """A card whose sensor NVML cannot read leaves the exporter unproven, not proven."""
    for gpu in site.world.machine.gpus:
        gpu.p.temperature_sensor = "unsupported"
    text = "".join(line.format(uuid_of(site.world.machine, i)) for i in range(4) for line in SHOWN)
    answering(site, monkeypatch, "9400", Answer(200, text))
    assert "cannot be compared" in look(site)["monitoring.dcgm_exporter"].reason


def test_a_profile_without_gpus_has_nothing_to_cover(site):
    """None of none covered is no success."""
    profile = site.profile.model_copy(update={"devices": {}})
    found = look(replace(site, profile=profile))
    assert all("orders no GPU" in found[f"monitoring.{name}"].reason for name in ("dcgm_exporter", "series"))


def test_vllms_queue_is_summed_over_its_models(site, monkeypatch):
    """Where vLLM serves, its queue is recorded."""
    running = [f'vllm:num_requests_running{{engine="{engine}"}} {count}' for engine, count in enumerate((2.0, 1.0))]
    text = "\n".join([*running, "vllm:num_requests_waiting 5.0", ""])
    answering(site, monkeypatch, ":8000/metrics", Answer(200, text))
    assert look(site)["monitoring.vllm_queue"].value == "3 running, 5 waiting"


@pytest.mark.parametrize("text", ["go_goroutines 12\n", "vllm:num_requests_running 1\n", "<html>"])
def test_another_server_in_vllms_place_has_no_queue(site, monkeypatch, text):
    """What answers there without vLLM's series is not vLLM."""
    answering(site, monkeypatch, ":8000/metrics", Answer(200, text))
    assert isinstance(look(site)["monitoring.vllm_queue"], NotMeasured)


# Grafana -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [None, 1, [], {}])
def test_a_database_without_a_word_is_an_absence(state):
    """Grafana that does not say how its database is has said nothing."""
    with pytest.raises(Unmeasurable, match="Grafana"):
        monitoring.database_state(json.dumps({"database": state}))


# end to end ----------------------------------------------------------------------------------


class Inputs:
    """A table of measurements under the eyes of a derivation; an Unmeasurable in it is raised."""

    device = "host"

    def __init__(self, profile, table):
        self.profile, self.table = profile, table

    def get(self, metric, device=None):
        """Return a measurement, or raise what is there in its place."""
        value = self.table[metric]
        value = value.get(device) if isinstance(value, dict) else value
        if isinstance(value, Exception):
            raise value
        return Measurement(metric, device or self.device, value, "C", note="a note")

    def number(self, metric, device=None):
        """Return its value."""
        return float(self.get(metric, device).value)


NO_SENSOR = Unmeasurable("no sensor")
BURNT = {"gpu.burn.temperature": 66, "gpu.burn.start_temperature": 30, "monitoring.movement": 36}


@pytest.mark.parametrize(
    ("changed", "value", "said"),
    [
        ({}, True, "all 4 GPUs"),
        ({"monitoring.movement": 10}, False, "gpu0 10 C stored, 36 C in the burn"),
        ({"monitoring.movement": {"gpu0": 36, "gpu1": 36, "gpu2": 0, "gpu3": 36}}, False, "gpu2 0 C stored"),
        ({"gpu.burn.temperature": NO_SENSOR}, True, "all 4 GPUs"),
        ({"gpu.burn.temperature": NO_SENSOR, "monitoring.movement": 0}, None, "no sensor"),
        ({"gpu.burn.temperature": 35, "monitoring.movement": 5}, None, "too little to look for"),
        ({"monitoring.movement": Unmeasurable("<html>")}, None, "<html>"),
    ],
)
def test_the_burns_heat_must_have_been_stored(profile, changed, value, said):
    """It is a no only where the burn's own telemetry shows that there was something to store."""
    inputs = Inputs(profile, BURNT | changed)
    if value is None:
        with pytest.raises(Unmeasurable, match=said):
            monitoring.end_to_end(inputs)
    else:
        found = monitoring.end_to_end(inputs)
        assert (found.value, said in found.note) == (value, True)


def test_movement_is_that_of_the_run_and_of_each_gpu(site):
    """What moved before the run does not count; nothing stored is no movement."""
    machine = site.world.machine
    with machine.runs("burn", {0: 1.0}):
        site.world.clock.sleep(60)
    site.world.clock.sleep(90)
    at = replace(site, before=monitoring.started(site))
    with machine.runs("burn", {1: 1.0}):
        site.world.clock.sleep(60)
    machine.host.exporter_gpus = 2
    found = {outcome.device: outcome for outcome in monitoring.moved(at)}
    assert found["gpu1"].value > 20
    assert all(found[f"gpu{i}"].value < 10 for i in (0, 2, 3))


def test_a_sample_of_just_before_the_start_does_not_count(site, monkeypatch):
    """The window that is asked for is rounded up to whole seconds, and may reach back behind the start."""
    at = replace(site, before=monitoring.started(site))
    start = at.before.at
    values = [[start - 0.5, "80"], [start + 1, "30"], [start + 2, "31"]]
    metric = {"UUID": uuid_of(site.world.machine, 0)}
    body = json.dumps({"data": {"resultType": "matrix", "result": [{"metric": metric, "values": values}]}})
    answering(site, monkeypatch, "/api/v1/query", Answer(200, body))
    assert {o.device: o.value for o in monitoring.moved(at)}["gpu0"] == 1


def test_a_silent_server_has_stored_nothing(site):
    """No server, no stored heat: said with the reason, and a number that no limit takes for a movement."""
    at = replace(site, before=monitoring.started(site))
    site.world.machine.host.prometheus = "down"
    assert {(o.value, "does not answer" in o.note) for o in monitoring.moved(at)} == {(0.0, True)}


def test_a_run_whose_start_is_unknown_has_no_movement(site):
    """Without the start there is no window to ask for."""
    with pytest.raises(Unmeasurable, match="start of the run"):
        list(monitoring.moved(site))


# software and drives -------------------------------------------------------------------------


class Versions:
    """A load that reports `records` at once."""

    def __init__(self, *records):
        self.records = list(records)

    def finish(self, *, timeout):
        """Return the records."""
        return self.records


def software(site, monkeypatch, *records):
    """Return what the software probe makes of a script's records."""
    monkeypatch.setattr(site.world, "start", lambda script, params: contextlib.nullcontext(Versions(*records)))
    return {outcome.metric: outcome for outcome in host.software(site)}


def test_the_delivered_interpreters_versions_are_read(site, monkeypatch):
    """Every version is the interpreter's own, and one that it lacks is an absence with the remedy."""
    found = software(site, monkeypatch, {**VERSIONS, "torch": None})
    values = {m: o.value for m, o in found.items() if isinstance(o, Measurement)}
    assert values == {"software.transformers": "4.57.6", "software.cuda_toolkit": "13.2", "software.cudnn": "9.20.0"}
    assert "--hw-python" in found["software.torch"].reason


@pytest.mark.parametrize("records", [(), (VERSIONS, VERSIONS)])
def test_versions_are_reported_once(site, monkeypatch, records):
    """A script that says nothing, or two things, has said nothing."""
    with pytest.raises(Unmeasurable, match="instead of once"):
        software(site, monkeypatch, *records)


@pytest.mark.parametrize("junk", ["", 13, {"a": 1}, False])
def test_what_is_no_version_is_an_absence(site, monkeypatch, junk):
    """Anything but a word is no version."""
    assert isinstance(software(site, monkeypatch, {**VERSIONS, "cudnn": junk})["software.cudnn"], NotMeasured)


def test_drives_are_counted_by_their_controllers(site, monkeypatch):
    """A controller is nvme and a number; other names in the folder are none."""
    monkeypatch.setattr(site.world, "names", lambda path: ["nvme-subsys0", "nvme0", "nvme0c0n1", "nvme12"])
    (found,) = drive.inventory(site)
    assert (found.metric, found.value) == ("nvme.count", 2)
