"""What the reference says: its outputs free of rounding, and how much rounding its own precision brings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from canonize.inputs import Inputs
from canonize.verify import measure, run
from canonize.verify.twin import eval_twin, float64_twin, floating_dtype

_REMEMBERED = 5


class Oracle:
    """The reference model as the judge of a candidate.

    The truth is what its float64 twin gives. Its noise is how far it is from that in its own precision. A model that
    cannot run in float64 is its own truth, and its noise is how far it moves when each input moves by one rounding
    step.

    Parameters
    ----------
    model : nn.Module
        Never changed.
    inputs : Inputs
        The example inputs, which say the precision of a model without parameters.

    Attributes
    ----------
    dtype : torch.dtype
        The reference's own precision.
    in_float64 : bool
        Whether the truth is free of its rounding.
    problem : str
        Why it is not, where it is not.

    Raises
    ------
    FailedRunError
        If the model does not run on the example inputs in either precision.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.dtype = floating_dtype(model) or _floating_input_dtype(inputs)
        self.own = eval_twin(model)
        self.wide: nn.Module = float64_twin(model) if _has_narrow(model) else self.own
        self.in_float64, self.problem = True, ""
        self._latest: list[tuple[Inputs, Any]] = []
        try:
            found = self.truth(inputs)
        except run.FailedRunError as error:
            self._use_own(str(error), inputs)
        else:
            narrow = [t for t in measure.floating(found) if t.dtype not in (torch.float64, torch.complex128)]
            if narrow and self.dtype != torch.float64:
                self._use_own(f"an output stays {str(narrow[0].dtype).removeprefix('torch.')}", inputs)

    def _use_own(self, problem: str, inputs: Inputs) -> None:
        self.wide, self.in_float64, self.problem, self._latest = self.own, False, problem, []
        self.truth(inputs)

    @property
    def truth_dtype(self) -> torch.dtype:
        """Precision in which the truth is computed."""
        return torch.float64 if self.in_float64 else self.dtype

    def truth(self, inputs: Inputs) -> Any:
        """Outputs of the reference, in float64 where it can; the latest few are remembered, since runs are slow."""
        for known, found in self._latest:
            if known is inputs:
                return found
        found = run.outputs(self.wide, inputs, self.truth_dtype)
        self._latest = [(inputs, found), *self._latest[: _REMEMBERED - 1]]
        return found

    def noise(self, inputs: Inputs, truth: Any) -> list[float]:
        """Relative rounding error of the reference in its own precision, one per leaf of its output.

        Parameters
        ----------
        inputs : Inputs
            Values that the reference's own precision can hold, see `representable`.
        truth : Any
            What `truth` gives for them.

        Returns
        -------
        list of float
            Finite: 0 for a leaf that overflows in the reference's own precision, 16 rounding steps where the reference
            cannot run in it at all (an operator without a half precision kernel).
        """
        try:
            if self.in_float64:
                found = run.outputs(self.own, inputs, self.dtype)
            else:
                found = run.outputs(self.own, _one_step_away(inputs, self.dtype), self.dtype)
        except run.FailedRunError:
            return [16 * torch.finfo(self.dtype).eps] * len(measure.flatten(truth))
        errors = [difference.error for difference in measure.differences(truth, found)]
        return [error if math.isfinite(error) else 0.0 for error in errors]

    def response(self, inputs: Inputs) -> list[float]:
        """How far the truth moves, relative to its scale, when every input moves by one float64 rounding step."""
        moved = self.truth(_one_step_away(inputs.to(dtype=torch.float64), torch.float64))
        errors = [difference.error for difference in measure.differences(self.truth(inputs), moved)]
        return [error if math.isfinite(error) else 0.0 for error in errors]

    def gradient_response(self, inputs: Inputs, weights: list[Tensor]) -> float:
        """How far the input gradients move when every input moves by one float64 rounding step."""
        moved = _one_step_away(inputs.to(dtype=torch.float64), torch.float64)
        before, after = self.gradients(inputs, weights), self.gradients(moved, weights)
        if before is None or after is None:
            return 0.0
        errors = [difference.error for difference in measure.differences(before, after)]
        return max((error for error in errors if math.isfinite(error)), default=0.0)

    def gradients(self, inputs: Inputs, weights: list[Tensor], wide: bool = True) -> list[Tensor] | None:
        """Input gradients of the truth, or of the reference in its own precision; see `run.input_gradients`."""
        if wide:
            return run.input_gradients(self.wide, inputs, self.truth_dtype, weights)
        return run.input_gradients(self.own, inputs, self.dtype, weights)

    def nondeterminism(self, inputs: Inputs) -> str:
        """Where two runs on the same input differ by more than the order of a sum can explain; empty where not."""
        first, second = self.truth(inputs), run.outputs(self.wide, inputs, self.truth_dtype)
        if measure.first_nonfinite(first) or measure.first_nonfinite(second):
            return ""
        difference = measure.compare(first, second)
        # A thousandth of a float32 step in float64; some steps in a precision of its own.
        limit = 1e-10 if self.in_float64 else 64 * torch.finfo(self.dtype).eps
        return difference.mismatch or (difference.where if difference.error > limit else "")


def _has_narrow(model: nn.Module) -> bool:
    tensors = (*model.parameters(), *model.buffers())
    return any(t.is_floating_point() and t.dtype != torch.float64 for t in tensors)


def representable(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Round float64 inputs to what a precision can hold, so that feeding them in it costs nothing more."""
    return inputs.to(dtype=dtype).to(dtype=torch.float64)


def _one_step_away(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def move(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) * 2 - 1
        return tensor * (1 + torch.finfo(dtype).eps * signs)

    return inputs.map(move)


def _floating_input_dtype(inputs: Inputs) -> torch.dtype:
    return next((t.dtype for t in inputs.tensors() if t.is_floating_point()), torch.float32)
