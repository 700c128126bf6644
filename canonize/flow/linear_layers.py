r"""Linear layers absorb affines.

Behind the layer (Eq. 3 of Pahde et al. 2023): :math:`W' = sW`, :math:`b' = sb + t`.

Before the layer (Eq. 4): :math:`W' = Ws`, :math:`b' = b + \sum Wt`. A convolution that pads with zeros sees no shift
outside the image; it sees what it saw before if the image is padded with :math:`z = -t/s`, which the affine maps to
zero. Reflected, replicated and circular padding commute with the affine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.algebra.affine import Affine
from canonize.algebra.exact import exact_parameter
from canonize.algebra.weights import CONVOLUTION, TRANSPOSED
from canonize.flow.edits import Compose, PadBefore, TakeInput, TakeOutput
from canonize.flow.plan import RefusedError, Step, backward_rule, forward_rule
from canonize.graph.affine_nodes import FrozenAffine
from canonize.nn import ChannelLinear


def channel_vectors(step: Step, affine: Affine, dim: int, node: fx.Node, size: int) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel; refuse where they differ along anything but the layer's channels."""
    others = affine.varying() - {dim % affine.ndim}
    step.require(
        not others,
        f"it differs along dimension {min(others, default=0)}, which is not the one that {step.label()} mixes",
    )
    return affine.vectors(dim, size)


def _only(incoming: list[Affine | None], step: Step) -> Affine:
    if len(incoming) != 1 or incoming[0] is None:
        raise RefusedError(f"{step.label()} has more than one input")
    return incoming[0]


# ------------------------------------------------------------------------------------------------- nn.Linear


@forward_rule(nn.Linear)
def linear_takes_input(step: Step, incoming: list[Affine | None]) -> None:
    """Dense layer: the last dimension holds its inputs."""
    affine = _only(incoming, step)
    scale, shift = channel_vectors(step, affine, -1, step.node, step.network.weights(step.node).in_channels)
    step.absorbed(TakeInput(scale, shift))


@backward_rule(nn.Linear)
def linear_takes_output(step: Step, affine: Affine) -> list[Affine | None]:
    """Dense layer: the last dimension holds its outputs."""
    scale, shift = channel_vectors(step, affine, -1, step.node, step.network.weights(step.node).out_channels)
    step.absorbed(TakeOutput(scale, shift))
    return [None]


# --------------------------------------------------------------------------------------------- ChannelLinear


@forward_rule(ChannelLinear)
def channel_linear_takes_input(step: Step, incoming: list[Affine | None]) -> None:
    """An explicit linear layer per channel."""
    affine = _only(incoming, step)
    module: Any = step.module
    scale, shift = channel_vectors(step, affine, module.dim, step.node, module.out_channels)
    step.absorbed(TakeInput(scale, shift))


@backward_rule(ChannelLinear)
def channel_linear_takes_output(step: Step, affine: Affine) -> list[Affine | None]:
    """An explicit linear layer per channel."""
    module: Any = step.module
    scale, shift = channel_vectors(step, affine, module.dim, step.node, module.out_channels)
    step.absorbed(TakeOutput(scale, shift))
    return [None]


# ---------------------------------------------------------------------------------------------- convolutions


@backward_rule(*CONVOLUTION, *TRANSPOSED)
def convolution_takes_output(step: Step, affine: Affine) -> list[Affine | None]:
    """Any convolution: dimension 1 holds its outputs."""
    _require_batched(step, affine)
    scale, shift = channel_vectors(step, affine, 1, step.node, step.network.weights(step.node).out_channels)
    step.absorbed(TakeOutput(scale, shift))
    return [None]


