"""What confines a process is found wherever the kernel says it, and named."""

import os
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.host import confines
from pytest_gpuaccept.world import LiveWorld
from tests.stand_ins import Files

FUZZ = settings(deadline=None, database=None)
GROUP = "/sys/fs/cgroup"
CPUS = list(range(64))
ALL = {"/proc/self/status": "Name:\tpytest\nCpus_allowed:\tff\nCpus_allowed_list:\t0-63\nMems_allowed_list:\t0"}
SECOND = {"/proc/self/cgroup": "0::/user.slice/run-1.scope"}
FIRST = {"/proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/61ae\n3:cpuset:/\n1:cpu,cpuacct:/docker/61ae\n0::/"}
MEMORY, CPU = f"{GROUP}/memory", f"{GROUP}/cpu"


def a_site(*files):
    """Return a site of these files."""
    return Site(Files({path: text for part in files for path, text in part.items()}), None, "host", {}, None)


def of_cpus(*files):
    """Return what keeps a process from 64 CPUs."""
    return confines.of_cpus(a_site(*files), CPUS)


@pytest.mark.parametrize(
    "files",
    [
        (), (ALL,), (ALL, SECOND), (ALL, FIRST),
        (ALL, SECOND, {f"{GROUP}/user.slice/cpu.max": "max 100000"}),
        (ALL, SECOND, {f"{GROUP}/cpu.max": "6400000 100000"}),
        (ALL, FIRST, {f"{CPU}/cpu.cfs_quota_us": "-1", f"{CPU}/cpu.cfs_period_us": "100000"}),
        (ALL, FIRST, {f"{CPU}/cpu.cfs_quota_us": "400000"}),
        ({"/proc/self/status": "Cpus_allowed_list:\t0-255\n"},),
        ({"/proc/self/status": "Name:\tpytest\n"},),
    ],
    ids=["no files", "no groups", "no quota", "first kind", "max", "all", "-1", "no period", "more than all", "old"],
)  # fmt: skip
def test_a_process_that_may_use_every_cpu_is_not_confined(files):
    """Without bounds, or with ones that are as wide as the machine, nothing is said."""
    assert of_cpus(*files) == ""


@pytest.mark.parametrize(("allowed", "count"), [("0-3", 4), ("0,2-3", 3), ("7", 1), ("60-99", 4)])
def test_an_affinity_is_found(allowed, count):
    """As of taskset, or of a container's cpuset: it says how many CPUs are left, and what to do."""
    said = of_cpus({"/proc/self/status": f"Cpus_allowed_list:\t{allowed}\nMems_allowed_list:\t0"})
    assert said.startswith(f"this process may use {count} of 64 CPUs (affinity or cpuset): ")


def test_an_affinity_that_is_no_list_is_named():
    """A kernel that writes something else there is not taken for one that sets no bounds."""
    with pytest.raises(Unmeasurable, match="'0x0f' is not a CPU list"):
        of_cpus({"/proc/self/status": "Cpus_allowed_list:\t0x0f\n"})


@pytest.mark.parametrize(
    "files",
    [
        (SECOND, {f"{GROUP}/user.slice/run-1.scope/cpu.max": "400000 100000"}),
        (SECOND, {f"{GROUP}/user.slice/cpu.max": "200000 50000"}),
        (SECOND, {f"{GROUP}/cpu.max": "400000 100000"}),
        (SECOND, {f"{GROUP}/user.slice/cpu.max": "800000 100000", f"{GROUP}/cpu.max": "400000 100000"}),
        (FIRST, {f"{CPU}/docker/61ae/cpu.cfs_quota_us": "400000", f"{CPU}/docker/61ae/cpu.cfs_period_us": "100000"}),
        (FIRST, {f"{CPU}/cpu.cfs_quota_us": "400000", f"{CPU}/cpu.cfs_period_us": "100000"}),
    ],
    ids=["own", "around it", "root of a container", "the tightest", "first kind", "first kind in a container"],
)
def test_a_quota_is_found_in_any_group_around_the_process(files):
    """A limit of any group around it holds, of both kinds; a container sees its own as the root."""
    assert of_cpus(ALL, *files).startswith("a control group gives this process the time of 4 of 64 CPUs (cpu.max)")


