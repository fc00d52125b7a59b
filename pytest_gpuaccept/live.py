"""The operator's view of a load at work: what runs, how far it is, where each GPU stands against its limits.

Owns the state that probes and loads feed, its two renderings (a table, a line) and the thread that shows
them. Must not judge: red is a hint, the verdict is the judge's. Nothing that a load writes may raise here.
"""

import contextlib
import math
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pytest_gpuaccept.measurement import printable
from pytest_gpuaccept.probe import Probe
from pytest_gpuaccept.probes.cards import MOST, Card
from pytest_gpuaccept.profile import Line, Profile, Scalar
from pytest_gpuaccept.world import Clock, Record

READINGS = ("temperature", "power", "gen", "width")
FRESH_S = 5.0
"""Seconds for which a reading or a rate is shown: what a card said before it was lost is not its state."""
TICK_S, LINE_S = 0.25, 30.0
"""Seconds between two looks at the state, and between two lines where there is no terminal."""
WIDTH = 80
LONGEST_NAME, LONGEST_TROUBLE = 30, 160
"""Characters of a probe's name, and of what a load says to be wrong."""


def _number(record: Mapping[str, Any], key: str) -> float | None:
    """Return a number of a record, None where it is absent or no amount."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        return None
    return float(value)


@dataclass(slots=True)
class Gpu:
    """What is known of one GPU: its last sample and its load's last rate, each with its time in s."""

    readings: Mapping[str, float | None] = field(default_factory=dict)
    sampled: float = -math.inf
    tflops: float | None = None
    timed: float = -math.inf
    loaded: bool = False
    errors: int = 0

    def reading(self, name: str, now: float) -> float | None:
        """Return the last reading, None when it failed or is old."""
        return self.readings.get(name) if now - self.sampled <= FRESH_S else None

    def rate(self, now: float) -> float | None:
        """Return the last rate in TFLOPS, None when it is old."""
        return self.tflops if now - self.timed <= FRESH_S else None


@dataclass(slots=True)
class Timing:
    """A load that has begun to be timed: when, and for how long it is asked to run, both in s."""

    began: float
    seconds: float | None


