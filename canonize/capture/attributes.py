"""What a forward leaves behind in attributes while it is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from canonize.capture.writes import writes_its_state


@contextlib.contextmanager
def attributes_as_they_were(root: nn.Module, notes: list[str]) -> Iterator[None]:
    """Take back what a forward has put into attributes (a table that it keeps for the next call): proxies.

    What it does at the next call may depend on them. Numbers that it counts up are noted, layers and parameters that
    it exchanges are refused.

    Raises
    ------
    StatefulError
    """
    tables = [
        (name, table, dict(table))
        for name, module in root.named_modules()
        for table in (module.__dict__, module._parameters, module._buffers, module._modules)
    ]
    try:
        yield
        for path, table, before in tables:
            for name, old in before.items():
                new = table.get(name)
                if new is old:
                    continue
                where = f"{path}.{name}".strip(".")
                if isinstance(old, nn.Module | nn.Parameter) and isinstance(new, nn.Module | nn.Parameter):
                    raise writes_its_state(where, path)
                if type(old) is type(new) and isinstance(old, int | float) and old != new:
                    notes.append(f"the forward counts in {where}; the canonical model is what it computes at first")
    finally:
        for _, table, before in tables:
            # Constants that torch.fx met on the way are tensors, and the graph refers to them.
            constants = {name: it for name, it in table.items() if name not in before and isinstance(it, Tensor)}
            table.clear()
            table.update(before | constants)
