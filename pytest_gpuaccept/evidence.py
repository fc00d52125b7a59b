"""The evidence bundle: schema, writer, reader, integrity.

A bundle is a folder:

    manifest.json    schema, versions, mode, digests, expected lines, decision, chain head
    profile.json     the resolved profile that the run was judged by
    evidence.jsonl   what was read, run and measured, one record a line, flushed as written
    verdicts.jsonl   one line per spec line and device; derived, can be made again
    attach/SHA256    raw tool output

Every record of evidence.jsonl enters a rolling SHA-256. Checkpoint records carry it, and the last
one, the `end` record, matches the manifest. Must not judge.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured, Outcome
from pytest_gpuaccept.profile import Profile
from pytest_gpuaccept.verdict import Verdict
from pytest_gpuaccept.world import Clock

SCHEMA = 1
CHECKPOINT_EVERY = 64
Record = dict[str, Any]
_OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome, config=ConfigDict(strict=True, revalidate_instances="always"))


def to_json(value: object) -> object:
    """Return the JSON form of a value: an interval as a table, a non-finite float by its name."""
    if isinstance(value, Interval):
        return {"low": to_json(value.low), "high": to_json(value.high)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def from_json(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return the value that `to_json` wrote."""
    if isinstance(value, dict) and value.keys() == {"low", "high"}:
        return Interval(from_json(value["low"]), from_json(value["high"]))
    if isinstance(value, dict) and value.keys() == {"float"}:
        return float(value["float"])
    return value


def outcome_record(outcome: Outcome) -> Record:
    """Return an outcome as a record; an absent value is of another kind than a measured one."""
    kind = "measurement" if isinstance(outcome, Measurement) else "not_measured"
    body = {f.name: to_json(getattr(outcome, f.name)) for f in fields(outcome)}
    return {"k": kind, **{k: v for k, v in body.items() if k == "value" or v not in (None, "", {})}}


def record_outcome(record: Mapping[str, Any]) -> Outcome:
    """Return the outcome that `outcome_record` wrote; raises InputError on a foreign record."""
    body = {k: from_json(v) for k, v in record.items() if k not in ("k", "seq", "t")}
    try:
        made = Measurement(**body) if record["k"] == "measurement" else NotMeasured(**body)
        _OUTCOME.validate_python(made)
    except (TypeError, ValidationError) as error:
        detail = error.errors()[0]["loc"] if isinstance(error, ValidationError) else error
        message = f"record {record.get('seq')} is not a {record['k']} of this schema: {detail}"
        raise InputError(message) from None
    return made


def verdict_row(verdict: Verdict) -> Record:
    """Return a verdict as a JSON object, keys in the order of the bundle's schema."""
    return {key: to_json(value) for key, value in asdict(verdict).items()} | {"value": to_json(verdict.value)}


def row_verdict(row: Mapping[str, Any]) -> Verdict:
    """Return the verdict that `verdict_row` wrote."""
    return Verdict(**{key: from_json(value) for key, value in row.items()})


