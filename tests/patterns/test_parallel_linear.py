"""Summed linear branches of one input: what becomes one layer, what does not and why, and the identity in symbols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor, fx, nn

import canonize
from tests import checks
from tests.statistics import harden

PATTERN = "parallel_linear"


class Branches(nn.Module):
    """A rectifier, and the sum of some branches that read it (so that no affine of theirs can go backward)."""

    def __init__(self, *branches: nn.Module, sign: float = 1.0) -> None:
        super().__init__()
        self.branches, self.sign = nn.ModuleList(branches), sign

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x) if self.sign > 0 else total - branch(x)
        return torch.tanh(total)


class Residual(nn.Module):
    """A value and what one layer makes of it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x


def _conv(
    kernel: int, padding: int, *, into: int = 4, norm: bool = True, cls: Any = nn.Conv2d, **options: Any
) -> nn.Module:
    layer = cls(4, into, kernel, padding=padding, **options)
    dims = int(cls.__name__[-2])
    return nn.Sequential(layer, getattr(nn, f"BatchNorm{dims}d")(into, eps=1e-3)) if norm else layer


def _canonized(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> fx.GraphModule:
    torch.manual_seed(5)
    model = harden(build(), 5).double().eval()

    def inputs(batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, *shape, dtype=torch.float64),)

    before = checks.snapshot(model)
    canonical = canonize.canonize(model, inputs(2), verify=False)
    checks.assert_untouched(model, before)
    checks.assert_same_function(model, canonical, inputs, tolerance=1e-10)
    assert checks.count_batch_norms(canonical, inputs(2)) == 0
    return canonical


def _linear_layers(canonical: fx.GraphModule) -> int:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    return sum(isinstance(layer, kinds) for layer in canonical.modules())


norm = nn.BatchNorm2d
IMAGE, SIGNAL = (4, 6, 5), (4, 9)
FOLDS = {
    "repvgg": (lambda: Branches(_conv(3, 1), _conv(1, 0), norm(4, eps=1e-2)), IMAGE),
    "repvgg-other-order": (lambda: Branches(norm(4, eps=1e-2), _conv(1, 0), _conv(3, 1)), IMAGE),
    "repvgg-downsampling": (lambda: Branches(_conv(3, 1, stride=2, into=6), _conv(1, 0, stride=2, into=6)), IMAGE),
    "repvgg-grouped": (lambda: Branches(_conv(3, 1, groups=2), _conv(1, 0, groups=2), norm(4)), IMAGE),
    "depthwise-and-norm": (lambda: Branches(_conv(3, 1, groups=4), norm(4)), IMAGE),
    "difference": (lambda: Branches(_conv(3, 1), _conv(1, 0), norm(4), sign=-1.0), IMAGE),
    "same-kernels": (lambda: Branches(_conv(3, 1), _conv(3, 1), _conv(3, 1)), IMAGE),
    "five-and-three": (lambda: Branches(_conv(5, 2), _conv(3, 1)), IMAGE),
    "dilated-and-norm": (lambda: Branches(_conv(3, 2, dilation=2), norm(4)), IMAGE),
    "no-bias-at-all": (
        lambda: Branches(_conv(3, 1, norm=False, bias=False), _conv(1, 0, norm=False, bias=False)), IMAGE,
    ),
    "reflection-and-pointwise": (lambda: Branches(_conv(3, 1, padding_mode="reflect"), _conv(1, 0)), IMAGE),
    "identity": (lambda: Branches(_conv(3, 1), nn.Identity()), IMAGE),
    "identity-first": (lambda: Branches(nn.Identity(), _conv(3, 1, groups=2), _conv(1, 0, groups=2)), IMAGE),
    "identity-less-a-layer": (lambda: Branches(nn.Identity(), _conv(3, 1), sign=-1.0), IMAGE),
    "repvit": (lambda: nn.Sequential(nn.ReLU(), Residual(_conv(3, 1, groups=4)), norm(4), nn.Tanh()), IMAGE),
    "one-dimension": (lambda: Branches(_conv(3, 1, cls=nn.Conv1d), nn.BatchNorm1d(4)), SIGNAL),
    "dense": (lambda: Branches(nn.Linear(5, 5), nn.Linear(5, 5, bias=False), nn.Identity()), (5,)),
    "dense-and-norm": (lambda: Branches(nn.Linear(5, 5), nn.BatchNorm1d(5)), (5,)),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDS)
def test_folds(name: str) -> None:
    build, shape = FOLDS[name]
    canonical = _canonized(build, shape)
    assert _linear_layers(canonical) == 1, canonical
    assert any(rewrite.pattern == PATTERN for rewrite in canonical.report.rewrites)
    assert all(fate.outcome == "absorbed" for fate in canonical.report.affines), str(canonical.report)
    assert canonical.report.canonical, str(canonical.report)


