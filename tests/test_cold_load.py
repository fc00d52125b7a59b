"""A cold read counts only when the file was not in memory and the drive moved it; a warm one is told as warm."""

import itertools
import os
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.children import cold_read as child
from pytest_gpuaccept.children.cold_read import File, cold_read
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.drives import cold_load
from pytest_gpuaccept.profile import DeviceFacts, Profile
from pytest_gpuaccept.world import Disk, LiveWorld

FUZZ = settings(deadline=None, database=None)
GIB = 2**30
MOUNT = "/mnt/models"
PARAMS = {**cold_load.PARAMS, "size_gib": 2, "passes": 2}
MOUNTINFO = f"36 21 259:0 / {MOUNT} rw,noatime shared:9 - ext4 /dev/nvme0n1 rw"


# the load ----------------------------------------------------------------------------------------


class Store:
    """A file that remembers what was done with it; half of it stays in memory after `evict`."""

    def __init__(self, clock):
        self.clock, self.did, self.share = clock, [], 0.0

    def write(self, size):
        """Take the size."""
        self.did.append(f"write {size}")
        self.share = 1.0

    def evict(self):
        """Forget half."""
        self.did.append("evict")
        self.share = 0.5

    def resident(self):
        """Return the share in memory."""
        return self.share

    def read(self):
        """Take two seconds."""
        self.did.append("read")
        self.clock.seconds += 2.0
        self.share = 1.0
        return 4096


def test_a_file_is_read_cold_and_then_warm(clock):
    """Before each cold pass it is evicted, before the warm one it is not; each pass waits to be let go."""
    store = Store(clock)
    script = cold_read(store, clock, size=4096, passes=2)
    records = [next(script)]
    with suppress(StopIteration):
        while True:
            clock.seconds += 60.0
            records.append(script.send({"go": True}))
    assert store.did == ["write 4096", "evict", "read", "evict", "read", "read"]
    passes = [record for record in records if "bytes" in record]
    assert passes == [
        {"kind": "cold", "resident": 0.5, "bytes": 4096, "seconds": 2.0},
        {"kind": "cold", "resident": 0.5, "bytes": 4096, "seconds": 2.0},
        {"kind": "warm", "resident": 1.0, "bytes": 4096, "seconds": 2.0},
    ]
    assert [record["awaits"] for record in records if "awaits" in record] == ["go", "go", "go", "end"]


@pytest.mark.parametrize("size", [1, 5000, 2 * child.MIB + 1])
def test_a_real_file_is_written_whole_and_read_to_its_end(tmp_path, size):
    """As many bytes come back as were written, all of them in memory then, and each chunk is of its own."""
    file = File(str(tmp_path / "cold.dat"))
    file.write(size)
    assert file.read() == size
    assert file.resident() == 1.0
    data = (tmp_path / "cold.dat").read_bytes()
    assert len(data) == size
    assert size < child.MIB or data[: child.MIB] != data[child.MIB : 2 * child.MIB]


def test_a_file_is_read_in_chunks_and_short_reads_go_on(tmp_path, monkeypatch):
    """A read that returns less than a chunk is not the end."""
    file = File(str(tmp_path / "cold.dat"))
    file.write(10_000)
    real, asked = os.preadv, []

    def short(number, buffers, offset):
        asked.append((len(buffers[0]), offset))
        return real(number, [memoryview(buffers[0])[:4096]], offset)

    monkeypatch.setattr(os, "preadv", short)
    assert file.read() == 10_000
    assert asked == [(child.CHUNK, offset) for offset in (0, 4096, 8192, 10_000)]


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_a_file_that_is_there_is_never_written_through(tmp_path, kind):
    """What exists, or a link to anywhere, is refused; what it leads to stays as it was."""
    other, path = tmp_path / "other", tmp_path / "cold.dat"
    if kind != "dangling":
        other.write_text("precious")
    path.symlink_to(other) if kind != "file" else other.rename(path)
    with pytest.raises(FileExistsError):
        File(str(path))
    assert [p.read_text() for p in (other, path) if p.is_file()] in (["precious"], ["precious"] * 2, [])
    assert other.exists() is (kind == "link")


def test_a_kernel_that_does_not_tell_what_is_in_memory_is_an_error(tmp_path, monkeypatch):
    """mincore that fails is no share of 0."""
    file = File(str(tmp_path / "cold.dat"))
    file.write(4096)
    monkeypatch.setattr(file, "_libc", type("Libc", (), {"mincore": staticmethod(lambda *_: -1)}))
    with pytest.raises(OSError, match="Invalid argument"):
        file.resident()


# the probe ---------------------------------------------------------------------------------------


