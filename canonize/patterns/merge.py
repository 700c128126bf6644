"""What a pattern is that makes one linear layer of two; they need no affine to start from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx, nn

from canonize.algebra.weights import LINEAR, Kernel, PendingWeights
from canonize.flow.plan import Refused
from canonize.graph.network import Network
from canonize.patterns.pattern import Strategy


@dataclass
class Merge:
    """A planned merge: the nodes that go, and the layer that takes their place.

    Attributes
    ----------
    first, second : fx.Node
        The two layers; the second one's name survives.
    module : nn.Module
        A layer of the merged shape, its parameters not yet filled in.
    weight : Kernel
        Worked out when it is written: no weight waits in float64.
    bias : Tensor or None
        float64.
    """

    first: fx.Node
    second: fx.Node
    module: nn.Module
    weight: Kernel
    bias: Tensor | None


class MergePattern(ABC):
    """Two linear layers that are one."""

    name: ClassVar[str]
    summary: ClassVar[str]
    strategy: ClassVar[Strategy] = "always"

    @abstractmethod
    def match(self, network: Network, node: fx.Node) -> bool:
        """Whether the pattern could apply at a node."""

    @abstractmethod
    def check(self, network: Network, node: fx.Node) -> Merge | Refused:
        """Work the merged layer out, or say why the two must stay two. Changes nothing."""

    @abstractmethod
    def rewrite(self, network: Network, node: fx.Node, merge: Merge) -> str:
        """Put the merged layer in; returns its name."""


def is_linear(network: Network, node: Any) -> bool:
    """Whether a node calls a linear layer."""
    return isinstance(node, fx.Node) and isinstance(network.module(node), LINEAR)


def fill(network: Network, node: fx.Node, merge: Merge) -> None:
    """Make a node call the merged layer, with its weights pending."""
    name = str(node.target)
    network.modules[name] = merge.module
    pending = PendingWeights(merge.module)
    pending.set(merge.weight, merge.bias)
    network.pending[name] = pending
    network.shapes.forget(node)


def like(module: nn.Module, **changes: Any) -> nn.Module:
    """A layer of the same class with other arguments, its parameters on the meta device."""
    conv: Any = module
    weight = conv.weight
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    options: dict[str, Any] = {}
    if isinstance(module, nn.Linear):
        options = {"in_features": module.in_features, "out_features": module.out_features}
    else:
        options = {name: getattr(conv, name) for name in names}
    cls: Any = next(c for c in LINEAR if isinstance(module, c))
    made: nn.Module = cls(**(options | changes), device="meta", dtype=weight.dtype)
    for parameter in made.parameters():
        parameter.requires_grad_(bool(weight.requires_grad))
    return made


def pair(values: Any, dims: int) -> tuple[int, ...]:
    """A per-dimension setting as a tuple."""
    return tuple(values) if isinstance(values, tuple | list) else (values,) * dims


def has_zero_padding(module: nn.Module) -> bool:
    """Whether a convolution pads with zeros."""
    conv: Any = module
    return conv.padding_mode == "zeros" and any(conv._reversed_padding_repeated_twice)
