"""What happened to a model, as data. Text, JSON and the like are views of it (the other files here)."""

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
    """One committed rewrite.

    Attributes
    ----------
    pattern : str
        Which pattern, or form.
    anchor : str
        Around which layer.
    into : tuple of str
        Into which layers.
    detail : str
        What it passed on the way.
    edits : tuple of str
        What was done to which layer, one by one.
    """

    pattern: str
    anchor: str
    into: tuple[str, ...] = ()
    detail: str = ""
    edits: tuple[str, ...] = ()


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
        ``C1`` to ``C5``, see ``canonize.canonical``.
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
class OutputError:
    """How far one output of a candidate is from the reference's, on one input.

    Attributes
    ----------
    output : str
        How a reader would index it: ``output['logits'][0]``.
    error : float
        Largest absolute difference over `scale`: the smallest tolerance that would pass.
    tolerance : float
        Largest error that passes.
    passed : bool
    largest, mean : float
        Of the absolute differences.
    scale : float
        Largest absolute value of the reference.
    where : str
        Element of the largest difference: ``output[1, 207]``.
    reference, candidate : float
        The two values there.
    allclose : float
        Smallest t with ``|candidate - reference| <= t + t |reference|`` everywhere: what ``torch.allclose`` would need
        as ``rtol`` and ``atol``.
    histogram : tuple of int
        Elements by ``|difference| / scale``: none at all; below 1e-16; one bin a decade, up to 1; 1 and more.
    top_k : tuple of (int, float)
        For an output of the shape (N, classes): for k = 1 and 5 the share of rows with the same k best classes.
    why : str
        How the tolerance came about, or why the two could not be compared.
    """

    output: str
    error: float
    tolerance: float
    passed: bool
    largest: float = 0.0
    mean: float = 0.0
    scale: float = 0.0
    where: str = ""
    reference: float = 0.0
    candidate: float = 0.0
    allclose: float = 0.0
    histogram: tuple[int, ...] = ()
    top_k: tuple[tuple[int, float], ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Divergence:
    """Where two models part: the first layer whose output differs although all that it reads agrees.

    Attributes
    ----------
    layer : str
        Qualified name in the candidate; empty where all shared layers agree and only the output differs.
    kind : str
        Class of the candidate's layer.
    call : int
        Which call of it, from 0, where it is called more than once.
    error, tolerance : float
        Of the layer's output, over its scale.
    where : str
        Element of the largest difference.
    reads : tuple of str
        The layers in front of it, which agree.
    case : str
        On what input: ``normal, batch 2``.
    reference : str
        What the candidate's layers were compared with.
    compared : int
        Layers that both models have and that were compared.
    rewrite : str
        For a canonical model, which rewrite made the layer what it is, or which one went wrong.
    passes : int
        Times that the two models were run to find it.
    """

    layer: str
    kind: str = ""
    call: int = 0
    error: float = 0.0
    tolerance: float = 0.0
    where: str = ""
    reads: tuple[str, ...] = ()
    case: str = ""
    reference: str = ""
    compared: int = 0
    rewrite: str = ""
    passes: int = 1


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
    outputs : tuple of OutputError
        The same for every output of the model on its own.
    """

    name: str
    quantity: str
    precision: str
    error: float
    tolerance: float
    passed: bool
    detail: str = ""
    outputs: tuple[OutputError, ...] = ()


@dataclass(frozen=True)
class VerdictRecord:
    """The fields of a `canonize.report.Verdict`: whether two models are the same function, and how that was found out.

    Attributes
    ----------
    passed : bool
    checks : tuple of Check
        Every comparison.
    reason : str
        Why it did not pass.
    notes : tuple of str
        What could not be compared.
    divergence : Divergence or None
        Where the two part, for a verdict that did not pass.
    environment : dict
        What it was computed on: device, precision switches, threads, versions.
    """

    passed: bool
    checks: tuple[Check, ...] = ()
    reason: str = ""
    notes: tuple[str, ...] = ()
    divergence: Divergence | None = None
    environment: dict[str, str] = field(default_factory=dict)

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

    def outputs(self) -> list[tuple[Check, OutputError]]:
        """For each output and precision the comparison closest to, or furthest beyond, its tolerance."""
        worst: dict[tuple[str, str], tuple[Check, OutputError]] = {}
        for check in self.checks:
            for found in check.outputs:
                key = check.precision, found.output
                if key not in worst or _severity(found) > _severity(worst[key][1]):
                    worst[key] = check, found
        return list(worst.values())

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain lists, dictionaries, strings and numbers."""
        return dataclasses.asdict(self)


def _severity(check: Check | OutputError) -> tuple[bool, float]:
    ratio = check.error / check.tolerance if check.tolerance else float("inf")
    return (not check.passed, ratio if ratio == ratio else float("inf"))


@dataclass(frozen=True)
class Unproven:
    """A layer of a canonical model that the checker could not prove.

    Attributes
    ----------
    layer : str
    reason : str
    broken : bool
        Whether the two models contradict each other there, rather than that no rule is known.
    """

    layer: str
    reason: str
    broken: bool = False


@dataclass(frozen=True)
class Proof:
    """Whether the rewrites are proven for all inputs, by a certificate (``canonize check``).

    Attributes
    ----------
    proven : bool
        Of every rewrite.
    values : int
        Values of the canonical model that were related to values of the original.
    unproven : tuple of Unproven
        Layers that rest on samples alone.
    assumptions : tuple of str
        What the proof takes for granted beside exact arithmetic.
    """

    proven: bool
    values: int = 0
    unproven: tuple[Unproven, ...] = ()
    assumptions: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.proven


@dataclass
class ReportRecord:
    """Everything that happened to a model, printable and serialisable."""

    model: str
    strategy: str = "threshold"
    skip: list[str] = field(default_factory=list)
    forms: list[str] = field(default_factory=list)
    captured_by: str = "symbolic_trace"
    inputs: str = ""
    affines: list[AffineFate] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    names: dict[str, str | None] = field(default_factory=dict)
    containers: dict[str, str | None] = field(default_factory=dict)  # block to the layer that gives what it returned
    notes: list[str] = field(default_factory=list)
    verdict: VerdictRecord | None = None
    versions: dict[str, str] = field(default_factory=dict)
    proof: Proof | None = None
    certificate: str = field(default="", repr=False)  # what `canonize check` reads; JSON
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
        del data["certificate"]  # a file of its own
        data["canonical"] = self.canonical
        return data

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON; see ``docs/report.md`` for the fields."""
        return json.dumps(self.to_dict(), indent=indent)
