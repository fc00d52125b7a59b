"""What makes a spec line believable: rules over a resolved profile, all mistakes at once. Pure.

Owns the physics and vocabulary rules of design: undeclared metrics, wrong units, limits that
cannot fail or cannot be met. Must not read files; loader.py does.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pytest_gpuaccept.errors import did_you_mean
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.profile import Attestation, Line, Profile, Scalar

LOWEST_FLOOR = 0.30
"""A floor below this share of the datasheet rate cannot fail: DCGM ships five memory-bandwidth
floors that are 10 to 1000 times too low, and healthy cards reach 0.6 and more."""
HOTTEST_SHUTDOWN = 105
"""C that no GPU survives: above the shutdown of every card whose own is known (89 to 96)."""
HOTTEST = 125
"""C at which no CPU, memory module or drive works any more."""
WHOLE = 100
"""%."""
PHYSICS_LINES = ("gpu.gemm.efficiency", "gpu.copy.device")
DEVICE_IDS = {"nvme": r"(nvme|disk)\d+", "nic": r"nic\d+", "vllm": "vllm", "llamacpp": "llamacpp"}


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong with a profile, card, waiver or attestation, and where."""

    file: str
    line: str
    key: str
    reason: str

    def __str__(self) -> str:
        """Write `FILE: line ID: key KEY: REASON`, leaving out what does not apply."""
        parts = [self.file, f"line {self.line}" if self.line else "", f"key {self.key}" if self.key else ""]
        return ": ".join([*(part for part in parts if part), self.reason])


def check(profile: Profile, catalogue: Catalogue, file: str) -> list[Mistake]:
    """Return every mistake of a resolved profile."""
    found = [m for line in profile.lines.values() for m in _check_line(line, profile, catalogue)]
    found += [Mistake(file, "", f"devices.{kind}", reason) for kind, reason in _check_devices(profile)]
    found += [Mistake(file, "", key, reason) for key, reason in check_params(profile.params, catalogue)]
    found += [Mistake(file, name, "severity", reason) for name, reason in _check_physics_lines(profile)]
    if not any(line.severity == "required" and not line.not_applicable for line in profile.lines.values()):
        found.append(Mistake(file, "", "line", "no line is required, so nothing could be rejected"))
    found += _check_named(profile, catalogue, file)
    return found


def _check_line(line: Line, profile: Profile, catalogue: Catalogue) -> Iterator[Mistake]:
    metric = catalogue.metrics.get(line.id)
    if metric is None:
        near = did_you_mean(line.id, catalogue.metrics)
        yield Mistake(line.file, line.id, "", f"no probe declares this metric{near}")
        return
    rules = (_unit, _shape, _order, _guard, _possible, _rate, _roof, _devices)
    for key, reason in (flaw for rule in rules for flaw in rule(line, metric, profile)):
        yield Mistake(line.file, line.id, key, reason)


Flaws = Iterable[tuple[str, str]]


def _unit(line: Line, metric: Metric, _: Profile) -> Flaws:
    if line.unit != metric.unit:
        yield "unit", f"{line.unit!r}, but the metric is measured in {metric.unit!r}"


def _shape(line: Line, metric: Metric, _: Profile) -> Flaws:
    bounds = line.min is not None or line.max is not None
    exact = [name for name in ("equals", "one_of") if getattr(line, name) is not None]
    if line.one_of == ():
        yield "one_of", "names no value, so nothing could pass"
    if not bounds and not exact and not line.not_applicable:
        yield "", "states no limit: give min, max, equals or one_of"
    if len(exact) + bounds > 1:
        yield exact[0], "cannot stand beside another kind of limit"
    if bounds and metric.unit in ("text", "flag"):
        yield "min" if line.min is not None else "max", f"a {metric.unit} has no order: use equals or one_of"
    for choice in (*(line.one_of or ()), *(() if line.equals is None else (line.equals,))):
        if not _of_unit(choice, metric.unit):
            yield exact[0], f"{choice!r} is not a value of unit {metric.unit!r}"


def _of_unit(value: Scalar, unit: str) -> bool:
    wanted = {"text": str, "flag": bool}.get(unit, int | float)
    return isinstance(value, wanted) and (unit == "flag" or not isinstance(value, bool))


def _order(line: Line, _metric: Metric, _: Profile) -> Flaws:
    if line.min is not None and line.max is not None and line.min > line.max:
        yield "min", f"{line.min:g} is above max {line.max:g}"


def _guard(line: Line, _metric: Metric, _: Profile) -> Flaws:
    if line.guard and line.min is None and line.max is None:
        yield "guard", "an exact limit has no guard band"
    if line.uncalibrated and line.severity == "required":
        yield "severity", "an uncalibrated limit is advisory"


def _possible(line: Line, metric: Metric, _: Profile) -> Flaws:
    """But for temperatures and losses, nothing that is measured is below zero; and no share is above all."""
    if metric.unit == "C":
        return
    if line.min is not None and line.min <= 0:
        yield "min", f"{line.min:g} {line.unit} cannot fail: nothing that is measured is less"
    if line.max is not None and line.max < 0:
        yield "max", f"{line.max:g} {line.unit} cannot be met"
    if metric.unit == "%" and line.min is not None and line.min > WHOLE:
        yield "min", f"{line.min:g} % cannot be met"


