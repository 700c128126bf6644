"""A folder that canonize wrote: ``model.py`` is code, so it is run with `trust` alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import nn

from canonize.errors import LoadError

CODE, WEIGHTS = "model.py", "model.safetensors"


def read_folder(folder: Path, trust: bool) -> nn.Module:
    """What ``load()`` of a folder's ``model.py`` gives.

    Raises
    ------
    LoadError
        Without `trust`, or if the code does not run.
    """
    where = str(folder)
    if not trust:
        raise LoadError(
            f"is a folder whose {CODE} is code to be run",
            where=where,
            hint="Read it first, it is meant to be read; then --trust, or load(path, trust=True)",
        )
    if not (folder / WEIGHTS).is_file():
        raise LoadError(f"its {WEIGHTS} is missing", where=where, hint="Put it back, or write the folder again")
    try:
        spec = importlib.util.spec_from_file_location("canonize_folder_model", folder / CODE)
        assert spec is not None and spec.loader is not None
        code = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(code)
        model = code.load()
    except Exception as error:  # whatever the code in the folder does
        lines = str(error).strip().splitlines() or [""]
        raise LoadError(
            f"its {CODE} does not run ({type(error).__name__}: {lines[0][:140]})", where=where, hint="Write it again"
        ) from error
    if not isinstance(model, nn.Module):
        raise LoadError(f"its load() gives a {type(model).__name__}, not a torch.nn.Module", where=where)
    return model
