"""Readings of a run's start as JSON, so that a run that is resumed can go on from them.

Owns the form. A reading is what a probe's `before` returned: frozen dataclasses, mappings, sequences and
scalars. It is read back as what the probe declares to return, never as what the file names.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from pytest_gpuaccept.errors import Unmeasurable

Json = Any
MANY = {"tuple": tuple, "list": list, "frozenset": frozenset}


def encode(value: object) -> Json:
    """Return the JSON form of a reading; raises TypeError for what has none."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Unmeasurable):
        return {"unmeasurable": str(value)}
    if isinstance(value, Mapping):
        return {"mapping": [[encode(key), encode(part)] for key, part in value.items()]}
    name = type(value).__name__
    if isinstance(value, tuple | list | frozenset):
        return {name: [encode(part) for part in value]}
    if is_dataclass(value) and getattr(type(value), "__dataclass_params__").frozen:  # noqa: B009 - not declared
        return {"fields": {f.name: encode(getattr(value, f.name)) for f in fields(value)}, "of": name}
    message = f"a reading of type {name} cannot be kept"
    raise TypeError(message)


def decode(form: Json, read: Callable[..., object]) -> object:
    """Return the reading that `encode` wrote of what `read` returned; raises ValueError for anything else."""
    known: dict[str, type] = {}
    _gather(get_type_hints(read).get("return"), known)
    try:
        return _decode(form, known)
    except (KeyError, TypeError, RecursionError) as error:
        message = f"is no reading of {getattr(read, '__name__', read)}: {type(error).__name__}: {error}"
        raise ValueError(message) from None


def _gather(hint: Any, known: dict[str, type]) -> None:  # noqa: ANN401 - type hints are of any type
    """Collect the dataclasses among a type hint and what it is made of."""
    for part in get_args(hint):
        _gather(part, known)
    if isinstance(hint, type) and is_dataclass(hint) and hint.__name__ not in known:
        known[hint.__name__] = hint
        for part in get_type_hints(hint).values():
            _gather(part, known)


def _decode(form: Json, known: Mapping[str, type]) -> Any:  # noqa: ANN401 - a reading is of any type
    if not isinstance(form, dict):
        return form
    if "of" in form:
        return known[form["of"]](**{name: _decode(part, known) for name, part in form["fields"].items()})
    ((kind, body),) = form.items()
    if kind == "unmeasurable":
        return Unmeasurable(body)
    if kind == "float":
        return float(body)
    if kind == "mapping":
        return {_decode(key, known): _decode(part, known) for key, part in body}
    return MANY[kind](_decode(part, known) for part in body)
