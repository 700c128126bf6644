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

import enum
import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from canonize.capture.baking import bake_weights
from canonize.capture.captured import Captured
from canonize.capture.events import Event, EventRecorder, aliases
from canonize.capture.running import GuardedError, Runnable, alike, duplicate, empty, fresh, like, run_graph
from canonize.compat.private import pytree
from canonize.errors import ConformanceError, cuts_in
from canonize.graph.shapes import meta_cannot_follow
from canonize.inputs import Inputs
from canonize.inputs.sizes import other_batches, other_sizes
from canonize.twins.copying import Copier, eval_copy
from canonize.twins.module_tree import named_modules

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
    ConformanceError
        Where they do not do the same.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return  # an interpreter of our own ran it already
    # The copy that was traced, which is again as it was: model and graph run with the same layers.
    comparison = _Comparison(captured.root, captured)
    # Other rows and other sizes at once, where the model takes it, and without gradients: each run costs as much, and
    # most of what would show at the example shows there too.
    many = (inputs, *other_batches(inputs))[-1]
    try:
        found = [comparison.at(case) for case in other_sizes(many)[0][:_MOST_SIZES]]
        if not any(found):
            found.append(comparison.at(many))
    except ConformanceError:
        comparison.at(inputs, own=True)  # what differs at the example itself is said so
        raise
    if _Outcome.SAME not in found or captured.asks_for_gradients:
        comparison.at(inputs, own=True)
    if captured.asks_for_gradients:
        comparison.at(inputs, tracked=True)


