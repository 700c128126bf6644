"""From a failed verdict to a layer, and for a canonical model to the rewrite that made it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from canonize.errors import CanonizeError, first_line
from canonize.forms import chosen_forms
from canonize.inputs import Inputs
from canonize.inputs.infer import dtype_and_device
from canonize.pipeline import Options, rewritten
from canonize.report import Report
from canonize.report.record import Check, Divergence, Rewrite
from canonize.twins.twin import float64_twin
from canonize.verify import measure, run
from canonize.verify.candidate import Candidate
from canonize.verify.judge import EXACT_TOLERANCE
from canonize.verify.oracle import Oracle
from canonize.verify.where import locate
from canonize.verify.where.locate import LayerComparison, Reference, Side

_NOBODY = "both models agree in every layer that they share: the difference is made behind the last of them"


@dataclass(frozen=True)
class FailedCheck:
    """A check that failed, with what it was made on, and the inputs that the user gave."""

    check: Check
    inputs: Inputs
    candidate: Candidate
    examples: Inputs


def find_divergence(
    model: nn.Module, other: nn.Module, oracle: Oracle, failure: FailedCheck, dump: Path | None = None
) -> Divergence | None:
    """Name the first layer in which two models differ.

    The candidate's layers are compared with the reference's of the same name, and, where they do not explain it, with
    those of the reference in canonical form: a folded layer gives what its BatchNorm gave.

    Parameters
    ----------
    model, other : nn.Module
        As the user has them.
    oracle : Oracle
        Of `model`.
    failure : Failure
        A failed check of outputs or gradients.
    dump : Path, optional
        Folder for the input and both models' activations at that layer.

    Returns
    -------
    Divergence or None
        None where the models cannot be looked into (TorchScript).
    """
    candidate = Side(failure.candidate.model, failure.candidate.dtype)
    case, inputs = failure.check.name, failure.inputs
    try:
        if _raises(candidate, inputs):
            name = locate.failing_layer(candidate, inputs)
            kind = type(candidate.model.get_submodule(name)).__name__ if name else ""
            return Divergence(name, kind, error=float("inf"), case=case, reference="nothing: it raises")
        plain = _original(oracle, failure.candidate)
        found, used = locate.compare_layers(plain, candidate, inputs), plain
        rewrites: list[Rewrite] = []
        graph: fx.Graph | None = None
        if _is_rewritten(other, found):
            canonical = _canonical(model, other, failure.examples, failure.candidate)
            if canonical is not None:
                compared = locate.compare_layers(canonical.reference, candidate, inputs)
                if compared.agreeing() >= found.agreeing():
                    found, used = compared, canonical.reference
                    rewrites, graph = canonical.report.rewrites, canonical.graph
        outcome = locate.describe(found, used.name, case)
        if rewrites and graph is not None:
            made = _makers(outcome.layer, rewrites, graph) if outcome.layer else ""
            if not outcome.layer:
                made = _guilty_rewrite(model, other, oracle, failure)
            outcome = replace(outcome, rewrite=made)
        if dump is not None:
            _write(dump, outcome, used.truth, candidate, inputs)
        return outcome
    except (run.FailedRunError, RuntimeError, AttributeError, NotImplementedError) as error:
        return Divergence("", case=case, reference=f"nothing: the layers cannot be looked into ({first_line(error)})")


def _original(oracle: Oracle, candidate: Candidate) -> Reference:
    own = None if candidate.tight else Side(oracle.own, oracle.dtype)
    return Reference("the reference", Side(oracle.wide, oracle.truth_dtype), own, _eps(candidate, oracle.dtype))


def _eps(candidate: Candidate, dtype: torch.dtype) -> float:
    coarsest = max((dtype, candidate.own_dtype), key=lambda d: torch.finfo(d).eps)
    return locate.exact_side_eps(candidate.tight, coarsest)


def _raises(side: Side, inputs: Inputs) -> bool:
    try:
        run.outputs(side.model, inputs, side.dtype)
    except run.FailedRunError:
        return True
    return False


def _is_rewritten(other: nn.Module, found: LayerComparison) -> bool:
    """Whether the two have other layers, or some of the candidate's differ and yet are put right behind."""
    if isinstance(getattr(other, "report", None), Report) or found.missing or len(found.ratio) < len(found.layers):
        return True
    guilty = found.first_divergent()
    before = found.ratio if guilty is None else {n: r for n, r in found.ratio.items() if n < guilty}
    return any(ratio > 16 for ratio in before.values())


