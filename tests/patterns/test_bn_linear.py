"""BN -> Linear: the layers behind take the affine, borders and all."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from torch import nn
from torch.nn import functional as F

import canonize
from canonize.nn import ChannelLinear, ChannelPad, ThreshReLU
from tests.patterns import symbols
from tests.patterns.rows import (
    ALIVE,
    MIXED,
    POSITIVE,
    Alone,
    Folds,
    Refuses,
    assert_alone,
    assert_folds,
    assert_refuses,
    rows,
)
from tests.patterns.symbols import is_zero, numbers, s, t
from tests.statistics import harden
from tests.zoo.case import SIZES, conv, image, norm, vector, wired

PATTERN = "bn_linear"
Sequential = nn.Sequential


def _layer(name: str, dims: int, kernel: Any = 3, channels: int = 6, **options: Any) -> Folds:
    """BN -> Conv; its channels are positive, negative, dead and tiny."""
    layers = options.pop("layers", {})
    return Folds(
        name=f"{name}-{dims}d",
        build=lambda: Sequential(norm(channels, dims), conv(channels, 4, kernel, dims, **options), nn.Tanh()),
        inputs=image(channels, *SIZES[dims]),
        into={"0": ("1",)},
        layers=layers,
    )


PADDED: dict[str, type] = {"_1_pad": ChannelPad}
# A dead channel has no value that it maps to zero: it is made constant first.
CONSTANT: dict[str, type] = {"bn_constant": ThreshReLU}
DEAD: dict[str, type] = {**PADDED, "_0_constant": ThreshReLU}


def _through(name: str, way: Any, **options: Any) -> Folds:
    """BN -> way -> conv, for ways that are written as a function of a value."""
    modules = {"bn": lambda: norm(4), "conv": lambda: conv(4, 5, 2)} | options.pop("modules", {})
    return Folds(
        name=f"through-{name}",
        build=lambda: wired(lambda m, x: m.conv(way(m.bn(x))), **{key: make() for key, make in modules.items()}),
        inputs=options.pop("inputs", image(4, 7, 9)),
        into={"bn": ("conv",)},
        **options,
    )


FOLDS = rows(
    [_layer("unpadded", dims) for dims in (1, 2, 3)],
    [_layer("padded", dims, padding=1, layers=DEAD) for dims in (1, 2, 3)],
    [_layer("padded-grouped-strided", dims, padding=2, groups=2, stride=2, layers=DEAD) for dims in (1, 2, 3)],
    [_layer("transposed", dims, transposed=True, layers=DEAD) for dims in (1, 2, 3)],
    _layer("no-bias", 2, bias=False, padding=1, layers=DEAD),
    _layer("depthwise", 2, channels=4, groups=4, padding=1, layers=DEAD),
    _layer("dilated", 2, dilation=2, padding=(1, 3), layers=DEAD),
    _layer("same", 2, kernel=(2, 3), padding="same", layers=DEAD),
    _layer("padding-wider-than-the-kernel", 2, kernel=2, padding=3, layers=DEAD),
    [
        _layer(mode, 2, kernel=(3, 4), padding=(1, 2), padding_mode=mode)
        for mode in ("reflect", "replicate", "circular")
    ],
    _layer("transposed-cropped", 2, transposed=True, kernel=4, padding=1, layers=DEAD),
    Folds(
        name="transposed-cropped-of-all-that-it-adds",
        build=lambda: Sequential(norm(4), conv(4, 6, 2, transposed=True, padding=1), nn.Tanh()),
        inputs=image(4),
        hardening=MIXED,
        into={"0": ("1",)},
    ),
    _layer("transposed-dilated-grouped", 2, transposed=True, kernel=2, dilation=2, groups=2, layers=DEAD),
    _layer("transposed-with-output-padding", 2, transposed=True, dilation=2, output_padding=1, layers=DEAD),
    Folds(
        name="padded-and-nothing-dead",
        build=lambda: Sequential(norm(4), conv(4, 6, padding=1), nn.Tanh()),
        inputs=image(4),
        hardening={"zero": False},
        into={"0": ("1",)},
        layers=PADDED,
    ),
    Folds(
        name="dense",
        build=lambda: Sequential(norm(6, 1), nn.Linear(6, 4), nn.Tanh()),
        inputs=vector(6),
        into={"0": ("1",)},
    ),
    Folds(
        name="an-explicit-layer-that-is-there-already",
        build=lambda: Sequential(norm(5, 1), ChannelLinear(5), nn.Tanh()),
        inputs=image(5, 4),
        into={"0": ("1",)},
    ),
    Folds(
        name="the-affine-of-a-layer-norm",
        build=lambda: Sequential(nn.LayerNorm(6, eps=1e-2), nn.Linear(6, 4), nn.Tanh()),
        inputs=image(3, 6),
        into={"0": ("1",)},
        layers={"0": nn.LayerNorm},
    ),
    Folds(
        name="the-affine-of-a-group-norm",
        build=lambda: Sequential(nn.GroupNorm(2, 4, eps=1e-2), conv(4, 6, padding=1), nn.Tanh()),
        inputs=image(4),
        hardening=MIXED,
        into={"0": ("1",)},
        layers={"0": nn.GroupNorm, **PADDED},
    ),
    Folds(
        name="two-in-a-row",
        build=lambda: Sequential(norm(6), norm(6, eps=0.5), conv(6, 4)),
        inputs=image(6),
        into={"0": ("2",), "1": ("2",)},
    ),
    Folds(
        name="a-second-affine-among-the-readers",
        # Shared, the second cannot go into the first; but the first goes into the second, and on with it.
        build=lambda: wired(
            lambda m, x: (lambda y: m.left(y) + m.right(m.second(y)).tanh())(m.bn(x)),
            bn=norm(4),
            second=norm(4, eps=0.5),
            left=conv(4, 5),
            right=conv(4, 5),
        ),
        inputs=image(4),
        into={"bn": ("left", "right"), "second": ("right",)},
    ),
    Folds(
        name="every-reader",
        build=lambda: wired(
            lambda m, x: (lambda y: m.left(y) + m.right(y.flip(3)).tanh())(m.bn(x)),
            bn=norm(4),
            left=conv(4, 5),
            right=conv(4, 5),
        ),
        inputs=image(4),
        into={"bn": ("left", "right")},
    ),
    Folds(
        name="a-scale-before-a-strided-transposed-convolution",
        build=lambda: wired(
            lambda m, x: m.up(x * m.gamma).tanh(),
            gamma=nn.Parameter(torch.linspace(-2, 3, 4).reshape(4, 1, 1)),
            up=conv(4, 6, 3, transposed=True, stride=2, groups=2),
        ),
        inputs=image(4),
        into={"gamma": ("up",)},
    ),
    _through("average-pool", lambda x: F.avg_pool2d(x, 2)),
    _through(
        "average-pool-padded", lambda x: F.avg_pool2d(x, 3, 2, 1), layers={"avg_pool2d_pad": ChannelPad, **CONSTANT}
    ),
    _through("average-pool-padding-not-counted", lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    _through("average-pool-with-its-own-divisor", lambda x: F.avg_pool2d(x, 3, divisor_override=9)),
    _through("adaptive-average-pool", lambda x: F.adaptive_avg_pool2d(x, (3, 2))),
    _through("max-pool", lambda x: F.max_pool2d(x, 3, 2, 1), hardening=ALIVE),
    _through("max-pool-of-dead-channels", lambda x: F.max_pool2d(x, 2), hardening=POSITIVE),
    _through("adaptive-max-pool", lambda x: F.adaptive_max_pool2d(x, 3), hardening=POSITIVE),
    _through("bilinear-upsampling", lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    _through("resizing-to-a-computed-size", lambda x: F.interpolate(x, size=(x.shape[2] + 1, x.shape[3]))),
    _through("constant-padding", lambda x: F.pad(x, (1, 2, 0, 1), value=0.7), layers={"pad": ChannelPad, **CONSTANT}),
    _through(
        "zero-padding-of-living-channels", lambda x: F.pad(x, (1, 2)), hardening=MIXED, layers={"pad": ChannelPad}
    ),
    _through(
        "padding-twice",
        lambda x: F.pad(F.pad(x, (1, 0), value=2.0), (0, 0, 1, 1)),
        layers={"pad": ChannelPad, "pad_1": ChannelPad, **CONSTANT},
    ),
    _through("reflected-padding", lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect")),
    _through(
        "padding-with-channels",
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 2), value=0.7),
        modules={"conv": lambda: conv(7, 5, 2)},
    ),
    _through("transposed-image", lambda x: x.transpose(2, 3)),
    _through("part-of-the-image", lambda x: x[:, :, 1:, ::2]),
    _through("reversed-channels", lambda x: x.flip(1)),
    _through("rolled-channels", lambda x: x.roll(1, 1)),
    _through("part-of-the-channels", lambda x: x[:, 1:4], modules={"conv": lambda: conv(3, 5, 2)}),
    _through("repeated-channels", lambda x: x.repeat(1, 2, 1, 1), modules={"conv": lambda: conv(8, 5, 2)}),
    _through("interleaved-channels", lambda x: x.repeat_interleave(2, 1), modules={"conv": lambda: conv(8, 5, 2)}),
    _through(
        "pixel-unshuffle", lambda x: F.pixel_unshuffle(x[..., :6, :8], 2), modules={"conv": lambda: conv(16, 5, 2)}
    ),
    _through("channel-shuffle", lambda x: F.channel_shuffle(x, 2)),
    _through("one-piece-of-a-split", lambda x: x.tensor_split(2, 1)[1], modules={"conv": lambda: conv(2, 5, 2)}),
    _through("flatten", lambda x: x.flatten(1), inputs=image(4, 3, 2), modules={"conv": lambda: nn.Linear(24, 5)}),
    _through(
        "view", lambda x: x.view(x.size(0), -1), inputs=image(4, 3, 2), modules={"conv": lambda: nn.Linear(24, 5)}
    ),
    _through("channels-last", lambda x: x.permute(0, 2, 3, 1), modules={"conv": lambda: nn.Linear(4, 5)}),
    _through("global-mean", lambda x: x.mean((2, 3)), modules={"conv": lambda: nn.Linear(4, 5)}),
    _through(
        "mean-keeping-dimensions", lambda x: x.mean(3, keepdim=True), modules={"conv": lambda: conv(4, 5, (2, 1))}
    ),
    _through(
        "sum-of-three-copies",
        lambda x: x.unsqueeze(1).expand(-1, 3, -1).sum(1),
        inputs=vector(4),
        modules={"bn": lambda: norm(4, 1), "conv": lambda: nn.Linear(4, 5)},
    ),
    _through(
        "sum-of-its-own-average",
        lambda x: x + F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    ),
    _through("difference-from-its-average", lambda x: torch.sub(x, x.mean((2, 3), keepdim=True), alpha=0.3)),
    Folds(
        name="a-shift-that-differs-along-a-mean",
        build=lambda: wired(
            lambda m, x: m.fc((x + m.shift).view(-1, 3, 4).mean(1)),
            fc=nn.Linear(4, 5),
            shift=nn.Parameter(torch.randn(12)),
        ),
        inputs=vector(12),
        into={"shift": ("fc",)},
    ),
    Folds(
        name="a-shift-that-differs-along-a-sum",
        build=lambda: wired(
            lambda m, x: m.fc((x + m.shift).view(-1, 3, 4).sum(1)),
            fc=nn.Linear(4, 5),
            shift=nn.Parameter(torch.randn(12)),
        ),
        inputs=vector(12),
        into={"shift": ("fc",)},
    ),
    Folds(
        name="a-shift-through-one-side-of-a-difference",
        build=lambda: wired(
            lambda m, x: m.conv(torch.sub(x.tanh(), x + m.shift, alpha=0.3)),
            conv=conv(4, 5),
            shift=nn.Parameter(torch.randn(4, 1, 1)),
        ),
        inputs=image(4),
        into={"shift": ("conv",)},
    ),
    Folds(
        name="one-number-through-a-matrix-product",
        # An attention's temperature, on both factors.
        build=lambda: wired(
            lambda m, x: m.fc((x * 0.3) @ (x.transpose(1, 2) * 0.5)),
            fc=nn.Linear(5, 3),
        ),
        inputs=lambda batch: torch.randn(batch, 5, 4),
        into={"mul": ("fc",), "mul_1": ("fc",)},
    ),
    Folds(
        name="scales-through-a-product",
        build=lambda: wired(
            lambda m, x: m.conv((x * m.gamma) * x.mean(1, keepdim=True).sigmoid()),
            conv=conv(4, 5),
            gamma=nn.Parameter(torch.randn(4, 1, 1)),
        ),
        inputs=image(4),
        into={"gamma": ("conv",)},
    ),
)


@pytest.mark.parametrize("row", FOLDS)
def test_folds(row: Folds) -> None:
    canonical = assert_folds(row, PATTERN)
    added = {name for name, layer in canonical.named_modules() if isinstance(layer, ChannelPad | ThreshReLU)}
    assert added == {name for name, wanted in row.layers.items() if wanted in (ChannelPad, ThreshReLU)}


def test_the_border_is_what_the_affine_maps_to_zero() -> None:
    row = Folds(
        name="border",
        build=lambda: Sequential(norm(4), conv(4, 6, padding=(1, 2))),
        inputs=image(4),
        hardening=MIXED,
        into={"0": ("1",)},
    )
    model, canonical = row.model(), assert_folds(row, PATTERN)
    bn, pad, folded = model[0], canonical.get_submodule("_1_pad"), canonical.get_submodule("1")
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    shift = bn.bias - bn.running_mean * scale
    torch.testing.assert_close(pad.value, (-shift / scale).detach().reshape(1, 4, 1, 1), rtol=1e-14, atol=0.0)
    assert pad.padding == (2, 2, 1, 1)
    assert (folded.padding, folded.padding_mode) == ((0, 0), "zeros")
    torch.testing.assert_close(folded.weight, model[1].weight * scale.reshape(1, 4, 1, 1), rtol=1e-14, atol=0.0)
    # The model's own convolution still pads.
    assert model[1].padding == (1, 2)


def test_dead_channels_are_made_constant_in_front() -> None:
    row = Folds(
        name="dead",
        build=lambda: Sequential(norm(8), conv(8, 3, padding=1)),
        inputs=image(8),
        into={"0": ("1",)},
        layers=DEAD,
    )
    model, canonical = row.model(), assert_folds(row, PATTERN)
    clamp, dead = canonical.get_submodule("_0_constant"), model[0].weight == 0
    assert dead.any()
    assert not dead.all()
    lower, upper = clamp.lower.flatten(), clamp.upper.flatten()
    assert torch.equal(lower[dead], upper[dead])
    torch.testing.assert_close(lower[dead], model[0].bias[dead].detach(), rtol=1e-14, atol=0.0)
    assert torch.equal(lower[~dead], torch.full_like(lower[~dead], -torch.inf))
    assert torch.equal(upper[~dead], torch.full_like(upper[~dead], torch.inf))


def test_other_image_sizes_are_exact_too() -> None:
    """The border is explicit, not a bias map of one size."""
    row = Folds(
        name="sizes",
        build=lambda: Sequential(norm(6), conv(6, 4, padding=2, stride=2), nn.Tanh(), norm(4), conv(4, 2, padding=1)),
        inputs=image(6),
        into={"0": ("1",), "3": ("4",)},
    )
    model, canonical = row.model(), assert_folds(row, PATTERN)
    for size in ((9, 4), (1, 1), (12, 17)):
        images = torch.randn(1, 6, *size, dtype=torch.float64)
        torch.testing.assert_close(canonical(images), model(images), rtol=1e-10, atol=1e-10)


def _pad_to_a_multiple(x: torch.Tensor, multiple: int, value: float) -> torch.Tensor:
    """As window attention does, so that the image divides into windows."""
    height, width = x.shape[2:]
    return F.pad(
        x, (0, (multiple - width % multiple) % multiple, 0, (multiple - height % multiple) % multiple), value=value
    )


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_padding_by_an_amount_that_follows_from_the_size(value: float) -> None:
    row = Folds(
        name=f"computed-padding-{value}",
        build=lambda: wired(lambda m, x: m.conv(_pad_to_a_multiple(m.bn(x), 4, value)), bn=norm(4), conv=conv(4, 5, 2)),
        inputs=image(4, 7, 9),
        into={"bn": ("conv",)},
    )
    model, canonical = row.model(), assert_folds(row, PATTERN)
    assert any(isinstance(layer, ChannelPad) for layer in canonical.modules())
    for size in ((8, 12), (5, 4), (6, 7), (1, 1)):  # (8, 12) is not padded at all
        images = torch.randn(2, 4, *size, dtype=torch.float64)
        torch.testing.assert_close(canonical(images), model(images), rtol=1e-10, atol=1e-10)


def test_padding_of_channels_by_a_computed_amount_is_refused() -> None:
    model = wired(lambda m, x: m.conv(F.pad(m.bn(x), (0, 0, 0, 0, 0, x.shape[3] - 8))), bn=norm(4), conv=conv(5, 5, 2))
    harden(model)
    images = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    canonical = canonize.canonize(model.double().eval(), images)
    assert [fate.outcome for fate in canonical.report.affines] == ["last resort"]
    assert "dimension" in canonical.report.affines[0].reason


def test_who_asks_for_a_kind_of_tensor_is_no_reader() -> None:
    """A mask made by ``x.new_zeros`` takes a type and a device of x, no value."""
    row = Folds(
        name="new-zeros",
        build=lambda: wired(
            lambda m, x: (lambda y: m.conv(y) + y.new_ones(2, 2)[0, 1] + torch.zeros_like(y)[:, :1, 1:, 1:])(m.bn(x)),
            bn=norm(4),
            conv=conv(4, 5, 2),
        ),
        inputs=image(4),
        into={"bn": ("conv",)},
    )
    assert_folds(row, PATTERN)


# -------------------------------------------------------------------------------------------------- refusals


def _refuses(name: str, because: str, forward: Any, sample: Any = None, **options: Any) -> Refuses:
    """Rows around a BN called `bn`."""
    modules = {key: options.pop(key) for key in ("conv", "fc", "bn", "up", "other") if key in options}
    return Refuses(
        name=name,
        build=lambda: wired(forward, **{key: make() for key, make in modules.items()}),
        inputs=sample or image(4, 7, 9),
        affine=options.pop("affine", "bn"),
        because=because,
        **({"goes": "last_resort", "into": ("bn",)} | options),
    )


REFUSES = rows(
    _refuses("returned", "the model returns it as it is", lambda m, x: m.bn(x), bn=lambda: norm(4)),
    _refuses(
        "returned-by-one-way",
        "the model returns it as it is",
        lambda m, x: (lambda y: (m.conv(y), y))(m.bn(x)),
        bn=lambda: norm(4),
        conv=lambda: conv(4, 5),
    ),
    _refuses(
        "a-smooth-activation",
        r"no affine passes sigmoid \(Sigmoid\)",
        lambda m, x: m.conv(m.bn(x).sigmoid()),
        bn=lambda: norm(4),
        conv=lambda: conv(4, 5),
    ),
    _refuses(
        "one-of-two-readers-cannot",
        r"no affine passes sigmoid \(Sigmoid\)",
        lambda m, x: (lambda y: m.conv(y) + m.other(y.sigmoid()))(m.bn(x)),
        bn=lambda: norm(4),
        conv=lambda: conv(4, 5),
        other=lambda: conv(4, 5),
    ),
    _refuses(
        "transposed-convolution-with-a-stride",
        "up is a transposed convolution with a stride: "
        "what a shift adds to its output differs from position to position",
        lambda m, x: m.up(m.bn(x)),
        bn=lambda: norm(4),
        up=lambda: conv(4, 5, transposed=True, stride=2),
    ),
    _refuses(
        "negative-scale-and-max-pool",
        "a negative scale does not pass max_pool2d, which takes maxima",
        lambda m, x: m.conv(F.max_pool2d(m.bn(x), 2)),
        bn=lambda: norm(4),
        conv=lambda: conv(4, 5, 2),
    ),
    _refuses(
        "max-pool-with-indices",
        "other also returns where its maxima are",
        lambda m, x: m.conv(m.other(m.bn(x))[0]),
        bn=lambda: norm(4),
        other=lambda: nn.MaxPool2d(2, return_indices=True),
        conv=lambda: conv(4, 5, 2),
        hardening=ALIVE,
    ),
    _refuses(
        "a-shift-and-a-product",
        "a shift does not pass the product mul",
        lambda m, x: m.conv(m.bn(x) * x.mean(1, keepdim=True).sigmoid()),
        bn=lambda: norm(4),
        conv=lambda: conv(4, 5),
    ),
    _refuses(
        "a-shift-and-a-matrix-product",
        "a shift does not pass the product matmul",
        lambda m, x: m.fc(m.bn(x) @ x.transpose(1, 2)),
        lambda batch: torch.randn(batch, 5, 4),
        bn=lambda: norm(5, 1),
        fc=lambda: nn.Linear(5, 3),
    ),
    Refuses(
        name="one-number-per-feature-and-a-matrix-product",
        build=lambda: wired(
            lambda m, x: m.fc((x * m.gamma) @ x.transpose(1, 2)),
            gamma=nn.Parameter(torch.linspace(-1.0, 2.0, 4)),
            fc=nn.Linear(5, 3),
        ),
        inputs=lambda batch: torch.randn(batch, 5, 4),
        affine="gamma",
        because="only one number for all passes the product matmul",
        goes="last_resort",
        into=("gamma.affine",),
    ),
    _refuses(
        "one-side-of-a-sum",
        "only one side of the sum add carries its scale",
        lambda m, x: m.conv(m.bn(x) + x.tanh()),
        bn=lambda: norm(4),
        conv=lambda: conv(4, 5),
    ),
    _refuses(
        "the-two-sides-have-other-scales",
        "the two sides of the sum add carry different scales",
        lambda m, x: m.conv((lambda y: y + y.flip(1))(m.bn(x))),
        bn=lambda: norm(4),
        conv=lambda: conv(4, 5),
    ),
    _refuses(
        "both-sides-of-a-product",
        "a shift does not pass the product mul",
        lambda m, x: m.conv((lambda y: y * y)(m.bn(x))),
        bn=lambda: norm(4),
        conv=lambda: conv(4, 5),
    ),
    _refuses(
        "dense-layer-over-positions",
        "it differs along dimension 1, which is not the one that fc mixes",
        lambda m, x: m.fc(m.bn(x)),
        image(4, 5),
        bn=lambda: norm(4, 1),
        fc=lambda: nn.Linear(5, 3),
    ),
    _refuses(
        "pooling-over-the-channels",
        "it differs along dimension 3, over which avg_pool2d pools",
        lambda m, x: m.conv(F.avg_pool2d(m.bn(x).permute(0, 2, 3, 1), 2)),
        bn=lambda: norm(4),
        conv=lambda: conv(7, 5, 1),
    ),
    _refuses(
        "a-sum-over-the-channels",
        "its scale differs along a dimension that sum adds up",
        lambda m, x: m.fc(m.bn(x).sum(1).mean(1)),
        bn=lambda: norm(4),
        fc=lambda: nn.Linear(9, 2),
    ),
    _refuses(
        "a-sum-over-a-free-number-of-positions",
        "sum adds up a number of positions that is not fixed, and with it the shift",
        lambda m, x: m.fc(m.bn(x).sum((2, 3))),
        bn=lambda: norm(4),
        fc=lambda: nn.Linear(4, 2),
    ),
    _refuses(
        "average-with-another-divisor",
        "avg_pool2d divides by divisor_override, so its weights do not sum to one",
        lambda m, x: m.conv(F.avg_pool2d(m.bn(x), 2, divisor_override=3)),
        bn=lambda: norm(4),
        conv=lambda: conv(4, 5, 2),
    ),
    _refuses(
        "average-that-counts-its-padding-and-rounds-up",
        "avg_pool2d counts its padding and rounds its size up, which explicit padding cannot do",
        lambda m, x: m.conv(F.avg_pool2d(m.bn(x), 2, 2, 1, ceil_mode=True)),
        bn=lambda: norm(4),
        conv=lambda: conv(4, 5, 2),
    ),
    _refuses(
        "flattened-image-of-any-size",
        "behind flatten it differs along dimension 1, which has no fixed size",
        lambda m, x: F.softmax(m.bn(x).flatten(1), 1),
        bn=lambda: norm(4),
    ),
    _refuses(
        "a-function-of-the-users-own",
        r"a shift does not pass cumsum",
        lambda m, x: m.conv(m.bn(x).cumsum(2)),
        bn=lambda: norm(4),
        conv=lambda: conv(4, 5),
    ),
    _refuses(
        "a-zero-that-a-channel-never-reaches",
        # Padding with 0.7 - t has to be divided by a scale that is zero.
        r"it would have to pass relu \(ReLU\)",
        lambda m, x: m.conv(F.pad(m.bn(x), (1, 1), value=0.7).relu()),
        bn=lambda: norm(4),
        conv=lambda: conv(4, 5),
        goes="bn_activation_linear",
        into=("conv",),
    ),
    # Refused here, taken elsewhere.
    _refuses(
        "taken-in-front-instead",
        r"no affine passes sigmoid \(Sigmoid\)",
        lambda m, x: m.bn(m.conv(x)).sigmoid(),
        conv=lambda: conv(4, 6),
        bn=lambda: norm(6),
        goes="linear_bn",
        into=("conv",),
    ),
    _refuses(
        "taken-behind-the-activation-instead",
        r"it would have to pass relu \(ReLU\)",
        lambda m, x: m.conv(m.bn(x).relu()),
        bn=lambda: norm(4),
        conv=lambda: conv(4, 5),
        goes="bn_activation_linear",
        into=("conv",),
    ),
    _refuses(
        "taken-behind-the-concatenation-instead",
        r"it would have to pass cat \(Concat\)",
        lambda m, x: m.conv(torch.cat([m.bn(x), x], 1)),
        bn=lambda: norm(4),
        conv=lambda: conv(8, 5),
        goes="concat_linear",
        into=("conv",),
    ),
)


@pytest.mark.parametrize("row", REFUSES)
def test_refuses_because(row: Refuses) -> None:
    assert_refuses(row, PATTERN)


def test_refuses_a_threshold_that_the_models_dtype_cannot_hold() -> None:
    """Neither dead nor harmless: -t/s is -1e5, float16 ends at 65504, and s x still counts for large x."""
    model = Sequential(norm(2, eps=0.0), conv(2, 3, padding=1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1e-5, 0.7]))
        model[0].bias.copy_(torch.tensor([1.0, -0.3]))
    model = model.half()
    canonical = canonize.canonize(model, torch.randn(2, 2, 5, 7).half(), skip=("stacked_linear",), verify=False)
    (fate,) = canonical.report.affines
    assert (fate.outcome, fate.into) == ("last resort", ("0",))
    assert ": its scale is so small that the threshold -t/s overflows torch.float16 at 1" in fate.reason
    assert "bn_linear" in fate.reason
    images = torch.randn(3, 2, 6, 5).half()
    torch.testing.assert_close(canonical(images), model(images), rtol=5e-3, atol=5e-3)


ALONE = rows(
    Alone(
        name="batch-statistics",
        build=lambda: Sequential(norm(4, track_running_stats=False), conv(4, 6, padding=1), nn.Tanh()),
        inputs=image(4),
        untouched=("0", "1"),
        batch_norms=1,
    ),
    Alone(
        name="a-norm-of-each-sample",
        build=lambda: Sequential(nn.GroupNorm(2, 4, eps=1e-2, affine=False), conv(4, 6, padding=1), nn.Tanh()),
        inputs=image(4),
        untouched=("0", "1"),
    ),
    Alone(
        name="skipped",
        build=lambda: Sequential(norm(4), conv(4, 6, padding=1), nn.Tanh()),
        inputs=image(4),
        skip=(PATTERN, "stacked_linear"),
        untouched=("1",),
    ),
    Alone(
        name="padding-without-an-affine",
        build=lambda: Sequential(nn.ConstantPad2d(1, 0.5), conv(4, 6, padding=1), nn.AvgPool2d(3, 2, 1), nn.Tanh()),
        inputs=image(4),
        untouched=("0", "1", "2"),
    ),
    Alone(
        name="a-weight-that-depends-on-the-input",
        build=lambda: wired(
            lambda m, x: F.linear(x * m.gamma, x.mean(0)[None] * m.gamma) + 0.0 * x.sum(),
            gamma=nn.Parameter(torch.randn(6)),
        ),
        inputs=lambda batch: torch.randn(batch, 6),
        untouched=(),
    ),
)


@pytest.mark.parametrize("row", ALONE)
def test_leaves_alone(row: Alone) -> None:
    assert_alone(row, PATTERN)


# ---------------------------------------------------------------------------------------------- the identity


def test_symbolic_a_dense_layer() -> None:
    W = sympy.Matrix(2, 3, numbers("w", 6))
    x, b, scale, shift = (sympy.Matrix(numbers(name, n)) for name, n in (("x", 3), ("b", 2), ("s", 3), ("t", 3)))
    have = W * (sympy.diag(*scale) * x + shift) + b
    want = (W * sympy.diag(*scale)) * x + (b + W * shift)
    assert (have - want).expand() == sympy.zeros(2, 1)


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_symbolic_zero_padding(padding: int) -> None:
    """Zeros around s x + t are z = -t/s around x."""
    signal, kernel, scale = numbers("x", 4), numbers("w", 3), sympy.Symbol("s", nonzero=True)
    have = symbols.convolution([scale * value + t for value in signal], kernel, symbols.b, padding, 0)
    want = symbols.convolution(signal, [w * scale for w in kernel], symbols.b + sum(kernel) * t, padding, -t / scale)
    assert all(is_zero(h - w) for h, w in zip(have, want, strict=True))
    # Without z the border is wrong, and only the border.
    slip = symbols.convolution(signal, [w * scale for w in kernel], symbols.b + sum(kernel) * t, padding, 0)
    wrong = [not is_zero(h - w) for h, w in zip(have, slip, strict=True)]
    assert sum(wrong) == min(2 * padding, len(wrong))


def test_symbolic_transposed_convolution() -> None:
    """With stride 1 a rim of z, cropped again, lets every tap reach every position."""
    signal, kernel, scale = numbers("x", 4), numbers("w", 3), sympy.Symbol("s", nonzero=True)
    rim, z = len(kernel) - 1, -t / scale
    have = symbols.transposed_convolution([scale * value + t for value in signal], kernel, symbols.b)
    padded = [z] * rim + list(signal) + [z] * rim
    want = symbols.transposed_convolution(padded, [w * scale for w in kernel], symbols.b + sum(kernel) * t, padding=rim)
    assert len(have) == len(want)
    assert all(is_zero(h - w) for h, w in zip(have, want, strict=True))
    # With stride 2, a constant does not add the same everywhere.
    added = symbols.transposed_convolution([t] * 4, kernel, stride=2)
    assert len({sympy.expand(value) for value in added[2:-2]}) > 1


def test_symbolic_what_it_passes() -> None:
    first, second, third = numbers("x", 3)
    y, z, v = [s * value + t for value in (first, second)], -t / s, sympy.Symbol("v", real=True)
    # Averages whose weights sum to one, bilinear ones, too; with padding counted in, zeros become z.
    weight = sympy.Symbol("w", real=True)
    assert is_zero(weight * y[0] + (1 - weight) * y[1] - (s * (weight * first + (1 - weight) * second) + t))
    assert is_zero((y[0] + y[1] + 0) / 3 - (s * (first + second + z) / 3 + t))
    # A constant v around s x + t is (v - t)/s around x.
    assert is_zero(v - (s * ((v - t) / s) + t))
    # A sum over n positions multiplies the shift by n; a sum over values adds weighted shifts.
    assert is_zero(sum(s * value + t for value in (first, second, third)) - (s * (first + second + third) + 3 * t))
    assert is_zero(y[0] + weight * y[1] - (s * (first + weight * second) + (1 + weight) * t))
    # A product passes scales.
    assert is_zero((s * first) * second - s * (first * second))
