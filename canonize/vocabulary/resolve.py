"""What is this call? A call of a graph, in whatever spelling, is one of torch's operators with named arguments."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from canonize import nn as cnn
from canonize.vocabulary.binding import IsTensor, bind, by_signature, fit, signature
from canonize.vocabulary.layers import layer_operator
from canonize.vocabulary.operation import Operation
from canonize.vocabulary.schemas import overloads
from canonize.vocabulary.spelling import Spelling, of_attribute, of_function, of_method
from canonize.vocabulary.table import NOTHING, ROWS, Row


def resolve(node: fx.Node, is_tensor: IsTensor | None = None) -> Operation | None:
    """The operation that a node of a graph calls.

    Parameters
    ----------
    node : fx.Node
        A ``call_function`` or ``call_method``.
    is_tensor : callable, optional
        Whether a value is a tensor that the graph computes; by default every node may be one.

    Returns
    -------
    Operation or None
        ``None`` for functions that are not torch's, modules, inputs and outputs.
    """
    if node.op not in ("call_function", "call_method"):
        return None
    return resolve_call(node.target, node.args, node.kwargs, node.op == "call_method", is_tensor)


def counts_in(node: fx.Node, state: fx.Node) -> bool:
    """Whether a call reads a tensor for nothing but keeping count in it: running statistics of a normalisation."""
    operation = resolve(node)
    if operation is None or not operation.counts:
        return False
    return all(name in operation.writes for name, value in operation.bound.items() if value is state)


def resolve_call(
    target: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    is_method: bool = False,
    is_tensor: IsTensor | None = None,
) -> Operation | None:
    """The operation behind a function, method or ATen operator with these arguments."""
    spelling = spelling_of(target, args, is_method)
    if spelling is None:
        return None
    if target is getattr:
        args = args[:1]
    return _bound(spelling, args, kwargs or {}, is_tensor or _may_be, is_method)


def spelling_of(target: Any, args: Sequence[Any], is_method: bool = False) -> Spelling | None:
    """How a call is spelt; ``None`` for functions that are not torch's."""
    if is_method:
        return of_method(str(target))
    if target is getattr:
        return of_attribute(str(args[1])) if len(args) > 1 else None
    return of_function(target)


def operator_name(node: fx.Node) -> str | None:
    """The name alone of the operator that a node calls; no argument is looked at."""
    if node.op not in ("call_function", "call_method"):
        return None
    spelling = spelling_of(node.target, node.args, node.op == "call_method")
    return None if spelling is None else spelling.name


def resolve_module(module: object, is_tensor: IsTensor | None = None) -> Operation | None:
    """The operation that a ``canonize.nn.Call`` makes, with ``Slot`` in place of its inputs."""
    if not isinstance(module, cnn.Call):
        return None
    target, is_method = _target(module)
    if target is None:
        return None
    return resolve_call(target, module.args, module.kwargs, is_method, is_tensor)


def row_of(module: object) -> Row:
    """What the table says of the operator that a layer or a ``Call`` is; nothing for other modules."""
    if isinstance(module, cnn.Call):
        return NOTHING if module.function is not None else _row_of_target(module.target)
    return ROWS.get(layer_operator(module) or "", NOTHING)


@functools.cache
def _row_of_target(target: str) -> Row:
    if target.startswith("."):
        spelling = of_method(target[1:])
    else:
        function = _found(target)
        spelling = of_function(function) if function is not None else None
    return NOTHING if spelling is None else ROWS.get(spelling.name, NOTHING)


def asks_size(node: fx.Node) -> bool:
    """Whether a node asks a value for its size, dtype or device, or computes with such numbers alone."""
    name = operator_name(node)
    return name is not None and (ROWS.get(name, NOTHING).asks or name.startswith("sym_"))


def gives_tensor(node: fx.Node) -> bool:
    """Whether it is plain without inference that a node's value is a tensor: no version of its operator gives else."""
    return node.op == "call_function" and _gives_tensor(node.target)


@functools.cache
def _gives_tensor(target: Any) -> bool:
    spelling = of_function(target) if target is not getattr else None
    if spelling is None or spelling.packet is None or getattr(operator, target.__name__, None) is target:
        return False  # Python's operators compute with numbers as well
    if spelling.function is not None and any(name.startswith(_MORE) for name in _names(spelling.function)):
        return False
    returns = [overload._schema.returns for overload in overloads(spelling.packet)]
    return bool(returns) and all(len(given) == 1 and str(given[0].type) == "Tensor" for given in returns)


# Flags of functions in Python that then give more than a tensor.
_MORE = ("return_", "as_tuple", "get_infos")


def _names(function: Any) -> list[str]:
    known = signature(function)
    return list(known.parameters) if known is not None else []


def _target(call: cnn.Call) -> tuple[Any, bool]:
    if call.target.startswith("."):
        return call.target[1:], True
    return call.function or _found(call.target), False


@functools.cache
def _found(target: str) -> Any:
    try:
        return cnn.resolve(target)
    except (ImportError, AttributeError):
        return None


# Keywords of torch's functions that no schema has.
_PYTHON_ONLY = {"inplace", "requires_grad"}


def _may_be(value: Any) -> bool | None:
    return None if isinstance(value, fx.Node | cnn.Slot) else isinstance(value, Tensor)


def _bound(
    spelling: Spelling, args: Sequence[Any], kwargs: Mapping[str, Any], is_tensor: IsTensor, is_method: bool
) -> Operation:
    kwargs = {**kwargs, **spelling.preset}
    overload: torch._ops.OpOverload | None = spelling.overload
    bound: dict[str, Any] | None = None
    if overload is not None:
        bound = fit(overload, args, kwargs, is_tensor)
    elif spelling.packet is not None:
        found = None
        given = {name: value for name, value in kwargs.items() if name not in _PYTHON_ONLY}
        if spelling.function is None:
            found = bind(spelling.packet, args, given, is_tensor, variadic=True)
        if found is not None:
            overload, bound = found
    if bound is None and spelling.function is not None:
        bound = by_signature(spelling.function, {}, args, kwargs)
        overload = overload or _overload_for(spelling, bound, is_tensor)
    bound = {spelling.renamed.get(name, name): value for name, value in (bound or {}).items()}
    if spelling.swapped and {"input", "other"} <= bound.keys():
        bound |= {"input": bound["other"], "other": bound["input"]}
    in_place = spelling.in_place or bound.pop("inplace", False) is True
    return Operation(spelling.name, bound, overload, in_place)


def _overload_for(spelling: Spelling, bound: Mapping[str, Any], is_tensor: IsTensor) -> torch._ops.OpOverload | None:
    """The ATen operator that a function in Python amounts to, where the names say it."""
    if spelling.packet is None:
        return None
    named = {spelling.renamed.get(k, k): v for k, v in bound.items() if k not in _PYTHON_ONLY}
    found = bind(spelling.packet, (), named, is_tensor, variadic=False)
    return found[0] if found is not None else next(iter(overloads(spelling.packet)), None)
