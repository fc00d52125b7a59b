"""Reading an evidence bundle: what is in it, and what is wrong with it.

Owns integrity: a torn line, a changed byte, a missing end, a manifest that says something else. None
of these is an error here, each is named. Must not judge.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field

from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.evidence import OUTCOMES, SCHEMA, TWICE, Record, record_outcome, row_verdict
from pytest_gpuaccept.measurement import NotMeasured, Outcome
from pytest_gpuaccept.profile import Profile
from pytest_gpuaccept.verdict import Verdict


class Origin(BaseModel):
    """The types of what a replay says of the bundle that it judges, and a resumed run of the one that was cut off."""

    model_config = ConfigDict(strict=True, extra="allow")

    mode: str = ""
    source: str | None = None
    folder: str = ""
    chain: dict[str, Any] | None = None


class Manifest(BaseModel):
    """The types of what is read from manifest.json."""

    model_config = ConfigDict(strict=True, extra="allow")

    schema_: Annotated[int, Field(alias="schema")]
    mode: str
    decision: str | None = None
    host: dict[str, Any] = {}
    versions: dict[str, str] = {}
    origin: Origin = Origin()
    chain: dict[str, Any] = {}
    cuts: list[dict[str, Any]] = []
    heard: list[str] = []
    reasons: list[str] = []
    expired_waivers: list[dict[str, str]] = []


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle as read: nothing in it was judged again, `flaws` says what is wrong with the file."""

    folder: Path
    manifest: Record
    profile: Profile | None
    records: tuple[Record, ...]
    verdicts: tuple[Verdict, ...]
    flaws: tuple[str, ...] = field(default=())

    @property
    def mode(self) -> str:
        """`live`, `simulated`, `replayed` or `published`."""
        return str(self.manifest.get("mode", "unknown"))

    @property
    def finished(self) -> bool:
        """Whether the run came to a decision."""
        return self.manifest.get("decision") is not None

    def outcomes(self) -> Iterator[Outcome]:
        """Yield every measurement, and every absence of one, in the order recorded."""
        for record in self.records:
            if record.get("k") in OUTCOMES:
                yield record_outcome(record)

    def table(self) -> dict[tuple[str, str], Outcome]:
        """Return the outcomes by (metric, device); what was recorded twice is nothing that can be judged."""
        table: dict[tuple[str, str], Outcome] = {}
        for outcome in self.outcomes():
            key = outcome.metric, outcome.device
            table[key] = NotMeasured(*key, TWICE) if key in table else outcome
        return table


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle and check its integrity; raises InputError when it is not a bundle at all.

    A torn line, a changed byte or a missing end is not an error here: it is named in `flaws`.
    """
    manifest = read_manifest(folder)
    flaws: list[str] = []
    raw = _read_bytes(folder / "evidence.jsonl", flaws)
    records = _read_records(raw, flaws)
    _check_end(manifest, raw, records, flaws)
    verdicts = _read_verdicts(folder, records, flaws)
    _check_attachments(folder, records, flaws)
    return Bundle(folder, manifest, _read_profile(folder, manifest, flaws), tuple(records), verdicts, tuple(flaws))


def read_manifest(folder: Path) -> Record:
    """Return a bundle's manifest, of known types; raises InputError when there is none of this schema."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        schema = Manifest.model_validate(manifest).schema_
    except (OSError, ValueError, RecursionError) as error:
        detail = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        message = f"{folder} is not an evidence bundle (the folder of a run): manifest.json: {detail}"
        raise InputError(message) from None
    if schema != SCHEMA:
        message = f"{folder}/manifest.json: schema {schema!r}, this version reads {SCHEMA}"
        raise InputError(message)
    return cast("Record", manifest)


def _read_bytes(file: Path, flaws: list[str]) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        flaws.append(f"{file.name} cannot be read: {error.strerror}")
        return b""


