"""A drive's rates are taken inside a folder of the run's own, watched, and only from results that are evidence."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.drives import storage
from pytest_gpuaccept.probes.drives.drive import Counters
from pytest_gpuaccept.probes.drives.drive_watch import Look
from pytest_gpuaccept.probes.drives.fio import Job, Seen
from pytest_gpuaccept.profile import DeviceFacts, Profile
from pytest_gpuaccept.world import Completed, Disk, LiveWorld

GIB = 2**30
RATE = 985_137_152
"""Bytes per second of the fake drive; whole blocks, so that its counters tell them to the byte."""
PARAMS = {**storage.PARAMS, "size_gib": 2, "seconds": 10, "warmup_seconds": 1, "verify_gib": 1}
RATES = ("nvme.read.seq", "nvme.write.seq", "nvme.read.rand", "nvme.write.rand")
TIMED = ("seq_read", "seq_write", "rand_read", "rand_write")
STEP_S = 0.5
BLOCK, CONTROLLER = "sys/dev/block/259:1", "sys/class/nvme/nvme0"


class Rig(LiveWorld):
    """A live world with a fake drive behind the mount, and a fio that works on it.

    `spoil` changes what fio does in one job: figures of its report, and `status`, `out`, `err`, `error`, `options`; of
    the drive `moved`, the share of fio's bytes, `beside`, bytes that others read, `busy`, the share of the time, and
    `fade`, the share of the rate in its second half; an exception is raised. `during` is called at every look,
    `engines` are those that work.
    """

    def __init__(self, root, clock):
        super().__init__(root)
        self.clock, self.free, self.ran, self.argvs, self.spoil = clock, 100 * GIB, [], [], {}
        self.engines, self.during, self.bytes, self.busy_ms = ("io_uring", "libaio"), lambda: None, [0, 0], 0
        clock.sleep = self._sleep

    def put(self, folder, **files):
        """Write files of the machine."""
        for name, text in files.items():
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            (self.root / folder / name).write_text(text)

    def plug_in(self, mount, kind="ext4", options="rw"):
        """Put the drive into /sys and mount it."""
        self.put("proc/self", mountinfo=f"36 21 259:1 / {mount} {options} shared:9 - {kind} /dev/nvme0n1 rw\n")
        self.put(BLOCK, uevent="DEVNAME=nvme0n1\n")
        self.put(f"{BLOCK}/device", uevent="DEVNAME=nvme0\n", serial="S7KHNJ0W123456X", model="Fake 2TB")
        self.put(f"{CONTROLLER}/hwmon1", temp1_input="38850", temp1_crit="84850")
        self.put(f"{CONTROLLER}/device", current_link_speed="16.0 GT/s PCIe", current_link_width="4")
        self._count()
        return self

    def disk(self, path):
        """Return the fake drive for what is really a folder."""
        super().disk(path)
        return Disk("259:1", self.free)

    def _sleep(self, seconds):
        self.clock.seconds += seconds

    def _count(self):
        read, written = (moved // 512 for moved in self.bytes)
        self.put(BLOCK, stat=f"9 0 {read} 7 9 0 {written} 7 0 {self.busy_ms} 5\n")

    def command(self, argv, *, timeout, watch=None):
        """Answer a fio job as fio does, from its own options."""
        options = dict(word[2:].split("=") for word in argv[1:] if "=" in word)
        name, engine = options["name"], options["ioengine"]
        self.ran.append((name, engine))
        self.argvs.append(argv)
        Path(options["filename"]).write_text("extents")
        spoilt = self.spoil.get(name, {})
        if isinstance(spoilt, BaseException):
            raise spoilt
        if engine not in self.engines:
            return Completed(tuple(argv), 1, "", f"fio: {engine} is not for you\n", 0.0)
        return self._play(argv, options, spoilt, watch)

    def _play(self, argv, options, spoilt, watch):
        side = "read" if "read" in options["rw"] else "write"
        seconds = int(options.get("runtime", 0)) or int(options["size"]) / RATE
        halves = {side: self._half(options, seconds, spoilt), "trim": {}}
        self._work(
            side, halves[side]["io_bytes"] if "io_bytes" not in spoilt else RATE * seconds, seconds, spoilt, watch
        )
        if "verify" in options and not spoilt.get("error"):
            halves["read"] = self._half(options, seconds, spoilt.get("back", {}))
            self._work("read", int(options["size"]), seconds, spoilt, watch)
        told = {**options, **spoilt.get("options", {})}
        job = {"error": spoilt.get("error", 0), "job options": told, **halves}
        report = spoilt.get("words", "") + json.dumps({"fio version": "fio-3.33", "jobs": [job]})
        out = spoilt.get("out", report)
        return Completed(tuple(argv), spoilt.get("status", 0), out, spoilt.get("err", ""), seconds + 0.3)

    def _half(self, options, seconds, spoilt):
        block, depth = int(options["bs"][:-1]) * 1024, int(options["iodepth"]) * int(options["numjobs"])
        rate = int(RATE * (1 + spoilt.get("fade", 1)) / 2)
        latency = depth * block / rate * 1e9
        return {
            "io_bytes": rate * seconds if "runtime" in options else int(options["size"]), "bw_bytes": rate,
            "iops": rate / block, "lat_ns": {"mean": latency}, "runtime": round(seconds * 1000), "short_ios": 0,
            "clat_ns": {"percentile": {"50.000000": latency, "99.000000": 1.8 * latency}}, "drop_ios": 0, **spoilt,
        }  # fmt: skip

    def _work(self, side, moved, seconds, spoilt, watch):
        """Let the drive work in steps, and whoever looks on look."""
        steps = max(1, round(seconds / STEP_S))
        fade = spoilt.get("fade", 1)
        for step in range(steps):
            self.clock.seconds += seconds / steps
            share = 2 / (1 + fade) * (fade if step >= steps / 2 else 1)
            self.bytes[side == "write"] += int(spoilt.get("moved", 1) * share * moved / steps)
            self.bytes[0] += spoilt.get("beside", 0) // steps
            self.busy_ms += round(1000 * spoilt.get("busy", 1) * seconds / steps)
            self._count()
            self.during()
            watch()
        self.bytes = [-(-moved // 4096) * 4096 for moved in self.bytes]
        self._count()


def profile(**facts):
    """Return a profile with one drive."""
    return Profile(
        name="box", title="Box", devices={"nvme": ("nvme0",)}, device={"nvme0": DeviceFacts(**facts)}, lines={}
    )


@pytest.fixture
def mount(tmp_path):
    """Return an empty folder."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    return folder


