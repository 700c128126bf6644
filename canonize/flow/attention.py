r"""Attention absorbs the affine of its inputs into their projections, :math:`W' = W s`, :math:`b' = b + W t`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.algebra.affine import EXACT, Affine
from canonize.algebra.exact import exact_parameter, exact_value
from canonize.flow.linear import channel_vectors
from canonize.flow.plan import Step, forward_rule
from canonize.graph.network import Network


@forward_rule(nn.MultiheadAttention)
def attention_takes_input(step: Step, incoming: list[Affine | None]) -> None:
    """Query, key and value are projected by the rows of one matrix."""
    module: Any = step.module
    step.require(isinstance(module.in_proj_weight, Tensor), f"{step.label()} projects query, key and value apart")
    step.require(len(incoming) >= 3 and not any(incoming[3:]), f"{step.label()} is called with other arguments")
    inputs = step.network.data_inputs(step.node)
    width = module.embed_dim
    parts = [
        None if affine is None else channel_vectors(step, affine, -1, node, width)
        for affine, node in zip(incoming[:3], inputs[:3], strict=True)
    ]

    def absorb(net: Network, node: fx.Node) -> None:
        attention: Any = net.module(node)
        old_weight, old_bias = attention.in_proj_weight, attention.in_proj_bias
        weight = exact_value(old_weight).to(EXACT).clone()
        bias = torch.zeros(3 * width, dtype=EXACT, device=weight.device)
        if old_bias is not None:
            bias = exact_value(old_bias).to(EXACT).clone()
        for i, part in enumerate(parts):
            if part is not None:
                rows = slice(i * width, (i + 1) * width)
                scale, shift = part
                bias[rows] += weight[rows] @ shift
                weight[rows] *= scale
        attention.in_proj_weight = exact_parameter(weight, old_weight)
        attention.in_proj_bias = exact_parameter(bias, old_weight)

    step.absorbed(absorb)
