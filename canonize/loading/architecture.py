"""Architectures by name (torchvision, timm) and factories (``package.module:factory``) -> ``nn.Module``."""

from __future__ import annotations

import difflib
import importlib
import re
from types import ModuleType
from typing import Any

from torch import nn

from canonize.compat import import_torchvision, no_warnings, require
from canonize.errors import LoadError, kind_and_line

_ARCHITECTURE = re.compile(r"[A-Za-z_][\w.]*:[\w.\-]+")


def is_architecture(text: str) -> bool:
    """Whether `text` is spelt like an architecture or a factory, not like a path."""
    return _ARCHITECTURE.fullmatch(text) is not None


def build(arch: str, **options: Any) -> nn.Module:
    """Build an architecture with random weights.

    Parameters
    ----------
    arch : str
        ``torchvision:NAME``, ``timm:NAME`` or ``package.module:factory``.
    **options
        For torchvision and timm, such as ``num_classes``; factories are called without arguments.

    Raises
    ------
    LoadError
        If there is no such architecture, or building it fails.
    """
    if not is_architecture(arch):
        raise LoadError(
            "is not an architecture",
            where=arch,
            hint="Write torchvision:densenet121, timm:resnet50 or package.module:factory",
        )
    home, name = arch.split(":")
    with no_warnings():  # that weights are random is said by the caller
        if home == "torchvision":
            return _from_torchvision(name, options)
        if home == "timm":
            return _from_timm(name, options)
        return _from_factory(home, name)


def _from_torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    models = _zoo("torchvision.models", f"torchvision:{name}")
    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, **options}  # their own initialisation takes most of a minute
    # `weights_backbone` keeps the detection and segmentation models from downloading one.
    backbone = {"weights_backbone": None} if _takes_backbone(models, name) else {}
    return _called(f"torchvision:{name}", lambda: models.get_model(name, weights=None, **backbone, **options))


def _takes_backbone(models: ModuleType, name: str) -> bool:
    return "weights_backbone" in _parameters(models.get_model_builder(name))


def _parameters(function: Any) -> set[str]:
    import inspect

    return set(inspect.signature(function).parameters)


def _from_timm(name: str, options: dict[str, Any]) -> nn.Module:
    timm = _zoo("timm", f"timm:{name}")
    if name.split(".")[0] not in timm.list_models():
        raise _unknown("timm", name, timm.list_models())
    return _called(f"timm:{name}", lambda: timm.create_model(name, pretrained=False, **options))


def _zoo(module: str, where: str) -> ModuleType:
    found: ModuleType = require(module, "building it", where=where, error=LoadError)
    return found


def _unknown(zoo: str, name: str, names: list[str]) -> LoadError:
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"Did you mean {', '.join(close)}?" if close else f"{zoo}'s list_models() names them all"
    return LoadError(f"{zoo} has no model of this name", where=f"{zoo}:{name}", hint=hint)


def _from_factory(home: str, name: str) -> nn.Module:
    where = f"{home}:{name}"
    try:
        module = import_torchvision(home) if home.split(".")[0] in ("timm", "zennit") else importlib.import_module(home)
    except ModuleNotFoundError as error:
        raise LoadError(
            f"there is no module {error.name}", where=where, hint="Run from the folder that holds it, or install it"
        ) from error
    except Exception as error:
        raise LoadError(
            f"importing {home} failed ({kind_and_line(error)})", where=where, hint="Run it by itself"
        ) from error
    factory: Any = module
    for part in name.split("."):
        if not hasattr(factory, part):
            close = difflib.get_close_matches(part, [n for n in dir(factory) if not n.startswith("_")], n=3)
            raise LoadError(
                f"{home} has no {name}", where=where, hint=f"Did you mean {', '.join(close)}?" if close else None
            )
        factory = getattr(factory, part)
    return _called(where, factory if not isinstance(factory, nn.Module) else lambda: factory)


def _called(where: str, factory: Any) -> nn.Module:
    try:
        model = factory()
    except Exception as error:
        raise LoadError(
            f"building the model failed ({kind_and_line(error)})",
            where=where,
            hint="A factory is called without arguments; give it defaults, or wrap it in a function that has none",
        ) from error
    if not isinstance(model, nn.Module):
        raise LoadError(f"gives a {type(model).__name__}, not a torch.nn.Module", where=where)
    return model
