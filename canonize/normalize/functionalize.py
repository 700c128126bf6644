"""In-place operations -> out-of-place ones, in a graph that torch.fx traced.

``x.add_(y)`` computes the same as ``x + y`` as long as everybody who reads ``x`` afterwards reads the sum instead.
That is what this pass arranges. Where the written tensor is a view of, or has a view that is read later, readers
cannot be redirected one by one; the pass then refuses and the model is captured by ``torch.export``, which knows how.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.errors import CaptureError
from canonize.graph.shapes import Shapes
from canonize.nn import assign
from canonize.normalize.constants import lookup
from canonize.twins.module_tree import named_modules
from canonize.twins.writes import memory_of, writes_its_state
from canonize.vocabulary import Operation, counts_in, resolve
from canonize.vocabulary.binding import signature
from canonize.vocabulary.spelling import IN_PLACE_OPERATORS, aten

# It cannot do without running statistics, as ``native_batch_norm`` can.
_NEEDS_STATISTICS = "_native_batch_norm_legit"
# Methods whose names without the underscore are of something else.
_OTHERWISE = {"resize_", "resize_as_"}
# Layers that may hand back their own input, or a view of it.
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
    nn.ChannelShuffle,
)


def functionalize(
    graph: fx.Graph,
    root: nn.Module,
    aliases: Mapping[fx.Node, Sequence[fx.Node]] | None = None,
    shapes: Shapes | None = None,
) -> tuple[str, ...]:
    """Make every operation of a graph out of place.

    Parameters
    ----------
    graph : fx.Graph
    root : nn.Module
    aliases : mapping of fx.Node to sequence of fx.Node, optional
        Values that were seen to lie in the memory of others, beside those of which it is known.
    shapes : Shapes, optional
        Of the graph: memory that is written keeps its dtype.

    Returns
    -------
    tuple of str
        State that the model only keeps count in, by name: what is computed does not depend on it.

    Raises
    ------
    CaptureError
        Where an in-place write reaches a tensor under another name that is read later.
    """
    counted: dict[str, None] = {}
    order = {node: position for position, node in enumerate(graph.nodes)}
    modules = dict(named_modules(root, repeated=True))
    homes: dict[fx.Node, _SharedMemory] = {}
    for node in list(graph.nodes):
        operation = resolve(node)
        if operation is not None and operation.counts:
            counted.update(dict.fromkeys(_leave_statistics(node, operation, root)))
            operation = resolve(node)
        written = _written(node, operation, modules)
        if written is None:
            sources = [*_shared(node, operation, modules), *(aliases or {}).get(node, ())]
            homes[node] = _memory_of(node, sources, homes)
            continue
        memory = homes[node] = homes[written]
        state = next((other for other in memory.nodes if other.op == "get_attr"), None)
        if state is not None:
            raise writes_its_state(str(state.target), node.meta.get("path"))
        if operation is not None and operation.row.writes_if:  # what it gives is not what it writes
            raise CaptureError(f"{node.name} writes into its {operation.row.writes_if[1]}", _path(node))
        _make_out_of_place(node, operation)
        cast = _keep_dtype(graph, node, written, operation, shapes)
        if cast is not None:
            order[cast] = order[node]
            node = cast
        base, whole = _sliced(written), None
        later = [user for user in written.users if order[user] > order[node]]
        for user in later:
            user.replace_input_with(written, node)
        if base is not None:
            whole = _write_back(graph, base, written, node, order)
            if whole is not None:
                memory.add(whole, homes)
        for other in memory.nodes:
            if other not in (written, base, whole) and _read_after(other, node, order):
                raise CaptureError(
                    f"{node.name} writes in place into a tensor that is read later under another name ({other.name})",
                    _path(node),
                )
        memory.add(node, homes)
    return tuple(counted)


class _SharedMemory:
    """The values that may lie in the same memory."""

    def __init__(self) -> None:
        self.nodes: list[fx.Node] = []

    def add(self, node: fx.Node, homes: dict[fx.Node, _SharedMemory]) -> None:
        self.nodes.append(node)
        homes[node] = self

    def join(self, other: _SharedMemory, homes: dict[fx.Node, _SharedMemory]) -> None:
        if other is not self:
            for node in other.nodes:
                self.add(node, homes)


def _memory_of(node: fx.Node, sources: Sequence[fx.Node], homes: dict[fx.Node, _SharedMemory]) -> _SharedMemory:
    """The memory of a value: that of what it may be a view of, or new."""
    memory = _SharedMemory()
    memory.add(node, homes)
    for source in sources:
        homes[source].join(memory, homes)
        memory = homes[source]
    return memory


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


def _shared(node: fx.Node, operation: Operation | None, modules: dict[str, nn.Module]) -> list[fx.Node]:
    """The arguments in whose memory a value may lie."""
    if node.op == "call_module":
        first = node.args[0] if node.args else None
        views = isinstance(modules[str(node.target)], _VIEW_MODULES)
        return [first] if views and isinstance(first, fx.Node) else []
    if operation is None or not operation.is_view or operation.asks_size:
        return []
    first = next(iter(operation.bound.values()), node.args[0] if node.args else None)
    if isinstance(first, fx.Node):
        return [first]
    # ``einsum``, ``broadcast_tensors``: any of a list.
    return list(node.all_input_nodes)


def _leave_statistics(node: fx.Node, operation: Operation, root: nn.Module) -> list[str]:
    """Take the running statistics from a normalisation that only counts in them, if nobody else reads them."""
    for name in operation.writes:
        value = operation.bound[name]
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            raise CaptureError(f"{node.name} writes into its {name}, which is computed", _path(node))
        memory = _stored_at(root, value)
        for other in node.graph.find_nodes(op="get_attr"):
            if _stored_at(root, other) == memory and any(not counts_in(user, other) for user in other.users):
                raise writes_its_state(str(value.target), _path(node))
    left = dict.fromkeys(operation.bound[name] for name in operation.writes)
    if operation.name == _NEEDS_STATISTICS:
        node.target = torch.native_batch_norm
    node.args = tuple(None if isinstance(a, fx.Node) and a in left else a for a in node.args)
    node.kwargs = {key: None if isinstance(a, fx.Node) and a in left else a for key, a in node.kwargs.items()}
    return [str(state.target) for state in left]


def _stored_at(root: nn.Module, node: fx.Node) -> int:
    found = lookup(root, str(node.target))
    return memory_of(found) if isinstance(found, Tensor) else id(found)


def _written(node: fx.Node, operation: Operation | None, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The node whose value a node overwrites."""
    if node.op == "call_module":
        first = node.args[0] if node.args else node.kwargs.get("input")
        in_place = getattr(modules[str(node.target)], "inplace", False) is True
        return first if in_place and isinstance(first, fx.Node) else None
    if operation is None:
        return _written_by_name(node)
    written = operation.writes
    if "out" in written or node.kwargs.get("out") is not None:
        raise CaptureError(f"{node.name} writes into its argument out=", _path(node))
    if not written:
        return None
    value = operation.bound.get(written[0], node.args[0] if node.args else None)
    if isinstance(value, tuple | list) and node.all_input_nodes:
        raise CaptureError(f"{operation.name}_ writes into several tensors at once", _path(node))
    if len(written) > 1 and node.all_input_nodes:
        raise CaptureError(f"{operation.name} writes into {' and '.join(written)}", _path(node))
    return value if isinstance(value, fx.Node) else None


