"""Calls that cut a tensor into pieces: how many there are follows from a size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from canonize.vocabulary import NOTHING, ROWS, operator_name, resolve


def cuts(node: fx.Node) -> bool:
    """Whether a call gives the pieces of a tensor."""
    name = operator_name(node)
    return ROWS.get(name or "", NOTHING).splits or name == "tolist"


def pieces_vary(node: fx.Node, values_of: Callable[[fx.Node], list[Any]]) -> bool:
    """Whether the number of pieces may be another one for other inputs.

    Parameters
    ----------
    node : fx.Node
        A call that cuts.
    values_of : callable
        A node's value under the example inputs, and under inputs of other sizes.
    """
    sources = node.all_input_nodes
    own, *others = values_of(sources[0])
    if len(sources) > 1 or not isinstance(own, Tensor):  # a size is among the arguments
        return True
    dim = _dim(node, own.ndim)
    dims = range(own.ndim) if dim is None else (dim,)
    return any(
        isinstance(other, Tensor) and (other.ndim != own.ndim or any(other.shape[d] != own.shape[d] for d in dims))
        for other in others
    )


def _dim(node: fx.Node, ndim: int) -> int | None:
    """The dimension that is cut; None: along all of them, or not told."""
    operation = resolve(node)
    if operation is None or not operation.bound or not operation.row.splits or not ndim:
        return None
    dim = operation.row.along if operation.row.along is not None else operation.get("dim", 0)
    return min(dim, ndim - 1) % ndim if isinstance(dim, int) else None
