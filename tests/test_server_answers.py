"""What servers answer, read as text: targets, stored samples, alerts, expositions, and whatever else may come."""

import datetime as dt
import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probes.services import exposition, monitoring, prometheus

FUZZ = settings(deadline=None, database=None)
NOW = dt.datetime(2026, 1, 1, 8, 0, tzinfo=dt.UTC)
BASE, HOST = "http://127.0.0.1:9090", "box"
TARGET = {
    "scrapeUrl": "http://127.0.0.1:9400/metrics", "health": "up", "lastError": "",
    "lastScrape": "2026-01-01T07:59:50.123456789Z",
}  # fmt: skip
RULE = {"type": "alerting", "name": "Hot", "query": "DCGM_FI_DEV_GPU_TEMP_CELSIUS > 85", "health": "ok"}
SERIES = {"metric": {"UUID": "GPU-a"}, "values": [[1.5, "30"], [2, "31"]]}


# targets -------------------------------------------------------------------------------------


def targets(*changes):
    """Return Prometheus' answer with targets, each with fields changed."""
    return json.dumps({"data": {"activeTargets": [{**TARGET, **changed} for changed in changes]}})


def scraped(*changes, base=BASE):
    """Say whether these targets are scraped as they should be."""
    return prometheus.scraped(targets(*changes), base, HOST, NOW - dt.timedelta(minutes=2))[0]


@pytest.mark.parametrize(
    ("changed", "up"),
    [
        ({}, True),
        ({"health": "down"}, False),
        ({"lastError": "context deadline exceeded"}, False),
        ({"lastScrape": "2026-01-01T07:50:00Z"}, False),
        ({"lastScrape": "0001-01-01T00:00:00Z"}, False),
        ({"scrapeUrl": "http://127.0.0.1:9090/metrics"}, False),
    ],
)
def test_a_target_counts_when_it_is_another_up_and_fresh(changed, up):
    """Prometheus that scrapes only itself, or nothing lately, watches nothing."""
    assert scraped(changed) is up


def test_every_target_of_the_machine_counts():
    """One that is down is enough, whatever the others do, and itself is none of them."""
    assert scraped({}, {"scrapeUrl": "http://127.0.0.1:9100/metrics"}, {"scrapeUrl": "http://localhost:9090/metrics"})
    assert not scraped({}, {"scrapeUrl": "http://127.0.0.1:9100/metrics", "health": "down"})


@pytest.mark.parametrize(
    ("base", "others", "up"),
    [
        (BASE, "http://other:9100/metrics", True),
        ("http://monitor:9090", "http://other:9100/metrics", True),
        ("http://monitor:9090", "http://box.example.org:9100/metrics", False),
        ("https://monitor/prometheus", "http://127.0.0.1:9100/metrics", True),
    ],
)
def test_a_server_that_looks_after_many_is_asked_for_this_machine(base, others, up):
    """What is down elsewhere is not this machine's fault; loopback is this machine only where the server is too."""
    own = {} if base == BASE else {"scrapeUrl": "http://BOX:9400/metrics"}
    assert scraped(own, {"scrapeUrl": others, "health": "down"}, base=base) is up


def test_a_server_that_knows_the_machine_by_another_name_must_have_all():
    """Where no target bears the machine's name, each may be its own."""
    elsewhere = {"scrapeUrl": "http://10.0.0.7:9400/metrics"}
    assert scraped(elsewhere, base="http://monitor:9090")
    assert not scraped(
        elsewhere, {**elsewhere, "scrapeUrl": "http://10.0.0.8:1/", "health": "down"}, base="http://m:1/"
    )


def test_a_server_elsewhere_that_scrapes_others_by_name_does_not_scrape_this_machine():
    """Of one that runs here, what bears another name may be a container's."""
    other = {"scrapeUrl": "http://other-17:9100/metrics"}
    assert not scraped(other, base="http://prom.example.net:9090")
    assert scraped(other, base="http://127.0.0.1:9090")


@pytest.mark.parametrize(
    "changed", [{"lastScrape": "2026-01-01T07:59:50"}, {"lastScrape": 7}, {"scrapeUrl": "http://x:y"}]
)
def test_a_target_that_cannot_be_read_is_no_target_that_is_down(changed):
    """A time without a zone or an address without a port makes the answer unreadable."""
    with pytest.raises(Unmeasurable, match="Prometheus"):
        scraped(changed)


