"""What every tracer gives."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from canonize.inputs import Inputs

# Inputs that are part of what is captured, beside the tensors that vary from call to call.
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
# Starts the message of a check that a canonical model makes of its input's size.
GUARD = "captured for other sizes"
# The entry of a graph module's ``meta`` that names inputs which are no data, but tensors of sizes or axes (from ONNX).
NUMBERS = "number_inputs"


def flag_message(name: str, value: Any) -> str:
    """What a canonical model says when a flag or a number is not the one that it was captured with."""
    return f"{GUARD}: this canonical model holds for {name}={value!r}. Canonize again with the value you need."


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
    asks_for_gradients : bool
        Whether the forward asks if a value requires gradients.
    aliases : dict of fx.Node to list of fx.Node
        For nodes whose value was seen to lie in the memory of values that they read: which.
    told : bool
        Whether the forward makes text of values, which the meta device has not.
    """

    graph: fx.Graph
    root: nn.Module
    tracer: str
    notes: tuple[str, ...] = ()
    told: bool = False
    asks_for_gradients: bool = False
    aliases: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)


def input_names(forward: Callable[..., Any], inputs: Inputs) -> Iterator[str]:
    """Names for the given inputs, as the signature of ``forward(self, ...)`` calls them."""
    positional = []
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            positional.append(parameter.name)
    for index in range(len(inputs.args)):
        yield positional[index] if index < len(positional) else f"input_{index}"
    yield from inputs.kwargs


def left_out(state: str) -> str:
    """A note on state that a forward writes, and that nothing it gives depends on."""
    return f"the forward also writes into {state}; the canonical model leaves that out"


def plain_output_notes(output: Any) -> tuple[str, ...]:
    """What to know of an output that was of a dictionary's kind: a graph gives a plain one."""
    kind = type(output)
    if not isinstance(output, dict) or kind in (dict, OrderedDict) or kind.__module__.startswith("torch.fx"):
        return ()
    key = next(iter(output), "...")
    return (f"the model's {kind.__name__} comes as a plain dictionary: output[{key!r}], not output.{key}",)


def defaults(forward: Callable[..., Any], inputs: Inputs) -> list[tuple[Any, ...]]:
    """For each given input ``(value,)`` where a call may leave it out, and ``()`` elsewhere.

    It may where the value is the default of ``forward`` itself, and no tensor comes behind.
    """
    parameters = inspect.signature(forward).parameters
    values = [*inputs.args, *inputs.kwargs.values()]
    found: list[tuple[Any, ...]] = [()] * len(values)
    for i, name in reversed(list(enumerate(input_names(forward, inputs)))):
        own = parameters[name].default if name in parameters else inspect.Parameter.empty
        if type(own) is not type(values[i]) or not isinstance(own, PLAIN) or own != values[i]:
            break
        found[i] = (values[i],)
    return found


def path_of(node: fx.Node) -> str:
    """Qualified name of the innermost module around a node."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    entry = list(stack.values())[-1]
    name = entry[0] if isinstance(entry, tuple) else str(entry)
    return ".".join(part.split("@")[0] for part in name.split(".") if part)
