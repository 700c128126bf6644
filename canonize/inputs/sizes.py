"""Inputs of other sizes: what a model may be called with beside the example."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from canonize.inputs.values import Inputs

Axis = tuple[int, int]
"""A size: the number of a tensor among the inputs, and a dimension of it."""


def other_batches(inputs: Inputs) -> list[Inputs]:
    """The same inputs with other numbers of rows: one row where there are more, two where there is one; and many."""
    own = inputs.batch_size
    if own is None:
        return []
    found = [inputs.with_batch(size) for size in (1 if own > 1 else 2, 2 * own + 1)]
    return [other for other in found if other is not None]


def other_sizes(inputs: Inputs) -> tuple[list[Inputs], list[Inputs]]:
    """The same inputs with other lengths and image sizes.

    Returns
    -------
    list of Inputs
        With several sizes changed together: the sides of all images, the length of all sequences. Tensors that share
        a length keep sharing it.
    list of Inputs
        With one size changed in one tensor, where no other of the list does the same.
    """
    tensors = inputs.tensors()
    axes = [(i, d) for i, t in enumerate(tensors) for d in range(t.ndim) if t.shape[d] and _may_vary(inputs, t, d)]
    alike: dict[int, set[Axis]] = {}
    for i, d in axes:
        alike.setdefault(tensors[i].shape[d], set()).add((i, d))
    groups = [
        {(i, d) for i, d in axes if tensors[i].is_floating_point() and d >= 2},
        {(i, 1) for i, t in enumerate(tensors) if t.is_floating_point() and t.ndim == 3},
        *(alike[size] for size in sorted(alike, reverse=True)),
    ]
    together = [frozenset(group) for group in groups if group]
    alone = [frozenset({axis}) for axis in axes]
    several = list(dict.fromkeys(together))
    single = [group for group in dict.fromkeys(alone) if group not in several]
    return [enlarged(inputs, group) for group in several], [enlarged(inputs, group) for group in single]


def enlarged(inputs: Inputs, axes: Iterable[Axis]) -> Inputs:
    """The same inputs, twice as large along some axes; values repeat, so that indices stay in their range."""
    chosen = set(axes)
    number = itertools.count()

    def one(tensor: Tensor) -> Tensor:
        i = next(number)
        for d in range(tensor.ndim):
            if (i, d) in chosen:
                tensor = torch.cat([tensor, tensor], d)
        return tensor

    return inputs.map(one)


def _may_vary(inputs: Inputs, tensor: Tensor, dim: int) -> bool:
    """Whether a dimension counts neither rows nor the channels of an image."""
    if dim == 1 and tensor.is_floating_point() and tensor.ndim > 3:
        return False
    return dim > 0 or tensor.shape[0] != inputs.batch_size
