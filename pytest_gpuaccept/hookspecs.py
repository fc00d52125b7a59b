"""The hook by which a project adds probes of its own."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_gpuaccept.probe import Probe


def pytest_gpuaccept_probes() -> "Sequence[Probe]":  # type: ignore[empty-body]
    """Return probes to add to the shipped ones; called once, before collection."""
