r"""Every BatchNorm as a depthwise 1x1 convolution: nothing is folded, each keeps a layer (and relevance) of its own.

.. math:: s_c x_c + t_c

::

    have   x -> Conv -> BN(s, t) -> ReLU -> y
    want   x -> Conv -> Conv1x1(weight=s, bias=t, groups=C) -> ReLU -> y
"""

from __future__ import annotations

from canonize.graph.network import Network
from canonize.patterns.last_resort import ExplicitLinearLayer
from canonize.rewrite.driver import apply_pattern
from canonize.rewrite.form import Form
from canonize.rewrite.journal import Journal


class BatchNormAsConvolution(Form):
    """Write BatchNorms as explicit linear layers."""

    name = "batch_norm_as_convolution"
    summary = "every BatchNorm a depthwise 1x1 convolution of its own, none folded"

    def before(self, network: Network, journal: Journal) -> None:
        """Let the last resort come first."""
        pattern = ExplicitLinearLayer()
        for node in network.affines():
            kinds = [origin.kind.lower().replace("_", "") for origin in network.affine(node).origins]
            if any("batchnorm" in kind for kind in kinds) and apply_pattern(network, pattern, node, journal):
                for origin in (o for o in journal.histories if o.name == str(node.target)):
                    journal.histories[origin].reasons[pattern.name] = f"asked for by the form {self.name}"
