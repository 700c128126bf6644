"""What an affine meets on its way to a linear layer: pooling, padding, reshaping, slicing, resampling, reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.case import Case, conv, image, norm, vector, wired

Sequential = nn.Sequential


def _on_the_way(
    name: str, move: Callable[..., Any], reader: Callable[[], nn.Module], *themes: str, **options: Any
) -> Case:
    """BN -> ReLU -> `move` -> linear layer."""
    channels, size = options.pop("channels", 6), options.pop("size", (6, 8))

    def build() -> nn.Module:
        return wired(
            lambda m, x: m.reader(move(F.relu(m.bn(m.conv(x))))),
            conv=conv(3, channels, padding=1),
            bn=norm(channels),
            reader=reader(),
        )

    def build_absorbing() -> nn.Module:
        return wired(lambda m, x: m.reader(move(m.bn(x).relu())), bn=norm(channels), reader=reader())

    absorbing = options.pop("absorbing", True)
    return Case(
        f"bn-relu-{name}",
        build_absorbing if absorbing else build,
        image(channels if absorbing else 3, *size),
        themes=("movement", *themes),
        **options,
    )


def _conv(channels: int = 6, **options: Any) -> Callable[[], nn.Module]:
    return lambda: conv(channels, 4, 2, **options)


def _linear(features: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(features, 4)


CASES: list[Case] = [
    _on_the_way("flatten-linear", lambda x: torch.flatten(x, 1), _linear(288)),
    _on_the_way("flatten-start-dim-2-linear", lambda x: x.flatten(2), _linear(48)),
    _on_the_way("view-linear", lambda x: x.view(x.size(0), -1), _linear(288)),
    _on_the_way("view-shape-linear", lambda x: x.view(x.shape[0], 288), _linear(288)),
    _on_the_way("reshape-linear", lambda x: x.reshape((-1, 6 * 48)), _linear(288)),
    _on_the_way("reshape-tokens-linear", lambda x: x.reshape(x.shape[0], 6, -1).transpose(1, 2), _linear(6)),
    _on_the_way("permute-linear", lambda x: x.permute(0, 2, 3, 1), _linear(6)),
    _on_the_way(
        "permute-contiguous-view-linear", lambda x: x.permute(0, 3, 1, 2).contiguous().view(-1, 288), _linear(288)
    ),
    _on_the_way("transpose-linear", lambda x: x.transpose(1, -1), _linear(6)),
    _on_the_way("moveaxis-linear", lambda x: torch.movedim(x, 1, 3), _linear(6)),
    _on_the_way("mean-linear", lambda x: x.mean((2, 3)), _linear(6)),
    _on_the_way("mean-negative-dims-linear", lambda x: x.mean(dim=[-1, -2]), _linear(6)),
    _on_the_way("mean-keepdim-conv", lambda x: x.mean(dim=(2, 3), keepdim=True), lambda: conv(6, 4, 1)),
    _on_the_way("mean-over-channels-linear", lambda x: x.mean(1), _linear(8), "over channels"),
    _on_the_way("mean-of-one-dim-linear", lambda x: torch.mean(x, 3).flatten(1), _linear(36)),
    _on_the_way("sum-linear", lambda x: x.sum((2, 3)), _linear(6)),
    _on_the_way("sum-over-channels-linear", lambda x: x.sum(dim=1).flatten(1), _linear(48), "over channels"),
    _on_the_way("amax-linear", lambda x: x.amax((2, 3)), _linear(6), "max pooling"),
    _on_the_way(
        "amax-positive-linear", lambda x: x.amax((2, 3)), _linear(6), "max pooling", hardening={"positive": True}
    ),
    _on_the_way("chunk-two-linears", lambda x: x.mean((2, 3)).chunk(2, 1)[1], _linear(3), "slice"),
    _on_the_way("split-conv", lambda x: x.split([2, 4], dim=1)[1], _conv(4), "slice"),
    _on_the_way("slice-channels-conv", lambda x: x[:, 1:5], _conv(4), "slice"),
    _on_the_way("slice-step-channels-conv", lambda x: x[:, ::2], _conv(3), "slice", draw=1),
    _on_the_way("slice-positions-conv", lambda x: x[:, :, 1:, :-2], _conv(), "slice"),
    _on_the_way("slice-one-position-linear", lambda x: x[:, :, 0, -1], _linear(6), "slice"),
    _on_the_way("narrow-conv", lambda x: x.narrow(1, 2, 3), _conv(3), "slice"),
    _on_the_way("select-channel-linear", lambda x: x[:, 3].flatten(1), _linear(48), "slice", draw=2),
    _on_the_way("unbind-linear", lambda x: torch.unbind(x, 1)[2], _linear(8), "slice"),
    _on_the_way("squeeze-unsqueeze-conv", lambda x: x.unsqueeze(2).squeeze(2), _conv()),
    _on_the_way("flip-conv", lambda x: x.flip(3), _conv()),
    _on_the_way("roll-conv", lambda x: torch.roll(x, 1, 2), _conv()),
    _on_the_way("expand-linear", lambda x: x[:, :, :1, :1].expand(-1, -1, 2, 3).flatten(1), _linear(36)),
    _on_the_way("repeat-channels-conv", lambda x: x.repeat(1, 2, 1, 1), _conv(12)),
    _on_the_way("channel-shuffle-conv", lambda x: F.channel_shuffle(x, 3), _conv()),
    _on_the_way(
        "channel-shuffle-by-hand-conv",
        lambda x: x.view(x.shape[0], 2, 3, x.shape[2], x.shape[3]).transpose(1, 2).reshape(x.shape[0], 6, *x.shape[2:]),
        lambda: conv(6, 6, 3, groups=3, padding=1),
    ),
    _on_the_way("pixel-shuffle-conv", lambda x: F.pixel_shuffle(x, 2), _conv(2), channels=8),
    _on_the_way("pixel-unshuffle-conv", lambda x: F.pixel_unshuffle(x, 2), _conv(24)),
    _on_the_way("average-pool-conv", lambda x: F.avg_pool2d(x, 2), _conv(), "pooling"),
    _on_the_way("average-pool-padded-conv", lambda x: F.avg_pool2d(x, 3, 2, 1), _conv(), "pooling", "padding"),
    _on_the_way(
        "average-pool-padding-not-counted-conv",
        lambda x: F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False),
        _conv(),
        "pooling",
        "padding",
    ),
    _on_the_way("average-pool-ceil-conv", lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), _conv(), "pooling"),
    _on_the_way(
        "average-pool-padded-ceil-conv",
        lambda x: F.avg_pool2d(x, 3, 2, 1, True),
        _conv(),
        "pooling",
        "padding",
        size=(6, 7),
    ),
    _on_the_way("average-pool-divisor-conv", lambda x: F.avg_pool2d(x, 2, divisor_override=3), _conv(), "pooling"),
    _on_the_way(
        "adaptive-average-pool-linear", lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), _linear(6), "pooling"
    ),
    _on_the_way(
        "adaptive-average-pool-uneven-linear",
        lambda x: F.adaptive_avg_pool2d(x, (4, 3)).flatten(1),
        _linear(72),
        "pooling",
    ),
    _on_the_way(
        "adaptive-max-pool-linear", lambda x: F.adaptive_max_pool2d(x, (2, 3)).flatten(1), _linear(36), "max pooling"
    ),
    _on_the_way("max-pool-conv", lambda x: F.max_pool2d(x, 2), _conv(), "max pooling"),
    _on_the_way(
        "max-pool-positive-conv", lambda x: F.max_pool2d(x, 2), _conv(), "max pooling", hardening={"positive": True}
    ),
    _on_the_way("max-pool-padded-conv", lambda x: F.max_pool2d(x, 3, 2, 1), _conv(), "max pooling", "padding"),
    _on_the_way(
        "max-pool-padded-positive-conv",
        lambda x: F.max_pool2d(x, 3, 2, 1),
        _conv(),
        "max pooling",
        "padding",
        hardening={"positive": True},
    ),
    _on_the_way(
        "max-pool-linear-behind-conv",
        lambda x: F.max_pool2d(x, 2).flatten(1),
        _linear(72),
        "max pooling",
        absorbing=False,
    ),
    _on_the_way("lp-pool-linear", lambda x: F.lp_pool2d(x, 2.0, 2).flatten(1), _linear(72), "pooling"),
    _on_the_way("pad-zero-conv", lambda x: F.pad(x, (1, 0, 2, 1)), _conv(), "padding"),
    _on_the_way("pad-constant-conv", lambda x: F.pad(x, (1, 1, 1, 1), value=0.7), _conv(), "padding"),
    _on_the_way("pad-reflect-conv", lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"), _conv(), "padding"),
    _on_the_way("pad-replicate-conv", lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"), _conv(), "padding"),
    _on_the_way("pad-circular-conv", lambda x: F.pad(x, (1, 2, 2, 1), mode="circular"), _conv(), "padding"),
    _on_the_way("pad-crop-conv", lambda x: F.pad(x, (-1, -1, 0, 2)), _conv(), "padding"),
    _on_the_way("pad-channels-conv", lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), _conv(8), "padding", "over channels"),
    _on_the_way("upsample-nearest-conv", lambda x: F.interpolate(x, scale_factor=2), _conv(padding=1), "resampling"),
    _on_the_way(
        "upsample-bilinear-conv", lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), _conv(), "resampling"
    ),
    _on_the_way(
        "upsample-bicubic-conv",
        lambda x: F.interpolate(x, size=(9, 7), mode="bicubic", align_corners=True),
        _conv(),
        "resampling",
    ),
    _on_the_way("downsample-area-conv", lambda x: F.interpolate(x, size=(3, 4), mode="area"), _conv(), "resampling"),
    _on_the_way("unfold-linear", lambda x: F.unfold(x, 2, stride=2).transpose(1, 2), _linear(24)),
    _on_the_way("unfold-padded-linear", lambda x: F.unfold(x, 2, padding=1).mean(2), _linear(24), "padding"),
    _on_the_way("dropout-conv", lambda x: F.dropout(x, 0.5, training=False), _conv(), "dropout"),
    _on_the_way("clone-detach-free-conv", lambda x: x.clone().contiguous(), _conv(), "identity"),
    _on_the_way("scaled-conv", lambda x: 0.5 * x - 1.0, _conv(), "arithmetic"),
    _on_the_way("negated-conv", lambda x: -x, _conv(padding=1), "arithmetic"),
    _on_the_way("divided-linear", lambda x: (x / 4).mean((2, 3)), _linear(6), "arithmetic"),
    _on_the_way("clamped-conv", lambda x: x.clamp(max=1.5), _conv(padding=1), "activation"),
    _on_the_way("mean-unbiased-std-linear", lambda x: x.flatten(2).std(2), _linear(6), "nonlinear"),
    _on_the_way("softmax-linear", lambda x: x.softmax(1).mean((2, 3)), _linear(6), "nonlinear"),
    _on_the_way("einsum-linear", lambda x: torch.einsum("nchw->nhwc", x), _linear(6)),
    _on_the_way("normalised-linear", lambda x: F.normalize(x.mean((2, 3)) + 0.1, dim=1), _linear(6), "nonlinear"),
]


def _pooled(name: str, *layers: Callable[[], nn.Module], size: tuple[int, ...] = (6, 8), **options: Any) -> Case:
    return Case(
        name, lambda: Sequential(*(layer() for layer in layers)), image(6, *size), themes=("movement",), **options
    )


CASES += [
    _pooled("bn-flatten-linear", lambda: norm(6), nn.Flatten, lambda: nn.Linear(288, 3)),
    _pooled(
        "bn-avgpool-flatten-linear",
        lambda: norm(6),
        lambda: nn.AvgPool2d(2, padding=1),
        nn.Flatten,
        lambda: nn.Linear(120, 3),
    ),
    _pooled("bn-max-pool-conv", lambda: norm(6), lambda: nn.MaxPool2d(2), lambda: conv(6, 4, padding=1)),
    _pooled(
        "bn-max-pool-relu-linear",
        lambda: norm(6),
        lambda: nn.MaxPool2d(3),
        nn.ReLU,
        nn.Flatten,
        lambda: nn.Linear(24, 3),
    ),
    _pooled(
        "bn-relu-adaptive-1d-linear",
        lambda: norm(6, 1),
        nn.ReLU,
        lambda: nn.AdaptiveAvgPool1d(2),
        nn.Flatten,
        lambda: nn.Linear(12, 3),
        size=(9,),
    ),
    _pooled(
        "bn-relu-avgpool-3d-conv",
        lambda: norm(6, 3),
        nn.ReLU,
        lambda: nn.AvgPool3d(2, padding=1),
        lambda: conv(6, 3, 2, 3),
        size=(4, 5, 3),
    ),
    _pooled("bn-relu-reflection-pad-conv", lambda: norm(6), nn.ReLU, lambda: nn.ReflectionPad2d(2), lambda: conv(6, 3)),
    _pooled("bn-constant-pad-conv", lambda: norm(6), lambda: nn.ConstantPad2d((1, 2, 0, 1), -0.3), lambda: conv(6, 3)),
    _pooled(
        "bn-upsample-conv",
        lambda: norm(6),
        lambda: nn.Upsample(scale_factor=2, mode="nearest"),
        lambda: conv(6, 3, padding=1),
    ),
    _pooled(
        "bn-upsample-bilinear-conv",
        lambda: norm(6),
        lambda: nn.UpsamplingBilinear2d(scale_factor=2),
        lambda: conv(6, 3, padding=1),
    ),
    _pooled(
        "bn-relu-pixel-unshuffle-module-conv",
        lambda: norm(6),
        nn.ReLU,
        lambda: nn.PixelUnshuffle(2),
        lambda: conv(24, 3, padding=1),
    ),
    _pooled(
        "bn-relu-dropout2d-conv", lambda: norm(6), nn.ReLU, lambda: nn.Dropout2d(0.3), lambda: conv(6, 3, padding=1)
    ),
    _pooled(
        "bn-relu-global-norm-linear",
        lambda: norm(6),
        nn.ReLU,
        lambda: nn.GroupNorm(2, 6),
        lambda: conv(6, 3, padding=1),
    ),
    _pooled("layer-norm-conv", lambda: nn.LayerNorm((6, 6, 8)), lambda: conv(6, 3), lambda: norm(3)),
    _pooled(
        "group-norm-linear",
        lambda: conv(6, 6),
        lambda: norm(6),
        lambda: nn.GroupNorm(3, 6),
        nn.ReLU,
        nn.Flatten,
        lambda: nn.Linear(144, 3),
    ),
    Case(
        "bn-max-pool-with-indices-unpool-conv",
        lambda: wired(
            _unpool, bn=norm(6), pool=nn.MaxPool2d(2, return_indices=True), up=nn.MaxUnpool2d(2), conv=conv(6, 3)
        ),
        image(6, 6, 8),
        themes=("movement", "max pooling"),
        hardening={"zero": False, "tiny": False},
    ),
    Case(
        "bn-chunk-gated-conv",
        lambda: wired(_gated_halves, bn=norm(6), conv=conv(3, 4)),
        image(6),
        themes=("movement", "slice", "gate"),
    ),
    Case(
        "bn-split-each-half-its-own-conv",
        lambda: wired(_two_halves, bn=norm(6), left=conv(2, 3, padding=1), right=conv(4, 3, padding=1)),
        image(6),
        themes=("movement", "slice"),
    ),
    Case(
        "bn-linear-matmul-parameter",
        lambda: wired(
            lambda m, x: m.bn(x).relu() @ m.weight.t() + m.bias,
            bn=norm(6, 1),
            weight=_parameter(4, 6),
            bias=_parameter(4),
        ),
        vector(6),
        themes=("movement", "functional"),
    ),
    Case(
        "attention-behind-bn",
        lambda: wired(_attention, bn=norm(6, 1), q=nn.Linear(6, 4), k=nn.Linear(6, 4), v=nn.Linear(6, 6)),
        image(6, 5),
        themes=("movement", "nonlinear"),
    ),
]


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def _unpool(m: Any, x: Tensor) -> Tensor:
    pooled, indices = m.pool(m.bn(x).relu())
    out: Tensor = m.conv(m.up(pooled, indices))
    return out


def _gated_halves(m: Any, x: Tensor) -> Tensor:
    value, gate = m.bn(x).chunk(2, dim=1)
    out: Tensor = m.conv(value * gate.sigmoid())
    return out


def _two_halves(m: Any, x: Tensor) -> Tensor:
    left, right = torch.split(F.relu(m.bn(x)), [2, 4], dim=1)
    out: Tensor = m.left(left) + m.right(right)
    return out


def _attention(m: Any, x: Tensor) -> Tensor:
    tokens = m.bn(x).transpose(1, 2)
    weights = (m.q(tokens) @ m.k(tokens).transpose(-1, -2) / 2.0).softmax(-1)
    out: Tensor = weights @ m.v(tokens)
    return out
