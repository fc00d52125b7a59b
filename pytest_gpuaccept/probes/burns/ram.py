"""Memory burn: stress-ng writes patterns into most of the memory and verifies them; and its bandwidth.

Owns how much memory a burn may take, the proof that it touched it, and likwid-bench's output. Must
not judge. The errors that the memory controller corrects meanwhile are counted elsewhere.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.burns import stress
from pytest_gpuaccept.probes.burns.cpu import online
from pytest_gpuaccept.probes.burns.sensors import Sensors
from pytest_gpuaccept.probes.host import confines, dimms
from pytest_gpuaccept.probes.kernel.counts import oom_kills
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Completed

ERRORS = Metric("ram.burn.errors", "Wrong results in the memory burn", "count", "host", none_seen=True)
COVERAGE = Metric("ram.burn.coverage", "Memory that the memory burn touched", "%", "host")
BANDWIDTH = Metric("ram.bandwidth", "Memory bandwidth of all CPUs", "GB/s", "host", conditions=("method",))

MIB, GIB = 2**20, 2**30
KEEP_BYTES, KEEP_SHARE = 2 * GIB, 0.05
"""What a burn leaves free: 2 GiB, or 5 % of the memory where that is more."""
LEAST_EACH = 64 * MIB
"""Bytes below which a worker is not worth starting."""
TOUCHED_SHARE = 0.9
"""Share of what was asked for that must have been touched for "no errors" to mean anything."""
WORKER, OLD_WORKER = "stress-ng-vm", "stress-ng"
"""Name of the processes that hold the memory; before version 0.14 they do not change their name."""
LOOK_S = 2.0
SETTLE_S = 120
"""Seconds that stress-ng gets on top to finish a pass and to give hundreds of GB back."""
NUMBERS = ("Pid", "PPid", "VmRSS")
STREAM_BYTES = 256 * MIB
"""What one worker of stress-ng's stream takes."""
CACHE = "32m"
"""Cache that stress-ng's stream is to exceed: its three arrays are twice that each."""
LIKWID_BYTES = "4GB"
ROUGH = "rough: stress-ng says itself that its stream is no benchmark; likwid-bench is one, and did not run"
MODULE_BYTES = 8
"""Bytes that a module moves at a time."""


@dataclass(frozen=True, slots=True)
class Room:
    """Memory in bytes: in all, free for us, and how much of it a burn takes with how many workers."""

    total: int
    free: int
    asked: int
    workers: int
    confined: bool = False

    @property
    def floor(self) -> int:
        """Return the free bytes at which a burn is ended: half of what it was to leave."""
        return reserve(self.total) // 2


def reserve(total: int) -> int:
    """Return the bytes that a burn leaves free."""
    return max(KEEP_BYTES, int(KEEP_SHARE * total))


