"""LRP the slow and obvious way: each layer as an explicit matrix, relevance shared out in its rows, no hooks anywhere.

It walks over a canonical model's graph backwards and shares no code with zennit or with ``canonize.explain``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ELEMENTWISE = (nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Hardswish)
AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, cnn.Mean, cnn.SumOver)
COPIES = (
    cnn.ThreshReLU,
    cnn.ThreshLeakyReLU,
    cnn.Concat,
    cnn.Rearrange,
    cnn.ChannelPad,
    nn.Flatten,
    nn.MaxPool2d,
    nn.ConstantPad2d,
)


class Recorder(fx.Interpreter):
    """Runs a graph module and keeps the value of each node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)


def slow_lrp(model: fx.GraphModule, inputs: tuple[Any, ...], start: Tensor, rules: str, epsilon: float) -> Tensor:
    """Relevance of a model's first input.

    Parameters
    ----------
    model : fx.GraphModule
        Canonical, in float64.
    inputs : tuple
    start : Tensor
        Relevance of the output.
    rules : {"epsilon", "epsilon-plus"}
        Epsilon in every linear layer; or z-plus in convolutions. Sums and averages share by contribution, activations
        pass relevance, gates hand it to their signal.
    epsilon : float
        Of every rule.
    """
    recorder = Recorder(model)
    with torch.no_grad():
        recorder.run(*inputs)
    values = recorder.env
    relevance: dict[fx.Node, Tensor] = {}
    for node in reversed(model.graph.nodes):
        if node.op == "output":
            relevance[node.args[0]] = start
            continue
        if node not in relevance or node.op == "placeholder":
            continue
        if node.op != "call_module":
            continue  # an item of what a recurrent layer returns: nothing is known of the way beyond
        module, sources = model.get_submodule(str(node.target)), node.all_input_nodes
        given = [values[source] for source in sources]
        parts = _shares(module, given, values[node], relevance[node], rules, epsilon)
        for source, part in zip(sources, parts, strict=False):
            relevance[source] = relevance[source] + part if source in relevance else part
    return relevance[next(iter(model.graph.nodes))]


def _shares(module: nn.Module, given: list[Any], output: Tensor, above: Tensor, rules: str, epsilon: float) -> Any:
    if isinstance(module, LINEAR):
        plus = rules == "epsilon-plus" and not isinstance(module, nn.Linear)
        return [_z_plus(module, given[0], above, epsilon) if plus else _z(module, given[0], above, epsilon)]
    if isinstance(module, AVERAGES):
        return [_z(module, given[0], above, epsilon)]
    if isinstance(module, ELEMENTWISE):
        return [above]
    if isinstance(module, cnn.Sum):
        ratio = above / _stable(output, epsilon)
        return [(w * x * ratio).sum_to_size(x.shape) for w, x in zip(module.weights, given, strict=True)]
    if isinstance(module, cnn.Gate):
        assert given[0].shape == output.shape and given[1].shape != output.shape, "which one is the signal?"
        return [above, torch.zeros_like(given[1])]
    if isinstance(module, COPIES):
        copies = [value.detach().clone().requires_grad_() for value in given if isinstance(value, Tensor)]
        rest = [value for value in given if not isinstance(value, Tensor)]
        return torch.autograd.grad(module(*copies, *rest), copies, above)
    return []


def _stable(value: Tensor, epsilon: float) -> Tensor:
    return torch.where(value < 0, value - epsilon, value + epsilon)


def _matrix(module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """A layer as a matrix (inputs, outputs) and a bias (outputs,), found by feeding it the unit vectors."""
    shape = like.shape[1:]
    with torch.no_grad():
        units = torch.eye(shape.numel(), dtype=like.dtype).view(-1, *shape)
        bias = module(torch.zeros_like(units[:1]))
        matrix = module(units) - bias
    return matrix.flatten(1), bias.flatten()


def _z(module: nn.Module, x: Tensor, above: Tensor, epsilon: float) -> Tensor:
    matrix, bias = _matrix(module, x)
    flat = x.flatten(1)
    ratio = above.flatten(1) / _stable(flat @ matrix + bias, epsilon)
    return (flat * (ratio @ matrix.T)).view(x.shape)


def _z_plus(module: nn.Module, x: Tensor, above: Tensor, epsilon: float) -> Tensor:
    matrix, bias = _matrix(module, x)
    up, down = x.flatten(1).clamp(min=0), x.flatten(1).clamp(max=0)
    gain, loss = matrix.clamp(min=0), matrix.clamp(max=0)
    ratio = above.flatten(1) / _stable(up @ gain + down @ loss + bias.clamp(min=0), epsilon)
    return (up * (ratio @ gain.T) + down * (ratio @ loss.T)).view(x.shape)
