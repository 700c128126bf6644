"""Groups of linear layers that a user names: by glob patterns, or by their places in the order of execution."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from canonize.errors import ExplainError
from canonize.explain.rules import linear_layers

_RANGE = re.compile(r"(\d+)(-(\d*))?")


def select_layers(model: nn.Module, patterns: str | Sequence[str]) -> list[str]:
    """Linear layers by name or place.

    Parameters
    ----------
    model : nn.Module
    patterns : str or sequence of str
        Qualified names, glob patterns (``features.0*``), places counted from 1 in order of execution, convolutions and
        dense layers alike: ``3``, ``2-10``, ``11-`` (to the last). A number that is a layer's name is that name.

    Returns
    -------
    list of str
        Qualified names in order of execution, each once.

    Raises
    ------
    ExplainError
        If a pattern names no layer.
    """
    layers = linear_layers(model)
    chosen: set[str] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        found = _matching(layers, pattern)
        if not found:
            raise ExplainError(
                f"{pattern!r} names none of the {len(layers)} linear layers",
                hint=f"Give a glob pattern or places such as 2-{len(layers)}; the first layer is {layers[0]}"
                if layers
                else "The model has none",
            )
        chosen.update(found)
    return [layer for layer in layers if layer in chosen]


def _matching(layers: list[str], pattern: str) -> list[str]:
    places = _RANGE.fullmatch(pattern)
    if places is None or pattern in layers:
        return [layer for layer in layers if fnmatchcase(layer, pattern)]
    first, dashed, last = int(places[1]), places[2], places[3]
    end = int(last) if last else len(layers) if dashed else first
    return layers[max(first, 1) - 1 : end] if first <= len(layers) and end >= first else []
