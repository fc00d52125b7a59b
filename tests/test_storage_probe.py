"""A fio result counts as a drive's speed only when every gate lets it through."""

import copy
import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes import storage
from pytest_gpuaccept.probes.storage import FioResult, Job, flaws, parse_fio
from pytest_gpuaccept.profile import DeviceFacts, Profile
from pytest_gpuaccept.world import Completed, Disk, LiveWorld

FUZZ = settings(deadline=None, database=None)
GIB = 2**30
IDLE = {"io_bytes": 0, "bw_bytes": 0, "iops": 0.0, "runtime": 0, "lat_ns": {"min": 0, "mean": 0.0, "N": 0}}
BUSY = {
    "io_bytes": 59_130_249_216, "bw_bytes": 985_176_921, "iops": 939.538117, "runtime": 60_020, "short_ios": 0,
    "lat_ns": {"min": 19_800, "max": 91_796_398, "mean": 8_513_450.397909, "stddev": 21182.48, "N": 56391},
}  # fmt: skip
OPTIONS = {
    "name": "seq_read", "filename": "/mnt/x/fio.dat", "size": "2147483648", "rw": "read", "bs": "1024k",
    "iodepth": "8", "numjobs": "1", "ioengine": "io_uring", "direct": "1", "runtime": "60",
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
RATE = 985_177_088
"""Bytes per second of the fake drive; whole sectors, so that its counter tells them to the byte."""


def altered(path, value):
    """Return the report's text with the value at `path` replaced."""
    report = copy.deepcopy(REPORT)
    part = report
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return json.dumps(report)


@pytest.mark.parametrize("before", ["", "fio: warning: io_uring is slow here\n\n"])
def test_the_report_is_read_to_the_byte(before):
    """Every figure is fio's own, and a job's options go before the global ones."""
    result = parse_fio(before + json.dumps(REPORT, indent=2), "read")
    assert result == FioResult(
        59_130_249_216, 985_176_921, 939.538117, 60_020, 8_513_450.397909, 0, {"randrepeat": "0", **OPTIONS}
    )


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
            for key in ("io_bytes", "bw_bytes", "iops", "runtime", "lat_ns")
        ],
        altered(("jobs", 0, "read", "iops"), float("nan")),
        altered(("jobs", 0, "read", "lat_ns", "mean"), float("inf")),
        altered(("jobs", 0, "read", "io_bytes"), float("nan")),
        altered(("jobs", 0, "read", "bw_bytes"), None),
        altered(("jobs", 0, "error"), "I/O error"),
        altered(("global options",), None),
        altered(("jobs", 0, "job options"), ["bs"]),
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
        assert stated == {key: int(value) if path[-1] == key else BUSY[key] for key in stated}


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
        assert flaws(GOOD, JOB, SIZE, GOOD.io_bytes, ceiling) == []


@pytest.mark.parametrize(
    ("result", "job", "moved", "reason"),
    [
        ({"io_bytes": 2_147_483_648}, {}, 18_000_000, "the drive moved 18,000,000 of the 2,147,483,648 bytes"),
        ({}, {}, int(0.94 * GOOD.io_bytes), "the drive moved"),
        ({"runtime_ms": 1618}, {}, None, "ran 1618 ms of 60 s"),
        ({"error": 84}, {}, None, "error 84"),
        ({"latency_ns": BUSY["lat_ns"]["mean"] / 8}, {}, None, "1.0 requests were in flight on average instead of 8"),
        ({"latency_ns": BUSY["lat_ns"]["mean"] * 1.2}, {}, None, "9.6 requests"),
        ({}, {"numjobs": 4}, None, "instead of 32"),
        ({}, {"bs_kib": 4}, None, "other options than asked: bs"),
        ({}, {"rw": "randread"}, None, "other options than asked: rw"),
        ({"options": {**OPTIONS, "direct": "0"}}, {}, None, "other options than asked: direct"),
        ({"options": {**OPTIONS, "size": "4096"}}, {}, None, "other options than asked: size"),
        ({"options": {k: v for k, v in OPTIONS.items() if k != "iodepth"}}, {}, None, "than asked: iodepth"),
        ({"io_bytes": 0}, {}, None, "nothing was transferred"),
        ({"bw_bytes": 0}, {}, None, "nothing was transferred"),
        ({"bw_bytes": -1}, {}, None, "nothing was transferred"),
        ({"bw_bytes": 7_876_000_001}, {}, None, "7,876 MB/s is more than a link of 7876.0 MB/s carries"),
    ],
)
def test_each_gate_catches_its_own_fault(result, job, moved, reason):
    """One fault is one flaw, in the words of its gate."""
    result = replace(GOOD, **result)
    moved = result.io_bytes if moved is None else moved
    found = flaws(result, replace(JOB, **job), SIZE, moved, LINK)
    assert len(found) == 1
    assert reason in found[0]


