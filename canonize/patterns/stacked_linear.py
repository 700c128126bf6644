r"""Linear -> Linear (C2): two that meet without a nonlinearity are one.

.. math:: W_2 (W_1 x + b_1) + b_2 = (W_2 W_1) x + (W_2 b_1 + b_2)

::

    have   x -> Linear(W1, b1) -> Linear(W2, b2) -> y
    want   x -> Linear(W2 W1, W2 b1 + b2) -> y

Of convolutions one must be pointwise, and nothing may be padded in between: behind :math:`b_1` stands no zero. Merged
only where the result is not larger.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.algebra.weights import CONVOLUTION, Kernel
from canonize.flow.plan import Refused, label
from canonize.graph.network import Network
from canonize.nn import ChannelLinear
from canonize.patterns.merge import Merge, MergePattern, has_zero_padding, is_linear, like


class StackedLinear(MergePattern):
    """Merge a linear layer into the one behind it."""

    name = "stacked_linear"
    summary = "Linear -> Linear, Conv -> Conv1x1: one layer, where exact and not larger"

    def match(self, network: Network, node: fx.Node) -> bool:
        """Two linear layers in a row."""
        return is_linear(network, node) and is_linear(network, node.args[0] if node.args else None)

    def check(self, network: Network, node: fx.Node) -> Merge | Refused:
        """Compose the two."""
        first = node.args[0]
        assert isinstance(first, fx.Node)
        names = (label(network, first), label(network, node))
        others = [reader for reader in network.readers(first) if reader is not node]
        if others:
            return Refused(f"{names[0]} is also read by {label(network, others[0])}", names)
        before, behind = network.modules[str(first.target)], network.modules[str(node.target)]
        bias = network.weights(first).bias
        reason = refusal(before, behind, bias is not None and bool(bias.any()))
        if reason is not None:
            return Refused(reason, names)
        inner, outer = network.weights(first), network.weights(node)
        behind_bias = outer.bias
        if bias is not None:
            through = outer.response_to(bias)
            behind_bias = through if behind_bias is None else behind_bias + through
        merged = _merged(before, behind, behind_bias is not None)
        weight = ProductKernel(outer, inner)
        return Merge(first, second=node, place=node, module=merged, weight=weight, bias=behind_bias)

    def rewrite(self, network: Network, plan: Merge) -> None:
        """The second layer reads what the first one read."""
        source = plan.anchor.args[0]
        assert isinstance(source, fx.Node)
        network.rewire(plan.second, plan.anchor, source)
        network.remove(plan.anchor)
        network.fill(plan.second, plan.module, plan.weight, plan.bias)


def refusal(first: nn.Module, second: nn.Module, biased: bool) -> str | None:
    """Why two layers in a row must stay two; ``None`` if they may be merged.

    Parameters
    ----------
    first, second : nn.Module
        Linear layers.
    biased : bool
        Whether the first one adds anything.
    """
    a: Any = first
    b: Any = second
    if isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
        merged = first.in_features * second.out_features
        return _if_larger(merged, first, second)
    if not (isinstance(first, CONVOLUTION) and isinstance(second, CONVOLUTION)):
        return "only dense layers, and convolutions that are not transposed, are merged with each other"
    if isinstance(first, ChannelLinear) or isinstance(second, ChannelLinear) or a.weight.ndim != b.weight.ndim:
        return "the two work on different dimensions"
    if a.groups != 1 or b.groups != 1:
        return "a grouped convolution mixes some of the channels only"
    if _pointwise(b) and not any(b._reversed_padding_repeated_twice):
        kernel = a.kernel_size
    elif _pointwise(a) and not any(a._reversed_padding_repeated_twice):
        if has_zero_padding(second) and biased:
            return "zero padding lies between them, where the first layer's bias is missing"
        kernel = b.kernel_size
    else:
        return "neither of them is pointwise"
    merged = a.in_channels * b.out_channels
    for size in kernel:
        merged *= size
    return _if_larger(merged, first, second)


def _if_larger(merged: int, first: nn.Module, second: nn.Module) -> str | None:
    a: Any = first
    b: Any = second
    separate = a.weight.numel() + b.weight.numel()
    return f"one layer would have {merged} weights, the two have {separate}" if merged > separate else None


def _pointwise(conv: Any) -> bool:
    return all(size == 1 for size in conv.kernel_size) and all(step == 1 for step in conv.stride)


class ProductKernel(Kernel):
    """The kernel of one linear layer behind another; one of the two is pointwise.

    Parameters
    ----------
    second, first : Kernel
    """

    at_once = True

    def __init__(self, second: Kernel, first: Kernel) -> None:
        self.second, self.first, self.device = second, first, second.device
        # The one that is not pointwise says which positions are looked at.
        kernel = max(first.shape[2:], second.shape[2:], key=torch.Size.numel)
        self.shape = torch.Size((second.shape[0], first.shape[1], *kernel))

    def add_to(self, target: Tensor, part: slice, factor: float) -> None:
        """Add rows of :math:`W_2 W_1`, position by position."""
        second, first = self.second.rows(part), self.first.rows(slice(0, self.first.shape[0]))
        if second.ndim == 2:
            rows = second @ first
        elif all(size == 1 for size in second.shape[2:]):
            rows = torch.einsum("oi,i...->o...", second.flatten(1), first)
        else:
            rows = torch.einsum("oi...,ij->oj...", second, first.flatten(1))
        target.add_(rows, alpha=factor)


def _merged(first: nn.Module, second: nn.Module, bias: bool) -> nn.Module:
    a: Any = first
    b: Any = second
    if isinstance(first, nn.Linear):
        return like(second, in_features=first.in_features, bias=bias)
    if _pointwise(b) and not any(b._reversed_padding_repeated_twice):
        return like(first, out_channels=b.out_channels, bias=bias)
    return like(second, in_channels=a.in_channels, bias=bias)
