"""Calls that cut a tensor into pieces: how many there are follows from a size."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

# The position of the dimension that is cut, and what it is where nobody says it; None: along all of them, or several.
_CUT_ALONG: dict[str, tuple[int, int] | None] = {
    "chunk": (2, 0), "split": (2, 0), "split_with_sizes": (2, 0), "tensor_split": (2, 0), "unsafe_chunk": (2, 0),
    "unsafe_split": (2, 0), "unbind": (1, 0), "hsplit": None, "vsplit": None, "dsplit": None, "tolist": None,
}  # fmt: skip


def cuts(node: fx.Node) -> bool:
    """Whether a call gives the pieces of a tensor."""
    return _name(node) in _CUT_ALONG


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
    place = _CUT_ALONG[_name(node)]
    if place is None or not ndim:
        return None
    position, usual = place
    dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", node.kwargs.get("axis", usual))
    return operator.index(dim) % ndim if isinstance(dim, int) else None


def _name(node: fx.Node) -> str:
    if node.op not in ("call_function", "call_method"):
        return ""
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))
