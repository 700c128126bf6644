"""What a model computes layer by layer, and which layer reads which: for any eager model, traced or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.weak import WeakIdKeyDictionary

from canonize.capture.captured import path_of
from canonize.compat.private import TorchDispatchMode, pytree, without_modes
from canonize.inputs import Inputs
from canonize.verify import run
from canonize.verify.onnx_model import OnnxModel


@dataclass(frozen=True)
class RecordedLayer:
    """One call of a layer.

    Attributes
    ----------
    name : str
        Qualified name.
    call : int
        Which call of it, from 0.
    kind : str
        Class of the module; of an exported program, the operator.
    reads : frozenset of int
        Numbers of the calls whose results it reads, with no other recorded layer between.
    """

    name: str
    call: int
    kind: str
    reads: frozenset[int]

    @property
    def key(self) -> tuple[str, int]:
        """What the same layer has in another model."""
        return self.name, self.call


Visit = Callable[[int, RecordedLayer, Any], None]


def record(model: nn.Module, inputs: Inputs, dtype: torch.dtype, visit: Visit) -> tuple[frozenset[int], Any]:
    """Run a model and show what each layer gives, at once, so that nothing need be kept.

    Parameters
    ----------
    model : nn.Module
        A twin, see `canonize.verify.twin`; it carries hooks while it runs.
    inputs : Inputs
    dtype : torch.dtype
        As for `run.outputs`.
    visit : callable
        Called as ``visit(number, layer, output)``, in the order in which layers finish.

    Returns
    -------
    reads : frozenset of int
        Numbers of the calls that the output is read from.
    output : Any

    Raises
    ------
    FailedRunError
        If the model raises.
    """
    if isinstance(model, OnnxModel):
        return _record_onnx(model, inputs, dtype, visit)
    if isinstance(model, fx.GraphModule) and _calls_operators_alone(model):
        return _record_program(model, inputs, dtype, visit)
    return _record_modules(model, inputs, dtype, visit)


class _Flow(TorchDispatchMode):
    """Carries along which recorded calls each tensor comes from."""

    def __init__(self) -> None:
        super().__init__()
        self.sources = WeakIdKeyDictionary()

    def of(self, value: Any) -> frozenset[int]:
        found: frozenset[int] = frozenset()
        for tensor in _tensors(value):
            found |= self.sources.get(tensor, frozenset())
        return found

    def mark(self, value: Any, sources: frozenset[int]) -> None:
        for tensor in _tensors(value):
            self.sources[tensor] = sources

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sources = self.of((args, kwargs))
        if sources:
            self.mark(result, sources)
        return result


def _record_modules(model: nn.Module, inputs: Inputs, dtype: torch.dtype, visit: Visit) -> tuple[frozenset[int], Any]:
    flow = _Flow()
    calls: Counter[str] = Counter()
    count = 0

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal count
            layer = RecordedLayer(name, calls[name], type(module).__name__, flow.of(output))
            calls[name] += 1
            with without_modes():
                visit(count, layer, output)
            flow.mark(output, frozenset([count]))
            count += 1

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with flow:
            output = run.outputs(model, inputs, dtype)
        return flow.of(output), output
    except RuntimeError as error:
        raise error if isinstance(error, run.FailedRunError) else run.FailedRunError(str(error)) from error
    finally:
        for handle in handles:
            handle.remove()


def _record_program(
    model: fx.GraphModule, inputs: Inputs, dtype: torch.dtype, visit: Visit
) -> tuple[frozenset[int], Any]:
    """An exported program calls operators: the last one of each module gives what the module gives."""
    lasts = _last_of_modules(model.graph.nodes)
    sources: dict[fx.Node, frozenset[int]] = {}
    calls: Counter[str] = Counter()
    numbers = iter(range(len(lasts) + 1))

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            read = frozenset[int]().union(*(sources.get(n, frozenset()) for n in node.all_input_nodes))
            if node in lasts:
                name = lasts[node]
                number = next(numbers)
                visit(number, RecordedLayer(name, calls[name], _operator(node), read), result)
                calls[name] += 1
                read = frozenset([number])
            sources[node] = read
            return result

    class Interpreted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            flat = pytree.tree_leaves((args, kwargs))
            return model.graph.process_outputs(Recorder(model).run(*flat, enable_io_processing=False))

    output = run.outputs(Interpreted(), inputs, dtype)
    last = next(node for node in reversed(model.graph.nodes) if node.op == "output")
    return frozenset[int]().union(*(sources.get(n, frozenset()) for n in last.all_input_nodes)), output


def _record_onnx(model: OnnxModel, inputs: Inputs, dtype: torch.dtype, visit: Visit) -> tuple[frozenset[int], Any]:
    """Intermediate results of ONNX Runtime, for files whose exporter has noted the modules' names."""
    nodes = list(model.layers())
    lasts = {i for i, node in enumerate(nodes) if node[0] and (i + 1 == len(nodes) or nodes[i + 1][0] != node[0])}
    session = model.with_results([nodes[i][2] for i in sorted(lasts)])
    names = [output.name for output in session.get_outputs()]

    class Session(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return tuple(torch.as_tensor(value) for value in session.run(names, model.feed(*args, **kwargs)))

    found = dict(zip(names, run.outputs(Session(), inputs, dtype), strict=True))
    sources: dict[str, frozenset[int]] = {}
    calls: Counter[str] = Counter()
    number = 0
    for i, (name, operator, result, read) in enumerate(nodes):
        sources[result] = frozenset[int]().union(*(sources.get(value, frozenset()) for value in read))
        if i in lasts:
            visit(number, RecordedLayer(name, calls[name], operator, sources[result]), found[result])
            calls[name] += 1
            sources[result] = frozenset([number])
            number += 1
    outputs = [output.name for output in model.session.get_outputs()]
    reads = frozenset[int]().union(*(sources.get(name, frozenset()) for name in outputs))
    given = tuple(found[name] for name in outputs)
    return reads, given[0] if len(given) == 1 else given


def _last_of_modules(nodes: Iterable[fx.Node]) -> dict[fx.Node, str]:
    """The last node of each unbroken run of nodes with the same innermost module."""
    found: dict[fx.Node, str] = {}
    before: tuple[fx.Node, str] | None = None
    for node in nodes:
        if node.op != "call_function":
            continue
        path = path_of(node)
        if before is not None and before[1] != path and before[1]:
            found[before[0]] = before[1]
        before = node, path
    if before is not None and before[1]:
        found[before[0]] = before[1]
    return found


def _calls_operators_alone(model: fx.GraphModule) -> bool:
    return {node.target for node in model.graph.nodes if node.op == "call_module"} <= {"_guards_fn"}


def _operator(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
