"""What is done with the values that come from a model's inputs, as a list of events.

Each operator that works on such values is one event: its name, its numbers, the shapes and types of what it gives, and
which earlier events gave what it reads. A layer is one event; what happens inside it is not told.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.capture.leaves import is_leaf
from canonize.capture.source import current_line
from canonize.compat.private import autocast_is_on, no_dispatch, pytree
from canonize.graph.shape_rules import KEEP_SHAPE, output_of
from canonize.inputs import Inputs
from canonize.twins.randomness import PrivateRandom

# They hand over what they are given: a mark, not an operation.
_TRANSPARENT = {"aten::detach", "aten::alias", "aten::lift", "aten::lift_fresh", "aten::_version"}
# Layers that give the very tensor that they are given.
_HAND_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
# More that give what has the size of what they are given.
_ALIKE = (nn.Hardsigmoid, nn.Softmax, nn.LayerNorm, nn.GroupNorm, nn.Mish, nn.PReLU, nn.Softplus)
# Whose values are not compared: where a tensor lies, and how.
_NOT_COMPARED = (torch.device, torch.memory_format, torch.layout, torch.Generator)
_ARITHMETIC = {"aten::cat": torch.cat, "aten::add.Tensor": torch.add, "aten::mul.Tensor": torch.mul}
_NORMALISING = {"aten::native_batch_norm", "aten::native_layer_norm"}


@dataclass(frozen=True)
class Event:
    """One operator that worked on values which come from the inputs.

    Attributes
    ----------
    operator : str
        ``aten::add.Tensor``, or ``layer conv1``.
    arguments : tuple
        Numbers as they are; tensors as the event that gave them.
    results : tuple
        Shape and type of each tensor that it gave.
    line : str or None
        Of the model's code.
    """

    operator: str
    arguments: Any
    results: tuple[Any, ...]
    line: str | None

    def same_as(self, other: Event) -> bool:
        """Whether two events are one, whichever line they come from."""
        return (self.operator, self.arguments, self.results) == (other.operator, other.arguments, other.results)


class EventRecorder(PrivateRandom):
    """Lists what is done with values that come from the inputs, and draws random numbers of its own.

    A tensor is known by where it lies in memory, so that a view that is made anew is the same value, and what is
    written through one name is read under the other.

    Parameters
    ----------
    layers : dict of str to nn.Module
        Of the copy that is run; each that is torch's own makes one event.
    inputs : Inputs
        That it is run on.
    metas : dict, optional
        On the meta device, where an operator takes up to half a millisecond of Python: what each gave, remembered
        from run to run.
    lines : bool
        Whether to note lines of code.
    """

    def __init__(
        self, layers: dict[str, nn.Module], inputs: Inputs, metas: dict[Any, Any] | None = None, lines: bool = False
    ) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._metas, self._lines = metas, lines
        self._known: dict[Any, Any] = {}
        self._memories: dict[int, Any] = {}
        # Kept alive: no memory is taken twice.
        self._kept: list[Any] = []
        self._inside = 0
        for i, tensor in enumerate(inputs.tensors()):
            self.know(tensor, ("input", i))
        for name, module in layers.items():
            if name and is_leaf(module) and "forward" not in module.__dict__:
                module.__dict__["forward"] = functools.partial(self._layer, f"layer {name}", module, module.forward)

    def know(self, value: Any, origin: Any) -> None:
        """Note where a tensor comes from, or each of a list of tensors."""
        for j, tensor in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(tensor, Tensor):
                place = _place(tensor)
                self._known[place] = (origin, j)
                self._memories[place[0]] = (origin, j)
                self._kept.append(tensor)

    def _layer(self, name: str, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One event for each call of a layer; where sizes are all that counts, what it gives is worked out."""
        if self._inside:
            return forward(*args, **kwargs)
        arguments, derived = self._described((args, kwargs) if kwargs else args)
        self._inside += 1
        try:
            result = self._worked_out(name, module, forward, args, kwargs)
        finally:
            self._inside -= 1
        if derived:
            self._note(name, arguments, result)
        return result

    def _worked_out(self, name: str, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._metas is None or kwargs:
            return forward(*args, **kwargs)
        key = (name, *(_key(value) for value in args))
        with no_dispatch():
            known = self._metas.get(key)
            result = _plain_to_see(module, args) if known is None else _another(known)
        if result is None:
            result = forward(*args)
            given = {_place(value)[0] for value in args if isinstance(value, Tensor)}
            if _is_dense(result) and _place(result)[0] not in given:
                self._metas[key] = result
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return super().__torch_dispatch__(func, types, args, kwargs)
        arguments, derived = self._described((args, kwargs))
        if not derived:
            return super().__torch_dispatch__(func, types, args, kwargs)
        origin = self._origin(args[0]) if func.name() in _TRANSPARENT else None
        result = self._give(func, types, args, kwargs)
        if func.name() not in _TRANSPARENT:
            self._note(func.name(), arguments, result)
        elif isinstance(result, Tensor) and origin is not None:
            self._known[_place(result)] = origin
            self._memories.setdefault(_place(result)[0], origin)
            self._kept.append(result)
        return result

    def _give(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if self._metas is None or not _gives_new_tensors(func):
            return super().__torch_dispatch__(func, types, args, kwargs)
        name = func.name()
        with no_dispatch():
            if name in _NORMALISING and not (name == "aten::native_batch_norm" and args[5]):
                return _alike(args[0]), args[0].new_empty(0), args[0].new_empty(0)  # nobody reads the others
            if name in _ARITHMETIC and not kwargs:
                found = output_of(_ARITHMETIC[name], args, {})
                if found is not None:
                    return found
            key = (func, _key(args), _key(kwargs))
            known = self._metas.get(key)
            if known is not None:
                return _another(known) if isinstance(known, Tensor) else tuple(map(_another, known))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if all(map(_is_dense, result if isinstance(result, tuple) else (result,))) and not _holds_values(args, kwargs):
            self._metas[key] = result
        return result

    def _note(self, operator: str, arguments: Any, result: Any) -> None:
        leaves = [result] if isinstance(result, Tensor) else pytree.tree_leaves(result)
        shapes = tuple([(x.shape, x.dtype) if isinstance(x, Tensor) else type(x).__name__ for x in leaves])
        self.know(leaves, len(self.events))
        if autocast_is_on():
            operator += f" under autocast to {_autocast()}"
        self.events.append(Event(operator, arguments, shapes, current_line() if self._lines else None))

    def _origin(self, tensor: Any) -> Any:
        place = _place(tensor)
        found = self._known.get(place)
        return found if found is not None else self._memories.get(place[0])

    def _described(self, value: Any) -> tuple[Any, bool]:
        """Arguments as they are compared, and whether a value that comes from the inputs is among them."""
        kind = type(value)
        if isinstance(value, Tensor):
            origin = self._origin(value)
            return (("constant", value.shape, value.dtype), False) if origin is None else (origin, True)
        if kind in (int, bool, str, type(None)):
            return value, False
        if kind is float:
            return ("nan" if value != value else value), False
        if isinstance(value, tuple | list):
            parts = [self._described(item) for item in value]
            return tuple(part for part, _ in parts), any(derived for _, derived in parts)
        if isinstance(value, dict):
            parts = [self._described(value[key]) for key in sorted(value)]
            return tuple(zip(sorted(value), (p for p, _ in parts), strict=True)), any(d for _, d in parts)
        if isinstance(value, _NOT_COMPARED):
            return None, False
        return (value if isinstance(value, torch.dtype) else kind.__name__), False


def aliases(values: dict[fx.Node, Any]) -> dict[fx.Node, list[fx.Node]]:
    """For each node whose value lies in the memory of values that it reads: their nodes."""
    memories = {
        node: {_place(value)[0]}
        if isinstance(value, Tensor)
        else {_place(leaf)[0] for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)}
        for node, value in values.items()
    }
    found = {
        node: [source for source in node.all_input_nodes if not memories[source].isdisjoint(own)]
        for node, own in memories.items()
    }
    return {node: sources for node, sources in found.items() if sources}


def _place(tensor: Tensor) -> Any:
    """Where a tensor lies in memory: its storage, and which part of it."""
    try:
        memory = int(tensor.untyped_storage()._cdata)
        return memory, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
    except (NotImplementedError, RuntimeError):  # sparse tensors, wrappers of others
        return (id(tensor),)


def _autocast() -> str:
    kinds = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.is_autocast_enabled(kind)]
    return ", ".join(f"{str(torch.get_autocast_dtype(kind)).removeprefix('torch.')} on {kind}" for kind in kinds)


