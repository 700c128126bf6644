r"""Parallel linear layers of one input whose outputs are added are one (RepVGG, MobileOne, identity-BN branches).

.. math:: (W_1 x + b_1) + (W_2 x + b_2) = (W_1 + W_2) x + (b_1 + b_2)

::

    have   x -> Conv3x3 -> (+) -> y        want   x -> Conv3x3' -> y
           x -> Conv1x1 ----^
           x -> BN(s, t) ---^
           x ---------------^

A smaller kernel is a larger one with zeros around it, where padding and stride say the same positions. An affine is
the pointwise kernel :math:`\mathrm{diag}(s)` with bias :math:`t`, the input itself is the affine with :math:`s = 1`,
:math:`t = 0`. All layers must have the same groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.algebra.affine import Affine
from canonize.algebra.weights import CONVOLUTION, LINEAR, Kernel, PendingWeights
from canonize.flow.plan import Refused, label
from canonize.graph.network import FrozenAffine, Network
from canonize.nn import ChannelLinear, Sum
from canonize.patterns.merge import Merge, MergePattern, is_linear, like, pair


class ParallelLinear(MergePattern):
    """Merge the linear branches of a sum."""

    name = "parallel_linear"
    summary = "Conv3x3 + Conv1x1 + BN or identity of one input (RepVGG): one convolution"

    def match(self, network: Network, node: fx.Node) -> bool:
        """A sum of two linear branches of one value, at least one of them a layer."""
        if not isinstance(network.module(node), Sum) or len(node.args) != 2:
            return False
        left, right = node.args
        if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or left is right:
            return False
        if _reads_only(network, left, right) or _reads_only(network, right, left):
            return True
        layers = [is_linear(network, branch) for branch in (left, right)]
        either = [layer or _is_affine(network, branch) for layer, branch in zip(layers, (left, right), strict=True)]
        return any(layers) and all(either) and left.args[0] is right.args[0]

    def check(self, network: Network, node: fx.Node) -> Merge | Refused:
        """Add the two up, the smaller kernel inside the larger one."""
        total = network.module(node)
        assert isinstance(total, Sum)
        branches = [(branch, weight) for branch, weight in zip(node.args, total.weights, strict=True)]
        # The larger kernel first; an affine last.
        branches.sort(key=lambda item: -_kernel_size(network, item[0]))
        if _reads_only(network, branches[1][0], branches[0][0]):  # what the layer reads may be a layer's output, too
            branches.reverse()
        (big, w1), (small, w2) = branches
        assert isinstance(big, fx.Node) and isinstance(small, fx.Node)
        names = (label(network, big), label(network, small))
        straight = small is big.args[0]
        for branch in (big,) if straight else (big, small):
            others = [reader for reader in network.readers(branch) if reader is not node]
            if others:
                return Refused(f"{label(network, branch)} is also read by {label(network, others[0])}", names)
        found = _inside(network, big, None if straight else small)
        if isinstance(found, str):
            return Refused(found, names)
        kernel, bias2 = found
        large = network.weights(big)
        weight, bias1 = Added(large, w1, kernel, w2), large.bias
        parts = [w * b for w, b in ((w1, bias1), (w2, bias2)) if b is not None]
        bias = sum(parts[1:], parts[0]) if parts else None
        module = like(network.modules[str(big.target)], bias=bias is not None)
        return Merge(small, second=big, place=node, module=module, weight=weight, bias=bias)

    def rewrite(self, network: Network, plan: Merge) -> None:
        """The larger layer takes the place of the sum."""
        network.values.take_place(plan.second, plan.place)
        network.rewire_readers(plan.place, plan.second)
        network.remove(plan.place)
        if plan.anchor is not plan.second.args[0]:
            network.remove(plan.anchor)
        network.fill(plan.second, plan.module, plan.weight, plan.bias)


def _reads_only(network: Network, layer: Any, value: Any) -> bool:
    """Whether a linear layer reads a value, which the sum adds to its output as it is."""
    return is_linear(network, layer) and layer.args[0] is value


def _is_affine(network: Network, node: fx.Node) -> bool:
    return isinstance(network.module(node), FrozenAffine)


def _kernel_size(network: Network, node: Any) -> int:
    if not is_linear(network, node):
        return 0
    size = 1
    for length in network.weights(node).shape[2:]:
        size *= length
    return size


class Added(Kernel):
    """The sum of two kernels of one shape, each with a factor."""

    def __init__(self, first: Kernel, factor: float, second: Kernel, second_factor: float) -> None:
        self.first, self.factor, self.second, self.second_factor = first, factor, second, second_factor
        self.shape, self.device = first.shape, first.device
        self.at_once = first.at_once or second.at_once

    def add_to(self, target: Tensor, part: slice, factor: float) -> None:
        """Add rows of :math:`w_1 W_1 + w_2 W_2`."""
        self.first.add_to(target, part, factor * self.factor)
        self.second.add_to(target, part, factor * self.second_factor)


class Padded(Kernel):
    """A kernel with zeros around its positions; ``around`` is what ``torch.nn.functional.pad`` takes."""

    def __init__(self, kernel: Kernel, around: list[int]) -> None:
        self.kernel = kernel
        sides = [before + behind for before, behind in zip(around[::2], around[1::2], strict=True)][::-1]
        sizes = (size + more for size, more in zip(kernel.shape[2:], sides, strict=True))
        self.shape, self.device = torch.Size((*kernel.shape[:2], *sizes)), kernel.device
        self.at_once = kernel.at_once
        starts = zip(around[::2][::-1], kernel.shape[2:], strict=True)
        self.inside: Any = (..., *(slice(before, before + size) for before, size in starts))

    def add_to(self, target: Tensor, part: slice, factor: float) -> None:
        """Add rows inside of the zeros."""
        self.kernel.add_to(target[self.inside], part, factor)


class Diagonal(Kernel):
    """The kernel of a scale per channel: one position, one input of each group.

    Parameters
    ----------
    scale : Tensor
        float64, one number per channel.
    shape : torch.Size
        That of the layer it is to be added to.
    centre : tuple of int
        The kernel position that sees the channel itself.
    """

    def __init__(self, scale: Tensor, shape: torch.Size, centre: tuple[int, ...]) -> None:
        self.scale, self.shape, self.device, self.centre = scale, shape, scale.device, centre

    def add_to(self, target: Tensor, part: slice, factor: float) -> None:
        """Add one number to each row."""
        channels = torch.arange(part.start, part.stop, device=self.device)
        own = torch.arange(len(channels), device=self.device)
        index: Any = (own, channels % self.shape[1], *self.centre)
        target[index] += factor * self.scale[part]


def _inside(network: Network, big: fx.Node, small: fx.Node | None) -> tuple[Kernel, Tensor | None] | str:
    """The smaller branch (``None``: the input itself) as a kernel of the larger layer's shape, or why it is none."""
    layer: Any = network.modules[str(big.target)]
    if isinstance(layer, ChannelLinear) or not isinstance(layer, (nn.Linear, *CONVOLUTION)):
        return "only dense layers, and convolutions that are not transposed, are merged"
    if small is None:
        weights = network.weights(big)
        ndim = len(weights.shape) if isinstance(layer, CONVOLUTION) else len(network.shapes.shape(big) or ())
        found = _affine_inside(network, layer, big, Affine.identity(ndim, weights.device))
        return found if isinstance(found, str) else (found[0], None)
    if _is_affine(network, small):
        return _affine_inside(network, layer, big, network.affine(small).affine.compress())
    other: Any = network.modules[str(small.target)]
    if type_of(other) is not type_of(layer) or isinstance(other, ChannelLinear):
        return "the two are layers of different kinds"
    weights = network.weights(small)
    if isinstance(layer, nn.Linear):
        return weights, weights.bias
    if other.groups != layer.groups or other.weight.shape[:2] != layer.weight.shape[:2]:
        return "the two have different groups"
    if other.stride != layer.stride:
        return "the two have different strides"
    return _placed(weights, layer, other)


