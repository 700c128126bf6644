"""Importing torchvision beside a torch that its C++ operators were not built for."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

# The wheels on PyPI are built for CUDA; beside a CPU-only torch their C++ library does not load, and the Python side
# then fails on registering meta kernels for operators nobody declared. Declaring the schemas is enough for every model
# that does not call them. The library object must stay alive, or the declaration goes with it.
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: Any = None


def declare_missing_torchvision_ops() -> None:
    """Declare the schemas of ``torchvision::nms`` and ``torchvision::qnms`` once."""
    global _library
    if _library is None:
        _library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _library.define(f"{name}{_SCHEMA}")


def import_torchvision(name: str = "torchvision") -> ModuleType:
    """Import ``torchvision`` (or a module that imports it, such as ``timm`` or ``zennit``).

    Parameters
    ----------
    name : str
        Module to import.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    ImportError
        If the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        declare_missing_torchvision_ops()
        _forget_half_imported("torchvision")
        return importlib.import_module(name)


def _forget_half_imported(package: str) -> None:
    import sys

    for module in [m for m in sys.modules if m == package or m.startswith(package + ".")]:
        del sys.modules[module]
