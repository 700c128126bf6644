"""What the proof costs, in forwards of the original."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.speed import marks
from benchmarks.speed.row import Row, Settings
from benchmarks.speed.subjects import build
from benchmarks.speed.timing import compare, interleaved, said
from canonize import canonize

PART = "verify"


BATCHES = (1, 8)


def measure(subject: str, settings: Settings) -> list[Row]:
    """With the proof, less without it, over one float32 forward of the same batch, round by round."""
    model, x = build(subject, settings)
    return [_row(subject, model, batch, x, settings) for batch in BATCHES]


def _row(subject: str, model: nn.Module, batch: int, x: Tensor, settings: Settings) -> Row:
    row = Row(PART, subject, f"proof, batch {batch}", mark=marks.VERIFY)
    images = torch.randn(batch, *x.shape[1:], generator=torch.Generator().manual_seed(settings.seed))

    def forward() -> Tensor:
        with torch.no_grad():
            return model(images)  # type: ignore[no-any-return]

    contestants = {
        "proven": lambda: canonize(model, images),
        "converted": lambda: canonize(model, images, verify=False),
        "forward": forward,
    }
    try:
        times = interleaved(contestants, settings)
    except Exception as error:
        row.note = said(error)
        return row
    proofs = [a - b for a, b in zip(times["proven"], times["converted"], strict=True)]
    compare(row, proofs, times["forward"])
    for name in ("proven", "converted"):
        row.more[name] = compare(Row(PART, subject, name), times[name], times[name]).canonize
    return row