@functools.lru_cache(maxsize=1024)
def _gives_new_tensors(func: Any) -> bool:
    """Whether an operator writes nothing, and gives tensors of its own: only their sizes are to be known."""
    schema = func._schema
    plain = all(argument.alias_info is None for argument in (*schema.arguments, *schema.returns))
    return plain and bool(schema.returns) and all(str(value.type) == "Tensor" for value in schema.returns)


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in value.items())
    return tuple(map(_key, value)) if isinstance(value, list | tuple) else value


def _holds_values(*given: Any) -> bool:
    """Whether a tensor is among arguments that is not on the meta device."""
    return any(isinstance(x, Tensor) and x.device.type != "meta" for x in pytree.tree_leaves(given))


def _is_dense(value: Any) -> bool:
    """Whether it is a tensor whose strides another one can have, with a memory of its own."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "meta"


def _another(tensor: Tensor) -> Tensor:
    """A tensor on the meta device that is laid out alike."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _alike(tensor: Tensor) -> Tensor:
    """``torch.empty_like``, which is worked out in Python on the meta device."""
    if tensor.is_contiguous():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor)


def _plain_to_see(module: nn.Module, args: tuple[Any, ...]) -> Any:
    """What a layer gives on the meta device, where that is plain to see."""
    if not args or not all(isinstance(value, Tensor) for value in args):
        return None
    if getattr(module, "inplace", False) is True or isinstance(module, _HAND_THROUGH):
        return args[0] if isinstance(module, (*KEEP_SHAPE, *_HAND_THROUGH)) else None
    if isinstance(module, (*KEEP_SHAPE, *_ALIKE)):
        return _alike(args[0])
    return output_of(module, args, {})
