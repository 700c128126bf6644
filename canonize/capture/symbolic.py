"""Capture with ``torch.fx``: proxies that know their sizes, so that code that looks at shapes can be traced.

Where Python asks a proxy for a plain number or a truth value (an ``if`` or an ``assert`` on a shape, a loop over a
range), the answer is worked out on meta tensors. It must not depend on the batch size. Where it depends on another
size that the model leaves free, the graph gets a check, so that the canonical model refuses inputs it was not captured
for instead of computing something else.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, TraceError

from canonize.capture.captured import GUARD, PLAIN, Captured, defaults, flag_message, input_names, plain_output_notes
from canonize.capture.whole import opened_functions, refuse_hidden_writes
from canonize.capture.writes import WriteGuard
from canonize.inputs import Inputs
from canonize.shapes import Shapes, Unknown, gives_tensor

# What a subclass of a torch layer may define and still be the layer it inherits from.
_HARMLESS = {
    "__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__constants__", "__static_attributes__",
    "__firstlineno__", "__parameters__", "__annotations_cache__", "__annotate_func__", "extra_repr", "__repr__",
    "reset_parameters",
}  # fmt: skip
# Functions that make a tensor from sizes, and do not look whether a size is a proxy.
_FACTORIES = (
    *("zeros", "ones", "full", "empty", "arange", "linspace", "eye", "rand", "randn", "as_tensor", "tensor"),
    *("finfo", "iinfo"),
)
# Attributes of what is no tensor: limits of a dtype, fields of a device.
_BESIDE_TENSORS = {"eps", "tiny", "smallest_normal", "bits", "index"}
# Attributes that are compared by their names.
_NAMED = {"dtype", "device", "type", "layout"}
_OF_DEVICES = {"device", "is_cuda", "is_cpu", "is_mps", "is_xpu", "is_meta"}
# Layers that give more than a tensor.
_SEVERAL = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
# Functions that look into their arguments.
_SEQUENCES = ("pack_padded_sequence", "pad_packed_sequence", "pack_sequence", "pad_sequence")

# One trace at a time: what is replaced meanwhile is everybody's.
_TRACING = threading.RLock()
# What torch.fx replaces while it traces; values must be worked out with the real ones.
_CALL, _GETATTR = nn.Module.__call__, nn.Module.__getattr__


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """Run modules for real in the middle of a trace."""
    if nn.Module.__call__ is _CALL and nn.Module.__getattr__ is _GETATTR:  # exchanging them takes a millisecond
        yield
        return
    patched = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _CALL, _GETATTR  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = patched  # type: ignore[method-assign]


class _Sized:
    """What Python may ask a proxy: its length, its items, its attributes, its value as a number."""

    def __getattr__(self, name: str) -> Any:
        proxy: Any = self
        if not hasattr(Tensor, name) and name not in _BESIDE_TENSORS:
            with _untraced():
                value = proxy.tracer.value_of(proxy.node)
            if value is not Unknown and not hasattr(value, name):
                raise AttributeError(f"{type(value).__name__} has no attribute {name}")
        return _SizedAttribute(proxy, name)

    def __hash__(self) -> int:
        # Looked up in a table or a set: sizes, dtypes and the like are found by what they are.
        proxy: Any = self
        if not _asked_by_the_model() or proxy.tracer.is_tensor(proxy.node):
            return object.__hash__(self)
        return hash(_plain(proxy))

    def __str__(self) -> str:
        return str(self._shown())

    def __format__(self, spec: str) -> str:
        return format(self._shown(), spec)

    def _shown(self) -> str:
        """What stands in a text. Most texts are messages, for which nothing is worked out; names of dtypes are not."""
        proxy: Any = self
        named = type(self) is _SizedAttribute and proxy.attr in _NAMED
        return str(_plain(proxy)) if named and _asked_by_the_model(3) else repr(self)

    def __round__(self, *digits: Any) -> Any:
        proxy: Any = self
        return proxy.tracer.create_proxy("call_function", round, (proxy, *digits), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        # The call writes into its first argument; ``functionalize`` makes everybody behind it read the result instead.
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __len__(self) -> int:
        # A length is a number of dimensions or of outputs; unlike a size it does not vary from call to call.
        proxy: Any = self
        with _untraced():
            value = proxy.tracer.value_of(proxy.node)
        if isinstance(value, Tensor):
            return int(_plain(proxy.tracer.create_proxy("call_method", "size", (proxy, 0), {})))
        if not isinstance(value, tuple | list):
            raise proxy.tracer.failed(f"{proxy.node.name} has no length while tracing")
        return len(value)

    def __index__(self) -> int:
        return operator.index(_plain(self))

    def __int__(self) -> int:
        return int(_plain(self))

    def __float__(self) -> float:
        return float(_plain(self))


def _writing(name: str) -> Callable[[Any, Any], Any]:
    """What ``x += y`` does: it writes into a tensor, which others may know by another name; a number it replaces."""
    written, pure = getattr(operator, f"i{name}"), getattr(operator, f"__{name}__")

    def method(self: Any, other: Any) -> Any:
        operation = written if self.tracer.is_tensor(self.node) else pure
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul"):
    setattr(_Sized, f"__i{_name}__", _writing(_name))


class _SizedProxy(_Sized, fx.Proxy):
    """A value of the graph."""


class _SizedAttribute(_Sized, Attribute):
    """An attribute of a value (``x.shape``)."""


def _plain(proxy: Any) -> Any:
    tracer = proxy.tracer
    assert isinstance(tracer, _Tracer)
    return tracer.decide(proxy.node)


class _Tracer(fx.Tracer):
    """Leaves are torch's own layers and canonize's; buffers become nodes; only the given inputs are inputs."""

    proxy_buffer_attributes = True

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(autowrap_functions=tuple(_sequence_functions().values()))
        self.inputs = inputs
        self.sizes: Shapes | None = None
        self.guarded: dict[fx.Node, Any] = {}
        self.path = [""]
        self.failure: TraceError | None = None
        self.notes: tuple[str, ...] = ()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A node for a leaf, the nodes of its forward otherwise; each node knows the innermost module around it."""
        given = (*args, *kwargs.values())
        if m not in (self.submodule_paths or {}) and not any(isinstance(value, fx.Proxy) for value in given):
            return forward(*args, **kwargs)  # another thread's: torch.fx exchanges everybody's call
        name = self.path_of_module(m)
        self.path.append(name)
        try:
            if self.is_leaf_module(m, name):
                return self.create_proxy("call_module", name, args, kwargs)
            return forward(*args, **kwargs)
        finally:
            self.path.pop()

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """A parameter or buffer is a node; torch.fx searches the whole model for its name at every access."""
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
        return _SizedProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """A value of the graph is its node; everything else is torch.fx's business."""
        kind = type(a)
        if kind is _SizedProxy:
            return a.node
        if kind is tuple and len(a) == 1 and type(a[0]) is _SizedProxy:
            return (a[0].node,)
        return {} if kind is dict and not a else super().create_arg(a)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        names = list(input_names(root_fn, self.inputs))
        given = [*self.inputs.args, *self.inputs.kwargs.values()]
        # A flag or a number is part of what is captured; only tensors, alone or nested, vary from call to call. Any
        # other value is refused when the model is called.
        values = []
        for name, value, default in zip(names, given, defaults(root_fn, self.inputs), strict=True):
            proxy = self.create_proxy("placeholder", name, default, {})
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

    # ------------------------------------------------------------------ what Python asks

    def to_bool(self, obj: fx.Proxy) -> bool:
        """An ``if``, ``while`` or ``assert`` on a value of the graph."""
        return bool(self.decide(obj.node))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Unpacking: as many items as the value has, each still a value of the graph."""
        with _untraced():
            value = self.value_of(obj.node)
        if isinstance(value, Tensor):
            self.decide(self.create_proxy("call_method", "size", (obj, 0), {}).node)
            return self._items(obj, value.shape[0])
        if not isinstance(value, tuple | list):
            raise self.failed(f"{obj.node.name} cannot be unpacked while tracing")
        return self._items(obj, len(value))

    def _items(self, obj: fx.Proxy, count: int) -> Iterator[Any]:
        return iter([self.create_proxy("call_function", operator.getitem, (obj, i), {}) for i in range(count)])

    def decide(self, node: fx.Node) -> Any:
        """The plain value of a node that only computes with sizes.

        Raises
        ------
        TraceError
            If it depends on the data or on the batch size.
        """
        with _untraced():
            value = self.value_of(node)
            if isinstance(value, Tensor | fx.Proxy) or value is Unknown:
                raise self.failed(f"{node.name} is decided by the data, not by shapes")
            shapes = self.shapes
            if any(shapes.value_in(node, env) not in (value, Unknown) for env in shapes.batch_variants):
                raise self.failed(f"{node.name} depends on the batch size")
            on_device = self._on_its_device(node)
            if on_device is not Unknown:
                return on_device
            guard = node not in self.guarded and self._depends_on_size(node)
        if guard:
            self.guarded[node] = value
            self._guard(node, value)
        return value

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
        with _untraced():
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
        condition = _expression(node) if value is True else f"{_expression(node)} is {shown}"
        message = f"{GUARD}: this canonical model holds where {condition}. Canonize again with an input like yours."
        self.graph.call_function(torch._assert, (holds, message))


_SYMBOLS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "add": "+", "sub": "-", "mul": "*",
            "floordiv": "//", "truediv": "/", "mod": "%"}  # fmt: skip


def _expression(value: Any) -> str:
    """A computation with sizes, as a reader would write it."""
    if isinstance(value, slice):
        ends = ("" if end is None else _expression(end) for end in (value.start, value.stop))
        return ":".join(ends) + (f":{_expression(value.step)}" if value.step is not None else "")
    if not isinstance(value, fx.Node):
        return repr(value)
    if value.op == "call_function":
        name = getattr(value.target, "__name__", str(value.target))
        parts = [_expression(argument) for argument in value.args]
        if name in _SYMBOLS and len(parts) == 2:
            return f" {_SYMBOLS[name]} ".join(_operand(argument) for argument in value.args)
        if name == "getattr":
            return f"{_operand(value.args[0])}.{value.args[1]}"
        if name == "getitem":
            return f"{_operand(value.args[0])}[{parts[1]}]"
        return f"{name}({', '.join(parts)})"
    if value.op == "call_method":
        first, *rest = (_expression(argument) for argument in value.args)
        return f"{first}.{value.target}({', '.join(rest)})"
    return str(value.target)


def _operand(value: Any) -> str:
    """A part of a larger expression, in parentheses where it needs them."""
    compound = isinstance(value, fx.Node) and getattr(value.target, "__name__", "") in _SYMBOLS
    return f"({_expression(value)})" if compound else _expression(value)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_tensor(item) for item in value)
    if isinstance(value, dict):
        return any(_holds_tensor(item) for item in value.values())
    return isinstance(value, Tensor)


def _sequence_functions() -> dict[str, Callable[..., Any]]:
    from torch.nn.utils import rnn

    return {name: getattr(rnn, name) for name in _SEQUENCES}


def _factory_functions() -> dict[str, Callable[..., Any]]:
    return {name: getattr(torch, name) for name in _FACTORIES}


class _PatchedModule:
    """Replace functions in a namespace by versions that record a call when handed a proxy."""

    def __init__(self, namespace: Any, functions: dict[str, Callable[..., Any]]) -> None:
        self.namespace, self.functions = namespace, functions

    def __enter__(self) -> None:
        for name, function in self.functions.items():
            setattr(self.namespace, name, _recording(function))

    def __exit__(self, *_: object) -> None:
        for name, function in self.functions.items():
            setattr(self.namespace, name, function)


@contextlib.contextmanager
def _recorded_autograd_functions() -> Iterator[None]:
    """Keep calls of custom autograd functions whole: their backward is not in their forward."""
    base = torch.autograd.Function
    original = base.__dict__["apply"]

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        real = original.__get__(None, cls)
        own = not cls.__module__.startswith("torch.")  # torch's (checkpointing) only wrap what is to be traced
        for value in (*args, *kwargs.values()):
            if own and isinstance(value, fx.Proxy):
                return value.tracer.create_proxy("call_function", real, args, kwargs)
        return real(*args, **kwargs)

    base.apply = classmethod(apply)  # type: ignore[assignment]
    try:
        yield
    finally:
        base.apply = original  # type: ignore[method-assign]


def _asked_by_the_model(depth: int = 2) -> bool:
    """Whether the code that asks a proxy is a model's own, not torch's or canonize's."""
    module = str(sys._getframe(depth).f_globals.get("__name__", ""))
    return module.partition(".")[0] not in ("torch", "canonize")


