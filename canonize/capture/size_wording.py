"""Computations with sizes in a graph, as a reader would write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from canonize.vocabulary.symbols import SYMBOLS

# Deeper than this nobody reads a formula, and its length could double at each level.
_DEEPEST = 5


def expression(value: Any, is_data: Callable[[fx.Node], bool]) -> str:
    """A computation with sizes, as a reader would write it.

    Parameters
    ----------
    value : fx.Node or object
    is_data : callable
        Whether a node's value is a tensor. How a tensor was computed is not told: it is called by its name.
    """
    return _Words(is_data).of(value, 0)[0]


class _Words:
    """Each node is worded once at each depth, so that what is read twice costs no more than what is read once."""

    def __init__(self, is_data: Callable[[fx.Node], bool]) -> None:
        self._is_data = is_data
        self._known: dict[tuple[fx.Node, int], tuple[str, bool]] = {}

    def of(self, value: Any, depth: int) -> tuple[str, bool]:
        """The words, and whether they need parentheses in a larger expression."""
        if isinstance(value, slice):
            ends = ("" if end is None else self.of(end, depth)[0] for end in (value.start, value.stop))
            step = f":{self.of(value.step, depth)[0]}" if value.step is not None else ""
            return ":".join(ends) + step, False
        if isinstance(value, tuple | list):
            items = ", ".join(self.of(item, depth)[0] for item in value)
            return (f"[{items}]" if isinstance(value, list) else f"({items})"), False
        if not isinstance(value, fx.Node):
            return repr(value), False
        if (value, depth) not in self._known:
            self._known[value, depth] = self._of_node(value, depth)
        return self._known[value, depth]

    def _of_node(self, node: fx.Node, depth: int) -> tuple[str, bool]:
        if node.op not in ("call_function", "call_method"):
            return str(node.target), False
        if depth > _DEEPEST or self._is_data(node):
            return node.name, False
        parts = [self.of(argument, depth + 1) for argument in node.args]
        if node.op == "call_method":
            first, *rest = (words for words, _ in parts)
            return f"{first}.{node.target}({', '.join(rest)})", False
        name = getattr(node.target, "__name__", str(node.target))
        operands = [f"({words})" if compound else words for words, compound in parts]
        if name in SYMBOLS and len(parts) == 2:
            return f" {SYMBOLS[name]} ".join(operands), True
        if name == "getattr":
            return f"{operands[0]}.{node.args[1]}", False
        if name == "getitem":
            return f"{operands[0]}[{parts[1][0]}]", False
        return f"{name}({', '.join(words for words, _ in parts)})", False
