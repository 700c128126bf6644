"""Where a file comes from, as data that travels in it: versions, source, rewrites, names."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from canonize._version import __version__
from canonize.report import Report

# Under this name in the extra files of a .pt2, the metadata of an .onnx, and so on.
KEY = "canonize"


def provenance_of(model: nn.Module) -> dict[str, Any]:
    """What is known of how a model came to be, as plain values.

    Returns
    -------
    dict
        ``versions`` (of canonize, torch, python), ``source`` (``name`` and ``sha256`` of the file it was made from),
        ``model`` (the class), ``strategy``, ``rewrites`` (pattern, anchor, into), ``names`` (old to new, None where a
        layer is gone) and ``verdict``. Only ``versions`` where the model has no report.
    """
    report = getattr(model, "report", None)
    if not isinstance(report, Report):
        return {"versions": {"canonize": __version__, "torch": str(torch.__version__)}}
    return {
        "versions": {key: str(value) for key, value in report.versions.items()},
        "source": dict(report.source),
        "model": report.model,
        "strategy": report.strategy,
        "rewrites": [dataclasses.asdict(rewrite) for rewrite in report.rewrites],
        "names": dict(report.names),
        "verdict": "not verified" if report.verdict is None else "equivalent" if report.verdict.passed else "different",
    }
