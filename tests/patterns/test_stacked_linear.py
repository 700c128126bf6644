"""Linear -> Linear: what becomes one layer, what stays two and why, and the identity in symbols."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sympy
import torch
from torch import fx, nn

import canonize
from tests import checks

PATTERN = "stacked_linear"


def _canonized(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, fx.GraphModule]:
    torch.manual_seed(3)
    model = build().double().eval()

    def inputs(batch: int) -> tuple[torch.Tensor, ...]:
        return (torch.randn(batch, *shape, dtype=torch.float64),)

    before = checks.snapshot(model)
    canonical = canonize.canonize(model, inputs(2), verify=False)
    checks.assert_untouched(model, before)
    checks.assert_same_function(model, canonical, inputs, tolerance=1e-10)
    return model, canonical


def _layers(canonical: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in canonical.graph.nodes if node.op == "call_module"]


conv = nn.Conv2d
FOLDS = {
    "dense": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), (6,), ["1"]),
    "dense-without-biases": (
        lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 3, bias=False)), (6,), ["1"],
    ),
    "three": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)), (6,), ["2"]),
    "dropout-between": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.Linear(5, 3)), (6,), ["2"]),
    "pointwise-behind": (lambda: nn.Sequential(conv(3, 8, 3, 2, 1), conv(8, 2, 1)), (3, 7, 6), ["1"]),
    "pointwise-before": (lambda: nn.Sequential(conv(3, 8, 1), conv(8, 2, 3, stride=2)), (3, 7, 6), ["1"]),
    "pointwise-before-padding-without-bias": (
        lambda: nn.Sequential(conv(3, 8, 1, bias=False), conv(8, 2, 3, padding=1)), (3, 7, 6), ["1"],
    ),
    "pointwise-before-reflection": (
        lambda: nn.Sequential(conv(3, 8, 1), conv(8, 2, 3, padding=1, padding_mode="reflect")), (3, 7, 6), ["1"],
    ),
    "one-dimension": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.Conv1d(8, 2, 1)), (3, 9), ["1"]),
    "bn-between": (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), (6,), ["2"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDS)
def test_folds(name: str) -> None:
    build, shape, left = FOLDS[name]
    _, canonical = _canonized(build, shape)
    assert _layers(canonical) == left
    assert any(rewrite.pattern == PATTERN for rewrite in canonical.report.rewrites)
    assert canonical.report.canonical, str(canonical.report)


class _TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.first(x)
        return self.second(y), self.third(y)


REFUSES = {
    "two-readers": (_TwoReaders, (6,), "first is also read by third"),
    "larger": (
        lambda: nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 6)), (6,),
        "one layer would have 36 weights, the two have 24",
    ),
    "padding-between": (
        lambda: nn.Sequential(conv(3, 8, 1), conv(8, 2, 3, padding=1)), (3, 7, 6),
        "zero padding lies between them, where the first layer's bias is missing",
    ),
    "neither-pointwise": (
        lambda: nn.Sequential(conv(3, 8, 3), conv(8, 2, 3)), (3, 9, 8), "neither of them is pointwise",
    ),
    "strided-pointwise": (
        lambda: nn.Sequential(conv(3, 8, 1, 2), conv(8, 2, 3)), (3, 9, 8), "neither of them is pointwise",
    ),
    "grouped": (
        lambda: nn.Sequential(conv(4, 8, 3), conv(8, 2, 1, groups=2)), (4, 7, 6),
        "a grouped convolution mixes some of the channels only",
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 3), conv(8, 2, 1)), (3, 5, 4),
        "only dense layers, and convolutions that are not transposed, are merged with each other",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSES)
def test_refuses_because(name: str) -> None:
    build, shape, reason = REFUSES[name]
    model, canonical = _canonized(build, shape)
    reasons = {refusal.reason for refusal in canonical.report.refusals if refusal.pattern == PATTERN}
    assert reason in reasons
    assert not [rewrite for rewrite in canonical.report.rewrites if rewrite.pattern == PATTERN]
    for (_, parameter), (_, original) in zip(canonical.named_parameters(), model.named_parameters(), strict=True):
        assert parameter is original


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Flatten(0, 1), nn.Linear(5, 3)),
    ],
    ids=["an-activation-between", "a-reshape-between"],
)
def test_leaves_alone(build: Callable[[], nn.Module]) -> None:
    model, canonical = _canonized(build, (4, 6))
    assert canonical.report.rewrites == []
    assert {id(p) for p in canonical.parameters()} == {id(p) for p in model.parameters()}


def test_skipped() -> None:
    canonical = canonize.canonize(
        nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), torch.randn(2, 6), skip=(PATTERN,), verify=False
    )
    assert _layers(canonical) == ["0", "1"]
    assert [finding.rule for finding in canonical.report.findings] == ["C2"]


def test_identity_in_symbols() -> None:
    first, second = sympy.Matrix(3, 2, sympy.symbols("v:6")), sympy.Matrix(2, 3, sympy.symbols("w:6"))
    x, a, b = (sympy.Matrix(sympy.symbols(f"{n}:{k}")) for n, k in (("x", 2), ("a", 3), ("b", 2)))
    separate = second * (first * x + a) + b
    assert sympy.simplify(separate - ((second * first) * x + (second * a + b))) == sympy.zeros(2, 1)
