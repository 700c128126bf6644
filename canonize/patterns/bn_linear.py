r"""BN -> Linear: the layers behind take the affine.

.. math:: W (s x + t) + b = (W s) x + (b + \sum W t)

(Eq. 4 of Pahde et al. 2023.) A convolution that pads with zeros gets an explicit padding of :math:`z = -t/s` per
channel, which the affine maps to zero; a dead channel becomes a constant first.

::

    have   x -> BN(s, t) -> [pool, reshape, pad, ...] -> every reader a Linear(W, b)
    want   x -> [the same] -> (ChannelPad(z)) -> Linear(W s, b + sum W t)
"""

from __future__ import annotations

from torch import fx

from canonize.flow import Plan, Refused, plan_forward
from canonize.graph.network import Network
from canonize.patterns.pattern import LINEAR_WAY, AffinePattern, Stage


class BatchNormThenLinear(AffinePattern):
    """Fold an affine into every linear layer behind it."""

    name = "bn_linear"
    summary = "BN -> Linear/Conv: fold into every layer behind, borders exact"
    stage = Stage.FORWARD

    def check(self, network: Network, node: fx.Node) -> Plan | Refused:
        """Walk towards the readers."""
        return plan_forward(network, node, LINEAR_WAY)
