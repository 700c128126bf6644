"""Capture with ``torch.fx``: proxies that know their sizes, so that code that looks at shapes can be traced.

Where Python asks a proxy for a plain number or a truth value (an ``if`` or an ``assert`` on a shape, a loop over a
range), the answer is worked out on meta tensors. It must not depend on the batch size. Where it depends on another
size that the model leaves free, the graph gets a check, so that the canonical model refuses inputs it was not captured
for instead of computing something else.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from canonize.capture.captured import (
    GUARD,
    NUMBERS,
    PLAIN,
    Captured,
    defaults,
    flag_message,
    input_names,
    plain_output_notes,
)  # fmt: skip
from canonize.capture.leaves import is_leaf
from canonize.capture.pieces import cuts, pieces_vary
from canonize.capture.proxies import TRACING, SizedProxy, truthful_questions, untraced
from canonize.capture.recording import (
    PatchedModule,
    factory_functions,
    recorded_autograd_functions,
    sequence_functions,
)
from canonize.capture.size_wording import expression
from canonize.capture.source import current_line
from canonize.capture.symbolic_numbers import symbolic_numbers
from canonize.capture.unlifted import check_in_words
from canonize.capture.whole import opened_functions, refuse_hidden_writes
from canonize.graph.shapes import Shapes, Unknown
from canonize.inputs import Inputs
from canonize.twins.writes import WriteGuard
from canonize.vocabulary import gives_tensor

# Layers that give more than a tensor.
_SEVERAL = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
# Python's own: a trace exchanges it.
_LENGTH = len
_OF_DEVICES = {"device", "is_cuda", "is_cpu", "is_mps", "is_xpu", "is_meta"}


class _Tracer(fx.Tracer):
    """Leaves are torch's own layers and canonize's; buffers become nodes; only the given inputs are inputs."""

    proxy_buffer_attributes = True

    def __init__(self, inputs: Inputs, pinned: bool = False) -> None:
        super().__init__(autowrap_functions=tuple(sequence_functions().values()))
        self.inputs = inputs
        self.pinned = pinned
        self.counted: set[fx.Node] = set()
        self.sizes: Shapes | None = None
        self.guarded: dict[fx.Node, Any] = {}
        self.path = [""]
        self.failure: TraceError | None = None
        self.at_rest = False
        self.thread = threading.get_ident()
        self.told = False
        self.asks_for_gradients = False
        self.notes: tuple[str, ...] = ()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A node for a leaf, the nodes of its forward otherwise; each node knows the innermost module around it."""
        if self.at_rest or threading.get_ident() != self.thread:  # torch.fx exchanges everybody's call
            return forward(*args, **kwargs)
        try:
            name = self.path_of_module(m)
        except NameError:  # made on the way (``self.body[1:]``): what it holds has names, it has none
            return forward(*args, **kwargs)
        self.path.append(name)
        try:
            if self.is_leaf_module(m, name):
                return self.create_proxy("call_module", name, args, kwargs)
            # Without hooks torch's own call does no more, and models nest deeper than Python's stack would allow.
            return forward(*args, **kwargs) if _has_hooks(m) else m.forward(*args, **kwargs)
        finally:
            self.path.pop()

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """A parameter or buffer is a node; torch.fx searches the whole model for its name at every access."""
        if self.at_rest or threading.get_ident() != self.thread:
            return attr_val
        name = self.names.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        if name is None or _held(self.root, name) is not attr_val:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    @functools.cached_property
    def names(self) -> dict[int, str]:
        """Ids of the model's tensors to their first names, as they are when the first is asked for."""
        tensors = [*self.root.named_buffers(), *self.root.named_parameters()]
        return {id(tensor): name for name, tensor in reversed(tensors)}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return SizedProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """A value of the graph is its node; everything else is torch.fx's business."""
        kind = type(a)
        if kind is SizedProxy:
            return a.node
        if kind is tuple and len(a) == 1 and type(a[0]) is SizedProxy:
            return (a[0].node,)
        return {} if kind is dict and not a else super().create_arg(a)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        names = list(input_names(root_fn, self.inputs))
        given = [*self.inputs.args, *self.inputs.kwargs.values()]
        # A flag or a number is part of what is captured; only tensors, alone or nested, vary from call to call. Any
        # other value is refused when the model is called.
        numbers = getattr(self.root, "meta", {}).get(NUMBERS, ()) if isinstance(self.root, fx.GraphModule) else ()
        values: list[Any] = []
        for name, value, default in zip(names, given, defaults(root_fn, self.inputs), strict=True):
            proxy = self.create_proxy("placeholder", name, default, {})
            if name in numbers and isinstance(value, Tensor):
                values.append(value.detach().clone())
                self._guard_numbers(proxy.node, name, value)
                continue
            if _holds_tensor(value):
                values.append(proxy)
                continue
            values.append(value)
            self._guard_flag(proxy.node, name, value)
        count = len(self.inputs.args)
        keywords = list(self.inputs.kwargs)

        def call(root: nn.Module, *values: Any) -> Any:
            output = root_fn(root, *values[:count], **dict(zip(keywords, values[count:], strict=True)))
            self.notes = plain_output_notes(output)
            return output

        return call, [self.root, *values]

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        """Remember where a value was computed, and whether under ``torch.no_grad``."""
        if target is torch._assert and len(args) == 2:
            args = (args[0], check_in_words(args[1]) or args[1])
        if kind == "call_module":
            node = self.graph.create_node(kind, target, None, None, name, type_expr)
            node.args = args  # given at once they would be searched for symbolic numbers
            if kwargs:
                node.kwargs = kwargs
        else:
            node = self.graph.create_node(kind, target, args, kwargs, name, type_expr)
        node.meta["path"] = self.path[-1]
        node.meta["no_grad"] = not torch.is_grad_enabled()
        return node

    def _guard_flag(self, node: fx.Node, name: str, value: Any) -> None:
        if not isinstance(value, PLAIN):
            raise TraceError(f"the argument {name} is neither a tensor nor a plain value")
        holds = self.graph.call_function(operator.eq, (node, value))
        self.graph.call_function(torch._assert, (holds, flag_message(name, value)))

    def _guard_numbers(self, node: fx.Node, name: str, value: Tensor) -> None:
        """A tensor of sizes, axes or indices is part of what is captured, as a flag is."""
        told = self.graph.call_method("tolist", (node,))
        holds = self.graph.call_function(operator.eq, (told, value.tolist()))
        self.graph.call_function(torch._assert, (holds, flag_message(name, value.tolist())))

    # ------------------------------------------------------------------ what Python asks

    def to_bool(self, obj: fx.Proxy) -> bool:
        """An ``if``, ``while`` or ``assert`` on a value of the graph."""
        return bool(self.decide(obj.node))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Unpacking: as many items as the value has, each still a value of the graph."""
        with untraced(self):
            value = self.value_of(obj.node)
        if isinstance(value, Tensor):
            self.settle(self.create_proxy("call_method", "size", (obj, 0), {}).node, value.shape[0])
            return self._items(obj, value.shape[0])
        if not isinstance(value, tuple | list):
            raise self.failed(f"{obj.node.name} cannot be unpacked while tracing")
        return self._items(obj, self.count_of(obj.node, value))

    def _items(self, obj: fx.Proxy, count: int) -> Iterator[Any]:
        return iter([self.create_proxy("call_function", operator.getitem, (obj, i), {}) for i in range(count)])

    def decide(self, node: fx.Node) -> Any:
        """The plain value of a node that only computes with sizes.

        Raises
        ------
        TraceError
            If it depends on the data or on the batch size.
        """
        with untraced(self):
            value = self.value_of(node)
            if isinstance(value, Tensor | fx.Proxy) or value is Unknown:
                raise self.failed(f"{node.name} is decided by the data, not by shapes")
            shapes = self.shapes
            if shapes.reads_data(node):
                raise self.failed(f"{node.name} is decided by the data, not by shapes (it is data-dependent)")
            if not self.pinned and any(
                shapes.value_in(node, env) not in (value, Unknown) for env in shapes.batch_variants
            ):
                raise self.failed(f"{node.name} depends on the batch size")
            on_device = self._on_its_device(node)
            if on_device is not Unknown:
                self.told = True  # the meta device is another one
                return on_device
        self.settle(node, value)
        return value

    def settle(self, node: fx.Node, value: Any) -> None:
        """Take the value of a node for what it always is; where it may be another one, the graph checks it."""
        with untraced(self):
            guard = node not in self.guarded and self._depends_on_size(node)
        if guard:
            self.guarded[node] = value
            self._guard(node, value)

    def count_of(self, node: fx.Node, value: Any) -> int:
        """How many items a tuple or a list has; where that follows from a size, the graph checks it."""
        count = len(value)
        with untraced(self):
            if self.shapes.reads_data(node):
                raise self.failed(f"the number of items of {node.name} is decided by the data (it is data-dependent)")
            varies = cuts(node) and pieces_vary(node, self._values_of)
        if varies and node not in self.counted:
            self.counted.add(node)
            self._guard(self.create_node("call_function", _LENGTH, (node,), {}), count)
        return count

    def _values_of(self, node: fx.Node) -> list[Any]:
        """A node's value under the example inputs, and under the others that are tried."""
        shapes = self.shapes
        return [shapes.value_in(node, env) for env in (shapes.own, *shapes.batch_variants, *shapes.size_variants)]

    def failed(self, why: str) -> TraceError:
        """The error to raise; a forward that catches it has taken a way that the model does not take."""
        self.failure = self.failure or TraceError(why)
        return self.failure

    def _on_its_device(self, node: fx.Node) -> Any:
        """What a computation with devices gives on the example's device; ``Unknown`` where no device is asked for."""
        asks = False

        def work_out(current: fx.Node) -> Any:
            nonlocal asks
            value = self.value_of(current)
            if isinstance(value, Tensor):
                return value
            if current.target is getattr and current.args[1] in _OF_DEVICES:
                source = current.args[0]
                if isinstance(source, fx.Node) and isinstance(self.value_of(source), Tensor):
                    asks = True
                    return getattr(self.inputs.tensors()[0], str(current.args[1]))
            if current.op != "call_function":
                return value
            args, kwargs = fx.map_arg((current.args, current.kwargs), work_out)
            assert callable(current.target)
            return current.target(*args, **kwargs)

        found = work_out(node)
        return found if asks else Unknown

    @property
    def shapes(self) -> Shapes:
        """Of the graph so far."""
        if self.sizes is None:
            self.sizes = Shapes(self.graph, self.inputs, self._find)
        return self.sizes

    def _find(self, target: str) -> Any:
        found: Any = self.root
        for part in target.split("."):
            found = getattr(found, part)
        return found

    def value_of(self, node: fx.Node) -> Any:
        """A node's value under the example inputs, on the meta device."""
        with untraced(self):
            return self.shapes.value(node)

    def is_tensor(self, node: fx.Node) -> bool:
        """Whether a node's value is a tensor; layers give one, but for the recurrent ones and attention."""
        if node.op == "call_module" and not isinstance(self._find(str(node.target)), _SEVERAL):
            return True
        if gives_tensor(node):
            return True
        value = self.value_of(node)
        return value is Unknown or isinstance(value, Tensor)

    def _depends_on_size(self, node: fx.Node) -> bool:
        """Whether any number behind a decision differs for another batch or image size."""
        shapes = self.shapes
        waiting, seen = [node], {node}
        while waiting:
            current = waiting.pop()
            own = shapes.value(current)
            if isinstance(own, Tensor):
                continue
            for env in (*shapes.batch_variants, *shapes.size_variants):
                other = shapes.value_in(current, env)
                if other is not Unknown and other != own:
                    return True
            for source in current.all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    waiting.append(source)
        return False

    def _guard(self, node: fx.Node, value: Any) -> None:
        if isinstance(value, bool):
            holds = node if value else self.graph.call_function(operator.not_, (node,))
        else:
            holds = self.graph.call_function(operator.eq, (node, value))
        shown = tuple(value) if isinstance(value, torch.Size) else value
        words = expression(node, self.is_tensor)
        condition = words if value is True else f"{words} is {shown}"
        line = current_line()
        condition += f" ({line})" if line else ""
        message = f"{GUARD}: this canonical model holds where {condition}. Canonize again with an input like yours."
        self.graph.call_function(torch._assert, (holds, message))


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_tensor(item) for item in value)
    if isinstance(value, dict):
        return any(_holds_tensor(item) for item in value.values())
    return isinstance(value, Tensor)


