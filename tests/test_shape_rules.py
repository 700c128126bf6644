"""Shapes by arithmetic are those that torch works out, and no rule is applied where it does not hold."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canonize.capture import capture
from canonize.graph.shape_rules import output_of
from canonize.graph.shapes import Shapes
from canonize.inputs import normalise
from canonize.nn import ChannelPad, Concat, Gate, Slot, Sum


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
NORM = (torch.zeros(4, device="meta"), torch.ones(4, device="meta"))


def test_a_functional_batch_norm_keeps_the_shape() -> None:
    """torch.fx writes most of its arguments by name."""
    x = meta(*IMAGE)
    for kwargs in ({}, {"weight": NORM[0], "eps": 1e-3, "training": False}):
        made = output_of(F.batch_norm, (x, *NORM), kwargs)
        assert made is not None
        assert made.shape == x.shape
    assert output_of(F.batch_norm, (x, *NORM), {"training": True}) is None
    assert output_of(F.batch_norm, (meta(2, 5, 8), *NORM), {}) is None


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


def _shapes(model: nn.Module, x: Tensor) -> Shapes:
    captured = capture(model.eval(), normalise(x), "symbolic_trace")
    modules = dict(captured.root.named_modules())
    return Shapes(captured.graph, normalise(x), lambda name: modules[name] if name in modules else getattr(model, name))


FIXED: dict[str, tuple[nn.Module, tuple[int, ...], set[int]]] = {
    "channels": (nn.Conv2d(4, 6, 3), IMAGE, {1}),
    "channels without a batch": (nn.Conv2d(4, 6, 3), IMAGE[1:], set()),
    "features": (nn.Linear(5, 3), (2, 7, 5), {2}),
    "channels through a pooling": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2)), IMAGE, {1}),
    "all but the rows": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d((3, 2))), IMAGE, {1, 2, 3}),
    "one side": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d((3, None))), IMAGE, {1, 2}),
    "flattened": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten()), IMAGE, {1}),
    "flattened with the image's size": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten()), IMAGE, set()),
    "flattened, one side free": (
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d((3, None)), nn.Flatten()), IMAGE, set(),
    ),
    "of the input": (nn.ReLU(), IMAGE, set()),
}  # fmt: skip


@pytest.mark.parametrize("name", FIXED)
def test_fixed_sizes_are_read_off_the_layers(name: str) -> None:
    model, shape, fixed = FIXED[name]
    shapes = _shapes(model if isinstance(model, nn.Sequential) else nn.Sequential(model), torch.randn(shape))
    for node in shapes.graph.nodes:
        assert not shapes._fixed_dims(node) & shapes.free_dims(node)  # what trying other sizes says
    last = next(node for node in reversed(shapes.graph.nodes) if node.op == "call_module")
    assert shapes._fixed_dims(last) == fixed
    every = set(range(len(shapes.shape(last) or ())))
    assert shapes.free_among(last, every) == shapes.free_dims(last)
    assert shapes.free_among(last, fixed) == set()
