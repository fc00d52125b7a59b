"""The drives' rates, by fio; what the data, the link and the temperature do meanwhile.

Owns the order of the jobs, the write budget, and which figure becomes which metric. Writes only inside a
folder of its own under the given mount, removed whatever happens; never a device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.drives import cold_load, drive
from pytest_gpuaccept.probes.drives import health as drive_health
from pytest_gpuaccept.probes.drives.drive import Backing, Mount, drives_of
from pytest_gpuaccept.probes.drives.drive_watch import Look, Watch, busy_percent, thirds, wait_until_quiet
from pytest_gpuaccept.probes.drives.fio import (
    FROM_DEVICE,
    FioResult,
    Job,
    Seen,
    complaint,
    flaws,
    parse_fio,
    wrong_data,
)
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Completed, Disk

SEQ, RAND = ("bs",), ("bs", "iodepth", "numjobs")
READ_SEQ = Metric("nvme.read.seq", "Sequential read", "MB/s", "nvme", rate="drive_link", conditions=SEQ)
WRITE_SEQ = Metric("nvme.write.seq", "Sequential write, burst", "MB/s", "nvme", rate="drive_link", conditions=SEQ)
READ_RAND = Metric("nvme.read.rand", "Random read, 4 KiB", "IOPS", "nvme", conditions=RAND)
WRITE_RAND = Metric("nvme.write.rand", "Random write, 4 KiB, burst", "IOPS", "nvme", conditions=RAND)
LATENCY = Metric("nvme.read.latency_p99", "Random read, 99th percentile", "us", "nvme", conditions=RAND)
SUSTAINED = Metric("nvme.write.sustained", "Sequential write, sustained (not SNIA PTS)", "MB/s", "nvme", conditions=SEQ)
DROP = Metric("nvme.drop", "Sequential rate lost by the last third", "%", "nvme")
VERIFY = Metric("nvme.verify.errors", "Data that read back wrong", "count", "nvme", none_seen=True)
TEMPERATURE = Metric("nvme.temperature", "Drive, hottest", "C", "nvme")
OVER = Metric("nvme.temperature.over_critical", "Drive, hottest, above its critical temperature", "C", "nvme")
LINK_GEN = Metric("nvme.link.gen", "Drive link generation under load", "gen", "nvme")
LINK_WIDTH = Metric("nvme.link.width", "Drive link width under load", "lanes", "nvme")
WRITTEN = Metric("nvme.written", "Written to the drive during the test", "GB", "nvme")

PARAMS: dict[str, Scalar] = {
    "size_gib": 64, "seconds": 30, "warmup_seconds": 5, "seq_bs_kib": 1024, "seq_iodepth": 8, "seq_numjobs": 1,
    "rand_bs_kib": 4, "rand_iodepth": 32, "rand_numjobs": 4, "verify_gib": 4, "verify_bs_kib": 128,
    "verify_iodepth": 16, "sustained_seconds": 0, "idle_seconds": 5, "idle_longest_seconds": 30,
    "foreign_percent": 2, "write_budget_gib": 600, "keep_free_gib": 20,
}  # fmt: skip
"""`sustained_seconds` 0 runs no sustained write."""

GIB = 2**30
BURST_MBPS = 8000
"""MB/s assumed for planning what a timed write will put on a drive (a Gen4 x4 link)."""
ENGINES = ("io_uring", "libaio")
GRACE_S = 60
SLOWEST_BYTES_S = 20e6
"""Bytes per second below which writing a file is given up."""


@dataclass(slots=True)
class _Rig:
    """A laid-out file with all that a job on it needs.

    `wrote` is what fio says that each job wrote, `thirds` the rates of the sequential ones at both ends.
    """

    site: Site
    found: Backing
    watch: Watch
    folder: str
    engine: str = ENGINES[0]
    node: int = -1
    wrote: list[int] = field(default_factory=list)
    thirds: dict[str, tuple[float, float]] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """Return a parameter."""
        return int(self.site.params[name])

    def job(self, name: str, rw: str, seconds: int) -> Job:
        """Return a job with the parameters of its access: sequential or random."""
        of = "rand" if rw.startswith("rand") else "seq"
        bs, iodepth, numjobs = (self.number(f"{of}_{what}") for what in ("bs_kib", "iodepth", "numjobs"))
        return Job(name, rw, bs, iodepth, numjobs, seconds, node=self.node)

    def run(self, job: Job, name: str, size: int, timeout: float) -> Completed:
        """Run a job on a file of the folder, watched; raises Unmeasurable when it may not, or must be ended."""
        if self.watch.over:
            raise Unmeasurable(self.watch.over)
        argv = job.argv(f"{self.folder}/{name}", size, self.engine)
        done = self.site.world.command(argv, timeout=timeout, watch=self.watch)
        with suppress(Unmeasurable):
            self.wrote.append(parse_fio(done.stdout, "write").io_bytes)
        return done


def rates(site: Site) -> Iterator[Outcome]:
    """Lay a file out, run the jobs, yield what they showed; a job that is no evidence yields its reason."""
    found = drives_of(site)
    mount = site.profile.device[site.device].mount or ""
    planned = check_space(mount, found.disk, site.params)
    watch = Watch(site, found)
    wait_until_quiet(site, watch)
    began = watch.look()
    with site.world.folder(mount) as folder:
        rig = _lay_out(_Rig(site, found, watch, folder))
        yield from _jobs(rig)
        yield _guarded(rig, VERIFY, _verify)
    yield from _meanwhile(rig)
    yield _guarded(rig, WRITTEN, partial(_written, planned, began))


def _lay_out(rig: _Rig) -> _Rig:
    """Write the whole file once, so that reads find real extents; return the rig with what works here."""
    reasons, size = [], rig.number("size_gib") * GIB
    node = _node(rig)
    for engine, bound in dict.fromkeys((engine, bound) for bound in (node, -1) for engine in ENGINES):
        ready = replace(rig, engine=engine, node=bound)
        job, began = ready.job("layout", "write", 0), ready.watch.look()
        done = ready.run(job, "fio.dat", size, GRACE_S + size / SLOWEST_BYTES_S)
        rig.site.attach(f"fio {job.name} {engine}", done.stdout + done.stderr)
        if done.status == 0 and _whole(done, size):
            _prove_written(ready, began, size)
            return ready
        reasons.append(f"{engine}: {complaint(done)}")
    message = f"fio could not write the test file ({'; '.join(reasons)})"
    raise Unmeasurable(message)


def _prove_written(rig: _Rig, began: Look, size: int) -> None:
    """Raise Unmeasurable unless the drive itself took the file."""
    written = rig.watch.look().moved("write") - began.moved("write")
    if written < FROM_DEVICE * size:
        message = (
            f"the drive wrote {written:,} of the {size:,} bytes of the test file: they went elsewhere, or its "
            f"statistics are off (cat /sys/class/block/{rig.found.drives[0].name}/queue/iostats)"
        )
        raise Unmeasurable(message)


def _whole(done: Completed, size: int) -> bool:
    result = parse_fio(done.stdout, "write")
    return result.error == 0 and result.io_bytes >= size


def _node(rig: _Rig) -> int:
    """Return the NUMA node of the drive, -1 where it is unknown or there is but one."""
    first = rig.found.drives[0]
    try:
        if rig.site.world.read("/sys/devices/system/node/online") == "0":
            return -1
        return int(rig.site.world.read(f"{first.controller or first.block}/device/numa_node"))
    except (Unmeasurable, ValueError):
        return -1


# the timed jobs ----------------------------------------------------------------------------------


def _jobs(rig: _Rig) -> Iterator[Outcome]:
    seconds = rig.number("seconds")
    yield from _timed(rig, rig.job("seq_read", "read", seconds), READ_SEQ)
    yield from _timed(rig, rig.job("seq_write", "write", seconds), WRITE_SEQ)
    yield from _timed(rig, rig.job("rand_read", "randread", seconds), READ_RAND, LATENCY)
    yield from _timed(rig, rig.job("rand_write", "randwrite", seconds), WRITE_RAND)
    if long := rig.number("sustained_seconds"):
        yield from _timed(rig, rig.job("sustained", "write", long), SUSTAINED)
    else:
        reason = 'not asked for: --hw-effort=soak, or params."nvme.fio".sustained_seconds'
        yield NotMeasured(SUSTAINED.id, rig.site.device, reason)


COPY_ON_WRITE = ("btrfs", "zfs", "bcachefs", "f2fs")
"""File systems that write elsewhere what is overwritten, and keep account of it."""


def _overwrites(mount: Mount) -> bool:
    """Say whether a file system writes what it is given once, where it was before."""
    return mount.kind not in COPY_ON_WRITE and "data=journal" not in mount.options


def _timed(rig: _Rig, job: Job, *metrics: Metric) -> Iterator[Outcome]:
    """Warm the drive up, run a job, and yield each of its metrics."""
    warm_up = replace(job, name=f"{job.name}_warmup", seconds=rig.number("warmup_seconds"))
    size = rig.number("size_gib") * GIB
    try:
        if warm_up.seconds:
            rig.run(warm_up, "fio.dat", size, warm_up.seconds + GRACE_S)
        result, where = _evidence(rig, job, size)
    except Unmeasurable as error:
        yield from (NotMeasured(metric.id, rig.site.device, str(error)) for metric in metrics)
        return
    for metric in metrics:
        yield _guarded(rig, metric, partial(_value, metric, job, result, where))


def _evidence(rig: _Rig, job: Job, size: int) -> tuple[FioResult, dict[str, Scalar]]:
    """Run a job; return its result and what it was taken under. Raises Unmeasurable unless it passes every gate."""
    before = rig.watch.look()
    done = rig.run(job, "fio.dat", size, job.seconds + GRACE_S)
    after = rig.watch.look()
    raw = rig.site.attach(f"fio {job.name}", done.stdout + done.stderr)
    if done.status != 0:
        message = f"fio ended with status {done.status}: {complaint(done)}"
        raise Unmeasurable(message)
    result = parse_fio(done.stdout, job.side)
    seen = _seen(job, result, before, after, overwrites=_overwrites(rig.found.mount))
    if wrong := flaws(result, job, done.argv, seen, rig.watch.ceiling()):
        raise Unmeasurable("not evidence: " + "; ".join(wrong))
    _keep_thirds(rig, job, before, after)
    return result, {**_conditions(rig, job, result, seen), "raw": raw}


def _seen(job: Job, result: FioResult, before: Look, after: Look, *, overwrites: bool) -> Seen:
    """Return what the drives' counters show of a job.

    What somebody else moved is told of the drive, or of the volume over several: an array has business of its own
    below that. What a file system that does not overwrite writes besides is its own too.
    """
    moved = after.moved(job.side) - before.moved(job.side)
    above = {"read": after.above.read - before.above.read, "write": after.above.written - before.above.written}
    above[job.side] -= result.io_bytes
    beside = sum(max(0, by) for side, by in above.items() if overwrites or side == "read" or job.side == "read")
    return Seen(moved, beside, busy_percent(before, after, result.runtime_ms / 1000))


def _keep_thirds(rig: _Rig, job: Job, before: Look, after: Look) -> None:
    inside = [look for look in rig.watch.looks if before.at <= look.at <= after.at]
    try:
        rig.thirds[job.name] = thirds(inside, job.side)
    except Unmeasurable:
        return


def _conditions(rig: _Rig, job: Job, result: FioResult, seen: Seen) -> dict[str, Scalar]:
    """Return what a rate was taken under; without it the figure means nothing."""
    return {
        "bs": f"{job.bs_kib}k", "iodepth": job.iodepth, "numjobs": job.numjobs, "engine": rig.engine,
        "numa_node": rig.node, "size_gib": rig.number("size_gib"), "seconds": job.seconds,
        "bw_bytes": result.bw_bytes, "io_bytes": result.io_bytes, "device_bytes": seen.moved,
        "busy_percent": round(seen.busy, 1), "latency_us": round(result.latency_ns / 1000, 1),
        "in_flight": round(result.iops * result.latency_ns / 1e9, 1), "fio": result.version,
        "file_system": rig.found.mount.kind, "mounted_at": rig.found.mount.point,
        "mount_options": ",".join(rig.found.mount.options), "drives": " ".join(one.name for one in rig.found.drives),
    }  # fmt: skip


def _value(metric: Metric, job: Job, result: FioResult, where: Mapping[str, Scalar], rig: _Rig) -> Measurement:
    """Return the metric's value in its own unit."""
    if metric is SUSTAINED:
        if job.name not in rig.thirds:
            message = "too short a run to tell its last third"
            raise Unmeasurable(message)
        return rig.site.measured(metric, rig.thirds[job.name][1], conditions=where, note="last third; not SNIA PTS")
    if metric is LATENCY:
        return rig.site.measured(metric, result.percentile_us(99.0), conditions=where)
    value = result.iops if metric.unit == "IOPS" else result.bw_bytes / 1e6
    return rig.site.measured(metric, value, conditions=where)


