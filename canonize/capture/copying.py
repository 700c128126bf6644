"""A copy of a model that can be worked on, without a copy of its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def eval_copy(model: nn.Module) -> nn.Module:
    """A structural copy of a model in eval mode that shares every tensor with it.

    The copy has modules, hooks and flags of its own: whatever is done to it, the original stays as it was.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in _reachable_tensors(vars(module)):
            memo[id(value)] = value
    duplicate = copy.deepcopy(model, memo)
    # Not .eval(): a train() of the model's own may write into weights, which the copy shares.
    for module in duplicate.modules():
        module.training = False
    return duplicate


def _reachable_tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _reachable_tensors(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from _reachable_tensors(item, depth - 1)
