"""The stress-ng of the simulated machine: its command line, the time it takes, its report and its words.

Owns the burns of the CPUs and of the memory, the stream of its bandwidth, and stress-ng 0.15.06's text.
Must not know what proves a burn; which CPUs are busy, and who holds memory, is shown by the simulated
/proc, not here.
"""

import contextlib
import datetime as dt
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_gpuaccept.sim.machine import UPTIME_S, Machine
from pytest_gpuaccept.sim.parts import Cpu

PID = 4300
OPERATIONS_PER_S = {"cpu": 2200.0, "vm": 113_000.0, "stream": 50.0}
"""[E] Bogus operations per second of a busy CPU, by stressor; with --cpu-method `all` 2206 were seen."""
RSS_KIB = 6448
STRESSORS = ("cpu", "vm", "stream")
VALUED = {
    "--cpu",
    "--cpu-method",
    "--timeout",
    "--yaml",
    "--temp-path",
    "--vm",
    "--vm-bytes",
    "--vm-method",
    "--stream",
}
VALUED |= {"--oom-avoid-bytes", "--stream-l3-size"}
FLAGS = {"--verify", "--metrics", "--vm-keep"}
MIB = 2**20
SIZES = {"": 1, "b": 1, "k": 2**10, "m": MIB, "g": 2**30}
LEAST_STREAM_S = 4.5
"""Seconds below which its stream tells no rate."""
READ_SHARE = 0.6
"""Share of stream's bytes that are read: six of ten words."""
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
HEAD = (
    "stressor       bogo ops real time  usr time  sys time   bogo ops/s     bogo ops/s CPU used per       RSS Max",
    "                          (secs)    (secs)    (secs)   (real time) (usr+sys time) instance (%)          (KB)",
)
WRONG = (
    "prime error detected, number of primes has been miscalculated",
    "drand48 error detected, failed sum",
    "gray code error detected, sum of gray codes between 0x00000 and 0x10000 miscalculated",
    "fibonacci error detected, summation or assignment failure",
)
STREAM_HEAD = (
    "stressor loosely based on a variant of the STREAM benchmark code",
    "do NOT submit any of these results to the STREAM benchmark results",
    "Using CPU cache size of 32768K",
)
BITS = ("detected 1 bit errors while stressing memory",)


class _UsageError(Exception):
    """A command line that stress-ng does not run, in stress-ng's words."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A command line: what works, workers, seconds, and what else was asked for; `report` '' for none."""

    stressor: str
    workers: int
    seconds: int
    report: str
    verify: bool
    metrics: bool
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Work:
    """What a burn did: seconds, and those of all CPUs; workers that ran, of them killed; failures; MiB/s of each."""

    seconds: float
    cpu_s: float
    workers: int
    killed: int
    failures: int
    rate: float = 0.0

    def operations(self, stressor: str) -> int:
        """Bogus operations done."""
        return int(self.cpu_s * OPERATIONS_PER_S[stressor])