class Load:
    """A load that writes its records one after the other, and waits where they say so."""

    def __init__(self, world, records):
        self.world, self.records, self._left = world, [], list(records)
        self._go()

    @property
    def ended(self):
        """Say whether all was written and nothing waits for an answer."""
        return not self._left and not self._waits

    def tell(self, message):
        """Go on to the next question."""
        self._go()

    def _go(self):
        self._waits = False
        while self._left and not self._waits:
            record = dict(self._left.pop(0))
            self.world.moved += record.pop("drive", 0)
            self.records.append(record)
            self._waits = "awaits" in record

    def finish(self, *, timeout):
        """Return the records, or die as told."""
        if self.world.death:
            raise Unmeasurable(self.world.death)
        return self.records


class World(LiveWorld):
    """A drive whose cold reads take a second each; `script` are the records of the load."""

    def __init__(self, root, clock):
        super().__init__(root)
        self.clock, self.script, self.moved, self.free, self.death = clock, [], 0, 100 * GIB, ""
        self.written, self.started, self.busy = 0, [], 0
        clock.sleep = self._sleep

    def _sleep(self, seconds):
        self.clock.seconds += seconds

    def disk(self, path):
        """Return what is behind the mount."""
        return Disk("259:0", self.free)

    def read(self, path):
        """Answer as /proc and /sys."""
        files = {
            "/proc/self/mountinfo": MOUNTINFO, "/sys/dev/block/259:0/uevent": "DEVNAME=nvme0n1",
            "/sys/dev/block/259:0/stat": f"0 0 {self.moved // 512} 0 0 0 {self.written // 512} 0 0 {self.busy} 0",
        }  # fmt: skip
        if path in files:
            return files[path]
        message = f"{path} cannot be read: No such file or directory"
        raise Unmeasurable(message)

    def names(self, path):
        """List the drive's folder."""
        return ["stat", "uevent"] if path.endswith("259:0") else []

    @contextmanager
    def folder(self, parent=None):
        """Name a folder."""
        yield f"{parent}/.gpuaccept-0"

    @contextmanager
    def start(self, script, params):
        """Play the records."""
        self.started.append((script, params))
        self.load = Load(self, self.script)
        yield self.load


def a_pass(kind="cold", drive=2 * GIB, **figures):
    """Return the records of one pass, from the question on."""
    record = {"kind": kind, "resident": 0.0 if kind == "cold" else 1.0, "bytes": 2 * GIB, "seconds": 1.0, **figures}
    return [{"kind": "about", "pass": kind, "awaits": "go"}, {**record, "drive": drive}]


END = [{"kind": "read", "awaits": "end"}]
WARM = a_pass("warm", drive=0, seconds=0.25)


@pytest.fixture
def world(tmp_path, clock):
    """Return a world with a healthy drive."""
    world = World(tmp_path, clock)
    world.script = [*a_pass(), *a_pass(seconds=1.1), *WARM, *END]
    return world


def run(world, **params):
    """Run the probe; return its only outcome."""
    facts = {"nvme0": DeviceFacts(mount=MOUNT, pcie_gen=4, pcie_width=4)}
    profile = Profile(name="box", title="Box", devices={"nvme": ("nvme0",)}, device=facts, lines={})
    [found] = cold_load.cold_load(Site(world, profile, "nvme0", PARAMS | params, lambda name, text: name))
    return found


def test_the_middle_of_the_cold_passes_counts(world):
    """Warm reads are stated beside it, as warm, and so is the time that the largest model takes."""
    found = run(world)
    rates = [2 * GIB / 1e9, 2 * GIB / 1.1e9]
    assert found.value == pytest.approx(sum(rates) / 2)
    assert (found.samples, found.unit, found.ceiling) == (2, "GB/s", pytest.approx(7.876))
    assert found.spread == pytest.approx(abs(rates[0] - rates[1]) / 2**0.5)
    assert found.conditions == {
        "size_gib": 2, "model_gb": 140.0, "predicted_s": round(140 / found.value, 1), "resident_before": 0.0,
        "warm_gbs": 8.59,
    }  # fmt: skip
    assert world.started == [("cold_read", {"path": f"{MOUNT}/.gpuaccept-0/cold.dat", "size": 2 * GIB, "passes": 2})]


