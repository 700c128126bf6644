"""For which inputs a graph of ``torch.export`` holds, and checks of it in the graph.

torch.export follows a model on one input. Every decision on a size that it meets on the way (a branch, a size that has
to divide another) becomes a guard: a condition on the sizes of the inputs, in Python. Here conditions that hold for
all sizes are left out, and the rest become checks, so that an input that would take another way is refused.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import operator
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from canonize.capture.captured import GUARD, PLAIN, flag_message
from canonize.errors import CaptureError
from canonize.inputs import Inputs

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.USub: operator.neg,
    ast.Not: operator.not_, ast.And: operator.and_, ast.Or: operator.or_, ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
# As torch writes them in its guards: the same function has other names in other versions.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "max": max, "torch.sym_max": max, "min": min, "torch.sym_min": min, "abs": abs, "bool": bool, "round": round,
    "int": int, "torch.sym_int": int, "float": float, "torch.sym_float": float, "torch.sym_not": operator.not_,
    "math.floor": math.floor, "math.ceil": math.ceil, "math.trunc": math.trunc,
    "math.sqrt": math.sqrt, "torch._sym_sqrt": math.sqrt, "torch.sym_sqrt": math.sqrt,
}  # fmt: skip
# Sizes that a condition is tried with: one that holds for all of them tells no sizes apart.
_TRIED = (2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 31, 32, 33, 64, 100, 224, 1000, 4096, 1_000_003)
_MOST_TRIALS = 4000
# With more conditions than these a graph would be unreadable: sizes are fixed instead.
_MOST_CONDITIONS = 24

Place = tuple[int, int]
"""A size: the number of a leaf, and a dimension of it."""


@dataclass(frozen=True)
class GuardedInput:
    """One value of the (nested) inputs.

    Attributes
    ----------
    node : fx.Node
        That gives it in the graph.
    label : str
        How a reader would call it: ``x``, ``images[0]``.
    example : Any
    traced : Any
        What torch.export knows of it: a tensor with symbolic sizes, or a constant.
    """

    node: fx.Node
    label: str
    example: Any
    traced: Any


class _UnreadableError(ValueError):
    """A condition that is not about sizes, or not written with what is known here; and the sizes that it is about."""

    def __init__(self, source: str, places: Iterable[Place] = ()) -> None:
        super().__init__(source)
        self.places = set(places)


def guard_inputs(
    graph: fx.Graph,
    leaves: list[GuardedInput],
    conditions: list[str] | None,
    forward: Callable[..., Any],
    inputs: Inputs,
    holds_for_one: Callable[[], bool],
) -> None:
    """Check in the graph what it was captured for.

    Parameters
    ----------
    graph : fx.Graph
    leaves : list of Leaf
        In the order of the inputs.
    conditions : list of str
        As torch.export writes them, over ``L['name'].size()[d]``; None where this torch does not tell them.
    forward : callable
        The model's, whose signature names the inputs.
    inputs : Inputs
    holds_for_one : callable
        Whether the graph also gives what the model gives on one row; torch.export takes every free size to be at
        least 2.

    Raises
    ------
    CaptureError
        If an input is neither a tensor nor a plain value.
    """
    free: dict[Place, int] = {}
    fixed: dict[Place, int] = {}
    for i, leaf in enumerate(leaves):
        if isinstance(leaf.example, Tensor):
            for d, size in enumerate(leaf.traced.shape):
                number = constant_size(size)
                (free if number is None else fixed)[i, d] = leaf.example.shape[d] if number is None else number
        elif not isinstance(leaf.example, PLAIN):
            raise CaptureError(
                f"its input {leaf.label} is a {type(leaf.example).__name__}, neither a tensor nor a plain value",
                hint="Pass tensors, numbers, flags, or containers of them.",
            )
    batch = {(i, 0) for i, d in free if d == 0 and leaves[i].example.shape[0] == inputs.batch_size}
    structure = _bound(forward, inputs)
    kept, released = _telling(conditions, structure, free, batch, fixed)
    fixed |= {place: free[place] for place in released}
    rows = {place for place in batch if place in free}
    many = set(free) - rows
    if rows and (free.keys() & released or not holds_for_one()):
        many |= rows - released
    writer = _Writer(graph, leaves)
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf.example, Tensor):
            writer.check(writer.apply(operator.eq, leaf.node, leaf.example), flag_message(leaf.label, leaf.example))
        for (other, d), size in fixed.items():
            if other == i:
                said = f"dimension {d} of {leaf.label} is {size}"
                writer.check(writer.apply(operator.eq, writer.size((i, d)), size), _message(said))
    for place in sorted(many - released):
        i, d = place
        said = f"dimension {d} of {leaves[i].label} is at least 2"
        writer.check(writer.apply(operator.ge, writer.size(place), 2), _message(said))
    for condition in kept:
        writer.check(condition.interpret(writer.size, writer.apply), _message(condition.told()))


def _message(said: str) -> str:
    return f"{GUARD}: this canonical model holds where {said}. Canonize again with an input of the size you need."


def constant_size(size: Any) -> int | None:
    """The number that a traced size is held to; None where it is free."""
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        return int(expression) if expression.is_number else None
    return int(size)


# --------------------------------------------------------------------------------------------------- conditions


class _Condition:
    """One guard: a tree over the sizes of the leaves."""

    def __init__(self, source: str, structure: Mapping[str, Any]) -> None:
        self.source, self._structure = source, structure
        try:
            self._tree = ast.parse(source, mode="eval").body
        except SyntaxError as error:
            raise _UnreadableError(source) from error
        self.places: set[Place] = set()

        def note(place: Place) -> int:
            self.places.add(place)
            return 2

        try:
            self.interpret(note, lambda function, *arguments: 2)
        except _UnreadableError as error:
            raise _UnreadableError(source, self._mentioned()) from error

    def _mentioned(self) -> set[Place]:
        """Sizes anywhere in it; none where it also reads something else of an input than its sizes."""
        inputs = [part for part in ast.walk(self._tree) if isinstance(part, ast.Name) and part.id == "L"]
        sizes = [part for part in ast.walk(self._tree) if _is_size(part)]
        whole = [part for part in ast.walk(self._tree) if isinstance(part, ast.Subscript) and _is_size(part.value)]
        try:
            return {self._place(part) for part in whole} if len(whole) == len(sizes) == len(inputs) else set()
        except _UnreadableError:
            return set()

    def told(self) -> str:
        """As a reader would write it."""
        return re.sub(r"L\['(\w+)'\]", r"\1", self.source).replace(".size()[", ".shape[")

    def holds(self, sizes: Mapping[Place, int]) -> bool:
        """Whether it is true of these sizes."""
        try:
            return bool(self.interpret(sizes.__getitem__, lambda function, *arguments: function(*arguments)))
        except (ArithmeticError, ValueError):
            return False

    def interpret(self, size_of: Callable[[Place], Any], apply: Callable[..., Any]) -> Any:
        """Work it out, or write it down: sizes and operations are whatever the two functions make of them."""

        def visit(tree: ast.AST) -> Any:
            if isinstance(tree, ast.Constant):
                return tree.value
            if isinstance(tree, ast.BinOp):
                return apply(_operator(tree.op), visit(tree.left), visit(tree.right))
            if isinstance(tree, ast.UnaryOp):
                return apply(_operator(tree.op), visit(tree.operand))
            if isinstance(tree, ast.BoolOp):
                return _joined(_operator(tree.op), [visit(value) for value in tree.values], apply)
            if isinstance(tree, ast.Compare):
                values = [visit(value) for value in (tree.left, *tree.comparators)]
                pairs = zip(tree.ops, itertools.pairwise(values), strict=True)
                parts = [apply(_operator(op), left, right) for op, (left, right) in pairs]
                return _joined(operator.and_, parts, apply)
            if isinstance(tree, ast.Call) and ast.unparse(tree.func) in _FUNCTIONS:
                return apply(_FUNCTIONS[ast.unparse(tree.func)], *map(visit, tree.args))
            return size_of(self._place(tree))

        return visit(self._tree)

    def _place(self, tree: ast.AST) -> Place:
        """``L['x'].size()[2]``."""
        match tree:
            case ast.Subscript(
                value=ast.Call(func=ast.Attribute(value=owner, attr="size"), args=[]), slice=ast.Constant(value=int(d))
            ):
                leaf = self._leaf(owner)
                if isinstance(leaf, int):
                    return leaf, d
        raise _UnreadableError(self.source)

    def _leaf(self, tree: ast.AST) -> Any:
        match tree:
            case ast.Name(id="L"):
                return self._structure
            case ast.Subscript(value=owner, slice=ast.Constant(value=key)):
                try:
                    return self._leaf(owner)[key]
                except (KeyError, IndexError, TypeError) as error:
                    raise _UnreadableError(self.source) from error
        raise _UnreadableError(self.source)


def _is_size(tree: ast.AST) -> TypeGuard[ast.Call]:
    """``L['x'].size()``."""
    return isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute) and tree.func.attr == "size"


def _operator(kind: ast.AST) -> Callable[..., Any]:
    if type(kind) not in _OPERATORS:
        raise _UnreadableError(ast.dump(kind))
    return _OPERATORS[type(kind)]


def _joined(function: Callable[..., Any], parts: list[Any], apply: Callable[..., Any]) -> Any:
    whole = parts[0]
    for part in parts[1:]:
        whole = apply(function, whole, part)
    return whole


def _telling(
    sources: list[str] | None,
    structure: Mapping[str, Any],
    free: Mapping[Place, int],
    batch: set[Place],
    fixed: Mapping[Place, int],
) -> tuple[list[_Condition], set[Place]]:
    """The conditions that tell sizes apart, and sizes that have to be fixed because conditions cannot be checked."""
    if sources is None:
        return [], set(free)
    conditions: list[_Condition] = []
    unread: set[Place] = set()  # sizes in conditions that cannot be written down
    for source in sources:
        try:
            conditions.append(_Condition(source, structure))
        except _UnreadableError as error:
            unread |= error.places & set(free) or set(free)
    for released in (unread, unread | (set(free) - batch), set(free)):
        settled = {**fixed, **{place: free[place] for place in released}}
        kept = [condition for condition in conditions if _tells_apart(condition, free, settled)]
        if len(kept) <= _MOST_CONDITIONS:
            break
    return kept, released


def _tells_apart(condition: _Condition, free: Mapping[Place, int], settled: Mapping[Place, int]) -> bool:
    """Whether it is false for any sizes, as far as trying tells."""
    places = sorted(condition.places - settled.keys())
    choices = [sorted({*_TRIED, free[place]} - {0, 1}) for place in places]  # of one row the graph was tried
    return not all(condition.holds({**settled, **dict(zip(places, sizes, strict=True))}) for sizes in _some_of(choices))


def _some_of(choices: list[list[int]]) -> Iterator[tuple[int, ...]]:
    """All combinations, or as many as are tried in no time."""
    count = 1
    for values in choices:
        count *= len(values)
    if count <= _MOST_TRIALS:
        yield from itertools.product(*choices)
        return
    drawn = random.Random(0)
    for _ in range(_MOST_TRIALS):
        yield tuple(drawn.choice(values) for values in choices)


def _bound(forward: Callable[..., Any], inputs: Inputs) -> dict[str, Any]:
    """The numbers of the leaves, nested as the inputs are, under the names of ``forward``'s arguments."""
    count = itertools.count()

    def number(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [number(item) for item in value]
        if isinstance(value, dict):
            return {key: number(item) for key, item in value.items()}
        return next(count)

    args, kwargs = [number(value) for value in inputs.args], {k: number(v) for k, v in inputs.kwargs.items()}
    try:
        named = inspect.signature(forward).bind(None, *args, **kwargs).arguments
    except TypeError:
        named = {}
    return {**kwargs, **named}


# ------------------------------------------------------------------------------------------------------- checks


class _Writer:
    """Writes checks in front of everything that a graph computes."""

    def __init__(self, graph: fx.Graph, leaves: list[GuardedInput]) -> None:
        self._graph, self._leaves = graph, leaves
        order = {node: position for position, node in enumerate(graph.nodes)}
        last = max((leaf.node for leaf in leaves), key=order.__getitem__)
        behind = (n for n in graph.nodes if order[n] > order[last] and n.op != "placeholder")
        self._place = next(behind)
        self._sizes: dict[Place, fx.Node] = {}

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A node that calls a function."""
        return self._put("call_function", function, arguments)

    def size(self, place: Place) -> fx.Node:
        """A node that gives a size."""
        if place not in self._sizes:
            leaf, dim = place
            self._sizes[place] = self._put("call_method", "size", (self._leaves[leaf].node, dim))
        return self._sizes[place]

    def check(self, holds: Any, message: str) -> None:
        """Refuse inputs of which a condition does not hold."""
        self._put("call_function", torch._assert, (holds, message))

    def _put(self, op: str, target: Any, arguments: tuple[Any, ...]) -> fx.Node:
        with self._graph.inserting_before(self._place):
            node = self._graph.create_node(op, target, arguments)
        node.meta["path"] = ""
        return node
