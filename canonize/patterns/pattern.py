"""What a pattern is: match says where, check says whether it is valid here and why not, rewrite carries it out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import fx

from canonize.flow.plan import Plan, Refused, commit
from canonize.graph.network import FrozenAffine, Network

Strategy = Literal["always", "threshold", "untangle", "on request"]
# What an affine may pass without changing what lies on the way.
LINEAR_WAY = frozenset({"movement", "average", "maximum", "padding", "sum", "gate"})


class Pattern(ABC):
    """A rewrite around one frozen affine.

    Attributes
    ----------
    name : str
        What ``--skip`` and the report call it.
    summary : str
        One line for the catalogue.
    strategy : str
        Which ``--strategy`` uses it.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    strategy: ClassVar[Strategy] = "always"

    def match(self, network: Network, node: fx.Node) -> bool:
        """Whether the pattern could apply at a node; says nothing about validity."""
        module = network.module(node)
        return isinstance(module, FrozenAffine) and not module.last_resort_only

    @abstractmethod
    def check(self, network: Network, node: fx.Node) -> Plan | Refused:
        """Plan the rewrite, or say why it is not valid here. Changes nothing."""

    def rewrite(self, network: Network, plan: Plan) -> None:
        """Carry out a plan."""
        commit(network, plan)


def must_pass(plan: Plan | Refused, kind: str, otherwise: str) -> Plan | Refused:
    """A plan that belongs to a pattern passes a certain kind of operation."""
    if isinstance(plan, Refused) or kind in plan.passed:
        return plan
    return Refused(otherwise)
