"""``.pt2``: the program ``torch.export`` makes, for runtimes. Its modules have lost their types: ``.pt`` explains."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from torch import nn

from canonize.compat import exporting, no_warnings
from canonize.errors import ExportError
from canonize.export.dynamic import dynamic_shapes, shown_inputs, tried_inputs
from canonize.export.provenance import KEY, provenance_of
from canonize.export.reload import check_reload
from canonize.inputs import Inputs

STATIC = "the batch size is fixed in the file: the model does not let it vary"


def exported(model: nn.Module, inputs: Inputs) -> tuple[torch.export.ExportedProgram, Inputs, list[str]]:
    """`model` as an exported program with a free batch size, or a fixed one where it depends on it.

    Returns
    -------
    program : torch.export.ExportedProgram
    shown : Inputs
        What it was exported with.
    notes : list of str
    """
    shown = shown_inputs(inputs)
    shapes = dynamic_shapes(model, shown)
    with exporting():
        if shapes is not None:
            try:
                program = torch.export.export(model, shown.args, shown.kwargs, dynamic_shapes=shapes)
                return program, shown, _fixed_sizes(shown)
            except Exception:
                pass
        program = torch.export.export(model, inputs.args, inputs.kwargs)
    return program, inputs, [STATIC, *_fixed_sizes(inputs)] if shapes is not None else _fixed_sizes(inputs)


def _fixed_sizes(inputs: Inputs) -> list[str]:
    """A note of the image sizes or lengths that a written program takes, and no others."""
    sizes = ["x".join(map(str, t.shape[2:])) for t in inputs.tensors() if t.dim() > 2 and t.is_floating_point()]
    if not sizes:
        return []
    return [f"the file takes inputs of size {' and '.join(dict.fromkeys(sizes))} only: convert again for another"]


def write(model: nn.Module, path: Path, inputs: Inputs | None, final: Path) -> list[str]:
    """Export `model` to `path`.

    Raises
    ------
    ExportError
        If torch.export cannot, or no inputs are known.
    """
    program, _, notes = program_of(model, inputs, final)
    with no_warnings():
        # By way of memory: where the disk is full, torch's own writer ends the process.
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={f"{KEY}.json": json.dumps(provenance_of(model))})
    path.write_bytes(buffer.getbuffer())
    return notes


def program_of(
    model: nn.Module, inputs: Inputs | None, final: Path
) -> tuple[torch.export.ExportedProgram, Inputs, list[str]]:
    """What `exported` gives, with errors that say what to do."""
    if inputs is None:
        raise ExportError(
            f"a {final.suffix} file needs example inputs",
            where=str(final),
            hint="Pass example_inputs=",
            shell="Give --input",
        )
    try:
        return exported(model, inputs)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"torch.export cannot export the model ({lines[0][:200]})",
            where=str(final),
            hint="Write a .pt instead: it holds the same module",
        ) from error


def check(model: nn.Module, path: Path, inputs: Inputs | None, final: Path, static: bool) -> None:
    """Reload in a fresh process, on other batch sizes too."""
    assert inputs is not None
    check_reload(model, path, [inputs] if static else [inputs, *tried_inputs(inputs)], final)


def snippet(path: str) -> str:
    """The lines that load the file."""
    return f"import torch\nmodel = torch.export.load({path!r}).module()"
