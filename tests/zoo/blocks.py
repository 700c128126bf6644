"""Blocks of published architectures, small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.case import Case, conv, image, norm, vector, wired

Sequential = nn.Sequential


class RepVGGBlock(nn.Module):
    """3x3 + BN, 1x1 + BN and, where shapes allow, BN alone, summed (Ding et al. 2021)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.dense = Sequential(
            conv(inputs, outputs, stride=stride, padding=1, groups=groups, bias=False), norm(outputs)
        )
        self.pointwise = Sequential(conv(inputs, outputs, 1, stride=stride, groups=groups, bias=False), norm(outputs))
        self.identity = norm(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        kept = 0 if self.identity is None else self.identity(x)
        return F.relu(self.dense(x) + self.pointwise(x) + kept)


class SqueezeExcitation(nn.Module):
    """A gate per channel, from the channel's mean (Hu et al. 2018)."""

    def __init__(self, channels: int, with_norm: bool = False) -> None:
        super().__init__()
        self.squeeze = conv(channels, 4, 1)
        self.norm = norm(4) if with_norm else nn.Identity()
        self.excite = conv(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(self.norm(self.squeeze(F.adaptive_avg_pool2d(x, 1))).relu())
        return x * torch.sigmoid(gate)


class InvertedResidual(nn.Module):
    """MobileNet's block, with a gate where asked for (Sandler et al. 2018, Howard et al. 2019)."""

    def __init__(self, channels: int, gate: bool, activation: type[nn.Module]) -> None:
        super().__init__()
        self.expand = Sequential(conv(channels, 8, 1, bias=False), norm(8), activation())
        self.depthwise = Sequential(conv(8, 8, padding=1, groups=8, bias=False), norm(8), activation())
        self.gate = SqueezeExcitation(8) if gate else nn.Identity()
        self.project = Sequential(conv(8, channels, 1, bias=False), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.project(self.gate(self.depthwise(self.expand(x))))
        return out


class MobileOneBlock(nn.Module):
    """Several 3x3 + BN branches in parallel, a scale branch and a skip branch (Vasu et al. 2023)."""

    def __init__(self, channels: int, branches: int = 3, **options: Any) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            Sequential(conv(channels, channels, padding=1, bias=False, **options), norm(channels))
            for _ in range(branches)
        )
        self.scale = Sequential(conv(channels, channels, 1, bias=False, **options), norm(channels))
        self.skip = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.skip(x) + self.scale(x)
        for branch in self.branches:
            out += branch(x)
        return F.relu(out)


class ShuffleUnit(nn.Module):
    """ShuffleNet V2's unit: split, one half through convolutions, concatenate, shuffle (Ma et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = Sequential(
            conv(half, half, 1, bias=False), norm(half), nn.ReLU(inplace=True),
            conv(half, half, padding=1, groups=half, bias=False), norm(half),
            conv(half, half, 1, bias=False), norm(half), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        out = torch.cat((left, self.branch(right)), dim=1)
        batch, channels, height, width = out.size()
        out = out.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return out.view(batch, channels, height, width)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm on the last axis, two linear layers, LayerScale (Liu et al. 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = conv(channels, channels, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.up, self.down = nn.Linear(channels, 12), nn.Linear(12, channels)
        self.gamma = nn.Parameter(torch.linspace(-1.0, 1.0, channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class StochasticDepthBlock(nn.Module):
    """A residual branch that is sometimes dropped in training (Huang et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = Sequential(conv(channels, channels, padding=1, bias=False), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.training:
            y = y * torch.bernoulli(torch.full((x.shape[0], 1, 1, 1), 0.8)).to(y) / 0.8
        return F.relu(x + y)


def _attention_gate(m: Any, x: Tensor) -> Any:
    # Attention U-Net: a map of one channel gates every channel.
    gate = torch.sigmoid(m.psi_bn(m.psi(F.relu(m.bn1(m.a(x)) + m.bn2(m.b(x))))))
    return x * gate


def _spatial_attention(m: Any, x: Tensor) -> Any:
    # CBAM: mean and maximum over channels.
    y = m.bn1(m.a(x))
    summary = torch.cat([y.mean(1, keepdim=True), y.max(1, keepdim=True)[0]], dim=1)
    return y * m.bn2(m.conv(summary)).sigmoid()


def _bilinear(m: Any, x: Tensor) -> Any:
    left, right = m.bn1(m.a(x)).flatten(2), m.bn2(m.b(x)).flatten(2)
    return torch.bmm(left, right.transpose(1, 2)).flatten(1)


def _highway(m: Any, x: Tensor) -> Any:
    gate = m.gate_bn(m.gate(x)).sigmoid()
    return gate * m.bn(m.value(x)).relu() + (1 - gate) * x


def _pointnet(m: Any, points: Tensor) -> Any:
    y = F.relu(m.bn1(m.a(points)))
    y = m.bn2(m.b(y))
    return m.fc(torch.max(y, 2, keepdim=True)[0].view(-1, 8))


def _parallel_convs(m: Any, x: Tensor) -> Any:
    return m.a(x) + m.b(x) - m.c(x)


def _case(name: str, build: Any, channels: int, *themes: str, **options: Any) -> Case:
    return Case(name, build, image(channels), themes=("block", *themes), **options)


CASES: list[Case] = [
    _case(
        "repvgg", lambda: Sequential(RepVGGBlock(3, 6, stride=2), RepVGGBlock(6, 6), RepVGGBlock(6, 6)), 3, "parallel"
    ),
    _case("repvgg-grouped", lambda: RepVGGBlock(6, 6, groups=2), 6, "parallel"),
    _case("mobileone", lambda: MobileOneBlock(6), 6, "parallel", "in place"),
    _case("mobileone-depthwise", lambda: MobileOneBlock(6, 2, groups=6), 6, "parallel"),
    _case(
        "parallel-convs",
        lambda: wired(_parallel_convs, a=conv(3, 4, padding=1), b=conv(3, 4, 1), c=conv(3, 4, 5, padding=2)),
        3,
        "parallel",
    ),
    _case(
        "squeeze-excitation",
        lambda: Sequential(conv(3, 6), norm(6), nn.ReLU(), SqueezeExcitation(6), conv(6, 2)),
        3,
        "gate",
    ),
    _case(
        "squeeze-excitation-with-norm",
        lambda: Sequential(norm(6), SqueezeExcitation(6, True), norm(6), conv(6, 2)),
        6,
        "gate",
    ),
    _case(
        "inverted-residual",
        lambda: Sequential(InvertedResidual(4, False, nn.ReLU6), InvertedResidual(4, False, nn.ReLU6)),
        4,
        "residual",
    ),
    _case("inverted-residual-gated", lambda: InvertedResidual(4, True, nn.Hardswish), 4, "residual", "gate"),
    _case(
        "mbconv",
        lambda: Sequential(InvertedResidual(4, True, nn.SiLU), norm(4), nn.SiLU(), conv(4, 2, 1)),
        4,
        "residual",
        "gate",
    ),
    _case(
        "shuffle-unit", lambda: Sequential(ShuffleUnit(8), ShuffleUnit(8), norm(8), nn.ReLU(), conv(8, 2)), 8, "slice"
    ),
    _case("convnext", lambda: Sequential(ConvNeXtBlock(6), conv(6, 6, 2), norm(6), ConvNeXtBlock(6)), 6, "layer scale"),
    _case("stochastic-depth", lambda: Sequential(StochasticDepthBlock(6), StochasticDepthBlock(6)), 6, "dropout"),
    _case(
        "stochastic-depth-in-training",
        lambda: Sequential(StochasticDepthBlock(6), StochasticDepthBlock(6)),
        6,
        "dropout",
        "training",
        training=True,
    ),
    _case(
        "attention-gate",
        lambda: wired(
            _attention_gate,
            a=conv(6, 4, 1),
            bn1=norm(4),
            b=conv(6, 4, 1),
            bn2=norm(4),
            psi=conv(4, 1, 1),
            psi_bn=norm(1),
        ),
        6,
        "gate",
        hardening={"tiny": False},
    ),
    _case(
        "spatial-attention",
        lambda: wired(_spatial_attention, a=conv(3, 6), bn1=norm(6), conv=conv(2, 1, padding=1), bn2=norm(1)),
        3,
        "gate",
        "over channels",
    ),
    _case(
        "bilinear-pooling",
        lambda: wired(_bilinear, a=conv(3, 4), bn1=norm(4), b=conv(3, 5), bn2=norm(5)),
        3,
        "nonlinear",
    ),
    _case(
        "highway",
        lambda: wired(_highway, gate=conv(6, 6, padding=1), gate_bn=norm(6), value=conv(6, 6, padding=1), bn=norm(6)),
        6,
        "gate",
    ),
    Case(
        "pointnet",
        lambda: wired(
            _pointnet, a=conv(3, 6, 1, 1), bn1=norm(6, 1), b=conv(6, 8, 1, 1), bn2=norm(8, 1), fc=nn.Linear(8, 3)
        ),
        image(3, 9),
        themes=("block", "1d", "max pooling"),
    ),
    Case(
        "mlp-mixer-with-bn",
        lambda: wired(lambda m, x: x + m.b(F.gelu(m.bn(m.a(x)))), a=nn.Linear(7, 8), bn=norm(5, 1), b=nn.Linear(8, 7)),
        image(5, 7),
        themes=("block", "axis", "linear"),
    ),
    Case(
        "tabular",
        lambda: Sequential(
            norm(5, 1),
            nn.Linear(5, 8),
            nn.ReLU(),
            norm(8, 1),
            nn.Dropout(0.2),
            nn.Linear(8, 8),
            nn.ReLU(),
            norm(8, 1),
            nn.Linear(8, 1),
        ),
        vector(5),
        themes=("block", "input", "linear"),
    ),
    _case(
        "dcgan-generator",
        lambda: Sequential(
            conv(4, 8, 4, transposed=True, bias=False),
            norm(8),
            nn.ReLU(True),
            conv(8, 6, 4, transposed=True, stride=2, padding=1, bias=False),
            norm(6),
            nn.ReLU(True),
            conv(6, 3, 3, transposed=True),
            nn.Tanh(),
        ),
        4,
        "transposed",
    ),
    _case(
        "dcgan-discriminator",
        lambda: Sequential(
            conv(3, 6, 3, bias=False),
            nn.LeakyReLU(0.2, True),
            conv(6, 6, 2, padding=1, bias=False),
            norm(6),
            nn.LeakyReLU(0.2, True),
            conv(6, 1, 2),
            nn.Sigmoid(),
        ),
        3,
        "activation",
    ),
    _case(
        "vgg",
        lambda: Sequential(
            conv(3, 6, padding=1),
            norm(6),
            nn.ReLU(True),
            nn.MaxPool2d(2),
            conv(6, 8, padding=1),
            norm(8),
            nn.ReLU(True),
            nn.AdaptiveAvgPool2d((2, 3)),
            nn.Flatten(),
            nn.Linear(48, 6),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(6, 3),
        ),
        3,
    ),
]
