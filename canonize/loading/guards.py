"""Checks of input sizes as part of a graph: where a file was made for certain sizes, no other may go in unnoticed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from canonize.capture.captured import GUARD


def guard(module: fx.GraphModule, fixed: Sequence[tuple[fx.Node, dict[int, int]]]) -> None:
    """Let a graph module refuse inputs of other sizes.

    Parameters
    ----------
    module : fx.GraphModule
        Changed in place.
    fixed : sequence of (fx.Node, dict)
        A placeholder, and for each of its dimensions that is fixed, the size.
    """
    graph = module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if not placeholders:
        return
    with graph.inserting_before(placeholders[-1].next):
        for node, sizes in fixed:
            for place, size in sizes.items():
                graph.call_function(check_size, (node, place, size, str(node.target)))
    module.recompile()


def check_size(tensor: Tensor, place: int, size: int, name: str) -> None:
    """Raise where a tensor has another size along one dimension."""
    torch._assert(tensor.shape[place] == size, f"{GUARD}: {name} must have size {size} along dimension {place}")
