"""Whoever looks at a drive while it works ends what endangers it, and compares only what can be compared."""

from types import SimpleNamespace

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probes.drives.drive import Backing, Counters, Drive, Mount
from pytest_gpuaccept.probes.drives.drive_watch import Look, Watch, busy_percent, thirds, wait_until_quiet
from pytest_gpuaccept.profile import DeviceFacts, Profile
from pytest_gpuaccept.world import Disk

GIB = 2**30
MOUNT = Mount("9:0", "/mnt", "ext4", "/dev/md0", ("rw",))
FACTS = {"mount": "/mnt/models", "pcie_gen": 4, "pcie_width": 4}
PARAMS = {
    "keep_free_gib": 20,
    "write_budget_gib": 10,
    "idle_seconds": 5,
    "idle_longest_seconds": 20,
    "foreign_percent": 2,
}


class World:
    """Drives in numbers: of each what it has moved, its temperatures in C, its link; None for what it has not."""

    def __init__(self, clock, count=1):
        self.clock, self.free, self.asked = clock, 100 * GIB, []
        self.moved, self.busy = [[0, 0] for _ in range(count)], [0] * count
        self.celsius, self.critical, self.links = [40.0] * count, [85.0] * count, [(16, 4)] * count
        clock.sleep = self._sleep

    def _sleep(self, seconds):
        self.clock.seconds += seconds

    def disk(self, path):
        """Return the room that is left."""
        self.asked.append(path)
        return Disk("9:0", self.free)

    def names(self, path):
        """Every controller has a sensor."""
        return ["hwmon1"]

    def read(self, path):
        """Answer as /sys."""
        if path == "/sys/dev/block/9:0/stat":
            read, wrote = (sum(side) // 512 for side in zip(*self.moved, strict=True))
            return f"0 0 {read} 0 0 0 {wrote} 0 0 0 0"
        n = int(path.split("/")[4].removeprefix("nvme").removeprefix("259:"))
        files = {
            "stat": "0 0 {} 0 0 0 {} 0 0 {}".format(*(moved // 512 for moved in self.moved[n]), self.busy[n]),
            "temp1_input": self.celsius[n] and f"{self.celsius[n] * 1000:.0f}",
            "temp1_crit": self.critical[n] and f"{self.critical[n] * 1000:.0f}",
            "current_link_speed": self.links[n] and f"{self.links[n][0]}.0 GT/s PCIe",
            "current_link_width": self.links[n] and str(self.links[n][1]),
        }
        if text := files[path.rpartition("/")[2]]:
            return text
        message = f"{path} cannot be read"
        raise Unmeasurable(message)


@pytest.fixture
def begin(clock):
    """Return a function that begins to watch some drives, and gives world and watch."""

    def make(count=1, facts=FACTS, params=PARAMS, **state):
        world = World(clock, count)
        for name, value in state.items():
            setattr(world, name, value)
        drives = tuple(Drive(f"259:{n}", f"nvme{n}n1", f"/sys/class/nvme/nvme{n}") for n in range(count))
        profile = Profile(
            name="box", title="Box", devices={"nvme": ("nvme0",)}, device={"nvme0": DeviceFacts(**facts)}, lines={}
        )
        site = SimpleNamespace(world=world, profile=profile, device="nvme0", params=params)
        return world, Watch(site, Backing(Disk("9:0", 0), MOUNT, "md0", drives))

    return make


def test_a_healthy_drive_is_looked_at_and_left_alone(begin):
    """Counters, temperatures and links of every look are kept; the mount itself is asked for room."""
    world, watch = begin(count=2)
    world.moved[1][0], world.celsius[1] = 4096, 61.5
    watch()
    assert [look.moved("read") for look in watch.looks] == [0, 4096]
    assert (watch.temperatures, watch.critical, watch.links, watch.over) == ([40.0, 61.5], 85.0, [(4, 4)], "")
    assert set(world.asked) == {"/mnt/models"}


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"free": 10 * GIB - 1}, "only 10.0 GiB are left on /mnt: somebody else fills it"),
        ({"celsius": [40.0, 82.0]}, "the drive has 82 C and is critical at 85 C: cool it"),
        ({"celsius": [68.0, 40.0], "critical": [70.0, 85.0]}, "the drive has 68 C and is critical at 70 C"),
        ({"celsius": [40.0, 82.5], "critical": [85.0, None]}, "the drive has 82.5 C and is critical at 85 C"),
        ({"celsius": [40.0, None]}, "the drive's temperature is lost: /sys/class/nvme/nvme1/hwmon1/temp1_input"),
        ({"moved": [[0, 6 * GIB], [0, 5 * GIB]]}, "11 GiB were written, write_budget_gib is 10"),
    ],
)
def test_what_endangers_the_drive_ends_it_for_good(begin, state, reason):
    """Room, heat, a lost sensor, and the budget: once one of them was seen, nothing more may run."""
    world, watch = begin(count=2)
    kept = {name: getattr(world, name) for name in state}
    for name, value in state.items():
        setattr(world, name, value)
    with pytest.raises(Unmeasurable) as first:
        watch()
    assert str(first.value).startswith(reason)
    for name, value in kept.items():
        setattr(world, name, value)
    with pytest.raises(Unmeasurable, match="^" + str(first.value).split(" ", maxsplit=1)[0]):
        watch()