def test_unwritten_extents_at_37_gigabytes_are_caught_twice():
    """What no link carries and no drive moved is told with both reasons."""
    fast = replace(GOOD, io_bytes=2_147_483_648, bw_bytes=37_000_000_000)
    no_drive, no_link = flaws(fast, JOB, SIZE, 18_000_000, LINK)
    assert "drive moved" in no_drive
    assert "link" in no_link


def test_jobs_that_write_end_with_their_data_on_the_drive(tmp_path):
    """Only a job that writes syncs at its end, and only a timed one has a time."""
    layout = Job("layout", "write", 1024, 8, 1, 0).argv(tmp_path / "f", SIZE, "libaio")
    read = JOB.argv(tmp_path / "f", SIZE, "libaio")
    assert ("--end_fsync=1" in layout, "--time_based" in layout) == (True, False)
    assert ("--end_fsync=1" in read, "--time_based" in read, "--runtime=60" in read) == (False, True, True)


class Drive(LiveWorld):
    """A drive at 259:1 that counts its sectors, and a fio that runs on it.

    `spoil` changes the answer to one job: a dict replaces figures and the status, a number is the
    status of a fio that wrote no report, an exception is raised. `engines` are those that work.
    """

    spoil = ("", {})
    engines = ("io_uring", "libaio")

    def plug_in(self):
        """Put the drive under /sys and count the runs of fio by job and engine."""
        self.ran, self.sectors = [], {"read": 1000, "write": 2000}
        self.stat = self.root / "sys/dev/block/259:1/stat"
        self.stat.parent.mkdir(parents=True)
        self.count("read", 0)
        return self

    def count(self, side, moved):
        """Let the drive move bytes."""
        self.sectors[side] += moved // 512
        self.stat.write_text("9 0 {read} 7 9 0 {write} 7 0 5 5\n".format(**self.sectors))

    def command(self, argv, *, timeout, watch=None):
        """Answer a fio job as fio does, from its own options."""
        options = dict(word[2:].split("=") for word in argv[1:] if "=" in word)
        name, engine = options["name"], options["ioengine"]
        self.ran.append((name, engine))
        Path(options["filename"]).write_text("extents")
        spoilt = self.spoil[1] if self.spoil[0] == name else {}
        if isinstance(spoilt, BaseException):
            raise spoilt
        if isinstance(spoilt, int) or engine not in self.engines:
            return Completed(tuple(argv), spoilt or 1, "", f"fio: {engine} is not for you\n", 0.0)
        side = "read" if "read" in options["rw"] else "write"
        depth = int(options["iodepth"]) * int(options["numjobs"])
        half = {
            "io_bytes": 10 * RATE if "runtime" in options else int(options["size"]), "bw_bytes": RATE,
            "iops": RATE / 4096, "lat_ns": {"mean": depth * 4096e9 / RATE}, "runtime": 10_001,
        }  # fmt: skip
        self.count(side, half["io_bytes"] + 4096)
        job = {"error": 0, "job options": options, "read": IDLE, "write": IDLE, side: {**half, **spoilt}}
        return Completed(tuple(argv), spoilt.get("status", 0), json.dumps({"jobs": [job]}), "", 15.0)


def profile(**facts):
    """Return a profile with one drive."""
    return Profile(
        name="box", title="Box", devices={"nvme": ("nvme0",)}, device={"nvme0": DeviceFacts(**facts)}, lines={}
    )


@pytest.fixture
def mount(tmp_path, monkeypatch):
    """Return an empty folder on a drive of 100 GiB."""
    monkeypatch.setattr(os, "major", lambda number: 259)
    monkeypatch.setattr(os, "minor", lambda number: 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * GIB))
    folder = tmp_path / "mnt"
    folder.mkdir()
    return folder


