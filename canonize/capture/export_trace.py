"""Capture with ``torch.export``: what the model does on example inputs, with free sizes where they may be free."""

from __future__ import annotations

import copy
import inspect
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from canonize.capture.captured import Captured, defaults, input_names, left_out, path_of, plain_output_notes
from canonize.capture.proxies import symbolic_lengths
from canonize.capture.running import alike
from canonize.capture.size_guards import GuardedInput, constant_size, guard_inputs
from canonize.capture.symbolic_numbers import symbolic_numbers
from canonize.compat import exporting, guards_of
from canonize.compat.private import pytree
from canonize.errors import CaptureError, cuts_in
from canonize.inputs import Inputs
from canonize.twins.copying import eval_twin
from canonize.twins.writes import unharmed, writes_its_state
from canonize.vocabulary import counts_in, resolve

# Outputs of an exported program that are no outputs of the model: new values of what it holds.
_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
             "feature_alpha_dropout"}  # fmt: skip
_MUTATIONS = ("BUFFER_MUTATION", "PARAMETER_MUTATION")


def export_at_fixed_sizes(root: nn.Module, inputs: Inputs) -> Captured:
    """Trace with ``torch.export``, with every size that of the example: one row, say, where others take another way."""
    return export_trace(root, inputs, free=False)


def export_trace(root: nn.Module, inputs: Inputs, free: bool = True) -> Captured:
    """Trace with ``torch.export``, with the batch size free where the model allows."""
    with exporting():
        program = _export(root, inputs, free)
        _refuse_counts_that_are_read(program)
        program = program.run_decompositions({torch.ops.aten.copy.default: _copied})
    signature = program.graph_signature
    graph = program.graph
    constants = dict(program.constants)
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    left_out = _state_left_out(program)
    user_inputs = []
    for node in list(graph.nodes):
        node.meta["path"] = path_of(node)
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
    leaves = _restore_input_structure(graph, root, inputs, user_inputs)
    notes = _restore_output_structure(graph, signature, program.call_spec.out_spec)
    conditions = guards_of(program)
    guard_inputs(
        graph, leaves, conditions, type(root).forward, inputs, lambda: _holds_for_one(root, copy.copy(graph), inputs)
    )
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(
                f"it uses {node.target.name()}, which has no place in a canonical graph",
                node.meta["path"] or type(root).__name__,
                "Take the control flow (or the torch.no_grad block) out of forward.",
            )
    return Captured(graph, root, "torch.export", (*left_out, *notes))


def _copied(own: Tensor, other: Tensor, non_blocking: bool = False) -> Tensor:
    """What a write of ``other`` over ``own`` leaves; ``aten.copy``, which says the same, has no derivative."""
    return other.to(own.device, own.dtype).expand(own.shape).clone(memory_format=torch.contiguous_format)