def _read_records(raw: bytes, flaws: list[str]) -> list[Record]:
    """Return the records up to the first one that cannot be believed."""
    chain, records = hashlib.sha256(), list[Record]()
    whole, good = True, 0
    for number, line in enumerate(raw.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            flaws.append(f"evidence.jsonl line {number}: torn, the run was cut off while writing")
            break
        record = _parse(line)
        if record is None or record.get("seq") != number - 1:
            flaws.append(f"evidence.jsonl line {number}: not a record of this bundle, or one is missing before it")
            break
        if record.get("k") == "checkpoint" and whole:
            whole, since = record.get("sha256") == chain.hexdigest(), good
            good = number
            if not whole:
                flaws.append(
                    f"evidence.jsonl line {number}: a byte between line {since} and this checkpoint was changed"
                )
        chain.update(line)
        if record.get("k") in OUTCOMES:
            try:
                record_outcome(record)
            except InputError as error:
                flaws.append(f"evidence.jsonl line {number}: {error}")
                break
        records.append(record)
    return records


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _check_end(manifest: Record, raw: bytes, records: list[Record], flaws: list[str]) -> None:
    last = records[-1] if records else {}
    open_end = last.get("k") == "end" and manifest.get("decision") is None
    for record in (records[0] if records else {}, {} if open_end else last):
        for key, value in _header(record).items():
            if key != "decision" or last is record:
                _compare(manifest, key, value, flaws)
    known = {"chain", *_header(records[0] if records else {}), *_header(last)}
    flaws += [f"manifest.json: {key!r} was added after the run" for key in manifest.keys() - known if records]
    if not records or records[0].get("k") != "begin":
        flaws.append("no begin record: what the manifest says of the machine is not covered")
    if last.get("k") != "end" or manifest.get("decision") is None:
        flaws.append("no end record: the run was cut off and decides nothing")
        return
    chain = manifest.get("chain") or {}
    if chain.get("sha256") != hashlib.sha256(raw).hexdigest() or chain.get("records") != len(records):
        flaws.append("evidence.jsonl does not match the digest in manifest.json: changed after the run")


def _header(record: Record) -> Record:
    header = record.get("manifest") if record.get("k") in ("begin", "end") else None
    return header if isinstance(header, dict) else {}


def _compare(manifest: Record, key: str, value: object, flaws: list[str]) -> None:
    if manifest.get(key) != value and not (manifest.get("decision") is None and key == "decision"):
        flaws.append(f"manifest.json: {key!r} is not what the run recorded: changed after the run")


def _read_verdicts(folder: Path, records: list[Record], flaws: list[str]) -> tuple[Verdict, ...]:
    if not records or records[-1].get("k") != "end":
        return ()
    rows = _read_bytes(folder / "verdicts.jsonl", flaws)
    if hashlib.sha256(rows).hexdigest() != records[-1].get("verdicts_sha256"):
        flaws.append("verdicts.jsonl does not match the digest in evidence.jsonl: changed after the run")
    try:
        return tuple(row_verdict(json.loads(row)) for row in rows.splitlines())
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        flaws.append(f"verdicts.jsonl is not readable: {str(error).splitlines()[0]}")
        return ()


def _check_attachments(folder: Path, records: list[Record], flaws: list[str]) -> None:
    for record in records:
        if record.get("k") == "attachment":
            digest, size = str(record.get("sha256")), record.get("bytes")
            file = folder / "attach" / digest
            whole = re.fullmatch("[0-9a-f]{64}", digest) and file.is_file() and not file.is_symlink()
            if not whole or file.stat().st_size != size or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                flaws.append(f"attachment {record.get('name')!r} is missing or changed")


def _read_profile(folder: Path, manifest: Record, flaws: list[str]) -> Profile | None:
    file = folder / "profile.json"
    if "profile_sha256" not in manifest and not file.exists():
        return None
    try:
        profile = Profile.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        flaws.append(f"profile.json is not readable: {str(error).splitlines()[0]}")
        return None
    if profile.digest() != manifest.get("profile_sha256"):
        flaws.append("profile.json does not match the digest in manifest.json: changed after the run")
    return profile