def run(machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:
    """Run a stress-ng command line in virtual time; return its exit status, stdout and stderr."""
    try:
        asked = _parse(argv[1:], _online(machine.cpu))
    except _UsageError as error:
        return 1, "", f"{error}\n"
    work = _burn(machine, asked)
    if asked.report:
        machine.written[asked.report] = _system(machine) + (_yaml(asked, work) if asked.metrics else "") + "...\n"
    return 2 if work.failures or work.killed else 0, "", _words(asked, work)


def _burn(machine: Machine, asked: _Asked) -> _Work:
    """Keep the CPUs busy and, for vm, memory filled.

    What a fault of the burn changes is known once the burn has begun, hence two steps.
    """
    cpu = machine.cpu
    with machine.runs("stress-ng"):
        online, seconds = _online(cpu), asked.seconds * cpu.burn_ends_after
        cpus = asked.stressor == "cpu"
        workers = max(0, asked.workers - cpu.burn_missing) if cpus else asked.workers
        reached = max(0, min(workers, online - cpu.idle_cpus))
        with machine.runs("stress-ng", cpu=reached / online), _holding(machine, asked):
            machine.advance(seconds)
            wrong = {"cpu": cpu.wrong_results, "vm": cpu.memory_wrong}.get(asked.stressor, 0)
            rate = _rate(cpu) / asked.workers if asked.stressor == "stream" else 0.0
            cpu_s = reached * seconds * (1.0 - cpu.shared)
            killed = min(cpu.burn_killed, workers) if cpus else 0
            return _Work(seconds, cpu_s, workers, killed, wrong if asked.verify else 0, rate)


@contextlib.contextmanager
def _holding(machine: Machine, asked: _Asked) -> Iterator[None]:
    """Have the workers of the memory burn hold what they touch."""
    cpu = machine.cpu
    each = int(asked.bytes / asked.workers * cpu.memory_reached)
    if asked.stressor == "vm":
        machine.held = [each] * max(0, asked.workers - cpu.memory_idle)
        machine.killed += cpu.oom_kills
    try:
        yield
    finally:
        machine.held = []


def _rate(cpu: Cpu) -> float:
    """Return what all workers of stream move together, in MiB/s."""
    return cpu.dimms * cpu.dimm_mts * 8e6 * cpu.bandwidth_share / MIB


def _online(cpu: Cpu) -> int:
    return max(1, cpu.threads - cpu.offline)


# words -------------------------------------------------------------------------------------------


def _parse(words: Sequence[str], online: int) -> _Asked:
    """Parse a command line; raises _UsageError with stress-ng's words."""
    given, rest = dict[str, str](), list(words)
    while rest:
        option = rest.pop(0)
        if option not in VALUED | FLAGS:
            message = f"stress-ng: unrecognized option '{option}'"
            raise _UsageError(message)
        if option in VALUED and not rest:
            message = f"stress-ng: option '{option}' requires an argument"
            raise _UsageError(message)
        given[option] = rest.pop(0) if option in VALUED else ""
    seconds = _seconds(given.get("--timeout", "1d"))
    stressor = next((name for name in STRESSORS if f"--{name}" in given), "")
    if not stressor:
        message = f"{_setting(seconds)}stress-ng: error: [{PID}] No stress workers invoked"
        raise _UsageError(message)
    workers, size = _workers(given[f"--{stressor}"]) or online, _bytes(given.get("--vm-bytes", "256m"))
    return _Asked(stressor, workers, seconds, given.get("--yaml", ""), "--verify" in given, "--metrics" in given, size)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12})([bkmg]?)", text.lower())
    if match is None:
        message = f"Invalid number {text}"
        raise _UsageError(message)
    return int(match[1]) * SIZES[match[2]]


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if match is None:
        message = f"Invalid number {text}"
        raise _UsageError(message)
    return int(match[1]) * UNITS[match[2]]


def _workers(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text):
        message = f"Value {text} contains non-numeric: '{text.lstrip('0123456789')}'"
        raise _UsageError(message)
    return int(text)


def _setting(seconds: int) -> str:
    return f"stress-ng: info:  [{PID}] setting to a {seconds} second{_spelt(seconds)} run per stressor\n"


def _spelt(seconds: float) -> str:
    """Return a duration beyond a minute as stress-ng spells it out, '' for a shorter one."""
    if seconds <= UNITS["m"]:
        return ""
    parts, left = "", seconds
    for word, length in (("day", UNITS["d"]), ("hour", UNITS["h"]), ("min", UNITS["m"])):
        count, left = divmod(left, length)
        parts += f"{count:.0f} {word}{'s' if count > 1 else ''}, " if count else ""
    return f" ({parts}{left:.2f} secs)"


def _words(asked: _Asked, work: _Work) -> str:
    """Return what stress-ng says on stderr."""
    name, words = asked.stressor, BITS if asked.stressor == "vm" else WRONG
    amiss = bool(work.failures or work.killed)
    wrong = [(PID + 1 + i % asked.workers, words[i % len(words)]) for i in range(work.failures)]
    failed = sorted({pid for pid, _ in wrong})
    ended = f"{'unsuccessful' if amiss else 'successful'} run completed in {work.seconds:.2f}s{_spelt(work.seconds)}"
    lines = [
        f"info:  [{PID}] dispatching hogs: {asked.workers} {name}",
        *_stream(asked, work),
        *(f"fail:  [{pid}] {name}: {text}" for pid, text in wrong),
        *(f"error: [{PID}] process [{pid}] ({name}) terminated with an error, exit status=2 (stressor failed)"
          for pid in failed),
        *(_table(asked, work) if asked.metrics else ()),
        *_corrupted(asked, work),
        f"info:  [{PID}] {ended}",
    ]  # fmt: skip
    return _setting(asked.seconds) + "".join(f"stress-ng: {line}\n" for line in lines)


