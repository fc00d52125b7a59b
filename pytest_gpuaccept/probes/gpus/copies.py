"""Copies: within a GPU, to and from the host, on all GPUs at once, and from one GPU to another.

Owns how records of copies become rates, paths and counts of wrong bytes. Must not judge.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median, stdev
from typing import Any

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome
from pytest_gpuaccept.metric import Inputs, Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import Card, batches, ran_on, tally, usable, usable_cards
from pytest_gpuaccept.probes.gpus.together import keep, run_together
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Record


def shared_uplink(inputs: Inputs) -> Measurement:
    """Return the least share of its own rate from the host that a GPU keeps while all of them copy."""
    gpus = inputs.profile.devices.get("gpu", ())
    left = {gpu: inputs.number("gpu.copy.h2d_all", gpu) / inputs.number("gpu.copy.h2d", gpu) for gpu in gpus}
    note = ", ".join(f"{gpu} keeps {share:.0%}" for gpu, share in left.items())
    return Measurement("gpu.copy.shared_uplink", inputs.device, min(left.values()), "ratio", "calculated", note=note)


COPIES = {
    "device": Metric("gpu.copy.device", "Device memory copy", "GB/s", "gpu", rate="memory", max_cv=0.05),
    "h2d": Metric("gpu.copy.h2d", "Copy host to device, pinned", "GB/s", "gpu", rate="pcie", max_cv=0.05),
    "d2h": Metric("gpu.copy.d2h", "Copy device to host, pinned", "GB/s", "gpu", rate="pcie", max_cv=0.05),
    "h2d_pageable": Metric(
        "gpu.copy.h2d_pageable", "Copy host to device, pageable", "GB/s", "gpu", rate="pcie_any_path"
    ),
    "d2h_pageable": Metric(
        "gpu.copy.d2h_pageable", "Copy device to host, pageable", "GB/s", "gpu", rate="pcie_any_path"
    ),
    "d2h_untouched": Metric(
        "gpu.copy.d2h_untouched", "Copy device to host, pageable, new pages", "GB/s", "gpu", rate="pcie_any_path"
    ),
    "both": Metric("gpu.copy.both", "Copies both ways at once, sum", "GB/s", "gpu"),
}
"""Kind of copy -> its rate."""
COPY_ERRORS = Metric("gpu.copy.errors", "Bytes that arrived wrong", "count", "gpu", none_seen=True)
ALL = {
    "h2d": Metric("gpu.copy.h2d_all", "Copy host to device, all GPUs at once", "GB/s", "gpu", rate="pcie"),
    "d2h": Metric("gpu.copy.d2h_all", "Copy device to host, all GPUs at once", "GB/s", "gpu", rate="pcie"),
}
"""Kind of copy -> its rate while every other GPU makes it too."""
ALL_ERRORS = Metric("gpu.copy.errors_all", "Bytes that arrived wrong, all GPUs copying", "count", "gpu", none_seen=True)
UPLINK = Metric(
    "gpu.copy.shared_uplink", "Least share of its rate that a GPU keeps when all copy", "ratio", "host",
    derive=shared_uplink,
)  # fmt: skip
ACCESS = Metric("gpu_pair.access", "Peer access, as the driver says", "text", "gpu_pair")
PATH = Metric("gpu_pair.path", "Path of the copy GPU to GPU", "text", "gpu_pair")
PAIR = Metric("gpu_pair.copy", "Copy GPU to GPU", "GB/s", "gpu_pair", rate="pcie_any_path")
PAIR_ERRORS = Metric("gpu_pair.errors", "Bytes that arrived wrong", "count", "gpu_pair", none_seen=True)

READ, WRITE = 0, 1
"""NVML_P2P_CAPS_INDEX_*; the binding's own READ is a tuple, which no call takes."""
OFFERED = "OK"
P2P_STATUS = {
    0: OFFERED, 1: "chipset not supported", 2: "GPU not supported", 3: "topology not supported",
    4: "disabled by registry key", 5: "not supported", 6: "unknown",
}  # fmt: skip
"""NVML_P2P_STATUS_* -> what it says (nvml.h)."""
GRACE_S = 300.0
"""Seconds that a load may take besides what was asked: torch from a cold disk, pinned buffers."""
AT_ONCE = 0.8
"""Share of their time in which all copies must overlap: whole copies are timed, and the slowest of eight against the
fastest differs by some percent."""
PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class Copied:
    """What a device copied: all records of its own card, the timed ones, and why they are not all; '' when they are."""

    device: str
    records: Sequence[Record]
    timed: Sequence[Record]
    flaw: str

    def of(self, way: str) -> list[Record]:
        """Return the timed records of one kind of copy."""
        return [record for record in self.timed if record.get("way") == way]


