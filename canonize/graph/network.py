"""A model while it is being rewritten: a graph whose every operation is a named module."""

from __future__ import annotations

import copy
import functools
import keyword
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.algebra.affine import Affine
from canonize.algebra.weights import LINEAR, PendingWeights, rounded
from canonize.errors import RewriteError
from canonize.graph.shapes import Shapes, is_kept_exact, rounding_of
from canonize.nn import Call, Rearrange
from canonize.twins.copying import is_plain

# Make a tensor of the same kind as their first argument, whose values they do not look at.
_MAKE_ALIKE = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like"}


@dataclass(frozen=True)
class Origin:
    """A frozen affine of the original model: its qualified name and what it was."""

    name: str
    kind: str


class FrozenAffine(nn.Module):
    """An affine that still waits for a layer to absorb it; none is left in a finished model.

    Attributes
    ----------
    affine : Affine
    origins : tuple of Origin
        What it was in the original model; several where affines have been composed.
    last_resort_only : bool
        Whether it is what a rewrite has left, to become an explicit layer.
    """

    def __init__(self, affine: Affine, origins: Sequence[Origin]) -> None:
        super().__init__()
        self.affine = affine
        self.origins = tuple(origins)
        self.last_resort_only = False

    def forward(self, input: Tensor) -> Tensor:
        """Apply the affine in the input's own dtype."""
        return input * self.affine.scale.to(input) + self.affine.shift.to(input)


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
    unread : dict
        Normalisations by running statistics that could not be read as affines, and why; they stay what they are.
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

    # ------------------------------------------------------------------ reading

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

    def _only_measures(self, reader: fx.Node, node: fx.Node) -> bool:
        """Whether a reader wants a value's shape or dtype only (``x.reshape_as(value)``, ``value.new_zeros(2)``)."""
        module = self.module(reader)
        if isinstance(module, Call) and module.target.rpartition(".")[2] in _MAKE_ALIKE:
            return reader.all_input_nodes.count(node) == 1 and reader.args[0] is node
        return isinstance(module, Rearrange) and module.measures and reader.args[0] is not node

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
        return new

    def insert_before(self, reader: fx.Node, position: int, name: str, module: nn.Module) -> fx.Node:
        """Put a module on one input of a node."""
        source = reader.args[position]
        assert isinstance(source, fx.Node)
        with self.graph.inserting_before(reader):
            new = self.call(name, module, (source,), reader)
        reader.update_arg(position, new)
        return new

    def replace(self, node: fx.Node, module: nn.Module) -> None:
        """Exchange the module behind a node; the name stays."""
        self.modules[str(node.target)] = module
        self.pending.pop(str(node.target), None)

    def bypass(self, node: fx.Node) -> None:
        """Take a node out: its readers read its (first) input."""
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        self.remove(node)

    def remove(self, node: fx.Node) -> None:
        """Erase a node that nobody reads, and its module."""
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
        if str(node.target) in self.pending:
            self.pending[str(new.target)] = self.pending[str(node.target)].clone(module)
        return new

    # ------------------------------------------------------------------ finishing

    def build(self, dtype: torch.dtype | None = None, spend: bool = False) -> fx.GraphModule:
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
        built = fx.GraphModule(nn.Module(), fx.Graph(), self.name)
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
                _place(built, name, finished)
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
            return getattr(tensor, "exact", tensor).detach().to(dtype)
        return rounded(tensor, rounding_of(tensor) or own)

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and _to_cast(parameter, dtype):
                part._parameters[name] = nn.Parameter(convert(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None and _to_cast(buffer, dtype):
                part._buffers[name] = convert(buffer)


def _to_cast(tensor: Tensor, dtype: torch.dtype | None) -> bool:
    return tensor.is_floating_point() and (dtype is not None or is_kept_exact(tensor))


def keep_exact(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Mark a float64 tensor made by canonize: it is rounded when the model is built, to ``dtype`` or the model's own.

    Parts of a model may compute in another precision than its weights have.
    """
    tensor = tensor.detach().clone()
    tensor.kept_exact = True  # type: ignore[attr-defined]
    tensor.rounding = dtype  # type: ignore[attr-defined]
    return tensor


def value_dtype(network: Network, node: fx.Node) -> torch.dtype | None:
    """The floating precision of a node's value, where it is known."""
    value = network.shapes.value(node)
    return value.dtype if isinstance(value, Tensor) and value.is_floating_point() else None


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    *parents, last = name.split(".")
    owner = root
    for part in parents:
        child = owner._modules.get(part)
        if child is None:
            child = owner._modules[part] = nn.Module()
            child.__dict__["training"] = False
        owner = child
    owner._modules[last] = module  # its name was found to be usable when the network got it


def _last(nodes: Sequence[fx.Node]) -> fx.Node:
    last = nodes[0]
    for node in nodes[1:]:
        if last < node:
            last = node
    return last
