"""Prove that a file loads elsewhere: read it in a fresh process and compare what it computes there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from canonize.errors import ExportError
from canonize.inputs import Inputs
from canonize.loading.agreement import largest_error

# What a reader's own lines do, and one forward. torchvision may need help to be imported beside this torch. A folder
# must do without canonize and without pickle, so neither can be had there.
_SCRIPT = """
import os, sys, torch
path, work = sys.argv[1:3]
def load():
    if os.path.isdir(path):
        load_tensors, torch.load, sys.modules["canonize"] = torch.load, None, None
        sys.path.insert(0, path)
        try:
            from model import load
            return load()
        finally:
            torch.load = load_tensors
    if path.endswith(".pt2"):
        return torch.export.load(path).module()
    return torch.load(path, map_location=None, weights_only=False)
try:
    model = load()
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    from canonize.compat import import_torchvision
    import_torchvision()
    model = load()
runs = []
for args, kwargs in torch.load(work, weights_only=False):
    with torch.no_grad():
        runs.append(model(*args, **kwargs))
torch.save({"runs": runs, "state": list(model.state_dict().values())}, work)
"""


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Every tensor that `model` gives for `inputs`, in order."""
    with torch.no_grad():
        result = model(*inputs.args, **inputs.kwargs)
    return Inputs((result,)).tensors()


def check_reload(model: nn.Module, path: Path, inputs: Sequence[Inputs], final: Path) -> None:
    """Load `path` in a fresh process, run it on `inputs`, and compare with what `model` gives here.

    Parameters
    ----------
    model : nn.Module
    path : Path
        The file or folder to try: ``.pt``, ``.pt2``, ``model.py`` with its weights.
    inputs : sequence of Inputs
        Where it is empty, the parameters and buffers alone are compared.
    final : Path
        What messages call the file.

    Raises
    ------
    ExportError
        If it does not load, or computes something else.
    """
    with tempfile.TemporaryDirectory(prefix="canonize-") as folder:
        work = Path(folder) / "work.pt"
        torch.save([(i.args, i.kwargs) for i in inputs], work)
        # The same import path as here: a class that is importable now is importable for whoever loads the file.
        package = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*(p for p in sys.path if p), package])}
        process = subprocess.run(
            [sys.executable, "-B", "-c", _SCRIPT, str(path), str(work)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            lines = [line for line in process.stderr.splitlines() if line.strip()]
            raise ExportError(
                f"the file does not load in a fresh process ({lines[-1][:200] if lines else 'no message'})",
                where=str(final),
                hint="Nothing was written. A class defined in a script or a notebook cannot be loaded elsewhere: move "
                "it into a module, or export to .pt2 or .onnx",
            )
        there = torch.load(work, weights_only=False)
    found = [Inputs((run,)).tensors() for run in there["runs"]]
    compare([outputs_of(model, i) for i in inputs], found, final)
    if not inputs:
        here = [t for t in model.state_dict().values() if isinstance(t, Tensor)]
        compare([here], [[t for t in there["state"] if isinstance(t, Tensor)]], final)


def compare(expected: list[list[Tensor]], found: list[list[Tensor]], final: Path) -> None:
    """Raise where two lists of outputs differ by more than rounding.

    Raises
    ------
    ExportError
        With the error.
    """
    for here, there in zip(expected, found, strict=True):
        error, allowed = largest_error(here, there)
        if not error <= allowed:
            raise ExportError(
                f"what lies in the file computes something else (relative error {error:.1e}, allowed {allowed:.0e})",
                where=str(final),
                hint="Nothing was written. Please report it with the model",
            )
