"""What the operator sees while loads run: the state that records make, its renderings, and where they land."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from pytest_gpuaccept import Metric, Probe
from pytest_gpuaccept.bench import Bench
from pytest_gpuaccept.live import LiveView, Screen, State, line, table
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.probes.cards import Card
from pytest_gpuaccept.run import NullJournal

UUIDS = [f"GPU-0000000{i}-aaaa-bbbb-cccc-00000000000{i}" for i in range(8)]
HEALTHY = {"temperature": 60, "power": 440.0, "gen": 4, "width": 16}
BURN = Probe("gpu.burn", "gpus", "host", (), load=True, loads=("telemetry", "burn"))
ESCAPE = "\x1b"


def burning(cards=4, *, began=0.0, name="gpu.burn", seconds=60):
    """Return the state of a burn that began to be timed at `began`, a sample and a batch of each card taken."""
    state = State()
    state.names = {uuid: f"gpu{i}" for i, uuid in enumerate(UUIDS)}
    state.begin(name, "host", {"seconds": seconds}, began - 20, waits=True)
    state.started("telemetry", {"uuids": UUIDS[:cards], "period_s": 0.2})
    for i in range(cards):
        state.started("burn", {"uuid": UUIDS[i], "seconds": seconds})
        sample(state, i, began, temperature=60 + i)
        batch(state, i, began + 0.1, of=seconds, tflop=16.0 + i, wrong=0)
    return state


def sample(state, i, now, **readings):
    """Feed one sample of telemetry."""
    state.record("telemetry", {}, {"kind": "sample", "uuid": UUIDS[i], **HEALTHY, **readings}, now)


def batch(state, i, now, *, of=60, **record):
    """Feed one record of a card's burn of so many seconds."""
    state.record("burn", {"uuid": UUIDS[i], "seconds": of}, {"kind": "batch", "seconds": 0.1, **record}, now)


def drawn(state, now, profile):
    """Return the table as text of 80 columns."""
    out = io.StringIO()
    Console(file=out, width=80).print(table(state, now, profile))
    return out.getvalue()


def test_a_line_says_what_a_load_does_and_where_it_stands(profile):
    """Progress, errors, the hottest card and the slowest rate before their limits, power, rate and link of all."""
    assert line(burning(), 3.0, profile) == (
        "gpu.burn 0:03/1:00  errors 0  gpu3 63/83 C  160/150 of 700 TFLOPS  1760 W"
    )


def test_a_table_has_a_row_a_card_and_their_sum(profile):
    """Limits stand in the head, the hottest card and the sums below."""
    assert [text.split() for text in drawn(burning(2), 3.0, profile).splitlines()] == [
        ["gpu.burn", "0:03/1:00", "errors", "0"],
        ["GPU", "C", "W", "TFLOPS", "PCIe", "errors"],
        ["limit", "<=", "83", ">=", "150", "=", "x16"],
        ["gpu0", "60", "440", "160.0", "Gen4", "x16", "0"],
        ["gpu1", "61", "440", "170.0", "Gen4", "x16", "0"],
        ["all", "61", "gpu1", "880", "330", "0"],
    ]


def test_a_line_and_a_table_of_eight_cards_fit_the_terminal(profile):
    """At the longest soak both fit 80 columns, and the line keeps what matters most."""
    state = burning(8, name="gpu.combined", seconds=36000)
    text = line(state, 3.0, profile)
    assert text.startswith("gpu.combined 0:03/10:00:00  errors 0  gpu7 67/83 C  160/150 of 1560 TFLOPS")
    assert len(text) <= 80
    assert max(map(len, drawn(state, 3.0, profile).splitlines())) <= 80


@pytest.mark.parametrize(
    ("reading", "shown"),
    [({"temperature": None}, "62 gpu2"), ({"power": "warm"}, "880 (2 of 3)"), ({"width": -1}, "x-")],
)
def test_a_reading_that_failed_is_shown_as_none(reading, shown, profile):
    """It is a dash, never a zero, and a sum says that a card is missing in it."""
    state = burning(3)
    sample(state, 1, 1.0, **reading)
    text = drawn(state, 2.0, profile)
    assert "-" in next(row for row in text.splitlines() if row.startswith("gpu1"))
    assert shown in text


def test_what_a_card_said_before_it_fell_silent_is_not_its_state(profile):
    """Readings and rates older than 5 s are not shown."""
    state = burning(2, seconds=None)
    sample(state, 0, 8.0)
    batch(state, 0, 8.0, tflop=16.0, wrong=0)
    silent = next(row for row in drawn(state, 8.0, profile).splitlines() if row.startswith("gpu1"))
    assert silent.split() == ["gpu1", "-", "-", "-", "-", "x-", "0"]
    assert line(state, 8.0, profile).endswith("gpu1 - x-  gpu0 60/83 C  160/150 of 160 (1 of 2) TFLOPS")


