"""The `gpuaccept` command: what can be done with profiles and bundles without pytest.

Exit status: 0 accepted or done, 1 rejected or not intact, 4 bad input, 10 incomplete.
"""

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pytest_gpuaccept import __version__
from pytest_gpuaccept.bundle import Bundle, read_bundle
from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.loader import SHIPPED, known_profiles, load_profile
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.probes import SHIPPED as PROBES
from pytest_gpuaccept.report import summary_text
from pytest_gpuaccept.report.words import decision, word
from pytest_gpuaccept.run import Source, decided, open_bundle, page_of, render, start
from pytest_gpuaccept.transcribe import transcribe
from pytest_gpuaccept.world import SystemClock

USAGE = 4
DEFECT = 1
FOLDER = "folder of an evidence bundle"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except InputError as error:
        sys.stderr.write(f"gpuaccept: {error}\n")
        return USAGE
    except OSError as error:
        sys.stderr.write(f"gpuaccept: {error.filename}: {error.strerror}\n")
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("gpuaccept", description="Profiles and evidence bundles of GPU machine sign-offs.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    lint = commands.add_parser("lint", help="name every mistake of a profile")
    lint.add_argument("profiles", nargs="*", metavar="PROFILE", help="names, paths or <N>x<card>; default: all known")
    lint.set_defaults(run=_lint)

    verify = commands.add_parser("verify", help="check that a bundle is whole and unchanged")
    verify.add_argument("bundle", type=Path, help=FOLDER)
    verify.set_defaults(run=_verify)

    rejudge = commands.add_parser("rejudge", help="judge a bundle's measurements by another profile")
    rejudge.add_argument("bundle", type=Path, help=FOLDER)
    rejudge.add_argument("--hw", required=True, metavar="PROFILE", help="profile to judge by")
    rejudge.add_argument("--evidence", type=Path, metavar="DIR", help="keep the outcome as a bundle of its own")
    rejudge.add_argument(
        "-v", "--verbose", action="store_true", help="print every verdict, not only those that changed"
    )
    rejudge.set_defaults(run=_rejudge)

    page = commands.add_parser("render", help="render the report of a bundle again")
    page.add_argument("bundle", type=Path, help=FOLDER)
    page.set_defaults(run=_render)

    faults = commands.add_parser("faults", help="the faults that a simulated machine can have")
    faults.add_argument("name", nargs="?", metavar="FAULT", help="show the page of one, such as gpu.pcie.width")
    faults.set_defaults(run=_faults)

    proof = commands.add_parser("matrix", help="prove that every line of a profile can fail, fault by fault")
    proof.add_argument("profiles", nargs="*", metavar="PROFILE", help="default: all known")
    proof.add_argument("--table", action="store_true", help="print what every line says of its faults, as Markdown")
    proof.set_defaults(run=_matrix)

    left = commands.add_parser("residuals", help="what is left between the published figures and the simulated machine")
    left.set_defaults(run=_residuals)

    init = commands.add_parser("init", help="copy acceptance/ and thresholds/ here, for editing")
    init.set_defaults(run=_init)

    figures = commands.add_parser("transcribe", help="keep published figures as a bundle")
    figures.add_argument("figures", type=Path, help="TOML file of figures")
    figures.add_argument("bundle", type=Path, help="folder to write the bundle to")
    figures.set_defaults(run=_transcribe)

    detection = commands.add_parser("detection", help="simulate healthy machines: false alarms, and losses found")
    detection.add_argument("profile", nargs="?", default="4x4090", metavar="PROFILE", help="default: 4x4090")
    detection.add_argument("--seeds", type=_count, default=3000, metavar="N", help="machines (default: 3000)")
    detection.add_argument("--workers", type=_count, default=2, metavar="N", help="processes (default: 2)")
    detection.set_defaults(run=_detection)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        message = f"{text!r} is not a number from 1"
        raise argparse.ArgumentTypeError(message)
    return int(text)


class _Parser(argparse.ArgumentParser):
    """A parser whose bad usage ends with 4, as pytest's does."""

    def exit(self, status: int = 0, message: str | None = None) -> None:  # type: ignore[override]
        super().exit(USAGE if status else 0, message)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _lint(options: argparse.Namespace) -> int:
    catalogue, wrong = Catalogue(PROBES), 0
    for name in options.profiles or known_profiles(Path.cwd()):
        try:
            profile = load_profile(name, catalogue, Path.cwd())
        except InputError as error:
            wrong += 1
            sys.stderr.write(f"{error}\n")
        else:
            _say(f"{name}: {len(profile.lines)} lines, {len(list(catalogue.expected(profile)))} verdicts, no mistake")
    return USAGE if wrong else 0


def _verify(options: argparse.Namespace) -> int:
    bundle = read_bundle(options.bundle)
    flaws = [*bundle.flaws, *_report_flaws(bundle)]
    _say_flaws(flaws)
    _say_how_to_go_on(bundle)
    if not flaws:
        _say(f"intact: {len(bundle.records)} records, {bundle.mode}, {decision(bundle)}")
    return DEFECT if flaws else 0


def _report_flaws(bundle: Bundle) -> list[str]:
    """Return whether the page beside the evidence is the one that the evidence gives."""
    page = bundle.folder / "report.html"
    if not page.exists() or page.read_bytes() == page_of(bundle, Catalogue(PROBES)).encode():
        return []
    return ["report.html is not the page that this version renders from the evidence: render it again"]


def _say_flaws(flaws: Sequence[str]) -> None:
    for flaw in flaws:
        _say(f"NOT INTACT {flaw}")


def _say_how_to_go_on(bundle: Bundle) -> None:
    if not bundle.finished and bundle.profile and bundle.mode in ("live", "simulated"):
        _say(f"go on with it: pytest acceptance/ --hw={bundle.profile.name} --hw-resume={bundle.folder}")


def _rejudge(options: argparse.Namespace) -> int:
    catalogue, bundle, clock = Catalogue(PROBES), open_bundle(options.bundle), SystemClock()
    profile = load_profile(options.hw, catalogue, Path.cwd())
    run = start(profile, catalogue, clock, Source("replayed", bundle=bundle), options.evidence)
    before = {(v.line, v.device): v.verdict for v in bundle.verdicts}
    for name, device in run.expected():
        verdict = run.judge(name, device)
        run.settle(verdict)
        was = before.get((name, device), "no verdict")
        change = f"  (was {was})" if before and was != verdict.verdict else ""
        if change or options.verbose or not before:
            _say(f"{word(verdict):14} {name}[{device}]: {verdict.reason}{change}")
    gone = Counter(v.verdict for v in bundle.verdicts if (v.line, v.device) not in run.expected())
    if gone:
        counts = ", ".join(f"{number} {verdict}" for verdict, number in gone.most_common())
        _say(f"not in this profile, and so not judged: {counts}")
    outcome = run.finish("not judged")
    _say(f"{outcome}  profile {profile.name} sha256 {profile.digest()}")
    return outcome.exit_status


def _render(options: argparse.Namespace) -> int:
    bundle, catalogue = read_bundle(options.bundle), Catalogue(PROBES)
    width = shutil.get_terminal_size((110, 24)).columns
    sys.stdout.write(summary_text(decided(bundle, catalogue), width, colour=sys.stdout.isatty()))
    _say_flaws(bundle.flaws)
    _say_how_to_go_on(bundle)
    _say(f"{decision(bundle)}  report: {render(options.bundle, catalogue).resolve()}")
    return DEFECT if any("cut off" not in flaw for flaw in bundle.flaws) else 0


def _faults(options: argparse.Namespace) -> int:
    from pytest_gpuaccept.selfcheck import matrix  # noqa: PLC0415 - only where machines are simulated

    _say(matrix.page(options.name) if options.name else matrix.catalogue_text())
    return 0


def _matrix(options: argparse.Namespace) -> int:
    """Plant every fault in every profile; a line that cannot fail, or a verdict out of place, is a defect."""
    from pytest_gpuaccept.selfcheck import matrix  # noqa: PLC0415 - only where machines are simulated

    catalogue, wrong = Catalogue(PROBES), 0
    for name in options.profiles or known_profiles(Path.cwd()):
        bed = matrix.Bed(load_profile(name, catalogue, Path.cwd()), catalogue)
        flaws = [*matrix.flaws(bed)]
        wrong += len(flaws)
        summary = f"{name}: {len(list(bed.proofs()))} faults planted, {len(flaws)} out of place"
        sys.stderr.write("\n".join([summary, *flaws, ""]))
        if options.table:
            sys.stdout.write(matrix.document(bed))
    return DEFECT if wrong else 0


def _residuals(_: argparse.Namespace) -> int:
    from pytest_gpuaccept.selfcheck import residuals  # noqa: PLC0415 - only where machines are simulated

    _say(residuals.table(list(residuals.residuals(Catalogue(PROBES)))))
    return 0


def _init(_: argparse.Namespace) -> int:
    for name in ("acceptance", "thresholds"):
        target = Path.cwd() / name
        if target.exists():
            message = f"{target} exists already and is left as it is"
            raise InputError(message)
        shutil.copytree(SHIPPED / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        _say(f"{name}/ copied; edit it, then: pytest acceptance/ --tb=no -rN --hw=PROFILE")
    return 0


def _transcribe(options: argparse.Namespace) -> int:
    count = transcribe(options.figures, options.bundle, Catalogue(PROBES))
    _say(f"{count} figures in {options.bundle}, provenance published")
    return 0


def _detection(options: argparse.Namespace) -> int:
    from pytest_gpuaccept.selfcheck import detection  # noqa: PLC0415 - only where machines are simulated

    profile = load_profile(options.profile, Catalogue(PROBES), Path.cwd())
    found = detection.sign_offs(profile, options.seeds, options.workers)
    sys.stdout.write(detection.page(found, SystemClock().now().date().isoformat()))
    return 0
