"""What canonize does to one architecture, as a row of the table."""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.coverage.zoo import Architecture, Feed, build, feeds
from canonize import canonize
from canonize.errors import CanonizeError
from canonize.report import AffineFate, Report
from canonize.twins.float64 import InFloat64
from canonize.twins.twin import float64_twin
from tests.checks import count_batch_norms, relative_error
from tests.statistics import calibrate, harden

MILLION = 1_000_000
_MOST_REASONS = 12
SMALL_RESPONSE = 1e-13


@dataclass
class Row:
    """One architecture.

    Attributes
    ----------
    outcome : str
        ``exact``, ``different``, ``refused``, ``skipped`` (too large), ``unusable`` (the original cannot run here),
        ``out of time`` or ``out of memory``.
    batch_norms, batch_norms_left : int
        Dispatched by one forward of the original and of the canonical model.
    affines, absorbed, last_resort, left : int
        Frozen affines of any kind, BatchNorms among them, and what became of them.
    norms, norms_absorbed : int
        The same, of BatchNorms alone.
    error : float
        Largest difference of outputs in float64, over the largest absolute value of the original's.
    casts_undone : bool
        Whether the model casts to float32 within, so that nothing of it could be exact in float64, and was run, before
        and after, with these casts read as casts to float64.
    disturbance : float
        How far the running statistics are off those of the data.
    gain : float
        The last factor put on the weights, where their random values let rounding errors grow.
    seconds : float
        That ``canonize.canonize(verify=False)`` took.
    """

    key: str
    family: str
    outcome: str
    parameters: int = 0
    input: str = ""
    captured_by: str = ""
    batch_norms: int = 0
    batch_norms_left: int = 0
    affines: int = 0
    absorbed: int = 0
    last_resort: int = 0
    left: int = 0
    norms: int = 0
    norms_absorbed: int = 0
    canonical: bool = False
    error: float = float("nan")
    casts_undone: bool = False
    disturbance: float = 0.3
    gain: float = 1.0
    seconds: float = 0.0
    reason: str = ""
    unabsorbed: dict[str, int] = field(default_factory=dict)
    findings: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def measure(architecture: Architecture, most_parameters: float, seed: int) -> Row:
    """Canonize one architecture with hard statistics and compare it with the original, without canonize's own verify.

    Parameters
    ----------
    architecture : Architecture
    most_parameters : float
        In millions; larger models are skipped, and say so.
    seed : int
        Of weights, statistics and inputs.

    Returns
    -------
    Row
    """
    row = Row(architecture.key, architecture.family, "unusable")
    with warnings.catch_warnings(), _Widened() as casts:
        warnings.simplefilter("ignore")
        try:
            row.parameters = _size(architecture)
            if row.parameters > most_parameters * MILLION:
                row.outcome, row.reason = "skipped", f"more than {most_parameters:g} million parameters"
                return row
            model, feed = prepared(architecture, seed, row)
            casts.found = False
            _compare(model, *_inputs(feed, seed), row)
            row.casts_undone = casts.found
        except Exception as error:
            row.reason = _said(error)
    gc.collect()
    return row


class _Widened(InFloat64):
    """Reads float32 as float64 wherever a forward casts to it, and notices whether any did."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = (*args, *(kwargs or {}).values())
        self.found |= torch.float32 in [it for it in named if isinstance(it, torch.dtype)]
        self.found |= getattr(func, "__name__", "") == "float"
        return super().__torch_function__(func, types, args, kwargs)


def prepared(architecture: Architecture, seed: int, row: Row) -> tuple[nn.Module, Feed]:
    """A model in float64 with hard statistics that fit its data, and what makes batches for it.

    Deep networks with wild statistics blow rounding errors up until nothing can be said about equality: where the
    original's own answer to a change of its input by one part in 1e16 is not small, its statistics are made to fit
    the data more closely, and if that does not help its weights are scaled down (saturated attention), or its images
    are larger (statistics of a handful of pixels).
    """
    torch.manual_seed(seed)
    model = float64_twin(build(architecture))
    fitting = _fitting(architecture, model)
    feed = next(fitting)
    model = harden(model, seed, zero=True, tiny=True)
    tamer = [(feed, *it) for it in ((0.3, 1.0), (0.1, 1.0), (0.03, 1.0), (0.0, 1.0), (0.0, 0.3), (0.0, 0.1))]
    larger = ((other, 0.0, 1.0) for other in itertools.islice(fitting, 1))
    for feed, row.disturbance, row.gain in itertools.chain(tamer, larger):
        _scale_weights(model, row.gain)
        calibrate(model, *feed(2), seed=seed, floor=0.05, disturbance=row.disturbance)
        if max(_response(model, inputs) for inputs in _inputs(feed, seed)) <= SMALL_RESPONSE:
            break
    row.input = " ".join("x".join(map(str, t.shape[1:])) for t in feed(1))
    return model, feed


def _inputs(feed: Feed, seed: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What canonize sees, and what it does not: another batch size and another range."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return feed(2), tuple(t / 2 for t in feed(1))


@torch.no_grad()
def _scale_weights(model: nn.Module, gain: float) -> None:
    """Scale what multiplies matrices: BatchNorms undo it, attention's scores and gates shrink."""
    if gain != 1:
        for weight in model.parameters():
            weight.mul_(gain if weight.ndim > 1 else 1)


