"""Which tracer, and what to say when none can."""

from __future__ import annotations

import dataclasses
import re

from torch import nn

from canonize.capture.attributes import attributes_as_they_were
from canonize.capture.baking import bake_weights
from canonize.capture.captured import Captured
from canonize.capture.conformance import check_conformance, check_values
from canonize.capture.export_trace import export_at_fixed_sizes, export_trace
from canonize.capture.model_hooks import refuse_what_a_trace_would_drop
from canonize.capture.running import GuardedError
from canonize.capture.symbolic import symbolic_trace
from canonize.capture.unlifted import guard_fixed_sizes
from canonize.errors import CaptureError, ConformanceError, cuts_in, kind_and_line
from canonize.inputs import Inputs
from canonize.twins.copying import eval_copy
from canonize.twins.module_tree import class_name
from canonize.twins.writes import WriteError, writes_its_state

# How torch.export says what it cannot give back.
_FOREIGN = re.compile(r"Found <class '([^']+)'> in output")


def capture(model: nn.Module, inputs: Inputs, tracer: str | None = None) -> Captured:
    """Trace a model.

    Parameters
    ----------
    model : nn.Module
        Never changed.
    inputs : Inputs
        Example inputs; their names decide which arguments of ``forward`` become inputs of the graph.
    tracer : {"symbolic_trace", "torch.export"}, optional
        Use this one only. By default the first, and the second where the first fails.

    Raises
    ------
    CaptureError
        If neither can, or the model carries hooks.
    """
    refuse_what_a_trace_would_drop(model)
    failures: list[tuple[str, Exception]] = []
    for name, trace in (
        ("torch.fx", symbolic_trace),
        ("torch.fx", _with_whole_functions),
        ("torch.export", export_trace),
        ("torch.export", export_at_fixed_sizes),
    ):
        if trace is export_at_fixed_sizes and not (failures and isinstance(failures[-1][1].__cause__, GuardedError)):
            continue
        if tracer is not None and (tracer == "torch.export") != (name == "torch.export"):
            continue
        root = eval_copy(model)
        bake_weights(root)
        try:
            notes: list[str] = []
            with attributes_as_they_were(root, notes):
                captured = trace(root, inputs)
            if name == "torch.fx":
                guard_fixed_sizes(captured.graph, model)
                check_conformance(model, captured, inputs)
            else:
                check_values(model, captured, inputs)
            return dataclasses.replace(captured, notes=(*captured.notes, *notes))
        except CaptureError as error:
            if name == "torch.export" and not isinstance(error.__cause__, GuardedError):
                raise
            failures.append((name, error))
        except Exception as error:
            if cuts_in(error):
                raise
            failures.append((name, error))
    raise _cannot(model, failures) from failures[-1][1]


def _with_whole_functions(root: nn.Module, inputs: Inputs) -> Captured:
    return symbolic_trace(root, inputs, opened=False)


def _cannot(model: nn.Module, failures: list[tuple[str, Exception]]) -> CaptureError:
    """What to say when no tracer can capture a model."""
    different = next((error for _, error in failures if isinstance(error, ConformanceError)), None)
    if different is not None:
        return different
    where = next((line for line in (_source_line(error) for _, error in failures) if line), class_name(model))
    if any("DataDependent" in type(error).__name__ or "data-dependent" in str(error) for _, error in failures):
        return CaptureError(
            "its control flow depends on the values of a tensor, not only on shapes",
            where,
            "Canonize the submodules around it, or rewrite the branch with torch.where.",
        )
    write = next((error for _, error in failures if isinstance(error, WriteError)), None)
    if write is not None:
        return writes_its_state("tensors", where, str(write))
    foreign = next((found for _, error in failures if (found := _FOREIGN.search(str(error)))), None)
    if foreign is not None:
        return CaptureError(
            f"its output holds a {foreign[1].rpartition('.')[2]}, which is neither a tensor nor a container of tensors",
            where,
            "Wrap the model in a module that returns the tensors alone, or switch that output off (use_cache=False).",
        )
    told = "; ".join(f"{name}: {kind_and_line(error)}" for name, error in dict(failures).items())
    return CaptureError(
        f"it cannot be captured ({told})",
        where,
        "Check that the model runs on these inputs; rewrite code in forward that tracers cannot follow.",
    )


def _source_line(error: BaseException) -> str | None:
    """The line of the user's own code that a tracer stumbled over."""
    trace = error.__traceback__
    found = None
    while trace is not None:
        code = trace.tb_frame.f_code
        package = trace.tb_frame.f_globals.get("__name__", "").split(".")[0]
        if code.co_name == "forward" and package not in ("torch", "canonize"):
            found = f"{code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
