"""What was read, looked over before anything of it runs: no method replaced, no hook smuggled in, no tensor of air."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, SpectralNormStateDictHook
from torch.nn.utils.weight_norm import WeightNorm

from canonize import nn as cnn
from canonize.errors import LoadError
from canonize.vocabulary.safe_calls import is_safe_call

_HOOKS = tuple(name for name in vars(nn.Module()) if "hooks" in name)
_KNOWN_HOOKS = (WeightNorm, SpectralNorm, SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook)
# Tensors may repeat what their storage holds, as an expanded buffer does; beyond this it is a bomb.
_EXPANDED = 64 * 2**20


def audit(content: Any, path: Path) -> None:
    """Look over what a file held.

    Raises
    ------
    LoadError
        If an instance hides a method of its class, carries hooks that no torch module puts there, names a function that
        a file may not bring in, or holds a tensor many times larger than its memory.
    """
    try:
        for where, module in _modules(content):
            _tables(module, where, path)
            _methods(module, where, path)
            _hooks(module, where, path)
            if isinstance(module, cnn.Call):
                _call(module, where, path)
        for tensor in _tensors(content):
            _size(tensor, path)
    except RecursionError as error:
        raise LoadError("nests too deeply", where=str(path), hint="Save or download it again") from error


def _modules(content: Any) -> Iterator[tuple[str, nn.Module]]:
    """Every module that can be reached, with the name it has there."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            yield name, value
        if isinstance(value, functools.partial):
            waiting += [(name, item) for item in (value.func, value.args, value.keywords)]
        waiting += [(f"{name}.{key}".strip("."), item) for key, item in _inside(value)]


def _inside(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(str(index), item) for index, item in enumerate(value)]
    if isinstance(value, nn.Module):
        own = vars(value)
        return [
            *((k, v) for k, v in own.items() if k not in ("_modules", "_parameters", "_buffers")),
            *(pair for table in ("_modules", "_parameters", "_buffers") for pair in _inside(own.get(table))),
        ]
    return []


def _tensors(content: Any) -> Iterator[Tensor]:
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        waiting += [item for _, item in _inside(value)]


def _tables(module: nn.Module, where: str, path: Path) -> None:
    kinds: dict[str, Any] = {"_parameters": nn.Parameter, "_buffers": Tensor, "_modules": nn.Module}
    for table, kind in kinds.items():
        entries = vars(module).get(table)
        if not isinstance(entries, dict) or not all(
            isinstance(name, str) and (value is None or isinstance(value, kind)) for name, value in entries.items()
        ):
            raise _refusal(path, where, f"the {table[1:]} of {_called(where, module)} are not what a module has")


def _methods(module: nn.Module, where: str, path: Path) -> None:
    graph = isinstance(module, fx.GraphModule)
    for name in vars(module):
        if not isinstance(name, str) or (callable(getattr(type(module), name, None)) and not graph):
            raise _refusal(path, where, f"{_called(where, module)} replaces its own method {name!r}")


def _hooks(module: nn.Module, where: str, path: Path) -> None:
    for table in _HOOKS:
        hooks = vars(module).get(table) or {}
        values = hooks.values() if isinstance(hooks, dict) else [hooks]
        for hook in values:
            inner = getattr(hook, "hook", hook)  # torch wraps some of its own
            if not isinstance(inner, (bool, *_KNOWN_HOOKS)):
                raise _refusal(path, where, f"{_called(where, module)} carries a hook ({type(inner).__name__})")


def _call(module: cnn.Call, where: str, path: Path) -> None:
    own = vars(module)
    if own.get("function") is not None or not is_safe_call(own.get("target"), own.get("args")):
        raise _refusal(path, where, f"{where or 'it'} calls {str(own.get('target'))[:80]!r}")


def _size(tensor: Tensor, path: Path) -> None:
    if tensor.layout is not torch.strided or tensor.is_nested:
        return
    if tensor.is_meta:
        raise LoadError("holds tensors without values", where=str(path), hint="Save the model with its weights")
    size = tensor.numel() * tensor.element_size()
    if size > _EXPANDED and size > tensor.untyped_storage().nbytes():
        raise LoadError(
            f"holds a tensor of {size / 2**20:,.0f} MB in {tensor.untyped_storage().nbytes():,} bytes",
            where=str(path),
            hint="Save it with its own memory: tensor.contiguous()",
        )


def _called(where: str, module: nn.Module) -> str:
    return f"the layer {where} ({type(module).__name__})" if where else f"the {type(module).__name__}"


def _refusal(path: Path, where: str, what: str) -> LoadError:
    return LoadError(
        f"{what}, which a file may not bring in unasked",
        where=str(path),
        hint="If you made the file yourself: --trust, or load(path, trust=True)",
    )