def room(site: Site, percent: float) -> Room:
    """Return what a burn of `percent` of the free memory may take; raises Unmeasurable when that is next to nothing."""
    memory, cpus, free = meminfo(site.world.read("/proc/meminfo")), len(online(site)), free_bytes(site)
    asked = min(int(free * percent / 100), free - reserve(memory["MemTotal"])) // MIB * MIB
    if asked < LEAST_EACH:
        message = (
            f"only {free / GIB:.1f} GiB of memory are free for a burn: end what holds it, or its container's limit"
        )
        raise Unmeasurable(message)
    return Room(memory["MemTotal"], free, asked, min(cpus, asked // LEAST_EACH), free < memory["MemAvailable"])


def free_bytes(site: Site) -> int:
    """Return the bytes that are available to this process: on the machine, and in its control groups."""
    available, left = meminfo(site.world.read("/proc/meminfo"))["MemAvailable"], confines.memory_left(site)
    return available if left is None else min(left, available)


def meminfo(text: str) -> dict[str, int]:
    """Parse /proc/meminfo; return bytes by name. Raises Unmeasurable without the total or what is available."""
    found = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+): +(\d{1,15}) kB$", text, re.MULTILINE)}
    if not found.get("MemTotal") or "MemAvailable" not in found or found["MemAvailable"] > found["MemTotal"]:
        message = "/proc/meminfo does not say how much memory there is and how much is available"
        raise Unmeasurable(message)
    return found


@dataclass(frozen=True, slots=True)
class Process:
    """A /proc/<pid>/status: name, number, parent, bytes resident."""

    name: str
    pid: int
    parent: int
    bytes: int


def process(text: str) -> Process:
    """Parse /proc/<pid>/status; raises Unmeasurable for anything else. A kernel thread holds 0 bytes."""
    found = dict(re.findall(r"^(Name|Pid|PPid|VmRSS):[ \t]*(.*?)(?: kB)?$", text, re.MULTILINE))
    if not all(re.fullmatch(r"\d{1,15}", found.get(key, "0" if key == "VmRSS" else "")) for key in NUMBERS):
        message = f"{text[:40]!r} is not the state of a process"
        raise Unmeasurable(message)
    return Process(found.get("Name", ""), int(found["Pid"]), int(found["PPid"]), int(found.get("VmRSS", 0)) * 1024)


class Touched:
    """Looks at what the workers hold while they run, and ends the burn before memory runs out."""

    def __init__(self, site: Site, room: Room) -> None:
        """Begin to look; our own stress-ng is the one below this process, whatever others run beside it."""
        self._site, self._room = site, room
        self._own = process(site.world.read("/proc/self/status")).pid
        self._due = site.world.clock.monotonic()
        self.most = self.workers = self.fall = 0

    def look(self) -> None:
        """Count what is touched when it is time; raises Unmeasurable when too little memory is left."""
        now = self._site.world.clock.monotonic()
        if now < self._due:
            return
        self._due = now + LOOK_S
        free = free_bytes(self._site)
        self.fall = max(self.fall, self._room.free - free)
        if free < self._room.floor:
            message = f"stopped: {free / GIB:.1f} GiB of memory were left; something else took it meanwhile"
            raise Unmeasurable(message)
        ours = list(self._descendants())
        wait = {own.parent for own in ours}
        old = [own.bytes for own in ours if own.name == OLD_WORKER and own.pid not in wait]
        held = [own.bytes for own in ours if own.name == WORKER] or old
        self.most = max(self.most, sum(held))
        each = TOUCHED_SHARE * self._room.asked / self._room.workers
        self.workers = max(self.workers, sum(size >= each for size in held))

    def _descendants(self) -> Iterator[Process]:
        """Yield the processes below this one; one that ends meanwhile is none."""
        children: dict[int, list[Process]] = {}
        for name in self._site.world.names("/proc"):
            if re.fullmatch(r"\d{1,9}", name):
                try:
                    one = process(self._site.world.read(f"/proc/{name}/status"))
                except Unmeasurable:
                    continue
                children.setdefault(one.parent, []).append(one)
        below = children.pop(self._own, [])
        while below:
            one = below.pop()
            below += children.pop(one.pid, [])
            yield one


def burn(site: Site) -> Iterator[Outcome]:
    """Write and verify patterns in `percent` of the free memory for `seconds`; yield errors and coverage."""
    seconds, own = int(site.params["seconds"]), room(site, int(site.params["percent"]))
    touched, killed = Touched(site, own), oom_kills(site.world.read("/proc/vmstat"))
    ran = _run(site, own, touched, seconds)
    failures = stress.failures(ran.done, "vm")
    try:
        if not failures:
            stress.work(ran.done, ran.report, seconds, "vm", own.workers)
    except Unmeasurable as error:
        yield from (NotMeasured(metric.id, site.device, str(error)) for metric in (ERRORS, COVERAGE))
        return
    conditions = _conditions(own, touched, seconds)
    try:
        proof = None if failures else _proof(site, own, touched, killed)
        yield site.measured(ERRORS, failures, proof=proof, conditions=conditions)
    except Unmeasurable as error:
        yield NotMeasured(ERRORS.id, site.device, str(error))
    yield _coverage(site, own, touched, conditions)


def _run(site: Site, own: Room, touched: Touched, seconds: int) -> stress.Ran:
    """Run stress-ng on the memory; raises Unmeasurable when it cannot run, memory runs out, or a CPU is too hot."""
    argv = ["--vm", str(own.workers), "--vm-bytes", f"{own.asked // MIB}m", "--vm-method", "all", "--vm-keep"]
    looks = (touched.look, Sensors(site, seconds, online(site)).look)
    return stress.run(site, argv, seconds, lambda: [look() for look in looks], SETTLE_S, ("--oom-avoid-bytes", "5%"))


def _coverage(site: Site, own: Room, touched: Touched, conditions: Mapping[str, Scalar]) -> Outcome:
    if not touched.most:
        return NotMeasured(COVERAGE.id, site.device, "no worker of stress-ng was seen to hold memory")
    note = "a control group limits this process's memory" if own.confined else ""
    coverage = 100.0 * touched.most / own.total
    return site.measured(COVERAGE, coverage, ceiling=100.0, conditions=conditions, note=note)


def _conditions(own: Room, touched: Touched, seconds: int) -> dict[str, Scalar]:
    gib = {"asked_gib": own.asked, "touched_gib": touched.most, "available_fell_gib": touched.fall}
    return {"workers": own.workers, "seconds": seconds, **{key: round(size / GIB, 2) for key, size in gib.items()}}


def _proof(site: Site, own: Room, touched: Touched, before: int) -> str:
    """Return what shows that an error would have been seen; raises Unmeasurable with what was amiss.

    `before` is how many processes the OOM killer had ended when the burn began.
    """
    if killed := oom_kills(site.world.read("/proc/vmstat")) - before:
        message = f"the kernel's OOM killer ended {killed} processes on this machine during the burn"
        raise Unmeasurable(message)
    if touched.most < TOUCHED_SHARE * own.asked:
        message = f"the burn touched {touched.most / GIB:.1f} GiB of the {own.asked / GIB:.1f} GiB that it was to touch"
        raise Unmeasurable(message)
    if touched.workers < own.workers:
        message = f"{touched.workers} of {own.workers} workers held the memory that they were to verify"
        raise Unmeasurable(message)
    return (
        f"{own.workers} workers wrote patterns to {touched.most / GIB:.1f} GiB and verified them for "
        f"{site.params['seconds']} s; the OOM killer ended nothing"
    )


# bandwidth ---------------------------------------------------------------------------------------


def bandwidth(site: Site) -> Iterator[Outcome]:
    """Yield the memory bandwidth of all CPUs together, of a real tool where there is one."""
    cpus, seconds = online(site), int(site.params["seconds"])
    if confined := confines.of_cpus(site, cpus):
        raise Unmeasurable(confined)
    watch = Sensors(site, seconds, cpus).look
    gbs, method, note = _likwid(site, watch) or (_stream(site, len(cpus), watch), "stress-ng stream", ROUGH)
    conditions: dict[str, Scalar] = {"method": method, "seconds": seconds, "cpus": len(cpus)}
    yield site.measured(BANDWIDTH, gbs, ceiling=_theoretical(site), conditions=conditions, note=note)


def _likwid(site: Site, watch: Callable[[], object]) -> tuple[float, str, str] | None:
    """Return likwid-bench's stream triad in GB/s, its name and no note; None where it is not there or gives no rate."""
    if not site.world.has("likwid-bench"):
        return None
    argv = ["likwid-bench", "-t", "stream_mem", "-s", f"{site.params['seconds']}", "-W", f"N:{LIKWID_BYTES}"]
    done = site.world.command(argv, timeout=3 * int(site.params["seconds"]) + SETTLE_S, watch=watch)
    site.attach("likwid-bench", f"{' '.join(argv)}\n{done.stdout}{done.stderr}")
    try:
        return likwid_gbs(done), "likwid-bench stream_mem", ""
    except Unmeasurable:
        return None


def likwid_gbs(done: Completed) -> float:
    """Parse likwid-bench's output; return GB/s. Raises Unmeasurable when it failed or printed no rate."""
    match = re.search(r"^MByte/s:\s+(\d{1,9}(?:\.\d{1,9})?)\s*$", done.stdout, re.MULTILINE)
    if done.status or match is None or not float(match[1]):
        message = f"likwid-bench ended with status {done.status} and no rate"
        raise Unmeasurable(message)
    return float(match[1]) / 1000


def _stream(site: Site, cpus: int, watch: Callable[[], object]) -> float:
    """Return the sum of what the workers of stress-ng's stream read and write, in GB/s."""
    seconds, free = int(site.params["seconds"]), free_bytes(site)
    if free - reserve(meminfo(site.world.read("/proc/meminfo"))["MemTotal"]) < cpus * STREAM_BYTES:
        message = f"{free / GIB:.1f} GiB of free memory are too little for {cpus} workers of 0.25 GiB"
        raise Unmeasurable(message)
    ran = stress.run(site, ["--stream", str(cpus), "--stream-l3-size", CACHE], seconds, watch)
    stress.work(ran.done, ran.report, seconds, "stream", cpus)
    return stream_gbs(stress.said(ran.done), cpus)


def stream_gbs(text: str, workers: int) -> float:
    """Parse `memory rate: R MB read/sec, W MB write/sec` (MiB) of each worker; return GB/s of all together.

    Versions before 0.15 tell the sum: `memory rate: N MB/sec`. Raises Unmeasurable unless every worker told its rate.
    """
    mib = r"(\d{1,9}\.\d{1,4}) MB"
    rate = rf"memory rate: {mib}(?: read/sec, {mib} write)?/sec.*?\(instance (\d{{1,5}})\)"
    rates = {int(who): float(read) + float(write or 0) for read, write, who in re.findall(rate, text)}
    if len(rates) != workers or not all(rates.values()):
        message = (
            f"{len(rates)} of {workers} workers of stress-ng's stream told their rate: let it run for 10 s or more"
        )
        raise Unmeasurable(message)
    return sum(rates.values()) * MIB / 1e9


def _theoretical(site: Site) -> float | None:
    """Return what the modules can move in GB/s if each has a channel of its own; None where nobody lists them."""
    try:
        memory = dimms.memory(site)
        return len(memory.modules) * dimms.speed(memory) * MODULE_BYTES / 1000
    except Unmeasurable:
        return None


PROBES = (
    Probe(
        "ram.burn", "cpu", "host", (ERRORS, COVERAGE), burn,
        params={"seconds": 120, "percent": 80}, load=True, tools=("stress-ng",),
    ),
    Probe(
        "ram.bandwidth", "cpu", "host", (BANDWIDTH,), bandwidth,
        params={"seconds": 10}, load=True, tools=("stress-ng",),
    ),
)  # fmt: skip
