"""The electrical plan: what the ordered machine draws at its power limits, against circuit and power supplies.

Owns a calculation from what the order states and the limits that are set, and two measured ratios: power
over limits, cards over wall. What the order does not state is asked for, never assumed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, Outcome
from pytest_gpuaccept.metric import Inputs, Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.services.bmc import asked
from pytest_gpuaccept.probes.since import attempt
from pytest_gpuaccept.profile import Scalar

PARAMS: dict[str, Scalar] = {
    "cpu_w": 0, "rest_w": 0, "efficiency": 0.0, "volts": 0, "circuit_a": 0, "psu_w": 0,
}  # fmt: skip
"""W of the CPUs and of all else but GPUs; efficiency of the power supplies; V and A of the circuit; W that the
supplies deliver together. 0 stands for: not stated."""
MOVES_W = 100
"""W by which a reading of the whole machine follows a burn; one that does not shows something else."""
MOST_W = 100_000


def _stated(inputs: Inputs, *names: str) -> list[float]:
    """Return what the profile states of the plan; raises Unmeasurable with what it does not."""
    params = {**PARAMS, **inputs.profile.params.get("host.electrical", {})}
    if missing := [name for name in names if not float(params[name]) > 0]:
        message = f'the profile does not state {", ".join(missing)}: add it to [params."host.electrical"]'
        raise Unmeasurable(message)
    return [float(params[name]) for name in names]


def _limits(inputs: Inputs) -> list[float]:
    limits = [inputs.number("gpu.power.limit", gpu) for gpu in inputs.profile.devices.get("gpu", ())]
    if not limits or min(limits) <= 0:
        message = f"power limits of {limits} W are none that a plan could be made of"
        raise Unmeasurable(message)
    return limits


def _drawn(inputs: Inputs) -> tuple[float, str]:
    """Return the W that the machine draws from its supplies when everything is at its limit, and the sum in words."""
    cpu, rest = _stated(inputs, "cpu_w", "rest_w")
    limits = _limits(inputs)
    gpus = " + ".join(f"{watts:.0f}" for watts in limits)
    return sum(limits) + cpu + rest, f"GPUs {gpus}, CPU {cpu:.0f}, rest {rest:.0f}: {sum(limits) + cpu + rest:.0f} W DC"


def circuit(inputs: Inputs) -> Measurement:
    """Return the current that the machine draws at its limits, in % of what the circuit's breaker carries."""
    (efficiency, volts, amps), (watts, words) = _stated(inputs, "efficiency", "volts", "circuit_a"), _drawn(inputs)
    if efficiency > 1:
        message = f"an efficiency of {efficiency:g} would make energy: write 0.9 for 90 %"
        raise Unmeasurable(message)
    drawn = watts / efficiency
    note = f"{words}, {drawn:.0f} W AC at {efficiency:.0%}, {drawn / volts:.1f} A of {amps:.0f} A at {volts:.0f} V"
    return Measurement(CIRCUIT.id, inputs.device, 100 * drawn / volts / amps, "%", "calculated", note=note)


def supplies(inputs: Inputs) -> Measurement:
    """Return the power at the limits in % of what the power supplies are rated for together."""
    rated, (watts, words) = _rating(inputs), _drawn(inputs)
    note = f"{words} of {rated:.0f} W"
    return Measurement(SUPPLIES.id, inputs.device, 100 * watts / rated, "%", "calculated", note=note)


def _rating(inputs: Inputs) -> float:
    """Return the W that the supplies are rated for together: as the order states, or as somebody read it."""
    try:
        return _stated(inputs, "psu_w")[0]
    except Unmeasurable as unstated:
        read = attempt(partial(inputs.number, "host.psu.rating_w"))
        if isinstance(read, Unmeasurable) or read <= 0:
            message = f"{unstated}, or attest host.psu.rating_w"
            raise Unmeasurable(message) from None
        return read


