"""What a caller notices beside the values: the output's dtype, inputs that are written into, calls that differ."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from canonize.inputs import Inputs
from canonize.report.record import Check
from canonize.twins.twin import device_of, eval_twin
from canonize.verify import measure, run

# Two runs of one model on one input differ by the order of sums at most.
_REPEAT_STEPS = 64.0


def usage_check(
    model: nn.Module, other: nn.Module, inputs: Inputs, dtypes: tuple[torch.dtype, torch.dtype]
) -> Check | str:
    """Call both models as a caller does, in their own precision, the candidate twice on the same tensors.

    Parameters
    ----------
    model, other : nn.Module
        Reference and candidate.
    inputs : Inputs
    dtypes : tuple of torch.dtype
        Precision of each; where they are the same, so are those of the outputs.

    Returns
    -------
    Check or str
        A failed check; a note where the reference does not run so; empty where there is nothing to say.
    """
    reference, candidate = eval_twin(model), eval_twin(other)
    given, same = _fed(reference, inputs, dtypes[0]), _fed(candidate, inputs, dtypes[1])
    try:
        truth = run.as_it_is(reference, given)
    except run.FailedRunError as error:
        return f"how they are called was not compared: the reference refuses it ({error})"
    try:
        before = same.map(torch.clone)
        first = run.as_it_is(candidate, same)
        written = _changed(before, same) and not _changed(_fed(reference, inputs, dtypes[0]), given)
        second = run.as_it_is(candidate, before)
    except run.FailedRunError as error:
        return _failed(f"the candidate fails where the reference runs: {error}", dtypes[1])
    if dtypes[0] == dtypes[1] and not measure.compare(truth, first).mismatch.startswith("the output's structure"):
        odd = measure.dtype_mismatch(truth, first)
        if odd:
            return _failed(odd, dtypes[1])
    if written:
        return _failed("the candidate writes into its input, the reference does not", dtypes[1])
    if measure.first_nonfinite(first) is None:
        repeat = measure.compare(first, second)
        if repeat.error > _REPEAT_STEPS * torch.finfo(dtypes[1]).eps and not _varies(reference, inputs, dtypes[0]):
            return _failed(f"a second call differs: {repeat.mismatch or repeat.where}", dtypes[1])
    return ""


def _fed(model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return inputs.to(device_of(model), dtype).map(lambda tensor: tensor.detach().clone())


def _changed(before: Inputs, after: Inputs) -> bool:
    pairs = zip(before.tensors(), after.tensors(), strict=True)
    return any(a.shape != b.shape or not bool(_same(a, b).all()) for a, b in pairs)


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | ((a != a) & (b != b))


def _varies(model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> bool:
    runs: list[Any] = [run.as_it_is(model, _fed(model, inputs, dtype)) for _ in range(2)]
    return measure.compare(*runs).error > _REPEAT_STEPS * torch.finfo(dtype).eps


def _failed(detail: str, dtype: torch.dtype) -> Check:
    return Check("called twice", "use", _short(dtype), math.inf, 1.0, False, detail)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
