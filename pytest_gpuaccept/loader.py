"""TOML to profiles: finding, inheriting, resolving, with every mistake told at once.

Owns where profiles and cards are looked for and what a file may say. The values are profile.py's,
the rules lint.py's.
"""

import re
import tomllib
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from pytest_gpuaccept import lint
from pytest_gpuaccept.errors import InputError, did_you_mean
from pytest_gpuaccept.lint import Mistake
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.profile import (
    Attestation,
    Card,
    DeviceFacts,
    Line,
    Profile,
    Scalar,
    StrictModel,
    Waiver,
    gpu_devices,
)

HERE = Path(__file__).parent
SHIPPED = HERE / "shipped" if (HERE / "shipped").is_dir() else HERE.parent
"""Where acceptance/, thresholds/ and recordings/ lie: inside the wheel, or beside a checkout."""

COMPOSED = re.compile(r"(?P<count>[1-9]|[1-5]\d|6[0-4])x(?P<card>[\w.-]+)")
RESERVED = {"id", "file"}
LIMITS = ("min", "max", "equals", "one_of", "min_fraction")
EFFORTS = ("quick", "standard", "soak")
IDENTITY = {"@card.name": "NVML product string", "@card.pci_device_id": "PCI device id of the model"}
Table = dict[str, Any]
M = TypeVar("M", bound=BaseModel)


class ProfileFile(StrictModel):
    """What a profile file may say; the tables of `line` are checked one by one."""

    title: str
    inherits: list[str] = []
    card: str | None = None
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    devices: dict[str, list[str]] = {}
    device: dict[str, DeviceFacts] = {}
    params: dict[str, dict[str, Scalar]] = {}
    effort: dict[str, dict[str, dict[str, Scalar]]] = {}
    line: dict[str, Table] = {}


class WaiverFile(StrictModel):
    """A waiver file: `[[waiver]]` tables."""

    waiver: list[Waiver]


class AttestationFile(StrictModel):
    """An attestation file: `[[attested]]` tables."""

    attested: list[Attestation]


def load_profile(name: str, catalogue: Catalogue, folder: Path, effort: str = "standard") -> Profile:
    """Return the profile called `name` (a name, a path, or `<N>x<card>`), resolved and linted.

    Raises InputError naming every mistake with file, line id, key and reason.
    """
    loader = _Loader(folder, catalogue)
    try:
        profile, file = loader.load(name, effort)
        found = lint.check(profile, catalogue, file) if profile else []
    except (ArithmeticError, LookupError, OSError, RecursionError, ValueError) as error:
        message = f"profile {name!r} cannot be read: {type(error).__name__}: {error}"
        raise InputError(message) from None
    mistakes = [*loader.mistakes, *found]
    if mistakes or profile is None:
        lines = "\n".join(f"  {mistake}" for mistake in dict.fromkeys(mistakes))
        message = f"profile {name!r} cannot be used, {len(dict.fromkeys(mistakes))} mistake(s):\n{lines}"
        raise InputError(message)
    return profile


def known_profiles(folder: Path) -> list[str]:
    """Return the names of the profiles that can be signed off with."""
    files = [f for place in _places(folder) for f in sorted(place.glob("*.toml")) if "." not in f.stem]
    return list(dict.fromkeys(f.stem for f in files if not f.stem.startswith("base-")))


def _places(folder: Path) -> list[Path]:
    return list(dict.fromkeys([(folder / "thresholds").resolve(), (SHIPPED / "thresholds").resolve()]))