@pytest.fixture
def site(tmp_path, mount, clock):
    """Return the site of a healthy drive of 100 GiB."""
    world = Rig(tmp_path, clock).plug_in(mount)
    return Site(world, profile(mount=str(mount), pcie_gen=4, pcie_width=4), "nvme0", PARAMS, lambda name, text: name)


def run(site):
    """Return what the probe yields, by metric."""
    return {o.metric: o for o in storage.rates(site)}


def test_a_healthy_drive_gives_everything_but_what_was_not_asked_for(site, mount):
    """Rates are what fio printed, to the byte; the rest is what was seen meanwhile; no file is left."""
    found = run(site)
    assert not isinstance(found.pop("nvme.write.sustained"), Measurement)
    assert {metric: (m.value, m.unit) for metric, m in found.items()} == {
        "nvme.read.seq": (RATE / 1e6, "MB/s"), "nvme.write.seq": (RATE / 1e6, "MB/s"),
        "nvme.read.rand": (RATE / 4096, "IOPS"), "nvme.write.rand": (RATE / 4096, "IOPS"),
        "nvme.read.latency_p99": (pytest.approx(1.8 * 128 * 4096 / RATE * 1e6), "us"),
        "nvme.drop": (pytest.approx(0, abs=0.01), "%"), "nvme.verify.errors": (0, "count"),
        "nvme.temperature": (38.85, "C"), "nvme.temperature.over_critical": (pytest.approx(-46.0), "C"),
        "nvme.link.gen": (4, "gen"), "nvme.link.width": (4, "lanes"),
        "nvme.written": (pytest.approx((3 * GIB + 22 * RATE) / 1e9, rel=1e-3), "GB"),
    }  # fmt: skip
    assert list(mount.iterdir()) == []


