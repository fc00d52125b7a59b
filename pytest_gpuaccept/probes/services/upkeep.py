"""What keeps the machine as it was delivered: the driver's daemon and pin, the clock, systemd's units, its volumes.

Owns the parsers of systemctl, timedatectl, chronyc, apt and dpkg. Must not judge; starts, stops and
configures nothing.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Probe, Site
from pytest_gpuaccept.probes.services.volumes import UNALLOCATED, unallocated
from pytest_gpuaccept.probes.since import BOOT_ID, attempt
from pytest_gpuaccept.probes.tool import TOOL_S, printed

PERSISTENCE = Metric("service.persistence_boot", "Persistence mode survives a restart", "flag", "host")
PINNED = Metric("service.driver_pinned", "Driver is not upgraded by itself", "flag", "host")
TIME = Metric("service.time_sync", "Clock is synchronised", "flag", "host")
FAILED = Metric("service.failed_units", "Failed units", "count", "host", none_seen=True)
SMARTD = Metric("service.smartd", "Daemon that watches the drives' health", "text", "host")
RASDAEMON = Metric("service.rasdaemon", "Daemon that keeps hardware errors", "text", "host")

SHOWN = ("LoadState", "ActiveState", "UnitFileState", "ExecStart", "WantedBy", "FragmentPath", "DropInPaths")
UDEV = ("/etc/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d")
DAEMON, NO_MODE = "nvidia-persistenced", "--no-persistence-mode"
UP = ("running", "starting")
"""What systemd says of itself when no unit has failed."""
UNITS_SHOWN = 5
UNIT = re.compile(r"\S+\.(?:service|socket|target|device|mount|automount|swap|timer|path|slice|scope)")
WHOLE = re.compile(r"nvidia-(?:driver|open|headless)\b|cuda-drivers\b")
"""Packages that require all others of the driver in their own version."""
PARTS = re.compile(r"nvidia-(?:dkms|kernel|utils|compute-utils)|linux-modules-nvidia|lib(?:nvidia|cuda1)")
SETTING = re.compile(r'(\S+) "(.*)";')
BLACKLIST, PERIODIC = "Unattended-Upgrade::Package-Blacklist::", "APT::Periodic::Unattended-Upgrade"
ANY_PERIODIC = "APT::Periodic::Enable"
OWN_CLOCK, MOST_OFF_S = "7F7F", 1.0
"""Beginning of chrony's reference id where it follows itself; seconds by which a clock that is followed may differ."""
CLOCKS = "both clocks at the start"
STEP_S, SLEWED = 1.0, 0.001
"""Seconds by which a clock that runs may leave the kernel's own; share of the time by which it may be slewed."""


def upkeep(site: Site) -> Iterator[Outcome]:
    """Yield what each tool says; one that cannot be read leaves the others alone."""
    for metric, look in LOOKS.items():
        try:
            yield look(site, metric)
        except Unmeasurable as error:
            yield NotMeasured(metric.id, site.device, str(error))


def _systemctl(site: Site, *words: str) -> str:
    return printed(site, "systemctl", *words, remedy="a container has no units, run on the host")


# persistence ---------------------------------------------------------------------------------


def persistence_boot(site: Site, metric: Metric) -> Measurement:
    """Return whether the driver's daemon is started at boot and then turns persistence mode on."""
    shown = properties(_systemctl(site, "show", "-p", ",".join(SHOWN), DAEMON))
    why = _no_daemon(shown)
    if not why:
        starts = _starter(site, shown)
        why = "" if starts else "nothing was found that starts it: it is not enabled, no unit wants it, no udev rule"
        passing = [path for key in ("FragmentPath", "DropInPaths") for path in shown.get(key, "").split()]
        if lost := [path for path in passing if path.startswith("/run/")]:
            why = f"{lost[0]} is gone with the next start: put it below /etc/systemd/system"
        note = f"it is active, and {starts}; {shown['ExecStart'][:200]}"
    return site.measured(metric, not why, note=f"{DAEMON}: {why or note}")


