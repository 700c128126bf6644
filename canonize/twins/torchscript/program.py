"""One method or function of a TorchScript file, run statement by statement."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from canonize.compat.private import inline, new_torchscript_graph
from canonize.errors import CaptureError
from canonize.twins.torchscript.interpreted import call_operator

_LINE = re.compile(r'File "([^"]+)", line (\d+)')
# Statements that a model is free to make and that compute nothing.
_SILENT = {"prim::Print", "aten::warn"}


class ScriptMethod:
    """Asks a module for another of its methods than ``forward``, as its first argument."""

    def __init__(self, name: str) -> None:
        self.name = name


class Program:
    """A graph of TorchScript that can be called.

    Parameters
    ----------
    graph : torch._C.Graph
        With calls of methods and functions in it, not inlined: who calls whom is where layers have their names from.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self._functions: dict[int, Program] = {}
        self._constants: dict[int, Any] = {}

    def __deepcopy__(self, memo: Any) -> Program:
        return self  # nothing in it ever changes

    def __call__(self, *arguments: Any) -> Any:
        """Run the graph; a method's first argument is its module."""
        known = {value.unique(): given for value, given in zip(self.graph.inputs(), arguments, strict=True)}
        (result,) = self._run(self.graph, known)
        return result

    def _run(self, block: Any, known: dict[int, Any]) -> list[Any]:
        for node in block.nodes():
            outputs = list(node.outputs())
            try:
                results = self._results(node, known)
            except Exception as error:
                if "DataDependent" in type(error).__name__:
                    raise _decided_by_data(node) from error
                raise
            for value, result in zip(outputs, results, strict=True):
                known[value.unique()] = result
        return [known[value.unique()] for value in block.outputs()]

    def _results(self, node: Any, known: dict[int, Any]) -> list[Any]:
        if node.kind() == "prim::If":
            blocks = list(node.blocks())
            return self._run(blocks[0 if known[node.input().unique()] else 1], known)
        if node.kind() == "prim::Loop":
            return self._loop(node, known)
        found, count = self._step(node, known), node.outputsSize()
        return [found] if count == 1 else list(found) if count else []

    def _step(self, node: Any, known: dict[int, Any]) -> Any:
        """What a node without blocks computes: its one result, or a sequence of its results."""
        kind = node.kind()
        if kind == "prim::Constant":
            return self._constant(node)
        arguments = [known[value.unique()] for value in node.inputs()]
        if kind in _SILENT:
            return None
        if kind == "prim::CallFunction":
            return self._function(node)(*arguments[1:])
        statement = _STATEMENTS.get(kind)
        if statement is not None:
            return statement(node, arguments)
        return call_operator(node, arguments, place_of(node))

    def _constant(self, node: Any) -> Any:
        output = node.output()
        if output.type().kind() == "FunctionType":
            return node
        # A tensor must be the same one on every call, or tracers take it for several.
        if output.unique() not in self._constants:
            self._constants[output.unique()] = output.toIValue()
        value = self._constants[output.unique()]
        return list(value) if isinstance(value, list) else value  # the program may write into its lists

    def _loop(self, node: Any, known: dict[int, Any]) -> list[Any]:
        (block,) = node.blocks()
        count, condition, *carried = (known[value.unique()] for value in node.inputs())
        names = [value.unique() for value in block.inputs()]
        turn = 0
        while condition and turn < int(count):
            known.update(zip(names, [turn, *carried], strict=True))
            condition, *carried = self._run(block, known)
            turn += 1
        return carried

    def _function(self, node: Any) -> Program:
        # By the constant that holds it: types of functions all have one name.
        key = next(iter(node.inputs())).unique()
        if key not in self._functions:
            self._functions[key] = Program(_body(node))
        return self._functions[key]


def _body(node: Any) -> Any:
    """The graph of the function that a node calls. torch hands it out only by inlining the call."""
    graph: Any = new_torchscript_graph()
    function, *arguments = node.inputs()
    constant = graph.insertNode(graph.createClone(function.node(), lambda value: value))
    inputs = {function.unique(): constant.output()}
    for argument in arguments:
        inputs[argument.unique()] = graph.addInput()
        inputs[argument.unique()].setType(argument.type())
    call = graph.insertNode(graph.createClone(node, lambda value: inputs[value.unique()]))
    for output in call.outputs():
        graph.registerOutput(output)
    inline(graph)
    return graph


def _decided_by_data(node: Any) -> CaptureError:
    return CaptureError(
        "its control flow depends on the values of a tensor, not only on shapes",
        place_of(node),
        "Script the model again with the branch written as torch.where.",
    )


def place_of(node: Any) -> str | None:
    """The line of source that a node was compiled from, as the file tells it."""
    found = _LINE.search(node.sourceRange())
    return f"{found[1]}:{found[2]}" if found and not found[1].startswith("code/") else None


# -------------------------------------------------------------------------------------------------- statements


def _attribute(node: Any, arguments: list[Any]) -> Any:
    owner, name = arguments[0], node.s("name")
    if not isinstance(owner, nn.Module):
        raise _refusal(f"reads {name} of an object that is no module", node)
    return owner.scripted_attribute(name)  # type: ignore[operator]


def _method(node: Any, arguments: list[Any]) -> Any:
    owner, name = arguments[0], node.s("name")
    if not isinstance(owner, nn.Module):
        raise _refusal(f"calls {name} of an object that is no module", node)
    # By __call__, where tracers note the name of the module.
    return owner(*arguments[1:]) if name == "forward" else owner(ScriptMethod(name), *arguments[1:])


def _unpacked(node: Any, arguments: list[Any]) -> Any:
    items = list(arguments[0])
    wanted = node.outputsSize()
    if len(items) != wanted:
        raise ValueError(f"{wanted} values are unpacked from {len(items)}")
    return items[0] if wanted == 1 else items  # as every statement with one result


def _dictionary(node: Any, arguments: list[Any]) -> Any:
    return dict(zip(arguments[::2], arguments[1::2], strict=True))


def _raise(node: Any, arguments: list[Any]) -> Any:
    raise RuntimeError(f"the model says: {arguments[0]}")


def _set_attribute(node: Any, arguments: list[Any]) -> Any:
    raise _refusal(f"writes into its own attribute {node.s('name')} in eval mode", node)


def _refusal(what: str, node: Any) -> CaptureError:
    return CaptureError(f"its TorchScript {what}", place_of(node), "Give the nn.Module that it was scripted from.")


_STATEMENTS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "prim::GetAttr": _attribute,
    "prim::SetAttr": _set_attribute,
    "prim::CallMethod": _method,
    "prim::ListConstruct": lambda node, arguments: list(arguments),
    "prim::TupleConstruct": lambda node, arguments: tuple(arguments),
    "prim::DictConstruct": _dictionary,
    "prim::ListUnpack": _unpacked,
    "prim::TupleUnpack": _unpacked,
    "prim::TupleIndex": lambda node, arguments: arguments[0][arguments[1]],
    "prim::TupleSlice": lambda node, arguments: arguments[0][node.i("beg") : node.i("end")],
    "prim::RaiseException": _raise,
    "prim::Uninitialized": lambda node, arguments: None,
}
