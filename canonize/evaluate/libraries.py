"""The libraries that only evaluating needs: pandas, joblib, matplotlib, ..., imported when first needed."""

from __future__ import annotations

import importlib
from typing import Any

from canonize.errors import InputError


def require(name: str, extra: str = "evaluate") -> Any:
    """Import a library of an extra.

    Raises
    ------
    InputError
        If it is not installed; with how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"{package} is not installed", hint=f"Run: pip install 'canonize[{extra}]'") from error
