"""The seam: everything through which a probe touches a machine, and the live one.

Owns processes, files, loads and the clock. Holds no knowledge of any metric: what is read and what
it means is the probes' business, so a simulated world only has to answer here.
"""

import contextlib
import datetime as dt
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal, Protocol

from pytest_gpuaccept import supervisor
from pytest_gpuaccept.errors import Unmeasurable

Mode = Literal["live", "simulated", "replayed", "published"]
Record = dict[str, Any]
"""One JSON line of a load."""

CHILD = Path(__file__).parent / "children" / "child.py"
KERNEL_LOG = "/dev/kmsg"
LOADS = frozenset({
    "telemetry", "watch", "burn", "gemm", "steps", "copies", "memory", "products", "versions", "cold_read", "llamacpp",
})  # fmt: skip
"""Load scripts that children/scripts.py has."""
SENSORS = frozenset({"telemetry", "watch"})
"""Those that only read, under this interpreter."""
NO_TORCH = SENSORS | {"versions", "cold_read"}
"""Those that need nothing of the delivered interpreter."""
CHECKS = {"llamacpp": "check_llamacpp"}
"""Load -> the script that says whether its library is there; the others need torch."""
CHECK_S = 300.0
"""Seconds that torch may take to come from a cold disk."""
LOOK_S = 0.5
SCRATCH, OWNER = r"\.gpuaccept-[0-9a-f]{12}", "owner.lock"
"""Folders of a run's own, and the file in them that its process keeps locked."""
MOST_AT_ONCE, MOST_BYTES = 2**16, 2**26
"""Bytes of a server's answer that are read at a time, and in all."""


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


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered: the status, the body, and where it sends us when that is elsewhere."""

    status: int
    body: str
    location: str = ""

    def __str__(self) -> str:
        """Write `401 Unauthorized`, or `302 Found, sends us to https://login.example/`."""
        known = self.status in HTTPStatus.__members__.values()
        said = f"{self.status} {HTTPStatus(self.status).phrase}" if known else f"{self.status}"
        return f"{said}, sends us to {self.location}" if self.location else said


class Load(Protocol):
    """A load script at work; a record is one JSON line that it wrote."""

    @property
    def records(self) -> Sequence[Record]:
        """Return what it has written so far; it stays when the load dies."""

    @property
    def ended(self) -> bool:
        """Say whether it is over, however that came."""

    def tell(self, message: Record) -> None:
        """Send it the answer that its last record, one with `awaits`, waits for; nothing once it has ended."""

    def finish(self, *, timeout: float) -> list[Record]:
        """Wait for its end and return its records; raises Unmeasurable when it dies or outlasts `timeout` s."""

    def stop(self) -> list[Record]:
        """End it now and return its records; raises Unmeasurable when it had died before."""


class Watcher(Protocol):
    """Somebody who looks on while loads run; told from several threads, and never asked."""

    def started(self, script: str, params: Mapping[str, Any]) -> None:
        """A load was started."""

    def record(self, script: str, params: Mapping[str, Any], record: Record) -> None:
        """A load wrote a record."""

    def ended(self, script: str, params: Mapping[str, Any]) -> None:
        """A load is over."""


class World(Protocol):
    """The machine under test; probes act through nothing else.

    `loads` are the names of the load scripts that can be started here.
    """

    clock: Clock
    loads: frozenset[str]

    def has(self, tool: str) -> bool:
        """Say whether a command can be found."""

    def refuses(self, script: str) -> str:
        """Say why one of `loads` cannot do its work here, with the remedy; '' when it can."""

    def command(
        self, argv: Sequence[str], *, timeout: float, watch: Callable[[], object] | None = None
    ) -> Completed:  # fmt: skip
        """Run a command to its end; raises Unmeasurable when it cannot start or outlasts `timeout` s.

        `watch` is called now and then meanwhile; what it raises ends the command.
        """

    def start(self, script: str, params: Mapping[str, Any]) -> AbstractContextManager[Load]:
        """Start a load script; when the block is left it is gone. Raises Unmeasurable when it cannot start."""

    def nvml(self) -> ModuleType:
        """Return the initialised NVML binding; raises Unmeasurable without a driver."""

    def read(self, path: str) -> str:
        """Return a text file of the machine, stripped; raises Unmeasurable with the cause."""

    def data(self, path: str) -> bytes:
        """Return a file of the machine as it is; raises Unmeasurable with the cause."""

    def names(self, path: str) -> list[str]:
        """Return the names in a folder of the machine, sorted; raises Unmeasurable with the cause."""

    def answer(self, url: str, *, timeout: float) -> Answer:
        """Return a server's answer, whatever its status, a redirect unfollowed; raises Unmeasurable when none comes."""

    def mark(self, text: str) -> None:
        """Write a line into the kernel's log; raises Unmeasurable where that is not permitted."""

    def look(self, subject: str) -> str:
        """Return what somebody who looks at a thing sees; raises Unmeasurable where only a person can."""

    def disk(self, path: str) -> Disk:
        """Return what is behind a folder; raises Unmeasurable when it is none of ours to use."""

    def folder(self, parent: str | None = None) -> AbstractContextManager[str]:
        """Make a folder below `parent`, or for short-lived files; with all in it, it is gone when the block is left."""


