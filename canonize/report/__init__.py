"""What happened to a model, as data (``data.py``), and its views: text, JSON, JUnit, Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from canonize.report.record import (
    AffineFate,
    Check,
    Divergence,
    Finding,
    Outcome,
    OutputError,
    Proof,
    Refusal,
    ReportRecord,
    Rewrite,
    Unproven,
    VerdictRecord,
)
from canonize.report.text import render
from canonize.report.verdict import render_verdict


@dataclass(frozen=True)
class Verdict(VerdictRecord):
    """Whether two models are the same function, and how that was found out; fields as in `VerdictRecord`."""

    def __str__(self) -> str:
        return render_verdict(self)


@dataclass
class Report(ReportRecord):
    """Everything that happened to a model, printable and serialisable."""

    verdict: Verdict | None = None

    def __str__(self) -> str:
        return render(self)


def attach_report(module: fx.GraphModule, report: Report, seen: Any = None) -> None:
    """Make ``module.report``, so that it survives copying and saving.

    Parameters
    ----------
    module, report
    seen : Inputs, optional
        Shapes and dtypes of what the model was converted with, for whoever needs inputs that it takes.
    """
    kept = {"report": report} if seen is None else {"report": report, "seen_inputs": seen}
    for name, value in kept.items():
        setattr(module, name, value)
    module.meta["_user_preserved_attributes"] = kept


# Written files name them so, wherever in this room they are defined.
for _kind in (AffineFate, Check, Divergence, Finding, OutputError, Proof, Refusal, Rewrite, Unproven):
    _kind.__module__ = __name__

__all__ = [
    "AffineFate",
    "Check",
    "Divergence",
    "Finding",
    "Outcome",
    "OutputError",
    "Proof",
    "Refusal",
    "Report",
    "Rewrite",
    "Unproven",
    "Verdict",
    "attach_report",
]
