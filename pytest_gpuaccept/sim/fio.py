"""The fio of the simulated machine: its command line, the time it takes, its report and its words.

Owns what a drive does under a job, and fio 3.33's text. Must not know what is asked of a drive or
what makes a report believable; an option that it does not play is refused, never ignored.
"""

import datetime as dt
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_gpuaccept.sim.drive_files import block_name
from pytest_gpuaccept.sim.machine import TICK, Machine
from pytest_gpuaccept.sim.parts import Drive

GIB = 2**30
SECTOR = 512
EIO, EINVAL, EILSEQ = 5, 22, 84
LONGEST_S = 7200.0
"""Virtual seconds after which a job without a runtime is cut off: a drive may have no rate at all."""
MEMORY_BYTES_S = 37e9
"""Rate of reads that memory answers; a fallocated file gave 37.0 GB/s."""
CACHED_SHARE = 0.008
"""Share of such reads that the drive moves all the same; 18 of 2147 MB were seen."""
PID = 4211
BUSY_PERCENT = 99.7
"""[E] Share of a job's time in which the drive has requests."""
KINDS = ("read", "write", "randread", "randwrite")
OPTIONS = {
    "name": "", "filename": "", "size": "", "rw": "read", "bs": "4k", "iodepth": "1", "numjobs": "1",
    "ioengine": "psync", "runtime": "0", "direct": "0", "randrepeat": "1", "invalidate": "1", "end_fsync": "0",
    "verify": "0", "do_verify": "1", "verify_fatal": "0", "verify_state_save": "1",
    "numa_cpu_nodes": "", "numa_mem_policy": "",
}  # fmt: skip
"""Options that the report repeats, with fio's defaults."""
UNTOLD = {"output-format", "aux-path", "thread", "group_reporting", "time_based"}
"""Options that it does not repeat."""
ENGINES = ("io_uring", "libaio", "psync")


class _UsageError(Exception):
    """A command line that fio does not run, in fio's words."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One job as it was asked for: to the end of its file, `seconds` at most, or `seconds` whatever the file."""

    told: Mapping[str, str]
    name: str
    file: str
    rw: str
    size: int
    block: int
    iodepth: int
    numjobs: int
    seconds: float
    timed: bool

    @property
    def side(self) -> str:
        """The half of the report that holds the result."""
        return "read" if "read" in self.rw else "write"

    @property
    def depth(self) -> int:
        """Requests in flight."""
        return self.iodepth * self.numjobs


@dataclass(slots=True)
class _Work:
    """How far a job came: seconds, whole blocks, and the errno that ended it."""

    seconds: float = 0.0
    blocks: int = 0
    errno: int = 0