@dataclass(frozen=True)
class _Canonical:
    reference: Reference
    report: Report
    graph: fx.Graph


def _settings(other: nn.Module) -> tuple[str, Options]:
    """Tracer and options that a canonical model was made with, the defaults where it does not say."""
    report = getattr(other, "report", None)
    if not isinstance(report, Report):
        return "symbolic_trace", Options()
    return report.captured_by, Options(report.strategy, tuple(report.skip), chosen_forms(report.forms))


def _canonical(model: nn.Module, other: nn.Module, examples: Inputs, candidate: Candidate) -> _Canonical | None:
    """The canonical form of the reference, to compare with another one layer by layer."""
    tracer, options = _settings(other)
    with contextlib.suppress(CanonizeError, RuntimeError):
        network, report = rewritten(model, examples.to(dtype=_dtype(model)), tracer, options)
        # Rounded like the candidate's weights: what still differs is no rounding.
        built = network.build()
        truth = Side(network.build(torch.float64) if candidate.tight else float64_twin(built), torch.float64)
        own = None if candidate.tight else Side(built, network.dtype)
        eps = _eps(candidate, network.dtype)
        return _Canonical(Reference("the reference's canonical form", truth, own, eps), report, network.graph)
    return None


def _dtype(model: nn.Module) -> torch.dtype:

    return dtype_and_device(model)[0]


def _makers(layer: str, rewrites: list[Rewrite], graph: fx.Graph) -> str:
    """Which rewrites made a layer of a canonical model what it is."""
    made = [r for r in rewrites if layer == r.anchor or layer in r.into]
    if not made:  # an activation or a padding on the way into a layer that a rewrite names
        node = next((n for n in graph.nodes if n.op == "call_module" and n.target == layer), None)
        readers = {str(user.target) for user in node.users} if node is not None else set()
        made = [r for r in rewrites if readers & set(r.into) and r.detail]
    if not made:
        return "no rewrite touched this layer"
    told = ", ".join(f"{r.pattern} ({r.anchor})" for r in made[:3])
    return f"made by {told}" + (f" and {len(made) - 3} more" if len(made) > 3 else "")


def _guilty_rewrite(model: nn.Module, other: nn.Module, oracle: Oracle, failure: FailedCheck) -> str:
    """The first of a model's rewrites after which it computes something else, by bisection."""
    tracer, options = _settings(other)
    truth = oracle.truth(failure.inputs)
    examples = failure.examples.to(dtype=_dtype(model))

    def wrong_after(count: int) -> tuple[bool, Rewrite | None]:
        network, report = rewritten(model, examples, tracer, options, limit=count)
        answer = run.outputs(network.build(torch.float64), failure.inputs, torch.float64)
        error = measure.compare(truth, answer).error
        return error > 100 * EXACT_TOLERANCE, report.rewrites[-1] if report.rewrites else None

    _, report = rewritten(model, examples, tracer, options)
    return _bisected(len(report.rewrites), wrong_after)


def _bisected(total: int, wrong_after: Callable[[int], tuple[bool, Rewrite | None]]) -> str:
    if not wrong_after(total)[0]:
        return ""
    if wrong_after(0)[0]:
        return "wrong before any rewrite: the capture saw another function"
    good, bad = 0, total
    while bad - good > 1:
        middle = (good + bad) // 2
        if wrong_after(middle)[0]:
            bad = middle
        else:
            good = middle
    guilty = wrong_after(bad)[1]
    return f"the rewrite that went wrong: {guilty.pattern} ({guilty.anchor}), number {bad} of {total}" if guilty else ""


def _write(folder: Path, found: Divergence, truth: Side, candidate: Side, inputs: Inputs) -> None:
    """The input, and what both models give at the layer (at the output, where no layer is named)."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save((inputs.args, inputs.kwargs) if inputs.kwargs else inputs.args, folder / "inputs.pt")
    sides: dict[str, Any] = {"reference": truth, "candidate": candidate}
    for name, side in sides.items():
        torch.save(locate.activation(side, inputs, found.layer, found.call), folder / f"{name}.pt")