# besides -----------------------------------------------------------------------------------------


def _guarded(rig: _Rig, metric: Metric, measure: Callable[[_Rig], Measurement]) -> Outcome:
    try:
        return measure(rig)
    except Unmeasurable as error:
        return NotMeasured(metric.id, rig.site.device, str(error))


def _verify(rig: _Rig) -> Measurement:
    """Write a file with checksums and read all of it back; return how often it was wrong."""
    size = rig.number("verify_gib") * GIB
    bs, iodepth = rig.number("verify_bs_kib"), rig.number("verify_iodepth")
    job = Job("verify", "write", bs, iodepth, 1, 0, verify=True, node=rig.node)
    before = rig.watch.look()
    done = rig.run(job, "verify.dat", size, 2 * (GRACE_S + size / SLOWEST_BYTES_S))
    after = rig.watch.look()
    where: dict[str, Scalar] = {"size_gib": size // GIB, "engine": rig.engine}
    where["raw"] = rig.site.attach("fio verify", done.stdout + done.stderr)
    if wrong := wrong_data(done):
        return rig.site.measured(VERIFY, Interval(wrong, None), conditions=where, note=complaint(done))
    if done.status != 0 or not _whole(done, size):
        message = f"fio did not verify the file (status {done.status}): {complaint(done)}"
        raise Unmeasurable(message)
    moved = [after.moved(side) - before.moved(side) for side in ("read", "write")]
    if parse_fio(done.stdout, "read").io_bytes < size or min(moved) < FROM_DEVICE * size:
        message = f"the drive wrote {moved[1]:,} and read back {moved[0]:,} of {size:,} bytes: not all was verified"
        raise Unmeasurable(message)
    proof = f"{size // GIB} GiB were written with CRC32C and read back; the drive itself moved them both ways"
    return rig.site.measured(VERIFY, 0, conditions=where, proof=proof)


def _meanwhile(rig: _Rig) -> Iterator[Outcome]:
    """Yield what was seen while the jobs ran."""
    yield _guarded(rig, DROP, _drop)
    yield _guarded(rig, TEMPERATURE, _hottest)
    yield _guarded(rig, OVER, _over_critical)
    for place, metric in enumerate((LINK_GEN, LINK_WIDTH)):
        lowest = min((seen[place] for seen in rig.watch.links), default=None)
        if lowest is None:
            yield NotMeasured(metric.id, rig.site.device, rig.watch.no_link)
        else:
            yield rig.site.measured(metric, lowest, samples=len(rig.watch.links))


def _written(planned: float, began: Look, rig: _Rig) -> Measurement:
    moved = rig.watch.look().moved("write") - began.moved("write")
    where: dict[str, Scalar] = {"planned_gb": round(planned / 1e9, 1), "by_fio_gb": round(sum(rig.wrote) / 1e9, 1)}
    where["budget_gib"] = rig.site.params["write_budget_gib"]
    return rig.site.measured(WRITTEN, moved / 1e9, conditions=where)


def _drop(rig: _Rig) -> Measurement:
    kept = {name: rig.thirds[name] for name in ("seq_read", "seq_write") if name in rig.thirds}
    if not kept:
        message = "no sequential job was long enough to compare its last third with its first"
        raise Unmeasurable(message)
    lost = {name: 100 * (1 - last / first) for name, (first, last) in kept.items()}
    where: Mapping[str, Scalar] = {f"{name}_percent": round(percent, 2) for name, percent in lost.items()}
    return rig.site.measured(DROP, max(lost.values()), conditions=where)


def _hottest(rig: _Rig) -> Measurement:
    seen: Sequence[float] = rig.watch.temperatures
    if not seen:
        raise Unmeasurable(rig.watch.no_sensor)
    where: dict[str, Scalar] = {"first_c": seen[0]}
    if rig.watch.critical is not None:
        where["critical_c"] = rig.watch.critical
    return rig.site.measured(TEMPERATURE, max(seen), samples=len(seen), conditions=where)


def _over_critical(rig: _Rig) -> Measurement:
    hottest = _hottest(rig)
    if rig.watch.critical is None:
        message = "the drive does not state its critical temperature"
        raise Unmeasurable(message)
    value = max(rig.watch.temperatures) - rig.watch.critical
    return rig.site.measured(OVER, value, samples=hottest.samples, conditions=hottest.conditions)


def check_space(mount: str, disk: Disk, params: Mapping[str, Scalar]) -> float:
    """Return the bytes that a run may write; refuse one without room for its files, or over the budget."""
    number = {name: float(value) for name, value in params.items()}
    if nothing := [name for name in ("size_gib", "seconds", "verify_gib") if number[name] < 1]:
        message = f"{nothing[0]} must be at least 1"
        raise Unmeasurable(message)
    files = (number["size_gib"] + number["verify_gib"]) * GIB
    free, needed = disk.free, files + number["keep_free_gib"] * GIB
    if free < needed:
        message = f"{mount} has {free / GIB:.1f} GiB free, the test needs {needed / GIB:.1f}: lower size_gib"
        raise Unmeasurable(message)
    timed = 2 * (number["seconds"] + number["warmup_seconds"])
    long = number["sustained_seconds"]
    planned = files + (timed + (long + number["warmup_seconds"] if long else 0)) * BURST_MBPS * 1e6
    if planned > number["write_budget_gib"] * GIB:
        budget = params["write_budget_gib"]
        message = f"the test may write {planned / GIB:.0f} GiB, write_budget_gib is {budget}: raise it or lower seconds"
        raise Unmeasurable(message)
    return planned


PROBES = (
    *drive.PROBES,
    Probe(
        "nvme.fio", "storage", "nvme",
        (
            READ_SEQ, WRITE_SEQ, READ_RAND, WRITE_RAND, LATENCY, SUSTAINED, DROP, VERIFY, TEMPERATURE, OVER,
            LINK_GEN, LINK_WIDTH, WRITTEN,
        ),
        rates, params=PARAMS, load=True, tools=("fio",), ready=drives_of,
    ),
    *cold_load.PROBES,
    *drive_health.PROBES,
)  # fmt: skip
