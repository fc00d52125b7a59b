"""Scenarios: which parameters differ from a healthy machine, and which faults it has.

Owns their TOML, the short form of the command line, and that every mistake names file and key.
Preset < machine < per-device override < faults; the machine is machine.py's, the preset build.py's.
"""

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_gpuaccept.errors import InputError, did_you_mean
from pytest_gpuaccept.sim.faults import FAULTS, Fault, checked
from pytest_gpuaccept.sim.machine import When
from pytest_gpuaccept.sim.parts import PARTS

KINDS = {"gpu": "gpu", "nvme": "drive", "disk": "drive", "nic": "nic"}
"""Beginning of a device's id -> kind of part; the other parts are called as their kind."""
DURING = (
    "gemm", "copies", "products", "burn", "steps", "combined", "memory", "fio", "stress-ng", "vllm", "llamacpp",
)  # fmt: skip
"""Loads in which a fault may begin."""
WHEN = {"from_s", "during", "above_c", "on_s", "off_s"}
SHORT = re.compile(r"(?P<device>[a-z]+\d*)\.(?P<name>[a-z][a-z0-9_.]*?)(:(?P<value>[^@]*))?(@(?P<when>.+))?")
FOREVER = 86_400.0


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault on a device, with its value and when it is there."""

    device: str
    fault: Fault
    value: Any
    when: When


@dataclass(frozen=True, slots=True)
class Scenario:
    """What makes a machine differ from a healthy one; `parts` maps a device or a kind to parameters.

    `seed` is which machine it is, `noise` which run on it: silicon, slots and serials follow from the seed alone.
    """

    name: str
    seed: int = 0
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: tuple[PlannedFault, ...] = ()
    noise: int = 0


def kind_of(device: str) -> str:
    """Return the kind of part that a device's name says, or the name itself."""
    stem = device.rstrip("0123456789")
    return KINDS.get(stem, stem)


def load_scenario(text: str, folder: Path, shipped: Path) -> Scenario:
    """Return the scenario of `NAME[,fault=DEVICE.FAULT[:VALUE][@WHEN]][,seed=N][,noise=N]`; NAME may be a path.

    Raises InputError naming file and key, with the nearest known name.
    """
    try:
        return _loaded(text, folder, shipped)
    except (ArithmeticError, OSError, ValueError) as error:
        message = f"scenario {text!r} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise InputError(message) from None


def _loaded(text: str, folder: Path, shipped: Path) -> Scenario:
    name, *more = [word.strip() for word in text.split(",")]
    scenario = _named(name or "healthy", folder, shipped)
    faults, seeds = list(scenario.faults), {"seed": scenario.seed, "noise": scenario.noise}
    given = [word.strip().partition("=")[0] for word in text.split(",")]
    if twice := [key for key in seeds if given.count(key) > 1]:
        message = f"--hw-sim: {twice[0]} is given twice"
        raise InputError(message)
    for word in more:
        key, _, value = word.partition("=")
        if key == "fault":
            faults.append(short_fault(value))
        elif key in seeds and re.fullmatch(r"\d{1,9}", value):
            seeds[key] = int(value)
        else:
            near = did_you_mean(key, ["fault", *seeds])
            message = f"--hw-sim: {word!r} is neither fault=DEVICE.FAULT nor seed=NUMBER nor noise=NUMBER{near}"
            raise InputError(message)
    return Scenario(text, seeds["seed"], scenario.parts, tuple(faults), seeds["noise"])


def short_fault(text: str) -> PlannedFault:
    """Return a fault written as `gpu2.pcie.width:8@burn`; raises InputError."""
    match = SHORT.fullmatch(text)
    if match is None:
        message = (
            f"fault {text!r}: write DEVICE.FAULT, DEVICE.FAULT:VALUE or DEVICE.FAULT@WHEN, as in gpu2.pcie.width:8@burn"
        )
        raise InputError(message)
    value = None if match["value"] is None else _literal(match["value"])
    return planned(match["device"], match["name"], value, _short_when(match["when"], text), f"fault {text!r}")


def planned(device: str, name: str, value: object, when: When, where: str) -> PlannedFault:
    """Return a fault on a device, its value checked; raises InputError with the nearest known name."""
    kind = kind_of(device)
    if kind not in PARTS:
        message = (
            f"{where}: no device {device!r}{did_you_mean(kind, PARTS)}; devices are gpu0, nvme0, nic0, cpu, host ..."
        )
        raise InputError(message)
    key = f"{kind}.{name}"
    if key not in FAULTS:
        of_kind = [fault.name for fault in FAULTS.values() if fault.part == kind]
        message = f"{where}: no fault {name!r} of a {kind}{did_you_mean(name, of_kind)}; see: gpuaccept faults"
        raise InputError(message)
    if when.above_c is not None and kind != "gpu":
        message = f"{where}: above_c is of a GPU's temperature, a {kind} has none"
        raise InputError(message)
    fault = FAULTS[key]
    given = fault.value if value is None else value
    return PlannedFault(device, fault, checked(kind, fault.sets, given, where), when)


