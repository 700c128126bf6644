r"""Relevance of one batch by backward passes: with rules, which change what a backward pass does, or without."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from canonize.errors import ExplainError, InputError
from canonize.explain.job import Job, Part, is_explained
from canonize.explain.watch import forward_once


def explain_batch(job: Job, inputs: tuple[Any, ...], first: int, total: int) -> Part:
    """Explain the samples from ``first`` on, of ``total``, by the job's method."""
    name = job.method.name
    if job.method.kind == "captum":
        from canonize.explain.captum import relevances

        if job.watch is not None:
            forward_once(job.watch, job.model, job.pick, inputs)
        with torch.no_grad():
            output = job.pick(job.model(*inputs))
        target, starts = job.start.of(output, first, total)
        found = [relevances(job, inputs, start) for start in starts]
    elif name == "smoothgrad":
        output, target, found = _smoothgrad(job, inputs, first, total)
    else:
        output, target, found, values = _backward(job, inputs, first, total)
        if name == "input-x-gradient":
            found = [_times_input(values, relevance) for relevance in found]
    started = sum(float(start.double().sum()) for start in job.start.of(output, first, total)[1])
    several = not target.is_floating_point() and target.ndim == 2
    return Part(
        [_stacked([f[i] for f in found], several) for i in range(len(inputs))], output.detach(), target, started
    )


Found = list[list[Tensor | None]]


def _backward(job: Job, inputs: tuple[Any, ...], first: int, total: int) -> tuple[Tensor, Tensor, Found, list[Any]]:
    """One forward pass, one backward pass for each target; and the values that relevance was given to."""
    values = list(inputs)
    for position, value in enumerate(inputs):
        if is_explained(value):
            values[position] = value.detach().clone().requires_grad_()
    tokens = Tokens(job.model, values) if not any(map(is_explained, inputs)) else contextlib.nullcontext()
    with tokens:
        if job.watch is not None:
            job.watch.before()
        output = job.pick(job.model(*values))
    if isinstance(tokens, Tokens):
        values = tokens.embedded()
    explained = [position for position, value in enumerate(values) if is_explained(value)]
    if job.watch is not None:
        job.watch.behind(output, [values[position] for position in explained])
    target, starts = job.start.of(output, first, total)
    found: Found = []
    for start in starts:
        relevance: list[Tensor | None] = [None] * len(inputs)
        gradients = torch.autograd.grad(
            output, [values[i] for i in explained], start, retain_graph=start is not starts[-1], allow_unused=True
        )
        for position, gradient in zip(explained, gradients, strict=True):
            relevance[position] = torch.zeros_like(values[position]) if gradient is None else gradient.detach()
        found.append(relevance)
    return output, target, found, [v.detach() if isinstance(v, Tensor) else v for v in values]


class Tokens:
    """Lets relevance end at the embeddings of tokens, where no input is a floating tensor; use it as a context."""

    def __init__(self, model: nn.Module, inputs: list[Any]) -> None:
        self.model, self.inputs = model, inputs
        self.found: dict[int, Tensor] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> Tokens:
        for layer in self.model.modules():
            if isinstance(layer, nn.Embedding):
                self.handles.append(layer.register_forward_hook(self._begin))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _begin(self, layer: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
        for place, value in enumerate(self.inputs):
            if isinstance(value, Tensor) and value.shape == arguments[0].shape and torch.equal(value, arguments[0]):
                if place in self.found:
                    raise ExplainError(
                        "two embeddings read the same tokens", hint="Explain a model that takes embeddings: give those"
                    )
                self.found[place] = output.detach().requires_grad_()
                return self.found[place]
        return None

    def embedded(self) -> list[Any]:
        """The inputs, with embeddings in place of the tokens that were embedded.

        Raises
        ------
        InputError
            If none was.
        """
        if not self.found:
            raise InputError(
                "there is no floating input to give relevance to, and no nn.Embedding that reads one",
                hint="Give a tensor of floating dtype",
            )
        return [self.found.get(place, value) for place, value in enumerate(self.inputs)]


def _smoothgrad(job: Job, inputs: tuple[Any, ...], first: int, total: int) -> tuple[Tensor, Tensor, Found]:
    """Mean gradient of noisy copies (Smilkov et al. 2017); the noise's scale is a share of each sample's range."""
    if not any(map(is_explained, inputs)):
        raise InputError("tokens cannot be made noisy", hint="Explain them by a set of rules, or by the gradient")
    with torch.no_grad():
        output = job.pick(job.model(*inputs))
    target, starts = job.start.of(output, first, total)
    samples = int(job.settings["samples"])
    generator = torch.Generator().manual_seed(int(job.settings["seed"]) + first)
    sums: Found = [[None] * len(inputs) for _ in starts]
    for _ in range(samples):
        noisy = tuple(_noisy(value, float(job.settings["noise"]), generator) for value in inputs)
        fixed = _with_start(job, starts)
        for total_so_far, found in zip(sums, _backward(fixed, noisy, 0, len(output))[2], strict=True):
            for position, gradient in enumerate(found):
                if gradient is not None:
                    before = total_so_far[position]
                    share = gradient / samples
                    total_so_far[position] = share if before is None else before + share
    return output, target, sums


def _with_start(job: Job, starts: list[Tensor]) -> Job:
    """The same job with initial relevances that are known: the decision on a noisy copy may be another one."""

    class Known:
        def of(self, output: Tensor, first: int, total: int) -> tuple[Tensor, list[Tensor]]:
            return starts[0], starts

    return replace(job, start=Known())  # type: ignore[arg-type]


def _noisy(value: Any, level: float, generator: torch.Generator) -> Any:
    if not is_explained(value):
        return value
    flat = value.flatten(1)
    scale = (level * (flat.amax(1) - flat.amin(1))).view(-1, *[1] * (value.ndim - 1))
    return value + torch.randn(value.shape, generator=generator).to(value) * scale


def _times_input(inputs: Sequence[Any], relevance: list[Tensor | None]) -> list[Tensor | None]:
    return [None if r is None else r * value for r, value in zip(relevance, inputs, strict=True)]


def _stacked(found: list[Tensor | None], several: bool) -> Tensor | None:
    tensors = [part for part in found if part is not None]
    if not tensors:
        return None
    return torch.stack(tensors, 1) if several else tensors[0]
