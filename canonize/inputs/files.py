"""Example inputs from a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from canonize.errors import InputError, nearby
from canonize.inputs.values import Inputs, normalise

ENDINGS = (".pt", ".pth", ".npy", ".npz", ".safetensors")


def load_inputs(path: str | Path) -> Inputs:
    """Read example inputs from ``.pt``, ``.npy``, ``.npz`` or ``.safetensors``, without running code from the file.

    A ``.pt`` file holds anything `normalise` takes. The arrays of ``.npz`` and ``.safetensors`` become keyword
    arguments, or the only positional one if there is one alone; ``arg_0``, ``arg_1``, ... stay positional.

    Raises
    ------
    InputError
        If the file cannot be read or holds no tensor.
    """
    path = Path(path)
    readers = {".pt": _read_pt, ".pth": _read_pt, ".npy": _read_numpy, ".npz": _read_numpy}
    reader = readers.get(path.suffix.lower(), _read_safetensors if path.suffix.lower() == ".safetensors" else None)
    if reader is None:
        raise InputError(
            f"inputs cannot be read from a {path.suffix or 'nameless'} file",
            where=str(path),
            hint="Give a .pt, .npy, .npz or .safetensors file",
        )
    try:
        return _without_nan(normalise(reader(path)))
    except InputError as error:
        raise InputError(error.what, where=str(path), hint=error.hint, shell=error.shell) from None
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path), hint=nearby(path, ENDINGS)) from None
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"the file cannot be read as inputs ({first[:120]})",
            where=str(path),
            hint="Save a tensor, a tuple of tensors or a dictionary of tensors",
        ) from error


def _without_nan(inputs: Inputs) -> Inputs:
    if any(t.is_floating_point() and bool(t.isnan().any()) for t in inputs.tensors()):
        raise InputError("the inputs hold NaN", hint="Nothing can be compared on them: give inputs of numbers")
    return inputs


def _read_pt(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_numpy(path: Path) -> Any:
    import numpy

    content = numpy.load(path, allow_pickle=False)
    return content if isinstance(content, numpy.ndarray) else _by_name(dict(content))


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return _by_name(load_file(path))


def _by_name(arrays: dict[str, Any]) -> Any:
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    positional = [arrays.pop(name) for name in sorted(arrays, key=_position) if re.fullmatch(r"arg_\d+", name)]
    return (tuple(positional), arrays)


def _position(name: str) -> int:
    return int(name.removeprefix("arg_")) if re.fullmatch(r"arg_\d+", name) else -1
