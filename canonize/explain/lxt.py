r"""Rules of LXT (``lxt.explicit``) for the modules of canonical models.

LXT's epsilon rule multiplies gradients in place, and those of a sum's arguments are one tensor: each argument then gets
the product with all of them. The rule here shares by contribution, :math:`R_i = w_i x_i / (y + \epsilon) R`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from canonize import nn as cnn
from canonize.algebra.weights import LINEAR
from canonize.explain.libraries import require
from canonize.vocabulary.kinds import ACTIVATIONS, AVERAGES

rules = require("lxt.explicit.rules")


class SumRule(rules.WrapModule):  # type: ignore[name-defined]
    """Relevance of a sum, to each argument by its share."""

    def forward(self, *terms: Tensor) -> Tensor:
        """The sum."""
        output: Tensor = _Shared.apply(self.module, 1e-8, *terms)
        return output


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: Any, epsilon: float, *terms: Tensor) -> Tensor:
        output: Tensor = module(*terms)
        ctx.module, ctx.epsilon = module, epsilon
        ctx.save_for_backward(*terms, output)
        return output

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Any, ...]:
        *terms, output = ctx.saved_tensors
        ratio = relevance / (output + ctx.epsilon)
        shares = zip(ctx.module.weights, terms, strict=True)
        return (None, None, *((weight * term * ratio).sum_to_size(term.shape) for weight, term in shares))


def layer_map() -> dict[Any, Any]:
    """What ``lxt.explicit.core.Composite`` maps modules of a canonical model to: epsilon everywhere.

    Returns
    -------
    dict
        Type to rule. Linear layers, averages: epsilon; sums: by contribution; activations: the identity. Thresholds,
        pooling and what moves elements have the gradient.

    Notes
    -----
    LXT exchanges modules of the model it is given: give it a copy.
    """
    return (
        dict.fromkeys((*LINEAR, *AVERAGES), rules.EpsilonRule)
        | dict.fromkeys(ACTIVATIONS, rules.IdentityRule)
        | {cnn.Sum: SumRule}
    )


__all__ = ["SumRule", "layer_map"]
