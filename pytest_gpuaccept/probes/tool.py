"""Tools that only look: what they print, or why they print nothing.

Owns how a tool's refusal is told: in one line, with its status and its own words. Knows no tool.
"""

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.world import Completed

TOOL_S = 30
LONGEST = 160
"""Characters of a refusal that are told."""


def printed(site: Site, *argv: str, remedy: str = "", timeout: float = TOOL_S) -> str:
    """Return what a tool prints; raises Unmeasurable, with the remedy, when it cannot start or fails."""
    done = site.world.command(argv, timeout=timeout)
    if done.status != 0:
        message = f"{' '.join(argv[:2])} ended with status {done.status}: {refusal(done)}"
        raise Unmeasurable(f"{message}: {remedy}" if remedy else message)
    return done.stdout


def refusal(done: Completed) -> str:
    """Return what a tool says of its failure, in one line."""
    return " ".join((done.stderr or done.stdout).split())[:LONGEST] or "without a word"
