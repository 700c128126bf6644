"""``.onnx`` -> ``nn.Module``, compared with ONNX Runtime before anybody gets it."""

from __future__ import annotations

import itertools
import keyword
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.capture.captured import NUMBERS
from canonize.compat import need
from canonize.errors import LoadError, first_line
from canonize.inputs import Inputs, Shape, random_inputs
from canonize.loading.agreement import largest_error
from canonize.loading.guards import guard
from canonize.nn import Slot, fill
from canonize.twins.module_tree import put

# Operators whose further inputs are options, even where they are no whole numbers.
_OPTIONS = {"Resize", "Upsample", "Pad", "Clip", "Dropout", "OneHot", "Range", "Tile"}
# Sizes to try for a dimension that the file leaves open.
# Values of inputs that are sizes or axes, with which a translation is compared.
MOST_PROVEN = 8
SIDES = (224, 64, 32, 28, 299, 16, 128, 256, 8, 512)


def read_onnx(path: Path, shapes: Sequence[Shape] = ()) -> tuple[nn.Module, tuple[str, ...]]:
    """Read an ONNX file as a module.

    Parameters
    ----------
    path : Path
    shapes : sequence of Shape
        Sizes of the inputs, for a file that leaves them open.

    Returns
    -------
    module : nn.Module
        Its ``example_shapes`` say what it was tried with.
    notes : tuple of str

    Raises
    ------
    LoadError
        If the file is damaged, an operator cannot be translated, or the translation computes something else than ONNX
        Runtime does.
    """
    need(("onnx", "onnxruntime", "onnx2fx"), "reading ONNX files", where=str(path), error=LoadError)
    from canonize.loading.onnx.numbers import number_inputs
    from canonize.loading.onnx.protobuf import read_proto, rename
    from canonize.loading.onnx.shape_arithmetic import BATCHES, fold_shapes

    model = read_proto(path)
    stored = {initializer.name for initializer in model.graph.initializer}
    open_inputs = [i for i in model.graph.input if i.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(open_inputs)
    old_names = rename(model)
    session = _session(model, path)
    numbers = number_inputs(model)
    given, *others = _fitting(model, session, shapes, numbers, path)
    batched = _has_free_batch(session)
    runs = [_with_batch(given, size) for size in BATCHES] if batched else [given]
    try:
        wanted = [_run(session, run) for run in runs]
        folded = fold_shapes(model, [_feed(session, run) for run in runs])
    except LoadError:
        raise
    except Exception as error:
        raise LoadError(
            f"ONNX Runtime cannot run it ({first_line(error)})", where=str(path), hint="Check the sizes of its inputs"
        ) from error
    batched = batched and folded.batched
    options = {name for n in model.graph.node if n.op_type in _OPTIONS for name in n.input[1:]}
    compared = [*list(zip(runs, wanted, strict=True))[: 2 if batched else 1]]
    compared += [(other, _run(session, other)) for other in others]
    module = _proven(model, old_names, options, compared, path)
    notes = []
    if folded.sized:
        notes += _guard(module, runs[0], batched)
    module.meta[NUMBERS] = numbers  # they are part of what is captured
    notes += [f"its input {name} says sizes or axes: a canonical model holds for one value of it" for name in numbers]
    module.example_shapes = tuple(  # type: ignore[assignment]
        Shape(tuple(t.shape), dtype=t.dtype) for t in runs[0].tensors()
    )
    return module, tuple(notes)


def _proven(
    model: Any, old_names: dict[str, str], options: set[str], compared: list[tuple[Inputs, list[Tensor]]], path: Path
) -> fx.GraphModule:
    """The translation that computes what ONNX Runtime does: of operators as they are, else of what they stand for."""
    from canonize.loading.onnx.converter import translated, written_in_others

    failure: LoadError | None = None
    for spelling in (model, None):
        whole = written_in_others(model) if spelling is None else model
        if whole is None:
            break
        try:
            module = translated(whole, path)
            _name_tensors(module, old_names, options)
            _prove(module, compared, path)
        except LoadError as error:
            failure = failure or error
            continue
        return module
    assert failure is not None
    raise failure


def _session(model: Any, path: Path) -> Any:
    import onnxruntime

    from canonize.loading.onnx.shape_arithmetic import quiet

    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), quiet(), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise LoadError(
            f"ONNX Runtime cannot load it ({first_line(error)})", where=str(path), hint="Check it with onnx.checker"
        ) from error