class Writer:
    """Writes a bundle; every record is on its way to the disk before the next thing happens."""

    def __init__(self, folder: Path, clock: Clock, manifest: Record, profile: Profile | None) -> None:
        """Create the bundle; raises InputError when the folder holds one already or cannot be written."""
        self.folder, self._clock = folder, clock
        self._chain, self._seq = hashlib.sha256(), 0
        self.manifest = {"schema": SCHEMA, "started": clock.now().isoformat(), **manifest, "decision": None}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / "manifest.json").exists():
                message = f"{folder} already holds evidence, which is never overwritten; choose another folder"
                raise InputError(message)
            if profile:
                (folder / "profile.json").write_text(profile.model_dump_json(indent=1))
            self._file = (folder / "evidence.jsonl").open("xb", buffering=0)
        except OSError as error:
            message = f"evidence folder {folder} cannot be written: {error.strerror}"
            raise InputError(message) from None
        self._write_manifest()

    def record(self, kind: str, **body: object) -> None:
        """Append one record and push it to the operating system."""
        self._line({"k": kind, **body})
        if self._seq % CHECKPOINT_EVERY == 0:
            self.checkpoint()

    def outcome(self, outcome: Outcome) -> None:
        """Append a measurement, or the absence of one."""
        body = outcome_record(outcome)
        self.record(body.pop("k"), **body)

    def checkpoint(self) -> None:
        """Append the rolling digest of everything so far and make it durable."""
        self._line({"k": "checkpoint", "sha256": self._chain.hexdigest()})
        os.fsync(self._file.fileno())

    def attach(self, name: str, text: str) -> str:
        """Keep raw text under its SHA-256, record that it exists, return the digest."""
        data = text.encode()
        digest = hashlib.sha256(data).hexdigest()
        attachments = self.folder / "attach"
        attachments.mkdir(exist_ok=True)
        (attachments / digest).write_bytes(data)
        self.record("attachment", name=name, sha256=digest, bytes=len(data))
        return digest

    def close(self, decision: str, verdicts: list[Verdict], **more: object) -> None:
        """Write the verdicts, the end record, and the manifest with the chain's head."""
        rows = "".join(json.dumps(verdict_row(v), ensure_ascii=False) + "\n" for v in verdicts).encode()
        (self.folder / "verdicts.jsonl").write_bytes(rows)
        self._line({"k": "end", "decision": decision, "verdicts_sha256": hashlib.sha256(rows).hexdigest()})
        os.fsync(self._file.fileno())
        self._file.close()
        ended = self._clock.now().isoformat()
        head = {"sha256": self._chain.hexdigest(), "records": self._seq}
        self.manifest |= {"ended": ended, **more, "chain": head, "decision": decision}
        self._write_manifest()

    def _line(self, body: Record) -> None:
        stamped = {"seq": self._seq, "t": self._clock.now().isoformat(), **body}
        raw = json.dumps(stamped, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self._file.write(raw)
        self._chain.update(raw)
        self._seq += 1

    def _write_manifest(self) -> None:
        text = json.dumps(self.manifest, indent=1, ensure_ascii=False) + "\n"
        write_whole(self.folder / "manifest.json", text)


def write_whole(file: Path, text: str) -> None:
    """Replace a file by its new text, or leave it as it was: never half of it."""
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as draft:
        draft.write(text)
        draft.flush()
        os.fsync(draft.fileno())
    Path(draft.name).chmod(0o644)
    Path(draft.name).replace(file)


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

    def outcomes(self) -> Iterator[Outcome]:
        """Yield every measurement, and every absence of one, in the order recorded."""
        for record in self.records:
            if record.get("k") in ("measurement", "not_measured"):
                yield record_outcome(record)

    def table(self) -> dict[tuple[str, str], Outcome]:
        """Return the outcomes by (metric, device); the first one recorded counts."""
        table: dict[tuple[str, str], Outcome] = {}
        for outcome in self.outcomes():
            table.setdefault((outcome.metric, outcome.device), outcome)
        return table


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle and check its integrity; raises InputError when it is not a bundle at all.

    A torn line, a changed byte or a missing end is not an error here: it is named in `flaws`.
    """
    manifest = _read_manifest(folder)
    flaws: list[str] = []
    raw = _read_bytes(folder / "evidence.jsonl", flaws)
    records = _read_records(raw, flaws)
    _check_end(manifest, raw, records, flaws)
    verdicts = _read_verdicts(folder, records, flaws)
    _check_attachments(folder, records, flaws)
    return Bundle(folder, manifest, _read_profile(folder, manifest, flaws), tuple(records), verdicts, tuple(flaws))


def _read_manifest(folder: Path) -> Record:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{folder} is not an evidence bundle: manifest.json: {error}"
        raise InputError(message) from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
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
    chain, records = hashlib.sha256(), []
    for number, line in enumerate(raw.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            flaws.append(f"evidence.jsonl line {number}: torn, the run was cut off while writing")
            break
        record = _parse(line)
        if record is None or record.get("seq") != number - 1:
            flaws.append(f"evidence.jsonl line {number}: not a record of this bundle, or one is missing before it")
            break
        if record.get("k") == "checkpoint" and record.get("sha256") != chain.hexdigest():
            flaws.append(f"evidence.jsonl line {number}: a byte before this checkpoint was changed")
        chain.update(line)
        records.append(record)
    return records


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _check_end(manifest: Record, raw: bytes, records: list[Record], flaws: list[str]) -> None:
    last = records[-1] if records else {}
    if last.get("k") != "end" or manifest.get("decision") is None:
        flaws.append("no end record: the run was cut off and decides nothing")
        return
    chain = manifest.get("chain") or {}
    if chain.get("sha256") != hashlib.sha256(raw).hexdigest() or chain.get("records") != len(records):
        flaws.append("evidence.jsonl does not match the digest in manifest.json: changed after the run")
    if last.get("decision") != manifest["decision"]:
        flaws.append(f"manifest.json says {manifest['decision']!r}, the end record {last.get('decision')!r}")


def _read_verdicts(folder: Path, records: list[Record], flaws: list[str]) -> tuple[Verdict, ...]:
    if not records or records[-1].get("k") != "end":
        return ()
    rows = _read_bytes(folder / "verdicts.jsonl", flaws)
    if hashlib.sha256(rows).hexdigest() != records[-1].get("verdicts_sha256"):
        flaws.append("verdicts.jsonl does not match the digest in evidence.jsonl: changed after the run")
    try:
        return tuple(row_verdict(json.loads(row)) for row in rows.splitlines())
    except (ValueError, TypeError) as error:
        flaws.append(f"verdicts.jsonl is not readable: {error}")
        return ()


def _check_attachments(folder: Path, records: list[Record], flaws: list[str]) -> None:
    for record in records:
        if record.get("k") == "attachment":
            file = folder / "attach" / str(record.get("sha256"))
            data = _read_bytes(file, flaws) if file.exists() else None
            if data is None or hashlib.sha256(data).hexdigest() != file.name:
                flaws.append(f"attachment {record.get('name')!r} is missing or changed")


def _read_profile(folder: Path, manifest: Record, flaws: list[str]) -> Profile | None:
    file = folder / "profile.json"
    if not file.exists():
        return None
    try:
        profile = Profile.model_validate_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        flaws.append(f"profile.json is not readable: {str(error).splitlines()[0]}")
        return None
    if profile.digest() != manifest.get("profile_sha256"):
        flaws.append("profile.json does not match the digest in manifest.json: changed after the run")
    return profile
