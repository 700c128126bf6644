"""What is known in float64 and rounded once: two kinds of tensors that say so by their type.

Both keep their kind, and what they know, when they are cloned, detached or copied deeply; whatever else is computed
from them is a plain tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from canonize.algebra.affine import EXACT
from canonize.compat.private import without_subclasses

_COPIES: tuple[Callable[..., Tensor], ...] = (torch.clone, Tensor.clone)
_SHARES: tuple[Callable[..., Tensor], ...] = (torch.detach, Tensor.detach)


class _Remembering(Tensor):
    """A tensor whose copies know what it knows."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with without_subclasses():
            made = func(*args, **(kwargs or {}))
            if func in _COPIES or func in _SHARES:
                return args[0]._remember(made, copied=func in _COPIES)
        return made

    def _remember(self, made: Tensor, copied: bool) -> Tensor:
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            memo[id(self)] = torch.clone(self)
        copied: Tensor = memo[id(self)]
        return copied


class RoundedParameter(_Remembering, nn.Parameter):
    """A parameter of a layer's own dtype that remembers the float64 value it was rounded from.

    Attributes
    ----------
    exact : Tensor
        The value, float64.
    """

    exact: Tensor

    @staticmethod
    def of(exact: Tensor, dtype: torch.dtype, requires_grad: bool) -> RoundedParameter:
        """Round a float64 value."""
        made = Tensor._make_subclass(RoundedParameter, exact.detach().to(dtype, copy=True), requires_grad)
        made.exact = exact.detach()
        return made

    def _remember(self, made: Tensor, copied: bool) -> RoundedParameter:
        twin = Tensor._make_subclass(RoundedParameter, made.detach(), self.requires_grad and copied)
        twin.exact = self.exact.clone() if copied else self.exact
        return twin


class ExactTensor(_Remembering):
    """A float64 tensor made by canonize, which is rounded when the model is built.

    Attributes
    ----------
    rounding : torch.dtype or None
        What it is rounded to; the model's own precision where that was not noted. Parts of a model may compute in
        another precision than its weights have.
    """

    rounding: torch.dtype | None

    @staticmethod
    def of(tensor: Tensor, rounding: torch.dtype | None = None) -> ExactTensor:
        """Mark a copy of a tensor."""
        made = Tensor._make_subclass(ExactTensor, exact_value(tensor).clone())
        made.rounding = rounding
        return made

    def _remember(self, made: Tensor, copied: bool) -> ExactTensor:
        twin = Tensor._make_subclass(ExactTensor, made.detach())
        twin.rounding = self.rounding
        return twin


def exact_parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    """A parameter of the dtype of ``like`` that remembers its float64 value, so that it is rounded only once.

    ``exact_value`` reads it back.
    """
    if value.dtype == EXACT and like.dtype != EXACT:
        return RoundedParameter.of(value, like.dtype, like.requires_grad)
    return nn.Parameter(value.detach().to(like.dtype).clone(), requires_grad=like.requires_grad)


def exact_value(tensor: Tensor) -> Tensor:
    """The float64 value that a parameter was rounded from; the tensor itself where there is none."""
    if isinstance(tensor, RoundedParameter):
        return tensor.exact
    if isinstance(tensor, ExactTensor):
        with without_subclasses():
            return tensor.detach()
    return tensor.detach()
