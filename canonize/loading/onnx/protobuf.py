"""``.onnx`` -> a checked ``onnx.ModelProto``: standard operators, weights inside or beside it, plain names."""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Iterator
from pathlib import Path

import onnx

from canonize.errors import LoadError, first_line

DOMAINS = ("", "ai.onnx")
BROKEN = "Save or download it again"


def read_proto(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Raises
    ------
    LoadError
        If it is damaged, uses operators of another domain, or names weights outside its folder.
    """
    where = str(path)
    try:
        model = onnx.load(where, load_external_data=False)
    except Exception as error:  # protobuf has exceptions of its own
        raise LoadError("is no ONNX file, or a damaged one", where=where, hint=BROKEN) from error
    if not model.graph.node and not model.graph.output:
        raise LoadError("is no ONNX file, or an empty one", where=where, hint=BROKEN)
    _check_external(model, path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model, full_check=False)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    except Exception as error:
        raise LoadError(f"is not valid ONNX ({first_line(error)})", where=where, hint=BROKEN) from error
    foreign = sorted({f"{n.domain}::{n.op_type}" for n in nodes_of(model.graph) if n.domain not in DOMAINS})
    if foreign:
        raise LoadError(
            f"uses operators outside the standard: {', '.join(foreign[:3])}",
            where=where,
            hint="Export it again without optimisations of one runtime",
        )
    return model


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of branches and loops included."""
    for node in graph.node:
        yield node
        for inner in _graphs(node):
            yield from nodes_of(inner)


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [g for a in node.attribute for g in ([a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs)]


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
        for inner in _graphs(node):
            yield from _tensors(inner)


def _check_external(model: onnx.ModelProto, path: Path) -> None:
    """Weights beside the file must be plain files in its own folder, as long as they are said to be."""
    graphs = [model.graph]
    functions = [t for f in model.functions for n in f.node for g in _graphs(n) for t in _tensors(g)]
    functions += [a.t for f in model.functions for n in f.node for a in n.attribute if a.HasField("t")]
    for tensor in [t for g in graphs for t in _tensors(g)] + functions:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        _check_place(entries, path)


def _check_place(entries: dict[str, str], path: Path) -> None:
    where, location = str(path), entries.get("location", "")
    folder = path.parent.resolve()
    target = folder / location
    parts = re.split(r"[\\/]", location)
    leads_out = not location or ".." in parts or os.path.isabs(location) or ":" in parts[0]
    if leads_out or target.is_symlink() or not target.resolve().is_relative_to(folder):
        raise LoadError(
            f"names weights outside its folder ({location[:80]!r})", where=where, hint="Move them beside the file"
        )
    if not target.is_file():
        raise LoadError(f"its weights {location[:80]!r} are missing", where=where, hint="Put them beside the file")
    try:
        start, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError as error:
        raise LoadError("names weights at no place", where=where, hint=BROKEN) from error
    if min(start, length) < 0 or start + length > target.stat().st_size:
        raise LoadError(f"its weights {location[:80]!r} are truncated", where=where, hint=BROKEN)


def rename(model: onnx.ModelProto) -> dict[str, str]:
    """Give every value a name that is safe in generated code; inputs keep theirs where they are plain.

    Returns
    -------
    dict
        New name to the one in the file.
    """
    new: dict[str, str] = {"": ""}
    inputs = [i.name for i in model.graph.input]
    for index, name in enumerate(inputs):
        plain = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_")
        usable = plain.isidentifier() and plain not in {"self", *keyword.kwlist, *new.values()}
        new[name] = plain if usable and not re.match(r"v\d", plain) else f"input_{index}"

    def named(name: str) -> str:
        return new.setdefault(name, f"v{len(new)}")

    def graph(g: onnx.GraphProto) -> None:
        for info in (*g.input, *g.output, *g.value_info, *g.initializer):
            info.name = named(info.name)
        for sparse in g.sparse_initializer:
            sparse.values.name = named(sparse.values.name)
        for node in g.node:
            node.name = ""
            node.input[:] = [named(name) for name in node.input]
            node.output[:] = [named(name) for name in node.output]
            for inner in _graphs(node):
                graph(inner)
        g.name = "model"

    graph(model.graph)
    return {value: key for key, value in new.items()}