def test_a_rate_says_what_it_was_taken_under(site, mount):
    """Without queue depth, engine, file system and the drive's own figures, a rate means nothing."""
    measured = run(site)["nvme.read.rand"]
    assert measured.conditions == {
        "bs": "4k", "iodepth": 32, "numjobs": 4, "engine": "io_uring", "numa_node": -1, "size_gib": 2, "seconds": 10,
        "bw_bytes": RATE, "io_bytes": 10 * RATE, "device_bytes": pytest.approx(10 * RATE, abs=8192),
        "busy_percent": 100.0, "latency_us": 532.2, "in_flight": 128.0, "fio": "fio-3.33", "file_system": "ext4",
        "mounted_at": str(mount), "mount_options": "rw", "drives": "nvme0n1", "raw": "fio rand_read",
    }  # fmt: skip


def test_the_file_is_laid_out_before_it_is_read(site):
    """Reads find real extents because the file is written first, once; every job is warmed up by itself."""
    run(site)
    pairs = [name for timed in TIMED for name in (f"{timed}_warmup", timed)]
    assert [name for name, _ in site.world.ran] == ["layout", *pairs, "verify"]


def test_without_a_warm_up_there_is_none(site):
    """A job without a time would go through the whole file; it is left out."""
    run(replace(site, params={**PARAMS, "warmup_seconds": 0}))
    assert [name for name, _ in site.world.ran] == ["layout", *TIMED, "verify"]


def test_every_job_stays_in_its_own_folder(site, mount):
    """One file below the mount for all jobs, never a device, and what fio drops goes beside it."""
    run(site)
    for argv in site.world.argvs:
        options = dict(word[2:].split("=") for word in argv[1:] if "=" in word)
        folder = Path(options["filename"]).parent
        assert (folder.parent, str(folder)) == (mount, options["aux-path"])
        assert "directory" not in options


# the gates ---------------------------------------------------------------------------------------

SHORT = {"words": "\nfio: terminating on signal 2\n", "runtime": 1618, "io_bytes": RATE}
FAST = {"bw_bytes": 7_700_000_000, "iops": 7.7e9 / 2**20, "lat_ns": {"mean": 8 * 2**20 / 7.7}, "io_bytes": 10 * RATE}
GATES = {
    "interrupted, status 0": ({"runtime": 1618}, "ran 1618 ms of 10 s"),
    "error in the report": ({"error": 5}, "fio reports error 5"),
    "ended with a status": ({"status": 128, "err": "fio: killed\n"}, "fio ended with status 128: fio: killed"),
    "no report": ({"out": ""}, "fio's report cannot be read"),
    "truncated report": ({"out": '{"jobs": [{"error": 0'}, "fio's report cannot be read"),
    "unwritten extents, page cache": ({"moved": 0.94}, "the drive moved 9"),
    "above the link": (FAST, "7,700 MB/s is more than a link of 7876.0 MB/s carries"),
    "queue not full": ({"lat_ns": {"mean": 1e6}}, "0.9 requests were in flight on average instead of 8"),
    "block size": ({"iops": 900.0, "lat_ns": {"mean": 8e9 / 900}}, "900 IOPS of 1024 KiB are not 985 MB/s"),
    "percentiles fall": ({"clat_ns": {"percentile": {"50.0": 9, "99.0": 8}}}, "percentiles of the latency"),
    "no percentiles": ({"clat_ns": {}}, "percentiles of the latency are missing"),
    "short requests": ({"short_ios": 3}, "3 requests were cut short or dropped"),
    "dropped requests": ({"drop_ios": 1}, "1 requests were cut short or dropped"),
    "drive idle": ({"busy": 0.8}, "the drive had work in only 80.0 % of the time"),
    "other options": ({"options": {"direct": "0"}}, "fio ran with other options than asked: direct"),
    "somebody else reads": ({"beside": 2 * RATE}, "somebody else moved 1,970,2"),
    "nothing": ({"io_bytes": 0, "bw_bytes": 0, "iops": 0.0, "lat_ns": {"mean": 0}}, "nothing was transferred"),
    "hangs": (Unmeasurable("fio was still running after 70 s and was ended"), "still running after 70 s"),
}


@pytest.mark.parametrize("job", ["seq_read", "seq_write"])
@pytest.mark.parametrize("gate", GATES)
def test_a_job_that_is_no_evidence_costs_only_its_own_rate(site, mount, job, gate):
    """The gate's reason stands in place of the rate, the three others are measured, no file is left."""
    answer, reason = GATES[gate]
    site.world.spoil = {job: answer}
    found = run(site)
    spoilt = found.pop("nvme.read.seq" if job == "seq_read" else "nvme.write.seq")
    assert reason in spoilt.reason
    assert gate == "nothing" or "; " not in spoilt.reason
    assert all(isinstance(found[metric], Measurement) for metric in RATES if metric in found)
    assert list(mount.iterdir()) == []


