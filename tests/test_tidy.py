"""Reshapes that undo each other: gone where nothing is left between them, kept where anything is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import canonize
from canonize.nn import Rearrange
from tests import checks
from tests.statistics import harden


class Model(nn.Module):
    def __init__(self, forward: Callable[[Model, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.norm, self.last = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.how = forward

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.how(self, self.linear(x)))


def _canonized(forward: Callable[[Model, Tensor], Tensor]) -> fx.GraphModule:
    model = harden(Model(forward)).double().eval()

    def inputs(batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 5, 6, dtype=torch.float64),)

    canonical = canonize.canonize(model, inputs(2), verify=False)
    checks.assert_same_function(model, canonical, inputs, tolerance=1e-10)
    return canonical


def _reshapes(canonical: fx.GraphModule) -> int:
    return sum(isinstance(module, nn.Flatten | nn.Unflatten | Rearrange) for module in canonical.modules())


def _and_its_sum(flat: Tensor, y: Tensor) -> Tensor:
    return flat.reshape_as(y) + flat.sum(0)


REMOVED: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "LeViT": lambda m, y: m.norm(y.flatten(0, 1)).reshape_as(y),
    "view_as": lambda m, y: m.norm(y.view(-1, 4)).view_as(y),
    "function": lambda m, y: m.norm(torch.flatten(y, 0, 1)).reshape_as(y),
    "several": lambda m, y: m.norm(y.reshape(-1, 4).unsqueeze(0).squeeze(0)).reshape_as(y),
}
KEPT: dict[str, tuple[Callable[[Model, Tensor], Tensor], int]] = {
    "a rectifier between": (lambda m, y: torch.relu(m.norm(y.flatten(0, 1))).reshape_as(y), 2),
    "elements in another order": (lambda m, y: m.norm(y.flatten(0, 1)).t().reshape_as(y), 3),
    "like something else": (lambda m, y: m.norm(y.flatten(0, 1)).reshape_as(torch.relu(y)), 2),
    "one of them is read": (lambda m, y: _and_its_sum(y.flatten(0, 1), y), 1),
}


@pytest.mark.parametrize("name", REMOVED)
def test_is_gone(name: str) -> None:
    canonical = _canonized(REMOVED[name])
    kinds = Counter(type(module).__name__ for module in canonical.modules())
    assert kinds["Flatten"] == 0
    assert not any(isinstance(m, Rearrange) and m.target.endswith("_as") for m in canonical.modules()), kinds
    assert canonical.report.canonical


@pytest.mark.parametrize("name", KEPT)
def test_leaves_alone(name: str) -> None:
    forward, count = KEPT[name]
    assert _reshapes(_canonized(forward)) == count
