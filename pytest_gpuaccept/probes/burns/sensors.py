"""The CPUs' sensors under load: temperature, clocks, throttle counters, power. Ends a load that is too hot.

Owns hwmon's CPU thermometers, cpufreq, Intel's throttle counters and the package's energy counters.
The limits here are of safety, not of the contract. Must not judge.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.host.confines import shown
from pytest_gpuaccept.profile import Scalar

HWMON, CPUS, POWERCAP = "/sys/class/hwmon", "/sys/devices/system/cpu", "/sys/class/powercap"
DRIVERS = {"k10temp": "Tctl", "zenpower": "Tctl", "coretemp": "Package id"}
"""hwmon driver -> beginning of the label of the temperature that its CPU throttles by."""
ABORT_C = 100.0
"""Temperature at which a load is ended; at the sensor's own critical one where that is lower.

Desktop CPUs work at up to 95 C by design (AMD's data sheets of the Ryzen 7000 and 9000 say Tjmax 95 C)."""
COLDEST_C, HOTTEST_C = 0.0, 150.0
"""Between these a thermometer shows a temperature, at and beyond them a defect."""
BLIND_S = 10.0
"""Seconds without a reading after which a load is ended that had one."""
LOOK_S = 1.0
RAMP_S = 2.0
"""Seconds at the beginning of a load that say nothing of its clocks."""
SEEN_SHARE = 0.9
"""Share of the looks that must have seen a temperature, or a clock, for it to be one of the load."""
LEAST_SAMPLES = 3
MOST_SAMPLES = 200
"""Looks at the clocks of all CPUs in one load."""
FASTEST_MHZ = 20_000.0
NO_SENSOR = "no CPU thermometer in /sys/class/hwmon: load k10temp or coretemp (modprobe); a virtual machine has none"


@dataclass(frozen=True, slots=True)
class Thermometer:
    """One CPU's thermometer: its name, its file, and at how many C a load is ended."""

    name: str
    path: str
    abort_c: float


@dataclass(frozen=True, slots=True)
class Look:
    """One look: when in s, the hottest CPU in C (None unread), the clock of each CPU in MHz where it was looked at."""

    t: float
    degrees: float | None
    mhz: Mapping[int, float]


class Sensors:
    """Looks at the CPUs' sensors while a load runs."""

    def __init__(self, site: Site, seconds: float, cpus: Sequence[int]) -> None:
        """Find the sensors; `seconds` is how long the load is to run on the CPUs `cpus`."""
        self._site, self._cpus = site, cpus
        self.thermometers = thermometers(site)
        self._watched = [own for own in self.thermometers if degrees(site, own.path) is not None]
        self.clocks, self.no_clocks = _clock_source(site, cpus)
        self.looks: list[Look] = []
        self._throttled, self._energy, self._used_uj = throttle_count(site, cpus), energy_uj(site), 0
        self._clocks_every = max(LOOK_S, seconds / MOST_SAMPLES)
        self._began = self._seen = site.world.clock.monotonic()
        self._due = self._clocks_due = self._began

    def look(self) -> None:
        """Read the sensors when it is time; raises Unmeasurable when a CPU is too hot or its thermometer silent."""
        now = self._site.world.clock.monotonic()
        if now < self._due:
            return
        self._due = now + LOOK_S
        self._count_energy()
        read = [(own, degrees(self._site, own.path)) for own in self._watched]
        known = [value for _, value in read if value is not None]
        self.looks.append(Look(now, max(known, default=None), self._mhz(now)))
        self._check(now, read)

    def _count_energy(self) -> None:
        """Add what the packages used since the last look: at 200 W their counters begin anew every five minutes."""
        before, now = self._energy, energy_uj(self._site)
        if now.keys() == before.keys():
            self._used_uj += sum((now[zone][0] - was) % (most + 1) for zone, (was, most) in before.items())
            self._energy = now
        else:
            self._energy = {}

    def _mhz(self, now: float) -> dict[int, float]:
        if not self.clocks or now < self._clocks_due:
            return {}
        self._clocks_due = now + self._clocks_every
        return clocks(self._site, self.clocks, self._cpus)

    def _check(self, now: float, read: Sequence[tuple[Thermometer, float | None]]) -> None:
        for own, value in read:
            if value is not None and value >= own.abort_c:
                message = f"stopped: {own.name} reached {value:.0f} C, and {own.abort_c:.0f} C is where a burn is ended"
                raise Unmeasurable(message)
        if all(value is not None for _, value in read):
            self._seen = now
        elif now - self._seen >= BLIND_S:
            lost = next(own.name for own, value in read if value is None)
            message = f"stopped: {lost} has shown no temperature for {BLIND_S:.0f} s"
            raise Unmeasurable(message)

    def hottest(self) -> tuple[float, int]:
        """Return the highest temperature in C and how many looks saw one; raises Unmeasurable when a CPU shows none."""
        if not self.thermometers:
            raise Unmeasurable(NO_SENSOR)
        if silent := [own.path for own in self.thermometers if own not in self._watched]:
            message = f"{silent[0]} shows no temperature, so a CPU may be hotter than the others"
            raise Unmeasurable(message)
        seen = [look.degrees for look in self.looks if look.degrees is not None]
        if not seen or len(seen) < SEEN_SHARE * len(self.looks):
            message = f"{self.thermometers[0].name} showed a temperature in {len(seen)} of {len(self.looks)} looks"
            raise Unmeasurable(message)
        return max(seen), len(seen)

    def slowest(self) -> tuple[float, int, int]:
        """Return the lowest of all CPUs' median clocks under load in MHz, the CPU, and how many looks there were.

        Raises Unmeasurable when a CPU shows no clock, or was looked at too seldom.
        """
        if not self.clocks:
            raise Unmeasurable(self.no_clocks)
        looks = [look.mhz for look in self.looks if look.mhz and look.t >= self._began + RAMP_S]
        medians = {}
        for cpu in self._cpus:
            seen = [mhz[cpu] for mhz in looks if cpu in mhz]
            if len(seen) < max(LEAST_SAMPLES, SEEN_SHARE * len(looks)):
                message = f"cpu{cpu} showed its clock in {len(seen)} of {len(looks)} looks under load ({self.clocks})"
                raise Unmeasurable(message)
            medians[cpu] = median(seen)
        slowest = min(medians, key=lambda cpu: medians[cpu])
        return medians[slowest], slowest, len(looks)

    def besides(self) -> dict[str, Scalar]:
        """Return what else was seen since the beginning, where it is shown: throttle events, W of the packages."""
        found: dict[str, Scalar] = {}
        now = throttle_count(self._site, self._cpus)
        if now is not None and self._throttled is not None:
            found["throttle_events"] = now - self._throttled
        self._count_energy()
        if self._energy and (seconds := self._site.world.clock.monotonic() - self._began) > 0:
            found["package_w"] = round(self._used_uj / 1e6 / seconds, 1)
        return found

    def text(self) -> str:
        """Write all looks, one a line: seconds, C, lowest MHz; empty for what was not read."""
        rows = (
            f"{look.t - self._began:.1f},{'' if look.degrees is None else f'{look.degrees:.1f}'},"
            f"{f'{min(look.mhz.values()):.0f}' if look.mhz else ''}\n"
            for look in self.looks
        )
        return "s,C,lowest MHz\n" + "".join(rows)


def thermometers(site: Site) -> list[Thermometer]:
    """Return every CPU's thermometer, also one that shows nothing."""
    return [own for chip in _names(site, HWMON) for own in _of_chip(site, f"{HWMON}/{chip}")]


def _of_chip(site: Site, folder: str) -> Iterator[Thermometer]:
    driver = shown(site, f"{folder}/name")
    if driver not in DRIVERS:
        return
    inputs = [name.removesuffix("_input") for name in _names(site, folder) if re.fullmatch(r"temp\d{1,3}_input", name)]
    labels = {own: shown(site, f"{folder}/{own}_label") for own in inputs}
    unlabelled = {own: own for own in inputs[:1]} if not any(labels.values()) else {}
    wanted = {own: label for own, label in labels.items() if label.startswith(DRIVERS[driver])}
    for own, label in (wanted or unlabelled).items():
        critical = degrees(site, f"{folder}/{own}_crit")
        yield Thermometer(f"{driver} {label}", f"{folder}/{own}_input", min(ABORT_C, critical or ABORT_C))


def degrees(site: Site, path: str) -> float | None:
    """Return a temperature in C, None for a file that shows none."""
    text = shown(site, path)
    value = int(text) / 1000 if re.fullmatch(r"-?\d{1,7}", text) else COLDEST_C
    return value if COLDEST_C < value < HOTTEST_C else None


def _clock_source(site: Site, cpus: Sequence[int]) -> tuple[str, str]:
    """Return where the CPUs show their clocks, or '' and why nowhere."""
    if clocks(site, "cpufreq", cpus[:1]):
        return "cpufreq", ""
    if re.search(r"^flags\s*:.*\bhypervisor\b", shown(site, "/proc/cpuinfo"), re.MULTILINE):
        return "", "a virtual machine does not show the clocks of its CPUs: run on the machine itself"
    if clocks(site, "cpuinfo", cpus[:1]):
        return "cpuinfo", ""
    return "", "neither cpufreq nor /proc/cpuinfo shows the clocks of the CPUs: load a cpufreq driver"


def clocks(site: Site, source: str, cpus: Sequence[int]) -> dict[int, float]:
    """Return the clock of each CPU in MHz that one shows."""
    if source == "cpufreq":
        texts = {cpu: shown(site, f"{CPUS}/cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in cpus}
        read = {cpu: int(text) / 1000 for cpu, text in texts.items() if re.fullmatch(r"\d{1,9}", text)}
    else:
        pattern = r"^processor\s*:\s*(\d{1,5})$(?:\n(?!processor).*)*?\ncpu MHz\s*:\s*(\d{1,6}\.\d{1,6})$"
        pairs = re.findall(pattern, shown(site, "/proc/cpuinfo"), re.MULTILINE)
        read = {int(cpu): float(mhz) for cpu, mhz in pairs if int(cpu) in cpus}
    return {cpu: mhz for cpu, mhz in read.items() if 0.0 < mhz < FASTEST_MHZ}


def throttle_count(site: Site, cpus: Sequence[int]) -> int | None:
    """Return how often CPUs and packages throttled for heat since boot, None where the kernel does not count."""
    kinds = ("core", "package")
    texts = [shown(site, f"{CPUS}/cpu{cpu}/thermal_throttle/{kind}_throttle_count") for cpu in cpus for kind in kinds]
    counts = [int(text) for text in texts if re.fullmatch(r"\d{1,18}", text)]
    return sum(counts) if counts else None


def energy_uj(site: Site) -> dict[str, tuple[int, int]]:
    """Return each package's energy counter in uJ and the highest that it shows, as far as we may read it."""
    found = {}
    for zone in _names(site, POWERCAP):
        if re.fullmatch(r"intel-rapl:\d{1,3}", zone):
            texts = [shown(site, f"{POWERCAP}/{zone}/{file}") for file in ("energy_uj", "max_energy_range_uj")]
            if all(re.fullmatch(r"\d{1,18}", text) for text in texts):
                found[zone] = (int(texts[0]), int(texts[1]))
    return found


def _names(site: Site, folder: str) -> list[str]:
    """Return the names in a folder, none when there is none."""
    try:
        return site.world.names(folder)
    except Unmeasurable:
        return []
