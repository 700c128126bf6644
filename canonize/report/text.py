"""A report as text: plain for ``print`` and pipes, with colour for terminals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from canonize.report.record import ReportRecord
from canonize.report.rows import (
    AffineRow,
    counted,
    finding_groups,
    headline,
    origin,
    places,
    proof_lines,
    rows,
    verdict_lines,
)

if TYPE_CHECKING:
    from rich.console import Console

COLOURS = {"absorbed": "green", "last resort": "yellow", "left": "red"}
HEADER = ("layer", "was", "is now", "by")


def render(report: ReportRecord, verbose: bool = False) -> str:
    """The report as plain text, one thing a line.

    Parameters
    ----------
    report : Report
    verbose : bool
        Every affine on a line of its own, and every finding.
    """
    lines = [headline(report), origin(report)]
    table = [_cells(row) for row in rows(report, verbose)]
    if table:
        widths = [max(map(len, column)) for column in zip(HEADER, *table, strict=True)]
        lines += ["", *(_line(cells, widths) for cells in [HEADER, *table])]
    for title, block in _blocks(report, verbose):
        lines += ["", title, *(f"  {line}" for line in block)]
    return "\n".join(lines)


def render_rich(report: ReportRecord, console: Console, verbose: bool = False) -> None:
    """Print the report to a terminal; the same words as `render`, laid out to its width."""
    from rich.markup import escape
    from rich.table import Table

    if not console.is_terminal:  # a pipe gets lines that grep can read, never folded
        console.file.write(render(report, verbose) + "\n")
        return
    console.print(f"[bold]{escape(headline(report))}[/bold]", highlight=False)
    console.print(f"[dim]{escape(origin(report))}[/dim]", highlight=False)
    listed = rows(report, verbose)
    if listed:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in HEADER:
            table.add_column(title, overflow="fold")
        for row in listed:
            table.add_row(*(escape(cell) for cell in _cells(row)), style=COLOURS[row.outcome])
        console.print()
        console.print(table)
    for title, block in _blocks(report, verbose):
        console.print(f"\n[bold]{escape(title)}[/bold]", highlight=False)
        for line in block:
            console.print(f"  {line}", markup=False, highlight=False, style=_colour_of(line))


def _cells(row: AffineRow) -> tuple[str, str, str, str]:
    kind = row.kind if row.count == 1 else f"{row.count} x {row.kind}"
    words = {"absorbed": f"in {row.into}" if row.into else "absorbed", "left": "left"}
    now = words.get(row.outcome, f"{row.into or 'an explicit linear layer'} (last resort)")
    return row.layer, kind, f"{now}: {row.reason}" if row.reason else now, row.pattern


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _blocks(report: ReportRecord, verbose: bool) -> list[tuple[str, list[str]]]:
    """The parts behind the table: verdict, findings, notes."""
    blocks: list[tuple[str, list[str]]] = []
    if report.verdict is not None:
        first, *rest = verdict_lines(report.verdict)
        blocks.append((first, [*rest, *(f"note: {note}" for note in report.verdict.notes)]))
    if report.proof is not None:
        first, *rest = proof_lines(report.proof)
        blocks.append((first, rest))
    found = []
    for finding, where in finding_groups(report.findings, verbose):
        found.append(f"{finding.rule} {places(where)}: {finding.what}")
        found.append(f"   {finding.why}" + (f"; left because {finding.reason}" if finding.reason else ""))
    if found:
        blocks.append((f"not canonical: {counted(len(report.findings), 'place')}", found))
    elif report.affines or report.verdict is not None or report.rewrites:
        blocks.append(("canonical: nothing is left that an explainer has no rule for", []))
    if report.notes:
        blocks.append(("notes", list(report.notes)))
    return blocks


def _colour_of(line: str) -> str:
    return "red" if " > " in line and line.startswith("worst") else ""
