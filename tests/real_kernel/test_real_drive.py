"""The real fio, the real page cache and the real drive below a temporary folder: what they show is caught as told."""

import mmap
import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from pytest_gpuaccept.children.cold_read import File
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.drives import cold_load, drive, storage
from pytest_gpuaccept.probes.drives.drive import behind, drives_of
from pytest_gpuaccept.probes.drives.drive_watch import Watch
from pytest_gpuaccept.probes.drives.fio import Seen, flaws, parse_fio
from pytest_gpuaccept.profile import DeviceFacts, Profile
from pytest_gpuaccept.world import Disk, LiveWorld

pytestmark = pytest.mark.real_kernel
MIB, GIB = 2**20, 2**30
PARAMS = {
    **storage.PARAMS, "size_gib": 1, "seconds": 1, "warmup_seconds": 0, "verify_gib": 1, "keep_free_gib": 1,
    "idle_seconds": 1, "foreign_percent": 1000, "passes": 1, "model_gb": 140.0,
}  # fmt: skip
needs_fio = pytest.mark.skipif(shutil.which("fio") is None, reason="not installed: fio; apt-get install fio")


class Crowded(LiveWorld):
    """This machine, on whose drive something happens at the third look: nothing is free any more, or Ctrl-C."""

    def __init__(self, happens):
        super().__init__()
        self.happens, self.looks = happens, 0

    def disk(self, path):
        """Return the drive behind a folder, as long as nothing happens."""
        self.looks += 1
        if self.looks <= 2:
            return super().disk(path)
        if isinstance(self.happens, BaseException):
            raise self.happens
        return Disk("0:0", self.happens)


class Interrupting(Watch):
    """Whoever looks on, and sends fio a Ctrl-C as soon as the drive reads for it."""

    def __call__(self):
        """Look, and interrupt."""
        super().__call__()
        read = [look.moved("read") for look in self.looks[-2:]]
        if read[-1] - read[0] > 64 * MIB:
            for process in fios():
                process.send_signal(signal.SIGINT)


def fios():
    """Return the fio processes below this one."""
    return [child for child in psutil.Process().children(recursive=True) if child.name() == "fio"]


@pytest.fixture
def place(tmp_path):
    """Return a folder on a drive of this machine; skipped where a temporary folder is on none."""
    try:
        behind(LiveWorld(), str(tmp_path))
    except Unmeasurable as error:
        pytest.skip(f"no drive below the temporary folder: {error}")
    return tmp_path


def site(place, world=None):
    """Return the site of the drive below a folder."""
    facts = {"disk0": DeviceFacts(mount=str(place))}
    profile = Profile(name="box", title="Box", devices={"nvme": ("disk0",)}, device=facts, lines={})
    return Site(world or LiveWorld(), profile, "disk0", PARAMS, lambda name, text: name)


def rig(place, watch=Watch):
    """Return what a job needs, on files in the folder itself."""
    here = site(place)
    found = drives_of(here)
    return storage._Rig(here, found, watch(here, found), str(place))


def test_real_memory_is_no_drive(monkeypatch):
    """A tmpfs is refused by its place, and by what it is wherever it is mounted."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("this machine has no /dev/shm")
    with pytest.raises(Unmeasurable, match="/dev/shm/x is refused"):
        behind(LiveWorld(), "/dev/shm/x")
    monkeypatch.setattr(drive, "SECRET", ())
    with pytest.raises(Unmeasurable, match=r"/dev/shm is not on a block device \(tmpfs"):
        behind(LiveWorld(), "/dev/shm")


def test_the_drive_below_counts_what_is_written(place):
    """The drive that was found is the one whose counter grows when a file is synced."""
    world, size = LiveWorld(), 64 * MIB
    drives = behind(world, str(place)).drives
    before = sum(drive.counters(world, one.block).written for one in drives)
    File(str(place / "file")).write(size)
    assert sum(drive.counters(world, one.block).written for one in drives) - before >= size


@needs_fio
def test_reading_what_was_never_written_is_caught_by_the_drives_counter(place):
    """A fallocated file reads at the rate of memory with status 0 and error 0; the drive moved next to nothing."""
    with (place / "fio.dat").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, GIB)
    ready = rig(place)
    done = ready.run(job := ready.job("seq_read", "read", 1), "fio.dat", GIB, 60)
    assert done.status == 0
    with pytest.raises(
        Unmeasurable, match=r"not evidence: the drive moved [\d,]+ of the [\d,]+ bytes that fio counted"
    ):
        storage._evidence(ready, job, GIB)


@needs_fio
def test_a_real_interrupted_run_is_no_evidence(place):
    """fio that gets a Ctrl-C writes a whole report without an error, of a part of the time."""
    with (place / "fio.dat").open("wb") as file:
        file.writelines([bytes(16 * MIB)] * 64)
    ready = rig(place, Interrupting)
    done = ready.run(job := ready.job("seq_read", "read", 30), "fio.dat", GIB, 90)
    result = parse_fio(done.stdout, "read")
    assert result.error == 0
    assert f"ran {result.runtime_ms} ms of 30 s" in flaws(result, job, done.argv, Seen(result.io_bytes, 0, 100), None)
    with pytest.raises(
        Unmeasurable, match=r"ran \d+ ms of 30 s|fio ended with status 128: fio: terminating on signal 2"
    ):
        storage._evidence(ready, job, GIB)
    assert fios() == []


@needs_fio
@pytest.mark.parametrize("happens", [GIB // 4, KeyboardInterrupt()], ids=["full", "interrupted"])
def test_a_run_that_is_ended_leaves_no_process_and_no_file(place, happens):
    """When the drive fills up, or somebody gives up, the real fio is gone and its file too."""
    world = Crowded(happens)
    with pytest.raises((Unmeasurable, KeyboardInterrupt)) as end:
        list(storage.rates(site(place, world)))
    assert end.type is KeyboardInterrupt or "only 0.2 GiB are left" in str(end.value)
    assert (fios(), list(place.iterdir())) == ([], [])
    assert world.looks >= 3


def test_a_real_file_is_cold_after_it_was_evicted(place):
    """What was written is in memory, then hardly any of it, and after a read all of it again."""
    file = File(str(place / "cold.dat"))
    file.write(64 * MIB)
    assert file.resident() == 1.0
    file.evict()
    assert file.resident() < cold_load.COLD
    assert file.read() == 64 * MIB
    assert file.resident() == 1.0


def test_what_somebody_keeps_in_memory_is_not_cold(place):
    """Pages that a process has mapped are not evicted, and the share in memory says so."""
    file = File(str(place / "cold.dat"))
    file.write(MIB)
    with (place / "cold.dat").open("rb") as held, mmap.mmap(held.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert sum(view[:: mmap.PAGESIZE]) > 0
        file.evict()
        assert file.resident() > 0.9


def test_a_real_cold_load_comes_from_the_drive(place):
    """A child of the delivered interpreter reads the file cold, then warm from memory; nothing is left."""
    [found] = cold_load.cold_load(site(place))
    assert isinstance(found, Measurement)
    assert found.value > 0
    assert found.conditions["resident_before"] < cold_load.COLD
    assert found.conditions["warm_gbs"] > 0
    assert list(place.iterdir()) == []
