"""Each finding speaks where its numbers speak, and is silent on others."""

from dataclasses import replace

import pytest

from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.findings import RULES, View, damaged_link, find
from pytest_gpuaccept.measurement import Interval, Measurement
from pytest_gpuaccept.report.words import findings
from pytest_gpuaccept.verdict import Verdict

BURN = {f"gpu{i}": 165.0 for i in range(4)}
CAPS = {f"gpu{i}": 480.0 for i in range(4)}


def m(metric, values, **conditions):
    """Return measurements of one metric by device."""
    return [Measurement(metric, device, value, "W", conditions=conditions) for device, value in values.items()]


def verdict(line, word, margin=None, device="gpu0"):
    """Return a verdict with a margin."""
    return Verdict(line, device, word, 1.0, "W", "", margin, "required", "measured", "close")


def seen(profile, measurements, verdicts=()):
    """Return the rules that speak over these values."""
    table = {(got.metric, got.device): got for got in measurements}
    view = View(profile, table, {(v.line, v.device): v for v in verdicts})
    return {finding.rule: finding for finding in find(view)}


SPEAKS = {
    "wrong-peak": [*m("gpu.gemm.reference_peak", {"gpu0": 330}), *m("gpu.gemm.fp16", {"gpu0": 140.0})],
    "uneven-caps": [*m("gpu.power.limit", {**CAPS, "gpu2": 400.0}), *m("gpu.burn.tflops", {**BURN, "gpu2": 140.0})],
    "target-as-limit": m("gpu.burn.temperature", {"gpu0": 83.0}),
    "engine-below-bandwidth": m("vllm.roofline", {"vllm": 0.1}),
    "latency-that-is-none": [
        *m("vllm.single.decode", {"vllm": 40.0}),
        *m("vllm.short.latency", {"vllm": 800}, tokens=32, stated_as="time to first token"),
    ],
    "peer-copy-without-peer": m("gpu_pair.copy", {"gpu0-gpu1": Interval(11, 12)}),
    "pageable-only": m("gpu.copy.d2h_pageable", {"gpu2": 3.0}),
    "too-fast-for-depth": m("nvme.write.rand", {"nvme0": 900_000}, iodepth=16),
    "peak-over-cap": [*m("gpu.power.limit", {"gpu1": 300}), *m("gpu.burn.power_peak", {"gpu1": 310})],
    "not-steady": m("gpu.combined.temperature", {"gpu0": 60.0}, seconds=120),
}
SILENT = {
    "wrong-peak": [*m("gpu.gemm.reference_peak", {"gpu0": 165.2}), *m("gpu.gemm.fp16", {"gpu0": 140.0})],
    "uneven-caps": [*m("gpu.power.limit", CAPS), *m("gpu.burn.tflops", {**BURN, "gpu2": 140.0})],
    "target-as-limit": [],
    "engine-below-bandwidth": [*m("vllm.roofline", {"vllm": 0.43}), *m("engines.cross", {"host": 2.2})],
    "latency-that-is-none": [
        *m("vllm.single.decode", {"vllm": 40.0}),
        *m("vllm.short.latency", {"vllm": 800}, tokens=32, stated_as="whole answer"),
    ],
    "peer-copy-without-peer": m("gpu_pair.copy", {"gpu0-gpu1": 20.0}, path="staged"),
    "pageable-only": [*m("gpu.copy.d2h_pageable", {"gpu2": 3.0}), *m("gpu.copy.d2h", {"gpu2": 26.0})],
    "too-fast-for-depth": m("nvme.write.rand", {"nvme0": 900_000}, iodepth=16, numjobs=16),
    "peak-over-cap": [*m("gpu.power.limit", {"gpu1": 300}), *m("gpu.burn.power_peak", {"gpu1": 302})],
    "not-steady": m("gpu.combined.temperature", {"gpu0": 60.0}, seconds=600),
}


@pytest.mark.parametrize("rule", SPEAKS)
def test_a_rule_speaks_on_its_numbers_and_is_silent_on_others(rule, profile):
    """The same rule over other numbers of the same metrics says nothing."""
    assert rule in seen(profile, SPEAKS[rule])
    assert rule not in seen(profile, SILENT[rule])


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_speaks_over_nothing(rule, profile):
    """Over an empty bundle every rule is silent."""
    assert list(rule(View(profile, {}, {}))) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0, 10**400, "text", True, Interval(1, None)])
def test_no_rule_breaks_on_nonsense(value, profile):
    """Values that make no sense are read without an exception."""
    everything = {got.metric: got for values in SPEAKS.values() for got in values}
    table = {
        (name, got.device): Measurement(name, got.device, value, "W", conditions=dict.fromkeys(got.conditions, value))
        for name, got in everything.items()
        if not isinstance(value, Interval) or not got.conditions
    }
    find(View(profile, table, {}))