def copy(site: Site) -> Iterator[Outcome]:
    """Copy within the GPU, to it and from it, pinned and pageable; every byte compared."""
    copied = _alone(site, usable(site, site.device), list(COPIES), "gpu.copy")
    yield _wrong_bytes(site, COPY_ERRORS, copied, list(COPIES))
    for way, metric in COPIES.items():
        yield _rate(site, metric, copied, way)


def copy_all(site: Site) -> Iterator[Outcome]:
    """Copy to every GPU at the same moments, then from every GPU; a reading needs all of them, a wrong byte one."""
    everybody = _at_once(site, list(ALL))
    flaws = {way: _absent(site, way, everybody) or _apart(way, everybody) for way in ALL}
    for copied in everybody:
        yield _wrong_bytes(site, ALL_ERRORS, copied, list(ALL), next(filter(None, flaws.values()), ""))
        for way, metric in ALL.items():
            yield _rate(site, metric, copied, way, flaws[way])


def peer(site: Site) -> Iterator[Outcome]:
    """Copy from the first to the second GPU of the pair; the path must not contradict what the driver says."""
    first, second = (usable(site, device) for device in site.device.split("-"))
    access = _access(site, first, second)
    yield access
    way = f"peer:{second.uuid}"
    copied = replace(_alone(site, first, [way], "gpu_pair.peer"), device=site.device)
    yield _wrong_bytes(site, PAIR_ERRORS, copied, [way])
    stated, flaw, note = _path(copied.of(way), access)
    reason = flaw if copied.of(way) else copied.flaw or flaw
    yield NotMeasured(PATH.id, site.device, reason) if reason else site.measured(PATH, stated)
    yield _rate(site, PAIR, copied, way, flaw, note)


def _access(site: Site, first: Card, second: Card) -> Outcome:
    """Return what the driver says of reading and writing the other GPU's memory."""
    nvml = site.world.nvml()
    try:
        codes = [nvml.nvmlDeviceGetP2PStatus(first.handle, second.handle, way) for way in (READ, WRITE)]
    except nvml.NVMLError as error:
        return NotMeasured(ACCESS.id, site.device, str(error))
    read, write = (P2P_STATUS.get(code, f"status {code}") for code in codes)
    return site.measured(ACCESS, read if read == write else f"read {read}, write {write}")


def _path(timed: Sequence[Record], access: Outcome) -> tuple[str, str, str]:
    """Return the path of a pair's copies, why it is not to be believed ('' when it is), and a note."""
    stated = [record.get("path") for record in timed]
    path = str(stated[0]) if stated else ""
    said = str(access.value) if isinstance(access, Measurement) else access.reason
    if path not in ("direct", "staged") or stated != [path] * len(stated):
        return path, f"the copies say {stated} of their path, which is none; the driver, of peer access: {said}", ""
    if path == "staged":
        return path, "", "staged through the host" + (", although the driver offers peer access" * (said == OFFERED))
    flaw = f"the copies say that they went direct; the driver, of peer access: {said}"
    return path, "" if said == OFFERED else flaw, ""


def _alone(site: Site, own: Card, ways: Sequence[str], name: str) -> Copied:
    timeout, death = len(ways) * (int(site.params["samples"]) + 1) * _seconds(site) + GRACE_S, ""
    with site.world.start("copies", {"uuid": own.uuid, **_job(site, ways)}) as load:
        try:
            load.finish(timeout=timeout)
        except Unmeasurable as error:
            death = str(error)
        finally:
            keep(site, name, {site.device: load.records})
    return _finished(own, load.records, death)


def _seconds(site: Site) -> float:
    return float(site.params["sample_seconds"])


def _job(site: Site, ways: Sequence[str]) -> dict[str, Any]:
    return {"kinds": list(ways), "samples": int(site.params["samples"]), "sample_s": _seconds(site)}


