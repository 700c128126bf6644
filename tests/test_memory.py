"""What waits to be written takes no memory of its own: weights are worked out in float64 piece by piece, at the end."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from canonize.inputs import Inputs
from canonize.pipeline import Options, rewritten
from tests.checks import float64_bytes
from tests.statistics import harden

CHANNELS = 160


class Branches(nn.Module):
    """RepVGG's block."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS))
        self.narrow = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS))
        self.norm = nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.wide(x) + self.narrow(x) + self.norm(x))


def stack() -> nn.Module:
    layers = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS))
    return nn.Sequential(*layers)


class Biased(nn.Module):
    """Attention's bias, looked up in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(CHANNELS, CHANNELS), nn.BatchNorm1d(CHANNELS)
        self.table = nn.Parameter(torch.randn(CHANNELS))
        self.register_buffer("places", torch.randint(0, CHANNELS, (4 * CHANNELS, CHANNELS)))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)) + self.table[self.places].sum(0)  # type: ignore[index]


@pytest.mark.parametrize(
    ("make", "shape"),
    [(Branches, (2, CHANNELS, 4, 4)), (stack, (2, CHANNELS, 4, 4)), (Biased, (2, CHANNELS))],
    ids=["branches", "stack", "table"],
)
def test_no_weight_waits_in_float64(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    model = harden(make()).eval()
    weights = sum(p.numel() * 8 for p in model.parameters())
    gc.collect()
    before = float64_bytes()
    network, report = rewritten(model, Inputs((torch.randn(shape),), {}), "symbolic_trace", Options())
    waiting = float64_bytes() - before
    assert report.rewrites
    assert waiting < 0.1 * weights
    built = network.build()
    assert float64_bytes() - before < 0.1 * weights
    assert sum(p.numel() for p in built.parameters()) > 0
