"""Untangling: a producer that several BNs read is copied, once per BN, and each BN folds into its copy."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from torch import fx, nn
from torch.nn import functional as F

from canonize.nn import ThreshLeakyReLU, ThreshReLU
from tests.patterns.rows import (
    ALIVE,
    Alone,
    Folds,
    Refuses,
    assert_alone,
    assert_folds,
    assert_refuses,
    canonized,
    rows,
)
from tests.patterns.symbols import is_zero, numbers
from tests.zoo.case import conv, image, norm, wired

PATTERN = "untangle"
MODULES: dict[str, Any] = {"conv": lambda: conv(3, 4, padding=1), "first": lambda: norm(4), "second": lambda: norm(4)}


def _build(forward: Any, options: dict[str, Any]) -> Any:
    return lambda: wired(forward, **{key: make() for key, make in (MODULES | options).items()})


def _folds(name: str, forward: Any, into: dict[str, tuple[str, ...]], **options: Any) -> Folds:
    rest = {key: options.pop(key) for key in ("layers", "hardening") if key in options}
    return Folds(
        name=name, build=_build(forward, options), inputs=image(3, 6, 8), strategy="untangle", into=into, **rest
    )


def _dense_block(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Two layers of a DenseNet and what follows them: every layer reads all before it."""
    a = m.conv(x)
    b = m.grow1(m.norm1(a).relu())
    c = m.grow2(m.norm2(torch.cat([a, b], 1)).relu())
    return m.last(torch.cat([a, b, c], 1)).relu().mean((2, 3))


BLOCK: dict[str, Any] = {
    "norm1": lambda: norm(4), "grow1": lambda: conv(4, 3, padding=1), "norm2": lambda: norm(7),
    "grow2": lambda: conv(7, 2, padding=1), "last": lambda: norm(9), "first": nn.Identity, "second": nn.Identity,
}  # fmt: skip

FOLDS = rows(
    _folds(
        "two-norms-on-one-layer",
        lambda m, x: (lambda y: m.first(y).relu() + m.second(y).sigmoid())(m.conv(x)),
        into={"first": ("conv_for_first",), "second": ("conv",)},
    ),
    _folds(
        "a-norm-and-a-skip",
        lambda m, x: (lambda y: m.first(y).relu() + y.sigmoid())(m.conv(x)),
        into={"first": ("conv_for_first",)},
        second=nn.Identity,
    ),
    _folds(
        "a-norm-and-an-output",
        lambda m, x: (lambda y: (m.first(y).relu(), y))(m.conv(x)),
        into={"first": ("conv_for_first",)},
        second=nn.Identity,
    ),
    _folds(
        "behind-a-shared-concatenation",
        lambda m, x: (lambda y: m.first(y).relu() + m.second(y).sigmoid())(torch.cat([m.conv(x), m.other(x)], 1)),
        into={"first": ("conv_for_first", "other_for_first"), "second": ("conv", "other")},
        other=lambda: conv(3, 2, padding=1),
        first=lambda: norm(6),
        second=lambda: norm(6),
    ),
    _folds(
        "behind-shared-pooling",
        lambda m, x: (lambda y: m.first(y).relu() + m.second(y).sigmoid())(F.avg_pool2d(m.conv(x), 3, 1, 1)),
        into={"first": ("conv_for_first",), "second": ("conv",)},
    ),
    _folds(
        "one-path-pooled",
        lambda m, x: (lambda y: m.first(F.avg_pool2d(y, 2)).relu().mean((2, 3)) + m.second(y).sigmoid().mean((2, 3)))(
            m.conv(x)
        ),
        into={"first": ("conv_for_first",), "second": ("conv",)},
    ),
    _folds(
        "a-sum-that-is-shared",
        lambda m, x: (lambda y: m.first(y).relu() + m.second(y).sigmoid())(m.conv(x) + m.other(x.tanh())),
        into={"first": ("conv_for_first", "other_for_first"), "second": ("conv", "other")},
        other=lambda: conv(3, 4, padding=1),
    ),
    _folds(
        "a-dense-block",
        _dense_block,
        into={
            "norm1": ("conv_for_norm1",),
            "norm2": ("conv_for_norm2", "grow1_for_norm2"),
            "last": ("conv", "grow1", "grow2"),
        },
        **BLOCK,
    ),
)


