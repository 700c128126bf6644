"""What a TorchScript program says of itself before it is run: the tensors in its code, the casts it makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from canonize.compat.private import inline, parse_schema

# Codes of float16, float32 and bfloat16, and the operators that bring a tensor to such a type.
_NARROW = {5: "float16", 6: "float32", 15: "bfloat16"}
_CASTS = ("aten::to", "aten::_to_copy", "aten::softmax", "aten::log_softmax", "aten::sum", "aten::mean", "aten::cumsum")


def constants(script: torch.jit.ScriptModule) -> list[Tensor]:
    """The tensors in a program's code: the weights of a module that was frozen."""
    values = (node.output() for node in _nodes(script) if node.kind() == "prim::Constant" and node.outputsSize() == 1)
    return [value.toIValue() for value in values if value.type().kind() == "TensorType"]


def narrow_cast(script: torch.jit.ScriptModule) -> str:
    """The first precision below float64 that a program casts tensors to, whatever it is fed; empty where it does not.

    Its float64 copy then computes in that precision all the same, and cannot say what the function is without rounding.
    """
    for node in _nodes(script):
        if node.kind() not in _CASTS or "(" not in node.schema():
            continue
        schema = parse_schema(node.schema())
        for argument, value in zip(schema.arguments, node.inputs(), strict=True):
            if argument.name == "dtype" and value.node().kind() == "prim::Constant":
                code = value.toIValue()
                if code in _NARROW:
                    return _NARROW[code]
    return ""


def _nodes(script: torch.jit.ScriptModule) -> Iterator[Any]:
    """Every node that a call of the module may reach."""
    if script._c._has_method("forward"):
        graph = script._c._get_method("forward").graph.copy()
        inline(graph)
        yield from _within(graph)


def _within(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _within(inner)
