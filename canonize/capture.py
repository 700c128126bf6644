"""nn.Module -> torch.fx graph, without touching the module.

Two tracers. ``torch.fx.symbolic_trace`` is fast and keeps every size free, but fails on control flow that looks at
shapes; ``torch.export`` is behind it. Which one was used shows in the report, and nowhere else: both give a graph over
the same eval-mode copy of the model, and ``canonize.normalize`` gives both the same vocabulary.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.errors import CaptureError
from canonize.inputs import Inputs

# Forward pre-hooks of torch itself that only compute a weight; ``bake_weights`` evaluates them.
_WEIGHT_HOOKS = ("WeightNorm", "SpectralNorm")
# What a subclass of a torch layer may define and still be the layer it inherits from.
_HARMLESS = {"__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__constants__", "__static_attributes__",
             "__firstlineno__", "__parameters__", "__annotations_cache__", "__annotate_func__", "extra_repr", "reset_parameters", "__repr__"}


@dataclass
class Captured:
    """A traced model.

    Attributes
    ----------
    graph : fx.Graph
        Placeholders are the model's inputs; parameters and buffers are ``get_attr`` nodes.
    root : nn.Module
        Eval-mode copy of the model that the graph's targets refer to; shares its tensors.
    tracer : {"symbolic_trace", "torch.export"}
    """

    graph: fx.Graph
    root: nn.Module
    tracer: str


def eval_copy(model: nn.Module) -> nn.Module:
    """A structural copy of a model in eval mode that shares every tensor with it.

    The copy has modules, hooks and flags of its own: whatever is done to it, the original stays as it was.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in _reachable_tensors(vars(module)):
            memo[id(value)] = value
    duplicate = copy.deepcopy(model, memo)
    duplicate.eval()
    return duplicate


def _reachable_tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _reachable_tensors(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from _reachable_tensors(item, depth - 1)


def refuse_what_a_trace_would_drop(model: nn.Module) -> None:
    """Raise where a module carries something that is not in its ``forward``.

    Raises
    ------
    CaptureError
        For forward hooks and backward hooks: they run around ``forward``, where no tracer sees them.
    """
    for name, module in model.named_modules():
        where = name or type(model).__name__
        for kind, hooks in (
            ("forward pre-hook", module._forward_pre_hooks),
            ("forward hook", module._forward_hooks),
            ("backward hook", module._backward_hooks),
            ("backward pre-hook", module._backward_pre_hooks),
        ):
            for hook in hooks.values():
                if type(hook).__name__ in _WEIGHT_HOOKS and type(hook).__module__.startswith("torch.nn.utils"):
                    continue
                raise CaptureError(
                    f"it carries a {kind} ({_describe(hook)}), which a trace would silently drop",
                    where,
                    "Remove the hook (its handle has .remove()) and register it on the canonical model instead.",
                )


def _describe(hook: Any) -> str:
    return getattr(hook, "__qualname__", None) or type(hook).__name__


def capture(model: nn.Module, inputs: Inputs, tracer: str | None = None) -> Captured:
    """Trace a model.

    Parameters
    ----------
    model : nn.Module
        Never changed.
    inputs : Inputs
        Example inputs; their names decide which arguments of ``forward`` become inputs of the graph.
    tracer : {"symbolic_trace", "torch.export"}, optional
        Use this one only. By default the first, and the second where the first fails.

    Raises
    ------
    CaptureError
        If neither can, or the model carries hooks.
    """
    from canonize.bake import bake_weights

    refuse_what_a_trace_would_drop(model)
    if tracer == "torch.export":
        root = eval_copy(model)
        bake_weights(root)
        return export_trace(root, inputs)
    root = eval_copy(model)
    bake_weights(root)
    try:
        return symbolic_trace(root, inputs)
    except Exception as error:
        if tracer == "symbolic_trace":
            raise CaptureError(f"torch.fx cannot trace it ({_first_line(error)})", type(model).__name__) from error
        first_failure = error
    root = eval_copy(model)
    bake_weights(root)
    try:
        return export_trace(root, inputs)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            f"neither tracer can capture it (torch.fx: {_first_line(first_failure)}; torch.export: {_first_line(error)})",
            _source_line(error) or type(model).__name__,
            "Rewrite the control flow that looks at values, or canonize the submodules that hold no such code.",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def _source_line(error: BaseException) -> str | None:
    """The line of the user's own code that a tracer stumbled over."""
    trace = error.__traceback__
    found = None
    while trace is not None:
        code = trace.tb_frame.f_code
        package = trace.tb_frame.f_globals.get("__name__", "").split(".")[0]
        if code.co_name == "forward" and package not in ("torch", "canonize"):
            found = f"{code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


# ---------------------------------------------------------------------------------------------- torch.fx


class _Tracer(fx.Tracer):
    """Leaves are torch's own layers and canonize's; buffers become nodes; only the given inputs are inputs."""

    proxy_buffer_attributes = True
    trace_asserts = True

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(autowrap_functions=tuple(_wrapped_functions().values()))
        self.inputs = inputs

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        names = list(_input_names(root_fn, self.inputs))
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in names]
        count = len(self.inputs.args)
        keywords = list(self.inputs.kwargs)

        def call(root: nn.Module, *values: Any) -> Any:
            return root_fn(root, *values[:count], **dict(zip(keywords, values[count:], strict=True)))

        return call, [self.root, *proxies]


