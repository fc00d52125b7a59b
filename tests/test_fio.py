"""A fio result counts as a drive's speed only when every gate lets it through."""

import copy
import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probes.drives.fio import FioResult, Job, Seen, asked, complaint, flaws, parse_fio, wrong_data
from pytest_gpuaccept.world import Completed

FUZZ = settings(deadline=None, database=None)
GIB = 2**30
IDLE = {
    "io_bytes": 0, "bw_bytes": 0, "iops": 0.0, "runtime": 0, "short_ios": 0, "drop_ios": 0,
    "lat_ns": {"min": 0, "mean": 0.0, "N": 0},
}  # fmt: skip
BUSY = {
    "io_bytes": 59_130_249_216, "bw_bytes": 985_176_921, "iops": 939.538117, "runtime": 60_020, "short_ios": 0,
    "drop_ios": 0,
    "clat_ns": {"percentile": {"1.000000": 2e6, "50.000000": 8e6, "99.000000": 31_000_000, "99.900000": 6e7}},
    "lat_ns": {"min": 19_800, "max": 91_796_398, "mean": 8_513_450.397909, "stddev": 21182.48, "N": 56391},
}  # fmt: skip
OPTIONS = {
    "name": "seq_read", "filename": "/mnt/x/fio.dat", "size": "2147483648", "rw": "read", "bs": "1024k",
    "iodepth": "8", "numjobs": "1", "ioengine": "io_uring", "direct": "1", "runtime": "60",
    "randrepeat": "0", "invalidate": "1",
}  # fmt: skip
REPORT = {
    "fio version": "fio-3.33",
    "timestamp": 1795466898,
    "global options": {"randrepeat": "0", "bs": "4k"},
    "jobs": [{"jobname": "seq_read", "error": 0, "elapsed": 66, "job options": OPTIONS, "read": BUSY, "write": IDLE}],
    "disk_util": [{"name": "nvme0n1", "util": 99.6}],
}
JOB = Job("seq_read", "read", 1024, 8, 1, 60)
GOOD = parse_fio(json.dumps(REPORT), "read")
SIZE = 2 * GIB
LINK = 7876.0
FILE = "/mnt/x/fio.dat"
ARGV = JOB.argv(FILE, SIZE, "io_uring")
SEEN = Seen(GOOD.io_bytes, 0, 99.6)


def altered(path, value):
    """Return the report's text with the value at `path` replaced."""
    report = copy.deepcopy(REPORT)
    part = report
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return json.dumps(report)


@pytest.mark.parametrize(
    "before", ["", "fio: warning: /mnt/{models} is slow\n\n", "\nfio: terminating on signal 15\n", "a {b}\nc {\n"]
)
def test_the_report_is_read_to_the_byte(before):
    """Every figure is fio's own, and a job's options go before the global ones."""
    result = parse_fio(before + json.dumps(REPORT, indent=2), "read")
    percentiles = {1.0: 2e6, 50.0: 8e6, 99.0: 31e6, 99.9: 6e7}
    assert result == FioResult(
        59_130_249_216, 985_176_921, 939.538117, 60_020, 8_513_450.397909, 0, OPTIONS, percentiles, 0, "fio-3.33"
    )
    assert result.percentile_us(99.0) == 31_000
    with pytest.raises(Unmeasurable, match="no 95th percentile"):
        result.percentile_us(95.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fio: io_uring not available\n",
        "<html><body>{}</body></html>",
        "{}",
        '{"jobs": []}',
        json.dumps(REPORT)[:-40],
        altered(("jobs", 0, "read"), None),
        *[
            altered(("jobs", 0, "read"), {k: v for k, v in BUSY.items() if k != key})
            for key in ("io_bytes", "bw_bytes", "iops", "runtime", "lat_ns", "short_ios", "drop_ios")
        ],
        altered(("jobs", 0, "read", "iops"), float("nan")),
        altered(("jobs", 0, "read", "lat_ns", "mean"), float("inf")),
        altered(("jobs", 0, "read", "io_bytes"), float("nan")),
        altered(("jobs", 0, "read", "bw_bytes"), None),
        altered(("jobs", 0, "error"), "I/O error"),
        altered(("jobs", 0, "error"), True),
        altered(("jobs", 0, "read", "io_bytes"), -1),
        altered(("jobs", 0, "read", "io_bytes"), "59130249216"),
        altered(("jobs", 0, "read", "bw_bytes"), 985_176_921.5),
        altered(("jobs", 0, "read", "iops"), True),
        altered(("jobs", 0, "read", "clat_ns", "percentile"), {"nan": 1.0}),
        altered(("global options",), None),
        altered(("jobs", 0, "job options"), ["bs"]),
        altered(("jobs",), REPORT["jobs"] * 2),
        altered(("jobs", 0, "read", "clat_ns", "percentile"), {"99.000000": float("nan")}),
        altered(("jobs", 0, "read", "clat_ns"), 7),
        altered(("jobs", 0, "read", "short_ios"), None),
        *[altered(("fio version",), version) for version in ("fio-2.21", "3.33", "", None, 3.33)],
    ],
)
def test_what_is_no_report_is_no_measurement(text):
    """Text that is not fio's whole report is quoted in the refusal."""
    with pytest.raises(Unmeasurable, match="fio's report cannot be read") as refusal:
        parse_fio(text, "read")
    assert repr(text[:80]) in str(refusal.value)


