"""The terminal view: the table of verdicts, what stands in the way, the findings."""

from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pytest_gpuaccept.bundle import Bundle
from pytest_gpuaccept.measurement import printable, show
from pytest_gpuaccept.report.words import (
    WORDS,
    Blocker,
    blockers,
    composition,
    findings,
    margin_text,
    reasons_beside_lines,
    remarks,
    stamps,
    word,
)
from pytest_gpuaccept.verdict import Verdict

COLUMNS = ("line", "device", "measured", "limit", "margin", "verdict")
NARROW = 100


def summary_text(bundle: Bundle, width: int, *, colour: bool) -> str:
    """Return the summary of a finished run as text of at most `width` columns."""
    out = StringIO()
    console = Console(file=out, width=max(width, 60), force_terminal=colour, no_color=not colour, highlight=False)
    title = " ".join(["gpuaccept verdicts", *(f"[{stamp}]" for stamp in stamps(bundle))])
    console.print(Text(f"\n{title}", style="bold"))
    console.print(Text(composition(bundle)))
    console.print(_table(bundle.verdicts, narrow=width < NARROW))
    _print_reasons(console, "In the way of acceptance", "red", blockers(bundle.verdicts))
    for reason in reasons_beside_lines(bundle):
        console.print(Text(f"\n{printable(reason)}", style="bold"))
    _print_reasons(console, "Remarks", "yellow", remarks(bundle.verdicts))
    _print_findings(console, bundle)
    _print_waivers(console, bundle)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def _table(verdicts: tuple[Verdict, ...], *, narrow: bool) -> Table:
    """Return the table; a narrow one folds lines and leaves the margin to the report."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in COLUMNS[:4] + COLUMNS[5:] if narrow else COLUMNS:
        justify: JustifyMethod = "right" if name in ("measured", "margin") else "left"
        table.add_column(name, overflow="fold", justify=justify, no_wrap=name not in ("measured", "limit"))
    for v in verdicts:
        value = "-" if v.value is None else show(v.value, v.unit)
        mark = Text(word(v), style="yellow" if word(v).startswith("REMARK") else WORDS[v.verdict][1])
        margin = [] if narrow else [Text(margin_text(v, short=True))]
        table.add_row(Text(v.line), Text(v.device), Text(value), Text(v.limit), *margin, mark)
    return table


def _print_reasons(console: Console, title: str, style: str, reasons: list[Blocker]) -> None:
    if reasons:
        console.print(Text(f"\n{title} ({len(reasons)}):", style="bold"))
    for b in reasons:
        console.print(Padding(Text.assemble((f"{b.verdict} ", style), b.reason), (0, 0, 0, 2)))
        console.print(Padding(Text(", ".join(b.places), style="dim"), (0, 0, 0, 6)))


def _print_findings(console: Console, bundle: Bundle) -> None:
    found = findings(bundle)
    if found:
        console.print(Text(f"\nFindings ({len(found)}):", style="bold"))
    rows = Table.grid(padding=(0, 1))
    for number, f in enumerate(found, 1):
        rows.add_row(Text(f"{number:3}."), Text(printable(f.cause)))
        rows.add_row("", Text(f"Seen: {printable(f.evidence)}", style="dim"))
        rows.add_row("", Text(f"Do: {f.remedy}"))
    console.print(rows)


def _print_waivers(console: Console, bundle: Bundle) -> None:
    if bundle.profile is None:
        return
    void = [(w["line"], w["device"]) for w in bundle.manifest.get("expired_waivers", [])]
    for w in bundle.profile.waivers:
        state = "VOID, expired" if (w.line, w.device) in void else "holds until"
        text = printable(f"Waiver {w.line}[{w.device}] by {w.who}, {state} {w.until}: {w.reason}")
        console.print(Text(text, style="yellow"))
