"""Where two models part: the first layer that differs although everything it reads agrees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from canonize.compat.private import pytree
from canonize.inputs import Inputs
from canonize.report.record import Divergence
from canonize.verify import measure, run
from canonize.verify.where.recorder import RecordedLayer, record

# Bytes of activations to keep of one model; beyond that the search runs the models several times.
BUDGET = 2**30
# A layer differs where it is so many times further off than rounding takes it in the reference, a few rounding steps
# granted; where no layer is, the next lower threshold is tried.
_THRESHOLDS = (16.0, 8.0, 4.0, 2.0)
_EXACT = 1e-11
# Float64 runs of the same weights differ by no more.
_SAME = 1e-12


@dataclass(frozen=True)
class Side:
    """One model as it is run for the search.

    Attributes
    ----------
    model : nn.Module
        A twin.
    dtype : torch.dtype
        What it is run in.
    """

    model: nn.Module
    dtype: torch.dtype


@dataclass(frozen=True)
class Reference:
    """What the candidate's layers are compared with.

    Attributes
    ----------
    name : str
        In words: ``the reference``.
    truth : Side
        In float64 where it can.
    own : Side or None
        In its own precision, to know what rounding does to each layer; None where candidate and truth are both exact.
    eps : float
        One rounding step.
    """

    name: str
    truth: Side
    own: Side | None
    eps: float


@dataclass
class LayerComparison:
    """A candidate's layers, and how each compares.

    Attributes
    ----------
    layers : list of Layer
        In the order in which they finish.
    ratio : dict
        Number of a layer to its error over what rounding explains; layers that the reference lacks are missing.
    error, allowed : dict
        The error and what rounding explains.
    where : dict
        Element of the largest error.
    reads : frozenset of int
        What the output is read from.
    missing : int
        Layers of the reference that the candidate lacks.
    passes : int
    """

    layers: list[RecordedLayer] = field(default_factory=list)
    ratio: dict[int, float] = field(default_factory=dict)
    error: dict[int, float] = field(default_factory=dict)
    allowed: dict[int, float] = field(default_factory=dict)
    where: dict[int, str] = field(default_factory=dict)
    reads: frozenset[int] = frozenset()
    missing: int = 0
    passes: int = 1

    def agreeing(self) -> int:
        """Number of layers that agree."""
        return sum(ratio <= _THRESHOLDS[0] for ratio in self.ratio.values())

    def first_divergent(self) -> int | None:
        """The first layer that differs, through layers that differ too up to the output, and with none in front of it.

        Layers in between that agree again excuse what is in front of them: a folded BatchNorm moves what a convolution
        gives, and not what the activation behind it gives.
        """
        exact = self._source(self.error, _SAME)
        if exact is not None and self._beyond_rounding(exact):
            return exact
        for threshold in _THRESHOLDS:
            found = self._source(self.ratio, threshold)
            if found is not None:
                return found
        return None

    def _beyond_rounding(self, number: int) -> bool:
        """Whether a layer's error is no rounding: layers in front of it that have none say that neither has it."""
        ahead, stack = set[int](), list(self.layers[number].reads)
        while stack:
            before = stack.pop()
            if before not in ahead:
                ahead.add(before)
                stack.extend(self.layers[before].reads)
        proven = any(self.error.get(n, math.inf) <= _SAME for n in ahead)
        return self.ratio[number] > (_THRESHOLDS[-1] if proven else _THRESHOLDS[-2])

    def _source(self, measured: dict[int, float], threshold: float) -> int | None:
        guilty = self._reached(self.reads, measured, threshold)
        sources = [n for n in guilty if not self._reached(self.layers[n].reads, measured, threshold)]
        return min(sources) if sources else None

    def _reached(self, start: frozenset[int], measured: dict[int, float], threshold: float) -> set[int]:
        found, seen, stack = set(), set(), list(start)
        while stack:
            number = stack.pop()
            if number in seen:
                continue
            seen.add(number)
            value = measured.get(number)
            if value is not None and value <= threshold:
                continue
            if value is not None:
                found.add(number)
            stack.extend(self.layers[number].reads)
        return found


def compare_layers(reference: Reference, candidate: Side, inputs: Inputs, budget: int = BUDGET) -> LayerComparison:
    """Compare all layers that two models share.

    Parameters
    ----------
    reference : Reference
    candidate : Side
    inputs : Inputs
    budget : int
        Bytes of activations to keep. Where all fit, each model runs once; else the search halves its way.

    Returns
    -------
    LayerComparison

    Raises
    ------
    FailedRunError
        If a model raises; see `failing_layer`.
    """
    sizes: dict[tuple[str, int], int] = {}
    kept = _kept(reference.truth, inputs, None, budget, sizes)
    passes = 1
    if sum(sizes.values()) > budget:
        window = list(sizes)
        while True:
            chosen = _thinned(window, sizes, budget)
            kept = _kept(reference.truth, inputs, set(chosen), math.inf, {})
            found = _against(reference, candidate, inputs, kept)
            passes += 1
            if len(chosen) == len(window):
                break
            narrowed = _narrowed(window, found)
            if len(narrowed) >= len(window):
                break
            window = narrowed
    else:
        found = _against(reference, candidate, inputs, kept)
    found.passes = passes
    return found