@pytest.fixture
def site(tmp_path, mount):
    """Return the site of a healthy drive."""
    world = Drive(tmp_path).plug_in()
    params = {**storage.PARAMS, "size_gib": 2, "seconds": 10}
    return Site(world, profile(mount=str(mount), pcie_gen=4, pcie_width=4), "nvme0", params, lambda name, text: name)


def test_a_healthy_drive_gives_four_rates(site, mount):
    """Each rate is what fio printed, to the byte, with what it was taken under, and no file is left."""
    found = {m.metric: m for m in storage.rates(site)}
    assert {metric: (m.value, m.unit, m.samples) for metric, m in found.items()} == {
        "nvme.read.seq": (985.177088, "MB/s", 1),
        "nvme.write.seq": (985.177088, "MB/s", 1),
        "nvme.read.rand": (RATE / 4096, "IOPS", 1),
        "nvme.write.rand": (RATE / 4096, "IOPS", 1),
    }
    assert found["nvme.read.rand"].conditions == {
        "bs": "4k", "iodepth": 32, "numjobs": 4, "engine": "io_uring", "seconds": 10, "bw_bytes": RATE,
        "io_bytes": 10 * RATE, "device_bytes": 10 * RATE + 4096, "latency_us": 532.2, "raw": "fio rand_read",
    }  # fmt: skip
    assert list(mount.iterdir()) == []


def test_the_file_is_laid_out_before_it_is_read(site):
    """Reads find real extents because the file is written first, once; every job is warmed up by itself."""
    list(storage.rates(site))
    jobs = [(f"{name}_warmup", name) for name in ("seq_read", "seq_write", "rand_read", "rand_write")]
    assert [name for name, _ in site.world.ran] == ["layout", *(name for pair in jobs for name in pair)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"runtime": 1618}, "not evidence: ran 1618 ms of 10 s"),
        ({"bw_bytes": 37_000_000_000}, "not evidence: 37,000 MB/s is more than a link"),
        ({"io_bytes": 20 * RATE}, "not evidence: the drive moved"),
        ({"iops": 0.0, "bw_bytes": 0}, "not evidence: nothing was transferred"),
        ({"status": 128}, "fio ended with status 128"),
        (1, "fio ended with status 1: fio: io_uring is not for you"),
        (Unmeasurable("fio was still running after 75 s and was ended"), "still running after 75 s"),
    ],
)
def test_a_job_that_is_no_evidence_costs_only_its_own_rate(site, mount, answer, reason):
    """The reason stands in place of the rate, the three others are measured, no file is left."""
    site.world.spoil = ("seq_write", answer)
    found = {o.metric: o for o in storage.rates(site)}
    assert reason in found.pop("nvme.write.seq").reason
    assert len(found) == 3
    assert all(isinstance(o, Measurement) for o in found.values())
    assert list(mount.iterdir()) == []


def test_without_io_uring_libaio_is_taken_for_all_jobs(site):
    """The engine that could write the file runs the jobs and is stated with every rate."""
    site.world.engines = ("libaio",)
    assert {m.conditions["engine"] for m in storage.rates(site)} == {"libaio"}
    assert site.world.ran[:2] == [("layout", "io_uring"), ("layout", "libaio")]
    assert {engine for _, engine in site.world.ran[1:]} == {"libaio"}


