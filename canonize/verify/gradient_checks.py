"""Do two models have the same input gradients? What gradient-based explainers see of a function."""

from __future__ import annotations

import contextlib
import math
import statistics

import torch
from torch import Tensor

from canonize.inputs import Inputs
from canonize.report.record import Check
from canonize.twins.twin import device_of
from canonize.verify import measure, regimes, run
from canonize.verify.candidate import Candidate, declined
from canonize.verify.environment import rounding_step
from canonize.verify.judge import EXACT_TOLERANCE, LOOSEST_EXACT, exact_tolerance
from canonize.verify.oracle import Oracle, representable

_FACTOR = 8.0
_FLOOR_STEPS = 16.0


def gradient_checks(oracle: Oracle, candidate: Candidate, feed: regimes.Draw, draws: int) -> list[Check | str]:
    """Compare the gradient of a fixed random projection of all floating outputs, on normal inputs, in float64.

    With exact weights one draw decides, at 1e-10 of the gradient's scale. With rounded weights a unit that happens to
    sit on its kink falls on another side in either model and moves the gradient by far more than rounding does, so
    the smallest error of several draws is held against what the reference's own precision does to its gradient in the
    median draw. A wrong gradient is wrong in every draw; a wrong output is the business of the other checks.

    Parameters
    ----------
    oracle : Oracle
    candidate : Candidate
    feed : Feed
        Says shapes and seed.
    draws : int
        With rounded weights.

    Returns
    -------
    list of Check or str
        Notes where there is nothing to compare.
    """
    if not any(t.is_floating_point() for t in feed.inputs.tensors()):
        return ["input gradients were not compared: no floating input"]
    if not oracle.in_float64 or candidate.dtype != torch.float64:
        return ["input gradients were not compared: they need both models in float64"]
    normal = [feed.normal(draw) for draw in range(1 if candidate.tight else draws)]
    try:
        if measure.first_nonfinite(oracle.truth(normal[0].inputs)):
            normal = [feed.examples()]
    except run.FailedRunError as error:
        return [f"input gradients were not compared: the reference refuses normal inputs ({error})"]
    try:
        return [_exact(oracle, candidate, normal[0]) if candidate.tight else _rounded(oracle, candidate, normal)]
    except run.FailedRunError as error:
        return [f"input gradients were not compared: the candidate refuses '{normal[0].name}' ({error})"]


def ask_for_gradients(oracle: Oracle, feed: regimes.Draw, candidate: Candidate | None = None) -> None:
    """Have the reference, or the candidate, asked for what `gradient_checks` asks of it first.

    Both remember it, and the outputs that come with it: they need not be run on that case again.
    """
    exact = oracle.in_float64 and (candidate is None or candidate.tight)
    if exact and any(t.is_floating_point() for t in feed.inputs.tensors()):
        with contextlib.suppress(run.FailedRunError):
            inputs = feed.normal(0).inputs
            if not measure.first_nonfinite(oracle.truth(inputs)):
                (candidate or oracle).gradients(inputs, _weights(oracle, inputs))


def _exact(oracle: Oracle, candidate: Candidate, case: regimes.CheckedCase) -> Check | str:
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
        if difference.error <= LOOSEST_EXACT:  # otherwise no response would be excuse enough
            tolerance = exact_tolerance(oracle.gradient_response(case.inputs, weights))
        if difference.error > tolerance and _slope_is_the_candidates(oracle, candidate, case.inputs, weights):
            return _wrong_derivative(case, difference)
    return _check(case.name, difference.error, tolerance, detail)


def _wrong_derivative(case: regimes.CheckedCase, difference: measure.Difference) -> str:
    return (
        f"input gradients on '{case.name}': automatic differentiation of the reference is wrong there, by "
        f"{difference.error:.3g} of the scale; its finite differences agree with the candidate's gradient"
    )


def _slope_is_the_candidates(oracle: Oracle, candidate: Candidate, inputs: Inputs, weights: list[Tensor]) -> bool:
    """Whether the reference's own slope, along the direction in which the two gradients differ, is the candidate's.

    Torch's derivative of an operator can be wrong (that of an eval BatchNorm of one row, for a transposed gradient, in
    torch 2.13): what the function does decides, and along every other direction the two gradients agree.
    """
    truth, answer = oracle.gradients(inputs, weights), candidate.gradients(inputs, weights)
    if truth is None or answer is None:
        return False
    apart = [a - b for a, b in zip(truth, answer, strict=True)]
    length = math.sqrt(sum(float((d * d).sum()) for d in apart))
    floating = [t for t in inputs.tensors() if t.is_floating_point()]
    scale = max(1.0, *(float(t.abs().max()) for t in floating if t.numel()))
    ours = sum(float((a * d).sum()) for a, d in zip(truth, apart, strict=True)) / length
    theirs = sum(float((a * d).sum()) for a, d in zip(answer, apart, strict=True)) / length
    # A kink within the step bends a slope; rounding drowns it where the step is small.
    slopes = (_slope(oracle, inputs, weights, apart, length, step * scale) for step in (1e-6, 1e-7, 1e-5))
    return any(abs(theirs - slope) < 1e-3 * abs(ours - theirs) for slope in slopes)


def _slope(
    oracle: Oracle, inputs: Inputs, weights: list[Tensor], apart: list[Tensor], length: float, step: float
) -> float:
    """The reference's slope along a direction, from two outputs."""
    ends = []
    for sign in (1, -1):
        moves = iter([sign * step / length * d for d in apart])
        moved = inputs.map(lambda t, moves=moves: t + next(moves).to(t) if t.is_floating_point() else t)  # type: ignore[misc]
        outputs = measure.floating(run.outputs(oracle.wide, moved, torch.float64))
        ends.append(sum(float((w * y).real.sum()) for w, y in zip(weights, outputs, strict=True)))
    return (ends[0] - ends[1]) / (2 * step)


def _rounded(oracle: Oracle, candidate: Candidate, cases: list[regimes.CheckedCase]) -> Check | str:
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
        step = rounding_step(coarsest, device_of(candidate.model))
        tolerance = _FACTOR * statistics.median(noises) + _FLOOR_STEPS * step
        if least.error <= tolerance:  # more draws only find less
            break
    if least.error > tolerance and not least.mismatch:
        fed = representable(cases[found.index(least)].inputs, coarsest)
        if _slope_is_the_candidates(oracle, candidate, fed, _weights(oracle, fed)):
            return _wrong_derivative(cases[0], least)
    detail = least.mismatch or f"largest at {least.where}; weights rounded: the least of {len(found)} draws"
    return _check(cases[0].name, least.error, tolerance, detail)


def _against(truth: list[Tensor], candidate: Candidate, inputs: Inputs, weights: list[Tensor]) -> measure.Difference:
    try:
        answer = candidate.gradients(inputs, weights)
    except run.FailedRunError as error:
        if declined(error):
            raise
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
