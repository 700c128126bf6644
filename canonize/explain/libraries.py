"""The explainers' own libraries: zennit, captum, h5py, imported when first needed."""

from __future__ import annotations

from typing import Any

from canonize.compat import require as require_extra
from canonize.errors import ExplainError


def require(name: str) -> Any:
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
    return require_extra(name, "explaining", error=ExplainError)