SCALAR = st.none() | st.booleans() | st.integers() | st.text() | st.floats()
PATHS = [
    ("jobs",), ("global options",), ("jobs", 0), *[("jobs", 0, key) for key in ("error", "job options", "read")],
    *[("jobs", 0, "read", key) for key in BUSY], ("jobs", 0, "read", "lat_ns", "mean"),
]  # fmt: skip


@FUZZ
@given(path=st.sampled_from(PATHS), value=SCALAR | st.lists(SCALAR, max_size=2) | st.dictionaries(st.text(), SCALAR))
def test_a_report_with_any_value_in_any_place_is_refused_or_read_as_it_stands(path, value):
    """No value, however strange, is an exception or turns into another figure."""
    with suppress(Unmeasurable):
        result = parse_fio(altered(path, value), "read")
        stated = {"io_bytes": result.io_bytes, "bw_bytes": result.bw_bytes, "runtime": result.runtime_ms}
        stated |= {"iops": result.iops}
        expected = {key: value if path[-1] == key else BUSY[key] for key in stated}
        assert stated == {**expected, "iops": float(expected["iops"])}


@FUZZ
@given(text=st.text() | st.text('{}[]":,jobs01').map("{".__add__), cut=st.integers(0, 1500))
def test_any_text_is_no_report(text, cut):
    """Text, also behind the beginning of a report, is never a result."""
    whole = json.dumps(REPORT)
    for broken in (text, whole[: cut % len(whole)] + text):
        with suppress(Unmeasurable):
            assert parse_fio(broken, "read") == GOOD


def test_a_healthy_result_has_no_flaw():
    """A drive that did what it was asked is evidence, with and without a known link."""
    for ceiling in (LINK, None):
        assert flaws(GOOD, JOB, ARGV, SEEN, ceiling) == []


