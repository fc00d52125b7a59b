"""stress-ng: how it is run, and what its words and its report prove.

Owns stress-ng's exit status, the lines it prints and its YAML report. Its status proves nothing by
itself: it is 0 after an interrupted run, with all workers pinned to one CPU, and with a worker that
never started. Versions 0.13 to 0.22 write what is read here. Must not judge.
"""

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.host.confines import shown
from pytest_gpuaccept.world import Completed

FULL_TIME = 0.98
"""Share of the requested time that stress-ng must have run."""
SETTLE_S = 30
"""Seconds that stress-ng gets on top of its own timeout to start and stop its workers."""
STATUS = {
    1: "it could not do what it was asked",
    2: "a worker failed, and did not say at what: it may have been killed",
    3: "the machine lacks what it needs, memory or processes",
    4: "this build of it cannot do what it was asked",
    5: "a signal ended a worker",
    6: "a worker ended in a way that it did not expect",
    7: "its own counts cannot be trusted",
}
"""Exit status -> what stress-ng means by it."""
NUMBER = r"(\d{1,18}(?:\.\d{1,9})?)"
NOT_KNOWN = ": unrecognized option"
KEYS = ("bogo-ops", "wall-clock-time", "user-time", "system-time", "cpu-usage-per-instance")


@dataclass(frozen=True, slots=True)
class Ran:
    """A run of stress-ng: how it ended, its report ('' for none), from when to when in s."""

    done: Completed
    report: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Work:
    """What the workers of one stressor did: seconds by the clock, of CPU, operations; how many workers that were."""

    seconds: float
    cpu_s: float
    operations: float
    workers: int

    def share_of(self, workers: int) -> float:
        """Return how much of a CPU each worker had, in %."""
        return 100.0 * self.cpu_s / (self.seconds * workers)


def run(  # noqa: PLR0913, PLR0917 - what a command is, and who looks at it
    site: Site, argv: Sequence[str], seconds: int, watch: Callable[[], object] | None = None, settle: int = SETTLE_S,
    besides: Sequence[str] = (),
) -> Ran:  # fmt: skip
    """Run stress-ng with verification and a report for `seconds`, and keep its words in the evidence.

    `besides` are options that only newer versions know; an older one runs without.
    Raises Unmeasurable when it cannot run, and what `watch` raises, who is called now and then meanwhile.
    """
    clock = site.world.clock
    with site.world.folder() as folder:
        file, began = f"{folder}/stress-ng.yaml", clock.monotonic()
        whole = ["stress-ng", *argv, *besides, "--verify", "--metrics", "--timeout", f"{seconds}s"]
        whole += ["--yaml", file, "--temp-path", posixpath.dirname(file)]
        done = site.world.command(whole, timeout=seconds + settle, watch=watch)
        report, ended = shown(site, file), clock.monotonic()
    site.attach("stress-ng", f"{' '.join(done.argv)}\n{done.stdout}{done.stderr}{report}")
    if besides and done.status and NOT_KNOWN in said(done):
        return run(site, argv, seconds, watch, settle)
    return Ran(done, report, began, ended)


def failures(done: Completed, stressor: str) -> int:
    """Return how many wrong results the workers of a stressor told.

    What else stress-ng calls a failure is none of the machine's: that a worker was killed, it says in three lines.
    """
    who = rf"(?:stress-ng-)?{re.escape(stressor)}"
    return len(re.findall(rf"^stress-ng: fail: +\[\d{{1,10}}\] {who}: ", said(done), re.MULTILINE))


def said(done: Completed) -> str:
    """Return all that stress-ng printed."""
    return f"{done.stdout}\n{done.stderr}"


def work(done: Completed, report: str, seconds: int, stressor: str, workers: int = 0) -> Work:
    """Return what the workers of a stressor did; `workers` 0 for however many there were.

    Raises Unmeasurable when the run was not what was asked for: cut short, a worker missing, no work.
    """
    _ended_well(done)
    row = _row(done, report, stressor)
    if row.operations <= 0 < row.seconds and min(row.seconds, done.seconds) >= FULL_TIME * seconds:
        message = (
            f"no {stressor} worker of stress-ng came to the end of one round in {row.seconds:.0f} s: raise seconds"
        )
        raise Unmeasurable(message + (", or lower percent" if stressor == "vm" else ""))
    if min(row.seconds, done.seconds) < FULL_TIME * seconds or min(row.seconds, row.operations) <= 0:
        message = (
            f"stress-ng says {row.seconds:.1f} s and took {done.seconds:.1f} s of {seconds} s, "
            f"{row.operations:g} operations: the burn was cut short"
        )
        raise Unmeasurable(message)
    if workers:
        _all_there(done, row, stressor, workers)
    return row


def _ended_well(done: Completed) -> None:
    """Raise Unmeasurable unless it ended with status 0 and called nothing a failure."""
    if done.status or re.search(r"^stress-ng: fail:", said(done), re.MULTILINE):
        meant = f", {_meant(done.status)}" if done.status else ""
        message = f"stress-ng ended with status {done.status}{meant}: {_last(done)}"
        raise Unmeasurable(message)


def _meant(status: int) -> str:
    """Return what a status other than 0 says."""
    return f"signal {-status} ended it" if status < 0 else STATUS.get(status, "a status that it does not explain")


def _last(done: Completed) -> str:
    """Return the last line in which it told of something amiss, or its last line."""
    lines = said(done).strip().splitlines() or ["no output"]
    told = [line for line in lines if re.match(r"stress-ng: (error|fail|warn):", line)]
    return (told or lines)[-1][:200]


def _row(done: Completed, report: str, stressor: str) -> Work:
    """Return a stressor's part of the report; raises Unmeasurable when it is not there, once and whole."""
    rows = re.findall(rf"^ *- stressor: {re.escape(stressor)}$((?:\n +[a-z-]+: .*)*)", report, re.MULTILINE)
    found = {key: [float(n) for n in re.findall(rf"^ +{key}: {NUMBER}$", "".join(rows), re.MULTILINE)] for key in KEYS}
    if any(len(numbers) != 1 for numbers in found.values()):
        message = f"stress-ng ended with status {done.status} and no complete report of {stressor}: {_last(done)}"
        raise Unmeasurable(message)
    operations, seconds, user_s, system_s, each = (found[key][0] for key in KEYS)
    cpu_s = user_s + system_s
    return Work(seconds, cpu_s, operations, round(100.0 * cpu_s / (seconds * each)) if seconds * each else 0)


def _all_there(done: Completed, row: Work, stressor: str, workers: int) -> None:
    """Raise Unmeasurable unless that many workers were started, ran, and passed where stress-ng says how many did.

    Only the report knows of one that could not be started: it shares the time among those that ran.
    """
    started = _told(done, rf"dispatching hogs:.*?\b(\d{{1,6}}) {re.escape(stressor)}\b")
    passed = _told(done, rf"passed: \d{{1,6}}:.*?\b{re.escape(stressor)} \((\d{{1,6}})\)", workers)
    for count, what in ((started, "were started"), (row.workers, "ran"), (passed, "passed")):
        if count != workers:
            message = f"{count} of {workers} {stressor} workers of stress-ng {what}"
            raise Unmeasurable(message)


def _told(done: Completed, pattern: str, unsaid: int = 0) -> int:
    """Return the number that it told, `unsaid` when it did not."""
    match = re.search(pattern, said(done))
    return int(match[1]) if match else unsaid
