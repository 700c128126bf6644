"""Reshapes that undo each other are idle (C5) once nothing stands between them.

``norm(x.flatten(0, 1)).reshape_as(x)`` is ``x`` when the norm is gone: all of these keep the order of the elements.
"""

from __future__ import annotations

from torch import fx, nn

from canonize.graph.network import Network
from canonize.nn import Rearrange

# They keep the elements in their order, whatever the memory looks like.
_ORDERLY = ("flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze", "reshape_as", "view_as")
_BACK = ("reshape_as", "view_as")


def remove_idle_reshapes(network: Network) -> None:
    """Take out every ``reshape_as(x)`` of what is ``x`` but for its shape, and what nobody reads any more."""
    for node in list(network.graph.nodes):
        if not _is_reshape(network, node, _BACK) or len(node.args) != 2:
            continue
        source, like = node.args
        passed: list[fx.Node] = [node]
        while isinstance(source, fx.Node) and source is not like and _is_reshape(network, source, _ORDERLY):
            passed.append(source)
            source = source.args[0]
        if source is not like or not isinstance(like, fx.Node):
            continue
        network.rewire_readers(node, like)
        for gone in passed:
            if gone.users:
                break
            network.remove(gone)


def _is_reshape(network: Network, node: fx.Node, names: tuple[str, ...]) -> bool:
    module = network.module(node)
    if isinstance(module, nn.Flatten | nn.Unflatten):
        return type(module).__name__.lower() in names
    return isinstance(module, Rearrange) and module.target.rpartition(".")[2] in names