# stored samples and alerts -------------------------------------------------------------------


def matrix(*series):
    """Return Prometheus' answer with stored series, each (labels, values)."""
    result = [{"metric": labels, "values": values} for labels, values in series]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})


def test_stored_samples_are_the_gpus_and_only_numbers_count():
    """Both names of a series are one GPU's, in the order of time; NaN is nothing stored, and no card's is nobody's."""
    answer = matrix(
        ({"UUID": "GPU-a", "__name__": "new"}, [[3, "40"], [4, "NaN"]]),
        ({"UUID": "GPU-a", "__name__": "old"}, [[1, "30"]]),
        ({"UUID": "GPU-b"}, [[1, "NaN"]]),
        ({}, [[1, "30"]]),
    )
    assert prometheus.stored(answer) == {"GPU-a": [(1.0, 30.0), (3.0, 40.0)], "GPU-b": []}


@pytest.mark.parametrize("kind", ["vector", "scalar", None])
def test_an_answer_to_another_question_is_no_empty_store(kind):
    """Nothing of another kind is not nothing stored."""
    with pytest.raises(Unmeasurable, match="cannot be read"):
        prometheus.stored(json.dumps({"data": {"resultType": kind, "result": []}}))


@pytest.mark.parametrize(
    ("changed", "topics"),
    [
        ({}, {"temperature": ["Hot"], "Xid": [], "PCIe errors": []}),
        ({"query": "DCGM_FI_DEV_XID_ERROR > 0"}, {"temperature": [], "Xid": ["Hot"], "PCIe errors": []}),
        ({"query": "DCGM_FI_DEV_PCIE_REPLAY_TOTAL > 0"}, {"temperature": [], "Xid": [], "PCIe errors": ["Hot"]}),
        ({"query": "nvidia_smi_temperature_gpu > 85"}, {"temperature": ["Hot"], "Xid": [], "PCIe errors": []}),
        ({"query": "up == 0"}, {"temperature": [], "Xid": [], "PCIe errors": []}),
        ({"query": "smartctl_device_temperature > 70"}, {"temperature": [], "Xid": [], "PCIe errors": []}),
        ({"query": "node_maxidle > 1 or PCIE_SLOT_ERROR > 0"}, {"temperature": [], "Xid": [], "PCIe errors": []}),
        ({"health": "err"}, {"temperature": [], "Xid": [], "PCIe errors": []}),
        ({"type": "recording"}, {"temperature": [], "Xid": [], "PCIe errors": []}),
    ],
)
def test_an_alert_counts_for_what_it_looks_at(changed, topics):
    """The expression says what an alert is for; what cannot be evaluated, or only records, alerts nobody."""
    assert prometheus.alerts(json.dumps({"data": {"groups": [{"rules": [{**RULE, **changed}]}]}})) == topics


# exposition ----------------------------------------------------------------------------------


def shown(uuid="GPU-a", **changed):
    """Return a whole GPU's exposition under the newer names, values changed by name; None leaves one out."""
    values = {
        "GPU_TEMP_CELSIUS": "44", "BOARD_POWER_WATTS": "21.5", "SM_CLOCK": "210", "GPU_UTIL_RATIO": "0",
        "FB_USED": "1", "FB_FREE": "2.4e+04", "PCIE_REPLAY_TOTAL": "0", "XID_ERROR": "0", **changed,
    }  # fmt: skip
    lines = [
        f'DCGM_FI_DEV_{name}{{gpu="0",UUID="{uuid}",modelName="A {{x}}, \\"30\\""}} {v}'
        for name, v in values.items()
        if v
    ]
    return "# HELP x y\n" + "\n".join(lines) + " 1767254400000\n"


@pytest.mark.parametrize(
    ("changed", "flaw"),
    [
        ({}, ""),
        ({"GPU_TEMP_CELSIUS": None, "GPU_TEMP": "44"}, ""),
        ({"GPU_TEMP_CELSIUS": "NaN"}, "no temperature"),
        ({"XID_ERROR": None, "FB_USED": None}, "no used memory, last Xid"),
        ({"BOARD_POWER_WATTS": "0"}, "power is 0"),
        ({"GPU_TEMP_CELSIUS": "0"}, "temperature is 0"),
        ({"PCIE_REPLAY_TOTAL": "-1"}, "PCIe replays is -1"),
        ({"FB_USED": "+Inf"}, "no used memory"),
    ],
)
def test_a_gpu_is_shown_whole_under_either_name(changed, flaw):
    """Old and new names count; NaN shows nothing, and a living card has power, temperature and clock."""
    assert exposition.flaw(exposition.by_gpu(exposition.parse(shown(**changed)))["GPU-a"]) == flaw


