"""A model while it is being rewritten: a graph whose every operation is a named module."""

from __future__ import annotations

import copy
import functools
import keyword
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from canonize.algebra.affine import Affine
from canonize.algebra.exact import ExactTensor, RoundedParameter, exact_value
from canonize.algebra.weights import LINEAR, Kernel, PendingWeights, rounded
from canonize.errors import RewriteError
from canonize.graph.affine_nodes import FrozenAffine as FrozenAffine
from canonize.graph.affine_nodes import Origin as Origin
from canonize.graph.correspondence import Correspondence
from canonize.graph.model import CanonicalModel
from canonize.graph.shapes import Shapes
from canonize.nn import Call, Slot
from canonize.twins.copying import is_plain
from canonize.twins.module_tree import put
from canonize.vocabulary import resolve_module, row_of

Answer = TypeVar("Answer")


@dataclass
class Network:
    """A graph, its modules by qualified name, and the rescalings pending on its linear layers.

    Attributes
    ----------
    graph : fx.Graph
        Nodes are placeholders, one output, ``call_module`` nodes, and bookkeeping: sizes, and items of tuples.
    modules : dict
        Qualified name to module; each is called by one node.
    shapes : Shapes
        What shape each node has, asked for only where a pattern needs it.
    dtype : torch.dtype
        The model's own floating dtype.
    before : Network or None
        What it was before it was rewritten.
    values : Correspondence
        What each value stands for, since the network was made.
    unread : dict
        Normalisations by running statistics that could not be read as affines, and why; they stay what they are.

    Notes
    -----
    Whatever changes the network goes through its methods, which drop what is known about the nodes concerned.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    shapes: Shapes
    name: str
    dtype: torch.dtype
    device: torch.device
    pending: dict[str, PendingWeights] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unread: dict[Origin, str] = field(default_factory=dict)
    containers: set[str] = field(default_factory=set)
    before: Network | None = None
    values: Correspondence = field(default_factory=Correspondence)
    _answers: dict[Hashable, Any] = field(default_factory=dict)
    _asked_about: dict[fx.Node, set[Hashable]] = field(default_factory=dict)

    # ------------------------------------------------------------------ reading

    def remembered(self, question: Hashable, answer: Callable[[], tuple[Answer, Iterable[fx.Node]]]) -> Answer:
        """An answer about a part of the network, worked out once until that part changes.

        Parameters
        ----------
        question : hashable
        answer : callable
            Gives the answer, and the nodes that were looked at: their layers, inputs and readers.
        """
        if question not in self._answers:
            found, nodes = answer()
            self._answers[question] = found
            for near in {part for node in nodes for part in (node, *node.all_input_nodes, *node.users)}:
                self._asked_about.setdefault(near, set()).add(question)
        known: Answer = self._answers[question]
        return known

    def _changed(self, *nodes: fx.Node) -> None:
        """Drop every answer about nodes that have another layer, other inputs or other readers now."""
        for node in nodes:
            for question in self._asked_about.pop(node, ()):
                self._answers.pop(question, None)

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def affines(self) -> list[fx.Node]:
        """Nodes that hold a frozen affine, in execution order."""
        modules = self.modules
        return [
            node for node in self.graph.nodes if node.op == "call_module" and type(modules[node.target]) is FrozenAffine
        ]

    def affine(self, node: fx.Node) -> FrozenAffine:
        """The frozen affine that a node holds."""
        module = self.module(node)
        assert isinstance(module, FrozenAffine)
        return module

    def weights(self, node: fx.Node) -> PendingWeights:
        """The (pending) weights of a linear layer."""
        name = str(node.target)
        if name not in self.pending:
            module = self.modules[name]
            assert isinstance(module, LINEAR)
            self.pending[name] = PendingWeights(module)
        return self.pending[name]

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Nodes that read a node's value (asking only for its size is not reading)."""
        return [u for u in node.users if not self.shapes.is_bookkeeping(u) and not self._only_measures(u, node)]

    def measures(self, reader: fx.Node, node: fx.Node) -> bool:
        """Whether a reader wants a value's shape or dtype only, or is bookkeeping."""
        return self.shapes.is_bookkeeping(reader) or self._only_measures(reader, node)

    def _only_measures(self, reader: fx.Node, node: fx.Node) -> bool:
        """Whether a reader wants a value's shape or dtype only (``x.reshape_as(value)``, ``value.new_zeros(2)``)."""
        module = self.module(reader)
        like = row_of(module).like if isinstance(module, Call) else ""
        if not like or reader.all_input_nodes.count(node) != 1:
            return False
        operation = resolve_module(module)
        if operation is None:
            return False
        slot = operation.bound.get(like)
        elsewhere = any(value == slot for name, value in operation.bound.items() if name != like)
        return isinstance(slot, Slot) and reader.args[slot.index] is node and not elsewhere

    def data_inputs(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values a node reads, in argument order, with repetitions."""
        return [arg for arg in node.args if isinstance(arg, fx.Node)]

    # ------------------------------------------------------------------ changing

    def fresh_name(self, wanted: str) -> str:
        """A qualified name that neither is taken nor contains, nor lies in, another layer."""
        wanted = re.sub(r"[^0-9A-Za-z_.]", "_", wanted).strip(".") or "layer"
        parts = [_usable(part) for part in wanted.split(".") if part]
        # A name below a layer would make the layer a container: put it beside the layer instead.
        for cut in range(1, len(parts)):
            if ".".join(parts[:cut]) in self.modules:
                parts = [*parts[: cut - 1], "_".join(parts[cut - 1 :])]
                break
        base = name = ".".join(parts)
        count = 0
        while self._clashes(name):
            count += 1
            name = f"{base}_{count}"
        return name

    def _clashes(self, name: str) -> bool:
        return name in self.modules or name in self.containers

    def call(self, name: str, module: nn.Module, inputs: Iterable[fx.Node], like: fx.Node) -> fx.Node:
        """Add a module and one node that calls it, at the graph's insertion point."""
        name = self.fresh_name(name)
        self.modules[name] = module
        parts = name.split(".")
        self.containers.update(".".join(parts[:cut]) for cut in range(1, len(parts)))
        node = self.graph.create_node("call_module", name)
        node.args = tuple(inputs)  # given at once they would be searched for symbolic numbers
        node.meta["path"] = like.meta.get("path", "")
        self.values.insert(node)
        self._changed(*node.all_input_nodes)
        return node

    def insert_after(
        self, node: fx.Node, name: str, module: nn.Module, readers: Iterable[fx.Node] | None = None
    ) -> fx.Node:
        """Put a module behind a node, in front of all its readers (or of those given)."""
        chosen = list(node.users) if readers is None else list(readers)
        with self.graph.inserting_after(node):
            new = self.call(name, module, (node,), node)
        for reader in chosen:
            reader.replace_input_with(node, new)
        self._changed(*chosen)
        return new

    def insert_before(self, reader: fx.Node, position: int, name: str, module: nn.Module) -> fx.Node:
        """Put a module on one input of a node."""
        source = reader.args[position]
        assert isinstance(source, fx.Node)
        with self.graph.inserting_before(reader):
            new = self.call(name, module, (source,), reader)
        reader.update_arg(position, new)
        self._changed(reader)
        return new

    def replace(self, node: fx.Node, module: nn.Module) -> None:
        """Exchange the module behind a node; the name stays."""
        self.modules[str(node.target)] = module
        self.pending.pop(str(node.target), None)
        self.shapes.forget(node)
        self._changed(node)

    def configure(self, node: fx.Node, **settings: Any) -> None:
        """Give a node's layer other settings (its padding, say); its weights, and what is pending on them, stay.

        The layer is a new one: whoever holds the old one sees no difference.
        """
        name = str(node.target)
        module = shell(self.modules[name])
        vars(module).update(settings)
        self.modules[name] = module
        self.shapes.forget(node)
        self._changed(node)

    def set_parameters(self, node: fx.Node, **parameters: nn.Parameter) -> None:
        """Give a node's layer other parameters. The layer is a new one, as in `configure`."""
        module = shell(self.modules[str(node.target)])
        module._parameters.update(parameters)
        self.modules[str(node.target)] = module
        self._changed(node)

    def set_affine(self, node: fx.Node, affine: Affine, origins: Sequence[Origin]) -> None:
        """Give a node another affine."""
        made = FrozenAffine(affine, origins)
        made.last_resort_only = self.affine(node).last_resort_only
        self.modules[str(node.target)] = made
        self._changed(node)

    def absorb_output(self, node: fx.Node, scale: Tensor, shift: Tensor) -> None:
        """Let a linear layer take an affine behind it."""
        self.weights(node).absorb_output(scale, shift)
        self._changed(node)

    def absorb_input(self, node: fx.Node, scale: Tensor, shift: Tensor) -> None:
        """Let a linear layer take an affine before it."""
        self.weights(node).absorb_input(scale, shift)
        self._changed(node)

    def fill(self, node: fx.Node, module: nn.Module, weight: Kernel, bias: Tensor | None) -> None:
        """Make a node call a linear layer whose weight is worked out when it is written."""
        self.replace(node, module)
        self.pending[str(node.target)] = PendingWeights(module)
        self.pending[str(node.target)].set(weight, bias)

    def rewire(self, reader: fx.Node, old: fx.Node, new: fx.Node) -> None:
        """Let a node read another value."""
        reader.replace_input_with(old, new)
        self.shapes.forget(reader)
        self._changed(reader, old, new)

    def rewire_readers(self, node: fx.Node, new: fx.Node) -> None:
        """Let everybody who reads a node read another value."""
        readers = list(node.users)
        node.replace_all_uses_with(new)
        for reader in readers:
            self.shapes.forget(reader)
        self._changed(node, new, *readers)

    def exchange(self, node: fx.Node, layer: fx.Node) -> None:
        """Put ``node`` behind ``layer``, its only reader: ``A -> layer -> node -> B``."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        layer.replace_input_with(node, source)
        readers = list(layer.users)
        layer.append(node)
        node.replace_input_with(source, layer)
        for reader in readers:
            reader.replace_input_with(layer, node)
        self.shapes.forget(layer)
        self.shapes.forget(node)
        self._changed(source, layer, node, *readers)

    def bypass(self, node: fx.Node) -> None:
        """Take a node out: its readers read its (first) input."""
        readers = list(node.users)
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        self._changed(*readers)
        self.remove(node)

    def remove(self, node: fx.Node) -> None:
        """Erase a node that nobody reads, and its module."""
        self._changed(node, *node.all_input_nodes)
        self.graph.erase_node(node)
        self.shapes.forget(node)
        if node.op == "call_module":
            self.modules.pop(str(node.target), None)
            self.pending.pop(str(node.target), None)

    def duplicate(self, node: fx.Node, inputs: Sequence[fx.Node], suffix: str) -> fx.Node:
        """A second call of a node's operation, with a module of its own, on other inputs."""
        original = self.modules[str(node.target)]
        module = shell(original)
        name = f"{node.target}_{suffix}"
        with self.graph.inserting_after(_last([node, *inputs])):
            new = self.call(name, module, inputs, node)
        self.values.copy(node, new)
        if str(node.target) in self.pending:
            self.pending[str(new.target)] = self.pending[str(node.target)].clone(module)
        return new

    # ------------------------------------------------------------------ finishing

    def snapshot(self) -> Network:
        """The network as it is now: whatever is done to this one later, the snapshot does not see."""
        graph = fx.Graph()
        same: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(self.graph, same)
        given = next(node for node in self.graph.nodes if node.op == "output")
        same[given] = graph.output(output)
        modules = dict(self.modules)
        shapes = self.shapes.over(graph, modules.__getitem__, same)
        return Network(graph, modules, shapes, self.name, self.dtype, self.device)

    def build(self, dtype: torch.dtype | None = None, spend: bool = False) -> CanonicalModel:
        """Write the pending weights, rounded once, and make a module of it all.

        Parameters
        ----------
        dtype : torch.dtype, optional
            Floating dtype of everything in the result. By default each layer keeps its own, untouched layers share
            their parameters with the original model, and only what was rewritten is new.
        spend : bool
            Give the network's own graph away instead of a copy; nothing can be done with the network afterwards.

        Raises
        ------
        RewriteError
            If a layer cannot hold its new weights: they overflow.
        """
        built = CanonicalModel(nn.Module(), fx.Graph(), self.name)
        built.eval()
        for node in self.graph.nodes:
            if node.op == "call_module":
                name = str(node.target)
                try:
                    finished = self.finished(self.modules[name], self.pending.get(name), dtype)
                except OverflowError as error:
                    raise RewriteError(
                        str(error), name, "Widen the model first: model.float(), or model.double()."
                    ) from error
                put(built, name, finished)
        graph = self.graph
        if not spend:
            graph = fx.Graph()
            graph.output(graph.graph_copy(self.graph, {}))
        for node in graph.nodes:
            node.meta.clear()
        built.graph = graph
        return built

    def finished(self, original: nn.Module, weights: PendingWeights | None, dtype: torch.dtype | None) -> nn.Module:
        """A module of its own with the pending weights written; see `build`.

        Raises
        ------
        OverflowError
        """
        module = shell(original)
        if weights is not None and isinstance(original, LINEAR) and weights.touched:
            weights.write(module, dtype)
        cast(module, dtype, self.dtype)
        for part in (module,) if not module._modules else module.modules():
            part.__dict__["training"] = False
        return module


@functools.lru_cache(maxsize=4096)
def _usable(part: str) -> str:
    """A part of a qualified name that Python and ``nn.Module`` accept as an attribute."""
    if hasattr(nn.Module, part) or keyword.iskeyword(part):
        return f"{part}_call"
    return part if part[0].isalpha() or part[0] == "_" or part.isdigit() else f"_{part}"


def shell(module: nn.Module) -> nn.Module:
    """A module of its own that shares the tensors of another."""
    if module._modules:
        memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
        return copy.deepcopy(module, memo)
    kind: Any = type(module)
    if is_plain(kind):
        duplicate: nn.Module = object.__new__(kind)
        duplicate.__dict__.update(module.__dict__)
    else:
        duplicate = copy.copy(module)
    own = duplicate.__dict__
    for table in ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
        own[table] = own[table].copy()
    return duplicate


def cast(module: nn.Module, dtype: torch.dtype | None, own: torch.dtype) -> None:
    """Cast a module's floating tensors: all to ``dtype``; or, by default, what is kept in float64 to its own precision.

    Which is ``own``, that of the model, where none was noted.
    """
    if not (module._parameters or module._buffers or module._modules):
        return

    def convert(tensor: Tensor) -> Tensor:
        if dtype is not None:
            return exact_value(tensor).to(dtype)
        if isinstance(tensor, ExactTensor):
            return rounded(exact_value(tensor), tensor.rounding or own)
        return tensor.data  # rounded already; what it was rounded from is of no use any more

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and _to_cast(parameter, dtype):
                part._parameters[name] = nn.Parameter(convert(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None and _to_cast(buffer, dtype):
                part._buffers[name] = convert(buffer)


def _to_cast(tensor: Tensor, dtype: torch.dtype | None) -> bool:
    return tensor.is_floating_point() and (dtype is not None or isinstance(tensor, ExactTensor | RoundedParameter))


def keep_exact(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Mark a float64 tensor made by canonize: it is rounded when the model is built, to ``dtype`` or the model's own.

    Parts of a model may compute in another precision than its weights have.
    """
    return ExactTensor.of(tensor, dtype)


def value_dtype(network: Network, node: fx.Node) -> torch.dtype | None:
    """The floating precision of a node's value, where it is known."""
    value = network.shapes.value(node)
    return value.dtype if isinstance(value, Tensor) and value.is_floating_point() else None


def _last(nodes: Sequence[fx.Node]) -> fx.Node:
    last = nodes[0]
    for node in nodes[1:]:
        if last < node:
            last = node
    return last
