"""Whatever the tools of the upkeep print, it is read or refused, and no zero comes of nothing."""

import json
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.services import upkeep, volumes
from pytest_gpuaccept.world import Completed, SystemClock

FUZZ = settings(deadline=None, database=None)
DRIVER = ["libnvidia-compute-590", "nvidia-driver-590-open"]
VOLUME = {"name": "root", "type": "lvm", "fstype": "ext4", "size": 60}
MEMBER = {"name": "sda2", "type": "part", "fstype": "LVM2_member", "size": 100, "children": [VOLUME]}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["size", "name", "x"]), inner),
    max_leaves=4,
)  # fmt: skip
GROUP = {"vg_name": "a", "vg_size": "100", "vg_free": "25"}
WHOLE = {
    "vgs": {"report": [{"vg": [GROUP, GROUP]}], "log": []},
    "lsblk": {"blockdevices": [{"name": "sda", "fstype": None, "size": 500, "children": [MEMBER, MEMBER]}]},
    "list-units": [{"unit": "a.service"}, {"unit": "b.timer"}],
}
LINES = st.lists(st.sampled_from([
    "ii bash", "ii libnvidia-x", "Leap status : Normal", "NTPSynchronized=yes", "running", "LoadState=loaded", "x", "",
]), max_size=4).map("\n".join)  # fmt: skip


def damaged(node):
    """Return JSON values: a whole one of which one part, or all, is something else."""
    if not isinstance(node, dict | list) or not node:
        return JSON
    pairs = list(node.items() if isinstance(node, dict) else enumerate(node))
    one = st.sampled_from(pairs).flatmap(lambda pair: damaged(pair[1]).map(lambda other: (pair[0], other)))
    with_one = one.map(lambda other: {key: other[1] if key == other[0] else below for key, below in pairs})
    return JSON | with_one.map(lambda made: made if isinstance(node, dict) else list(made.values()))


TEXTS = st.text() | LINES | st.sampled_from(list(WHOLE.values())).flatmap(damaged).map(json.dumps)


@pytest.mark.parametrize(
    "parse",
    [
        volumes.parse_vgs, volumes.parse_lsblk, upkeep.parse_units, upkeep.parse_flag, upkeep.unfollowed,
        upkeep.properties, upkeep.driver_packages, lambda text: upkeep.pin(DRIVER, set(), text),
    ],
    ids=["vgs", "lsblk", "units", "flag", "leap", "properties", "packages", "pin"],
)  # fmt: skip
@FUZZ
@given(text=TEXTS)
def test_any_text_is_read_or_no_measurement(parse, text):
    """A parser answers with something or says why not."""
    with suppress(Unmeasurable):
        assert parse(text) is not None


class Printing:
    """A machine whose tools print what they are told, and that shows nothing else."""

    def __init__(self, printed):
        self.printed, self.clock = printed, SystemClock()

    def command(self, argv, *, timeout):
        """Print; systemctl by its verb."""
        word = argv[1] if argv[0] == "systemctl" else argv[0]
        return Completed(tuple(argv), 0, self.printed.get(word, ""), "", 0.1)

    def has(self, tool):
        """Say that every tool is there."""
        return True

    def read(self, path):
        """Show no file."""
        message = f"{path} cannot be read"
        raise Unmeasurable(message)

    names = read


TOOLS = [
    "vgs",
    "lsblk",
    "list-units",
    "is-system-running",
    "show",
    "timedatectl",
    "chronyc",
    "apt-config",
    "dpkg-query",
]


@FUZZ
@given(printed=st.dictionaries(st.sampled_from(TOOLS), TEXTS))
def test_whatever_the_tools_print_no_zero_comes_of_nothing(printed):
    """No failed unit needs systemd's own word that it is well, and free space a group or a device that has some."""
    site = Site(Printing(printed), SimpleNamespace(devices={}), "host", {}, lambda name, text: "digest")
    found = {outcome.metric: outcome for outcome in upkeep.upkeep(site)}
    units, space = found["service.failed_units"], found["host.lvm.unallocated"]
    assert isinstance(units, NotMeasured) or units.value or printed["is-system-running"].strip() in upkeep.UP
    assert isinstance(space, NotMeasured) or (0 <= space.value <= 100 and printed.keys() & {"vgs", "lsblk"})


@FUZZ
@given(pattern=st.text(max_size=30))
def test_any_pattern_of_the_blacklist_is_survived(pattern):
    """What is no regular expression leaves nothing out, and raises nothing."""
    dump = 'APT::Periodic::Unattended-Upgrade "1";\n' + f'Unattended-Upgrade::Package-Blacklist:: "{pattern}";\n'
    assert isinstance(upkeep.pin(DRIVER, set(), dump), str)
