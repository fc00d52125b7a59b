"""Resuming: what a run that was cut off leaves to the next one, and what it says of the machine.

Owns when two runs belong together, which outcomes stay, and what the end of the first one means. A bundle
that was cut off is read, never changed. Must not judge.
"""

import datetime as dt
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from pytest_gpuaccept import __version__
from pytest_gpuaccept.bench import Carried, Run, places
from pytest_gpuaccept.bundle import Bundle, read_bundle, read_manifest
from pytest_gpuaccept.errors import InputError, Unmeasurable
from pytest_gpuaccept.evidence import Record, Writer, is_being_written
from pytest_gpuaccept.measurement import Measurement, NotMeasured, Outcome
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.probes.cards import Card
from pytest_gpuaccept.probes.resets import CUTS, NAME, Cut, is_boot
from pytest_gpuaccept.profile import Profile
from pytest_gpuaccept.readings import decode
from pytest_gpuaccept.world import World

Key = tuple[str, str]
_CUTS: TypeAdapter[tuple[Cut, ...]] = TypeAdapter(tuple[Cut, ...])
TAKEN_OVER = b'"k": "resumed"'
FINGERPRINT = {
    "hostname": "/proc/sys/kernel/hostname", "kernel": "/proc/sys/kernel/osrelease",
    "machine_id": "/etc/machine-id", "boot_id": "/proc/sys/kernel/random/boot_id",
}  # fmt: skip
NOT_AGAIN = "not measured again, for it may be what resets the machine"


@dataclass(frozen=True, slots=True)
class Resumption:
    """A run that was cut off, as the one that goes on with it sees it."""

    bundle: Bundle
    cuts: tuple[Cut, ...]
    carried: Carried

    def manifest(self) -> Record:
        """Return what the new bundle says of where its first values come from."""
        kept = {key: self.bundle.manifest.get(key) for key in ("mode", "scenario", "started", "decision")}
        raw = (self.bundle.folder / "evidence.jsonl").read_bytes()
        chain = {"sha256": hashlib.sha256(raw).hexdigest(), "records": len(self.bundle.records)}
        origin = {**kept, "folder": self.bundle.folder.name, "chain": chain, "flaws": list(self.bundle.flaws)}
        return {"origin": origin, "cuts": [asdict(cut) for cut in self.cuts]}

    def hand_over(self, writer: Writer) -> None:
        """Copy the attachments and the readings of the start into the new bundle."""
        for record in self.bundle.records:
            if record["k"] == "attachment":
                writer.attach_bytes(record["name"], (self.bundle.folder / "attach" / record["sha256"]).read_bytes())
            elif record["k"] == "before" and (record["name"], record["device"]) in self.carried.begun:
                writer.record(**{"kind" if key == "k" else key: record[key] for key in _BEFORE})

    def close(self, writer: Writer) -> None:
        """Say in the new bundle that everything was taken over: from now on it stands for both."""
        done, lost = ([list(run) for run in sorted(runs)] for runs in (self.carried.done, self.carried.lost))
        writer.record("resumed", folder=self.bundle.folder.name, done=done, lost=lost)

    def remarks(self) -> Iterator[str]:
        """Yield what a reader must know: how the run before was cut off, and what it had noted."""
        cut = self.cuts[-1]
        how = {
            "reset": "the machine was started anew since",
            "killed": "the machine was not started anew, and what had not ended was measured again",
            "unknown": "whether the machine was started anew since cannot be told",
        }[cut.how]
        at = cut.last[:19].replace("T", " ")
        yield f"resumed from {cut.folder}, which was cut off {cut.when()}, last heard of at {at} UTC: {how}"
        yield from (str(record["reason"]) for record in self.bundle.records if record["k"] == "remark")

    def faults(self) -> Iterator[str]:
        """Yield what rejected the machine before the cut: what was proven stays proven."""
        yield from (str(record["reason"]) for record in self.bundle.records if record["k"] == "fault")


_BEFORE = ("k", "name", "device", "sha256")


def fingerprint(world: World | None) -> dict[str, str]:
    """Return what tells a machine, and its boot, from another; a reason where it cannot be read."""
    facts = {}
    for key, path in FINGERPRINT.items():
        try:
            facts[key] = world.read(path) if world else ""
        except Unmeasurable as error:
            facts[key] = str(error)
    return facts


