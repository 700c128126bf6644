"""Functions that a library keeps whole (``torch.fx.wrap``): traced into where that works, checked where it does not.

A function that torch.fx keeps whole is one node of the graph. Layers may lie in it that no pattern would see; and it
may write into its arguments (torchvision's MViT adds its shortcut that way and drops the result), of which a graph
knows nothing: everybody behind would read the tensor as it was.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from canonize.compat.private import functions_kept_whole, pytree
from canonize.errors import CaptureError, cuts_in
from canonize.graph.shapes import Shapes, Unknown

# Where functions come from that name what they overwrite, or overwrite nothing.
_KNOWN = ("torch", "operator", "_operator", "builtins", "math", "canonize", "einops", "inspect")


@contextlib.contextmanager
def opened_functions() -> Iterator[None]:
    """Trace into Python functions that a library keeps whole."""
    wrapped = functions_kept_whole()
    taken = {key: namespace for key, namespace in wrapped.items() if _is_python(namespace, key[1])}
    for key in taken:
        del wrapped[key]
    try:
        yield
    finally:
        wrapped.update(taken)


def _is_python(namespace: dict[str, Any], name: str) -> bool:
    return isinstance(namespace.get(name), types.FunctionType) and not _is_known(str(namespace.get("__name__")))


def _is_known(module: str) -> bool:
    return module.partition(".")[0] in _KNOWN


def _is_foreign(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch.jit.ScriptFunction):
        return True
    if isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return not str(node.target).startswith(("aten.", "prims.", "torchvision."))  # an operator of somebody's own
    owner = getattr(node.target, "__self__", None)  # of the ``apply`` of an autograd function
    return not _is_known(str(getattr(owner if isinstance(owner, type) else node.target, "__module__", None) or "torch"))


def refuse_hidden_writes(graph: fx.Graph, shapes: Shapes) -> None:
    """Make sure that no function kept whole writes into its arguments.

    Each is run, on meta tensors where they can follow it, and the version counters of its arguments are compared.

    Raises
    ------
    CaptureError
        Where one does, or cannot be tried.
    """
    for node in graph.nodes:
        if not _is_foreign(node):
            continue
        writes = _writes(node, shapes.value)
        if writes is None:
            writes = _writes(node, shapes.real)
        if writes is not False:
            name = getattr(node.target, "__qualname__", str(node.target))
            what = "writes into its arguments" if writes else "cannot be checked not to write into its arguments"
            raise CaptureError(f"{name}, which is kept whole, {what}", node.meta.get("path") or None)


def _writes(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> bool | None:
    values = {source: value_of(source) for source in node.all_input_nodes}
    if any(value is Unknown for value in values.values()):
        return None
    assert callable(node.target)
    with torch.inference_mode(False), torch.no_grad():
        # Copies: what the graph's values are is not touched, and nobody else counts on these counters.
        copies = {source: pytree.tree_map_only(Tensor, torch.clone, value) for source, value in values.items()}
        tensors = [leaf for leaf in pytree.tree_leaves(list(copies.values())) if isinstance(leaf, Tensor)]
        before = [tensor._version for tensor in tensors]
        try:
            node.target(*fx.map_arg(node.args, copies.__getitem__), **fx.map_arg(node.kwargs, copies.__getitem__))
        except Exception as error:
            if cuts_in(error):
                raise
            return None
        return [tensor._version for tensor in tensors] != before
