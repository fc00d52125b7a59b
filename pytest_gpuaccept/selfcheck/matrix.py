"""The proof that every check can fail: fault by fault, which lines change, and which were to.

Owns the run of one simulated sign-off without pytest, and the tables that the documentation shows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property

from pytest_gpuaccept.errors import InputError, did_you_mean
from pytest_gpuaccept.loader import SHIPPED
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.profile import Profile
from pytest_gpuaccept.run import Source, start
from pytest_gpuaccept.selfcheck.proofs import HARMLESS, PEER_GAPS, PROOFS, PeerGap, Proof
from pytest_gpuaccept.sim.faults import FAULTS, Fault
from pytest_gpuaccept.sim.parts import PARTS
from pytest_gpuaccept.sim.scenario import Scenario, kind_of, load_scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.verdict import Verdict

Key = tuple[str, str]
DOCUMENT = """# Every check can fail

SIMULATED. Printed by `gpuaccept matrix {profile} --table`; `gpuaccept matrix` repeats the proof for every shipped
profile; a test of ours does so on every change, on some profiles with one fault a line. A fault is planted in a
machine that passes every line; its line must fail, and no line may change that is not declared. {proofs} proofs cover
the {lines} lines of `{profile}`.

## What well-known tools pass

{gaps}

## Line by line

`DEVICE.FAULT:VALUE@WHEN`, as in `--hw-sim='healthy,fault=...'`. FAIL and ERROR both stand in the way of acceptance:
FAIL rejects, ERROR leaves the sign-off incomplete.

{matrix}

## The {faults} faults

`DEVICE` is `gpu0`, `nvme0` (a drive), `nic0`, `cpu`, `host`, `vllm` or `llamacpp`. {harmless} are harmless, and
nothing may fail.

{catalogue}
"""
FEW = 4
"""Lines changed besides that a table names."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What a fault changed in a profile's verdicts."""

    proof: Proof
    planted: str
    verdicts: Mapping[Key, Verdict]

    def flaws(self) -> Iterator[str]:
        """Yield why the proof does not hold: its line did not fail, or another one did."""
        if not any(
            line == self.proof.line and v.verdict in ("FAIL", "ERROR") for (line, _), v in self.verdicts.items()
        ):
            yield f"{self.planted} does not make {self.proof.line} fail"
        for line, device in self.verdicts:
            if line != self.proof.line and not any(fnmatch(line, pattern) for pattern in self.proof.also):
                yield f"{self.planted} changes {line}[{device}] too, which {self.proof.line}'s proof does not declare"


