"""Through which operations relevance comes, found by running them: what lies between an output and the inputs.

Every module notes which part of torch's autograd graph its call has made. The graph itself then says what the output
depends on, whichever way it was written: modules, bare functions, TorchScript. Sizes, conditions and whole numbers have
no gradient and are not on the way.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.compat.private import pytree
from canonize.graph.factors import below, dependents, gates_closed, graphs_in
from canonize.inputs import Inputs
from canonize.vocabulary.kinds import Kind, described, is_copy, kind_of, operands_of, reads_first_alone

# What hooks put into the graph.
_HOOKS = {"Identity", "BackwardHookFunction", "Entry", "Exit"}


@dataclass(frozen=True)
class RelevantOperation:
    """An operation on the way.

    Attributes
    ----------
    where : str
        Qualified name of the module; of a bare function, of the innermost module around it.
    module : nn.Module or None
        None for a bare function.
    operator : str
        Of a bare function: torch's name for it.
    carrying : tuple of bool
        Which arguments of the module depend on what is explained.
    stops : bool
        Whether relevance ends here: its value has no gradient, though an argument has.
    """

    where: str
    module: nn.Module | None = None
    operator: str = ""
    carrying: tuple[bool, ...] = ()
    stops: bool = False

    @property
    def has_rule(self) -> bool:
        """Whether a rule is known for it; copies need none."""
        if self.module is None:
            return is_copy(self.operator)
        kind = kind_of(self.module)
        if self.stops or kind in (Kind.UNKNOWN, Kind.CLOSED):
            return False
        if self.is_affine:
            return False
        if kind is Kind.SCALE:  # by a number, or by what does not depend on the input
            divisors = operands_of(self.module, len(self.carrying)).divisors
            divided_by = any(carries for place, carries in enumerate(self.carrying) if place in divisors)
            return sum(self.carrying) == 1 and not divided_by
        return True

    @property
    def is_affine(self) -> bool:
        """Whether it is a normalisation that scales and shifts: relevance would pass as if it did nothing."""
        if self.module is None:
            return False
        kind = kind_of(self.module)
        return kind is Kind.BATCH_NORM or (kind is Kind.NORMALISATION and _carries_affine(self.module))

    @property
    def what(self) -> str:
        """What to call it."""
        if self.module is None:
            return f"{self.operator} (a function, no module)"
        return f"{described(self.module)}, behind which gradients stop" if self.stops else described(self.module)


def _carries_affine(module: nn.Module) -> bool:
    return any(getattr(module, name, None) is not None for name in ("weight", "bias"))


@dataclass
class _Span:
    """One call: which nodes of the autograd graph were made meanwhile."""

    first: int
    last: int
    name: str
    module: nn.Module
    carrying: tuple[bool, ...] = ()
    stops: bool = False
    made: tuple[Any, ...] = ()


@dataclass
class Way:
    """Notes, while a model runs, which module makes which part of the autograd graph; use it as a context.

    Parameters
    ----------
    model : nn.Module
    """

    model: nn.Module
    spans: list[_Span] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)
    open: list[tuple[nn.Module, int, tuple[bool, ...]]] = field(default_factory=list)

    def __enter__(self) -> Way:
        for name, module in self.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks; what it does is seen in the graph
            self.handles.append(module.register_forward_pre_hook(self._before, prepend=True))
            self.handles.append(module.register_forward_hook(self._behind(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.open.append((module, _now(), tuple(_carries(value) for value in inputs)))

    def _behind(self, name: str) -> Any:
        def behind(module: nn.Module, inputs: Any, output: Any) -> None:
            while self.open:
                opened, first, carrying = self.open.pop()
                if opened is module:
                    break
            else:
                return
            tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
            given = carrying[:1] if reads_first_alone(module) else carrying
            stops = any(given) and bool(tensors) and not any(t.requires_grad for t in tensors)
            stops = stops and is_one_operation(module) and kind_of(module) not in (Kind.SOURCE, Kind.DISCRETE)
            made = tuple(t.grad_fn for t in tensors if t.grad_fn is not None)
            self.spans.append(_Span(first, _now(), name, module, carrying, stops, made))

        return behind

    def forget(self) -> None:
        """Begin anew, for another call of the model."""
        self.spans.clear()
        self.open.clear()

    def operations(self, outputs: Iterable[Tensor], sources: Iterable[Tensor]) -> list[RelevantOperation]:
        """What lies between outputs and the leaves that they depend on, in order of execution."""
        spans = sorted(self.spans, key=lambda span: (span.first, -span.last))
        starts = [span.first for span in spans]
        # Where a gradient is not implemented, the node has no number of its own.
        makers = {node: span for span in reversed(spans) for node in span.made if is_one_operation(span.module)}
        found: dict[tuple[int, str, str], RelevantOperation] = {}
        unheard = {below(outer, name) for outer, graph in graphs_in(self.model).items() for name in _unheard(graph)}
        for span in spans:
            if span.stops and span.name not in unheard:
                operation = RelevantOperation(span.name, span.module, carrying=span.carrying, stops=True)
                found[span.first, span.name, ""] = operation
        for node in _between(outputs, sources):
            if _is_hook(node):
                continue
            made_in = makers.get(node) or _innermost(spans, starts, node._sequence_nr())
            if made_in is not None and is_one_operation(made_in.module):
                operation = RelevantOperation(made_in.name, made_in.module, carrying=made_in.carrying)
                found[made_in.first, made_in.name, ""] = operation
            else:
                operator = operator_of(node)
                around = made_in.name if made_in is not None else ""
                found[node._sequence_nr(), around, operator] = RelevantOperation(around, operator=operator)
        return [found[key] for key in sorted(found)]


def _unheard(graph: fx.GraphModule) -> set[str]:
    """Modules whose values are looked at for conditions and sizes alone: what stops there was on no way."""
    found = set()
    for node in graph.graph.nodes:
        readers = [graph.get_submodule(str(u.target)) for u in node.users if u.op == "call_module"]
        if node.op != "call_module" or len(readers) != len(node.users):
            continue
        if all(kind_of(reader) in (Kind.DISCRETE, Kind.SOURCE) for reader in readers):
            found.add(str(node.target))
    return found


def _now() -> int:
    """The number that the next node of this thread's autograd graph gets, or the one before."""
    with torch.enable_grad(), torch.inference_mode(False):
        probe = torch.zeros((), requires_grad=True).view(1)
    assert probe.grad_fn is not None
    return int(probe.grad_fn._sequence_nr())


