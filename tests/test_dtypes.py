"""The output's dtype is the original's, and so is the precision of what leads to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import canonize
from tests.checks import relative_error
from tests.statistics import harden

THIRD = torch.full((1, 4, 1, 1), 1 / 3, dtype=torch.float64)
VARIED = THIRD * torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)[:, None, None]
X = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))


class Tail(nn.Module):
    """A convolution, its BatchNorm, and what comes behind."""

    def __init__(self, tail: Callable[[Tensor, Tensor], Tensor], constant: Tensor, last: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.tail, self.last = tail, nn.Conv2d(4, 4, 1) if last else None
        self.register_buffer("k", constant)
        harden(self, tiny=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tail(self.bn(self.conv(x)), self.k)
        return y if self.last is None else self.last(y.to(self.last.weight.dtype))


TAILS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda y, k: y * k,
    "sum": lambda y, k: y + k,
    "quotient": lambda y, k: y / k,
    "difference from it": lambda y, k: k - y,
    "product and sum": lambda y, k: y * k + k,
    "product behind a ReLU": lambda y, k: y.relu() * k,
    "ReLU behind a product": lambda y, k: (y * k).relu(),
    "maximum": lambda y, k: torch.maximum(y, k.expand_as(y)),
    "minimum": lambda y, k: torch.minimum(y, k),
    "clamp": lambda y, k: torch.clamp(y, -k.abs(), k.abs()),
    "clamp to one": lambda y, k: torch.clamp(y, min=k[:, :1]),
    "where": lambda y, k: torch.where(y > 0, y, k),
    "concatenation": lambda y, k: torch.cat([y, k.expand_as(y)], 1)[:, :4],
    "mean": lambda y, k: (y * k).mean((2, 3), keepdim=True),
    "one number": lambda y, k: y * k.flatten()[0],
    "a number of one dimension": lambda y, k: y * k.flatten()[:1],
    "widened": lambda y, k: y.double(),
    "widened and narrowed": lambda y, k: (y.double() * k).to(y.dtype),
    "narrowed": lambda y, k: (y * k).half(),
}


@pytest.mark.parametrize("last", [False, True], ids=["output", "inside"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64 constant", "float32 constant"])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", TAILS)
def test_the_output_has_the_originals_dtype(name: str, own: torch.dtype, dtype: torch.dtype, last: bool) -> None:
    model = Tail(TAILS[name], VARIED, last).eval().to(own)
    model.k = (THIRD if name == "clamp to one" else VARIED).to(dtype)
    x = X.to(own)
    expected = model(x)
    canonical = canonize.canonize(model, x)
    found = canonical(x)
    assert found.dtype == expected.dtype
    coarsest = max((own, expected.dtype), key=lambda kind: torch.finfo(kind).eps)
    assert relative_error(found, expected) <= 32 * torch.finfo(coarsest).eps
