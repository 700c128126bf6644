r"""Activations written out by hand: GELU in its two forms, SiLU and its relatives, softcaps.

.. math:: \mathrm{GELU}(x) = \tfrac{x}{2} \left(1 + \mathrm{erf}(x / \sqrt 2)\right), \qquad
          \tfrac{x}{2} \left(1 + \tanh(\sqrt{2 / \pi}\, (x + 0.044715\, x^3))\right), \qquad
          x\, \sigma(\beta x), \qquad c \tanh(x / c)

A part of the graph that reads one value, works element by element, uses numbers alone besides, and is read at one node
is a function of one variable. It is compared with the functions that have a name, in float64 on points drawn at
random: both sides are analytic, so that agreement on them is agreement everywhere (with probability one), as far as
float64 can tell constants apart. Constants that are cut off after ten digits are another function, and stay.

::

    have   x -> pow(3) -> * 0.044715 -> + x -> * 0.798 -> tanh -> + 1 -> * (x * 0.5)
    want   x -> GELU(approximate="tanh")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.graph.affine_nodes import FrozenAffine
from canonize.graph.network import Network
from canonize.vocabulary import resolve_module

# Longer than any of the spellings; a bound for the search.
_LONGEST = 16
_AGREES = 1e-13


def recognise_activations(network: Network) -> None:
    """Write every activation that is spelt out as the module that has its name."""
    for source in list(network.graph.nodes):
        if source._erased:
            continue
        for end, inside in _functions_of(network, source):
            named = _named(network, source, end, inside)
            if named is not None and network.shapes.is_floating(source):
                _replace(network, source, end, inside, named)
                break


def _functions_of(network: Network, source: fx.Node) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """Nodes that are functions of one value, with all that leads there and is read nowhere else; the longest first."""
    grown = _grown(network, source)
    for end in reversed(grown):
        inside = _leading_to(end, source)
        if len(inside) > 1 and all(user in inside for node in inside if node is not end for user in node.users):
            yield end, inside


def _grown(network: Network, source: fx.Node) -> list[fx.Node]:
    """Nodes that follow from a value element by element, in order."""
    grown: list[fx.Node] = []
    waiting = list(source.users)
    known = {source}
    while waiting and len(grown) < _LONGEST:
        node = waiting.pop(0)
        if node in known or not all(operand in known for operand in node.all_input_nodes):
            continue
        if not _is_elementwise(network, node):
            continue
        known.add(node)
        grown.append(node)
        waiting.extend(node.users)
    return sorted(grown)


def _leading_to(end: fx.Node, source: fx.Node) -> list[fx.Node]:
    found: dict[fx.Node, None] = {}
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is not source and node not in found:
            found[node] = None
            waiting.extend(node.all_input_nodes)
    return sorted(found)


_ACTIVATIONS = (nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Softplus)


def _is_elementwise(network: Network, node: fx.Node) -> bool:
    module = network.module(node)
    if isinstance(module, FrozenAffine):
        return module.affine.scale.numel() == 1 and module.affine.shift.numel() == 1
    if isinstance(module, (cnn.Gate, cnn.Sum, *_ACTIVATIONS)):
        return True
    operation = resolve_module(module)
    return operation is not None and operation.pointwise and not operation.random and not operation.row.casts


def _named(network: Network, source: fx.Node, end: fx.Node, inside: list[fx.Node]) -> nn.Module | None:
    """The activation that a part of the graph is."""
    if isinstance(network.module(end), _ACTIVATIONS):
        return None  # something in front of an activation is no part of it

    def function(points: Tensor) -> Tensor:
        values = {source: points}
        for node in inside:
            module = network.module(node)
            assert module is not None
            if isinstance(module, FrozenAffine):  # of one number each, whatever its shape
                scale, shift = float(module.affine.scale), float(module.affine.shift)
                values[node] = values[node.all_input_nodes[0]] * scale + shift
            else:
                values[node] = module(*[values[a] if isinstance(a, fx.Node) else a for a in node.args])
        return values[end]

    try:
        with torch.no_grad():
            points = _points()
            found = function(points)
            return next((m for m in _candidates(function) if _agree(m(points), found, points)), None)
    except Exception:  # whatever an operation of the model's own says of other numbers
        return None


def _points() -> Tensor:
    """Points at which functions are told apart: drawn by a generator of its own, small to large, of both signs."""
    generator = torch.Generator().manual_seed(0x5EED)
    scales = torch.tensor([1e-3, 0.3, 1.0, 3.0, 12.0], dtype=torch.float64)
    drawn = torch.randn(len(scales), 48, dtype=torch.float64, generator=generator)
    return (drawn * scales[:, None]).flatten()


def _agree(one: Tensor, other: Tensor, points: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one - other).abs() <= _AGREES * points.abs().clamp(min=1.0)).all())


def _candidates(function: Callable[[Tensor], Tensor]) -> Iterator[nn.Module]:
    """Activations that a function may be; the constants of families are read off the function itself."""
    yield from (nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.Mish())
    one = torch.ones(1, dtype=torch.float64)
    share = float(function(one))
    if 0.5 < share < 1.0:
        beta = math.log(share / (1.0 - share))
        yield cnn.SigmoidGELU(_short(beta))
    limit = float(function(one * 1e12))
    if math.isfinite(limit) and limit > 0:
        yield cnn.SoftCap(_short(limit))


def _short(number: float) -> float:
    """The number that a person has written, where rounding has moved it."""
    return float(f"{number:.12g}")


def _replace(network: Network, source: fx.Node, end: fx.Node, inside: list[fx.Node], module: nn.Module) -> None:
    path = str(end.meta.get("path", ""))
    with network.graph.inserting_before(end):
        new = network.call(f"{path}.{type(module).__name__.lower()}".strip("."), module.eval(), (source,), end)
    end.replace_all_uses_with(new)
    for node in reversed(inside):
        network.remove(node)
