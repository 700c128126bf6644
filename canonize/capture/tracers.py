"""Which tracer, and what to say when none can."""

from __future__ import annotations

from torch import nn

from canonize.bake import bake_weights
from canonize.capture.captured import Captured
from canonize.capture.copying import eval_copy
from canonize.capture.exported import export_trace
from canonize.capture.hooks import refuse_what_a_trace_would_drop
from canonize.capture.symbolic import symbolic_trace
from canonize.errors import CaptureError
from canonize.inputs import Inputs


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
    if tracer == "torch.export":
        root = eval_copy(model)
        bake_weights(root)
        return export_trace(root, inputs)
    root = eval_copy(model)
    bake_weights(root)
    try:
        return symbolic_trace(root, inputs)
    except Exception as error:
        if tracer == "symbolic_trace":
            raise CaptureError(f"torch.fx cannot trace it ({_first_line(error)})", type(model).__name__) from error
        first_failure = error
    root = eval_copy(model)
    bake_weights(root)
    try:
        return export_trace(root, inputs)
    except CaptureError:
        raise
    except Exception as error:
        told = f"torch.fx: {_first_line(first_failure)}; torch.export: {_first_line(error)}"
        raise CaptureError(
            f"neither tracer can capture it ({told})",
            _source_line(error) or type(model).__name__,
            "Rewrite the control flow that looks at values, or canonize the submodules that hold no such code.",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


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
