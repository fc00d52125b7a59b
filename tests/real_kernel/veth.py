"""What happens to a real link, in a network namespace of its own; prints what the probe made of it as JSON.

Run by `ip netns exec`, which also shows /sys of that namespace.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.network import nic, ports
from pytest_gpuaccept.world import LiveWorld

UP_WITHIN_S = 10.0
ENDED_AT_ONCE = 0.01


def ip(*words):
    """Change the network of this namespace."""
    subprocess.run(("ip", *words), check=True, capture_output=True)


def site(interface):
    """Return a probe's site on the live machine; without an interface the default route tells it."""
    facts = {"nic0": SimpleNamespace(interface=interface)} if interface else {}
    return Site(LiveWorld(), SimpleNamespace(device=facts, devices={"nic": ("nic0",)}), "nic0", {}, lambda *_: "digest")


def wait_until_up(own, *names):
    """Wait until the kernel calls each interface up, which it does a moment after it is."""
    end = time.monotonic() + UP_WITHIN_S
    for name in names:
        while own.world.read(f"{ports.NET}/{name}/operstate") != "up" and time.monotonic() < end:
            time.sleep(ENDED_AT_ONCE)


def flap(times):
    """Take the other end of the link down and up again."""
    for _ in range(times):
        ip("link", "set", "far", "down")
        ip("link", "set", "far", "up")


EVENTS = {
    "quiet": lambda: None,
    "flaps": lambda: flap(3),
    "down": lambda: ip("link", "set", "far", "down"),
    "mtu": lambda: ip("link", "set", "near", "mtu", "1400"),
    "gone": lambda: ip("link", "delete", "near"),
    "bridge": lambda: flap(2),
    "route": lambda: flap(1),
}


def bridge():
    """Put the near end into a bridge."""
    ip("link", "add", "bridge0", "type", "bridge")
    ip("link", "set", "near", "master", "bridge0")
    ip("link", "set", "bridge0", "up")


def route():
    """Send everything through the near end."""
    ip("address", "add", "192.0.2.1/24", "dev", "near")
    ip("route", "add", "default", "via", "192.0.2.2")


def main(event):
    """Make a link, read the start, let the event happen, print the outcomes and the carrier's counts."""
    ip("link", "add", "near", "type", "veth", "peer", "name", "far")
    for name in ("near", "far"):
        ip("link", "set", name, "up")
    {"bridge": bridge, "route": route}.get(event, lambda: None)()
    own = site({"bridge": "bridge0", "route": None}.get(event, "near"))
    wait_until_up(own, "near", *(["bridge0"] if event == "bridge" else []))
    start, outcomes, reason = nic.nic_start(own), [], ""
    EVENTS[event]()
    try:
        for outcome in nic.nic_link(replace(own, before=start)):
            outcomes.append(asdict(outcome))  # noqa: PERF401 - those before an exception count
    except Unmeasurable as error:
        reason = str(error)
    end = [] if event == "gone" else ports.read_carriers(own)
    json.dump({
        "outcomes": {outcome["metric"]: outcome for outcome in outcomes}, "reason": reason,
        "start": [asdict(carrier) for carrier in start.carriers], "end": [asdict(carrier) for carrier in end],
    }, sys.stdout)  # fmt: skip


main(sys.argv[1])
