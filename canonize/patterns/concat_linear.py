r"""Concatenation before a linear layer where one branch carries a BN (relation networks).

.. math:: W [s x + t, u] + b = [W_x s, W_u] [x, u] + (b + \sum W_x t)

Only the columns of the weight that the BN's branch feeds change.

::

    have   x -> BN -> Concat(x, coordinates, question) -> Linear
    want   x -> Concat(x, coordinates, question) -> Linear'
"""

from __future__ import annotations

from torch import fx

from canonize.flow import Plan, Refused, plan_forward
from canonize.graph.network import Network
from canonize.patterns.pattern import LINEAR_WAY, AffinePattern, Stage, must_pass


class BranchThenConcatThenLinear(AffinePattern):
    """Fold the affine of one branch into the linear layer behind a concatenation."""

    name = "concat_linear"
    summary = "BN -> Concat -> Linear: fold into the columns that this branch feeds"
    stage = Stage.FORWARD

    def check(self, network: Network, node: fx.Node) -> Plan | Refused:
        """Walk towards the readers, through concatenations."""
        plan = plan_forward(network, node, LINEAR_WAY | {"concat"})
        return must_pass(plan, "concat", "no concatenation lies behind it")