@pytest.mark.parametrize(
    ("result", "seen"),
    [
        ({"runtime_ms": 58_800}, SEEN),
        ({}, replace(SEEN, moved=int(0.951 * GOOD.io_bytes))),
        ({}, replace(SEEN, beside=GOOD.io_bytes // 11)),
        ({}, replace(SEEN, busy=90.0)),
        ({"bw_bytes": 7_630_000_000, "iops": 7276.5, "latency_ns": 8e9 / 7276.5}, SEEN),
        ({"latency_ns": 7.3e9 / GOOD.iops}, SEEN),
        ({"latency_ns": 8.7e9 / GOOD.iops}, SEEN),
        ({"iops": 948.0}, SEEN),
        ({"percentiles": {1.0: 5.0, 99.0: 5.0}}, SEEN),
    ],
)
def test_a_result_just_inside_every_gate_is_evidence(result, seen):
    """No gate is narrower than it says."""
    assert flaws(replace(GOOD, **result), JOB, ARGV, seen, LINK) == []


FAST = {"bw_bytes": 7_640_000_000, "iops": 7286.07, "latency_ns": 8e9 / 7286.07}
"""A rate between 97 % of the link's and the link's, consistent in itself."""
OTHER = {key: {**OPTIONS, key: "7"} for key in ("direct", "size", "filename", "ioengine", "runtime", "bs", "numjobs")}


@pytest.mark.parametrize(
    ("result", "seen", "reason"),
    [
        ({"io_bytes": 2_147_483_648}, Seen(18_000_000, 0, 99), "the drive moved 18,000,000 of the 2,147,483,648 bytes"),
        ({}, replace(SEEN, moved=int(0.94 * GOOD.io_bytes)), "the drive moved"),
        ({}, replace(SEEN, beside=6_000_000_000), "somebody else moved 6,000,000,000 bytes on the drive meanwhile"),
        ({"runtime_ms": 1618}, SEEN, "ran 1618 ms of 60 s"),
        ({"error": 84}, SEEN, "error 84"),
        ({"latency_ns": BUSY["lat_ns"]["mean"] / 8}, SEEN, "1.0 requests were in flight on average instead of 8"),
        ({"latency_ns": BUSY["lat_ns"]["mean"] * 1.2}, SEEN, "9.6 requests"),
        ({"iops": 960.0, "latency_ns": 8e9 / 960}, SEEN, "960 IOPS of 1024 KiB are not 985 MB/s"),
        ({"percentiles": {}}, SEEN, "percentiles of the latency are missing or do not rise"),
        ({"percentiles": {99.0: 5.0, 50.0: 6.0, 1.0: 1.0}}, SEEN, "percentiles of the latency"),
        ({"lost_ios": 1}, SEEN, "1 requests were cut short or dropped"),
        ({}, replace(SEEN, busy=89.9), "the drive had work in only 89.9 % of the time"),
        *[({"options": options}, SEEN, f"other options than asked: {key}") for key, options in OTHER.items()],
        ({"options": {k: v for k, v in OPTIONS.items() if k != "iodepth"}}, SEEN, "than asked: iodepth"),
        ({"io_bytes": 0}, SEEN, "nothing was transferred"),
        ({"bw_bytes": 0}, SEEN, "nothing was transferred"),
        ({"bw_bytes": -1}, SEEN, "nothing was transferred"),
        (FAST, SEEN, "7,640 MB/s is more than a link of 7876.0 MB/s carries"),
    ],
)
def test_each_gate_catches_its_own_fault(result, seen, reason):
    """One fault is one flaw, in the words of its gate."""
    found = flaws(replace(GOOD, **result), JOB, ARGV, seen, LINK)
    assert len(found) == 1
    assert reason in found[0]


def test_a_queue_that_was_not_asked_for_is_told():
    """Eight requests in flight are not the 32 of a job that asks for four times eight."""
    job = replace(JOB, numjobs=4)
    options = dict(asked(job.argv(FILE, SIZE, "io_uring")))
    [found] = flaws(replace(GOOD, options=options), job, job.argv(FILE, SIZE, "io_uring"), SEEN, LINK)
    assert found == "8.0 requests were in flight on average instead of 32"


def test_unwritten_extents_at_37_gigabytes_are_caught_twice():
    """What no link carries and no drive moved is told with both reasons."""
    iops = 37e9 / 2**20
    fast = replace(GOOD, io_bytes=2_147_483_648, bw_bytes=37_000_000_000, iops=iops, latency_ns=8e9 / iops)
    no_drive, no_link = flaws(fast, JOB, ARGV, replace(SEEN, moved=18_000_000), LINK)
    assert "drive moved" in no_drive
    assert "link" in no_link


def test_jobs_that_write_end_with_their_data_on_the_drive():
    """Only a job that writes syncs at its end, and only a timed one has a time."""
    layout = Job("layout", "write", 1024, 8, 1, 0).argv(FILE, SIZE, "libaio")
    assert ("--end_fsync=1" in layout, "--time_based" in layout) == (True, False)
    assert ("--end_fsync=1" in ARGV, "--time_based" in ARGV, "--runtime=60" in ARGV) == (False, True, True)


def test_a_verify_job_and_a_node_add_their_options():
    """Checksums stop at the first error and leave no state file; a drive's NUMA node binds CPUs and memory."""
    argv = Job("verify", "write", 128, 16, 1, 0, verify=True, node=1).argv(FILE, SIZE, "libaio")
    assert {"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"} <= set(argv)
    assert {"--numa_cpu_nodes=1", "--numa_mem_policy=bind:1"} <= set(argv)
    assert not any("verify" in word or "numa" in word for word in ARGV)


CRC = "crc32c: verify failed at file /mnt/x/f offset 2883584, length 131072 (requested block: offset=2883584)\n"


@pytest.mark.parametrize(
    ("status", "report", "err", "count"),
    [
        (1, {"error": 84}, CRC, 1),
        (1, {"error": 84}, "", 1),
        (1, None, CRC + "       Expected CRC: d13680a2\n" + CRC, 2),
        (1, {"error": 5}, "fio: io_u error on file /mnt/x/f: Input/output error: read offset=0\n", 0),
        (0, {"error": 0}, "", 0),
        (1, None, "", 0),
    ],
)
def test_wrong_data_are_counted_where_fio_says_so(status, report, err, count):
    """A checksum that does not match is counted; an I/O error is another thing."""
    out = "" if report is None else altered(("jobs", 0, "error"), report["error"])
    assert wrong_data(Completed(("fio",), status, out, err, 1.0)) == count


@pytest.mark.parametrize(
    ("out", "err", "said"),
    [
        ("", "a\nlast words\n", "last words"),
        ("fio: pid=0, err=22\n{}", "", "fio: pid=0, err=22"),
        ("{", "", "no reason given"),
    ],
)
def test_a_failure_is_told_in_fios_words(out, err, said):
    """The last line on stderr, else what stands before the report."""
    assert complaint(Completed(("fio",), 1, out, err, 1.0)) == said
