"""Which sizes of the inputs stay free in an exported program: the batch size."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from canonize.compat.private import pytree
from canonize.inputs import Inputs

# Sizes 0 and 1 are constants to the exporter, so it is shown two samples; the file is tried on others.
SHOWN, TRIED = 2, (1, 3)


def shown_inputs(inputs: Inputs) -> Inputs:
    """The inputs to export with: two samples, where there is a batch."""
    return inputs.with_batch(SHOWN) or inputs


def tried_inputs(inputs: Inputs) -> list[Inputs]:
    """Inputs of other batch sizes than the one shown to the exporter."""
    return [i for i in (inputs.with_batch(size) for size in TRIED) if i is not None]


def dynamic_shapes(model: nn.Module, inputs: Inputs) -> dict[str, Any] | None:
    """Names of the arguments of `model` with their free sizes, as ``torch.export.export`` takes them.

    None where no tensor has a batch.
    """
    batch = inputs.batch_size
    if batch is None:
        return None
    dim = torch.export.Dim("batch", min=1)

    def free(value: Any) -> Any:
        return {0: dim} if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch else None

    names = [p.name for p in inspect.signature(model.forward).parameters.values()]
    given = {**dict(zip(names, inputs.args, strict=False)), **inputs.kwargs}
    return {name: pytree.tree_map(free, given[name]) for name in names if name in given}
