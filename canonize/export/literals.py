"""Values as Python writes them; whatever has no such writing is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from canonize.errors import ExportError


def literal(value: Any, special: Callable[[Any], str | None] = lambda value: None) -> str:
    """The Python expression of a value.

    Parameters
    ----------
    value : Any
        None, numbers, strings, dtypes, devices, layouts, memory formats, and tuples, lists, dictionaries and slices of
        them.
    special : callable
        Asked first for every value; what it gives is taken.

    Raises
    ------
    ExportError
        If the value, or a part of it, has no expression.
    """
    chosen = special(value)
    if chosen is not None:
        return chosen
    if value is None or isinstance(value, bool | int | str):
        return repr(value) if not isinstance(value, int) or isinstance(value, bool) else str(int(value))
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else f'float("{float(value)}")'
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout | complex):
        return repr(value)
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if value is Ellipsis:
        return "..."
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return f"slice({', '.join(literal(part, special) for part in parts)})"
    if isinstance(value, list):
        return f"[{', '.join(literal(item, special) for item in value)}]"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        items = [literal(item, special) for item in value]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k, special)}: {literal(v, special)}" for k, v in value.items()) + "}"
    raise ExportError(
        f"a {type(value).__name__} cannot be written as source", hint="Write a .pt: it holds whatever can be pickled"
    )


def index(value: Any, special: Callable[[Any], str | None] = lambda value: None) -> str:
    """What stands between the brackets of ``x[...]``."""
    if isinstance(value, tuple) and value and not hasattr(value, "_fields"):
        comma = "," if len(value) == 1 else ""
        return ", ".join(_one_index(item, special) for item in value) + comma
    return _one_index(value, special)


def _one_index(value: Any, special: Callable[[Any], str | None]) -> str:
    if not isinstance(value, slice):
        return literal(value, special)
    start, stop, step = ("" if p is None else literal(p, special) for p in (value.start, value.stop, value.step))
    return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