class State:
    """What runs now; fed with the time at which something became known, in s of one clock."""

    def __init__(self) -> None:
        """Start with nothing running."""
        self.names: Mapping[str, str] = {}
        self.begin("", "", {}, 0.0)

    def begin(self, name: str, device: str, params: Mapping[str, Any], now: float, *, waits: bool = False) -> None:
        """Take that a probe begins; one that `waits` starts loads, and its seconds count from their first result."""
        self.name, self.device = printable(name)[:LONGEST_NAME], printable(device)[:LONGEST_NAME]
        self.began, self.waits = now, waits
        seconds = None if "sustained_seconds" in params else _number(params, "seconds")  # of each of several jobs
        self.planned = None if seconds is None else seconds + (_number(params, "warmup_seconds") or 0.0)
        self.gpus: dict[str, Gpu] = {}
        self.products: dict[str, None] = {}
        self.trouble = ""
        self._timings: dict[tuple[str, str], Timing] = {}

    def started(self, script: str, params: Mapping[str, Any]) -> None:
        """Take that a load was started: on `uuid`, or watching `uuids`."""
        watched = params.get("uuids")
        for uuid in watched if isinstance(watched, list | tuple) else ():
            if isinstance(uuid, str):
                self.gpus.setdefault(uuid, Gpu())
        uuid, product = params.get("uuid"), params.get("kind")
        if isinstance(uuid, str):
            gpu = self.gpus.setdefault(uuid, Gpu())
            gpu.loaded, gpu.timed = True, -math.inf
            self._timings.pop((script, uuid), None)
        if isinstance(product, str):
            self.products[product] = None

    def record(self, script: str, params: Mapping[str, Any], record: object, now: float) -> None:
        """Take what a load wrote, whatever it is."""
        if not isinstance(record, dict):
            return
        named = record if record.get("kind") == "sample" else params
        uuid = named.get("uuid")
        gpu = self.gpus.get(uuid) if isinstance(uuid, str) else None
        if gpu is None or not isinstance(uuid, str):
            return
        if named is record:
            gpu.readings, gpu.sampled = {name: _number(record, name) for name in READINGS}, now
            return
        self._check(gpu, uuid, record)
        seconds = _number(record, "seconds")
        if seconds:
            self._timings.setdefault((script, uuid), Timing(now - seconds, _number(params, "seconds")))
            if (tflop := _number(record, "tflop")) is not None:
                gpu.tflops, gpu.timed = tflop / seconds, now

    def ended(self, script: str, params: Mapping[str, Any]) -> None:
        """Take that a load is over: nothing counts towards its end any more."""
        uuid = params.get("uuid")
        if isinstance(uuid, str) and (script, uuid) in self._timings:
            del self._timings[script, uuid]
            self.planned = None

    def _check(self, gpu: Gpu, uuid: str, record: Record) -> None:
        """Count wrong results; a flawed golden result, or another card than the one asked for, is one."""
        differing, wrong = _number(record, "elements") or 0.0, _number(record, "wrong") or 0.0
        gpu.errors += math.ceil(wrong) or int(differing > 0)
        flaw, card = record.get("flaw"), record.get("uuid")
        if record.get("kind") == "device" and isinstance(card, str) and card != uuid:
            flaw = f"the load runs on {card}"
        if flaw and isinstance(flaw, str):
            gpu.errors += 1
            self.trouble = f"{self.gpu_name(uuid)}: {printable(flaw[:LONGEST_TROUBLE])}"

    def gpu_name(self, uuid: str) -> str:
        """Return the id of a GPU, or the end of its uuid where nobody has named it yet."""
        return self.names.get(uuid) or printable(uuid[-8:])[:LONGEST_NAME]

    def elapsed(self, now: float) -> str:
        """Write the time that has passed, and the time planned where it is known: `1:23/5:00`."""
        timing = min(self._timings.values(), key=lambda each: each.began, default=None)
        if timing:
            return _of(now - timing.began, timing.seconds or self.planned)
        passed = now - self.began
        if self.waits and self.planned is not None:
            return f"{_clock(passed)}, then {_clock(self.planned)}"
        return _of(passed, self.planned)


def _of(passed: float, planned: float | None) -> str:
    if planned is None:
        return _clock(passed)
    if passed > planned + 1:
        return f"{_clock(passed)} (planned {_clock(planned)})"
    return f"{_clock(passed)}/{_clock(planned)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0.0)), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"  # noqa: PLR2004


@dataclass(frozen=True, slots=True)
class Limits:
    """The profile's lines for what is shown; None where it has none."""

    temperature: Line | None
    power: Line | None
    tflops: Line | None
    width: Line | None
    total: Line | None
    power_total: Line | None


def limits(state: State, profile: Profile) -> Limits:
    """Return the lines of the running probe; a product's rate has a line of its own."""

    def find(*endings: str) -> Line | None:
        lines = (profile.lines.get(f"{state.name}.{ending}") for ending in endings)
        return next((line for line in lines if line and not line.not_applicable), None)

    rate = find("tflops", *reversed(state.products))
    width = find("width") or profile.lines.get("gpu.pcie.width")
    return Limits(find("temperature"), find("power_peak"), rate, width, find("total"), find("power_total"))


def outside(line: Line | None, value: float | None) -> bool:
    """Say whether a value breaks a limit now; what a line says of a whole load is for the judge."""
    if line is None or value is None:
        return False
    low, high = (line.equals, line.equals) if line.equals is not None else (line.min, line.max)
    return value < _bound(low, -math.inf) or value > _bound(high, math.inf)


def _bound(bound: Scalar | None, none: float) -> float:
    return float(bound) if isinstance(bound, int | float) and not isinstance(bound, bool) else none


def table(state: State, now: float, profile: Profile) -> RenderableType:
    """Return the state as a table of at most 80 columns: a row a GPU, and their sum."""
    where = "" if state.device == "host" else f" on {state.device}"
    title = Text.assemble((state.name, "bold"), f"{where}  {state.elapsed(now)}")
    parts: list[RenderableType] = [title]
    if state.gpus:
        title.append_text(Text.assemble("  ", _errors(_all_errors(state))))
        parts.append(_gpus(state, now, limits(state, profile)))
    if state.trouble:
        parts.append(Text(state.trouble, style="red", overflow="fold"))
    return Group(*parts)


