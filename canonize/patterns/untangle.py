r"""Untangling: a producer that several BNs read is copied, once per BN, and each BN folds into its copy.

.. math:: s_k W x + t_k = (s_k W) x + t_k \quad\text{for each reader } k

The other published form of a canonical DenseNet: plain ReLUs, at the price of more parameters. A BN that some branch
has no linear layer for goes into thresholds as a whole (``bn_activation_linear``), as published: all of DenseNet's that
read the first max-pooling. Where it cannot, the other branches take their parts, and an explicit layer the rest.

::

    have   Conv -> Concat_1 -> BN_1 -> ReLU ...        want   Conv_1 -> Concat_1 -> ReLU ...
              \--> Concat_2 -> BN_2 -> ReLU ...               Conv_2 -> Concat_2 -> ReLU ...
"""

from __future__ import annotations

from torch import fx

from canonize.flow import Plan, Refused, plan_backward
from canonize.graph.network import Network
from canonize.patterns.bn_activation_linear import BatchNormThenActivationThenLinear
from canonize.patterns.pattern import LINEAR_WAY, AffinePattern, Stage


class Untangle(AffinePattern):
    """Duplicate shared producers and fold each reader's affine into its copy."""

    name = "untangle"
    summary = "several BNs read one layer: copy the layer once per BN and fold into the copy"
    stage = Stage.THRESHOLD
    strategy = "untangle"

    def check(self, network: Network, node: fx.Node) -> Plan | Refused:
        """Walk towards the producers, copying what others read."""
        plan = plan_backward(network, node, LINEAR_WAY | {"concat"}, duplicate=True, stay=True)
        if not isinstance(plan, Plan):
            return plan
        if not plan.into and not plan.merged:
            return Refused("no linear layer lies upstream of any branch")
        whole = plan_backward(network, node, LINEAR_WAY | {"concat"}, duplicate=True)
        if isinstance(whole, Refused) and isinstance(_THRESHOLDS.check(network, node), Plan):
            return Refused(f"{whole.reason}; a threshold takes all of it")
        return plan


_THRESHOLDS = BatchNormThenActivationThenLinear()
