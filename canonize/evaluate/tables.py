"""The comparison as a table like Table 1 of Pahde et al. 2023: canonizations down, metrics across, best in bold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from canonize.evaluate.metrics.catalogue import METRICS, Metric
from canonize.evaluate.summary import comparisons

if TYPE_CHECKING:
    import pandas as pd

MARKS = {"better": "▲", "worse": "▼", "rounding": "=", "control": "=", "control differs": "!"}
LEGEND = (
    "mean ± standard error over samples; arrows say which way is better; bold is the best canonization; "
    "▲ better and ▼ worse than the first canonization: the paired difference is beyond rounding, and beyond chance at "
    "5 % for all comparisons together (Holm); = the difference is rounding"
)
CONTROLS = (
    "; controls are methods that canonizing cannot change: they get no verdict, and ! would mean that they differ by "
    "more than rounding"
)


def legend(summary: pd.DataFrame) -> str:
    """What the marks of a summary's table mean, and how many comparisons there are."""
    number = comparisons(summary)
    counted = f"; {number} comparison{'s' * (number != 1)}" if number else ""
    return LEGEND + counted + (CONTROLS if summary["control"].any() else "")


@dataclass(frozen=True)
class TableEntry:
    """One number of the table.

    Attributes
    ----------
    text : str
        Mean and standard error; a dash where nothing could be measured.
    mark : str
        Whether the paired difference from the first canonization is more than chance.
    best : bool
        Of the canonizations of the same model and method.
    note : str
        Number of samples, and the paired difference with its error.
    """

    text: str
    mark: str = ""
    best: bool = False
    note: str = ""


@dataclass(frozen=True)
class TableRow:
    """One line: labels, and an entry for each column. `first` begins a group of canonizations."""

    labels: tuple[str, ...]
    entries: tuple[TableEntry, ...]
    first: bool


@dataclass(frozen=True)
class Table:
    """A table, ready to be drawn anywhere.

    Attributes
    ----------
    labels : tuple of str
        Headings of the rows' labels.
    columns : tuple of str
        Headings of the entries, with arrows; of each data set in turn where there are several.
    groups : tuple of (str, int)
        Heading over the columns, and how many it spans: the data sets, or what the metrics measure.
    rows : tuple of Row
    several : bool
        Whether the columns' headings say too little without the one over them.
    """

    labels: tuple[str, ...]
    columns: tuple[str, ...]
    groups: tuple[tuple[str, int], ...]
    rows: tuple[TableRow, ...]
    several: bool = False


def make_table(summary: pd.DataFrame) -> Table:
    """A table of a summary; see `canonize.evaluate.summary.summarise`."""
    records: list[dict[str, Any]] = summary.to_dict("records")
    cells = {(r["data"], r["model"], r["method"], r["canonization"], r["metric"]): r for r in records}
    datas, models = _unique(records, "data"), _unique(records, "model")
    methods, canonizations = _unique(records, "method"), _unique(records, "canonization")
    columns = [
        (data, METRICS[name]) for data in datas for name in _unique([r for r in records if r["data"] == data], "metric")
    ]
    rows = []
    for model in models:
        for method in methods:
            found = {c: [cells.get((d, model, method, c, m.name)) for d, m in columns] for c in canonizations}
            best = [_best([found[c][i] for c in canonizations], m) for i, (_, m) in enumerate(columns)]
            for canonization in canonizations:
                entries = tuple(
                    _entry(cell, cell is not None and not cell["control"] and cell["mean"] == best[i])
                    for i, cell in enumerate(found[canonization])
                )
                controlled = all(cell["control"] for cells_ in found.values() for cell in cells_ if cell is not None)
                named = f"{method} (control)" if controlled else method
                rows.append(TableRow((model, named, canonization), entries, canonization == canonizations[0]))
    headings = tuple(f"{m.title} {m.arrow}".strip() for _, m in columns)
    over = [data for data, _ in columns] if len(datas) > 1 else [m.group for _, m in columns]
    return Table(("model", "method", "canonization"), headings, _runs(over), tuple(rows), len(datas) > 1)


def _entry(cell: dict[str, Any] | None, best: bool) -> TableEntry:
    if cell is None or not math.isfinite(cell["mean"]):
        return TableEntry("–")
    note = f"{cell['count']} samples"
    if cell["verdict"]:
        note += (
            f"; paired difference {cell['difference']:+.3g} ± {cell['difference_error']:.2g}, "
            f"p = {cell['p_corrected']:.2g} (Holm); rounding: {cell['floor']:.1g}; {cell['verdict']}"
        )
    mark = MARKS.get(cell["verdict"], "")
    return TableEntry(f"{_figures(cell['mean'])} ± {_figures(cell['error'])}", mark, best, note)


def _figures(value: float) -> str:
    """Three places, or powers of ten where they would not say anything."""
    return f"{value:.3f}" if not math.isfinite(value) or 1e-3 <= abs(value) < 100 or value == 0 else f"{value:.1e}"


def _best(cells: list[dict[str, Any] | None], found: Metric) -> float | None:
    """The best mean, where there is a choice and one way is better."""
    means = [cell["mean"] for cell in cells if cell is not None and math.isfinite(cell["mean"])]
    if found.better == "neither" or len(set(means)) < 2:
        return None
    return float(max(means) if found.better == "higher" else min(means))


def _unique(records: list[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(record[key] for record in records))


def _runs(names: list[str]) -> tuple[tuple[str, int], ...]:
    runs: list[tuple[str, int]] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1] + 1)
        else:
            runs.append((name, 1))
    return tuple(runs)


def as_text(table: Table) -> str:
    """The table for a terminal or a text file; best between asterisks, as in Markdown."""
    over = [f"{name}: " if table.several else "" for name, span in table.groups for _ in range(span)]
    heads = [*table.labels, *(above + column for above, column in zip(over, table.columns, strict=True))]
    lines = [heads, *([*row.labels, *(_marked(entry) for entry in row.entries)] for row in table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]

    def drawn(line: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([drawn(heads), rule, *(drawn(line) for line in lines[1:])])


def _marked(entry: TableEntry) -> str:
    text = f"**{entry.text}**" if entry.best else entry.text
    return f"{text} {entry.mark}".rstrip()
