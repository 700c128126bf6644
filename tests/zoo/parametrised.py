"""Weights that are computed: weight norm and spectral norm old and new, weight standardisation, constants."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from tests.zoo.case import Case, conv, image, norm, vector, wired

Sequential = nn.Sequential


class StandardisedConv(nn.Conv2d):
    """Weight standardisation in the forward (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        centred = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = centred / (centred.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StandardisedConvByBatchNorm(nn.Conv2d):
    """Weight standardisation as timm writes it: ``F.batch_norm`` over the weight, with its own statistics."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-6
        )
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


class Symmetric(nn.Module):
    """A parametrization of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.flip(-1)) / 2


class HyperConv(nn.Module):
    """A kernel out of a code: a subgraph of parameters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(2, 4))
        self.basis = nn.Linear(4, 3 * 3 * 9)

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.tanh(self.basis(self.code)).sum(0).reshape(3, 3, 3, 3)
        return F.conv2d(x, kernel, padding=1)


def _old(kind: str, layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed: nn.Module = getattr(nn.utils, kind)(layer)
    return changed


def _pruned(layer: nn.Module) -> nn.Module:
    from torch.nn.utils import prune

    pruned: nn.Module = prune.l1_unstructured(layer, "weight", amount=0.4)
    return pruned


def _case(name: str, convolution: Any, *themes: str) -> Case:
    """BN -> ReLU -> conv -> BN -> ReLU, the norms on both sides of the computed weight."""
    return Case(
        name,
        lambda: Sequential(norm(3), nn.ReLU(), convolution(), norm(6), nn.ReLU(), conv(6, 2)),
        image(3),
        themes=("parametrised", *themes),
    )


def _padded() -> nn.Conv2d:
    return nn.Conv2d(3, 6, 3, padding=1)


def _bias_by_hand(m: Any, x: Tensor) -> Any:
    return F.relu(m.bn(F.conv2d(x, m.weight * 0.5 + 0.1) + m.bias.view(-1, 1, 1)))


def _constant_branch(m: Any, x: Tensor) -> Any:
    # A learned query: the second branch does not depend on the input.
    return m.bn(m.conv(x)).relu() + m.bn2(m.query).relu()


CASES: list[Case] = [
    _case("weight-norm", lambda: parametrizations.weight_norm(_padded())),
    _case("weight-norm-over-everything", lambda: parametrizations.weight_norm(_padded(), dim=None)),  # type: ignore[arg-type]
    _case("weight-norm-old", lambda: _old("weight_norm", _padded()), "hooks"),
    _case("spectral-norm", lambda: parametrizations.spectral_norm(_padded())),
    _case("spectral-norm-old", lambda: _old("spectral_norm", _padded()), "hooks"),
    _case("parametrization-of-ones-own", lambda: _symmetric(_padded())),
    _case("pruned", lambda: _pruned(_padded()), "hooks"),
    _case("weight-standardisation", lambda: StandardisedConv(3, 6, 3, padding=1), "subclass"),
    _case("weight-standardisation-by-batch-norm", lambda: StandardisedConvByBatchNorm(3, 6, 3, padding=1), "subclass"),
    Case(
        "orthogonal-linear",
        lambda: Sequential(norm(5, 1), parametrizations.orthogonal(nn.Linear(5, 6)), norm(6, 1), nn.ReLU()),
        vector(5),
        themes=("parametrised", "linear"),
    ),
    Case(
        "kernel-out-of-a-code",
        lambda: Sequential(norm(3), nn.ReLU(), HyperConv(), norm(3), nn.ReLU()),
        image(3),
        themes=("parametrised",),
    ),
    Case(
        "kernel-and-bias-by-hand",
        lambda: wired(
            _bias_by_hand, weight=nn.Parameter(torch.randn(6, 3, 3, 3)), bias=nn.Parameter(torch.randn(6)), bn=norm(6)
        ),
        image(3),
        themes=("parametrised", "functional", "arithmetic"),
    ),
    Case(
        "branch-of-constants",
        lambda: wired(
            _constant_branch, conv=conv(3, 6), bn=norm(6), query=nn.Parameter(torch.randn(1, 6, 1, 1)), bn2=norm(6)
        ),
        image(3),
        themes=("parametrised",),
    ),
    Case(
        "frozen-parameters",
        lambda: Sequential(conv(3, 6), norm(6), nn.ReLU(), norm(6), conv(6, 2)).requires_grad_(False),
        image(3),
        themes=("parametrised",),
    ),
]


def _symmetric(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer
