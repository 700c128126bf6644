"""A graph module as data: what a canonical ``.pt`` holds in place of Python code, and how a module comes back from it.

A pickled ``fx.GraphModule`` is source text that is run on loading. Here the graph is a list of nodes, and what a node
may call is named in `canonize.vocabulary.safe_calls`; loading builds the graph anew and runs nothing from the file.
"""

from __future__ import annotations

import copy
import json
import keyword
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.errors import LoadError
from canonize.graph.model import CanonicalModel, with_report
from canonize.twins.module_tree import put
from canonize.vocabulary.safe_calls import callable_named, is_safe_call, is_safe_method, name_of

FORMAT = 1
_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_MEMORY_FORMATS = (
    torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d,
)  # fmt: skip


class NotDescribableError(Exception):
    """A graph holds something that has no description as data."""


class GraphAsData:
    """Stands for a graph module while it is pickled: a description, the layers, the report."""

    def __init__(self, model: fx.GraphModule) -> None:
        self.text, self.parts = describe(model)
        self.report = getattr(model, "report", None)

    def __reduce__(self) -> tuple[Callable[..., fx.GraphModule], tuple[Any, ...]]:
        return rebuild, (self.text, self.parts, self.report)


def describe(model: fx.GraphModule) -> tuple[str, dict[str, Any]]:
    """A graph module as text, and the layers and tensors that it names.

    Returns
    -------
    text : str
        JSON: format, class name, nodes.
    parts : dict
        Layers (``nn.Module``) and tensors by qualified name.

    Raises
    ------
    NotDescribableError
        If a node calls a function that is not known to be harmless, or holds an argument that is not plain data.
    """
    if type(model.graph._codegen) is not fx.graph.CodeGen:
        raise NotDescribableError("the graph packs its inputs in a way of its own")
    parts: dict[str, Any] = {}
    nodes = []
    for node in model.graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            parts[target] = _without_state_hooks(model.get_submodule(target))
        elif node.op == "get_attr":
            parts[target] = _tensor(model, target)
        elif node.op == "call_function":
            target = name_of(node.target) or ""
            if not target:
                raise NotDescribableError(f"{node.target} is not known to be harmless")
        elif node.op == "call_method" and not is_safe_method(target):
            raise NotDescribableError(f"the method {target} is not known to be harmless")
        nodes.append([node.name, node.op, target, _encode(node.args), _encode(dict(node.kwargs))])
    data = {"format": FORMAT, "name": type(model).__name__, "nodes": nodes, "training": model.training}
    return json.dumps(data), parts


def rebuild(text: str, parts: Mapping[str, Any], report: Any = None) -> CanonicalModel:
    """The graph module that `describe` described.

    Parameters
    ----------
    text : str
    parts : mapping
        Qualified name to layer or tensor.
    report : canonize.report.Report, optional
        Becomes the attribute ``report``.

    Raises
    ------
    LoadError
        If the description is damaged, or names anything but known functions, plain names and its own parts.
    """
    try:
        model = _build(json.loads(text), parts)
    except LoadError:
        raise
    except Exception as error:
        raise LoadError(f"the description of the graph is damaged ({error})", hint="Save it again") from error
    return with_report(model, report)


def _build(data: Mapping[str, Any], parts: Mapping[str, Any]) -> CanonicalModel:
    if data["format"] != FORMAT:
        raise LoadError(f"its format is {data['format']!r}, this canonize reads {FORMAT}", hint="Upgrade canonize")
    root = nn.Module()
    for name, part in parts.items():
        put(root, _checked(name, _PATH.fullmatch), part)
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for name, op, target, args, kwargs in data["nodes"]:
        _identifier(name)
        decoded = tuple(_decode(a, nodes) for a in args["tuple"])
        named = {_identifier(k): _decode(v, nodes) for k, v in kwargs["dict"]}
        function = _target(op, target, parts)
        if function is getattr and not is_safe_call("builtins.getattr", decoded):
            raise LoadError(f"the graph asks for the attribute {str(decoded[1:])[:60]}")
        nodes[name] = graph.create_node(op, function, decoded, named, name)
    graph.lint()
    model = CanonicalModel(root, graph, _identifier(data["name"]))
    model.train(bool(data["training"]))
    return model


def _target(op: str, target: Any, parts: Mapping[str, Any]) -> Any:
    """What a node calls; names of a kind that could become anything else in generated code are refused."""
    if op == "call_function":
        return callable_named(target)
    if op == "call_method" and not is_safe_method(target):
        raise LoadError(f"the graph calls the method {target!r}", hint="Only known methods of tensors may be called")
    if op in ("call_module", "get_attr") and target not in parts:
        raise LoadError(f"the graph names a layer {target!r} that is not in the file")
    if op == "placeholder":
        _identifier(str(target).lstrip("*"))
    elif op not in ("call_method", "call_module", "get_attr", "output"):
        raise LoadError(f"the graph has a node of the kind {op!r}")
    return target


def _checked(name: Any, test: Callable[[str], Any]) -> str:
    if not isinstance(name, str) or not test(name):
        raise LoadError(f"the graph holds {str(name)[:60]!r} where a name should be")
    return name


def _identifier(name: Any) -> str:
    return _checked(name, lambda text: text.isidentifier() and text.isascii() and not keyword.iskeyword(text))


def _without_state_hooks(layer: nn.Module) -> nn.Module:
    """A layer without hooks on its state dictionary: they served a parametrization that has been evaluated."""
    tables = [name for name in vars(layer) if "state_dict" in name and name.endswith("hooks")]
    if not any(vars(layer)[name] for name in tables):
        return layer
    twin = copy.copy(layer)
    vars(twin).update({name: OrderedDict() for name in tables})
    return twin


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    found = getattr(model.get_submodule(owner), attribute)
    if not isinstance(found, Tensor):
        raise NotDescribableError(f"{name} is a {type(found).__name__}")
    return found


# ------------------------------------------------------------------------------------------------ arguments as JSON


def _encode(value: Any) -> Any:
    """An argument as JSON: numbers, strings and None as they are, everything else as ``{kind: content}``."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, complex):
        return {"complex": [_encode(value.real), _encode(value.imag)]}
    if isinstance(value, torch.dtype | torch.layout):
        return {type(value).__name__: str(value)}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value)}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is Ellipsis:
        return {"ellipsis": None}
    if isinstance(value, slice):
        return {"slice": [_encode(value.start), _encode(value.stop), _encode(value.step)]}
    if isinstance(value, list):
        return {"list": [_encode(item) for item in value]}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_encode(k), _encode(v)] for k, v in value.items()]}
    raise NotDescribableError(f"an argument is a {type(value).__name__}")


def _decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if value is None or isinstance(value, bool | str | int | float):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind in ("tuple", "list"):
        items = [_decode(item, nodes) for item in content]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {_decode(k, nodes): _decode(v, nodes) for k, v in content}
    if kind == "slice":
        return slice(*(_decode(item, nodes) for item in content))
    if kind == "complex":
        return complex(*(_decode(item, nodes) for item in content))
    if kind == "float":
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content]
    if kind == "ellipsis":
        return Ellipsis
    if kind == "device":
        return torch.device(content)
    if kind == "memory_format":
        return {str(m): m for m in _MEMORY_FORMATS}[content]
    if kind in ("dtype", "layout"):
        found = getattr(torch, str(content).removeprefix("torch."))
        if isinstance(found, torch.dtype | torch.layout):
            return found
    raise LoadError(f"the graph holds an argument of the kind {kind!r}")


# The name in files that are written is not that of today's layout.
rebuild.__module__ = "canonize.saved"