def _input_names(forward: Callable[..., Any], inputs: Inputs) -> Iterator[str]:
    """Names for the given inputs, as the signature of ``forward(self, ...)`` calls them."""
    positional = []
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            positional.append(parameter.name)
    for index in range(len(inputs.args)):
        yield positional[index] if index < len(positional) else f"input_{index}"
    yield from inputs.kwargs


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one operation: a layer of torch or of canonize, as its class defines it."""
    if "forward" in vars(module) or isinstance(module, nn.Sequential | fx.GraphModule):
        return False
    own: set[str] = set()
    for cls in type(module).__mro__:
        if cls.__module__.startswith(("torch.nn", "torch.ao.nn")) or cls.__module__ == "canonize.nn":
            return cls is not nn.Module and not (own - _HARMLESS) & set(_attributes(cls))
        own |= set(vars(cls))
    return False


def _attributes(cls: type) -> set[str]:
    return {name for base in cls.__mro__ if base is not object for name in vars(base)}


def _wrapped_functions() -> dict[str, Callable[..., Any]]:
    """Functions that look into their arguments, and so must not be traced through."""
    from torch.nn.utils import rnn

    names = ("pack_padded_sequence", "pad_packed_sequence", "pack_sequence", "pad_sequence")
    return {name: getattr(rnn, name) for name in names}


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


def _recording(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, fx.Proxy):
                return value.tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return wrapper


def symbolic_trace(root: nn.Module, inputs: Inputs) -> Captured:
    """Trace with ``torch.fx``; nothing is executed, every size stays free."""
    from torch.nn.utils import rnn

    tracer = _Tracer(inputs)
    with _PatchedModule(rnn, _wrapped_functions()):
        graph = tracer.trace(root)
    for node in graph.nodes:
        node.meta["path"] = _path(node)
    return Captured(graph, root, "symbolic_trace")


def _path(node: fx.Node) -> str:
    """Qualified name of the innermost module around a node."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    entry = list(stack.values())[-1]
    name = entry[0] if isinstance(entry, tuple) else str(entry)
    return ".".join(part.split("@")[0] for part in name.split(".") if part)


# ---------------------------------------------------------------------------------------- torch.export


def export_trace(root: nn.Module, inputs: Inputs) -> Captured:
    """Trace with ``torch.export``, with the batch size free where the model allows."""
    program = _export(root, inputs).run_decompositions({})
    signature = program.graph_signature
    graph = program.graph
    constants = dict(program.constants)
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    user_inputs = []
    for node in list(graph.nodes):
        node.meta["path"] = _path(node)
        if node.op != "placeholder":
            continue
        if node.name not in names:
            user_inputs.append(node)
            continue
        target = names[node.name]
        _keep_constant(root, target, constants)
        with graph.inserting_before(node):
            attribute = graph.create_node("get_attr", target)
        attribute.meta["path"] = ""
        node.replace_all_uses_with(attribute)
        graph.erase_node(node)
    _restore_input_structure(graph, root, inputs, user_inputs)
    _restore_output_structure(graph, signature, program.call_spec.out_spec)
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(
                f"it uses {node.target.name()}, which has no place in a canonical graph",
                node.meta["path"] or type(root).__name__,
                "Take the control flow (or the torch.no_grad block) out of forward.",
            )
    return Captured(graph, root, "torch.export")


