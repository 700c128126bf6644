"""In-place operations -> out-of-place ones, in a graph that torch.fx traced.

``x.add_(y)`` computes the same as ``x + y`` as long as everybody who reads ``x`` afterwards reads the sum instead.
That is what this pass arranges. Where the written tensor is a view of, or has a view that is read later, readers
cannot be redirected one by one; the pass then refuses and the model is captured by ``torch.export``, which knows how.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from canonize.errors import CaptureError
from canonize.nn import assign
from canonize.twins.modules import named_modules
from canonize.twins.writes import writes_its_state

_IN_PLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.imatmul: operator.matmul,
}
# With a max_norm they shorten the rows that they look up.
_EMBEDDINGS = (F.embedding, F.embedding_bag)
# Methods whose names without the underscore are of something else.
_OTHERWISE = {"resize_", "resize_as_"}
_IN_PLACE_METHODS = {f"__{written.__name__}__": pure for written, pure in _IN_PLACE_OPERATORS.items()}
# Their names end like those of operations in place, because Python keeps the words without the underscore for itself.
_PURE = {operator.and_, operator.or_, operator.not_, operator.is_}
# What may hand back its own input, or a view of it.
_VIEWS = {
    "view", "reshape", "flatten", "transpose", "permute", "squeeze", "unsqueeze", "expand", "expand_as", "narrow",
    "select", "chunk", "split", "split_with_sizes", "tensor_split", "getitem", "getattr", "t", "unbind", "detach",
    "contiguous", "movedim", "moveaxis", "swapaxes", "swapdims", "unflatten", "diagonal", "unfold", "as_strided",
    "view_as", "reshape_as", "to", "type_as", "float", "double", "half", "bfloat16", "type", "cuda", "cpu",
    "broadcast_to", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout",
    "stochastic_depth", "ravel", "real", "hsplit", "vsplit", "dsplit", "atleast_1d", "atleast_2d", "atleast_3d",
}  # fmt: skip
_VIEW_MODULES = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


def functionalize(graph: fx.Graph, root: nn.Module) -> None:
    """Make every operation of a graph out of place.

    Raises
    ------
    CaptureError
        Where an in-place write reaches a tensor under another name that is read later.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    modules = dict(named_modules(root, repeated=True))
    storage: dict[fx.Node, fx.Node] = {}
    sharing: dict[fx.Node, list[fx.Node]] = {}
    for node in list(graph.nodes):
        written = _written(node, modules)
        if written is None:
            source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
            shares = source is not None and _may_share(node, modules)
            home = storage[source] if shares and source is not None else node
            storage[node] = home
            sharing.setdefault(home, []).append(node)
            continue
        home = storage[node] = storage[written]
        if home.op == "get_attr":
            raise writes_its_state(str(home.target), node.meta.get("path"))
        if node.target in _EMBEDDINGS:  # what it gives is not what it writes
            raise CaptureError(f"{node.name} writes into its weight (max_norm)", _path(node))
        _make_out_of_place(node)
        base, whole = _sliced(written), None
        later = [user for user in written.users if order[user] > order[node]]
        for user in later:
            user.replace_input_with(written, node)
        if base is not None:
            whole = _write_back(graph, base, written, node, order)
            if whole is not None:
                storage[whole] = home
                sharing[home].append(whole)
        for other in sharing[home]:
            if other not in (written, base, whole) and _read_after(other, node, order):
                raise CaptureError(
                    f"{node.name} writes in place into a tensor that is read later under another name ({other.name})",
                    _path(node),
                )
        sharing[home].append(node)


def _path(node: fx.Node) -> str | None:
    return node.meta.get("path") or None


def _sliced(node: fx.Node) -> fx.Node | None:
    """The tensor of which a node is a slice that shares its memory, where that is plain to see."""
    if node.op != "call_function" or node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return None
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    return node.args[0] if all(isinstance(item, slice) or item is Ellipsis for item in index) else None


def _write_back(
    graph: fx.Graph, base: fx.Node, part: fx.Node, new: fx.Node, order: dict[fx.Node, int]
) -> fx.Node | None:
    """Let everybody who reads a tensor after a slice of it was written read a copy with the new slice."""
    later = [user for user in base.users if order.get(user, -1) > order[new]]
    if not later:
        return None
    with graph.inserting_after(new):
        whole = graph.call_function(assign, (base, part.args[1], new))
    whole.meta.update(new.meta)
    order[whole] = order[new]
    for user in later:
        user.replace_input_with(base, whole)
    return whole


