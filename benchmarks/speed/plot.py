"""The figures as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.speed.row import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P")
GREY = "#888888"


def write_plot(rows: list[Row], path: Path) -> None:
    """Write the picture: a panel for each part that has figures.

    Parameters
    ----------
    rows : list of Row
    path : Path
        Its ending names the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = {part: [it for it in rows if it.part == part and not math.isnan(it.canonize)] for part in PANELS}
    panels = [(draw, measured[part]) for part, draw in PANELS.items() if measured[part]]
    if not panels:
        return
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.9 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, (draw, own) in zip(axes, panels, strict=False):
        draw(axis, own)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    # No program's version and no date: the same figures give the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _convert(axis: Axes, rows: list[Row]) -> None:
    _points(axis, rows)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axis.set_title("Conversion: time over the tool's")


def _forward(axis: Axes, rows: list[Row]) -> None:
    _points(axis, [row for row in rows if "GPU" not in row.case])
    axis.set_title("Forward: time over the original's")


def _onnx(axis: Axes, rows: list[Row]) -> None:
    _points(axis, [row for row in rows if row.mark is None])
    axis.set_title("In ONNX Runtime: time over the others'")


def _verify(axis: Axes, rows: list[Row]) -> None:
    _points(axis, rows, one=False)
    axis.set_xlim(left=0)
    axis.set_title("Proof: in forwards of the original")


def _memory(axis: Axes, rows: list[Row]) -> None:
    _points(axis, rows, one=False)
    axis.set_xlim(left=0)
    axis.set_title("Peak memory: over the folded weights'")


def _points(axis: Axes, rows: list[Row], one: bool = True) -> None:
    """A line for each model, a point for each case, a bar where the mark is; left is better."""
    models, cases = list(dict.fromkeys(row.subject for row in rows)), list(dict.fromkeys(row.case for row in rows))
    for i, case in enumerate(cases):
        own = [row for row in rows if row.case == case and not math.isnan(row.ratio)]
        # Points that agree would hide each other.
        shift = 0.5 * ((i + 0.5) / len(cases) - 0.5)
        places = [models.index(row.subject) + shift for row in own]
        axis.hlines(places, [row.low for row in own], [row.high for row in own], color=COLOURS[i], lw=1.2, alpha=0.6)
        axis.plot([row.ratio for row in own], places, MARKERS[i], color=COLOURS[i], ms=5, label=case, linestyle="none")
    marks = sorted({(row.subject, row.mark) for row in rows if row.mark is not None})
    if marks:
        places = [models.index(subject) for subject, _ in marks]
        low, high = [place - 0.38 for place in places], [place + 0.38 for place in places]
        marked = list(dict.fromkeys(row.case for row in rows if row.mark is not None))
        label = f"mark for {marked[0]}" if marked != cases and len(marked) == 1 else "mark"
        axis.vlines([mark for _, mark in marks], low, high, color="black", lw=1.6, label=label, zorder=1)
    if one:
        axis.axvline(1, color=GREY, lw=0.8, ls=":", zorder=0)
    axis.set_yticks(range(len(models)), models)
    axis.set_ylim(len(models) - 0.5, -0.5)
    axis.grid(axis="y", color="#eeeeee", lw=14, zorder=0)
    axis.set_axisbelow(True)
    axis.legend(loc="upper center", bbox_to_anchor=(0.45, -0.1), ncols=2, frameon=False, fontsize=8, columnspacing=1.2)


def _growth(axis: Axes, rows: list[Row]) -> None:
    for i, (subject, what) in enumerate((("depth", "layers, of 4 channels"), ("width", "channels, of 8 layers"))):
        own = [row for row in rows if row.subject == subject]
        sizes, times = [int(row.case) for row in own], [row.canonize for row in own]
        axis.plot(sizes, times, f"{MARKERS[i]}-", color=COLOURS[i], ms=5, label=what)
    depth = [row for row in rows if row.subject == "depth"]
    if depth:
        first, last = depth[0], depth[-1]
        steps = int(last.case) / int(first.case)
        ends = [first.canonize, first.canonize * steps]
        axis.plot([int(first.case), int(last.case)], ends, ls=":", color=GREY, label="in proportion")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axis.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axis.set_ylabel("ms")
    axis.set_title("Conversion of chains: growth")
    axis.legend(loc="upper center", bbox_to_anchor=(0.45, -0.1), ncols=2, frameon=False, fontsize=8)


PANELS: dict[str, Callable[[Axes, list[Row]], None]] = {
    "convert": _convert,
    "forward": _forward,
    "onnx": _onnx,
    "verify": _verify,
    "memory": _memory,
    "growth": _growth,
}