def check_values(model: nn.Module, captured: Captured, inputs: Inputs) -> None:
    """Compare what a graph of ``torch.export`` gives with what the model gives, and which values both read.

    Its operators are others than the model's, so that no list of them can be compared.

    Parameters
    ----------
    model, captured, inputs
        As for `check_conformance`.

    Raises
    ------
    ConformanceError
        Where the model looks at a value of its inputs, or of what is computed from them, and the graph does not; or
        where they give something else.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return
    prepared = eval_copy(model)
    bake_weights(prepared)
    comparison = _Comparison(prepared, captured)
    try:
        wanted = comparison.model_does(inputs, real=True, lines=True)
    except Exception as error:
        if cuts_in(error):
            raise
        return  # torch.export has followed what cannot be run here
    reads = [event for event in wanted.events if event.operator in _READS]
    kept = sum(getattr(node.target, "__name__", "").partition(".")[0] in _READ_AGAIN for node in captured.graph.nodes)
    if len(reads) > kept:
        raise ConformanceError(
            "what it computes depends on the values of a tensor, which it reads as plain numbers",
            reads[kept].line,
            "Compute with tensors (torch.where), or canonize the submodules around it.",
        )
    if any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in captured.graph.nodes):
        return
    try:
        found = comparison.graph_does(inputs, real=True)
    except Exception as error:
        if cuts_in(error):
            raise
        raise _fails(error, inputs) from error
    if not alike(wanted.output, found.output):
        raise ConformanceError(
            "the graph that torch.export makes of it gives something else than the model",
            type(model).__name__,
            "A tensor may be written to under another name (a view, what a function hands through): clone it first.",
        )
    _check_gradients(comparison, inputs, wanted.output, type(model).__name__)


def _check_gradients(comparison: _Comparison, inputs: Inputs, wanted: Any, name: str) -> None:
    """The same where gradients are asked for; a model that they cannot be asked of is left alone."""
    try:
        tracked = comparison.model_does(inputs, real=True, tracked=True)
        gradients = tracked.gradients()
        found = comparison.graph_does(inputs, real=True, tracked=True).gradients()
    except Exception as error:
        if cuts_in(error):
            raise
        return
    if not alike(wanted, tracked.output):
        raise ConformanceError(
            "its forward computes something else where gradients are asked for (requires_grad)",
            name,
            "Canonize a model that computes the same with and without gradients.",
        )
    if not alike(gradients, found):
        raise ConformanceError(
            "the graph that torch.export makes of it has other gradients than the model",
            name,
            "It may write through .detach() or .data, or switch gradients off inside: take that out of forward.",
        )


@dataclass(frozen=True)
class _Seen:
    """What was done on some inputs, event by event, and what it gave."""

    events: list[Event]
    output: Any
    inputs: Inputs

    def gradients(self) -> list[Tensor]:
        """Of the sum of the outputs, for inputs that require them."""
        leaves = [tensor for tensor in self.inputs.tensors() if tensor.requires_grad]
        made = [x for x in pytree.tree_leaves(self.output) if isinstance(x, Tensor) and x.requires_grad]
        if not made or not leaves:
            return []
        total = torch.stack([x.sum().real.double() for x in made]).sum()
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


class _Outcome(enum.Enum):
    """What a comparison has found; false where the model does not take the inputs, or nothing can be said."""

    UNKNOWN = 0
    REFUSED = 1  # by a check of the graph's own
    SIMILAR = 2  # the same here; but it may hang on the sizes which values share their memory
    SAME = 3

    def __bool__(self) -> bool:
        return self is not _Outcome.UNKNOWN


@dataclass
class _Comparison:
    """Of a model and its graph, on several inputs."""

    model: nn.Module
    captured: Captured
    metas: dict[Any, Any] = field(default_factory=dict)
    copies: dict[Any, Runnable] = field(default_factory=dict)

    def at(self, inputs: Inputs, *, own: bool = False, tracked: bool = False) -> _Outcome:
        """Compare on these inputs.

        Parameters
        ----------
        inputs : Inputs
        own : bool
            Whether they are the example, on which a model is run as it is traced: with gradients.
        tracked : bool
            With gradients, and inputs that require them.

        Raises
        ------
        ConformanceError
            Where the graph does something else, without refusing these inputs by a check of its own.
        """
        for real in (True,) if self.captured.told else (False, True):
            if real and sum(t.numel() for t in inputs.tensors()) > _MANY:
                return _Outcome.UNKNOWN
            try:
                expected = self.model_does(inputs, real, own or tracked, tracked)
            except Exception as error:
                if cuts_in(error):
                    raise
                if meta_cannot_follow(error):
                    continue
                return _Outcome.UNKNOWN
            try:
                found = self.graph_does(inputs, real, own or tracked, tracked)
            except GuardedError:
                return _Outcome.REFUSED
            except Exception as error:
                if cuts_in(error):
                    raise
                if not real and meta_cannot_follow(error):
                    continue
                raise _fails(error, inputs) from error
            if not _are_the_same(expected.events, found.events):
                # Lines of code take as long as all the rest: they are asked for where there is something to say.
                expected = self.model_does(inputs, real, own or tracked, tracked, lines=True)
                how = (
                    ""
                    if own
                    else " where gradients are asked for"
                    if tracked
                    else f" (without gradients, on {inputs.describe()})"
                )
                _refuse_difference(expected.events, found.events, how)
            # What is copied here may be the same memory at other sizes, which decides what a write reaches.
            copies = any(event.operator == "aten::clone" for event in expected.events)
            return _Outcome.SIMILAR if copies else _Outcome.SAME
        return _Outcome.UNKNOWN

    def model_does(
        self, inputs: Inputs, real: bool, gradients: bool = True, tracked: bool = False, lines: bool = False
    ) -> _Seen:
        """What the model does on these inputs."""
        copy, given = self._copy(self.model, real), fresh(inputs, real, tracked)
        with copy.running(), torch.set_grad_enabled(gradients):
            recorder = self._recorder(copy, given, real, lines)
            with recorder:
                output = copy.root(*given.args, **given.kwargs)
        return _Seen(recorder.events, output, given)

    def graph_does(self, inputs: Inputs, real: bool, gradients: bool = True, tracked: bool = False) -> _Seen:
        """What the graph does."""
        copy, given = self._copy(self.captured.root, real), fresh(inputs, real, tracked)
        with copy.running(), torch.set_grad_enabled(gradients):
            recorder = self._recorder(copy, given, real, lines=False)
            with recorder:
                values = run_graph(self.captured.graph, copy, given)
        self.captured.aliases = self.captured.aliases or aliases(values)
        return _Seen(recorder.events, next(reversed(values.values())), given)

    def _recorder(self, copy: Runnable, given: Inputs, real: bool, lines: bool) -> EventRecorder:
        return EventRecorder(copy.layers, given, None if real else self.metas, lines=lines)

    def _copy(self, model: nn.Module, real: bool) -> Runnable:
        """An eval-mode copy with tensors of its own: with the same values, or without any."""
        if (model, real) not in self.copies:
            replace = duplicate if real else self._without_values
            twin: nn.Module = Copier(replace, share_graphs=True).copy(model)
            for _, module in named_modules(twin):
                module.__dict__["training"] = False
            self.copies[model, real] = Runnable(twin)
        return self.copies[model, real]

    def _without_values(self, tensor: Tensor) -> Tensor:
        known = self.metas.get(id(tensor))
        if known is None:
            known = self.metas[id(tensor)] = (tensor, like(tensor, empty(tensor)))
        made: Tensor = known[1]
        return made


def _are_the_same(expected: list[Event], found: list[Event]) -> bool:
    return len(expected) == len(found) and all(map(Event.same_as, expected, found))


def _refuse_difference(expected: list[Event], found: list[Event], how: str) -> None:
    for one, other in itertools.zip_longest(expected, found):
        if one is None or other is None or not one.same_as(other):
            raise _told(one, other, how)


def _told(one: Event | None, other: Event | None, how: str) -> ConformanceError:
    if one is None or other is None or one.operator != other.operator:
        said = [_verb(event) for event in (one, other)]
        what = f"the model {said[0]} where the captured graph {said[1]}"
    elif one.results != other.results:
        what = f"{_name(one)} gives {_shapes(one)} in the model and {_shapes(other)} in the captured graph"
    else:
        what = f"{_name(one)} works on other values, or with other numbers, than in the captured graph"
    where = one.line if one is not None else None
    return ConformanceError(
        what + how,
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


def _fails(error: Exception, inputs: Inputs) -> ConformanceError:
    lines = str(error).strip().splitlines() or [""]
    told = f"{type(error).__name__}: {lines[0][:160]}"
    return ConformanceError(f"the captured graph fails on {inputs.describe()}, which the model takes ({told})")
