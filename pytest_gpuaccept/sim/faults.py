"""The catalogue of faults: each a name, a page, and the parameters that it sets.

Owns reading faults.toml. A fault changes physics or raw bytes, never a measurement or a verdict;
which spec line notices it is not known here.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pytest_gpuaccept.errors import InputError, did_you_mean
from pytest_gpuaccept.sim.parts import PARTS


@dataclass(frozen=True, slots=True)
class Fault:
    """A named defect of a part.

    Args:
        part: the kind of part that can have it.
        name: dotted; `gpu2.pcie.width:8` puts `pcie.width` with value 8 on gpu2.
        sets: the parameter that it sets.
        value: what it sets it to unless a value is given.
        page: what it is on a real machine, and who overlooks it.
        also: further parameters that it sets, whatever value is given.

    """

    part: str
    name: str
    sets: str
    value: Any
    page: str
    also: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return the name in the catalogue: `gpu.pcie.width`."""
        return f"{self.part}.{self.name}"


def checked(part: str, parameter: str, value: object, where: str) -> object:
    """Return `value` as the parameter takes it; raises InputError saying what it takes."""
    known = PARTS[part].model_fields
    if parameter not in known:
        message = f"{where}: a {part} has no parameter {parameter!r}{did_you_mean(parameter, known)}"
        raise InputError(message)
    fits = float(value) if known[parameter].annotation is float and type(value) is int else value
    made = PARTS[part]()
    try:
        PARTS[part].__pydantic_validator__.validate_assignment(made, parameter, fits)
    except ValidationError as error:
        message = f"{where}: {parameter} = {value!r}: {error.errors()[0]['msg']}"
        raise InputError(message) from None
    if type(taken := getattr(made, parameter)) is not type(fits):
        message = f"{where}: {parameter} = {value!r}: write it as {taken!r}"
        raise InputError(message)
    return fits


def _catalogue(file: Path) -> dict[str, Fault]:
    """Return the faults of a catalogue file, every value checked; raises InputError."""
    tables = tomllib.loads(file.read_text(encoding="utf-8"))
    found = [Fault(part, name, **table) for part, of_part in tables.items() for name, table in of_part.items()]
    for fault in found:
        for parameter, value in {fault.sets: fault.value, **fault.also}.items():
            checked(fault.part, parameter, value, f"{file.name}: {fault.key}")
    return {fault.key: fault for fault in found}


FAULTS: dict[str, Fault] = _catalogue(Path(__file__).with_name("faults.toml"))
"""`gpu.pcie.width` -> the fault."""