@pytest.mark.parametrize(
    ("record", "count"),
    [
        ({"wrong": 3, "elements": 9}, 3),
        ({"wrong": 0, "elements": 9}, 1),
        ({"kind": "golden", "flaw": "float64 says otherwise"}, 1),
        ({"kind": "golden", "flaw": ""}, 0),
        ({"kind": "device", "uuid": UUIDS[2]}, 1),
        ({"kind": "device", "uuid": UUIDS[1]}, 0),
    ],
)
def test_errors_are_counted_as_they_are_found(record, count, profile):
    """Wrong results, a flawed golden result and a load on another card count for the card that was asked."""
    state = burning()
    batch(state, 1, 1.0, **record)
    assert f"errors {count}" in line(state, 2.0, profile)
    assert next(r for r in drawn(state, 2.0, profile).splitlines() if r.startswith("gpu1")).split()[-1] == str(count)


def test_what_a_load_found_wrong_is_said(profile):
    """Text of a load is shown below the table, without what could steer a terminal or be taken for markup."""
    state = burning()
    batch(state, 1, 1.0, flaw="[red]moved\x1b[2J" + "x" * 10**6)
    said = "".join(drawn(state, 2.0, profile).splitlines()[8:])
    assert said.startswith("gpu1: [red]moved\\x1b[2Jxxx")
    assert len(said) < 200


@pytest.mark.parametrize(
    ("params", "waits", "now", "text"),
    [
        ({"seconds": 60}, False, 5, "0:05/1:00"),
        ({"seconds": 60, "warmup_seconds": 5}, False, 5, "0:05/1:05"),
        ({"seconds": 60}, False, 61, "1:01/1:00"),
        ({"seconds": 60}, False, 62, "1:02 (planned 1:00)"),
        ({"seconds": 60}, True, 5, "0:05, then 1:00"),
        ({"samples": 5}, True, 5, "0:05"),
        ({"seconds": "long"}, False, 4000, "1:06:40"),
    ],
)
def test_time_is_shown_against_the_plan(params, waits, now, text):
    """Seconds of a probe that starts loads count from their first result; no plan is only elapsed."""
    state = State()
    state.begin("p", "host", params, 0.0, waits=waits)
    assert state.elapsed(now) == text


def test_a_load_that_ended_is_no_longer_waited_for():
    """Between and after its loads a probe shows what has passed since it began."""
    state = burning()
    for uuid in UUIDS[:4]:
        state.ended("burn", {"uuid": uuid})
    assert state.elapsed(70.0) == "1:30"


def test_nothing_is_said_of_errors_where_nobody_counts_them(profile):
    """A command shows its time only: no errors are known of it before it has ended."""
    state = State()
    state.begin("nvme.fio", "nvme0", {"seconds": 30}, 0.0)
    assert line(state, 3.0, profile) == "nvme.fio nvme0 0:03/0:30"
    assert drawn(state, 3.0, profile) == "nvme.fio on nvme0  0:03/0:30\n"


def test_an_odd_link_comes_early(profile):
    """A card whose link is not like the others' is named before what does not fit any more."""
    state = burning()
    sample(state, 2, 1.0, width=8)
    assert "errors 0  gpu2 Gen4 x8  " in line(state, 2.0, profile)


def test_a_product_is_shown_against_its_own_limit(profile):
    """The rate of the FP32 product stands before the limit of FP32, once FP16 is over."""
    state = State()
    state.begin("gpu.gemm", "gpu0", {"seconds": 3}, 0.0, waits=True)
    for kind in ("fp16", "fp32"):
        state.started("gemm", {"uuid": UUIDS[0], "kind": kind, "seconds": 3})
    state.record("gemm", {"uuid": UUIDS[0], "seconds": 3}, {"kind": "batch", "seconds": 0.1, "tflop": 5}, 1.0)
    assert f"50/{profile.lines['gpu.gemm.fp32'].min:.0f} TFLOPS" in line(state, 1.0, profile)


