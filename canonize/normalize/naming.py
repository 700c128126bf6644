"""What an operation is called: by the vocabulary, by a ``Call``, and in a report."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from canonize.vocabulary import operator_name
from canonize.vocabulary.spelling import SPACES
from canonize.vocabulary.symbols import SYMBOLS

# Where a ``Call`` looks functions up, plainest first.
_HOMES = ("torch", "torch.nn.functional", "operator", "torch._C._nn", "torch._C._VariableFunctions")


def operation_name(node: fx.Node) -> str | None:
    """The common name of an operation, whichever way it is spelt; ``None`` for foreign functions."""
    name = operator_name(node)
    # x.view(torch.int32) reads the same memory as other numbers: no way to arrange elements.
    reads_otherwise = name == "view" and any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values()))
    return None if reads_otherwise else name


def target_name(node: fx.Node) -> str:
    """The name that ``canonize.nn.Call`` finds the operation by."""
    if node.op == "call_method":
        return "." + _pure(str(node.target))
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        return f"torch.ops.{namespace}.{name}.{target._overloadname}"
    if isinstance(target, torch._ops.OpOverloadPacket):
        namespace, _, name = target._qualified_op_name.partition("::")
        return f"torch.ops.{namespace}.{name}"
    if target is getattr:
        return "builtins.getattr"
    name = str(getattr(target, "__name__", target))
    for home in _HOMES:
        if getattr(SPACES[home], name, None) is target:
            return f"{home}.{_pure(name) if hasattr(SPACES[home], _pure(name)) else name}"
    owner = getattr(target, "__self__", None)
    if isinstance(owner, type):  # a custom autograd function's apply
        return f"{owner.__module__}.{owner.__qualname__}.{name}"
    return f"{target.__module__}.{getattr(target, '__qualname__', name)}"


def _pure(name: str) -> str:
    """A name without the underscore of what works in place."""
    return name.rstrip("_") if name.endswith("_") and not name.endswith("__") else name


def kind_of(node: fx.Node) -> str:
    """What a report calls an affine that a call computes."""
    name = operation_name(node) or ""
    if "batch_norm" in name:
        return "F.batch_norm"
    return f"{SYMBOLS.get(name, name)} constant"
