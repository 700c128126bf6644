"""How conversion grows with depth and with width, on chains of Conv, BatchNorm, ReLU."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.speed import marks
from benchmarks.speed.row import Row, Settings
from benchmarks.speed.timing import compare, interleaved
from canonize import canonize

PART = "growth"
DEPTHS = (250, 500, 1000, 2000)
WIDTHS = (16, 32, 64, 128, 256, 512)
LAYERS = 8
CHANNELS = 4
SUBJECTS = ("depth", "width")


def chain(depth: int, channels: int) -> nn.Module:
    """``depth`` times Conv, BatchNorm, ReLU."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers).eval()


def measure(subject: str, settings: Settings) -> list[Row]:
    """Each size over the one half as large, in the same rounds."""
    if subject == "depth":
        return _sizes("depth", DEPTHS, {depth: (depth, CHANNELS) for depth in DEPTHS}, settings)
    return _sizes("width", WIDTHS, {width: (LAYERS, width) for width in WIDTHS}, settings)


def _sizes(subject: str, sizes: tuple[int, ...], chains: dict[int, tuple[int, int]], settings: Settings) -> list[Row]:
    torch.manual_seed(settings.seed)
    built = {size: chain(*chains[size]) for size in sizes}
    inputs = {size: torch.randn(1, chains[size][1], 8, 8) for size in sizes}
    contestants = {str(size): lambda size=size: canonize(built[size], inputs[size], verify=False) for size in sizes}
    times = interleaved(contestants, settings)
    rows = []
    for half, size in zip((None, *sizes), sizes, strict=False):
        row = Row(PART, subject, str(size))
        if subject == "depth" and size == 2000:
            row.mark = marks.DEPTH
        compare(row, times[str(size)], times[str(half or size)])
        rows.append(row)
    return rows
