"""The figures as a page of the documentation."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.coverage.table import table
from benchmarks.speed.row import Row, Settings

INTRODUCTION = """# Speed

How long canonize takes to convert and to prove, and how fast what comes out is, measured by

    python -m benchmarks.speed

{how}

![Ratios of canonize over other tools, part by part](speed.png)
"""

HOW = """
On {machine}; one thread; random weights, BatchNorm's statistics nearly those of the input; images of {edge} pixels.
Contestants run in turn, A B A B, after one run of each that does not count. Times are processor time: a busy machine
stretches that less than wall-clock time. *Ratio* is the median of the rounds' ratios, canonize over the other, so that
below 1 canonize is the faster; the quartiles stand behind it. *Mark* is what the ratio is to stay at or below. Every
figure is in [speed.json](speed.json), from which the command goes on where it was interrupted; `--again` measures anew,
and `--help` says how to ask for parts of it.
"""


def write_page(rows: list[Row], path: Path, edge: int = Settings.edge) -> None:
    """Write the page."""
    machines = "; ".join(dict.fromkeys(row.machine for row in rows if row.machine))
    how = HOW.format(machine=machines or machine(), edge=edge)
    parts = [INTRODUCTION.format(how=textwrap.fill(how.strip(), 118)), _marks(rows)]
    for part, write in SECTIONS.items():
        own = [row for row in rows if row.part == part]
        if own:
            parts.append("\n".join([*write(own), ""]))
    path.write_text("\n".join(parts).rstrip() + "\n")


def machine() -> str:
    """Where it is measured, in words that hold for any such machine."""
    version = str(torch.__version__).partition("+")[0]
    gpu = f", GPU {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores, CPU{gpu}, torch {version}"


def _marks(rows: list[Row]) -> str:
    marked = [row for row in rows if row.mark is not None]
    missed = [row for row in marked if not row.reached]
    lines = [f"{len(marked) - len(missed)} of {len(marked)} marks are reached.", ""]
    if missed:
        lines = [lines[0] + " Missed:", ""]
        cells = [(it.part, it.subject, it.case, ratio(it), _number(it.mark)) for it in missed]
        lines += [*table(("part", "model", "case", "ratio", "mark"), cells, 3), ""]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _time(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def ratio(row: Row) -> str:
    """A ratio with its quartiles, or why there is none."""
    if math.isnan(row.ratio):
        return row.note.replace("|", "\\|") or "-"
    spread = f" ({_number(row.low)} to {_number(row.high)})" if row.rounds > 1 else ""
    return f"{_number(row.ratio)}{spread}"


def _mark(row: Row) -> str:
    if row.mark is None:
        return ""
    return f"{_number(row.mark)} {'reached' if row.reached else '**missed**'}"


def _convert(rows: list[Row]) -> list[str]:
    head = ("model", "beside", "canonize, ms", "other, ms", "ratio", "mark")
    cells = [(it.subject, it.case, _time(it.canonize), _time(it.other), ratio(it), _mark(it)) for it in rows]
    return [
        "## Conversion",
        "",
        "`canonize.canonize(model, x, verify=False)`, beside `torch.fx.experimental.optimization.fuse`;",
        "`torch.nn.utils.fusion.fuse_conv_bn_eval` on the pairs that were found beforehand, the arithmetic alone;",
        "zennit's canonizer applied and removed; and onnxsim, onnxslim and onnxscript's optimizer on the ONNX file",
        "that PyTorch writes, which is not part of the time. The other tools fold less: see [coverage](coverage.md).",
        "",
        *table(head, cells, 2),
    ]


def _verify(rows: list[Row]) -> list[str]:
    head = ("model", "case", "conversion, ms", "with proof, ms", "proof, ms", "one forward, ms", "ratio", "mark")
    cells = [
        (
            it.subject, it.case, _time(it.more.get("converted")), _time(it.more.get("proven")), _time(it.canonize),
            _time(it.other), ratio(it), _mark(it),
        )
        for it in rows
    ]  # fmt: skip
    return [
        "## Proof",
        "",
        "What `verify=True` adds: one verdict in float64 and one in float32, with input gradients, over one float32",
        "forward of the original on the same images. A float64 forward alone costs two to four float32 ones.",
        "",
        *table(head, cells, 2),
    ]


def _forward(rows: list[Row]) -> list[str]:
    head = ("model", "case", "canonical, ms", "original, ms", "ratio", "mark", "fuse / original", "canonical / fuse")
    cells = [
        (
            it.subject, it.case, _time(it.canonize), _time(it.other), ratio(it), _mark(it),
            _number(it.more.get("fuse_ratio")), _number(it.more.get("over_fuse")),
        )
        for it in rows
    ]  # fmt: skip
    gpu = [] if any("GPU" in it.case for it in rows) else ["There was no GPU: its rows are missing."]
    return [
        "## Forward",
        "",
        "Eager, without gradients, float32. Beside it what `torch.fx.experimental.optimization.fuse` makes of the same",
        "model, over the original.",
        *gpu,
        "",
        *table(head, cells, 2),
    ]


def _compile(rows: list[Row]) -> list[str]:
    head = ("model", "backend", "graphs", "breaks", "canonical, ms", "original, ms", "ratio", "note")
    cells = [
        (
            it.subject, it.case, it.more.get("graphs", ""), it.more.get("breaks", ""), _time(it.canonize),
            _time(it.other), ratio(it) if it.rounds else "", it.note,
        )
        for it in rows
    ]  # fmt: skip
    return [
        "## torch.compile",
        "",
        "`torch.compile(canonical, fullgraph=True)` on one image. With `inductor`, which generates code and folds",
        "itself, the compiled canonical model over the compiled original.",
        "",
        *table(head, cells, 2),
    ]


def _onnx(rows: list[Row]) -> list[str]:
    head = (
        "model",
        "original's file through",
        "canonize's file, ms",
        "other, ms",
        "ratio",
        "mark",
        "BatchNorms left",
        "note",
    )
    cells = [
        (
            it.subject, it.case, _time(it.canonize), _time(it.other), ratio(it) if it.rounds else "", _mark(it),
            it.more.get("batch_norms", ""), it.note,
        )
        for it in rows
    ]  # fmt: skip
    return [
        "## In ONNX Runtime",
        "",
        "One run, batch 1, one thread, all of ONNX Runtime's own optimizations on for every file. The original's file",
        "is what `torch.onnx` writes, its own optimizer on. *BatchNorms left* counts `BatchNormalization` nodes: in",
        "canonize's file, in the other, and in the other after ONNX Runtime's optimizer.",
        "",
        *table(head, cells, 2),
    ]


def _memory(rows: list[Row]) -> list[str]:
    head = ("model", "measured by", "canonize, MB", "folded weights, MB", "ratio", "mark", "fuse, MB", "fuse / folded")
    cells = [
        (
            it.subject, it.case, _time(it.canonize), _time(it.other), ratio(it), _mark(it),
            _time(it.more.get("fuse")), _number(it.more.get("fuse_ratio")),
        )
        for it in rows
    ]  # fmt: skip
    return [
        "## Memory",
        "",
        "Peak of what is held beyond the model while it is converted, each in a fresh process, over the bytes of those",
        "weights of the result that are not the model's own. *Allocator* counts PyTorch's tensors, *resident* all of",
        "the process: a small model drowns there in Python's objects and in code that is loaded late.",
        "",
        *table(head, cells, 2),
    ]


def _growth(rows: list[Row]) -> list[str]:
    lines = ["## Growth", ""]
    lines += ["Conversion of chains of 3x3 convolution, BatchNorm and ReLU: of so many layers with 4 channels, and of"]
    lines += ["8 layers with so many channels. The ratio is that to the size before.", ""]
    for subject, unit in (("depth", "layers"), ("width", "channels")):
        cells = [
            (it.case, _time(it.canonize), ratio(it) if i else "", _mark(it))
            for i, it in enumerate(row for row in rows if row.subject == subject)
        ]
        lines += [*table((unit, "ms", "ratio", "mark"), cells), ""] if cells else []
    return lines[:-1]


SECTIONS: dict[str, Callable[[list[Row]], list[str]]] = {
    "convert": _convert,
    "verify": _verify,
    "forward": _forward,
    "compile": _compile,
    "onnx": _onnx,
    "memory": _memory,
    "growth": _growth,
}
