"""Simulated machines as the source of a run's values, and a sign-off of one as an object.

Owns where scenarios are looked for. Must not know pytest.
"""

from dataclasses import dataclass
from pathlib import Path

from pytest_gpuaccept.loader import SHIPPED
from pytest_gpuaccept.profile import Profile
from pytest_gpuaccept.run import Run, Source
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.verdict import Decision, Verdict
from pytest_gpuaccept.world import SystemClock


def simulated(profile: Profile, text: str, folder: Path) -> Source:
    """Return a simulated machine of `profile` as source; raises InputError when the scenario cannot be used."""
    scenario = load_scenario(text, folder, SHIPPED / "scenarios")
    return Source("simulated", SimWorld(profile, scenario, SystemClock().now()), scenario=text)


@dataclass(frozen=True, slots=True)
class Simulation:
    """The sign-off of one simulated machine, line by line or whole; keeps no evidence."""

    run: Run

    def verdict(self, line: str, device: str) -> Verdict:
        """Return the verdict of a line on a device; raises KeyError when the profile has no such line."""
        verdict = self.run.judge(line, device)
        self.run.settle(verdict)
        return verdict

    def verdicts(self) -> dict[tuple[str, str], Verdict]:
        """Return every verdict of the profile."""
        return {key: self.verdict(*key) for key in self.run.expected()}

    def blocking(self) -> list[str]:
        """Return the lines that stand in the way of acceptance, as `line[device]`."""
        return [f"{v.line}[{v.device}]" for v in self.verdicts().values() if v.blocks]

    def sign_off(self) -> Decision:
        """Judge every line and return the decision; it says SIMULATED."""
        self.verdicts()
        return self.run.finish("not judged")
