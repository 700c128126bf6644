"""Arguments by name, as the schema of an operator has them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from canonize.nn import Slot
from canonize.vocabulary.schemas import NUMPY, Parameter, overloads, parameters

# Whether a value of the graph is a tensor; None where it cannot be told.
IsTensor = Callable[[Any], bool | None]
_NUMBERS = {"int": (int,), "float": (int, float), "number": (int, float, complex, bool), "bool": (bool,)}


def bind(
    packet: torch._ops.OpOverloadPacket,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    is_tensor: IsTensor,
    variadic: bool,
) -> tuple[torch._ops.OpOverload, dict[str, Any]] | None:
    """The first version of an operator that takes these arguments, and the arguments by name.

    Parameters
    ----------
    variadic : bool
        Whether sizes may be given one by one (``x.view(2, 3)``).
    """
    for lenient in (False, True):
        for overload in overloads(packet):
            bound = fit(overload, args, kwargs, is_tensor, variadic, lenient)
            if bound is not None:
                return overload, bound
    return None


def fit(
    overload: torch._ops.OpOverload,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    is_tensor: IsTensor,
    variadic: bool = False,
    lenient: bool = True,
) -> dict[str, Any] | None:
    """The arguments by the names of one schema; ``None`` where it does not take them."""
    known = parameters(overload)
    places = [parameter for parameter in known if not parameter.keyword]
    bound: dict[str, Any] = {}
    for i, value in enumerate(args):
        if i >= len(places):
            return None
        parameter = places[i]
        if variadic and parameter.many and parameter.kind == "int" and i == len(places) - 1 and _is_int(value):
            values = tuple(args[i:])
            if not all(_is_int(one) for one in values):
                return None
            bound[parameter.name] = values if len(values) > 1 or not parameter.single else value
            break
        if not _takes(parameter, value, is_tensor, lenient):
            return None
        bound[parameter.name] = value
    names = {parameter.name: parameter for parameter in known}
    for given, value in kwargs.items():
        name = _known(given, names)
        if name is None or name in bound or not _takes(names[name], value, is_tensor, lenient):
            return None
        bound[name] = value
    if any(parameter.required and parameter.name not in bound for parameter in known):
        return None
    return bound


def _known(given: str, names: Mapping[str, Parameter]) -> str | None:
    if given in names:
        return given
    name = "input" if given == "self" else NUMPY.get(given)
    return name if name in names else None


def _is_int(value: Any) -> bool:
    return isinstance(value, fx.Node | Slot) or (isinstance(value, int | torch.SymInt) and not isinstance(value, bool))


def _takes(parameter: Parameter, value: Any, is_tensor: IsTensor, lenient: bool) -> bool:
    if value is None:
        return parameter.optional
    if parameter.many and not isinstance(value, fx.Node | Slot):
        if isinstance(value, tuple | list):
            return all(item is None or _is_one(parameter.kind, item, is_tensor, lenient) for item in value)
        return parameter.single and _is_one(parameter.kind, value, is_tensor, lenient)
    return _is_one(parameter.kind, value, is_tensor, lenient, parameter.many)


def _is_one(kind: str, value: Any, is_tensor: IsTensor, lenient: bool, many: bool = False) -> bool:
    if kind == "Tensor":
        tensor = True if isinstance(value, Tensor) else is_tensor(value)
        if tensor is None:
            return isinstance(value, fx.Node | Slot)
        return tensor or (lenient and isinstance(value, int | float | complex | fx.Node | Slot))
    if isinstance(value, fx.Node | Slot):
        return lenient or is_tensor(value) is not True
    if isinstance(value, Tensor) or is_tensor(value):
        return lenient and kind in ("number", "int", "float")
    if kind in _NUMBERS:
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return True
        if isinstance(value, bool) and kind in ("int", "float"):
            return lenient
        return isinstance(value, _NUMBERS[kind])
    if kind == "str":
        return isinstance(value, str)
    if kind == "Device":
        return isinstance(value, str | torch.device | int)
    if kind in ("ScalarType", "Layout", "MemoryFormat"):
        return isinstance(value, torch.dtype | torch.layout | torch.memory_format)
    return not isinstance(value, int | float)


@functools.cache
def signature(function: Any) -> inspect.Signature | None:
    """The signature of a function in Python; ``None`` where it has none."""
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    kinds = {parameter.kind for parameter in found.parameters.values()}
    # torch chooses among two functions by a flag; the plain one has the same arguments under their names.
    if kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        plain = getattr(torch.nn.functional, f"_{getattr(function, '__name__', '')}", None)
        return inspect.signature(plain) if plain is not None else None
    return found


def by_signature(
    function: Any, names: Mapping[str, str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a function in Python by name; empty where it does not take them.

    Parameters
    ----------
    names : mapping
        What the operator calls an argument that Python calls otherwise.
    """
    known = signature(function)
    if known is None:
        return {}
    try:
        bound = known.bind(*args, **kwargs)
    except TypeError:
        return {}
    found = {}
    for name, value in bound.arguments.items():
        if known.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            found.update(value)
        elif not name.startswith("_"):  # ``_stacklevel``
            found[names.get(name, name)] = value
    return found
