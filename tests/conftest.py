"""What several test files need: the shipped catalogue, a profile writer, a fixed clock."""

import datetime as dt
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_gpuaccept.session  # loaded once, not by every pytester run
import pytest_gpuaccept.simulate  # noqa: F401 - the same; numpy cannot be loaded twice
from pytest_gpuaccept.loader import SHIPPED as FILES
from pytest_gpuaccept.loader import load_profile
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.probes import SHIPPED

REPOSITORY = Path(__file__).parent.parent
LONGEST = "test_matrix_profiles.py"
"""Minutes of planted faults: first, and each profile a group of its own."""


def pytest_configure(config):
    """Know the marker of tests that start a server of somebody else's."""
    config.addinivalue_line("markers", "real_server: starts a real server, which CI must have installed")


def pytest_collection_modifyitems(config, items):
    """Let workers take whole files, which share what their fixtures made; of the longest, one profile at a time."""
    items.sort(key=lambda item: item.path.name != LONGEST)
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item):
    if item.path.name != LONGEST:
        return item.path.name
    callspec = getattr(item, "callspec", None)
    return f"{LONGEST} {callspec.params['name'] if callspec else '4x4090'}"


class FixedClock:
    """A clock that moves only when told to."""

    def __init__(self):
        self.seconds = 0.0

    def now(self):
        """Return a fixed day plus the seconds passed."""
        return dt.datetime(2026, 11, 23, tzinfo=dt.UTC) + dt.timedelta(seconds=self.seconds)

    def monotonic(self):
        """Return the seconds passed."""
        return self.seconds


@pytest.fixture
def clock():
    """A clock that moves only when told to."""
    return FixedClock()


@pytest.fixture(scope="session")
def catalogue():
    """The shipped probes and metrics."""
    return Catalogue(SHIPPED)


@pytest.fixture(scope="session")
def profile(catalogue):
    """The profile of the commissioned machine."""
    return load_profile("4x4090", catalogue, REPOSITORY)


@pytest.fixture(scope="session")
def items(catalogue, profile):
    """How many (line, device) pairs the profile of the commissioned machine has."""
    return len(list(catalogue.expected(profile)))


@pytest.fixture(scope="session")
def recording():
    """The bundle of the published case study."""
    return FILES / "recordings" / "case-study-2026-04-10"


@pytest.fixture
def write(tmp_path):
    """Write a profile into ./thresholds of an empty folder and return that folder."""

    def make(text, name="mine.toml"):
        file = tmp_path / "thresholds" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return tmp_path

    return make


@pytest.fixture(scope="session")
def case_study(tmp_path_factory, recording):
    """The bundle of a replay of the case study, judged by the profile of its machine."""
    folder = tmp_path_factory.mktemp("case-study") / "evidence"
    argv = [sys.executable, "-m", "pytest", "acceptance", "-p", "no:cacheprovider", "-q"]
    options = ["--hw=4x4090", f"--hw-replay={recording}", f"--hw-evidence={folder}"]
    done = subprocess.run([*argv, *options], cwd=FILES, capture_output=True, text=True, check=False)
    (folder / "terminal.txt").write_text(done.stdout + done.stderr)
    (folder / "status.txt").write_text(str(done.returncode))
    return folder