@torch.no_grad()
def _response(model: nn.Module, arguments: tuple[Tensor, ...]) -> float:
    """How much the output changes when every input changes by one rounding."""
    moved = tuple(t * (1 + torch.finfo(t.dtype).eps * torch.randn_like(t)) for t in arguments)
    return _error(model(*arguments), model(*moved))


def _size(architecture: Architecture) -> int:
    # Without memory for the weights, so that a giant can be skipped.
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in build(architecture).parameters())
    except Exception:
        return sum(p.numel() for p in build(architecture).parameters())


def _fitting(architecture: Architecture, model: nn.Module) -> Iterator[Feed]:
    """The sizes that the model takes, the cheapest first."""
    failure: Exception | None = None
    fits = False
    for feed in feeds(architecture, model):
        try:
            with torch.no_grad():
                model(*feed(1))
        except Exception as error:
            failure = failure or error
        else:
            fits = True
            yield feed
    if not fits:
        assert failure is not None
        raise failure


@torch.no_grad()
def _compare(model: nn.Module, arguments: tuple[Tensor, ...], other: tuple[Tensor, ...], row: Row) -> None:
    original = _Recorded(model)
    row.batch_norms = count_batch_norms(original, arguments)
    before = copy.deepcopy(model.state_dict())
    start = time.perf_counter()
    try:
        canonical = canonize(model, arguments, verify=False)
    except CanonizeError as error:
        row.outcome, row.reason = "refused", _said(error)
        return
    row.seconds = time.perf_counter() - start
    _account(canonical.report, row)
    try:
        canonical_run = _Recorded(canonical)
        row.batch_norms_left = count_batch_norms(canonical_run, arguments)
        row.error = max(_error(original.output, canonical_run.output), _error(model(*other), canonical(*other)))
    except Exception as error:
        row.outcome, row.reason = "different", _said(error)
        return
    row.outcome = "exact" if row.error <= 1e-10 else "different"
    if not all(torch.equal(a, before[name]) for name, a in model.state_dict().items()):
        row.outcome, row.reason = "different", "the model handed over was changed"


class _Recorded:
    """A model whose latest output is kept, so that no forward is run twice."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.output: Any = None

    def __call__(self, *arguments: Tensor) -> None:
        self.output = self.model(*arguments)


def _error(wanted: Any, got: Any) -> float:
    # Named tuples and the ordered dictionaries of libraries become plain ones in a graph: the tensors count.
    return relative_error(pytree.tree_leaves(_plain(got)), pytree.tree_leaves(_plain(wanted)))


def _plain(output: Any) -> Any:
    return dict(sorted(output.items())) if isinstance(output, dict) else output


def _account(report: Report, row: Row) -> None:
    row.captured_by = report.captured_by
    row.affines = len(report.affines)
    row.absorbed, row.last_resort, row.left = (report.count(it) for it in ("absorbed", "last resort", "left"))  # type: ignore[arg-type]
    norms = [fate for fate in report.affines if "batch" in fate.kind.lower() and "norm" in fate.kind.lower()]
    row.norms, row.norms_absorbed = len(norms), sum(fate.outcome == "absorbed" for fate in norms)
    row.canonical = report.canonical
    row.unabsorbed = dict(
        Counter(_kind_of(fate) for fate in report.affines if fate.outcome != "absorbed").most_common(_MOST_REASONS)
    )
    row.findings = dict(
        Counter(f"{it.rule}: {_unnumbered(it.what)}" for it in report.findings).most_common(_MOST_REASONS)
    )


def _kind_of(fate: AffineFate) -> str:
    reasons = dict.fromkeys(_unnumbered(it.partition(": ")[2]) for it in fate.reason.split("; "))
    return f"{fate.outcome}: {fate.kind}: {'; '.join(reasons)}"


def _unnumbered(text: str) -> str:
    """The same for the same layer of every block, so that alike reasons are counted together."""
    return re.sub(r"\d+", "#", text)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
