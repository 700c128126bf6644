"""Computations with sizes in a graph, as a reader would write them."""

from __future__ import annotations

from typing import Any

from torch import fx

_SYMBOLS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "add": "+", "sub": "-", "mul": "*",
            "floordiv": "//", "truediv": "/", "mod": "%"}  # fmt: skip


def expression(value: Any) -> str:
    """A computation with sizes, as a reader would write it."""
    if isinstance(value, slice):
        ends = ("" if end is None else expression(end) for end in (value.start, value.stop))
        return ":".join(ends) + (f":{expression(value.step)}" if value.step is not None else "")
    if not isinstance(value, fx.Node):
        return repr(value)
    if value.op == "call_function":
        name = getattr(value.target, "__name__", str(value.target))
        parts = [expression(argument) for argument in value.args]
        if name in _SYMBOLS and len(parts) == 2:
            return f" {_SYMBOLS[name]} ".join(_operand(argument) for argument in value.args)
        if name == "getattr":
            return f"{_operand(value.args[0])}.{value.args[1]}"
        if name == "getitem":
            return f"{_operand(value.args[0])}[{parts[1]}]"
        return f"{name}({', '.join(parts)})"
    if value.op == "call_method":
        first, *rest = (expression(argument) for argument in value.args)
        return f"{first}.{value.target}({', '.join(rest)})"
    return str(value.target)


def _operand(value: Any) -> str:
    """A part of a larger expression, in parentheses where it needs them."""
    compound = isinstance(value, fx.Node) and getattr(value.target, "__name__", "") in _SYMBOLS
    return f"({expression(value)})" if compound else expression(value)