def _gpus(state: State, now: float, limit: Limits) -> Table:
    rows = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    rows.add_column(Text("GPU\nlimit"), no_wrap=True)
    columns = (("C", limit.temperature), ("W", limit.power), ("TFLOPS", limit.tflops), ("PCIe", limit.width))
    for name, line in columns:
        rows.add_column(Text(f"{name}\n{_shown(line) if line else ''}"), justify="right", no_wrap=True)
    rows.add_column(Text("errors\n"), justify="right", no_wrap=True)
    for uuid, gpu in state.gpus.items():
        heat, watts, rate = gpu.reading("temperature", now), gpu.reading("power", now), gpu.rate(now)
        rows.add_row(
            Text(state.gpu_name(uuid)),
            _cell(heat, limit.temperature), _cell(watts, limit.power), _cell(rate, limit.tflops, 1),
            Text(_link(gpu, now), style=_red(limit.width, gpu.reading("width", now))), _errors(gpu.errors, word=False),
        )  # fmt: skip
    if len(state.gpus) > 1:
        rows.add_row(*_sums(state, now, limit))
    return rows


def _shown(line: Line) -> str:
    width = line.unit == "lanes"
    return line.limit_text().replace("= ", "= x") if width else line.limit_text()


def _sums(state: State, now: float, limit: Limits) -> Iterator[Text]:
    """Yield the row below the cards: the hottest, the power and the rate of all, with their limits."""
    hottest = _hottest(state, now)
    yield Text("all", style="bold")
    yield Text("-" if hottest is None else f"{hottest[1]:.0f} {hottest[0]}", style="bold")
    watts = [gpu.reading("power", now) for gpu in state.gpus.values()]
    for values, line in ((watts, limit.power_total), (_rates(state, now), limit.total)):
        bound = f" ({line.limit_text()})" if line else ""
        yield Text(f"{_sum(values)}{bound}", style=_red(line, sum(filter(None, values))) or "bold")
    yield Text("")
    yield _errors(_all_errors(state), word=False)


def _cell(value: float | None, line: Line | None, digits: int = 0) -> Text:
    return Text("-" if value is None else f"{value:.{digits}f}", style=_red(line, value))


def _red(line: Line | None, value: float | None) -> str:
    return "bold red" if outside(line, value) else ""


def _errors(count: int, *, word: bool = True) -> Text:
    return Text(f"errors {count}" if word else str(count), style="bold red" if count else "")


def _all_errors(state: State) -> int:
    return sum(gpu.errors for gpu in state.gpus.values())


def _rates(state: State, now: float) -> list[float | None]:
    return [gpu.rate(now) for gpu in state.gpus.values() if gpu.loaded]


