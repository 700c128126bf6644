"""Converting costs in proportion to the number of layers. Calls are counted, not seconds."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable

import pytest
import torch
from torch import nn

import canonize


def chain(layers: int) -> nn.Sequential:
    """Batch norms that go backward, batch norms that go forward, and rectifiers that work in place."""
    parts: list[nn.Module] = []
    for _ in range(layers // 4):
        parts += [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.BatchNorm2d(3)]
    return nn.Sequential(*parts, nn.Conv2d(3, 2, 3)).eval()


class Dense(nn.Module):
    """Every second layer reads all before it, so that affines move through thresholds."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(layers // 4))
        self.convs = nn.ModuleList(nn.Conv2d(4, 2, 1) for _ in range(layers // 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        old = new = self.first(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            old, new = new, conv(torch.relu(norm(torch.cat([old, new], 1))))
        return new


def merging(layers: int) -> nn.Sequential:
    """Dense layers that become one."""
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers // 4)), nn.ReLU()).eval()


def calls(model: nn.Module, inputs: torch.Tensor) -> int:
    """Function calls that a conversion makes, those of C functions included."""
    profile = cProfile.Profile()
    profile.enable()
    try:
        canonize.canonize(model, inputs, verify=False)
    finally:
        profile.disable()
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "shape"),
    [(chain, (1, 3, 6, 6)), (Dense, (1, 3, 6, 6)), (merging, (2, 3))],
    ids=["chain", "dense", "merge"],
)
def test_twice_the_layers_take_twice_the_calls(make: Callable[[int], nn.Module], shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape)
    calls(make(40), inputs)  # what is looked up once
    few, many = (calls(make(layers).eval(), inputs) for layers in (200, 400))
    assert many <= 2.1 * few