def _no_daemon(shown: Mapping[str, str]) -> str:
    """Return why the daemon will not turn the mode on, '' when it would once it is started."""
    load, active, command = (shown.get(name, "") for name in ("LoadState", "ActiveState", "ExecStart"))
    if not load or (load == "loaded" and not command):
        message = f"systemctl shows nothing of {DAEMON} by which it could be judged: {dict(shown)}"[:200]
        raise Unmeasurable(message)
    if load != "loaded":
        return f"its unit is {load}; nvidia-smi -pm 1 does not survive a restart"
    if NO_MODE in command:
        return f"its unit starts it with {NO_MODE}: override ExecStart in a drop-in"
    return "" if active == "active" else f"it is {active or 'not active'}"


def _starter(site: Site, shown: Mapping[str, str]) -> str:
    """Return what starts the daemon at boot, '' when nothing is found."""
    if shown.get("UnitFileState") == "enabled":
        return "its unit is enabled"
    if (wanted := shown.get("WantedBy", "")) and not shown.get("UnitFileState", "").endswith("-runtime"):
        return f"its unit is wanted by {wanted[:80]}"
    rule = next((path for folder in UDEV for path in _rules(site, folder) if _starts(site, path)), "")
    return f"the udev rules of {rule} start it" if rule else ""


def _rules(site: Site, folder: str) -> list[str]:
    try:
        return [f"{folder}/{name}" for name in site.world.names(folder) if name.endswith(".rules")]
    except Unmeasurable:
        return []


def _starts(site: Site, path: str) -> bool:
    """Say whether a file of udev rules starts the daemon."""
    try:
        lines = site.world.read(path).splitlines()
    except Unmeasurable:
        return False
    rules = [line for line in lines if DAEMON in line and not line.lstrip().startswith("#")]
    return any("SYSTEMD_WANTS" in rule or "systemctl start" in rule for rule in rules)


def properties(text: str) -> dict[str, str]:
    """Parse `systemctl show`; of a property that is there twice, as several ExecStart, all."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key:
            found[key] = f"{found[key]} {value}" if key in found else value
    return found


# driver --------------------------------------------------------------------------------------


def pinned(site: Site, metric: Metric) -> Measurement:
    """Return whether the driver's packages are held or kept from unattended upgrades."""
    if not site.world.has("apt-mark"):
        message = "how the driver is pinned is known for apt only: look at `dnf versionlock list` and attest it"
        raise Unmeasurable(message)
    packages = driver_packages(printed(site, "dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package}\n"))
    if not packages:
        message = "no package of the NVIDIA driver is installed, so apt cannot pin it: where does it come from?"
        raise Unmeasurable(message)
    held = set(printed(site, "apt-mark", "showhold").split())
    dump = printed(site, "apt-config", "dump")
    site.attach("apt-config", dump)
    how = pin(packages, {name.partition(":")[0] for name in held}, dump)
    note = how or f"{', '.join(packages[:4])}: not held, not in {BLACKLIST[:-2]}, and unattended upgrades are on"
    return site.measured(metric, bool(how), note=note)


def driver_packages(text: str) -> list[str]:
    """Return the installed packages of the driver from dpkg-query's list; raises Unmeasurable when it is none."""
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if not rows or any(len(row) != 2 for row in rows):  # noqa: PLR2004 - a state and a name
        message = f"dpkg-query's list cannot be read: {text[:80]!r}"
        raise Unmeasurable(message)
    installed = sorted(name for state, name in rows if state[1:2] == "i")
    return [name for name in installed if WHOLE.match(name) or PARTS.match(name)]


