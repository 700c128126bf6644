"""Pictures of a comparison: paired differences with their errors, and a gallery of heatmaps."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from canonize.errors import CanonizeError
from canonize.evaluate.experiment import Experiment, MethodSpec
from canonize.evaluate.libraries import require
from canonize.evaluate.metrics.catalogue import metric
from canonize.evaluate.subject import Subject, chosen_indices, data_set, model_in
from canonize.evaluate.summary import LIMIT

if TYPE_CHECKING:
    import pandas as pd

DPI = 100
COLOURS = {"better": "#1a7f37", "worse": "#c62828", "control differs": "#b8860b"}
GREY = "#888888"
HUES = ("#1f6fb4", "#d1495b", "#2e8b57", "#8456a8", "#b8860b", "#555555")


def figure(**options: Any) -> Any:
    """An empty matplotlib figure that needs no screen."""
    return require("matplotlib.figure").Figure(layout="constrained", dpi=DPI, **options)


def triangulation(xs: Any, ys: Any) -> Any:
    """Triangles between points, for contours of scattered values."""
    return require("matplotlib.tri").Triangulation(xs, ys)


def png(drawn: Any) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png")
    return buffer.getvalue()


def differences(summary: pd.DataFrame) -> Any | None:
    """One panel a metric: the paired difference of each cell from the first canonization, with 95 % intervals.

    Differences are turned so that right is better; what rounding alone may do is shaded. None where there is nothing
    to compare.
    """
    compared = summary[summary["verdict"] != ""]
    names = list(dict.fromkeys(compared["metric"]))
    if not names:
        return None
    # Only what differs between the rows is worth the room.
    parts = [part for part in ("model", "method", "canonization", "data") if compared[part].nunique() > 1] or ["method"]
    compared = compared.assign(label=compared[parts].agg(", ".join, axis=1))
    most = max(len(compared[compared["metric"] == name]) for name in names)
    across = min(3, len(names))
    down = -(-len(names) // across)
    room = 0.065 * compared["label"].str.len().max()  # inches
    drawn = figure(figsize=((2.9 + room) * across, (0.24 * most + 0.9) * down))
    axes = drawn.subplots(down, across, squeeze=False).flatten()
    for axis in axes[len(names) :]:
        axis.remove()
    for axis, name in zip(axes, names, strict=False):
        rows = compared[compared["metric"] == name].iloc[::-1]
        sign = 1 if metric(name).better == "higher" else -1
        for place, (difference, error, verdict, floor) in enumerate(
            zip(sign * rows["difference"], rows["difference_error"], rows["verdict"], rows["floor"], strict=True)
        ):
            axis.barh(place, 2 * floor, left=-floor, height=0.8, color="#f2e2b3")
            colour = COLOURS.get(verdict, GREY)
            axis.errorbar(difference, place, xerr=LIMIT * error, fmt="o", ms=4, capsize=2, color=colour)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_yticks(range(len(rows)), rows["label"], fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
        axis.set_title(f"{metric(name).title}: right is better", fontsize=9)
        axis.set_ylim(-0.6, len(rows) - 0.4)
    return drawn


def cosine_distance(first: Tensor, second: Tensor) -> float:
    """One minus the cosine of two heatmaps: 0 for the same up to a positive factor, 2 for the negative."""
    similarity = torch.nn.functional.cosine_similarity(first.flatten().double(), second.flatten().double(), dim=0)
    return max(0.0, 1 - float(similarity))


def heatmap_axes(axis: Any, heatmap: Tensor) -> None:
    """Draw a heatmap (H, W), white where it is zero, with a cross on its most relevant pixel."""
    top = float(heatmap.abs().max()) or 1.0
    axis.imshow(heatmap.numpy(), cmap="seismic", vmin=-top, vmax=top)
    row, column = divmod(int(heatmap.argmax()), heatmap.shape[1])
    axis.plot(column, row, "x", color="black", ms=5, mew=1.2)


def gallery(experiment: Experiment, data: str, model_name: str, shown: int = 4) -> Any | None:
    """Heatmaps of some samples by every method, a row for each canonization; None where nothing could be explained.

    A cross marks the most relevant pixel; below each heatmap stands its cosine distance from that of the first
    canonization (Motzkus et al. 2022, Fig. 2).
    """
    source = next(model for model in experiment.models if model.name == model_name)
    found = data_set(data, experiment.seeds[0], experiment.samples, experiment.size)
    indices = chosen_indices(found, data, experiment.seeds[0], experiment.samples)[:shown]
    samples = found.take(indices)
    rows: list[tuple[str, Tensor, str]] = []
    targets = samples.labels
    for method in experiment.methods:
        for canonization in experiment.canonizations:
            try:
                model = model_in(source, canonization, experiment.device, data, experiment.size)
                subject = Subject(model, MethodSpec.parse(method), found.low, found.high, settings=experiment.settings)
                placed = samples.to(subject.device, subject.dtype)
                if experiment.target == "predicted":
                    targets = subject.logits(placed.inputs).argmax(1)
                heatmaps = subject.explain(placed.inputs, targets.to(subject.device))
            except CanonizeError:
                continue  # the report lists it among what could not be measured
            rows.append((f"{method}\n{canonization}", heatmaps.float().cpu(), canonization))
    if not rows:
        return None
    drawn = figure(figsize=(1.15 * len(indices) + 1.5, 1.1 * (len(rows) + 1)))
    axes = drawn.subplots(len(rows) + 1, len(indices), squeeze=False)
    pictures = ((samples.images - found.low) / (found.high - found.low)).clamp(0, 1).permute(0, 2, 3, 1)
    for column, picture in enumerate(pictures):
        axes[0, column].imshow(picture.squeeze(2).numpy(), cmap="gray")  # of one channel: grey
        if "object" in samples.masks and samples.masks["object"][column].any():
            axes[0, column].contour(samples.masks["object"][column].numpy(), levels=[0.5], colors="red", linewidths=0.6)
        axes[0, column].set_title(found.classes[int(targets[column])][:18], fontsize=7)
        first = rows[0][1]
        for row, (_, heatmaps, form) in enumerate(rows, 1):
            axis, heatmap = axes[row, column], heatmaps[column]
            heatmap_axes(axis, heatmap)
            if form == experiment.canonizations[0]:
                first = heatmaps
            else:
                axis.set_xlabel(f"{cosine_distance(first[column], heatmap):.2g}", fontsize=6, labelpad=1)
    for row, (label, *_) in enumerate([("input", torch.empty(0), ""), *rows]):
        axes[row, 0].set_ylabel(label, fontsize=6, rotation=0, ha="right", va="center")
    for axis in axes.flatten():
        axis.set(xticks=[], yticks=[])
    return drawn
