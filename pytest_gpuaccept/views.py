"""What follows the items one by one: the run, and pytest-html's page. Registered only with --hw."""

import html
from typing import Any

import pytest

from pytest_gpuaccept.session import Session

COLUMNS = ("line", "device", "value", "limit", "margin", "verdict")


class Views:
    """The plugin that pytest knows for one session with --hw."""

    def __init__(self, session: Session) -> None:
        """Take the session that collects them."""
        self._session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take an item's verdict into the run."""
        self._session.take(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_header(self, cells: list[str]) -> None:
        """Show the verdict's parts as columns of pytest-html's table."""
        cells[2:2] = [f"<th>{name}</th>" for name in COLUMNS]

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_row(self, report: pytest.TestReport, cells: list[str]) -> None:
        """Fill the columns; pytest-html inserts them as they are, so they are escaped here."""
        row: dict[str, Any] = getattr(report, "gpuaccept", None) or {}
        cells[2:2] = [f"<td>{html.escape(str(row.get(name) or ''))}</td>" for name in COLUMNS]

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_summary(self, prefix: list[str]) -> None:
        """Put the decision on top of pytest-html's page."""
        if decision := self._session.decision:
            prefix.append(f"<h2>{html.escape(str(decision))}</h2>")
            prefix.extend(f"<p>{html.escape(reason)}</p>" for reason in decision.reasons)
