"""What every tracer gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from canonize.inputs import Inputs

# Starts the message of a check that a canonical model makes of its input's size.
GUARD = "captured for other sizes"


@dataclass
class Captured:
    """A traced model.

    Attributes
    ----------
    graph : fx.Graph
        Placeholders are the model's inputs; parameters and buffers are ``get_attr`` nodes.
    root : nn.Module
        Eval-mode copy of the model that the graph's targets refer to; shares its tensors.
    tracer : {"symbolic_trace", "torch.export"}
    notes : tuple of str
        What the graph leaves out.
    """

    graph: fx.Graph
    root: nn.Module
    tracer: str
    notes: tuple[str, ...] = ()


def input_names(forward: Callable[..., Any], inputs: Inputs) -> Iterator[str]:
    """Names for the given inputs, as the signature of ``forward(self, ...)`` calls them."""
    positional = []
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            positional.append(parameter.name)
    for index in range(len(inputs.args)):
        yield positional[index] if index < len(positional) else f"input_{index}"
    yield from inputs.kwargs


def path_of(node: fx.Node) -> str:
    """Qualified name of the innermost module around a node."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    entry = list(stack.values())[-1]
    name = entry[0] if isinstance(entry, tuple) else str(entry)
    return ".".join(part.split("@")[0] for part in name.split(".") if part)
