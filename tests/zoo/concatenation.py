"""Concatenations in front of a batch norm or behind one: DenseNet's blocks, Inception's, relations between objects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.case import SIZES, Case, conv, image, norm, wired

Sequential = nn.Sequential


class DenseLayer(nn.Module):
    """BN -> ReLU -> 1x1 -> BN -> ReLU -> 3x3 on everything that came before (Huang et al. 2017)."""

    def __init__(self, channels: int, growth: int, dims: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.relu1 = norm(channels, dims), nn.ReLU(inplace=True)
        self.conv1 = conv(channels, 2 * growth, 1, dims, bias=False)
        self.norm2, self.relu2 = norm(2 * growth, dims), nn.ReLU(inplace=True)
        self.conv2 = conv(2 * growth, growth, 3, dims, padding=1, bias=False)
        self.dropout = dropout

    def forward(self, features: list[Tensor]) -> Tensor:
        bottleneck = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        new = self.conv2(self.relu2(self.norm2(bottleneck)))
        return F.dropout(new, self.dropout, self.training) if self.dropout else new


class DenseNet(nn.Module):
    """Two dense blocks, a transition between, a norm and a linear layer behind."""

    def __init__(self, dims: int = 2, dropout: float = 0.0, keep_lists: bool = True) -> None:
        super().__init__()
        self.stem = conv(3, 6, 3, dims, padding=1, bias=False)
        self.block1 = nn.ModuleList(DenseLayer(6 + 3 * i, 3, dims, dropout) for i in range(2))
        self.transition = Sequential(norm(12, dims), nn.ReLU(), conv(12, 6, 1, dims), _pool(dims))
        self.block2 = nn.ModuleDict({f"layer{i}": DenseLayer(6 + 3 * i, 3, dims, dropout) for i in range(2)})
        self.norm = norm(12, dims)
        self.classifier = nn.Linear(12, 4)
        self.keep_lists = keep_lists

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition(self._dense(self.stem(x), self.block1))
        x = F.relu(self.norm(self._dense(x, self.block2.values())), inplace=True)
        out: Tensor = self.classifier(x.flatten(2).mean(2))
        return out

    def _dense(self, x: Tensor, layers: Any) -> Tensor:
        features = [x]
        for layer in layers:
            if self.keep_lists:
                features.append(layer(features))
            else:
                features = [torch.cat([features[0], layer(features)], dim=1)]
        return torch.cat(features, 1)


def _pool(dims: int) -> nn.Module:
    pool: nn.Module = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims - 1](2)
    return pool


def _inception(m: Any, x: Tensor) -> Any:
    pooled = F.max_pool2d(x, 3, stride=1, padding=1)
    return m.bn(torch.cat((m.a(x).relu(), m.b(x), m.c(pooled)), 1)).relu()


def _inception_norm_inside(m: Any, x: Tensor) -> Any:
    branches = [m.bn1(m.a(x)).relu(), m.bn2(m.b(x)), x]
    return m.conv(torch.concat(branches, dim=-3))


def _raw_and_conv(m: Any, x: Tensor) -> Any:
    return F.relu(m.bn(torch.cat([x, m.a(x)], 1)))


def _raw_and_conv_then_conv(m: Any, x: Tensor) -> Any:
    return m.conv(F.relu(m.bn(torch.cat([x, m.a(x)], 1))))


def _with_itself(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    return F.relu(m.bn(torch.cat([y, y], dim=1)))


def _with_itself_twice_normed(m: Any, x: Tensor) -> Any:
    y = m.bn1(x)
    return m.conv(torch.cat([y, m.bn2(y), y], dim=1))


def _producer_read_elsewhere(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    return m.bn(torch.cat([y, x], 1)).relu().mean(1) + y.mean(1)


def _batch_axis(m: Any, x: Tensor) -> Any:
    # Siamese: both images pass the same layers as one batch.
    both = m.bn(m.a(torch.cat([x, x.flip(3)], dim=0))).relu()
    left, right = both.chunk(2, 0)
    return left - right


def _position_axis(m: Any, x: Tensor) -> Any:
    return m.conv(torch.cat([m.bn1(x), m.bn2(x).relu()], dim=3))


def _stack_then_sum(m: Any, x: Tensor) -> Any:
    return m.conv(torch.stack([m.bn1(x), m.bn2(x.tanh())]).sum(0))


def _stack_then_linear(m: Any, x: Tensor) -> Any:
    return m.fc(torch.stack([m.bn1(x).mean((2, 3)), m.bn2(x).relu().mean((2, 3))], dim=1).flatten(1))


def _grouped_reader(m: Any, x: Tensor) -> Any:
    return m.conv(torch.cat([m.bn1(x), x], 1))


def _nested(m: Any, x: Tensor) -> Any:
    inner = torch.cat([x, m.a(x)], 1)
    return m.conv(m.bn(torch.cat([inner, m.b(inner)], 1)).relu())


def _unet(m: Any, x: Tensor) -> Any:
    down = m.bn1(m.a(x)).relu()
    deep = m.bn2(m.b(F.max_pool2d(down, 2))).relu()
    up = F.interpolate(deep, scale_factor=2.0, mode="nearest")
    return m.conv(m.bn3(torch.cat([down, up], 1)).relu())


def _unet_padded(m: Any, x: Tensor) -> Any:
    down = m.bn1(m.a(x)).relu()
    up = m.up(m.bn2(m.b(F.max_pool2d(down, 2))).relu())
    grown = F.pad(up, (0, down.shape[3] - up.shape[3], 0, down.shape[2] - up.shape[2]))
    return m.conv(torch.cat([m.bn3(down), grown], 1))


def _coordinates(m: Any, x: Tensor) -> Any:
    # CoordConv: positions are constants beside the image code.
    grid = m.grid.expand(x.shape[0], -1, -1, -1)
    return m.conv(torch.cat([m.bn(m.a(x).relu()), grid], 1))


def _relations(m: Any, image: Tensor, question: Tensor) -> Any:
    code = m.bn(F.relu(m.a(image))).flatten(2).transpose(1, 2)
    count = code.shape[1]
    first = code.unsqueeze(1).expand(-1, count, -1, -1)
    second = code.unsqueeze(2).expand(-1, -1, count, -1)
    asked = question[:, None, None].expand(-1, count, count, -1)
    pairs = torch.cat([first, second, asked], 3)
    return m.f(m.g(pairs).relu().sum((1, 2)))


def _ghost(m: Any, x: Tensor) -> Any:
    primary = m.bn1(m.a(x)).relu()
    return torch.cat([primary, m.bn2(m.cheap(primary)).relu()], dim=1)[:, :10]


def _cross_stage(m: Any, x: Tensor) -> Any:
    left, right = m.bn(m.a(x)).relu().chunk(2, 1)
    return m.conv(torch.cat([left, right + m.bn2(m.b(right)).relu()], 1))


def _case(name: str, build: Any, channels: int, *themes: str, size: tuple[int, ...] = (5, 7), **options: Any) -> Case:
    return Case(name, build, image(channels, *size), themes=("concat", *themes), **options)


CASES: list[Case] = [
    _case("densenet", DenseNet, 3, "densenet", size=(6, 8)),
    _case("densenet-1d", lambda: DenseNet(1), 3, "densenet", size=SIZES[1]),
    _case("densenet-3d", lambda: DenseNet(3), 3, "densenet", size=SIZES[3]),
    _case("densenet-dropout-in-training", lambda: DenseNet(dropout=0.5), 3, "densenet", "training", training=True),
    _case("densenet-growing-tensor", lambda: DenseNet(keep_lists=False), 3, "densenet"),
    _case("densenet-positive", DenseNet, 3, "densenet", hardening={"positive": True, "zero": False, "tiny": False}),
    _case(
        "bn-of-three-branches",
        lambda: wired(_inception, a=conv(3, 4, 1), b=conv(3, 2, padding=1), c=conv(3, 3, 1), bn=norm(9)),
        3,
    ),
    _case(
        "conv-of-three-branches",
        lambda: wired(
            _inception_norm_inside,
            a=conv(3, 4, padding=1),
            bn1=norm(4),
            b=conv(3, 4, 1),
            bn2=norm(4),
            conv=conv(11, 3, padding=1),
        ),
        3,
    ),
    _case("bn-of-raw-and-conv", lambda: wired(_raw_and_conv, a=conv(3, 4, padding=1), bn=norm(7)), 3),
    _case(
        "bn-of-raw-and-conv-then-conv",
        lambda: wired(_raw_and_conv_then_conv, a=conv(3, 4, padding=1), bn=norm(7), conv=conv(7, 3, padding=1)),
        3,
    ),
    _case("bn-of-a-tensor-with-itself", lambda: wired(_with_itself, a=conv(3, 4), bn=norm(8)), 3, "fork"),
    _case(
        "conv-of-a-tensor-with-itself",
        lambda: wired(_with_itself_twice_normed, bn1=norm(4), bn2=norm(4), conv=conv(12, 3, padding=1)),
        4,
        "fork",
    ),
    _case(
        "bn-of-a-producer-read-elsewhere",
        lambda: wired(_producer_read_elsewhere, a=conv(3, 4, padding=1), bn=norm(7)),
        3,
        "fork",
    ),
    _case("concat-on-the-batch-axis", lambda: wired(_batch_axis, a=conv(3, 6), bn=norm(6)), 3, "axis"),
    _case(
        "concat-on-a-position-axis",
        lambda: wired(_position_axis, bn1=norm(6), bn2=norm(6), conv=conv(6, 3, padding=1)),
        6,
        "axis",
    ),
    _case(
        "stack-then-sum",
        lambda: wired(_stack_then_sum, bn1=norm(6), bn2=norm(6), conv=conv(6, 3, padding=1)),
        6,
        "axis",
    ),
    _case(
        "stack-then-linear",
        lambda: wired(_stack_then_linear, bn1=norm(6), bn2=norm(6), fc=nn.Linear(12, 3)),
        6,
        "axis",
        "linear",
    ),
    _case(
        "concat-then-grouped-conv", lambda: wired(_grouped_reader, bn1=norm(4), conv=conv(8, 4, padding=1, groups=4)), 4
    ),
    _case(
        "concat-in-concat",
        lambda: wired(
            _nested, a=conv(3, 3, padding=1), b=conv(6, 4, padding=1), bn=norm(10), conv=conv(10, 2, padding=1)
        ),
        3,
    ),
    _case(
        "u-net",
        lambda: wired(
            _unet,
            a=conv(3, 4, padding=1),
            bn1=norm(4),
            b=conv(4, 6, padding=1),
            bn2=norm(6),
            bn3=norm(10),
            conv=conv(10, 2, padding=1),
        ),
        3,
        size=(4, 6),
        draw=1,
    ),
    _case(
        "u-net-padded-to-fit",
        lambda: wired(
            _unet_padded,
            a=conv(3, 4, padding=1),
            bn1=norm(4),
            b=conv(4, 6, padding=1),
            bn2=norm(6),
            up=conv(6, 6, 2, transposed=True, stride=2),
            bn3=norm(4),
            conv=conv(10, 2, padding=1),
        ),
        3,
        "padding",
    ),
    _case(
        "coordinates-beside-an-image-code",
        lambda: wired(_coordinates, a=conv(3, 6, padding=1), bn=norm(6), grid=_grid(5, 7), conv=conv(8, 3)),
        3,
        "relation",
    ),
    Case(
        "relations-of-image-codes-and-a-question",
        lambda: wired(_relations, a=conv(3, 6, stride=2), bn=norm(6), g=nn.Linear(16, 5), f=nn.Linear(5, 3)),
        lambda batch: (torch.randn(batch, 3, 5, 7), torch.randn(batch, 4)),
        themes=("concat", "relation", "inputs"),
    ),
    _case(
        "ghost-module",
        lambda: wired(_ghost, a=conv(3, 6, 1), bn1=norm(6), cheap=conv(6, 6, padding=1, groups=6), bn2=norm(6)),
        3,
        "fork",
    ),
    _case(
        "cross-stage-partial",
        lambda: wired(_cross_stage, a=conv(3, 8), bn=norm(8), b=conv(4, 4, padding=1), bn2=norm(4), conv=conv(8, 3)),
        3,
        "fork",
        "slice",
    ),
]


def _grid(height: int, width: int) -> Tensor:
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
