"""Every activation between a batch norm and a linear layer: as a module, as a function, as a method, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.case import SIZES, Case, conv, image, norm, vector, wired

MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "hardtanh-uneven": lambda: nn.Hardtanh(-0.3, 1.7),
    "leaky-relu": lambda: nn.LeakyReLU(0.2),
    "leaky-relu-steep": lambda: nn.LeakyReLU(1.5),
    "leaky-relu-falling": lambda: nn.LeakyReLU(-0.5),
    "prelu-shared": lambda: nn.PReLU(init=0.1),
    "prelu-per-channel": lambda: _uneven_prelu(6),
    "rrelu": lambda: nn.RReLU(0.1, 0.3),
    "elu": lambda: nn.ELU(0.7),
    "selu": nn.SELU,
    "celu": lambda: nn.CELU(0.5),
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "log-sigmoid": nn.LogSigmoid,
    "tanh": nn.Tanh,
    "softplus": lambda: nn.Softplus(beta=2.0),
    "softsign": nn.Softsign,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "softshrink": lambda: nn.Softshrink(0.4),
    "hardshrink": lambda: nn.Hardshrink(0.4),
    "tanhshrink": nn.Tanhshrink,
    "threshold": lambda: nn.Threshold(0.2, 0.2),
    "threshold-jump": lambda: nn.Threshold(0.2, -1.0),
    "glu": lambda: nn.GLU(1),
    "softmax": lambda: nn.Softmax(1),
    "softmax2d": nn.Softmax2d,
}

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "f-relu": lambda x: F.relu(x),
    "torch-relu": lambda x: torch.relu(x),
    "method-relu": lambda x: x.relu(),
    "method-relu-inplace": lambda x: x.relu_(),
    "f-relu-inplace": lambda x: F.relu(x, inplace=True),
    "f-relu6": lambda x: F.relu6(x),
    "f-hardtanh": lambda x: F.hardtanh(x, -2.0, 0.5),
    "f-leaky-relu": lambda x: F.leaky_relu(x, negative_slope=0.3),
    "f-elu": lambda x: F.elu(x, 0.5),
    "f-gelu": lambda x: F.gelu(x),
    "f-silu": lambda x: F.silu(x),
    "swish-by-hand": lambda x: x * torch.sigmoid(x),
    "hardswish-by-hand": lambda x: x * F.relu6(x + 3.0) / 6.0,
    "f-softplus": lambda x: F.softplus(x),
    "method-sigmoid": lambda x: x.sigmoid(),
    "method-tanh": lambda x: x.tanh(),
    "method-clamp": lambda x: x.clamp(min=0.0),
    "method-clamp-both": lambda x: x.clamp(-0.5, 1.0),
    "torch-clamp": lambda x: torch.clamp(x, 0.0, 6.0),
    "clamp-min": lambda x: torch.clamp_min(x, 0.25),
    "abs": lambda x: x.abs(),
    "square": lambda x: x**2,
    "exp": lambda x: torch.exp(-x.abs()),
    "maximum-with-zero": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "mask-product": lambda x: x * (x > 0),
}


def _uneven_prelu(channels: int) -> nn.PReLU:
    layer = nn.PReLU(channels)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.5, 1.5, channels))
    return layer


def _between(name: str, activation: Callable[[], nn.Module]) -> Case:
    readers = 3 if name == "glu" else 6
    return Case(
        f"bn-{name}-conv",
        lambda: nn.Sequential(norm(6), activation(), conv(readers, 4, padding=1)),
        image(6),
        themes=("activation",),
    )


def _function_between(name: str, function: Callable[[Any], Any]) -> Case:
    return Case(
        f"bn-{name}-conv",
        lambda: wired(lambda m, x: m.conv(function(m.bn(x))), bn=norm(6), conv=conv(6, 4, padding=1)),
        image(6),
        themes=("activation", "functional"),
    )


CASES: list[Case] = [_between(name, activation) for name, activation in MODULES.items()]
CASES += [_function_between(name, function) for name, function in FUNCTIONS.items()]
CASES += [
    Case(
        f"conv-{name}-bn-conv-{name}",
        lambda activation=MODULES[name]: nn.Sequential(  # type: ignore[misc]
            conv(3, 6), activation(), norm(6), conv(6, 6, padding=1), activation(), norm(6), conv(6, 2)
        ),
        image(3, 6, 8),
        themes=("activation", "absorb"),
    )
    for name in ("leaky-relu", "silu", "sigmoid")
]


def _maximum(m: Any, x: Tensor) -> Tensor:
    out: Tensor = m.conv(torch.maximum(m.left(x), m.right(x)))
    return out


def _functional_prelu(m: Any, x: Tensor) -> Tensor:
    out: Tensor = m.conv(F.prelu(m.bn(x), m.slope))
    return out


CASES += [
    Case(
        "bn-relu-inplace-conv",
        lambda: nn.Sequential(
            conv(3, 6), norm(6), nn.ReLU(inplace=True), conv(6, 4), nn.Hardtanh(0.0, 1.0, inplace=True)
        ),
        image(3),
        themes=("activation", "in place"),
    ),
    Case(
        "bn-prelu-functional-conv",
        lambda: wired(_functional_prelu, bn=norm(6), slope=nn.Parameter(torch.linspace(-0.2, 0.9, 6)), conv=conv(6, 4)),
        image(6),
        themes=("activation", "functional"),
    ),
    Case(
        "maxout-of-two-bns",
        lambda: wired(_maximum, left=norm(6), right=norm(6), conv=conv(6, 4)),
        image(6),
        themes=("activation", "nonlinear"),
    ),
    Case(
        "bn-prelu-linear",
        lambda: nn.Sequential(norm(6, 1), _uneven_prelu(6), nn.Linear(6, 3)),
        vector(6),
        themes=("activation", "linear"),
    ),
    Case(
        "bn-relu6-conv-3d",
        lambda: nn.Sequential(norm(6, 3), nn.ReLU6(), conv(6, 3, 2, 3, padding=1)),
        image(6, *SIZES[3]),
        themes=("activation", "3d"),
    ),
    Case(
        # Behind the saturating bounds of one the other sees only a part of its range.
        "bn-relu6-hardtanh-conv",
        lambda: nn.Sequential(norm(6), nn.ReLU6(), nn.Hardtanh(-1.0, 2.0), conv(6, 3, padding=1)),
        image(6),
        themes=("activation", "chain"),
    ),
    Case(
        "bn-relu-relu-conv",
        lambda: nn.Sequential(norm(6), nn.ReLU(), nn.ReLU(), conv(6, 3, padding=1)),
        image(6),
        themes=("activation", "chain"),
    ),
    Case(
        "bn-relu-bn-relu-conv",
        lambda: nn.Sequential(norm(6), nn.ReLU(), norm(6, eps=0.1), nn.ReLU(), conv(6, 3, padding=1)),
        image(6),
        themes=("activation", "chain"),
    ),
]
