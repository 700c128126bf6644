"""The model under test, in the precision it can be compared in."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from canonize.capture.captured import GUARD
from canonize.inputs import Inputs
from canonize.twins.twin import eval_twin, float64_twin, floating_dtype
from canonize.twins.writes import has_own_parameters
from canonize.verify import measure, run
from canonize.verify.environment import rounding_step
from canonize.verify.oracle import Memory, Oracle

# Draws of the signs with which weights are moved by one rounding step.
_STEP_DRAWS = 3
# How an exported program begins its complaint about a size that it was not exported for.
_EXPORTED = "Guard failed"


class Candidate:
    """A candidate, ready to be run.

    Parameters
    ----------
    other : nn.Module
        The candidate as the user has it. Never changed.
    exact : nn.Module or None
        Its float64 twin with weights that were never rounded.
    oracle : Oracle
    inputs : Inputs
        Example inputs, to see whether it runs in float64.
    narrow : bool
        Compare in the candidate's own precision even where float64 is possible.
    spend : bool
        Whether `exact` was made for this and may be run itself.

    Attributes
    ----------
    dtype : torch.dtype
        Precision in which it is run.
    tight : bool
        Whether nothing but float64 rounding stands between it and the reference.
    notes : list of str
        Why a wider comparison was not possible.
    """

    def __init__(
        self,
        other: nn.Module,
        exact: nn.Module | None,
        oracle: Oracle,
        inputs: Inputs,
        *,
        narrow: bool = False,
        spend: bool = False,
    ) -> None:
        self.own_dtype = floating_dtype(other) or oracle.dtype
        self.notes: list[str] = []
        self._known, self._slopes, self._steps = Memory(), Memory(), Memory()
        self._other = other
        # A runtime's kernels may drop NaN (a maximum with 0); torch's do not.
        self.passes_nan_on = not isinstance(getattr(other, "own_dtype", None), torch.dtype)
        self.dtype, self.tight = torch.float64, oracle.in_float64
        if narrow or not oracle.in_float64:
            if not oracle.in_float64:
                self.notes.append(f"the reference has no float64 verdict: {oracle.problem}")
            self._use_own(other)
            return
        source = other if exact is None else exact
        already_wide = not _has_narrow(source)
        if already_wide and spend and exact is not None:
            self.model = exact
            has_own_parameters(exact)
        else:
            self.model = eval_twin(source) if already_wide else float64_twin(source)
        self.tight = already_wide
        self._fall_back_where_needed(other, exact, inputs)

    def _use_own(self, other: nn.Module) -> None:
        self.model, self._known = eval_twin(other), Memory()
        self.dtype = self.own_dtype
        self.tight = self.dtype == torch.float64 and self.tight

    def _fall_back_where_needed(self, other: nn.Module, exact: nn.Module | None, inputs: Inputs) -> None:
        """Some candidates run in their own precision only: a runtime session, a compiled graph."""
        try:
            found = measure.floating(self.run(inputs))
        except run.FailedRunError as error:
            problem = str(error)
            if exact is not None or self.own_dtype == torch.float64 or not _runs(other, inputs, self.own_dtype):
                return  # a failure of the candidate itself: each case will say so
            self.notes.append(f"the candidate has no float64 verdict: {problem}")
            self._use_own(other)
            return
        narrow = [t for t in found if t.dtype not in (torch.float64, torch.complex128)]
        if narrow:
            self.tight = False
            self.own_dtype = narrow[0].dtype if self.own_dtype == torch.float64 else self.own_dtype
            self.notes.append(
                f"the candidate answers in {measure.dtype_name(narrow[0].dtype)} even when asked in float64"
            )

    @property
    def wide_enough(self) -> bool:
        """Whether it was compared in float64 and has another precision of its own to be checked in."""
        return self.dtype == torch.float64 and self.own_dtype != torch.float64

    def run(self, inputs: Inputs) -> Any:
        """Outputs in `dtype`, remembered for the same `Inputs`; see `run.outputs`."""
        return self._known.recall(inputs, lambda: run.outputs(self.model, inputs, self.dtype))

    def declines(self, inputs: Inputs) -> bool:
        """Whether it says of itself that it was made for other sizes."""
        try:
            self.run(inputs)
        except run.FailedRunError as error:
            return declined(error)
        return False

    def sensitivity(self, inputs: Inputs, row: int | None = None) -> list[float]:
        """How far each output moves, relative to its scale, when every weight moves by one step of its own precision.

        The largest of a few draws of the steps' signs.

        Weights that were rounded once leave a model that much in the dark about the exact function. In a narrow
        precision the two runs also round differently on the way, so that their difference holds that noise too; a fault
        that either run has is in both, and not in their difference.
        """
        if isinstance(self._other, torch.jit.ScriptModule) or self.own_dtype == torch.float64:
            return []  # its tensors cannot be exchanged, or have not been rounded
        try:
            still, *moved = self._steps.recall(inputs, lambda: self._with_steps(inputs))
        except run.FailedRunError:
            return []
        draws = [[d.error for d in measure.differences(still, other, row=row)] for other in moved]
        return [max((e for e in errors if math.isfinite(e)), default=0.0) for errors in zip(*draws, strict=True)]

    def _with_steps(self, inputs: Inputs) -> list[Any]:
        """Outputs of the model as it is, then with its weights moved, a draw each."""
        model = self.model if self.dtype != torch.float64 else float64_twin(self._other)
        moved = (_one_step_away(model, self._other, draw) for draw in range(_STEP_DRAWS))
        return [run.outputs(m, inputs, self.dtype) for m in (model, *moved)]

    def gradients(self, inputs: Inputs, weights: list[Tensor]) -> list[Tensor] | None:
        """Input gradients in `dtype`, remembered for the same `Inputs`; see `run.input_gradients`."""

        def ask() -> run.Slopes:
            return run.input_gradients(self.model, inputs, self.dtype, weights)

        slopes: run.Slopes = self._slopes.recall(inputs, ask)
        self._known.recall(inputs, lambda: slopes.outputs)
        return slopes.gradients

    def nondeterministic(self, inputs: Inputs) -> bool:
        """Whether two runs on the same input differ."""
        try:
            first, second = self.run(inputs), run.outputs(self.model, inputs, self.dtype)
        except run.FailedRunError:
            return False
        if measure.first_nonfinite(first):
            return False
        return measure.compare(first, second).error > 64 * torch.finfo(self.dtype).eps


def declined(error: run.FailedRunError) -> bool:
    """Whether a model says that it was made for other sizes: a canonical one, an exported program, a session."""
    return GUARD in str(error) or _EXPORTED in str(error)


def _one_step_away(model: nn.Module, narrow: nn.Module, seed: int) -> nn.Module:
    """A copy of a twin whose tensors are each one rounding step of the original's precision away."""
    moved = eval_twin(model)
    generator = torch.Generator().manual_seed(seed)
    own = {name: t.dtype for name, t in (*narrow.named_parameters(), *narrow.named_buffers())}
    with torch.no_grad():
        for name, tensor in [*moved.named_parameters(), *moved.named_buffers()]:
            if tensor.is_floating_point() and own.get(name, torch.float64) != torch.float64:
                signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.device) * 2 - 1
                away = tensor.double() * (1 + rounding_step(own[name], tensor.device) * signs)
                # Not in place: twins share their parameters with the model.
                _set(moved, name, away.to(tensor.dtype))
    return moved


def _set(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    table = module._parameters if last in module._parameters else module._buffers
    table[last] = nn.Parameter(value, requires_grad=False) if table is module._parameters else value  # type: ignore[assignment]


def _has_narrow(model: nn.Module) -> bool:
    return any(t.is_floating_point() and t.dtype != torch.float64 for t in (*model.parameters(), *model.buffers()))


def _runs(model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> bool:
    try:
        run.outputs(eval_twin(model), inputs, dtype)
    except run.FailedRunError:
        return False
    return True
