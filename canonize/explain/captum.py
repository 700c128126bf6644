"""captum on canonical models: what it wants to be told of their modules, said."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.explain.gradients import is_explained
from canonize.explain.libraries import require
from canonize.explain.structure import assembled
from canonize.network import shell

if TYPE_CHECKING:
    from canonize.explain.attribution import Job

# What captum says each time it sets its hooks, whatever the model.
_ALWAYS_SAID = ("Setting forward, backward hooks", "Setting backward hooks on ReLU", "Input Tensor .* did not already")


class Weighted(nn.Module):
    """A model's output times its initial relevance, one number a sample: what captum's methods take for a target.

    Arguments are the floating inputs, then the initial relevance, then all other inputs.
    """

    def __init__(self, model: nn.Module, pick: Any, explained: list[int], total: int) -> None:
        super().__init__()
        self.model, self.pick, self.explained, self.total = model, pick, explained, total

    def forward(self, *arguments: Any) -> Tensor:
        """One number for each sample, ``(N,)``."""
        count = len(self.explained)
        others = iter(arguments[count + 1 :])
        floats = dict(zip(self.explained, arguments[:count], strict=True))
        inputs = [floats[position] if position in floats else next(others) for position in range(self.total)]
        product: Tensor = self.pick(self.model(*inputs)) * arguments[count]
        return product.flatten(1).sum(1)


def relevances(job: Job, inputs: tuple[Any, ...], start: Tensor) -> list[Tensor | None]:
    """Relevance of each input by one of captum's methods."""
    attr = require("captum.attr")
    explained = [position for position, value in enumerate(inputs) if is_explained(value)]
    model = prepare(job.model) if job.method.name == "deep-lift" else job.model
    weighted = Weighted(model, job.pick, explained, len(inputs))
    values = tuple(inputs[position].clone() for position in explained)
    others = tuple(value for position, value in enumerate(inputs) if position not in explained)
    baselines = tuple(_baseline(job.settings["baseline"], value) for value in values)
    more: dict[str, Any] = {"additional_forward_args": (start, *others)}
    with quiet():
        if job.method.name == "deep-lift":
            found = attr.DeepLift(weighted).attribute(values, baselines, **more)
        else:
            found = attr.IntegratedGradients(weighted).attribute(
                values,
                baselines,
                n_steps=int(job.settings["steps"]),
                internal_batch_size=max(len(values[0]), 16),
                **more,
            )
    relevance: list[Tensor | None] = [None] * len(inputs)
    for position, value in zip(explained, found, strict=True):
        relevance[position] = value.detach()
    return relevance


def _baseline(given: Any, value: Tensor) -> Tensor:
    if isinstance(given, Tensor):
        return given.to(value).expand_as(value)
    return torch.full_like(value, float(given))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what captum says on every call."""
    with warnings.catch_warnings():
        for message in _ALWAYS_SAID:
            warnings.filterwarnings("ignore", message=f"\\s*{message}", category=UserWarning)
        yield


def prepare(model: nn.Module) -> nn.Module:
    """A model that captum's DeepLIFT treats right; it shares all tensors with the given one.

    ``ThreshReLU`` is made known as a rectifier (captum looks types up exactly), and each activation gets an input that
    nobody else reads.

    Parameters
    ----------
    model : nn.Module
        Not changed. Anything but a graph module is returned as it is.
    """
    rules = require("captum.attr._core.deep_lift")
    for activation in (cnn.ThreshReLU, cnn.ThreshLeakyReLU):
        rules.SUPPORTED_NON_LINEAR.setdefault(activation, rules.nonlinear)
    if not isinstance(model, fx.GraphModule):
        return model
    targets = [str(n.target) for n in model.graph.nodes if n.op == "call_module"]
    modules: dict[str, Any] = {target: shell(model.get_submodule(target)) for target in targets}
    attributes = {str(n.target): _attribute(model, str(n.target)) for n in model.graph.nodes if n.op == "get_attr"}
    prepared = assembled(modules | attributes, model.graph, type(model).__name__)
    for module in prepared.modules():
        if type(module) in rules.SUPPORTED_NON_LINEAR:
            module.register_forward_pre_hook(_copy_inputs)
    return prepared


def _copy_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)


def _attribute(model: nn.Module, name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)
