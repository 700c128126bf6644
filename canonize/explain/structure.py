"""What a rule must know of a layer's surroundings, read off a model's graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from canonize.algebra.weights import LINEAR
from canonize.explain.rules import linear_layers
from canonize.graph.factors import below, graphs_in, module_at, products
from canonize.graph.shapes import asks_for_sizes
from canonize.nn import Call
from canonize.twins.module_tree import put
from canonize.vocabulary.kinds import Kind, kind_of


def first_layers(model: nn.Module) -> list[str]:
    """Linear layers that read the image, and nothing that another linear layer has made of it.

    Tokens are no image, nor is an input that reaches dense layers only where another one reaches convolutions: box and
    flat are rules for pixels. A layer that reads features beside the image (a skip connection from the input) is none
    of the first. A model that is no graph says nothing of its order: as in zennit, the first layer registered counts.
    """
    graphs = graphs_in(model)
    layers = linear_layers(model)
    inside = [name for outer in graphs for name in layers if name.startswith(below(outer, ""))]
    if len(graphs) != 1 or len(inside) < len(layers):
        return layers[:1]
    ((outer, graph),) = graphs.items()
    return [below(outer, name) for name in _first_of(graph)]


def _first_of(graph: fx.GraphModule) -> list[str]:
    mixed = _behind_linear_layers(graph)
    entered = {
        node: found for node in graph.graph.nodes if node.op == "placeholder" and (found := _entered(graph, node))
    }
    images = [found for found in entered.values() if any(_is_convolution(graph, name) for name in found)]
    wanted = {name for found in images or entered.values() for name in found}
    return [
        str(node.target)
        for node in graph.graph.nodes
        if str(node.target) in wanted and not any(source in mixed for source in node.all_input_nodes)
    ]


def _behind_linear_layers(graph: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose values a linear layer has had a part in."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if asks_for_sizes(node):
            continue
        if isinstance(module_at(graph, node), LINEAR) or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _is_convolution(graph: fx.GraphModule, name: str) -> bool:
    return not isinstance(graph.get_submodule(name), nn.Linear)


def _entered(graph: fx.GraphModule, start: fx.Node) -> list[str]:
    """Linear layers that one input reaches first; none where it goes through an embedding."""
    reached, first = {start}, []
    for node in graph.graph.nodes:
        if asks_for_sizes(node) or not any(source in reached for source in node.all_input_nodes):
            continue
        module = module_at(graph, node)
        if isinstance(module, nn.Embedding):
            continue
        if isinstance(module, LINEAR):
            first.append(str(node.target))
        else:
            reached.add(node)
    return first


def factors(model: nn.Module) -> dict[str, int | None]:
    """Which argument of each product of two tensors is the signal, by the product's qualified name."""
    return {name: found.signal for name, found in products(model).items()}


def is_matrix_product(module: nn.Module | None) -> bool:
    """Whether a module multiplies two matrices."""
    return module is not None and kind_of(module) is Kind.PRODUCT


class OfKind(type):
    """Classes that answer ``isinstance`` by the kind of a module."""

    kind: Kind

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, nn.Module) and kind_of(instance) is cls.kind


class MatrixProduct(metaclass=OfKind):
    """What ``isinstance`` asks for a matrix product with: a call of ``torch.matmul`` or its kin."""

    kind = Kind.PRODUCT


class Scale(metaclass=OfKind):
    """A product with numbers, or with what does not depend on the input."""

    kind = Kind.SCALE


class Softmax(metaclass=OfKind):
    """Softmax, a module or a call."""

    kind = Kind.SOFTMAX


class _LinearCallType(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, Call) and kind_of(instance) is Kind.AVERAGE


class LinearCall(metaclass=_LinearCallType):
    """A call that is linear and has no weights of its own."""


def assembled(modules: Mapping[str, Any], graph: fx.Graph, name: str) -> fx.GraphModule:
    """A graph module in eval mode; its submodules are registered in the order in which they are called.

    (Of a plain dictionary, ``fx.GraphModule`` would register the shallow names first.)
    """
    root = nn.Module()
    for qualified, module in modules.items():
        put(root, qualified, module)
    built = fx.GraphModule(root, graph, name)
    built.eval()
    return built