class _Loader:
    """One loading: gathers mistakes instead of stopping at the first."""

    def __init__(self, folder: Path, catalogue: Catalogue) -> None:
        self.folder, self.catalogue = folder, catalogue
        self.mistakes: list[Mistake] = []
        self._where: dict[str, str] = {}

    def load(self, name: str, effort: str) -> tuple[Profile | None, str]:
        file = self._find(name)
        if file is not None:
            raw = self._inherited(file)
        elif match := COMPOSED.fullmatch(name):
            raw = self._composed(int(match["count"]), match["card"])
        else:
            known = known_profiles(self.folder)
            here = f" (did you mean {name}.toml?)" if (self.folder / f"{name}.toml").is_file() else ""
            near = here or did_you_mean(name, known)
            message = f"no profile {name!r}{near}; known: {', '.join(known)}, a path, or <N>x<card>"
            raise InputError(message)
        if raw is None:
            return None, str(file or name)
        return self._resolve(name, raw, effort, file), self._show(file) if file else f"<{name}>"

    def cards(self) -> dict[str, Card]:
        found, seen = dict[str, Card](), set[str]()
        for place in _places(self.folder):
            for file in sorted((place / "cards").glob("*.toml")):
                if file.stem not in seen and (card := self._model(Card, self._toml(file), self._show(file))):
                    found[file.stem] = card
                seen.add(file.stem)
        for (name, card), (other, same) in combinations(found.items(), 2):
            if card.pci_device_id == same.pci_device_id or {*card.aliases} & {*same.aliases}:
                reason = f"{other} has its PCI device id or an alias too: each belongs to one model"
                self._wrong(Path("thresholds/cards") / f"{name}.toml", "pci_device_id", reason)
        return found

    def _find(self, name: str) -> Path | None:
        if name.endswith(".toml") or "/" in name:
            if not (self.folder / name).is_file():
                message = f"profile {name!r}: no such file"
                raise InputError(message)
            return (self.folder / name).resolve()
        files = (place / f"{name}.toml" for place in _places(self.folder))
        return next((file for file in files if file.is_file()), None)

    def _inherited(self, file: Path) -> ProfileFile | None:
        """Return a file's own tables over those of the files that it inherits."""
        files: dict[Path, ProfileFile] = {}
        self._gather(file, (), files)
        merged: Table = {}
        for path, own in files.items():
            merged = _over(merged, own.model_dump(exclude_unset=True))
            self._where |= dict.fromkeys(own.line, self._show(path))
        return ProfileFile.model_validate({**merged, "inherits": []}) if file in files else None

    def _gather(self, file: Path, above: tuple[Path, ...], files: dict[Path, ProfileFile]) -> None:
        """Add a file behind those that it inherits, each once: a shared base cannot undo what stands above it."""
        if file in above:
            self._wrong(file, "inherits", "inherits itself")
        if file in above or file in files:
            return
        table = self._toml(file)
        own = self._model(ProfileFile, table, self._show(file)) or _what_is_sound(table)
        for parent in own.inherits if own else ():
            if base := self._base(file, parent):
                self._gather(base, (*above, file), files)
        if own:
            files[file] = own

    def _base(self, file: Path, parent: str) -> Path | None:
        beside = file.parent / f"{parent}.toml"
        found = beside.resolve() if beside.is_file() else self._find(parent)
        if found is None:
            self._wrong(file, "inherits", f"no profile {parent!r}{did_you_mean(parent, known_profiles(self.folder))}")
        return found

    def _composed(self, count: int, card: str) -> ProfileFile | None:
        base = self._find("base-gpu")
        raw = self._inherited(base) if base else None
        title = f"{count}x {card}, composed from the card's facts"
        return raw.model_copy(update={"title": title, "card": card, "gpus": count}) if raw else None

    def _resolve(self, name: str, raw: ProfileFile, effort: str, file: Path | None) -> Profile | None:
        card_name = self._card_name(raw.card, name) if raw.card else None
        card = self.cards()[card_name] if card_name else None
        refers = any("@card." in str(line.get(key)) for line in raw.line.values() for key in LIMITS)
        if card is None and (raw.gpus or refers):
            if not raw.card:
                reason = "missing: which GPU was ordered? One of " + ", ".join(self.cards())
                self.mistakes.append(Mistake(self._show(file) if file else name, "", "card", reason))
            return None
        lines = {i: line for i, table in raw.line.items() if (line := self._line(i, table, card, raw.gpus))}
        named: Table = {kind: tuple(ids) for kind, ids in raw.devices.items()}
        named |= {"host": ("host",)} | {str(kind): ids for kind, ids in gpu_devices(raw.gpus).items()}
        waivers = self._beside(WaiverFile, "waivers", name, file)
        attested = self._beside(AttestationFile, "attested", name, file)
        table = {
            "name": file.stem if file else name, "title": raw.title, "card_name": card_name, "card": card,
            "gpus": raw.gpus, "devices": named, "device": raw.device, "effort": effort, "lines": lines,
            "params": _over_tables(raw.params, raw.effort.get(effort, {})),
            "waivers": tuple(waivers.waiver) if waivers else (),
            "attested": tuple(attested.attested) if attested else (),
        }  # fmt: skip
        for kind in raw.devices.keys() & {"gpu", "gpu_pair", "host"}:
            self._wrong(file or Path(name), f"devices.{kind}", "follows from `gpus`, and cannot be listed")
        for unknown in raw.effort.keys() - set(EFFORTS):
            self._wrong(file or Path(name), f"effort.{unknown}", f"unknown effort{did_you_mean(unknown, EFFORTS)}")
        for params in raw.effort.values():
            for key, reason in lint.check_params(params, self.catalogue):
                self._wrong(file or Path(name), f"effort: {key}", reason)
        return self._model(Profile, table, self._show(file) if file else name)

    def _card_name(self, word: str, profile: str) -> str | None:
        cards = self.cards()
        names = {alias: name for name, card in cards.items() for alias in card.aliases} | {n: n for n in cards}
        if word.lower() not in names:
            reason = f"no card {word!r}{did_you_mean(word.lower(), names)}; known: {', '.join(cards)}"
            self.mistakes.append(Mistake(profile, "", "card", reason))
        return names.get(word.lower())

    def _line(self, name: str, table: Table, card: Card | None, gpus: int) -> Line | None:
        where, body = self._where.get(name, ""), dict(table)
        for key in RESERVED & body.keys():
            self.mistakes.append(Mistake(where, name, key, "unknown key"))
            return None
        try:
            uncalibrated = _refer(body, card, gpus) or body.get("uncalibrated") is True
            if "min_fraction" in body:
                self._fraction(name, body, card)
            _absolute_guard(body)
        except InputError as error:
            key, _, reason = str(error).partition(": ")
            self.mistakes.append(Mistake(where, name, key, reason))
            return None
        if uncalibrated:
            body = {"severity": "advisory", **body, "uncalibrated": True}
        return self._model(Line, {"id": name, "file": where, **body}, where, name)

    def _fraction(self, name: str, body: Table, card: Card | None) -> None:
        """Turn `min_fraction` into a `min` in the metric's unit; the source says so."""
        metric, share = self.catalogue.metrics.get(name), body.pop("min_fraction")
        rate = card.rates().get(metric.rate or "") if card and metric else None
        if "min" in body or not isinstance(share, float) or rate is None or rate.nominal is None:
            message = "min_fraction: takes a number like 0.75, no min beside it, and a metric whose rate the card gives"
            raise InputError(message)
        body["min"] = share * rate.nominal
        body["source"] = f"{share:g} of {rate.nominal:g} {rate.unit}: {body.get('source', '')}"

    def _beside(self, model: type[M], ending: str, name: str, file: Path | None) -> M | None:
        """Return the waivers or attestations that lie beside the profile, or in ./thresholds."""
        stem = file.stem if file else name
        places = ([file.parent] if file else []) + [self.folder / "thresholds"]
        for found in (place / f"{stem}.{ending}.toml" for place in places):
            if found.is_file():
                return self._model(model, self._toml(found), self._show(found))
        return None

    def _toml(self, file: Path) -> Table | None:
        try:
            return tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            self._wrong(file, "", f"cannot be read: {error}")
            return None

    def _model(self, model: type[M], table: Table | None, file: str, line: str = "") -> M | None:
        if table is None:
            return None
        try:
            return model.model_validate(table)
        except ValidationError as error:
            for detail in error.errors():
                key, reason = _flaw(detail["loc"], detail["type"], detail["msg"], model)
                self.mistakes.append(Mistake(file, line, key, reason))
            return None

    def _wrong(self, file: Path, key: str, reason: str) -> None:
        self.mistakes.append(Mistake(self._show(file), "", key, reason))

    def _show(self, file: Path) -> str:
        return str(file.relative_to(self.folder)) if file.is_relative_to(self.folder) else str(file)


