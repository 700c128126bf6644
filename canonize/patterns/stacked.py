r"""Stacked linear layers (C2): two that meet without a nonlinearity are one.

.. math:: W_2 (W_1 x + b_1) + b_2 = (W_2 W_1) x + (W_2 b_1 + b_2)

Merged where that is exact and not larger.
"""

from __future__ import annotations

from torch import fx, nn


def mergeable(modules: dict[str, nn.Module], node: fx.Node) -> tuple[str, str] | None:
    """Names of two stacked linear layers that a node completes, if they could be merged."""
    second = modules.get(str(node.target)) if node.op == "call_module" else None
    source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if second is None or source is None or source.op != "call_module" or len(source.users) != 1:
        return None
    first = modules.get(str(source.target))
    if first is None or refusal(first, second) is not None:
        return None
    return str(source.target), str(node.target)


def refusal(first: nn.Module, second: nn.Module) -> str | None:
    """Why two layers in a row cannot be merged; ``None`` if they can."""
    return "not supported"
