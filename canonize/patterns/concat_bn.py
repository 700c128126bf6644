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
from canonize.flow.plan import label
from canonize.graph.network import Network
from canonize.nn import Concat, Rearrange
from canonize.patterns.pattern import LINEAR_WAY, Pattern, must_pass


class BatchNormOverConcat(Pattern):
    """Split an affine over the branches of a concatenation and fold each part."""

    name = "concat_bn"
    summary = "Concat -> BN: fold each slice into the layer before its branch"

    def check(self, network: Network, node: fx.Node) -> Plan | Refused:
        """Walk towards the producers, through concatenations."""
        shared = self._shared_branch(network, node)
        if shared is not None:
            return shared
        plan = plan_backward(network, node, LINEAR_WAY | {"concat"})
        return must_pass(plan, "concat", "no concatenation lies before it")

    def _shared_branch(self, network: Network, node: fx.Node) -> Refused | None:
        """See without a plan that a branch is read elsewhere: in a DenseNet every concatenation has dozens."""
        source, affine = node.args[0], network.affine(node).affine
        if not isinstance(source, fx.Node) or not isinstance(network.module(source), Concat):
            return None
        if bool(((affine.scale == 1) & (affine.shift == 0)).any()):
            return None  # a branch whose slice is the identity may be read by anybody
        for branch in reversed(network.data_inputs(source)):
            for reader in network.readers(branch):
                if reader is not source and not isinstance(network.module(reader), Rearrange):
                    name = label(network, branch)
                    return Refused(f"{name} is also read by {label(network, reader)}", (name,))
        return None
