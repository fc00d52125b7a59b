"""An evidence channel is proven alive, or nothing that depends on it passes."""

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.kernel import channels
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import Completed


@pytest.fixture
def world(profile):
    """Return a healthy simulated machine of the commissioned kind."""
    return SimWorld(profile, Scenario("healthy"))


def site(world, profile, device="host"):
    """Return what a probe is given."""
    return Site(world, profile, device, {}, lambda _name, _text: "digest")


def log(world, profile):
    """Return what is said of the kernel log."""
    (outcome,) = channels.log_channel(site(world, profile))
    return outcome


def link(world, profile):
    """Return what is said of gpu3's link."""
    (outcome,) = channels.link_channel(site(world, profile, "gpu3"))
    return outcome


def test_a_log_that_shows_what_was_just_written_is_alive(world, profile):
    """The channel is proven by a line of our own, which is read back; it does not count as the kernel's."""
    found = log(world, profile)
    assert (found.value, found.conditions["mark"], found.conditions["source"]) == (True, "kernel log", "journalctl")
    assert any("channel check" in line.message for line in world.machine.log)


def test_a_log_that_nobody_fills_is_found(world, profile):
    """A journal that still shows the boot, and takes nothing down any more, is not alive."""
    world.machine.host.log_stopped = True
    with pytest.raises(Unmeasurable, match="nobody takes it down any more"):
        log(world, profile)


def test_a_log_that_may_not_be_read_names_the_group(world, profile):
    """Without permission the remedy is one line."""
    world.machine.host.log_readable = False
    with pytest.raises(Unmeasurable, match="group adm"):
        log(world, profile)


def test_a_log_without_its_first_lines_is_incomplete(world, profile):
    """A log that begins later than the boot may have lost anything."""
    del world.machine.log[0]
    with pytest.raises(Unmeasurable, match="lacks the first lines"):
        log(world, profile)


def test_a_log_that_lost_records_says_so(world, profile):
    """The journal's own admission is the reason."""
    world.machine.say("Missed 12 kernel messages")
    with pytest.raises(Unmeasurable, match="Missed 12"):
        log(world, profile)


class Denied(SimWorld):
    """A machine whose kernel log may not be written; `logger` writes to the journal, unless it is not there."""

    logger = True

    def mark(self, _text):
        """Refuse."""
        message = "/dev/kmsg cannot be written: Permission denied"
        raise Unmeasurable(message)

    def has(self, tool):
        """Say whether the machine has a tool."""
        return self.logger if tool == "logger" else super().has(tool)

    def command(self, argv, **more):
        """Write to the journal for `logger`."""
        if argv[0] == "logger":
            self.machine.say(f"{argv[2]}: {argv[3]}", facility=1)
            return Completed(tuple(argv), 0, "", "", 0.0)
        return super().command(argv, **more)


def test_without_root_the_journal_is_tried(profile):
    """Who may not write to the kernel's log writes to the journal that has taken it down."""
    assert log(Denied(profile, Scenario("healthy")), profile).conditions["mark"] == "journal"


def test_a_channel_that_cannot_be_tried_is_not_proven(profile):
    """Without any way to write a line, the remedy is root."""
    world = Denied(profile, Scenario("healthy"))
    world.logger = False
    with pytest.raises(Unmeasurable, match=r"cannot be tried.*run as root"):
        log(world, profile)


def test_a_link_whose_errors_are_seen_is_armed(world, profile):
    """Both ends and the root port are named."""
    found = link(world, profile)
    assert (found.value, found.conditions["port"]) == (True, "0000:c0:01.1")


@pytest.mark.parametrize(
    ("parameter", "value", "said"),
    [
        ("aer_reports", False, "Device Control"),
        ("aer_masked", True, "masks RxErr"),
        ("aer_counters", False, "counters"),
    ],
)
def test_a_link_whose_errors_go_unseen_is_not(world, profile, parameter, value, said):
    """What keeps an error from being seen is the reason, with the remedy."""
    setattr(world.machine.gpus[3].p, parameter, value)
    with pytest.raises(Unmeasurable, match=said):
        link(world, profile)


def test_another_cards_link_does_not_matter(world, profile):
    """Each link is proven by itself."""
    world.machine.gpus[0].p.aer_masked = True
    assert link(world, profile).value is True
