"""The explainers' own libraries: zennit, captum, h5py, imported when first needed."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from canonize.compat import import_torchvision
from canonize.errors import ExplainError


def require(name: str) -> ModuleType:
    """Import a library that only explaining needs.

    Parameters
    ----------
    name : str
        Module to import (``zennit.core``, ``captum.attr``, ``h5py``).

    Returns
    -------
    module

    Raises
    ------
    ExplainError
        If it is not installed.
    """
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ExplainError(f"{package} is not installed", hint="Run: pip install 'canonize[explain]'")
    return import_torchvision(name)  # zennit imports torchvision
