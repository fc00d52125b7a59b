"""PCIe errors of drives, networks and bridges count as a GPU's do, by counter or by log, and none is proven."""

from dataclasses import replace

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Interval, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.kernel import device_errors
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld

CORRECTED, UNCORRECTED = "host.pcie_errors.corrected", "host.pcie_errors.uncorrected"
DRIVE, GPU = "0000:21:00.0", "0000:c1:00.0"
SAID = "nvme 0000:21:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)"


@pytest.fixture
def world(profile):
    """Return a healthy simulated machine of the commissioned kind."""
    return SimWorld(profile, Scenario("healthy"))


def whole_run(world, profile, meanwhile=lambda: None):
    """Read the start, let a minute pass, then measure; return the outcomes by metric."""
    own = Site(world, profile, "host", {}, lambda name, text: "digest")
    start = device_errors.start(own)
    world.machine.advance(60)
    meanwhile()
    return {outcome.metric: outcome for outcome in device_errors.device_errors(replace(own, before=start))}


def test_a_quiet_run_is_proven_quiet(world, profile):
    """The counters of every other device that has some, and the log, were read at both ends."""
    found = whole_run(world, profile)
    assert [found[metric].value for metric in (UNCORRECTED, CORRECTED)] == [0, 0]
    assert "the counters of " in found[CORRECTED].proof
    assert found[CORRECTED].conditions["devices"] > 0


@pytest.mark.parametrize(("fault", "metric"), [("device_errors", UNCORRECTED), ("device_corrected", CORRECTED)])
def test_a_drives_error_counts_with_its_address(world, profile, fault, metric):
    """Each severity is told apart, and the note names who had it."""

    def fail():
        setattr(world.machine.host, fault, 1)
        with world.machine.runs("fio"):
            world.machine.advance(60)

    found = whole_run(world, profile, meanwhile=fail)
    assert {m: o.value > 0 for m, o in found.items()} == {m: m == metric for m in (UNCORRECTED, CORRECTED)}
    assert DRIVE in found[metric].note


def test_an_error_that_only_the_log_tells_counts(world, profile):
    """A counter that does not move, and a kernel that says so all the same."""
    found = whole_run(world, profile, meanwhile=lambda: world.machine.say(SAID, priority=4))
    assert found[CORRECTED].value == 1
    assert found[CORRECTED].note == f"{DRIVE} 1"


def test_none_counted_by_devices_that_do_not_report_is_not_proven(world, profile):
    """What is not asked to tell its errors tells none."""
    world.machine.host.devices_report = False
    found = whole_run(world, profile)
    assert all(f"{DRIVE} does not report" in outcome.reason for outcome in found.values())


def test_a_device_that_does_not_say_what_it_is_proves_nothing(world, profile, monkeypatch):
    """Whether it must report its errors is not known then, and that is no reason not to ask."""
    read = world.read

    def refuse(path):
        if path.endswith(f"{DRIVE}/uevent"):
            message = f"{path} cannot be read: Permission denied"
            raise Unmeasurable(message)
        return read(path)

    monkeypatch.setattr(world, "read", refuse)
    assert all("Permission denied" in getattr(outcome, "reason", "") for outcome in whole_run(world, profile).values())


def test_none_counted_where_the_kernel_does_not_listen_is_not_proven(world, profile):
    """The counters are there all the same, and stay at zero."""
    world.machine.host.aer_armed = False
    found = whole_run(world, profile)
    assert all("does not listen to" in outcome.reason for outcome in found.values())


def test_a_gpus_error_is_not_counted_here(world, profile):
    """It has its own lines, and counts once."""
    world.machine.gpus[3].p.aer_corrected_per_min = 30.0
    world.machine.gpus[3].p.aer_uncorrected = 2
    found = whole_run(world, profile, meanwhile=lambda: world.machine.say(SAID.replace(DRIVE, GPU), priority=4))
    assert [found[metric].value for metric in (UNCORRECTED, CORRECTED)] == [0, 0]


def test_without_a_log_none_is_not_proven(world, profile):
    """Devices without counters tell their errors by the log alone."""
    world.machine.host.log_readable = False
    assert all("group adm" in outcome.reason for outcome in whole_run(world, profile).values())


def test_a_device_that_began_anew_proves_nothing_and_hides_nothing(world, profile, monkeypatch):
    """A counter that went down, or is gone, is named; what another one counted stands."""
    other = "0000:21:00.9"
    seen = iter([{DRIVE: 5, other: 0}, {DRIVE: 1, other: 2}, {DRIVE: 5}, {}])
    moment = {}

    def counts(_site, address):
        if address not in moment["now"]:
            raise Unmeasurable(address)
        return {"corrected": moment["now"][address], "uncorrected": 0}

    names = world.names
    monkeypatch.setattr(world, "names", lambda path: [DRIVE, other] if path.endswith("pci/devices") else names(path))
    monkeypatch.setattr(device_errors.aer, "counts_of", counts)
    monkeypatch.setattr(device_errors, "gpu_ends", lambda _site: ())
    moment["now"] = next(seen)
    found = whole_run(world, profile, meanwhile=lambda: moment.update(now=next(seen)))
    assert found[CORRECTED].value == Interval(2, None)
    assert isinstance(found[UNCORRECTED], NotMeasured)
    assert f"the counters of {DRIVE} are gone, or began anew" in found[UNCORRECTED].reason
    moment["now"] = next(seen)
    with pytest.raises(Unmeasurable, match="no PCI device but the GPUs counts errors"):
        whole_run(world, profile, meanwhile=lambda: moment.update(now=next(seen)))


def test_a_start_in_another_boot_is_no_start(world, profile):
    """What was counted before a restart is gone with it."""

    def restart():
        world.machine.host.boot = 1

    with pytest.raises(Unmeasurable, match="started anew"):
        whole_run(world, profile, meanwhile=restart)
