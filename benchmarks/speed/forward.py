"""One forward of the canonical model beside one of the original, and of what ``torch.fx``'s fuse makes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed import marks
from benchmarks.speed.row import Row, Settings
from benchmarks.speed.subjects import build
from benchmarks.speed.timing import compare, fill_ratio, interleaved, said, shortest_time
from canonize import canonize

PART = "forward"
BATCHES = (1, 8)
FORMATS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}


def measure(subject: str, settings: Settings) -> list[Row]:
    """Every combination of device, memory format and batch size."""
    from torch.fx.experimental.optimization import fuse

    model, x = build(subject, settings)
    models: dict[str, nn.Module] = {"original": model, "canonize": canonize(model, x, verify=False, copy=True)}
    reason = ""
    try:
        models["fuse"] = fuse(model)
    except Exception as error:
        reason = f"fuse: {said(error)}"
    rows = []
    for device in devices():
        for name, memory in FORMATS.items():
            placed = {
                key: copy.deepcopy(it).to(device=device, memory_format=memory)  # type: ignore[call-overload]
                for key, it in models.items()
            }
            for batch in BATCHES:
                case = f"{name}, batch {batch}" + ("" if device == "cpu" else ", GPU")
                mark = marks.FORWARD.get(subject, marks.FORWARD_OTHERS)
                row = Row(PART, subject, case, mark=mark, note=reason)
                image = torch.randn(batch, *x.shape[1:], generator=torch.Generator().manual_seed(settings.seed))
                rows.append(_row(row, placed, image.to(device=device, memory_format=memory), settings))
    return rows


def devices() -> list[str]:
    """The processor, and a GPU where there is one."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _row(row: Row, models: dict[str, nn.Module], x: Tensor, settings: Settings) -> Row:
    def runner(model: nn.Module) -> Callable[[], Tensor]:
        return lambda: model(x)

    clock = gpu_time if x.is_cuda else shortest_time
    with torch.no_grad():
        times = interleaved({name: runner(model) for name, model in models.items()}, settings, clock)
    compare(row, times["canonize"], times["original"])
    if "fuse" in times:
        beside = compare(Row(row.part, row.subject, "fuse"), times["fuse"], times["original"])
        against = fill_ratio(Row(row.part, row.subject, ""), _ratios(times["canonize"], times["fuse"]))
        row.more = {"fuse": beside.canonize, "fuse_ratio": beside.ratio, "over_fuse": against.ratio}
    return row


def _ratios(ours: list[float], others: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, others, strict=True)]


def gpu_time(run: Callable[[], Any]) -> float:
    """Seconds between two events on the GPU's own clock, of ten runs in a row."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(10):
        run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e4
