"""The files a search leaves: every configuration, the best, pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from canonize.evaluate.metrics.catalogue import metric
from canonize.evaluate.page import Picture, Section, write, write_text
from canonize.evaluate.plots import png
from canonize.evaluate.tables import Table, TableEntry, TableRow
from canonize.search import contours, extremes
from canonize.search.study import Found

SHOWN = 12


def write_search(found: Found, folder: Path, stem: str = "") -> Section:
    """Write a search's trials, its best configurations and its pictures into a folder.

    Parameters
    ----------
    found : Found
    folder : Path
        Gets ``trials.csv``, ``best.json`` and pictures.
    stem : str
        Goes before each file's name.

    Returns
    -------
    Section
        For the page.
    """
    write(folder / f"{stem}trials.csv", lambda path: found.trials.to_csv(path, index=False))
    write_text(folder / f"{stem}best.json", json.dumps(best(found), indent=1) + "\n")
    drawn: list[tuple[str, str, Any]] = [
        ("extremes", "Best and worst configuration for each objective", extremes.draw(found)),
        ("lines", "Mean over all other parameters, with standard errors", contours.lines(found)),
        *(
            (f"contours-{name.replace(':', '-')}", "Over pairs of parameters", contours.contours(found, name))
            for name in found.search.objectives
        ),
        ("pareto", "Configurations; on the front, bars are standard errors over samples", contours.pareto(found)),
        ("history", "The search as it went on; the line is the best so far", contours.history(found)),
    ]
    pictures = tuple(Picture(f"{stem}{name}.png", caption, png(fig)) for name, caption, fig in drawn if fig is not None)
    for picture in pictures:
        write(folder / picture.name, lambda path, data=picture.png: path.write_bytes(data))
    failed = f"; {found.failed} could not be measured" if found.failed else ""
    why = tuple(f"Not measured ({count} time{'s' * (count > 1)}): {reason}" for reason, count in found.reasons)
    several = "on the Pareto front" if len(found.search.objectives) > 1 else "best"
    return Section(
        title=f"Search: {found.search.model.name} on {found.search.data}",
        table=front_table(found),
        lines=(
            f"{len(found.trials)} configurations of {found.search.space.size or 'infinitely many'}, chosen by "
            f"{found.search.sampler}{failed}; {len(found.front)} {several}.",
            *why,
        ),
        pictures=pictures,
        details=json.dumps(found.search.space.to_json(), indent=1),
    )


def best(found: Found) -> list[dict[str, Any]]:
    """The best configurations as plain data: parameters that were set, objectives, errors."""
    rows: list[dict[str, Any]] = found.front.to_dict("records")
    return [{key: value for key, value in row.items() if value == value} for row in rows]  # NaN is not itself


def front_table(found: Found) -> Table:
    """The best configurations as a table, at most `SHOWN` of them."""
    parameters = [
        name for name in found.search.space.parameters if name in found.front and found.front[name].notna().any()
    ]
    objectives = found.search.objectives
    rows = []
    for record in best(found)[:SHOWN]:
        labels = tuple(_shown(record.get(name, "")) for name in parameters)
        entries = tuple(TableEntry(f"{record[name]:.3f} ± {record[f'error:{name}']:.3f}") for name in objectives)
        rows.append(TableRow(labels, entries, True))
    heads = tuple(f"{metric(name).title} {metric(name).arrow}" for name in objectives)
    return Table(tuple(parameters), heads, (("objectives", len(objectives)),), tuple(rows))


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
