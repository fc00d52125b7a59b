"""The stress-ng of the simulated machine: its command line, the time it takes, its report and its words.

Owns the burn of the CPUs and stress-ng 0.15.06's text. Must not know what proves a burn; which CPUs
are busy is shown by the simulated /proc, not here.
"""

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_gpuaccept.sim.machine import UPTIME_S, Machine
from pytest_gpuaccept.sim.parts import Cpu

PID = 4300
OPERATIONS_PER_S = 2200.0
"""[E] Bogus operations per second of a busy CPU with the method `all`; 2206 were seen."""
RSS_KIB = 6448
VALUED = {"--cpu", "--cpu-method", "--timeout", "--yaml", "--temp-path"}
FLAGS = {"--verify", "--metrics"}
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


class _UsageError(Exception):
    """A command line that stress-ng does not run, in stress-ng's words."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A command line: workers, seconds, and what else was asked for; `report` '' for none."""

    workers: int
    seconds: int
    report: str
    verify: bool
    metrics: bool


@dataclass(frozen=True, slots=True)
class _Work:
    """What a burn did: seconds by the clock, seconds of all CPUs together, verification failures."""

    seconds: float
    cpu_s: float
    failures: int

    @property
    def operations(self) -> int:
        """Bogus operations done."""
        return int(self.cpu_s * OPERATIONS_PER_S)


def run(machine: Machine, argv: Sequence[str]) -> tuple[int, str, str]:
    """Run a stress-ng command line in virtual time; return its exit status, stdout and stderr."""
    try:
        asked = _parse(argv[1:], _online(machine.cpu))
    except _UsageError as error:
        return 1, "", f"{error}\n"
    work = _burn(machine, asked)
    if asked.report:
        machine.written[asked.report] = _system(machine) + (_yaml(asked, work) if asked.metrics else "") + "...\n"
    return 2 if work.failures else 0, "", _words(asked, work)


def _burn(machine: Machine, asked: _Asked) -> _Work:
    """Keep the CPUs busy; what a fault of the burn changes is known once the burn has begun, hence two steps."""
    cpu = machine.cpu
    with machine.runs("stress-ng"):
        online, seconds = _online(cpu), asked.seconds * cpu.burn_ends_after
        reached = max(0, min(asked.workers, online - cpu.idle_cpus))
        with machine.runs("stress-ng", cpu=reached / online):
            machine.advance(seconds)
            return _Work(seconds, reached * seconds, cpu.wrong_results if asked.verify else 0)


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
    if "--cpu" not in given:
        message = f"{_setting(seconds)}stress-ng: error: [{PID}] No stress workers invoked"
        raise _UsageError(message)
    workers = _workers(given["--cpu"]) or online
    return _Asked(workers, seconds, given.get("--yaml", ""), "--verify" in given, "--metrics" in given)


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
    wrong = [(PID + 1 + i % asked.workers, WRONG[i % len(WRONG)]) for i in range(work.failures)]
    failed = sorted({pid for pid, _ in wrong})
    ended = f"{'unsuccessful' if wrong else 'successful'} run completed in {work.seconds:.2f}s{_spelt(work.seconds)}"
    lines = [
        f"info:  [{PID}] dispatching hogs: {asked.workers} cpu",
        *(f"fail:  [{pid}] cpu: {text}" for pid, text in wrong),
        *(f"error: [{PID}] process [{pid}] (cpu) terminated with an error, exit status=2 (stressor failed)"
          for pid in failed),
        *(_table(asked, work) if asked.metrics else ()),
        f"info:  [{PID}] {ended}",
    ]  # fmt: skip
    return _setting(asked.seconds) + "".join(f"stress-ng: {line}\n" for line in lines)


def _table(asked: _Asked, work: _Work) -> list[str]:
    """Return the three lines of the metrics."""
    by_clock, by_cpu, usage = _rates(asked, work)
    times = f"{work.seconds:9.2f} {work.cpu_s:9.2f} {0:9.2f} {by_clock:12.2f} {by_cpu:14.2f} {usage:12.2f}"
    row = f"{'cpu':13} {work.operations:9} {times} {RSS_KIB:13}"
    return [f"metrc: [{PID}] {line}" for line in (*HEAD, row)]


def _rates(asked: _Asked, work: _Work) -> tuple[float, float, float]:
    """Return operations per second of the clock and of the CPUs, and the CPU use of a worker in %."""
    seconds, cpu_s = work.seconds or 1.0, work.cpu_s or 1.0
    return work.operations / seconds, work.operations / cpu_s, 100.0 * work.cpu_s / (asked.workers * seconds)


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
    by_clock, by_cpu, usage = _rates(asked, work)
    lines = (
        f"bogo-ops: {work.operations}", f"bogo-ops-per-second-usr-sys-time: {by_cpu:.6f}",
        f"bogo-ops-per-second-real-time: {by_clock:.6f}", f"wall-clock-time: {work.seconds:.6f}",
        f"user-time: {work.cpu_s:.6f}", "system-time: 0.000000", f"cpu-usage-per-instance: {usage:.6f}",
        f"max-rss: {RSS_KIB}",
    )  # fmt: skip
    return "metrics:\n    - stressor: cpu\n" + "".join(f"      {line}\n" for line in lines) + "\n"
