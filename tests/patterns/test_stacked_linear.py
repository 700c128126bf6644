"""Linear -> Linear: two that meet without a nonlinearity are one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import nn

import canonize
from tests.patterns import symbols
from tests.patterns.rows import Alone, Row, assert_alone, assert_weights_shared, canonized, fate_of, rows
from tests.patterns.symbols import is_zero, numbers
from tests.zoo.case import SIZES, conv, image, norm, vector, wired

PATTERN = "stacked_linear"
Sequential = nn.Sequential
Build = Callable[[], nn.Module]


def _row(name: str, build: Build, inputs: Any = None, **options: Any) -> Any:
    return pytest.param(Row(name=name, build=build, inputs=inputs or image(3, 6, 8), **options), id=name)


FOLDS = [
    _row("dense", lambda: Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), vector(4)),
    _row(
        "dense-without-biases", lambda: Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 2, bias=False)), vector(4)
    ),
    _row("only-the-first-has-a-bias", lambda: Sequential(nn.Linear(4, 6), nn.Linear(6, 2, bias=False)), vector(4)),
    _row("only-the-second-has-a-bias", lambda: Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 2)), vector(4)),
    _row("dense-on-tokens", lambda: Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), image(5, 4)),
    *(
        _row(
            f"pointwise-behind-{dims}d",
            lambda dims=dims: Sequential(conv(3, 6, 3, dims, padding=1, stride=2), conv(6, 4, 1, dims)),
            image(3, *SIZES[dims]),
        )
        for dims in (1, 2, 3)
    ),
    *(
        _row(
            f"pointwise-in-front-{dims}d",
            lambda dims=dims: Sequential(conv(3, 6, 1, dims), conv(6, 4, 3, dims, stride=2, dilation=1)),
            image(3, *SIZES[dims]),
        )
        for dims in (1, 2, 3)
    ),
    _row("two-pointwise", lambda: Sequential(conv(3, 6, 1), conv(6, 4, 1))),
    _row(
        "pointwise-in-front-of-padding-without-a-bias",
        lambda: Sequential(conv(3, 6, 1, bias=False), conv(6, 4, padding=1)),
    ),
    _row(
        "pointwise-in-front-of-reflected-padding",
        lambda: Sequential(conv(3, 6, 1), conv(6, 4, padding=1, padding_mode="reflect")),
    ),
    _row("three-in-a-row", lambda: Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2)), vector(4)),
]


def _linear_layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(getattr(layer, "weight", None), nn.Parameter)]


@pytest.mark.parametrize("row", FOLDS)
def test_folds(row: Row) -> None:
    model = row.model()
    canonical = canonized(row, model)
    (layer,) = _linear_layers(canonical)
    last = str(len(list(model.children())) - 1)
    assert canonical.get_submodule(last) is layer, "the last layer's name survives"
    assert {rewrite.pattern for rewrite in canonical.report.rewrites} == {PATTERN}
    assert all(rewrite.into == (str(i + 1),) for i, rewrite in enumerate(canonical.report.rewrites))
    assert canonical.report.canonical
    wanted = sum(tensor.numel() for name, tensor in model.named_parameters() if name.endswith("weight"))
    assert layer.weight.numel() <= wanted


def test_an_affine_that_was_folded_into_the_first_is_in_the_second() -> None:
    row = Row(
        name="chain",
        build=lambda: Sequential(nn.Linear(4, 6), norm(6, 1), nn.Linear(6, 2), nn.Tanh()),
        inputs=vector(4),
    )
    canonical = canonized(row, row.model())
    fate = fate_of(canonical, "1")
    assert (fate.outcome, fate.into) == ("absorbed", ("2",))
    assert len(_linear_layers(canonical)) == 1


def test_merged_in_low_precision_it_is_rounded_once() -> None:
    model = Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).eval().half()
    canonical = canonize.canonize(model, torch.randn(2, 4).half(), verify=False)
    wanted = (model[1].weight.double() @ model[0].weight.double()).half()
    assert torch.equal(canonical.get_submodule("1").weight, wanted)


def _kept(name: str, because: str, build: Build, inputs: Any = None) -> Any:
    return pytest.param(Row(name=name, build=build, inputs=inputs or image(3, 6, 8)), because, id=name)


REFUSES = [
    _kept(
        "larger",
        "one layer would have 64 weights, the two have 32",
        lambda: Sequential(nn.Linear(8, 2), nn.Linear(2, 8)),
        vector(8),
    ),
    _kept(
        "larger-convolution",
        "one layer would have 1152 weights, the two have .*",
        lambda: Sequential(conv(8, 2, 1), conv(2, 16)),
        image(8, 6, 8),
    ),
    _kept("neither-is-pointwise", "neither of them is pointwise", lambda: Sequential(conv(3, 4), conv(4, 4))),
    _kept(
        "padding-and-a-bias",
        "zero padding lies between them, where the first layer's bias is missing",
        lambda: Sequential(conv(3, 4, 1), conv(4, 4, padding=1)),
    ),
    _kept(
        "padding-of-a-pointwise-layer",
        "zero padding lies between them, where the first layer's bias is missing|neither of them is pointwise",
        lambda: Sequential(conv(3, 4), conv(4, 4, 1, padding=1)),
    ),
    _kept(
        "strided-pointwise-in-front",
        "neither of them is pointwise",
        lambda: Sequential(conv(3, 4, 1, stride=2), conv(4, 4)),
    ),
    _kept(
        "groups",
        "a grouped convolution mixes some of the channels only",
        lambda: Sequential(conv(3, 4, 1), conv(4, 4, 1, groups=2)),
    ),
    _kept(
        "groups-in-front",
        "a grouped convolution mixes some of the channels only",
        lambda: Sequential(conv(4, 4, 1, groups=2), conv(4, 4, 1)),
        image(4),
    ),
    _kept(
        "transposed",
        "only dense layers, and convolutions that are not transposed, are merged with each other",
        lambda: Sequential(conv(3, 4, 1), conv(4, 2, 2, transposed=True)),
    ),
    _kept(
        "read-elsewhere",
        "0 is also read by tanh",
        lambda: wired(
            lambda m, x: (lambda y: getattr(m, "1")(y) + y.tanh())(getattr(m, "0")(x)),
            **{"0": conv(3, 4, 1), "1": conv(4, 4, 1)},
        ),
    ),
]


@pytest.mark.parametrize(("row", "because"), REFUSES)
def test_refuses_because(row: Row, because: str) -> None:
    model = row.model()
    canonical = canonized(row, model)
    (refusal,) = canonical.report.refusals
    assert (refusal.pattern, refusal.anchor.strip("_"), len(refusal.nodes)) == (PATTERN, "1", 2)
    assert re.fullmatch(because, refusal.reason.replace("_0", "0")), refusal.reason
    assert canonical.report.rewrites == []
    assert_weights_shared(model, canonical, {"0", "1"} & set(dict(canonical.named_modules())))


ALONE = rows(
    Alone(
        name="a-nonlinearity-between",
        build=lambda: Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)),
        inputs=vector(4),
        untouched=("0", "2"),
    ),
    Alone(
        name="a-flattening-between",
        build=lambda: Sequential(conv(3, 4, 1), nn.Flatten(), nn.Linear(4 * 5 * 7, 2)),
        inputs=image(3),
        untouched=("0", "2"),
    ),
    Alone(
        name="skipped",
        build=lambda: Sequential(nn.Linear(4, 6), nn.Linear(6, 2)),
        inputs=vector(4),
        skip=(PATTERN,),
        untouched=("0", "1"),
    ),
)


@pytest.mark.parametrize("row", ALONE)
def test_leaves_alone(row: Alone) -> None:
    assert_alone(row, PATTERN)


def test_symbolic_dense_layers() -> None:
    W1, W2 = sympy.Matrix(3, 2, numbers("u", 6)), sympy.Matrix(2, 3, numbers("w", 6))
    b1, b2, x = sympy.Matrix(numbers("a", 3)), sympy.Matrix(numbers("b", 2)), sympy.Matrix(numbers("x", 2))
    have = W2 * (W1 * x + b1) + b2
    assert (have - ((W2 * W1) * x + (W2 * b1 + b2))).expand() == sympy.zeros(2, 1)


def test_symbolic_pointwise_convolutions() -> None:
    """A pointwise layer behind or in front scales the kernel; a bias in front is missing where zeros are padded."""
    signal, kernel = numbers("x", 4), numbers("w", 3)
    p, a, b = symbols.s, symbols.t, symbols.b
    behind = [p * y + a for y in symbols.convolution(signal, kernel, b, padding=1)]
    merged = symbols.convolution(signal, [p * w for w in kernel], p * b + a, padding=1)
    assert all(is_zero(h - w) for h, w in zip(behind, merged, strict=True))
    front = symbols.convolution([p * x + a for x in signal], kernel, b)
    merged = symbols.convolution(signal, [p * w for w in kernel], sum(kernel) * a + b)
    assert all(is_zero(h - w) for h, w in zip(front, merged, strict=True))
    padded = symbols.convolution([p * x + a for x in signal], kernel, b, padding=1)
    wrong = symbols.convolution(signal, [p * w for w in kernel], sum(kernel) * a + b, padding=1)
    assert [is_zero(h - w) for h, w in zip(padded, wrong, strict=True)] == [False, True, True, False]
