r"""Explicit padding with a constant.

Forward, a constant :math:`v` around :math:`s x + t` is :math:`(v - t) / s` around :math:`x`. Backward, a constant
:math:`v` around :math:`x` becomes :math:`s v + t` around :math:`s x + t`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from canonize.affine import EXACT, Affine
from canonize.flow.plan import RefusedError, Step, backward_rule, forward_rule
from canonize.network import Network, keep_exact
from canonize.nn import ChannelPad

CONSTANT_PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)


def _padded_dims(padding: tuple[int, ...], ndim: int) -> set[int]:
    return {ndim - 1 - i // 2 for i, amount in enumerate(padding) if amount}


def _value(step: Step, ndim: int) -> Tensor:
    module: Any = step.module
    if isinstance(module, ChannelPad):
        return module.value.to(EXACT)
    return torch.full((1,) * ndim, float(module.value), dtype=EXACT, device=step.network.device)


@forward_rule(*CONSTANT_PADS, ChannelPad)
def pad_forward(step: Step, incoming: list[Affine | None]) -> Affine:
    """Pad with what the affine maps to the old constant."""
    affine = incoming[0]
    if affine is None:
        raise RefusedError(f"{step.label()} is not reached")
    step.pass_through("padding")
    module: Any = step.module
    padding = tuple(module.padding)
    dims = _padded_dims(padding, affine.ndim)
    if affine.varying() & dims:
        # Channels that the padding adds have no affine; those that were there keep theirs.
        source = step.network.data_inputs(step.node)[0]
        shape = list(step.shape(source))
        for dim in range(len(shape)):
            if dim not in dims:
                shape[dim] = 1 if not affine.varies_along(dim) else shape[dim]
        scale, shift = affine.expanded(shape)
        return Affine(F.pad(scale, padding, value=1.0), F.pad(shift, padding, value=0.0))
    value = _value(step, affine.ndim)
    _replace(step, padding, _before(step, affine, value))
    return affine


def _before(step: Step, affine: Affine, value: Tensor) -> Tensor:
    shifted = Affine(affine.scale, affine.shift - value)
    return step.living_zero(shifted)


@backward_rule(*CONSTANT_PADS, ChannelPad)
def pad_backward(step: Step, affine: Affine) -> list[Affine | None]:
    """Pad with what the affine makes of the old constant."""
    step.pass_through("padding")
    module: Any = step.module
    padding = tuple(module.padding)
    step.require(
        not affine.varying() & _padded_dims(padding, affine.ndim),
        f"it differs along a dimension that {step.label()} pads",
    )
    _replace(step, padding, affine.scale * _value(step, affine.ndim) + affine.shift)
    return [affine]


def _replace(step: Step, padding: tuple[int, ...], value: Tensor) -> None:
    def change(net: Network, node: fx.Node) -> None:
        net.replace(node, ChannelPad(padding, keep_exact(Affine(value, value).compress().scale)))

    if not torch.equal(value.expand_as(value), _value(step, value.ndim).expand_as(value)):
        step.edit(change)