def _has_thresholds(canonical: fx.GraphModule) -> bool:
    return any(isinstance(layer, ThreshReLU | ThreshLeakyReLU) for layer in canonical.modules())


@pytest.mark.parametrize("row", FOLDS)
def test_folds(row: Folds) -> None:
    canonical = assert_folds(row, PATTERN)
    assert not _has_thresholds(canonical)


def test_a_dense_block_keeps_its_plain_rectifiers() -> None:
    """The other strategy needs no copies, but thresholds."""
    row = _folds("block", _dense_block, into={}, hardening=ALIVE, **BLOCK)
    model = row.model()
    untangled = canonized(row, model)
    threshold = canonized(Folds(**(vars(row) | {"strategy": "threshold"})), model)
    copies = [name for name, _ in untangled.named_modules() if "_for_" in name]
    assert sorted(copies) == ["conv_for_norm1", "conv_for_norm2", "grow1_for_norm2"]
    assert not _has_thresholds(untangled)
    assert _has_thresholds(threshold)
    assert not [name for name, _ in threshold.named_modules() if "_for_" in name]


def test_copies_are_layers_of_their_own() -> None:
    row = _folds(
        "copies", lambda m, x: (lambda y: m.first(y).relu() + y.sigmoid())(m.conv(x)), into={}, second=nn.Identity
    )
    model = row.model()
    canonical = canonized(row, model)
    original, copy = canonical.conv, canonical.conv_for_first
    assert original.weight is model.conv.weight
    assert copy.weight is not model.conv.weight
    assert type(copy) is type(original)
    (rewrite,) = canonical.report.rewrites
    assert (rewrite.pattern, rewrite.into, rewrite.detail) == (PATTERN, ("conv_for_first",), "1 layers copied")


def _refuses(name: str, because: str, forward: Any, **options: Any) -> Refuses:
    rest = {key: options.pop(key) for key in ("goes", "into", "hardening") if key in options}
    return Refuses(
        name=name,
        build=_build(forward, {"second": nn.Identity} | options),
        inputs=image(3, 6, 8),
        strategy="untangle",
        affine="first",
        because=because,
        **({"goes": "last_resort", "into": ("first",)} | rest),
    )


REFUSES = rows(
    _refuses(
        "the-models-input",
        "it acts on the input x of the model",
        lambda m, x: m.conv(m.first(x).relu()),
        first=lambda: norm(3),
        goes="bn_activation_linear",
        into=("conv",),
    ),
    _refuses(
        "behind-an-activation",
        r"no affine passes relu \(ReLU\)",
        lambda m, x: m.first(m.conv(x).relu()).sigmoid(),
    ),
    _refuses(
        "no-branch-has-a-layer",
        "no linear layer lies upstream of any branch",
        lambda m, x: m.conv(m.first(torch.cat([x, x.tanh()], 1)).relu()),
        first=lambda: norm(6),
        conv=lambda: conv(6, 4),
        goes="bn_activation_linear",
        into=("conv",),
    ),
    _refuses(
        "negative-scale-and-max-pool",
        "a negative scale does not pass max_pool2d, which takes maxima",
        lambda m, x: m.first(F.max_pool2d(m.conv(x), 2)).sigmoid(),
    ),
    _refuses(
        "taken-behind-instead",
        r"no affine passes relu \(ReLU\)",
        lambda m, x: m.behind(m.first(m.conv(x).relu())),
        behind=lambda: conv(4, 2, padding=1),
        goes="bn_linear",
        into=("behind",),
    ),
)


