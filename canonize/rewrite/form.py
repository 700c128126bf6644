"""What an optional form is."""

from __future__ import annotations

from typing import ClassVar

from torch import fx

from canonize.graph.network import Network
from canonize.rewrite.journal import Journal


class Form:
    """Another way to write some layers, exact, and off unless asked for.

    Attributes
    ----------
    name : str
        What ``--form`` calls it.
    summary : str
        One line for the catalogue.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    def before(self, network: Network, journal: Journal) -> None:
        """What to do before the affines are absorbed."""

    def after(self, network: Network, journal: Journal) -> None:
        """What to do when everything else is done."""


def rewire_through(network: Network, node: fx.Node, layer: fx.Node) -> None:
    """Make ``layer``, which read ``node``, read what ``node`` reads, and put ``node`` behind it.

    ``node`` must have no other reader. ``A -> node -> layer -> B`` becomes ``A -> layer -> node -> B``.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    layer.replace_input_with(node, source)
    readers = list(layer.users)
    layer.append(node)
    node.replace_input_with(source, layer)
    for reader in readers:
        reader.replace_input_with(layer, node)
    network.shapes.forget(layer)
    network.shapes.forget(node)