def test_a_card_without_a_name_is_shown_by_the_end_of_its_uuid(profile):
    """Until a probe has looked at the cards, and for one that nobody knows."""
    state = burning(1)
    state.names = {}
    assert "00000000 60/83 C" in line(state, 1.0, profile)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(UUIDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = (
    "uuid",
    "uuids",
    "kind",
    "seconds",
    "tflop",
    "wrong",
    "elements",
    "flaw",
    "temperature",
    "power",
    "gen",
    "width",
)
RECORDS = st.dictionaries(st.sampled_from(KEYS), JSON | st.sampled_from(["sample", "batch", "device"]), max_size=12)


@given(st.lists(st.tuples(RECORDS, RECORDS | JSON), max_size=8), st.text())
@example([({"uuid": UUIDS[0]}, {"seconds": 0, "tflop": 1})], "gpu.burn")
@example([({"uuid": UUIDS[0]}, {"seconds": 1e-320, "tflop": 1e18, "wrong": 1e18})], "gpu.burn")
def test_whatever_loads_write_there_is_a_line(profile, written, name):
    """Any parameters and records: no exception, and a line and a table that fit and cannot steer a terminal."""
    state = burning(2)
    state.begin(name, name, {}, 0.0)
    for params, record in written:
        state.started("burn", params)
        state.record("burn", params, record, 1.0)
        state.record("burn", {"uuid": UUIDS[0]}, record, 1.0)
        state.ended("burn", params)
    text = line(state, 2.0, profile)
    assert text.isprintable()
    assert len(text) <= 80
    rows = drawn(state, 2.0, profile).splitlines()
    assert all(row.isprintable() for row in rows)


def until(fd, word):
    """Read from a descriptor until a word was there, and return all of it."""
    text = b""
    while word not in text:
        read = os.read(fd, 4096)
        assert read
        text += read
    return text.decode()


class Terminal:
    """A pseudo terminal, or a pipe, with a screen at its one end."""

    def __init__(self, *, terminal, colour=True):
        self.ours, self.theirs = pty.openpty() if terminal else os.pipe()
        self.screen = Screen(self.theirs, colour=colour)

    def text(self):
        """Return what was written since it was last asked."""
        os.write(self.theirs, b"<end>")
        return until(self.ours, b"<end>").removesuffix("<end>").replace("\r\n", "\n")


class Begun:
    """Twelve columns that pytest has written; ended with a bar."""

    def __init__(self, screen):
        self.screen = screen

    def column(self):
        """Return how many columns there are."""
        return 12

    def end(self):
        """End them."""
        self.screen.write("|\n")


@pytest.fixture
def made(profile, clock, monkeypatch):
    """Make a view on a terminal or a pipe; cards are known, and the terminal is one that moves its cursor."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminals = []

    def make(*, terminal, colour=True):
        terminals.append(end := Terminal(terminal=terminal, colour=colour))
        memory = {"cards": {f"gpu{i}": Card(f"gpu{i}", uuid, "", None) for i, uuid in enumerate(UUIDS)}}
        return LiveView(profile, clock, memory, end.screen, Begun(end.screen)), end

    yield make
    for end in terminals:
        end.screen.close()
        os.close(end.ours)


def feed(view):
    """Let a view see one card in a burn."""
    view.started("telemetry", {"uuids": UUIDS[1:2]})
    view.started("burn", {"uuid": UUIDS[1], "seconds": 60})
    view.record("telemetry", {}, {"kind": "sample", "uuid": UUIDS[1], **HEALTHY, "temperature": 90})


def test_without_a_terminal_a_long_load_is_announced_and_has_a_line_each_half_minute(made, clock):
    """The announcement ends pytest's line; nothing is written in between."""
    view, end = made(terminal=False)
    view.begin(BURN, "host", {"seconds": 60})
    view.show()
    assert end.text() == "|\ngpu.burn 0:00, then 1:00\n"
    feed(view)
    clock.seconds = 29.9
    view.show()
    assert end.text() == ""
    clock.seconds = 30.0
    feed(view)
    view.show()
    view.show()
    assert end.text() == "gpu.burn 0:30, then 1:00  errors 0  gpu1 90/83 C  440 W  Gen4 x16\n"


def test_without_a_terminal_a_short_load_is_silent_until_it_has_lasted(made, clock):
    """Nobody ended pytest's line then, so the first line of the view does."""
    view, end = made(terminal=False)
    view.begin(BURN, "host", {"seconds": 30})
    view.show()
    assert end.text() == ""
    clock.seconds = 30.0
    view.show()
    assert end.text() == "\ngpu.burn 0:30, then 0:30\n"


def test_a_terminal_shows_a_table_that_is_gone_afterwards(made):
    """The table is drawn in its place again and again; the cursor is back in the end, and every row is erased."""
    view, end = made(terminal=True)
    view.begin(BURN, "host", {"seconds": 30})
    feed(view)
    view.show()
    first = end.text()
    assert first.startswith("\n")
    assert "gpu1" in first
    assert f"{ESCAPE}[1;31m" in first
    view.show()
    again = end.text()
    assert again.count(f"{ESCAPE}[1A") == again.count("\n") == first.count("\n") - 1
    end.screen.clear()
    cleared = end.text()
    assert "gpu1" not in cleared
    assert cleared.count(f"{ESCAPE}[2K") > first.count("\n") - 1
    assert cleared.endswith(f"{ESCAPE}[A{ESCAPE}[12C")
    assert f"{ESCAPE}[?25h" in cleared


@pytest.mark.parametrize("how", ["argument", "NO_COLOR"])
def test_colours_can_be_declined(how, made, monkeypatch):
    """Without colours the limits are in bold; the cursor still moves."""
    if how == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
    view, end = made(terminal=True, colour=how == "NO_COLOR")
    view.begin(BURN, "host", {"seconds": 30})
    feed(view)
    view.show()
    text = end.text()
    assert "gpu1" in text
    assert not re.search(r"\x1b\[[\d;]*3\dm", text)


def test_a_dumb_terminal_is_none(made, monkeypatch):
    """Where the cursor cannot be moved there are lines."""
    monkeypatch.setenv("TERM", "dumb")
    view, end = made(terminal=True)
    view.begin(BURN, "host", {"seconds": 60})
    view.show()
    assert end.text() == "|\ngpu.burn 0:00, then 1:00\n"


def test_a_lost_terminal_becomes_a_file_with_lines(made, tmp_path, clock):
    """When the descriptor is turned to a file, lines go there and no more table."""
    view, end = made(terminal=True)
    view.begin(BURN, "host", {"seconds": 60})
    view.show()
    with (tmp_path / "log").open("w") as log:
        os.dup2(log.fileno(), end.theirs)
    view.show()
    clock.seconds = 31.0
    view.show()
    end.screen.clear()
    assert (tmp_path / "log").read_text() == "\ngpu.burn 0:00, then 1:00\ngpu.burn 0:31, then 1:00\n"


def test_a_reader_that_went_away_ends_nothing(made):
    """What a closed pipe does not take is lost."""
    view, end = made(terminal=False)
    os.close(end.ours)
    end.ours = os.open(os.devnull, os.O_RDONLY)
    view.begin(BURN, "host", {"seconds": 60})
    view.show()


def test_loads_never_wait_for_the_terminal(made):
    """While the screen is written to, records are taken."""
    view, end = made(terminal=True)
    end.screen.draw = lambda _: seen.append(view._lock.locked())
    seen = []
    view.begin(BURN, "host", {"seconds": 60})
    view.show()
    assert seen == [False]


def test_a_view_that_fails_says_so_and_the_probe_goes_on(made):
    """One line instead of a table, and the block is not disturbed."""
    view, end = made(terminal=False)

    def fail(*_):
        message = "odd"
        raise KeyError(message)

    view._state.elapsed = fail
    with view.probe(BURN, "host", {"seconds": 60}):
        done = True
    assert done
    assert "live view failed, the run goes on (KeyError: 'odd')" in end.text()


def test_a_bench_shows_loads_with_their_parameters(profile):
    """Only probes that load the machine are shown, the profile's parameters in the place of the defaults."""
    shown = []

    class Progress:
        @contextmanager
        def probe(self, probe, device, params):
            shown.append((probe.name, device, dict(params)))
            yield
            shown.append("over")

    metrics = [Metric(f"lab.{name}", name, "W", "host") for name in ("load", "look")]
    probes = [
        Probe(m.id, "idle", "host", (m,), lambda site: [], params={"seconds": 5}, load=m.title == "load")
        for m in metrics
    ]
    changed = profile.model_copy(update={"params": {"lab.load": {"seconds": 7}}})
    bench = Bench(changed, Catalogue(probes), NullJournal(), World())
    bench.progress = Progress()
    for probe in probes:
        bench.run(probe, "host")
    assert shown == [("lab.load", "host", {"seconds": 7}), "over"]


class World:
    """A machine that nothing is asked of."""

    loads = frozenset()

    def refuses(self, script):
        """Refuse nothing."""
        return ""


CONFTEST = """
import os
from pytest_gpuaccept import Metric, Probe
VOLTS = Metric("lab.volts", "Supply", "W", "host")
AMPS = Metric("lab.amps", "Current", "W", "host")

def look(site):
    yield site.measured(AMPS, 12)

def measure(site):
    print("swallowed by the capture")
    open("started", "w").close()
    while not os.path.exists("go"): os.sched_yield()
    yield site.measured(VOLTS, 120)

def pytest_gpuaccept_probes():
    load = Probe("lab.meter", "idle", "host", (VOLTS,), measure, load=True, params={"seconds": 90})
    return [load, Probe("lab.look", "inventory", "host", (AMPS,), look)]
"""
SUITE = """
import pytest
@pytest.mark.spec("lab.volts")
def test_volts(host, accept):
    accept(host.probe("lab.meter"))

@pytest.mark.spec("lab.amps")
def test_amps(host, accept):
    accept(host.probe("lab.look"))
"""
LINE = '[line."lab.{}"]\nmin = 10\nunit = "W"\nsource = "order 1"\n'
PROFILE = 'title = "a lab"\n' + LINE.format("volts") + LINE.format("amps")


@pytest.fixture
def start(pytester):
    """Start pytest on a lab whose probe lasts until there is a file `go`."""
    pytester.makeini("[pytest]\naddopts = -p no:hypothesispytest -p no:cacheprovider\n")
    pytester.makepyfile(test_lab=SUITE)
    pytester.makeconftest(CONFTEST)
    pytester.mkdir("thresholds").joinpath("lab.toml").write_text(PROFILE)

    def run(*args, term="xterm", **more):
        argv = [sys.executable, "-m", "pytest", "--hw=lab", "--hw-evidence=ev", *args]
        environment = {**os.environ, "TERM": term, "COLUMNS": "80"}
        return subprocess.Popen(argv, cwd=pytester.path, env=environment, **more)

    return run


@pytest.mark.parametrize(
    ("args", "begun", "after"),
    [
        ("--tb=short", "test_lab.py .", "."),
        ("-q", ".", "."),
        ("-v", "test_lab.py::test_volts[lab.volts-host] ", "PASS"),
    ],
)
def test_pytest_on_a_terminal_shows_the_table_past_its_capture(args, begun, after, start, pytester):
    """The table appears while the probe runs, below pytest's line; pytest then goes on where it was."""
    ours, theirs = pty.openpty()
    process = start(args, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    before = until(ours, b"/1:30")
    (pytester.path / "go").touch()
    rest = until(ours, b"report: ")
    assert process.wait(timeout=30) == 0
    os.close(ours)
    plain = [re.sub(r"\x1b\[[\d;]*m", "", text) for text in (before, rest)]
    assert f"{begun}\r\n{ESCAPE}[?25llab.meter  0:0" in plain[0]
    assert f"{ESCAPE}[?25h\r{ESCAPE}[1A{ESCAPE}[2K{ESCAPE}[A{ESCAPE}[{len(begun)}C{after}" in plain[1]
    assert "swallowed" not in before + rest
    assert json.loads((pytester.path / "ev" / "manifest.json").read_text())["decision"] == "ACCEPTED"


def test_losing_the_terminal_turns_the_table_into_lines(start, pytester):
    """After a hangup in a load the run goes on; the file in the terminal's place has lines and no cursor moves."""
    ours, theirs = pty.openpty()
    process = start(stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    until(ours, b"/1:30")
    process.send_signal(signal.SIGHUP)
    log = pytester.path / "ev" / "terminal.log"
    while not log.exists() or "lab.meter" not in log.read_text():
        os.sched_yield()
    os.close(ours)
    (pytester.path / "go").touch()
    assert process.wait(timeout=30) == 0
    assert re.search(r"^lab\.meter 0:\d\d/1:30$", log.read_text(), re.MULTILINE)
    assert f"{ESCAPE}[2K" not in log.read_text()


@pytest.mark.parametrize("opened", [os.pipe, pty.openpty])
def test_pytest_without_a_terminal_announces_a_long_load(opened, start, pytester):
    """The line stands alone, past the capture, in its place between pytest's own; a dumb terminal is none."""
    ours, theirs = opened()
    process = start(stdout=theirs, term="dumb")
    os.close(theirs)
    text = until(ours, b"/1:30")
    (pytester.path / "go").touch()
    text += until(ours, b"report: ")
    assert process.wait(timeout=30) == 0
    os.close(ours)
    lines = text.splitlines()
    at = lines.index("test_lab.py .")
    assert re.fullmatch(r"lab\.meter 0:0\d/1:30", lines[at + 1])
    assert lines[at + 2].split() == [".", "[100%]"]
    assert ESCAPE not in text


def test_a_simulated_machine_is_not_watched(start, pytester):
    """Virtual time is over before anybody could look."""
    (pytester.path / "go").touch()
    process = start("--hw-sim", stdout=subprocess.PIPE)
    assert "0:00/" not in process.communicate(timeout=60)[0].decode()
