r"""Normalisations written out by hand, recognised by what they compute and not by the class that wrote them.

.. math:: y = \frac{x}{\sqrt{\frac{1}{n} \sum_i x_i^2 + \epsilon}}

(root mean square normalisation, Zhang & Sennrich 2019) is written in a dozen ways: ``x * rsqrt(mean(x ** 2) + eps)``,
``x / sqrt(...)``, ``pow(..., -0.5)``, with casts to float32 and back inside. All of them become one module, so that a
rule meets one thing, whatever precision the model has; the weight behind it stays the frozen affine that it is.

::

    have   x -> cast -> pow(2) -> mean -> + eps -> rsqrt -> * (cast x) -> cast back
    want   x -> RMSNorm -> cast back
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.graph.network import FrozenAffine, Network
from canonize.vocabulary import Operation, resolve_module

_POWERS = {"rsqrt": -0.5, "sqrt": 0.5}


@dataclass(frozen=True)
class _ByHand:
    """A normalisation by its root mean square."""

    source: fx.Node
    dims: tuple[int, ...]
    eps: float
    inner: torch.dtype  # the precision that it computes in
    back: bool  # whether it hands on its input's
    scaled: fx.Node | None  # an affine on the numerator, which belongs behind the division


def recognise_normalisations(network: Network) -> None:
    """Write every normalisation that is spelt out as one module; what nobody reads any more goes."""
    for node in [n for n in network.graph.nodes if _may_normalise(network, n)]:
        found = _root_mean_square(network, node)
        if found is not None:
            _replace(network, node, found)


def _may_normalise(network: Network, node: fx.Node) -> bool:
    module = network.module(node)
    return isinstance(module, cnn.Gate) or (type(module) is cnn.Call and len(node.args) == 2)


def _replace(network: Network, node: fx.Node, found: _ByHand) -> None:
    last, back = node, found.back
    cast = next(iter(node.users)) if len(node.users) == 1 and found.scaled is None else None
    if (
        cast is not None
        and _uncast(network, cast) is not cast
        and _dtype(network, cast) == _dtype(network, found.source)
    ):
        last, back = cast, True
    inner = None if found.inner == _dtype(network, found.source) else found.inner
    module = cnn.RMSNorm(found.dims, found.eps, inner, back)
    operands = [operand for part in {node, last} for operand in part.all_input_nodes if operand is not node]
    path = str(node.meta.get("path", ""))
    with network.graph.inserting_before(node):
        new = network.call(f"{path}.rms_norm".strip("."), module, (found.source,), node)
        if found.scaled is not None:
            new = network.call(f"{found.scaled.target}_behind", network.affine(found.scaled), (new,), node)
    last.replace_all_uses_with(new)
    network.remove(last)
    if last is not node:
        network.remove(node)
    for operand in operands:
        _sweep(network, operand)


def _sweep(network: Network, node: fx.Node) -> None:
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if not current._erased and not current.users and current.op != "placeholder":
            waiting.extend(current.all_input_nodes)
            network.remove(current)


def _root_mean_square(network: Network, node: fx.Node) -> _ByHand | None:
    """What a product or a quotient normalises, if that is what it does."""
    if len(node.args) != 2 or not all(isinstance(argument, fx.Node) for argument in node.args):
        return None
    first, second = node.args
    module, operation = network.module(node), _operation(network, node)
    if isinstance(module, cnn.Gate):
        pairs, power = [(first, second), (second, first)], -0.5
    elif operation is not None and operation.name == "div" and not operation.get("rounding_mode"):
        pairs, power = [(first, second)], 0.5
    else:
        return None
    for numerator, factor in pairs:
        assert isinstance(numerator, fx.Node) and isinstance(factor, fx.Node)
        found = _matched(network, node, numerator, _uncast(network, factor), power)
        if found is not None:
            return found
    return None


def _matched(network: Network, node: fx.Node, numerator: fx.Node, factor: fx.Node, power: float) -> _ByHand | None:
    if _power(_operation(network, factor)) != power:
        return None
    shifted = _only_input(factor)
    eps = _epsilon(network, shifted)
    if eps is None:
        return None
    averaged = _only_input(shifted)
    squared = _only_input(averaged)
    dims = _averaged(network, averaged, squared)
    base = _squared(network, squared)
    if dims is None or base is None:
        return None
    source, scaled = _uncast(network, base), None
    if _is_linear_affine(network, numerator):
        scaled, numerator = numerator, _only_input(numerator)
    if not _same_value(network, _uncast(network, numerator), source):
        return None
    inner, result = _dtype(network, squared), _dtype(network, node)
    # Computed in one precision, and handed on in it or in that of its input: the module does nothing else.
    own = _dtype(network, source)
    if inner is None or own is None or not {result, _dtype(network, numerator)} <= {inner, own}:
        return None
    return _ByHand(source, dims, eps, inner, result != inner, scaled)


def _operation(network: Network, node: fx.Node) -> Operation | None:
    return resolve_module(network.module(node)) if node.op == "call_module" else None


def _only_input(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else node


def _power(operation: Operation | None) -> float | None:
    if operation is None:
        return None
    if operation.name == "pow":
        exponent = operation.get("exponent")
        return float(exponent) if isinstance(exponent, int | float) else None
    return _POWERS.get(operation.name)


def _squared(network: Network, node: fx.Node) -> fx.Node | None:
    """What a node squares."""
    if isinstance(network.module(node), cnn.Gate):
        return node.all_input_nodes[0] if len(node.args) == 2 and node.args[0] is node.args[1] else None
    operation = _operation(network, node)
    is_square = operation is not None and (operation.name == "square" or _power(operation) == 2.0)
    return _only_input(node) if is_square and len(node.all_input_nodes) == 1 else None


def _epsilon(network: Network, node: fx.Node) -> float | None:
    """The number that a node adds, if it does just that and the number is positive."""
    module = network.module(node)
    if not isinstance(module, FrozenAffine):
        return None
    affine = module.affine.compress()
    if affine.scale.numel() != 1 or affine.shift.numel() != 1 or float(affine.scale) != 1.0:
        return None
    return float(affine.shift) if float(affine.shift) > 0 else None


def _averaged(network: Network, node: fx.Node, source: fx.Node) -> tuple[int, ...] | None:
    """Dimensions, counted from the end, over which a node averages and which it keeps with size 1."""
    module, before, after = network.module(node), network.shapes.shape(source), network.shapes.shape(node)
    if before is None or after is None or len(before) != len(after):
        return None
    if isinstance(module, cnn.Mean):
        dims = tuple(sorted(dim % len(before) - len(before) for dim in module.dim)) if module.keepdim else ()
    elif isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d):
        rank = int(type(module).__name__[-2])
        size = module.output_size
        ones = all(one == 1 for one in (size if isinstance(size, tuple | list) else (size,)))
        dims = tuple(range(-rank, 0)) if ones else ()
    else:
        return None
    return dims or None


def _same_value(network: Network, first: fx.Node, second: fx.Node) -> bool:
    """Whether two nodes are one, or the same sum of the same values: ``x - mean(x)``, written twice."""
    if first is second:
        return True
    one, other = network.module(first), network.module(second)
    if not isinstance(one, cnn.Sum) or not isinstance(other, cnn.Sum):
        return False
    return one.weights == other.weights and first.args == second.args


def _is_linear_affine(network: Network, node: fx.Node) -> bool:
    module = network.module(node)
    return isinstance(module, FrozenAffine) and module.affine.is_linear and len(node.users) == 1


def _uncast(network: Network, node: fx.Node) -> fx.Node:
    """What a node is but for its precision."""
    while True:
        operation = _operation(network, node)
        source = node.args[0] if node.args else None
        if operation is None or not operation.row.casts or not isinstance(source, fx.Node):
            return node
        if not isinstance(network.shapes.value(source), Tensor) or _dtype(network, node) is None:
            return node
        node = source


def _dtype(network: Network, node: fx.Node) -> torch.dtype | None:
    value = network.shapes.value(node)
    return value.dtype if isinstance(value, Tensor) and value.is_floating_point() else None
