"""A copy of a model that can be worked on, without a copy of its weights."""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from canonize.torchscript import translated

# Not subclasses of these: an enumeration's member, say, is copied as its class wants it.
_ATOMS = {
    str, bytes, bool, int, float, complex, type(None), type, types.FunctionType, types.BuiltinFunctionType, torch.dtype,
}  # fmt: skip


def eval_copy(model: nn.Module) -> nn.Module:
    """A structural copy of a model in eval mode that shares every tensor with it.

    The copy has modules, hooks and flags of its own: whatever is done to it, the original stays as it was. TorchScript
    becomes modules that interpret it (`canonize.torchscript`).
    """
    if isinstance(model, torch.jit.ScriptModule):
        return translated(model)
    twin: nn.Module = duplicate(model, {})
    # Not .eval(): a train() of the model's own may write into weights, which the copy shares.
    for module in twin.modules():
        module.__dict__["training"] = False
    return twin


def duplicate(value: Any, memo: dict[int, Any]) -> Any:
    """What ``copy.deepcopy`` does, for what modules are made of; it takes several times as long over them.

    Tensors are shared, but for those whose copies ``memo`` knows, by their ``id``.
    """
    kind: Any = type(value)
    if kind in _ATOMS:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if isinstance(value, Tensor):
        return value  # shared
    if kind is dict or kind is OrderedDict:
        memo[id(value)] = same = kind()
        for key, item in value.items():
            same[key if type(key) is str else duplicate(key, memo)] = duplicate(item, memo)
        return same
    if kind is list:
        items: list[Any] = []
        memo[id(value)] = items
        items.extend(duplicate(item, memo) for item in value)
        return items
    if kind is tuple and all(type(item) in _ATOMS for item in value):
        return value
    if isinstance(value, torch.jit.ScriptModule):
        memo[id(value)] = part = translated(value)
        return part
    if isinstance(value, nn.Module) and is_plain(kind):
        memo[id(value)] = twin = object.__new__(kind)
        own = twin.__dict__
        for name, item in value.__dict__.items():
            own[name] = item if type(item) in _ATOMS else duplicate(item, memo)
        return twin
    for tensor in _tensors_of(value):
        memo.setdefault(id(tensor), tensor)
    return copy.deepcopy(value, memo)


@functools.lru_cache(maxsize=4096)
def is_plain(kind: Any) -> bool:
    """Whether a class of modules is copied as ``nn.Module`` is; torch's own only set defaults on the way."""
    if hasattr(kind, "__deepcopy__"):
        return False
    ways = ("__setstate__", "__getstate__", "__reduce__", "__reduce_ex__")
    found = [getattr(kind, way, None) for way in ways]
    plain = [getattr(nn.Module, way, None) for way in ways]
    return all(
        it is usual or str(getattr(it, "__module__", "")).startswith("torch.nn.modules.conv")
        for it, usual in zip(found, plain, strict=True)
    )


def _tensors_of(value: Any) -> Iterator[Tensor]:
    for part in value.modules() if isinstance(value, nn.Module) else [value]:
        yield from _reachable_tensors(vars(part) if isinstance(part, nn.Module) else part)


def _reachable_tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _reachable_tensors(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from _reachable_tensors(item, depth - 1)