def _short_when(text: str | None, where: str) -> When:
    if text is None:
        return When()
    if match := re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)s", text):
        return When(from_s=float(match[1]))
    if match := re.fullmatch(r">(\d{1,3})C", text):
        return When(above_c=float(match[1]))
    if text in DURING:
        return When(during=text)
    message = (
        f"fault {where!r}: {text!r} is no time: 120s, >65C, or one of {', '.join(DURING)}{did_you_mean(text, DURING)}"
    )
    raise InputError(message)


def _literal(text: str) -> object:
    """Return a value of the short form: as TOML would read it, else as text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _named(name: str, folder: Path, shipped: Path) -> Scenario:
    if name.endswith(".toml") or "/" in name:
        return read_scenario(folder / name)
    for place in (folder / "scenarios", shipped):
        if (place / f"{name}.toml").is_file():
            return read_scenario(place / f"{name}.toml")
    known = sorted({file.stem for place in (folder / "scenarios", shipped) for file in place.glob("*.toml")})
    message = f"no scenario {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}, or a path to a .toml"
    raise InputError(message)


def read_scenario(file: Path) -> Scenario:
    """Return the scenario of a TOML file; raises InputError naming file and key."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        message = f"scenario {file}: {getattr(error, 'strerror', None) or error}"
        raise InputError(message) from None
    seed, noise, faults = _seed(table, "seed", file), _seed(table, "noise", file), table.pop("fault", [])
    table.pop("title", None)
    if not isinstance(faults, list) or not all(isinstance(fault, dict) for fault in faults):
        message = f"scenario {file}: fault: write [[fault]] tables"
        raise InputError(message)
    parts = {device: _override(device, values, str(file)) for device, values in table.items()}
    return Scenario(file.stem, seed, parts, tuple(_fault(fault, str(file)) for fault in faults), noise)


def _seed(table: dict[str, Any], key: str, file: Path) -> int:
    seed = table.pop(key, 0)
    if type(seed) is not int or not 0 <= seed < 10**9:
        message = f"scenario {file}: {key}: {seed!r} is not a number from 0 to 999,999,999"
        raise InputError(message)
    return seed


def _override(device: str, values: object, file: str) -> dict[str, Any]:
    kind = kind_of(device)
    where = f"scenario {file}: {device}"
    if kind not in PARTS or not isinstance(values, dict):
        known = ["title", "seed", "noise", "fault", *PARTS, *KINDS]
        message = f"{where}: no such key or part{did_you_mean(kind, known)}; known: {', '.join(known)}, gpu0, nvme0 ..."
        raise InputError(message)
    return {key: checked(kind, key, value, where) for key, value in values.items()}


def _fault(table: dict[str, Any], file: str) -> PlannedFault:
    """Return a `[[fault]]` table: device, name, value, and when."""
    where = f"scenario {file}: fault"
    if unknown := table.keys() - WHEN - {"device", "name", "value"}:
        word = min(unknown)
        message = f"{where}: unknown key {word!r}{did_you_mean(word, [*WHEN, 'device', 'name', 'value'])}"
        raise InputError(message)
    texts = [table.get(key) for key in ("device", "name")]
    if not all(isinstance(text, str) for text in texts):
        message = f'{where}: needs device and name, as in device = "gpu2", name = "pcie.width"'
        raise InputError(message)
    return planned(str(texts[0]), str(texts[1]), table.get("value"), _when(table, where), where)


def _when(table: dict[str, Any], where: str) -> When:
    numbers = {key: table[key] for key in WHEN - {"during"} if key in table}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= FOREVER:
            message = f"{where}: {key} = {value!r} is not a number from 0 to {FOREVER:g}"
            raise InputError(message)
    during = table.get("during", "")
    if during not in ("", *DURING):
        message = (
            f"{where}: during = {during!r} is no load{did_you_mean(str(during), DURING)}; known: {', '.join(DURING)}"
        )
        raise InputError(message)
    if bool(numbers.get("on_s")) != bool(numbers.get("off_s")):
        message = f"{where}: on_s and off_s belong together: seconds there, seconds gone"
        raise InputError(message)
    return When(during=during, **{key: float(value) for key, value in numbers.items()})
