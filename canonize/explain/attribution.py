"""Relevance of every input value, by any method, for any model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from canonize.errors import ExplainError, InputError
from canonize.explain.gradients import explain_batch
from canonize.explain.job import Job, Part, Start
from canonize.explain.methods import find
from canonize.inputs.infer import dtype_and_device

Relevance = Tensor | tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Attribution:
    """What :func:`attribute` found.

    Attributes
    ----------
    relevance : Tensor or tuple
        Shape of the input, ``(N, C, H, W)``; ``(N, K, C, H, W)`` where K targets were asked for. For a model of several
        inputs a tuple with one entry for each, None for those that are no floating tensors.
    output : Tensor
        The model's output, detached.
    target : Tensor
        The classes explained, int64 of shape ``(N,)`` or ``(N, K)``; or the initial relevance that was given.
    method : str
    hyperparameters : dict
        As used, defaults included.
    notes : tuple of str
        What makes the heatmap doubtful (a module called twice under a rule, say).
    """

    relevance: Relevance
    output: Tensor
    target: Tensor
    method: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def heatmap(self, dim: int = -3) -> Tensor:
        """Relevance of the first input, summed over its channels: ``(N, H, W)`` for images."""
        first = self.relevance if isinstance(self.relevance, Tensor) else self.relevance[0]
        if first is None:
            raise ExplainError("the first input is no floating tensor", hint="Use .relevance")
        return first.sum(dim)


def attribute(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    target: int | Sequence[int] | Tensor | None = None,
    *,
    method: str = "epsilon-plus",
    initial: str = "one",
    choices: Any = None,
    layers: Any = None,
    canonizers: Sequence[Any] = (),
    output: Callable[[Any], Tensor] | None = None,
    batch_size: int | None = None,
    **hyperparameters: Any,
) -> Attribution:
    """Explain a model's outputs: relevance of each input value.

    Parameters
    ----------
    model : nn.Module
        Canonical or not; its modes, hooks and weights are afterwards what they were before.
    inputs : Tensor or tuple
        A batch, ``(N, ...)``; a tuple for a model of several inputs. Cast to the model's device and dtype.
    target : int, sequence of int, Tensor or None
        Class to explain: one for all; one for each sample, ``(N,)``; K for each, ``(N, K)``; or a floating tensor of
        the output's shape, which is the initial relevance. By default what the model decides for each sample.
    method : str
        See :func:`canonize.explain.methods`.
    initial : {"one", "output"}
        Relevance that the target's output starts with: 1, or its value.
    choices, layers, canonizers
        As for :func:`canonize.explain.composite`; for methods that are sets of rules.
    output : callable, optional
        Picks the tensor to explain, ``(N, classes, ...)``, out of what the model returns.
    batch_size : int, optional
        Samples at once; all by default.
    **hyperparameters
        Of the method.

    Returns
    -------
    Attribution

    Raises
    ------
    ExplainError
        If there is no such method, it lacks a hyperparameter, or the output is no tensor with a class dimension.
    InputError
        If no input is a floating tensor.

    Examples
    --------
    >>> attribute(g, images, target=207, method="epsilon-plus").heatmap()  # doctest: +SKIP
    """
    known = find(method)
    known.check(hyperparameters)
    if known.kind != "rules" and (choices is not None or layers or canonizers):
        raise ExplainError(f"{known.name} has no rules to choose", hint="Leave out choices, layers and canonizers")
    job = Job(model, known, dict(known.defaults) | hyperparameters, Start(target, initial), output or _tensor)
    given = _placed(model, inputs if isinstance(inputs, tuple) else (inputs,))
    notes: tuple[str, ...] = ()
    with evaluating(model), torch.enable_grad():
        if known.kind == "rules":
            from canonize.explain.composites import composite
            from canonize.explain.reuse import counted_calls

            rules = composite(
                known.name, choices=choices, layers=layers, canonizers=canonizers, **hyperparameters
            )  # fmt: skip
            with rules.context(model), counted_calls(model, rules) as calls:
                parts = _in_parts(job, given, batch_size)
            notes = calls.notes(len(parts))
        else:
            parts = _in_parts(job, given, batch_size)
    relevance = tuple(_joined([part.relevance[i] for part in parts]) for i in range(len(given)))
    if not all(bool(value.isfinite().all()) for value in relevance if value is not None):
        notes = (*notes, "relevance is not finite: it overflowed, or was divided by nothing")
    return Attribution(
        relevance=relevance if isinstance(inputs, tuple) else relevance[0],  # type: ignore[arg-type]
        output=torch.cat([part.output for part in parts]),
        target=torch.cat([part.target for part in parts]),
        method=known.name,
        hyperparameters=job.settings,
        notes=notes,
    )


def _in_parts(job: Job, inputs: tuple[Any, ...], batch_size: int | None) -> list[Part]:
    total = len(inputs[0])
    size = total if batch_size is None else batch_size
    if total == 0 or size < 1:
        raise InputError("there is nothing to explain", hint="Give at least one sample, and batches of at least one")
    return [
        explain_batch(job, tuple(_rows(value, first, size, total) for value in inputs), first, total)
        for first in range(0, total, size)
    ]


def _rows(value: Any, first: int, size: int, total: int) -> Any:
    return value[first : first + size] if isinstance(value, Tensor) and value.ndim and len(value) == total else value


def _placed(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs where the model's weights are, in their dtype."""
    if not any(isinstance(value, Tensor) and value.is_floating_point() for value in inputs):
        raise InputError("there is no floating input to give relevance to", hint="Give a tensor of floating dtype")
    dtype, device = dtype_and_device(model)
    return tuple(
        value.detach().to(device, dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, Tensor)
        else value
        for value in inputs
    )


def _tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    raise ExplainError(
        f"the model returns a {type(output).__name__}, not a tensor",
        hint="Give output=lambda o: o['logits'], or what picks the tensor to explain",
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, each module's own mode restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
