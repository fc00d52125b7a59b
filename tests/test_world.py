"""The live world: commands come to an end with all that they started, and files say why they cannot be read."""

import contextlib
import datetime as dt
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from pytest_gpuaccept import supervisor, world
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.world import Completed, Disk, LiveWorld


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


def test_a_command_runs_in_another_session():
    """A Ctrl-C or a hangup of the terminal is ours to handle, not the child's."""
    script = "import os; print(os.getsid(0))"
    assert LiveWorld().command([sys.executable, "-c", script], timeout=60).stdout != f"{os.getsid(0)}\n"


def test_a_command_that_outlasts_its_deadline_is_named():
    """The deadline is kept and told."""
    with pytest.raises(Unmeasurable, match=r"sleep was still running after 0.01 s and was ended"):
        LiveWorld().command(["sleep", "60"], timeout=0.01)


@pytest.fixture
def family(tmp_path, monkeypatch):
    """Return a FIFO that a script and all its children hold open, so that its end tells that all are gone."""
    monkeypatch.setattr(supervisor, "GRACE_S", 0.2)
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


def test_sleeping_is_the_systems(monkeypatch):
    """The live clock lets real time pass, as long as it is told."""
    slept = []
    monkeypatch.setattr(world.time, "sleep", slept.append)
    LiveWorld().clock.sleep(0.25)
    assert slept == [0.25]


ECHO = """
import json, sys
params = json.loads(sys.stdin.readline())
print(json.dumps({"script": sys.argv[1], **params}), flush=True)
"""


@pytest.fixture
def echo(tmp_path, monkeypatch):
    """Have every load be one that repeats its name and its parameters."""
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    monkeypatch.setattr(world, "CHILD", script)


def test_a_load_is_a_child_that_is_told_its_script_and_its_parameters(echo):
    """The script's name and parameters arrive, its records come back."""
    with LiveWorld().start("burn", {"seconds": 1}) as load:
        assert load.finish(timeout=30) == [{"script": "burn", "seconds": 1}]


def test_loads_run_under_the_delivered_interpreter_and_sensors_under_this_one(echo, tmp_path):
    """The delivered interpreter has torch and not our libraries, this one the other way round."""
    delivered = tmp_path / "python"
    delivered.write_text(f'#!/bin/sh\nexec {sys.executable} "$1" delivered-"$2"\n')
    delivered.chmod(0o755)
    live = LiveWorld(python=str(delivered))
    ran = {}
    for script in ("burn", "telemetry"):
        with live.start(script, {}) as load:
            ran[script] = load.finish(timeout=30)[0]["script"]
    assert ran == {"burn": "delivered-burn", "telemetry": "telemetry"}


def test_whoever_watches_is_told_of_loads_and_their_records(echo):
    """Start, records and end, each with the script and its parameters."""
    told = []
    live = LiveWorld()
    live.watcher = SimpleNamespace(
        started=lambda *what: told.append(("started", *what)),
        record=lambda *what: told.append(("record", *what)),
        ended=lambda *what: told.append(("ended", *what)),
    )
    with live.start("burn", {"n": 1}) as load:
        load.finish(timeout=30)
    assert told[-1] == ("ended", "burn", {"n": 1})
    assert sorted(told[:-1]) == [
        ("record", "burn", {"n": 1}, {"script": "burn", "n": 1}),
        ("started", "burn", {"n": 1}),
    ]


def test_loads_that_need_torch_are_refused_where_there_is_none(tmp_path):
    """The interpreter is asked once, and its answer names the remedy; the sensors need no torch."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\necho asked >> {tmp_path}/asked\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    live = LiveWorld(python=str(bare))
    assert live.refuses("telemetry") == ""
    for script in ("burn", "gemm"):
        assert "No module named 'torch'" in live.refuses(script)
        assert live.refuses(script).endswith("name the delivered interpreter with --hw-python")
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_command_that_is_watched_ends_when_the_watch_raises():
    """A burn of the CPUs is ended with the cards that are too hot beside it."""
    looks = []

    def look():
        looks.append(1)
        message = "stopped: gpu0 reached 93 C"
        raise Unmeasurable(message)

    with pytest.raises(Unmeasurable, match="stopped: gpu0"):
        LiveWorld().command([sys.executable, "-c", "import time; time.sleep(100)"], timeout=100, watch=look)
    assert looks == [1]


def test_a_watched_command_that_ends_in_time_is_whole(monkeypatch):
    """Looking on changes nothing of what a command says, and its deadline holds."""
    monkeypatch.setattr(world, "LOOK_S", 0.05)
    live, sleepy = LiveWorld(), [sys.executable, "-c", "import time; print(1); time.sleep(0.2); print(2)"]
    assert live.command(sleepy, timeout=30, watch=lambda: None).stdout == "1\n2\n"
    with pytest.raises(Unmeasurable, match=r"still running after 0\.1 s"):
        live.command(sleepy, timeout=0.1, watch=lambda: None)


def test_a_driver_that_is_another_than_its_library_says_restart(monkeypatch):
    """After an update without a restart NVML names the mismatch, and the remedy stands beside it."""
    error = pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    def refuse():
        raise error

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    with pytest.raises(Unmeasurable, match=r"another than its library \(.*\): restart the machine"):
        LiveWorld().nvml()


def test_the_names_in_a_folder_are_sorted(tmp_path):
    """Files and folders below the root are listed by name alone, in one order on every machine."""
    for name in ("b", "a", "c"):
        (tmp_path / "sys/class/nvme" / name).mkdir(parents=True)
    (tmp_path / "sys/class/nvme/B").touch()
    assert LiveWorld(tmp_path).names("/sys/class/nvme") == ["B", "a", "b", "c"]


@pytest.mark.parametrize(("path", "cause"), [("/none", "No such file"), ("/file", "Not a directory")])
def test_a_folder_that_cannot_be_listed_is_named_with_its_cause(tmp_path, path, cause):
    """No folder is not an empty folder."""
    (tmp_path / "file").touch()
    with pytest.raises(Unmeasurable, match=f"{tmp_path}{path} cannot be listed: {cause}"):
        LiveWorld(tmp_path).names(path)


# http --------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """A server that knows two pages."""

    pages = {"/up": "20\u00b0C", "/odd": b"a\xffb"}

    def do_GET(self):
        """Answer with a page, or 404."""
        page = self.pages.get(self.path)
        self.send_response(404 if page is None else 200)
        self.end_headers()
        self.wfile.write(page.encode() if isinstance(page, str) else page or b"no such page")

    def log_message(self, *_):
        """Keep quiet."""


@contextlib.contextmanager
def serving(server):
    """Run a server in a thread for the length of a block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def served():
    """Return the address of a server on loopback."""
    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as address:
        yield address


