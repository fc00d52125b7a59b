"""Rates of matrix products on one GPU alone.

Owns how records of loads and samples of telemetry become values. Must not judge.
"""

from collections.abc import Iterator
from statistics import fmean, median, stdev

from pytest_gpuaccept.children.compute import LONGEST_WARM_UP_S
from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import Card, batches, ceiling_tflops, check_lasted, flaws, usable, window
from pytest_gpuaccept.probes.gpus.together import keep
from pytest_gpuaccept.profile import Scalar

PRODUCTS = {
    "fp16": Metric("gpu.gemm.fp16", "FP16 matrix product, FP32 accumulate", "TFLOPS", "gpu", rate="fp16", max_cv=0.05),
    "bf16": Metric("gpu.gemm.bf16", "BF16 matrix product, FP32 accumulate", "TFLOPS", "gpu", rate="fp16", max_cv=0.05),
    "fp32": Metric("gpu.gemm.fp32", "FP32 matrix product", "TFLOPS", "gpu", rate="fp32", max_cv=0.05),
    "tf32": Metric("gpu.gemm.tf32", "TF32 matrix product", "TFLOPS", "gpu", rate="tf32", max_cv=0.05),
    "fp8": Metric("gpu.gemm.fp8", "FP8 matrix product", "TFLOPS", "gpu", rate="fp8", needs="fp8", max_cv=0.05),
}
"""Kind of product -> its rate."""
CLOCK = Metric("gpu.gemm.clock", "Mean SM clock of the FP16 product", "MHz", "gpu")

TOLD = "kind", "uuid"
"""What a load's first record says besides what its products run on."""
GRACE_S = 300.0
"""Seconds that a load may take besides: torch from a cold disk, a CUDA context, a golden result."""


def gemm(site: Site) -> Iterator[Outcome]:
    """Time products of each kind that the card has on this GPU alone, its clock sampled meanwhile."""
    own = usable(site, site.device)
    lacks = site.profile.card.lacks if site.profile.card else ()
    for kind, metric in PRODUCTS.items():
        if metric.needs in lacks:
            continue
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
            try:
                records = load.finish(timeout=max(warm, LONGEST_WARM_UP_S) + seconds + GRACE_S)
            finally:
                keep(site, f"gpu.gemm {kind}", {site.device: load.records})
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
    stated = {name: value for name, value in records[0].items() if name not in TOLD}
    conditions |= {name: value for name, value in stated.items() if isinstance(value, str | bool)}
    yield site.measured(
        metric, median(rates), spread=stdev(rates) if len(rates) > 1 else None, samples=len(rates),
        ceiling=ceiling_tflops(site, kind, clock), conditions=conditions,
    )  # fmt: skip
    if kind == "fp16":
        yield site.measured(CLOCK, clock, samples=len(seen.samples))
