"""The live world: commands come to an end with all that they started, and files say why they cannot be read."""

import datetime as dt
import os
import select
import subprocess
import sys
from types import SimpleNamespace

import pynvml
import pytest

from pytest_gpuaccept import world
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.world import Completed, LiveWorld


def sh(script, timeout=60):
    """Run a shell script as a command of the live world."""
    return LiveWorld().command(["sh", "-c", script], timeout=timeout)


def test_a_command_that_ends_is_reported_whole():
    """Status, both outputs and the command itself come back."""
    script = "echo said; echo moaned >&2; exit 3"
    done = sh(script)
    assert done == Completed(("sh", "-c", script), 3, "said\n", "moaned\n", done.seconds)


def test_its_duration_is_the_clocks():
    """Seconds are taken from the world's clock."""
    live = LiveWorld()
    live.clock = SimpleNamespace(monotonic=iter([10.0, 12.5]).__next__)
    assert live.command(["true"], timeout=60).seconds == 2.5


def test_a_killed_command_has_a_negative_status():
    """A signal is not an exit status of 0."""
    assert sh("kill -9 $$").status == -9


@pytest.mark.parametrize(("tool", "found"), [("sh", True), ("no-such-tool-anywhere", False)])
def test_a_tool_is_found_or_not(tool, found):
    """What is on PATH is there."""
    assert LiveWorld().has(tool) is found


@pytest.mark.parametrize("tool", ["no-such-tool-anywhere", os.devnull])
def test_a_command_that_cannot_start_is_named(tool):
    """A tool that is missing or no program is a reason, not a traceback."""
    with pytest.raises(Unmeasurable, match=f"{tool} cannot be started: "):
        LiveWorld().command([tool], timeout=60)


def test_much_output_on_both_channels_does_not_block():
    """A megabyte on each of the outputs is read while the command writes it."""
    done = sh("head -c 1048576 /dev/zero | tr '\\0' x; head -c 1048576 /dev/zero | tr '\\0' y >&2")
    assert (done.stdout, done.stderr) == ("x" * 2**20, "y" * 2**20)


def test_bytes_that_are_no_text_survive():
    """Invalid UTF-8 becomes a replacement character and costs nothing around it."""
    assert sh("printf 'a\\377b'").stdout == "a\ufffdb"


def test_a_command_speaks_english_and_hears_nothing(monkeypatch):
    """The locale is C whatever the user's is, the rest of the environment stays, stdin is empty."""
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("GPUACCEPT_TEST", "kept")
    assert sh('cat; echo "$LC_ALL $GPUACCEPT_TEST"').stdout == "C kept\n"


def test_a_command_leads_a_session_of_its_own():
    """A Ctrl-C or a hangup of the terminal is ours to handle, not the child's."""
    script = "import os; print(os.getsid(0) == os.getpid())"
    assert LiveWorld().command([sys.executable, "-c", script], timeout=60).stdout == "True\n"


def test_a_command_that_outlasts_its_deadline_is_named():
    """The deadline is kept and told."""
    with pytest.raises(Unmeasurable, match=r"sleep was still running after 0.01 s and was ended"):
        LiveWorld().command(["sleep", "60"], timeout=0.01)


@pytest.fixture
def family(tmp_path, monkeypatch):
    """Return a FIFO that a script and all its children hold open, so that its end tells that all are gone."""
    monkeypatch.setattr(world, "GRACE_S", 0.2)
    path = tmp_path / "alive"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield SimpleNamespace(path=path, gone=lambda: select.select([reader], [], [], 10)[0] and os.read(reader, 1) == b"")
    os.close(reader)


@pytest.fixture
def cut_short(monkeypatch):
    """Return a function that makes the next wait for a child fail once the child has said that it is ready."""
    communicate = subprocess.Popen.communicate

    def arrange(error):
        def once(child, *args, **kwargs):
            monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
            assert child.stdout.readline() == "ready\n"
            raise error

        monkeypatch.setattr(subprocess.Popen, "communicate", once)

    return arrange


POLITE = """import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path(sys.argv[1]).write_text("stopped")))
print("ready", flush=True)
signal.pause()
"""
CUTS = pytest.mark.parametrize(
    ("error", "seen"), [(subprocess.TimeoutExpired("sh", 60), Unmeasurable), (KeyboardInterrupt(), KeyboardInterrupt)]
)


@pytest.mark.timeout(30)
@CUTS
@pytest.mark.parametrize("signals", ["", "trap '' TERM;"], ids=["obedient", "ignores SIGTERM"])
def test_a_command_cut_short_is_gone_with_all_that_it_started(family, cut_short, error, seen, signals):
    """After a deadline and after Ctrl-C no child or grandchild is left, willing or not."""
    cut_short(error)
    with pytest.raises(seen):
        sh(f"exec 3>{family.path}; {signals} sh -c 'sleep 60 & echo ready; wait' & wait")
    assert family.gone()


@pytest.mark.timeout(30)
@CUTS
def test_an_orphan_neither_outlives_the_command_nor_holds_it_up(family, cut_short, error, seen):
    """A process that its parent left behind is no child any more, and is ended all the same."""
    cut_short(error)
    with pytest.raises(seen):
        sh(f"exec 3>{family.path}; (sleep 60 &); echo ready; sleep 60")
    assert family.gone()


@pytest.mark.timeout(30)
def test_what_a_finished_command_left_running_is_ended(family):
    """A command that ends by itself leaves nothing behind in the background."""
    assert sh(f"exec 3>{family.path}; sleep 60 >/dev/null 2>&1 & echo done").stdout == "done\n"
    assert family.gone()


@CUTS
def test_a_command_cut_short_may_clean_up(tmp_path, cut_short, error, seen):
    """A child is asked before it is killed, so that it can stop its workers."""
    cut_short(error)
    with pytest.raises(seen):
        LiveWorld().command([sys.executable, "-c", POLITE, str(tmp_path / "told")], timeout=60)
    assert (tmp_path / "told").read_text() == "stopped"


def test_a_file_is_read_under_the_root(tmp_path):
    """A path of the machine is looked for below the root; its text is stripped and always text."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/version").write_bytes(b" Linux \xff6.8 \n")
    assert LiveWorld(tmp_path).read("/proc/version") == "Linux \ufffd6.8"


@pytest.mark.parametrize(("path", "cause"), [("/proc/none", "No such file"), ("/proc", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named_with_its_cause(tmp_path, path, cause):
    """The reason carries the whole path and what the system said."""
    (tmp_path / "proc").mkdir()
    with pytest.raises(Unmeasurable, match=f"{tmp_path}{path} cannot be read: {cause}"):
        LiveWorld(tmp_path).read(path)


def test_without_a_driver_the_ways_out_are_named():
    """The reason says how to go on without a GPU."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(Unmeasurable, match=r"no NVIDIA driver .*--hw-sim and --hw-replay"):
            LiveWorld().nvml()
    else:
        pytest.skip("this machine has an NVIDIA driver")


def test_with_a_driver_the_binding_is_initialised(monkeypatch):
    """What comes back is the binding after its initialisation."""
    binding = SimpleNamespace(nvmlInit=lambda: setattr(binding, "ready", True), NVMLError=pynvml.NVMLError)
    monkeypatch.setitem(sys.modules, "pynvml", binding)
    assert LiveWorld().nvml().ready


def test_the_clock_is_utc_and_never_goes_backwards():
    """Times of a run can be compared with each other and with other machines'."""
    clock = LiveWorld().clock
    assert clock.now().tzinfo is dt.UTC
    assert clock.monotonic() <= clock.monotonic()
