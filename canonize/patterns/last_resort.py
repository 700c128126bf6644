r"""The last resort: an affine that nobody can take becomes an explicit linear layer.

.. math:: s_c x_c + t_c

as a 1x1 depthwise convolution with weight :math:`s` and bias :math:`t` (or its 1-D, 3-D or dense kin): a linear layer,
for which every explainer has a rule. The report names each with the reasons of the patterns that refused.

::

    have   x -> BN(s, t) -> y
    want   x -> Conv(weight=s, bias=t, groups=C) -> y
"""

from __future__ import annotations

import torch
from torch import fx

from canonize.flow.linear_layers import as_linear_layer
from canonize.flow.plan import Plan, Refused, label
from canonize.graph.network import FrozenAffine, Network, keep_exact, value_dtype
from canonize.nn import Offset
from canonize.patterns.pattern import AffinePattern, Stage


class ExplicitLinearLayer(AffinePattern):
    """Turn an affine into a depthwise linear layer."""

    name = "last_resort"
    summary = "nothing can take it: an explicit 1x1 depthwise linear layer"
    stage = Stage.LAST_RESORT

    def match(self, network: Network, node: fx.Node) -> bool:
        """Any affine that is left."""
        return isinstance(network.module(node), FrozenAffine)

    def check(self, network: Network, node: fx.Node) -> Plan | Refused:
        """The affine must be one number per channel along a dimension of fixed size."""
        dim = self._dim(network, node)
        if dim is None:
            return Refused("it is not one number per channel along a dimension of fixed size", (label(network, node),))
        return Plan(node, into=[str(node.target)])

    def _dim(self, network: Network, node: fx.Node) -> int | None:
        affine = network.affine(node).affine.compress()
        shape = network.shapes.shape(node)
        varying = affine.varying()
        if shape is None or len(varying) > 1:
            return None
        if 0 in shape:
            return None
        if varying:
            return varying.pop()
        free = network.shapes.free_dims(node)
        return next((d for d in (1, *range(len(shape) - 1, 1, -1)) if d < len(shape) and d not in free), None)

    def rewrite(self, network: Network, plan: Plan) -> None:
        """Exchange the affine for the layer; it keeps the name of what it replaces."""
        node = plan.anchor
        affine = network.affine(node).affine.compress()
        dim, shape = self._dim(network, node), network.shapes.shape(node)
        assert dim is not None and shape is not None
        # Parts of a model may run in another precision than its weights.
        sample = torch.empty(0, dtype=value_dtype(network, node) or network.dtype, device=network.device)
        network.replace(node, as_linear_layer(affine, shape, dim, sample))


def keep_as_it_is(network: Network, node: fx.Node) -> None:
    """An affine without a linear layer of its kind stays, as a module that scales and shifts."""
    affine = network.affine(node).affine.compress()
    dtype = value_dtype(network, node)
    scale = None if bool((affine.scale == 1).all()) else keep_exact(affine.scale, dtype)
    network.replace(node, Offset(scale, None if affine.is_linear else keep_exact(affine.shift, dtype)))
