"""Are two models the same function? In float64 to the last digits, in their own precision as well as it allows."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from canonize.errors import InputError, NotEquivalentError
from canonize.inputs import Inputs, infer, normalise
from canonize.report import Verdict
from canonize.report.record import Check
from canonize.twins.twin import device_of, floating_dtype, let_go
from canonize.verify import regimes, run
from canonize.verify.candidate import Candidate
from canonize.verify.environment import environment
from canonize.verify.gradient_checks import ask_for_gradients, gradient_checks
from canonize.verify.judge import Judge, failure
from canonize.verify.oracle import Oracle, representable
from canonize.verify.thresholds import straddle
from canonize.verify.usage import usage_check
from canonize.verify.weight_checks import weight_check
from canonize.verify.where.blame import FailedCheck, find_divergence

# Of normal inputs, to learn how noisy a model with few outputs is in its own precision.
_DRAWS = 4
# Relative noise of a reference in float32 from which on a comparison in it is worth little.
_LITTLE = 1e-2
# Of the examples, in a quick verdict.
_QUICK_ROWS = 2

Progress = Callable[[str, int, int], None]


def check_equivalence(
    model: nn.Module,
    other: nn.Module,
    example_inputs: Any = None,
    *,
    exact: nn.Module | Callable[[], nn.Module] | None = None,
    seed: int = 0,
    batch_sizes: Sequence[int] = (1, 3),
    precision: Literal["float64", "working"] | None = None,
    gradients: bool = True,
    thorough: bool = True,
    progress: Progress | None = None,
    locate: bool = True,
    dump: str | os.PathLike[str] | None = None,
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
    exact : nn.Module or callable, optional
        `other` with float64 weights that were never rounded to a narrower precision. Each weight of `other` must be
        the rounded one of `exact`. A function makes it when it is needed: the reference's float64 weights have been
        let go of by then, so that a large model is held in float64 once at a time; what it makes is used up.
    seed : int
        Of the random inputs.
    batch_sizes : sequence of int
        Tried beside the examples' own.
    precision : {"float64", "working"}, optional
        Ask only one of the first two questions.
    gradients : bool
        Whether to compare input gradients.
    thorough : bool
        Without it the first two examples, a small row, and three regimes as rows of one small batch: what
        `canonize.canonize` asks for, at little more than one forward in float64 and one in the model's own precision.
    progress : callable, optional
        Called as ``progress("verify", done, total)``.
    locate : bool
        Whether to name the first layer that differs, where the two are not equivalent.
    dump : path, optional
        Folder for the input and the two activations at that layer.

    Returns
    -------
    Verdict
        With every comparison; what could not be compared is in its notes.

    Raises
    ------
    InputError
        If `model` does not run on the example inputs.
    """
    tell = progress or (lambda stage, done, total: None)
    with run.undisturbed(device_of(model)):
        inputs = infer(model) if example_inputs is None else normalise(example_inputs)
        coarsest = _coarsest(model, other, inputs)
        inputs = representable(inputs, coarsest)
        given, variable = inputs, thorough or any(size != inputs.batch_size for size in batch_sizes)
        inputs = inputs if thorough or not variable else _few(inputs)
        try:
            oracle, narrow = _both(model, other, inputs)
            if inputs is not given and narrow.declines(inputs):
                raise InputError("made for another batch size")
        except InputError:
            if inputs is given:
                raise
            inputs = given
            oracle, narrow = _both(model, other, inputs)
        feed = _feed(oracle, narrow, inputs, seed, coarsest, variable)
        feed = _with_least(feed, oracle, narrow) if thorough else feed
        cases = list(regimes.cases(feed, batch_sizes) if thorough else regimes.quick_cases(feed, batch_sizes))
        if gradients:
            ask_for_gradients(oracle, feed)
        normal = feed.normal(0).inputs
        place = oracle.nondeterminism(normal if oracle.takes(normal) else inputs)
        if place:
            reason = f"the model itself is not deterministic in eval mode: {place} changes between runs"
            return Verdict(False, (), reason, environment=environment(model))
        spend = False
        if exact is not None and not isinstance(exact, nn.Module):
            _ask(oracle, cases)
            oracle.rest()
            exact, spend = exact(), True
        if precision == "working":
            candidate = narrow
        else:
            candidate = Candidate(other, exact, oracle, inputs, spend=spend)
            if gradients:
                ask_for_gradients(oracle, feed, candidate)
        outcomes: list[Check | str] = []
        failures: list[FailedCheck] = []

        def note(found: list[Check | str], fed: Inputs, by: Candidate) -> None:
            outcomes.extend(found)
            failures.extend(FailedCheck(c, fed, by, inputs) for c in found if isinstance(c, Check) and not c.passed)

        judge = Judge(oracle, candidate)
        judge.learn_noise(_noise_cases(cases, feed))
        for done, case in enumerate(cases):
            tell("verify", done, len(cases) + 2)
            note(judge.judge(case), case.inputs, candidate)
        if gradients and any(isinstance(outcome, Check) for outcome in outcomes):
            found = gradient_checks(oracle, candidate, feed, draws=5 if thorough else 3)
            note(found, feed.normal(0).inputs, candidate)
        if thorough:
            for fed in _straddling(oracle, candidate, feed, outcomes):
                note(judge.judge(fed), fed.inputs, candidate)
        tell("verify", len(cases) + 1, len(cases) + 2)
        if precision is None and candidate.wide_enough:
            proven = exact is not None and all(o.passed for o in outcomes if isinstance(o, Check))
            judge = Judge(oracle, narrow, proven)
            noisy = list(_noise_cases(cases, feed))
            for case in cases[: 2 if thorough else 1]:
                note(_judge_in_noise(judge, case, noisy, first=thorough), case.inputs, narrow)
            if judge.largest_noise > _LITTLE and narrow.own_dtype == torch.float32:
                outcomes.append(
                    f"in float32 the reference itself is off by {judge.largest_noise:.2g} of its scale: comparing in "
                    "float32 says little"
                )
        if thorough and outcomes:
            outcomes.append(usage_check(model, other, feed.normal(0).inputs, (oracle.dtype, narrow.own_dtype)))
        if exact is not None and outcomes:
            outcomes.append(weight_check(other, exact) or "weights were not compared: exact holds others")
        checks = [outcome for outcome in outcomes if isinstance(outcome, Check)]
        notes = [*candidate.notes, *(outcome for outcome in outcomes if isinstance(outcome, str) and outcome)]
        tell("verify", len(cases) + 2, len(cases) + 2)
        verdict = _verdict(checks, notes, candidate, inputs, environment(model))
        if failures and (locate or dump is not None):
            worst = min(failures, key=_telling)
            divergence = find_divergence(model, other, oracle, worst, None if dump is None else Path(dump))
            verdict = dataclasses.replace(verdict, divergence=divergence)
        if spend:
            let_go(candidate.model)
        return verdict


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
        With the verdict's report as its message, and as data in its ``verdict``.
    InputError
        If `model` does not run on the example inputs.
    """
    verdict = check_equivalence(model, other, example_inputs, **options)
    if not verdict.passed:
        raise NotEquivalentError(f"the two models do not compute the same function\n{verdict}", verdict)
    return verdict


def _judge_in_noise(
    judge: Judge, case: regimes.CheckedCase, noisy: list[regimes.CheckedCase], first: bool
) -> list[Check | str]:
    """Compare in a narrow precision, with noise learned on other cases: first, or where the case has too little."""
    if first:
        judge.learn_noise(noisy)
    found = judge.judge(case)
    if not first and not all(isinstance(check, Check) and check.passed for check in found):
        judge.learn_noise(noisy)
        found = judge.judge(case)
    return found


def _both(model: nn.Module, other: nn.Module, inputs: Inputs) -> tuple[Oracle, Candidate]:
    """The reference, and the candidate in its own precision.

    Which is cheap, and says what sizes the candidate was made for; and it is needed for the second verdict.
    """
    try:
        oracle = Oracle(model, inputs)
    except run.FailedRunError as error:
        raise InputError(
            f"the reference model does not run on the example inputs ({inputs.describe()}): {error}",
            hint="Pass example_inputs that fit it: a tensor, a tuple, or (args, kwargs)",
            shell="Give --input a shape that fits it, once for each input, or --inputs a file of real ones",
        ) from error
    return oracle, Candidate(other, None, oracle, inputs, narrow=True)


def _ask(oracle: Oracle, cases: list[regimes.CheckedCase]) -> None:
    """Have the reference asked for every case, so that it is remembered."""
    for case in cases:
        with contextlib.suppress(run.FailedRunError):
            oracle.truth(case.inputs)


def _straddling(
    oracle: Oracle, candidate: Candidate, feed: regimes.Draw, outcomes: list[Check | str]
) -> list[regimes.CheckedCase]:
    """Cases on both sides of every threshold of either model, and a note of how many were reached."""
    cases = []
    sides = (("candidate", candidate.model, candidate.dtype), ("reference", oracle.wide, oracle.truth_dtype))
    for name, model, dtype in sides:
        found, crossing = straddle(model, feed.normal(0).inputs, dtype)
        cases += [feed.case(f"thresholds of the {name}, step {i + 1}", x, "thresholds") for i, x in enumerate(found)]
        if crossing.total:
            outcomes.append(f"thresholds of the {name}: {crossing.crossed} of {crossing.total} crossed both ways")
    return cases


def _telling(failure: FailedCheck) -> tuple[bool, bool, bool, float]:
    """Failures in the order in which they tell where the models part: outputs, in float64, by how far they are off."""
    check = failure.check
    # Of layers that give NaN none is the first that differs; beside a row of huge values a small one is lost.
    mixed = "a row of" in check.name
    return mixed, check.quantity != "output", check.precision != "float64", -check.error / check.tolerance


def _few(inputs: Inputs) -> Inputs:
    """The first rows, enough for a quick verdict."""
    fewer = inputs.with_batch(_QUICK_ROWS) if (inputs.batch_size or 0) > _QUICK_ROWS else None
    return inputs if fewer is None else fewer


def _coarsest(model: nn.Module, other: nn.Module, inputs: Inputs) -> torch.dtype:
    """The coarser of the two models' precisions: what it can hold both can be fed."""
    given = next((t.dtype for t in inputs.tensors() if t.is_floating_point()), torch.float32)
    dtypes = [floating_dtype(model) or given, floating_dtype(other) or given]
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _feed(
    oracle: Oracle, candidate: Candidate, inputs: Inputs, seed: int, dtype: torch.dtype, variable: bool
) -> regimes.Draw:
    """Decide how few and how small rows the two models can be fed.

    Fewer and smaller rows are a matter of cost alone: models that are made for one size are fed that size.
    """
    few = inputs.with_batch(1) if variable and (inputs.batch_size or 1) > 1 else None
    for rows in (few, inputs):
        small = None if rows is None else regimes.shrink(rows)
        if small is not None:
            feed = regimes.Draw(inputs, small, small, True, seed, dtype)
            trial = feed.normal(0).inputs
            if oracle.takes(trial) and not candidate.declines(trial):
                return feed
    if few is not None:
        feed = regimes.Draw(inputs, few, few, False, seed, dtype)
        trial = feed.normal(0).inputs  # asked for again; where it is no value for the model, the example's row may be
        if (oracle.takes(trial) or oracle.takes(few)) and not candidate.declines(trial):
            return feed
    return regimes.Draw(inputs, inputs, inputs, False, seed, dtype)


