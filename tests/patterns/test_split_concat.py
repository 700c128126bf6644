"""BN over concatenated inputs of which only some can take their slice: the rest stays, as small as possible."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from torch import fx, nn

from tests.patterns.rows import Alone, Refuses, Row, assert_alone, assert_refuses, canonized, fate_of, rows
from tests.patterns.symbols import is_zero, numbers
from tests.zoo.case import conv, image, norm, wired

PATTERN = "split_concat"
MODULES: dict[str, Any] = {"conv": lambda: conv(3, 4, padding=1), "bn": lambda: norm(7)}


def _build(forward: Any, options: dict[str, Any]) -> Any:
    return lambda: wired(forward, **{key: make() for key, make in (MODULES | options).items()})


def _row(name: str, forward: Any, **options: Any) -> Row:
    sample = options.pop("inputs", image(3, 6, 8))
    return Row(name=name, build=_build(forward, options), inputs=sample)


def _stays(name: str, forward: Any, folded: tuple[str, ...], explicit: dict[str, int], **options: Any) -> Any:
    """A row: the layers that take their slice, and the explicit layers with their numbers of channels."""
    return pytest.param(_row(name, forward, **options), folded, explicit, id=name)


FOLDS = [
    _stays(
        "one-branch-is-the-input",
        lambda m, x: m.bn(torch.cat([m.conv(x), x], 1)).sigmoid(),
        ("conv",),
        {"bn_branch": 3},
    ),
    _stays(
        "the-input-comes-first",
        lambda m, x: m.bn(torch.cat([x, m.conv(x)], 1)).sigmoid(),
        ("conv",),
        {"bn_branch": 3},
    ),
    _stays(
        "a-branch-behind-an-activation",
        lambda m, x: m.bn(torch.cat([m.conv(x), m.other(x).relu()], 1)).sigmoid(),
        ("conv",),
        {"bn_branch": 2},
        other=lambda: conv(3, 2, padding=1),
        bn=lambda: norm(6),
    ),
    _stays(
        "a-branch-that-is-read-elsewhere",
        lambda m, x: (lambda y: m.bn(torch.cat([m.conv(x), y], 1)).sigmoid().mean(1) + y.tanh().mean(1))(m.other(x)),
        ("conv",),
        {"bn_branch": 2},
        other=lambda: conv(3, 2, padding=1),
        bn=lambda: norm(6),
    ),
    _stays(
        "two-branches-stay",
        lambda m, x: m.bn(torch.cat([x, m.conv(x), x.tanh()], 1)).sigmoid(),
        ("conv",),
        {"bn_branch": 3, "bn_branch_1": 3},
        bn=lambda: norm(10),
    ),
    _stays(
        "two-branches-go",
        lambda m, x: m.bn(torch.cat([m.other(x), x, m.conv(x)], 1)).sigmoid(),
        ("conv", "other"),
        {"bn_branch": 3},
        other=lambda: conv(3, 2, padding=1),
        bn=lambda: norm(9),
    ),
    _stays(
        "a-concatenation-in-a-concatenation",
        lambda m, x: m.bn(torch.cat([x, torch.cat([x.tanh(), m.conv(x)], 1)], 1)).sigmoid(),
        ("conv",),
        {"bn_branch": 3, "bn_branch_1": 3},
        bn=lambda: norm(10),
    ),
    _stays(
        "features",
        lambda m, x: m.bn(torch.cat([m.conv(x), x], 1)).sigmoid(),
        ("conv",),
        {"bn_branch": 3},
        inputs=lambda batch: torch.randn(batch, 3),
        conv=lambda: nn.Linear(3, 4),
        bn=lambda: norm(7, 1),
    ),
]


@pytest.mark.parametrize(("row", "folded", "explicit"), FOLDS)
def test_folds(row: Row, folded: tuple[str, ...], explicit: dict[str, int]) -> None:
    model = row.model()
    canonical = canonized(row, model)
    fate = fate_of(canonical, "bn")
    assert fate.outcome == "last resort"
    assert sorted(fate.into) == sorted((*folded, *explicit))
    assert f"{PATTERN}:" not in fate.reason
    rewrites = [rewrite.pattern for rewrite in canonical.report.rewrites]
    assert rewrites == [PATTERN, *["last_resort"] * len(explicit)]
    for name, channels in explicit.items():
        assert _channels(canonical, name) == channels
    for name in folded:
        assert canonical.get_submodule(name).weight is not model.get_submodule(name).weight
    assert "bn" not in dict(canonical.named_modules())
    assert canonical.report.canonical


def _channels(canonical: fx.GraphModule, name: str) -> int:
    layer = canonical.get_submodule(name)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    assert layer.groups == layer.out_channels
    assert set(layer.kernel_size) == {1}
    return layer.out_channels


def _refuses(name: str, because: str, forward: Any, **options: Any) -> Refuses:
    rest = {key: options.pop(key) for key in ("goes", "into") if key in options}
    return Refuses(
        name=name,
        build=_build(forward, options),
        inputs=image(3, 6, 8),
        affine="bn",
        because=because,
        **({"goes": "last_resort", "into": ("bn",)} | rest),
    )


REFUSES = rows(
    _refuses(
        "no-branch-has-a-layer",
        "no branch of it can be folded",
        lambda m, x: m.bn(torch.cat([x, x.tanh()], 1)).sigmoid(),
        bn=lambda: norm(6),
    ),
    _refuses(
        "every-branch-is-read-elsewhere",
        "no branch of it can be folded",
        lambda m, x: (lambda y: m.bn(torch.cat([x, y], 1)).sigmoid().mean(1) + y.tanh().mean(1))(m.conv(x)),
    ),
    _refuses(
        "no-concatenation",
        "no concatenation lies before it",
        lambda m, x: m.bn(m.conv(x)).sigmoid(),
        bn=lambda: norm(4),
        goes="linear_bn",
        into=("conv",),
    ),
    _refuses(
        "the-concatenation-is-read-elsewhere",
        "cat is also read by tanh",
        lambda m, x: (lambda y: m.bn(y).sigmoid() + y.tanh())(torch.cat([m.conv(x), x], 1)),
    ),
    _refuses(
        "the-models-input",
        "it acts on the input x of the model",
        lambda m, x: m.bn(x).sigmoid(),
        bn=lambda: norm(3),
    ),
)


@pytest.mark.parametrize("row", REFUSES)
def test_refuses_because(row: Refuses) -> None:
    assert_refuses(row, PATTERN)


def _alone(name: str, forward: Any, untouched: tuple[str, ...], **options: Any) -> Alone:
    rest = {key: options.pop(key) for key in ("skip", "batch_norms") if key in options}
    return Alone(name=name, build=_build(forward, options), inputs=image(3, 6, 8), untouched=untouched, **rest)


ALONE = rows(
    _alone(
        "every-branch-can",
        lambda m, x: m.bn(torch.cat([m.conv(x), m.other(x)], 1)).sigmoid(),
        (),
        other=lambda: conv(3, 3, padding=1),
    ),
    _alone(
        "the-layer-behind-takes-it-all",
        lambda m, x: m.behind(m.bn(torch.cat([x.tanh(), x], 1))),
        (),
        behind=lambda: conv(6, 2, padding=1),
        bn=lambda: norm(6),
    ),
    _alone(
        "the-layer-behind-the-activation-takes-it-all",
        lambda m, x: m.behind(m.bn(torch.cat([m.conv(x), x], 1)).relu()),
        ("conv",),
        behind=lambda: conv(7, 2, padding=1),
    ),
    _alone("skipped", lambda m, x: m.bn(torch.cat([m.conv(x), x], 1)).sigmoid(), ("conv",), skip=(PATTERN,)),
)


@pytest.mark.parametrize("row", ALONE)
def test_leaves_alone(row: Alone) -> None:
    assert_alone(row, PATTERN)


def test_symbolic() -> None:
    """One slice in the layer, the other behind its branch."""
    w, b, x, raw = (sympy.Symbol(name, real=True) for name in ("w", "b", "x", "u"))
    scale, shift = numbers("s", 2), numbers("t", 2)
    have = [s * value + t for s, value, t in zip(scale, (w * x + b, raw), shift, strict=True)]
    want = [(scale[0] * w) * x + (scale[0] * b + shift[0]), scale[1] * raw + shift[1]]
    assert all(is_zero(h - v) for h, v in zip(have, want, strict=True))