def _rate(line: Line, metric: Metric, profile: Profile) -> Flaws:
    for device in profile.devices_of(line, metric.kind):
        rate = profile.rate(metric.rate, device)
        if rate is None or line.min is None:
            continue
        if line.min > rate.ceiling:
            yield "min", f"{line.min:g} {rate.unit} is above the {rate.ceiling:.4g} {rate.unit} that it can reach"
        if rate.nominal and line.min < LOWEST_FLOOR * rate.nominal:
            share = line.min / rate.nominal
            yield (
                "min",
                (
                    f"{line.min:g} {rate.unit} is {share:.1%} of the datasheet's {rate.nominal:g} {rate.unit}: "
                    f"below {LOWEST_FLOOR:.0%} it cannot fail"
                ),
            )


def _roof(line: Line, metric: Metric, profile: Profile) -> Flaws:
    """A count of what must not be seen, and a temperature, is held down; a floor under it says nothing."""
    if not (metric.none_seen or metric.unit == "C") or line.not_applicable:
        return
    if line.max is None or line.min is not None:
        yield "min" if line.min is not None else "max", "this metric is bad when it is high: it takes a max, alone"
    if metric.unit != "C" or line.max is None:
        return
    shutdown = profile.card.facts.temperature_shutdown_c if profile.card else None
    highest = (shutdown or HOTTEST_SHUTDOWN) if metric.kind == "gpu" else HOTTEST
    if line.max > highest:
        whose = "any part's" if metric.kind != "gpu" else "the card's" if shutdown else "any card's"
        yield "max", f"{line.max:g} C is beyond {whose} shutdown at {highest} C"


def _devices(line: Line, metric: Metric, profile: Profile) -> Flaws:
    ordered = profile.devices.get(metric.kind, ())
    alone = metric.kind == "gpu_pair" and profile.gpus == 1
    if not ordered and not alone:
        yield "", f"the profile orders no device of kind {metric.kind!r}"
    if line.devices == ():
        yield "devices", "names none, so the line would be decided nowhere; use not_applicable with a reason"
    for device in line.devices or ():
        if device not in ordered:
            yield "devices", f"unknown device {device!r}{did_you_mean(device, ordered)}"


def _check_devices(profile: Profile) -> Flaws:
    for kind, pattern in DEVICE_IDS.items():
        for device in profile.devices.get(kind, ()):  # type: ignore[call-overload]
            if profile.devices[kind].count(device) > 1:  # type: ignore[index]
                yield kind, f"{device!r} is listed more than once"
            if not re.fullmatch(pattern, device):
                yield kind, f"{device!r} is not a device id of this kind ({pattern})"
    known = {device for devices in profile.devices.values() for device in devices}
    for device in profile.device.keys() - known:
        yield device, f"facts for a device that is not ordered{did_you_mean(device, known)}"


def check_params(table: Mapping[str, Mapping[str, Scalar]], catalogue: Catalogue) -> Flaws:
    """Yield key and reason of every parameter that a probe does not take."""
    for name, params in table.items():
        probe = catalogue.probes.get(name)
        if probe is None:
            yield f'params."{name}"', f"no such probe{did_you_mean(name, catalogue.probes)}"
            continue
        for key, value in params.items():
            if flaw := _param_flaw(probe.params, key, value):
                yield f'params."{name}".{key}', flaw


def _param_flaw(defaults: Mapping[str, Scalar], key: str, value: Scalar) -> str:
    if key not in defaults:
        return f"unknown parameter{did_you_mean(key, defaults)}"
    default = defaults[key]
    numbers = isinstance(value, int) if isinstance(default, int) else isinstance(value, int | float)
    good = isinstance(value, str) if isinstance(default, str) else numbers
    if isinstance(value, bool) != isinstance(default, bool) or not good:
        return f"{value!r} is not of the type of {default!r}"
    if isinstance(value, int | float) and not isinstance(value, bool) and not (math.isfinite(value) and value > 0):
        return f"{value!r} is not above zero"
    return ""


def _check_physics_lines(profile: Profile) -> Flaws:
    """Yield what is amiss with the lines that no GPU profile may do without."""
    if not profile.gpus:
        return
    count = profile.lines.get("gpu.count")
    if count and count.equals != profile.gpus:
        yield "gpu.count", f"must equal the {profile.gpus} GPUs that are ordered"
    engines = ("vllm.roofline",) if profile.devices.get("vllm") else ()
    for name in (*PHYSICS_LINES, *engines):
        line = profile.lines.get(name)
        whole = line is not None and line.min is not None and line.devices is None and not line.not_applicable
        if line is None or line.severity != "required" or not whole:
            yield (
                name,
                "a GPU profile needs this floor, required, on every device: it follows from the card's facts alone",
            )


def _check_named(profile: Profile, catalogue: Catalogue, profile_file: str) -> Iterator[Mistake]:
    """Yield waivers and attestations that name what the profile does not have."""
    for what, ending, entries in (("waiver", "waivers", profile.waivers), ("attested", "attested", profile.attested)):
        file = f"{profile_file.removesuffix('.toml')}.{ending}.toml"
        for entry in entries:
            line = profile.lines.get(entry.line)
            metric = catalogue.metrics.get(entry.line)
            if line is None or metric is None:
                near = did_you_mean(entry.line, profile.lines)
                yield Mistake(file, entry.line, what, f"the profile has no such line{near}")
            elif what == "attested" and not metric.attestable:
                yield Mistake(file, entry.line, what, "a probe measures this, so nobody can attest it")
            elif isinstance(entry, Attestation) and not _of_unit(entry.value, metric.unit):
                yield Mistake(file, entry.line, what, f"{entry.value!r} is not a value of unit {metric.unit!r}")
            elif entry.device not in profile.devices_of(line, metric.kind):
                yield Mistake(file, entry.line, what, f"the line has no device {entry.device!r}")