def test_the_output_of_another_layer_beside_what_a_layer_makes_of_it() -> None:
    canonical = _canonized(lambda: nn.Sequential(_conv(3, 1, stride=2), Residual(_conv(3, 1)), nn.Tanh()), IMAGE)
    assert [rewrite.pattern for rewrite in canonical.report.rewrites].count(PATTERN) == 1
    assert _linear_layers(canonical) == 2
    assert canonical.report.canonical, str(canonical.report)


def test_a_rectifier_in_between_keeps_a_residual_connection() -> None:
    block = lambda: Residual(nn.Sequential(_conv(3, 1), nn.ReLU(), _conv(3, 1)))  # noqa: E731
    canonical = _canonized(lambda: nn.Sequential(nn.ReLU(), block(), nn.Tanh()), IMAGE)
    assert PATTERN not in [rewrite.pattern for rewrite in canonical.report.rewrites]
    assert _linear_layers(canonical) == 2


REFUSES = {
    "identity-beside-a-strided-layer": (
        lambda: nn.Sequential(nn.ReLU(), Residual(_conv(3, 1, stride=2)), nn.Tanh()), (4, 1, 1),
        "the layer has a stride, or a padding given by name",
    ),
    "different-groups": (lambda: Branches(_conv(3, 1), _conv(1, 0, groups=2)), IMAGE, "the two have different groups"),
    "other-positions": (
        lambda: Branches(_conv(3, 1), _conv(3, 2, dilation=2)), IMAGE, "the two have different dilations",
    ),
    # The smaller result is broadcast.
    "different-strides": (
        lambda: Branches(_conv(3, 1), _conv(1, 0, stride=2)), (4, 2, 2), "the two have different strides",
    ),
    "different-padding": (
        lambda: Branches(_conv(3, 1, padding_mode="circular"), _conv(3, 1)), IMAGE, "the two pad differently",
    ),
    "norm-beside-a-strided-layer": (
        lambda: Branches(_conv(2, 0, stride=1, into=4), nn.Sequential(nn.ConstantPad2d((0, -1, 0, -1), 0.0), norm(4))),
        IMAGE, None,
    ),
    "named-padding": (
        lambda: Branches(nn.Conv2d(4, 4, 3, padding="same"), norm(4)), IMAGE,
        "the layer has a stride, or a padding given by name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSES)
def test_refuses_because(name: str) -> None:
    build, shape, reason = REFUSES[name]
    canonical = _canonized(build, shape)
    reasons = {refusal.reason for refusal in canonical.report.refusals if refusal.pattern == PATTERN}
    assert reason in reasons or (reason is None and not reasons)
    assert _linear_layers(canonical) == (1 if name.startswith("identity") else 2)


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(x)
        y = self.left(x)
        return torch.tanh(y + self.right(x)), torch.tanh(y)


def test_refuses_because_a_branch_is_read_elsewhere() -> None:
    canonical = _canonized(_Shared, IMAGE)
    (reason,) = (refusal.reason for refusal in canonical.report.refusals if refusal.pattern == PATTERN)
    assert reason.startswith("left is also read by ")
    assert _linear_layers(canonical) == 2


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.left(torch.relu(x)) + self.right(x))


def test_leaves_alone_branches_of_different_inputs() -> None:
    canonical = _canonized(_TwoInputs, IMAGE)
    assert canonical.report.rewrites == []
    assert _linear_layers(canonical) == 2


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("chunk", [1, 20, 45])
def test_folds_piece_by_piece(groups: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights larger than one piece, with the smaller kernel, the affine and the identity in each of them."""
    monkeypatch.setattr("canonize.algebra.weights._CHUNK", chunk)

    def branches() -> nn.Module:
        return Branches(_conv(3, 1, groups=groups), _conv(1, 0, groups=groups), nn.BatchNorm2d(4), nn.Identity())

    assert _linear_layers(_canonized(branches, IMAGE)) == 1


def test_identity_in_symbols() -> None:
    # One channel, one dimension: a kernel of three, a pointwise one, an affine; zero padding of one.
    w0, w1, w2, v, s, t, a, b = sympy.symbols("w0 w1 w2 v s t a b")
    x = [0, *sympy.symbols("x:4"), 0]
    for i in range(1, 5):
        separate = (w0 * x[i - 1] + w1 * x[i] + w2 * x[i + 1] + a) + (v * x[i] + b) + (s * x[i] + t)
        merged = w0 * x[i - 1] + (w1 + v + s) * x[i] + w2 * x[i + 1] + (a + b + t)
        assert sympy.expand(separate - merged) == 0
