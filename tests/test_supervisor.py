"""Children that misbehave: each end is told apart, named, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from pytest_gpuaccept import supervisor
from pytest_gpuaccept.errors import Unmeasurable

WRITES = (
    'import json, sys, os, time\nparams = json.loads(sys.stdin.readline())\nprint(json.dumps({"n": 1}), flush=True)\n'
)


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Give a child that is asked to end little time."""
    monkeypatch.setattr(supervisor, "GRACE_S", 0.3)


def load(code, seen=lambda _: None, params=None):
    """Start a child that runs `code` after its first record."""
    argv = [sys.executable, "-c", WRITES + textwrap.dedent(code)]
    return supervisor.load("burn", argv, params or {}, seen)


def after_first(running):
    """Wait until the child has written its first record."""
    while not running.records and not running.ended:
        time.sleep(0.005)


def gone(pid):
    """Say whether a process is gone, zombies included."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def soon_gone(pid):
    """Wait until a killed process is gone; its new parent has to notice."""
    while not gone(pid):
        time.sleep(0.005)


def test_records_come_as_they_are_written_and_to_whoever_looks_on():
    """A load's records are those that it wrote, in order, and each is shown once."""
    shown = []
    with load('print(json.dumps({"n": params["n"]}))', shown.append, {"n": 2}) as running:
        assert running.finish(timeout=30) == [{"n": 1}, {"n": 2}]
    assert shown == [{"n": 1}, {"n": 2}]


def test_a_question_is_answered():
    """What is told to a load is its next line."""
    code = 'answer = json.loads(sys.stdin.readline())\nprint(json.dumps({"got": answer["at"]}), flush=True)'
    with load(code) as running:
        running.tell({"at": 5.5})
        assert running.finish(timeout=30)[-1] == {"got": 5.5}


def test_telling_a_load_that_has_ended_is_no_error():
    """Nobody hears, nothing is raised."""
    with load("sys.exit(0)") as running:
        running.finish(timeout=30)
        running.tell({"at": 1})


def test_a_load_that_holds_the_gil_is_ended_at_its_deadline():
    """No Python code can run in it, and it is gone all the same."""
    with load("import ctypes; ctypes.PyDLL(None).sleep(1000)") as running:
        after_first(running)
        with pytest.raises(Unmeasurable, match=r"burn was still running after 0\.1 s and was ended"):
            running.finish(timeout=0.1)
        assert running.records == [{"n": 1}]
    assert gone(running._process.pid)


def test_a_load_that_ignores_the_request_to_end_is_killed():
    """SIGTERM is a request, SIGKILL is not."""
    with load(
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('{}', flush=True)\ntime.sleep(1000)"
    ) as running:
        while len(running.records) < 2:
            time.sleep(0.005)
        assert running.stop() == [{"n": 1}, {}]
    assert running._process.returncode == -signal.SIGKILL


def test_a_segfault_is_named():
    """The signal's name, and its last words."""
    code = "print('CUDA: illegal address', file=sys.stderr, flush=True)\nimport ctypes; ctypes.string_at(0)"
    with load(code) as running, pytest.raises(Unmeasurable, match="burn died of SIGSEGV: CUDA: illegal address"):
        running.finish(timeout=30)


def test_a_silent_death_is_named():
    """A status that is not 0 is no good end, even when nothing was said."""
    with load("os._exit(3)") as running, pytest.raises(Unmeasurable, match="ended with status 3, and said nothing"):
        running.finish(timeout=30)


def test_a_death_before_the_end_of_the_block_is_told_by_stop():
    """A load that runs until it is stopped must not have died meanwhile."""
    with load("os._exit(3)") as running:
        while not running.ended:
            time.sleep(0.005)
        with pytest.raises(Unmeasurable, match="status 3"):
            running.stop()


def test_a_last_record_of_death_gives_the_reason():
    """A script that knows what is wrong says so in its last record."""
    code = 'print(json.dumps({"kind": "death", "reason": "out of memory"}), flush=True); sys.exit(1)'
    with load(code) as running, pytest.raises(Unmeasurable, match="burn gave up: out of memory"):
        running.finish(timeout=30)


@pytest.mark.parametrize("rubbish", ["hello", "[1]", "", "\xff\x00", "{'a': 1}", "[" * 100_000])
def test_rubbish_ends_the_load(rubbish):
    """A line that is no record makes the whole load worthless, whatever follows."""
    with load(f"print({rubbish!r}, flush=True)\ntime.sleep(1000)") as running:
        while not running.ended:
            time.sleep(0.005)
        with pytest.raises(Unmeasurable, match="burn wrote what is no record: "):
            running.finish(timeout=30)