@pytest.mark.parametrize("row", REFUSES)
def test_refuses_because(row: Refuses) -> None:
    assert_refuses(row, PATTERN)


def test_a_branch_without_a_layer_keeps_its_slice() -> None:
    """The input of a dense block: its slice becomes an explicit layer on that branch, of that width."""
    row = _folds(
        "raw-branch", lambda m, x: (lambda y: m.first(torch.cat([y, x], 1)).relu().mean(1) + y.mean(1))(m.conv(x)),
        into={}, first=lambda: norm(7), second=nn.Identity,
    )  # fmt: skip
    canonical = canonized(row, row.model())
    (fate,) = canonical.report.affines
    assert (fate.outcome, fate.into) == ("last resort", ("conv_for_first", "first_branch"))
    assert canonical.first_branch.weight.shape == (3, 1, 1, 1)


def test_a_branch_without_a_layer_gets_thresholds_where_layers_follow() -> None:
    """As in the published form: behind the first pooling of a DenseNet no producer can take anything."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        a = F.max_pool2d(m.conv(x).relu(), 2)
        b = m.grow1(m.norm1(a).relu())
        return m.grow2(m.norm2(torch.cat([a, b], 1)).relu()) + m.head(b)

    own = BLOCK | {"last": nn.Identity, "head": lambda: conv(3, 2, padding=1)}
    row = _folds("pooled", forward, into={}, hardening=ALIVE, **own)
    canonical = canonized(row, row.model())
    assert {fate.name: (fate.outcome, fate.into) for fate in canonical.report.affines} == {
        "norm1": ("absorbed", ("grow1",)),
        "norm2": ("absorbed", ("grow2",)),
    }
    first, second = (layer for layer in canonical.modules() if isinstance(layer, ThreshReLU))
    assert first.lower is not None and first.lower.shape == (1, 4, 1, 1)
    assert second.lower is not None and second.lower.shape == (1, 7, 1, 1)
    assert bool((second.lower[:, 4:] != 0).any()), "a BatchNorm goes into thresholds as a whole, and no copy is made"


def _alone(name: str, forward: Any, untouched: tuple[str, ...], **options: Any) -> Alone:
    rest = {key: options.pop(key) for key in ("skip", "strategy", "batch_norms") if key in options}
    return Alone(
        name=name,
        build=_build(forward, options),
        inputs=image(3, 6, 8),
        untouched=untouched,
        **({"strategy": "untangle"} | rest),
    )


def _two(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    return m.first(y).relu() + m.second(y).sigmoid()


ALONE = rows(
    _alone("the-other-strategy", _two, ("conv",), strategy="threshold"),
    _alone("skipped", _two, ("conv",), skip=(PATTERN,)),
    _alone(
        "nobody-else-reads-it",
        lambda m, x: m.first(m.conv(x)).relu(),
        (),
        second=nn.Identity,
    ),
    _alone(
        "two-readers-and-no-norm",
        lambda m, x: (lambda y: y.relu() + y.sigmoid())(m.conv(x)),
        ("conv",),
        first=nn.Identity,
        second=nn.Identity,
    ),
)


@pytest.mark.parametrize("row", ALONE)
def test_leaves_alone(row: Alone) -> None:
    canonical = assert_alone(row, PATTERN)
    assert not [name for name, _ in canonical.named_modules() if "_for_" in name]


def test_symbolic() -> None:
    """Each reader's affine goes into a copy of the layer: the other readers see what they saw."""
    weights, inputs, bias = numbers("w", 2), numbers("x", 2), sympy.Symbol("b", real=True)
    layer = sum(w * x for w, x in zip(weights, inputs, strict=True)) + bias
    for scale, shift in zip(numbers("s", 2), numbers("t", 2), strict=True):
        copy = sum(scale * w * x for w, x in zip(weights, inputs, strict=True)) + (scale * bias + shift)
        assert is_zero(scale * layer + shift - copy)
