"""Rates of one GPU alone: matrix products, copies, the PCIe link while it is used.

Owns how records of loads and samples of telemetry become values. Must not judge.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean, median, stdev

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import Card, amount, batches, card, check_lasted, flaws, window
from pytest_gpuaccept.profile import Scalar
from pytest_gpuaccept.world import Record

LINKS = (
    Metric("gpu.pcie.gen", "PCIe generation under load", "gen", "gpu"),
    Metric("gpu.pcie.width", "PCIe width under load", "lanes", "gpu"),
    Metric("gpu.pcie.idle_gen", "PCIe generation at idle", "gen", "gpu"),
)
FP16 = Metric("gpu.gemm.fp16", "FP16 matrix product, FP32 accumulate", "TFLOPS", "gpu", rate="fp16", max_cv=0.05)
FP32 = Metric("gpu.gemm.fp32", "FP32 matrix product", "TFLOPS", "gpu", rate="fp32", max_cv=0.05)
CLOCK = Metric("gpu.gemm.clock", "Mean SM clock of the FP16 product", "MHz", "gpu")
COPIES = {
    "device": Metric("gpu.copy.device", "Device memory copy", "GB/s", "gpu", rate="memory", max_cv=0.05),
    "h2d": Metric("gpu.copy.h2d", "Copy host to device, pinned", "GB/s", "gpu", rate="pcie", max_cv=0.05),
    "d2h": Metric("gpu.copy.d2h", "Copy device to host, pinned", "GB/s", "gpu", rate="pcie", max_cv=0.05),
    "d2h_pageable": Metric(
        "gpu.copy.d2h_pageable", "Copy device to host, pageable", "GB/s", "gpu", rate="pcie_any_path"
    ),
}
COPY_ERRORS = Metric("gpu.copy.errors", "Bytes that arrived wrong", "count", "gpu", none_seen=True)
PAIR_ERRORS = Metric("gpu_pair.errors", "Bytes that arrived wrong", "count", "gpu_pair", none_seen=True)
PAIR = Metric("gpu_pair.copy", "Copy GPU to GPU", "GB/s", "gpu_pair", rate="pcie_any_path")

CLOCK_ROUNDING = 1.02
"""Room above FLOP/clk/SM x SMs x clock for the clock's own sampling."""
SETTLE_S = 0.5
"""Seconds of a link's load that are not looked at: it rises from Gen1 meanwhile."""
GRACE_S = 60.0


def links(site: Site) -> Iterator[Outcome]:
    """Sample generation and width each 0.1 s while pinned copies keep the link busy; yield the worst seen.

    Generation: every sample at one value, or the lowest that two samples in a row or 1 % of all show.
    """
    own = card(site, site.device)
    seconds, period = float(site.params["seconds"]), float(site.params["period_s"])
    yield _idle_generation(site, own)
    job = {"uuid": own.uuid, "kinds": ["h2d"], "samples": 8, "sample_s": seconds / 8}
    with site.world.start("telemetry", {"uuids": [own.uuid], "period_s": period}) as watch:
        with site.world.start("copies", job) as load:
            records = load.finish(timeout=seconds + GRACE_S)
        samples = watch.stop()
    timed = batches(own, records, "copy")
    check_lasted(site.device, timed, seconds)
    began = timed[0]["t"] + SETTLE_S
    seen = window(own, samples, began, timed[-1]["t"] + timed[-1]["seconds"], period)
    proof = {"proof_of_load": seen.prove_loaded()}
    gens, widths = seen.values("gen"), seen.values("width")
    yield site.measured(LINKS[0], int(worst(gens)), samples=len(gens), conditions=proof, note=_spread(gens))
    yield site.measured(LINKS[1], int(min(widths)), samples=len(widths), conditions=proof, note=_spread(widths))


def _idle_generation(site: Site, own: Card) -> Outcome:
    nvml = site.world.nvml()
    try:
        return site.measured(LINKS[2], int(nvml.nvmlDeviceGetCurrPcieLinkGeneration(own.handle)))
    except nvml.NVMLError as error:
        return NotMeasured(LINKS[2].id, site.device, str(error))


def worst(values: Sequence[float]) -> float:
    """Return the lowest value seen twice in a row or in more than 1 % of the samples, else the usual one."""
    usual = median(values)
    low = [value < usual for value in values]
    twice = any(a and b for a, b in pairwise(low))
    return min(values) if twice or sum(low) > 0.01 * len(values) else usual


def _spread(values: Sequence[float]) -> str:
    counts = {value: values.count(value) for value in sorted(set(values))}
    return ", ".join(f"{value:g} in {n} of {len(values)} samples" for value, n in counts.items())


def gemm(site: Site) -> Iterator[Outcome]:
    """Time FP16 and FP32 products on this GPU alone, its clock sampled meanwhile."""
    own = card(site, site.device)
    for metric, kind in ((FP16, "fp16"), (FP32, "fp32")):
        try:
            yield from _gemm(site, own, metric, kind)
        except Unmeasurable as error:
            yield NotMeasured(metric.id, site.device, str(error))


