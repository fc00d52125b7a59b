"""What the documents say is true: examples run, lists are complete."""

import re
import sys

import pytest

from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.world import LiveWorld

BLOCK = re.compile(r"```(?:python|toml)\n# (\S+)\n(.*?)```", re.DOTALL)


@pytest.fixture
def readme(request):
    """The README."""
    return (request.config.rootpath / "README.md").read_text()


@pytest.fixture
def blocks(request):
    """The code blocks of the page for test authors: (file name, text), in order."""
    return BLOCK.findall((request.config.rootpath / "docs" / "own-tests.md").read_text())


def test_the_readme_lists_every_probe_without_a_live_method(readme, catalogue):
    """What cannot be measured live is named, and nothing else is."""
    paragraph = readme.split('"no live method yet":')[1].split("Limits marked")[0]
    listed = set(re.findall(r"`([\w.]+)`", paragraph))
    assert listed == {probe.name for probe in catalogue.probes.values() if set(probe.loads) - LiveWorld.loads}
    assert all(probe.measure for probe in catalogue.probes.values())


def test_the_readme_names_every_option(readme, pytestconfig):
    """Each --hw option of the plugin stands in the README."""
    options = {o for group in pytestconfig._parser._groups for opt in group.options for o in opt.names()}
    assert all(option in readme for option in options if option.startswith("--hw"))


def test_the_readme_has_exactly_two_setup_commands(readme):
    """Two commands set the project up, and both start from nothing but Python."""
    commands = re.findall(r"^    (python3 -m venv .*)$", readme, re.MULTILINE)
    assert [command.rsplit(" ", 1)[1] for command in commands] == ["accept", "py"]


def test_a_new_metric_with_its_test_works_as_written(blocks, pytester):
    """The page's metric, test and line, under fifteen lines of Python, decide a line on this machine."""
    files = dict(blocks[1:4])
    python = [
        line for name, text in files.items() if name.endswith(".py") for line in text.splitlines() if line.strip()
    ]
    assert len(python) < 15
    (pytester.path / "thresholds").mkdir()
    for name, text in files.items():
        (pytester.path / name).write_text(text)
    result = pytester.runpytest("--hw=lab", "--hw-evidence=ev", "-p", "no:hypothesispytest")
    assert result.ret == 0
    assert [str(v).split(":")[0] for v in read_bundle(pytester.path / "ev").verdicts] == ["lab.swappiness[host] PASS"]


def test_a_new_line_in_toml_only_works_as_written(blocks, pytester):
    """The page's line is decided by the shipped suite, without a line of Python."""
    pytester.run(sys.executable, "-m", "pytest_gpuaccept", "init")
    name, text = blocks[0]
    (pytester.path / name).write_text(text)
    result = pytester.runpytest("acceptance", "--hw=lab", "--hw-evidence=ev", "-p", "no:hypothesispytest", "-v")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*::test_host[[]host.memory.visible-host[]] PASS*"])


def test_the_plain_assert_works_as_written(blocks, pytester):
    """The page's own test runs over the same table."""
    name, text = blocks[4]
    (pytester.path / name).write_text(text)
    (pytester.path / "thresholds").mkdir()
    (pytester.path / "thresholds" / "lab.toml").write_text(blocks[0][1])
    result = pytester.runpytest("--hw=lab", "--hw-evidence=ev", "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1)
