r"""BN over concatenated inputs: each branch takes its slice.

.. math:: s \odot [W_1 x_1, W_2 x_2] + t = [s_1 W_1 x_1 + t_1, s_2 W_2 x_2 + t_2]

::

    have   Linear_1, Linear_2 -> Concat -> BN
    want   Linear_1', Linear_2' -> Concat

All branches or none: where one cannot take its slice (its producer is read elsewhere, as in a DenseNet), the affine
moves forward instead (``bn_activation_linear``) or the branches are untangled (``untangle``).
"""

from __future__ import annotations

from torch import fx

from canonize.flow import Plan, Refused, plan_backward
from canonize.graph.network import Network
from canonize.patterns.pattern import LINEAR_WAY, AffinePattern, Stage, must_pass


class BatchNormOverConcat(AffinePattern):
    """Split an affine over the branches of a concatenation and fold each part."""

    name = "concat_bn"
    summary = "Concat -> BN: fold each slice into the layer before its branch"
    stage = Stage.BACKWARD

    def check(self, network: Network, node: fx.Node) -> Plan | Refused:
        """Walk towards the producers, through concatenations."""
        plan = plan_backward(network, node, LINEAR_WAY | {"concat"})
        return must_pass(plan, "concat", "no concatenation lies before it")
