r"""Explicit padding with a constant.

Forward, a constant :math:`v` around :math:`s x + t` is :math:`(v - t) / s` around :math:`x`. Backward, a constant
:math:`v` around :math:`x` becomes :math:`s v + t` around :math:`s x + t`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canonize.algebra.affine import EXACT, Affine
from canonize.flow.edits import PadWith
from canonize.flow.plan import RefusedError, Step, backward_rule, forward_rule
from canonize.nn import Call, ChannelPad, Slot
from canonize.vocabulary import resolve_module, row_of

CONSTANT_PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
Padding = tuple[int | Slot, ...]


def is_constant_pad(module: object) -> bool:
    """Whether a call pads with a number, by amounts some of which follow from sizes."""
    return isinstance(module, Call) and _amounts_of(module) is not None


def _amounts_of(call: Call) -> tuple[Padding, float] | None:
    operation = resolve_module(call) if row_of(call).pads else None
    if operation is None:
        return None
    padding, value = operation.get("pad"), operation.get("value") or 0.0
    if operation.get("mode", "constant") != "constant" or not isinstance(value, int | float):
        return None
    if operation.get("input") != Slot(0) or not isinstance(padding, tuple | list):
        return None
    return tuple(padding), float(value)


def _parts(step: Step, ndim: int) -> tuple[Padding, Tensor]:
    """By how much a layer pads, and with what, in float64."""
    module: Any = step.module
    if isinstance(module, ChannelPad):
        return module.padding, module.value.to(EXACT)
    call = _amounts_of(module) if isinstance(module, Call) else None
    padding, number = call or (tuple(module.padding), float(module.value))
    return padding, torch.full((1,) * ndim, number, dtype=EXACT, device=step.network.device)


def _padded_dims(padding: Padding, ndim: int) -> set[int]:
    return {ndim - 1 - i // 2 for i, amount in enumerate(padding) if amount != 0}


@forward_rule(*CONSTANT_PADS, ChannelPad)
def pad_forward(step: Step, incoming: list[Affine | None]) -> Affine:
    """Pad with what the affine maps to the old constant."""
    affine = incoming[0]
    if affine is None:
        raise RefusedError(f"{step.label()} is not reached")
    step.pass_through("padding")
    padding, value = _parts(step, affine.ndim)
    dims = _padded_dims(padding, affine.ndim)
    if affine.varying() & dims:
        fixed = [amount for amount in padding if isinstance(amount, int)]
        step.require(len(fixed) == len(padding), f"it differs along a dimension that {step.label()} pads")
        # Channels that the padding adds have no affine; those that were there keep theirs.
        source = step.network.data_inputs(step.node)[0]
        shape = list(step.shape(source))
        for dim in range(len(shape)):
            if dim not in dims:
                shape[dim] = 1 if not affine.varies_along(dim) else shape[dim]
        scale, shift = affine.expanded(shape)
        return Affine(F.pad(scale, fixed, value=1.0), F.pad(shift, fixed, value=0.0))
    _replace(step, padding, value, _before(step, affine, value))
    return affine


def _before(step: Step, affine: Affine, value: Tensor) -> Tensor:
    shifted = Affine(affine.scale, affine.shift - value)
    return step.living_zero(shifted)


@backward_rule(*CONSTANT_PADS, ChannelPad)
def pad_backward(step: Step, affine: Affine) -> list[Affine | None]:
    """Pad with what the affine makes of the old constant."""
    step.pass_through("padding")
    padding, value = _parts(step, affine.ndim)
    step.require(
        not affine.varying() & _padded_dims(padding, affine.ndim),
        f"it differs along a dimension that {step.label()} pads",
    )
    _replace(step, padding, value, affine.scale * value + affine.shift)
    return [affine, *([None] * (len(step.network.data_inputs(step.node)) - 1))]


def _replace(step: Step, padding: Padding, old: Tensor, value: Tensor) -> None:
    if not torch.equal(value.expand_as(value), old.expand_as(value)):
        step.edit(PadWith(padding, Affine(value, value).compress().scale))
