"""Views of a finished bundle: the sign-off page and the terminal table.

Reads bundles only: nothing here measures, judges or knows pytest.
"""

from pytest_gpuaccept.report.page import render_html
from pytest_gpuaccept.report.terminal import summary_text
from pytest_gpuaccept.report.words import WORDS

__all__ = ["WORDS", "render_html", "summary_text"]
