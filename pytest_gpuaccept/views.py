"""What follows the items one by one: the run, and pytest-html's page. Registered only with --hw."""

import html

import pytest

from pytest_gpuaccept.evidence import row_verdict
from pytest_gpuaccept.measurement import show
from pytest_gpuaccept.report.words import margin_text, word
from pytest_gpuaccept.session import Session
from pytest_gpuaccept.verdict import Verdict

COLUMNS = ("line", "device", "measured", "limit", "margin", "verdict")


def cells_of(verdict: Verdict) -> list[str]:
    """Return a verdict as table cells, escaped: pytest-html inserts them as they are."""
    value = "-" if verdict.value is None else show(verdict.value, verdict.unit)
    texts = (verdict.line, verdict.device, value, verdict.limit, margin_text(verdict), word(verdict))
    return [f"<td>{html.escape(text)}</td>" for text in texts]


class Views:
    """The plugin that pytest knows for one session with --hw."""

    def __init__(self, session: Session) -> None:
        """Take the session that collects them."""
        self._session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take an item's verdict into the run."""
        self._session.take(report)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """What was deselected, lines or not, keeps the run from being accepted."""
        if items:
            self._session.miss(f"{len(items)} tests were deselected")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be collected holds tests that did not run."""
        if report.failed:
            self._session.miss(f"{report.nodeid} could not be collected")

    def pytest_keyboard_interrupt(self) -> None:
        """Ctrl-C, SIGTERM and pytest.exit() cut the run off, whatever exit status they ask for."""
        self._session.cut_off()

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_header(self, cells: list[str]) -> None:
        """Show the verdict's parts as columns of pytest-html's table."""
        cells[2:2] = [f"<th>{name}</th>" for name in COLUMNS]

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_row(self, report: pytest.TestReport, cells: list[str]) -> None:
        """Fill the columns."""
        row = getattr(report, "gpuaccept", None)
        cells[2:2] = cells_of(row_verdict(row)) if row else ["<td></td>"] * len(COLUMNS)

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_summary(self, prefix: list[str]) -> None:
        """Put the decision and every verdict on top of pytest-html's page, whose own table needs JavaScript."""
        run, decision = self._session.run, self._session.decision
        if run is None or decision is None:
            return
        head = "".join(f"<th>{name}</th>" for name in COLUMNS)
        rows = "".join(f"<tr>{''.join(cells_of(verdict))}</tr>" for verdict in run.verdicts.values())
        prefix.append(f"<h2>{html.escape(str(decision))}</h2><table><tr>{head}</tr>{rows}</table>")
