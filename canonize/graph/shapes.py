"""Shapes of a graph's values, inferred on meta tensors and only where somebody asks.

A dimension is *free* when it may differ from call to call: the batch size always, image sizes where the model accepts
others. What is written into a canonical model must be constant along free dimensions. Which dimensions are free is
found by propagating other input sizes through the same graph and comparing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from canonize.algebra.exact import ExactTensor
from canonize.compat.private import pytree
from canonize.errors import cuts_in
from canonize.graph.affine_nodes import FrozenAffine
from canonize.graph.shape_rules import KEEP_SHAPE, fixed_dims, output_of
from canonize.inputs import Inputs
from canonize.inputs.sizes import other_batches, other_sizes
from canonize.vocabulary import asks_size, gives_tensor, resolve

Unknown = object()


def asks_for_sizes(node: fx.Node) -> bool:
    """Whether a node asks a value for its size, dtype or the like."""
    return asks_size(node)


class Environment:
    """One set of input sizes, and the values the nodes have under it.

    Parameters
    ----------
    inputs : Inputs
        On the meta device: sizes take no memory.
    drawn : callable
        Real inputs of these sizes, made where something has to be run.
    """

    def __init__(self, inputs: Inputs, drawn: Callable[[], Inputs]) -> None:
        self.inputs, self.drawn = inputs, drawn
        self.meta: dict[fx.Node, Any] = {}
        self.real: dict[fx.Node, Any] = {}
        self.runs: bool | None = None
        # Nodes that meta tensors could not follow: what they give may depend on values.
        self.ran: set[fx.Node] = set()


class Shapes:
    """Lazy shape inference over a graph.

    Parameters
    ----------
    graph : fx.Graph
    inputs : Inputs
        Example inputs, matching the placeholders.
    lookup : callable
        Qualified name to module or tensor.
    """

    def __init__(self, graph: fx.Graph, inputs: Inputs, lookup: Callable[[str], Any]) -> None:
        self.graph = graph
        self.lookup = lookup
        meta = inputs.map(_to_meta)
        self.own = Environment(meta, lambda: inputs)
        self.batch_variants = _environments(_other_batch_sizes, meta, inputs)
        self.size_variants = _environments(lambda given: other_sizes(given)[0], meta, inputs)
        # Sizes changed one by one, which count where several at once are not accepted; and one row, or two.
        self._single_variants = _environments(lambda given: other_sizes(given)[1], meta, inputs)
        self._few_rows = _environments(lambda given: other_batches(given)[:1], meta, inputs)
        # Whether any node was met that gives fewer dimensions for some sizes than for others.
        self._ranks_may_vary = False

    def over(self, graph: fx.Graph, lookup: Callable[[str], Any], counterparts: Mapping[fx.Node, fx.Node]) -> Shapes:
        """Those of another graph with the same inputs; see `adopt`."""
        made = copy.copy(self)
        made.graph, made.lookup = graph, lookup
        for name, held in vars(self).items():
            if isinstance(held, Environment):
                setattr(made, name, Environment(held.inputs, held.drawn))
            elif isinstance(held, list) and held and isinstance(held[0], Environment):
                setattr(made, name, [Environment(e.inputs, e.drawn) for e in held])
        made.adopt(self, counterparts)
        return made

    @property
    def _variants(self) -> tuple[Environment, ...]:
        return (*self.batch_variants, *self.size_variants, *self._single_variants, *self._few_rows)

    def environments(self) -> tuple[Environment, ...]:
        """The sizes of the example inputs, then all others that can be tried."""
        return (self.own, *self._variants)

    # ------------------------------------------------------------------ questions

    def value(self, node: fx.Node) -> Any:
        """A node's value under the example inputs: meta tensors for tensors, numbers for sizes."""
        return self._value(node, self.own)

    def value_in(self, node: fx.Node, env: Environment) -> Any:
        """A node's value under other input sizes; ``Unknown`` where it cannot be inferred."""
        return self._value(node, env)

    def reads_data(self, node: fx.Node) -> bool:
        """Whether a plain value (a number, a list of them) depends on what the inputs hold, not on their sizes alone.

        What meta tensors can follow depends on sizes only. What had to be run depends on all that it was made from.
        """
        self.value(node)
        waiting: list[tuple[fx.Node, bool]] = [(node, False)]
        seen = set(waiting)
        while waiting:
            current, values_matter = waiting.pop()
            holds_tensor = _holds_tensor(self.value(current))
            if current.op == "placeholder":
                if holds_tensor and values_matter:
                    return True
                continue
            values_matter = (values_matter and holds_tensor) or current in self.own.ran
            for source in current.all_input_nodes:
                if not values_matter and _holds_tensor(self.value(source)):
                    continue  # asked for its size, or the like
                following = (source, values_matter)
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)
        return False

    def real(self, node: fx.Node) -> Any:
        """A node's value under the example inputs, computed; ``Unknown`` where that fails."""
        return self._evaluate(node, self.own, self.own.real, real=True)

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """A node's shape under the example inputs; ``None`` if it is no tensor, or not always of as many dimensions."""
        value = self.value(node)
        if not isinstance(value, Tensor):
            return None
        if self._ranks_may_vary:
            for env in (*self._few_rows, *self.batch_variants, *self.size_variants):
                other = self._value(node, env)
                if isinstance(other, Tensor) and other.ndim != value.ndim:
                    return None
        return tuple(value.shape)

    def is_floating(self, node: fx.Node) -> bool:
        """Whether a node's value is a floating tensor."""
        value = self.value(node)
        return isinstance(value, Tensor) and value.is_floating_point()

    def free_dims(self, node: fx.Node) -> set[int]:
        """Dimensions of a node whose size may differ between calls."""
        shape = self.shape(node)
        if shape is None:
            return set()
        free = self._differing(node, shape, self.batch_variants)
        return free if len(free) == len(shape) else free | self._differing(node, shape, self._accepted())

    def _accepted(self) -> list[Environment]:
        """Other sizes that the whole model accepts: several changed at once, and those alone that none of these has."""
        found = [env for env in self.size_variants if self._runs(env)]
        covered = {axis for env in found for axis in self._changed(env)}
        return found + [env for env in self._single_variants if self._changed(env) - covered and self._runs(env)]

    def _changed(self, env: Environment) -> set[tuple[int, int]]:
        pairs = zip(self.own.inputs.tensors(), env.inputs.tensors(), strict=True)
        return {(i, d) for i, (a, b) in enumerate(pairs) for d in range(a.ndim) if a.shape[d] != b.shape[d]}

    def free_among(self, node: fx.Node, dims: set[int]) -> set[int]:
        """Those of a node's given dimensions whose size may differ between calls."""
        # Most of the time layers say it, and nothing has to be propagated.
        return dims & self.free_dims(node) if dims - self._fixed_dims(node) else set()

    def is_plainly_fixed(self, node: fx.Node, dim: int) -> bool:
        """Whether the layers in front of a node say the size of a dimension."""
        shape = self.shape(node)
        return shape is not None and dim % len(shape) in self._fixed_dims(node)

    def _fixed_dims(self, node: fx.Node) -> set[int]:
        """Dimensions whose size plainly follows from the layers in front of a node."""
        if node.op == "call_function" and node.target is F.batch_norm:
            return {1}  # as many channels as statistics
        shape = self.shape(node)
        if shape is None or node.op != "call_module" or not node.args or not isinstance(node.args[0], fx.Node):
            return set()
        module, source = self.lookup(str(node.target)), node.args[0]
        if isinstance(module, FrozenAffine):
            return module.affine.varying() | self._fixed_dims(source)
        given = self.shape(source)
        return set() if given is None else fixed_dims(module, given, shape, lambda: self._fixed_dims(source))

    def adopt(self, other: Shapes, counterparts: Mapping[fx.Node, fx.Node]) -> None:
        """Take over what is known about another graph's tensors.

        Parameters
        ----------
        other : Shapes
            Of a graph with the same inputs.
        counterparts : mapping of fx.Node to fx.Node
            From the other graph's nodes to nodes of this one that have the same values.
        """
        self._ranks_may_vary |= other._ranks_may_vary
        pairs = ((self.own, other.own), *zip(self._variants, other._variants, strict=True))
        for ours, theirs in pairs:
            for node, value in theirs.meta.items():
                if isinstance(value, Tensor) and node in counterparts:
                    ours.meta.setdefault(counterparts[node], value)

    def always(self, holds: Callable[..., bool], *nodes: fx.Node) -> bool:
        """Whether a statement about the shapes of nodes holds for every input size that can be tried."""
        for env in (self.own, *self._variants):
            values = [self._value(node, env) for node in nodes]
            if all(isinstance(value, Tensor) for value in values):
                if not holds(*(tuple(value.shape) for value in values)):
                    return False
            elif env is self.own:
                return False
        return True

    def is_bookkeeping(self, node: fx.Node) -> bool:
        """Whether a node only computes sizes, dtypes and the like."""
        if asks_for_sizes(node):
            return True
        if node.op != "call_function" or gives_tensor(node):
            return False
        if node.target is getattr:  # of a dtype's limits, say
            return isinstance(node.args[0], fx.Node) and not _holds_tensor(self.value(node.args[0]))
        name = getattr(node.target, "__name__", "")
        if name.startswith("_assert") or node.target in (torch._assert, torch.Size):
            return True
        inputs = node.all_input_nodes
        return (
            bool(inputs)
            and all(not isinstance(self.value(i), Tensor) for i in inputs)
            and not _holds_tensor(self.value(node))
        )

    def forget(self, node: fx.Node) -> None:
        """Drop what is known about a node (it is gone, or computes something else now)."""
        for env in (self.own, *self._variants):
            env.meta.pop(node, None)
            env.real.pop(node, None)

    # ------------------------------------------------------------------ answers

    def _differing(self, node: fx.Node, shape: tuple[int, ...], envs: list[Environment]) -> set[int]:
        found: set[int] = set()
        for env in envs:
            other = self._value(node, env)
            if isinstance(other, Tensor) and other.ndim == len(shape):
                found |= {d for d, (a, b) in enumerate(zip(shape, other.shape, strict=True)) if a != b}
        return found

    def _runs(self, env: Environment) -> bool:
        """Whether the whole model accepts these sizes."""
        if env.runs is None:
            env.runs = all(self._value(node, env) is not Unknown for node in self.graph.nodes)
        return env.runs

    def _value(self, node: fx.Node, env: Environment) -> Any:
        return self._evaluate(node, env, env.meta, real=False)

    def _evaluate(self, node: fx.Node, env: Environment, known: dict[fx.Node, Any], real: bool) -> Any:
        waiting = [node]
        while waiting:
            current = waiting[-1]
            if current in known:
                waiting.pop()
                continue
            missing = [n for n in current.all_input_nodes if n not in known]
            if missing:
                waiting.extend(missing)
                continue
            known[current] = self._execute(current, env, known, real)
            waiting.pop()
        return known[node]

    def _execute(self, node: fx.Node, env: Environment, known: dict[fx.Node, Any], real: bool) -> Any:
        if node.op == "placeholder":
            value = self._placeholder(node, env.drawn() if real else env.inputs)
            # A copy: what is run for real may write into it, and it is the caller's.
            return pytree.tree_map_only(Tensor, torch.clone, value) if real else value
        if any(known[n] is Unknown for n in node.all_input_nodes):
            return Unknown
        if not real and node.op == "call_module" and not node.kwargs:
            quick = self._by_arithmetic(node, known)
            if quick is not None:
                return quick
        self._ranks_may_vary |= _drops_dimensions(node, self.lookup)
        try:
            with torch.no_grad():
                return self._run(node, known, real)
        except Exception as error:
            if cuts_in(error):
                raise
            if real or not meta_cannot_follow(error):
                return Unknown
        # Values that meta tensors cannot follow (packed sequences, data-dependent sizes): run this part for real.
        env.ran.add(node)
        value = self._evaluate(node, env, env.real, real=True)
        return value if value is Unknown else _to_meta(value)

    def _by_arithmetic(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        """What a layer makes of tensors, where its shape is plain to see."""
        if not all(type(argument) is fx.Node for argument in node.args):
            return None
        values = tuple([known[argument] for argument in node.args])  # type: ignore[index]
        module = self.lookup(str(node.target))
        if values and isinstance(module, (*KEEP_SHAPE, FrozenAffine)):
            return values[0]
        return output_of(module, values, {})

    def _placeholder(self, node: fx.Node, inputs: Inputs) -> Any:
        position = [n for n in self.graph.nodes if n.op == "placeholder"].index(node)
        return [*inputs.args, *inputs.kwargs.values()][position]

    def _run(self, node: fx.Node, known: dict[fx.Node, Any], real: bool) -> Any:
        args = fx.map_arg(node.args, lambda n: known[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: known[n])
        if node.op == "output":
            return args[0]
        if node.op == "get_attr":
            value = self.lookup(str(node.target))
            return value if real else _to_meta(value)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_function":
            assert callable(node.target)
            # Copies that only change the layout are left out of a canonical graph, so that a view may need one.
            if isinstance(node.target, torch._ops.OpOverload) and _only_views(node):
                return torch.reshape(*args, **kwargs)  # type: ignore[arg-type]
            quick = None if real else output_of(node.target, args, kwargs)
            return node.target(*args, **kwargs) if quick is None else quick
        module = self.lookup(str(node.target))
        state = _state(module, args, _as_it_is if real else _to_meta)
        return torch.func.functional_call(module, state, args, kwargs) if state else module(*args, **kwargs)


def _only_views(node: fx.Node) -> bool:
    operation = resolve(node)
    return operation is not None and operation.moves and operation.row.views and not operation.row.like


def _drops_dimensions(node: fx.Node, lookup: Callable[[str], Any]) -> bool:
    """Whether how many dimensions a node leaves follows from sizes: ``x.squeeze()``, ``x.squeeze(0)``."""
    called = lookup(str(node.target)) if node.op == "call_module" else node
    target = getattr(called, "target", "")
    name = target if isinstance(target, str) else str(getattr(target, "__name__", ""))
    if "squeeze" not in name or "unsqueeze" in name:
        return False
    dims = [a for a in (*called.args[1:], *called.kwargs.values()) if isinstance(a, int | tuple | list)]
    return not dims or dims[0] in (0, (0,), [0])


def meta_cannot_follow(error: Exception) -> bool:
    """Whether an operation failed for want of values; sizes that do not fit would not fit for real either."""
    return isinstance(error, NotImplementedError) or "meta" in str(error).lower() or "Dynamic" in type(error).__name__


def _state(module: nn.Module, args: Any, convert: Callable[[Any], Any]) -> dict[str, Tensor]:
    """A module's tensors; what is kept in float64 until the model is built is taken in its input's precision."""
    own = next((a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()), None)
    state = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        value = convert(tensor)
        rounding = (tensor.rounding or own) if isinstance(tensor, ExactTensor) else None
        state[name] = value if rounding is None else value.to(rounding)
    return state


def _as_it_is(value: Any) -> Any:
    return value


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta") if value.device.type != "meta" else value
    if isinstance(value, nn.utils.rnn.PackedSequence):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_to_meta(item) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_to_meta(item) for item in value) if type(value) in (tuple, list) else value
    if isinstance(value, dict):
        return {key: _to_meta(item) for key, item in value.items()}
    return value


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Tensor) or value is Unknown:
        return True
    if isinstance(value, tuple | list):
        return any(_holds_tensor(item) for item in value)
    if isinstance(value, dict):
        return any(_holds_tensor(item) for item in value.values())
    return False


def _environments(vary: Callable[[Inputs], list[Inputs]], meta: Inputs, real: Inputs) -> list[Environment]:
    def drawn(position: int) -> Callable[[], Inputs]:
        return lambda: vary(real)[position]

    return [Environment(inputs, drawn(position)) for position, inputs in enumerate(vary(meta))]


def _other_batch_sizes(inputs: Inputs) -> list[Inputs]:
    if inputs.batch_size is None:
        return []
    other = inputs.with_batch(inputs.batch_size + 1)
    return [other] if other is not None else []