def _written_by_name(node: fx.Node) -> fx.Node | None:
    """What a function that is not torch's overwrites, if its name says that it does."""
    name = str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", ""))
    first = node.args[0] if node.args else None
    writes = node.op != "call_module" and name.endswith("_") and not name.endswith("__")
    return first if writes and isinstance(first, fx.Node) else None


def _make_out_of_place(node: fx.Node, operation: Operation | None) -> None:
    """Let a node compute the same and write nothing."""
    name = operation.name if operation is not None else ""
    target: Any = node.target
    if name in ("setitem", "zero", "fill"):
        _replace_whole(node, name)
    elif isinstance(target, torch._ops.OpOverload):
        node.target = _out_of_place(target)
    elif isinstance(target, torch._ops.OpOverloadPacket):
        node.target = _pure_packet(target)
    elif node.op == "call_method" and target.startswith("__"):
        written = getattr(operator, target, None)
        if written not in IN_PLACE_OPERATORS:
            raise _no_counterpart(node)
        node.op, node.target = "call_function", IN_PLACE_OPERATORS[written]
    elif node.op == "call_method":
        pure = target.rstrip("_")
        if target in _OTHERWISE or not callable(getattr(torch.Tensor, pure, None)):
            raise _no_counterpart(node)
        node.target = pure
    elif target in IN_PLACE_OPERATORS:
        node.target = IN_PLACE_OPERATORS[target]
    elif str(getattr(target, "__name__", "")).endswith("_") and hasattr(torch, target.__name__.rstrip("_")):
        node.target = getattr(torch, target.__name__.rstrip("_"))
    else:
        _clear_flag(node)