def pin(packages: Sequence[str], held: set[str], dump: str) -> str:
    """Return what keeps apt from upgrading the driver by itself, '' when nothing does."""
    if whole := [name for name in packages if WHOLE.match(name) and name in held]:
        return f"{', '.join(whole)} on hold"
    if held >= set(packages):
        return f"{len(packages)} packages on hold"
    settings = [(parts[1], parts[2]) for line in dump.splitlines() if (parts := SETTING.fullmatch(line.strip()))]
    kept = [value for key, value in settings if key == BLACKLIST]
    if all(any(_matches(pattern, name) for pattern in kept) for name in packages):
        return f"unattended upgrades leave out {', '.join(kept)[:120]}"
    if not settings:
        message = f"apt-config's settings cannot be read: {dump[:80]!r}"
        raise Unmeasurable(message)
    return "" if _unattended(settings) else "unattended upgrades are off; an upgrade by hand still changes it"


def _matches(pattern: str, name: str) -> bool:
    """Say whether unattended-upgrades would leave a package out: the pattern matches the beginning of its name."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return re.match(pattern, name) is not None
    except (re.error, RecursionError, OverflowError):
        return False


def _unattended(settings: Sequence[tuple[str, str]]) -> bool:
    return all(_last(settings, key, usual) not in ("", "0") for key, usual in ((ANY_PERIODIC, "1"), (PERIODIC, "0")))


def _last(settings: Sequence[tuple[str, str]], wanted: str, usual: str) -> str:
    return next((value for key, value in reversed(settings) if key == wanted), usual).strip()


# clock ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moment:
    """The wall clock, in s since 1970, and the kernel's own, in s since a boot."""

    wall: float
    monotonic: float
    boot: str


def moment(site: Site) -> Moment:
    """Return the time by both clocks."""
    clock = site.world.clock
    return Moment(clock.now().timestamp(), clock.monotonic(), site.world.read(BOOT_ID))


def remember(site: Site) -> Moment:
    """Return the time, which is compared with the end of this process: a run that is resumed may have another clock."""
    site.memory[CLOCKS] = now = moment(site)
    return now


def step(first: Moment, last: Moment) -> float:
    """Return by how many s the wall clock was set between two moments, 0 for what slewing explains."""
    passed = last.monotonic - first.monotonic
    by = last.wall - first.wall - passed
    return by if first.boot == last.boot and abs(by) > STEP_S + SLEWED * passed else 0.0


def time_sync(site: Site, metric: Metric) -> Measurement:
    """Return whether the clock follows another, and was not set during the run."""
    first, now = site.memory.get(CLOCKS), attempt(partial(moment, site))
    if isinstance(first, Moment) and isinstance(now, Moment) and (by := step(first, now)):
        note = f"the clock was set by {by:+.1f} s during the run: times in logs and evidence do not fit together"
        return site.measured(metric, value=False, note=note)
    return _followed(site, metric)


def _followed(site: Site, metric: Metric) -> Measurement:
    """Return whether the clock is synchronised: what systemd says, else what chrony does."""
    try:
        said = printed(site, "timedatectl", "show", "-p", "NTPSynchronized")
        value, note = parse_flag(said), "timedatectl"
    except Unmeasurable as error:
        value, note = None, str(error)
    if value:
        return site.measured(metric, value=True, note=note)
    try:
        why = unfollowed(printed(site, "chronyc", "tracking"))
        return site.measured(metric, not why, note=f"chronyc: {why}" if why else "chronyc")
    except Unmeasurable as error:
        if value is None:
            message = f"{note}; {error}: start systemd-timesyncd, or install chrony"
            raise Unmeasurable(message) from None
    return site.measured(metric, value=False, note=f"{note} says that it is not")


def parse_flag(text: str) -> bool:
    """Return the value of `NTPSynchronized=yes`; raises Unmeasurable for anything else but yes and no."""
    flag = {"NTPSynchronized=yes": True, "NTPSynchronized=no": False}.get(text.strip())
    if flag is None:
        message = f"timedatectl says {text[:60]!r}, which is neither yes nor no"
        raise Unmeasurable(message)
    return flag


