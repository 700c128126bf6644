"""What the reference says: its outputs free of rounding, and how much rounding its own precision brings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from canonize.inputs import Inputs
from canonize.twins.torchscript import narrow_cast
from canonize.twins.twin import eval_twin, float64_twin, floating_dtype, let_go
from canonize.verify import measure, run

# Runs of a reference are slow, outputs are small: what one verdict asks for again is remembered.
_REMEMBERED = 48


class Memory:
    """The latest answers of a model, by the very inputs that were given."""

    def __init__(self) -> None:
        self._known: list[tuple[Inputs, Any]] = []

    def recall(self, inputs: Inputs, ask: Callable[[], Any]) -> Any:
        """What ``ask`` gave for these inputs, or gives now."""
        for known, found in self._known:
            if known is inputs:
                return found
        found = ask()
        self._known = [(inputs, found), *self._known[: _REMEMBERED - 1]]
        return found


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
        self._model = model
        self.own = eval_twin(model)
        self._wide: nn.Module | None = None if _has_narrow(model) else self.own
        self.in_float64, self.problem = True, ""
        self._truths, self._seconds, self._slopes, self._owns = Memory(), Memory(), Memory(), Memory()
        cast = narrow_cast(model) if isinstance(model, torch.jit.ScriptModule) else ""
        if cast and self.dtype != torch.float64:
            self._use_own(f"its TorchScript computes in {cast} whatever it is fed", inputs)
            return
        try:
            found = self.truth(inputs)
        except run.FailedRunError as error:
            self._use_own(str(error), inputs)
        else:
            narrow = [t for t in measure.floating(found) if t.dtype not in (torch.float64, torch.complex128)]
            if narrow and self.dtype != torch.float64:
                self._use_own(f"an output stays {str(narrow[0].dtype).removeprefix('torch.')}", inputs)

    def _use_own(self, problem: str, inputs: Inputs) -> None:
        self._wide, self.in_float64, self.problem, self._truths = self.own, False, problem, Memory()
        self.truth(inputs)

    @property
    def wide(self) -> nn.Module:
        """What gives the truth: the reference in float64 where it can be; made when it is asked for."""
        if self._wide is None:
            self._wide = float64_twin(self._model)
        return self._wide

    def rest(self) -> None:
        """Let go of the float64 weights until something is asked that has not been answered."""
        if self._wide is not None and self._wide is not self.own:
            let_go(self._wide)
            self._wide = None

    @property
    def truth_dtype(self) -> torch.dtype:
        """Precision in which the truth is computed."""
        return torch.float64 if self.in_float64 else self.dtype

    def truth(self, inputs: Inputs) -> Any:
        """Outputs of the reference, in float64 where it can; remembered for the same `Inputs`."""
        return self._truths.recall(inputs, lambda: run.outputs(self.wide, inputs, self.truth_dtype))

    def own_outputs(self, inputs: Inputs) -> Any:
        """Outputs of the reference in its own precision; remembered likewise.

        Without a float64 truth it is run one rounding step away: the same run twice would know no noise.

        Raises
        ------
        FailedRunError
            If it cannot run in it (an operator without a half precision kernel).
        """

        def ask() -> Any:
            fed = inputs if self.in_float64 else _one_step_away(inputs, self.dtype)
            return run.outputs(self.own, fed, self.dtype)

        return self._owns.recall(inputs, ask)

    def noise(self, inputs: Inputs, truth: Any, row: int | None = None) -> list[float]:
        """Relative rounding error of the reference in its own precision, one per leaf of its output.

        Parameters
        ----------
        inputs : Inputs
            Values that the reference's own precision can hold, see `representable`.
        truth : Any
            What `truth` gives for them.
        row : int, optional
            Of this row alone.

        Returns
        -------
        list of float
            Finite: 0 for a leaf that overflows in the reference's own precision, 16 rounding steps where the reference
            cannot run in it at all.
        """
        try:
            found = self.own_outputs(inputs)
        except run.FailedRunError:
            return [16 * torch.finfo(self.dtype).eps] * len(measure.flatten(truth))
        errors = [difference.error for difference in measure.differences(truth, found, row=row)]
        return [error if math.isfinite(error) else 0.0 for error in errors]

    def response(self, inputs: Inputs, row: int | None = None) -> list[float]:
        """How far the truth moves, relative to its scale, when every input moves by one float64 rounding step."""
        moved = run.outputs(self.wide, _one_step_away(inputs.to(dtype=torch.float64), torch.float64), self.truth_dtype)
        errors = [difference.error for difference in measure.differences(self.truth(inputs), moved, row=row)]
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
        """Input gradients of the truth, or of the reference in its own precision; see `run.input_gradients`.

        Those of the truth are remembered for the same `Inputs`, which have the same weights.
        """
        if not wide:
            return run.input_gradients(self.own, inputs, self.dtype, weights).gradients

        def ask() -> run.Slopes:
            return run.input_gradients(self.wide, inputs, self.truth_dtype, weights)

        slopes: run.Slopes = self._slopes.recall(inputs, ask)
        self._seconds.recall(inputs, lambda: slopes.outputs)
        return slopes.gradients

    def takes(self, inputs: Inputs) -> bool:
        """Whether it runs on these inputs and answers with finite numbers."""
        try:
            return measure.first_nonfinite(self.truth(inputs)) is None
        except run.FailedRunError:
            return False

    def nondeterminism(self, inputs: Inputs) -> str:
        """Where two runs on the same input differ by more than the order of a sum can explain; empty where not.

        The forward for `gradients` is the second run where there was one.
        """
        first = self.truth(inputs)
        second = self._seconds.recall(inputs, lambda: run.outputs(self.wide, inputs, self.truth_dtype))
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
    """Round inputs to what a precision can hold, and give them in float64: being fed in it then costs nothing.

    Inputs that need no rounding are given back as they are, so that answers to them are still remembered.
    """
    rounded = inputs.to(dtype=dtype).to(dtype=torch.float64)
    pairs = zip(inputs.tensors(), rounded.tensors(), strict=True)
    return inputs if all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs) else rounded


def _one_step_away(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def move(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) * 2 - 1
        step = torch.finfo(dtype).eps * signs
        return torch.where(tensor == 0, step, tensor * (1 + step))

    return inputs.map(move)


def _floating_input_dtype(inputs: Inputs) -> torch.dtype:
    return next((t.dtype for t in inputs.tensors() if t.is_floating_point()), torch.float32)
