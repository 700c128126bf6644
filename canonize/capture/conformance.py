"""Whether a captured graph does what the model does: the same operators, in order, on the same values.

A tracer works by what it believes of the model: which way a branch goes, how many pieces there are, what a number is.
Here model and graph are both run and watched. Each operator that works on values which come from the inputs is one
event: its name, its numbers, the shapes and types of what it gives, and which earlier events gave what it reads. A
dropped write, a lost branch, a baked value, a wrong number of pieces shows as a difference between the two lists before
any number is compared; and the list knows the line of code.

Both run on the meta device, where sizes take no time, and for real only where that cannot be followed. A layer is one
event; what happens inside is the same in both.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from canonize.capture.baking import bake_weights
from canonize.capture.captured import Captured
from canonize.capture.events import Event, Recorder
from canonize.capture.running import GuardedError, as_it_was, duplicate, empty, fresh, like, run_graph
from canonize.errors import CaptureError, cuts_in
from canonize.graph.shapes import meta_cannot_follow
from canonize.inputs import Inputs
from canonize.inputs.sizes import other_batches, other_sizes
from canonize.twins.copying import Copier, eval_copy
from canonize.twins.modules import named_modules

# Operators that give values of a tensor to Python, and what torch.export makes of them.
_READS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"}
_READ_AGAIN = {"_local_scalar_dense", "item"}
# More sizes than these are not tried.
_MOST_SIZES = 4
# Larger inputs than these are not run for real with all of their rows.
_MANY = 2_000_000


def check_conformance(model: nn.Module, captured: Captured, inputs: Inputs) -> None:
    """Compare what a model does with what a captured graph does, at the example's sizes and at others.

    Parameters
    ----------
    model : nn.Module
        The original; never changed.
    captured : Captured
        By ``torch.fx``, as it was traced.
    inputs : Inputs

    Raises
    ------
    CaptureError
        Where they do not do the same.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return  # an interpreter of our own ran it already
    prepared = eval_copy(model)
    bake_weights(prepared)
    comparison = _Comparison(prepared, captured)
    if not comparison.at(inputs, own=True):
        return
    # Other rows and other sizes at once, where the model takes it: each run costs as much as another.
    many = (inputs, *other_batches(inputs))[-1]
    taken = [comparison.at(case) for case in other_sizes(many)[0][:_MOST_SIZES]]
    if not any(taken) and many is not inputs:
        comparison.at(many)


