"""Which layer of a canonical model gives what a container of the original returned: a block, a stage, an encoder.

The containers of a graph are names without calls: a hook on one never runs. What they returned is a value of the graph,
found by the path that each node was made on: the only value of a container's that anybody outside reads.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from canonize.algebra.affine import Affine
from canonize.graph.affine_nodes import FrozenAffine
from canonize.graph.network import Network


def containers(names: Iterable[str], before: Network, after: Network) -> dict[str, str | None]:
    """Container to the layer that gives its value; None where no layer does.

    Parameters
    ----------
    names : iterable of str
        Qualified names of the original's containers.
    before, after : Network
        The model's graph, and what rewrites have made of it.

    Notes
    -----
    None stands for containers that return several values, or one that no layer gives any more: where a BatchNorm at its
    end went into layers behind it, say, or each reader has a copy of its own.
    """
    wanted = {name for name in names if name}
    gives: dict[str, list[tuple[str, Affine | None]]] = {}
    for node in after.graph.nodes:
        counterpart = after.values.counterpart(node.name) if node.op == "call_module" else None
        if counterpart is not None:
            gives.setdefault(counterpart, []).append((str(node.target), after.values.relation(node.name)))
    returned = _returned(before.graph, wanted)
    return {name: _giving(before, returned[name], gives) if name in returned else None for name in sorted(wanted)}


def _giving(before: Network, value: fx.Node, gives: dict[str, list[tuple[str, Affine | None]]]) -> str | None:
    """The layer whose output a value of the original is: its own, or that of the layer that took up its affine."""
    needed: Affine | None = None
    while True:
        for target, relation in gives.get(value.name, ()):
            if _same(relation, needed):
                return target
        layer = before.modules.get(str(value.target)) if value.op == "call_module" else None
        if not isinstance(layer, FrozenAffine):
            return None
        needed = layer.affine if needed is None else needed.after(layer.affine)
        value = value.all_input_nodes[0]


def _same(one: Affine | None, other: Affine | None) -> bool:
    if one is None or other is None:
        return one is other
    one, other = one.compress(), other.compress()
    return all(
        a.numel() == b.numel() and torch.allclose(a.flatten(), b.flatten(), rtol=1e-9, atol=1e-300)
        for a, b in ((one.scale, other.scale), (one.shift, other.shift))
    )


def _returned(graph: fx.Graph, wanted: set[str]) -> dict[str, fx.Node]:
    """Container to the node that it returned, where that is one node."""
    inside: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        path = str(node.meta.get("path") or "")
        parts = path.split(".") if path and node.op not in ("placeholder", "output") else []
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[:length])
            if name in wanted:
                inside.setdefault(name, []).append(node)
    found: dict[str, fx.Node] = {}
    for name, nodes in inside.items():
        own = set(nodes)
        read = [node for node in nodes if any(user not in own for user in node.users)]
        if len(read) == 1:
            found[name] = read[0]
    return found
