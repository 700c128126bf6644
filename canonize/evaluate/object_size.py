"""Localisation by how large the object is: small objects are what tells explanations apart (Kohlbrenner et al. 2020).

In a picture that the object fills, any heatmap lies on the object. Kohlbrenner et al. 2020 and Motzkus et al. 2022 look
at objects that fill less than half, and less than a quarter, of the picture, beside a heatmap that is the same
everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from canonize.evaluate.libraries import require
from canonize.evaluate.metrics.catalogue import METRICS
from canonize.evaluate.plots import HUES, figure
from canonize.evaluate.runner import Results
from canonize.evaluate.summary import counted
from canonize.evaluate.tables import Table, TableEntry, TableRow

if TYPE_CHECKING:
    import pandas as pd

BELOW = {"all": 1.01, "< 50 %": 0.5, "< 25 %": 0.25}
UNIFORM = "uniform heatmap"
# What a heatmap that is the same everywhere gets, given the share of the picture that the object's box fills.
KNOWN = {"mu": lambda area: area, "mu-weighted": lambda area: np.ones_like(area)}
BINS = 6


def localised(results: Results, correct_only: bool = True) -> pd.DataFrame:
    """Measurements of localisation of objects whose size is known, those that count."""
    frame = results.frame
    local = frame["metric"].map(lambda name: METRICS[name].group == "localisation").astype(bool)
    return frame[local & counted(frame, correct_only) & np.isfinite(frame["value"]) & np.isfinite(frame["area"])]


def size_table(results: Results, correct_only: bool = True) -> Table | None:
    """Every localisation metric by the size of the object; None where no size is known.

    Rows are models, methods and canonizations, and the heatmap that is the same everywhere; entries are means with
    standard errors, and how many objects there are.
    """
    frame = localised(results, correct_only)
    names = [name for name in results.experiment.metrics if name in set(frame["metric"])]
    if not names:
        return None
    columns = [(name, size) for name in names for size in BELOW if size == "all" or name != "mu-weighted"]
    rows: list[TableRow] = []
    for data in results.experiment.data:
        here = frame[frame["data"] == data]
        one = here[(here["method"] == results.experiment.methods[0])]
        one = one[one["canonization"] == results.experiment.canonizations[0]].drop_duplicates(["seed", "sample"])
        uniform = {name: one.assign(value=KNOWN[name](one["area"])) for name in names if name in KNOWN}
        if uniform:
            entries = tuple(
                _entry(uniform[name], size) if name in uniform else TableEntry("–") for name, size in columns
            )
            rows.append(TableRow((data, UNIFORM, ""), entries, True))
        for model in results.experiment.models:
            for method in results.experiment.methods:
                for form in results.experiment.canonizations:
                    chosen = (here["model"] == model.name) & (here["method"] == method) & (here["canonization"] == form)
                    part = here[chosen]
                    if part.empty:
                        continue
                    entries = tuple(_entry(part[part["metric"] == name], size) for name, size in columns)
                    first = form == results.experiment.canonizations[0]
                    rows.append(TableRow((model.name, method, form), entries, first))
    groups: list[tuple[str, int]] = []
    for name in names:
        groups.append((f"{METRICS[name].title} {METRICS[name].arrow}", sum(of == name for of, _ in columns)))
    heads = tuple(size for _, size in columns)
    return Table(("model", "method", "canonization"), heads, tuple(groups), tuple(rows), True)


def _entry(part: pd.DataFrame, size: str) -> TableEntry:
    values = part[part["area"] < BELOW[size]]["value"]
    if values.empty:
        return TableEntry("–", note="no object is as small")
    return TableEntry(f"{values.mean():.3f} ± {values.sem():.3f}", note=f"{len(values)} objects")


def size_plot(results: Results, name: str = "mu", correct_only: bool = True) -> Any | None:
    """A metric over the share of the picture that the object's box fills (Kohlbrenner et al. 2020, Fig. 3).

    One panel a model and method, a line for each canonization: means of bins with as many objects each, with standard
    errors; dotted, the heatmap that is the same everywhere.
    """
    pandas = require("pandas")
    frame = localised(results, correct_only)
    frame = frame[frame["metric"] == name]
    panels = list(frame.groupby(["model", "method"], sort=False))
    if not panels:
        return None
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    drawn = figure(figsize=(3.3 * across, 2.5 * down))
    axes = drawn.subplots(down, across, squeeze=False, sharey=True).flatten()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, ((model, method), part) in zip(axes, panels, strict=False):
        for hue, (form, cell) in zip(HUES, part.groupby("canonization", sort=False), strict=False):
            bins = pandas.qcut(cell["area"], min(BINS, cell["area"].nunique()), duplicates="drop")
            means = cell.groupby(bins, observed=True).agg(
                area=("area", "mean"), value=("value", "mean"), error=("value", "sem")
            )
            axis.errorbar(
                means["area"], means["value"], yerr=means["error"].fillna(0), marker="o", ms=3, capsize=2, color=hue,
                label=form,
            )  # fmt: skip
        if name in KNOWN:
            line = np.linspace(part["area"].min(), part["area"].max(), 30)
            axis.plot(line, KNOWN[name](line), ":", color="black", lw=1, label=UNIFORM)
        axis.set_title(f"{model}, {method}", fontsize=8)
        axis.set_xlabel("share of the picture that the box fills", fontsize=7)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel(f"{METRICS[name].title} {METRICS[name].arrow}", fontsize=8)
    axes[0].legend(fontsize=6)
    return drawn
