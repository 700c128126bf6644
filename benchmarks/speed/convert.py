"""Conversion alone, beside what other tools take for theirs."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.speed import marks
from benchmarks.speed.peers import ON_FILES, PEERS, Run, exported
from benchmarks.speed.row import Row, Settings
from benchmarks.speed.subjects import build
from benchmarks.speed.timing import compare, interleaved, said
from canonize import canonize

PART = "convert"
FUSE = "torch.fx fuse"


def measure(subject: str, settings: Settings) -> list[Row]:
    """Time of ``canonize(model, x, verify=False)`` against each tool; in rounds of two, as some tools take long."""
    model, x = build(subject, settings)
    rows = [_row(subject, name, functools.partial(PEERS[name], model, x), model, x, settings) for name in PEERS]
    # Only now: what an export leaves of the heap decides which of the others' copies find fresh pages.
    try:
        file = exported(model, x)
    except Exception as error:
        return [*rows, *(Row(PART, subject, name, note=f"no ONNX file: {said(error)}") for name in ON_FILES)]
    prepared = {name: functools.partial(prepare, file) for name, prepare in ON_FILES.items()}
    return [*rows, *(_row(subject, name, prepare, model, x, settings) for name, prepare in prepared.items())]


def _row(subject: str, name: str, prepare: Callable[[], Run], model: nn.Module, x: Tensor, settings: Settings) -> Row:
    row = Row(PART, subject, name, mark=marks.CONVERT.get(subject) if name == FUSE else None)
    try:
        times = interleaved({"canonize": lambda: canonize(model, x, verify=False), name: prepare()}, settings)
    except Exception as error:
        row.note = said(error)
        return row
    return compare(row, times["canonize"], times[name])
