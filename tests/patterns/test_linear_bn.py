"""Linear -> BN: the layer before takes the affine."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from torch import nn
from torch.nn import functional as F

from canonize.nn import ChannelLinear, ChannelPad, ThreshReLU
from tests.patterns import symbols
from tests.patterns.rows import (
    ALIVE,
    Alone,
    Folds,
    Refuses,
    Row,
    assert_alone,
    assert_folds,
    assert_refuses,
    canonized,
    rows,
)
from tests.patterns.symbols import is_zero, numbers, s, t
from tests.zoo.case import SIZES, conv, image, norm, vector, wired

PATTERN = "linear_bn"
Sequential = nn.Sequential


def _layer(name: str, dims: int, inputs: int, outputs: int, kernel: int = 3, **options: Any) -> Folds:
    return Folds(
        name=f"{name}-{dims}d",
        build=lambda: Sequential(conv(inputs, outputs, kernel, dims, **options), norm(outputs, dims), nn.Sigmoid()),
        inputs=image(inputs, *SIZES[dims]),
        into={"1": ("0",)},
    )


def _through(name: str, way: Any, **options: Any) -> Folds:
    """conv -> way -> BN, for ways that are written as a function of a value."""
    return Folds(
        name=f"through-{name}",
        build=lambda: wired(lambda m, x: m.bn(way(m.conv(x))).sigmoid(), conv=conv(3, 6), bn=norm(6)),
        inputs=image(3, 7, 9),
        into={"bn": ("conv",)},
        **options,
    )


FOLDS = rows(
    [_layer("conv", dims, 3, 6) for dims in (1, 2, 3)],
    [_layer("no-bias", dims, 3, 6, bias=False) for dims in (1, 2, 3)],
    [_layer("grouped", dims, 4, 6, groups=2, stride=2, padding=1) for dims in (1, 2, 3)],
    [_layer("transposed", dims, 3, 6, 2, transposed=True, stride=2) for dims in (1, 2, 3)],
    # Output channels are dimension 1 per group here: 3 groups of 2 outputs from 2 inputs each.
    [_layer("transposed-grouped", dims, 6, 6, 2, transposed=True, groups=3, bias=False) for dims in (1, 2, 3)],
    _layer("transposed-grouped-uneven", 2, 4, 6, 3, transposed=True, groups=2, padding=1),
    _layer("depthwise", 2, 4, 8, groups=4),
    _layer("reflect", 2, 3, 6, padding=1, padding_mode="reflect"),
    Folds(
        name="dense",
        build=lambda: Sequential(nn.Linear(4, 6), norm(6, 1), nn.Tanh()),
        inputs=vector(4),
        into={"1": ("0",)},
    ),
    Folds(
        name="an-eps-that-matters",
        build=lambda: Sequential(conv(3, 6), norm(6, eps=2.0), nn.Tanh()),
        inputs=image(3),
        into={"1": ("0",)},
    ),
    Folds(
        name="two-in-a-row",
        build=lambda: Sequential(conv(3, 6), norm(6), norm(6, eps=0.5), nn.Tanh()),
        inputs=image(3),
        into={"1": ("0",), "2": ("0",)},
    ),
    Folds(
        name="an-explicit-layer-that-is-there-already",
        build=lambda: Sequential(nn.LeakyReLU(), ChannelLinear(5), norm(5, 1), nn.Tanh()),
        inputs=image(5, 4),
        into={"2": ("1",)},
    ),
    Folds(
        name="a-layer-scale",
        build=lambda: wired(
            lambda m, x: (m.fc(x) * m.gamma).tanh(), fc=nn.Linear(4, 6), gamma=nn.Parameter(torch.linspace(-2, 3, 6))
        ),
        inputs=image(5, 4),
        into={"gamma": ("fc",)},
    ),
    _through("relu-free-copies", lambda x: x.contiguous().clone()),
    _through("average-pool", lambda x: F.avg_pool2d(x, 2)),
    _through("average-pool-padded", lambda x: F.avg_pool2d(x, 3, 2, 1), layers={"avg_pool2d_pad": ChannelPad}),
    _through("average-pool-padding-not-counted", lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    _through("adaptive-average-pool", lambda x: F.adaptive_avg_pool2d(x, 2)),
    _through("max-pool", lambda x: F.max_pool2d(x, 2), hardening=ALIVE),
    _through("max-pool-padded", lambda x: F.max_pool2d(x, 3, 2, 1), hardening={"positive": True}),
    _through("nearest-upsampling", lambda x: F.interpolate(x, scale_factor=2)),
    _through("bilinear-upsampling", lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear")),
    _through("resizing-to-a-computed-size", lambda x: F.interpolate(x, size=(x.shape[2] + 1, 2 * x.shape[3]))),
    _through("constant-padding", lambda x: F.pad(x, (1, 2, 0, 1), value=0.7), layers={"pad": ChannelPad}),
    _through("reflected-padding", lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect")),
    _through("transposed-image", lambda x: x.transpose(2, 3)),
    _through("there-and-back", lambda x: x.permute(0, 2, 3, 1).flip(1).permute(0, 3, 1, 2)),
    _through("part-of-the-image", lambda x: x[:, :, 1:, ::2]),
    _through("channels-in-reverse-order", lambda x: x.flip(1)),
    _through("a-gradient-stop", lambda x: x.detach() + 0.0, hardening=ALIVE, no_rule=("detach",)),
    Folds(
        name="through-part-of-the-channels",
        build=lambda: wired(lambda m, x: m.bn(m.conv(x)[:, 2:6]).sigmoid(), conv=conv(3, 8), bn=norm(4)),
        inputs=image(3),
        into={"bn": ("conv",)},
    ),
    Folds(
        name="through-one-slice-beside-another",
        # The other reader looks at channels that the BN leaves alone.
        build=lambda: wired(
            lambda m, x: (lambda y: torch.cat([m.bn(y[:, 2:6]).sigmoid(), y[:, :2].tanh()], 1))(m.conv(x)),
            conv=conv(3, 6),
            bn=norm(4),
        ),
        inputs=image(3),
        into={"bn": ("conv",)},
    ),
    Folds(
        name="one-number-through-one-slice-beside-another",
        build=lambda: wired(
            lambda m, x: (lambda y: torch.cat([(y[:, 2:6] * 3.0).sigmoid(), y[:, :2].tanh()], 1))(m.conv(x)),
            conv=conv(3, 6),
        ),
        inputs=image(3),
        into={"mul": ("conv",)},
    ),
    Folds(
        name="through-pixel-shuffle",
        # A BN behind the shuffle has one number for every four channels of the convolution.
        build=lambda: wired(lambda m, x: m.bn(F.pixel_shuffle(m.conv(x), 2)).sigmoid(), conv=conv(3, 16), bn=norm(4)),
        inputs=image(3),
        into={"bn": ("conv",)},
    ),
    Folds(
        name="through-a-transposition-of-features",
        build=lambda: wired(lambda m, x: m.bn(m.fc(x).transpose(1, 2)).sigmoid(), fc=nn.Linear(4, 6), bn=norm(6, 1)),
        inputs=image(5, 4),
        into={"bn": ("fc",)},
    ),
    Folds(
        name="through-a-global-mean",
        build=lambda: wired(lambda m, x: m.bn(m.conv(x).mean((2, 3))).sigmoid(), conv=conv(3, 6), bn=norm(6, 1)),
        inputs=image(3),
        into={"bn": ("conv",)},
    ),
    Folds(
        name="through-a-sum-over-a-fixed-number-of-parts",
        build=lambda: wired(
            lambda m, x: m.bn(m.fc(x.view(-1, 3, 4)).sum(1)).sigmoid(), fc=nn.Linear(4, 6), bn=norm(6, 1)
        ),
        inputs=vector(12),
        into={"bn": ("fc",)},
    ),
    Folds(
        name="through-a-sum-of-two-layers",
        build=lambda: wired(
            lambda m, x: m.bn(m.left(x) + m.right(x.tanh())).sigmoid(), left=conv(3, 6), right=conv(3, 6), bn=norm(6)
        ),
        inputs=image(3),
        into={"bn": ("left", "right")},
    ),
    Folds(
        name="through-a-weighted-difference",
        build=lambda: wired(
            lambda m, x: m.bn(torch.sub(m.left(x), m.right(x.tanh()), alpha=0.3)).sigmoid(),
            left=conv(3, 6, bias=False),
            right=conv(3, 6),
            bn=norm(6),
        ),
        inputs=image(3),
        into={"bn": ("left", "right")},
    ),
    Folds(
        name="through-a-difference-whose-weighted-side-takes-the-shift",
        build=lambda: wired(
            lambda m, x: m.bn(
                torch.sub(F.avg_pool2d(m.left(x), 3, 1, 1, count_include_pad=False), m.right(x), alpha=0.3)
            ).sigmoid(),
            left=conv(3, 6),
            right=conv(3, 6),
            bn=norm(6),
        ),
        inputs=image(3),
        into={"bn": ("left", "right")},
    ),
    Folds(
        name="through-a-sum-whose-first-side-is-broadcast",
        build=lambda: wired(
            lambda m, x: m.bn(m.question(x.mean((2, 3)))[:, :, None, None] + m.conv(x)).sigmoid(),
            question=nn.Linear(3, 6),
            conv=conv(3, 6),
            bn=norm(6),
        ),
        inputs=image(3),
        into={"bn": ("question", "conv")},
    ),
    Folds(
        name="a-scale-through-a-gate",
        build=lambda: wired(
            lambda m, x: (m.conv(x) * x.mean(1, keepdim=True).sigmoid() * m.gamma).tanh(),
            conv=conv(3, 6, padding=1),
            gamma=nn.Parameter(torch.linspace(-2, 3, 6).reshape(6, 1, 1)),
        ),
        inputs=image(3),
        into={"gamma": ("conv",)},
    ),
)


@pytest.mark.parametrize("row", FOLDS)
def test_folds(row: Folds) -> None:
    assert_folds(row, PATTERN)


def _explicit(name: str, because: str, forward: Any, sample: Any = None, **options: Any) -> Refuses:
    """Rows whose BN, called `bn`, nobody can take."""
    modules = {key: options.pop(key) for key in ("conv", "fc", "bn", "left", "right") if key in options}
    return Refuses(
        name=name,
        build=lambda: wired(forward, **{key: make() for key, make in modules.items()}),
        inputs=sample or image(3, 7, 9),
        affine="bn",
        because=because,
        **({"goes": "last_resort", "into": ("bn",)} | options),
    )


REFUSES = rows(
    _explicit(
        "read-by-a-skip",
        "conv is also read by add",
        lambda m, x: (lambda y: m.bn(y).sigmoid() + y)(m.conv(x)),
        conv=lambda: conv(3, 6),
        bn=lambda: norm(6),
    ),
    _explicit(
        "read-by-two-norms",
        "conv is also read by right",
        lambda m, x: (lambda y: m.bn(y).sigmoid() + m.right(y).tanh())(m.conv(x)),
        conv=lambda: conv(3, 6),
        bn=lambda: norm(6),
        right=lambda: norm(6),
    ),
    _explicit(
        "returned-as-well",
        "conv is also read by the output",
        lambda m, x: (lambda y: (m.bn(y).sigmoid(), y))(m.conv(x)),
        conv=lambda: conv(3, 6),
        bn=lambda: norm(6),
    ),
    _explicit(
        "read-further-up",
        "conv is also read by tanh",
        lambda m, x: (lambda y: m.bn(F.avg_pool2d(y, 2)).sigmoid() + F.avg_pool2d(y.tanh(), 2))(m.conv(x)),
        conv=lambda: conv(3, 6),
        bn=lambda: norm(6),
    ),
    _explicit(
        "slices-that-overlap",
        "conv is also read by getitem_1",
        lambda m, x: (lambda y: torch.cat([m.bn(y[:, :4]).sigmoid(), y[:, 3:].tanh()], 1))(m.conv(x)),
        conv=lambda: conv(3, 6),
        bn=lambda: norm(4),
    ),
    _explicit(
        "the-models-input", "it acts on the input x of the model", lambda m, x: m.bn(x).sigmoid(), bn=lambda: norm(3)
    ),
    _explicit(
        "behind-an-activation",
        r"no affine passes relu \(ReLU\)",
        lambda m, x: m.bn(m.conv(x).relu()).sigmoid(),
        conv=lambda: conv(3, 6),
        bn=lambda: norm(6),
    ),
    _explicit(
        "dense-layer-with-another-axis",
        "it differs along dimension 1, which is not the one that fc mixes",
        lambda m, x: m.bn(m.fc(x)).sigmoid(),
        image(6, 5),
        fc=lambda: nn.Linear(5, 6),
        bn=lambda: norm(6, 1),
    ),
    _explicit(
        "negative-scale-and-max-pool",
        "a negative scale does not pass max_pool2d, which takes maxima",
        lambda m, x: m.bn(F.max_pool2d(m.conv(x), 2)).sigmoid(),
        conv=lambda: conv(3, 6),
        bn=lambda: norm(6),
    ),
    _explicit(
        "max-pool-with-indices",
        "getitem is not a layer",
        lambda m, x: m.bn(m.left(m.conv(x))[0]).sigmoid(),
        conv=lambda: conv(3, 6),
        left=lambda: nn.MaxPool2d(2, return_indices=True),
        bn=lambda: norm(6),
        hardening=ALIVE,
    ),
    _explicit(
        "sum-over-a-free-number-of-positions",
        "sum adds up a number of positions that is not fixed, and with it the shift",
        lambda m, x: m.bn(m.conv(x).sum((2, 3))).sigmoid(),
        conv=lambda: conv(3, 6),
        bn=lambda: norm(6, 1),
    ),
    _explicit(
        "repeated-channels",
        "repeat shows one element in places that need different affines",
        lambda m, x: m.bn(m.conv(x).repeat(1, 2, 1, 1)).sigmoid(),
        conv=lambda: conv(3, 3),
        bn=lambda: norm(6),
    ),
    _explicit(
        "shift-and-gate",
        "a shift does not pass the product mul",
        lambda m, x: m.bn(m.conv(x) * x.mean(1, keepdim=True).sigmoid()).sigmoid(),
        conv=lambda: conv(3, 6, padding=1),
        bn=lambda: norm(6),
    ),
    _explicit(
        "sum-of-a-value-with-itself",
        "add adds a value to itself",
        lambda m, x: (lambda y: m.bn(y + y).sigmoid())(m.conv(x)),
        conv=lambda: conv(3, 6),
        bn=lambda: norm(6),
    ),
    _explicit(
        "one-side-of-a-sum-is-no-layer",
        r"no affine passes sigmoid \(Sigmoid\)",
        lambda m, x: m.bn(m.conv(x) + x.sigmoid()).sigmoid(),
        conv=lambda: conv(3, 3, padding=1),
        bn=lambda: norm(3),
    ),
    _explicit(
        "both-sides-of-a-sum-are-broadcast",
        "both sides of the sum add are broadcast",
        lambda m, x: m.bn(m.left(x).mean(2, keepdim=True) + m.right(x).mean(3, keepdim=True)).sigmoid(),
        left=lambda: conv(3, 6),
        right=lambda: conv(3, 6),
        bn=lambda: norm(6),
    ),
    _explicit(
        "broadcast-along-the-channels",
        "left is broadcast along a dimension along which the affine differs",
        lambda m, x: m.bn(m.left(x) + m.right(x)).sigmoid(),
        left=lambda: conv(3, 1),
        right=lambda: conv(3, 6),
        bn=lambda: norm(6),
    ),
    _explicit(
        "average-with-another-divisor",
        "avg_pool2d divides by divisor_override, so its weights do not sum to one",
        lambda m, x: m.bn(F.avg_pool2d(m.conv(x), 2, divisor_override=3)).sigmoid(),
        conv=lambda: conv(3, 6),
        bn=lambda: norm(6),
    ),
    _explicit(
        "average-that-counts-its-padding-and-rounds-up",
        "avg_pool2d counts its padding and rounds its size up, which explicit padding cannot do",
        lambda m, x: m.bn(F.avg_pool2d(m.conv(x), 2, 2, 1, ceil_mode=True)).sigmoid(),
        conv=lambda: conv(3, 6),
        bn=lambda: norm(6),
    ),
    _explicit(
        "flattened-image",
        "it differs along dimension 2, which is not the one that conv mixes",
        lambda m, x: m.fc(m.bn(m.conv(x).flatten(1)).sigmoid()),
        image(3, 4, 4),
        conv=lambda: conv(3, 5),
        fc=lambda: nn.Linear(20, 3),
        bn=lambda: norm(20, 1),
    ),
    # Nothing in this model says how large the image is, so that the weights could hold one number per position.
    _explicit(
        "flattened-image-of-any-size",
        "before flatten it differs along dimension 2, which has no fixed size",
        lambda m, x: m.bn(m.conv(x).flatten(1)).sigmoid(),
        image(3, 4, 4),
        conv=lambda: conv(3, 5),
        bn=lambda: norm(20, 1),
    ),
    Refuses(
        name="no-batch-dimension",
        build=lambda: wired(
            lambda m, x: (m.conv(x[0]) * m.gamma).tanh() + x.mean(),
            conv=conv(3, 6),
            gamma=nn.Parameter(torch.linspace(-2, 3, 6).reshape(6, 1, 1)),
        ),
        inputs=image(3),
        affine="gamma",
        because="conv is called without a batch dimension",
        goes="last_resort",
        into=("gamma.affine",),
    ),
    # Refused here, taken elsewhere.
    _explicit(
        "taken-behind-instead",
        "conv is also read by add",
        lambda m, x: (lambda y: m.right(m.bn(y)) + y)(m.conv(x)),
        conv=lambda: conv(3, 6),
        bn=lambda: norm(6),
        right=lambda: conv(6, 6, 1),
        goes="bn_linear",
        into=("right",),
    ),
    _explicit(
        "taken-behind-the-activation-instead",
        "it acts on the input x of the model",
        lambda m, x: m.right(m.bn(x).relu()),
        bn=lambda: norm(3),
        right=lambda: conv(3, 6),
        goes="bn_activation_linear",
        into=("right",),
    ),
    _explicit(
        "taken-by-the-branches-instead",
        r"it would have to pass cat \(Concat\)",
        lambda m, x: m.bn(torch.cat([m.left(x), m.right(x)], 1)).sigmoid(),
        left=lambda: conv(3, 2),
        right=lambda: conv(3, 4),
        bn=lambda: norm(6),
        goes="concat_bn",
        into=("left", "right"),
    ),
)


@pytest.mark.parametrize("row", REFUSES)
def test_refuses_because(row: Refuses) -> None:
    assert_refuses(row, PATTERN)


ALONE = rows(
    Alone(
        name="batch-statistics",
        build=lambda: Sequential(conv(3, 6), norm(6, track_running_stats=False), nn.Tanh()),
        inputs=image(3),
        untouched=("0", "1"),
        batch_norms=1,
    ),
    Alone(
        name="statistics-of-each-image",
        build=lambda: Sequential(conv(3, 6), nn.InstanceNorm2d(6), nn.Tanh()),
        inputs=image(3),
        untouched=("0",),
    ),
    Alone(
        name="layer-norm",
        build=lambda: Sequential(nn.Linear(4, 6), nn.LayerNorm(6, eps=1e-2), nn.Tanh()),
        inputs=vector(4),
        untouched=("0", "1"),
    ),
    Alone(
        name="group-norm",
        build=lambda: Sequential(conv(3, 6), nn.GroupNorm(2, 6, eps=1e-2), nn.Tanh()),
        inputs=image(3),
        untouched=("0", "1"),
    ),
    Alone(
        name="a-factor-that-depends-on-the-input",
        build=lambda: wired(
            lambda m, x: (lambda y: y * y.mean((2, 3), keepdim=True).sigmoid())(m.conv(x)), conv=conv(3, 6)
        ),
        inputs=image(3),
        untouched=("conv",),
    ),
    Alone(
        name="one-number-per-position",
        build=lambda: wired(
            lambda m, x: (m.conv(x) + m.pos).tanh(), conv=conv(3, 6), pos=nn.Parameter(torch.randn(6, 3, 5))
        ),
        inputs=image(3),
        untouched=("conv",),
    ),
    Alone(
        name="skipped",
        build=lambda: Sequential(conv(3, 6), norm(6), nn.Tanh()),
        inputs=image(3),
        skip=(PATTERN,),
        untouched=("0",),
    ),
    Alone(
        name="a-bystander",
        build=lambda: wired(
            lambda m, x: m.bn(m.conv(x)).tanh() + m.bystander(x).tanh(),
            conv=conv(3, 6),
            bn=norm(6),
            bystander=conv(3, 6),
        ),
        inputs=image(3),
        skip=(PATTERN,),
        untouched=("conv", "bystander"),
    ),
)


@pytest.mark.parametrize("row", ALONE)
def test_leaves_alone(row: Alone) -> None:
    assert_alone(row, PATTERN)


def test_a_threshold_is_no_linear_layer() -> None:
    """An affine behind a threshold stays behind it."""
    row = Alone(
        name="behind-a-threshold",
        build=lambda: Sequential(conv(3, 6), ThreshReLU(torch.full((1, 6, 1, 1), 0.3)), norm(6), nn.Tanh()),
        inputs=image(3),
        untouched=("0",),
    )
    canonical = assert_alone(row, PATTERN)
    assert type(canonical.get_submodule("1")) is ThreshReLU


def test_two_in_a_row_are_one_where_no_layer_takes_the_first() -> None:
    """The second goes into the first, in that order; what becomes of the first is another pattern's matter."""
    row = Row(name="chain", build=lambda: Sequential(norm(6), norm(6, eps=0.5), nn.Sigmoid()), inputs=image(6))
    canonical = canonized(row, row.model())
    first, second = canonical.report.affines
    assert (first.name, second.name) == ("0", "1")
    assert first.outcome == second.outcome == "last resort"
    assert first.into == ("0",)
    (merged, explicit) = canonical.report.rewrites
    assert (merged.pattern, merged.anchor, merged.into) == (PATTERN, "1", ("0",))
    assert (explicit.pattern, explicit.anchor) == ("last_resort", "0")