@pytest.mark.parametrize("end", [Unmeasurable("gone"), KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("job", ["layout", "rand_read"])
def test_the_scratch_folder_is_gone_whatever_happens(site, mount, end, job):
    """A run that fails or is interrupted, early or late, leaves nothing on the drive."""
    site.world.spoil = (job, end)
    with suppress(Unmeasurable, KeyboardInterrupt, OSError):
        list(storage.rates(site))
    assert site.world.ran[-1][0] in {job, "rand_write"}
    assert list(mount.iterdir()) == []


@pytest.mark.parametrize(
    ("engines", "spoil", "reason"),
    [
        ((), ("", {}), "io_uring: fio: io_uring is not for you; libaio: fio: libaio is not for you"),
        (("libaio",), ("layout", {"io_bytes": 4096}), "could not write the test file"),
    ],
)
def test_without_a_laid_out_file_nothing_is_measured(site, engines, spoil, reason):
    """A file that is not written whole is told with every engine's reason, and no job is run on it."""
    site.world.engines, site.world.spoil = engines, spoil
    with pytest.raises(Unmeasurable, match=reason):
        list(storage.rates(site))
    assert {name for name, _ in site.world.ran} == {"layout"}


def test_a_mount_that_cannot_be_written_is_named(site, mount, monkeypatch):
    """A drive mounted read-only is a reason, and no fio is started on it."""

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(Unmeasurable, match=f"{mount} cannot be written: Read-only file system"):
        list(storage.rates(site))
    assert site.world.ran == []


@pytest.mark.parametrize("device", ["nvme0", "nvme7"])
def test_a_drive_without_a_mount_asks_for_one(site, device):
    """The profile must say where on the drive may be written."""
    with pytest.raises(Unmeasurable, match=rf"set device\.{device}\.mount"):
        list(storage.rates(replace(site, profile=profile(), device=device)))
    assert site.world.ran == []


@pytest.mark.parametrize("lack", ["drive", "room"])
def test_what_is_refused_is_not_written(site, monkeypatch, mount, lack):
    """No fio is started where there is no drive or no room."""
    if lack == "drive":
        monkeypatch.setattr(os, "major", lambda number: 0)
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=GIB))
    with pytest.raises(Unmeasurable, match=r"not on a block device|GiB free"):
        list(storage.rates(site))
    assert (site.world.ran, list(mount.iterdir())) == ([], [])


@pytest.mark.parametrize("name", ["missing", "link", "file"])
def test_a_mount_must_be_a_folder(site, mount, name):
    """What is not a folder itself is not written through."""
    (mount / "link").symlink_to(mount)
    (mount / "file").touch()
    with pytest.raises(Unmeasurable, match=f"mnt/{name} is not a folder"):
        list(storage.rates(replace(site, profile=profile(mount=str(mount / name)))))
    assert site.world.ran == []
    assert sorted(entry.name for entry in mount.iterdir()) == ["file", "link"]


@pytest.mark.parametrize("number", ["0:1", "259:2"])
def test_a_mount_must_be_on_a_block_device(site, number, monkeypatch):
    """A tmpfs, though /sys may know it, and a device that /sys does not know are no drive."""
    (site.world.root / "sys/dev/block/0:1").mkdir()
    (site.world.root / "sys/dev/block/0:1/stat").touch()
    monkeypatch.setattr(site.world, "disk", lambda path: Disk(number, GIB))
    with pytest.raises(Unmeasurable, match="/mnt is not on a block device"):
        storage.block_device(site, "/mnt")


@pytest.mark.parametrize("text", ["", "9 0", "a b c d e f g h", "9 0 -1 7 9 0 -1 7"])
def test_statistics_that_are_none_move_nothing(site, text):
    """A drive whose counters cannot be read has not moved zero bytes."""
    site.world.stat.write_text(text)
    for side in ("read", "write"):
        with pytest.raises(Unmeasurable, match="259:1/stat is not a block device's statistics"):
            storage.moved_bytes(site, "/sys/dev/block/259:1", side)


@pytest.mark.parametrize(
    ("size", "params", "reason"),
    [
        (81, {}, r"has 100\.0 GiB free, the test needs 101\.0: lower size_gib"),
        (101, {"keep_free_gib": 0}, r"the test needs 101\.0"),
        (64, {"seconds": 3600}, f"write_budget_gib is {storage.PARAMS['write_budget_gib']}"),
        (64, {"write_budget_gib": 64}, "write_budget_gib is 64"),
        (64, {"write_budget_gib": 585}, "may write 586 GiB"),
    ],
)
def test_a_run_without_room_or_over_its_budget_is_refused(size, params, reason):
    """Neither the file nor the timed writes may pass what the drive and the profile allow."""
    with pytest.raises(Unmeasurable, match=reason):
        storage.check_space("/mnt", Disk("259:1", 100 * GIB), size * GIB, {**storage.PARAMS, **params})


def test_a_run_within_room_and_budget_is_allowed():
    """Exactly enough is enough."""
    params = {**storage.PARAMS, "seconds": 1, "warmup_seconds": 0}
    storage.check_space("/mnt", Disk("259:1", 100 * GIB), 80 * GIB, params)
