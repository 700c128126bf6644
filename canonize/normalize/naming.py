"""What an operation is called, whichever way it is spelt."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

NAMESPACES: dict[str, Any] = {
    "torch": torch,
    "torch.nn.functional": F,
    "operator": operator,
    "torch._C._nn": torch._C._nn,
}


def operation_name(node: fx.Node) -> str | None:
    """The common name of an operation, whichever way it is spelt; ``None`` for foreign functions."""
    name = _spelt(node)
    # x.view(torch.int32) reads the same memory as other numbers: no way to arrange elements.
    reads_otherwise = name == "view" and any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values()))
    return None if reads_otherwise else name


def _spelt(node: fx.Node) -> str | None:
    if node.op == "call_method":
        return str(node.target).rstrip("_") or str(node.target)
    if node.op != "call_function":
        return None
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        return name if namespace == "aten" else None
    if target is getattr:
        return str(node.args[1])
    name = str(getattr(target, "__name__", ""))
    if any(getattr(space, name, None) is target for space in NAMESPACES.values()):
        return name.rstrip("_") if not name.startswith("_") else name
    if name == "stochastic_depth":
        return name
    return None


def target_name(node: fx.Node) -> str:
    """The name that ``canonize.nn.Call`` finds the operation by."""
    if node.op == "call_method":
        name = str(node.target)
        return "." + (name.rstrip("_") if name.endswith("_") and not name.endswith("__") else name)
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        return f"torch.ops.{namespace}.{name}.{target._overloadname}"
    if target is getattr:
        return "builtins.getattr"
    name = str(getattr(target, "__name__", target))
    for space, prefix in (
        (torch, "torch"),
        (F, "torch.nn.functional"),
        (operator, "operator"),
        (torch._C._nn, "torch._C._nn"),
        # What torch's own Python functions call (torch.meshgrid): other arguments, so no common name.
        (torch._C._VariableFunctions, "torch._C._VariableFunctions"),
    ):
        if getattr(space, name, None) is target:
            if name.endswith("_") and hasattr(space, name.rstrip("_")):
                name = name.rstrip("_")
            return f"{prefix}.{name}"
    owner = getattr(target, "__self__", None)
    if isinstance(owner, type):  # a custom autograd function's apply
        return f"{owner.__module__}.{owner.__qualname__}.{name}"
    return f"{target.__module__}.{getattr(target, '__qualname__', name)}"


def kind_of(node: fx.Node) -> str:
    """What a report calls an affine that a call computes."""
    name = operation_name(node) or ""
    if "batch_norm" in name:
        return "F.batch_norm"
    return {"add": "+ constant", "sub": "- constant", "mul": "* constant", "div": "/ constant"}.get(
        name, f"{name} constant"
    )
