"""Inputs go where no random draw goes: to both sides of a threshold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from canonize.inputs import normalise
from canonize.nn import ThreshReLU
from canonize.verify import check_equivalence
from canonize.verify.thresholds import straddle


class Far(nn.Module):
    """Thresholds that standard normal inputs do not reach; one channel is dead."""

    def __init__(self, upper: float = 7.0) -> None:
        super().__init__()
        infinite = float("inf")
        self.act = ThreshReLU(
            torch.tensor([-6.5, 6.0, -infinite, 1.0])[:, None, None],
            torch.tensor([infinite, infinite, upper, 1.0])[:, None, None],
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x).sum((2, 3))


def test_steps_cross_what_a_draw_does_not() -> None:
    start = normalise(torch.randn(1, 4, 3, 3, dtype=torch.float64).clamp(-3, 3))
    nothing, at_start = straddle(Far().double(), start, torch.float64, steps=0)
    assert (nothing, at_start.crossed, at_start.total) == ([], 0, 3)
    found, crossing = straddle(Far().double(), start, torch.float64, steps=20)
    assert (crossing.crossed, crossing.total) == (3, 3)
    values = torch.stack([x.tensors()[0] for x in found])
    assert bool((values[:, :, 0] < -6.5).any()) and bool((values[:, :, 1] > 6).any())


class Behind(nn.Module):
    """A threshold that moderate inputs alone tell from another: large ones drown it, normal ones do not reach it."""

    def __init__(self, upper: float) -> None:
        super().__init__()
        self.act = ThreshReLU(None, torch.tensor([upper])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        far = x.abs().amax((1, 2, 3), keepdim=True) > 20
        return torch.where(far, x * 0, self.act(x)).sum((2, 3)) + 1


def test_a_wrong_bound_that_no_draw_reaches_is_caught() -> None:
    x = torch.randn(2, 1, 3, 3)
    verdict = check_equivalence(Behind(5.0), Behind(5.01), x)
    failed = {check.name.split(",")[0] for check in verdict.checks if not check.passed}
    assert failed and all(name.startswith("thresholds of the") for name in failed), verdict
    assert check_equivalence(Behind(5.0), Behind(5.0), x)
    assert (
        "thresholds of the candidate: 1 of 1 crossed both ways" in check_equivalence(Behind(5.0), Behind(5.0), x).notes
    )