def _read_after(node: fx.Node, point: fx.Node, order: dict[fx.Node, int]) -> bool:
    return any(order[user] > order[point] for user in node.users)


def _name(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target._schema.name).partition("::")[2]
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _may_share(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _VIEW_MODULES)
    if isinstance(node.target, torch._ops.OpOverload) and any(r.alias_info for r in node.target._schema.returns):
        return True
    return node.op in ("call_function", "call_method") and _name(node) in _VIEWS


def _written(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The node whose value a node overwrites."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    if node.op == "call_function" and node.target in _PURE:
        return None
    if not isinstance(first, fx.Node):
        name = _name(node)
        if node.op == "call_function" and name.endswith("_") and not name.endswith("__") and node.all_input_nodes:
            raise CaptureError(f"{name} writes into several tensors at once", _path(node))
        return None
    if node.op == "call_module":
        return first if getattr(modules[str(node.target)], "inplace", False) is True else None
    if node.op not in ("call_function", "call_method"):
        return None
    if "out" in node.kwargs and node.kwargs["out"] is not None:
        raise CaptureError(f"{node.name} writes into its argument out=", _path(node))
    if isinstance(node.target, torch._ops.OpOverload):
        alias = node.target._schema.arguments[0].alias_info
        return first if alias is not None and alias.is_write else None
    name = _name(node)
    if node.target in _EMBEDDINGS and _argument(node, "max_norm") is not None:
        weight = _argument(node, "weight")
        return weight if isinstance(weight, fx.Node) else None
    if node.op == "call_function" and (node.target in _IN_PLACE_OPERATORS or node.target is operator.setitem):
        return first
    if (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE_METHODS:
        return first
    if _flag(node, "inplace"):
        return first
    return None


def _flag(node: fx.Node, flag: str) -> bool:
    """Whether a functional call has a flag set, as a keyword or by position."""
    if node.op != "call_function":
        return False
    given = any(argument is True for argument in node.args)
    return node.kwargs.get(flag) is True or (given and _argument(node, flag) is True)


def _argument(node: fx.Node, wanted: str) -> Any:
    """What a function is called with under a name, as a keyword or by position; None where it is not told."""
    if wanted in node.kwargs:
        return node.kwargs[wanted]
    import inspect

    assert callable(node.target)
    try:
        names = list(inspect.signature(node.target).parameters)
    except (TypeError, ValueError):
        return None
    return node.args[names.index(wanted)] if wanted in names and len(node.args) > names.index(wanted) else None


def _make_out_of_place(node: fx.Node) -> None:
    if node.op == "call_function" and node.target in _IN_PLACE_OPERATORS:
        node.target = _IN_PLACE_OPERATORS[node.target]
    elif node.op == "call_method" and node.target in _IN_PLACE_METHODS:
        node.op, node.target = "call_function", _IN_PLACE_METHODS[str(node.target)]
    elif node.target is operator.setitem:
        node.target = assign
    elif node.op == "call_method" and node.target == "zero_":
        node.op, node.target = "call_function", torch.zeros_like
    elif node.op == "call_method" and node.target == "fill_":
        node.op, node.target = "call_function", torch.full_like
        if "value" in node.kwargs:
            node.kwargs = {"fill_value": node.kwargs["value"]}
    elif node.op == "call_method" and (
        node.target in _OTHERWISE or not callable(getattr(torch.Tensor, str(node.target).rstrip("_"), None))
    ):
        raise CaptureError(f"{node.target} writes in place, and has no counterpart that does not", _path(node))
    elif isinstance(node.target, torch._ops.OpOverload):
        node.target = _out_of_place(node.target)


def _out_of_place(operation: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """ATen's operator that computes the same and writes nothing."""
    name, overload = operation._schema.name.partition("::")[2], operation._overloadname
    if name == "zero_":
        return torch.ops.aten.zeros_like.default
    other = f"__{name[3:]}" if name.startswith("__i") and name.endswith("__") else name.removesuffix("_")
    packet = getattr(torch.ops.aten, other, None)
    if packet is None or overload not in packet.overloads():
        raise CaptureError(f"{operation.name()} writes in place, and has no counterpart that does not")
    found: torch._ops.OpOverload = getattr(packet, overload)
    return found
