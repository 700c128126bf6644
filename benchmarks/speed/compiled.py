"""Whether ``torch.compile`` takes the canonical model in one graph, and how fast what it makes is."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.row import Row, Settings
from benchmarks.speed.subjects import build
from benchmarks.speed.timing import compare, interleaved, quiet, said, shortest_time
from canonize import canonize

PART = "compile"
BACKENDS = ("eager", "aot_eager", "inductor")


def measure(subject: str, settings: Settings) -> list[Row]:
    """One row a backend; the cheap ones say whether it is one graph, the code generator how fast it is."""
    model, x = build(subject, settings)
    canonical = canonize(model, x, verify=False, copy=True)
    rows = []
    for backend in BACKENDS:
        if backend == "inductor" and not settings.inductor:
            continue
        row = Row(PART, subject, backend)
        rows.append(row)
        try:
            with torch.no_grad(), quiet():
                torch._dynamo.reset()
                if backend == "eager":
                    told = torch._dynamo.explain(canonical)(x)
                    row.more = {"graphs": told.graph_count, "breaks": told.graph_break_count}
                    torch._dynamo.reset()
                _measured(row, model, canonical, x, backend, settings)
        except Exception as error:
            row.note = said(error)
    torch._dynamo.reset()
    return rows


def _measured(row: Row, model: nn.Module, canonical: nn.Module, x: Tensor, backend: str, settings: Settings) -> None:
    count = _Counted(backend)
    compiled = torch.compile(copy.deepcopy(canonical), fullgraph=True, backend=count)
    start = time.perf_counter()
    found, wanted = compiled(x), canonical(x)
    row.more["seconds_to_compile"] = time.perf_counter() - start
    if backend != "eager":
        row.more |= {"graphs": count.graphs, "breaks": count.graphs - 1}
    error = _difference(found, wanted)
    row.note = "" if error < 1e-3 else f"differs from eager by {error:.0e}"
    if backend != "inductor":
        return
    original = torch.compile(copy.deepcopy(model), backend=backend)
    contestants: dict[str, Callable[[], Any]] = {"canonize": lambda: compiled(x), "original": lambda: original(x)}
    times = interleaved(contestants, settings, shortest_time)
    compare(row, times["canonize"], times["original"])


class _Counted:
    """A backend that counts the graphs it is given."""

    def __init__(self, backend: str) -> None:
        self.backend: Any = torch._dynamo.lookup_backend(backend)
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return self.backend(graph, inputs)


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())