def _has_free_batch(session: Any) -> bool:
    firsts = [i.shape[0] for i in session.get_inputs() if i.shape]
    return bool(firsts) and all(not isinstance(size, int) and size == firsts[0] for size in firsts)


def _fitting(model: Any, session: Any, shapes: Sequence[Shape], numbers: Sequence[str], path: Path) -> list[Inputs]:
    """Random inputs of the sizes asked for, or of the first usual ones that ONNX Runtime takes.

    More than one where some are numbers: the translation must be right for whatever they are.
    """
    from canonize.loading.onnx.numbers import usual_numbers

    wanted = session.get_inputs()
    if shapes and len(shapes) != len(wanted):
        raise LoadError(f"takes {len(wanted)} inputs, {len(shapes)} are given", where=str(path), hint="Give one each")
    tried, reason = 0, ""
    found: list[Inputs] = []
    for sizes in [[shape.dims for shape in shapes]] if shapes else _sizes(wanted):
        each = [Shape(tuple(d), dtype=_dtype(i.type, path)) for d, i in zip(sizes, wanted, strict=True)]
        drawn = random_inputs(each)
        # Whole numbers are drawn from 0 and 1; where they divide, 1 is the only one that fits.
        above = tuple(t if t.is_floating_point() or t.is_complex() else t.clamp(min=1) for t in drawn.args)
        for data, values in itertools.product((drawn.args, above), usual_numbers(model, each, numbers)):
            inputs = Inputs(tuple(values.get(i.name, t) for i, t in zip(wanted, data, strict=True)))
            tried += 1
            try:
                _run(session, inputs)
            except Exception as error:
                reason = reason or first_line(error)
                continue
            found.append(inputs)
            if len(found) == (MOST_PROVEN if numbers else 1):
                return found
        if found:
            return found
    if numbers:
        raise LoadError(
            f"its input {numbers[0]} says sizes or axes, and none of the usual ones fit ({tried} tried; {reason})",
            where=str(path),
            hint="Store them in the file as initializers",
        )
    raise LoadError(
        f"no usual input fits ({tried} tried; {reason})", where=str(path), hint="Say what it takes: --input 1x3x224x224"
    )


def _sizes(wanted: Any) -> Iterator[list[tuple[int, ...]]]:
    """Sizes for every input: those the file states, 2 for a free batch, usual ones for the rest."""
    open_ranks = {len(i.shape) for i in wanted if any(not isinstance(s, int) for s in i.shape[1:])}
    for side in SIDES if open_ranks else SIDES[:1]:
        yield [
            tuple(
                s if isinstance(s, int) and s >= 0 else {0: 2, 1: 3 if len(i.shape) == 4 else side}.get(place, side)
                for place, s in enumerate(i.shape)
            )
            for i in wanted
        ]


def _dtype(text: str, path: Path) -> torch.dtype:
    names = {"float": "float32", "double": "float64", "bool": "bool"}
    inner = re.fullmatch(r"tensor\((\w+)\)", text)
    name = inner[1] if inner else text
    found = getattr(torch, names.get(name, name), None)
    if not isinstance(found, torch.dtype):
        raise LoadError(f"takes an input of the type {text}", where=str(path), hint="Only tensors of numbers are known")
    return found


def _with_batch(inputs: Inputs, size: int) -> Inputs:
    return inputs.with_batch(size) or inputs


def _feed(session: Any, inputs: Inputs) -> dict[str, Any]:
    return {i.name: t.numpy() for i, t in zip(session.get_inputs(), inputs.tensors(), strict=True)}


def _run(session: Any, inputs: Inputs) -> list[Tensor]:
    return [torch.as_tensor(value) for value in session.run(None, _feed(session, inputs))]


