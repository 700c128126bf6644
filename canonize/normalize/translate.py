"""Graph -> network: one named module per call (C3), nothing random (C4), nothing idle (C5).

Everything behind this file sees modules and shapes only; which tracer made the graph can no longer be told.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize import nn as cnn
from canonize.algebra.affine import Affine, Statistics, batch_norms
from canonize.algebra.exact import exact_value
from canonize.capture import Captured, is_leaf
from canonize.capture.captured import GUARD, left_out
from canonize.capture.leaves import layer_class
from canonize.errors import CaptureError, StatisticsError
from canonize.graph.network import FrozenAffine, Network, Origin, keep_exact, shell
from canonize.graph.shapes import Shapes, asks_for_sizes
from canonize.inputs import Inputs
from canonize.normalize import functional_layers as _layers  # noqa: F401  (fills OPERATIONS)
from canonize.normalize import products as _products  # noqa: F401
from canonize.normalize.constants import FixedValue, fixed_values, follow, lookup
from canonize.normalize.functionalize import functionalize
from canonize.normalize.lowering import Dispatched, inserted, lowered
from canonize.normalize.naming import kind_of, target_name
from canonize.normalize.normalisations import INSTANCE_NORM, SPLIT, split
from canonize.normalize.operations import OPERATIONS, Context, Layer, Same, cast_to, is_number
from canonize.normalize.questions import Questions
from canonize.normalize.recognise import recognise
from canonize.twins.module_tree import named_modules
from canonize.twins.torchscript import Scripted
from canonize.vocabulary import NOTHING, ROWS, Operation, gives_tensor, resolve

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
ADAPTIVE_MAXIMA = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NO_SHAPE = "the shape of its input cannot be inferred"
_NOT_FIXED = "what it scales and shifts by is computed, not fixed"


def normalize(captured: Captured, inputs: Inputs, name: str) -> Network:
    """Give a traced graph the one vocabulary of ``canonize.nn`` and ``torch.nn``.

    Raises
    ------
    CaptureError
        Where the graph writes in place into a tensor that is read under another name.
    """
    graph, root = captured.graph, captured.root
    named = dict(named_modules(root, repeated=True))
    # Inference walks the captured graph while the new one grows, so it sees the original operations.
    shapes = Shapes(graph, inputs, lambda target: named[target] if target in named else lookup(root, target))
    counted: tuple[str, ...] = ()
    if captured.tracer == "symbolic_trace":
        counted = functionalize(graph, root, captured.aliases, shapes)
    network = _Translation(captured, inputs, name, named, shapes).run()
    recognise(network)
    network.notes.extend(captured.notes)
    network.notes.extend(left_out(name) for name in counted)
    return network


class _Translation:
    def __init__(
        self, captured: Captured, inputs: Inputs, name: str, named: dict[str, nn.Module], shapes: Shapes
    ) -> None:
        graph, root = captured.graph, captured.root
        self.graph, self.root, self.named, self.shapes = graph, root, named, shapes
        self.frozen = _frozen([self.named[str(n.target)] for n in graph.nodes if n.op == "call_module"])
        first = next((p for p in (*root.parameters(), *root.buffers()) if p.is_floating_point()), None)
        sample = next((t for t in inputs.tensors() if t.is_floating_point()), None)
        dtype = first.dtype if first is not None else sample.dtype if sample is not None else torch.get_default_dtype()
        device = first.device if first is not None else inputs.tensors()[0].device
        self.questions = Questions(self.shapes, device)
        self.fixed, self.numbers = fixed_values(graph, root, self.questions)
        new = fx.Graph()
        self.network = Network(new, {}, Shapes(new, inputs, self._find), name, dtype, device)
        self.values: dict[fx.Node, Any] = {}
        self.operations: dict[fx.Node, Operation | None] = {}
        # Nodes whose values depend on more of the inputs than their sizes.
        self.data: set[fx.Node] = set()

    def _find(self, target: str) -> Any:
        return self.network.modules[target]

    def run(self) -> Network:
        for node in list(self.graph.nodes):
            self._visit(node)
        same = {old: new for old, new in self.values.items() if isinstance(new, fx.Node)}
        self.network.shapes.adopt(self.shapes, same)
        self._sweep()
        return self.network

    def _visit(self, node: fx.Node) -> Any:
        reads = not asks_for_sizes(node) and not self.data.isdisjoint(node.all_input_nodes)
        if reads or node.op == "placeholder":
            self.data.add(node)
        self.values[node] = self._translate(node)

    # ------------------------------------------------------------------ one node

    def _translate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            new = self.network.graph.create_node("placeholder", str(node.target), node.args)
            new.meta["path"] = ""
            return new
        if node.op == "output":
            return self.network.graph.output(self._values_of(node.args[0]))
        if node in self.fixed:
            return None  # becomes an argument, or a Constant where something reads it
        if _is_guard(node):
            self.network.notes.append(str(node.args[1]).partition(": ")[2])
            return self._copy(node)
        if _is_assertion(node):
            return None
        if node.op == "call_module":
            return self._module(node)
        if self.shapes.is_bookkeeping(node):
            return self._copy(node)
        if node.op == "call_function" and node.target is operator.getitem:
            item = self._item(node)
            if item is not None:
                return item
        return self._function(node)

    def _copy(self, node: fx.Node) -> fx.Node:
        """Sizes stay what they are: no rule is needed for them."""
        args, kwargs = self._values_of(node.args), self._values_of(node.kwargs)
        new = self.network.graph.create_node(node.op, node.target, args, kwargs)
        new.meta["path"] = node.meta.get("path", "")
        return new

    def _values_of(self, arguments: Any) -> Any:
        return fx.map_arg(arguments, self._value_of)

    def _value_of(self, node: fx.Node) -> Any:
        if node in self.fixed:
            fixed = self.fixed[node]
            return self._constant(node, fixed) if fixed.is_tensor else fixed.value
        return self.values[node]

    def _constant(self, node: fx.Node, fixed: FixedValue) -> fx.Node:
        """A fixed tensor that an operation reads as if it were an input."""
        value = fixed.value
        if fixed.computed and isinstance(fixed.exact, Tensor) and fixed.exact.dtype != value.dtype:
            value = keep_exact(fixed.exact, value.dtype)
        name = (fixed.name or f"{node.meta.get('path', '')}.constant").strip(".")
        return self.network.call(name, cnn.Constant(value), (), node)

    # ------------------------------------------------------------------ modules

    def _module(self, node: fx.Node) -> Any:
        target = str(node.target)
        module = self.named[target]
        if isinstance(module, (*DROPOUT, nn.Identity)):
            return self.values.get(_first(node)) if _first(node) in self.values else self._value_of(_first(node))
        if module in self.frozen:
            ndim = self._rank(node, module)
            if ndim is not None:
                return self._batch_norm(node, module, ndim)
            self.network.unread[Origin(target, type(module).__name__)] = _NO_SHAPE
        if isinstance(module, cnn.Rearrange | nn.Flatten) and self._is_idle(node):
            return self._value_of(_first(node))
        if isinstance(module, SPLIT) and not node.kwargs:
            return self._normalisation(str(node.target), module, self._value_of(_first(node)), node)
        own = shell(module)
        if is_leaf(module):  # a class of the model's own that adds nothing: files, and rules, know torch's
            own.__class__ = layer_class(type(module))
        if getattr(own, "inplace", False) is True:
            own.inplace = False  # type: ignore[assignment]
        return self._place(target, own, node)

    def _normalisation(self, name: str, module: nn.Module, source: fx.Node, node: fx.Node) -> fx.Node:
        """A normalisation, and behind it its affine as a node of its own."""
        shape = self.shapes.shape(_first(node))
        parts = split(module, len(shape)) if shape is not None else None
        if parts is None:
            return self.network.call(name, shell(module), (source,), node)
        core, affine = parts
        normalised = self.network.call(name, core, (source,), node)
        origin = Origin(str(normalised.target), type(module).__name__)
        frozen = FrozenAffine(affine.compress(), [origin])
        return self.network.call(f"{normalised.target}_affine", frozen, (normalised,), node)

    def _rank(self, node: fx.Node, module: nn.Module) -> int | None:
        """Number of dimensions of a normalisation's input: its class says it, or its input does."""
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            return _dims_of(module, (nn.BatchNorm2d, nn.BatchNorm3d)) + 2
        shape = self.shapes.shape(_first(node))
        if shape is None or (isinstance(module, INSTANCE_NORM) and len(shape) != _dims_of(module, INSTANCE_NORM) + 2):
            return None
        return len(shape)

    def _place(self, name: str, module: nn.Module, node: fx.Node) -> fx.Node:
        """Call a module of the model with the arguments it was called with."""
        args, kwargs = self._values_of(node.args), self._values_of(node.kwargs)
        if kwargs and not args and len(kwargs) == 1:
            args, kwargs = tuple(kwargs.values()), {}
        new = self.network.call(name, module, args, node)
        if kwargs:
            new.kwargs = kwargs
        return new

    def _batch_norm(self, node: fx.Node, module: nn.Module, ndim: int) -> fx.Node:
        affine, finite, statistics = self.frozen[module]
        origin = Origin(str(node.target), type(module).__name__)
        if not finite:
            raise _no_affine(origin.name, module)
        layer = FrozenAffine(affine.unsqueezed(ndim), [origin], statistics)
        return self.network.call(origin.name, layer, (self._value_of(_first(node)),), node)

    # ---------------------------------------------------------------- functions

    def _operation(self, node: fx.Node) -> Operation | None:
        """What a call of the captured graph is."""
        if node not in self.operations:
            self.operations[node] = resolve(node, self._is_tensor)
        return self.operations[node]

    def _is_tensor(self, value: Any) -> bool:
        if not isinstance(value, fx.Node):
            return isinstance(value, Tensor)
        fixed = self.fixed.get(value)
        if fixed is not None:
            return fixed.is_tensor
        return gives_tensor(value) or isinstance(self.shapes.value(value), Tensor)

    def _function(self, node: fx.Node) -> Any:
        operation = self._operation(node)
        if operation is None:
            return self._call(node, None)
        layer = self._built(node, operation)
        if layer is not None:
            return layer
        if operation.row.splits and self._splits_statically(node):
            return self._value_of(_first(node))
        if operation.moves and self._is_idle(node):
            return self._value_of(_first(node))
        if operation.row.statistics and not operation.counts:
            path = node.meta.get("path") or node.name
            known = self.shapes.shape(_first(node)) is not None
            self.network.unread[Origin(path, self._kind(node))] = _NOT_FIXED if known else _NO_SHAPE
        steps = lowered(node, operation, self.shapes, _is_understood) if operation.row is NOTHING else None
        return self._call(node, operation) if steps is None else self._taken_apart(node, steps)

    def _taken_apart(self, node: fx.Node, steps: Dispatched) -> Any:
        """A call that the vocabulary does not know, by the operators that it comes down to."""
        new, result = inserted(node, steps)
        for one in new:
            follow(one, self.fixed, self.numbers, self.questions)
            self._visit(one)
        return fx.map_arg(result, self._value_of)

    def _built(self, node: fx.Node, operation: Operation) -> Any:
        """A call as a layer, or as nothing at all; ``None`` where it has no special form."""
        source = operation.bound.get("input")
        if operation.row.idle and isinstance(source, fx.Node):
            return self._value_of(source)
        builder = OPERATIONS.get(operation.name)
        if builder is None or not operation.bound:
            return None
        if not gives_tensor(node) and not isinstance(self.shapes.value(node), Tensor | tuple):
            return None
        context = Context(self.shapes, node, node.meta.get("path", ""), self._kind(node))
        given = {key: self._argument(value) for key, value in operation.bound.items()}
        if operation.pointwise:
            self._unrepeat(node, given)
        try:
            built = builder(context, **given)
        except TypeError:  # arguments that this builder does not know: keep the call as it is
            built = None
        if isinstance(built, Same):
            return self._value_of(built.node)
        # What is computed from sizes alone (the coordinates of a position encoding) is no part of the function
        # that is explained: an affine of it stays a call.
        if isinstance(built, Layer) and (node in self.data or not isinstance(built.module, FrozenAffine)):
            return self._layer(node, operation.name, built)
        return None

    def _kind(self, node: fx.Node) -> str:
        """What a report calls a call that may be an affine: TorchScript remembers which layer made it."""
        module = self.root.get_submodule(node.meta.get("path", ""))
        is_layer = isinstance(module, Scripted) and "Norm" in module.layer
        return str(module.layer) if is_layer else kind_of(node)

    def _argument(self, argument: Any) -> Any:
        """An argument with fixed values in place of the nodes that compute them."""
        if isinstance(argument, fx.Node):
            fixed = self.fixed.get(argument)
            if fixed is None:
                number = self.numbers.get(argument)
                plain = number is not None and is_number(number.value) and number.value == number.exact
                return number.value if plain and number is not None else argument
            return fixed if fixed.is_tensor else fixed.value
        if isinstance(argument, tuple | list):
            return type(argument)(self._argument(item) for item in argument)
        return argument

    def _unrepeat(self, node: fx.Node, given: dict[str, Any]) -> None:
        """Let broadcasting do what a call does that repeats something fixed to the size of its neighbour."""
        for one, other in (("input", "other"), ("other", "input")):
            value, neighbour = given.get(one), given.get(other)
            if not isinstance(value, fx.Node) or not isinstance(neighbour, fx.Node):
                continue
            fixed = self._repeated(value)
            if fixed is not None and self.shapes.always(lambda old, new: old == new, neighbour, node):
                given[one] = fixed
                return

    def _repeated(self, node: fx.Node) -> FixedValue | None:
        """The fixed value that a call only repeats along dimensions of size 1."""
        operation = self._operation(node)
        source = operation.bound.get("input") if operation is not None and operation.row.grows else None
        fixed = self.fixed.get(source) if isinstance(source, fx.Node) else None
        after = self.shapes.shape(node)
        if fixed is None or not fixed.is_tensor or after is None or fixed.value.ndim > len(after):
            return None
        before = (1,) * (len(after) - fixed.value.ndim) + tuple(fixed.value.shape)
        return fixed if all(old in (1, new) for old, new in zip(before, after, strict=True)) else None

    def _layer(self, node: fx.Node, name: str, layer: Layer) -> fx.Node:
        inputs = [self._value_of(n) for n in layer.inputs]
        module = layer.module
        widened = self._widened(node, inputs)
        if widened is not None and layer.before is None and not isinstance(module, cnn.Call):
            # A constant in a wider precision: from here on the original computes in that, and says so in its output.
            inputs = [self.network.call(f"{self._name(node, name)}_cast", cast_to(widened), inputs, node)]
        if layer.before is not None:
            inputs = [self.network.call(f"{self._name(node, name)}_input", layer.before, inputs, node)]
        wanted = layer.owner or self._name(node, name)
        if isinstance(module, FrozenAffine):
            new = self._affine_of(node, layer, inputs[0])
        elif isinstance(module, SPLIT):
            new = self._normalisation(wanted, module, inputs[0], node)
        else:
            new = self.network.call(wanted, module, inputs, node)
        if layer.after is not None:
            new = self.network.call(f"{self._name(node, name)}_output", layer.after, (new,), node)
        return new

    def _widened(self, node: fx.Node, inputs: Sequence[fx.Node]) -> torch.dtype | None:
        """The precision that a call gives, where it is not that of its one input."""
        after = self.shapes.value(node)
        before = self.network.shapes.value(inputs[0]) if len(inputs) == 1 else None
        if not isinstance(after, Tensor) or not isinstance(before, Tensor) or after.dtype == before.dtype:
            return None
        return after.dtype if after.is_floating_point() and before.is_floating_point() else None

    def _affine_of(self, node: fx.Node, layer: Layer, source: fx.Node) -> fx.Node:
        module = layer.module
        assert isinstance(module, FrozenAffine)
        affine = module.affine.compress()
        origin = module.origins[0].name
        if not affine.is_finite:
            raise StatisticsError("its scale or its shift is not finite", origin, _LOOK)
        if len(affine.varying()) > 1 or self.shapes.free_among(node, affine.varying()):
            # One number per position (a position embedding), not per channel: no layer has a place for it.
            value = self.shapes.value(node)
            dtype = value.dtype if isinstance(value, Tensor) else None
            scale = None if bool((affine.scale == 1).all()) else keep_exact(affine.scale, dtype)
            shift = None if affine.is_linear else keep_exact(affine.shift, dtype)
            return self.network.call(origin, cnn.Offset(scale, shift), (source,), node)
        return self.network.call(f"{origin}.affine", FrozenAffine(affine, module.origins), (source,), node)

    def _name(self, node: fx.Node, name: str) -> str:
        """A new module's name says where it comes from."""
        path = node.meta.get("path", "")
        module = self.named[path]
        if path and (is_leaf(module) or _is_scripted_leaf(module)):
            return str(path)
        if path and not any(True for _ in module.children()) and any(True for _ in module.parameters()):
            return f"{path}_{name}"  # the name itself belongs to the layer whose parameters these are
        return f"{path}.{name}".strip(".")

    def _call(self, node: fx.Node, operation: Operation | None) -> fx.Node:
        """Any other operation: a module that makes the call."""
        inputs: list[fx.Node] = []

        def slot(argument: fx.Node) -> Any:
            value = self._value_of(argument)
            if not isinstance(value, fx.Node):
                return value
            if value not in inputs:
                inputs.append(value)
            return cnn.Slot(inputs.index(value))

        if operation is not None and operation.row.reads_memory:
            # Copies that only change the layout are left out, so that it would read something else.
            raise CaptureError(
                f"it reads the memory of a tensor by strides ({operation.name})",
                node.meta.get("path") or None,
                "How a tensor lies in memory is not kept; write it with indices, or unfold.",
            )
        args, kwargs = _map(node.args, slot), _map(node.kwargs, slot)
        target = target_name(node)
        moves = operation is not None and operation.moves
        # A view of what used to be contiguous: operations that only changed the layout are gone.
        if moves and operation is not None and operation.row.views:
            target = ".reshape_as" if operation.row.like else ".reshape" if target.startswith(".") else "torch.reshape"
            kwargs = {"shape" if name == "size" else name: value for name, value in kwargs.items()}
        cls = cnn.Rearrange if moves and self._only_moves(node, inputs) else cnn.Call
        function: Any = node.target if node.op == "call_function" and "<" in target else None
        module = cls(target, args, kwargs, function)
        name = operation.name if operation is not None else getattr(node.target, "__name__", None)
        return self.network.call(self._name(node, name or "call"), module, inputs, node)

    def _only_moves(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        """Whether a call moves the elements of its first argument and makes nothing else of them."""
        first = node.args[0] if node.args else None
        if not inputs or not isinstance(first, fx.Node):
            return False
        return inputs[0] is self._value_of(first) and isinstance(self.shapes.value(node), Tensor)

    # ----------------------------------------------------------- tuples of slices

    def _splits_statically(self, node: fx.Node) -> bool:
        """Whether every piece of a split is taken by index, and the split dimension has a fixed size."""
        pieces = self.shapes.value(node)
        if not isinstance(pieces, tuple | list) or not all(isinstance(p, Tensor) for p in pieces):
            return False
        if not all(u.target is operator.getitem and isinstance(u.args[1], int) for u in node.users):
            return False
        dim = self._split_dim(node)
        return dim is not None and not self.shapes.free_among(_first(node), {dim})

    def _split_dim(self, node: fx.Node) -> int | None:
        operation, shape = self._operation(node), self.shapes.shape(_first(node))
        if shape is None or operation is None or not operation.bound:
            return None
        along = operation.row.along
        if along is not None:
            return 0 if len(shape) == 1 else along
        dim = operation.get("dim", 0)
        return dim % len(shape) if isinstance(dim, int) else None

    def _item(self, node: fx.Node) -> Any:
        """An item of a split is a slice of what was split; other items of tuples are bookkeeping."""
        source = _first(node)
        if isinstance(self.shapes.value(source), Tensor):
            return None
        if isinstance(self.values.get(source), tuple) and isinstance(node.args[1], int):
            return self.values[source][node.args[1]]
        operation = self._operation(source)
        if operation is None:
            return self._copy(node)
        name = operation.name
        if self._is_module(source, FrozenAffine) and operation.row.statistics:
            return self.values[source] if node.args[1] == 0 else self._copy(node)
        if self._is_module(source, *ADAPTIVE_MAXIMA) and source.op == "call_function":
            return self.values[source]
        if operation.row.splits and self._splits_statically(source):
            pieces, dim, index = self.shapes.value(source), self._split_dim(source), node.args[1]
            assert isinstance(index, int) and dim is not None
            slot = cnn.Slot(0)
            if name == "unbind":
                module = cnn.Rearrange("torch.select", (slot, dim, index % len(pieces)))
            else:
                index %= len(pieces)
                start = sum(piece.shape[dim] for piece in pieces[:index])
                module = cnn.Rearrange("torch.narrow", (slot, dim, start, pieces[index].shape[dim]))
            return self.network.call(self._name(node, f"{name}_{index}"), module, (self.values[source],), node)
        return self._copy(node)

    def _is_module(self, node: fx.Node, *kinds: type) -> bool:
        """Whether a node has become a module of some kinds."""
        value = self.values.get(node)
        return isinstance(value, fx.Node) and isinstance(self.network.module(value), kinds)

    # ------------------------------------------------------------------ clean-up

    def _is_idle(self, node: fx.Node) -> bool:
        """Whether a rearrangement gives back what it got, whatever the input size."""
        operation = self._operation(node)
        row = operation.row if operation is not None else ROWS["flatten"]
        if not (row.orderly or row.grows):
            return False
        source = _first(node)
        before, after = self.shapes.shape(source), self.shapes.shape(node)
        if before is None or before != after:
            return False
        if len(node.all_input_nodes) > 1 and not row.like and not row.grows:
            return self.shapes.always(lambda old, new: old == new, source, node)
        if len(before) > 0 and self.shapes.free_dims(source) != self.shapes.free_dims(node):
            return False
        return self.shapes.always(lambda old, new: old == new, source, node)

    def _sweep(self) -> None:
        """Erase what nobody reads; of which only the size is asked, that is an affine's input as well."""
        for node in reversed(self.network.affines()):
            if self.network.readers(node) == [] and all(self.network.module(user) for user in node.users):
                node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
                self.network.remove(node)
        for node in reversed(list(self.network.graph.nodes)):
            if not node.users and node.op not in ("placeholder", "output") and not _is_guard(node):
                self.network.remove(node)


def _frozen(layers: list[nn.Module]) -> dict[nn.Module, tuple[Affine, bool, Statistics]]:
    """The affine of every normalisation by statistics, whether it is finite, and what it was read from."""
    held: dict[torch.device, dict[nn.Module, Statistics]] = {}
    for layer in layers:
        if isinstance(layer, (*BATCH_NORM, *INSTANCE_NORM)) and layer.running_mean is not None:
            weight, bias = (None if it is None else exact_value(it) for it in (layer.weight, layer.bias))
            mean, var = exact_value(layer.running_mean), exact_value(layer.running_var)  # type: ignore[arg-type]
            held.setdefault(mean.device, {})[layer] = Statistics(weight, bias, mean, var, layer.eps)
    found: dict[nn.Module, tuple[Affine, bool, Statistics]] = {}
    for known in held.values():
        for layer, (affine, finite) in zip(known, batch_norms(list(known.values())), strict=True):
            found[layer] = affine, finite, known[layer]
    return found


_LOOK = "Look at the running mean and variance; a model like this gives NaN for every input."


def _no_affine(where: str, norm: Any) -> StatisticsError:
    """Why the statistics of a normalisation make no affine."""
    nothing = (norm.running_var.double() + norm.eps == 0).nonzero().flatten().tolist()
    if not nothing:
        return StatisticsError(
            "its statistics are not finite (a NaN, an infinity or a negative variance)", where, _LOOK
        )
    channels = f"{len(nothing)} of {norm.running_var.numel()} channels, the first of them {nothing[0]}"
    return StatisticsError(
        f"it divides by nothing in {channels}: their variance and eps are both 0",
        where,
        "Give it an eps above 0; as it is, these channels are infinite or NaN for every input.",
    )


def _dims_of(module: nn.Module, classes: tuple[type, ...]) -> int:
    """Number of spatial dimensions that a class of torch carries in its name."""
    return int(next(cls for cls in classes if isinstance(module, cls)).__name__[-2])


def _first(node: fx.Node) -> fx.Node:
    first = node.args[0] if node.args else next(iter(node.kwargs.values()))
    assert isinstance(first, fx.Node)
    return first


def _is_scripted_leaf(module: nn.Module) -> bool:
    """Whether a module of a TorchScript program was one of torch's layers without weights, which is one operation."""
    if not isinstance(module, Scripted) or not module.layer:
        return False
    return not any(True for _ in (*module.children(), *module.parameters(recurse=False)))


def _is_understood(operation: Operation) -> bool:
    """Whether rules and patterns can make something of an operator, or it is as plain as can be."""
    plain = (operation.pointwise or operation.reduction) and not operation.traits.composite
    return operation.name in OPERATIONS or operation.row is not NOTHING or plain


def _is_guard(node: fx.Node) -> bool:
    """Whether a node checks that an input has the sizes that the graph was captured for."""
    return node.target is torch._assert and str(node.args[1]).startswith(GUARD)


def _is_assertion(node: fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    return node.op in ("call_function", "call_method") and (
        name.startswith(("_assert", "sym_constrain")) or name.endswith("_assert") or "assert" in name.split(".")[0]
    )


def _map(arguments: Any, function: Any) -> Any:
    """Replace the nodes in a nested argument structure."""
    if isinstance(arguments, fx.Node):
        return function(arguments)
    if isinstance(arguments, tuple | list):
        items = [_map(item, function) for item in arguments]
        return items if isinstance(arguments, list) else tuple(items)
    if isinstance(arguments, dict):
        return {key: _map(item, function) for key, item in arguments.items()}
    if isinstance(arguments, slice):
        parts = (arguments.start, arguments.stop, arguments.step)
        return slice(*(_map(part, function) for part in parts))
    return arguments