def _at_once(site: Site, ways: Sequence[str]) -> list[Copied]:
    """Return what every ordered GPU copied, all on one schedule; one that cannot copy is among them with its reason."""
    every = float(site.params["every_seconds"])
    found, refused = usable_cards(site)
    seconds = len(ways) * (int(site.params["samples"]) + 1) * every
    job = {**_job(site, ways), "together": every}
    ran = run_together(
        site, "gpu.copy_all", found, "copies", job,
        watched={"period_s": PERIOD_S}, meanwhile=lambda guard: guard.wait(seconds + GRACE_S),
    )  # fmt: skip
    done = [_finished(own, ran.records[device], ran.died.get(device, "")) for device, own in found.items()]
    return done + [Copied(device, (), (), reason) for device, reason in refused.items()]


def _finished(own: Card, records: Sequence[Record], death: str) -> Copied:
    """Return what a load copied until its end, also when it died of `death`."""
    try:
        return Copied(own.device, records, batches(own, records, "copy"), death)
    except Unmeasurable as error:
        return Copied(own.device, records if ran_on(own, records) else (), (), death or str(error))


def _wrong_bytes(site: Site, metric: Metric, copied: Copied, ways: Sequence[str], flaw: str = "") -> Outcome:
    """Return the bytes that arrived wrong in all copies, those that warm up included; none seen needs every way.

    What arrived wrong counts also where the load died, or where `flaw` says that it was not the one asked for.
    """
    copies = [record for record in copied.records if record.get("kind") in ("warm_up", "copy")]
    wrong, unread = tally(copies, "wrong")
    compared, untold = tally(copies, "compared")
    blank = "" if all(record.get("compared") for record in copies) else "a sample in which no copy was compared"
    due = int(site.params["samples"])
    missing = ", ".join(way for way in ways if len(copied.of(way)) < due)
    skipped = f"not every copy was compared: {missing}" if missing else ""
    if not wrong and (reason := copied.flaw or flaw or unread or untold or blank or skipped):
        return NotMeasured(metric.id, copied.device, reason)
    proof = None if wrong else f"{compared:.0f} copies compared byte by byte, among them one of every sample"
    return site.measured(metric, math.ceil(wrong), device=copied.device, samples=len(copies), proof=proof)


def _rate(  # noqa: PLR0913, PLR0917 - what was copied, how, and what is said of it
    site: Site, metric: Metric, copied: Copied, way: str, flaw: str = "", note: str = ""
) -> Outcome:
    """Return the median rate of copies of one way; wrong bytes make it none."""
    timed, due = copied.of(way), int(site.params["samples"])
    if reason := _no_rate(copied, way, due) or flaw:
        return NotMeasured(metric.id, copied.device, reason)
    rates = [record["moved"] / record["seconds"] / 1e9 for record in timed]
    path = timed[0].get("path")
    conditions = dict[str, Scalar](bytes=timed[0]["moved"], **({"path": path} if isinstance(path, str) else {}))
    return site.measured(
        metric, median(rates), device=copied.device, spread=stdev(rates) if len(rates) > 1 else None,
        samples=len(rates), conditions=conditions, note=note,
    )  # fmt: skip


def _no_rate(copied: Copied, way: str, due: int) -> str:
    timed = copied.of(way)
    if wrong := sum(record["wrong"] for record in timed):
        return f"{wrong} bytes arrived wrong: a defect of the link or of memory"
    if timed and len(timed) >= due:
        return ""
    return f"{len(timed)} of {due} copies were timed" + (f": {copied.flaw}" if copied.flaw else "")


def _absent(site: Site, way: str, everybody: Sequence[Copied]) -> str:
    """Return which GPU did not make its copies of a way, and why; '' when all did."""
    due = int(site.params["samples"])
    short = (one for one in everybody if len(one.of(way)) != due)
    return next((f"{one.device} did not copy along: {_no_rate(one, way, due)}" for one in short), "")


def _apart(way: str, everybody: Sequence[Copied]) -> str:
    """Return for how little of the time all GPUs copied at once, each as often as the others; '' when they did."""
    rows = [[(r["t"], r["t"] + r["seconds"]) for r in one.of(way)] for one in everybody]
    common = longest = 0.0
    for moment in zip(*rows, strict=True):
        common += max(0.0, min(ended for _, ended in moment) - max(began for began, _ in moment))
        longest += max(ended - began for began, ended in moment)
    return "" if common >= AT_ONCE * longest else f"all copied at once for {common:.1f} s of {longest:.1f} s"