@contextlib.contextmanager
def _truthful_questions() -> Iterator[None]:
    """Let ``isinstance`` and ``torch.is_tensor`` say of a proxy in a model's code what they would say of its value.

    Their answer decides which way a forward takes, and no error would tell that it was wrong. The class of a proxy
    cannot lie instead: torch's C++ code asks for it, too.
    """
    real, is_tensor, check = builtins.isinstance, torch.is_tensor, torch._check
    proxies = (_SizedProxy, _SizedAttribute)

    def truthful(value: Any, classes: Any) -> bool:
        if type(value) not in proxies or not _asked_by_the_model():
            return real(value, classes)
        with _untraced():
            known = value.tracer.value_of(value.node)
        return real(value, classes) or (known is not Unknown and real(known, classes))

    def says_tensor(value: Any) -> bool:
        return value.tracer.is_tensor(value.node) if type(value) in proxies else is_tensor(value)

    def checks(condition: Any, *message: Any) -> None:
        if type(condition) not in proxies:  # assertions on values are not part of the function
            check(condition, *message)

    builtins.isinstance, torch.is_tensor, torch._check = truthful, says_tensor, checks  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.isinstance, torch.is_tensor, torch._check = real, is_tensor, check


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


def _recording(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, fx.Proxy):
                return value.tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return wrapper


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
        _TRACING,
        torch.enable_grad(),
        _PatchedModule(rnn, _sequence_functions()),
        _PatchedModule(torch, _factory_functions()),
        _recorded_autograd_functions(),
        _truthful_questions(),
        WriteGuard(),
    ):
        graph = tracer.trace(root)
    if tracer.failure is not None:
        raise tracer.failure
    _detach_what_had_no_gradient(tracer, graph)
    refuse_hidden_writes(graph, tracer.shapes)
    return Captured(graph, root, "symbolic_trace", tracer.notes)


