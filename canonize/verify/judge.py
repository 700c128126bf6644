"""One comparison: what the candidate gives against the truth, with the tolerance that its precision earns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from canonize.inputs import Inputs
from canonize.report.record import Check, OutputError
from canonize.twins.twin import device_of
from canonize.verify import measure, run
from canonize.verify.candidate import Candidate, declined
from canonize.verify.environment import rounding_step
from canonize.verify.measure import Difference
from canonize.verify.oracle import Oracle, representable
from canonize.verify.regimes import CheckedCase

# Of an output's scale. Float64 carries 16 digits: this leaves six for the reordering of sums.
EXACT_TOLERANCE = 1e-10
# Ill-conditioned models: so many times their response to one rounding step of the input, and never more than this.
_RESPONSE_FACTOR, LOOSEST_EXACT = 64.0, 1e-7
# Where the reference jumps, a candidate that rounds otherwise may land on the other side, and hardly further off.
_JUMP_FACTOR = 4.0
# In its own precision the candidate may be this much further from the truth than the reference's own rounding takes
# the reference, plus these many rounding steps for the few outputs on which the reference happens to round well.
_NOISE_FACTOR, _FLOOR_STEPS = 4.0, 8.0
# Where float64 has proven the function, and each weight to be rounded once, only noise is left to look at: a threshold
# leaves a rounding step of W s z + W t where a rectifier gives zero, several times the reference's noise in a DenseNet.
_PROVEN_NOISE_FACTOR = 16.0
# In float64 with rounded weights less: only the weights were rounded, no value on the way was.
_ROUNDED_FACTOR, _ROUNDED_STEPS = 3.0, 3.0
# A candidate whose rounded weights cost it more than this many times what is allowed otherwise computes less exactly
# than the reference: it has moved something into a narrower precision.
_MOST_SENSITIVE = 8.0
# Share of integer outputs (an argmax, say) that may differ where values are rounded: near ties fall either way.
_COUNTED_FLOOR = 1e-3
# Draws are looked at until this many output elements were seen.
_ENOUGH_ELEMENTS = 512


def exact_tolerance(response: float) -> float:
    """The float64 tolerance of a reference that moves by ``response`` when its input moves by one rounding step."""
    return max(EXACT_TOLERANCE, min(_RESPONSE_FACTOR * response, LOOSEST_EXACT))


class Judge:
    """Compares a candidate with the oracle, case by case.

    Parameters
    ----------
    oracle : Oracle
    candidate : Candidate
    proven : bool
        Whether its function has been compared in float64 with weights that were never rounded.
    """

    def __init__(self, oracle: Oracle, candidate: Candidate, proven: bool = False) -> None:
        self.proven = proven
        self.oracle = oracle
        self.candidate = candidate
        self._normal_noise: list[float] = []
        self.largest_noise = 0.0

    def learn_noise(self, cases: Iterable[CheckedCase]) -> None:
        """See how far the reference's own precision takes it on normal inputs, for outputs of few elements.

        The largest error of a handful of elements says little: by luck they may all round well.
        """
        if self.candidate.tight:
            return
        seen = 0
        for case in cases:
            inputs = representable(case.inputs, self._coarsest())
            try:
                truth = self.oracle.truth(inputs)
            except run.FailedRunError:
                return  # judging this case will say so
            seen += sum(t.numel() for t in measure.floating(truth))
            if measure.first_nonfinite(truth) is None:
                self._remember(self.oracle.noise(inputs, truth))
            if seen >= _ENOUGH_ELEMENTS:
                return

    def _remember(self, noise: list[float]) -> None:
        before = self._normal_noise or noise
        self._normal_noise = [max(pair) for pair in zip(before, noise, strict=True)]

    def judge(self, case: CheckedCase) -> list[Check | str]:
        """Compare on one case.

        Parameters
        ----------
        case : Case

        Returns
        -------
        list of Check or str
            One entry; for a case whose rows stand for regimes one for each. A note where the reference has nothing to
            say; empty where that was to be expected.
        """
        inputs = case.inputs if self.candidate.tight else representable(case.inputs, self._coarsest())
        try:
            truth = self.oracle.truth(inputs)
        except run.FailedRunError as error:
            return [f"'{case.name}' was not compared: the reference refuses it ({error})" if case.required else ""]
        rows = list(enumerate(case.rows)) if case.rows and measure.has_rows(truth, len(case.rows)) else [(None, "")]
        finite = [(row, name) for row, name in rows if not self._nonfinite(truth, row)]
        broken = [(row, name) for row, name in rows if self._nonfinite(truth, row)]
        on_purpose = case.regime == "not finite"
        notes: list[Check | str] = [
            f"'{_name(case, name)}' says nothing: the reference gives {self._nonfinite(truth, row)}"
            for row, name in broken
            if not on_purpose
        ]
        if not finite or (on_purpose and not (broken and self.candidate.passes_nan_on)):
            return notes
        try:
            answer = self.candidate.run(inputs)
        except run.FailedRunError as error:
            if declined(error):
                return [*notes, f"'{case.name}' was not compared: the candidate refuses it ({error})"]
            return [*notes, self._failed(case.name, f"the candidate fails where the reference runs: {error}")]
        found = [self._judge_row(case, inputs, truth, answer, row, name) for row, name in finite]
        if on_purpose and _answers_its_input(truth, finite):
            found += [
                self._failed(_name(case, name), f"the candidate gives numbers only, the reference {given}")
                for row, name in broken
                if name == "NaN" and (given := _nothing_but(truth, row)) and not self._nonfinite(answer, row)
            ]
        return [*notes, *found]

    def _nonfinite(self, truth: Any, row: int | None) -> str | None:
        return measure.first_nonfinite(truth if row is None else measure.at_row(truth, row))

    def _judge_row(
        self, case: CheckedCase, inputs: Inputs, truth: Any, answer: Any, row: int | None, regime: str
    ) -> Check | str:
        name = _name(case, regime)
        differences = measure.differences(truth, answer, row=row)
        normal = (regime or case.regime) == "normal"
        noise: list[float] = []
        if not self.candidate.tight and (normal or not self._normal_noise):
            noise = self.oracle.noise(inputs, truth, row)
        self.largest_noise = max([self.largest_noise, *noise])
        if any(difference.mismatch for difference in differences):
            if self._overflows(inputs):
                return f"'{name}' says nothing in {self._precision()}: the reference overflows in it"
            return self._failed(name, next(d.mismatch for d in differences if d.mismatch))
        odd = self._dtype_mismatch(inputs, answer, truth)
        if odd:
            return self._failed(name, odd)
        if self.candidate.tight:
            responses = self._responses(inputs, differences, row)
            tolerances = [exact_tolerance(response) for response in responses]
            if _is_no_answer(differences, tolerances, responses):
                return (
                    f"'{name}' says nothing: the reference itself moves by {max(responses):.2g} of its scale when the "
                    "input moves by one rounding step"
                )
        else:
            if normal:
                self._remember(noise)
            # Zeros, say, may cost the reference no rounding at all: what normal inputs cost is allowed everywhere.
            tolerances = [self._tolerance(*pair) for pair in zip(differences, self._normal_noise or noise, strict=True)]
            if any(d.error > t for d, t in zip(differences, tolerances, strict=True)):
                # What this input costs the reference takes a run in its own precision: asked for where it matters.
                own = [
                    self._tolerance(*pair)
                    for pair in zip(differences, self.oracle.noise(inputs, truth, row), strict=True)
                ]
                tolerances = [max(pair) for pair in zip(tolerances, own, strict=True)]
            if any(d.error > t for d, t in zip(differences, tolerances, strict=True)):
                # Folded weights may respond to their one rounding more than the reference does to all of its own.
                steps = self._sensitivity(inputs, row, tolerances) or [0.0] * len(tolerances)
                tolerances = [max(pair) for pair in zip(tolerances, steps, strict=True)]
        return self._check(name, differences, tolerances)

    def _sensitivity(self, inputs: Inputs, row: int | None, allowed: list[float]) -> list[float]:
        if not self.oracle.in_float64:
            return []
        # In a half precision outputs respond to steps no longer linearly: a few draws are a rough guess.
        factor = 2.0 if torch.finfo(self.candidate.own_dtype).bits < 32 else 1.0
        most = [_MOST_SENSITIVE * value for value in allowed]
        found = [factor * value for value in self.candidate.sensitivity(inputs, row)]
        return [min(pair) for pair in zip(found, most, strict=True)] if found else []

    def _check(self, name: str, differences: list[Difference], tolerances: list[float]) -> Check:
        worst = max(range(len(differences)), key=lambda i: differences[i].error / tolerances[i])
        error, tolerance = differences[worst].error, tolerances[worst]
        detail = (f"largest at {differences[worst].where}" if error > 0 else "no difference") + self._why()
        why = self._why().removeprefix("; ")
        outputs = tuple(_output(d, t, why) for d, t in zip(differences, tolerances, strict=True))
        return Check(name, "output", self._precision(), error, tolerance, error <= tolerance, detail, outputs)

    def _responses(self, inputs: Inputs, differences: list[Difference], row: int | None) -> list[float]:
        """What one float64 rounding step of the input does to the reference.

        Only asked where 1e-10 is not reached: a model that divides by something close to zero, say, has no more
        digits than that to offer.
        """
        if all(difference.error <= EXACT_TOLERANCE for difference in differences):
            return [0.0] * len(differences)
        return self.oracle.response(inputs, row)

    def _tolerance(self, difference: Difference, noise: float) -> float:
        rounded = self.candidate.dtype == torch.float64
        noise_factor = _PROVEN_NOISE_FACTOR if self.proven else _NOISE_FACTOR
        factor, steps = (_ROUNDED_FACTOR, _ROUNDED_STEPS) if rounded else (noise_factor, _FLOOR_STEPS)
        floor = steps * rounding_step(self._coarsest(), device_of(self.candidate.model))
        if difference.counted:
            floor = max(floor, _COUNTED_FLOOR)
        return factor * noise + floor

    def _why(self) -> str:
        if self.candidate.tight:
            return ""
        if not self.oracle.in_float64:
            return "; tolerance from the reference's response to one rounding step, since float64 was not possible"
        if self.candidate.dtype == torch.float64:
            own = measure.dtype_name(self.candidate.own_dtype)
            return f"; weights rounded to {own}: tolerance from the reference's own noise"
        return "; against the float64 truth, tolerance from the reference's own noise"

    def _coarsest(self) -> torch.dtype:
        return max((self.oracle.dtype, self.candidate.own_dtype), key=lambda dtype: torch.finfo(dtype).eps)

    def _overflows(self, inputs: Any) -> bool:
        """Whether the reference, too, gives NaN or infinity in the precision that the candidate runs in."""
        if self.candidate.dtype == torch.float64 or self.candidate.dtype != self.oracle.dtype:
            return False
        try:
            own = self.oracle.own_outputs(inputs)
        except run.FailedRunError:
            return False
        return measure.first_nonfinite(own) is not None

    def _dtype_mismatch(self, inputs: Inputs, answer: Any, truth: Any) -> str:
        if self.candidate.dtype != self.oracle.dtype:
            return ""
        if not self.oracle.in_float64:
            return measure.dtype_mismatch(truth, answer)
        if self.oracle.dtype == torch.float64:
            return ""  # the dtypes that are named inside were read as float64: see `usage_check`
        try:
            return measure.dtype_mismatch(self.oracle.own_outputs(inputs), answer)
        except run.FailedRunError:
            return ""

    def _failed(self, name: str, detail: str) -> Check:
        tolerance = EXACT_TOLERANCE if self.candidate.tight else _FLOOR_STEPS * torch.finfo(self._coarsest()).eps
        output = OutputError("output", math.inf, tolerance, False, why=detail)
        return Check(name, "output", self._precision(), math.inf, tolerance, False, detail, (output,))

    def _precision(self) -> str:
        return measure.dtype_name(self.candidate.dtype)


def _is_no_answer(differences: list[Difference], tolerances: list[float], responses: list[float]) -> bool:
    """Whether the reference itself shows there, at a jump or in chaos, every difference that is too large."""
    beyond = [
        d.error <= _JUMP_FACTOR * response
        for d, tolerance, response in zip(differences, tolerances, responses, strict=True)
        if d.error > tolerance
    ]
    return bool(beyond) and all(beyond)


def _answers_its_input(truth: Any, finite: list[tuple[int | None, str]]) -> bool:
    """Whether rows of different input have different output: a constant function answers NaN with its constant."""
    rows = [measure.floating(measure.at_row(truth, row)) for row, _ in finite if row is not None]
    return len(rows) > 1 and any(not torch.equal(a, b) for a, b in zip(*rows[:2], strict=True))


def _nothing_but(truth: Any, row: int | None) -> str:
    """What a row of the reference holds, if not a single number."""
    found = measure.floating(measure.at_row(truth, row)) if row is not None else []
    hopeless = bool(found) and not any(bool(torch.isfinite(tensor).any()) for tensor in found)
    return str(measure.first_nonfinite(found)) if hopeless else ""


def failure(check: Check) -> str:
    """Why a check failed, as one sentence."""
    if not math.isfinite(check.error):
        return f"{check.detail} (on '{check.name}', {check.precision})"
    return (
        f"{check.quantity} differs by {check.error:.3g} of its scale on '{check.name}' in {check.precision}, "
        f"tolerance {check.tolerance:.3g}: {check.detail}"
    )


def _name(case: CheckedCase, regime: str) -> str:
    return f"{regime}, a row of {case.name}" if regime else case.name


def _output(difference: Difference, tolerance: float, why: str) -> OutputError:
    d = difference
    return OutputError(
        d.path, d.error, tolerance, d.error <= tolerance, d.largest, d.mean, d.scale, d.where,
        *d.values, d.allclose, d.histogram, d.top_k, why,
    )  # fmt: skip