def _gemm(site: Site, own: Card, metric: Metric, kind: str) -> Iterator[Outcome]:
    seconds, warm = float(site.params["seconds"]), float(site.params["warmup_seconds"])
    period = float(site.params["period_s"])
    job = {"uuid": own.uuid, "kind": kind, "warm_up_s": warm, "seconds": seconds}
    with site.world.start("telemetry", {"uuids": [own.uuid], "period_s": period}) as watch:
        with site.world.start("gemm", job) as load:
            records = load.finish(timeout=warm + seconds + GRACE_S)
        samples = watch.stop()
    timed = batches(own, records, "batch")
    check_lasted(site.device, timed, seconds)
    seen = window(own, samples, timed[0]["t"], timed[-1]["t"] + timed[-1]["seconds"], period)
    proof = seen.prove_loaded()
    if wrong := sum(record["wrong"] for record in timed):
        message = f"{wrong} timed batches of {site.device} held a wrong product: a defect"
        raise Unmeasurable(message)
    if flaw := next(filter(None, flaws(records) or ["none was compared with float64"]), ""):
        message = f"the product of {site.device} is wrong: {flaw}; FP16 accumulation or a defect"
        raise Unmeasurable(message)
    rates = [record["tflop"] / record["seconds"] for record in timed]
    clock = fmean(seen.values("sm_mhz"))
    conditions = dict[str, Scalar](clock_mhz=round(clock), batches=len(rates), proof_of_load=proof)
    ceiling = _ceiling(site, clock) if kind == "fp16" else None
    yield site.measured(
        metric, median(rates), spread=stdev(rates) if len(rates) > 1 else None, samples=len(rates),
        ceiling=ceiling, conditions=conditions,
    )  # fmt: skip
    if kind == "fp16":
        yield site.measured(CLOCK, clock, samples=len(seen.samples))


def _ceiling(site: Site, clock_mhz: float) -> float | None:
    own = site.profile.card
    return own.tensor_ceiling(clock_mhz) * CLOCK_ROUNDING if own else None


def copy(site: Site) -> Iterator[Outcome]:
    """Copy within the GPU, to it and from it, pinned and pageable; every byte compared."""
    own = card(site, site.device)
    records = _copies(site, own, list(COPIES))
    timed = batches(own, records, "copy")
    yield _wrong_bytes(site, COPY_ERRORS, records, list(COPIES))
    for way, metric in COPIES.items():
        yield _copy_rate(site, metric, timed, way)


def peer(site: Site) -> Iterator[Outcome]:
    """Copy from the first to the second GPU of the pair; the path that was taken is stated."""
    first, second = (card(site, device) for device in site.device.split("-"))
    way = f"peer:{second.uuid}"
    records = _copies(site, first, [way])
    timed = batches(first, records, "copy")
    yield _wrong_bytes(site, PAIR_ERRORS, records, [way])
    yield _copy_rate(site, PAIR, timed, way)


def _wrong_bytes(site: Site, metric: Metric, records: Sequence[Record], ways: Sequence[str]) -> Outcome:
    """Return the bytes that arrived wrong in all copies, those that warm up included; none seen needs every way."""
    copied = [record for record in records if record.get("kind") in ("warm_up", "copy")]
    wrong = math.ceil(sum(amount(record, "wrong") for record in copied))
    timed = [record.get("way") for record in copied if record["kind"] == "copy"]
    if not wrong and (missing := [way for way in ways if timed.count(way) < int(site.params["samples"])]):
        return NotMeasured(metric.id, site.device, f"not every copy was compared: {', '.join(missing)}")
    return site.measured(metric, wrong, samples=len(copied), proof=f"{len(copied)} copies compared byte by byte")


def _copies(site: Site, own: Card, kinds: list[str]) -> list[Record]:
    samples, sample_s = int(site.params["samples"]), float(site.params["sample_seconds"])
    job = {"uuid": own.uuid, "kinds": kinds, "samples": samples, "sample_s": sample_s}
    with site.world.start("copies", job) as load:
        return load.finish(timeout=len(kinds) * (samples + 1) * sample_s + GRACE_S)


def _copy_rate(site: Site, metric: Metric, records: Sequence[Record], way: str) -> Outcome:
    """Return the median rate of copies of one way; wrong bytes make it none."""
    timed = [record for record in records if record.get("way") == way]
    if wrong := sum(record["wrong"] for record in timed):
        return NotMeasured(metric.id, site.device, f"{wrong} bytes arrived wrong: a defect of the link or of memory")
    rates = [record["moved"] / record["seconds"] / 1e9 for record in timed]
    due = int(site.params["samples"])
    if not rates or len(rates) < due:
        return NotMeasured(metric.id, site.device, f"{len(rates)} of {due} copies were timed")
    spread = stdev(rates) if len(rates) > 1 else None
    path = timed[0].get("path")
    conditions = dict[str, Scalar](bytes=timed[0]["moved"], **({"path": path} if isinstance(path, str) else {}))
    return site.measured(metric, median(rates), spread=spread, samples=len(rates), conditions=conditions)
