"""The evidence bundle: schema and writer; bundle.py reads it.

A bundle is a folder:

    manifest.json    schema, versions, mode, digests, expected lines, decision, chain head
    profile.json     the resolved profile that the run was judged by
    evidence.jsonl   what was read, run and measured, one record a line, flushed as written
    verdicts.jsonl   one line per spec line and device; derived, can be made again
    attach/SHA256    raw tool output

Every record of evidence.jsonl enters a rolling SHA-256. Checkpoint records carry it, the `begin` and
`end` records repeat what the manifest says, and the manifest holds the head. report.html is a view
that can be rendered again, and is not covered. A power cut costs at most what came after the last
checkpoint, and never an attachment whose record is there. Must not judge.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured, Outcome
from pytest_gpuaccept.profile import Profile
from pytest_gpuaccept.verdict import Verdict
from pytest_gpuaccept.world import Clock

SCHEMA = 1
CHECKPOINT_EVERY = 64
DURABLE = ("probe", "resumed")
"""Kinds of records that are on the disk before anything else happens: after a power cut they say what ran."""
OUTCOMES = ("measurement", "not_measured")
TWICE = "reported more than once, so no one value can be believed"
Record = dict[str, Any]
_STRICT = ConfigDict(strict=True, revalidate_instances="always")
_OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome, config=_STRICT)
_VERDICTS: TypeAdapter[tuple[Verdict, ...]] = TypeAdapter(tuple[Verdict, ...], config=_STRICT)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    return {"k": kind, **{k: v for k, v in body.items() if k in ("value", "reason") or v not in (None, "", {})}}


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
    """Writes a bundle; every record is on its way to the disk before the next thing happens.

    The evidence file stays locked as long as the process lives: see `is_being_written`.
    """

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
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if profile:
                _write_durably(folder / "profile.json", profile.model_dump_json(indent=1).encode(), "xb")
            self._write_manifest()
        except FileExistsError:
            message = f"{folder} already holds evidence, which is never overwritten; choose another folder"
            raise InputError(message) from None
        except OSError as error:
            message = f"evidence folder {folder} cannot be written: {error.strerror}"
            raise InputError(message) from None
        self._line({"k": "begin", "manifest": self.manifest})

    def record(self, kind: str, **body: object) -> None:
        """Append one record and push it to the operating system, those of DURABLE kinds to the disk."""
        self._line({"k": kind, **body})
        if kind in DURABLE or self._seq % CHECKPOINT_EVERY == 0:
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
        return self.attach_bytes(name, text.encode(errors="backslashreplace"))

    def attach_bytes(self, name: str, data: bytes) -> str:
        """Keep raw bytes as `attach` does; they are on the disk before their record is written."""
        digest = hashlib.sha256(data).hexdigest()
        try:
            (self.folder / "attach").mkdir(exist_ok=True)
            file = self.folder / "attach" / digest
            if not file.exists() or file.read_bytes() != data:
                _write_durably(file, data)
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
            _write_durably(self.folder / "verdicts.jsonl", raw)
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
    _sync_folder(file.parent)


def is_being_written(folder: Path) -> bool:
    """Say whether a process that still runs writes the bundle; the system forgets the lock of one that died."""
    try:
        with (folder / "evidence.jsonl").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _write_durably(file: Path, data: bytes, mode: Literal["wb", "xb"] = "wb") -> None:
    """Write a file and have it on the disk, name included; "xb" refuses one that is there."""
    with file.open(mode) as made:
        made.write(data)
        made.flush()
        os.fsync(made.fileno())
    _sync_folder(file.parent)


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
