"""Bytes -> Python objects: which reader a file wants, and one clear error for each way it can be broken."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from canonize.compat import import_torchvision, no_warnings
from canonize.errors import LoadError, first_line
from canonize.loading.archive import check_archive, entries_of, is_archive
from canonize.loading.audit import audit
from canonize.loading.opcodes import follow
from canonize.loading.pt2_archive import module_of, read_plain
from canonize.loading.safe import Allowed, allowed, refusal

# How many pickles stand in a row in files of torch before 1.6.
LEGACY_PICKLES = 5
LEGACY_MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
BROKEN = "Save or download it again"


def read_torch(path: Path, packages: tuple[str, ...], trust: bool) -> Any:
    """What ``torch.save`` wrote to `path`; without `trust`, only from classes that may be in a file (`safe`)."""
    kind = _container(path)
    if kind == "torchscript":
        if not trust:
            raise LoadError(
                "is TorchScript, a program that torch runs while it reads it",
                where=str(path),
                hint="If you trust where it comes from: --trust, or load(path, trust=True); or give the module it was "
                "scripted from",
            )
        return _read(path, lambda: _script_of(path))
    if trust:
        return _read(path, lambda: torch.load(path, map_location="cpu", weights_only=False))
    names = _globals_of(path) if kind == "zip" else []
    known, unknown = allowed(names, packages, path)
    if unknown:
        raise refusal(unknown, packages, path)
    _follow(path, kind, known)
    with torch.serialization.safe_globals(known):
        content = _read(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
    audit(content, path)
    return content


def _script_of(path: Path) -> torch.jit.ScriptModule:
    try:
        with no_warnings():  # newer versions of torch call TorchScript deprecated
            script: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as error:
        if "torchvision::" in str(error):
            raise
        raise LoadError(
            f"torch cannot load its TorchScript ({first_line(error)})",
            where=str(path),
            hint="Give the module it was scripted from, or script it again with this version of torch",
        ) from error
    return script


def _follow(path: Path, kind: str, known: list[Allowed]) -> None:
    """Follow the file's pickles before any of them is read."""
    pairs = [pair for pair in known if isinstance(pair, tuple)]
    modules = {name for found, name in pairs if isinstance(found, type) and issubclass(found, nn.Module)}

    def is_module(name: str) -> bool:
        return name in modules

    if kind == "zip":
        for pickled in _read(path, lambda: _pickles(path)):
            follow(io.BytesIO(pickled), is_module, path)
        return
    with path.open("rb") as stream:
        if stream.read(len(LEGACY_MAGIC)) != LEGACY_MAGIC:
            raise LoadError("cannot be read; it is damaged or no model file", where=str(path), hint=BROKEN)
        stream.seek(0)
        # Magic number, protocol, system, content, names of the storages.
        for _ in range(LEGACY_PICKLES):
            follow(stream, is_module, path)


def _pickles(path: Path) -> list[bytes]:
    with zipfile.ZipFile(path) as archive:
        return [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]


def read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a ``.safetensors`` file by name."""
    from safetensors.torch import load_file

    return dict(_read(path, lambda: load_file(path)))


def read_exported(path: Path, trust: bool) -> nn.Module:
    """The module of a ``.pt2`` file; without `trust`, only of one that holds nothing but tensors and operators."""
    if not is_archive(path):
        raise LoadError("is no .pt2 archive, or a truncated one", where=str(path), hint=BROKEN)
    if not trust:
        plain: nn.Module = _read(path, lambda: read_plain(path))
        return plain
    module: nn.Module = _read(path, lambda: module_of(torch.export.load(str(path))))
    return module


def _container(path: Path) -> str:
    """How a file is wrapped: ``zip``, ``torchscript`` (a zip with code in it) or ``legacy`` (torch before 1.6)."""
    if not is_archive(path):
        with path.open("rb") as stream:
            begins_like_one = stream.read(2) == b"PK"
        if begins_like_one:
            raise LoadError("is truncated", where=str(path), hint=BROKEN)
        return "legacy"
    names = entries_of(path)
    if any(name.endswith("/constants.pkl") for name in names):
        return "torchscript"
    if not any(name.endswith("/data.pkl") for name in names):
        raise LoadError("is a zip archive, but not one of torch.save", where=str(path), hint="Give a model file")
    check_archive(path)
    return "zip"


def _globals_of(path: Path) -> list[str]:
    """Names of the classes and functions that the file wants, beside those torch takes for safe."""
    return sorted(_read(path, lambda: torch.serialization.get_unsafe_globals_in_checkpoint(path)))


def _read(path: Path, reader: Callable[[], Any]) -> Any:
    try:
        try:
            return reader()
        except RuntimeError as error:
            # The file's classes drag torchvision in, whose import may need help beside this torch.
            if "torchvision::" not in str(error):
                raise
            import_torchvision()
            return reader()
    except LoadError:
        raise
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise LoadError(
            f"cannot be read safely ({first_line(error)})",
            where=str(path),
            hint="A file that torch.load(weights_only=True) refuses: save a state dictionary instead and give --arch, "
            "or use --trust if you made the file yourself",
        ) from error
    except (AttributeError, ModuleNotFoundError) as error:
        raise LoadError(
            f"names code that is not installed ({first_line(error)})",
            where=str(path),
            hint="Install the package and the version it was saved with, or give a state dictionary with --arch",
        ) from error
    except Exception as error:
        raise LoadError(
            f"cannot be read; it is damaged or no model file ({first_line(error)})", where=str(path), hint=BROKEN
        ) from error
