"""The seam: everything through which a probe touches a machine, and the live one.

Owns processes, files, loads and the clock. Holds no knowledge of any metric: what is read and what
it means is the probes' business, so a simulated world only has to answer here.
"""

import contextlib
import datetime as dt
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import psutil

from pytest_gpuaccept.errors import Unmeasurable

Mode = Literal["live", "simulated", "replayed", "published"]
Record = dict[str, Any]
"""One JSON line of a load."""

GRACE_S = 5.0
"""Seconds between asking a child to end and ending it: fio needs them to stop its workers."""


class Clock(Protocol):
    """Time as the run sees it."""

    def now(self) -> dt.datetime:
        """Return the wall-clock time, UTC."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended by itself: what it was, how it ended, what it wrote."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Disk:
    """What is behind a folder: the block device's `major:minor`, and the bytes free for us."""

    number: str
    free: int


class Load(Protocol):
    """A load script at work; a record is one JSON line that it wrote."""

    def finish(self, *, timeout: float) -> list[Record]:
        """Wait for its end and return its records; raises Unmeasurable when it dies or outlasts `timeout` s."""

    def stop(self) -> list[Record]:
        """End it now and return its records; raises Unmeasurable when it had died before."""


class World(Protocol):
    """The machine under test; probes act through nothing else.

    `loads` are the names of the load scripts that can be started here.
    """

    clock: Clock
    loads: frozenset[str]

    def has(self, tool: str) -> bool:
        """Say whether a command can be found."""

    def command(self, argv: Sequence[str], *, timeout: float) -> Completed:
        """Run a command to its end; raises Unmeasurable when it cannot start or outlasts `timeout` s."""

    def start(self, script: str, params: Mapping[str, Any]) -> AbstractContextManager[Load]:
        """Start a load script; when the block is left it is gone. Raises Unmeasurable when it cannot start."""

    def nvml(self) -> ModuleType:
        """Return the initialised NVML binding; raises Unmeasurable without a driver."""

    def read(self, path: str) -> str:
        """Return a text file of the machine, stripped; raises Unmeasurable with the cause."""

    def names(self, path: str) -> list[str]:
        """Return the names in a folder of the machine, sorted; raises Unmeasurable with the cause."""

    def http(self, url: str, *, timeout: float) -> str:
        """Return the body of a 200 answer; raises Unmeasurable for any other, and for none."""

    def look(self, subject: str) -> str:
        """Return what somebody who looks at a thing sees; raises Unmeasurable where only a person can."""

    def disk(self, path: str) -> Disk:
        """Return what is behind a folder; raises Unmeasurable when it is none of ours to use."""

    def folder(self, parent: str | None = None) -> AbstractContextManager[str]:
        """Make a folder below `parent`, or for short-lived files; with all in it, it is gone when the block is left."""


class SystemClock:
    """The clock of this computer."""

    def now(self) -> dt.datetime:
        """Return the wall-clock time, UTC."""
        return dt.datetime.now(dt.UTC)

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)


class LiveWorld:
    """This computer. Nothing is changed on it; loads are children with a deadline."""

    loads: frozenset[str] = frozenset()

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

    def start(self, script: str, params: Mapping[str, Any]) -> AbstractContextManager[Load]:  # noqa: ARG002
        """Refuse: no load script exists for live hardware yet."""
        message = f"there is no load {script!r} for live hardware yet"
        raise Unmeasurable(message)

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
        file = self._under_root(path)
        try:
            return file.read_text(errors="replace").strip()
        except OSError as error:
            message = f"{file} cannot be read: {error.strerror}"
            raise Unmeasurable(message) from None

    def names(self, path: str) -> list[str]:
        """Return the names in a folder under `root`, sorted; raises Unmeasurable with the cause."""
        folder = self._under_root(path)
        try:
            return sorted(entry.name for entry in folder.iterdir())
        except OSError as error:
            message = f"{folder} cannot be listed: {error.strerror}"
            raise Unmeasurable(message) from None

    def http(self, url: str, *, timeout: float) -> str:
        """Return the body of a 200 answer; raises Unmeasurable for any other, and for none."""
        if not url.startswith(("http://", "https://")):
            message = f"{url!r} is not an http address"
            raise Unmeasurable(message)
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310 - checked above
                return str(answer.read().decode(errors="replace"))
        except urllib.error.HTTPError as error:
            message = f"{url} answers {error.code} {error.reason}"
        except (OSError, ValueError, HTTPException) as error:
            message = f"{url} does not answer: {getattr(error, 'reason', error)}"
        raise Unmeasurable(message)

    def look(self, subject: str) -> str:
        """Refuse: a program cannot look at a machine."""
        message = f"no sensor shows the {subject}"
        raise Unmeasurable(message)

    def disk(self, path: str) -> Disk:
        """Return what is behind a folder; raises Unmeasurable for a link, a file or nothing."""
        folder = Path(path)
        try:
            if folder.is_symlink() or not folder.is_dir():
                message = f"{path} is not a folder"
                raise Unmeasurable(message)
            number = folder.stat().st_dev
            return Disk(f"{os.major(number)}:{os.minor(number)}", shutil.disk_usage(folder).free)
        except OSError as error:
            message = f"{path}: {error.strerror}"
            raise Unmeasurable(message) from None

    @contextlib.contextmanager
    def folder(self, parent: str | None = None) -> Iterator[str]:
        """Make a folder of the run's own; removed, with all in it, when the block is left.

        Raises Unmeasurable when it cannot be made; what the block raises passes as it is.
        """
        made = Path(parent or tempfile.gettempdir()) / f".gpuaccept-{uuid.uuid4().hex[:12]}"
        try:
            try:
                made.mkdir(mode=0o700)
            except OSError as error:
                message = f"{made.parent} cannot be written: {error.strerror}"
                raise Unmeasurable(message) from None
            yield str(made)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _under_root(self, path: str) -> Path:
        return self.root / path.lstrip("/")


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