@pytest.fixture
def _direct(monkeypatch):
    """Keep a proxy of the machine out of the test."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.mark.usefixtures("_direct")
@pytest.mark.parametrize(("page", "body"), [("/up", "20\u00b0C"), ("/odd", "a\ufffdb")])
def test_the_body_of_a_good_answer_is_text(served, page, body):
    """What a server answers comes back whole; bytes that are no UTF-8 cost nothing around them."""
    assert LiveWorld().answer(served + page, timeout=10).body == body


@pytest.mark.usefixtures("_direct")
def test_an_answer_that_is_not_200_says_so(served):
    """A page that says that there is none is told from one that is there."""
    assert str(LiveWorld().answer(f"{served}/none", timeout=10)) == "404 Not Found"


@pytest.mark.usefixtures("_direct")
def test_a_server_that_is_not_there_is_named():
    """A port on which nobody listens is told with its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/metrics"
        with pytest.raises(Unmeasurable, match=r"/metrics does not answer: .*refused"):
            LiveWorld().answer(url, timeout=10)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/", "127.0.0.1:9090", ""])
def test_only_http_is_asked(url):
    """An address from a profile cannot make the run read files."""
    with pytest.raises(Unmeasurable, match="is not an http address"):
        LiveWorld().answer(url, timeout=10)


@pytest.mark.usefixtures("_direct")
def test_a_server_that_does_not_speak_http_is_named():
    """What another service answers is no body and no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"220 mail ready\r\n")
                connection.recv(4096)

        thread = threading.Thread(target=greet)
        thread.start()
        try:
            with pytest.raises(Unmeasurable, match="does not answer"):
                LiveWorld().answer(f"http://127.0.0.1:{server.getsockname()[1]}/", timeout=10)
        finally:
            thread.join()


# disks and folders -------------------------------------------------------------------------------


def test_a_disk_is_the_device_and_the_room_behind_a_folder(tmp_path, monkeypatch):
    """The number is the file system's own, the room is what we may use."""
    number = tmp_path.stat().st_dev
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=9, used=2, free=5))
    assert LiveWorld().disk(str(tmp_path)) == Disk(f"{os.major(number)}:{os.minor(number)}", 5)


@pytest.mark.parametrize("name", ["missing", "link", "file"])
def test_a_disk_is_behind_a_folder_only(tmp_path, name):
    """A link, a file and nothing are no place to write below."""
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(Unmeasurable, match=f"{name} is not a folder"):
        LiveWorld().disk(str(tmp_path / name))


def test_a_disk_that_fails_is_named_with_the_cause(tmp_path, monkeypatch):
    """A file system that answers with an error has no free bytes, not zero of them."""

    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    with pytest.raises(Unmeasurable, match=f"{tmp_path}: Input/output error"):
        LiveWorld().disk(str(tmp_path))


def test_a_folder_is_ours_alone_and_gone_afterwards(tmp_path):
    """It lies below its parent, nobody else may look inside, and each is a new one."""
    before = os.umask(0)
    try:
        with LiveWorld().folder(str(tmp_path)) as first, LiveWorld().folder(str(tmp_path)) as second:
            assert {entry.name for entry in tmp_path.iterdir()} == {Path(first).name, Path(second).name}
            assert Path(first).stat().st_mode & 0o777 == 0o700
            assert first != second
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_for_short_lived_files_lies_where_such_files_lie(tmp_path, monkeypatch):
    """Without a parent the folder is made where the system keeps temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LiveWorld().folder() as folder:
        assert Path(folder).parent == tmp_path


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), Unmeasurable("no"), ConnectionRefusedError(111, "Connection refused")]
)
def test_what_happens_in_a_folder_is_not_said_of_the_folder(tmp_path, error):
    """An error of the block passes unchanged, also one of the system, and the folder goes with all in it."""

    def fail(folder):
        (Path(folder) / "deep/er").mkdir(parents=True)
        (Path(folder) / "deep/er/file").touch()
        raise error

    with pytest.raises(type(error)) as seen, LiveWorld().folder(str(tmp_path)) as folder:
        fail(folder)
    assert seen.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named_with_the_cause(tmp_path):
    """A parent that is missing is a reason, and is not made."""
    with (
        pytest.raises(Unmeasurable, match=f"{tmp_path}/none cannot be written: No such file"),
        LiveWorld().folder(str(tmp_path / "none")),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
