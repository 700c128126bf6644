"""A copy of a model that can be worked on, without a copy of its weights."""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from canonize.errors import CaptureError
from canonize.twins.module_tree import named_modules
from canonize.twins.torchscript import translated

# Not subclasses of these: an enumeration's member, say, is copied as its class wants it.
_ATOMS = {
    str, bytes, bool, int, float, complex, type(None), type, types.FunctionType, types.BuiltinFunctionType,
    types.ModuleType, torch.dtype, torch.device, torch.Size,
}  # fmt: skip


def eval_copy(model: nn.Module) -> nn.Module:
    """A structural copy of a model in eval mode that shares every tensor with it.

    The copy has modules, hooks and flags of its own: whatever is done to it, the original stays as it was. TorchScript
    becomes modules that interpret it (`canonize.twins.torchscript`).
    """
    if isinstance(model, torch.jit.ScriptModule):
        return translated(model)
    # What was made in inference mode could not be differentiated through.
    made_there = any(part.is_inference() for part in (*model.parameters(), *model.buffers()))
    twin: nn.Module = Copier(_ordinary if made_there else None).copy(model)
    # Not .eval(): a train() of the model's own may write into weights, which the copy shares.
    for _, module in named_modules(twin):
        module.__dict__["training"] = False
    return twin


def _ordinary(tensor: Tensor) -> Tensor:
    """A tensor that autograd may save: itself, or a copy of what was made in inference mode."""
    if not tensor.is_inference():
        return tensor
    copied = tensor.clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def eval_twin(model: nn.Module) -> nn.Module:
    """A copy of a model in eval mode to be run in its place: it shares the parameters, and nothing else.

    Buffers and other tensors are copied: a forward may write to them. Mode flags are set without calling ``train()``
    or ``eval()``, which some modules override to merge weights in place. Backward hooks are dropped: they are no part
    of the function and would bend its gradient. Where a forward may write to parameters too, see `unshare`.

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
        return _ordinary(tensor)

    return twin(model, keep)


def twin(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a model in eval mode, without backward hooks, with other tensors in place of its own."""
    if isinstance(model, torch.jit.ScriptModule):
        # TorchScript copies its C++ object as a whole: no sharing.
        other: nn.Module = copy.deepcopy(model)
        return other.eval()
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        memo = {id(tensor): replace(tensor) for tensor in reachable_tensors(model) if not is_lazy(tensor)}
        other = copy.deepcopy(model, memo)
        _restore_forgotten(model, other, memo)
    else:
        copier = Copier(replace, share_graphs=True)
        other = copier.copy(model)
        if any(isinstance(module, fx.GraphModule) and not _is_graph_module(type(module)) for module in other.modules()):
            _restore_forgotten(model, other, copier.memo)
    for module in other.modules():
        module.training = False
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    return other


def _restore_forgotten(model: nn.Module, twin: nn.Module, memo: dict[int, Any]) -> None:
    # GraphModule.__deepcopy__ builds a new module and forgets forward hooks, mode flags, and what torch.export sets.
    copies = dict(twin.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, fx.GraphModule) and name in copies:
            for attribute in module.__dict__.keys() - copies[name].__dict__.keys():
                copies[name].__dict__[attribute] = copy.deepcopy(module.__dict__[attribute], memo)
            for kind in ("_forward_pre_hooks", "_forward_hooks"):
                hooks = copy.deepcopy(module.__dict__[kind], memo)
                copies[name].__dict__[kind] = hooks
                for suffix in ("_with_kwargs", "_always_called"):
                    if kind + suffix in module.__dict__:
                        copies[name].__dict__[kind + suffix] = copy.deepcopy(module.__dict__[kind + suffix], memo)


def unshare(twin: nn.Module) -> None:
    """Give a twin parameters of its own; tied ones stay tied."""
    own: dict[int, nn.Parameter] = {}
    for module in twin.modules():
        if isinstance(module, torch.jit.ScriptModule):  # copied as a whole, it shares none
            continue
        for name, held in module._parameters.items():
            if held is not None and not is_lazy(held):
                if id(held) not in own:
                    own[id(held)] = nn.Parameter(held.detach().clone(), held.requires_grad)
                module._parameters[name] = own[id(held)]


