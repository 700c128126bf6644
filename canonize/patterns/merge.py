"""What a pattern is that makes one linear layer of two; they need no affine to start from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from canonize.algebra.weights import LINEAR, Kernel
from canonize.flow.plan import Plan
from canonize.graph.network import Network
from canonize.patterns.pattern import Pattern, Stage


@dataclass
class Merge(Plan):
    """A planned merge: the layer that goes (the anchor), and the one whose name survives.

    Attributes
    ----------
    second : fx.Node
        What becomes the merged layer.
    place : fx.Node
        The node whose value the merged layer gives.
    module : nn.Module
        A layer of the merged shape, its parameters not yet filled in.
    weight : Kernel
        Worked out when it is written: no weight waits in float64.
    bias : Tensor or None
        float64.
    """

    second: fx.Node = field(kw_only=True)
    place: fx.Node = field(kw_only=True)
    module: nn.Module = field(kw_only=True)
    weight: Kernel = field(kw_only=True)
    bias: Tensor | None = field(kw_only=True)

    def __post_init__(self) -> None:
        self.into = [str(self.second.target)]


class MergePattern(Pattern[Merge]):
    """Two linear layers that are one; no affine to start from is needed."""

    stage = Stage.MERGE


def is_linear(network: Network, node: Any) -> bool:
    """Whether a node calls a linear layer."""
    return isinstance(node, fx.Node) and isinstance(network.module(node), LINEAR)


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