def unfinished(roots: Iterable[Path], mode: str, host: Mapping[str, str]) -> dict[Path, str]:
    """Return the bundles below `roots` of runs on this machine that nobody finished, and their profiles, newest first.

    One that still runs is none of them, nor one that another run took over, or whose end a finished one judged.
    """
    if not _is_machine(host["machine_id"]):
        return {}
    known: dict[Path, Record] = {}
    for file in (file for root in dict.fromkeys(roots) for file in root.glob("*/manifest.json")):
        with suppress(InputError):
            known[file.parent] = read_manifest(file.parent)
    ours = {
        folder: manifest
        for folder, manifest in known.items()
        if manifest["mode"] == mode and manifest.get("host", {}).get("machine_id") == host["machine_id"]
    }
    stands = {folder for folder, m in ours.items() if not m.get("cuts") or _took_over(folder)}
    ended = {folder for folder, m in ours.items() if m.get("decision") is not None}
    stood_in = {folder for folder in ended if ours[folder].get("cuts") or ours[folder].get("heard")}
    silent = {folder for folder in stood_in if not _tells_resets(folder)}
    followed = {ours[folder]["origin"].get("folder") for folder in stands - silent if ours[folder].get("cuts")}
    followed |= {heard for folder in ended - silent for heard in ours[folder].get("heard", [])}
    left = [f for f in stands - ended if f.name not in followed and not is_being_written(f)]
    left.sort(key=lambda folder: str(ours[folder].get("started")), reverse=True)
    return {folder: str(ours[folder].get("profile")) for folder in left}


def resets_of(folders: Iterable[Path], boot: str) -> tuple[Cut, ...]:
    """Return how those of these runs ended that a restart of the machine cut off; one that cannot be read is none."""
    cuts = []
    for folder in folders:
        with suppress(InputError, KeyError):
            cuts.append(_cut(read_bundle(folder), boot))
    return tuple(cut for cut in cuts if cut.how == "reset")


def _tells_resets(folder: Path) -> bool:
    """Say whether a run that came to its end told how often the machine was started anew."""
    with suppress(InputError):
        return any(v.line == NAME and v.value is not None for v in read_bundle(folder).verdicts)
    return False


def _took_over(folder: Path) -> bool:
    with suppress(OSError):
        return TAKEN_OVER in (folder / "evidence.jsonl").read_bytes()
    return False


def take(folder: Path, profile: Profile, catalogue: Catalogue, mode: str, scenario: str, world: World) -> Resumption:  # noqa: PLR0913, PLR0917 - what two runs must share
    """Return what a run that was cut off leaves; raises InputError with the reason when it cannot be gone on with."""
    bundle, host = read_bundle(folder), fingerprint(world)
    refusals = (*_state(bundle), *_order(bundle, profile), *_place(bundle, mode, scenario, host))
    if refusals:
        message = f"{folder} cannot be resumed: {refusals[0]}"
        raise InputError(message)
    try:
        cut = _cut(bundle, host["boot_id"])
        cuts = (*_CUTS.validate_python(bundle.manifest.get("cuts", [])), cut)
        if mode == "simulated" and cut.how == "killed":
            world.clock.sleep(_lasted_s(bundle))
        return Resumption(bundle, cuts, _carried(bundle, profile, catalogue, cuts))
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        message = f"{folder} cannot be resumed: it is not of this version's form: {error}"
        raise InputError(message) from None


def _lasted_s(bundle: Bundle) -> float:
    """Return how long a run lasted in s: a simulated machine is built anew, and its clock goes on from there."""
    began, ended = (dt.datetime.fromisoformat(text) for text in (bundle.manifest["started"], _last(bundle)))
    return max(0.0, (ended - began).total_seconds())


def _state(bundle: Bundle) -> Iterator[str]:
    """Yield what keeps a bundle, whoever asks, from being resumed."""
    if is_being_written(bundle.folder):
        yield "a run is still at work on it"
    if bundle.finished:
        yield f"it is finished ({bundle.manifest['decision']}), nothing of it is undecided"
    for flaw in bundle.flaws:
        if "cut off" not in flaw:
            yield f"it is not intact: {flaw}"
    if bundle.manifest.get("cuts") and not any(record.get("k") == "resumed" for record in bundle.records):
        origin = bundle.manifest.get("origin", {}).get("folder")
        yield f"it was cut off before it had taken over from {origin}; resume that one"


def _order(bundle: Bundle, profile: Profile) -> Iterator[str]:
    """Yield what was ordered otherwise, or is checked by other rules."""
    begun, of = bundle.profile, bundle.manifest.get("versions", {}).get("gpuaccept")
    if of != __version__:
        yield f"gpuaccept {of} began it, this is {__version__}: start a new run"
    if begun and begun.name != profile.name:
        yield f"it is of the profile {begun.name}, not of {profile.name}"
    if begun and begun.effort != profile.effort:
        yield f"it was begun with --hw-effort={begun.effort}: give the same"
    if bundle.manifest.get("profile_sha256") != profile.digest():
        yield f"the profile {profile.name} has changed since: start a new run"


def _place(bundle: Bundle, mode: str, scenario: str, host: Mapping[str, str]) -> Iterator[str]:
    """Yield what shows that it was begun on another machine."""
    if bundle.mode != mode:
        yield f"it is of a {bundle.mode} machine, this run is {mode}"
    if (bundle.manifest.get("scenario") or "") != scenario:
        yield f"it was begun with --hw-sim={bundle.manifest.get('scenario')}: give the same"
    if not _is_machine(host["machine_id"]):
        yield f"this machine has no id by which it is known again ({host['machine_id'] or 'empty /etc/machine-id'})"
    if bundle.manifest.get("host", {}).get("machine_id") != host["machine_id"]:
        yield "it was begun on another machine (/etc/machine-id differs)"


