"""What a plan does to a network, as values: an edit can be printed, compared and written down, and does one thing.

An edit names no node. A plan pairs it with the node that it is for; where that node gets a copy for one of its readers
(*untangling*), the copy is what is edited.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from canonize.algebra.affine import EXACT, Affine
from canonize.algebra.exact import exact_parameter, exact_value
from canonize.graph.affine_nodes import Origin
from canonize.graph.network import Network, keep_exact
from canonize.nn import ChannelPad, Slot, ThreshLeakyReLU, ThreshReLU


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """One change to one node of a network.

    Attributes
    ----------
    told : str
        What it does to a layer, in a few words.
    """

    told: ClassVar[str]

    @abstractmethod
    def apply(self, network: Network, node: fx.Node) -> None:
        """Carry it out."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        mine, theirs = ([getattr(edit, part.name) for part in dataclasses.fields(self)] for edit in (self, other))
        return all(_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def __hash__(self) -> int:
        return hash((type(self), self.told))


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, Affine) and isinstance(second, Affine):
        return torch.equal(first.scale, second.scale) and torch.equal(first.shift, second.shift)
    return bool(first == second)


# ------------------------------------------------------------------------------------------------ linear layers


@dataclass(frozen=True, eq=False)
class TakeOutput(Edit):
    r"""A linear layer takes the affine behind it, :math:`W' = s W`, :math:`b' = s b + t`."""

    scale: Tensor
    shift: Tensor
    told = "takes the affine behind it"

    def apply(self, network: Network, node: fx.Node) -> None:
        """See `Edit`."""
        network.absorb_output(node, self.scale, self.shift)


@dataclass(frozen=True, eq=False)
class TakeInput(Edit):
    r"""A linear layer takes the affine before it, :math:`W' = W s`, :math:`b' = b + \sum W t`."""

    scale: Tensor
    shift: Tensor
    told = "takes the affine before it"

    def apply(self, network: Network, node: fx.Node) -> None:
        """See `Edit`."""
        network.absorb_input(node, self.scale, self.shift)


@dataclass(frozen=True, eq=False)
class TakeProjections(Edit):
    r"""Attention takes the affines before query, key and value, :math:`W' = W s`, :math:`b' = b + W t`."""

    parts: tuple[tuple[Tensor, Tensor] | None, ...]
    told = "takes the affines before its query, key and value"

    def apply(self, network: Network, node: fx.Node) -> None:
        """See `Edit`."""
        attention: Any = network.module(node)
        width = attention.embed_dim
        old_weight, old_bias = attention.in_proj_weight, attention.in_proj_bias
        weight = exact_value(old_weight).to(EXACT).clone()
        bias = torch.zeros(3 * width, dtype=EXACT, device=weight.device)
        if old_bias is not None:
            bias = exact_value(old_bias).to(EXACT).clone()
        for i, part in enumerate(self.parts):
            if part is not None:
                rows = slice(i * width, (i + 1) * width)
                scale, shift = part
                bias[rows] += weight[rows] @ shift
                weight[rows] *= scale
        network.set_parameters(
            node, in_proj_weight=exact_parameter(weight, old_weight), in_proj_bias=exact_parameter(bias, old_weight)
        )


@dataclass(frozen=True, eq=False)
class Compose(Edit):
    """Another affine takes this one: two in a row are one."""

    affine: Affine
    origins: tuple[Origin, ...]
    behind: bool
    told = "takes the affine next to it"

    def apply(self, network: Network, node: fx.Node) -> None:
        """See `Edit`."""
        own = network.affine(node)
        affine = self.affine.after(own.affine) if self.behind else own.affine.after(self.affine)
        first, second = (own.origins, self.origins) if self.behind else (self.origins, own.origins)
        network.set_affine(node, affine, (*first, *(origin for origin in second if origin not in first)))


# -------------------------------------------------------------------------------------- activations and paddings


@dataclass(frozen=True, eq=False)
class Threshold(Edit):
    """An activation becomes a clamp with bounds per channel."""

    lower: Tensor | None
    upper: Tensor | None
    told = "becomes a threshold per channel"

    def module(self) -> ThreshReLU:
        """The layer that clamps."""
        return ThreshReLU(*(None if bound is None else keep_exact(bound) for bound in (self.lower, self.upper)))

    def apply(self, network: Network, node: fx.Node) -> None:
        """See `Edit`."""
        network.replace(node, self.module())


@dataclass(frozen=True, eq=False)
class Kink(Edit):
    """A leaky activation gets its kink, and its slopes, per channel."""

    threshold: Tensor
    left: Tensor
    right: Tensor
    told = "gets its kink per channel"

    def apply(self, network: Network, node: fx.Node) -> None:
        """See `Edit`."""
        parts = (keep_exact(part) for part in (self.threshold, self.left, self.right))
        network.replace(node, ThreshLeakyReLU(*parts))


@dataclass(frozen=True, eq=False)
class HoldConstant(Edit):
    """Channels that are constant are held at their values by a clamp behind the affine."""

    lower: Tensor
    upper: Tensor
    told = "its constant channels are held by a clamp"

    def apply(self, network: Network, node: fx.Node) -> None:
        """See `Edit`."""
        clamp = ThreshReLU(keep_exact(self.lower), keep_exact(self.upper))
        network.insert_after(node, f"{node.target}_constant", clamp)


@dataclass(frozen=True, eq=False)
class PadWith(Edit):
    """A padding pads with other constants."""

    padding: tuple[int | Slot, ...]
    value: Tensor
    told = "pads with what the affine maps to the old constant"

    def apply(self, network: Network, node: fx.Node) -> None:
        """See `Edit`."""
        network.replace(node, ChannelPad(self.padding, keep_exact(self.value)))


@dataclass(frozen=True, eq=False)
class PadBefore(Edit):
    """A layer's own padding with zeros becomes explicit, with a constant per channel.

    Attributes
    ----------
    around : tuple of int
        As in ``torch.nn.functional.pad``; no padding is inserted where all are zero.
    value : Tensor
    settings : tuple of (str, Any)
        What changes in the layer itself.
    """

    around: tuple[int, ...]
    value: Tensor
    settings: tuple[tuple[str, Any], ...]
    told = "its padding becomes explicit, with a constant per channel"

    def apply(self, network: Network, node: fx.Node) -> None:
        """See `Edit`."""
        if any(self.around):
            network.insert_before(node, 0, f"{node.target}_pad", ChannelPad(self.around, keep_exact(self.value)))
            network.configure(node, **dict(self.settings))


def told(edits: Sequence[tuple[str, Edit]]) -> tuple[str, ...]:
    """Edits and the layers they are for, a line each."""
    return tuple(f"{layer} {edit.told}" for layer, edit in edits)


__all__ = [
    "Compose", "Edit", "HoldConstant", "Kink", "PadBefore", "PadWith", "TakeInput", "TakeOutput", "TakeProjections",
    "Threshold", "told",
]  # fmt: skip