class _AsItIs(urllib.request.HTTPErrorProcessor):
    """Takes every status for an answer: errors are not raised, and redirects not followed."""

    def http_response(self, request: urllib.request.Request, response: HTTPResponse) -> HTTPResponse:  # noqa: ARG002 - urllib's
        """Return the response as it is."""
        return response

    https_response = http_response


DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}), _AsItIs)
"""Opens an address without a proxy."""


def _owned(made: Path) -> BinaryIO:
    """Make a folder whose owner is known by a lock that goes with its process; the folder appears with it.

    Where locks are not to be had it has no owner, and is never taken for one that was left.
    """
    draft = made.with_name(f"{made.name}.new")
    draft.mkdir(mode=0o700)
    try:
        owner = (draft / OWNER).open("xb")
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            (draft / OWNER).unlink()
        draft.rename(made)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return owner


def _removed(place: Path) -> bool:
    """Remove a folder of this user whose owner is gone, and say whether it was one."""
    with contextlib.suppress(OSError):
        if place.is_symlink() or place.stat().st_uid != os.geteuid():
            return False
        with open(os.open(place / OWNER, os.O_RDWR | os.O_NOFOLLOW), "rb+") as owner:  # noqa: PTH123 - follows no link
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place)
            return True
    return False


def _unseen(_record: Record) -> None:
    """Look away."""


