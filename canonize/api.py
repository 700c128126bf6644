"""The library call: a model in, its canonical form out."""

from __future__ import annotations

import contextlib
import gc
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import fx, nn

from canonize.capture import capture
from canonize.errors import CanonizeError, CaptureError, InputError, NotEquivalentError, RewriteError, StatefulError
from canonize.form import findings
from canonize.forms import Form, chosen_forms
from canonize.inputs import Inputs, infer, normalise
from canonize.modules import named_modules
from canonize.network import Network
from canonize.normalize import normalize
from canonize.patterns import catalogue
from canonize.report import AffineFate, Report, Verdict
from canonize.rewrite import Progress, rewrite
from canonize.torchscript import class_name

if TYPE_CHECKING:
    from canonize.verify.paranoid import Watch

Strategy = Literal["threshold", "untangle"]


@dataclass(frozen=True)
class Wishes:
    """How the canonical form is to look, where there is a choice."""

    strategy: str = "threshold"
    skip: tuple[str, ...] = ()
    forms: tuple[Form, ...] = ()


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
) -> fx.GraphModule:
    r"""Rewrite a model into a canonical form that computes the same function.

    Parameters
    ----------
    model : nn.Module
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
    fx.GraphModule
        In eval mode. Its ``report`` attribute (:class:`canonize.report.Report`) says what happened to what.

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
    _check_arguments(model, strategy, skip)
    wanted = chosen_forms(forms)
    inputs = infer(model) if example_inputs is None else normalise(example_inputs)
    tell = progress or (lambda stage, done, total: None)
    # Layers that are made on the way draw initial weights; nobody's random numbers may depend on that.
    with torch.random.fork_rng(devices=[]):
        wishes = Wishes(strategy, tuple(skip), wanted)
        built, report = _captured_and_rewritten(model, inputs, wishes, verify, paranoid, tell)
        return _finish(built, report, copy)


def _captured_and_rewritten(
    model: nn.Module, inputs: Inputs, wishes: Wishes, verify: bool, paranoid: bool, tell: Progress
) -> tuple[fx.GraphModule, Report]:
    """Try the tracers in turn, until what one has seen is rewritten and proven."""
    failure: CanonizeError | None = None
    for tracer in ("symbolic_trace", "torch.export"):
        try:
            tell("capture", 0, 1)
            with _collector_at_rest():
                network, report = rewritten(model, inputs, tracer, wishes, tell, paranoid=paranoid)
                built = network.build(spend=not verify)
            if verify:
                report.verdict = _prove(model, network, built, inputs, tell)
            return built, report
        except Exception as error:
            # A trace can silently take another branch than the model does. Only torch.export's word is final.
            told = error if isinstance(error, CanonizeError) else _unexpected(model, error)
            if tracer == "torch.export" or isinstance(error, InputError):
                raise _more_telling(failure, told) from (None if told is error else error)
            failure = told
    raise AssertionError("unreachable")


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
    return second


def _check_arguments(model: nn.Module, strategy: str, skip: Sequence[str]) -> None:
    if not isinstance(model, nn.Module):
        raise CanonizeError(
            f"canonize needs an nn.Module, not {type(model).__name__}", hint="Load a file with canonize.load(path)"
        )
    parameters = ((path, name, p) for path, part in named_modules(model) for name, p in part._parameters.items())
    unreal = next(
        (f"{path}.{name}".strip(".") for path, name, p in parameters if p is not None and p.is_complex()), None
    )
    if unreal is not None:
        raise CanonizeError("its weights are complex", unreal, "The algebra is that of real numbers; rules are, too")
    if strategy not in ("threshold", "untangle"):
        raise CanonizeError(f"there is no strategy {strategy!r}", hint="Choose 'threshold' or 'untangle'")
    known = {pattern.name for pattern in catalogue()}
    unknown = [name for name in skip if name not in known]
    if unknown:
        raise CanonizeError(f"there is no pattern {unknown[0]!r} to skip", hint=f"Patterns: {', '.join(sorted(known))}")


def rewritten(
    model: nn.Module,
    inputs: Inputs,
    tracer: str,
    wishes: Wishes,
    tell: Progress | None = None,
    limit: int | None = None,
    paranoid: bool = False,
) -> tuple[Network, Report]:
    """Capture, normalize and rewrite, with one tracer and without proof; at most ``limit`` rewrites."""
    tell = tell or (lambda stage, done, total: None)
    with _collector_at_rest():
        captured = capture(model, inputs, tracer)
        network = normalize(captured, inputs, class_name(model))
        tell("capture", 1, 1)
        watch = _watch(network) if paranoid else None
        watching = watch.check if watch is not None else None
        journal = rewrite(network, wishes.strategy, wishes.skip, tell, wishes.forms, limit, watching)
    if watch is not None:
        network.notes.append(watch.note())
    report = Report(
        model=class_name(model),
        strategy=wishes.strategy,
        captured_by=captured.tracer,
        inputs=inputs.describe(),
        affines=[
            *journal.fates(),
            *(AffineFate(o.name, o.kind, "left", reason=why) for o, why in network.unread.items()),
        ],
        rewrites=journal.rewrites,
        refusals=journal.refusals,
        notes=list(network.notes),
        versions=_versions(),
    )
    report.names = _name_map(model, network)
    return network, report


@contextlib.contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Many small objects are made and none is garbage yet: passes of the collector over all of torch are in vain."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _watch(network: Network) -> Watch:
    from canonize.verify.paranoid import Watch

    return Watch(network)


def _versions() -> dict[str, str]:
    from canonize import __version__

    return {"canonize": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def _name_map(model: nn.Module, network: Network) -> dict[str, str | None]:
    """Old qualified name to new one; None where the layer is gone."""
    leaves = [name for name, module in named_modules(model) if name and not any(True for _ in module.children())]
    return {name: name if name in network.modules else None for name in leaves}


def _prove(model: nn.Module, network: Network, built: fx.GraphModule, inputs: Inputs, tell: Progress) -> Verdict:
    from canonize.verify import check_equivalence

    verdict: Verdict = check_equivalence(
        model, built, inputs, exact=lambda: network.build(torch.float64), thorough=False, progress=tell
    )
    if verdict.passed:
        return verdict
    if "not deterministic" in verdict.reason:
        hint = "Make its eval mode deterministic (a dropout that is always on, noise that is added), then canonize it."
        raise NotEquivalentError(verdict.reason, verdict, class_name(model), hint)
    raise NotEquivalentError(
        f"the canonical model does not compute what the model computes ({verdict.reason})",
        verdict,
        class_name(model),
        "Please report this model: canonize writes nothing that it cannot prove.",
    )


def _finish(built: fx.GraphModule, report: Report, copy: bool) -> fx.GraphModule:
    if copy:
        _detach(built)
    report.findings = findings(built, report)
    attach_report(built, report)
    return built


def _detach(built: fx.GraphModule) -> None:
    """Give a model tensors of its own."""
    for module in built.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.detach().clone()


def attach_report(module: fx.GraphModule, report: Report) -> None:
    """Make ``module.report``, so that it survives copying and saving."""
    module.report = report  # type: ignore[assignment]
    module.meta["_user_preserved_attributes"] = {"report": report}


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
    from canonize.form import inspect_module

    inputs = infer(model) if example_inputs is None else normalise(example_inputs)
    return inspect_module(model, inputs, _versions())