def _state_left_out(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """Notes on state that a forward changes and does not look at, such as a counter of its calls.

    Raises
    ------
    CaptureError
        If what the model gives depends on state that it changes.
    """
    signature = program.graph_signature
    attributes = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    output = next(node for node in reversed(program.graph.nodes) if node.op == "output")
    values = list(zip(output.args[0], signature.output_specs, strict=True))
    read = _ancestors([value for value, spec in values if spec.kind.name == "USER_OUTPUT"])
    names = {attributes.get(node.name) for node in read}
    changed = [spec.target for _, spec in values if spec.kind.name in _MUTATIONS and spec.target]
    for name in changed:
        if name in names:
            raise writes_its_state(name, None)
    return tuple(left_out(name) for name in changed)


def _refuse_counts_that_are_read(program: torch.export.ExportedProgram) -> None:
    """Make sure that nobody reads running statistics which a normalisation writes into.

    Schemas of composite normalisations do not tell of these writes, and torch.export loses them with the schemas.
    """
    buffers = program.graph_signature.inputs_to_buffers
    for node in program.graph.nodes:
        operation = resolve(node)
        if operation is None or not operation.counts:
            continue
        for state in [operation.bound[name] for name in operation.writes]:
            if isinstance(state, fx.Node) and not all(counts_in(user, state) for user in state.users):
                raise writes_its_state(buffers.get(state.name, state.name), path_of(node))


def _ancestors(values: list[Any]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    stack = [value for value in values if isinstance(value, fx.Node)]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def _export(root: nn.Module, inputs: Inputs, free: bool) -> torch.export.ExportedProgram:
    # One tensor that is given twice would be one input to torch.export.
    inputs = inputs.map(lambda tensor: tensor.detach().clone())
    batch = inputs.batch_size
    attempts: list[tuple[Inputs, Any]] = []
    sample = inputs if batch is None or batch > 1 else (inputs.with_batch(2) or inputs)
    if batch is not None and free:
        attempts += [(sample, _dynamic_shapes(root, sample, first)) for first in (1, 2, None)]
    attempts.append((inputs, None))
    failure: Exception | None = None
    for example, shapes in attempts:
        try:
            # Without gradients, so that code which writes into its arguments can be followed too.
            with exporting(), torch.no_grad(), _IdleDropout(), symbolic_lengths(), symbolic_numbers(root):
                program = torch.export.export(
                    root, example.args, example.kwargs or None, dynamic_shapes=shapes, strict=False
                )
            if example is inputs or not _holds_two_rows(program, example):
                return program
        except Exception as error:  # the last attempt's failure is raised below
            if cuts_in(error):
                raise
            failure = failure or error
    assert failure is not None
    raise failure


def _holds_two_rows(program: torch.export.ExportedProgram, sample: Inputs) -> bool:
    """Whether a program is held to the batch size of a sample, which stood for an example of one row."""
    names = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    pairs = zip([value for value in values if isinstance(value, Tensor)], sample.tensors(), strict=False)
    batch = sample.batch_size
    return any(t.ndim > 0 and t.shape[0] == batch and constant_size(v.shape[0]) is not None for v, t in pairs)


class _IdleDropout(TorchFunctionMode):
    """Dropout that is switched off gives the very tensor that it gets, which its schema does not say.

    torch.export would take it for another one, and lose what is written into either.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DROPOUTS and args and not _is_on(func, args, kwargs):
            return args[0]
        return func(*args, **kwargs)


def _is_on(dropout: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a dropout is in training mode, which its third argument says, or its keyword."""
    if len(args) > 2:
        return bool(args[2])
    return bool(kwargs.get("training", kwargs.get("train", True)))


def _dynamic_shapes(root: nn.Module, inputs: Inputs, first: int | None) -> dict[str, Any]:
    """``Dim.AUTO`` for dimension 0 of every tensor that has the batch size there, and for lengths and image sizes.

    These are the dimensions from ``first`` on; those of an image, with channels in dimension 1, begin with 2. What goes
    to ``*args`` is a tuple to torch.export, what goes to ``**kwargs`` a dictionary.
    """
    batch = inputs.batch_size

    def shape_of(value: Any) -> Any:
        if isinstance(value, Tensor):
            free = {0} if value.ndim > 0 and value.shape[0] == batch else set()
            if first is not None:
                free |= set(range(max(first, 2) if value.ndim > 3 else first, value.ndim))
            return dict.fromkeys(free, torch.export.Dim.AUTO)
        if isinstance(value, tuple | list):
            items = [shape_of(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, dict):
            return {key: shape_of(item) for key, item in value.items()}
        return None

    # By the names of ``forward``: what it collects with ``*`` is one tuple there, with ``**`` one dictionary.
    given = inspect.signature(root.forward).bind(*inputs.args, **inputs.kwargs).arguments
    return {name: shape_of(value) for name, value in given.items()}


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


def _restore_input_structure(
    graph: fx.Graph, root: nn.Module, inputs: Inputs, flat: list[fx.Node]
) -> list[GuardedInput]:
    """Give the graph the arguments of ``forward`` back: flat leaves become items of their containers."""
    names = list(input_names(type(root).forward, inputs))
    values = [*inputs.args, *inputs.kwargs.values()]
    first = next(iter(graph.nodes))
    remaining = iter(flat)
    leaves: list[GuardedInput] = []

    def unpack(value: Any, node: fx.Node, label: str) -> None:
        if isinstance(value, tuple | list):
            pairs: list[tuple[Any, Any]] = list(enumerate(value))
        elif isinstance(value, dict):
            pairs = list(value.items())
        else:
            leaf = next(remaining)
            leaves.append(GuardedInput(node, label, value, leaf.meta.get("val")))
            leaf.replace_all_uses_with(node)
            graph.erase_node(leaf)
            return
        for key, item in pairs:
            unpack(item, graph.call_function(operator.getitem, (node, key)), f"{label}[{key!r}]")

    with graph.inserting_before(first):
        placeholders = []
        for name, default in zip(names, defaults(type(root).forward, inputs), strict=True):
            node = graph.create_node("placeholder", f"arg_{name}", default)
            node.target = name
            node.meta["path"] = ""
            placeholders.append(node)
        for name, value, node in zip(names, values, placeholders, strict=True):
            unpack(value, node, name)
    for node in graph.nodes:
        node.meta.setdefault("path", "")
    return leaves


def _holds_for_one(root: nn.Module, graph: fx.Graph, inputs: Inputs) -> bool:
    """Whether the graph gives on one row what the model does: torch.export takes free sizes to be at least 2."""
    row = inputs.with_batch(1)
    if row is None:
        return False
    copied = row.map(lambda tensor: tensor.detach().clone())
    twin = eval_twin(root)
    try:
        with torch.no_grad():
            expected = unharmed(twin, lambda: twin(*row.args, **row.kwargs))
            found = fx.GraphModule(root, graph)(*copied.args, *copied.kwargs.values())
    except Exception as error:
        if cuts_in(error):
            raise
        return False
    return alike(expected, found)


def _restore_output_structure(graph: fx.Graph, signature: Any, out_spec: Any) -> tuple[str, ...]:
    from torch.export.graph_signature import OutputKind

    output = next(node for node in reversed(list(graph.nodes)) if node.op == "output")
    values = output.args[0]
    assert isinstance(values, tuple | list)
    kept = [
        value for value, spec in zip(values, signature.output_specs, strict=True) if spec.kind == OutputKind.USER_OUTPUT
    ]
    found = pytree.tree_unflatten(kept, out_spec)
    output.args = (found,)
    return plain_output_notes(found)
