"""Do two models have the same input gradients? What gradient-based explainers see of a function."""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor

from canonize.inputs import Inputs
from canonize.report import Check
from canonize.verify import measure, regimes, run
from canonize.verify.candidate import Candidate
from canonize.verify.judge import EXACT_TOLERANCE, exact_tolerance
from canonize.verify.oracle import Oracle, representable

_FACTOR = 8.0
_FLOOR_STEPS = 16.0


def gradient_checks(oracle: Oracle, candidate: Candidate, inputs: Inputs, seed: int, draws: int) -> list[Check | str]:
    """Compare the gradient of a fixed random projection of all floating outputs, on normal inputs, in float64.

    With exact weights one draw decides, at 1e-10 of the gradient's scale. With rounded weights a unit that happens to
    sit on its kink falls on another side in either model and moves the gradient by far more than rounding does, so
    the smallest error of several draws is held against what the reference's own precision does to its gradient in the
    median draw. A wrong gradient is wrong in every draw; a wrong output is the business of the other checks.

    Parameters
    ----------
    oracle : Oracle
    candidate : Candidate
    inputs : Inputs
        Say shapes.
    seed : int
    draws : int
        With rounded weights.

    Returns
    -------
    list of Check or str
        Notes where there is nothing to compare.
    """
    if not any(t.is_floating_point() for t in inputs.tensors()):
        return ["input gradients were not compared: no floating input"]
    if not oracle.in_float64 or candidate.dtype != torch.float64:
        return ["input gradients were not compared: they need both models in float64"]
    batch = "" if inputs.batch_size is None else f", batch {inputs.batch_size}"
    normal = [regimes.normal(inputs, seed + 10 + draw, f"normal{batch}") for draw in range(draws)]
    try:
        if measure.first_nonfinite(oracle.truth(normal[0].inputs)):
            normal = [regimes.Case(f"examples{batch}", inputs.to(dtype=torch.float64), "examples")]
    except run.FailedRunError as error:
        return [f"input gradients were not compared: the reference refuses normal inputs ({error})"]
    return [_exact(oracle, candidate, normal[0]) if candidate.tight else _rounded(oracle, candidate, normal)]


def _exact(oracle: Oracle, candidate: Candidate, case: regimes.Case) -> Check | str:
    try:
        weights = _weights(oracle, case.inputs)
        truth = oracle.gradients(case.inputs, weights)
    except run.FailedRunError as error:
        return f"input gradients were not compared: the reference has none ({error})"
    if truth is None or measure.first_nonfinite(truth):
        return "input gradients were not compared: the reference has none that is finite"
    difference = _against(truth, candidate, case.inputs, weights)
    detail = difference.mismatch or f"largest at {difference.where}"
    tolerance = EXACT_TOLERANCE
    if difference.error > tolerance and not difference.mismatch:
        tolerance = exact_tolerance(oracle.gradient_response(case.inputs, weights))
    return _check(case.name, difference.error, tolerance, detail)


def _rounded(oracle: Oracle, candidate: Candidate, cases: list[regimes.Case]) -> Check | str:
    coarsest = max((oracle.dtype, candidate.own_dtype), key=lambda dtype: torch.finfo(dtype).eps)
    found: list[measure.Difference] = []
    noises: list[float] = []
    for case in cases:
        inputs = representable(case.inputs, coarsest)
        try:
            weights = _weights(oracle, inputs)
            truth = oracle.gradients(inputs, weights)
            own = oracle.gradients(inputs, weights, wide=False)
        except run.FailedRunError as error:
            return f"input gradients were not compared: the reference has none ({error})"
        if truth is None or own is None or measure.first_nonfinite(truth):
            return "input gradients were not compared: the reference has none that is finite"
        noise = measure.compare(truth, own).error
        noises.append(noise if math.isfinite(noise) else 0.0)
        found.append(_against(truth, candidate, inputs, weights))
    least = min(found, key=lambda difference: difference.error)
    tolerance = _FACTOR * statistics.median(noises) + _FLOOR_STEPS * torch.finfo(coarsest).eps
    detail = least.mismatch or f"largest at {least.where}; weights rounded: the least of {len(cases)} draws"
    return _check(cases[0].name, least.error, tolerance, detail)


def _against(truth: list[Tensor], candidate: Candidate, inputs: Inputs, weights: list[Tensor]) -> measure.Difference:
    try:
        answer = candidate.gradients(inputs, weights)
    except run.FailedRunError as error:
        return measure.Difference(math.inf, mismatch=f"the candidate's gradient fails: {error}")
    if answer is None:
        answer = [torch.zeros_like(gradient) for gradient in truth]
    return measure.compare(truth, answer, "gradient")


def _weights(oracle: Oracle, inputs: Inputs) -> list[Tensor]:
    """Random weights, each over its output's scale, so that a large output does not drown a small one."""
    generator = torch.Generator().manual_seed(0)
    weights = []
    for output in measure.floating(oracle.truth(inputs)):
        scale = float(output.abs().max()) if output.numel() else 0.0
        drawn = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        weights.append((drawn / scale if 0 < scale < math.inf else drawn).to(output.device))
    return weights


def _check(name: str, error: float, tolerance: float, detail: str) -> Check:
    return Check(name, "input gradient", "float64", error, tolerance, error <= tolerance, detail)
