"""Tests with a machine of their own: `@pytest.mark.simulated("4x4090", "healthy,fault=...")`.

Owns the marker: what it says, which items it makes, and the run that each item gets. Such a test
decides no line of a sign-off.
"""

from typing import Any

import pytest

from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.expansion import Expansion, is_without_line, spec_key
from pytest_gpuaccept.faces import ItemState
from pytest_gpuaccept.fixtures import RUN, STATE
from pytest_gpuaccept.loader import load_profile
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.probes import SHIPPED as PROBES
from pytest_gpuaccept.run import Run, start
from pytest_gpuaccept.simulate import simulated

USAGE = "@pytest.mark.simulated takes a profile and, if it is not healthy, a scenario"


class SimulatedTests:
    """The simulated tests of one pytest session; profiles are read once."""

    def __init__(self, config: pytest.Config) -> None:
        """Take the probes of this session, the user's own included."""
        extra = config.hook.pytest_gpuaccept_probes()
        self.catalogue = Catalogue([*PROBES, *(probe for probes in extra for probe in probes)])
        self._signing_off, self._folder = config.option.hw is not None, config.invocation_params.dir
        self._expansions: dict[str, Expansion] = {}
        self._mistakes: list[str] = []

    def parametrize(self, metafunc: pytest.Metafunc) -> None:
        """Make the items of a simulated test; what is wrong is told by `arrange`, all of it."""
        try:
            self._expansion(metafunc.definition)[0].parametrize(metafunc)
        except InputError as error:
            self._mistakes.append(f"{metafunc.definition.nodeid}: {error}")

    def arrange(self, items: list[pytest.Item]) -> None:
        """Give every simulated item its machine; raises UsageError naming what is amiss."""
        marked = [item for item in items if item.get_closest_marker("simulated")]
        for item in marked:
            try:
                self._equip(item)
            except InputError as error:
                self._mistakes.append(f"{item.nodeid}: {error}")
        mistakes = [*self._mistakes, *(m for e in self._expansions.values() for m in e.mistakes)]
        if mistakes:
            raise pytest.UsageError("\n".join(dict.fromkeys(mistakes)))
        items[:] = [item for item in items if not (item in marked and is_without_line(item))]

    def _equip(self, item: pytest.Item) -> None:
        if self._signing_off:
            message = "simulated tests are no part of a sign-off: run them without --hw"
            raise InputError(message)
        key = spec_key(item)
        expansion, scenario = self._expansion(item)
        item.stash[RUN] = self._start(expansion, scenario)
        if key:
            item.stash[STATE] = ItemState(*key)

    def _start(self, expansion: Expansion, scenario: str) -> Run:
        source = simulated(expansion.profile, scenario, self._folder)
        if source.world is None:  # a simulated source always has one
            raise InputError(USAGE)
        run = start(expansion.profile, self.catalogue, source.world.clock, source, None)
        run.bench.begin()
        return run

    def _expansion(self, node: Any) -> tuple[Expansion, str]:  # noqa: ANN401 - a definition or an item
        profile, scenario = _said(node.get_closest_marker("simulated"))
        if profile not in self._expansions:
            self._expansions[profile] = Expansion(load_profile(profile, self.catalogue, self._folder), self.catalogue)
        return self._expansions[profile], scenario


def _said(marker: pytest.Mark) -> tuple[str, str]:
    """Return the marker's profile and scenario; raises InputError when it says something else."""
    match [*marker.args, *marker.kwargs.items()]:
        case [str() as profile]:
            return profile, "healthy"
        case [str() as profile, str() as scenario] | [str() as profile, ("scenario", str() as scenario)]:
            return profile, scenario
    raise InputError(USAGE)