def test_half_a_cpu_less_than_all_is_a_quota():
    """A quota need not be whole CPUs."""
    assert "63.5 of 64" in of_cpus(ALL, SECOND, {f"{GROUP}/cpu.max": "6350000 100000"})


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ((), None), ((SECOND,), None),
        ((SECOND, {f"{GROUP}/memory.max": "max", f"{GROUP}/memory.current": "77"}), None),
        ((SECOND, {f"{GROUP}/memory.max": "1000", f"{GROUP}/memory.current": "400"}), 600),
        ((SECOND, {f"{GROUP}/memory.max": "1000", f"{GROUP}/memory.current": "1001"}), 0),
        ((SECOND, {f"{GROUP}/user.slice/memory.max": "700", f"{GROUP}/user.slice/memory.current": "400",
                   f"{GROUP}/memory.max": "1000", f"{GROUP}/memory.current": "400"}), 300),
        ((FIRST, {f"{MEMORY}/memory.limit_in_bytes": "9223372036854771712", f"{MEMORY}/memory.usage_in_bytes": "4"}),
         None),
        ((FIRST, {f"{MEMORY}/docker/61ae/memory.limit_in_bytes": "1000",
                  f"{MEMORY}/docker/61ae/memory.usage_in_bytes": "1"}), 999),
    ],
    ids=["no groups", "no limit", "max", "limit", "beyond it", "the tightest", "none of the first kind", "first kind"],
)  # fmt: skip
def test_the_memory_that_groups_leave(files, left):
    """The least that any group around the process leaves, and nothing where none limits it."""
    assert confines.memory_left(a_site(*files)) == left


def test_a_path_out_of_its_root_stays_below_it():
    """A process outside of the root that it sees has `..` in its path."""
    assert confines.folders(a_site({"/proc/self/cgroup": "0::/../../etc"}), "cpu") == [f"{GROUP}/etc", GROUP]


LINE = st.sampled_from(
    ["0::/a", "4:memory:/b", "1:cpu,cpuacct:/", "Cpus_allowed_list:\t0-3", "max 100000", "9 0", "-1"]
)
TEXT = st.text() | st.lists(LINE | st.text(max_size=9)).map("\n".join) | st.integers(-1, 2**70).map(str)
FILES = st.dictionaries(
    st.sampled_from([
        "/proc/self/status", "/proc/self/cgroup", f"{GROUP}/cpu.max", f"{GROUP}/a/cpu.max", f"{CPU}/cpu.cfs_quota_us",
        f"{CPU}/cpu.cfs_period_us", f"{GROUP}/memory.max", f"{GROUP}/memory.current", f"{MEMORY}/memory.limit_in_bytes",
        f"{MEMORY}/memory.usage_in_bytes", f"{MEMORY}/b/memory.limit_in_bytes", f"{MEMORY}/b/memory.usage_in_bytes",
    ]),
    TEXT,
)  # fmt: skip


@FUZZ
@given(FILES)
def test_any_files_are_bounds_or_none(files):
    """Whatever is written there, what is found is a sentence and a number of bytes, or Unmeasurable."""
    with suppress(Unmeasurable):
        assert of_cpus(files) == "" or " of 64 CPUs " in of_cpus(files)
    left = confines.memory_left(a_site(files))
    assert left is None or left >= 0


def test_this_process_on_one_cpu_is_confined():
    """What the real kernel says of a process that may use one CPU is found."""
    allowed = os.sched_getaffinity(0)
    site = Site(LiveWorld(), None, "host", {}, None)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        said = confines.of_cpus(site, [*sorted(allowed), 9999])
    finally:
        os.sched_setaffinity(0, allowed)
    assert said.startswith(f"this process may use 1 of {len(allowed) + 1} CPUs (affinity or cpuset)")
