"""A copy of a model that can be worked on, without a copy of its weights."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from canonize.torchscript import translated

_ATOMS = (str, bytes, int, float, complex, type(None), type, types.FunctionType, types.BuiltinFunctionType, torch.dtype)


def eval_copy(model: nn.Module) -> nn.Module:
    """A structural copy of a model in eval mode that shares every tensor with it.

    The copy has modules, hooks and flags of its own: whatever is done to it, the original stays as it was. TorchScript
    becomes modules that interpret it (`canonize.torchscript`).
    """
    if isinstance(model, torch.jit.ScriptModule):
        return translated(model)
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in _reachable_tensors(vars(module)):
            memo[id(value)] = value
    duplicate: nn.Module = _duplicate(model, memo)
    # Not .eval(): a train() of the model's own may write into weights, which the copy shares.
    for module in duplicate.modules():
        module.training = False
    return duplicate


def _duplicate(value: Any, memo: dict[int, Any]) -> Any:
    """What ``copy.deepcopy`` does, for what modules are made of; it takes several times as long over them."""
    if isinstance(value, _ATOMS):
        return value
    if id(value) in memo:
        return memo[id(value)]
    kind = type(value)
    if kind is dict or kind is OrderedDict:
        memo[id(value)] = same = kind()
        for key, item in value.items():
            same[_duplicate(key, memo)] = _duplicate(item, memo)
        return same
    if kind is list:
        items: list[Any] = []
        memo[id(value)] = items
        items.extend(_duplicate(item, memo) for item in value)
        return items
    if isinstance(value, torch.jit.ScriptModule):
        memo[id(value)] = part = translated(value)
        return part
    if isinstance(value, nn.Module) and _is_plain(kind):
        memo[id(value)] = twin = object.__new__(kind)
        twin.__dict__.update((name, _duplicate(item, memo)) for name, item in vars(value).items())
        return twin
    return copy.deepcopy(value, memo)


def _is_plain(kind: type) -> bool:
    """Whether a class of modules is copied as ``nn.Module`` is."""
    if hasattr(kind, "__deepcopy__"):
        return False
    ways = ("__setstate__", "__getstate__", "__reduce__", "__reduce_ex__")
    return all(getattr(kind, way, None) is getattr(nn.Module, way, None) for way in ways)


def _reachable_tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _reachable_tensors(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from _reachable_tensors(item, depth - 1)
