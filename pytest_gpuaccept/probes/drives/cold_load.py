"""How fast a model comes from the drive: a cold buffered read of a file that the test wrote.

Owns what makes such a read cold: hardly a page in memory before, and as many bytes from the drive as from
the file. Loading a real engine is the business of engines/.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.drives.drive import drives_of
from pytest_gpuaccept.probes.drives.drive_watch import Watch, wait_until_quiet
from pytest_gpuaccept.probes.drives.fio import FROM_DEVICE
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Load, Record

LOAD = Metric("nvme.cold_load", "Cold buffered read, as models load", "GB/s", "nvme", max_cv=0.25)

PARAMS: dict[str, Scalar] = {
    "size_gib": 8, "passes": 3, "model_gb": 140.0, "keep_free_gib": 20, "idle_seconds": 5, "idle_longest_seconds": 30,
    "foreign_percent": 2,
}  # fmt: skip
"""`model_gb` is the largest model for which the load time is predicted."""

GIB = 2**30
COLD = 0.01
"""Share of the file that may be in memory before a cold read."""
LONGEST_S = 1800.0
END_S = 30.0
"""Seconds that the load may take to end once it has done everything."""
LOOK_S, WATCH_S = 0.05, 0.5
MOST = 1e18
"""From which on a figure of a load is none."""


def cold_load(site: Site) -> Iterator[Outcome]:
    """Yield the rate of a cold read; raises Unmeasurable when the file was in memory, or the drive did not move it."""
    found = drives_of(site)
    mount, size = site.profile.device[site.device].mount or "", int(site.params["size_gib"]) * GIB
    needed = size + float(site.params["keep_free_gib"]) * GIB
    if found.disk.free < needed:
        message = f"{mount} has {found.disk.free / GIB:.1f} GiB free, the test needs {needed / GIB:.1f}: lower size_gib"
        raise Unmeasurable(message)
    watch = Watch(site, found)
    wait_until_quiet(site, watch)
    with site.world.folder(mount) as folder:
        plan = {"path": f"{folder}/cold.dat", "size": size, "passes": int(site.params["passes"])}
        with site.world.start("cold_read", plan) as load:
            moved = _follow(site, load, watch)
            records = load.finish(timeout=END_S)
    passes = [record for record in records if record.get("kind") in ("cold", "warm")]
    cold = [_rate(record, size, from_drive) for record, from_drive in _cold(passes, moved)]
    ceiling, rate = watch.ceiling(), statistics.median(cold)
    yield site.measured(
        LOAD, rate, samples=len(cold), conditions=_conditions(site, passes, rate),
        spread=statistics.stdev(cold) if len(cold) > 1 else None, ceiling=ceiling / 1000 if ceiling else None,
    )  # fmt: skip


def _follow(site: Site, load: Load, watch: Watch) -> list[int]:
    """Let the load go on from pass to pass, watched; return what the drives had read each time that it asked."""
    clock, read, asked = site.world.clock, list[int](), 0
    end = clock.monotonic() + LONGEST_S
    while not load.ended and clock.monotonic() < end:
        waiting = [record for record in load.records if record.get("awaits")]
        if len(waiting) > asked or clock.monotonic() >= watch.looks[-1].at + WATCH_S:
            watch()
        if len(waiting) > asked:
            read.append(watch.look().moved("read"))
            asked = len(waiting)
            load.tell({"go": True})
        clock.sleep(LOOK_S)
    return read


def _cold(passes: Sequence[Record], read: Sequence[int]) -> Iterator[tuple[Record, int]]:
    """Yield each cold pass with the bytes that the drives read for it; raises Unmeasurable when one is missing."""
    if len(read) != len(passes) + 1 or not any(record["kind"] == "cold" for record in passes):
        message = f"the load told of {len(passes)} passes and asked {len(read)} times: it did not go its way"
        raise Unmeasurable(message)
    for record, before, after in zip(passes, read, read[1:], strict=False):
        if record["kind"] == "cold":
            yield record, after - before


def _figures(record: Record) -> tuple[float, float, float]:
    """Return the share in memory, the bytes and the seconds of a pass; raises Unmeasurable when one is none."""
    resident, moved, seconds = (_number(record.get(key)) for key in ("resident", "bytes", "seconds"))
    if not (resident >= 0 and moved > 0 and seconds > 0):
        message = f"a pass without share, bytes or seconds: {record}"
        raise Unmeasurable(message)
    return resident, moved, seconds


def _number(value: Any) -> float:  # noqa: ANN401 - whatever stands in the record
    sound = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST
    return float(value) if sound else math.nan


def _rate(record: Record, size: int, from_drive: int) -> float:
    """Return a pass's rate in GB/s; raises Unmeasurable when it was not cold, not whole, or not from the drive."""
    resident, moved, seconds = _figures(record)
    if resident >= COLD:
        message = f"{resident:.1%} of the file was in memory before a cold read: somebody else keeps it there"
        raise Unmeasurable(message)
    if moved != size or from_drive < FROM_DEVICE * size:
        message = f"a cold read of {size:,} bytes got {moved:,.0f}, of which the drive moved {from_drive:,}"
        raise Unmeasurable(message)
    return moved / seconds / 1e9


def _conditions(site: Site, passes: Sequence[Record], rate: float) -> Mapping[str, Scalar]:
    warm = [moved / seconds / 1e9 for _, moved, seconds in (_figures(p) for p in passes if p["kind"] == "warm")]
    model = float(site.params["model_gb"])
    return {
        "size_gib": site.params["size_gib"], "model_gb": model, "predicted_s": round(model / rate, 1),
        "resident_before": max(record["resident"] for record in passes if record["kind"] == "cold"),
        **({"warm_gbs": round(warm[0], 2)} if warm else {}),
    }  # fmt: skip


PROBES = (
    Probe("nvme.cold_load", "storage", "nvme", (LOAD,), cold_load, params=PARAMS, load=True, loads=("cold_read",)),
)
