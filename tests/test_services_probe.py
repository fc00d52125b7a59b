"""Services that do not answer are a measured no, answers that cannot be read are an absence."""

import contextlib
import datetime as dt
import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes import host, services, storage
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld

FUZZ = settings(deadline=None, database=None)
NOW = dt.datetime(2026, 1, 1, 8, 0, tzinfo=dt.UTC)
GOOD = {"monitoring.prometheus": True, "monitoring.dcgm_exporter": True, "monitoring.grafana": True}
TARGET = {
    "scrapeUrl": "http://127.0.0.1:9400/metrics", "health": "up", "lastError": "",
    "lastScrape": "2026-01-01T07:59:50.123456789Z",
}  # fmt: skip
VERSIONS = {"torch": "2.10.0+cu128", "transformers": "4.57.6", "cuda_toolkit": "13.2", "cudnn": "9.20.0"}


@pytest.fixture
def world(profile):
    """Return a healthy simulated machine of the commissioned kind."""
    return SimWorld(profile, Scenario("healthy"))


@pytest.fixture
def site(world, profile):
    """Return what a probe of the host is given."""
    return Site(world, profile, "host", services.PARAMS, lambda name, text: "digest")


def look(site):
    """Return the outcomes of the services by metric."""
    return {outcome.metric: outcome for outcome in services.services(site)}


def test_a_well_delivered_machine_is_watched_and_uses_its_space(site):
    """Every service does its work, and the unallocated space is the volume group's own figure."""
    found = {metric: outcome.value for metric, outcome in look(site).items()}
    assert found == {**GOOD, "host.lvm.unallocated": pytest.approx(5.0, abs=0.01)}


@pytest.mark.parametrize(
    ("metric", "parameter", "value", "note"),
    [
        ("monitoring.prometheus", "prometheus", "down", "does not answer"),
        ("monitoring.prometheus", "prometheus", "stale", "0 of 2 targets"),
        ("monitoring.dcgm_exporter", "exporter", False, "does not answer"),
        ("monitoring.dcgm_exporter", "exporter_gpus", 3, "3 of 4 GPUs"),
        ("monitoring.dcgm_exporter", "exporter_gpus", 0, "0 of 4 GPUs"),
        ("monitoring.grafana", "grafana", "down", "does not answer"),
        ("monitoring.grafana", "grafana", "database", "database failing"),
    ],
)
def test_a_service_that_does_not_do_its_work_is_a_measured_no(site, metric, parameter, value, note):
    """A silent, stale or partial service is False with the reason, and leaves the others alone."""
    setattr(site.world.machine.host, parameter, value)
    found = look(site)
    assert found[metric].value is False
    assert note in found[metric].note
    assert {m: found[m].value for m in GOOD if m != metric} == {m: True for m in GOOD if m != metric}


@pytest.mark.parametrize(
    "body", ["", "<html>sign in</html>", "[]", '{"data": null}', '{"status": "success"}', "[" * 9999]
)
def test_an_answer_that_cannot_be_read_is_an_absence(site, monkeypatch, body):
    """A login page on a server's port is no evidence for it nor against it."""
    monkeypatch.setattr(site.world, "http", lambda url, timeout: body)
    assert all(isinstance(look(site)[metric], NotMeasured) for metric in GOOD)


@pytest.mark.parametrize(
    ("changed", "up"),
    [
        ({}, True),
        ({"health": "down"}, False),
        ({"lastScrape": "2026-01-01T07:50:00Z"}, False),
        ({"lastScrape": "0001-01-01T00:00:00Z"}, False),
        ({"scrapeUrl": "http://127.0.0.1:9090/metrics"}, False),
    ],
)
def test_a_target_counts_when_it_is_another_up_and_fresh(changed, up):
    """Prometheus that scrapes only itself, or nothing lately, watches nothing."""
    answer = json.dumps({"data": {"activeTargets": [{**TARGET, **changed}]}})
    assert services.scraped(answer, 9090, NOW - dt.timedelta(minutes=2))[0] is up


@pytest.mark.parametrize(
    "changed", [{"lastScrape": "2026-01-01T07:59:50"}, {"lastScrape": 7}, {"scrapeUrl": "http://x:y"}]
)
def test_a_target_that_cannot_be_read_is_no_target_that_is_down(changed):
    """A time without a zone or an address without a port makes the answer unreadable."""
    with pytest.raises(Unmeasurable, match="Prometheus"):
        services.scraped(json.dumps({"data": {"activeTargets": [{**TARGET, **changed}]}}), 9090, NOW)


