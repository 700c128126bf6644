"""Concatenation before a linear layer where one branch carries a BN: only the columns that it feeds change."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from torch import nn
from torch.nn import functional as F

from canonize.nn import ChannelPad
from tests.patterns import symbols
from tests.patterns.rows import ALIVE, MIXED, Alone, Folds, Refuses, assert_alone, assert_folds, assert_refuses, rows
from tests.patterns.symbols import is_zero, numbers, t
from tests.zoo.case import conv, image, norm, wired

PATTERN = "concat_linear"


def _folds(name: str, forward: Any, **options: Any) -> Folds:
    rest = {key: options.pop(key) for key in ("inputs", "layers", "hardening", "into") if key in options}
    modules = {"bn": lambda: norm(4), "conv": lambda: conv(8, 5, 2)} | options
    return Folds(
        name=name,
        build=lambda: wired(forward, **{key: make() for key, make in modules.items()}),
        **({"inputs": image(4), "into": {"bn": ("conv",)}} | rest),
    )


def _pairs(m: Any, x: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
    """A relation network's pairs of objects: both, and the question, before a dense layer."""
    objects = m.bn(x).flatten(2).transpose(1, 2)
    count = objects.size(1)
    left = objects.unsqueeze(1).expand(-1, count, -1, -1)
    right = objects.unsqueeze(2).expand(-1, -1, count, -1)
    asked = question[:, None, None, :].expand(-1, count, count, -1)
    return m.fc(torch.cat([left, right, asked], 3)).relu().sum((1, 2))


FOLDS = rows(
    _folds("with-the-raw-input", lambda m, x: m.conv(torch.cat([m.bn(x), x], 1))),
    _folds("behind-the-raw-input", lambda m, x: m.conv(torch.cat([x, m.bn(x)], -3))),
    _folds("with-itself", lambda m, x: (lambda y: m.conv(torch.cat([y, y], 1)))(m.bn(x))),
    _folds(
        "side-by-side",
        lambda m, x: (lambda y: m.conv(torch.cat([y, y.flip(3)], 3)))(m.bn(x)),
        conv=lambda: conv(4, 5, 2),
    ),
    _folds(
        "padded",
        lambda m, x: m.conv(torch.cat([m.bn(x), x], 1)),
        conv=lambda: conv(8, 5, padding=1),
        hardening=MIXED,
        layers={"conv_pad": ChannelPad},
    ),
    _folds("pooled", lambda m, x: m.conv(F.avg_pool2d(torch.cat([m.bn(x), x], 1), 2))),
    _folds("max-pooled", lambda m, x: m.conv(F.max_pool2d(torch.cat([m.bn(x), x], 1), 2)), hardening=ALIVE),
    _folds(
        "flattened",
        lambda m, x: m.conv(torch.cat([m.bn(x).flatten(1), x.mean((2, 3))], 1)),
        inputs=image(4, 3, 2),
        conv=lambda: nn.Linear(28, 5),
    ),
    _folds(
        "two-concatenations",
        lambda m, x: m.conv(torch.cat([x[:, :2], torch.cat([x, m.bn(x)], 1)], 1)),
        conv=lambda: conv(10, 5, 2),
    ),
    _folds(
        "two-readers",
        lambda m, x: (lambda y: m.conv(y) + m.other(y).tanh())(torch.cat([m.bn(x), x], 1)),
        other=lambda: conv(8, 5, 2),
        into={"bn": ("conv", "other")},
    ),
    Folds(
        name="relation-network",
        build=lambda: wired(_pairs, bn=norm(4), fc=nn.Linear(11, 5)),
        inputs=lambda batch: (torch.randn(batch, 4, 3, 2), torch.randn(batch, 3)),
        into={"bn": ("fc",)},
    ),
)


@pytest.mark.parametrize("row", FOLDS)
def test_folds(row: Folds) -> None:
    assert_folds(row, PATTERN)


def test_only_the_columns_that_the_branch_feeds_change() -> None:
    row = _folds("columns", lambda m, x: m.conv(torch.cat([x, m.bn(x)], 1)))
    model, canonical = row.model(), assert_folds(row, PATTERN)
    old, new = model.conv.weight, canonical.conv.weight
    assert torch.equal(new[:, :4], old[:, :4])
    scale = model.bn.weight / (model.bn.running_var + model.bn.eps).sqrt()
    torch.testing.assert_close(new[:, 4:], old[:, 4:] * scale[:, None, None], rtol=1e-14, atol=0.0)


def test_the_border_of_a_raw_branch_stays_zero() -> None:
    row = _folds(
        "border", lambda m, x: m.conv(torch.cat([m.bn(x), x], 1)), conv=lambda: conv(8, 5, padding=1), hardening=MIXED
    )
    canonical = assert_folds(row, PATTERN)
    value = canonical.get_submodule("conv_pad").value.flatten()
    assert bool(value[:4].all())
    assert not bool(value[4:].any())


def _refuses(name: str, because: str, forward: Any, **options: Any) -> Refuses:
    rest = {key: options.pop(key) for key in ("inputs", "hardening", "goes", "into") if key in options}
    modules = {"bn": lambda: norm(4), "conv": lambda: conv(8, 5, 2)} | options
    return Refuses(
        name=name,
        build=lambda: wired(forward, **{key: make() for key, make in modules.items()}),
        affine="bn",
        because=because,
        **({"inputs": image(4), "goes": "last_resort", "into": ("bn",)} | rest),
    )


REFUSES = rows(
    _refuses(
        "no-concatenation",
        "no concatenation lies behind it",
        lambda m, x: m.conv(m.bn(x)),
        conv=lambda: conv(4, 5),
        goes="bn_linear",
        into=("conv",),
    ),
    _refuses("returned", "the model returns it as it is", lambda m, x: torch.cat([m.bn(x), x], 1)),
    _refuses(
        "a-smooth-activation-behind",
        r"no affine passes sigmoid \(Sigmoid\)",
        lambda m, x: m.conv(torch.cat([m.bn(x), x], 1).sigmoid()),
    ),
    _refuses(
        "one-of-two-readers-cannot",
        r"no affine passes sigmoid \(Sigmoid\)",
        lambda m, x: (lambda y: m.conv(torch.cat([y, x], 1)).mean((1, 2, 3)) + y.sigmoid().mean((1, 2, 3)))(m.bn(x)),
    ),
    _refuses(
        "another-branch-goes-on-to-a-sum",
        "only one side of the sum add carries its scale",
        lambda m, x: (lambda y: m.conv(torch.cat([y, y.flip(2) + x], 1)))(m.bn(x)),
    ),
    _refuses(
        "a-negative-scale-and-a-maximum",
        "a negative scale does not pass max_pool2d, which takes maxima",
        lambda m, x: m.conv(F.max_pool2d(torch.cat([m.bn(x), x], 1), 2)),
    ),
    _refuses(
        "channels-before-and-positions-after",
        "it differs along dimension 1, which is not the one that fc mixes",
        lambda m, x: m.fc(torch.cat([m.bn(x), x], 1)),
        fc=lambda: nn.Linear(7, 3),
    ),
    _refuses(
        "taken-behind-the-activation-instead",
        r"it would have to pass relu \(ReLU\)",
        lambda m, x: m.conv(torch.cat([m.bn(x), x], 1).relu()),
        goes="bn_activation_linear",
        into=("conv",),
    ),
)


@pytest.mark.parametrize("row", REFUSES)
def test_refuses_because(row: Refuses) -> None:
    assert_refuses(row, PATTERN)


ALONE = rows(
    Alone(
        name="no-affine",
        build=lambda: wired(lambda m, x: m.conv(torch.cat([x, x.tanh()], 1)), conv=conv(8, 5, padding=1)),
        inputs=image(4),
        untouched=("conv",),
    ),
    Alone(
        name="batch-statistics",
        build=lambda: wired(
            lambda m, x: m.conv(torch.cat([x, m.bn(x)], 1)), bn=norm(4, track_running_stats=False), conv=conv(8, 5)
        ),
        inputs=image(4),
        untouched=("bn", "conv"),
        batch_norms=1,
    ),
    Alone(
        name="skipped",
        build=lambda: wired(lambda m, x: m.conv(torch.cat([x, m.bn(x)], 1)), bn=norm(4), conv=conv(8, 5)),
        inputs=image(4),
        skip=(PATTERN, "bn_activation_linear"),
        untouched=("conv",),
    ),
    Alone(
        name="the-other-branch-has-a-layer-of-its-own",
        build=lambda: wired(
            lambda m, x: m.conv(torch.cat([m.side(x), m.bn(x)], 1)), side=conv(4, 4, 1), bn=norm(4), conv=conv(8, 5)
        ),
        inputs=image(4),
        skip=(PATTERN, "bn_activation_linear"),
        untouched=("side", "conv"),
    ),
)


@pytest.mark.parametrize("row", ALONE)
def test_leaves_alone(row: Alone) -> None:
    assert_alone(row, PATTERN)


# ---------------------------------------------------------------------------------------------- the identity


def test_symbolic_a_dense_layer() -> None:
    Wx, Wu = sympy.Matrix(2, 2, numbers("w", 4)), sympy.Matrix(2, 1, numbers("u", 2))
    x, u, b = sympy.Matrix(numbers("x", 2)), sympy.Matrix(numbers("v", 1)), sympy.Matrix(numbers("b", 2))
    scale, shift = sympy.diag(*numbers("s", 2)), sympy.Matrix(numbers("t", 2))
    have = Wx.row_join(Wu) * sympy.Matrix([scale * x + shift, u]) + b
    want = (Wx * scale).row_join(Wu) * sympy.Matrix([x, u]) + (b + Wx * shift)
    assert (have - want).expand() == sympy.zeros(2, 1)


def test_symbolic_a_border() -> None:
    """The branch's border is z, the raw one's stays zero."""
    scale, (x, u) = sympy.Symbol("s", nonzero=True), (numbers("x", 3), numbers("u", 3))
    kernel, other = numbers("w", 3), numbers("v", 3)
    first = symbols.convolution([scale * value + t for value in x], kernel, 0, 1)
    have = [a + c for a, c in zip(first, symbols.convolution(u, other, symbols.b, 1), strict=True)]
    folded = symbols.convolution(x, [w * scale for w in kernel], sum(kernel) * t, 1, -t / scale)
    want = [a + c for a, c in zip(folded, symbols.convolution(u, other, symbols.b, 1), strict=True)]
    assert all(is_zero(h - w) for h, w in zip(have, want, strict=True))
