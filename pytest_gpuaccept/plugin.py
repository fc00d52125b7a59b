"""The pytest hooks, in the order in which pytest calls them; no arithmetic, no I/O of its own.

Without --hw nothing of this package beyond this module and the fixtures is imported.
"""

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from pytest_gpuaccept import hookspecs
from pytest_gpuaccept.fixtures import (  # noqa: F401 - found here by pytest
    accept,
    gpu,
    gpu_pair,
    gpus,
    host,
    llamacpp_engine,
    nic,
    nvme,
    simulated,
    spec,
    vllm_engine,
)

if TYPE_CHECKING:
    from pytest_gpuaccept.session import Session
    from pytest_gpuaccept.simulated_tests import SimulatedTests

SESSION: "pytest.StashKey[Session]" = pytest.StashKey()
SIMULATED: "pytest.StashKey[SimulatedTests]" = pytest.StashKey()

HW = "Profile of the ordered machine: a name, a path, or <N>x<card>; switches the plugin on"
REPLAY = "Judge what this evidence bundle recorded instead of measuring"
SIM = "Measure a simulated machine instead of this one"
EVIDENCE = "Folder for the evidence of this run (default: gpuaccept-evidence/PROFILE-TIME)"
EFFORT = "Parameter set of the loads; quick is at best ACCEPTED WITH REMARKS"
PYTHON = "The Python that was delivered with the machine: loads and engines run under it (default: this one)"
RESUME = "Go on with a run that was cut off (default: the newest one of this profile and machine)"
GO_ON = "Start the loads even when required lines cannot be decided here"


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hook for probes of one's own."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, all of which start with --hw."""
    group = parser.getgroup("gpuaccept", "acceptance of GPU machines")
    group.addoption("--hw", metavar="PROFILE", help=HW)
    group.addoption("--hw-replay", metavar="BUNDLE", action="append", help=REPLAY)
    group.addoption("--hw-sim", metavar="SCENARIO", action="append", nargs="?", const="healthy", help=SIM)
    group.addoption("--hw-evidence", metavar="DIR", help=EVIDENCE)
    group.addoption("--hw-effort", choices=("quick", "standard", "soak"), default="standard", help=EFFORT)
    group.addoption("--hw-python", metavar="EXE", help=PYTHON)
    group.addoption("--hw-resume", metavar="BUNDLE", nargs="?", const="", help=RESUME)
    group.addoption("--hw-go-on", action="store_true", help=GO_ON)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; with --hw, load the profile and the source of values."""
    config.addinivalue_line("markers", "spec(*lines): spec lines, by id or pattern, that this test decides")
    config.addinivalue_line("markers", "simulated(profile, scenario): gives this test a simulated machine of its own")
    if config.option.hw is None:
        given = {name: value for name, value in vars(config.option).items() if name.startswith("hw_")}
        if meant := [name for name, value in given.items() if value not in (None, False, "standard")]:
            message = f"--{meant[0].replace('_', '-')} needs --hw=PROFILE: what was ordered?"
            raise pytest.UsageError(message)
        return
    from pytest_gpuaccept.errors import InputError  # noqa: PLC0415 - only with --hw
    from pytest_gpuaccept.session import Session, as_usage_error  # noqa: PLC0415
    from pytest_gpuaccept.views import Views  # noqa: PLC0415

    try:
        config.stash[SESSION] = ours = Session(config)
        config.pluginmanager.register(Views(ours), "gpuaccept-views")
    except InputError as error:
        raise as_usage_error(error) from None


def pytest_report_header(config: pytest.Config) -> str | None:
    """Show profile, source and evidence folder."""
    session = config.stash.get(SESSION, None)
    return session.header() if session else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one item of each spec line on each ordered device."""
    if metafunc.definition.get_closest_marker("simulated"):
        _simulated_tests(metafunc.config).parametrize(metafunc)
    elif session := metafunc.config.stash.get(SESSION, None):
        session.parametrize(metafunc)


def _simulated_tests(config: pytest.Config) -> "SimulatedTests":
    from pytest_gpuaccept.simulated_tests import SimulatedTests  # noqa: PLC0415 - only with such tests

    if SIMULATED not in config.stash:
        config.stash[SIMULATED] = SimulatedTests(config)
    return config.stash[SIMULATED]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the items by phase; refuse two tests for one line; give simulated tests their machines."""
    if simulated_tests := config.stash.get(SIMULATED, None):
        simulated_tests.arrange(items)
    if session := config.stash.get(SESSION, None):
        session.arrange(items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Open the evidence before the first item."""
    ours = session.config.stash.get(SESSION, None)
    if ours and not session.config.option.collectonly:
        from pytest_gpuaccept.errors import InputError  # noqa: PLC0415 - only with --hw
        from pytest_gpuaccept.session import as_usage_error  # noqa: PLC0415

        try:
            ours.begin()
        except InputError as error:
            raise as_usage_error(error) from None
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Give every item of a spec line exactly one verdict."""
    report = yield
    if ours := item.config.stash.get(SESSION, None):
        ours.report(item, call, report)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport, config: pytest.Config) -> object:
    """Show the verdict as the word of an item."""
    if not config.stash.get(SESSION, None):
        return None
    from pytest_gpuaccept.session import status  # noqa: PLC0415 - only with --hw

    return status(report)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Generator[None, object, object]:
    """Decide before the terminal summary; say the decision after it."""
    ours = session.config.stash.get(SESSION, None)
    if ours:
        ours.finish(session, exitstatus)
    result = yield
    if ours:
        ours.last_word()
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of verdicts and the findings."""
    if ours := config.stash.get(SESSION, None):
        ours.summary(terminalreporter)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the signals back."""
    if ours := config.stash.get(SESSION, None):
        ours.release()
