"""pytest-gpuaccept: the purchase contract of a GPU machine, as tests.

This module owns the public names; importing it imports nothing but the standard library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured
    from pytest_gpuaccept.metric import Metric
    from pytest_gpuaccept.probe import Probe, Site

__version__ = "0.1.0"

_HOME = {
    "Interval": "measurement",
    "Measurement": "measurement",
    "Metric": "metric",
    "NotMeasured": "measurement",
    "Probe": "probe",
    "Site": "probe",
}

__all__ = [
    "Interval",
    "Measurement",
    "Metric",
    "NotMeasured",
    "Probe",
    "Site",
    "__version__",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type of an attribute is the attribute's
    """Import a public name on first use, so that an unused plugin costs nothing."""
    if name not in _HOME:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
