"""A real Prometheus scrapes the exporter of a simulated machine, and is asked over its real API."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.services import monitoring
from pytest_gpuaccept.sim import monitoring as simulated
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import LiveWorld, SystemClock

pytestmark = pytest.mark.real_server

BINARY = shutil.which("prometheus")
DEADLINE_S = 60.0
CONFIG = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: prometheus
    static_configs: [{{targets: ["{own}"]}}]
  - job_name: dcgm
    static_configs: [{{targets: ["{exporter}"]}}]
"""
RULES = """
groups:
  - name: gpu
    rules:
      - {{alert: Hot, expr: "DCGM_FI_DEV_GPU_TEMP > {hot}"}}
      - {{alert: Xid, expr: "DCGM_FI_DEV_XID_ERRORS != 0"}}
      - {{alert: Replays, expr: "rate(DCGM_FI_DEV_PCIE_REPLAY_COUNTER[5m]) > 0.1"}}
"""


@pytest.fixture(scope="module")
def machine(profile):
    """Return a healthy simulated machine whose exporter is to be scraped."""
    return SimWorld(profile, Scenario("healthy"))


@pytest.fixture(scope="module")
def exporter(machine):
    """Return the address of a real server with the simulated machine's exporter."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            """Answer as the simulated exporter would now."""
            answer = simulated.answer(machine.machine, f"http://127.0.0.1:{simulated.DCGM_EXPORTER}{self.path}")
            body = answer.body.encode() if answer else b""
            self.send_response(answer.status if answer else 503)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", f"{len(body)}")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def free_port():
    """Return a port on loopback that nobody has right now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def address(exporter, tmp_path_factory):
    """Return the address of a real Prometheus that scrapes the exporter, once it is ready."""
    if BINARY is None:
        if "CI" in os.environ:
            pytest.fail("no prometheus on PATH: apt-get install prometheus")
        pytest.skip("no prometheus on PATH: apt-get install prometheus")
    folder, own = tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{free_port()}"
    (folder / "prometheus.yml").write_text(CONFIG.format(own=own, exporter=exporter))
    (folder / "rules.yml").write_text(RULES.format(hot=85))
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
               f"--web.listen-address={own}", "--storage.tsdb.retention.time=30d"]  # fmt: skip
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([BINARY, *options], stdout=log, stderr=log, cwd=folder)
        try:
            world = LiveWorld()
            until(lambda: server.poll() is not None or answers(world, f"http://{own}/-/ready"))
            assert server.poll() is None, (folder / "log").read_text()
            yield f"http://{own}"
        finally:
            server.terminate()
            server.wait(timeout=30)


def until(there, seconds=DEADLINE_S):
    """Look until something is there, and return it; fails after `seconds` s."""
    end = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < end, "it did not come in time"
        threading.Event().wait(0.05)
    return found


def answers(world, url):
    """Say whether a server answers 200."""
    try:
        return world.answer(url, timeout=5).status == 200
    except Unmeasurable:
        return False


class Both:
    """The live world's servers beside the simulated machine's driver."""

    def __init__(self, simulated):
        self.answer, self.nvml, self.read, self.clock = (
            LiveWorld().answer,
            simulated.nvml,
            simulated.read,
            SystemClock(),
        )


@pytest.fixture
def site(machine, profile, address, exporter):
    """Return what the probe is given: the real Prometheus, the served exporter."""
    params = {**monitoring.PARAMS, "prometheus": address, "dcgm_exporter": f"http://{exporter}", "fresh_seconds": 3}
    monitored = profile.model_copy(update={"params": {**profile.params, "host.monitoring": params}})
    return Site(Both(machine), monitored, "host", params, lambda name, text: "digest")


def value(site, name):
    """Return what the probe makes of one metric now: its value, None for an absence."""
    (metric,) = [metric for metric in monitoring.LOOKS if metric.id == f"monitoring.{name}"]
    found = monitoring.outcome(site, metric)
    return getattr(found, "value", None)


def test_a_real_server_is_read_as_the_simulated_one(site):
    """Targets, stored temperatures by UUID, alerts and retention are those that it was given."""
    until(lambda: value(site, "prometheus") is True)
    until(lambda: value(site, "series") is True)
    until(lambda: value(site, "alerts") == 3)
    assert value(site, "retention") == "30d"
    assert value(site, "dcgm_exporter") is True


def test_a_real_server_shows_the_heat_that_the_exporter_had(site, machine):
    """What was stored moves with the machine, card by card, and no further back than the start that is asked for."""
    at = replace(site, before=monitoring.started(site))
    until(lambda: cold(at))
    with machine.machine.runs("burn", {0: 1.0}):
        machine.clock.sleep(60)
        moved = until(lambda: movements(at)["gpu0"] > 20 and movements(at))
    assert {device for device, by in moved.items() if by > 10} == {"gpu0"}


def cold(site):
    """Say whether Prometheus stored a temperature of every GPU since the start: the heat comes at once here."""
    return all(outcome.note.endswith(" samples") for outcome in monitoring.moved(site))


def movements(site):
    """Return by how much each GPU's stored temperature moved."""
    return {outcome.device: outcome.value for outcome in monitoring.moved(site)}


def test_a_real_server_loses_a_card_that_its_exporter_lost(site, machine):
    """Three of four is no whole, as soon as the fourth one's last sample is too old."""
    machine.machine.host.exporter_gpus = 3
    try:
        until(lambda: value(site, "series") is False)
        assert value(site, "prometheus") is True
    finally:
        machine.machine.host.exporter_gpus = -1


def test_a_real_server_says_that_its_target_is_down(site, machine):
    """A target that answers 503 is down, with the server's word for it."""
    machine.machine.host.exporter = False
    try:
        until(lambda: value(site, "prometheus") is False)
        assert value(site, "dcgm_exporter") is False
    finally:
        machine.machine.host.exporter = True


def test_the_simulated_answers_have_the_shape_of_the_real_ones(site, machine, address):
    """Whatever the probe reads in a simulated answer is there in the real one, under the same key."""
    until(lambda: value(site, "alerts") == 3)
    for path in ("/api/v1/targets?state=active", "/api/v1/rules", "/api/v1/status/runtimeinfo"):
        real = json.loads(LiveWorld().answer(address + path, timeout=10).body)["data"]
        made = json.loads(machine.answer(f"http://127.0.0.1:9090{path}", timeout=10).body)["data"]
        assert missing(made, real) == []


def missing(made, real):
    """Return the keys of `made` that `real` lacks, of lists by their first item."""
    if isinstance(made, list) and isinstance(real, list) and made and real:
        return missing(made[0], real[0])
    if isinstance(made, dict) and isinstance(real, dict) and "__name__" not in made:
        return [key for key in made if key not in real] + [
            m for k in made if k in real for m in missing(made[k], real[k])
        ]
    return []