def test_words_before_the_report_do_not_hide_it(site):
    """fio says on stdout that it was told to end; a run that had its time all the same is evidence."""
    site.world.spoil = {"seq_read": {"words": "\nfio: terminating on signal 15\n"}}
    assert run(site)["nvme.read.seq"].value == RATE / 1e6


@pytest.mark.parametrize(
    ("side", "overwrites", "moved", "beside"),
    [
        ("read", True, (1000, 0), 0),
        ("read", True, (1300, 40), 340),
        ("read", False, (900, 40), 40),
        ("write", True, (70, 2000), 1070),
        ("write", False, (70, 2000), 70),
    ],
)
def test_what_somebody_else_moved_is_what_no_job_of_ours_did(side, overwrites, moved, beside):
    """Beside 1,000 bytes of ours all other traffic, but for the writes of a file system that does not overwrite."""
    none, after = Counters(7, 7, 0), Counters(7 + moved[0], 7 + moved[1], 900)
    result = SimpleNamespace(io_bytes=1000, runtime_ms=1000)
    looks = Look(0.0, (none,), none), Look(1.2, (after,), after)
    seen = storage._seen(Job("x", side, 4, 1, 1, 1), result, *looks, overwrites=overwrites)
    assert seen == Seen(moved[side == "write"], beside, 90.0)


def test_of_an_array_what_reaches_the_volume_counts():
    """A mirror writes everything twice, and that is nobody else's work."""
    none, own = Counters(0, 0, 0), Counters(0, 1000, 900)
    result = SimpleNamespace(io_bytes=1000, runtime_ms=1000)
    looks = Look(0.0, (none, none), none), Look(1.2, (own, own), own)
    assert storage._seen(Job("x", "write", 4, 1, 1, 1), result, *looks, overwrites=True) == Seen(2000, 0, 90.0)


@pytest.mark.parametrize(
    ("kind", "options", "own"), [("ext4", "rw", False), ("f2fs", "rw", True), ("ext4", "rw,data=journal", True)]
)
def test_writes_of_the_file_system_are_not_somebody_elses(site, kind, options, own):
    """While a job writes, more writes than fio's are somebody's, unless the file system writes things twice itself."""
    site.world.plug_in(site.profile.device["nvme0"].mount, kind, options)
    site.world.spoil = {"rand_write": {"moved": 1.5}}
    found = run(site)["nvme.write.rand"]
    assert found.value == RATE / 4096 if own else "somebody else moved" in found.reason


def test_fio_is_not_started_beside_somebody_elses_work(site, clock):
    """A drive in use before the test gives no rate of its own."""
    world = site.world
    clock.sleep = lambda seconds: (
        world._sleep(seconds),
        setattr(world, "busy_ms", world.busy_ms + 150),
        world._count(),
    )
    with pytest.raises(Unmeasurable, match="somebody else uses the drive, 3 % of the time before the test: stop it"):
        run(site)
    assert world.ran == []


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"serial": "S7KHNJ0W999999X"}, "with serial S7KHNJ0W123456X, the profile names S7KHNJ0W999999X"),
        ({"model": "Other 2TB"}, "with model Fake 2TB, the profile names Other 2TB"),
        ({"mount": "/dev/nvme0n1"}, "/dev/nvme0n1 is refused"),
        ({"mount": "/mnt/../dev"}, "is refused"),
    ],
)
def test_another_place_than_the_ordered_drive_is_not_written(site, mount, facts, reason):
    """A wrong drive, a device node or a way around the mount is refused before fio starts."""
    wrong = profile(**{"mount": str(mount), **facts})
    with pytest.raises(Unmeasurable, match=reason):
        run(replace(site, profile=wrong))
    assert site.world.ran == []


@pytest.mark.parametrize("name", ["missing", "link", "file"])
def test_a_mount_must_be_a_folder(site, mount, name):
    """What is not a folder itself is not written through."""
    (mount / "link").symlink_to(mount)
    (mount / "file").touch()
    with pytest.raises(Unmeasurable, match=f"mnt/{name} is not a folder"):
        run(replace(site, profile=profile(mount=str(mount / name))))
    assert site.world.ran == []
    assert sorted(entry.name for entry in mount.iterdir()) == ["file", "link"]


