"""A command that dies with whoever asked for it: `python keeper.py PARENT COMMAND...`.

Owns one command and all that it starts, also what leaves its session. When the process PARENT dies, all of
these are killed; until then the command is left alone, and its end is this process's end. Needs Python 3.10
and the standard library.
"""

import ctypes
import os
import resource
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""prctl(2): the signal that a process gets when its parent dies; who inherits orphans."""
ORPHANED = signal.SIGUSR1
FOR_THE_COMMAND = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that whoever ends the command sends to all of us: it answers them, and we wait for it."""
TURN_S = 0.02


def main() -> NoReturn:
    """Run the command to its end, and end as it does."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    signal.signal(ORPHANED, _end_all)
    for number in FOR_THE_COMMAND:
        signal.signal(number, _leave)
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(PR_SET_PDEATHSIG, ORPHANED, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    started = os.posix_spawnp(argv[0], argv, os.environ, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))
    ended = 0
    while ended != started:
        ended, status = os.wait()
    _end_as(os.waitstatus_to_exitcode(status))


def _end_as(code: int) -> NoReturn:
    """End with the command's status, or of the signal that ended it."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


def _leave(_number: int, _frame: FrameType | None) -> None:
    """Go on waiting."""


def _end_all(_number: int, _frame: FrameType | None) -> NoReturn:
    """Kill the command with all that it started, again until none is left: they may be starting more."""
    while family := _family():
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap()
        time.sleep(TURN_S)
    os._exit(1)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _family() -> set[int]:
    """Return the processes that descend from this one; what is dead and not yet reaped is none."""
    parents = {pid: _parent(pid) for pid in map(int, filter(str.isdigit, os.listdir("/proc")))}  # noqa: PTH208 - light
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family - {os.getpid()}


def _parent(pid: int) -> int:
    """Return the parent of a process, 0 for one that is gone or dead."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - light
            state, parent = file.read().rpartition(b")")[2].split()[:2]
    except OSError:
        return 0
    return 0 if state in (b"Z", b"X") else int(parent)


if __name__ == "__main__":
    main()