def _with_least(feed: regimes.Draw, oracle: Oracle, candidate: Candidate) -> regimes.Draw:
    """The same feed, its smallest rows smaller where both models take that."""
    rows = feed.rows.with_batch(1) or feed.rows
    small = regimes.halve(rows)
    if small is None or not oracle.takes(small) or candidate.declines(small):
        return dataclasses.replace(feed, least=rows)
    return dataclasses.replace(feed, least=small)


def _noise_cases(cases: list[regimes.CheckedCase], feed: regimes.Draw) -> Iterator[regimes.CheckedCase]:
    """What noise is learned from: what is run anyway, then more normal draws for outputs of few elements."""
    yield from (case for case in cases if case.regime == "normal")
    for draw in range(_DRAWS):
        yield feed.normal(draw)


def _verdict(
    checks: list[Check], notes: list[str], candidate: Candidate, inputs: Inputs, environment: dict[str, str]
) -> Verdict:
    failed = [check for check in checks if not check.passed]
    # Where every input of the first question said nothing (NaN, a jump), no other check stands in for its answer.
    precision = str(candidate.dtype).removeprefix("torch.")
    answered = any(check.quantity == "output" and check.precision == precision for check in checks)
    verdict = Verdict(answered and not failed, tuple(checks), "", tuple(notes), environment=environment)
    if verdict.passed:
        return verdict
    if not failed:
        reason = f"nothing could be compared: {'; '.join(notes)}"
    else:
        worst = verdict.worst()
        reason = failure(worst) if worst is not None else ""
        if candidate.nondeterministic(inputs):
            reason += "; the candidate is not deterministic in eval mode (active dropout?)"
    return dataclasses.replace(verdict, reason=reason)