def _carries(value: Any) -> bool:
    return any(isinstance(t, Tensor) and t.requires_grad for t in pytree.tree_leaves(value))


def is_one_operation(module: nn.Module) -> bool:
    """Whether a module is one operation to a rule; others are seen as what they do inside."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    if kind_of(module) is not Kind.UNKNOWN or isinstance(module, cnn.Call):
        return True
    return type(module).__module__.startswith("torch.nn.modules") and not any(True for _ in module.children())


def _innermost(spans: Sequence[_Span], starts: Sequence[int], number: int) -> _Span | None:
    position = bisect.bisect_left(starts, number) - 1
    while position >= 0:
        span = spans[position]
        if span.first < number <= span.last:
            outer = _outermost_operation(spans, position, number)
            return span if outer is None else outer
        position -= 1
    return None


def _outermost_operation(spans: Sequence[_Span], position: int, number: int) -> _Span | None:
    """Parts of what counts as one operation (the projection inside attention) count as it."""
    found = None
    for span in spans[: position + 1]:
        if span.first < number <= span.last and is_one_operation(span.module):
            return span
    return found


def _between(outputs: Iterable[Tensor], sources: Iterable[Tensor]) -> Iterator[Any]:
    """Nodes of the autograd graph from which a source can be reached."""
    wanted = {id(source) for source in sources}
    edges: dict[Any, list[Any]] = {}
    queue = [output.grad_fn for output in outputs if output.grad_fn is not None]
    ends: list[Any] = []
    while queue:
        node = queue.pop()
        if node in edges:
            continue
        closed = _closed(node)
        edges[node] = [
            follower
            for place, (follower, _) in enumerate(node.next_functions)
            if follower is not None and place not in closed
        ]
        queue += edges[node]
        if not edges[node] and id(getattr(node, "variable", None)) in wanted:
            ends.append(node)
    readers: dict[Any, list[Any]] = {}
    for node, followers in edges.items():
        for follower in followers:
            readers.setdefault(follower, []).append(node)
    reached = set(ends)
    queue = list(ends)
    while queue:
        for reader in readers.get(queue.pop(), ()):
            if reader not in reached:
                reached.add(reader)
                queue.append(reader)
    return (node for node in reached if node not in set(ends))


def _closed(node: Any) -> set[int]:
    """Places at which a rule in force lets no relevance pass; hooks that stand in the graph say so."""
    tell = getattr(node, "closed", None)
    return tell() if callable(tell) else set()


def _is_hook(node: Any) -> bool:
    made = getattr(type(node), "_forward_cls", None)
    return getattr(made, "__name__", node.name().removesuffix("Backward")) in _HOOKS


def operator_of(node: Any) -> str:
    """Torch's name for the operation behind a node of the autograd graph, in its own spelling of words."""
    name = node.name().rpartition("::")[2].rpartition(" ")[2]
    name = re.sub(r"Backwards?\d*$", "", name)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("_2_d", "2d").replace("2_d", "2d")


