"""Loads on all cards at once, beside telemetry: made ready, begun at one moment, guarded, ended, kept.

Owns how such loads are run, and what is known when one of them fails. Reduces nothing to values.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import Card, all_ready, ended
from pytest_gpuaccept.probes.gpus.guard import Guard
from pytest_gpuaccept.world import Load, Record

READY_S = 300.0
"""Seconds that loading torch from a cold disk, a CUDA context and a golden result may take on all cards."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What the loads of the cards wrote from `at` s on, the telemetry of all, and why a load is not a whole one."""

    at: float
    records: Mapping[str, Sequence[Record]]
    samples: Sequence[Record]
    died: Mapping[str, str]


def run_together(  # noqa: PLR0913 - what runs, on what, how it is watched, and what goes on meanwhile
    site: Site,
    name: str,
    found: Mapping[str, Card],
    script: str,
    job: Mapping[str, Any],
    *,
    watched: Mapping[str, Any],
    meanwhile: Callable[[Guard], Mapping[str, str]],
) -> Ran:
    """Run `script` on every card found; its records, and those of telemetry, are kept in the evidence as `name: card`.

    `meanwhile` has the time in which all run, and returns why loads that did not end well did not; when it
    raises Unmeasurable, what still runs is ended for that reason. What was written is kept whatever happens.
    """
    clock, loads = site.world.clock, dict[str, Load]()
    with site.world.start("telemetry", {"uuids": [own.uuid for own in found.values()], **watched}) as watch:
        try:
            with ExitStack() as stack:
                for device, own in found.items():
                    loads[device] = stack.enter_context(site.world.start(script, {"uuid": own.uuid, **job}))
                at, died = all_ready(loads, clock, READY_S)
                ready = {device: load for device, load in loads.items() if device not in died}
                guard = Guard.over(site, {device: found[device] for device in ready}, ready, watch)
                clock.sleep(max(0.0, at - clock.monotonic()))
                try:
                    died |= meanwhile(guard)
                except Unmeasurable as error:
                    died |= guard.ends(str(error))
            samples, blind = ended(watch)
        finally:
            keep(site, name, {"telemetry": watch.records, **{device: load.records for device, load in loads.items()}})
    died = dict.fromkeys(loads if blind else (), blind) | died
    return Ran(at, {device: load.records for device, load in loads.items()}, samples, died)


def keep(site: Site, name: str, written: Mapping[str, Sequence[Record]]) -> None:
    """Keep what loads wrote in the evidence, one JSON line a record."""
    for who, records in written.items():
        site.attach(f"{name}: {who}", "\n".join(json.dumps(record) for record in records))
