"""The library call: a model in, its canonical form out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from canonize.canonical import findings, inspect_module
from canonize.errors import (
    CanonizeError,
    CaptureError,
    ConformanceError,
    InputError,
    NotEquivalentError,
    RewriteError,
    StatefulError,
    StatisticsError,
    cuts_in,
)
from canonize.forms import chosen_forms
from canonize.graph.model import CanonicalModel, with_report
from canonize.graph.network import Network
from canonize.inputs import Inputs, infer, normalise
from canonize.loading.pt2_archive import as_module
from canonize.patterns import catalogue
from canonize.pipeline import Options, rewritten, versions
from canonize.report import Proof, Report, Unproven, Verdict
from canonize.rewrite.journal import Progress
from canonize.twins.module_tree import class_name, named_modules, nan_in
from canonize.verify import check_equivalence
from canonize.verify.certificate import certificate_of, check, hash_of
from canonize.verify.paranoid import RewriteCheck

Strategy = Literal["threshold", "untangle"]


def canonize(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    strategy: Strategy = "threshold",
    skip: Sequence[str] = (),
    forms: Sequence[str] = (),
    copy: bool = False,
    verify: bool = True,
    paranoid: bool = False,
    progress: Progress | None = None,
) -> CanonicalModel:
    r"""Rewrite a model into a canonical form that computes the same function.

    Parameters
    ----------
    model : nn.Module or torch.export.ExportedProgram
        Any device and floating dtype. It is never changed: the result describes what it computes in eval mode.
    example_inputs : Tensor, tuple, dict or Inputs, optional
        One tensor, the positional arguments, or ``(args, kwargs)``. Shapes are read from it; batch size, and image
        size where the model allows, stay free. By default the shape is inferred from the model.
    strategy : {"threshold", "untangle"}
        What happens to a BatchNorm whose producer is shared, as in a DenseNet: move it behind the ReLU, which gets a
        threshold per channel; or copy the producer.
    skip : sequence of str
        Patterns not to use, by name (``canonize patterns`` lists them).
    forms : sequence of str
        Other ways to write some layers, by name: ``"dense_as_convolution"``, ``"plain_pooling"``,
        ``"batch_norm_as_convolution"``, ``"open_attention"`` (see :mod:`canonize.forms`). All are exact.
    copy : bool
        Detach the result: by default parameters that no rewrite touched are shared with ``model``.
    verify : bool
        Prove the result numerically against ``model``, in float64 and in the model's own precision.
    paranoid : bool
        Also check each rewrite alone, on the part of the graph that it changed, in float64.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    CanonicalModel
        An ``fx.GraphModule``, in eval mode. Its ``report`` (:class:`canonize.report.Report`) says what became of what.

    Raises
    ------
    CaptureError
        If the model cannot be turned into a graph without losing a part of it.
    InputError
        If no example inputs fit.
    NotEquivalentError
        If the result does not compute what the model computes; nothing is returned then.

    Notes
    -----
    The algebra is that of Pahde et al. 2023 (arXiv 2211.17174), Eqs. 2 to 8; see ``docs/algebra.md``.
    """
    model, example_inputs = as_module(model, example_inputs)
    _check_arguments(model, strategy, skip)
    wanted = chosen_forms(forms)
    with torch.inference_mode(False):  # what is made in inference mode could never be explained
        inputs = _ordinary(infer(model) if example_inputs is None else normalise(example_inputs))
        tell = progress or (lambda stage, done, total: None)
        options = Options(strategy, tuple(skip), wanted)
        built, report = _captured_and_rewritten(model, inputs, options, verify, paranoid, tell)
        return _finish(built, report, copy, inputs)


def _captured_and_rewritten(
    model: nn.Module, inputs: Inputs, options: Options, verify: bool, paranoid: bool, tell: Progress
) -> tuple[CanonicalModel, Report]:
    """Try the tracers in turn, until what one has seen is rewritten and proven."""
    watcher = RewriteCheck if paranoid else None
    failure: CanonizeError | None = None
    for tracer in ("symbolic_trace", "torch.export"):
        try:
            tell("capture", 0, 1)
            network, report = rewritten(model, inputs, tracer, options, tell, watcher=watcher)
            built = network.build(spend=not verify)
            if verify:
                report.verdict = _prove(model, network, built, inputs, tell)
                report.proof, report.certificate = _certify(model, network, built, inputs, report)
            return built, report
        except Exception as error:
            if cuts_in(error):
                raise
            # A trace can silently take another branch than the model does. Only torch.export's word is final.
            told = error if isinstance(error, CanonizeError) else _unexpected(model, error)
            if tracer == "torch.export" or isinstance(error, InputError | StatisticsError):
                raise _more_telling(failure, told) from (None if told is error else error)
            failure = told
    raise AssertionError("unreachable")


def _certify(
    model: nn.Module, network: Network, built: fx.GraphModule, inputs: Inputs, report: Report
) -> tuple[Proof, str]:
    """Prove the rewrites for all inputs, as far as rules are known; and what an auditor needs to do it again."""
    assert network.before is not None
    settings = {
        "tracer": report.captured_by,
        "strategy": report.strategy,
        "skip": report.skip,
        "forms": report.forms,
        "sizes": [[list(t.shape), str(t.dtype).removeprefix("torch.")] for t in inputs.tensors()],
    }
    try:
        hashes = {"original": hash_of(model), "canonical": hash_of(built)}
        certificate = certificate_of(network.before, network, built, settings, hashes)
        return check(network.before, built, certificate), certificate.to_json()
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:  # the verdict stands without it
        reason = f"the checker stumbles ({type(error).__name__}: {str(error)[:80]})"
        return Proof(False, unproven=(Unproven(report.model, reason),)), ""


def _unexpected(model: nn.Module, error: Exception) -> RewriteError:
    """What to say when canonize itself stumbles: never a bare traceback, always a refusal."""
    lines = str(error).strip().splitlines() or [""]
    return RewriteError(
        f"canonize could not rewrite it ({type(error).__name__}: {lines[0]})",
        class_name(model),
        "Please report this model; nothing was changed.",
    )


def _more_telling(first: CanonizeError | None, second: CanonizeError) -> CanonizeError:
    """Of two failures, the one that says more: an inequivalence of the first tracer hides behind a refused second."""
    if isinstance(first, NotEquivalentError | StatefulError) and isinstance(second, CaptureError):
        return first
    if isinstance(first, ConformanceError) and isinstance(second, ConformanceError):
        return first  # it names the line
    return second


def _check_arguments(model: nn.Module, strategy: str, skip: Sequence[str]) -> None:
    if not isinstance(model, nn.Module):
        raise CanonizeError(
            f"canonize needs an nn.Module, not {type(model).__name__}", hint="Load a file with canonize.load(path)"
        )
    held = list(_tensors(model))
    unreal = next((name for name, tensor in held if tensor.is_complex() and isinstance(tensor, nn.Parameter)), None)
    if unreal is not None:
        raise CanonizeError("its weights are complex", unreal, "The algebra is that of real numbers; rules are, too")
    empty = next((name for name, tensor in held if tensor.is_meta), None)
    if empty is not None:
        raise CanonizeError(
            "it is on the meta device, which holds no values", empty, "Make it on a real device and load its weights."
        )
    if strategy not in ("threshold", "untangle"):
        raise CanonizeError(f"there is no strategy {strategy!r}", hint="Choose 'threshold' or 'untangle'")
    known = {pattern.name for pattern in catalogue()}
    unknown = [name for name in skip if name not in known]
    if unknown:
        raise CanonizeError(f"there is no pattern {unknown[0]!r} to skip", hint=f"Patterns: {', '.join(sorted(known))}")


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a model, by qualified name."""
    for path, part in named_modules(model):
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}".strip("."), tensor


