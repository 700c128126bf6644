"""What a forward asks its values and gets the same answer to on every call: dtypes, devices, sizes that layers fix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from canonize.algebra.affine import EXACT
from canonize.graph.shapes import Shapes
from canonize.normalize.constants import FixedValue
from canonize.vocabulary import operator_name, resolve


class Questions:
    """Answers that do not depend on the input.

    Parameters
    ----------
    shapes : Shapes
    device : torch.device
        Where the model is.
    """

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        self.shapes, self.device = shapes, device

    def answer(self, node: fx.Node) -> FixedValue | None:
        """A dtype, a device or a size; ``None`` where it may vary, and for everything else."""
        name = operator_name(node)
        if name in ("size", "getitem"):
            return self._size(node, name)
        if name not in ("dtype", "device"):
            return None
        source = node.args[0]
        value = self.shapes.value(source) if isinstance(source, fx.Node) else None
        if not isinstance(value, Tensor):
            return None
        if name == "device":
            return FixedValue(self.device, self.device)
        return FixedValue(value.dtype, EXACT if value.dtype.is_floating_point else value.dtype)

    def is_tensor(self, value: Any) -> bool:
        """Whether a value is a tensor."""
        return isinstance(self.shapes.value(value) if isinstance(value, fx.Node) else value, Tensor)

    def template(self, node: fx.Node) -> FixedValue | None:
        """An empty tensor of a value's dtype; in float64, as everything is in the proof."""
        value = self.shapes.value(node)
        if not isinstance(value, Tensor):
            return None
        empty = torch.empty((), dtype=value.dtype, device=self.device)
        return FixedValue(empty, empty.to(EXACT) if value.is_floating_point() else empty)

    def _size(self, node: fx.Node, name: str) -> FixedValue | None:
        operation = resolve(node)
        if operation is None:
            return None
        source: Any = operation.bound.get("input")
        dim: Any = operation.bound.get("dim" if name == "size" else "index")
        if name == "getitem" and isinstance(source, fx.Node):  # of ``x.shape`` or ``x.size()``
            asked = resolve(source)
            whole = asked is not None and asked.name in ("shape", "size") and asked.bound.get("dim") is None
            source = source.args[0] if whole else None
        if not isinstance(source, fx.Node) or not isinstance(dim, int):
            return None
        shape = self.shapes.shape(source)
        if shape is None or not -len(shape) <= dim < len(shape) or not self.shapes.is_plainly_fixed(source, dim):
            return None
        return FixedValue(shape[dim], shape[dim])
