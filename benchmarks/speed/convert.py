"""Conversion alone, beside what other tools take for theirs."""

from __future__ import annotations

from benchmarks.speed import marks
from benchmarks.speed.peers import ON_FILES, PEERS, exported
from benchmarks.speed.row import Row, Settings
from benchmarks.speed.subjects import build
from benchmarks.speed.timing import compare, interleaved, said
from canonize import canonize

PART = "convert"
FUSE = "torch.fx fuse"


def measure(subject: str, settings: Settings) -> list[Row]:
    """Time of ``canonize(model, x, verify=False)`` against each tool; in rounds of two, as some tools take long."""
    model, x = build(subject, settings)
    file, why = None, ""
    try:
        file = exported(model, x)
    except Exception as error:
        why = said(error)
    rows = []
    for name in (*PEERS, *ON_FILES):
        row = Row(PART, subject, name, mark=marks.CONVERT.get(subject) if name == FUSE else None)
        rows.append(row)
        if name in ON_FILES and file is None:
            row.note = f"no ONNX file: {why}"
            continue
        try:
            other = PEERS[name](model, x) if name in PEERS else ON_FILES[name](file)
            times = interleaved({"canonize": lambda: canonize(model, x, verify=False), name: other}, settings)
        except Exception as error:
            row.note = said(error)
            continue
        compare(row, times["canonize"], times[name])
    return rows
