"""Running a model's copy, or a captured graph of it, to see what it does."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.capture.attributes import is_as_it_was
from canonize.capture.captured import GUARD
from canonize.compat.private import pytree
from canonize.inputs import Inputs
from canonize.twins.module_tree import named_modules

_CONTAINERS = (dict, list, OrderedDict)


class GuardedError(Exception):
    """The graph refuses these inputs by a check of its own."""


class Runnable:
    """A copy of a model that is run more than once: what a forward leaves behind in attributes is taken back.

    Parameters
    ----------
    root : nn.Module
        A copy with tensors of its own.

    Attributes
    ----------
    layers : dict of str to nn.Module
        Every module under each of its names.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.layers = dict(named_modules(root, repeated=True))
        # Also the containers that a forward keeps there.
        self._tables: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        for module in dict.fromkeys(self.layers.values()):
            for table in (module.__dict__, module._buffers):
                self._tables.append((table, table.copy()))
            own = module.__dict__
            held = [it for name, it in own.items() if type(it) in _CONTAINERS and name[0] != "_"]
            self._containers += [(container, container.copy()) for container in held]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around one run."""
        try:
            yield
        finally:
            for table, before in self._tables:
                if not is_as_it_was(table, before):
                    table.clear()
                    table.update(before)
            for container, held in self._containers:
                container.clear()
                container.update(held) if isinstance(container, dict) else container.extend(held)


def run_graph(graph: fx.Graph, copy: Runnable, inputs: Inputs) -> dict[fx.Node, Any]:
    """Run a graph, node by node, with the layers of a copy of its root.

    Returns
    -------
    dict of fx.Node to Any
        The value of each node.

    Raises
    ------
    GuardedError
        Where the graph refuses the inputs.
    """
    values: dict[fx.Node, Any] = {}
    arguments = iter([*inputs.args, *inputs.kwargs.values()])
    for node in graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "placeholder":
            values[node] = next(arguments)
        elif node.op == "get_attr":
            values[node] = functools.reduce(getattr, str(node.target).split("."), copy.root)
        elif node.op == "call_module":
            values[node] = copy.layers[str(node.target)](*args, **kwargs)
        elif node.op == "call_method":
            values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        elif node.op == "call_function":
            assert callable(node.target)
            try:
                values[node] = node.target(*args, **kwargs)
            except AssertionError as error:
                raise (GuardedError() if GUARD in str(error) else error) from error
        else:
            values[node] = args[0]
    return values


def duplicate(tensor: Tensor) -> Tensor:
    """A tensor of its own with the same values."""
    return like(tensor, tensor.detach().clone())


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """A value in place of a tensor: a parameter, where that is one."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, tensor.requires_grad)
    return value


def empty(tensor: Tensor) -> Tensor:
    """A tensor that is laid out alike, on the meta device."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def fresh(inputs: Inputs, real: bool, tracked: bool = False) -> Inputs:
    """Inputs of their own: with the same values, or without any; and gradients are asked of them, if need be."""
    made = inputs.map(duplicate if real else empty)
    return made.map(lambda t: t.requires_grad_() if tracked and t.is_floating_point() else t)


def alike(one: Any, other: Any) -> bool:
    """Whether two outputs hold tensors of the same shapes and types, and the same values but for rounding."""
    pairs = itertools.zip_longest(
        *([x for x in pytree.tree_leaves(it) if isinstance(x, Tensor)] for it in (one, other))
    )
    return all(_same(a, b) for a, b in pairs)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.numel():
        return True
    kind = torch.complex128 if one.is_complex() else torch.float64
    one, other = one.detach().to(kind), other.detach().to(kind)
    scale = float(one.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return bool(torch.allclose(one, other, rtol=0, atol=1e-2 * scale, equal_nan=True))
