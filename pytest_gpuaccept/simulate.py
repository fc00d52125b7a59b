"""Simulated machines as the source of a run's values, and a sign-off of one as an object.

Owns where scenarios are looked for. Must not know pytest.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pytest_gpuaccept.errors import InputError, did_you_mean
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
    world = SimWorld(profile, scenario, SystemClock().now())
    return Source("simulated", world, scenario=text, remarks=partial(_remarks, world))


def _remarks(world: SimWorld) -> list[str]:
    return [f"the planted fault {fault} changed nothing in this run" for fault in world.machine.unfelt()]


@dataclass(frozen=True, slots=True)
class Simulation:
    """The sign-off of one simulated machine, line by line or whole; keeps no evidence."""

    run: Run

    def verdict(self, line: str, device: str) -> Verdict:
        """Return the verdict of a line on a device; raises InputError when the profile expects none there."""
        expected = self.run.expected()
        if (line, device) not in expected:
            near = did_you_mean(f"{line}[{device}]", [f"{known}[{where}]" for known, where in expected])
            message = f"profile {self.run.profile.name} expects no {line}[{device}]{near}"
            raise InputError(message)
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
        """Judge every line and return the decision, which says SIMULATED and is true when it accepts."""
        self.verdicts()
        return self.run.finish("not judged")