def _kept(
    side: Side, inputs: Inputs, wanted: set[tuple[str, int]] | None, budget: float, sizes: dict[tuple[str, int], int]
) -> dict[tuple[str, int], Any]:
    kept: dict[tuple[str, int], Any] = {}
    held = 0

    def keep(number: int, layer: RecordedLayer, output: Any) -> None:
        nonlocal held
        sizes[layer.key] = sum(t.nbytes for t in _tensors(output))
        held += sizes[layer.key]
        if (wanted is None or layer.key in wanted) and held <= budget:
            kept[layer.key] = _copied(output)

    record(side.model, inputs, side.dtype, keep)
    return kept


def _against(
    reference: Reference, candidate: Side, inputs: Inputs, kept: dict[tuple[str, int], Any]
) -> LayerComparison:
    noise: dict[tuple[str, int], float] = {}
    if reference.own is not None:

        def listen(number: int, layer: RecordedLayer, output: Any) -> None:
            if layer.key in kept:
                noise[layer.key] = _difference(kept[layer.key], output)[0]

        try:
            record(reference.own.model, inputs, reference.own.dtype, listen)
        except run.FailedRunError:
            noise.clear()
    found = LayerComparison()

    def weigh(number: int, layer: RecordedLayer, output: Any) -> None:
        found.layers.append(layer)
        if layer.key not in kept:
            return
        error, where = _difference(kept[layer.key], output)
        rounding = noise.get(layer.key, 0.0)
        allowed = reference.eps + (rounding if math.isfinite(rounding) else 0.0)
        found.error[number], found.allowed[number], found.where[number] = error, allowed, where
        found.ratio[number] = error / allowed if math.isfinite(error) else math.inf

    found.reads, _ = record(candidate.model, inputs, candidate.dtype, weigh)
    found.missing = len(kept.keys() - {layer.key for layer in found.layers})
    return found


def _difference(reference: Any, candidate: Any) -> tuple[float, str]:
    if measure.first_nonfinite(reference):
        return (0.0, "") if measure.first_nonfinite(candidate) else (math.inf, "")
    worst = measure.compare(reference, candidate)
    return worst.error, worst.where


def _thinned(window: Sequence[tuple[str, int]], sizes: dict[tuple[str, int], int], budget: int) -> list[Any]:
    """As many of a window's layers as fit, evenly spread, its last one among them."""
    step = 1
    while True:
        chosen = list(window[::-1][::step])[::-1]
        if sum(sizes[key] for key in chosen) <= budget or len(chosen) == 1:
            return chosen
        step *= 2


def _narrowed(window: list[tuple[str, int]], found: LayerComparison) -> list[tuple[str, int]]:
    """The layers behind the last that agrees, up to the first that differs."""
    guilty = found.first_divergent()
    if guilty is None:
        return window[-1:]
    bad = window.index(found.layers[guilty].key)
    ratio = {found.layers[number].key: value for number, value in found.ratio.items()}
    good = [i for i in range(bad) if ratio.get(window[i], math.inf) <= _THRESHOLDS[0]]
    return window[good[-1] + 1 if good else 0 : bad + 1]


def failing_layer(candidate: Side, inputs: Inputs) -> str:
    """The innermost layer of a candidate that raises on these inputs; empty where none does."""
    entered: list[str] = []

    def enter(name: str) -> Any:
        return lambda module, args: entered.append(name)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        entered.pop()

    handles = []
    for name, module in candidate.model.named_modules():
        if name:
            handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        run.outputs(candidate.model, inputs, candidate.dtype)
        return ""
    except run.FailedRunError:
        return entered[-1] if entered else ""
    finally:
        for handle in handles:
            handle.remove()


def describe(found: LayerComparison, reference: str, case: str) -> Divergence:
    """The outcome of a comparison as data."""
    number = found.first_divergent()
    if number is None:
        return Divergence("", case=case, reference=reference, compared=len(found.ratio), passes=found.passes)
    layer = found.layers[number]
    reads = tuple(dict.fromkeys(found.layers[n].name for n in sorted(layer.reads)))
    return Divergence(
        layer.name,
        layer.kind,
        layer.call,
        found.error[number],
        _THRESHOLDS[0] * found.allowed[number],
        found.where[number],
        reads,
        case,
        reference,
        len(found.ratio),
        passes=found.passes,
    )


def activation(side: Side, inputs: Inputs, name: str, call: int) -> Any:
    """What one call of one layer gives; the model's output where no name is given."""
    caught: list[Any] = []

    def catch(number: int, layer: RecordedLayer, output: Any) -> None:
        if layer.key == (name, call):
            caught.append(_copied(output))

    _, output = record(side.model, inputs, side.dtype, catch)
    return caught[0] if caught else output


def exact_side_eps(exact: bool, dtype: torch.dtype) -> float:
    """One rounding step as `Reference.eps` wants it."""
    return _EXACT if exact else torch.finfo(dtype).eps


def _copied(value: Any) -> Any:
    """Copies, since a layer behind may write to what a layer gave."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copied(v) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_copied(v) for v in value)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