def test_an_endless_line_is_no_record():
    """A line without an end does not fill the memory."""
    with load("while True: sys.stdout.write('a' * 65536)") as running:
        while not running.ended:
            time.sleep(0.005)
        with pytest.raises(Unmeasurable, match="no record"):
            running.stop()


def test_a_load_that_writes_without_end_is_ended(monkeypatch):
    """Records beyond all measure end the load."""
    monkeypatch.setattr(supervisor, "MOST_BYTES", 10_000)
    with load("while True: print('{}')") as running:
        while not running.ended:
            time.sleep(0.005)
        with pytest.raises(Unmeasurable, match="writes without end"):
            running.stop()


def test_endless_chatter_on_stderr_does_not_block_the_load():
    """The error output is read and dropped but for its last lines."""
    code = "for n in range(200000): print('x' * 80, file=sys.stderr)\nprint('{}')"
    with load(code) as running:
        assert running.finish(timeout=60)[-1] == {}
        assert len(running._words) == supervisor.LAST_WORDS


def test_nothing_that_a_load_started_outlives_its_block():
    """A grandchild goes with the child."""
    code = """
        import subprocess
        p = subprocess.Popen(["sleep", "1000"])
        print(json.dumps({"pid": p.pid}), flush=True)
        time.sleep(1000)
    """
    with load(code) as running:
        while len(running.records) < 2:
            time.sleep(0.005)
    soon_gone(running.records[1]["pid"])


@pytest.fixture
def unkillable(monkeypatch):
    """Have no signal end a process, as when it waits for a hung driver, and wait little for it."""
    monkeypatch.setattr(supervisor, "KILL_S", 0.1)
    monkeypatch.setattr(supervisor, "_family", lambda _: [])
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    left = []
    yield left
    monkeypatch.undo()
    for process in left:
        process.kill()
        process.wait()


def test_a_load_that_cannot_be_killed_does_not_hold_up_the_run(unkillable):
    """A process that hangs in the driver ignores SIGKILL and keeps its pipes; the run says so and goes on."""
    with load("time.sleep(1000)") as running:
        unkillable.append(running._process)
        after_first(running)
        with pytest.raises(
            Unmeasurable, match=r"still running after 0\.1 s and cannot be killed: it hangs in the driver"
        ):
            running.finish(timeout=0.1)
        with pytest.raises(Unmeasurable, match="cannot be killed"):
            running.stop()


def test_a_helper_that_keeps_the_pipe_does_not_hold_up_the_run(monkeypatch):
    """A load that ended well has ended, also when something that it left behind still holds its output."""
    code = """
        import subprocess
        p = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        print(json.dumps({"pid": p.pid}), flush=True)
    """
    with load(code) as running:
        records = running.finish(timeout=30)
        while not running.ended:
            time.sleep(0.01)
    assert [set(record) for record in records] == [{"n"}, {"pid"}]
    os.kill(records[1]["pid"], signal.SIGKILL)


def test_ending_gives_up_on_a_process_that_does_not_go(monkeypatch):
    """Waiting for a killed process has an end."""
    monkeypatch.setattr(supervisor, "KILL_S", 0.05)
    with supervisor.child([sys.executable, "-c", "import time; time.sleep(1000)"]) as started:
        monkeypatch.setattr(os, "killpg", lambda *_: None)
        monkeypatch.setattr(supervisor, "_family", lambda _: [])
        supervisor.end(started)
        assert started.poll() is None
        monkeypatch.undo()


def test_a_load_that_cannot_be_started_is_named():
    """A wrong interpreter is a reason, not a traceback."""
    with (
        pytest.raises(Unmeasurable, match="/no/python cannot be started: No such file or directory"),
        supervisor.load("burn", ["/no/python"], {}, print),
    ):
        pass


CHILD = supervisor.__file__.replace("supervisor.py", "children/child.py")


def test_a_child_runs_without_the_package_and_without_its_libraries():
    """Under an interpreter that has nothing installed, the script starts and says what it lacks."""
    argv = [sys.executable, "-I", "-S", CHILD, "gemm"]
    with (
        supervisor.load(
            "gemm", argv, {"uuid": "GPU-1", "kind": "fp16", "warm_up_s": 1, "seconds": 1}, print
        ) as running,
        pytest.raises(Unmeasurable, match=r"gave up: No module named 'torch' under .*--hw-python"),
    ):
        running.finish(timeout=60)


def test_a_child_dies_with_its_parent():
    """A run that is killed leaves no load behind."""
    parent = textwrap.dedent(f"""
        import subprocess, sys
        argv = [sys.executable, {CHILD!r}, "telemetry"]
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
        print(child.pid, flush=True)
    """)
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, timeout=60, check=True)
    pid = int(done.stdout)
    soon_gone(pid)
