r"""Attention absorbs the affine of its inputs into their projections, :math:`W' = W s`, :math:`b' = b + W t`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from canonize.algebra.affine import Affine
from canonize.flow.edits import TakeProjections
from canonize.flow.linear_layers import channel_vectors
from canonize.flow.plan import Step, forward_rule


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

    step.absorbed(TakeProjections(tuple(parts)))
