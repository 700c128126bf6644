"""Batch norm under other names: functions, frozen kinds, subclasses, affines by hand, and those without statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from canonize.compat import import_torchvision
from tests.zoo.case import Case, conv, image, norm, vector, wired

Sequential = nn.Sequential


def _frozen(channels: int, eps: float = 2e-3) -> nn.Module:
    layer: nn.Module = import_torchvision("torchvision.ops").misc.FrozenBatchNorm2d(channels, eps=eps)
    return layer


class BatchNormAct(nn.BatchNorm2d):
    """Batch norm and activation in one, as timm has it: the forward calls ``F.batch_norm``."""

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(channels, **options)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        use_input = self.training or (self.running_mean is None and self.running_var is None)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, use_input, self.momentum or 0.0, self.eps
        )
        out: Tensor = self.act(self.drop(x))
        return out


class RenamedBatchNorm(nn.BatchNorm2d):
    """A subclass that adds nothing."""


class ShiftedBatchNorm(nn.BatchNorm2d):
    """A subclass whose forward does more than batch norm: folding by type alone loses the sum."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1.5


class RenamedConv(nn.Conv2d):
    """A subclass that adds nothing."""


class SamePaddedConv(nn.Conv2d):
    """TensorFlow's SAME padding, from the shape of the input."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down = max((-(height // -self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - height, 0)
        across = max((-(width // -self.stride[1]) - 1) * self.stride[1] + self.kernel_size[1] - width, 0)
        x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SquaredWeightConv(nn.Conv2d):
    """A subclass whose forward uses its weight differently: folding into ``weight`` is wrong."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight**2, self.bias, self.stride, self.padding)