def _sum(values: list[float | None]) -> str:
    """Write a sum; one that misses a card says so, and is nothing without any."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{sum(known):.0f}" if len(known) == len(values) else f"{sum(known):.0f} ({len(known)} of {len(values)})"


def _hottest(state: State, now: float) -> tuple[str, float] | None:
    heat = {state.gpu_name(uuid): gpu.reading("temperature", now) for uuid, gpu in state.gpus.items()}
    return max(((name, value) for name, value in heat.items() if value is not None), key=lambda at: at[1], default=None)


def _link(gpu: Gpu, now: float) -> str:
    gen, width = gpu.reading("gen", now), gpu.reading("width", now)
    return f"{'-' if gen is None else f'Gen{gen:.0f}'} x{'-' if width is None else f'{width:.0f}'}"


def line(state: State, now: float, profile: Profile) -> str:
    """Return the state as one line of at most 80 characters; values stand before their limits: `gpu2 71/83 C`."""
    where = "" if state.device in ("host", "") else f" {state.device}"
    text = f"{state.name}{where} {state.elapsed(now)}"[:WIDTH]
    for part in _parts(state, now, limits(state, profile)) if state.gpus else ():
        text += f"  {part}" if len(text) + 2 + len(part) <= WIDTH else ""
    return text


def _parts(state: State, now: float, limit: Limits) -> Iterator[str]:
    """Yield what a line says, the most needed first; links come early where they differ or are too narrow."""
    yield f"errors {_all_errors(state)}"
    link, odd = _worst_link(state, now, limit.width)
    if odd:
        yield link
    if hottest := _hottest(state, now):
        yield f"{hottest[0]} {hottest[1]:.0f}{_slash(limit.temperature, 'max')} C"
    if known := [rate for rate in _rates(state, now) if rate is not None]:
        several = f" of {_sum(_rates(state, now))}" if len(state.gpus) > 1 else ""
        yield f"{min(known):.0f}{_slash(limit.tflops, 'min')}{several} TFLOPS"
    if any(gpu.reading("power", now) is not None for gpu in state.gpus.values()):
        yield f"{_sum([gpu.reading('power', now) for gpu in state.gpus.values()])} W"
    if link and not odd:
        yield link


def _worst_link(state: State, now: float, width: Line | None) -> tuple[str, bool]:
    """Return the narrowest link, and whether it is odd: unlike another card's, or below its limit."""
    sampled = {uuid: gpu for uuid, gpu in state.gpus.items() if gpu.readings}
    if not sampled:
        return "", False
    worst, gpu = min(
        sampled.items(), key=lambda at: (at[1].reading("width", now) or 0.0, at[1].reading("gen", now) or 0.0)
    )
    different = len({_link(each, now) for each in sampled.values()}) > 1
    odd = different or outside(width, gpu.reading("width", now))
    return f"{state.gpu_name(worst)} {_link(gpu, now)}" if odd else _link(gpu, now), odd


def _slash(line: Line | None, end: str) -> str:
    bound = getattr(line, end, None)
    return "" if bound is None else f"/{bound:.0f}"


class Begun(Protocol):
    """The line that pytest has begun to write."""

    def column(self) -> int:
        """Return how wide it is, all of it being on the terminal."""

    def end(self) -> None:
        """End it."""


