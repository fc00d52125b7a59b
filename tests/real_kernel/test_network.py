"""Flaps of a real link, a veth pair, as the kernel counts them; needs root that may make network namespaces."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real_kernel
FORBIDDEN = ("Operation not permitted", "Permission denied", "Unknown device type", "Operation not supported")
SCRIPT = Path(__file__).with_name("veth.py")


@pytest.fixture
def namespace():
    """Make a network namespace; skipped, with the kernel's reason, where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("making a network namespace needs root")
    if shutil.which("ip") is None:
        pytest.skip("not installed: ip; apt-get install iproute2")
    name = f"gpuaccept-{os.getpid()}"
    allowed("netns", "add", name)
    try:
        allowed("netns", "exec", name, "ip", "link", "add", "try0", "type", "veth", "peer", "name", "try1")
        yield name
    finally:
        subprocess.run(("ip", "netns", "delete", name), check=True)


def allowed(*words):
    """Run ip; skip the test where the kernel forbids it or cannot do it, and fail for any other error."""
    done = subprocess.run(("ip", *words), capture_output=True, text=True, check=False)
    if any(reason in done.stderr for reason in FORBIDDEN):
        pytest.skip(f"no network namespace with a veth pair here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def happens(namespace):
    """Return what lets an event happen to a real link, and tells what the probe said."""

    def run(event):
        argv = ("ip", "netns", "exec", namespace, sys.executable, str(SCRIPT), event)
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def counts(said):
    """Return by how much the carrier's two counters grew."""
    ((start,), (end,)) = said["start"], said["end"]
    return end["changes"] - start["changes"], end["downs"] - start["downs"]


def test_a_quiet_virtual_link_proves_nothing(happens):
    """No change is counted, and a link without a wire is no proof of a quiet one."""
    said = happens("quiet")
    assert counts(said) == (0, 0)
    assert all("near is virtual" in outcome["reason"] for outcome in said["outcomes"].values())


@pytest.mark.parametrize(("event", "flaps", "changes"), [("flaps", 3, 6), ("down", 1, 1), ("route", 1, 2)])
def test_losses_of_a_real_carrier_are_counted(happens, event, flaps, changes):
    """Each loss counts once, the last one that stays too; also of the interface that the default route names."""
    said = happens(event)
    assert counts(said) == (changes, flaps)
    assert said["outcomes"]["nic.flaps"]["value"] == {"low": flaps, "high": None}
    assert said["start"][0]["interface"] == "near"


def test_a_bridge_leads_to_its_real_port(happens):
    """The flaps of the port below a bridge are counted, whatever the bridge itself says."""
    said = happens("bridge")
    assert [carrier["interface"] for carrier in said["start"]] == ["near"]
    assert said["outcomes"]["nic.flaps"]["value"] == {"low": 2, "high": None}


def test_a_real_change_is_told(happens):
    """A setting that the kernel changed is named with both values."""
    changed = happens("mtu")["outcomes"]["nic.unchanged"]
    assert (changed["value"], changed["note"]) == (False, "near: MTU 1500 -> 1400")


def test_a_real_interface_that_goes_away_has_a_reason(happens):
    """An interface that is deleted during the run has changed, and nothing else is said of it."""
    said = happens("gone")
    assert said["outcomes"]["nic.unchanged"]["value"] is False
    assert said["outcomes"].keys() == {"nic.unchanged"}
    assert "near went away during the run" in said["reason"]
