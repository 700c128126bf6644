"""The files a comparison leaves: tables, numbers, pictures, and one HTML page that holds all of it."""

from __future__ import annotations

import base64
import dataclasses
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from canonize._version import __version__
from canonize.errors import InputError
from canonize.evaluate import plots
from canonize.evaluate.curves import SAMPLES, draw_curves, measure_curves
from canonize.evaluate.libraries import require
from canonize.evaluate.object_size import size_plot, size_table
from canonize.evaluate.runner import Failure, Results
from canonize.evaluate.summary import accuracies, summarise, uncounted
from canonize.evaluate.tables import Table, as_text, legend, make_table
from canonize.export.atomic import write_whole


@dataclass(frozen=True)
class Picture:
    """A PNG with what it shows."""

    name: str
    caption: str
    png: bytes

    @property
    def base64(self) -> str:
        """For an HTML page that needs no other file."""
        return base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes
    ----------
    title : str
    table : Table, optional
    legend : str
        What the table's marks mean.
    lines : tuple of str
        Sentences below the table.
    failures : tuple of Failure
    pictures, gallery : tuple of Picture
    details : str
        What was asked for, as JSON.
    """

    title: str
    table: Table | None = None
    legend: str = ""
    lines: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    pictures: tuple[Picture, ...] = ()
    gallery: tuple[Picture, ...] = ()
    details: str = ""


def write_results(results: Results, folder: Path, stem: str = "", *, correct_only: bool = True) -> Section:
    """Write an experiment's numbers, table and pictures into a folder.

    Parameters
    ----------
    results : Results
    folder : Path
        Gets ``results.parquet`` and ``results.csv`` (every measurement), ``summary.csv`` (every cell), ``table.txt``
        and pictures.
    stem : str
        Goes before each file's name.
    correct_only : bool
        As for `canonize.evaluate.summary.summarise`.

    Returns
    -------
    Section
        For the page.

    Raises
    ------
    InputError
        If nothing that was measured counts; with why. What was measured stays in ``shards``.
    """
    summary = summarise(results, correct_only=correct_only)
    unsaid = uncounted(results, correct_only)
    if summary.empty:
        reasons = "; ".join(dict.fromkeys(f"{failure.task}: {failure.reason}" for failure in unsaid))
        wrong = correct_only and not results.frame["right"].astype(bool).any()
        hint = "Give trained weights, or --all-samples" if wrong else "Choose other metrics or data"
        raise InputError(f"nothing is left to compare ({reasons or 'there is no sample'})", hint=hint)
    table, means = make_table(summary), legend(summary)
    write(folder / f"{stem}results.parquet", results.frame.to_parquet)
    write(folder / f"{stem}results.csv", lambda path: results.frame.to_csv(path, index=False))
    write(folder / f"{stem}summary.csv", lambda path: summary.to_csv(path, index=False))
    write_text(folder / f"{stem}table.txt", f"{as_text(table)}\n\n{means}\n")
    pictures = []
    drawn = plots.differences(summary)
    if drawn is not None:
        baseline = results.experiment.canonizations[0]
        caption = f"Paired differences from {baseline} with 95 % intervals; right of the line is better"
        pictures.append(Picture(f"{stem}differences.png", caption, plots.png(drawn)))
    gallery = []
    for data in results.experiment.data:
        for model in results.experiment.models:
            shown = plots.gallery(results.experiment, data, model.name)
            if shown is not None:
                name = f"{stem}heatmaps-{model.name}-{data.partition(':')[0]}.png"
                gallery.append(Picture(name, f"{model.name}, {data}", plots.png(shown)))
    sized = size_plot(results, correct_only=correct_only)
    if sized is not None:
        caption = "μ over the size of the object's box, in bins of as many objects each; dotted: a uniform heatmap"
        pictures.append(Picture(f"{stem}mu-by-size.png", caption, plots.png(sized)))
    if any(name.startswith("pixel-flipping") for name in results.experiment.metrics):
        pictures += _flipping(results, folder, stem)
    for picture in (*pictures, *gallery):
        write(folder / picture.name, lambda path, png=picture.png: path.write_bytes(png))
    return Section(
        title=results.experiment.title,
        table=table,
        legend=means,
        lines=_sentences(results, correct_only),
        failures=(*results.failures, *unsaid),
        pictures=tuple(pictures),
        gallery=tuple(gallery),
        details=json.dumps(dataclasses.asdict(results.experiment), indent=1, ensure_ascii=False),
    )


def _flipping(results: Results, folder: Path, stem: str) -> list[Picture]:
    """Curves of pixel flipping, as numbers and as pictures."""
    found = []
    for data in results.experiment.data:
        for model in results.experiment.models:
            curves = measure_curves(results.experiment, data, model.name)
            if curves is None:
                continue
            name = f"{stem}flipping-{model.name}-{data.partition(':')[0]}"
            write(folder / f"{name}.csv", lambda path, of=curves: of.frame.to_csv(path, index=False))
            caption = f"{model.name}, {data}: pixels go, most relevant first; means over {SAMPLES} samples at most"
            found.append(Picture(f"{name}.png", caption, plots.png(draw_curves(curves))))
    return found


def write_sizes(results: Results, folder: Path, stem: str = "", *, correct_only: bool = True) -> Section | None:
    """Write localisation by the size of the object; None where no size is known."""
    table = size_table(results, correct_only)
    if table is None:
        return None
    write_text(folder / f"{stem}sizes.txt", as_text(table) + "\n")
    legend = "mean ± standard error over objects that fill less than so much of the picture"
    return Section("Localisation by the size of the object", table, legend)


def write_page(file: Path, title: str, sections: list[Section], seconds: float | None = None) -> None:
    """Write one self-contained HTML page."""
    jinja2 = require("jinja2")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        title=title,
        sections=sections,
        version=__version__,
        torch_version=torch.__version__,
        seconds=seconds,
    )
    write_text(file, page)


def write(path: Path, how: Any) -> None:
    """Write a file whole or not at all."""
    write_whole(path, how, lambda written: None)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write(path, lambda passing: passing.write_text(text, encoding="utf-8"))


def _sentences(results: Results, correct_only: bool) -> tuple[str, ...]:
    experiment = results.experiment
    told = [
        f"{row.model} answers {row.accuracy:.1%} of {row.samples} samples of {row.data} rightly"
        for row in accuracies(results).itertuples()
    ]
    counted = "those answered rightly count" if correct_only else "all count"
    of_seeds = f"{len(experiment.seeds)} seed{'s' * (len(experiment.seeds) != 1)}"
    drawn = f"{experiment.samples} samples for each of {of_seeds}; {counted}"
    return ("; ".join(told) + ".", f"{drawn}. Explained is the {experiment.target} class.")