@forward_rule(*CONVOLUTION)
def convolution_takes_input(step: Step, incoming: list[Affine | None]) -> None:
    """Convolution: where it pads with zeros, pad with what the affine maps to zero instead."""
    affine = _only(incoming, step)
    _require_batched(step, affine)
    source = step.network.data_inputs(step.node)[0]
    scale, shift = channel_vectors(step, affine, 1, source, step.network.weights(step.node).in_channels)
    module: Any = step.module
    padding = list(module._reversed_padding_repeated_twice)
    if any(padding) and module.padding_mode == "zeros" and bool(shift.any()):
        settings = (
            ("padding", (0,) * len(module.kernel_size)),
            ("_reversed_padding_repeated_twice", [0] * len(padding)),
        )
        step.edit(PadBefore(tuple(padding), step.living_zero(affine), settings))
    step.absorbed(TakeInput(scale, shift))


@forward_rule(*TRANSPOSED)
def transposed_convolution_takes_input(step: Step, incoming: list[Affine | None]) -> None:
    r"""Transposed convolution: the shift adds :math:`\sum_k W_k t` over the taps that reach a position.

    With stride 1 that is every tap once the image has a rim of :math:`z`, and more is cropped. With a larger stride
    each position is reached by some taps only, so the shift adds the same to all only where those partial sums agree.
    """
    affine = _only(incoming, step)
    _require_batched(step, affine)
    source = step.network.data_inputs(step.node)[0]
    weights = step.network.weights(step.node)
    scale, shift = channel_vectors(step, affine, 1, source, weights.in_channels)
    module: Any = step.module
    if not bool(shift.any()):
        step.absorbed(TakeInput(scale, shift))
        return
    step.require(
        all(s == 1 for s in module.stride),
        f"{step.label()} is a transposed convolution with a stride: "
        "what a shift adds to its output differs from position to position",
    )
    rims = [
        max(0, d * (k - 1) - p, d * (k - 1) - p + o)
        for d, k, p, o in zip(module.dilation, module.kernel_size, module.padding, module.output_padding, strict=True)
    ]
    around = tuple(side for rim in reversed(rims) for side in (rim, rim))
    cropped = tuple(p + rim for p, rim in zip(module.padding, rims, strict=True))
    step.edit(PadBefore(around, step.living_zero(affine), (("padding", cropped),)))
    step.absorbed(TakeInput(scale, shift))


def _require_batched(step: Step, affine: Affine) -> None:
    rank = len(step.network.weights(step.node).weight.shape)
    step.require(affine.ndim == rank, f"{step.label()} is called without a batch dimension")


# --------------------------------------------------------------------------------------------- other affines


@forward_rule(FrozenAffine)
def affine_takes_input(step: Step, incoming: list[Affine | None]) -> None:
    """Two affines in a row are one."""
    first = _only(incoming, step)
    anchor = step.network.affine(step.plan.anchor)
    step.plan.merged.append(step.node)
    step.edit(Compose(first, anchor.origins, behind=False))


@backward_rule(FrozenAffine)
def affine_takes_output(step: Step, affine: Affine) -> list[Affine | None]:
    """Two affines in a row are one."""
    anchor = step.network.affine(step.plan.anchor)
    step.plan.merged.append(step.node)
    step.edit(Compose(affine, anchor.origins, behind=True))
    return [None]


def as_linear_layer(affine: Affine, shape: tuple[int, ...], dim: int, like: Tensor | None) -> nn.Module:
    """An explicit linear layer that computes the affine: a 1x1 depthwise convolution or its kin."""
    channels = shape[dim]
    scale, shift = affine.vectors(dim, channels)
    sample = like if like is not None else torch.empty(0)
    dims = len(shape) - 2
    if dim == 1 and dims in (1, 2, 3):
        cls: Any = getattr(nn, f"Conv{dims}d")
        layer: nn.Module = cls(channels, channels, 1, groups=channels, device="meta")
        weight = scale.reshape(channels, 1, *(1,) * dims)
    else:
        layer = ChannelLinear(channels, dim)
        weight = scale.reshape(channels, 1, 1)
    layer.weight = exact_parameter(weight, sample)
    layer.bias = exact_parameter(shift, sample)
    return layer