def _ordinary(inputs: Inputs) -> Inputs:
    """Inputs that gradients can be taken of: tensors that were made in inference mode are copied."""
    return inputs.map(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)


def _prove(model: nn.Module, network: Network, built: fx.GraphModule, inputs: Inputs, tell: Progress) -> Verdict:
    verdict: Verdict = check_equivalence(
        model, built, inputs, exact=lambda: network.build(torch.float64), thorough=False, progress=tell
    )
    if verdict.passed:
        return verdict
    if "not deterministic" in verdict.reason:
        hint = "Make its eval mode deterministic (a dropout that is always on, noise that is added), then canonize it."
        raise NotEquivalentError(verdict.reason, verdict, class_name(model), hint)
    undefined = nan_in(model)
    if undefined is not None:
        name, count, total = undefined
        hint = "The training diverged, or the file is damaged; verify=False takes the model as it is."
        raise NotEquivalentError(
            f"nothing can be proven of it: {count} of {total} numbers are NaN",
            verdict,
            name,
            hint,
        )
    raise NotEquivalentError(
        f"the canonical model does not compute what the model computes ({verdict.reason})",
        verdict,
        class_name(model),
        "Please report this model: canonize writes nothing that it cannot prove.",
    )


def _finish(built: CanonicalModel, report: Report, copy: bool, inputs: Inputs) -> CanonicalModel:
    if copy:
        _detach(built)
    report.findings = findings(built, report, inputs)
    return with_report(built, report, inputs.outline())


def _detach(built: fx.GraphModule) -> None:
    """Give a model tensors of its own."""
    for module in built.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.detach().clone()


def inspect(model: nn.Module, example_inputs: Any = None) -> Report:
    """What is not canonical in a model, where, and why it matters; nothing is rewritten.

    Parameters
    ----------
    model : nn.Module
        Never changed.
    example_inputs : Tensor, tuple, dict or Inputs, optional
        As for :func:`canonize`.

    Returns
    -------
    Report
        With ``findings`` filled; ``report.canonical`` says whether there are any.
    """
    model, example_inputs = as_module(model, example_inputs)
    with torch.inference_mode(False):
        inputs = _ordinary(infer(model) if example_inputs is None else normalise(example_inputs))
        return inspect_module(model, inputs, versions())
