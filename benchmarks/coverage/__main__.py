"""Measure what canonize covers, and write the table: ``python -m benchmarks.coverage --help``."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.coverage.measure import Row
from benchmarks.coverage.workers import Limits, measured
from benchmarks.coverage.zoo import Architecture, architectures

DOCS = Path(__file__).parents[2] / "docs"


def main(
    patterns: Annotated[
        list[str] | None, typer.Argument(metavar="[PATTERN]...", help="timm:res*, torchvision:*")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    seconds: Annotated[float, typer.Option(help="Most processor time for one model.")] = 300,
    gigabytes: Annotated[float, typer.Option(help="Most resident memory of one process.")] = 12,
    parameters: Annotated[float, typer.Option(help="Most of a model, in millions; larger ones are skipped.")] = 200,
    seed: Annotated[int, typer.Option(help="Of weights, statistics and inputs.")] = 0,
    results: Annotated[Path, typer.Option(help="One line a model; what is there is not measured again.")] = DOCS
    / "coverage.jsonl",
    again: Annotated[bool, typer.Option("--again", help="Measure also what is there.")] = False,
    again_bad: Annotated[bool, typer.Option("--again-bad", help="Measure again what is there and not exact.")] = False,
    table: Annotated[Path, typer.Option(help="The table to write.")] = DOCS / "coverage.md",
) -> None:
    """Canonize every architecture of torchvision and timm and write down what came out. Can be interrupted."""
    from benchmarks.coverage.peers import as_markdown
    from benchmarks.coverage.table import write

    rows = read(results)
    todo = [
        it
        for it in architectures()
        if _asked(it, patterns) and (again or it.key not in rows or (again_bad and not good(rows[it.key])))
    ]
    todo = interleaved(todo)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, transient=True) as progress, results.open("a") as file:
            task = progress.add_task("models", total=len(todo))
            for row in measured(todo, jobs, Limits(seconds, gigabytes, parameters), seed):
                file.write(json.dumps(row.to_dict()) + "\n")
                file.flush()
                rows[row.key] = row
                progress.advance(task)
                if row.outcome not in ("exact", "skipped"):
                    progress.console.print(f"{row.key}: {row.outcome}: {row.reason or row.error}", highlight=False)
    except KeyboardInterrupt:
        typer.echo("Interrupted; the same command goes on from here.", err=True)
    _tidy(results, rows)
    write(ordered(rows), table, as_markdown())
    typer.echo(f"{len(rows)} architectures in {table.name}")


def good(row: Row) -> bool:
    """Whether there is nothing to mend."""
    return row.outcome == "skipped" or (row.outcome == "exact" and row.absorbed == row.affines and row.canonical)


def read(results: Path) -> dict[str, Row]:
    """Rows of an earlier run, the last one of each architecture; a line that an interruption cut is dropped."""
    rows = {}
    for line in results.read_text().splitlines() if results.exists() else []:
        try:
            row = Row(**json.loads(line))
        except (ValueError, TypeError):
            continue
        rows[row.key] = row
    return rows


def ordered(rows: dict[str, Row]) -> list[Row]:
    """By library, family and name."""
    return sorted(rows.values(), key=lambda row: (row.key.partition(":")[0], row.family, row.key))


def _tidy(results: Path, rows: dict[str, Row]) -> None:
    temporary = results.with_suffix(".part")
    temporary.write_text("".join(json.dumps(row.to_dict()) + "\n" for row in ordered(rows)))
    temporary.replace(results)


def _asked(architecture: Architecture, patterns: list[str] | None) -> bool:
    return not patterns or any(fnmatch.fnmatch(architecture.key, it) for it in patterns)


def interleaved(todo: list[Architecture]) -> list[Architecture]:
    """One of each family first, then a second, and so on, so that an interrupted run has seen every family."""
    families: dict[tuple[str, str], list[Architecture]] = {}
    for it in todo:
        families.setdefault((it.library, it.family), []).append(it)
    order = []
    for depth in range(max(map(len, families.values()), default=0)):
        order.extend(members[depth] for members in families.values() if depth < len(members))
    return order


if __name__ == "__main__":
    typer.run(main)
