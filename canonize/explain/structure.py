"""What a rule must know of a layer's surroundings, read off a model's graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from canonize.algebra.weights import LINEAR
from canonize.explain.rules import linear_layers
from canonize.nn import Gate

# Activations whose values are weights between 0 and (about) 1: what they multiply is the signal.
WEIGHTS = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Hardtanh, nn.ReLU6)
# Layers that neither mix channels nor change what their input is.
_CARRIERS = ("Rearrange", "Upsample", "Offset", "Mean", "AvgPool", "Flatten", "Unflatten", "Dropout", "Identity")


def module_at(graph_module: fx.GraphModule, node: object) -> nn.Module | None:
    """The module that a node calls."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph_module.get_submodule(str(node.target))
    return None


def first_layers(model: nn.Module) -> list[str]:
    """Linear layers that no other linear layer stands in front of.

    A model that is no graph says nothing of its order: as in zennit, the first one registered counts.
    """
    if not isinstance(model, fx.GraphModule):
        return linear_layers(model)[:1]
    reached = {node for node in model.graph.nodes if node.op == "placeholder"}
    first = []
    for node in model.graph.nodes:
        if not any(source in reached for source in node.all_input_nodes):
            continue
        if isinstance(module_at(model, node), LINEAR):
            first.append(str(node.target))
        else:
            reached.add(node)
    return first


def factors(model: nn.Module) -> dict[str, int | None]:
    """Which argument of a product is the signal, by the product's qualified name.

    Parameters
    ----------
    model : nn.Module
        Anything but a graph has no products that are modules.

    Returns
    -------
    dict
        Of gates and matrix products of two tensors: the position of the factor that is *no* weight, where exactly one
        factor comes out of an activation that makes weights (of a matrix product: out of softmax), else None.
    """
    if not isinstance(model, fx.GraphModule):
        return {}
    found: dict[str, int | None] = {}
    for node in model.graph.nodes:
        module = module_at(model, node)
        if not isinstance(module, Gate) and not is_matrix_product(module):
            continue
        kinds = WEIGHTS if isinstance(module, Gate) else (nn.Softmax,)
        weighing = [position for position, source in enumerate(node.args[:2]) if _is_weight(model, source, kinds)]
        found[str(node.target)] = 1 - weighing[0] if len(weighing) == 1 else None
    return found


def _is_weight(model: fx.GraphModule, node: object, kinds: tuple[type[nn.Module], ...]) -> bool:
    while True:
        module = module_at(model, node)
        if module is None or isinstance(module, kinds):
            return module is not None
        assert isinstance(node, fx.Node)
        if not any(part in type(module).__name__ for part in _CARRIERS) or len(node.all_input_nodes) != 1:
            return False
        node = node.args[0]


PRODUCTS = ("torch.matmul", "torch.bmm", ".matmul", ".bmm", "matmul", "bmm", "operator.matmul", "_operator.matmul")


def is_matrix_product(module: nn.Module | None) -> bool:
    """Whether a module multiplies two matrices that both depend on the input."""
    target = getattr(module, "target", "") if type(module).__name__ == "Call" else ""
    name = target.removeprefix("torch.ops.aten.").removesuffix(".default")
    return name in PRODUCTS and len(getattr(module, "args", ())) == 2


class _ProductType(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return is_matrix_product(instance)


class MatrixProduct(metaclass=_ProductType):
    """What ``isinstance`` asks for a matrix product with: a call of ``torch.matmul`` or its kin."""


def assembled(modules: Mapping[str, Any], graph: fx.Graph, name: str) -> fx.GraphModule:
    """A graph module in eval mode; its submodules are registered in the order in which they are called.

    (Of a plain dictionary, ``fx.GraphModule`` would register the shallow names first.)
    """
    root = nn.Module()
    for qualified, module in modules.items():
        *parents, last = qualified.split(".")
        owner = root
        for part in parents:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if isinstance(module, nn.Module):
            owner.add_module(last, module)
        else:
            setattr(owner, last, module)
    built = fx.GraphModule(root, graph, name)
    built.eval()
    return built