@pytest.mark.parametrize(
    ("kind", "options", "reason"), [("ext4", "ro", "mounted read-only"), ("tmpfs", "rw", "memory")]
)
def test_a_mount_that_takes_no_file_of_a_drive_is_refused(site, mount, kind, options, reason):
    """Read-only and memory are seen in mountinfo, and no fio is started."""
    site.world.plug_in(mount, kind, options)
    if kind == "tmpfs":
        site.world.disk = lambda path: Disk("0:33", GIB)
    with pytest.raises(Unmeasurable, match=reason):
        run(site)
    assert (site.world.ran, list(mount.iterdir())) == ([], [])


# the layout, verify, what is seen meanwhile -------------------------------------------------------


def test_without_io_uring_libaio_is_taken_for_all_jobs(site):
    """The engine that could write the file runs the jobs and is stated with every rate."""
    site.world.engines = ("libaio",)
    found = run(site)
    assert {found[metric].conditions["engine"] for metric in RATES} == {"libaio"}
    assert site.world.ran[:2] == [("layout", "io_uring"), ("layout", "libaio")]
    assert {engine for _, engine in site.world.ran[1:]} == {"libaio"}


def test_a_drives_own_node_is_used_where_it_can_be(site):
    """On a machine of several nodes fio is bound to the drive's; a fio that cannot be runs unbound."""
    site.world.put("sys/devices/system/node", online="0-1\n")
    site.world.put(f"{CONTROLLER}/device", numa_node="1\n")
    assert run(site)["nvme.read.seq"].conditions["numa_node"] == 1
    assert all("--numa_cpu_nodes=1" in argv for argv in site.world.argvs)


@pytest.mark.parametrize(
    ("engines", "spoil", "reason"),
    [
        ((), {}, "io_uring: fio: io_uring is not for you; libaio: fio: libaio is not for you"),
        (("libaio",), {"io_bytes": 4096}, "could not write the test file"),
        (("libaio",), {"error": 28}, "could not write the test file"),
        (
            ("libaio",),
            {"moved": 0.5},
            "the drive wrote 1,0.* of the 2,147,483,648 bytes of the test file: they went else",
        ),
        (("libaio",), {"out": "{"}, "fio's report cannot be read"),
    ],
)
def test_without_a_laid_out_file_nothing_is_measured(site, engines, spoil, reason):
    """A file that is not whole, or not on the drive, is told with every engine's reason, and no job is run on it."""
    site.world.engines, site.world.spoil = engines, {"layout": spoil}
    with pytest.raises(Unmeasurable, match=reason):
        run(site)
    assert {name for name, _ in site.world.ran} == {"layout"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"status": 1, "error": 84, "err": "crc32c: verify failed at file x offset 0\n" * 2}, Interval(2, None)),
        ({"status": 1, "error": 84}, Interval(1, None)),
        (
            {"status": 1, "error": 5, "err": "io_u error: Input/output error\n"},
            "did not verify the file (status 1)",
        ),
        ({"io_bytes": 4096}, "did not verify the file (status 0)"),
        ({"moved": 0.9}, "not all was verified"),
        ({"back": {"io_bytes": 4096}}, "not all was verified"),
        ({"status": 1, "err": "fio: odd\n"}, "did not verify the file (status 1): fio: odd"),
        ({"out": ""}, "fio's report cannot be read"),
    ],
)
def test_data_that_were_not_read_back_from_the_drive_are_not_verified(site, answer, expected):
    """Wrong data count at least as often as fio says so; what was not written and read whole is no proof of none."""
    site.world.spoil = {"verify": answer}
    found = run(site)["nvme.verify.errors"]
    if isinstance(expected, Interval):
        assert (found.value, found.proof) == (expected, None)
    else:
        assert expected in found.reason


def test_verified_data_say_what_proves_it(site):
    """None seen counts because the drive moved the bytes both ways."""
    found = run(site)["nvme.verify.errors"]
    assert found.proof == "1 GiB were written with CRC32C and read back; the drive itself moved them both ways"