@pytest.mark.parametrize("text", ["", "\n", "<html>", "a 1\n<html>\n", "a 1\nb\n", "a 1 2 3\n", 'a{x="1} 2\nb{ 1'])
def test_a_text_that_is_no_exposition_throughout_is_none(text):
    """A page behind some samples, or a text that was cut, shows nothing that could be counted."""
    with pytest.raises(Unmeasurable, match="no Prometheus text"):
        exposition.parse(text)


def test_profiling_series_are_never_required():
    """GeForce cards have no DCGM_FI_PROF series: none of the required names is one."""
    assert not any("PROF" in name for names in exposition.REQUIRED.values() for name in names)


# any answer ----------------------------------------------------------------------------------


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


def places(node, path=()):
    """Yield the path of every node of a JSON value."""
    yield path
    for key, below in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(below, (*path, key))


def with_other(node, path, value):
    """Return a JSON value with another one at a path."""
    if not path:
        return value
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    kept = {key: with_other(below, path[1:], value) if key == path[0] else below for key, below in pairs}
    return kept if isinstance(node, dict) else list(kept.values())


def damaged(whole):
    """Return texts: a whole answer of which one part is something else, or no JSON at all."""
    somewhere = st.sampled_from(list(places(whole)))
    return st.text() | st.builds(with_other, st.just(whole), somewhere, JSON).map(json.dumps)


WHOLE = {
    "targets": (lambda text: prometheus.scraped(text, BASE, HOST, NOW), {"data": {"activeTargets": [TARGET, TARGET]}}),
    "stored": (prometheus.stored, {"data": {"resultType": "matrix", "result": [SERIES, SERIES]}}),
    "alerts": (prometheus.alerts, {"data": {"groups": [{"rules": [RULE, RULE]}]}}),
    "retention": (prometheus.retention, {"data": {"storageRetention": "15d"}}),
    "grafana": (monitoring.database_state, {"database": "ok", "version": "12"}),
}


@pytest.mark.parametrize("name", WHOLE)
@FUZZ
@given(data=st.data())
def test_any_answer_is_read_or_no_measurement(name, data):
    """Whatever stands in an answer's place or in one of its parts, it is read or refused with a reason."""
    parse, whole = WHOLE[name]
    assert parse(json.dumps(whole))
    try:
        assert parse(data.draw(damaged(whole))) is not None
    except Unmeasurable as error:
        assert "cannot be read" in str(error) or "does not say" in str(error)  # noqa: PT017 - both ways are right


@FUZZ
@given(values=JSON)
def test_any_stored_value_is_a_number_or_left_out(values):
    """Whatever a series holds, what is read is finite."""
    with suppress(Unmeasurable):
        found = prometheus.stored(matrix(({"UUID": "GPU-a"}, values)))
        assert all(abs(t) < float("inf") and abs(v) < float("inf") for t, v in found["GPU-a"])


QUEUED = "vllm:num_requests_running 1\nvllm:num_requests_waiting 2\n"
LINES = [*shown().splitlines(), *QUEUED.splitlines(), "<html>", "a 1", "DCGM_FI_DEV_GPU_TEMP{UUID=", "b NaN", ""]


@FUZZ
@given(text=st.text() | st.lists(st.sampled_from(LINES), max_size=12).map("\n".join))
def test_any_exposition_covers_no_gpu_that_it_does_not_name(text):
    """A GPU is covered only when the text holds its UUID and every series; a queue has both of its counts."""
    with suppress(Unmeasurable):
        found = exposition.by_gpu(exposition.parse(text))
        assert all(uuid in text for uuid in found)
        assert all(
            exposition.flaw(of) or text.count("DCGM_FI_DEV_") >= len(exposition.REQUIRED) for of in found.values()
        )
    with suppress(Unmeasurable):
        assert {"running", "waiting"} <= set(exposition.queue(exposition.parse(text)).replace(",", "").split())
