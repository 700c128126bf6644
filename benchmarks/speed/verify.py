"""What the proof costs, in forwards of the original."""

from __future__ import annotations

import torch

from benchmarks.speed import marks
from benchmarks.speed.row import Row, Settings
from benchmarks.speed.subjects import build
from benchmarks.speed.timing import compare, interleaved, said
from canonize import canonize

PART = "verify"


def measure(subject: str, settings: Settings) -> list[Row]:
    """With the proof, less without it, over one float32 forward, round by round."""
    model, x = build(subject, settings)
    row = Row(PART, subject, "proof", mark=marks.VERIFY)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model(x)  # type: ignore[no-any-return]

    contestants = {
        "proven": lambda: canonize(model, x),
        "converted": lambda: canonize(model, x, verify=False),
        "forward": forward,
    }
    try:
        times = interleaved(contestants, settings)
    except Exception as error:
        row.note = said(error)
        return [row]
    proofs = [a - b for a, b in zip(times["proven"], times["converted"], strict=True)]
    compare(row, proofs, times["forward"])
    for name in ("proven", "converted"):
        row.more[name] = compare(Row(PART, subject, name), times[name], times[name]).canonize
    return [row]