def _placed(weights: PendingWeights, layer: Any, other: Any) -> tuple[Kernel, Tensor | None] | str:
    dims = len(layer.kernel_size)
    if isinstance(layer.padding, str) or isinstance(other.padding, str):
        return "padding is given by name"
    pointwise = all(size == 1 for size in other.kernel_size)
    if layer.padding_mode != other.padding_mode and not (pointwise and not any(other.padding)):
        return "the two pad differently"
    if not pointwise and layer.dilation != other.dilation:
        return "the two have different dilations"
    around: list[int] = []
    for d in reversed(range(dims)):
        offset = layer.padding[d] - other.padding[d]
        step = layer.dilation[d]
        start, rest = divmod(offset, step)
        end = layer.kernel_size[d] - start - other.kernel_size[d]
        if rest or start < 0 or end < 0:
            return "their kernels look at different positions"
        # Both must give outputs of one size, which the sum has already checked.
        around += [start, end]
    return Padded(weights, around) if any(around) else weights, weights.bias


def _affine_inside(network: Network, layer: Any, big: fx.Node, affine: Affine) -> tuple[Kernel, Tensor | None] | str:
    weights = network.weights(big)
    channels = weights.out_channels
    dim = affine.ndim - 1 if isinstance(layer, nn.Linear) else 1
    if weights.in_channels != channels:
        return "a layer that changes the number of channels has no place for an affine of its input"
    if affine.varying() - {dim}:
        return "the affine differs along another dimension than the layer's channels"
    scale, shift = affine.vectors(dim, channels)
    if isinstance(layer, nn.Linear):
        return Diagonal(scale, weights.shape, ()), shift
    if isinstance(layer.padding, str) or any(step != 1 for step in layer.stride):
        return "the layer has a stride, or a padding given by name"
    centre = []
    for d, padding in enumerate(pair(layer.padding, len(layer.kernel_size))):
        position, rest = divmod(padding, layer.dilation[d])
        if rest or position >= layer.kernel_size[d]:
            return "their kernels look at different positions"
        centre.append(position)
    return Diagonal(scale, weights.shape, tuple(centre)), shift


def type_of(module: nn.Module) -> type:
    """Which of torch's linear layers a module is."""
    return next(cls for cls in LINEAR if isinstance(module, cls))