class Bed:
    """A profile on simulated machines: every line judged, with and without a fault."""

    def __init__(self, profile: Profile, catalogue: Catalogue) -> None:
        """Take a profile; what somebody waived or attested hides no fault here."""
        self.profile = profile.model_copy(update={"waivers": (), "attested": ()})
        self.catalogue = catalogue
        self._seen: dict[str, dict[Key, Verdict]] = {}

    def judged(self, scenario: str) -> dict[Key, Verdict]:
        """Return every verdict of a sign-off of a scenario; raises InputError when it cannot be used."""
        if scenario not in self._seen:
            self._seen[scenario] = sign_off(self.profile, self.catalogue, scenario)
        return self._seen[scenario]

    @cached_property
    def healthy(self) -> dict[Key, Verdict]:
        """Return the verdicts of a healthy machine."""
        return self.judged("healthy")

    def proofs(self) -> Iterator[Proof]:
        """Yield the proofs whose line the profile has, on machines that have the part."""
        fits = ("any", "one" if self.profile.gpus == 1 else "several")
        for proof in PROOFS:
            if proof.line in self.lines() and proof.gpus in fits and self.planted(proof.fault):
                yield proof

    def lines(self) -> set[str]:
        """Return the lines that a healthy machine of the profile decides."""
        return {line for (line, _), v in self.healthy.items() if v.verdict != "NOT_APPLICABLE"}

    def planted(self, fault: str) -> str:
        """Return a fault on a device of this profile, '' when it has none; `gpu*` plants it on all."""
        part, _, name = fault.partition(".")
        text = name.format(**self._fewer)
        return ",".join(f"fault={device}.{text}" for device in self._devices(part) if device)

    @cached_property
    def _fewer(self) -> dict[str, int]:
        """Return values that are below what a healthy machine of the profile has; see Proof."""
        machine = SimWorld(self.profile, Scenario("healthy")).machine
        cpu, limit = machine.cpu, int(machine.gpus[0].p.limit_w) - 5 if machine.gpus else 0
        return {
            "limit": limit, "cores": max(1, cpu.cores - 8), "threads": max(1, cpu.threads // 2),
            "dimms": max(0, cpu.dimms - 1), "mts": max(100, cpu.dimm_mts - 533),
        }  # fmt: skip

    def _devices(self, part: str) -> list[str]:
        of_kind = {"gpu": "gpu", "gpu*": "gpu", "drive": "nvme", "nic": "nic"}
        if part not in of_kind:
            return [part] if part in ("cpu", "host") or part in self.profile.devices else []
        devices = list(self.profile.devices.get(of_kind[part], ()))  # type: ignore[call-overload]
        return devices if part == "gpu*" else devices[-1:]

    def changed(self, proof: Proof) -> Changed:
        """Return what a proof's fault changes against the healthy machine."""
        planted = self.planted(proof.fault)
        got = self.judged(f"healthy,{planted}")
        return Changed(proof, planted, {k: v for k, v in got.items() if v.verdict != self.healthy[k].verdict})


def sign_off(profile: Profile, catalogue: Catalogue, scenario: str) -> dict[Key, Verdict]:
    """Return the verdict of every line of a profile on a simulated machine; keeps no evidence."""
    world = SimWorld(profile, load_scenario(scenario, SHIPPED, SHIPPED / "scenarios"))
    run = start(profile, catalogue, world.clock, Source("simulated", world, scenario=scenario), None)
    run.bench.begin()
    return {key: run.judge(*key) for key in run.expected()}


def unproven(bed: Bed) -> list[str]:
    """Return the lines of a profile that no proof names: checks of which nobody knows that they can fail."""
    named = {proof.line for proof in bed.proofs()}
    return sorted(bed.lines() - named)


def flaws(bed: Bed, *, once: bool = False) -> Iterator[str]:
    """Yield what does not hold on a profile: lines without a proof, proofs that fail, harmless faults that harm.

    `once` plants only the first fault of each line.
    """
    for verdict in bed.healthy.values():
        if verdict.verdict not in ("PASS", "MARGINAL", "NOT_APPLICABLE"):
            yield f"a healthy machine is refused: {verdict}"
    for line in unproven(bed):
        yield f"{line}: no fault is known that makes it fail"
    proofs = list(bed.proofs())
    for proof in {proof.line: proof for proof in reversed(proofs)}.values() if once else proofs:
        yield from bed.changed(proof).flaws()
    for fault in HARMLESS:
        for line, device in bed.changed(Proof("", fault)).verdicts if bed.planted(fault) else ():
            yield f"{fault} is harmless, and changes {line}[{device}]"


def unused() -> list[str]:
    """Return the faults of the catalogue that no proof plants."""
    planted = {proof.fault.split(":")[0].split("@")[0] for proof in PROOFS} | set(HARMLESS)
    return sorted(FAULTS.keys() - planted)


def catalogue_text() -> str:
    """Write the names of all faults, one a line, with the beginning of their page."""
    width = max(len(name) for name in FAULTS)
    head = "write gpu2 for gpu, nvme0 for drive, nic0 for nic; gpuaccept faults FAULT shows a page\n\n"
    return head + "\n".join(
        f"{name:<{width}}  {fault.page.split('. ')[0].rstrip('.')}" for name, fault in FAULTS.items()
    )


def _settings(fault: Fault) -> str:
    return ", ".join(f"{parameter} = {value}" for parameter, value in {fault.sets: fault.value, **fault.also}.items())


def page(name: str) -> str:
    """Write the page of one fault, by its name or as it is typed for a device; raises InputError with the nearest."""
    device, _, rest = name.partition(".")
    key = f"{kind_of(device)}.{rest}"
    if key not in FAULTS:
        message = f"no fault {name!r}{did_you_mean(name, FAULTS)}; see: gpuaccept faults"
        raise InputError(message)
    fault = FAULTS[key]
    lines = sorted({proof.line for proof in PROOFS if proof.fault.split(":")[0].split("@")[0] == key})
    device = {"gpu": "gpu0", "drive": "nvme0", "nic": "nic0"}.get(fault.part, fault.part)
    return "\n".join([
        key, "", fault.page, "",
        f"sets:    {_settings(fault)}",
        f"takes:   {_takes(fault)}",
        f"seen by: {', '.join(lines) or 'nothing, and nothing may fail'}",
        f"use:     --hw-sim='healthy,fault={device}.{fault.name}'   (:VALUE for another; @120s, @burn, @>65C for when)",
    ])  # fmt: skip


def _takes(fault: Fault) -> str:
    """Return the values that a fault's parameter takes."""
    schema = PARTS[fault.part].model_json_schema()["properties"][fault.sets]
    words = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "pattern": "text like"}
    limits = [f"{word} {schema[key]}" for key, word in words.items() if key in schema]
    return ", ".join(map(str, schema["enum"])) if "enum" in schema else " ".join([schema["type"], *limits])


