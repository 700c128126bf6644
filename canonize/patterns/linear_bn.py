r"""Linear -> BN: the layer before takes the affine.

.. math:: s (W x + b) + t = (s W) x + (s b + t)

(Eq. 3 of Pahde et al. 2023.)

::

    have   x -> Linear(W, b) -> [pool, reshape, pad, sum of linear layers, ...] -> BN(s, t) -> y
    want   x -> Linear(sW, sb + t) -> [the same] -> y

Every linear layer that reaches the BN takes its part; none may be read by anybody else on the way.
"""

from __future__ import annotations

from torch import fx

from canonize.flow import Plan, Refused, plan_backward
from canonize.graph.network import Network
from canonize.patterns.pattern import LINEAR_WAY, AffinePattern, Stage


class LinearThenBatchNorm(AffinePattern):
    """Fold an affine into the linear layer before it."""

    name = "linear_bn"
    summary = "Linear/Conv/ConvTranspose -> BN: fold into the layer before"
    stage = Stage.BACKWARD

    def check(self, network: Network, node: fx.Node) -> Plan | Refused:
        """Walk towards the producers."""
        return plan_backward(network, node, LINEAR_WAY)
