"""canonize: models in the form that rule-based explainers have rules for, proven to compute the same function.

>>> import canonize
>>> canonical = canonize.canonize(model, example_inputs)  # doctest: +SKIP
>>> print(canonical.report)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from canonize._version import __version__

if TYPE_CHECKING:
    from canonize import errors as errors
    from canonize import evaluate as evaluate
    from canonize import explain as explain
    from canonize import forms as forms
    from canonize import inputs as inputs
    from canonize import nn as nn
    from canonize import patterns as patterns
    from canonize import report as report
    from canonize import search as search
    from canonize import verify as verify
    from canonize.api import canonize, inspect
    from canonize.errors import CanonizeError, CaptureError, ExportError, InputError, LoadError, NotEquivalentError
    from canonize.export import save
    from canonize.graph.model import CanonicalModel
    from canonize.loading import load
    from canonize.report import Report, Verdict
    from canonize.verify import assert_equivalent, check_equivalence

# Imported when first asked for: the command line answers --help without torch, nobody pays for what they do not use.
_WHERE = {
    "canonize": "canonize.api",
    "inspect": "canonize.api",
    "CanonicalModel": "canonize.graph.model",
    "load": "canonize.loading",
    "save": "canonize.export",
    "check_equivalence": "canonize.verify",
    "assert_equivalent": "canonize.verify",
    "Report": "canonize.report",
    "Verdict": "canonize.report",
    "CanonizeError": "canonize.errors",
    "CaptureError": "canonize.errors",
    "ExportError": "canonize.errors",
    "InputError": "canonize.errors",
    "LoadError": "canonize.errors",
    "NotEquivalentError": "canonize.errors",
}

_MODULES = ("errors", "evaluate", "explain", "forms", "inputs", "nn", "patterns", "report", "search", "verify")

__all__ = [
    "CanonicalModel",
    "CanonizeError",
    "CaptureError",
    "ExportError",
    "InputError",
    "LoadError",
    "NotEquivalentError",
    "Report",
    "Verdict",
    "__version__",
    "assert_equivalent",
    "canonize",
    "check_equivalence",
    "inspect",
    "load",
    "save",
]


if not TYPE_CHECKING:  # a checker that saw it would take any name

    def __getattr__(name: str) -> Any:
        if name in _WHERE:
            value = getattr(importlib.import_module(_WHERE[name]), name)
            globals()[name] = value
            return value
        if name in _MODULES:
            return importlib.import_module(f"canonize.{name}")
        raise AttributeError(f"module 'canonize' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_MODULES})
