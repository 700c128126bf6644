"""Tensors that remember the float64 value they were rounded from, so that a weight is rounded once."""

from __future__ import annotations

from torch import Tensor, nn

from canonize.algebra.affine import EXACT


def exact_parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    """A parameter of the dtype of ``like`` that remembers its float64 value, so that it is rounded only once.

    ``exact_value`` reads it back.
    """
    parameter = nn.Parameter(value.detach().to(like.dtype).clone(), requires_grad=like.requires_grad)
    if value.dtype == EXACT and like.dtype != EXACT:
        parameter.exact = value.detach()  # type: ignore[attr-defined]
    return parameter


def exact_value(tensor: Tensor) -> Tensor:
    """The float64 value that a baked parameter was rounded from; the tensor itself where there is none."""
    exact: Tensor = getattr(tensor, "exact", tensor)
    return exact.detach()
