"""What a forward leaves behind in attributes while it is traced."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from canonize.twins.module_tree import named_modules
from canonize.twins.writes import writes_its_state


@contextlib.contextmanager
def attributes_as_they_were(root: nn.Module, notes: list[str]) -> Iterator[None]:
    """Take back what a forward has put into attributes (a table that it keeps for the next call): proxies.

    What it does at the next call may depend on them. Numbers that it counts up are noted, layers and parameters that
    it exchanges are refused.

    Raises
    ------
    StatefulError
    """
    tables: list[tuple[str, Any, Any]] = [
        (name, table, table.copy())
        for name, module in named_modules(root)
        for table in (module.__dict__, module._parameters, module._buffers, module._modules)
    ]
    changed: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    try:
        yield
    finally:
        for path, table, before in tables:
            if is_as_it_was(table, before):
                continue
            after = dict(table)
            changed.append((path, before, after))
            # Constants that torch.fx met on the way are tensors, and the graph refers to them.
            constants = {name: it for name, it in after.items() if name not in before and isinstance(it, Tensor)}
            table.clear()
            table.update(before | constants)
    for path, before, after in changed:
        for name, old in before.items():
            new = after.get(name)
            if new is old:
                continue
            where = f"{path}.{name}".strip(".")
            if isinstance(old, nn.Module | nn.Parameter) and isinstance(new, nn.Module | nn.Parameter):
                raise writes_its_state(where, path)
            if type(old) is type(new) and isinstance(old, int | float) and old != new:
                notes.append(f"the forward counts in {where}; the canonical model is what it computes at first")


def is_as_it_was(table: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether two tables hold the very same things under the same names."""
    if len(table) != len(before) or table.keys() != before.keys():
        return False
    return all(map(operator.is_, table.values(), before.values()))