class ScaledLinear(nn.Linear):
    """A subclass that scales its output (equalised learning rate)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


class Affine(nn.Module):
    """Scale and shift per channel by hand."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(-1.0, 1.5, shape[0]).view(shape))
        self.beta = nn.Parameter(torch.linspace(0.8, -0.4, shape[0]).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma + self.beta


def _standardise(m: Any, x: Tensor) -> Any:
    return m.conv((x - m.mean) / m.std)


def _standardise_in_255(m: Any, x: Tensor) -> Any:
    return F.relu(m.bn(m.conv(x.div(255.0).sub(m.mean).div(m.std))))


def _functional(m: Any, x: Tensor) -> Any:
    bn = m.bn
    x = F.batch_norm(m.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, training=False, eps=0.01)
    return F.relu(x)


def _functional_without_affine(m: Any, x: Tensor) -> Any:
    return m.conv(F.relu(F.batch_norm(x, m.mean, m.var, eps=0.1)))


def _torch_batch_norm(m: Any, x: Tensor) -> Any:
    bn = m.bn
    return torch.batch_norm(
        m.conv(x), bn.weight, bn.bias, bn.running_mean, bn.running_var, False, 0.1, 2e-3, False
    ).relu()


def _by_hand(m: Any, x: Tensor) -> Any:
    bn = m.bn
    scale = (bn.weight * (bn.running_var + bn.eps).rsqrt()).reshape(1, -1, 1, 1)
    shift = bn.bias.reshape(1, -1, 1, 1) - bn.running_mean.reshape(1, -1, 1, 1) * scale
    return F.relu(m.conv(x) * scale + shift)


def _batch_statistics(m: Any, x: Tensor) -> Any:
    return F.relu(m.conv2(F.batch_norm(m.conv(x), None, None, m.bn.weight, m.bn.bias, training=True)))


def _case(name: str, build: Any, channels: int, *themes: str, **options: Any) -> Case:
    return Case(name, build, image(channels), themes=("variant", *themes), **options)


NO_STATISTICS = "normalises by the input's own statistics: no fixed affine"

CASES: list[Case] = [
    _case("functional-batch-norm", lambda: wired(_functional, conv=conv(3, 6), bn=norm(6)), 3, "functional"),
    _case(
        "functional-batch-norm-in-training",
        lambda: wired(_functional, conv=conv(3, 6), bn=norm(6)),
        3,
        "functional",
        "training",
        training=True,
    ),
    _case(
        "functional-batch-norm-without-affine",
        lambda: wired(
            _functional_without_affine,
            mean=torch.linspace(-1, 1, 6),
            var=torch.linspace(0, 2, 6),
            conv=conv(6, 4, padding=1),
        ),
        6,
        "functional",
    ),
    _case("torch-batch-norm", lambda: wired(_torch_batch_norm, conv=conv(3, 6), bn=norm(6)), 3, "functional"),
    _case("batch-norm-by-hand", lambda: wired(_by_hand, conv=conv(3, 6), bn=norm(6)), 3, "functional", "arithmetic"),
    _case(
        "sync-batch-norm",
        lambda: Sequential(
            conv(3, 6), nn.SyncBatchNorm(6, eps=1e-3), nn.ReLU(), nn.SyncBatchNorm(6, eps=0.1), conv(6, 2, padding=1)
        ),
        3,
    ),
    _case(
        "sync-batch-norm-converted",
        lambda: nn.SyncBatchNorm.convert_sync_batchnorm(Sequential(conv(3, 6), norm(6), nn.ReLU())),
        3,
    ),
    _case(
        "frozen-batch-norm", lambda: Sequential(conv(3, 6), _frozen(6), nn.ReLU(), _frozen(6), conv(6, 4, padding=1)), 3
    ),
    _case("frozen-batch-norm-at-the-output", lambda: Sequential(conv(3, 6), nn.ReLU(), _frozen(6)), 3, "output"),
    _case(
        "batch-norm-act",
        lambda: Sequential(BatchNormAct(6, eps=1e-3), conv(6, 6, padding=1), BatchNormAct(6), conv(6, 2)),
        6,
        "functional",
    ),
    _case(
        "batch-norm-act-in-training",
        lambda: Sequential(conv(6, 6), BatchNormAct(6), conv(6, 2)),
        6,
        "functional",
        "training",
        training=True,
    ),
    _case(
        "renamed-batch-norm-and-conv",
        lambda: Sequential(
            RenamedConv(3, 6, 3), RenamedBatchNorm(6), nn.ReLU(), RenamedBatchNorm(6), RenamedConv(6, 2, 3, padding=1)
        ),
        3,
        "subclass",
    ),
    _case(
        "batch-norm-whose-forward-adds",
        lambda: Sequential(conv(3, 6), ShiftedBatchNorm(6), nn.ReLU(), ShiftedBatchNorm(6), conv(6, 2, padding=1)),
        3,
        "subclass",
    ),
    _case(
        "conv-with-same-padding-of-its-own",
        lambda: Sequential(norm(6), nn.ReLU(), SamePaddedConv(6, 6, 3, stride=2), norm(6), nn.ReLU()),
        6,
        "subclass",
        "padding",
        "shape",
        draw=1,
    ),
    _case(
        "conv-whose-forward-squares-its-weight",
        lambda: Sequential(norm(3), SquaredWeightConv(3, 6, 3, padding=1), norm(6), nn.ReLU()),
        3,
        "subclass",
    ),
    Case(
        "linear-whose-forward-scales",
        lambda: Sequential(norm(4, 1), ScaledLinear(4, 6), norm(6, 1), nn.ReLU()),
        vector(4),
        themes=("variant", "subclass", "linear"),
    ),
    _case(
        "lazy-layers",
        lambda: _initialised(
            Sequential(nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(eps=1e-2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)), 3
        ),
        3,
    ),
    _case(
        "affine-by-hand",
        lambda: Sequential(conv(3, 6), Affine(6, 1, 1), nn.ReLU(), Affine(6, 1, 1), conv(6, 2, padding=1)),
        3,
        "arithmetic",
    ),
    Case(
        "affine-by-hand-on-vectors",
        lambda: Sequential(Affine(4), nn.Linear(4, 6), Affine(6), nn.ReLU(), Affine(6)),
        vector(4),
        themes=("variant", "arithmetic", "linear"),
    ),
    _case(
        "layer-scale-behind-norm",
        lambda: wired(
            lambda m, x: x + m.scale(m.bn(m.conv(x))), conv=conv(6, 6, padding=1), bn=norm(6), scale=Affine(6, 1, 1)
        ),
        6,
        "arithmetic",
        "residual",
    ),
    _case(
        "input-standardised",
        lambda: wired(
            _standardise, mean=torch.rand(1, 3, 1, 1), std=0.1 + torch.rand(1, 3, 1, 1), conv=conv(3, 6, padding=1)
        ),
        3,
        "arithmetic",
        "input",
    ),
    _case(
        "input-standardised-from-255",
        lambda: wired(
            _standardise_in_255,
            mean=torch.rand(3, 1, 1),
            std=0.1 + torch.rand(3, 1, 1),
            conv=conv(3, 6, padding=1, padding_mode="reflect"),
            bn=norm(6),
        ),
        3,
        "arithmetic",
        "input",
    ),
    _case(
        "frozen-instance-norm",
        lambda: Sequential(
            conv(3, 6), nn.InstanceNorm2d(6, affine=True, track_running_stats=True), nn.ReLU(), conv(6, 2)
        ),
        3,
        "instance norm",
    ),
    _case(
        "instance-norm",
        lambda: Sequential(norm(3), conv(3, 6), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), conv(6, 2), norm(2)),
        3,
        "instance norm",
    ),
    _case(
        "no-running-statistics",
        lambda: Sequential(conv(3, 6), norm(6, track_running_stats=False), nn.ReLU(), conv(6, 2), norm(2), nn.ReLU()),
        3,
        "statistics",
        batch_norms=1,
        why=NO_STATISTICS,
    ),
    _case(
        "no-running-statistics-between-others",
        lambda: Sequential(norm(6), norm(6, track_running_stats=False, affine=False), norm(6), nn.ReLU(), conv(6, 2)),
        6,
        "statistics",
        batch_norms=1,
        why=NO_STATISTICS,
    ),
    _case(
        "functional-batch-statistics",
        lambda: wired(_batch_statistics, conv=conv(3, 6), bn=norm(6), conv2=conv(6, 2)),
        3,
        "statistics",
        "functional",
        batch_norms=1,
        why=NO_STATISTICS,
    ),
    _case(
        "in-training-mode",
        lambda: Sequential(conv(3, 6), norm(6), nn.Dropout2d(0.5), nn.ReLU(), norm(6), conv(6, 2, padding=1)),
        3,
        "training",
        training=True,
    ),
    _case("momentum-none", lambda: Sequential(conv(3, 6), norm(6, momentum=None), nn.ReLU()), 3),
    _case(
        "one-channel-varying-not",
        lambda: Sequential(conv(3, 6), norm(6, eps=1e-5), nn.ReLU(), norm(6, eps=1e-12), conv(6, 2)),
        3,
        "eps",
    ),
]


def _initialised(model: nn.Module, channels: int) -> nn.Module:
    model.eval()(torch.zeros(1, channels, 5, 7))
    return model