def unfollowed(text: str) -> str:
    """Return why chrony's clock follows no other, '' when it does; raises Unmeasurable where tracking does not say."""
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    off = re.match(r"([0-9]{1,12}\.[0-9]{1,12}) seconds (?:slow|fast)", said.get("System time", ""))
    if "Leap status" not in said or off is None or not said.get("Reference ID"):
        message = f"chronyc does not tell what it follows: {text[:60]!r}"
        raise Unmeasurable(message)
    if said["Leap status"] not in ("Normal", "Insert second", "Delete second"):
        return said["Leap status"]
    if said["Reference ID"].startswith(OWN_CLOCK):
        return "it follows its own clock"
    return f"{off[1]} s off" if float(off[1]) >= MOST_OFF_S else ""


# units ---------------------------------------------------------------------------------------


def failed_units(site: Site, metric: Metric) -> Measurement:
    """Return how many units have failed, named; the last lines of the first ones are kept in the evidence."""
    listing = ("list-units", "--state=failed", "--plain", "--no-legend", "--no-pager", "--output=json")
    units = parse_units(_systemctl(site, *listing))
    state = site.world.command(("systemctl", "is-system-running"), timeout=TOOL_S).stdout.strip()
    for unit in units[:UNITS_SHOWN]:
        site.attach(f"failed unit: {unit}", _last_lines(site, unit))
    if not units and state not in UP:
        message = f"systemd lists no failed unit and says {state[:40]!r} of itself: look at systemctl --failed"
        raise Unmeasurable(message)
    note = ", ".join(units[: 2 * UNITS_SHOWN])
    return site.measured(metric, len(units), proof=f"systemd says {state!r} of itself", note=note)


def _last_lines(site: Site, unit: str) -> str:
    done = site.world.command(("systemctl", "status", "--no-pager", "--full", "--lines=50", "--", unit), timeout=TOOL_S)
    return done.stdout or done.stderr


def parse_units(text: str) -> list[str]:
    """Return the units' names from systemctl's list: JSON, or the table of a systemd that knows no JSON here."""
    if not text.lstrip().startswith("["):
        rows = [line.removeprefix("\u25cf").split() for line in text.splitlines()]
        return [_unit(row[0]) for row in rows if row]
    try:
        return [_unit(str(row["unit"])) for row in json.loads(text)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        message = f"systemctl's list of units cannot be read ({type(error).__name__}): {text[:80]!r}"
        raise Unmeasurable(message) from None


def _unit(name: str) -> str:
    if not UNIT.fullmatch(name):
        message = f"systemctl lists {name[:40]!r}, which is no unit"
        raise Unmeasurable(message)
    return name


def daemon(*names: str) -> Callable[[Site, Metric], Measurement]:
    """Return what says of a daemon, under the first of its names that is there, whether it is active."""

    def look(site: Site, metric: Metric) -> Measurement:
        for name in names:
            shown = properties(_systemctl(site, "show", "-p", "LoadState,ActiveState", name))
            if "LoadState" not in shown or "ActiveState" not in shown:
                message = f"systemctl shows nothing of {name}"
                raise Unmeasurable(message)
            if shown["LoadState"] != "not-found":
                return site.measured(metric, shown["ActiveState"], note=name)
        return site.measured(metric, "not installed", note=", ".join(names))

    return look


LOOKS: dict[Metric, Callable[[Site, Metric], Measurement]] = {
    PERSISTENCE: persistence_boot, PINNED: pinned, TIME: time_sync, FAILED: failed_units,
    SMARTD: daemon("smartd", "smartmontools"), RASDAEMON: daemon("rasdaemon"), UNALLOCATED: unallocated,
}  # fmt: skip

PROBES = (Probe("host.upkeep", "final", "host", tuple(LOOKS), upkeep, before=remember),)