def test_one_pass_has_no_spread(world):
    """A single pass is a sample of one."""
    world.script = [*a_pass(), *WARM, *END]
    assert (run(world).samples, run(world).spread) == (1, None)


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (a_pass(resident=0.4), r"40\.0% of the file was in memory before a cold read"),
        (a_pass(resident=0.01), r"1\.0% of the file was in memory"),
        (a_pass(drive=GIB), "of which the drive moved 1,073,741,824"),
        (a_pass(drive=0), "of which the drive moved 0"),
        (a_pass(bytes=GIB), r"a cold read of 2,147,483,648 bytes got 1,073,741,824,"),
        (a_pass(bytes=0), "a pass without share, bytes or seconds"),
        (a_pass(seconds=0.0), "a pass without share, bytes or seconds"),
        (a_pass(seconds=float("inf")), "a pass without share, bytes or seconds"),
        (a_pass(resident=-1), "a pass without share, bytes or seconds"),
        (a_pass(resident=None), "a pass without share, bytes or seconds"),
        (a_pass(bytes="all"), "a pass without share, bytes or seconds"),
        (a_pass(seconds=True), "a pass without share, bytes or seconds"),
        (a_pass()[1:], "the load told of 3 passes and asked 3 times"),
        (a_pass("warm"), None),
    ],
)
def test_one_pass_that_was_not_cold_voids_the_rate(world, spoilt, reason):
    """A median would hide it: what was in memory, short, or not from the drive is told."""
    world.script = [*a_pass(), *spoilt, *WARM, *END]
    if reason is None:
        assert run(world).samples == 1
        return
    with pytest.raises(Unmeasurable, match=reason):
        run(world)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([*WARM, *END], "it did not go its way"),
        ([*a_pass(), *WARM], "the load told of 2 passes and asked 2 times"),
        ([*a_pass(), WARM[0], {"kind": "warm"}, *END], "a pass without share, bytes or seconds"),
        ([], "the load told of 0 passes and asked 0 times"),
    ],
)
def test_a_load_that_did_not_do_all_is_no_measurement(world, script, reason):
    """A load without a cold pass, without its end, or with a warm pass of nothing is told."""
    world.script = script
    with pytest.raises(Unmeasurable, match=reason):
        run(world)


def test_a_load_that_dies_is_told_in_its_words(world):
    """No space, no file: the load's own last words are the reason."""
    world.death = "cold_read gave up: OSError: [Errno 28] No space left on device"
    with pytest.raises(Unmeasurable, match="No space left on device"):
        run(world)


def test_a_load_that_never_asks_is_left(world, monkeypatch):
    """The probe does not wait for ever."""
    world.script, world.death = [], "cold_read was still running after 30 s and was ended"
    monkeypatch.setattr(Load, "ended", False)
    with pytest.raises(Unmeasurable, match="still running"):
        run(world)
    assert cold_load.LONGEST_S <= world.clock.seconds < cold_load.LONGEST_S + 10


@pytest.mark.parametrize(("free", "started"), [(21 * GIB, False), (22 * GIB, True)])
def test_without_room_nothing_is_started(world, free, started):
    """The file and what is to stay free must both fit."""
    world.free = free
    if started:
        assert run(world).value > 0
        return
    with pytest.raises(Unmeasurable, match=r"has 21\.0 GiB free, the test needs 22\.0: lower size_gib"):
        run(world)
    assert world.started == []


@pytest.mark.parametrize("asks", [True, False])
def test_room_that_runs_out_meanwhile_ends_it(world, monkeypatch, asks):
    """Somebody else fills the drive: the load is left at once, whether it just asks or is still writing its file."""
    if not asks:
        world.script = []
        monkeypatch.setattr(Load, "ended", False)
    free = itertools.chain([100 * GIB] * 4, itertools.repeat(GIB))
    world.disk = lambda path: Disk("259:0", next(free))
    with pytest.raises(Unmeasurable, match=r"only 1\.0 GiB are left on /mnt/models: somebody else fills it"):
        run(world)
    assert not world.load.ended
    assert world.clock.seconds < 10


def test_a_drive_that_somebody_else_uses_is_not_tested(world, clock):
    """Nothing is started beside another's load."""
    clock.sleep = lambda seconds: (world._sleep(seconds), setattr(world, "busy", world.busy + int(500 * seconds)))
    with pytest.raises(Unmeasurable, match="somebody else uses the drive, 50 % of the time"):
        run(world)
    assert world.started == []


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=1)


@FUZZ
@given(
    figures=st.dictionaries(st.sampled_from(["resident", "bytes", "seconds", "kind"]), VALUES, min_size=1),
    place=st.integers(0, 2),
)
def test_any_record_is_a_rate_or_a_reason(tmp_path_factory, figures, place):
    """Whatever the child writes, a rate comes from sound figures, and nothing else is raised."""
    clock = type("Clock", (), {"seconds": 0.0, "monotonic": lambda self: self.seconds})()
    world = World(Path("/nonexistent"), clock)
    passes = [a_pass(), a_pass(), a_pass("warm", drive=0)]
    passes[place][1].update(figures)
    world.script = [*itertools.chain(*passes), *END]
    with suppress(Unmeasurable):
        assert run(world).value > 0