def test_a_sustained_write_counts_its_last_third(site):
    """Asked for, it is run last of the rates, and what the fast cache took is left out."""
    params = {**PARAMS, "sustained_seconds": 60, "write_budget_gib": 700}
    site.world.spoil = {"sustained": {"fade": 0.25}}
    found = run(replace(site, params=params))["nvme.write.sustained"]
    assert (found.value, found.note) == (pytest.approx(0.25 * RATE / 1e6, rel=1e-3), "last third; not SNIA PTS")
    assert found.conditions["bw_bytes"] == pytest.approx(0.625 * RATE)
    assert [name for name, _ in site.world.ran][-2:] == ["sustained", "verify"]


@pytest.mark.parametrize(("job", "lost"), [("seq_read", 75), ("seq_write", 75), ("rand_read", 0)])
def test_a_rate_that_falls_in_the_midst_is_told(site, job, lost):
    """A mean over the run hides it: of the sequential jobs, the one that lost most stands for the drive."""
    site.world.spoil = {job: {"fade": 0.25}}
    assert run(site)["nvme.drop"].value == pytest.approx(lost, abs=0.1)


def test_a_short_sequential_run_has_no_thirds(site):
    """Without enough looks the lost rate is not 0 but unknown, and the rates stay."""
    found = run(replace(site, params={**PARAMS, "seconds": 3}))
    assert "long enough" in found["nvme.drop"].reason
    assert isinstance(found["nvme.read.seq"], Measurement)


def test_what_is_hottest_and_lowest_counts(site):
    """The hottest look and the lowest link under load stand for the run; an idle link may save power."""
    world = site.world

    def during():
        late = world.ran[-1][0] == "rand_read"
        world.put(f"{CONTROLLER}/hwmon1", temp1_input="70850" if late else "50000")
        world.put(f"{CONTROLLER}/device", current_link_width="2" if late else "4")

    world.put(f"{CONTROLLER}/device", current_link_speed="2.5 GT/s PCIe")
    world.during = lambda: (during(), world.put(f"{CONTROLLER}/device", current_link_speed="16.0 GT/s PCIe"))
    found = run(site)
    assert (found["nvme.temperature"].value, found["nvme.temperature.over_critical"].value) == (70.85, -14.0)
    assert (found["nvme.link.gen"].value, found["nvme.link.width"].value) == (4, 2)


def test_without_sensor_link_or_critical_temperature_the_rest_is_measured(site):
    """A disk in a virtual machine has rates; what it does not show is told for what it is."""
    for name in ("hwmon1/temp1_input", "device/current_link_speed"):
        (site.world.root / CONTROLLER / name).unlink()
    found = run(site)
    told = {metric: o.reason for metric, o in found.items() if isinstance(o, NotMeasured)}
    assert set(told) == {
        "nvme.write.sustained", "nvme.temperature", "nvme.temperature.over_critical", "nvme.link.gen",
        "nvme.link.width",
    }  # fmt: skip
    site.world.put(f"{CONTROLLER}/hwmon1", temp1_input="40000")
    (site.world.root / CONTROLLER / "hwmon1/temp1_crit").unlink()
    found = run(site)
    assert found["nvme.temperature"].value == 40
    assert "does not state its critical temperature" in found["nvme.temperature.over_critical"].reason


# safety ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [Unmeasurable("gone"), KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("job", ["layout", "rand_read", "verify"])
def test_the_scratch_folder_is_gone_whatever_happens(site, mount, end, job):
    """A run that fails or is interrupted, early or late, leaves nothing on the drive."""
    site.world.spoil = {job: end}
    with suppress(Unmeasurable, KeyboardInterrupt, OSError):
        run(site)
    assert job in {name for name, _ in site.world.ran}
    assert list(mount.iterdir()) == []


def too_full(world):
    """Let somebody else fill the drive."""
    world.free = 9 * GIB


def too_hot(world):
    """Let the drive come within 3 C of its critical temperature."""
    world.put(f"{CONTROLLER}/hwmon1", temp1_input="81850")


def blind(world):
    """Let the sensor fall silent."""
    world.put(f"{CONTROLLER}/hwmon1", temp1_input="0")


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (too_full, "only 9.0 GiB are left on"),
        (too_hot, "the drive has 81.85 C and is critical at 84.85 C: cool it"),
        (blind, "the drive's temperature is lost"),
    ],
)
@pytest.mark.parametrize("job", ["layout", "seq_write", "verify"])
def test_what_endangers_the_machine_ends_the_test(site, mount, job, happens, reason):
    """The job in which it happens is ended at the next look, nothing is started any more, and no file is left."""
    world = site.world
    world.during = lambda: happens(world) if world.ran[-1][0] == job else None
    if job == "layout":
        with pytest.raises(Unmeasurable, match=reason):
            run(site)
    else:
        found = run(site)
        assert reason in found["nvme.verify.errors"].reason
        assert isinstance(found["nvme.read.seq"], Measurement)
    assert world.ran[-1][0] == job
    assert list(mount.iterdir()) == []