def _export(root: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    import logging
    import warnings

    logging.getLogger("torch.export").setLevel(logging.ERROR)
    batch = inputs.batch_size
    attempts: list[tuple[Inputs, Any]] = []
    sample = inputs if batch is None or batch > 1 else (inputs.with_batch(2) or inputs)
    if batch is not None:
        attempts.append((sample, _dynamic_shapes(sample)))
    attempts.append((inputs, None))
    failure: Exception | None = None
    for example, shapes in attempts:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.export.export(
                    root, example.args, example.kwargs or None, dynamic_shapes=shapes, strict=False
                )
        except Exception as error:  # the last attempt's failure is raised below
            failure = failure or error
    assert failure is not None
    raise failure


def _dynamic_shapes(inputs: Inputs) -> dict[str, Any] | tuple[Any, ...]:
    """``Dim.AUTO`` for dimension 0 of every tensor that has the batch size there."""
    batch = inputs.batch_size

    def shape_of(value: Any) -> Any:
        if isinstance(value, Tensor):
            free = value.ndim > 0 and value.shape[0] == batch
            return {0: torch.export.Dim.AUTO} if free else {}
        if isinstance(value, tuple | list):
            return type(value)(shape_of(item) for item in value)
        if isinstance(value, dict):
            return {key: shape_of(item) for key, item in value.items()}
        return None

    args = tuple(shape_of(value) for value in inputs.args)
    if not inputs.kwargs:
        return args
    return (*args, *(shape_of(value) for value in inputs.kwargs.values()))


def _keep_constant(root: nn.Module, target: str, constants: dict[str, Any]) -> None:
    """Make a lifted tensor constant an attribute of the root."""
    if target not in constants:
        return
    owner = root
    *parents, last = target.split(".")
    for name in parents:
        owner = getattr(owner, name)
    if not hasattr(owner, last):
        owner.register_buffer(last, constants[target], persistent=False)


def _restore_input_structure(graph: fx.Graph, root: nn.Module, inputs: Inputs, leaves: list[fx.Node]) -> None:
    """Give the graph the arguments of ``forward`` back: flat leaves become items of their containers."""
    names = list(_input_names(type(root).forward, inputs))
    values = [*inputs.args, *inputs.kwargs.values()]
    first = next(iter(graph.nodes))
    remaining = iter(leaves)

    def unpack(value: Any, node: fx.Node) -> None:
        if isinstance(value, tuple | list):
            pairs: list[tuple[Any, Any]] = list(enumerate(value))
        elif isinstance(value, dict):
            pairs = list(value.items())
        else:
            leaf = next(remaining)
            leaf.replace_all_uses_with(node)
            graph.erase_node(leaf)
            return
        for key, item in pairs:
            unpack(item, graph.call_function(operator.getitem, (node, key)))

    with graph.inserting_before(first):
        placeholders = [graph.placeholder(f"arg_{name}") for name in names]
        for name, node in zip(names, placeholders, strict=True):
            node.target = name
            node.meta["path"] = ""
        for value, node in zip(values, placeholders, strict=True):
            unpack(value, node)
    for node in graph.nodes:
        node.meta.setdefault("path", "")


def _restore_output_structure(graph: fx.Graph, signature: Any, out_spec: Any) -> None:
    from torch.export.graph_signature import OutputKind
    from torch.utils import _pytree

    output = next(node for node in reversed(list(graph.nodes)) if node.op == "output")
    values = output.args[0]
    assert isinstance(values, tuple | list)
    kept = [
        value
        for value, spec in zip(values, signature.output_specs, strict=True)
        if spec.kind == OutputKind.USER_OUTPUT
    ]
    output.args = (_pytree.tree_unflatten(kept, out_spec),)
