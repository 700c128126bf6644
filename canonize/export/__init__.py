"""A canonical model -> ``.pt`` to explain, ``.pt2``, ``.onnx`` to deploy, a folder to read. Nothing before writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from canonize.errors import ExportError, InputError
from canonize.export import onnx, pt, pt2, readable_folder
from canonize.export.atomic import check_destination, write_whole
from canonize.inputs import Inputs, infer, normalise
from canonize.inputs.shape_wording import random_inputs
from canonize.twins.twin import device_of

__all__ = ["FORMATS", "Saved", "check_output", "loader_snippet", "save"]

# By the ending of the path; none is a folder.
FORMATS: dict[str, Any] = {".pt": pt, ".pth": pt, ".pt2": pt2, ".onnx": onnx, "": readable_folder}


@dataclass(frozen=True)
class Saved:
    """A file that was written and reloaded.

    Attributes
    ----------
    path : Path
    notes : tuple of str
        What the format could not keep.
    loader : str
        The lines of Python that load it.
    """

    path: Path
    notes: tuple[str, ...]
    loader: str


def save(model: nn.Module, path: str | os.PathLike[str], *, example_inputs: Any = None) -> Saved:
    """Write a model to a file, in the format its ending names, and prove that it loads elsewhere.

    It is written under a passing name, reloaded (``.onnx`` in ONNX Runtime, all others in a fresh process), compared on
    `example_inputs`, and only then given its name. Whatever fails leaves nothing behind, and an older file of that name
    as it was.

    Parameters
    ----------
    model : nn.Module
    path : str or path
        Ending in ``.pt``, ``.pth``, ``.pt2`` or ``.onnx``; without an ending, a folder.
    example_inputs : Tensor, tuple, (args, kwargs) or Inputs, optional
        Where not given, random values of the shapes and dtypes that the model was converted with; else inferred.

    Raises
    ------
    ExportError
        With what to do next.
    """
    final = Path(path)
    check_output(final)
    inputs, notes = _inputs_for(model, example_inputs)
    form = FORMATS[final.suffix.lower()]
    written: list[str] = []

    def write(passing: Path) -> None:
        written.extend(form.write(model, passing, inputs, final))

    def check(passing: Path) -> None:
        form.check(model, passing, inputs, final, static=pt2.STATIC in written)

    write_whole(final, write, check)
    return Saved(final, (*notes, *written), loader_snippet(final))


def check_output(path: str | os.PathLike[str]) -> None:
    """Refuse a destination whose format is unknown or that cannot be written; called before the long work begins.

    Raises
    ------
    ExportError
    """
    final = Path(path)
    if final.suffix.lower() not in FORMATS:
        raise ExportError(
            f"the ending {final.suffix} is unknown",
            where=str(path),
            hint=f"End it in one of {', '.join(filter(None, FORMATS))}, or give a folder's name without a dot",
        )
    require_libraries = getattr(FORMATS[final.suffix.lower()], "require_libraries", None)
    if require_libraries is not None:
        require_libraries(final)
    check_destination(final, whole_folder=not final.suffix)


def loader_snippet(path: str | os.PathLike[str]) -> str:
    """The lines of Python that load a file that `save` wrote."""
    lines: str = FORMATS[Path(path).suffix.lower()].snippet(os.fspath(path))
    return lines


def _as_told(described: str, model: nn.Module) -> Inputs | None:
    """Inputs of the shapes that `Inputs.describe` has written into a report; None where it says more than shapes."""
    parts = [part.strip().rpartition(" ") for part in described.split(",")]
    try:
        return random_inputs([f"{shape.replace(': ', ':')}:{dtype}" for shape, _, dtype in parts]).to(device_of(model))
    except InputError:
        return None


def _inputs_for(model: nn.Module, example_inputs: Any) -> tuple[Inputs | None, list[str]]:
    if example_inputs is not None:
        return normalise(example_inputs), []
    seen = getattr(model, "seen_inputs", None)
    if isinstance(seen, Inputs):  # by the conversion: nothing need be guessed
        return seen.drawn(device_of(model) or "cpu"), []
    described = getattr(getattr(model, "report", None), "inputs", "")
    told = _as_told(described, model)
    try:
        return infer(model, [told] if told is not None else None), []
    except InputError:
        return None, ["no inputs known: the reloaded file was compared by its weights alone"]
