r"""Which value of the network before it was rewritten each of its values stands for, and what lies between the two.

A value :math:`u` of the network stands for a value :math:`v` of the same name before any rewrite, or for another one
that is noted here; :math:`u = s v + t`, an identity unless rewrites have moved an affine to the other side of it.
Nothing is computed before somebody asks: a rewrite only notes what it has moved.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx

from canonize.algebra.affine import Affine


@dataclass
class Correspondence:
    """Notes on the values of a network, by name of their nodes.

    Attributes
    ----------
    stands_for : dict
        Of copies, and of layers that took the place of others: what they stand for; ``None`` for what has no
        counterpart.
    moves : dict
        What has moved past a value: whether it moved forward (from before it to behind it), and the affine.
    """

    stands_for: dict[str, str | None] = field(default_factory=dict)
    moves: dict[str, list[tuple[bool, Affine]]] = field(default_factory=dict)

    def move(self, node: fx.Node, affine: Affine, *, forward: bool) -> None:
        """Note that an affine has moved past a value."""
        self.moves.setdefault(node.name, []).append((forward, affine))

    def copy(self, node: fx.Node, copied: fx.Node) -> None:
        """Note that a node is a copy of another one."""
        self.stands_for[copied.name] = self.stands_for.get(node.name, node.name)
        self.moves[copied.name] = list(self.moves.get(node.name, ()))

    def take_place(self, node: fx.Node, of: fx.Node) -> None:
        """Note that a node gives what another one gave, which is gone."""
        self.stands_for[node.name] = self.stands_for.get(of.name, of.name)
        self.moves[node.name] = list(self.moves.get(of.name, ()))

    def insert(self, node: fx.Node) -> None:
        """Note that a node was put in, and stands for nothing."""
        self.stands_for[node.name] = None

    def counterpart(self, name: str) -> str | None:
        """What a node stands for."""
        return self.stands_for.get(name, name)

    def relation(self, name: str) -> Affine | None:
        """The affine that a value is of the value it stands for; ``None`` for the identity."""
        found: Affine | None = None
        for forward, affine in self.moves.get(name, ()):
            step = _inverse(affine) if forward else affine
            found = step if found is None else step.after(found)
        return found


def _inverse(affine: Affine) -> Affine:
    scale = torch.where(affine.scale == 0, 1.0, affine.scale)
    return Affine(1 / scale, -affine.shift / scale)
