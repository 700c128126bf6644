"""Measure how fast canonize is, and write table and plot: ``python -m benchmarks.speed --help``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.speed.parts import PARTS, Part, units
from benchmarks.speed.row import Row, Settings, read, write
from benchmarks.speed.subjects import SUBJECTS
from benchmarks.speed.timing import said

DOCS = Path(__file__).parents[2] / "docs"


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(PARTS)}; by default all.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(SUBJECTS)}, or any other as timm:... or torchvision:...")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Of each comparison.")] = Settings.rounds,
    seconds: Annotated[float, typer.Option(help="Processor time that ends a comparison early.")] = Settings.seconds,
    edge: Annotated[int, typer.Option(help="Of images, in pixels.")] = Settings.edge,
    seed: Annotated[int, typer.Option(help="Of weights, statistics and inputs.")] = Settings.seed,
    inductor: Annotated[bool, typer.Option(help="Also generate code in `compile`, which takes minutes.")] = True,
    results: Annotated[Path, typer.Option(help="What is there is not measured again.")] = DOCS / "speed.json",
    again: Annotated[bool, typer.Option("--again", help="Measure also what is there.")] = False,
    page: Annotated[Path, typer.Option(help="The page to write; the plot goes beside it.")] = DOCS / "speed.md",
) -> None:
    """Measure conversion, proof, forward, compilation, ONNX files, memory and growth. Can be interrupted."""
    from benchmarks.speed.page import machine, write_page
    from benchmarks.speed.plot import write_plot

    for unknown in {*(parts or [])} - {*PARTS}:
        raise typer.BadParameter(f"there is no part {unknown!r}; parts: {', '.join(PARTS)}")
    torch.set_num_threads(1)
    settings = Settings(rounds, seconds, edge, seed, inductor)
    rows = read(results)
    asked = units(parts or list(PARTS), model or [])
    known = {(row.part, row.subject) for row in rows}
    todo = [(part, subject) for part, subject in asked if again or (part.name, subject) not in known]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    interrupted = False
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=len(todo))
            for part, subject in todo:
                progress.update(task, description=f"{part.name} {subject}")
                found = _measured(part, subject, settings)
                for row in found:
                    row.machine = machine()
                rows = ordered([row for row in rows if (row.part, row.subject) != (part.name, subject)] + found)
                write(rows, results)
                progress.advance(task)
    except KeyboardInterrupt:
        interrupted = True
    if rows:
        write_page(rows, page, edge)
        write_plot(rows, page.with_suffix(".png"))
    if interrupted:
        typer.echo("Interrupted; the same command goes on from here.", err=True)
        raise typer.Exit(130)
    marked = [row for row in rows if row.mark is not None]
    typer.echo(f"{len(rows)} figures in {page.name}: {sum(map(_reached, marked))} of {len(marked)} marks reached")


def _measured(part: Part, subject: str, settings: Settings) -> list[Row]:
    """What cannot be measured at all keeps nothing else from being measured; its row says why."""
    try:
        return part.measure(subject, settings)
    except Exception as error:
        typer.echo(f"{part.name} {subject}: {said(error)}", err=True)
        return [Row(part.name, subject, "", note=said(error))]


def _reached(row: Row) -> bool:
    return row.reached is True


def ordered(rows: list[Row]) -> list[Row]:
    """By part and model, in the order of the benchmark; within, as measured."""
    parts, subjects = list(PARTS), [*SUBJECTS]
    place = {name: i for i, name in enumerate(subjects)}
    return sorted(rows, key=lambda row: (parts.index(row.part), place.get(row.subject, len(place)), row.subject))


if __name__ == "__main__":
    typer.run(main)
