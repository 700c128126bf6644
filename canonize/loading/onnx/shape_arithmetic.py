"""Take the arithmetic on shapes out of an ONNX graph: what it comes to is computed, the batch size stays free.

Exporters write ``x.flatten(1)`` as Shape, Gather, Concat and Reshape. To a tracer such numbers are data, and control
flow on data cannot be traced. ONNX Runtime computes them, once for each of two batch sizes: what is the same in both is
a constant; a size that follows the batch becomes the ``-1`` of a Reshape, or an expansion to the batch of the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import onnx
from onnx import helper, numpy_helper

# Two batch sizes to compute with: no size of a network is likely to be a multiple of both by accident.
BATCHES = (2, 3)
DOMAIN = "canonize"
_RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
}


@dataclass
class Folded:
    """What became of the shapes.

    Attributes
    ----------
    sized : bool
        Whether a number that depends on an input's sizes has become a constant: other sizes must be refused.
    batched : bool
        Whether the batch size is still free.
    """

    sized: bool = False
    batched: bool = True


def fold_shapes(model: onnx.ModelProto, runs: list[dict[str, Any]]) -> Folded:
    """Replace in `model` everything that depends on shapes and constants alone.

    Parameters
    ----------
    model : onnx.ModelProto
        Changed in place.
    runs : list of dict
        Inputs by name; two with the batch sizes of `BATCHES`, or one where the batch size is fixed.
    """
    graph = model.graph
    fixed, shapes = _known(graph)
    wanted = _frontier(graph, fixed | shapes)
    if not wanted:
        _state_slices(graph)
        return Folded()
    values = [_compute(model, sorted(wanted), feed) for feed in runs]
    result = Folded(sized=bool(wanted & shapes))
    batch_input = graph.input[0].name
    for name in sorted(wanted):
        found = [v[name] for v in values]
        if all(_same(found[0], other) for other in found[1:]):
            graph.initializer.append(numpy_helper.from_array(found[0], name))
        elif not _follow_batch(graph, name, found, batch_input):
            graph.initializer.append(numpy_helper.from_array(found[0], name))
            result.batched = False
    _state_slices(graph)
    _sweep(graph, wanted)
    return result


def _state_slices(graph: onnx.GraphProto) -> None:
    """Slices between constants, with the constants as attributes: nothing is then to be compared with a free size."""
    stored = {i.name: i for i in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "Slice" and len(n.input) > 2]:
        if not all(name in stored for name in node.input[1:]):
            continue
        given: list[Any] = [numpy_helper.to_array(stored[name]).tolist() for name in node.input[1:]]
        starts, ends, *rest = given
        axes = rest[0] if rest else list(range(len(starts)))
        steps = rest[1] if len(rest) > 1 else [1] * len(starts)
        if min(steps) < 1:
            continue
        options = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
        node.CopyFrom(helper.make_node("SliceConst", [node.input[0]], list(node.output), domain=DOMAIN, **options))


def _known(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """Names of values made of constants alone, and of those that need shapes as well."""
    fixed = {initializer.name for initializer in graph.initializer}
    shapes: set[str] = set()
    for node in graph.node:
        inputs = {name for name in node.input if name}
        if node.op_type in _RANDOM or any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
            continue
        if node.op_type in ("Shape", "Size"):
            shapes |= set(node.output)
        elif (node.op_type == "CastLike" and node.input[0] in fixed) or (
            inputs <= fixed and (inputs or node.op_type == "Constant")
        ):  # of the other input it is the type that counts
            fixed |= set(node.output)
        elif inputs and inputs <= fixed | shapes:
            shapes |= set(node.output)
    return fixed, shapes


def _frontier(graph: onnx.GraphProto, known: set[str]) -> set[str]:
    """Known values, not constants of the file already, that something unknown reads."""
    stored = {initializer.name for initializer in graph.initializer}
    read = {output.name for output in graph.output}
    for node in graph.node:
        if not set(node.output) & known:
            read |= set(node.input) | _read_inside(node)
    return (read & known) - stored


def _read_inside(node: onnx.NodeProto) -> set[str]:
    inner = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {name for g in inner for n in g.node for name in {*n.input, *_read_inside(n)}} | {
        output.name for g in inner for output in g.output
    }


def _compute(model: onnx.ModelProto, names: list[str], feed: dict[str, Any]) -> dict[str, numpy.ndarray]:
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), quiet(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feed), strict=True))


def quiet() -> Any:
    """Options of ONNX Runtime: no optimiser that could change a result, and no chatter."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


