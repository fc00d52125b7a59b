"""The evidence bundle: schema, writer, reader, integrity.

A bundle is a folder:

    manifest.json    schema, versions, mode, digests, expected lines, decision, chain head
    profile.json     the resolved profile that the run was judged by
    evidence.jsonl   what was read, run and measured, one record a line, flushed as written
    verdicts.jsonl   one line per spec line and device; derived, can be made again
    attach/SHA256    raw tool output

Every record of evidence.jsonl enters a rolling SHA-256. Checkpoint records carry it, the `begin` and
`end` records repeat what the manifest says, and the manifest holds the head. report.html is a view
that can be rendered again, and is not covered. Must not judge.
"""

import errno
import hashlib
import json
import math
import os
import re
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured, Outcome
from pytest_gpuaccept.profile import Profile
from pytest_gpuaccept.verdict import Verdict
from pytest_gpuaccept.world import Clock

SCHEMA = 1
CHECKPOINT_EVERY = 64
OUTCOMES = ("measurement", "not_measured")
TWICE = "reported more than once, so no one value can be believed"
Record = dict[str, Any]
_STRICT = ConfigDict(strict=True, revalidate_instances="always")
_OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome, config=_STRICT)
_VERDICTS: TypeAdapter[tuple[Verdict, ...]] = TypeAdapter(tuple[Verdict, ...], config=_STRICT)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Origin(BaseModel):
    """The types of what a replay says of the bundle that it judges."""

    model_config = ConfigDict(strict=True, extra="allow")

    mode: str = ""
    source: str | None = None
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
    reasons: list[str] = []
    expired_waivers: list[dict[str, str]] = []


def to_json(value: object) -> object:
    """Return the JSON form of a value: an interval as a table, a non-finite float by its name."""
    if isinstance(value, Interval):
        return {"low": to_json(value.low), "high": to_json(value.high)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(part) for key, part in value.items()}
    return value


def from_json(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return the value that `to_json` wrote."""
    if isinstance(value, dict) and value.keys() == {"low", "high"}:
        return Interval(from_json(value["low"]), from_json(value["high"]))
    if isinstance(value, dict) and value.keys() == {"float"}:
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[value["float"]]
    return {key: from_json(part) for key, part in value.items()} if isinstance(value, dict) else value


def outcome_record(outcome: Outcome) -> Record:
    """Return an outcome as a record; an absent value is of another kind than a measured one."""
    kind = "measurement" if isinstance(outcome, Measurement) else "not_measured"
    body = {f.name: to_json(getattr(outcome, f.name)) for f in fields(outcome)}
    return {"k": kind, **{k: v for k, v in body.items() if k == "value" or v not in (None, "", {})}}


def record_outcome(record: Mapping[str, Any]) -> Outcome:
    """Return the outcome that `outcome_record` wrote; raises InputError on a foreign record."""
    try:
        body = {k: from_json(v) for k, v in record.items() if k not in ("k", "seq", "t")}
        return checked(Measurement(**body) if record["k"] == "measurement" else NotMeasured(**body))
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        message = f"record {record.get('seq')} is not a {record.get('k')} of this schema: {error}"
        raise InputError(message) from None


def checked(outcome: Outcome) -> Outcome:
    """Return an outcome whose parts have the types that they are declared with; raises ValueError."""
    try:
        _OUTCOME.validate_python(outcome)
    except ValidationError as error:
        where = " ".join(str(part) for part in error.errors()[0]["loc"])
        message = f"{where}: {error.errors()[0]['msg']}"
        raise ValueError(message) from None
    return outcome


def verdict_row(verdict: Verdict) -> Record:
    """Return a verdict as a JSON object, keys in the order of the bundle's schema."""
    return {key: to_json(value) for key, value in asdict(verdict).items()} | {"value": to_json(verdict.value)}


def row_verdict(row: Mapping[str, Any]) -> Verdict:
    """Return the verdict that `verdict_row` wrote; raises ValueError or TypeError on anything else."""
    return _VERDICTS.validate_python((Verdict(**{key: from_json(value) for key, value in row.items()}),))[0]


class Writer:
    """Writes a bundle; every record is on its way to the disk before the next thing happens."""

    def __init__(self, folder: Path, clock: Clock, manifest: Record, profile: Profile | None) -> None:
        """Create the bundle; raises InputError when the folder holds one already or cannot be written.

        A write that fails later (a full disk) stops the writing and is told in `broken`.
        """
        self.folder, self._clock = folder, clock
        self._chain, self._seq = hashlib.sha256(), 0
        self.broken = ""
        self.manifest = {"schema": SCHEMA, "started": clock.now().isoformat(), **manifest, "decision": None}
        try:
            if folder.exists() and not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / "evidence.jsonl").open("xb", buffering=0)
            if profile:
                with (folder / "profile.json").open("x", encoding="utf-8") as file:
                    file.write(profile.model_dump_json(indent=1))
            self._write_manifest()
        except FileExistsError:
            message = f"{folder} already holds evidence, which is never overwritten; choose another folder"
            raise InputError(message) from None
        except OSError as error:
            message = f"evidence folder {folder} cannot be written: {error.strerror}"
            raise InputError(message) from None
        self._line({"k": "begin", "manifest": self.manifest})

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
        if not self.broken:
            os.fsync(self._file.fileno())

    def attach(self, name: str, text: str) -> str:
        """Keep raw text under its SHA-256, record that it exists, return the digest."""
        data = text.encode(errors="backslashreplace")
        digest = hashlib.sha256(data).hexdigest()
        try:
            (self.folder / "attach").mkdir(exist_ok=True)
            (self.folder / "attach" / digest).write_bytes(data)
        except OSError as error:
            self._break(error)
        self.record("attachment", name=name, sha256=digest, bytes=len(data))
        return digest

    def close(self, decision: str, verdicts: list[Verdict], **more: object) -> None:
        """Write the verdicts, the end record, and the manifest with the chain's head.

        When any of it cannot be written, the manifest keeps no decision and `broken` says why.
        """
        rows = "".join(json.dumps(verdict_row(v), ensure_ascii=False) + "\n" for v in verdicts)
        raw = rows.encode(errors="backslashreplace")
        closing = {"ended": self._clock.now().isoformat(), **more, "decision": decision}
        try:
            (self.folder / "verdicts.jsonl").write_bytes(raw)
            self._line({"k": "end", "verdicts_sha256": hashlib.sha256(raw).hexdigest(), "manifest": closing})
            if not self.broken:
                os.fsync(self._file.fileno())
                self._file.close()
                head = {"sha256": self._chain.hexdigest(), "records": self._seq}
                self.manifest |= {**closing, "chain": head}
                self._write_manifest()
        except OSError as error:
            self._break(error)

    def _line(self, body: Record) -> None:
        stamped = {"seq": self._seq, "t": self._clock.now().isoformat(), **body}
        raw = json.dumps(stamped, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace") + b"\n"
        if self.broken:
            return
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            rest = memoryview(raw)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._chain.update(raw)
            self._seq += 1
        except OSError as error:
            self._break(error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def _break(self, error: OSError) -> None:
        self.broken = self.broken or f"the evidence could not be written: {error.strerror}"

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
    for record in (records[0] if records else {}, last):
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
