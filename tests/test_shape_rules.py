"""Shapes by arithmetic are those that torch works out, and no rule is applied where it does not hold."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canonize.nn import ChannelPad, Concat, Gate, Slot, Sum
from canonize.shape_rules import output_of


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


IMAGE = (2, 4, 11, 14)
COVERED: list[tuple[Any, tuple[Any, ...]]] = [
    (nn.Conv2d(4, 6, 3), (meta(*IMAGE),)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 2), dilation=(2, 1), groups=2), (meta(*IMAGE),)),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (meta(*IMAGE),)),
    (nn.Conv1d(4, 5, 3, stride=2), (meta(2, 4, 9),)),
    (nn.Conv3d(4, 5, 2, padding=1), (meta(2, 4, 5, 6, 7),)),
    (nn.MaxPool2d(3, 2, 1), (meta(*IMAGE),)),
    (nn.MaxPool2d(2, dilation=2), (meta(*IMAGE),)),
    (nn.AvgPool1d(3), (meta(2, 4, 9),)),
    (nn.AvgPool2d((2, 3), padding=(1, 1)), (meta(*IMAGE),)),
    (nn.AdaptiveAvgPool2d((3, None)), (meta(*IMAGE),)),
    (nn.AdaptiveAvgPool2d(1), (meta(*IMAGE),)),
    (nn.Linear(5, 3), (meta(2, 7, 5),)),
    (nn.Flatten(), (meta(*IMAGE),)),
    (Concat(1), (meta(2, 3, 5), meta(2, 4, 5), meta(2, 1, 5))),
    (Concat(-1), (meta(2, 3, 5), meta(2, 3, 4))),
    (torch.cat, ([meta(2, 3), meta(4, 3)],)),
    (torch.cat, ((meta(2, 3), meta(2, 1)), 1)),
    (Sum(), (meta(*IMAGE), meta(*IMAGE))),
    (Gate(), (meta(*IMAGE), meta(*IMAGE))),
    (operator.add, (meta(*IMAGE), meta(*IMAGE))),
    (ChannelPad((1, 2, 0, 3), torch.zeros(1, 4, 1, 1)), (meta(*IMAGE),)),
]
LEFT_TO_TORCH: list[tuple[Any, tuple[Any, ...]]] = [
    (nn.Conv2d(4, 6, 3, padding="same"), (meta(*IMAGE),)),
    (nn.Conv2d(4, 6, 3), (meta(4, 11, 14),)),
    (nn.Conv2d(3, 6, 3), (meta(*IMAGE),)),  # torch raises
    (nn.Conv2d(4, 6, 13), (meta(*IMAGE),)),  # torch raises
    (nn.MaxPool2d(3, 2, ceil_mode=True), (meta(*IMAGE),)),
    (nn.MaxPool2d(2, return_indices=True), (meta(*IMAGE),)),
    (nn.Linear(4, 3), (meta(2, 7, 5),)),  # torch raises
    (nn.Flatten(0), (meta(*IMAGE),)),
    (torch.cat, ([meta(2, 3), meta(2, 4, 5)],)),
    (torch.cat, ([meta(2, 3), meta(2, 4)],)),
    (torch.cat, ([meta(2, 3), meta(2, 3, dtype=torch.float64)],)),
    (Sum(), (meta(*IMAGE), meta(1, 4, 1, 1))),
    (operator.add, (meta(*IMAGE), 1.0)),
    (operator.mul, (meta(*IMAGE), meta(*IMAGE, dtype=torch.float64))),
    (ChannelPad((1, Slot(1)), torch.zeros(1, 4, 1, 1)), (meta(*IMAGE), 2)),
    (nn.ConvTranspose2d(4, 6, 3), (meta(*IMAGE),)),
]


@pytest.mark.parametrize(("operation", "args"), COVERED, ids=lambda value: str(value)[:40])
def test_the_shape_is_torchs(operation: Any, args: tuple[Any, ...]) -> None:
    found = output_of(operation, args, {})
    wanted = operation.to("meta")(*args) if isinstance(operation, nn.Module) else operation(*args)
    assert found is not None
    assert (found.shape, found.dtype, found.device) == (wanted.shape, wanted.dtype, wanted.device)


@pytest.mark.parametrize(("operation", "args"), LEFT_TO_TORCH, ids=lambda value: str(value)[:40])
def test_no_rule_where_it_does_not_hold(operation: Any, args: tuple[Any, ...]) -> None:
    assert output_of(operation, args, {}) is None


def test_a_subclass_may_compute_something_else() -> None:
    class Odd(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input)[..., :1]

    assert output_of(Odd(5, 3), (meta(2, 5),), {}) is None
    assert output_of(torch.add, (meta(2, 5), meta(2, 5)), {"alpha": 2}) is None
