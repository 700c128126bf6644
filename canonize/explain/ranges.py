r"""Published composites whose rule depends on how deep a layer is, as rules by layer for ``layers=``.

- *tutorial* (Montavon et al. 2019, *Layer-Wise Relevance Propagation: An Overview*; its tutorial has these numbers for
  VGG-16): box where the image enters, gamma 1/4 in the lower half of the convolutions, epsilon of 1/4 of the root mean
  square of a layer's outputs in the upper half, and epsilon as a mere stabilizer in dense layers.
- *decreasing gamma* (Bermúdez Schettino 2022): gamma becomes less from group to group of layers, and is 0 in the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from canonize.errors import ExplainError
from canonize.explain.rules import linear_layers
from canonize.explain.structure import first_layers

Rules = dict[tuple[str, ...], Any]


def tutorial(model: nn.Module, low: Any = None, high: Any = None, gamma: float = 0.25, epsilon: float = 0.25) -> Rules:
    """Rules of the LRP tutorial for a model's layers.

    Parameters
    ----------
    model : nn.Module
    low, high : Tensor, optional
        Bounds of the input, for the box where the image enters; without them flat.
    gamma : float
        Of the lower half of the convolutions.
    epsilon : float
        Of the upper half, as a share of the root mean square of a layer's outputs.

    Returns
    -------
    dict
        For ``attribute(..., layers=...)`` and ``composite(..., layers=...)``.
    """
    if (low is None) != (high is None):
        raise ExplainError("the box has two bounds", hint="Give low and high, or neither for flat")
    lower, upper = _parts(_convolutions(model), 2)
    dense = [name for name in linear_layers(model) if isinstance(model.get_submodule(name), nn.Linear)]
    return {
        tuple(first_layers(model)): "flat" if low is None else ("z-box", {"low": low, "high": high}),
        tuple(lower): ("gamma", {"gamma": gamma}),
        tuple(upper): ("relative-epsilon", {"epsilon": epsilon}),
        tuple(dense): ("epsilon", {"epsilon": 1e-9}),
    }


def decreasing_gamma(model: nn.Module, gammas: Sequence[float] = (0.5, 0.25, 0.1, 0.0)) -> Rules:
    """Gamma by groups of layers, from the input to the output; as many groups, of alike sizes, as there are values.

    Parameters
    ----------
    model : nn.Module
    gammas : sequence of float
        Not increasing; 0 is the rule LRP-0, with a stabilizer.

    Returns
    -------
    dict
        For ``attribute(..., layers=...)`` and ``composite(..., layers=...)``.
    """
    if not gammas or any(after > before for before, after in pairwise(gammas)):
        raise ExplainError(f"gamma does not decrease: {list(gammas)}", hint="Give values such as 0.5, 0.25, 0.1, 0")
    groups = _parts(linear_layers(model), len(gammas))
    return {tuple(names): ("gamma", {"gamma": gamma}) for names, gamma in zip(groups, gammas, strict=True) if names}


def _convolutions(model: nn.Module) -> list[str]:
    return [name for name in linear_layers(model) if not isinstance(model.get_submodule(name), nn.Linear)]


def _parts(names: Sequence[str], count: int) -> list[list[str]]:
    """As many parts, in order, the first ones larger by one where it does not come out even."""
    size, more = divmod(len(names), count)
    starts = [part * size + min(part, more) for part in range(count + 1)]
    return [list(names[first:last]) for first, last in pairwise(starts)]
