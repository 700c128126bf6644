"""Nothing that runs here may write into a tensor of the user's: the attempt is stopped before it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from canonize.compat.private import TorchDispatchMode, pytree
from canonize.errors import StatefulError
from canonize.twins.copying import unshare

T = TypeVar("T")


class WriteError(RuntimeError):
    """An operator was about to write into a tensor that is not to be changed."""


class WriteGuard(TorchDispatchMode):
    """Inside, operators that write into certain tensors, or views of them, raise instead.

    Parameters
    ----------
    held : iterable of Tensor, optional
        Which; by default all that were not made inside.

    Raises
    ------
    WriteError
        Instead of the write.
    """

    supports_higher_order_operators = True

    def __init__(self, held: Iterable[Tensor] | None = None) -> None:
        super().__init__()
        self._held = None if held is None else {memory_of(tensor) for tensor in held}
        # Kept alive: no memory is taken twice.
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            for tensor in _written(schema, args, kwargs):
                if self._is_held(tensor):
                    raise WriteError(f"by {schema.name.partition('::')[2]}")
        result = func(*args, **kwargs)
        if self._held is None:
            for made in pytree.tree_leaves(result):
                if isinstance(made, Tensor) and not self._is_view(schema):
                    self._made[memory_of(made)] = made
        return result

    def _is_held(self, tensor: Tensor) -> bool:
        memory = memory_of(tensor)
        return memory not in self._made if self._held is None else memory in self._held

    @staticmethod
    def _is_view(schema: Any) -> bool:
        """Whether what an operator gives shares the memory of what it was given."""
        if schema is not None and schema.name == "aten::lift_fresh":  # torch.tensor(...) hands over what it has made
            return False
        return schema is not None and any(returned.alias_info is not None for returned in schema.returns)


def writes_its_state(name: str, where: str | None, how: str = "") -> StatefulError:
    """What to say of a model that may be another one after each forward."""
    return StatefulError(
        f"its forward writes into its own {name} in eval mode" + (f" ({how})" if how else ""),
        where or name,
        "Canonize a model whose eval-mode forward leaves its state alone.",
    )


def unharmed(twin: nn.Module, run: Callable[[], T]) -> T:
    """Run a copy that shares parameters with the user's model; it is given its own ones where it writes to them.

    Parameters
    ----------
    twin : nn.Module
        Made by `canonize.capture.copying.twin`.
    run : callable
        Runs it, on inputs made anew each time: it is called twice where the first forward wanted to write.

    Returns
    -------
    Any
        What ``run`` gives.
    """
    if twin not in _OWN and any(is_opaque(module) for module in twin.modules()):
        own_parameters(twin)
    if twin in _OWN:
        return run()
    try:
        with WriteGuard(twin.parameters()):
            return run()
    except WriteError:
        own_parameters(twin)
    return run()


def own_parameters(twin: nn.Module) -> None:
    """Give a copy parameters of its own, so that it may write to them."""
    unshare(twin)
    has_own_parameters(twin)


def has_own_parameters(twin: nn.Module) -> None:
    """Note that a copy shares no parameter with the user's model: its forward need not be watched."""
    _OWN.add(twin)


# Copies that share no parameter with the user's model.
_OWN: WeakSet[nn.Module] = WeakSet()


def is_opaque(module: nn.Module) -> bool:
    """Whether a module's operators cannot be watched: TorchScript's and compiled ones."""
    return isinstance(module, torch.jit.ScriptModule) or type(module).__module__.startswith("torch._dynamo")


def _written(schema: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    given = [*zip(schema.arguments, args, strict=False)]
    given += [(argument, kwargs[argument.name]) for argument in schema.arguments if argument.name in kwargs]
    for argument, value in given:
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))


def memory_of(tensor: Tensor) -> int:
    """What a tensor and its views have in common."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse tensors, wrappers of others
        return id(tensor)