def _name_tensors(module: fx.GraphModule, old_names: dict[str, str], options: set[str]) -> None:
    """Weights get back the names they have in the file; numbers that are no weights become part of the calls."""
    taken: set[str] = set()
    nodes = [n for n in module.graph.nodes if n.op == "get_attr"]
    wanted = {name: old_names.get(name, name) for name in module._buffers}
    for name, tensor in list(module._buffers.items()):
        if tensor is None:
            continue
        del module._buffers[name]
        if not tensor.is_floating_point() or name in options:
            for node in [n for n in nodes if n.target == name]:
                _bind(node, tensor)
            continue
        new = _free_name(wanted[name], name, taken)
        put(module, new, nn.Parameter(tensor, requires_grad=False))  # running statistics cannot have gradients
        for node in nodes:
            if node.target == name:
                node.target = new
    module.recompile()


class _Bound:
    """A call with some arguments given: sizes, axes and indices are numbers to a tracer, and no data."""

    __name__ = "bound"

    def __init__(self, function: Any, args: Any, kwargs: Any) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs

    def __call__(self, *inputs: Any) -> Any:
        """Call the function with the inputs in their slots."""
        return self.function(*fill(self.args, inputs), **fill(self.kwargs, inputs))


def _bind(constant: fx.Node, tensor: Tensor) -> None:
    """Make a constant part of the calls that read it."""
    for reader in list(constant.users):
        inputs = [n for n in reader.all_input_nodes if n is not constant]

        def slot(node: fx.Node, inputs: list[fx.Node] = inputs) -> Any:
            return tensor if node is constant else Slot(inputs.index(node))

        if reader.op != "call_function":
            continue
        args, kwargs = fx.map_arg(reader.args, slot), fx.map_arg(reader.kwargs, slot)
        reader.target = _Bound(reader.target, args, kwargs)
        reader.args, reader.kwargs = tuple(inputs), {}
    if constant.users:
        assert constant.graph.owning_module is not None
        constant.graph.owning_module.register_buffer(str(constant.target), tensor)
    else:
        constant.graph.erase_node(constant)


def _free_name(wanted: str, otherwise: str, taken: set[str]) -> str:
    plain = re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", wanted, re.ASCII) is not None
    parts = wanted.split(".")
    above = {".".join(parts[:cut]) for cut in range(1, len(parts))}
    clashes = wanted in taken or above & taken or any(name.startswith(f"{wanted}.") for name in taken)
    reserved = any(keyword.iskeyword(part) or hasattr(fx.GraphModule, part) for part in parts)
    name = otherwise if not plain or clashes or reserved else wanted
    taken.add(name)
    return name


def _guard(module: fx.GraphModule, inputs: Inputs, batched: bool) -> list[str]:
    """Refuse inputs of sizes that the numbers in the graph were not computed for."""
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    pairs = list(zip(placeholders, inputs.tensors(), strict=True))
    fixed = [(n, {place: size for place, size in enumerate(t.shape) if place or not batched}) for n, t in pairs]
    guard(module, fixed)
    texts = ["x".join(["N" if batched else str(t.shape[0]), *map(str, t.shape[1:])]) for _, t in pairs]
    free = "" if batched else ", the batch size included"
    return [f"the sizes of the inputs are fixed by the file{free}: {', '.join(texts)}"]


def _prove(module: nn.Module, runs: list[tuple[Inputs, list[Tensor]]], path: Path) -> None:
    """Compare the translation with ONNX Runtime."""
    for inputs, wanted in runs:
        try:
            with torch.no_grad():
                found = Inputs((module(*inputs.args),)).tensors()
        except Exception as error:
            raise LoadError(
                f"its translation does not run ({first_line(error)})",
                where=str(path),
                hint="Give the model it was exported from",
            ) from error
        distance, allowed = largest_error(wanted, found)
        if not distance <= allowed:
            raise LoadError(
                f"its translation computes something else than ONNX Runtime (relative error {distance:.1e})",
                where=str(path),
                hint="Give the model it was exported from",
            )
