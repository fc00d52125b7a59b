"""Drive rates by fio, and the gates that make a fio result evidence.

Owns the fio jobs, the parser of fio's JSON and the validity gates: fio ends with status 0 and
error 0 while it reads unwritten extents at 37 GB/s, while `direct=1` works on tmpfs, and after an
interruption. Writes only inside a folder of its own under the given mount, removed whatever happens.
"""

import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Completed, Disk

COUNT = Metric("nvme.count", "NVMe drives", "count", "host")
SEQ, RAND = ("bs",), ("bs", "iodepth", "numjobs")
READ_SEQ = Metric("nvme.read.seq", "Sequential read", "MB/s", "nvme", rate="drive_link", conditions=SEQ)
WRITE_SEQ = Metric("nvme.write.seq", "Sequential write, burst", "MB/s", "nvme", rate="drive_link", conditions=SEQ)
READ_RAND = Metric("nvme.read.rand", "Random read, 4 KiB", "IOPS", "nvme", conditions=RAND)
WRITE_RAND = Metric("nvme.write.rand", "Random write, 4 KiB, burst", "IOPS", "nvme", conditions=RAND)

PARAMS: dict[str, Scalar] = {
    "size_gib": 64, "seconds": 30, "warmup_seconds": 5, "seq_bs_kib": 1024, "seq_iodepth": 8,
    "rand_bs_kib": 4, "rand_iodepth": 32, "rand_numjobs": 4, "write_budget_gib": 600, "keep_free_gib": 20,
}  # fmt: skip

GIB = 2**30
SECTOR = 512
FULL_TIME = 0.98
FROM_DEVICE = 0.95
"""Share of fio's bytes that the block device itself must have moved."""
LITTLE = 0.10
"""Largest disagreement of IOPS x mean latency with the queue depth (Little's law)."""
BURST_MBPS = 8000
"""MB/s assumed for planning what a timed write will put on a drive (a Gen4 x4 link)."""
ENGINES = ("io_uring", "libaio")
GRACE_S = 60