def refuse_lost_reads(model: nn.Module, captured: Captured, inputs: Inputs) -> None:
    """Make sure that a graph of ``torch.export`` reads the values that the model reads.

    Parameters
    ----------
    model, captured, inputs
        As for `check_conformance`.

    Raises
    ------
    CaptureError
        Where the model looks at a value of its inputs, or of what is computed from them, and the graph does not.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return
    prepared = eval_copy(model)
    bake_weights(prepared)
    try:
        events = _Comparison(prepared, captured).model_does(inputs, real=True)
    except Exception as error:
        if cuts_in(error):
            raise
        return  # torch.export has followed what cannot be run here
    reads = [event for event in events if event.operator in _READS]
    kept = sum(getattr(node.target, "__name__", "").partition(".")[0] in _READ_AGAIN for node in captured.graph.nodes)
    if len(reads) > kept:
        raise CaptureError(
            "what it computes depends on the values of a tensor, which it reads as plain numbers",
            reads[kept].line,
            "Compute with tensors (torch.where), or canonize the submodules around it.",
        )


@dataclass
class _Comparison:
    """Of a model and its graph, on several inputs."""

    model: nn.Module
    captured: Captured
    metas: dict[Any, Any] = field(default_factory=dict)
    twins: dict[Any, nn.Module] = field(default_factory=dict)

    def at(self, inputs: Inputs, own: bool = False) -> bool:
        """Compare on these inputs; false where the model does not take them, or nothing can be said.

        Raises
        ------
        CaptureError
            Where the graph does something else, without refusing these inputs by a check of its own.
        """
        for real in (True,) if self.captured.told else (False, True):
            if real and sum(t.numel() for t in inputs.tensors()) > _MANY:
                return False
            try:
                expected = self.model_does(inputs, real)
            except Exception as error:
                if cuts_in(error):
                    raise
                if meta_cannot_follow(error):
                    continue
                return False
            try:
                found = self._graph_does(inputs, real)
            except GuardedError:
                return True
            except Exception as error:
                if cuts_in(error):
                    raise
                if not real and meta_cannot_follow(error):
                    continue
                raise _fails(error, inputs) from error
            _refuse_difference(expected, found, inputs, own)
            return True
        return False

    def model_does(self, inputs: Inputs, real: bool) -> list[Event]:
        """What the model does on these inputs, event by event."""
        twin, given = self._twin(self.model, real), fresh(inputs, real)
        with as_it_was(twin), torch.enable_grad(), self._recorder(twin, given, real, lines=True) as recorder:
            twin(*given.args, **given.kwargs)
        events: list[Event] = recorder.events
        return events

    def _graph_does(self, inputs: Inputs, real: bool) -> list[Event]:
        twin, given = self._twin(self.captured.root, real), fresh(inputs, real)
        with as_it_was(twin), torch.enable_grad(), self._recorder(twin, given, real, lines=False) as recorder:
            run_graph(self.captured.graph, twin, given)
        events: list[Event] = recorder.events
        return events

    def _recorder(self, twin: nn.Module, given: Inputs, real: bool, lines: bool) -> Recorder:
        return Recorder(twin, given, None if real else self.metas, lines=lines)

    def _twin(self, model: nn.Module, real: bool) -> nn.Module:
        """An eval-mode copy with tensors of its own: with the same values, or without any."""
        if (model, real) not in self.twins:
            replace = duplicate if real else self._without_values
            twin: nn.Module = Copier(replace, share_graphs=True).copy(model)
            for _, module in named_modules(twin):
                module.__dict__["training"] = False
            self.twins[model, real] = twin
        return self.twins[model, real]

    def _without_values(self, tensor: Tensor) -> Tensor:
        known = self.metas.get(id(tensor))
        if known is None:
            known = self.metas[id(tensor)] = (tensor, like(tensor, empty(tensor)))
        made: Tensor = known[1]
        return made


def _refuse_difference(expected: list[Event], found: list[Event], inputs: Inputs, own: bool) -> None:
    for one, other in itertools.zip_longest(expected, found):
        if one is None or other is None or not one.same_as(other):
            raise _told(one, other, inputs, own)


def _told(one: Event | None, other: Event | None, inputs: Inputs, own: bool) -> CaptureError:
    if one is None or other is None or one.operator != other.operator:
        said = [_verb(event) for event in (one, other)]
        what = f"the model {said[0]} where the captured graph {said[1]}"
    elif one.results != other.results:
        what = f"{_name(one)} gives {_shapes(one)} in the model and {_shapes(other)} in the captured graph"
    else:
        what = f"{_name(one)} works on other values, or with other numbers, than in the captured graph"
    where = one.line if one is not None else None
    return CaptureError(
        what + ("" if own else f" (on {inputs.describe()})"),
        where,
        "Its forward does something that a trace cannot see.",
    )


def _verb(event: Event | None) -> str:
    return "does nothing more" if event is None else f"calls {_name(event)}"


def _name(event: Event) -> str:
    return event.operator.partition("::")[2].partition(".")[0] or event.operator


def _shapes(event: Event) -> str:
    return ", ".join(
        f"{'x'.join(map(str, r[0])) or 'scalar'} {str(r[1]).removeprefix('torch.')}" if isinstance(r, tuple) else str(r)
        for r in event.results
    )


def _fails(error: Exception, inputs: Inputs) -> CaptureError:
    lines = str(error).strip().splitlines() or [""]
    told = f"{type(error).__name__}: {lines[0][:160]}"
    return CaptureError(f"the captured graph fails on {inputs.describe()}, which the model takes ({told})")
