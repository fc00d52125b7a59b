"""What stops a load before it does harm: a card near its shutdown, a fatal error, or one that nobody sees any more.

Owns the limits of safety, which are no limits of the contract. Must not judge.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import Card, amount
from pytest_gpuaccept.probes.kernel.fatal import Fatal
from pytest_gpuaccept.world import Load, Record

MARGIN_C = 2.0
"""Degrees below the shutdown at which a load is ended."""
BLIND_S = 10.0
"""Seconds without a temperature after which a load is ended that had one."""
LOOK_S = 1.0
"""Seconds between two looks at a load that runs."""
SLOPE_S = 60.0
"""Seconds at the end over which a card's temperature is said to rise."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Watches the telemetry of cards under load."""

    site: Site
    cards: Mapping[str, Card]
    loads: Mapping[str, Load]
    watch: Load
    shutdown_c: Mapping[str, float | None]
    since: float
    fatal: Fatal
    stopped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def over(cls, site: Site, cards: Mapping[str, Card], loads: Mapping[str, Load], watch: Load) -> "Guard":
        """Return a guard from now on; thresholds are read here, for a call on a card that is lost may hang."""
        limits = {device: shutdown_c(site, own) for device, own in cards.items()}
        return cls(site, cards, loads, watch, limits, site.world.clock.monotonic(), Fatal(site, cards))

    def look(self) -> None:
        """Raise Unmeasurable when a card is too hot, has lost its sensor, or nobody watches.

        The load of a card in fatal trouble is ended; the other cards go on.
        """
        for device, reason in self.fatal.look().items():
            self._stop(device, reason)
        if not self.watch.records and self.site.world.clock.monotonic() > self.since + BLIND_S:
            message = f"stopped: no sensor of any card was read for {BLIND_S:.0f} s"
            raise Unmeasurable(message)
        late = self._recent(BLIND_S)
        if late is None:
            return
        for device, own in self.cards.items():
            if self.loads[device].ended:
                continue
            seen = [s for s in late if s.get("uuid") == own.uuid]
            degrees = [amount(s, "temperature") for s in seen if "temperature" in s]
            limit = self.shutdown_c[device]
            if degrees and limit is not None and max(degrees) >= limit - MARGIN_C:
                message = f"stopped: {device} reached {max(degrees):.0f} C, and shuts down at {limit:.0f} C"
                raise Unmeasurable(message)
            if not degrees and self._had_sensor(own):
                message = f"stopped: {device} has shown no temperature for {BLIND_S:.0f} s"
                raise Unmeasurable(message)

    def _stop(self, device: str, reason: str) -> None:
        """End the load of a card, unless it has ended by itself."""
        if not self.loads[device].ended:
            self.stopped[device] = reason
            with suppress(Unmeasurable):
                self.loads[device].stop()

    def wait(self, timeout: float) -> dict[str, str]:
        """Wait for the end of all loads, and return why those that did not end well did not.

        What still runs is left to be ended with its block, when a look stops it or it outlasts `timeout` s.
        """
        clock = self.site.world.clock
        end = clock.monotonic() + timeout
        try:
            while any(not load.ended for load in self.loads.values()) and clock.monotonic() < end:
                self.look()
                clock.sleep(LOOK_S)
        except Unmeasurable as error:
            return self.ends(str(error))
        return self.ends(f"still running after {timeout:g} s")

    def ends(self, cut: str) -> dict[str, str]:
        """Return why each load that did not end well did not; `cut` for one that still runs."""
        found = {}
        for device, load in self.loads.items():
            try:
                if device in self.stopped:
                    found[device] = self.stopped[device]
                elif load.ended:
                    load.stop()
                else:
                    found[device] = cut
            except Unmeasurable as error:
                found[device] = str(error)
        return found

    def rising(self, c_per_min: float) -> bool:
        """Say whether a card under load still grows hotter by more than `c_per_min`; one unseen is said to."""
        late = self._recent(SLOPE_S) or []
        for own in (own for device, own in self.cards.items() if not self.loads[device].ended):
            degrees = [amount(s, "temperature") for s in late if s.get("uuid") == own.uuid and "temperature" in s]
            half = len(degrees) // 2
            if not half or sum(degrees[half:]) / (len(degrees) - half) - sum(degrees[:half]) / half > c_per_min / 2:
                return True
        return False

    def _recent(self, seconds: float) -> list[Record] | None:
        """Return the samples of the last `seconds` s, None when the watch has not run that long."""
        samples, now = self.watch.records, self.site.world.clock.monotonic()
        if not samples or amount(samples[0], "t") > now - seconds:
            return None
        recent = []
        for sample in reversed(samples):
            if amount(sample, "t") < now - seconds:
                break
            recent.append(sample)
        return recent[::-1]

    def _had_sensor(self, own: Card) -> bool:
        return any("temperature" in s for s in self.watch.records if s.get("uuid") == own.uuid)


def shutdown_c(site: Site, own: Card) -> float | None:
    """Return the temperature in C at which a card shuts down by its own word, else by the project's facts."""
    nvml, card = site.world.nvml(), site.profile.card
    try:
        told = nvml.nvmlDeviceGetTemperatureThreshold(own.handle, nvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)
    except nvml.NVMLError:
        told = 0
    known = card.facts.temperature_shutdown_c if card else None
    return float(told) if told > 0 else known
