"""Heatmaps of the best and the worst configuration for each objective (Pahde et al. 2023, Fig. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from canonize.errors import CanonizeError
from canonize.evaluate.metrics.catalogue import metric
from canonize.evaluate.plots import figure, heatmap_axes
from canonize.evaluate.subject import chosen_indices, data_set, model_in
from canonize.search.configure import Configuration
from canonize.search.study import Found


@dataclass(frozen=True)
class Extreme:
    """The best or the worst configuration for one objective.

    Attributes
    ----------
    objective : str
    which : {"best", "worst"}
    value : float
    parameters : dict
        As the space names them.
    """

    objective: str
    which: str
    value: float
    parameters: dict[str, Any]

    @property
    def label(self) -> str:
        """What it is, over its parameters, a few to a line."""
        told = [f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in self.parts]
        lines = [", ".join(told[first : first + 2]) for first in range(0, len(told), 2)]
        return "\n".join([f"{self.which} {metric(self.objective).title}: {self.value:.3f}", *lines])

    @property
    def parts(self) -> list[tuple[str, Any]]:
        """Parameters and values."""
        return list(self.parameters.items())


def extremes(found: Found) -> list[Extreme]:
    """For each objective the best and the worst of the configurations that were measured."""
    chosen: list[Extreme] = []
    for objective in found.search.objectives:
        order = found.trials.sort_values(objective, ascending=metric(objective).better == "lower", kind="stable")
        for which, row in (("best", order.iloc[0]), ("worst", order.iloc[-1])):
            # A parameter that was not asked for is NaN, which is not itself.
            parameters = {n: row[n] for n in found.search.space.parameters if n in row and row[n] == row[n]}
            chosen.append(Extreme(objective, which, float(row[objective]), parameters))
    return chosen


def draw(found: Found, shown: int = 4) -> Any | None:
    """A row of heatmaps for each extreme, below the pictures that are explained; None where none can be explained."""
    wanted = found.search
    data = data_set(wanted.data, wanted.seed, wanted.samples, wanted.size)
    samples = data.take(chosen_indices(data, wanted.data, wanted.seed, wanted.samples)[:shown])
    rows: list[tuple[str, Tensor]] = []
    for extreme in extremes(found):
        configuration = Configuration(extreme.parameters, wanted.space.groups)
        try:
            model = model_in(wanted.model, configuration.canonization, wanted.device, wanted.data, wanted.size)
            subject = configuration.subject(model, data.low, data.high, wanted.settings)
            placed = samples.to(subject.device, subject.dtype)
            rows.append((extreme.label, subject.explain(placed.inputs, placed.labels).float().cpu()))
        except CanonizeError:
            continue  # measured on other samples, it has no heatmap of these
    if not rows:
        return None
    drawn = figure(figsize=(1.5 * len(samples) + 2.6, 1.5 * (len(rows) + 1)))
    axes = drawn.subplots(len(rows) + 1, len(samples), squeeze=False)
    pictures = ((samples.images - data.low) / (data.high - data.low)).clamp(0, 1).permute(0, 2, 3, 1)
    for column, picture in enumerate(pictures):
        axes[0, column].imshow(picture.squeeze(2).numpy(), cmap="gray")
        axes[0, column].set_title(data.classes[int(samples.labels[column])][:18], fontsize=7)
        for row, (_, heatmaps) in enumerate(rows, 1):
            heatmap_axes(axes[row, column], heatmaps[column])
    for row, (label, _) in enumerate([("input", torch.empty(0)), *rows]):
        axes[row, 0].set_ylabel(label, fontsize=6, rotation=0, ha="right", va="center")
    for axis in axes.flatten():
        axis.set(xticks=[], yticks=[])
    return drawn
