"""The published threshold canonization of a torchvision DenseNet, done by hand, module by module.

Pahde et al. 2023 (arXiv 2211.17174) merge a BatchNorm behind a convolution into it (Eq. 3), and move a BatchNorm in
front of a ReLU behind the ReLU, whose kink then lies at a threshold per channel (Eqs. 4 and 7). Their implementation
works on the live model and leaves identity BatchNorms where the BatchNorms were. This one does so on a deep copy,
slowly and obviously, and shares no code with canonize.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn


class WhereReLU(nn.Module):
    """``x`` where ``scale * x + shift`` is positive, else the threshold ``-shift / scale``."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, input: Tensor) -> Tensor:
        return torch.where(self.scale * input + self.shift > 0, input, -self.shift / self.scale)


class HandCanonizedDenseNet(nn.Module):
    """A DenseNet whose head is made of modules, and whose BatchNorms are all the identity.

    Parameters
    ----------
    densenet : nn.Module
        A torchvision DenseNet in evaluation mode; copied. No BatchNorm of it may have a zero weight.
    """

    def __init__(self, densenet: nn.Module) -> None:
        super().__init__()
        densenet = copy.deepcopy(densenet)
        self.features = densenet.get_submodule("features")
        self.features.add_module("final_relu", nn.ReLU())
        self.features.add_module("final_pool", nn.AdaptiveAvgPool2d((1, 1)))
        self.classifier = densenet.get_submodule("classifier")
        _merge_behind_linear(self)
        _move_behind_rectifiers(self)
        assert all(_is_identity(layer) for layer in self.modules() if isinstance(layer, nn.BatchNorm2d))

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.classifier(torch.flatten(self.features(input), 1))
        return output


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and leaf modules in the order of registration, which in these models is the order of their calls."""
    return [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of ``norm(x) = s * x + t``."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias.detach() - norm.running_mean * scale


def _make_identity(norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    for values, constant in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
        nn.init.constant_(values, constant)
    norm.eps = 0.0


def _is_identity(norm: nn.BatchNorm2d) -> bool:
    scale, shift = _affine(norm)
    return bool((scale == 1).all() and (shift == 0).all())


def _add_to_bias(layer: nn.Conv2d | nn.Linear, amount: Tensor) -> None:
    old = torch.zeros_like(amount) if layer.bias is None else layer.bias.detach()
    layer.bias = nn.Parameter(old + amount)


def _merge_behind_linear(model: nn.Module) -> None:
    """Eq. 3: a convolution followed by a BatchNorm of as many channels takes it up."""
    leaves = _leaves(model)
    for (_, conv), (_, norm) in pairwise(leaves):
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            continue
        if conv.out_channels != norm.num_features:
            continue
        scale, shift = _affine(norm)
        conv.weight = nn.Parameter(conv.weight.detach() * scale[:, None, None, None])
        if conv.bias is not None:
            conv.bias = nn.Parameter(conv.bias.detach() * scale)
        _add_to_bias(conv, shift)
        _make_identity(norm)


def _move_behind_rectifiers(model: nn.Module) -> None:
    """Eqs. 4 and 7: each BatchNorm -> ReLU -> (average over the image) -> linear layer."""
    leaves = _leaves(model)
    for index, (_, norm) in enumerate(leaves):
        if not isinstance(norm, nn.BatchNorm2d) or _is_identity(norm):
            continue
        name, rectifier = leaves[index + 1]
        assert isinstance(rectifier, nn.ReLU)
        linear = leaves[index + 2][1]
        if isinstance(linear, nn.AdaptiveAvgPool2d):
            linear = leaves[index + 3][1]  # the average of s * x + t is s * average(x) + t
        scale, shift = _affine(norm)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, WhereReLU(scale, shift))
        if isinstance(linear, nn.Conv2d):
            assert linear.padding == (0, 0) and linear.groups == 1  # else the shift were missing at the border
            _add_to_bias(linear, linear.weight.detach().sum((2, 3)) @ shift)
            linear.weight = nn.Parameter(linear.weight.detach() * scale[None, :, None, None])
        else:
            assert isinstance(linear, nn.Linear)
            _add_to_bias(linear, linear.weight.detach() @ shift)
            linear.weight = nn.Parameter(linear.weight.detach() * scale)
        _make_identity(norm)
