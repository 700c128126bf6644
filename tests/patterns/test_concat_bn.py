"""BN over concatenated inputs: each branch takes its slice."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from torch import nn
from torch.nn import functional as F

from canonize.nn import ChannelPad
from tests.patterns.rows import ALIVE, Alone, Folds, Refuses, assert_alone, assert_folds, assert_refuses, rows
from tests.patterns.symbols import numbers
from tests.zoo.case import conv, image, norm, wired

PATTERN = "concat_bn"


def _folds(
    name: str, forward: Any, sample: Any = None, into: tuple[str, ...] = ("left", "right"), **options: Any
) -> Folds:
    layers = options.pop("layers", {})
    hardening = options.pop("hardening", {})
    modules = {"left": lambda: conv(3, 2), "right": lambda: conv(3, 4), "bn": lambda: norm(6)} | options
    return Folds(
        name=name,
        build=lambda: wired(forward, **{key: make() for key, make in modules.items()}),
        inputs=sample or image(3, 7, 9),
        into={"bn": into},
        layers=layers,
        hardening=hardening,
    )


FOLDS = rows(
    _folds("two-branches", lambda m, x: m.bn(torch.cat([m.left(x), m.right(x.tanh())], 1)).sigmoid()),
    _folds("negative-dimension", lambda m, x: m.bn(torch.cat([m.left(x), m.right(x.tanh())], -3)).sigmoid()),
    _folds("the-wider-branch-first", lambda m, x: m.bn(torch.cat([m.right(x), m.left(x)], dim=1)).sigmoid()),
    _folds(
        "three-branches",
        lambda m, x: m.bn(torch.cat([m.left(x), m.right(x), m.third(x)], 1)).sigmoid(),
        into=("left", "right", "third"),
        third=lambda: conv(3, 3, bias=False),
        bn=lambda: norm(9),
    ),
    _folds(
        "branches-of-different-kinds",
        lambda m, x: m.bn(torch.cat([m.left(F.pad(x, (1, 1, 1, 1))), m.right(x)], 1)).sigmoid(),
        right=lambda: conv(3, 4, 1, transposed=True),
        left=lambda: conv(3, 2, 3),
    ),
    _folds(
        "pooled-branches",
        lambda m, x: m.bn(
            torch.cat([F.avg_pool2d(m.left(x), 3, 1, 1), F.max_pool2d(m.right(x), 3, 1, 1)], 1)
        ).sigmoid(),
        hardening=ALIVE,
        layers={"avg_pool2d_pad": ChannelPad},
    ),
    _folds("pooled-afterwards", lambda m, x: m.bn(F.avg_pool2d(torch.cat([m.left(x), m.right(x)], 1), 2)).sigmoid()),
    _folds(
        "a-concatenation-in-a-concatenation",
        lambda m, x: m.bn(torch.cat([m.third(x), torch.cat([m.left(x), m.right(x)], 1)], 1)).sigmoid(),
        into=("left", "right", "third"),
        third=lambda: conv(3, 3),
        bn=lambda: norm(9),
    ),
    _folds(
        "side-by-side",
        # Along the width every branch takes the whole affine.
        lambda m, x: m.bn(torch.cat([m.left(x), m.right(x)], 3)).sigmoid(),
        left=lambda: conv(3, 6),
        right=lambda: conv(3, 6),
    ),
    _folds(
        "features",
        lambda m, x: m.bn(torch.cat([m.left(x), m.right(x.tanh())], 1)).sigmoid(),
        lambda batch: torch.randn(batch, 5),
        left=lambda: nn.Linear(5, 2),
        right=lambda: nn.Linear(5, 4),
        bn=lambda: norm(6, 1),
    ),
    _folds(
        "a-sum-in-a-branch",
        lambda m, x: m.bn(torch.cat([m.left(x), m.right(x) + m.third(x.tanh())], 1)).sigmoid(),
        into=("left", "right", "third"),
        third=lambda: conv(3, 4),
    ),
    _folds(
        "shuffled-channels",
        lambda m, x: m.bn(F.channel_shuffle(torch.cat([m.left(x), m.right(x)], 1), 3)).sigmoid(),
    ),
)


@pytest.mark.parametrize("row", FOLDS)
def test_folds(row: Folds) -> None:
    assert_folds(row, PATTERN)


def test_each_branch_takes_its_own_slice() -> None:
    row = _folds("slices", lambda m, x: m.bn(torch.cat([m.left(x), m.right(x)], 1)).sigmoid(), hardening=ALIVE)
    model, canonical = row.model(), assert_folds(row, PATTERN)
    scale = (model.bn.weight / (model.bn.running_var + model.bn.eps).sqrt()).detach().reshape(6, 1, 1, 1)
    torch.testing.assert_close(canonical.left.weight, model.left.weight * scale[:2], rtol=1e-14, atol=0.0)
    torch.testing.assert_close(canonical.right.weight, model.right.weight * scale[2:], rtol=1e-14, atol=0.0)


def _refuses(name: str, because: str, forward: Any, **options: Any) -> Refuses:
    rest = {key: options.pop(key) for key in ("goes", "into", "inputs", "hardening") if key in options}
    modules = {
        "left": lambda: conv(3, 2, padding=1),
        "right": lambda: conv(3, 4, padding=1),
        "bn": lambda: norm(6),
    } | options
    return Refuses(
        name=name,
        build=lambda: wired(forward, **{key: make() for key, make in modules.items()}),
        affine="bn",
        because=because,
        **({"inputs": image(3, 7, 9), "goes": "last_resort", "into": ("bn",)} | rest),
    )


REFUSES = rows(
    _refuses(
        "no-concatenation",
        "no concatenation lies before it",
        lambda m, x: m.bn(m.left(x)).sigmoid(),
        bn=lambda: norm(2),
        goes="linear_bn",
        into=("left",),
    ),
    _refuses(
        "the-models-input-is-a-branch",
        "it acts on the input x of the model",
        lambda m, x, other: m.bn(torch.cat([m.right(other), x], 1)).sigmoid(),
        inputs=lambda batch: (torch.randn(batch, 3, 5, 6), torch.randn(batch, 3, 5, 6)),
        bn=lambda: norm(7),
        goes="last_resort",
        into=("right", "bn_branch"),
    ),
    _refuses(
        "an-activation-in-a-branch",
        r"no affine passes relu \(ReLU\)",
        lambda m, x: m.bn(torch.cat([m.left(x).relu(), m.right(x)], 1)).sigmoid(),
        goes="last_resort",
        into=("right", "bn_branch"),
    ),
    _refuses(
        "a-branch-that-is-read-elsewhere",
        "left is also read by tanh",
        lambda m, x: (lambda y: m.bn(torch.cat([y, m.right(x)], 1)).sigmoid().mean(1) + y.tanh().mean(1))(m.left(x)),
        goes="last_resort",
        into=("right", "bn_branch"),
    ),
    _refuses(
        "a-concatenation-that-is-read-elsewhere",
        "cat is also read by tanh",
        lambda m, x: (lambda y: m.bn(y).sigmoid() + y.tanh())(torch.cat([m.left(x), m.right(x)], 1)),
    ),
    _refuses(
        "a-value-beside-itself",
        "left would need two different affines",
        lambda m, x: (lambda y: m.bn(torch.cat([y, y], 1)).sigmoid())(m.left(x)),
        left=lambda: conv(3, 3),
    ),
    Refuses(
        name="a-value-beside-itself-with-other-shifts",
        build=lambda: wired(
            lambda m, x: (lambda y: (torch.cat([y, y], 1) + m.shift).sigmoid())(m.left(x)),
            left=conv(3, 3),
            shift=nn.Parameter(torch.linspace(-1.0, 1.0, 6).reshape(6, 1, 1)),
        ),
        inputs=image(3),
        affine="shift",
        because="left would need two different affines",
        goes="last_resort",
        into=("shift.affine",),
    ),
    _refuses(
        "negative-scale-and-max-pool",
        "a negative scale does not pass max_pool2d, which takes maxima",
        lambda m, x: m.bn(torch.cat([F.max_pool2d(m.right(x), 3, 1, 1), m.left(x)], 1)).sigmoid(),
        goes="last_resort",
        into=("left", "bn_branch"),
    ),
    _refuses(
        "taken-behind-instead",
        "left is also read by add",
        lambda m, x: (lambda y: m.behind(m.bn(torch.cat([y, m.right(x)], 1))) + y)(m.left(x)),
        behind=lambda: conv(6, 2, 1),
        goes="bn_linear",
        into=("behind",),
    ),
    _refuses(
        "a-dense-block",
        "left is also read by cat_1",
        lambda m, x: (lambda y: m.last(torch.cat([y, m.behind(m.bn(torch.cat([m.right(x), y], 1)).relu())], 1).tanh()))(
            m.left(x)
        ),
        behind=lambda: conv(6, 2, 1),
        last=lambda: conv(4, 2, 1),
        goes="bn_activation_linear",
        into=("behind",),
    ),
)


@pytest.mark.parametrize("row", REFUSES)
def test_refuses_because(row: Refuses) -> None:
    assert_refuses(row, PATTERN)


def _alone(name: str, forward: Any, untouched: tuple[str, ...] = ("left", "right"), **options: Any) -> Alone:
    rest = {key: options.pop(key) for key in ("batch_norms", "skip") if key in options}
    modules = {"left": lambda: conv(3, 2), "right": lambda: conv(3, 4)} | options
    return Alone(
        name=name,
        build=lambda: wired(forward, **{key: make() for key, make in modules.items()}),
        inputs=image(3),
        untouched=untouched,
        **rest,
    )


ALONE = rows(
    _alone("no-norm", lambda m, x: torch.cat([m.left(x), m.right(x)], 1).sigmoid()),
    _alone(
        "batch-statistics",
        lambda m, x: m.bn(torch.cat([m.left(x), m.right(x)], 1)).sigmoid(),
        untouched=("left", "right", "bn"),
        bn=lambda: norm(6, track_running_stats=False),
        batch_norms=1,
    ),
    _alone(
        "a-norm-in-front-of-it",
        # Taken by the layer before it: the other branch has nothing to do with it.
        lambda m, x: torch.cat([m.bn(m.left(x)), m.right(x)], 1).sigmoid(),
        untouched=("right",),
        bn=lambda: norm(2),
    ),
    _alone(
        "skipped",
        lambda m, x: m.bn(torch.cat([m.left(x), m.right(x)], 1)).sigmoid(),
        bn=lambda: norm(6),
        skip=(PATTERN, "split_concat"),
    ),
)


@pytest.mark.parametrize("row", ALONE)
def test_leaves_alone(row: Alone) -> None:
    assert_alone(row, PATTERN)


def test_symbolic() -> None:
    """A slice of the affine on each part is the affine on the whole."""
    W1, W2 = sympy.Matrix(2, 2, numbers("u", 4)), sympy.Matrix(1, 2, numbers("w", 2))
    x1, x2 = sympy.Matrix(numbers("x", 2)), sympy.Matrix(numbers("y", 2))
    scale, shift = numbers("s", 3), sympy.Matrix(numbers("t", 3))
    have = sympy.diag(*scale) * sympy.Matrix([W1 * x1, W2 * x2]) + shift
    first = (sympy.diag(*scale[:2]) * W1) * x1 + shift[:2, :]
    second = (scale[2] * W2) * x2 + shift[2:, :]
    assert (have - sympy.Matrix([first, second])).expand() == sympy.zeros(3, 1)
