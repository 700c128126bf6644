"""Faults that only some inputs, sizes, types or ways to call show: what a verdict has to try to see them.

Each is planted behind or inside one small network of images. `UNSEEN` names those that no affordable verdict reaches:
docs/verification.md lists them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.statistics import harden

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))


class Base(nn.Module):
    """Convolutions, poolings, a head; any image size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.act: nn.Module = nn.ReLU()
        self.pool2: nn.Module = nn.AvgPool2d(2)
        self.global_pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.act(self.bn1(self.conv1(x))))
        x = self.pool2(self.act(self.bn2(self.conv2(x))))
        return self.head(self.global_pool(x).flatten(1))


def base() -> nn.Module:
    """The reference."""
    torch.manual_seed(0)
    return harden(Base(), tiny=False).eval()


class Behind(nn.Module):
    """The network, with a fault that sees its input and its output."""

    def __init__(self, fault: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.fault = base(), fault

    def forward(self, x: Tensor) -> Any:
        return self.fault(x, self.inner(x))


class Before(nn.Module):
    """The network, with a fault in its input."""

    def __init__(self, fault: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.fault = base(), fault

    def forward(self, x: Tensor) -> Any:
        return self.inner(self.fault(x))


class Counting(nn.Module):
    """Another answer from some call on."""

    def __init__(self, first: int, once: bool = False) -> None:
        super().__init__()
        self.inner, self.first, self.once = base(), first, once
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        late = self.calls == self.first if self.once else self.calls >= self.first
        return self.inner(x) * (1.01 if bool(late) else 1.0)


class Cached(nn.Module):
    """The answer to an input that it has seen is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = base()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        again = bool(x.sum().double() == self.seen.double())
        self.seen = x.sum().detach()
        return self.inner(x) * (1.01 if again else 1.0)


def _if(condition: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    """Outputs are one per cent larger where a condition on the whole input holds."""
    return lambda: Behind(lambda x, y: y * (1.01 if bool(condition(x)) else 1.0))


def _rows(condition: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Rows of which a condition holds are one per cent larger."""
    return lambda: Behind(lambda x, y: torch.where(condition(x.flatten(1))[:, None], y * 1.01, y))


def _behind(fault: Callable[[Tensor, Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Behind(fault)


def _before(fault: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Before(fault)


def _with(change: Callable[[Any], None]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = copy.deepcopy(base())
        with torch.no_grad():
            change(model)
        return model

    return build


def _set(name: str, value: Any) -> Callable[[], nn.Module]:
    owner, _, attribute = name.rpartition(".")
    return _with(lambda model: setattr(model.get_submodule(owner), attribute, value))


class _Act(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _act(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return _set("act", _Act(function))


def _written(x: Tensor, y: Tensor) -> Tensor:
    x.mul_(2)
    return y


def _third(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([y[:3], y[2:3].expand(max(len(y) - 3, 0), -1)])


def _misread(x: Tensor) -> Tensor:
    """Read as if channels came first in memory."""
    return x if x.is_contiguous() else torch.as_strided(x, x.shape, torch.empty(x.shape).stride())


TWICE = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(1))

CONDITIONS: dict[str, Callable[[], nn.Module]] = {
    # Batches
    "more than 3 rows": _if(lambda x: x.shape[0] > 3),
    "more than 4 rows": _if(lambda x: x.shape[0] > 4),
    "8 rows or more": _if(lambda x: x.shape[0] >= 8),
    "an odd batch": _if(lambda x: x.shape[0] % 2 == 1),
    "an even batch": _if(lambda x: x.shape[0] % 2 == 0),
    "one row": _if(lambda x: x.shape[0] == 1),
    "the fifth row": _behind(lambda x, y: torch.cat([y[:4], y[4:5] * 1.01, y[5:]])),
    "the last row": _behind(lambda x, y: torch.cat([y[:-1], y[-1:] * 1.01])),
    "rows mixed": _behind(lambda x, y: y + 1e-3 * (y.mean(0, keepdim=True) - y)),
    "rows from the fourth on are the third": _behind(_third),
    "rows beyond 64": _if(lambda x: x.shape[0] > 64),
    # Sizes
    "smaller images": _if(lambda x: x.shape[-1] < 16),
    "larger images": _if(lambda x: x.shape[-1] > 16),
    "another size": _if(lambda x: x.shape[-1] != 16),
    "odd heights": _if(lambda x: x.shape[-2] % 2 == 1),
    "odd widths": _if(lambda x: x.shape[-1] % 2 == 1),
    "images that are not square": _if(lambda x: x.shape[-1] != x.shape[-2]),
    "wide images": _if(lambda x: x.shape[-1] > x.shape[-2]),
    "ceil_mode of the first pooling": _set("pool1.ceil_mode", True),
    "ceil_mode of the second pooling": _set("pool2.ceil_mode", True),
    "a pooling of a fixed size": _set("global_pool", nn.AvgPool2d(4)),
    "a pooling that adapts to 2 and takes the mean": _set("global_pool", TWICE),
    "width and height swapped where not square": _before(lambda x: x.reshape(x.shape[0], 3, x.shape[3], x.shape[2])),
    "cut to a multiple of four": _before(lambda x: x[..., : x.shape[-2] // 4 * 4 or 1, : x.shape[-1] // 4 * 4 or 1]),
    "padded to an even size": _before(lambda x: F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))),
    "images beyond 1000 pixels a side": _if(lambda x: x.shape[-1] > 1000),
    # Values
    "zeros": _if(lambda x: not x.any()),
    "ones": _if(lambda x: bool((x == 1).all())),
    "any constant image": _if(lambda x: x.min() == x.max()),
    "0 to 255": _if(lambda x: x.max() > 200 and x.min() >= 0),
    "whole numbers": _if(lambda x: bool((x == x.round()).all())),
    "a large mean": _if(lambda x: x.mean() > 50),
    "0 to 1": _if(lambda x: x.min() >= 0 and 0.1 < x.max() <= 1),
    "no negative value": _if(lambda x: x.min() >= 0),
    "all negative": _if(lambda x: x.max() < 0),
    "no positive value": _if(lambda x: x.max() <= 0),
    "mostly zeros": _if(lambda x: 0 < (x != 0).double().mean() < 0.1),
    "one element": _if(lambda x: (x != 0).sum() == 1),
    "large values": _if(lambda x: x.abs().max() > 50),
    "very large values": _if(lambda x: x.abs().max() > 1000),
    "small values": _if(lambda x: 0 < x.abs().max() < 0.01),
    "very small values": _if(lambda x: 0 < x.abs().max() < 1e-4),
    "row of zeros": _rows(lambda r: (r == 0).all(1)),
    "row of ones": _rows(lambda r: (r == 1).all(1)),
    "negative row": _rows(lambda r: (r < 0).all(1)),
    "row of pixels": _rows(lambda r: r.amax(1) > 200),
    "row of one element": _rows(lambda r: (r != 0).sum(1) == 1),
    "input clamped at 1000": _before(lambda x: x.clamp(-1000, 1000)),
    "input clamped at 100": _before(lambda x: x.clamp(-100, 100)),
    "input clamped at 0": _before(lambda x: x.clamp(min=0)),
    "input clamped to 0 and 255": _before(lambda x: x.clamp(0, 255)),
    "input in eighths of a bit": _before(lambda x: (x * 2**11).round() / 2**11),
    "input in half precision": _before(lambda x: x.to(torch.float16).to(x.dtype)),
    "small input dropped": _before(lambda x: x * (x.abs() > 1e-3)),
    "very small input dropped": _before(lambda x: x * (x.abs() > 1e-5)),
    "output clamped at 1000": _behind(lambda x, y: y.clamp(-1000, 1000)),
    "output clamped at 1e30": _behind(lambda x, y: y.clamp(-1e30, 1e30)),
    "input clamped at 1e30": _before(lambda x: x.clamp(-1e30, 1e30)),
    "denormal numbers dropped": _before(lambda x: x * (x.abs() > 1e-35)),
    # Activations
    "a ReLU with an upper bound": _act(lambda x: x.clamp(0, 300)),
    "a ReLU with a high upper bound": _act(lambda x: x.clamp(0, 3000)),
    "a slope of 1e-4": _act(lambda x: F.leaky_relu(x, 1e-4)),
    "a ReLU that is soft near zero": _act(lambda x: torch.where(x.abs() < 1e-2, 0.5 * x, x.relu())),
    "a threshold of 1e-2": _act(lambda x: torch.where(x > 1e-2, x, torch.zeros_like(x))),
    "a threshold below zero": _act(lambda x: torch.clamp(x, min=-1e-3)),
    "an activation that wraps": _act(lambda x: torch.where(x > 500, 1000 - x, x.relu())),
    # Not finite
    "NaN in the input repaired": _before(lambda x: torch.nan_to_num(x, 0.0, torch.inf, -torch.inf)),
    "infinity in the input repaired": _before(lambda x: torch.where(x.isinf(), torch.zeros_like(x), x)),
    "NaN in the output repaired": _behind(lambda x, y: torch.nan_to_num(y)),
    "a row of NaN reaches the others": _behind(lambda x, y: y + 0 * y.sum()),
    "a ReLU that drops NaN": _act(lambda x: torch.where(x > 0, x, torch.zeros_like(x))),
    # Types, memory, calls
    "output in float64": _behind(lambda x, y: y.double()),
    "output in half precision": _behind(lambda x, y: y.half()),
    "output in bfloat16": _behind(lambda x, y: y.bfloat16()),
    "a tuple": _behind(lambda x, y: (y,)),
    "an output that is not there": _behind(lambda x, y: {"output": y, "more": y}),
    "input written into": _behind(_written),
    "channels last": _if(lambda x: x.shape[0] > 0 and not x.is_contiguous()),
    "channels last misread": _before(_misread),
    "a second call": lambda: Counting(2),
    "the third call": lambda: Counting(3, once=True),
    "the hundredth call": lambda: Counting(1000),
    "the same input again": Cached,
    "noise": _behind(lambda x, y: y + 1e-3 * torch.randn_like(y)),
    "dropout": _behind(lambda x, y: F.dropout(y, 0.1, training=True)),
    "only without gradients": _if(lambda x: not torch.is_grad_enabled()),
    "only with gradients": _if(lambda x: torch.is_grad_enabled()),
    "gradient cut": _before(lambda x: x.detach()),
    "gradient scaled": _behind(lambda x, y: 2 * y - y.detach()),
    "gradient of one row": _before(lambda x: torch.cat([x[:1].detach(), x[1:]])),
    # Weights
    "eps": _set("bn1.eps", 0.0),
    "one weight": _with(lambda m: m.head.weight[2, m.head.weight[2].abs().argmax()].add_(1e-2)),
    "one bias": _with(lambda m: m.head.bias[0].add_(1e-4)),
    "padding with the edge": _set("conv1.padding_mode", "replicate"),
}  # fmt: skip

# What no affordable verdict reaches; docs/verification.md lists it.
UNSEEN = {
    *("rows beyond 64", "images beyond 1000 pixels a side", "the hundredth call"),
    *("very small values", "very small input dropped", "denormal numbers dropped"),
    *("output clamped at 1e30", "input clamped at 1e30", "infinity in the input repaired"),
}
