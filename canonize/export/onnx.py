"""``.onnx``: for every other runtime. Checked, then run in ONNX Runtime on several batch sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from canonize.compat import exporting, need, no_printing
from canonize.errors import ExportError
from canonize.export.atomic import is_disk_error
from canonize.export.dynamic import tried_inputs
from canonize.export.provenance import KEY, provenance_of
from canonize.export.pt2 import program_of
from canonize.export.reload import compare, outputs_of
from canonize.inputs import Inputs

# A protobuf message ends at two gigabytes.
LIMIT = 2 * 1024**3 - 1024**2


def require_libraries(final: Path) -> None:
    """Refuse where a library is missing that writing takes, or checking what was written.

    Raises
    ------
    ExportError
    """
    need(("onnx", "onnxscript", "onnxruntime"), "writing ONNX", where=str(final), error=ExportError)


def write(model: nn.Module, path: Path, inputs: Inputs | None, final: Path) -> list[str]:
    """Export `model` to `path`.

    Raises
    ------
    ExportError
        If the model is too large for one file, or an operator has no ONNX counterpart.
    """
    size = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    if size > LIMIT:
        raise ExportError(
            f"the weights ({size / 2**30:.1f} GB) do not fit into one ONNX file", where=str(final), hint="Write a .pt2"
        )
    program, _, notes = program_of(model, inputs, final)
    try:
        # The exporter writes to the terminal whatever it is told.
        with exporting(), no_printing("stdout"):
            converted = torch.onnx.export(program, dynamo=True, verbose=False)
            assert converted is not None
            converted.model.metadata_props[KEY] = json.dumps(provenance_of(model))
            converted.save(str(path), external_data=False)
    except Exception as error:
        if is_disk_error(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"the model cannot be exported to ONNX ({lines[0][:200]})", where=str(final), hint="Write a .pt2 instead"
        ) from error
    return notes


def check(model: nn.Module, path: Path, inputs: Inputs | None, final: Path, static: bool) -> None:
    """Check the file by its specification, then compare ONNX Runtime with `model`."""
    assert inputs is not None
    from onnx import checker
    from onnxruntime import InferenceSession

    checker.check_model(str(path), full_check=True)
    runs = [inputs] if static else [inputs, *tried_inputs(inputs)]
    try:
        session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = [[torch.from_numpy(o) for o in session.run(None, _feed(session, run))] for run in runs]
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        wide = any(t.dtype == torch.float64 for t in (*model.parameters(), *model.buffers(), *inputs.tensors()))
        raise ExportError(
            f"ONNX Runtime cannot run it ({lines[0][:200]})" + (", which has few operators in float64" if wide else ""),
            where=str(final),
            hint="Write it in float32: canonize model.float(), or write a .pt2" if wide else "Write a .pt2 instead",
        ) from error
    compare([outputs_of(model, run) for run in runs], found, final)


def snippet(path: str) -> str:
    """The lines that load the file."""
    return f"import onnxruntime\nmodel = onnxruntime.InferenceSession({path!r})"


def _feed(session: Any, inputs: Inputs) -> dict[str, Any]:
    names = [i.name for i in session.get_inputs()]
    return {n: t.detach().cpu().numpy() for n, t in zip(names, inputs.tensors(), strict=True)}
