"""Reshapes that undo each other are idle (C5) once nothing stands between them.

``norm(x.flatten(0, 1)).reshape_as(x)`` is ``x`` when the norm is gone: all of these keep the order of the elements.
"""

from __future__ import annotations

from torch import fx, nn

from canonize.graph.network import Network
from canonize.nn import Rearrange
from canonize.vocabulary import NOTHING, row_of


def remove_idle_reshapes(network: Network) -> None:
    """Take out every ``reshape_as(x)`` of what is ``x`` but for its shape, and what nobody reads any more."""
    for node in list(network.graph.nodes):
        if not _is_reshape(network, node, like=True) or len(node.args) != 2:
            continue
        source, like = node.args
        passed: list[fx.Node] = [node]
        while isinstance(source, fx.Node) and source is not like and _is_reshape(network, source):
            passed.append(source)
            source = source.args[0]
        if source is not like or not isinstance(like, fx.Node):
            continue
        network.rewire_readers(node, like)
        for gone in passed:
            if gone.users:
                break
            network.remove(gone)


def _is_reshape(network: Network, node: fx.Node, like: bool = False) -> bool:
    """Whether a node keeps the elements in their order, whatever the memory looks like."""
    module = network.module(node)
    row = row_of(module) if isinstance(module, Rearrange | nn.Flatten | nn.Unflatten) else NOTHING
    return row.orderly and (bool(row.like) or not like)