def run(machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:
    """Run a fio command line in virtual time; return its exit status, stdout and stderr."""
    try:
        job = _parse(argv[1:])
    except _UsageError as error:
        return 1, "", f"{error}\n"
    if not job.size:
        words = f"{job.name}: you need to specify size=\n{_ended(EINVAL, 'filesetup.c:1155', 'total_file_size', 0)}"
        return 1, _report(machine, job, _Work(errno=EINVAL)), words
    with machine.runs("fio"):
        return _play(machine, job)


def _play(machine: Machine, job: _Job) -> tuple[int, str, str]:
    """Do the job on the drive behind its file."""
    mount = mount_of(machine, job.file)
    name = machine.mounts.get(mount, "")
    drive = machine.drives.get(name)
    if drive is None or not drive.present:
        folder = mount or os.path.dirname(job.file)  # noqa: PTH120 - a path of the simulated machine
        words = f"fio: failed to create dir ({folder}): No such file or directory\n"
        return 1, _report(machine, job, _Work()), words
    work = _transfer(machine, job, name, drive)
    back = _read_back(machine, job, name, drive) if job.told.get("verify") == "crc32c" and not work.errno else _Work()
    report = _report(machine, job, work, back, name)
    if back.errno:
        return 1, report, f"crc32c: verify failed at file {job.file} offset 0, length {job.block}\n"
    if work.errno:
        return 1, _ended(work.errno, "io_u.c:1876", "io_u error", PID) + report, _io_errors(job, work)
    return 0, ("\nfio: terminating on signal 2\n" if job.seconds and drive.interrupted else "") + report, ""


def _read_back(machine: Machine, job: _Job, name: str, drive: Drive) -> _Work:
    """Read what was written; the first block that is wrong ends it."""
    if drive.corrupt:
        return _Work(blocks=1, seconds=TICK, errno=EILSEQ)
    return _transfer(machine, replace(job, rw="read", timed=False), name, drive)


def mount_of(machine: Machine, file: str) -> str:
    """Return the mount that a file lies on, '' when it is on none."""
    above = (mount for mount in machine.mounts if file.startswith(mount.rstrip("/") + "/"))
    return max(above, key=len, default="")


def _transfer(machine: Machine, job: _Job, name: str, drive: Drive) -> _Work:
    """Let the job move its bytes, tick by tick, so that faults and a full cache take effect in its midst."""
    noise = 1.0 + machine.random(f"fio/{name}/{job.name}").gauss(0.0, drive.noise)
    end_s = job.seconds * (0.5 if drive.interrupted else 1.0) or LONGEST_S
    end = math.inf if job.timed else float(job.size * job.numjobs)
    work, done = _Work(), 0.0
    while end - done > 0.5 and end_s - work.seconds > 1e-9:  # noqa: PLR2004 - half a byte, and no time
        rate = max(0.0, _rate(drive, job, machine.moved[name]["write"]) * noise)
        step = min(TICK, end_s - work.seconds, (end - done) / rate if rate else TICK)
        machine.advance(step)
        work.seconds += step
        work.errno = drive.error if drive.present else EIO
        if work.errno:
            break
        done += rate * step
        machine.drive_busy_s[name] += step
        blocks = int((done + 0.5) // job.block)
        machine.moved[name][job.side] += _by_drive(drive, job, (blocks - work.blocks) * job.block)
        work.blocks = blocks
    return work


def _rate(drive: Drive, job: _Job, written: int) -> float:
    """Return the bytes per second of a job on a drive to which `written` bytes went before."""
    if job.side == "read":
        rate = drive.read_iops * job.block if job.rw == "randread" else drive.read_mbs * 1e6
        return MEMORY_BYTES_S if drive.page_cached else rate * (1.0 - drive.foreign_busy)
    rate = drive.write_iops * job.block if job.rw == "randwrite" else drive.write_mbs * 1e6
    return rate * (drive.after_cache if written >= drive.cache_gib * GIB else 1.0) * (1.0 - drive.foreign_busy)


def _by_drive(drive: Drive, job: _Job, moved: int) -> int:
    """Return how many of `moved` bytes the drive itself moved; a drive counts whole sectors."""
    if job.side == "read" and drive.page_cached:
        return int(moved * CACHED_SHARE) // SECTOR * SECTOR
    return moved


# words -------------------------------------------------------------------------------------------


def _parse(words: Sequence[str]) -> _Job:
    """Parse a command line; raises _UsageError with fio's words."""
    told, untold = dict[str, str](), set[str]()
    for word in words:
        option, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or option not in OPTIONS.keys() | UNTOLD:
            message = f"fio: unrecognized option '{word}'"
            raise _UsageError(message)
        if option in UNTOLD:
            untold.add(option)
        elif equals and value:
            told[option] = value
        else:
            message = f"fio: option {option} requires an argument"
            raise _UsageError(message)
    if "name" not in told:
        message = "No job(s) defined\n"
        raise _UsageError(message)
    return _job(told, timed="time_based" in untold)


def _job(told: Mapping[str, str], *, timed: bool) -> _Job:
    asked = {**OPTIONS, **told}
    if asked["rw"] not in KINDS:
        message = f"fio: failed parsing rw={asked['rw']}"
        raise _UsageError(message)
    if asked["ioengine"] not in ENGINES:
        message = f"fio: engine {asked['ioengine']} not loadable\nfio: failed to load engine"
        raise _UsageError(message)
    size = _number("size", asked["size"], 0) if asked["size"] else 0
    block, iodepth, numjobs = (_number(option, asked[option], 1) for option in ("bs", "iodepth", "numjobs"))
    seconds = float(_number("runtime", asked["runtime"], 0))
    return _Job(
        told, asked["name"], asked["filename"], asked["rw"], size, block, iodepth, numjobs, seconds,
        timed and seconds > 0,
    )  # fmt: skip


def _number(option: str, text: str, least: int) -> int:
    """Parse a number with fio's suffixes of 1024."""
    match = re.fullmatch(r"([0-9]{1,18})([kmgt]?)", text.lower())
    if match is None:
        message = f"fio: failed parsing {option}={text}"
        raise _UsageError(message)
    number = int(match[1]) << 10 * " kmgt".index(match[2] or " ")
    if number < least:
        message = f"{option}: min value out of range: {number} ({least} min)\nfio: failed parsing {option}={text}"
        raise _UsageError(message)
    return number


def _ended(errno: int, place: str, function: str, pid: int) -> str:
    """Return the line with which fio names the error that ended a job."""
    return f"fio: pid={pid}, err={errno}/file:{place}, func={function}, error={os.strerror(errno)}\n"


def _io_errors(job: _Job, work: _Work) -> str:
    """Return a line for every request of one thread that was in flight when the drive failed."""
    first, cause = work.blocks * job.block % job.size, os.strerror(work.errno)
    return "".join(
        f"fio: io_u error on file {job.file}: {cause}: {job.side} offset={first + i * job.block}, buflen={job.block}\n"
        for i in range(job.iodepth)
    )


def _report(machine: Machine, job: _Job, work: _Work, back: _Work | None = None, name: str = "") -> str:
    """Return fio's JSON report of a job, of what it read back to verify, and of the drive `name`."""
    now = machine.started + dt.timedelta(seconds=machine.now)
    milliseconds = max(1, round(work.seconds * 1000)) if work.blocks else 0
    drive = machine.drives.get(name)
    tail, short = (drive.tail, drive.short_ios) if drive else (1.0, 0)
    halves = {side: _half(job, 0, 0, tail) for side in ("read", "write", "trim")}
    if back and back.blocks:
        halves["read"] = _half(job, back.blocks, max(1, round(back.seconds * 1000)), tail)
    halves[job.side] = {**_half(job, work.blocks, milliseconds, tail), "short_ios": short}
    result = {
        "jobname": job.name, "groupid": 0, "error": work.errno or (back.errno if back else 0), "eta": 2**31 - 1,
        "elapsed": milliseconds // 1000 + 1,
        "job options": job.told, **halves, "job_runtime": milliseconds * job.numjobs,
    }  # fmt: skip
    whole = {
        "fio version": "fio-3.33", "timestamp": int(now.timestamp()), "timestamp_ms": round(now.timestamp() * 1000),
        "time": now.ctime(), "jobs": [result],
        "disk_util": [{"name": block_name(machine, name), "util": BUSY_PERCENT}] if drive else [],
    }  # fmt: skip
    return json.dumps(whole, indent=2, separators=(",", " : ")) + "\n"


def _half(job: _Job, blocks: int, milliseconds: int, tail: float) -> dict[str, Any]:
    """Return one direction of a report; its mean latency follows from the rate by Little's law."""
    moved, per_s = blocks * job.block, 1000.0 / milliseconds if milliseconds else 0.0
    latency = job.depth * 1e9 / (blocks * per_s) if blocks else 0.0
    return {
        "io_bytes": moved, "io_kbytes": moved // 1024, "bw_bytes": int(moved * per_s), "bw": int(moved * per_s / 1024),
        "iops": round(blocks * per_s, 6), "runtime": milliseconds, "total_ios": blocks, "short_ios": 0, "drop_ios": 0,
        "slat_ns": _latency(0.02 * latency, blocks),
        "clat_ns": {**_latency(0.98 * latency, blocks), **_percentiles(0.98 * latency, tail, blocks)},
        "lat_ns": _latency(latency, blocks),
    }  # fmt: skip


def _latency(mean: float, blocks: int) -> dict[str, Any]:
    """Return latency statistics, ns; all but the mean are [E] the usual shape."""
    return {
        "min": int(0.4 * mean), "max": int(6 * mean), "mean": round(mean, 6), "stddev": round(0.25 * mean, 6),
        "N": blocks,
    }  # fmt: skip


def _percentiles(mean: float, tail: float, blocks: int) -> dict[str, Any]:
    """Return percentiles of a latency, ns; `tail` is the 99th over the mean, the others are [E] around it."""
    if not blocks:
        return {}
    shares = {"1.000000": 0.5, "50.000000": 0.97, "95.000000": 1.0, "99.000000": tail, "99.900000": 1.5 * tail}
    rising = sorted(shares.values())
    return {"percentile": {percent: int(share * mean) for percent, share in zip(shares, rising, strict=True)}}
