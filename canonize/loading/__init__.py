"""A file, an architecture's name or a factory -> ``nn.Module``. Untrusted input stops here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from canonize.errors import LoadError, nearby
from canonize.inputs import Shape
from canonize.loading.architecture import build, is_architecture
from canonize.loading.checkpoint import module_from
from canonize.loading.file import read_exported, read_safetensors, read_torch
from canonize.loading.onnx import read_onnx
from canonize.loading.written_folder import CODE, WEIGHTS, read_folder

__all__ = ["Loaded", "load", "load_with_notes"]


@dataclass(frozen=True)
class Loaded:
    """A model, and what a person should know about how it came to be.

    Attributes
    ----------
    model : nn.Module
    notes : tuple of str
        Random weights, a classifier of another size, a wrapper taken off, ...
    source : dict
        ``name`` and ``sha256`` of the file it came from; empty for architectures and factories.
    """

    model: nn.Module
    notes: tuple[str, ...] = ()
    source: dict[str, str] = field(default_factory=dict)


def load(
    source: str | os.PathLike[str], arch: str | None = None, *, allow: Sequence[str] = (), trust: bool = False
) -> nn.Module:
    """Load a model; no code that is in a file runs unless `trust` says so.

    Parameters
    ----------
    source : str or path
        A file (``.pt``, ``.pth``, ``.bin``, ``.safetensors``, ``.pt2``, ``.onnx``), a folder that canonize wrote, or
        what `arch` takes, for random weights.
    arch : str, optional
        What a file with a state dictionary belongs to: ``torchvision:densenet121``, ``timm:resnet50``, or
        ``package.module:factory`` (called without arguments).
    allow : sequence of str
        Packages, beside torch, torchvision and timm, whose module classes a pickled model may be made of.
    trust : bool
        Read the file with all of pickle, which runs whatever the file says.

    Returns
    -------
    nn.Module
        On the CPU, in the mode it was saved in.

    Raises
    ------
    LoadError
        With what to do next.
    """
    return load_with_notes(source, arch, allow=allow, trust=trust).model


def load_with_notes(
    source: str | os.PathLike[str],
    arch: str | None = None,
    *,
    allow: Sequence[str] = (),
    trust: bool = False,
    shapes: Sequence[Shape] = (),
) -> Loaded:
    """What `load` does, with notes for the reader; `shapes` are the sizes that an ``.onnx`` file leaves open."""
    path = Path(source)
    if not path.exists() and isinstance(source, str) and is_architecture(source):
        if arch is not None:
            raise LoadError("is an architecture already", where=source, hint=f"Leave out {arch}, or give a file")
        built = build(source)
        note = (f"{source}: random weights, not trained ones",) if ":" in source and _is_zoo(source) else ()
        return Loaded(built, note)
    if (path / CODE).is_file():
        return Loaded(read_folder(path, trust), source=_origin(path / WEIGHTS))
    _refuse_what_is_no_file(path)
    ending = path.suffix.lower()
    if ending == ".onnx":
        return Loaded(*read_onnx(path, shapes), source=_origin(path))
    if ending == ".pt2":
        return Loaded(read_exported(path, trust), source=_origin(path))
    content = read_safetensors(path) if ending == ".safetensors" else read_torch(path, tuple(allow), trust)
    return Loaded(*module_from(content, arch, path), source=_origin(path))


def _origin(path: Path) -> dict[str, str]:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return {"name": path.name, "sha256": digest.hexdigest()}


def _is_zoo(source: str) -> bool:
    return source.split(":")[0] in ("torchvision", "timm")


def _refuse_what_is_no_file(path: Path) -> None:
    if path.is_dir():
        raise LoadError("is a folder", where=str(path), hint="Give the model file inside it")
    if not path.exists():
        raise LoadError("there is no such file", where=str(path), hint=_neighbours(path))
    if not os.access(path, os.R_OK):
        raise LoadError("may not be read", where=str(path), hint="Change its permissions")
    if path.stat().st_size == 0:
        raise LoadError("is empty", where=str(path), hint="Save or download it again")


def _neighbours(path: Path) -> str:
    endings = {".pt", ".pth", ".bin", ".safetensors", ".pt2", ".onnx"}
    told = nearby(path, endings)
    if told.startswith("Did you mean"):
        return told
    return f"{told}; an architecture is written torchvision:densenet121, timm:resnet50 or package.module:factory"
