"""Child processes: started in a session of their own, with a deadline, and gone when their block is left.

Owns the process of a command and of a load: starting, reading, telling, ending. Knows no metric, and
trusts nothing that a child writes.
"""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

from pytest_gpuaccept.errors import Unmeasurable

Record = dict[str, Any]
KEEPER = Path(__file__).parent / "children" / "keeper.py"
GRACE_S = 5.0
"""Seconds between asking a child to end and ending it: fio needs them to stop its workers."""
KILL_S = 10.0
"""Seconds that a killed child may take to go; one that waits for a hung driver does not go at all."""
LONGEST_LINE = 2**20
MOST_BYTES = 2**29
"""Bytes of records after which a load is out of its mind: an hour of eight cards writes some 100 MB."""
UNKILLABLE = "cannot be killed: it hangs in the driver; restart the machine"
LAST_WORDS = 40
"""Lines of its error output that are kept."""


@contextlib.contextmanager
def command(argv: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a command as a child that also dies, with all that it started, when this process is killed."""
    if shutil.which(argv[0]) is None:
        number = errno.EACCES if Path(argv[0]).exists() else errno.ENOENT
        message = f"{argv[0]} cannot be started: {os.strerror(number)}"
        raise Unmeasurable(message)
    with child([sys.executable, "-I", "-S", str(KEEPER), str(os.getpid()), *argv]) as started:
        yield started


@contextlib.contextmanager
def child(argv: Sequence[str], *, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    """Start a child that is gone, with all that it started, when the block is left; raises Unmeasurable."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        started = subprocess.Popen(  # noqa: S603 - the command is ours, an argument list, no shell
            argv, text=True, errors="replace", env=environment, start_new_session=True,
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        message = f"{argv[0]} cannot be started: {error.strerror}"
        raise Unmeasurable(message) from None
    try:
        yield started
    finally:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            end(started)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)


def end(started: subprocess.Popen[str]) -> None:
    """End a child with all that it started: ask, wait, then kill its family and its process group."""
    family = _family(started) if started.poll() is None else []
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.wait(GRACE_S)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.wait(KILL_S)
    _close(started.stdin, started.stdout, started.stderr)


def _close(*pipes: IO[str] | None) -> None:
    for pipe in pipes:
        with contextlib.suppress(OSError):
            if pipe:
                pipe.close()


def _family(started: subprocess.Popen[str]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(started.pid)
        return [parent, *parent.children(recursive=True)]
    return []


class ChildLoad:
    """A load script in a child of its own; see world.Load."""

    def __init__(self, name: str, process: subprocess.Popen[str], seen: Callable[[Record], object]) -> None:
        """Take a started process; every record is kept and shown to `seen`, from a thread."""
        self.records: list[Record] = []
        self._name, self._process, self._seen = name, process, seen
        self._words = deque[str](maxlen=LAST_WORDS)
        self._flaw, self._gone = "", 0.0
        pipes = (self._read_records, process.stdout), (self._read_words, process.stderr)
        process.stdout = process.stderr = None
        self._readers = [threading.Thread(target=_drain, args=of, daemon=True) for of in pipes]
        for reader in self._readers:
            reader.start()

    @property
    def ended(self) -> bool:
        """Say whether it is over, however that came; what else holds its pipe is not waited for."""
        if self._process.poll() is None:
            return False
        self._gone = self._gone or time.monotonic()
        return not self._readers[0].is_alive() or time.monotonic() > self._gone + GRACE_S

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send it a line; one that has ended hears nothing."""
        with contextlib.suppress(OSError, ValueError):
            if self._process.stdin:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()

    def finish(self, *, timeout: float) -> list[Record]:
        """Wait for its end and return its records; raises Unmeasurable when it dies or outlasts `timeout` s."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            end(self._process)
            gone = "was ended" if self._process.poll() is not None else UNKILLABLE
            message = f"{self._name} was still running after {timeout:g} s and {gone}{self._said()}"
            raise Unmeasurable(message) from None
        return self.stop()

    def stop(self) -> list[Record]:
        """End it now and return its records; raises Unmeasurable when it had died before."""
        status = self._process.poll()
        if status is None:
            end(self._process)
        for reader in self._readers:
            reader.join(GRACE_S)
        if self._process.poll() is None:
            self._flaw = self._flaw or UNKILLABLE
        if reason := self._flaw or self._death(status):
            message = f"{self._name} {reason}"
            raise Unmeasurable(message)
        return self.records

    def _death(self, status: int | None) -> str:
        """Return how it came to its end when that was not ours; '' for a good one."""
        if self.records and self.records[-1].get("kind") == "death":
            return f"gave up: {self.records[-1].get('reason')}"
        if status is None or status == 0:
            return ""
        if status > 0:
            return f"ended with status {status}{self._said()}"
        names = {number.value: number.name for number in signal.Signals}
        return f"died of {names.get(-status, f'signal {-status}')}{self._said()}"

    def _said(self) -> str:
        words = [word for word in self._words if word.strip()]
        return f": {words[-1].strip()[:300]}" if words else ", and said nothing"

    def _read_records(self, pipe: IO[str]) -> None:
        """Take the lines as they come; anything but a record ends the load."""
        taken = 0
        with contextlib.suppress(OSError, ValueError):
            while line := pipe.readline(LONGEST_LINE):
                taken += len(line)
                record = _record(line)
                if record is None or taken > MOST_BYTES:
                    self._flaw = f"wrote what is no record: {line[:80]!r}" if record is None else "writes without end"
                    self._process.kill()
                    return
                self.records.append(record)
                self._seen(record)

    def _read_words(self, pipe: IO[str]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := pipe.readline(LONGEST_LINE):
                self._words.append(line)


def _drain(read: Callable[[IO[str]], None], pipe: IO[str]) -> None:
    """Read a pipe to its end and close it; nobody else may, for closing waits for whoever reads."""
    try:
        read(pipe)
    finally:
        _close(pipe)


def _record(line: str) -> Record | None:
    """Parse a line; None for what is no record."""
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


@contextlib.contextmanager
def load(
    name: str, argv: Sequence[str], params: Mapping[str, Any], seen: Callable[[Record], object]
) -> Iterator[ChildLoad]:
    """Start a load; its parameters are the first line that it is told. When the block is left it is gone."""
    with child(argv, stdin=subprocess.PIPE) as process:
        running = ChildLoad(name, process, seen)
        running.tell(params)
        yield running
