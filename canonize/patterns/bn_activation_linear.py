r"""BN -> ReLU -> Linear: the kink moves to a threshold, the layers behind take the affine.

.. math:: \mathrm{ReLU}(s x + t) = s\,\mathrm{ThreshReLU}_z(x) + t, \qquad
          z = -t/s = \mu - \beta\sqrt{\sigma^2+\epsilon}/\gamma

(Eq. 7 of Pahde et al. 2023.) The affine then goes on through pooling, flattening and concatenation to the linear
layers behind, as in ``bn_linear``.

Under the strategy ``untangle`` it takes what no copy of a producer can: a BatchNorm behind max-pooling, and the part of
one that untangling has left on a branch without a layer (so does the published form).

::

    have   x -> BN(s, t) -> ReLU -> (AvgPool -> Flatten) -> Linear(W, b)
    want   x -> ThreshReLU(z) -> (AvgPool -> Flatten) -> Linear(W s, b + sum W t)
"""

from __future__ import annotations

from torch import fx

from canonize.flow import Plan, Refused, plan_forward
from canonize.graph.affine_nodes import FrozenAffine
from canonize.graph.network import Network
from canonize.patterns.pattern import LINEAR_WAY, AffinePattern, Stage, must_pass


class BatchNormThenActivationThenLinear(AffinePattern):
    """Move an affine through piecewise-linear activations into the linear layers behind."""

    name = "bn_activation_linear"
    summary = "BN -> ReLU/ReLU6/LeakyReLU/PReLU -> (pool, flatten) -> Linear: threshold, then fold behind"
    stage = Stage.THRESHOLD
    strategy = "always"

    def match(self, network: Network, node: fx.Node) -> bool:
        """Any affine, one that was left on a branch included: thresholds come before the last resort."""
        return isinstance(network.module(node), FrozenAffine)

    def check(self, network: Network, node: fx.Node) -> Plan | Refused:
        """Walk towards the readers, through activations."""
        plan = plan_forward(network, node, LINEAR_WAY | {"concat", "activation"})
        return must_pass(plan, "activation", "no activation lies behind it")
