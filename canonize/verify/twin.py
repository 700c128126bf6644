"""Copies of a model to run in its place: in eval mode, in its own precision or in float64."""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from canonize.capture.copying import duplicate
from canonize.torchscript import constants

_ATOMS = (str, bytes, int, float, complex, bool, type(None), type, types.FunctionType, types.ModuleType, torch.dtype)


def eval_twin(model: nn.Module) -> nn.Module:
    """Copy the structure of a model, share its parameters, and put the copy in eval mode.

    Buffers and other tensors are copied: a forward may write to them. Mode flags are set without calling ``train()``
    or ``eval()``, which some modules override to merge weights in place. Backward hooks are dropped: they are no part
    of the function and would bend its gradient.

    Parameters
    ----------
    model : nn.Module
        Never changed; forward hooks, parametrizations and tensors held as plain attributes come along.

    Returns
    -------
    nn.Module
        Of the same dtypes, on the same devices.
    """

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return tensor.detach().clone()
        # Made under inference_mode it could not be differentiated through.
        return nn.Parameter(tensor.clone(), tensor.requires_grad) if tensor.is_inference() else tensor

    return _copy(model, keep)


def float64_twin(model: nn.Module) -> nn.Module:
    """Copy a model into float64 and put the copy in eval mode.

    Every floating tensor (parameters, buffers, plain attributes, also inside containers) becomes a float64 copy,
    complex ones become complex128, integers are copied as they are. Tied tensors stay tied. Parameters that are
    float64 already are shared.

    Parameters
    ----------
    model : nn.Module
        Never changed.

    Returns
    -------
    nn.Module
        On the same devices.
    """
    return _copy(model, _to_float64)


def _to_float64(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float64 and isinstance(tensor, nn.Parameter) and not tensor.is_inference():
        return tensor
    data = tensor.detach()
    if tensor.is_floating_point():
        wide = data.to(torch.float64, copy=True)
    elif tensor.is_complex():
        wide = data.to(torch.complex128, copy=True)
    else:
        wide = data.clone()
    if not isinstance(tensor, nn.Parameter):
        return wide
    return nn.Parameter(wide, requires_grad=tensor.requires_grad)


def _copy(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    if isinstance(model, torch.jit.ScriptModule):
        return _copy_script(model, replace)
    memo: dict[int, Any] = {}
    for tensor in reachable_tensors(model):
        if id(tensor) not in memo and not is_lazy(tensor):
            memo[id(tensor)] = replace(tensor)
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    twin: nn.Module = copy.deepcopy(model, memo) if scripted else duplicate(model, memo)
    _restore_forgotten(model, twin, memo)
    for module in twin.modules():
        module.training = False
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    return twin


def _copy_script(model: torch.jit.ScriptModule, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    # TorchScript copies its C++ object as a whole: no sharing, but the same guarantees.
    twin: nn.Module = copy.deepcopy(model)
    if replace is _to_float64:
        twin = twin.double()
    return twin.eval()


def _restore_forgotten(model: nn.Module, twin: nn.Module, memo: dict[int, Any]) -> None:
    # GraphModule.__deepcopy__ builds a new module and forgets forward hooks, mode flags, and what torch.export sets.
    copies = dict(twin.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, torch.fx.GraphModule) and name in copies:
            for attribute in module.__dict__.keys() - copies[name].__dict__.keys():
                copies[name].__dict__[attribute] = copy.deepcopy(module.__dict__[attribute], memo)
            for kind in ("_forward_pre_hooks", "_forward_hooks"):
                hooks = copy.deepcopy(module.__dict__[kind], memo)
                copies[name].__dict__[kind] = hooks
                for suffix in ("_with_kwargs", "_always_called"):
                    if kind + suffix in module.__dict__:
                        copies[name].__dict__[kind + suffix] = copy.deepcopy(module.__dict__[kind + suffix], memo)


def reachable_tensors(model: nn.Module) -> Iterator[Tensor]:
    """All tensors that a model holds: parameters, buffers, plain attributes, also inside containers and objects.

    Parameters
    ----------
    model : nn.Module

    Yields
    ------
    Tensor
        A tensor held twice may come twice.
    """
    seen: set[int] = set()
    # Keeps temporaries alive, so that no id is seen twice for two objects.
    alive: list[Any] = []
    stack: list[Any] = [model]
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            yield value
            continue
        if isinstance(value, _ATOMS) or id(value) in seen:
            continue
        seen.add(id(value))
        alive.append(value)
        stack.extend(_held(value))


def _held(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, torch.fx.Graph):
        return []
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    attributes = getattr(value, "__dict__", None)
    return list(attributes.values()) if isinstance(attributes, dict) else []


def floating_dtype(model: nn.Module) -> torch.dtype | None:
    """The floating dtype that most parameter (else buffer) elements of a model have, or None where it has none."""
    stated = getattr(model, "own_dtype", None)  # a runtime's session
    if isinstance(stated, torch.dtype):
        return stated
    written = constants(model) if isinstance(model, torch.jit.ScriptModule) else []
    for held in (model.parameters(), model.buffers(), written):
        sizes: dict[torch.dtype, int] = {}
        for tensor in held:
            if not is_lazy(tensor) and tensor.is_floating_point():
                sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
        if sizes:
            return max(sizes, key=lambda dtype: sizes[dtype])
    return None


def device_of(model: nn.Module) -> torch.device | None:
    """The device of a model's first parameter or buffer, or None where it has neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None
