"""The simulated world: the seam of the package's world.py, answered by the model.

Owns nothing but the dispatch: files, tools, loads and NVML each have a module of their own.
"""

import contextlib
import datetime as dt
import posixpath
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.profile import Profile
from pytest_gpuaccept.sim import bmc, drive_files, files, fio, monitoring, stress, tools, upkeep
from pytest_gpuaccept.sim.build import build
from pytest_gpuaccept.sim.loads import SCRIPTS
from pytest_gpuaccept.sim.machine import START, TICK, USER, Machine, Script, ScriptClock
from pytest_gpuaccept.sim.nvml import binding
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.world import LOOK_S, Answer, Clock, Completed, Disk, Load, Record

COMMAND_S = 0.05
"""[E] Seconds that a small tool takes."""
GIB = 2**30

Command = Callable[[Machine, Sequence[str]], tuple[int, str, str]]
COMMANDS: dict[str, Command] = {
    **tools.COMMANDS, **upkeep.COMMANDS, **bmc.COMMANDS, "fio": fio.run, "stress-ng": stress.run,
}  # fmt: skip


def _looking(watch: Callable[[], object], clock: ScriptClock) -> Generator[Record, Record | None, None]:
    """Look on as a live world does while a command runs."""
    while True:
        watch()
        clock.sleep(LOOK_S)
        yield {}


class SimClock:
    """The machine's clock: sleeping lets its time pass."""

    def __init__(self, machine: Machine) -> None:
        """Take the machine whose time it shows."""
        self._machine = machine

    def now(self) -> dt.datetime:
        """Return the wall-clock time, UTC."""
        return self._machine.started + dt.timedelta(seconds=self._machine.now)

    def monotonic(self) -> float:
        """Return seconds since the machine was built."""
        return self._machine.now

    def sleep(self, seconds: float) -> None:
        """Let the machine's time pass."""
        self._machine.advance(seconds)


class SimLoad:
    """A script at work; see the package's world.Load."""

    def __init__(self, machine: Machine, script: Script) -> None:
        """Take a script that the machine runs."""
        self._machine, self._script = machine, script

    @property
    def records(self) -> Sequence[Record]:
        """Return what it has written so far."""
        return self._script.records

    @property
    def ended(self) -> bool:
        """Say whether it is over, however that came."""
        return self._script.ended

    def tell(self, message: Record) -> None:
        """Send it the answer that it waits for."""
        self._script.answer = message

    def finish(self, *, timeout: float) -> list[Record]:
        """Let time pass until it ends; raises Unmeasurable when it dies or outlasts `timeout` s."""
        end = self._machine.now + timeout
        while not self._script.ended and self._machine.now < end:
            self._machine.advance(TICK)
        if not self._script.ended:
            message = f"{self._script.name} was still running after {timeout:g} s and was ended"
            raise Unmeasurable(message)
        return self.stop()

    def stop(self) -> list[Record]:
        """End it and return its records; raises Unmeasurable when it had died."""
        self._script.close()
        if self._script.death:
            raise Unmeasurable(self._script.death)
        return self._script.records