@dataclass(frozen=True, slots=True)
class Job:
    """One fio job; `seconds` 0 writes the file once, whole."""

    name: str
    rw: str
    bs_kib: int
    iodepth: int
    numjobs: int
    seconds: int

    @property
    def side(self) -> str:
        """The half of fio's report that holds its result."""
        return "read" if "read" in self.rw else "write"

    def argv(self, file: str, size: int, engine: str) -> list[str]:
        """Return the fio command line for `file` of `size` bytes."""
        time = [f"--runtime={self.seconds}", "--time_based"] if self.seconds else []
        end = ["--end_fsync=1"] if self.side == "write" else []
        return [
            "fio", f"--name={self.name}", f"--filename={file}", f"--size={size}", f"--rw={self.rw}",
            f"--bs={self.bs_kib}k", f"--iodepth={self.iodepth}", f"--numjobs={self.numjobs}", f"--ioengine={engine}",
            "--direct=1", "--thread", "--group_reporting", "--randrepeat=0", "--invalidate=1",
            "--output-format=json", f"--aux-path={posixpath.dirname(file)}", *time, *end,
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class FioResult:
    """What fio reports of one job: bytes, rates, time and latency, exactly as printed."""

    io_bytes: int
    bw_bytes: int
    iops: float
    runtime_ms: int
    latency_ns: float
    error: int
    options: Mapping[str, str]


def parse_fio(text: str, side: str) -> FioResult:
    """Parse fio's JSON report, whatever stands before it; raises Unmeasurable when it is none."""
    try:
        report = json.loads(text[text.index("{") :])
        job = report["jobs"][0]
        return _result(job, job[side], {**report.get("global options", {}), **job.get("job options", {})})
    except (ValueError, KeyError, IndexError, TypeError, ArithmeticError, RecursionError) as error:
        message = f"fio's report cannot be read ({type(error).__name__}: {error}): {text[:80]!r}"
        raise Unmeasurable(message) from None


def _result(job: dict[str, Any], half: dict[str, Any], options: dict[str, str]) -> FioResult:
    iops, latency = float(half["iops"]), float(half["lat_ns"]["mean"])
    if not (math.isfinite(iops) and math.isfinite(latency)):
        message = "a rate is not a number"
        raise ValueError(message)
    counts = [int(half[key]) for key in ("io_bytes", "bw_bytes", "runtime")]
    return FioResult(counts[0], counts[1], iops, counts[2], latency, int(job["error"]), options)


def flaws(result: FioResult, job: Job, size: int, device_bytes: int, ceiling: float | None) -> list[str]:
    """Return why a fio result is not evidence of the drive's speed; an empty list when it is."""
    depth = job.iodepth * job.numjobs
    busy = result.iops * result.latency_ns / 1e9
    asked = {"rw": job.rw, "bs": f"{job.bs_kib}k", "iodepth": str(job.iodepth), "direct": "1", "size": str(size)}
    other = [key for key, value in asked.items() if result.options.get(key) != value]
    mbps = result.bw_bytes / 1e6
    gates = (
        (result.error != 0, f"fio reports error {result.error}"),
        (min(result.io_bytes, result.bw_bytes, result.iops) <= 0, "nothing was transferred"),
        (result.runtime_ms < FULL_TIME * 1000 * job.seconds, f"ran {result.runtime_ms} ms of {job.seconds} s"),
        (
            device_bytes < FROM_DEVICE * result.io_bytes,
            f"the drive moved {device_bytes:,} of the {result.io_bytes:,} bytes that fio counted, a cache did the rest",
        ),
        (abs(busy - depth) > LITTLE * depth, f"{busy:.1f} requests were in flight on average instead of {depth}"),
        (bool(other), f"fio ran with other options than asked: {', '.join(other)}"),
        (ceiling is not None and mbps > ceiling, f"{mbps:,.0f} MB/s is more than a link of {ceiling} MB/s carries"),
    )
    return [reason for bad, reason in gates if bad]


def rates(site: Site) -> Iterator[Outcome]:
    """Lay the file out, run the four jobs, yield four rates; a job that is no evidence yields its reason."""
    device = site.profile.device.get(site.device)
    if device is None or device.mount is None:
        message = f"the profile gives no mount for {site.device}: set device.{site.device}.mount"
        raise Unmeasurable(message)
    disk, block = block_device(site, device.mount)
    size = int(site.params["size_gib"]) * GIB
    check_space(device.mount, disk, size, site.params)
    with site.world.folder(device.mount) as folder:
        yield from _run_jobs(site, f"{folder}/fio.dat", size, block)


def _run_jobs(site: Site, file: str, size: int, block: str) -> Iterator[Outcome]:
    p = {key: int(value) for key, value in site.params.items()}
    seq, rand = (p["seq_bs_kib"], p["seq_iodepth"], 1), (p["rand_bs_kib"], p["rand_iodepth"], p["rand_numjobs"])
    engine = _lay_out(site, Job("layout", "write", *seq, 0), file, size)
    plan = (
        (READ_SEQ, Job("seq_read", "read", *seq, p["seconds"])),
        (WRITE_SEQ, Job("seq_write", "write", *seq, p["seconds"])),
        (READ_RAND, Job("rand_read", "randread", *rand, p["seconds"])),
        (WRITE_RAND, Job("rand_write", "randwrite", *rand, p["seconds"])),
    )
    for metric, job in plan:
        warm_up = replace(job, name=f"{job.name}_warmup", seconds=p["warmup_seconds"])
        try:
            site.world.command(warm_up.argv(file, size, engine), timeout=warm_up.seconds + GRACE_S)
            yield _measure(site, metric, job, file, size, engine, block)
        except Unmeasurable as error:
            yield NotMeasured(metric.id, site.device, str(error))


def _lay_out(site: Site, job: Job, file: str, size: int) -> str:
    """Write the whole file once, so that reads find real extents; return the engine that works here."""
    reasons = []
    for engine in ENGINES:
        done = site.world.command(job.argv(file, size, engine), timeout=GRACE_S + size / 20e6)
        site.attach(f"fio {job.name} {engine}", done.stdout + done.stderr)
        if done.status == 0 and parse_fio(done.stdout, "write").io_bytes >= size:
            return engine
        reasons.append(f"{engine}: {_complaint(done)}")
    message = f"fio could not write the test file ({'; '.join(reasons)})"
    raise Unmeasurable(message)


def _measure(  # noqa: PLR0913, PLR0917 - what to run, on what, and where it is counted
    site: Site, metric: Metric, job: Job, file: str, size: int, engine: str, block: str
) -> Measurement:
    before = moved_bytes(site, block, job.side)
    done = site.world.command(job.argv(file, size, engine), timeout=job.seconds + GRACE_S)
    moved = moved_bytes(site, block, job.side) - before
    raw = site.attach(f"fio {job.name}", done.stdout + done.stderr)
    if done.status != 0:
        message = f"fio ended with status {done.status}: {_complaint(done)}"
        raise Unmeasurable(message)
    result = parse_fio(done.stdout, job.side)
    link = site.profile.rate(metric.rate, site.device)
    wrong = flaws(result, job, size, moved, link.ceiling if link else None)
    if wrong:
        raise Unmeasurable("not evidence: " + "; ".join(wrong))
    value = result.iops if metric.unit == "IOPS" else result.bw_bytes / 1e6
    return site.measured(metric, value, conditions=_conditions(job, result, engine, moved, raw))


def _complaint(done: Completed) -> str:
    """Return what fio says of its failure: on stderr, or before the report on stdout."""
    text = done.stderr.strip() or done.stdout.partition("{")[0].strip() or "no reason given"
    return text.splitlines()[-1][:200]


def _conditions(job: Job, result: FioResult, engine: str, moved: int, raw: str) -> dict[str, Scalar]:
    """Return what a rate was taken under; without it the figure means nothing."""
    return {
        "bs": f"{job.bs_kib}k", "iodepth": job.iodepth, "numjobs": job.numjobs, "engine": engine,
        "seconds": job.seconds, "bw_bytes": result.bw_bytes, "io_bytes": result.io_bytes,
        "device_bytes": moved, "latency_us": round(result.latency_ns / 1000, 1), "raw": raw,
    }  # fmt: skip


def block_device(site: Site, mount: str) -> tuple[Disk, str]:
    """Return what is behind a folder, and the /sys folder of its block device; refuses what is none."""
    try:
        disk = site.world.disk(mount)
    except Unmeasurable as error:
        message = f"mount of {site.device}: {error}"
        raise Unmeasurable(message) from None
    folder = f"/sys/dev/block/{disk.number}"
    try:
        known = bool(site.world.names(folder)) and not disk.number.startswith("0:")
    except Unmeasurable:
        known = False
    if not known:
        message = f"{mount} is not on a block device (tmpfs, overlay or a network): its speed is not the drive's"
        raise Unmeasurable(message)
    return disk, folder


def moved_bytes(site: Site, block: str, side: str) -> int:
    """Return the bytes that a block device has read or written since boot."""
    words = site.world.read(f"{block}/stat").split()
    column = 2 if side == "read" else 6
    if len(words) <= column or not words[column].isdecimal():
        message = f"{block}/stat is not a block device's statistics"
        raise Unmeasurable(message)
    return int(words[column]) * SECTOR


def check_space(mount: str, disk: Disk, size: int, params: Mapping[str, Scalar]) -> None:
    """Refuse to run without room for the file, or when the writes would pass the budget."""
    free, needed = disk.free, size + float(params["keep_free_gib"]) * GIB
    if free < needed:
        message = f"{mount} has {free / GIB:.1f} GiB free, the test needs {needed / GIB:.1f}: lower size_gib"
        raise Unmeasurable(message)
    timed = 2 * (float(params["seconds"]) + float(params["warmup_seconds"])) * BURST_MBPS * 1e6
    if size + timed > float(params["write_budget_gib"]) * GIB:
        planned = (size + timed) / GIB
        message = f"the test may write {planned:.0f} GiB, write_budget_gib is {params['write_budget_gib']}"
        raise Unmeasurable(message)


def inventory(site: Site) -> Iterator[Outcome]:
    """Yield the number of NVMe drives; raises Unmeasurable where the kernel has no NVMe driver loaded."""
    drives = [name for name in site.world.names("/sys/class/nvme") if re.fullmatch(r"nvme[0-9]+", name)]
    yield site.measured(COUNT, len(drives), conditions={"drives": " ".join(drives)})


PROBES = (
    Probe("nvme.inventory", "inventory", "host", (COUNT,), inventory),
    Probe(
        "nvme.fio", "storage", "nvme", (READ_SEQ, WRITE_SEQ, READ_RAND, WRITE_RAND), rates,
        params=PARAMS, load=True, tools=("fio",),
    ),
)  # fmt: skip
