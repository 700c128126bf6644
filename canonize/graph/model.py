"""The class of a canonical model: a graph module that can account for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx
from torch.fx.graph_module import reduce_graph_module

from canonize.report import Report, attach_report


class CanonicalModel(fx.GraphModule):
    """What `canonize.canonize` gives: the graph of a model, one module a call, and the report of how it came to be.

    It is an ``fx.GraphModule`` in every respect; copies and pickles are of this class too. Each instance has a class of
    its own, as with every graph module, named as the class of the original model.

    Attributes
    ----------
    report : canonize.report.Report
        Every rewrite, every layer that is left with the reason, old names to new, and the verdict.
    seen_inputs : canonize.inputs.Inputs
        Shapes and dtypes of the inputs that it was made with; not kept in files, whose report tells them in words.
    """

    report: Report

    def __copy__(self) -> CanonicalModel:
        twin = CanonicalModel(self, self.graph, type(self).__name__)
        twin.meta = self.meta
        twin.training = self.training
        return with_report(twin, getattr(self, "report", None), getattr(self, "seen_inputs", None))

    def __reduce__(self) -> tuple[Callable[..., fx.GraphModule], tuple[Any, ...]]:
        body, imports = super().__reduce__()[1]
        return _unpickled, (body, imports)


def with_report(model: CanonicalModel, report: Report | None, seen: Any = None) -> CanonicalModel:
    """The model, its report attached so that it survives copying and saving."""
    if report is not None:
        attach_report(model, report, seen)
    return model


def _unpickled(body: dict[Any, Any], imports: str) -> CanonicalModel:
    plain: Any = reduce_graph_module(body, imports)
    model = CanonicalModel(plain, plain.graph, type(plain).__name__)
    model.meta = plain.meta
    model.train(plain.training)
    report, seen = (plain.__dict__.get(name) or body.get(name) for name in ("report", "seen_inputs"))
    return with_report(model, report, seen)