def test_a_gpu_is_covered_by_a_number_under_either_name():
    """Old and new names count, a GPU counts once, and NaN is no temperature."""
    text = (
        "# HELP DCGM_FI_DEV_GPU_TEMP GPU temperature (in C).\n"
        'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a",modelName="NVIDIA {A} 30"} 44\n'
        'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a",GPU_I_ID="3"} 44\n'
        'DCGM_FI_DEV_GPU_TEMP_CELSIUS{gpu="1",UUID="GPU-b"} 4.4e+01 1767254400000\n'
        'DCGM_FI_DEV_GPU_TEMP{gpu="2",UUID="GPU-c"} NaN\n'
        'DCGM_FI_DEV_SM_CLOCK{gpu="3",UUID="GPU-d"} 210\n'
        "go_goroutines 12\n"
    )
    assert services.covered_gpus(text) == {"GPU-a", "GPU-b"}


def test_an_exporter_without_ordered_gpus_has_nothing_to_cover(site):
    """None of none covered is no success."""
    profile = site.profile.model_copy(update={"devices": {}})
    assert "orders no GPU" in look(replace(site, profile=profile))["monitoring.dcgm_exporter"].reason


def report(*groups):
    """Return vgs' report of volume groups, each (name, size, free)."""
    return json.dumps(
        {"report": [{"vg": [dict(zip(("vg_name", "vg_size", "vg_free"), g, strict=True)) for g in groups]}]}
    )


def test_all_volume_groups_are_read_behind_a_warning():
    """vgs may print warnings before its report; sizes are bytes."""
    text = "  WARNING: Running as a non-root user.\n" + report(("a", "100", "25"), ("b", "300", "75"))
    assert services.parse_vgs(text) == {"a": (100, 25), "b": (300, 75)}


@pytest.mark.parametrize(
    "text", [report(), report(("a", "0", "0")), report(("a", "10", "11")), report(("a", "10", "-1"))]
)
def test_no_volume_group_is_not_all_space_allocated(text):
    """An empty list is what vgs says where it may not look; sizes that cannot be are no sizes."""
    with pytest.raises(Unmeasurable, match="root"):
        services.parse_vgs(text)


@pytest.mark.parametrize("state", [None, 1, [], {}])
def test_a_database_without_a_word_is_an_absence(state):
    """Grafana that does not say how its database is has said nothing."""
    with pytest.raises(Unmeasurable, match="Grafana"):
        services.database_state(json.dumps({"database": state}))


def test_sizes_that_are_no_numbers_are_an_absence():
    """JSON's Infinity is no size."""
    with pytest.raises(Unmeasurable, match="vgs"):
        services.parse_vgs(report(("a", float("inf"), 0)))


def test_a_machine_without_vgs_says_so(site, monkeypatch):
    """A tool that is not there costs its own line only."""
    monkeypatch.delitem(services.LOOKS, services.PROMETHEUS)
    monkeypatch.setattr(services, "VGS", ("no-vgs",))
    found = look(site)
    assert "no-vgs cannot be started" in found["host.lvm.unallocated"].reason
    assert found["monitoring.grafana"].value is True


KEYS = ["data", "activeTargets", *TARGET, "database", "report", "vg", "vg_name", "vg_size", "vg_free"]
WORDS = [*TARGET.values(), "ok", "1", "2"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
)  # fmt: skip
ANSWERS = st.one_of(
    st.text(), JSON.map(json.dumps), st.sampled_from(["DCGM_FI_DEV_GPU_TEMP{UUID=", "# HELP x\n", "a 1"])
)


@pytest.mark.parametrize(
    "parse",
    [lambda text: services.scraped(text, 9090, NOW), services.database_state, services.parse_vgs],
    ids=["targets", "grafana", "vgs"],
)
@FUZZ
@given(text=ANSWERS)
def test_any_answer_is_read_or_no_measurement(parse, text):
    """A parser answers with something or says why not."""
    with suppress(Unmeasurable):
        assert parse(text) is not None


@FUZZ
@given(text=ANSWERS)
def test_any_exposition_covers_no_gpu_that_it_does_not_name(text):
    """A GPU is covered only when the text holds its UUID."""
    with suppress(Unmeasurable):
        assert all(uuid in text for uuid in services.covered_gpus(text))


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
    (found,) = storage.inventory(site)
    assert (found.metric, found.value) == ("nvme.count", 2)