class Screen:
    """The operator's terminal, or the file that stands for it; what cannot be written is lost.

    The table stands below what pytest has begun to write, and the cursor is back at its end afterwards.
    A terminal that was lost is a file from then on.
    """

    def __init__(self, fd: int, *, colour: bool) -> None:
        """Take a descriptor of its own."""
        self._fd, self._colour = fd, colour
        self._live: Live | None = None
        self._column = 0

    @property
    def terminal(self) -> bool:
        """Say whether the cursor can be moved."""
        return os.environ.get("TERM", "") not in ("", "dumb", "unknown") and os.isatty(self._fd)

    def begin(self, column: int) -> None:
        """Take where the cursor stands before the first table."""
        self._column = column

    def draw(self, drawn: RenderableType) -> None:
        """Put a table where the last one is."""
        if self._live is None:
            self.write("\n" if self._column else "")
            no_colour = None if self._colour else True
            console = Console(file=cast("IO[str]", self), force_terminal=True, no_color=no_colour, highlight=False)
            self._live = Live(
                console=console, transient=True, vertical_overflow="crop", auto_refresh=False,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._live.start()
        self._resize(self._live.console)
        self._live.update(drawn, refresh=True)

    def say(self, text: str) -> None:
        """Write a line in the place of the table."""
        self.clear()
        self.write(f"{text}\n")

    def clear(self) -> None:
        """Take the table away; from a terminal that was lost it is gone already."""
        live, self._live = self._live, None
        if live and self.terminal:
            live.update(Text(""), refresh=True)
            live.stop()
            if column := self._column % _size(self._fd).columns:
                self.write(f"\x1b[A\x1b[{column}C")

    def close(self) -> None:
        """Give the descriptor back."""
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def write(self, text: str) -> int:
        """Write to the descriptor what it takes."""
        rest = text.encode(errors="replace")
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        return len(text)

    def flush(self) -> None:
        """Do nothing: a write is a write."""

    def _resize(self, console: Console) -> None:
        """Follow the terminal's size; its last column stays free, so that no line wraps."""
        size = _size(self._fd)
        console.size = ConsoleDimensions(size.columns - 1, size.lines)


def _size(fd: int) -> os.terminal_size:
    try:
        columns, lines = os.get_terminal_size(fd)
    except OSError:
        columns = lines = 0
    return os.terminal_size((columns or WIDTH, lines or 24))


class LiveView:
    """Shows the operator what runs: a bench's `progress` and a live world's `watcher` in one.

    Loads tell it from threads of their own; it never makes them wait for the terminal.
    """

    def __init__(
        self, profile: Profile, clock: Clock, memory: Mapping[str, Any], screen: Screen, begun: Begun
    ) -> None:  # fmt: skip
        """Take what to show it against and where, and what pytest has begun to write there.

        `memory` is what probes remember together; which card is `gpu2` stands in its `cards`.
        """
        self._profile, self._clock, self._memory = profile, clock, memory
        self._screen, self._begun = screen, begun
        self._state, self._lock = State(), threading.Lock()
        self._due, self._at_margin = 0.0, True

    def started(self, script: str, params: Mapping[str, Any]) -> None:
        """Take that a load was started."""
        with self._lock:
            self._state.started(script, params)

    def record(self, script: str, params: Mapping[str, Any], record: Record) -> None:
        """Take a record of a load."""
        with self._lock:
            self._state.record(script, params, record, self._clock.monotonic())

    def ended(self, script: str, params: Mapping[str, Any]) -> None:
        """Take that a load is over."""
        with self._lock:
            self._state.ended(script, params)

    @contextlib.contextmanager
    def probe(self, probe: Probe, device: str, params: Mapping[str, Scalar]) -> Iterator[None]:
        """Show a probe while the block runs."""
        self.begin(probe, device, params)
        done = threading.Event()
        shower = threading.Thread(target=self._keep_showing, args=(done,), name="gpuaccept live view", daemon=True)
        with contextlib.suppress(RuntimeError):  # a machine out of threads goes unseen
            shower.start()
        try:
            yield
        finally:
            done.set()
            if shower.ident:
                shower.join()

    def begin(self, probe: Probe, device: str, params: Mapping[str, Scalar]) -> None:
        """Take that a probe begins; without a terminal it is announced when it is planned to take long."""
        now = self._clock.monotonic()
        with self._lock:
            self._state.begin(probe.name, device, params, now, waits=bool(probe.loads))
            long = (self._state.planned or 0.0) > LINE_S
        self._due = now if long else now + LINE_S
        self._at_margin = long and not self._screen.terminal
        with contextlib.suppress(Exception):  # a reporter may be anybody's, and a view must not end a run
            if self._at_margin:
                self._begun.end()
            self._screen.begin(self._begun.column())

    def show(self) -> None:
        """Draw the table; without a terminal, write a line when one is due."""
        now, terminal = self._clock.monotonic(), self._screen.terminal
        if not terminal and now < self._due:
            return
        with self._lock:
            self._state.names = _names(self._memory)
            text, drawn = line(self._state, now, self._profile), table(self._state, now, self._profile)
        if terminal:
            self._screen.draw(drawn)
        else:
            self._screen.say(text if self._at_margin else f"\n{text}")
            self._due, self._at_margin = now + LINE_S, True

    def close(self) -> None:
        """Give the terminal back."""
        self._screen.close()

    def _keep_showing(self, done: threading.Event) -> None:
        try:
            self.show()
            while not done.wait(TICK_S):
                self.show()
        except Exception as error:  # noqa: BLE001 - a view that fails must not end the run
            self._screen.say(f"\ngpuaccept: the live view failed, the run goes on ({type(error).__name__}: {error})")
        finally:
            self._screen.clear()


def _names(memory: Mapping[str, Any]) -> dict[str, str]:
    """Return the device ids by uuid, as the probes of this run know them."""
    cards: Mapping[str, Card] = memory.get("cards", {})
    return {card.uuid: device for device, card in cards.items()}