def _same(a: numpy.ndarray, b: numpy.ndarray) -> bool:
    return a.shape == b.shape and bool(numpy.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _follow_batch(graph: onnx.GraphProto, name: str, found: list[numpy.ndarray], batch_input: str) -> bool:
    """Rewrite every reader of a value that follows the batch; False, and nothing changed, where one cannot."""
    first, second = found
    readers = [(n, i) for n in graph.node for i, input in enumerate(n.input) if input == name]
    if any(output.name == name for output in graph.output) or not readers:
        return False
    if first.shape != second.shape:
        return _expand_constant(graph, name, first, second, batch_input)
    places = numpy.flatnonzero(first != second)
    if first.ndim != 1 or len(places) != 1:
        return False
    place = int(places[0])
    ways = {"Reshape": _to_rest, "Expand": _to_batch}
    if any(node.op_type not in ways or index != 1 for node, index in readers):
        return False
    exactly = first[place] == BATCHES[0] and second[place] == BATCHES[1]
    if first[place] * BATCHES[1] != second[place] * BATCHES[0]:
        return False
    if any(node.op_type == "Expand" and not exactly for node, _ in readers) or (first == -1).any():
        return False
    for node, _ in readers:
        ways[node.op_type](graph, node, first, place, batch_input)
    return True


def _to_rest(graph: onnx.GraphProto, node: onnx.NodeProto, sizes: numpy.ndarray, place: int, batch_input: str) -> None:
    """A Reshape whose free size is the one that the others leave."""
    rest = sizes.copy()
    rest[place] = -1
    fresh = f"{node.output[0]}_sizes"
    graph.initializer.append(numpy_helper.from_array(rest, fresh))
    node.input[1] = fresh


def _to_batch(graph: onnx.GraphProto, node: onnx.NodeProto, sizes: numpy.ndarray, place: int, batch_input: str) -> None:
    """An Expand to the batch of the model's first input."""
    expanded = _expansion(node.input[0], node.output[0], [int(s) for s in sizes], place, batch_input)
    node.CopyFrom(expanded)


def _expand_constant(
    graph: onnx.GraphProto, name: str, first: numpy.ndarray, second: numpy.ndarray, batch_input: str
) -> bool:
    """A constant that repeats itself along the batch (the zeros that a recurrent layer starts with)."""
    if first.ndim != second.ndim:
        return False
    places = [i for i, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)) if a != b]
    if len(places) != 1 or (first.shape[places[0]], second.shape[places[0]]) != BATCHES:
        return False
    row = numpy.take(first, [0], places[0])
    if not _same(numpy.broadcast_to(row, first.shape), first) or not _same(
        numpy.broadcast_to(row, second.shape), second
    ):
        return False
    graph.initializer.append(numpy_helper.from_array(row, f"{name}_row"))
    node = _expansion(f"{name}_row", name, list(first.shape), places[0], batch_input)
    for old in [n for n in graph.node if name in n.output]:
        graph.node.remove(old)
    graph.node.insert(0, node)
    return True


def _expansion(source: str, output: str, sizes: list[int], place: int, batch_input: str) -> onnx.NodeProto:
    return helper.make_node("ExpandBatch", [source, batch_input], [output], domain=DOMAIN, sizes=sizes, place=place)


def _sweep(graph: onnx.GraphProto, replaced: set[str]) -> None:
    """Remove the producers of what is a constant now, and what then nobody reads."""
    stored = {initializer.name for initializer in graph.initializer}
    for node in [n for n in graph.node if set(n.output) & replaced & stored]:
        if set(node.output) <= stored | {""} or not set(node.output) - replaced:
            graph.node.remove(node)
    while True:
        read = {output.name for output in graph.output}
        for node in graph.node:
            read |= set(node.input) | _read_inside(node)
        idle = [node for node in graph.node if not set(node.output) & read]
        if not idle:
            return
        for node in idle:
            graph.node.remove(node)
