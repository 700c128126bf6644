r"""A call that the vocabulary does not know is taken apart: torch is asked which operators it dispatches.

``torch.addcmul(a, b, c, value=2)`` has no row in the table, but torch computes :math:`a + 2 (b c)`, and sums and
products are known. The call is run alone on meta tensors of the shapes known there: first as the operators that torch
dispatches, then, if need be, as torch's decompositions of those. The first list of which every operator is understood
takes its place.

No size of the example may be baked in: the call is run for other batch and image sizes, too, and lists that differ are
not taken. Decompositions have derivatives of their own, so that one is taken only where all it holds is smooth: sums,
products, quotients and movements.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from canonize.compat.private import TorchDispatchMode, pytree
from canonize.errors import cuts_in
from canonize.graph.shapes import Shapes, Unknown
from canonize.vocabulary import Operation
from canonize.vocabulary.resolve import resolve_call, spelling_of
from canonize.vocabulary.table import NOTHING, ROWS, Kind

# Longer than that it says less than the name of the call.
_MOST = 12


@dataclass(frozen=True)
class Place:
    """A value in a list of steps: an argument of the call (below 0, from -1 on), or what a step gave.

    Attributes
    ----------
    step : int
    item : int, optional
        Which of several values it gave.
    """

    step: int
    item: int | None = None


@dataclass(frozen=True)
class DispatchedCall:
    """One operator that torch runs, with places instead of tensors."""

    target: Any
    args: Any
    kwargs: Any


@dataclass(frozen=True)
class Dispatched:
    """What a call comes down to.

    Attributes
    ----------
    steps : tuple of DispatchedCall
    result : object
        A place, or a tuple of places.
    """

    steps: tuple[DispatchedCall, ...]
    result: Any


class _NotPlainError(Exception):
    """It writes, draws random numbers, or reads a tensor from elsewhere."""


def lowered(
    node: fx.Node, operation: Operation, shapes: Shapes, known: Callable[[Operation], bool]
) -> Dispatched | None:
    """The operators that a call comes down to; ``None`` where it is best left as it is.

    Parameters
    ----------
    node : fx.Node
        A call of one of torch's functions.
    operation : Operation
        What it is.
    shapes : Shapes
    known : callable
        Whether an operator is understood.
    """
    if operation.random or operation.writes:
        return None
    for record in (_Recorder, _Decomposing):
        found = _for_all_sizes(node, shapes, record)
        if found is None or not 1 <= len(found.steps) <= _MOST:
            continue
        operations = [_operation_of(step) for step in found.steps]
        if any(one is None or one.name == operation.name or one.random or one.writes for one in operations):
            continue
        smooth = record is not _Decomposing or all(one is not None and _is_smooth(one) for one in operations)
        if smooth and all(one is not None and known(one) for one in operations):
            return found
    return None


def _operation_of(step: DispatchedCall) -> Operation | None:
    return resolve_call(step.target, step.args, step.kwargs, is_tensor=lambda value: isinstance(value, Place | Tensor))


def _is_smooth(operation: Operation) -> bool:
    row = operation.row
    sums = row.kind in (Kind.AVERAGE, Kind.SCALE, Kind.PRODUCT)
    return sums or row.moves or row.gathers or row.splits or row.idle


def _for_all_sizes(node: fx.Node, shapes: Shapes, record: type[_Recorder]) -> Dispatched | None:
    """The same list for every size that can be tried, or none."""
    found: Dispatched | None = None
    for env in shapes.environments():
        values = {source: shapes.value_in(source, env) for source in node.all_input_nodes}
        if any(value is Unknown for value in values.values()):
            if found is None:
                return None
            continue  # sizes that the model does not accept
        try:
            steps = record().steps_of(node, values)
        except Exception as error:
            if cuts_in(error):
                raise
            return None
        if found is not None and steps != found:
            return None
        found = steps
    return found


class _Recorder(TorchDispatchMode):
    """Runs a call and writes down the operators that torch dispatches, composite ones taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[int, Place] = {}
        self.kept: list[Any] = []  # so that no identity is given twice
        self.steps: list[DispatchedCall] = []

    def steps_of(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Dispatched:
        """What a call runs where its arguments have these values."""
        copies = {source: self._copied(i, value) for i, (source, value) in enumerate(values.items())}
        args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
        with torch.no_grad(), self:
            if node.op == "call_method":
                result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                result = node.target(*args, **kwargs)  # type: ignore[operator]
        if isinstance(result, Tensor):
            return Dispatched(tuple(self.steps), self._place(result))
        return Dispatched(tuple(self.steps), tuple(self._place(value) for value in result))

    def _copied(self, i: int, value: Any) -> Any:
        """A tensor of its own: two values may share one where only their shapes are looked at."""
        if isinstance(value, Tensor):
            value = torch.empty_like(value)
            self.places[id(value)] = Place(-1 - i)
            self.kept.append(value)
        elif any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)):
            raise _NotPlainError
        return value

    def _place(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.places:
            raise _NotPlainError
        return self.places[id(value)]

    def note(self, target: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """Write a step down."""
        if isinstance(result, Tensor) and _does_nothing(target, args, result):
            self.places[id(result)] = self.places[id(args[0])]
            self.kept.append(result)
            return result
        args, kwargs = pytree.tree_map(self._place, (args, kwargs))
        known = result if isinstance(result, tuple | list) else (result,)
        for i, value in enumerate(known):
            if isinstance(value, Tensor):
                if id(value) in self.places:
                    raise _NotPlainError
                self.places[id(value)] = Place(len(self.steps), i if known is result else None)
                self.kept.append(value)
        self.steps.append(DispatchedCall(target, args, kwargs))
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.note(func, args, kwargs or {}, func(*args, **(kwargs or {})))


def _does_nothing(target: Any, args: Any, result: Tensor) -> bool:
    """Whether a reshape or an expansion gives what it gets: composite operators shape their results once more."""
    spelling = spelling_of(target, args)
    row = ROWS.get(spelling.name, NOTHING) if spelling is not None else NOTHING
    source = args[0] if args else None
    same = isinstance(source, Tensor) and source.shape == result.shape and source.dtype == result.dtype
    return same and (row.orderly or row.grows)


def _lerp(input: Tensor, end: Tensor, weight: float) -> Tensor:
    """As torch rounds it; its own decomposition makes a tensor of the weight."""
    return input + weight * (end - input) if abs(weight) < 0.5 else end - (end - input) * (1 - weight)


class _Decomposing(_Recorder):
    """Writes torch's decompositions of them down, where it has any, and the table has none of them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = spelling_of(func, ())
        found = _decompositions().get(func) if name is None or name.name not in ROWS else None
        if found is None:
            return super().__torch_dispatch__(func, types, args, kwargs)
        with self:
            return found(*args, **(kwargs or {}))


@functools.cache
def _decompositions() -> dict[Any, Any]:
    return {**dict(torch.export.default_decompositions().items()), torch.ops.aten.lerp.Scalar: _lerp}


def inserted(node: fx.Node, found: Dispatched) -> tuple[list[fx.Node], Any]:
    """The steps as nodes in front of a call, and the nodes of its result."""
    inputs = node.all_input_nodes
    made: list[fx.Node] = []
    new: list[fx.Node] = []

    def of(value: Any) -> Any:
        if not isinstance(value, Place):
            return value
        if value.step < 0:
            return inputs[-1 - value.step]
        if value.item is None:
            return made[value.step]
        new.append(node.graph.call_function(operator.getitem, (made[value.step], value.item)))
        return new[-1]

    with node.graph.inserting_before(node):
        for step in found.steps:
            args, kwargs = pytree.tree_map(of, (step.args, step.kwargs))
            made.append(node.graph.call_function(step.target, args, kwargs))
            new.append(made[-1])
        result = pytree.tree_map(of, found.result)
    for one in new:
        one.meta["path"] = node.meta.get("path", "")
    return new, result