class SimWorld:
    """A simulated machine behind the seam."""

    loads = frozenset(SCRIPTS)

    def __init__(self, profile: Profile, scenario: Scenario, started: dt.datetime = START) -> None:
        """Build the machine; raises InputError when the scenario does not fit it."""
        self.machine = build(profile, scenario)
        self.machine.started = started
        self._looking = False
        monitoring.watch(self.machine)
        bmc.watch(self.machine)
        self.clock: Clock = SimClock(self.machine)

    def has(self, tool: str) -> bool:
        """Say whether the machine has a command."""
        return tool in COMMANDS

    def refuses(self, script: str) -> str:  # noqa: ARG002 - the seam's signature
        """Refuse nothing: every load runs here."""
        return ""

    def command(
        self, argv: Sequence[str], *, timeout: float, watch: Callable[[], object] | None = None
    ) -> Completed:  # fmt: skip
        """Let a command run in virtual time; raises Unmeasurable when there is none or it takes too long."""
        began = self.machine.now
        if argv[0] not in COMMANDS:
            message = f"{argv[0]} cannot be started: No such file or directory"
            raise Unmeasurable(message)
        with self._watched(watch):
            status, out, err = COMMANDS[argv[0]](self.machine, argv)
            self.machine.advance(0.0 if self._looking else COMMAND_S)
        seconds = self.machine.now - began
        if watch:
            watch()
        if seconds > timeout:
            message = f"{argv[0]} was still running after {timeout:g} s and was ended"
            raise Unmeasurable(message)
        return Completed(tuple(argv), status, out, err, seconds)

    @contextlib.contextmanager
    def _watched(self, watch: Callable[[], object] | None) -> Iterator[None]:
        """Call `watch` now and then while the block lets time pass; what it raised is raised at the end."""
        looking = Script("watch", partial(_looking, partial(self._look_on, watch)), self.machine)
        if watch:
            self.machine.scripts.append(looking)
        try:
            yield
        finally:
            if watch:
                self.machine.scripts.remove(looking)
        if looking.death:
            raise Unmeasurable(looking.death)

    def _look_on(self, watch: Callable[[], object] | None) -> None:
        """Call `watch`; the tools that it runs take no time, for time is passing already."""
        self._looking = True
        try:
            if watch:
                watch()
        finally:
            self._looking = False

    @contextlib.contextmanager
    def start(self, script: str, params: Mapping[str, Any]) -> Iterator[Load]:
        """Start a load in virtual time."""
        if script not in SCRIPTS:
            message = f"there is no load {script!r}"
            raise Unmeasurable(message)
        running = Script(script, partial(SCRIPTS[script], self.machine, params), self.machine)
        self.machine.scripts.append(running)
        running.resume(self.machine.now)
        try:
            yield SimLoad(self.machine, running)
        finally:
            running.close()
            self.machine.scripts.remove(running)

    def nvml(self) -> ModuleType:
        """Return the real binding over the machine; raises Unmeasurable without a driver."""
        return binding(self.machine)

    def read(self, path: str) -> str:
        """Return a text file of the machine, stripped; raises Unmeasurable with the cause."""
        text = self.machine.written.get(path, files.text(self.machine, path))
        if text is None:
            message = f"{path} cannot be read: No such file or directory"
            raise Unmeasurable(message)
        return text.strip()

    def data(self, path: str) -> bytes:
        """Return a file of the machine as it is; raises Unmeasurable with the cause."""
        found = files.data(self.machine, path)
        if found is None:
            message = f"{path} cannot be read: No such file or directory"
            raise Unmeasurable(message)
        return found

    def names(self, path: str) -> list[str]:
        """Return the names in a folder of the machine; raises Unmeasurable with the cause."""
        found = files.names(self.machine, path)
        if found is None:
            message = f"{path} cannot be listed: No such file or directory"
            raise Unmeasurable(message)
        return sorted(found)

    def answer(self, url: str, *, timeout: float) -> Answer:  # noqa: ARG002 - the seam's signature; no answer is slow
        """Return what a server of the machine answers; raises Unmeasurable when none does."""
        answer = monitoring.answer(self.machine, url)
        if answer is None:
            message = f"{url} does not answer: Connection refused"
            raise Unmeasurable(message)
        return answer

    def mark(self, text: str) -> None:
        """Write a line into the kernel's log, as a program does."""
        self.machine.say(text, facility=USER)

    def look(self, subject: str) -> str:
        """Return what somebody who looks at the simulated machine sees."""
        host = self.machine.host
        looks = {"power supplies": host.psu, "chassis": host.chassis, "cabling": host.cabling}
        rating = f"{host.psu_rating_w}" if host.psu_rating_w else ""
        if not (seen := {**looks, "rating of the power supplies": rating}.get(subject)):
            message = f"nobody described the {subject} of the simulated machine"
            raise Unmeasurable(message)
        return seen

    def disk(self, path: str) -> Disk:
        """Return what is behind a folder; raises Unmeasurable when no drive is mounted there."""
        if path == "/":
            return Disk(drive_files.SYSTEM_DISK, int(self.machine.host.disk_gb * 1e9 / 2))
        drive = self.machine.mounts.get(path)
        if drive is None or not self.machine.drives[drive].present:
            message = f"{path} is not a folder"
            raise Unmeasurable(message)
        number = list(self.machine.drives).index(drive)
        return Disk(f"259:{number}", int(self.machine.drives[drive].free_gib * GIB))

    @contextlib.contextmanager
    def folder(self, parent: str | None = None) -> Iterator[str]:
        """Make a folder; what was written in it is gone when the block is left."""
        made = posixpath.join(parent or "/tmp", ".gpuaccept-simulated")  # noqa: S108 - a path of the simulated machine
        try:
            yield made
        finally:
            for path in [path for path in self.machine.written if path.startswith(f"{made}/")]:
                del self.machine.written[path]
