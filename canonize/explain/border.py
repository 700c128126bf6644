r"""Shifts of BatchNorms in zero-padded convolutions, taken as the published code takes them: beside the layer.

A BatchNorm :math:`s x + t` in front of a convolution of zero padding becomes, behind a padding with :math:`z = -t / s`,

.. math:: W' = W s, \quad b' = b + \sum W t

(Eq. 4 of Pahde et al. 2023, borders included). Their code leaves :math:`b`, pads with zeros, and adds what the shift
makes of each position in a forward hook, which no rule sees: relevance passes it by. Rules see the same here:
:math:`b = b' + \sum W' z`, and nothing where the padding is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canonize import nn as cnn
from canonize.algebra.weights import LINEAR
from canonize.errors import ExplainError
from canonize.explain.libraries import require
from canonize.graph.factors import below, graphs_in, module_at
from canonize.graph.network import shell

require("zennit")

from zennit.core import BasicHook, Hook, ParamMod  # noqa: E402 - only once torchvision can be imported


def padded_layers(model: nn.Module) -> dict[str, cnn.ChannelPad]:
    """Linear layers of a model's graphs that read what was padded with constants, by name."""
    found: dict[str, cnn.ChannelPad] = {}
    for outer, graph in graphs_in(model).items():
        for node in graph.graph.nodes:
            if not isinstance(module_at(graph, node), LINEAR):
                continue
            pad = module_at(graph, node.args[0])
            if isinstance(pad, cnn.ChannelPad):
                found[below(outer, str(node.target))] = pad
    return found


def shift_beside(hook: Hook, layer: nn.Module, pad: cnn.ChannelPad, name: str) -> Hook:
    """A rule for a layer that takes the shift for something that is added behind it.

    Raises
    ------
    ExplainError
        If the amount of padding follows from the input's size.
    """
    if not isinstance(hook, BasicHook):
        return hook
    if not all(isinstance(amount, int) for amount in pad.padding):
        raise ExplainError("how much is padded follows from the input's size", where=name, hint="padding='layer'")
    bias = _bias_alone(layer, pad)
    made: Hook = hook.copy()
    made.input_modifiers = [_inside(pad, modifier) for modifier in hook.input_modifiers]
    made.param_modifiers = [WithBias(bias, ParamMod.ensure(modifier)) for modifier in hook.param_modifiers]
    return made


def _bias_alone(layer: Any, pad: cnn.ChannelPad) -> Tensor:
    """What the layer makes of a window full of padding, less what the shift has added to its bias: nothing else."""
    across = tuple(layer.weight.shape[2:])
    steps = getattr(layer, "dilation", (1,) * len(across))
    window = [(size - 1) * step + 1 for size, step in zip(across, steps, strict=True)]
    channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
    value = pad.value.reshape(-1, *[1] * len(across)).expand(channels, *window)
    with torch.no_grad():
        output: Tensor = layer.forward(value[None])
    return output.flatten()


def _inside(pad: cnn.ChannelPad, modifier: Any) -> Any:
    """The input without the padding, as a rule wants it."""
    amounts = [amount for amount in pad.padding if isinstance(amount, int)]

    def modified(value: Tensor) -> Any:
        shape = list(value.shape)
        for place, amount in enumerate(amounts):
            shape[-1 - place // 2] -= amount
        mask = F.pad(torch.ones(shape, dtype=torch.bool, device=value.device), amounts)
        return modifier(value * mask)

    return modified


class WithBias(ParamMod):
    """What a rule makes of a layer's parameters, the bias being another one."""

    def __init__(self, bias: Tensor, inner: ParamMod) -> None:
        super().__init__(inner.modifier, inner.param_keys, inner.zero_params, inner.require_params)
        self.bias, self.inner = bias, inner

    @contextlib.contextmanager
    def __call__(self, module: nn.Module) -> Iterator[nn.Module]:
        """The layer with that bias, for as long as it takes."""
        double = shell(module)
        double._parameters = dict(double._parameters) | {"bias": nn.Parameter(self.bias)}
        with self.inner(double) as modified:
            yield modified
