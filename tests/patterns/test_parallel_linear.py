"""Parallel linear layers of one input whose outputs are added are one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor, nn

from tests.patterns import symbols
from tests.patterns.rows import Alone, Row, assert_alone, canonized, rows
from tests.patterns.symbols import is_zero, numbers, s, t
from tests.zoo.case import SIZES, conv, image, norm, wired

PATTERN = "parallel_linear"
Make = Callable[[], nn.Module]


def _sum(m: Any, x: Tensor) -> Tensor:
    return torch.tanh(m.left(x) + m.right(x))


def _row(name: str, left: Make, right: Make, inputs: Any = None, forward: Any = _sum, **more: Make) -> Row:
    return Row(
        name=name,
        build=lambda: wired(forward, left=left(), right=right(), **{key: make() for key, make in more.items()}),
        inputs=inputs or image(4, 6, 8),
    )


def _case(name: str, left: Make, right: Make, into: str, *args: Any, **options: Any) -> Any:
    return pytest.param(_row(name, left, right, *args, **options), into, id=name)


def _repvgg(m: Any, x: Tensor) -> Tensor:
    return torch.tanh(m.norm3(m.left(x)) + m.norm1(m.right(x)) + m.identity(x))


FOLDS = [
    *(
        _case(
            f"a-pointwise-branch-{dims}d",
            lambda dims=dims: conv(4, 6, 3, dims, padding=1),
            lambda dims=dims: conv(4, 6, 1, dims),
            "left",
            image(4, *SIZES[dims]),
        )
        for dims in (1, 2, 3)
    ),
    _case("the-larger-kernel-second", lambda: conv(4, 6, 1), lambda: conv(4, 6, padding=1), "right"),
    _case("two-of-one-size", lambda: conv(4, 6, padding=1), lambda: conv(4, 6, padding=1, bias=False), "left"),
    _case("no-biases", lambda: conv(4, 6, padding=1, bias=False), lambda: conv(4, 6, 1, bias=False), "left"),
    _case("strided", lambda: conv(4, 6, padding=1, stride=2), lambda: conv(4, 6, 1, stride=2), "left"),
    _case("grouped", lambda: conv(4, 6, padding=1, groups=2), lambda: conv(4, 6, 1, groups=2), "left"),
    _case("dilated", lambda: conv(4, 6, padding=2, dilation=2), lambda: conv(4, 6, 1), "left"),
    _case("uneven", lambda: conv(4, 6, (5, 3), padding=(2, 1)), lambda: conv(4, 6, (3, 1), padding=(1, 0)), "left"),
    _case(
        "reflected-padding",
        lambda: conv(4, 6, padding=1, padding_mode="reflect"),
        lambda: conv(4, 6, 1),
        "left",
    ),
    _case("a-norm-of-the-input", lambda: conv(4, 4, padding=1), lambda: norm(4), "left"),
    _case("a-norm-of-the-input-depthwise", lambda: conv(4, 4, padding=1, groups=4), lambda: norm(4), "left"),
    _case("a-norm-of-the-input-grouped", lambda: conv(4, 4, padding=1, groups=2), lambda: norm(4), "left"),
    _case("dense", lambda: nn.Linear(5, 6), lambda: nn.Linear(5, 6, bias=False), "left", lambda n: torch.randn(n, 5)),
    _case("a-norm-of-features", lambda: nn.Linear(5, 5), lambda: norm(5, 1), "left", lambda n: torch.randn(n, 5)),
    _case(
        "a-difference",
        lambda: conv(4, 6, padding=1),
        lambda: conv(4, 6, 1),
        "left",
        forward=lambda m, x: torch.tanh(torch.sub(m.left(x), m.right(x), alpha=0.3)),
    ),
    _case(
        "a-difference-the-other-way-round",
        lambda: conv(4, 6, padding=1),
        lambda: conv(4, 6, 1),
        "left",
        forward=lambda m, x: torch.tanh(torch.sub(m.right(x), m.left(x), alpha=0.3)),
    ),
    _case(
        "three-branches",
        lambda: conv(4, 4, padding=1, bias=False),
        lambda: conv(4, 4, 1, bias=False),
        "left",
        forward=_repvgg,
        norm3=lambda: norm(4),
        norm1=lambda: norm(4),
        identity=lambda: norm(4),
    ),
]


@pytest.mark.parametrize(("row", "into"), FOLDS)
def test_folds(row: Row, into: str) -> None:
    canonical = canonized(row, row.model())
    layers = [
        name for name, layer in canonical.named_modules() if isinstance(getattr(layer, "weight", None), nn.Parameter)
    ]
    assert layers == [into]
    assert PATTERN in {rewrite.pattern for rewrite in canonical.report.rewrites}
    for fate in canonical.report.affines:
        assert (fate.outcome, fate.into) == ("absorbed", (into,))
    assert canonical.report.canonical


def _kept(name: str, because: str, left: Make, right: Make, *args: Any, **options: Any) -> Any:
    return pytest.param(_row(name, left, right, *args, **options), because, id=name)


REFUSES = [
    _kept(
        "other-groups",
        "the two have different groups",
        lambda: conv(4, 6, padding=1, groups=2),
        lambda: conv(4, 6, 1),
    ),
    _kept(
        "other-padding-modes",
        "the two pad differently",
        lambda: conv(4, 6, padding=1, padding_mode="reflect"),
        lambda: conv(4, 6, padding=1),
    ),
    _kept(
        "other-dilations",
        "the two have different dilations",
        lambda: conv(4, 6, padding=2, dilation=2),
        lambda: conv(4, 6, padding=1),
    ),
    _kept("padding-by-name", "padding is given by name", lambda: conv(4, 6, padding="same"), lambda: conv(4, 6, 1)),
    _kept(
        "transposed",
        "only dense layers, and convolutions that are not transposed, are merged",
        lambda: conv(4, 6, 3, transposed=True, padding=1),
        lambda: conv(4, 6, 1, transposed=True),
    ),
    _kept(
        "one-is-read-elsewhere",
        "right is also read by .*",
        lambda: conv(4, 6, padding=1),
        lambda: conv(4, 6, 1),
        forward=lambda m, x: (lambda y: torch.tanh(m.left(x) + y) * y.sigmoid())(m.right(x)),
    ),
    _kept(
        "a-norm-beside-another-number-of-channels",
        "a layer that changes the number of channels has no place for an affine of its input",
        lambda: conv(1, 4, padding=1),
        lambda: norm(1),
        image(1, 6, 8),
    ),
]


@pytest.mark.parametrize(("row", "because"), REFUSES)
def test_refuses_because(row: Row, because: str) -> None:
    model = row.model()
    canonical = canonized(row, model)
    (refusal,) = (refusal for refusal in canonical.report.refusals if refusal.pattern == PATTERN)
    assert re.fullmatch(because, refusal.reason), refusal.reason
    assert len(refusal.nodes) == 2
    assert PATTERN not in {rewrite.pattern for rewrite in canonical.report.rewrites}


ALONE = rows(
    Alone(
        name="other-inputs",
        build=lambda: wired(
            lambda m, x: torch.tanh(m.left(x) + m.right(x.sigmoid())), left=conv(4, 6, padding=1), right=conv(4, 6, 1)
        ),
        inputs=image(4),
        untouched=("left", "right"),
    ),
    Alone(
        name="a-nonlinearity-on-one-side",
        build=lambda: wired(
            lambda m, x: torch.tanh(m.left(x) + m.right(x).relu()), left=conv(4, 6, padding=1), right=conv(4, 6, 1)
        ),
        inputs=image(4),
        untouched=("left", "right"),
    ),
    Alone(
        name="a-product",
        build=lambda: wired(lambda m, x: m.left(x) * m.right(x), left=conv(4, 6, padding=1), right=conv(4, 6, 1)),
        inputs=image(4),
        untouched=("left", "right"),
    ),
    Alone(
        name="a-concatenation",
        build=lambda: wired(
            lambda m, x: torch.cat([m.left(x), m.right(x)], 1), left=conv(4, 6, padding=1), right=conv(4, 6, 1)
        ),
        inputs=image(4),
        untouched=("left", "right"),
    ),
    Alone(
        name="a-plain-skip",
        build=lambda: wired(lambda m, x: torch.tanh(m.left(x) + x), left=conv(4, 4, padding=1)),
        inputs=image(4),
        untouched=("left",),
    ),
    Alone(
        name="skipped",
        build=lambda: wired(_sum, left=conv(4, 6, padding=1), right=conv(4, 6, 1)),
        inputs=image(4),
        skip=(PATTERN,),
        untouched=("left", "right"),
    ),
)


@pytest.mark.parametrize("row", ALONE)
def test_leaves_alone(row: Alone) -> None:
    assert_alone(row, PATTERN)


def test_symbolic() -> None:
    """A smaller kernel is a larger one with zeros around it; an affine is the kernel (0, s, 0) with bias t."""
    signal, three, (one,) = numbers("x", 5), numbers("w", 3), numbers("v", 1)
    a, b = sympy.symbols("a b", real=True)
    large, small = symbols.convolution(signal, three, a, 1), symbols.convolution(signal, [one], b)
    have = [p + q + (s * x + t) for p, q, x in zip(large, small, signal, strict=True)]
    kernel = [three[0], three[1] + one + s, three[2]]
    want = symbols.convolution(signal, kernel, a + b + t, 1)
    assert all(is_zero(h - w) for h, w in zip(have, want, strict=True))
