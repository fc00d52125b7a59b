"""fio: its jobs, its JSON report, and the gates that make a result evidence of a drive's speed.

fio ends with status 0 and error 0 while it reads unwritten extents at 37 GB/s, while `direct=1` works on
tmpfs, and after an interruption. Owns words and figures only; runs nothing and knows no metric.
"""

import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.world import Completed

FULL_TIME = 0.98
FROM_DEVICE = 0.95
"""Share of fio's bytes that the block device itself must have moved."""
BESIDE = 0.10
"""Share of fio's bytes that somebody else may have moved meanwhile."""
LITTLE = 0.10
"""Largest disagreement of IOPS x mean latency with the queue depth (Little's law)."""
SAME_RATE = 0.01
"""Largest disagreement of IOPS x block size with the bandwidth."""
LINK_SHARE = 0.97
"""Share of a link's raw rate that payload can reach."""
LEAST_BUSY = 90.0
"""% of a job's time in which a drive that was kept busy has requests."""
OLDEST = 3
"""fio's version from which on latencies are in nanoseconds."""
EILSEQ = 84
"""Error with which fio reports data that read back wrong."""
WRONG_DATA = re.compile(r"^verify: |: verify failed at |bad header|crc32c: verify failed", re.MULTILINE)
UNTOLD = ("--output-format", "--aux-path")
"""Options with a value that the report does not repeat."""
REPORT = re.compile(r"^\{", re.MULTILINE)
"""Where the report begins; an interrupted fio says so before it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One fio job; `seconds` 0 goes once through the file, `verify` writes with checksums and reads all back."""

    name: str
    rw: str
    bs_kib: int
    iodepth: int
    numjobs: int
    seconds: int
    verify: bool = False
    node: int = -1

    @property
    def side(self) -> str:
        """The half of fio's report that holds its result."""
        return "read" if "read" in self.rw else "write"

    @property
    def depth(self) -> int:
        """Requests that are to be in flight."""
        return self.iodepth * self.numjobs

    def argv(self, file: str, size: int, engine: str) -> list[str]:
        """Return the fio command line for `file` of `size` bytes; `node`, unless negative, binds it to a NUMA node."""
        time = [f"--runtime={self.seconds}", "--time_based"] if self.seconds else []
        end = ["--end_fsync=1"] if self.side == "write" else []
        check = ["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0"] if self.verify else []
        bound = [f"--numa_cpu_nodes={self.node}", f"--numa_mem_policy=bind:{self.node}"] if self.node >= 0 else []
        return [
            "fio", f"--name={self.name}", f"--filename={file}", f"--size={size}", f"--rw={self.rw}",
            f"--bs={self.bs_kib}k", f"--iodepth={self.iodepth}", f"--numjobs={self.numjobs}", f"--ioengine={engine}",
            "--direct=1", "--thread", "--group_reporting", "--randrepeat=0", "--invalidate=1",
            "--output-format=json", f"--aux-path={posixpath.dirname(file)}", *time, *end, *check, *bound,
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class FioResult:
    """What fio reports of one direction of its job, as printed; latencies in ns, percentiles in their order."""

    io_bytes: int
    bw_bytes: int
    iops: float
    runtime_ms: int
    latency_ns: float
    error: int
    options: Mapping[str, str]
    percentiles: Mapping[float, float]
    lost_ios: int
    version: str

    def percentile_us(self, percent: float) -> float:
        """Return a percentile of the completion latency in us; raises Unmeasurable when it was not reported."""
        if percent not in self.percentiles:
            message = f"fio's report has no {percent:g}th percentile of the latency"
            raise Unmeasurable(message)
        return self.percentiles[percent] / 1000


@dataclass(frozen=True, slots=True)
class Seen:
    """What the drive's own counters show of a job.

    The bytes that it moved, those that somebody else moved meanwhile, and the % of the time in which it had work.
    fio's `disk_util` is not asked: it counts a tenth of a second after the job.
    """

    moved: int
    beside: int
    busy: float


def parse_fio(text: str, side: str) -> FioResult:
    """Parse fio's JSON report of one job, whatever stands before it; raises Unmeasurable when it is none."""
    try:
        report = json.loads(_parts(text)[1])
        [job] = report["jobs"]
        options = {**report.get("global options", {}), **job.get("job options", {})}
        return _result(report, job, job[side], options)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        message = f"fio's report cannot be read ({type(error).__name__}: {error}): {text[:80]!r}"
        raise Unmeasurable(message) from None


def _parts(text: str) -> tuple[str, str]:
    """Return what fio says before its report, and the report; '' without one."""
    begin = REPORT.search(text)
    return (text[: begin.start()], text[begin.start() :]) if begin else (text, "")


def _result(report: dict[str, Any], job: dict[str, Any], half: dict[str, Any], options: dict[str, str]) -> FioResult:
    iops, latency = _finite(half["iops"]), _finite(half["lat_ns"]["mean"])
    counts = [_count(half[key]) for key in ("io_bytes", "bw_bytes", "runtime")]
    told = half.get("clat_ns", {}).get("percentile", {})
    percentiles = {_finite(float(percent)): _finite(value) for percent, value in told.items()}
    lost = _count(half["short_ios"]) + _count(half["drop_ios"])
    return FioResult(
        counts[0], counts[1], iops, counts[2], latency, _count(job["error"]), options, percentiles, lost,
        _version(report["fio version"]),
    )  # fmt: skip


def _count(value: Any) -> int:  # noqa: ANN401 - whatever stands in the report
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        message = f"{value!r} is no count"
        raise ValueError(message)
    return value


def _finite(value: Any) -> float:  # noqa: ANN401 - whatever stands in the report
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        message = f"{value!r} is no rate"
        raise ValueError(message)
    return float(value)


def _version(text: str) -> str:
    """Return fio's version; raises ValueError for one whose report means something else."""
    match = re.match(r"fio-(\d{1,3})\.\d", text)
    if match is None or int(match[1]) < OLDEST:
        message = f"{text!r} is no version of fio from {OLDEST}.0 on"
        raise ValueError(message)
    return text


def flaws(result: FioResult, job: Job, argv: Sequence[str], seen: Seen, ceiling: float | None) -> list[str]:
    """Return why a fio result is not evidence of the drive's speed; an empty list when it is.

    `ceiling` is the raw rate of the drive's link in MB/s, None where there is none.
    """
    in_flight = result.iops * result.latency_ns / 1e9
    mbps, by_iops = result.bw_bytes / 1e6, result.iops * job.bs_kib * 1024
    other = [key for key, value in asked(argv) if result.options.get(key) != value]
    gates = (
        (result.error != 0, f"fio reports error {result.error}"),
        (min(result.io_bytes, result.bw_bytes, result.iops) <= 0, "nothing was transferred"),
        (result.runtime_ms < FULL_TIME * 1000 * job.seconds, f"ran {result.runtime_ms} ms of {job.seconds} s"),
        (
            seen.moved < FROM_DEVICE * result.io_bytes,
            f"the drive moved {seen.moved:,} of the {result.io_bytes:,} bytes that fio counted, a cache did the rest",
        ),
        (seen.beside > BESIDE * result.io_bytes, f"somebody else moved {seen.beside:,} bytes on the drive meanwhile"),
        (
            ceiling is not None and mbps > LINK_SHARE * ceiling,
            f"{mbps:,.0f} MB/s is more than a link of {ceiling} MB/s carries",
        ),
        (
            abs(in_flight - job.depth) > LITTLE * job.depth,
            f"{in_flight:.1f} requests were in flight on average instead of {job.depth}",
        ),
        (
            abs(by_iops - result.bw_bytes) > SAME_RATE * result.bw_bytes > 0,
            f"{result.iops:.0f} IOPS of {job.bs_kib} KiB are not {mbps:,.0f} MB/s",
        ),
        (not _rising(result.percentiles), "the percentiles of the latency are missing or do not rise"),
        (result.lost_ios != 0, f"{result.lost_ios} requests were cut short or dropped"),
        (
            seen.busy < LEAST_BUSY,
            f"the drive had work in only {seen.busy:.1f} % of the time: end what uses the CPUs, run again",
        ),
        (bool(other), f"fio ran with other options than asked: {', '.join(other)}"),
    )
    return [reason for bad, reason in gates if bad]


def _rising(percentiles: Mapping[float, float]) -> bool:
    """Say whether there are percentiles, and none is below one before it."""
    values = [value for _, value in sorted(percentiles.items())]
    return bool(values) and values == sorted(values)


def asked(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option of a command line that the report must repeat."""
    for word in argv[1:]:
        option, equals, value = word.partition("=")
        if equals and option not in UNTOLD:
            yield option.removeprefix("--"), value


def wrong_data(done: Completed) -> int:
    """Return how often a verify job found wrong data, at least; 0 when it says nothing of the kind."""
    try:
        told = parse_fio(done.stdout, "write").error == EILSEQ
    except Unmeasurable:
        told = False
    lines = (done.stderr + _parts(done.stdout)[0]).splitlines()
    return max(sum(1 for line in lines if WRONG_DATA.search(line)), int(told))


def complaint(done: Completed) -> str:
    """Return what fio says of its failure: on stderr, or before the report on stdout."""
    text = done.stderr.strip() or _parts(done.stdout)[0].strip() or "no reason given"
    return text.splitlines()[-1][:200]