def _what_is_sound(table: Table | None) -> ProfileFile | None:
    """Return a refused file without the keys that were refused, so that the mistakes in its lines are told too."""
    try:
        ProfileFile.model_validate(table)
    except ValidationError as error:
        wrong = {detail["loc"][0] for detail in error.errors() if detail["loc"]}
        sound = {key: value for key, value in (table or {}).items() if key not in wrong}
        return ProfileFile.model_validate({"title": "", **sound}) if table is not None else None
    return None


def _over(base: Table, own: Table) -> Table:
    """Return `base` overridden by `own`: tables by key, spec lines by id."""
    merged = {**base, **own}
    for key in ("devices", "device", "line"):
        merged[key] = {**base.get(key, {}), **own.get(key, {})}
    for name, line in own.get("line", {}).items():
        merged["line"][name] = _line_over(base.get("line", {}).get(name, {}), line)
    merged["params"] = _over_tables(base.get("params", {}), own.get("params", {}))
    efforts = base.get("effort", {}), own.get("effort", {})
    merged["effort"] = {
        word: _over_tables(*(of.get(word, {}) for of in efforts)) for word in {**efforts[0], **efforts[1]}
    }
    return merged


def _line_over(base: Table, own: Table) -> Table:
    """Return a line overridden; a new limit takes nothing but the unit from the old one."""
    if any(key in own for key in LIMITS) and "unit" in base:
        return {"unit": base["unit"], **own}
    return {**base, **own}


