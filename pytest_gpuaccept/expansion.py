"""From a test's markers to its items: one for each spec line on each device, or for each device.

Owns the expansion, for a sign-off and for simulated tests alike. Runs nothing.
"""

import fnmatch
from collections.abc import Iterator

import pytest

from pytest_gpuaccept.errors import did_you_mean
from pytest_gpuaccept.faces import FACES
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.profile import Profile

NO_LINE = "no-line"
Key = tuple[str, str]


class Expansion:
    """Tests against one profile; `mistakes` gathers what markers say wrong, all of it at once."""

    def __init__(self, profile: Profile, catalogue: Catalogue) -> None:
        """Take the profile that the tests are about."""
        self.profile, self.catalogue = profile, catalogue
        self.mistakes: list[str] = []

    def parametrize(self, metafunc: pytest.Metafunc) -> None:
        """Make one item of each (line, device) that a test's spec marker names."""
        marker = metafunc.definition.get_closest_marker("spec")
        if marker is None:
            self._parametrize_devices(metafunc)
            return
        where = metafunc.definition.nodeid
        keys = [key for pattern in self._patterns(marker, where) for key in self._matching(pattern, where)]
        params = [pytest.param(key, id="-".join(key)) for key in dict.fromkeys(keys)]
        metafunc.fixturenames += [] if "spec" in metafunc.fixturenames else ["spec"]
        metafunc.parametrize("spec", params or [pytest.param(None, id=NO_LINE)], indirect=True, scope="function")

    def _parametrize_devices(self, metafunc: pytest.Metafunc) -> None:
        for fixture in FACES.keys() & set(metafunc.fixturenames):
            devices = self.profile.devices.get(FACES[fixture], ())
            if len(devices) > 1:
                metafunc.parametrize(fixture, devices, indirect=True)

    def _patterns(self, marker: pytest.Mark, where: str) -> tuple[str, ...]:
        if not marker.args or marker.kwargs or not all(isinstance(a, str) for a in marker.args):
            self.mistakes.append(f"{where}: @pytest.mark.spec takes line ids or patterns, such as spec('gpu.gemm.*')")
            return ()
        return marker.args

    def _matching(self, pattern: str, where: str) -> Iterator[Key]:
        if not fnmatch.filter(self.catalogue.metrics, pattern):
            near = did_you_mean(pattern, self.catalogue.metrics)
            self.mistakes.append(f"{where}: spec {pattern!r} names no known line{near}")
        return (key for key in self.catalogue.expected(self.profile) if fnmatch.fnmatch(key[0], pattern))


def spec_key(item: pytest.Item) -> Key | None:
    """Return the (line, device) that an item decides, None when it decides none."""
    spec = getattr(item, "callspec", None)
    return spec.params.get("spec") if spec else None


def is_without_line(item: pytest.Item) -> bool:
    """Say whether an item's spec marker matched no line of the profile."""
    spec = getattr(item, "callspec", None)
    return spec is not None and "spec" in spec.params and spec.params["spec"] is None
