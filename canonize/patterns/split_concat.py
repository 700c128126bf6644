r"""BN over concatenated inputs of which only some can take their slice.

The branches that can, fold theirs; on each other branch the slice stays as an affine of its own, which becomes an
explicit linear layer. Used where nothing else applies, so that the explicit layer is as small as possible.

::

    have   Linear, x -> Concat -> BN -> y
    want   Linear', (x -> affine) -> Concat -> y
"""

from __future__ import annotations

from torch import fx

from canonize.flow import Plan, Refused, plan_backward
from canonize.graph.network import Network
from canonize.patterns.pattern import LINEAR_WAY, AffinePattern, Stage, must_pass


class SplitOverConcat(AffinePattern):
    """Fold the slices of an affine that can be folded."""

    name = "split_concat"
    summary = "Concat -> BN with some branches shared: fold the free branches, keep the rest explicit"
    stage = Stage.SPLIT

    def check(self, network: Network, node: fx.Node) -> Plan | Refused:
        """Walk towards the producers; leave the affine on branches that cannot take it."""
        plan = plan_backward(network, node, LINEAR_WAY | {"concat"}, stay=True)
        if isinstance(plan, Plan) and not plan.into and not plan.merged:
            return Refused("no branch of it can be folded")
        return must_pass(plan, "concat", "no concatenation lies before it")