def gaps_table(bed: Bed) -> str:
    """Write what well-known tools pass, and the line that fails here, as a Markdown table."""
    head = "| # | fault | passed by | here | verdict |\n|---|---|---|---|---|\n"
    return head + "\n".join(_gap_row(bed, gap) for gap in PEER_GAPS)


def _gap_row(bed: Bed, gap: PeerGap) -> str:
    if gap.where:
        return f"| {gap.number} | {gap.what} | {gap.passed_by} | {gap.where} | |"
    verdict = next(v for v in caught(bed, gap) if v.verdict in ("FAIL", "ERROR"))
    told = f"{verdict.verdict}: {verdict.reason}".replace("|", "/")
    return f"| {gap.number} | {gap.what} | {gap.passed_by} | `{gap.line}` | {told} |"


def caught(bed: Bed, gap: PeerGap) -> list[Verdict]:
    """Return the verdicts of a gap's line that its fault changed."""
    changed = bed.changed(Proof(gap.line, gap.fault)).verdicts
    return [verdict for (line, _), verdict in changed.items() if line == gap.line]


def faults_table() -> str:
    """Write every fault with what it is and what it sets, as a Markdown table."""
    rows = [f"| `{name}` | {fault.page} | {_settings(fault)} |" for name, fault in FAULTS.items()]
    return "| fault | on a real machine | sets |\n|---|---|---|\n" + "\n".join(rows)


def document(bed: Bed) -> str:
    """Write the page of the documentation: what others pass, line by line what fails, and all faults."""
    profile = bed.profile.name
    return DOCUMENT.format(
        profile=profile, proofs=len(list(bed.proofs())), lines=len(bed.lines()), faults=len(FAULTS),
        gaps=gaps_table(bed), matrix=matrix_table(bed), catalogue=faults_table(), harmless=" and ".join(HARMLESS),
    )  # fmt: skip


def matrix_table(bed: Bed) -> str:
    """Write line by line the faults that make it fail, what they say, and what else they change."""
    head = "| line | fault | what the line says | lines changed besides |\n|---|---|---|---|\n"
    return head + "\n".join(_matrix_row(bed, proof) for proof in sorted(bed.proofs(), key=lambda p: p.line))


def _matrix_row(bed: Bed, proof: Proof) -> str:
    changed = bed.changed(proof).verdicts
    own = next((v for (line, _), v in changed.items() if line == proof.line), None)
    said = f"{own.verdict}: {own.reason}".replace("|", "/") if own else "nothing"
    others = sorted({line for line, _ in changed} - {proof.line})
    listed = ", ".join(others[:FEW]) + (f" and {len(others) - FEW} more" if len(others) > FEW else "")
    return f"| `{proof.line}` | `{bed.planted(proof.fault).removeprefix('fault=')}` | {said} | {listed} |"