def _is_machine(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def _cut(bundle: Bundle, boot: str) -> Cut:
    """Return how a bundle's run ended, from the boot that it began in and the one that is now."""
    was = str(bundle.manifest.get("host", {}).get("boot_id"))
    how: Literal["reset", "killed", "unknown"] = "killed" if was == boot else "reset"
    if not is_boot(was) or not is_boot(boot):
        how = "unknown"
    started = [record for record in bundle.records if record["k"] == "probe"]
    last = started[-1] if started else {"phase": "", "name": "", "device": ""}
    running = bool(_open(bundle.records))
    at = _last(bundle)
    return Cut(how, last["phase"], last["name"], last["device"], running, was, at, bundle.folder.name)


def _last(bundle: Bundle) -> str:
    """Return when a run was last heard of; the power may have gone before its first record was on the disk."""
    return str(bundle.records[-1]["t"] if bundle.records else bundle.manifest["started"])


def _open(records: Iterable[Record]) -> set[Run]:
    """Return the probes that had begun and not ended."""
    begun: set[Run] = set()
    for record in records:
        if record["k"] == "probe":
            begun.add((record["name"], record["device"]))
        elif record["k"] == "probe_end":
            begun.discard((record["name"], record["device"]))
    return begun


def _listed(records: Iterable[Record], key: Literal["done", "lost"]) -> set[Run]:
    """Return the probes that the run before had itself taken over."""
    return {(name, device) for record in records if record["k"] == "resumed" for name, device in record[key]}


def _carried(bundle: Bundle, profile: Profile, catalogue: Catalogue, cuts: tuple[Cut, ...]) -> Carried:
    open_, how = _open(bundle.records), cuts[-1].how
    ended = {(r["name"], r["device"]) for r in bundle.records if r["k"] == "probe_end"}
    done = ended | _listed(bundle.records, "done")
    table = {
        key: outcome
        for key, outcome in bundle.table().items()
        if key in set(_keys(profile, catalogue, done | open_)) and key[0] not in _always(catalogue)
    }
    if how != "killed":
        done |= open_
        table = {**_charged(profile, catalogue, open_, cuts[-1]), **table}
    begun = _begun(bundle, catalogue) if how == "killed" else {}
    compares = {(p.name, d) for p in catalogue.probes.values() if p.before for d in profile.devices.get(p.kind, ())}
    lost = compares - begun.keys() if done | open_ else set[Run]()
    lost |= _listed(bundle.records, "lost")
    kept = frozenset(run for run in done if run[0] != NAME)
    return Carried(table, kept, begun, frozenset(lost), {CUTS: cuts, **_cards(table.values())})


def _always(catalogue: Catalogue) -> set[str]:
    """Return the metrics that every run takes itself."""
    return {metric.id for metric in catalogue.probes[NAME].metrics} if NAME in catalogue.probes else set()


def _keys(profile: Profile, catalogue: Catalogue, runs: Iterable[Run]) -> Iterator[Key]:
    """Yield where the outcomes of some probes stand in the table."""
    for name, device in runs:
        if probe := catalogue.probes.get(name):
            yield from ((metric.id, where) for metric, where in places(profile, probe, device))


def _charged(profile: Profile, catalogue: Catalogue, runs: Iterable[Run], cut: Cut) -> dict[Key, Outcome]:
    """Return, for everything that a probe had not said, that the machine was reset while it ran."""
    what = "system reset" if cut.how == "reset" else "cut off, and whether by a system reset cannot be told,"
    reason = f"{what} {cut.when()}; {NOT_AGAIN}"
    return {key: NotMeasured(*key, reason) for key in _keys(profile, catalogue, runs)}


def _begun(bundle: Bundle, catalogue: Catalogue) -> dict[Run, object]:
    """Return the readings of the start that were kept; what cannot be read back was not."""
    found: dict[Run, object] = {}
    for record in bundle.records:
        probe = catalogue.probes.get(str(record.get("name"))) if record["k"] == "before" else None
        if probe and probe.before:
            with suppress(ValueError):
                form = json.loads((bundle.folder / "attach" / record["sha256"]).read_bytes())
                found[probe.name, record["device"]] = decode(form, probe.before)
    return found


def _cards(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Return which card was which GPU, so that none takes the name of one that is gone."""
    known = {
        o.device: Card(o.device, str(o.conditions["uuid"]), str(o.conditions.get("bus_id", "")), None)
        for o in outcomes
        if isinstance(o, Measurement) and re.fullmatch("gpu[0-9]{1,2}", o.device) and "uuid" in o.conditions
    }
    count = max((int(device.removeprefix("gpu")) + 1 for device in known), default=0)
    names = [f"gpu{i}" for i in range(count)]
    unknown = "did not answer before the run was cut off"
    return {"cards": {name: known.get(name, Card(name, unknown, "", None)) for name in names}} if known else {}
