"""What a pattern is: match says where, check says whether it is valid here and why not, rewrite carries it out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import ClassVar, Generic, Literal, TypeVar

from torch import fx

from canonize.flow.plan import Plan, Refused, commit
from canonize.graph.affine_nodes import FrozenAffine
from canonize.graph.network import Network

Strategy = Literal["always", "threshold", "untangle", "on request"]
# What an affine may pass without changing what lies on the way.
LINEAR_WAY = frozenset({"movement", "average", "maximum", "padding", "sum", "gate"})


class Stage(Enum):
    """When a pattern is tried; the first five by turns, until nothing changes."""

    BACKWARD = "into the layers before"
    FORWARD = "into the layers behind"
    THRESHOLD = "behind an activation, or into copies of what is shared"
    SPLIT = "into some of the branches"
    MERGE = "two linear layers become one"
    LAST_RESORT = "what is left becomes a layer of its own"
    FORMS = "other ways to write a layer, on request"

    @property
    def by_turns(self) -> bool:
        """Whether patterns of this stage are tried again after others have changed something."""
        return self not in (Stage.LAST_RESORT, Stage.FORMS)


Planned = TypeVar("Planned", bound=Plan)


class Pattern(ABC, Generic[Planned]):
    """A rewrite around one node: a frozen affine, or the second of two linear layers.

    Attributes
    ----------
    name : str
        What ``--skip`` and the report call it.
    summary : str
        One line for the catalogue.
    stage : Stage
    strategy : str
        Which ``--strategy`` uses it.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    stage: ClassVar[Stage]
    strategy: ClassVar[Strategy] = "always"

    @abstractmethod
    def match(self, network: Network, node: fx.Node) -> bool:
        """Whether the pattern could apply at a node; says nothing about validity."""

    @abstractmethod
    def check(self, network: Network, node: fx.Node) -> Planned | Refused:
        """Plan the rewrite, or say why it is not valid here. Changes nothing."""

    @abstractmethod
    def rewrite(self, network: Network, plan: Planned) -> None:
        """Carry out a plan."""


class AffinePattern(Pattern[Plan]):
    """A rewrite around one frozen affine, which other layers take."""

    def match(self, network: Network, node: fx.Node) -> bool:
        """An affine that other layers may still take."""
        module = network.module(node)
        return isinstance(module, FrozenAffine) and not module.last_resort_only

    def rewrite(self, network: Network, plan: Plan) -> None:
        """Carry out a plan."""
        commit(network, plan)


def must_pass(plan: Plan | Refused, kind: str, otherwise: str) -> Plan | Refused:
    """A plan that belongs to a pattern passes a certain kind of operation."""
    if isinstance(plan, Refused) or kind in plan.passed:
        return plan
    return Refused(otherwise)
