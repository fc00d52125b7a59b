"""The `gpuaccept` command: what can be done with profiles and bundles without pytest.

Exit status: 0 accepted or done, 1 rejected or not intact, 4 bad input, 10 incomplete.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_gpuaccept import __version__
from pytest_gpuaccept.bundle import Bundle, read_bundle
from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.loader import SHIPPED, known_profiles, load_profile
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.probes import SHIPPED as PROBES
from pytest_gpuaccept.report import render_html, summary_text
from pytest_gpuaccept.report.words import decision, word
from pytest_gpuaccept.run import Source, open_bundle, render, start
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

    init = commands.add_parser("init", help="copy acceptance/ and thresholds/ here, for editing")
    init.set_defaults(run=_init)

    figures = commands.add_parser("transcribe", help="keep published figures as a bundle")
    figures.add_argument("figures", type=Path, help="TOML file of figures")
    figures.add_argument("bundle", type=Path, help="folder to write the bundle to")
    figures.set_defaults(run=_transcribe)
    return parser


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
    if not flaws:
        _say(f"intact: {len(bundle.records)} records, {bundle.mode}, {decision(bundle)}")
    return DEFECT if flaws else 0


def _report_flaws(bundle: Bundle) -> list[str]:
    """Return whether the page beside the evidence is the one that the evidence gives."""
    page = bundle.folder / "report.html"
    if not page.exists() or page.read_bytes() == render_html(bundle, Catalogue(PROBES)).encode():
        return []
    return ["report.html is not the page that this version renders from the evidence: render it again"]


def _say_flaws(flaws: Sequence[str]) -> None:
    for flaw in flaws:
        _say(f"NOT INTACT {flaw}")


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
    outcome = run.finish("not judged")
    _say(f"{outcome}  profile {profile.name} sha256 {profile.digest()}")
    return outcome.exit_status


def _render(options: argparse.Namespace) -> int:
    bundle = read_bundle(options.bundle)
    width = shutil.get_terminal_size((110, 24)).columns
    sys.stdout.write(summary_text(bundle, width, colour=sys.stdout.isatty()))
    _say_flaws(bundle.flaws)
    _say(f"{decision(bundle)}  report: {render(options.bundle, Catalogue(PROBES)).resolve()}")
    return DEFECT if any("cut off" not in flaw for flaw in bundle.flaws) else 0


def _init(_: argparse.Namespace) -> int:
    for name in ("acceptance", "thresholds"):
        target = Path.cwd() / name
        if target.exists():
            message = f"{target} exists already and is left as it is"
            raise InputError(message)
        shutil.copytree(SHIPPED / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        _say(f"{name}/ copied; edit it, then: pytest acceptance/ --hw=PROFILE")
    return 0


def _transcribe(options: argparse.Namespace) -> int:
    count = transcribe(options.figures, options.bundle, Catalogue(PROBES))
    _say(f"{count} figures in {options.bundle}, provenance published")
    return 0
