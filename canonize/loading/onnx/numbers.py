"""Inputs that are no data: tensors of sizes, axes or borders, which a graph cannot be traced without knowing.

An exporter stores such numbers in the file; some graphs (those of the ONNX standard's own tests, for one) take them as
inputs. Tracing makes them part of what is captured, as it does flags, and a canonical model refuses others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor

from canonize.inputs import Shape

# Operators, and which of their inputs say what shape a result has or along what it is computed.
SLOTS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "Attention": (6,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "CumProd": (1,), "CumSum": (1,), "DFT": (1, 2), "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,),
    "If": (0,), "Loop": (0, 1), "MaxUnpool": (2,), "MelWeightMatrix": (0, 1, 2, 3, 4), "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "Reshape": (1,), "Resize": (1, 2, 3), "ReverseSequence": (1,),
    "SequenceAt": (1,), "SequenceErase": (1,), "SequenceInsert": (2,), "Slice": (1, 2, 3, 4), "Split": (1,),
    "SplitToSequence": (1,), "Squeeze": (1,), "STFT": (1, 3), "Tile": (1,), "TopK": (1,), "Trilu": (1,),
    "Unsqueeze": (1,), "Upsample": (1,),
    **{f"Reduce{kind}": (1,) for kind in
       ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")},
}  # fmt: skip
# Those of them that ONNX Runtime divides by unasked: a 0 ends the process (1.19 to 1.32 at least).
DIVISORS: dict[str, tuple[int, ...]] = {"STFT": (1, 3)}
MOST_NUMBERS = 64  # in one such input
MOST_TRIALS = 400


def number_inputs(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of a graph's inputs that are numbers to its operators, read at once or through arithmetic."""
    return _inputs_of(model.graph, SLOTS)


def _inputs_of(graph: onnx.GraphProto, slots: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Short inputs of a graph that reach one of these inputs of an operator."""
    wanted: set[str] = set()
    for node in _all(graph):
        wanted |= {node.input[slot] for slot in slots.get(node.op_type, ()) if slot < len(node.input)}
    for node in reversed(graph.node):  # in order of execution: what is read stands before
        if wanted & set(node.output) and node.op_type not in ("Shape", "Size"):
            wanted |= set(node.input)
            for inner in _inner(node):
                wanted |= {name for part in _all(inner) for name in part.input}
    return tuple(i.name for i in graph.input if i.name in wanted and _is_short(i))


def _all(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in _inner(node):
            yield from _all(inner)


def _inner(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def _is_short(info: onnx.ValueInfoProto) -> bool:
    sizes = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    return not sizes or (len(sizes) == 1 and sizes[0] <= MOST_NUMBERS)


def usual_numbers(model: onnx.ModelProto, shapes: Sequence[Shape], names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Values to try for such inputs: shapes that the file states, then small numbers."""
    stated = [_static(info) for info in (*model.graph.output, *model.graph.input, *model.graph.value_info)]
    places = [i.name for i in model.graph.input]
    divisors = _inputs_of(model.graph, DIVISORS)
    choices = []
    for name in names:
        each = _choices(shapes[places.index(name)], stated)
        choices.append([value for value in each if name not in divisors or bool((value > 0).all())])
    for values in itertools.islice(itertools.product(*choices), MOST_TRIALS):
        yield dict(zip(names, values, strict=True))


def _static(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)


def _choices(shape: Shape, stated: Sequence[tuple[int, ...]]) -> Iterator[Tensor]:
    dtype = shape.dtype or torch.float32
    count = 1
    for size in shape.dims:
        count *= size
    rows: list[list[Any]] = [list(sizes) for sizes in stated if len(sizes) == count and shape.dims]
    rows += [list(sizes[2:]) for sizes in stated if len(sizes) == count + 2 and count]
    rows += [[value] * count for value in (1, 0, 2, -1, 3)] + [list(range(count)), list(range(1, count + 1))]
    if dtype.is_floating_point:
        half = count // 2
        rows = [[1.0] * half + [value] * (count - half) for value in (2.0, 0.6, 1.7, 0.5)] + [[0.5] * count, *rows]
    seen = set()
    for row in rows:
        if tuple(row) not in seen:
            seen.add(tuple(row))
            yield torch.tensor(row, dtype=dtype).reshape(shape.dims)
