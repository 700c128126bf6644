"""One small model, its folded form, and the faults that an equivalence check must catch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse


class Net(nn.Module):
    """Convolutions with borders, a BatchNorm with hard statistics, dropout and a dense head."""

    def __init__(self, dropout: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6, eps=0.03)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv1(x)))
        x = F.relu(self.conv2(x))
        x = F.dropout(x, 0.5, training=self.dropout)
        return self.head(x.mean((2, 3)))


def make(seed: int = 0, dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(seed)
    net = Net()
    with torch.no_grad():
        net.bn.weight.copy_(torch.tensor([1.5, -0.7, 0.0, 1e-30, 0.3, -2.0]))
        net.bn.bias.normal_()
        net.bn.running_mean.normal_()
        net.bn.running_var.uniform_(0.2, 2)
    return net.eval().to(dtype)


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def change(fn: Callable[[Net], None]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        net = make()
        with torch.no_grad():
            fn(net)
        return net

    return build


class Wrapped(nn.Module):
    """A model whose output goes through a fault."""

    def __init__(self, fault: Callable[[Tensor, Tensor], Any], model: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = model if model is not None else make()
        self.fault = fault

    def forward(self, x: Tensor) -> Any:
        return self.fault(x, self.inner(x))


def _nan_in_one(x: Tensor, y: Tensor) -> Tensor:
    y = y.clone()
    y[0, 2] = float("nan")
    return y


def _weight(net: Net) -> None:
    net.conv1.weight[4, 1, 2, 0] += 1e-3


def _bias(net: Net) -> None:
    net.conv2.bias[3] += 1e-3


def _head(net: Net) -> None:
    net.head.bias[0] += 1e-4


def _sign(net: Net) -> None:
    net.conv2.weight[:, 0] *= -1


def _eps(net: Net) -> None:
    net.bn.eps = 0.0


def _border(net: Net) -> None:
    net.conv2.padding_mode = "replicate"
    net.conv2._reversed_padding_repeated_twice = [1, 1, 1, 1]


FAULTS: dict[str, Callable[[], nn.Module]] = {
    "one weight": change(_weight),
    "one bias": change(_bias),
    "one head bias": change(_head),
    "a channel's sign": change(_sign),
    "eps dropped": change(_eps),
    "border only": change(_border),
    "batch above two only": lambda: Wrapped(lambda x, y: y + 1e-3 * (x.shape[0] > 2)),
    "batch one only": lambda: Wrapped(lambda x, y: y * (1 + 1e-3 * (x.shape[0] == 1))),
    "second row only": lambda: Wrapped(lambda x, y: torch.cat([y[:1], y[1:] * 1.001])),
    "large inputs only": lambda: Wrapped(lambda x, y: y + 1e-3 * y.abs().max() * (x.abs().amax() > 50)),
    "small inputs only": lambda: Wrapped(lambda x, y: y * (1 + 1e-3 * (0 < x.abs().amax() < 0.01))),
    "zeros only": lambda: Wrapped(lambda x, y: y + 1e-2 * (x.abs().amax() == 0)),
    "other size only": lambda: Wrapped(lambda x, y: y * (1 + 1e-3 * (x.shape[2] != 8))),
    "fixed size": lambda: Wrapped(lambda x, y: y + 0 * x.reshape(-1, 192)[:, :1]),
    "fixed batch": lambda: Wrapped(lambda x, y: y.reshape(2, 5)),
    "nan in one element": lambda: Wrapped(_nan_in_one),
    "dropout active": lambda: Wrapped(lambda x, y: F.dropout(y, 0.5, training=True)),
    "another structure": lambda: Wrapped(lambda x, y: (y,)),
    "another shape": lambda: Wrapped(lambda x, y: y[:, :4]),
    "broadcastable shape": lambda: Wrapped(lambda x, y: y[:, None]),
    "gradient cut": lambda: Wrapped(lambda x, y: y.detach()),
    "gradient doubled": lambda: Wrapped(lambda x, y: 2 * y - y.detach()),
}


def fold(net: Net, rounded: bool = True) -> nn.Module:
    folded = fuse(net.double())
    return folded.float() if rounded else folded