def _keep_dtype(
    graph: fx.Graph, node: fx.Node, written: fx.Node, operation: Operation | None, shapes: Shapes | None
) -> fx.Node | None:
    """A cast behind what no longer writes: memory that is written keeps its dtype, a new tensor need not."""
    tells = operation is not None and operation.row.tells
    if (
        shapes is None
        or node.op == "call_module"
        or not (tells or len(node.all_input_nodes) > 1)
        or node.target is assign
    ):
        return None
    shapes.forget(node)
    before, after = shapes.value(written), shapes.value(node)
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.dtype == after.dtype:
        return None
    with graph.inserting_after(node):
        cast = graph.call_method("to", (node, before.dtype))
        node.replace_all_uses_with(cast, lambda user: user is not cast)
    cast.meta.update(node.meta)
    return cast


def _replace_whole(node: fx.Node, name: str) -> None:
    """Assignment to items, and filling."""
    if isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        node.target = torch.ops.aten.zeros_like.default if name == "zero" else torch.full_like
    else:
        replacements: dict[str, Any] = {"setitem": assign, "zero": torch.zeros_like, "fill": torch.full_like}
        node.target = replacements[name]
    node.op = "call_function"
    if "value" in node.kwargs:
        node.kwargs = {"fill_value" if name == "fill" else "value": node.kwargs["value"]}


def _clear_flag(node: fx.Node) -> None:
    """Take back ``inplace=True``, given as a keyword or by position."""
    known = signature(node.target)
    if known is None or "inplace" not in known.parameters:
        return
    place = list(known.parameters).index("inplace")
    node.args = tuple(False if i == place else argument for i, argument in enumerate(node.args))
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}


def _no_counterpart(node: fx.Node) -> CaptureError:
    return CaptureError(f"{node.target} writes in place, and has no counterpart that does not", _path(node))


def _pure_packet(packet: torch._ops.OpOverloadPacket) -> Any:
    name = packet._qualified_op_name.partition("::")[2]
    found = aten(_pure_name(name))
    if found is None:
        raise CaptureError(f"{name} writes in place, and has no counterpart that does not")
    return found


def _pure_name(name: str) -> str:
    return f"__{name[3:]}" if name.startswith("__i") and name.endswith("__") else name.removesuffix("_")


def _out_of_place(operation: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """ATen's operator that computes the same and writes nothing."""
    name, overload = operation._schema.name.partition("::")[2], operation._overloadname
    packet = aten(_pure_name(name))
    if packet is None or overload not in packet.overloads():
        raise CaptureError(f"{operation.name()} writes in place, and has no counterpart that does not")
    found: torch._ops.OpOverload = getattr(packet, overload)
    return found