def test_the_thinnest_margin_is_the_smallest_share_of_its_limit(profile):
    """Of two rates the one nearer to its floor is named when it is marginal; else there is no finding."""
    close, closer = verdict("gpu.gemm.fp16", "MARGINAL", 2.5), verdict("gpu.copy.h2d", "MARGINAL", 0.1, "gpu1")
    found = seen(profile, [], [close, closer])["thinnest-margin"]
    assert "gpu.copy.h2d on gpu1" in found.cause
    assert "thinnest-margin" not in seen(profile, [], [verdict("gpu.gemm.fp16", "PASS", 2.5)])


def test_the_target_is_no_limit_unless_throttling_is_proven_absent(profile):
    """With the throttle time proven zero on every GPU, a limit at the target is sound."""
    burnt = m("gpu.burn.temperature", {"gpu0": 80.0})
    assert "target-as-limit" not in seen(profile, burnt, [verdict("gpu.burn.throttle", "PASS")])
    assert "target-as-limit" in seen(profile, burnt, [verdict("gpu.burn.throttle", "ERROR")])


def test_a_slow_engine_with_the_right_kernel_gets_another_remedy(profile):
    """The advice does not blame the kernel when the kernel was proven right."""
    values = m("vllm.roofline", {"vllm": 0.1})
    blamed = seen(profile, values, [verdict("vllm.kernel", "FAIL", device="vllm")])["engine-below-bandwidth"]
    unknown = seen(profile, values)["engine-below-bandwidth"]
    cleared = seen(profile, values, [verdict("vllm.kernel", "PASS", device="vllm")])["engine-below-bandwidth"]
    assert "awq_marlin" in blamed.remedy
    assert "awq_marlin" not in cleared.remedy + unknown.remedy
    assert "not known" in unknown.cause


def test_an_excess_beyond_samples_is_told_apart_from_a_peak(profile):
    """4 % over the cap is a peak of samples, 15 % is not."""
    for watts, words in ((312, "not a sustained excess"), (345, "more than samples explain")):
        values = [*m("gpu.power.limit", {"gpu1": 300}), *m("gpu.burn.power_peak", {"gpu1": watts})]
        assert words in seen(profile, values)["peak-over-cap"].cause


def test_the_case_study_has_its_twelve_findings(case_study):
    """The published figures give the twelve findings, each with its figures."""
    found = findings(read_bundle(case_study))
    figures = {
        "wrong-peak": ("171.7", "104%", "165.2"),
        "uneven-caps": ("gpu1", "153.2", "450 W", "480 to 500 W"),
        "target-as-limit": ("72 C", "0 of 4"),
        "engine-below-bandwidth": ("7%", "106.9", "0.39", "awq"),
        "latency-that-is-none": ("2043 ms is 16 tokens at 8 tok/s", "1428 ms is 45.7 s / 32"),
        "peer-copy-without-peer": ("6 pairs", "19-22"),
        "pageable-only": ("1.4 GB/s",),
        "too-fast-for-depth": ("568,000", "56 us"),
        "peak-over-cap": ("519 W", "500 W", "+3.8%"),
        "thinnest-margin": ("152.5", "+1.7%"),
        "not-steady": ("60 s",),
        "damaged-link": (">=1", "c1:00.0"),
    }
    assert [f.rule for f in found] == list(figures)
    for finding in found:
        assert all(text in finding.evidence for text in figures[finding.rule]), finding
        assert finding.remedy


def test_a_damaged_link_is_told_with_direction_time_and_the_swap(profile):
    """Errors of one link among silent ones name the card, the way, the load, and how to find what is broken."""
    metric, armed = "gpu.aer.corrected", "AER is armed"
    seen = {f"gpu{n}": Measurement(metric, f"gpu{n}", 0, "count", proof=armed) for n in range(4)}
    where = {"address": "0000:c1:00.0", "direction": "host to GPU", "during": "vllm 12"}
    seen["gpu3"] = Measurement(
        "gpu.aer.corrected", "gpu3", 12, "count", conditions=where, note="0000:c1:00.0: RxErr 12"
    )
    serial = Measurement("gpu.serial", "gpu3", "1325022", "text")
    table = {(m.metric, m.device): m for m in (*seen.values(), serial)}
    (finding,) = damaged_link(View(profile, table, {}))
    assert finding.cause == (
        "The PCIe link of gpu3 damages packets on the way host to GPU (during: vllm 12); those of gpu0, gpu1, gpu2 "
        "show none: it is this card, its slot or its riser."
    )
    assert "RxErr 12" in finding.evidence
    assert "0000:c1:00.0, serial 1325022" in finding.evidence
    assert "let gpu3 and gpu0 change places" in finding.remedy


def test_links_that_are_all_bad_have_no_outlier(profile):
    """Where every link has errors none is singled out, and a silent machine has no finding."""
    metric = "gpu.aer.uncorrected"
    table = {(metric, f"gpu{n}"): Measurement(metric, f"gpu{n}", 1, "count") for n in range(4)}
    found = list(damaged_link(View(profile, table, {})))
    assert len(found) == 4
    assert not any("show none" in finding.cause for finding in found)
    silent = {key: replace(m, value=0) for key, m in table.items()}
    assert not list(damaged_link(View(profile, silent, {})))