def unruled(module: fx.GraphModule, inputs: Inputs | None) -> list[RelevantOperation]:
    """Modules of a graph that relevance comes through and no rule is known for.

    Parameters
    ----------
    module : fx.GraphModule
    inputs : Inputs or None
        To run it on where a module without a rule is there at all; without inputs each of them counts.
    """
    calls = [(node, module.get_submodule(str(node.target))) for node in module.graph.nodes if node.op == "call_module"]
    scales = any(kind_of(layer) is Kind.SCALE for _, layer in calls)
    dependent = dependents(module) if scales else set()
    doubtful = [
        RelevantOperation(str(node.target), layer, carrying=tuple(argument in dependent for argument in node.args))
        for node, layer in calls
    ]
    doubtful = [operation for operation in doubtful if not operation.has_rule]
    if not doubtful or inputs is None:
        return doubtful
    try:
        with torch.enable_grad():
            found = _run(module, inputs)
    except Exception:  # on inputs that it was not made for, or without its device: say what there is
        return doubtful
    missing = [operation for operation in found if not operation.has_rule]
    return [operation for doubt in doubtful for operation in missing if is_at(doubt.where, operation.where)]


def is_at(name: str, where: str) -> bool:
    """Whether an operation is the layer of that name, or happens inside it: of a layer of several operations, say."""
    return where == name or where.startswith(f"{name}.")


def _run(module: fx.GraphModule, inputs: Inputs) -> list[RelevantOperation]:
    sources: list[Tensor] = []

    def source(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            sources.append(value.detach().clone().requires_grad_())
            return sources[-1]
        return value

    given = inputs.map(source)
    handles = [] if sources else start_at_embeddings(module, sources)
    try:
        with gates_closed(module), Way(module) as way:
            outputs = module(*given.args, **given.kwargs)
        return way.operations((t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor)), sources)
    finally:
        for handle in handles:
            handle.remove()


def start_at_embeddings(model: nn.Module, sources: list[Tensor]) -> list[Any]:
    """Let gradients begin behind the embeddings of tokens; what comes out of them is added to the sources."""

    def begin(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        sources.append(output.detach().requires_grad_())
        return sources[-1]

    return [layer.register_forward_hook(begin) for layer in model.modules() if isinstance(layer, nn.Embedding)]
