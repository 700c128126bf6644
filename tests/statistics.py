"""Hard statistics for normalisation layers: what freshly built models never show and trained ones do.

A new ``BatchNorm`` has mean 0, variance 1, weight 1 and bias 0, so nearly every slip in folding it goes unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

TINY = 1e-30
SMALL = 1e-5
# The first four kinds are there in every layer of four channels or more.
_KINDS = ("positive", "negative", "zero", "tiny", "positive", "negative", "minus tiny", "small")


def batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every distinct layer of `model` that may hold running statistics, whatever its class.

    Parameters
    ----------
    model : nn.Module
        The model to look through.

    Yields
    ------
    name : str
        First qualified name of the layer.
    layer : nn.Module
        A BatchNorm, FrozenBatchNorm or InstanceNorm.
    """
    for name, layer in model.named_modules():
        if hasattr(layer, "running_mean") and hasattr(layer, "running_var"):
            yield name, layer


@torch.no_grad()
def harden(model: Module, seed: int = 0, *, zero: bool = True, tiny: bool = True, positive: bool = False) -> Module:
    """Fill every normalisation layer of `model` with hard statistics, in place, and give linear layers biases.

    Running means are not 0, running variances span four decades (one channel's is 0, where only ``eps`` is left),
    weights are positive, negative, zero and 1e-30 in turn, biases have both signs. ``eps`` stays as the model sets it.

    Parameters
    ----------
    model : nn.Module
        The model to fill.
    seed : int
        Same seed, same numbers.
    zero : bool
        Whether some weights are exactly zero (dead channels).
    tiny : bool
        Whether some weights are of size 1e-30 and 1e-5.
    positive : bool
        Make every weight positive or, where `zero` asks for it, zero.

    Returns
    -------
    model : nn.Module
        The same object.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if _is_normalisation(layer):
            _harden_statistics(layer, generator)
            _harden_affine(layer, generator, zero=zero, tiny=tiny, positive=positive)
        elif isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) and isinstance(layer.bias, Tensor):
            layer.bias.copy_(0.5 * _normal(layer.bias, generator))
    return model


@torch.no_grad()
def calibrate(model: Module, *inputs: Any, seed: int = 0, floor: float = 0.0, disturbance: float = 0.3) -> Module:
    """Set running statistics to those of `inputs`, then disturb them, so that deep models neither blow up nor fade.

    Call it after :func:`harden`, whose random statistics do not fit the data and compound from layer to layer.

    Parameters
    ----------
    model : nn.Module
        The model; its running statistics are overwritten in place, nothing else changes.
    *inputs
        One batch of arguments for ``model.forward``.
    seed : int
        Same seed, same numbers.
    floor : float
        Least variance of a channel, as a share of its layer's mean one. A channel that hardly ever fires is blown up
        where another input does make it fire, and over many layers the output is nothing but that.
    disturbance : float
        How far the statistics are off the data's, in standard deviations (mean) and powers of e (variance).

    Returns
    -------
    model : nn.Module
        The same object.
    """
    generator = torch.Generator().manual_seed(seed)

    def fit(layer: Any, arguments: tuple[Tensor, ...]) -> None:
        # Layer by layer, so that each sees what the disturbed layers before it really make.
        (x,) = arguments
        variance, mean = torch.var_mean(x, [axis for axis in range(x.dim()) if axis != 1], correction=0)
        variance = variance.clamp(min=floor * variance.mean().item())
        layer.running_mean.copy_(mean + disturbance * variance.sqrt() * _normal(mean, generator))
        layer.running_var.copy_(variance * torch.exp(disturbance * _normal(variance, generator)))

    training = {layer: layer.training for layer in model.modules()}
    model.eval()
    hooks = [layer.register_forward_pre_hook(fit) for _, layer in batch_norms(model) if layer.running_mean is not None]
    try:
        model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mode in training.items():
            layer.training = mode
    return model


def _is_normalisation(layer: nn.Module) -> bool:
    return hasattr(layer, "running_mean") or isinstance(layer, (nn.LayerNorm, nn.GroupNorm))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like)


def _harden_statistics(layer: nn.Module, generator: torch.Generator) -> None:
    mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    if mean is None or variance is None:
        return
    mean.copy_(_normal(mean, generator) + 0.1)
    variance.copy_(10.0 ** _uniform(variance, -2.0, 2.0, generator))
    if variance.numel() > 4:
        variance[int(torch.randint(variance.numel(), (), generator=generator))] = 0.0


def _harden_affine(layer: nn.Module, generator: torch.Generator, *, zero: bool, tiny: bool, positive: bool) -> None:
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if isinstance(bias, Tensor):
        bias.copy_(_normal(bias, generator))
    if not isinstance(weight, Tensor):
        return
    weight.copy_(_uniform(weight, 0.5, 1.5, generator))
    flat = weight.view(-1)
    kinds = [_KINDS[index % len(_KINDS)] for index in range(flat.numel())]
    order = torch.randperm(flat.numel(), generator=generator).tolist()
    for channel, kind in zip(order, kinds, strict=True):
        if kind == "negative" and not positive:
            flat[channel] *= -1.0
        elif kind == "zero" and zero:
            flat[channel] = 0.0
        elif kind in ("tiny", "minus tiny") and tiny:
            flat[channel] = TINY if kind == "tiny" or positive else -TINY
        elif kind == "small" and tiny:
            flat[channel] = SMALL