# ---------------------------------------------------------------------------------------------- the identity


def test_symbolic_a_dense_layer() -> None:
    W, x, b = sympy.MatrixSymbol("W", 3, 2), sympy.MatrixSymbol("x", 2, 1), sympy.MatrixSymbol("b", 3, 1)
    scale, shift = sympy.diag(*numbers("s", 3)), sympy.Matrix(numbers("t", 3))
    have = scale * (W.as_explicit() * x.as_explicit() + b.as_explicit()) + shift
    want = (scale * W.as_explicit()) * x.as_explicit() + (scale * b.as_explicit() + shift)
    assert (have - want).expand() == sympy.zeros(3, 1)


@pytest.mark.parametrize("layer", [symbols.convolution, symbols.transposed_convolution])
def test_symbolic_convolutions(layer: Any) -> None:
    signal, kernel = numbers("x", 4), numbers("w", 3)
    have = [s * y + t for y in layer(signal, kernel, symbols.b, padding=1)]
    want = layer(signal, [s * w for w in kernel], s * symbols.b + t, padding=1)
    assert all(is_zero(h - w) for h, w in zip(have, want, strict=True))


def test_symbolic_what_it_passes() -> None:
    first, second, v = numbers("x", 3)
    mean = (first + second) / 2
    assert is_zero(s * mean + t - ((s * first + t) + (s * second + t)) / 2)
    # Padding counted in: the constant around becomes what the affine makes of it.
    assert is_zero(s * (first + v) / 2 + t - ((s * first + t) + (s * v + t)) / 2)
    # A sum over positions shares the shift out; a sum of two values gives it to one side, over its weight.
    assert is_zero(s * (first + second) + t - ((s * first + t / 2) + (s * second + t / 2)))
    weight, other = numbers("w", 2)
    have = s * (weight * first + other * second) + t
    assert is_zero(have - (weight * (s * first + t / weight) + other * (s * second)))


def test_symbolic_a_maximum_needs_a_scale_that_is_not_negative() -> None:
    z, up, down, d = sympy.Symbol("z", real=True), symbols.up, symbols.down, symbols.d
    for left, right in ((z, z + d), (z + d, z)):
        assert is_zero(up * sympy.Max(left, right) + t - sympy.Max(*(sympy.expand(up * y + t) for y in (left, right))))
    assert is_zero(down * (z + d) + t - sympy.Min(*(sympy.expand(down * y + t) for y in (z, z + d))))
    assert not is_zero(down * (z + d) + t - (down * z + t))
