"""A graph -> the body of a ``forward`` that a person would have written."""

from __future__ import annotations

import builtins
import importlib
import itertools
import keyword
import operator
import re
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from canonize import nn as cnn
from canonize.compat.private import HOMES
from canonize.errors import ExportError
from canonize.export.literals import index, literal
from canonize.normalize.naming import target_name
from canonize.vocabulary.symbols import SYMBOLS

_INFIX = {name: symbol for name, symbol in SYMBOLS.items() if hasattr(operator, name) and symbol[0] != "i"}
_PREFIX = {"neg": "-", "not_": "not ", "invert": "~", "inv": "~", "pos": "+"}
# What the statements themselves may name, and what no variable hides.
_NAMED = {"self", "torch", "nn", "F", "operator", "math", "float", "slice", "fill", "Slot", *cnn.__all__}
_RESERVED = _NAMED | set(dir(builtins))


class Forward:
    """The statements of a graph, and what they need imported.

    Attributes
    ----------
    arguments : list of str
        Parameters of ``forward``, with their defaults.
    lines : list of str
        Its statements, without indentation.
    inlined : set of str
        Names of the modules that became a statement of their own: they need no place among the layers.
    imports : set of str
        Modules to import.
    helpers : set of str
        Names from ``canonize.nn`` that the statements use.
    """

    def __init__(self, model: fx.GraphModule) -> None:
        self.model = model
        self.arguments: list[str] = []
        self.lines: list[str] = []
        self.inlined: set[str] = set()
        self.imports: set[str] = set()
        self.helpers: set[str] = set()
        self._names: dict[fx.Node, str] = {}
        self._live: set[fx.Node] = set()
        self._last: dict[fx.Node, fx.Node] = {}
        self._place = ""
        nodes = list(model.graph.nodes)
        for node in nodes:
            for source in node.all_input_nodes:
                self._last[source] = node
        # Parameters first: no variable may take the name of one that comes later.
        for node in nodes:
            if node.op == "placeholder":
                self._parameter(node)
        for node in nodes:
            if node.op != "placeholder":
                self._statement(node)

    # ------------------------------------------------------------------ statements

    def _parameter(self, node: fx.Node) -> None:
        name = str(node.target)
        if not _is_name(name) or name in _NAMED:
            raise ExportError(
                f"an input called {name!r} cannot be a parameter of a written forward", hint="Write a .pt instead"
            )
        self._names[node] = name
        self._live.add(node)
        self.arguments.append(f"{name}={literal(node.args[0])}" if node.args else name)

    def _statement(self, node: fx.Node) -> None:
        if node.op == "output":
            self.lines.append(f"return {self._write(node.args[0])}")
            return
        self._say_where(node)
        text = self._expression(node)
        for source in node.all_input_nodes:
            if self._last[source] is node:
                self._live.discard(source)
        if node not in self._last:  # a check, or something nobody reads
            self.lines.append(text)
            return
        self._names[node] = self._variable(node)
        self._live.add(node)
        self.lines.append(f"{self._names[node]} = {text}")

    def _say_where(self, node: fx.Node) -> None:
        """A comment where the layers of another part of the model begin."""
        if node.op != "call_module":
            return
        place = str(node.target).rpartition(".")[0]
        if place != self._place:
            self._place = place
            if place:
                self.lines += [*([""] if self.lines else []), f"# {place}"]

    def _variable(self, node: fx.Node) -> str:
        """The variable of the input that ends here, or a new one named after the part of the model that begins."""
        taken = {self._names[n] for n in self._live}
        for source in node.all_input_nodes[:1]:
            name = self._names[source]
            if name not in taken and source not in self._live:
                return name
        wanted = _new_names(str(node.target) if node.op == "call_module" else node.name)
        free = [name for name in wanted if name not in taken]
        if free:
            return free[0]
        return next(name for i in itertools.count(2) if (name := f"{wanted[-1]}_{i}") not in taken)

    # ----------------------------------------------------------------- expressions

    def _expression(self, node: fx.Node) -> str:
        if node.op == "get_attr":
            return path(self.model, str(node.target))
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            if isinstance(module, cnn.Call):
                self.inlined.add(str(node.target))
                inputs = [self._write(a) for a in node.args]
                return self._call(module.target, module.args, module.kwargs, inputs, module.function)
            return f"{path(self.model, str(node.target))}({self._listed(node.args, node.kwargs, self._special)})"
        if node.op == "call_method":
            return self._call(f".{node.target}", node.args, node.kwargs, [], None)
        return self._call(target_name(node), node.args, node.kwargs, [], None)

    def _call(self, target: str, args: Any, kwargs: Any, inputs: list[str], function: Any) -> str:
        def special(value: Any) -> str | None:
            return inputs[value.index] if isinstance(value, cnn.Slot) else self._special(value)

        if function is not None or "<" in target:
            raise ExportError(f"{target} is no function that source could name", hint="Write a .pt2 or .onnx instead")
        if target.startswith("."):
            name = target[1:]
            if name == "__getitem__":
                return f"{self._operand(args[0], special)}[{index(args[1], special)}]"
            return f"{self._operand(args[0], special)}.{name}({self._listed(args[1:], kwargs, special)})"
        home, _, name = target.rpartition(".")
        if home in ("operator", "_operator") and not kwargs:
            if name == "getitem":
                return f"{self._operand(args[0], special)}[{index(args[1], special)}]"
            if name in _INFIX and len(args) == 2:
                return f"{self._operand(args[0], special)} {_INFIX[name]} {self._operand(args[1], special)}"
            if name in _PREFIX and len(args) == 1:
                return f"{_PREFIX[name]}{self._operand(args[0], special)}"
        if target == "builtins.getattr" and len(args) == 2:
            return f"{self._operand(args[0], special)}.{_checked_name(args[1])}"
        return f"{self._function(home, name)}({self._listed(args, kwargs, special)})"

    def _function(self, home: str, name: str) -> str:
        """How a function is written; notes what must be imported for it."""
        if home == "torch" or home.startswith("torch.ops."):
            return f"{home}.{name}"
        if home == "torch.nn.functional" or (
            home == "torch._C._nn" and getattr(F, name, None) is getattr(HOMES[home], name)
        ):
            return f"F.{name}"
        if home == "canonize.nn":
            self.helpers.add(name)
            return name
        if home == "builtins":
            return name
        # A function of the user's own: model.py imports it, as the model did.
        parts = home.split(".")
        for cut in range(len(parts), 0, -1):
            module = ".".join(parts[:cut])
            try:
                importlib.import_module(module)
            except ImportError:
                continue
            self.imports.add("operator" if module == "_operator" else module)
            return f"{home}.{name}" if home != "_operator" else f"operator.{name}"
        raise ExportError(f"{home}.{name} cannot be imported", hint="Write a .pt2 or .onnx instead")

    def _listed(self, args: Any, kwargs: Any, special: Any) -> str:
        written = [literal(a, special) for a in args]
        return ", ".join([*written, *(f"{key}={literal(value, special)}" for key, value in kwargs.items())])

    def _operand(self, value: Any, special: Any) -> str:
        """A value that something follows: negative numbers in brackets."""
        text = literal(value, special)
        return text if (re.fullmatch(r"[\w.]+", text) and not text[0].isdigit()) or _is_count(text) else f"({text})"

    def _write(self, value: Any) -> str:
        return literal(value, self._special)

    def _special(self, value: Any) -> str | None:
        return self._names[value] if isinstance(value, fx.Node) else None


def path(model: nn.Module, name: str) -> str:
    """How ``forward`` reaches a submodule or a tensor: ``self.layer1["0"].conv1``."""
    text = "self"
    for part in name.split("."):
        text += f".{part}" if _is_name(part) else f'["{part}"]'
    return text


def _new_names(layer: str) -> list[str]:
    """What a value that begins at a layer may be called: as the block that the layer stands in, or as the layer."""
    block, _, own = layer.rpartition(".")
    above, _, last = block.rpartition(".")
    if last.isdigit():
        last = f"{above.rpartition('.')[2]}_{last}"
    usable = [name for name in (last, own) if _is_name(name) and name not in _RESERVED]
    return usable or ["y"]


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def _is_count(text: str) -> bool:
    return text.isdigit()


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not _is_name(name):
        raise ExportError(f"{name!r} is no attribute that source could name", hint="Write a .pt instead")
    return name


# What `_INFIX` and `_PREFIX` stand for exists under these names.
assert all(hasattr(operator, name) for name in (*_INFIX, *_PREFIX))
