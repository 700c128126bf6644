"""Write down what a rewritten network knows of its own values."""

from __future__ import annotations

from typing import Any

from torch import fx

from canonize.graph.network import Network
from canonize.nn import Offset, ThreshReLU
from canonize.verify.certificate.data import Certificate
from canonize.verify.certificate.linear import explicit, kind


def certificate_of(
    before: Network,
    network: Network,
    built: fx.GraphModule,
    settings: dict[str, Any] | None = None,
    hashes: dict[str, str] | None = None,
) -> Certificate:
    """The certificate of a canonical model.

    Parameters
    ----------
    before, network : Network
        The network before it was rewritten, and after.
    built : fx.GraphModule
        What was built from it.
    settings, hashes : dict, optional
        How it was made, and from what.
    """
    known = {node.name for node in before.graph.nodes}
    stands_for: dict[str, str | None] = {}
    taken: dict[str, tuple[Any, Any]] = {}
    for node, written in zip(network.graph.nodes, built.graph.nodes, strict=True):
        counterpart = network.values.counterpart(node.name)
        stands_for[written.name] = counterpart if counterpart in known else None
        module = network.module(node)
        alone = stands_for[written.name] is None
        if kind(module) is None and not (alone and isinstance(module, ThreshReLU | Offset)):
            continue
        relation = network.values.relation(node.name)
        if relation is not None and not relation.is_identity:
            taken[written.name] = relation.scale.tolist(), relation.shift.tolist()
        put_in = _put_in(network, node) if alone else None
        if put_in is not None:
            taken[written.name] = put_in
    return Certificate(stands_for, taken, settings or {}, hashes or {})


def _put_in(network: Network, node: fx.Node) -> tuple[Any, Any] | None:
    """What an explicit affine that was put in does to what it reads, as it was before it was rounded."""
    shape = network.shapes.shape(node)
    if shape is None or (kind(network.module(node)) is None and not isinstance(network.module(node), Offset)):
        return None
    found = explicit(network.module(node), len(shape))
    if found is None or (str(node.target) in network.pending and network.weights(node).touched):
        return None
    return found[0].tolist(), found[1].tolist()
