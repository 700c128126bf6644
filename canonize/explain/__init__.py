"""Canonical models in the hands of explainers: attribution, zennit, captum, heatmaps.

>>> from canonize.explain import attribute
>>> attribute(canonical, images, target=207, method="epsilon-plus").heatmap()  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from canonize.explain.methods import METHODS, Method, methods

if TYPE_CHECKING:
    from canonize.explain.attribution import Attribution, attribute
    from canonize.explain.composites import Choices, composite
    from canonize.explain.ranges import decreasing_gamma, tutorial
    from canonize.explain.rules import layer_groups, rule

_WHERE = {
    "Attribution": "attribution",
    "attribute": "attribution",
    "Choices": "composites",
    "composite": "composites",
    "decreasing_gamma": "ranges",
    "layer_groups": "rules",
    "rule": "rules",
    "tutorial": "ranges",
}

__all__ = [
    "METHODS",
    "Attribution",
    "Choices",
    "Method",
    "attribute",
    "composite",
    "decreasing_gamma",
    "layer_groups",
    "methods",
    "rule",
    "tutorial",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"canonize.explain.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'canonize.explain' has no attribute {name!r}")