@pytest.mark.parametrize(
    "state",
    [
        {"free": 10 * GIB}, {"celsius": [81.9]}, {"celsius": [81.9], "critical": [None]},
        {"moved": [[90 * GIB, 10 * GIB]]},
    ],
)  # fmt: skip
def test_what_is_just_allowed_goes_on(begin, state):
    """Half of the room to be kept, 3 C below critical, the whole budget, and any number of reads."""
    world, watch = begin()
    for name, value in state.items():
        setattr(world, name, value)
    watch()
    assert watch.over == ""


def test_a_drive_without_a_sensor_is_not_a_lost_one(begin):
    """What was never there cannot be lost: the test goes on, and says what is missing."""
    _, watch = begin(celsius=[None])
    watch()
    assert (watch.temperatures, watch.over) == ([], "")
    assert "temp1_input cannot be read" in watch.no_sensor


def test_a_run_without_a_budget_may_write(begin):
    """A probe that writes one file has none."""
    world, watch = begin(params={"keep_free_gib": 20})
    world.moved[0][1] = 10**15
    watch()
    assert watch.over == ""


def test_a_link_counts_while_the_drive_works(begin):
    """An idle link may save power, so only looks between which something was moved tell it; the worst drive counts."""
    world, watch = begin(count=2, links=[(2.5, 4)] * 2)
    watch()
    assert (watch.links, watch.no_link) == ([], "the drive was not seen at work")
    world.moved[0][0], world.links = 512, [(16, 4), (8, 2)]
    watch()
    watch()
    assert watch.links == [(3, 2)]


@pytest.mark.parametrize(
    ("facts", "links", "ceiling"),
    [
        (FACTS, [(16, 4), (16, 4)], 2 * 7876),
        (FACTS, [(16, 2), (8, 4)], 2 * 3940),
        (FACTS, [None, None], 2 * 7876),
        ({"mount": "/mnt"}, [(32, 4), (32, 4)], 2 * 15752),
        ({"mount": "/mnt"}, [None, None], None),
    ],
)
def test_the_ceiling_is_the_less_of_what_is_ordered_and_seen(begin, facts, links, ceiling):
    """Every drive of an array adds a link; where nothing is known there is no ceiling."""
    world, watch = begin(count=2, facts=facts, links=links)
    world.moved[0][1] = 512
    watch()
    assert watch.ceiling() == (ceiling and pytest.approx(ceiling, rel=1e-3))


def test_the_busiest_drive_of_an_array_counts():
    """A mirror reads from one side; the time is that of the job, and a job of no time was not busy."""
    before = Look(0.0, (Counters(0, 0, 1000), Counters(0, 0, 0)), Counters(0, 0, 0))
    after = Look(11.0, (Counters(0, 0, 10_500), Counters(0, 0, 7000)), Counters(0, 0, 0))
    assert busy_percent(before, after, 10.0) == 95
    assert busy_percent(before, after, 0.0) == 0


def test_thirds_are_compared_without_the_ends():
    """What a run lost shows between its first and last third; looks before, at the ends and after do not count."""
    written, looks = 0, []
    for second in range(24):
        rate = 0 if second < 3 else 1 if second in (3, 22) else 1000 if second < 13 else 250
        written += rate * 10**6 if second < 23 else 0
        looks.append(Look(float(second), (Counters(7, written, 0),), Counters(7, written, 0)))
    assert thirds(looks, "write") == (1000, 250)
    with pytest.raises(Unmeasurable, match="only 0 intervals were seen: too short a run"):
        thirds(looks, "read")


@pytest.mark.parametrize(("busy_until", "quiet"), [(0, True), (12, True), (17, False)])
def test_a_drive_in_use_is_waited_for_and_then_refused(begin, clock, busy_until, quiet):
    """Somebody else's work may end within the time given; a window without it is what counts."""
    world, watch = begin()

    def sleep(seconds):
        world.busy[0] += 150 if clock.seconds < busy_until else 0
        clock.seconds += seconds

    clock.sleep = sleep
    site = SimpleNamespace(world=world, params=PARAMS)
    if quiet:
        wait_until_quiet(site, watch)
        assert clock.seconds == (5 if busy_until == 0 else 20)
        return
    with pytest.raises(Unmeasurable, match="somebody else uses the drive, 3 % of the time before the test: stop it"):
        wait_until_quiet(site, watch)