def _held(root: nn.Module, name: str) -> Tensor | None:
    """The tensor that a model holds under a qualified name."""
    *path, last = name.split(".")
    owner: nn.Module | None = root
    for part in path:
        owner = owner._modules.get(part) if owner is not None else None
    return None if owner is None else owner._parameters.get(last, owner._buffers.get(last))


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one operation: a layer of torch or of canonize, as its class defines it."""
    if "forward" in module.__dict__ or isinstance(module, nn.Sequential | fx.GraphModule):
        return False
    kind: Any = type(module)
    return _is_layer(kind)


@functools.lru_cache(maxsize=4096)
def _is_layer(kind: Any) -> bool:
    layer = layer_class(kind)
    own = {name for cls in kind.__mro__[: kind.__mro__.index(layer)] for name in vars(cls)}
    return layer is not nn.Module and not (own - _HARMLESS) & set(_attributes(layer))


def layer_class(kind: Any) -> Any:
    """The class of torch or canonize that a class of modules is, or inherits from."""
    homes = ("torch.nn", "torch.ao.nn")
    return next(c for c in kind.__mro__ if c.__module__.startswith(homes) or c.__module__ == "canonize.nn")


def _attributes(cls: type) -> set[str]:
    return {name for base in cls.__mro__ if base is not object for name in vars(base)}