def test_a_drive_that_disappears_meanwhile_is_told_in_every_line(site, mount):
    """Counters that can be read no more end the job; nothing of what follows is a value, and no file is left."""
    world = site.world

    def during():
        if world.ran[-1][0] == "seq_write":
            (world.root / BLOCK / "stat").unlink(missing_ok=True)
            world._count = lambda: None

    world.during = during
    found = run(site)
    lost = ("nvme.write.seq", "nvme.read.rand", "nvme.verify.errors", "nvme.written")
    assert all("259:1/stat cannot be read: No such file" in found[metric].reason for metric in lost)
    assert list(mount.iterdir()) == []


def test_a_drive_that_writes_more_than_was_planned_is_stopped_at_the_budget(site):
    """The plan assumes a rate; what the drive really takes is counted, and the budget holds."""
    site = replace(site, params={**PARAMS, "write_budget_gib": 170, "warmup_seconds": 0})
    site.world.spoil = {"seq_write": {"moved": 20}}
    found = run(site)
    assert found["nvme.write.seq"].reason == "176 GiB were written, write_budget_gib is 170"
    assert found["nvme.write.rand"].reason == found["nvme.write.seq"].reason
    assert site.world.ran[-1][0] == "seq_write"


def test_what_was_written_is_told_beside_the_plan(site):
    """The drive's own counter, what fio counted, and what was planned stand side by side."""
    found = run(site)["nvme.written"]
    assert found.value == pytest.approx(found.conditions["by_fio_gb"], abs=0.1)
    assert found.conditions["planned_gb"] == pytest.approx(3 * GIB / 1e9 + 22 * 8, abs=0.1)


def test_another_runs_files_stay(site, mount):
    """Two runs on one drive have a folder each; the one that ends removes its own."""
    with site.world.folder(str(mount)) as other:
        Path(other, "fio.dat").write_text("theirs")
        run(site)
        assert [str(entry) for entry in mount.iterdir()] == [other]
        assert Path(other, "fio.dat").read_text() == "theirs"
        assert site.world.clear(str(mount)) == []


def test_a_mount_that_cannot_be_written_is_named(site, mount, monkeypatch):
    """A folder that may not be made is a reason, and no fio is started."""

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(site.world, "put", lambda *_, **__: None)
    with pytest.raises(Unmeasurable, match=f"{mount} cannot be written: Read-only file system"):
        run(site)
    assert site.world.ran == []


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"size_gib": 80}, r"has 100\.0 GiB free, the test needs 101\.0: lower size_gib"),
        ({"size_gib": 100, "keep_free_gib": 0}, r"the test needs 101\.0"),
        ({"seconds": 3600}, f"write_budget_gib is {PARAMS['write_budget_gib']}"),
        ({"size_gib": 64, "write_budget_gib": 64}, "write_budget_gib is 64"),
        ({"sustained_seconds": 300}, "may write 2410 GiB, write_budget_gib is 600: raise it or lower seconds"),
        ({"size_gib": 0}, "size_gib must be at least 1"),
        ({"seconds": 0}, "seconds must be at least 1"),
        ({"verify_gib": 0}, "verify_gib must be at least 1"),
    ],
)
def test_a_run_without_room_or_over_its_budget_is_refused(site, mount, params, reason):
    """Neither the files nor the timed writes may pass what the drive and the profile allow; nothing is started."""
    with pytest.raises(Unmeasurable, match=reason):
        run(replace(site, params={**PARAMS, **params}))
    assert (site.world.ran, list(mount.iterdir())) == ([], [])


def test_a_run_within_room_and_budget_is_allowed():
    """Exactly enough is enough."""
    params = {**PARAMS, "size_gib": 79, "seconds": 1, "warmup_seconds": 0, "write_budget_gib": 95}
    assert storage.check_space("/mnt", Disk("259:1", 100 * GIB), params) == 80 * GIB + 2 * 8e9
