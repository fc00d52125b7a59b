"""The seam: everything through which a probe touches a machine, and the live one.

Owns processes, the file system root and the clock. Holds no knowledge of any metric: what is
read and what it means is the probes' business, so a simulated world only has to answer here.
"""

import contextlib
import datetime as dt
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol

import psutil

from pytest_gpuaccept.errors import Unmeasurable

Mode = Literal["live", "simulated", "replayed", "published"]

GRACE_S = 5.0
"""Seconds between asking a child to end and ending it: fio needs them to stop its workers."""


class Clock(Protocol):
    """Time as the run sees it."""

    def now(self) -> dt.datetime:
        """Return the wall-clock time, UTC."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended by itself: what it was, how it ended, what it wrote."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    seconds: float


class World(Protocol):
    """The machine under test; probes act through nothing else.

    `root` is the folder under which /proc, /sys and /etc are found.
    """

    clock: Clock
    root: Path

    def has(self, tool: str) -> bool:
        """Say whether a command can be found."""

    def command(self, argv: Sequence[str], *, timeout: float) -> Completed:
        """Run a command to its end; raises Unmeasurable when it cannot start or outlasts `timeout` s."""

    def nvml(self) -> ModuleType:
        """Return the initialised NVML binding; raises Unmeasurable without a driver."""

    def read(self, path: str) -> str:
        """Return a text file under `root`, stripped; raises Unmeasurable with the cause."""


class SystemClock:
    """The clock of this computer."""

    def now(self) -> dt.datetime:
        """Return the wall-clock time, UTC."""
        return dt.datetime.now(dt.UTC)

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""
        return time.monotonic()


class LiveWorld:
    """This computer. Nothing is changed on it; loads are children with a deadline."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Take the machine whose /proc and /sys lie under `root`."""
        self.clock: Clock = SystemClock()
        self.root = root

    def has(self, tool: str) -> bool:
        """Say whether a command can be found on PATH."""
        return shutil.which(tool) is not None

    def command(self, argv: Sequence[str], *, timeout: float) -> Completed:
        """Run a command in a session of its own, so that a Ctrl-C or a hangup is ours to handle."""
        began = self.clock.monotonic()
        with _child(argv) as child:
            try:
                out, err = child.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                message = f"{argv[0]} was still running after {timeout:g} s and was ended"
                raise Unmeasurable(message) from None
        return Completed(tuple(argv), child.returncode, out, err, self.clock.monotonic() - began)

    def nvml(self) -> ModuleType:
        """Return the initialised NVML binding; raises Unmeasurable without a driver."""
        pynvml = import_module("pynvml")

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            message = f"no NVIDIA driver ({error}): does nvidia-smi work? Without a GPU see --hw-sim and --hw-replay"
            raise Unmeasurable(message) from None
        return pynvml

    def read(self, path: str) -> str:
        """Return a text file under `root`, stripped; raises Unmeasurable with the cause."""
        file = self.root / path.lstrip("/")
        try:
            return file.read_text(errors="replace").strip()
        except OSError as error:
            message = f"{file} cannot be read: {error.strerror}"
            raise Unmeasurable(message) from None


@contextlib.contextmanager
def _child(argv: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a child that is gone, with all that it started, when the block is left."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        child = subprocess.Popen(  # noqa: S603 - the command is ours, an argument list, no shell
            argv, text=True, errors="replace", env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        message = f"{argv[0]} cannot be started: {error.strerror}"
        raise Unmeasurable(message) from None
    try:
        yield child
    finally:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            _end(child)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _end(child: subprocess.Popen[str]) -> None:
    """End a child with all that it started: ask, wait, then kill its family and its process group."""
    family = _family(child) if child.poll() is None else []
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdout, child.stderr):
        if pipe:
            pipe.close()


def _family(child: subprocess.Popen[str]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(child.pid)
        return [parent, *parent.children(recursive=True)]
    return []
