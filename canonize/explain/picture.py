"""Heatmaps as pictures: input, original and canonical side by side, each with a colour bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from canonize.explain.libraries import require

COLOURS = "seismic"  # red where relevance is positive, blue where negative, white at zero


@dataclass(frozen=True)
class Column:
    """Heatmaps of one model.

    Attributes
    ----------
    title : str
    relevance : Tensor, shape (N, H, W)
    captions : sequence of str
        One below each heatmap.
    peaks : bool
        Whether a cross marks the most relevant pixel.
    """

    title: str
    relevance: Tensor
    captions: Sequence[str]
    peaks: bool = False


def draw(file: Path, shown: Tensor, names: Sequence[str], columns: Sequence[Column], title: str) -> None:
    """Write a picture: a row for each input, a column for each model.

    Parameters
    ----------
    file : Path
        ``.png``, ``.jpg``, ``.pdf`` or ``.svg``.
    shown : Tensor, shape (N, C, H, W)
        Inputs, from 0 to 1.
    names : sequence of str
        One for each input.
    columns : sequence of Column
    title : str

    Notes
    -----
    Zero is white. Every heatmap has its own scale, up to its largest absolute value, and its own colour bar: the unit
    of relevance is the output that it starts with.
    """
    figures, agg = require("matplotlib.figure"), require("matplotlib.backends.backend_agg")
    rows, width = len(shown), 1 + len(columns)
    aspect = shown.shape[2] / shown.shape[3]
    figure = figures.Figure(figsize=(0.4 + 3.1 * width, 0.55 + rows * (2.5 * aspect + 0.45)), layout="constrained")
    agg.FigureCanvasAgg(figure)
    axes = figure.subplots(rows, width, squeeze=False)
    figure.suptitle(title, fontsize=10)
    for row in range(rows):
        _show_input(axes[row][0], shown[row], names[row])
        for axis, column in zip(axes[row][1:], columns, strict=True):
            _show_heatmap(figure, axis, column.relevance[row])
            if column.peaks:
                peak = divmod(int(column.relevance[row].argmax()), column.relevance.shape[2])
                axis.plot(peak[1], peak[0], "x", color="black", ms=6, mew=1.4)
            axis.set_xlabel(column.captions[row], fontsize=8)
            if row == 0:
                axis.set_title(column.title, fontsize=9)
    figure.savefig(file, dpi=120)


def _show_input(axis: Any, picture: Tensor, name: str) -> None:
    grey = picture.shape[0] == 1
    axis.imshow(
        (picture[0] if grey else picture.permute(1, 2, 0)).numpy(), vmin=0, vmax=1, cmap="gray" if grey else None
    )
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(name, fontsize=8)


def _show_heatmap(figure: Any, axis: Any, relevance: Tensor) -> None:
    if not bool(relevance.isfinite().all()):
        axis.text(0.5, 0.5, "not finite", transform=axis.transAxes, ha="center", va="center", color="red")
        relevance = relevance.nan_to_num(0.0, 0.0, 0.0)
    top = float(relevance.abs().max()) or 1.0
    image = axis.imshow(relevance.detach().numpy(), cmap=COLOURS, vmin=-top, vmax=top, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03, ticks=[-top, 0, top], format="%.1e")
    bar.ax.tick_params(labelsize=6)
