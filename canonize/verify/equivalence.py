"""Are two models the same function? In float64 to the last digits, in their own precision as well as it allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from canonize.errors import InputError, NotEquivalentError
from canonize.inputs import Inputs, infer, normalise
from canonize.report import Check, Verdict
from canonize.verify import regimes, run
from canonize.verify.candidate import Candidate
from canonize.verify.describe import describe
from canonize.verify.gradients import gradient_checks
from canonize.verify.judge import Judge, failure
from canonize.verify.oracle import Oracle
from canonize.verify.twin import device_of
from canonize.verify.weights import weight_check

# Of normal inputs, to learn how noisy a model with few outputs is in its own precision.
_DRAWS = 4


def check_equivalence(
    model: nn.Module,
    other: nn.Module,
    example_inputs: Any = None,
    *,
    exact: nn.Module | None = None,
    seed: int = 0,
    batch_sizes: Sequence[int] = (1, 3),
    precision: Literal["float64", "working"] | None = None,
    gradients: bool = True,
    thorough: bool = True,
) -> Verdict:
    """Compare two models on many inputs and say whether they are the same function in eval mode.

    Three questions are asked. *Float64*: with both in float64, do the outputs agree to 1e-10 of their scale, for
    every kind of values, batch size and image size that `model` takes? Where only rounded weights of `other` are at
    hand, its float64 error may reach what `model`'s own precision costs. *Working precision*: is `other` about as
    close to the float64 truth as `model` is itself? *Input gradients*: do explainers find the same function?

    Parameters
    ----------
    model : nn.Module
        The reference, best untraced. Never changed; copies are run, in eval mode.
    other : nn.Module
        The candidate. Never changed either.
    example_inputs : Tensor, tuple, (args, kwargs) or Inputs, optional
        Inferred from `model` where not given.
    exact : nn.Module, optional
        `other` with float64 weights that were never rounded to a narrower precision. Each weight of `other` must be
        the rounded one of `exact`.
    seed : int
        Of the random inputs.
    batch_sizes : sequence of int
        Tried beside the examples' own.
    precision : {"float64", "working"}, optional
        Ask only one of the first two questions.
    gradients : bool
        Whether to compare input gradients.
    thorough : bool
        Without it only normal values, the examples, and one other batch size.

    Returns
    -------
    Verdict
        With every comparison; what could not be compared is in its notes.

    Raises
    ------
    InputError
        If `model` does not run on the example inputs.
    """
    with run.undisturbed(device_of(model)):
        inputs = infer(model) if example_inputs is None else normalise(example_inputs)
        oracle = _oracle(model, inputs)
        place = oracle.nondeterminism(inputs)
        if place:
            reason = f"the model itself is not deterministic in eval mode: {place} changes between runs"
            return Verdict(False, (), reason)
        candidate = Candidate(other, exact, oracle, inputs, narrow=precision == "working")
        outcomes: list[Check | str] = []
        judge = Judge(oracle, candidate)
        judge.learn_noise(_draws(inputs, seed))
        single = _single_row(oracle, inputs)
        outcomes += [judge.judge(case) for case in regimes.cases(inputs, batch_sizes, seed, thorough, single)]
        if gradients and any(isinstance(outcome, Check) for outcome in outcomes):
            outcomes += gradient_checks(oracle, candidate, inputs, seed, draws=5 if thorough else 3)
        if precision is None and candidate.wide_enough:
            proven = exact is not None and all(o.passed for o in outcomes if isinstance(o, Check))
            judge = Judge(oracle, Candidate(other, None, oracle, inputs, narrow=True), proven)
            draws = _draws(inputs, seed)
            judge.learn_noise(draws)
            outcomes += [judge.judge(case) for case in draws[:2]]
        if exact is not None and outcomes:
            outcomes.append(weight_check(other, exact) or "weights were not compared: exact holds others")
        checks = [outcome for outcome in outcomes if isinstance(outcome, Check)]
        notes = [*candidate.notes, *(outcome for outcome in outcomes if isinstance(outcome, str) and outcome)]
        return _verdict(checks, notes, candidate, inputs)


def assert_equivalent(model: nn.Module, other: nn.Module, example_inputs: Any = None, **options: Any) -> Verdict:
    """Raise unless two models are the same function; for tests and CI.

    Parameters
    ----------
    model, other, example_inputs, **options
        As for `check_equivalence`.

    Returns
    -------
    Verdict
        The verdict, where it passed.

    Raises
    ------
    NotEquivalentError
        With the verdict in words, and as data in its ``verdict``.
    InputError
        If `model` does not run on the example inputs.
    """
    verdict = check_equivalence(model, other, example_inputs, **options)
    if not verdict.passed:
        raise NotEquivalentError(f"the two models do not compute the same function\n{describe(verdict)}", verdict)
    return verdict


def _oracle(model: nn.Module, inputs: Inputs) -> Oracle:
    try:
        return Oracle(model, inputs)
    except run.FailedRunError as error:
        raise InputError(
            f"the reference model does not run on the example inputs ({inputs.describe()}): {error}",
            hint="Pass example_inputs that fit it: a tensor, a tuple, or (args, kwargs)",
        ) from error


def _single_row(oracle: Oracle, inputs: Inputs) -> Inputs | None:
    """The example inputs with batch size 1, if the reference takes them and they are fewer."""
    single = inputs.with_batch(1)
    if single is None or (inputs.batch_size or 1) <= 1:
        return None
    try:
        oracle.truth(single)
    except run.FailedRunError:
        return None
    return single


def _draws(inputs: Inputs, seed: int) -> list[regimes.Case]:
    return [regimes.normal(inputs, seed + 1 + draw, f"normal, draw {draw + 1}") for draw in range(_DRAWS)]


def _verdict(checks: list[Check], notes: list[str], candidate: Candidate, inputs: Inputs) -> Verdict:
    failed = [check for check in checks if not check.passed]
    verdict = Verdict(bool(checks) and not failed, tuple(checks), "", tuple(notes))
    if verdict.passed:
        return verdict
    if not checks:
        reason = f"nothing could be compared: {'; '.join(notes)}"
    else:
        worst = verdict.worst()
        reason = failure(worst) if worst is not None else ""
        if candidate.nondeterministic(inputs):
            reason += "; the candidate is not deterministic in eval mode (active dropout?)"
    return Verdict(False, verdict.checks, reason, verdict.notes)
