"""Which classes a pickled model may be made of.

A pickle builds objects by calling what it names. Here it may name module classes of torch, torchvision, timm and
canonize (and of packages the user allows), and a few plain types that those modules carry. Functions that take other
functions, graph modules as torch pickles them (their code is text in the file) and everything else need ``trust``.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, SpectralNormStateDictHook
from torch.nn.utils.weight_norm import WeightNorm

from canonize.compat import import_torchvision
from canonize.compat.private import WrappedHook
from canonize.errors import LoadError
from canonize.loading.graph_as_data import rebuild
from canonize.nn import Slot

# As ``torch.serialization.safe_globals`` takes it.
Allowed: TypeAlias = Callable[..., Any] | tuple[Callable[..., Any], str]

# Where classes may be defined. torch has modules elsewhere that run text as code (torch.fx) or compile (torch.jit).
TRUSTED = (
    *("torch.nn.modules", "torch.nn.parallel.data_parallel", "torchvision", "timm"),
    *("canonize.nn", "canonize.report"),
)
# Activations that modules keep as plain functions.
ACTIVATIONS = {
    *("celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish"),
    *("relu", "relu6", "selu", "sigmoid", "silu", "softmax", "softplus", "softsign", "tanh"),
}
FUNCTION_HOMES = ("torch.nn.functional", "torch._C._nn")
FUNCTION_MODULES = ("timm.layers.activations", "timm.layers.activations_me")

# `partial` and `WrappedHook` can hold only what the file names elsewhere: nothing beside this list and the classes.
_PLAIN: dict[str, Any] = {
    "functools.partial": functools.partial,
    "builtins.slice": slice,
    "builtins.range": range,
    "builtins.frozenset": frozenset,
    "builtins.Ellipsis": Ellipsis,
    "torch.fx.immutable_collections.immutable_list": immutable_list,
    "torch.fx.immutable_collections.immutable_dict": immutable_dict,
    "torch.contiguous_format": torch.contiguous_format,
    "torch.preserve_format": torch.preserve_format,
    "torch.channels_last": torch.channels_last,
    "torch.channels_last_3d": torch.channels_last_3d,
    "canonize.nn.Slot": Slot,
    "canonize.saved.rebuild": rebuild,
    "torch.nn.utils.weight_norm.WeightNorm": WeightNorm,
    "torch.nn.modules.module._WrappedHook": WrappedHook,
    "torch.nn.utils.spectral_norm.SpectralNorm": SpectralNorm,
    "torch.nn.utils.spectral_norm.SpectralNormStateDictHook": SpectralNormStateDictHook,
    "torch.nn.utils.spectral_norm.SpectralNormLoadStateDictPreHook": SpectralNormLoadStateDictPreHook,
}
_GRAPH_MODULES = ("torch.fx.graph_module.reduce_graph_module", "torch.fx.graph_module.reduce_package_graph_module")


def allowed(names: Iterable[str], packages: tuple[str, ...], path: Path) -> tuple[list[Allowed], list[str]]:
    """Sort what a file names into objects it may use and names it may not.

    Returns
    -------
    known : list of (object, name)
        As ``torch.serialization.safe_globals`` takes them.
    unknown : list of str

    Raises
    ------
    LoadError
        If an allowed package is there but the class is not, or the package is missing.
    """
    known: list[Allowed] = []
    unknown: list[str] = []
    for name in names:
        found = _resolve(name, packages, path)
        if found is None:
            unknown.append(name)
        else:
            known.append((found, name))
    return known, unknown


def refusal(unknown: list[str], packages: tuple[str, ...], path: Path) -> LoadError:
    """The error that names what a file wants and may not have, and the ways on."""
    where = str(path)
    if any(name in _GRAPH_MODULES for name in unknown):
        return LoadError(
            "holds a graph module, whose code is part of the file",
            where=where,
            hint="If you made the file yourself: --trust, or load(path, trust=True)",
        )
    listed = ", ".join(unknown[:4]) + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else "")
    what = f"wants {listed}, which a file may not bring in unasked"
    roots = sorted({name.split(".")[0] for name in unknown})
    if roots == ["__main__"]:
        return LoadError(
            f"{what}: the script that defined it is not here",
            where=where,
            hint="Save a state dictionary and give --arch package.module:factory",
        )
    offered = [root for root in roots if root not in ("__main__", "builtins", "os", "posix", "nt", "sys", "torch")]
    offered = [root for root in offered if root not in packages]
    ways = [f"{' '.join(f'--allow {root}' for root in offered)} if these are modules of yours"] if offered else []
    ways += ["a state dictionary with --arch", "--trust if you made the file yourself, for that runs what it says"]
    return LoadError(what, where=where, hint=f"Ways on: {'; '.join(ways)}")


def _resolve(name: str, packages: tuple[str, ...], path: Path) -> Any:
    """The object behind a name if a file may use it, else None. Imports nothing outside the allowed packages."""
    if name in _PLAIN:
        return _PLAIN[name]
    home, _, attribute = name.rpartition(".")
    if home in FUNCTION_HOMES and attribute in ACTIVATIONS:
        return getattr(importlib.import_module(home), attribute, None)
    prefixes = (*TRUSTED, *packages)
    if not _inside(home, prefixes):
        return None
    found = getattr(_import(home, name, path), attribute, None)
    if found is None:
        raise LoadError(
            f"names {name}, which the installed {home.split('.')[0]} does not have",
            where=str(path),
            hint="Install the version the file was saved with, or give a state dictionary with --arch",
        )
    if not _inside(getattr(found, "__module__", None) or "", prefixes):
        return None  # something that the package merely imported
    if isinstance(found, type):
        return found if _is_plain_class(found) else None
    return found if home in FUNCTION_MODULES else None


def _is_plain_class(cls: type) -> bool:
    """Whether building one of these is all that happens: modules, enumerations, data classes, named tuples."""
    if issubclass(cls, torch.fx.GraphModule | torch.jit.ScriptModule):
        return False
    is_named_tuple = issubclass(cls, tuple) and hasattr(cls, "_fields")
    return issubclass(cls, nn.Module | enum.Enum) or dataclasses.is_dataclass(cls) or is_named_tuple


def _inside(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def _import(module: str, name: str, path: Path) -> Any:
    try:
        return import_torchvision(module)
    except ModuleNotFoundError as error:
        raise LoadError(
            f"is made of {name}, and there is no module {error.name}",
            where=str(path),
            hint=f"Install {(error.name or module).split('.')[0]} in the version the file was saved with",
        ) from error