def _corrupted(asked: _Asked, work: _Work) -> list[str]:
    """Return what it says of the counters of workers that were killed: it calls them corrupted."""
    lines = [
        f"fail:  [{PID}] {asked.stressor} instance {n} {what}"
        for n in range(work.killed)
        for what in ("corrupted bogo-ops counter, 1364 vs 0", "hash error in bogo-ops counter and run flag, 108 vs 0")
    ]
    return [*lines, f"fail:  [{PID}] metrics-check: stressor metrics corrupted, data is compromised"] if lines else []


def _stream(asked: _Asked, work: _Work) -> list[str]:
    """Return what stream's workers say of their rates."""
    if asked.stressor != "stream":
        return []
    first = [f"info:  [{PID + 1}] stream: {line}" for line in STREAM_HEAD]
    if work.seconds < LEAST_STREAM_S:
        return [*first, f"info:  [{PID + 1}] stream: run duration too short to determine memory rate"]
    read, written = work.rate * READ_SHARE, work.rate * (1.0 - READ_SHARE)
    rates = f"memory rate: {read:.2f} MB read/sec, {written:.2f} MB write/sec, {read * MIB / 12e6:.2f} Mflop/sec"
    return [*first, *(f"info:  [{PID + 1 + n}] stream: {rates} (instance {n})" for n in range(asked.workers))]


def _table(asked: _Asked, work: _Work) -> list[str]:
    """Return the three lines of the metrics."""
    by_clock, by_cpu, usage = _rates(asked.stressor, work)
    times = f"{work.seconds:9.2f} {work.cpu_s:9.2f} {0:9.2f} {by_clock:12.2f} {by_cpu:14.2f} {usage:12.2f}"
    row = f"{asked.stressor:13} {work.operations(asked.stressor):9} {times} {RSS_KIB:13}"
    return [f"metrc: [{PID}] {line}" for line in (*HEAD, row)]


def _rates(stressor: str, work: _Work) -> tuple[float, float, float]:
    """Return operations per second of the clock and of the CPUs, and the CPU use of a worker that ran in %."""
    seconds, cpu_s, done = work.seconds or 1.0, work.cpu_s or 1.0, work.operations(stressor)
    return done / seconds, done / cpu_s, 100.0 * work.cpu_s / (max(1, work.workers) * seconds)


def _system(machine: Machine) -> str:
    """Return the part of the YAML report that tells of the machine."""
    now, cpu = machine.started + dt.timedelta(seconds=machine.now), machine.cpu
    lines = (
        "stress-ng-version: 0.15.06", "run-by: root", f"date-yyyy-mm-dd: {now:%Y:%m:%d}",
        f"time-hh-mm-ss: {now:%H:%M:%S}", f"epoch-secs: {int(now.timestamp())}", "hostname: sim", "sysname: Linux",
        "nodename: sim", f"release: {machine.host.kernel}", "machine: x86_64",
        f"uptime: {int(UPTIME_S + machine.now)}", f"totalram: {cpu.dimms * cpu.dimm_gib * 2**30}", "pagesize: 4096",
        f"cpus: {cpu.threads}", f"cpus-online: {_online(cpu)}", "ticks-per-second: 100",
    )  # fmt: skip
    return "---\nsystem-info:\n" + "".join(f"      {line}\n" for line in lines) + "\n"


def _yaml(asked: _Asked, work: _Work) -> str:
    """Return the metrics of the YAML report."""
    by_clock, by_cpu, usage = _rates(asked.stressor, work)
    lines = (
        f"bogo-ops: {work.operations(asked.stressor)}", f"bogo-ops-per-second-usr-sys-time: {by_cpu:.6f}",
        f"bogo-ops-per-second-real-time: {by_clock:.6f}", f"wall-clock-time: {work.seconds:.6f}",
        f"user-time: {work.cpu_s:.6f}", "system-time: 0.000000", f"cpu-usage-per-instance: {usage:.6f}",
        f"max-rss: {RSS_KIB}",
    )  # fmt: skip
    return f"metrics:\n    - stressor: {asked.stressor}\n" + "".join(f"      {line}\n" for line in lines) + "\n"
