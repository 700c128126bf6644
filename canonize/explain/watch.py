"""Keeps the law while a model is explained: sees what relevance comes through; refuses or notes what has no rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from canonize.errors import ExplainError
from canonize.explain.law import lawless, refuse
from canonize.explain.methods import Method
from canonize.graph.factors import graphs_in
from canonize.graph.relevance import RelevantOperation, Way
from canonize.vocabulary.kinds import operator_of

# What guided backpropagation and DeconvNet bend, where it is no module that they can see.
RECTIFIERS = {"relu", "threshold", "clamp", "clamp_min", "rrelu", "differentiable_graph"}


class LawWatch:
    """Looks at each forward pass of an attribution; use it as a context, inside that of the rules.

    Parameters
    ----------
    model : nn.Module
    method : Method
    rules : composite or None
        The rules in force, for methods that are sets of rules.
    unruled : {"refuse", "gradient"}
        What to do about operations of canonical models that have no rule. Of other models they are noted.
    """

    def __init__(self, model: nn.Module, method: Method, rules: Any, unruled: str) -> None:
        self.method, self.rules, self.unruled = method, rules, unruled
        self.canonical = [name for name, graph in graphs_in(model).items() if hasattr(graph, "report")]
        self.way = Way(model)
        self.found: dict[tuple[str, str], list[RelevantOperation]] = {}
        self.doubts: dict[str, None] = {}
        self.passes = 0

    def __enter__(self) -> LawWatch:
        self.way.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.way.__exit__()

    def before(self) -> None:
        """A forward pass begins."""
        self.way.forget()

    def behind(self, output: Tensor, sources: Sequence[Tensor]) -> None:
        """A forward pass is over.

        Raises
        ------
        ExplainError
            If relevance comes through an operation of a canonical model that has no rule.
        """
        operations = self.way.operations([output], sources)
        self.way.forget()
        missing = [operation for operation in operations if not self._has_rule(operation)]
        own = [operation for operation in missing if self._is_canonical(operation)]
        if own and self.unruled == "refuse":
            raise refuse(self.method.name, own)
        if not self.passes:
            for operation in missing:
                self.found.setdefault((operation.where, operation.what), []).append(operation)
        self.passes += 1

    def doubt(self, what: str, hint: str) -> None:
        """Say that a result is not what its method promises: refused of a canonical model, noted of others.

        Raises
        ------
        ExplainError
        """
        if self.canonical and self.unruled == "refuse":
            raise ExplainError(what, hint=hint)
        self.doubts[what] = None

    def notes(self) -> tuple[str, ...]:
        """What the heatmap owes to operations without a rule."""
        found = [operation for group in self.found.values() for operation in group]
        norms = [o for o in found if o.is_affine]
        others = [o for o in found if o not in norms]
        passed = () if not norms else (_norms(norms, self.method.activations),)
        return (*lawless(others), *passed, *self.doubts)

    def _is_canonical(self, operation: RelevantOperation) -> bool:
        if operation.module is None:
            return operation.where in self.canonical
        return any(not name or operation.where.startswith(f"{name}.") for name in self.canonical)

    def _has_rule(self, operation: RelevantOperation) -> bool:
        if self.method.name == "deep-lift":
            from canonize.explain.deep_lift import has_deep_lift_rule

            return has_deep_lift_rule(operation)
        module = operation.module
        if not self.method.shares:  # gradients, bent at rectifiers
            operator = operation.operator if module is None else operator_of(module)
            return operator not in RECTIFIERS
        if module is None:
            return operation.has_rule
        if self.rules is not None and self.rules.names_rule_of(operation.where, module):
            return True
        return operation.has_rule


def _norms(norms: Sequence[RelevantOperation], passed: bool) -> str:
    names = list(dict.fromkeys(operation.where for operation in norms))
    kinds = ", ".join(dict.fromkeys(operation.what for operation in norms))
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    what = "relevance passes as if it did nothing" if passed else "the plain gradient was taken"
    return f"the affine of {kinds} has no rule, and {what}: {shown}; canonize the model first"


def forward_once(watch: LawWatch, model: nn.Module, pick: Any, inputs: tuple[Any, ...]) -> None:
    """One forward pass for the watch alone, for methods that run the model in their own ways."""
    values = list(inputs)
    sources = []
    for place, value in enumerate(inputs):
        if isinstance(value, Tensor) and value.is_floating_point():
            values[place] = value.detach().clone().requires_grad_()
            sources.append(values[place])
    with torch.enable_grad():
        watch.before()
        watch.behind(pick(model(*values)), sources)
