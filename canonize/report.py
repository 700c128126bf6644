"""What happened to a model, as data. Text, JSON and the like are views of it (``canonize.views``)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["absorbed", "last resort", "left"]


@dataclass(frozen=True)
class AffineFate:
    """Where one frozen affine (a BatchNorm or its kin) of the original model went.

    Attributes
    ----------
    name : str
        Qualified name of the layer in the original model (``layer1.0.bn1``).
    kind : str
        What it was: ``BatchNorm2d``, ``F.batch_norm``, ``mul by a constant``, ...
    outcome : {"absorbed", "last resort", "left"}
        Absorbed into its neighbours, turned into an explicit linear layer, or left as it was.
    pattern : str or None
        Name of the pattern that rewrote it.
    into : tuple of str
        Qualified names of the layers that hold it now.
    reason : str
        Why it was not absorbed; empty where it was.
    """

    name: str
    kind: str
    outcome: Outcome
    pattern: str | None = None
    into: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Rewrite:
    """One committed rewrite: which pattern, around which layer, into which layers."""

    pattern: str
    anchor: str
    into: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True)
class Refusal:
    """A pattern that matched but must not be applied here, and why."""

    pattern: str
    anchor: str
    reason: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One place where a model is not canonical.

    Attributes
    ----------
    rule : str
        ``C1`` to ``C5``, see ``canonize.form``.
    where : str
        Qualified name of the layer, or of the node where no layer is.
    what : str
        What is there.
    why : str
        Why it matters to an explainer.
    reason : str
        Why canonize left it, where canonize has tried; else empty.
    """

    rule: str
    where: str
    what: str
    why: str
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """One comparison of two models.

    Attributes
    ----------
    name : str
        What was fed: ``normal, batch 2``.
    quantity : {"output", "input gradient"}
    precision : str
        ``float64``, ``float32``, ...
    error : float
        Largest absolute difference over the scale (largest absolute value) of the reference.
    tolerance : float
        Largest error that passes.
    passed : bool
    detail : str
        Where the largest difference lies, or why the comparison could not be made.
    """

    name: str
    quantity: str
    precision: str
    error: float
    tolerance: float
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether two models are the same function, and how that was found out."""

    passed: bool
    checks: tuple[Check, ...] = ()
    reason: str = ""
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.passed

    def worst(self, precision: str | None = None, quantity: str | None = None) -> Check | None:
        """The check closest to (or furthest beyond) its tolerance among those asked for."""
        chosen = [
            c
            for c in self.checks
            if (precision is None or c.precision == precision) and (quantity is None or c.quantity == quantity)
        ]
        return max(chosen, key=_severity, default=None)


def _severity(check: Check) -> tuple[bool, float]:
    ratio = check.error / check.tolerance if check.tolerance else float("inf")
    return (not check.passed, ratio if ratio == ratio else float("inf"))


@dataclass
class Report:
    """Everything that happened to a model, printable and serialisable."""

    model: str
    strategy: str = "threshold"
    captured_by: str = "symbolic_trace"
    inputs: str = ""
    affines: list[AffineFate] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    names: dict[str, str | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    versions: dict[str, str] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)  # name and sha256 of the file that the model came from

    @property
    def canonical(self) -> bool:
        """Whether nothing is left that ``canonize inspect`` would list."""
        return not self.findings

    def count(self, outcome: Outcome) -> int:
        """Number of affines with this outcome."""
        return sum(fate.outcome == outcome for fate in self.affines)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain lists, dictionaries, strings and numbers."""
        data = dataclasses.asdict(self)
        data["canonical"] = self.canonical
        return data

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON; see ``docs/report.md`` for the fields."""
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        from canonize.views.text import render

        return render(self)
