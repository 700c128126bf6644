"""Which factor of a product is the signal, read off a model's graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.graph.shapes import asks_for_sizes
from canonize.vocabulary.kinds import Kind, kind_of, reads_first_alone

# Activations whose values are weights between 0 and (about) 1: what they multiply is the signal.
WEIGHTS = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Hardtanh, nn.ReLU6)
# Layers that neither mix channels nor change what their input is.
_CARRIERS = (Kind.COPY, Kind.AVERAGE, Kind.OFFSET, Kind.SCALE)


def module_at(graph_module: fx.GraphModule, node: object) -> nn.Module | None:
    """The module that a node calls."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph_module.get_submodule(str(node.target))
    return None


def graphs_in(model: nn.Module) -> dict[str, fx.GraphModule]:
    """The graphs of a model by the qualified name that each stands at: itself, or those inside its wrappers."""
    found: dict[str, fx.GraphModule] = {}
    for name, module in model.named_modules():
        inside = any(name == outer or not outer or name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, fx.GraphModule) and not inside:
            found[name] = module
    return found


def below(outer: str, name: str) -> str:
    """Qualified name of what lies inside a module."""
    return f"{outer}.{name}" if outer else name


@dataclass(frozen=True)
class Factors:
    """What the surroundings of a product say of its factors.

    Attributes
    ----------
    signal : int or None
        The factor that is no weight; None where nothing tells.
    carrying : tuple of bool
        Which of them depend on the input.
    """

    signal: int | None = None
    carrying: tuple[bool, ...] | None = None


def products(model: nn.Module) -> dict[str, Factors]:
    """What is known of the factors of each product of two tensors, by the product's qualified name.

    Parameters
    ----------
    model : nn.Module
        Anything but a graph, or what holds one, has no products that are modules.

    Returns
    -------
    dict
        Of gates and matrix products. The signal is the factor that is *no* weight, where exactly one factor comes out
        of an activation that makes weights (of a matrix product: out of softmax), or depends on the input at all.
    """
    return {
        below(outer, name): factors for outer, graph in graphs_in(model).items() for name, factors in _products(graph)
    }


def _products(graph: fx.GraphModule) -> Iterator[tuple[str, Factors]]:
    dependent: set[fx.Node] | None = None
    for node in graph.graph.nodes:
        module = module_at(graph, node)
        if module is None or kind_of(module) not in (Kind.GATE, Kind.PRODUCT, Kind.SCALE) or len(node.args) < 2:
            continue
        dependent = dependents(graph) if dependent is None else dependent
        carrying = tuple(isinstance(source, fx.Node) and source in dependent for source in node.args)
        kinds = WEIGHTS if kind_of(module) is Kind.GATE else (nn.Softmax,)
        weighing = [place for place, source in enumerate(node.args[:2]) if _is_weight(graph, source, kinds)]
        signal = 1 - weighing[0] if len(weighing) == 1 else None
        yield str(node.target), Factors(carrying.index(True) if sum(carrying) == 1 else signal, carrying)


def _is_weight(model: fx.GraphModule, node: object, kinds: tuple[type[nn.Module], ...]) -> bool:
    while True:
        module = module_at(model, node)
        if module is None or isinstance(module, kinds):
            return module is not None
        assert isinstance(node, fx.Node)
        if kind_of(module) not in _CARRIERS or len(node.all_input_nodes) != 1:
            return False
        node = node.args[0]


def dependents(module: fx.GraphModule) -> set[fx.Node]:
    """Nodes of a graph whose values depend on more of the inputs than their sizes."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        read = node.all_input_nodes
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            if kind_of(layer) is Kind.SOURCE:
                continue
            if reads_first_alone(layer):
                read = read[:1]
        if node.op == "placeholder" or (not asks_for_sizes(node) and any(argument in found for argument in read)):
            found.add(node)
    return found


def gate_of(module: nn.Module, factors: Factors, inputs: tuple[Any, ...], shape: tuple[int, ...]) -> set[int]:
    """Which arguments of a product get no relevance where the signal takes all; none where nothing tells them apart."""
    if not isinstance(module, cnn.Gate) or len(inputs) != 2:
        return set()
    whole = [place for place, value in enumerate(inputs) if isinstance(value, Tensor) and tuple(value.shape) == shape]
    carrying = factors.carrying or (True, True)
    signal = carrying.index(True) if sum(carrying) == 1 else whole[0] if len(whole) == 1 else factors.signal
    return set() if signal is None else {1 - signal}


@contextlib.contextmanager
def gates_closed(model: nn.Module) -> Iterator[None]:
    """Let no gradient pass into gates meanwhile: relevance goes to what they multiply."""
    known = products(model)

    def closed(factors: Factors) -> Any:
        def close(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            shape = tuple(torch.broadcast_shapes(*(value.shape for value in inputs)))
            gates = gate_of(module, factors, inputs, shape)
            return tuple(value.detach() if place in gates else value for place, value in enumerate(inputs))

        return close

    handles = [
        module.register_forward_pre_hook(closed(known.get(name, Factors())))
        for name, module in model.named_modules()
        if isinstance(module, cnn.Gate)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