def rails(inputs: Inputs) -> Measurement:
    """Return the mean power of all GPUs in the burn over the sum of their limits."""
    gpus, limits = inputs.profile.devices.get("gpu", ()), _limits(inputs)
    power = [inputs.number("gpu.burn.power_mean", gpu) for gpu in gpus]
    note = f"{sum(power):.0f} W in the burn, limits of {sum(limits):.0f} W"
    return Measurement(RAILS.id, inputs.device, sum(power) / sum(limits), "ratio", "calculated", note=note)


def wall_share(inputs: Inputs) -> Measurement:
    """Return the GPUs' highest power in a burn over the highest of the whole machine in the run."""
    wall = inputs.number(WALL.id)
    cards = {metric: inputs.number(metric) for metric in ("gpu.burn.power_total", "gpu.combined.power_total")}
    note = f"{max(cards.values()):.0f} W of the cards, {wall:.0f} W of the machine"
    return Measurement(WALL_SHARE.id, inputs.device, max(cards.values()) / wall, "ratio", "calculated", note=note)


CIRCUIT = Metric("power.circuit", "Current at the power limits, of the circuit's", "%", "host", derive=circuit)
SUPPLIES = Metric("power.psu", "Power at the limits, of the supplies' rating", "%", "host", derive=supplies)
RAILS = Metric("power.rails", "Power of all GPUs in the burn, of their limits", "ratio", "host", derive=rails)
WALL = Metric("power.wall", "Highest power of the whole machine in the run", "W", "host")
WALL_SHARE = Metric(
    "power.wall_share", "Power of the GPUs in a burn, of the whole machine's", "ratio", "host", derive=wall_share
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the board's controller says of the machine's power: now, and the highest over its own period; W and s."""

    now: float
    highest: float
    period_s: float


def read_dcmi(site: Site) -> Reading:
    """Return the controller's power reading; raises Unmeasurable where there is none, or no right to it."""
    return parse_dcmi(asked(site, "dcmi", "power", "reading"))


def parse_dcmi(text: str) -> Reading:
    """Parse `ipmitool dcmi power reading`; raises Unmeasurable when it measures nothing, or not now."""
    rows = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    if rows.get("power reading state is") != "activated":
        message = f"the board's power reading is not active: {text.strip()[:80]!r}"
        raise Unmeasurable(message)
    names = ("instantaneous power reading", "maximum during sampling period", "sampling period")
    now, highest, period = (_amount(rows, name) for name in names)
    if not 0 < now <= MOST_W or not now <= highest <= MOST_W:
        message = f"the board reads {now:g} W now and {highest:g} W at most, which cannot be"
        raise Unmeasurable(message)
    return Reading(now, highest, period)


def _amount(rows: Mapping[str, str], name: str) -> float:
    found = re.match(r"([0-9]{1,9}) +(?:Watts|Seconds)", rows.get(name, ""))
    if not found:
        message = f"the board's power reading has no {name}: {rows.get(name, '')[:40]!r}"
        raise Unmeasurable(message)
    return float(found[1])


def wall(site: Site) -> Iterator[Outcome]:
    """Yield the highest power of the machine in the run; raises Unmeasurable when the reading shows nothing of it.

    The controller's own maximum is believed when it was reached in this run: it grew since the start, and is
    well above what the machine drew then.
    """
    before = site.before
    if not isinstance(before, Reading):
        message = f"no reading of the whole machine at the start of the run: {before}"
        raise Unmeasurable(message)
    after = read_dcmi(site)
    if after.highest <= before.highest:
        message = f"the controller's highest reading of {after.highest:.0f} W was not reached in this run"
        raise Unmeasurable(message)
    if after.highest - before.now <= MOVES_W:
        message = f"the reading moved by {after.highest - before.now:.0f} W only: it does not show the burns"
        raise Unmeasurable(message)
    note = f"{before.now:.0f} W at the start; over the controller's period of {after.period_s:.0f} s"
    yield site.measured(WALL, after.highest, note=note)


PROBES = (
    Probe(
        "host.electrical", "final", "host", (CIRCUIT, SUPPLIES, RAILS, WALL, WALL_SHARE), wall,
        params=PARAMS, before=read_dcmi,
    ),
)  # fmt: skip