def _no_nvml(pynvml: ModuleType, error: Exception) -> str:
    """Return what keeps NVML from answering, with the remedy."""
    if getattr(error, "value", None) == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return f"the driver in the kernel is another than its library ({error}): restart the machine, then run again"
    return f"no NVIDIA driver ({error}): does nvidia-smi work? Without a GPU see --hw-sim and --hw-replay"


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

    loads = LOADS

    def __init__(self, root: Path = Path("/"), python: str = sys.executable) -> None:
        """Take the machine whose /proc and /sys lie under `root`, and the interpreter that was delivered with it.

        `watcher`, once set, is told what loads do.
        """
        self.clock: Clock = SystemClock()
        self.root, self.python = root, python
        self.watcher: Watcher | None = None
        self._checked: dict[str, str] = {}

    def has(self, tool: str) -> bool:
        """Say whether a command can be found on PATH."""
        return shutil.which(tool) is not None

    def refuses(self, script: str) -> str:
        """Say why the delivered interpreter cannot do it: torch that reaches no GPU, no engine; asked once of each."""
        if script in NO_TORCH:
            return ""
        check = CHECKS.get(script, "check")
        if check not in self._checked:
            try:
                with self.start(check, {}) as started:
                    started.finish(timeout=CHECK_S)
                self._checked[check] = ""
            except Unmeasurable as error:
                self._checked[check] = str(error)
        return self._checked[check]

    def command(
        self, argv: Sequence[str], *, timeout: float, watch: Callable[[], object] | None = None
    ) -> Completed:  # fmt: skip
        """Run a command in a session of its own, so that a Ctrl-C or a hangup is ours to handle."""
        began, left = self.clock.monotonic(), timeout
        with supervisor.command(argv) as child:
            while True:
                try:
                    out, err = child.communicate(timeout=min(LOOK_S, left) if watch else left)
                    break
                except subprocess.TimeoutExpired:
                    left = timeout - (self.clock.monotonic() - began) if watch else 0.0
                if not watch or left <= 0:
                    message = f"{argv[0]} was still running after {timeout:g} s and was ended"
                    raise Unmeasurable(message)
                watch()
        return Completed(tuple(argv), child.returncode, out, err, self.clock.monotonic() - began)

    @contextlib.contextmanager
    def start(self, script: str, params: Mapping[str, Any]) -> Iterator[Load]:
        """Start a load in a child; the sensors are read by this interpreter, all else runs under the delivered one."""
        python = sys.executable if script in SENSORS else self.python
        argv, watcher = [python, str(CHILD), script], self.watcher
        seen: Callable[[Record], object] = partial(watcher.record, script, params) if watcher else _unseen
        with supervisor.load(script, argv, params, seen) as running:
            if watcher:
                watcher.started(script, params)
            try:
                yield running
            finally:
                if watcher:
                    watcher.ended(script, params)

    def nvml(self) -> ModuleType:
        """Return the initialised NVML binding; raises Unmeasurable without a driver."""
        pynvml = import_module("pynvml")

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise Unmeasurable(_no_nvml(pynvml, error)) from None
        return pynvml

    def read(self, path: str) -> str:
        """Return a text file under `root`, stripped; raises Unmeasurable with the cause."""
        file = self._under_root(path)
        try:
            return file.read_text(errors="replace").strip()
        except OSError as error:
            message = f"{file} cannot be read: {error.strerror}"
            raise Unmeasurable(message) from None

    def data(self, path: str) -> bytes:
        """Return a file under `root` as it is; raises Unmeasurable with the cause."""
        file = self._under_root(path)
        try:
            return file.read_bytes()
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

    def answer(self, url: str, *, timeout: float) -> Answer:
        """Return a server's answer, whatever its status; asked directly, past any proxy, and a redirect unfollowed.

        Raises Unmeasurable when none comes within `timeout` s, or more than 64 MiB.
        """
        if not url.startswith(("http://", "https://")):
            message = f"{url!r} is not an http address"
            raise Unmeasurable(message)
        try:
            with DIRECT.open(url, timeout=timeout) as response:
                body = self._body(response, self.clock.monotonic() + timeout)
                return Answer(response.status, body, response.headers.get("Location") or "")
        except (OSError, ValueError, HTTPException) as error:
            message = f"{url} does not answer: {getattr(error, 'reason', error)}"
        raise Unmeasurable(message)

    def _body(self, response: HTTPResponse, until: float) -> str:
        """Return the text of a response; raises TimeoutError at `until` s, ValueError when it is too long."""
        read = bytearray()
        while part := response.read1(MOST_AT_ONCE):
            read += part
            if self.clock.monotonic() > until:
                message = "the answer did not end in time"
                raise TimeoutError(message)
            if len(read) > MOST_BYTES:
                message = f"the answer is longer than {MOST_BYTES} bytes"
                raise ValueError(message)
        if len(read) < int(response.headers.get("Content-Length", 0)):
            message = f"the answer was cut short after {len(read)} bytes"
            raise ValueError(message)
        return read.decode(errors="replace")

    def mark(self, text: str) -> None:
        """Write a line into the kernel's log; raises Unmeasurable where that is not permitted."""
        try:
            log = os.open(self._under_root(KERNEL_LOG), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(log, f"<6>{text}\n".encode())
            finally:
                os.close(log)
        except OSError as error:
            message = f"{KERNEL_LOG} cannot be written: {error.strerror}"
            raise Unmeasurable(message) from None

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
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, made, ignore_errors=True)
            try:
                stack.enter_context(_owned(made))
            except OSError as error:
                message = f"{made.parent} cannot be written: {error.strerror}"
                raise Unmeasurable(message) from None
            yield str(made)

    def clear(self, parent: str) -> list[str]:
        """Remove the folders that runs which died left in `parent`, and return them; those of others stay."""
        left = [place for place in sorted(Path(parent).glob(".gpuaccept-*")) if re.fullmatch(SCRATCH, place.name)]
        return [str(place) for place in left if _removed(place)]

    def _under_root(self, path: str) -> Path:
        return self.root / path.lstrip("/")