def _detach_what_had_no_gradient(tracer: _Tracer, graph: fx.Graph) -> None:
    """Where a value leaves a ``torch.no_grad`` block, it is detached."""
    for node in list(graph.nodes):
        if not node.meta.get("no_grad"):
            continue
        outside = [user for user in node.users if not user.meta.get("no_grad")]
        if outside and isinstance(tracer.value_of(node), Tensor):
            with graph.inserting_after(node):
                detached = graph.call_method("detach", (node,))
            detached.meta.update(node.meta)
            for user in outside:
                user.replace_input_with(node, detached)


def symbolic_trace(root: nn.Module, inputs: Inputs, opened: bool = True) -> Captured:
    """Trace with ``torch.fx``; nothing is executed, every size stays free.

    Parameters
    ----------
    root : nn.Module
        An eval copy; its attributes are afterwards what they were.
    opened : bool
        Whether to trace into functions that a library keeps whole.
    """
    with opened_functions() if opened else contextlib.nullcontext():
        return _traced(root, inputs)


def _traced(root: nn.Module, inputs: Inputs) -> Captured:
    from torch.nn.utils import rnn

    tracer = _Tracer(inputs)
    with (
        TRACING,
        torch.enable_grad(),
        PatchedModule(rnn, sequence_functions()),
        PatchedModule(torch, factory_functions()),
        recorded_autograd_functions(),
        truthful_questions(),
        symbolic_numbers(root),
        WriteGuard(),
    ):
        graph = tracer.trace(root)
    if tracer.failure is not None:
        raise tracer.failure
    _detach_what_had_no_gradient(tracer, graph)
    refuse_hidden_writes(graph, tracer.shapes)
    return Captured(graph, root, "symbolic_trace", tracer.notes, tracer.told, tracer.asks_for_gradients)


def _has_hooks(module: nn.Module) -> bool:
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    everybodys = nn.modules.module
    return bool(own or everybodys._global_forward_hooks or everybodys._global_forward_pre_hooks)


def _held(root: nn.Module, name: str) -> Tensor | None:
    """The tensor that a model holds under a qualified name."""
    *path, last = name.split(".")
    owner: nn.Module | None = root
    for part in path:
        owner = owner._modules.get(part) if owner is not None else None
    return None if owner is None else owner._parameters.get(last, owner._buffers.get(last))