def _over_tables(base: Table, own: Table) -> Table:
    return {name: {**base.get(name, {}), **own.get(name, {})} for name in [*base, *(n for n in own if n not in base)]}


def _refer(body: Table, card: Card | None, gpus: int) -> bool:
    """Replace `@gpus` and `@card.FACT` by their values; say if one is unverified."""
    unverified = False
    for key in LIMITS:
        word = body.get(key)
        if isinstance(word, str) and word.startswith("@"):
            body[key], origin, doubtful = _reference(key, word, card, gpus)
            body["source"] = f"{body['source']}: {origin}" if "source" in body else origin
            unverified = unverified or doubtful
    return unverified


def _reference(key: str, word: str, card: Card | None, gpus: int) -> tuple[Scalar, str, bool]:
    if word == "@gpus":
        return gpus, "as ordered", False
    if card and word in IDENTITY:
        return getattr(card, word.removeprefix("@card.")), IDENTITY[word], False
    fact = word.removeprefix("@card.")
    value = getattr(card.facts, fact, None) if card and fact in type(card.facts).model_fields else None
    if card is None or value is None:
        known = ["name", "pci_device_id", *(card.sources if card else ())]
        message = f"{key}: {word!r} is not a fact of the card{did_you_mean(fact, known)}; add it there or state a value"
        raise InputError(message)
    doubtful = fact in card.unverified
    return value, f"{card.sources[fact]}{' (unverified)' if doubtful else ''}", doubtful


def _absolute_guard(body: Table) -> None:
    """Turn a guard in percent of the limit into one in the line's unit."""
    guard = body.get("guard")
    if not isinstance(guard, str):
        return
    limit = body.get("min", body.get("max"))
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", guard)
    if not match or not isinstance(limit, int | float):
        message = f"guard: {guard!r} is neither a number nor a percentage of min or max"
        raise InputError(message)
    body["guard"] = abs(limit) * float(match[1]) / 100


def _flaw(loc: tuple[int | str, ...], kind: str, text: str, model: type[BaseModel]) -> tuple[str, str]:
    """Return the key and the reason of one validation error, in the words of a TOML author."""
    key = ".".join(str(part) for part in loc if part not in ("bool", "int", "float", "str"))
    if kind == "extra_forbidden":
        fields = [*model.model_fields, *(("min_fraction",) if model is Line else ())]
        return key, f"unknown key{did_you_mean(str(loc[-1]), fields)}"
    return key, "missing" if kind == "missing" else text.removeprefix("Value error, ")