class Copier:
    """What ``copy.deepcopy`` does, for what modules are made of; it takes several times as long over them.

    Parameters
    ----------
    replace : callable, optional
        What stands for a tensor in the copy, asked once for each; by default the tensor itself.
    share_graphs : bool
        Graph modules share their graph and its code with the original, for copies that are run and never rewritten.
    """

    def __init__(self, replace: Callable[[Tensor], Tensor] | None = None, *, share_graphs: bool = False) -> None:
        self.memo: dict[int, Any] = {}
        self._replace = replace
        self._share_graphs = share_graphs
        self._searched: dict[int, Any] = {}

    def copy(self, value: Any) -> Any:
        """The copy of a value; the same one whenever it is asked for again."""
        kind: Any = type(value)
        if kind in _ATOMS:
            return value
        memo = self.memo
        known = memo.get(id(value))
        if known is not None:
            return known
        if isinstance(value, Tensor):
            if self._replace is None or is_lazy(value):
                return value
            memo[id(value)] = other = self._replace(value)
            return other
        if kind is dict or kind is OrderedDict:
            memo[id(value)] = same = kind()
            for key, item in value.items():
                same[key if type(key) is str else self.copy(key)] = item if type(item) in _ATOMS else self.copy(item)
            return same
        if kind is list:
            items: list[Any] = []
            memo[id(value)] = items
            items.extend([item if type(item) in _ATOMS else self.copy(item) for item in value])
            return items
        if kind is tuple and _ATOMS.issuperset(map(type, value)):
            return value
        if kind is set and _ATOMS.issuperset(map(type, value)):
            memo[id(value)] = chosen = set(value)
            return chosen
        if isinstance(value, torch.jit.ScriptModule):
            memo[id(value)] = part = translated(value)
            return part
        if isinstance(value, nn.Module) and (is_plain(kind) or (self._share_graphs and _is_graph_module(kind))):
            memo[id(value)] = twin = object.__new__(kind)
            own, shared = twin.__dict__, _GRAPH if isinstance(value, fx.GraphModule) else ()
            for name, item in value.__dict__.items():
                if type(item) in _ATOMS or name in shared:
                    own[name] = item
                elif name in _HOOKS and not item:
                    own[name] = type(item)()
                else:
                    own[name] = self.copy(item)
            return twin
        for tensor in reachable_tensors(value, self._searched):
            self.copy(tensor)
            memo.setdefault(id(tensor), tensor)
        try:
            return copy.deepcopy(value, memo)
        except TypeError:
            return self._copy_parts(value)

    def _copy_parts(self, value: Any) -> Any:
        """A copy of what holds something that cannot be copied: a lock, an open file, the keys of a dictionary.

        That itself is shared.

        Raises
        ------
        CaptureError
            For a generator, which a forward would use up.
        """
        kind: Any = type(value)
        if isinstance(value, types.GeneratorType):
            raise CaptureError(
                "it holds a generator, which a forward uses up, and which cannot be copied", hint="Keep a list instead."
            )
        if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
            return value
        if not isinstance(getattr(value, "__dict__", None), dict):
            return value
        try:
            twin = object.__new__(kind)
        except TypeError:  # one of Python's own
            return value
        self.memo[id(value)] = twin
        for name, item in value.__dict__.items():
            twin.__dict__[name] = self.copy(item)
        return twin


# Tables of every module that are empty nearly always.
_HOOKS = frozenset(name for name, table in nn.Module().__dict__.items() if "_hooks" in name and isinstance(table, dict))
# What a graph module runs; its class, one for each instance, holds the code.
_GRAPH = frozenset({"_graph", "meta"})


def _is_graph_module(kind: type) -> bool:
    """Whether a class of graph modules is copied as torch.fx's own is."""
    return getattr(kind, "__deepcopy__", None) is fx.GraphModule.__deepcopy__


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


def reachable_tensors(value: Any, searched: dict[int, Any] | None = None) -> Iterator[Tensor]:
    """All tensors that a model or another object holds, also inside containers, objects and bound methods.

    Parameters
    ----------
    value : Any
    searched : dict, optional
        What was searched before is passed over, and what is searched now is added.

    Yields
    ------
    Tensor
        A tensor held twice may come twice.
    """
    # By their ids, and kept alive: no id is seen twice for two objects.
    searched = {} if searched is None else searched
    stack: list[Any] = [value]
    while stack:
        held = stack.pop()
        if isinstance(held, Tensor):
            yield held
        elif type(held) not in _ATOMS and id(held) not in searched:
            searched[id(held)] = held
            stack.extend(_held(held))


def _held(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, (fx.Graph, type, str, types.ModuleType)):
        return []
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    attributes = getattr(value, "__dict__", None)
    return list(attributes.values()) if isinstance(attributes, dict) else []
