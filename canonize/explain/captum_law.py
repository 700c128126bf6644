"""The law of :mod:`canonize.explain.law` for captum's classes: looked at before, and after, they are asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from canonize.compat.private import pytree
from canonize.errors import ExplainError
from canonize.explain.job import is_explained, refuse_class
from canonize.explain.law import refuse
from canonize.explain.watch import RECTIFIERS
from canonize.graph.factors import gates_closed, graphs_in
from canonize.graph.relevance import RelevantOperation, Way
from canonize.vocabulary.kinds import Kind, kind_of, operator_of

HasRule = Callable[[RelevantOperation], bool]


@dataclass(frozen=True)
class Law:
    """What is asked of a model before a class of captum explains it.

    Attributes
    ----------
    explainer : str
        For messages.
    has_rule : callable
        Which operations it has a rule for.
    unruled : {"refuse", "gradient"}
    both : bool
        Whether it goes into the gates of products, too.
    multiplies : bool
        Whether it multiplies what comes out by each sample's output: right where samples have nothing to do with each
        other.
    """

    explainer: str
    has_rule: HasRule
    unruled: str
    both: bool = True
    multiplies: bool = False

    def check(self, model: nn.Module, inputs: Any, others: Any, target: Any) -> None:
        """Run a model once, and raise if its relevance could not be right.

        Raises
        ------
        ExplainError
            If relevance comes through an operation without a rule, there is no such class, no input is a floating
            tensor, or samples are mixed.
        """
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        more = others if isinstance(others, tuple) else () if others is None else (others,)
        sources = [v.detach().clone().requires_grad_() for v in given if is_explained(v)]
        if not sources:
            raise ExplainError(
                "there is no floating input to give relevance to",
                hint="Explain tokens at their embeddings: canonize.explain.attribute(model, tokens)",
            )
        floats = iter(sources)
        values = [next(floats) if is_explained(v) else v for v in given]
        closed = contextlib.nullcontext() if self.both else gates_closed(model)
        with torch.enable_grad(), closed, Way(model) as way:
            outputs = model(*values, *more)
            tensors = [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor)]
            found = [] if self.unruled == "gradient" else way.operations(tensors, sources)
        if isinstance(outputs, Tensor):
            check_target(target, outputs.shape)
        missing = [operation for operation in found if not self.has_rule(operation)]
        if missing:
            raise refuse(self.explainer, missing)
        if self.multiplies and isinstance(outputs, Tensor) and _mixes_samples(model, (*values, *more), outputs):
            raise ExplainError(
                f"{self.explainer} multiplies relevance by each sample's own output, and the samples of a batch are "
                "mixed here",
                hint="Give one sample at a time, or use canonize.explain.attribute",
            )


def _mixes_samples(model: nn.Module, values: tuple[Any, ...], outputs: Tensor) -> bool:
    """Whether the first sample has another output alone."""
    count = len(outputs) if outputs.ndim else 0
    if count < 2:
        return False
    alone = [v[:1] if isinstance(v, Tensor) and v.ndim and len(v) == count else v for v in values]
    with torch.no_grad():
        try:
            output = model(*alone)
        except Exception:  # a model that takes no other batch
            return False
    scale = float(outputs.detach().abs().amax())
    allowed = float(torch.finfo(outputs.dtype).eps) ** 0.5 * max(scale, 1e-30)
    return bool((output[0] - outputs[0].detach()).abs().amax() > allowed)


def check_target(target: Any, shape: tuple[int, ...]) -> None:
    """Refuse classes that there are none of; captum takes those below 0 from the end.

    Raises
    ------
    ExplainError
    """
    if target is None or len(shape) < 2:
        return
    for place, index in _indices(target):
        if place + 1 < len(shape):
            refuse_class(index, shape[place + 1])


def check_neuron(selector: Any) -> None:
    """Refuse neurons below 0, which captum takes from the end.

    Raises
    ------
    ExplainError
    """
    for _, index in _indices(selector):
        if index < 0:
            raise ExplainError(f"there is no neuron {index}", hint="Neurons are counted from 0")


def _indices(target: Any) -> Iterable[tuple[int, int]]:
    """Which dimension behind the batch, and which index there, in all the ways in which captum takes targets."""
    if isinstance(target, int):
        return [(0, target)]
    if isinstance(target, Tensor):
        return [] if target.is_floating_point() else [(0, int(index)) for index in target.flatten()]
    if isinstance(target, tuple):
        return [(place, index) for place, index in enumerate(target) if isinstance(index, int)]
    if isinstance(target, list):
        return [found for item in target for found in _indices(item)]
    return []


def bends_no_function(operation: RelevantOperation) -> bool:
    """Whether guided backpropagation and DeconvNet see all that they must bend: rectifiers are modules."""
    name = operation.operator if operation.module is None else operator_of(operation.module)
    return name not in RECTIFIERS


def refuse_incomplete(explainer: str, model: nn.Module, attributions: Any, delta: Tensor) -> None:
    """Raise where DeepLIFT's contributions do not add up to the difference of the outputs.

    Raises
    ------
    ExplainError
    """
    gap = incomplete(attributions, delta)
    if gap is not None:
        raise ExplainError(missed(explainer, model, gap), hint=AS_THEY_ARE)


AS_THEY_ARE = "unruled='gradient' gives them as they are; LRP has rules for choices that the input makes"


def missed(explainer: str, model: nn.Module, gap: float) -> str:
    """What to say of contributions that do not add up."""
    return f"{explainer}'s contributions miss the difference of the outputs by {gap:.2g} of their size{_why(model)}"


def incomplete(attributions: Any, delta: Tensor) -> float | None:
    """By what share contributions fail to add up, where it is more than rounding."""
    parts = [part.detach() for part in pytree.tree_leaves(attributions) if isinstance(part, Tensor) and part.numel()]
    if not parts or not delta.numel():
        return None
    scale = float(sum(part.abs().sum() for part in parts) / len(parts[0]))
    gap = float(delta.detach().abs().amax()) / max(scale, 1e-30)
    allowed = 1e-6 if parts[0].dtype is torch.float64 else 1e-2
    return gap if gap > allowed and scale > 0 else None


def _why(model: nn.Module) -> str:
    chosen = [
        str(node.target)
        for graph in graphs_in(model).values()
        for node in graph.graph.nodes
        if node.op == "call_module" and kind_of(graph.get_submodule(str(node.target))) is Kind.DISCRETE
    ]
    return f": {', '.join(chosen[:3])} decides by the input" if chosen else ""
