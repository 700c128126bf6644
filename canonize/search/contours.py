"""Pictures of a search: lines over each parameter, contours over pairs, the Pareto front, how it went."""

from __future__ import annotations

import itertools
import textwrap
from typing import Any

import numpy as np

from canonize.evaluate.metrics.catalogue import metric
from canonize.evaluate.plots import HUES, figure, triangulation
from canonize.search.space import Choice, Range
from canonize.search.study import Found

# Configurations that share a value before their mean is drawn as a point on a line.
ENOUGH = 4
FEW = "few configurations: each is a dot"


def numeric(found: Found) -> list[str]:
    """Parameters that are numbers and were given at least two of them."""
    names = [name for name in found.search.space.parameters if name.partition(".")[0] in ("gamma", "epsilon", "alpha")]
    return [name for name in names if name in found.trials and found.trials[name].nunique() > 1]


def lines(found: Found) -> Any | None:
    """Mean of each objective over the values of each parameter, a line for each canonization (Pahde et al., Fig. 2).

    Whatever else varied is averaged over; bars are standard errors of that mean. Ranges are cut into fifths. Where
    fewer than `ENOUGH` configurations share a value on average, the means are of unlike things: each configuration is a
    dot, no line joins them, and the panel says so.
    """
    names, objectives = numeric(found), found.search.objectives
    if not names:
        return None
    trials = found.trials
    forms = sorted(trials["canonization"].unique()) if "canonization" in trials else [""]
    drawn = figure(figsize=(2.6 * len(names) + 1, 2.5 * len(objectives) + 0.4))
    axes = drawn.subplots(len(objectives), len(names), squeeze=False, sharey="row")
    for row, objective in enumerate(objectives):
        for column, name in enumerate(names):
            axis = axes[row, column]
            for hue, form in zip(itertools.cycle(HUES), forms, strict=False):
                part = trials[trials["canonization"] == form] if form else trials
                part = part[part[name].notna()]
                if part.empty:
                    continue
                places, labels = _places(found, name, part[name])
                grouped = part.groupby(np.asarray(places))[objective].agg(["mean", "sem"])
                if len(part) < ENOUGH * len(grouped):
                    axis.scatter(places, part[objective], s=8, color=hue, label=form)
                    axis.set_title(FEW, fontsize=6)
                    axis.set_xticks(range(len(labels)), labels, fontsize=6)
                    continue
                axis.errorbar(
                    grouped.index, grouped["mean"], yerr=grouped["sem"].fillna(0), marker="o", ms=3, capsize=2,
                    color=hue, label=form,
                )  # fmt: skip
                axis.set_xticks(range(len(labels)), labels, fontsize=6)
            axis.set_xlabel(name, fontsize=8)
            axis.tick_params(axis="y", labelsize=7)
        axes[row, 0].set_ylabel(f"{metric(objective).title} {metric(objective).arrow}", fontsize=8)
    if forms != [""]:
        axes[0, -1].legend(fontsize=7)
    return drawn


def _places(found: Found, name: str, values: Any) -> tuple[Any, list[str]]:
    """Position of each value on an axis, and the axis's labels."""
    dimension = found.search.space.parameters[name]
    if isinstance(dimension, Choice):
        ordered = sorted(dimension.values)
        return values.map({value: place for place, value in enumerate(ordered)}), [f"{value:g}" for value in ordered]
    space = np.geomspace if dimension.log else np.linspace
    edges = space(dimension.low, dimension.high, 6)
    middles = np.sqrt(edges[1:] * edges[:-1]) if dimension.log else (edges[1:] + edges[:-1]) / 2
    return (np.searchsorted(edges[1:-1], values)), [f"{middle:.2g}" for middle in middles]


