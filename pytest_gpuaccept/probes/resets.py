"""Whether the machine was started anew during the run, and during those that it resumes.

Owns the identity of a boot and what it says of a run that was cut off. Must not judge.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.since import BOOT_ID, begun

RESETS = Metric("host.resets", "System resets during the run", "count", "host", none_seen=True)

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
CUTS = "cuts"
"""Where the probes of a resumed run remember how those before it ended."""
NAME = "host.resets"


@dataclass(frozen=True, slots=True)
class Cut:
    """How a run ended that came to no decision: `reset` by a restart of the machine, `killed` without one.

    `phase`, `probe` and `device` are of the probe that ran, or, where `running` is false, of the last one that
    had ended; empty where none had begun. `boot` is the boot that the run began in, `last` the time of its last
    record, `folder` the name of its evidence.
    """

    how: Literal["reset", "killed", "unknown"]
    phase: str
    probe: str
    device: str
    running: bool
    boot: str
    last: str
    folder: str

    def when(self) -> str:
        """Return in words when it was cut off: `during gpu.burn on host (phase gpus)`."""
        if not self.probe:
            return "before the first probe"
        return f"{'during' if self.running else 'after'} {self.probe} on {self.device} (phase {self.phase})"


def is_boot(text: object) -> bool:
    """Say whether a text is the id of a boot, and not the reason why there is none."""
    return isinstance(text, str) and re.fullmatch(UUID, text) is not None


def boot(site: Site) -> str:
    """Return the id of this boot; raises Unmeasurable when there is none."""
    text = site.world.read(BOOT_ID)
    if not is_boot(text):
        message = f"{BOOT_ID} holds {text[:60]!r}, which is no boot id: restarts cannot be told"
        raise Unmeasurable(message)
    return text


def resets(site: Site) -> Iterator[Outcome]:
    """Yield how often the machine was started anew in this run, those that it resumes, and those that nobody ended."""
    cuts: Sequence[Cut] = site.memory.get(CUTS, ())
    seen = [f"system reset {cut.when()} of {cut.folder}" for cut in cuts if cut.how == "reset"]
    doubts = [f"whether the machine was reset {cut.when()} is unknown" for cut in cuts if cut.how == "unknown"]
    try:
        seen += _within(site)
    except Unmeasurable as error:
        doubts.append(str(error))
    if doubts and not seen:
        yield NotMeasured(RESETS.id, site.device, "; ".join(doubts))
        return
    before = " and of those before it that were cut off" if cuts else ""
    proof = f"the boot id was read at both ends of the run{before}"
    where = {"boot_id": str(site.before), "phases": ", ".join(cut.phase for cut in cuts if cut.how == "reset")}
    yield site.measured(RESETS, len(seen), proof=proof, conditions=where, note="; ".join([*seen, *doubts]))


def _within(site: Site) -> list[str]:
    """Return what is to be said of this run itself: nothing where its boot is the one that it began in."""
    began = begun(site, str)
    return [] if boot(site) == began else ["the boot id changed within the run: it was moved, or its machine restarted"]


PROBES = (Probe(NAME, "final", "host", (RESETS,), resets, before=boot),)