def contours(found: Found, objective: str) -> Any | None:
    """An objective over each pair of parameters, averaged over the rest (as in the thesis); None for fewer than two.

    Only of the best configuration's canonical form: a mean over all of them would show how they were mixed.
    """
    names = numeric(found)
    trials, form = found.trials, ""
    if "canonization" in trials:
        form = found.front["canonization"].iloc[0]
        trials = trials[trials["canonization"] == form]
    pairs = list(itertools.combinations(names, 2))[:15]
    if not pairs:
        return None
    across = min(3, len(pairs))
    down = -(-len(pairs) // across)
    drawn = figure(figsize=(3.4 * across, 2.8 * down))
    axes = drawn.subplots(down, across, squeeze=False).flatten()
    for axis in axes[len(pairs) :]:
        axis.remove()
    for axis, (x, y) in zip(axes, pairs, strict=False):
        part = trials[trials[x].notna() & trials[y].notna()]
        if part.empty:
            axis.remove()
            continue
        if _by_logarithm(found, x) and _by_logarithm(found, y):
            _over_logarithms(drawn, axis, part, x, y, objective)
            continue
        (across_places, x_labels), (down_places, y_labels) = (_places(found, name, part[name]) for name in (x, y))
        means = part.groupby([np.asarray(across_places), np.asarray(down_places)])[objective].mean()
        xs, ys = (means.index.get_level_values(level).to_numpy() for level in (0, 1))
        # Half of the cells at least: between what was tried far apart, nothing is known.
        if len(set(xs)) > 1 and len(set(ys)) > 1 and len(means) >= max(4, len(x_labels) * len(y_labels) / 2):
            image = axis.tricontourf(xs, ys, means.to_numpy(), levels=12, cmap="viridis")
            axis.scatter(xs, ys, s=5, color="white")  # where a configuration was tried; between them is interpolated
        else:
            image = axis.scatter(xs, ys, c=means.to_numpy(), cmap="viridis")
            axis.set_title(FEW, fontsize=6)
        axis.set_xticks(range(len(x_labels)), x_labels, fontsize=6)
        axis.set_yticks(range(len(y_labels)), y_labels, fontsize=6)
        axis.set_xlabel(x, fontsize=8)
        axis.set_ylabel(y, fontsize=8)
        drawn.colorbar(image, ax=axis).ax.tick_params(labelsize=6)
    title = f"{metric(objective).title} {metric(objective).arrow}, mean over all other parameters, dots were tried"
    drawn.suptitle(fitted(f"{title}; {form}" if form else title, 3.4 * across), fontsize=9)
    return drawn


def _by_logarithm(found: Found, name: str) -> bool:
    dimension = found.search.space.parameters[name]
    return isinstance(dimension, Range) and dimension.log


def _over_logarithms(drawn: Any, axis: Any, part: Any, x: str, y: str, objective: str) -> None:
    """Two numbers that were searched by their logarithm: each configuration where it is, on two logarithmic axes."""
    means = part.groupby([x, y])[objective].mean()
    xs, ys = (means.index.get_level_values(level).to_numpy() for level in (0, 1))
    axis.set_xscale("log")
    axis.set_yscale("log")
    if len(set(xs)) > 2 and len(set(ys)) > 2 and len(means) >= 4 * ENOUGH:
        # Triangles are those of the picture, not of the numbers.
        triangles = triangulation(np.log10(xs), np.log10(ys))
        triangles.x, triangles.y = xs, ys
        image = axis.tricontourf(triangles, means.to_numpy(), levels=12, cmap="viridis")
        axis.scatter(xs, ys, s=5, color="white")
    else:
        image = axis.scatter(xs, ys, c=means.to_numpy(), cmap="viridis")
        axis.set_title(FEW, fontsize=6)
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=6)
    drawn.colorbar(image, ax=axis).ax.tick_params(labelsize=6)


def fitted(text: str, inches: float, points: float = 9) -> str:
    """A title in as many lines as a picture of this width needs; a letter is about half as wide as it is high."""
    return "\n".join(textwrap.wrap(text, max(12, int(inches * 72 / (0.55 * points)))))


def pareto(found: Found) -> Any | None:
    """Every configuration by each pair of objectives, those on the front marked; None for one objective."""
    pairs = list(itertools.combinations(found.search.objectives, 2))
    if not pairs:
        return None
    drawn = figure(figsize=(4.4 * len(pairs), 3.6))
    axes = drawn.subplots(1, len(pairs), squeeze=False)[0]
    forms = sorted(found.trials["canonization"].unique()) if "canonization" in found.trials else [""]
    for axis, (x, y) in zip(axes, pairs, strict=True):
        for hue, form in zip(itertools.cycle(HUES), forms, strict=False):
            part = found.trials[found.trials["canonization"] == form] if form else found.trials
            axis.scatter(part[x], part[y], s=10, color=hue, alpha=0.6, label=form)
        front = found.front.sort_values(x)
        axis.errorbar(
            front[x], front[y], xerr=front[f"error:{x}"], yerr=front[f"error:{y}"], fmt="o", ms=7, mfc="none",
            mec="black", ecolor="#bbbbbb", elinewidth=0.8, label="front",
        )  # fmt: skip
        axis.set_xlabel(f"{metric(x).title} {metric(x).arrow}", fontsize=8)
        axis.set_ylabel(f"{metric(y).title} {metric(y).arrow}", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7)
    return drawn


def history(found: Found) -> Any:
    """Each objective as the search went on, and the best so far."""
    drawn = figure(figsize=(4.4 * len(found.search.objectives), 2.8))
    axes = drawn.subplots(1, len(found.search.objectives), squeeze=False)[0]
    for axis, objective in zip(axes, found.search.objectives, strict=True):
        values = found.trials[objective]
        best = values.cummax() if metric(objective).better == "higher" else values.cummin()
        axis.scatter(found.trials["number"], values, s=8, color=HUES[0], alpha=0.6)
        axis.plot(found.trials["number"], best, color=HUES[1])
        axis.set_xlabel("configuration", fontsize=8)
        axis.set_ylabel(f"{metric(objective).title} {metric(objective).arrow}", fontsize=8)
        axis.tick_params(labelsize=7)
    return drawn
