"""canonize's ONNX file in ONNX Runtime, beside the original's after other tools."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import canonize
from benchmarks.speed import marks
from benchmarks.speed.peers import exported, onnxsim, onnxslim
from benchmarks.speed.row import Row, Settings
from benchmarks.speed.subjects import build
from benchmarks.speed.timing import compare, interleaved, quiet, said, shortest_time

PART = "onnx"
OWN = "canonize"
TOOLS: dict[str, Callable[[Any], Any]] = {
    "ONNX Runtime alone": lambda file: file,
    "onnxsim": lambda file: onnxsim(file)(),
    "onnxslim": lambda file: onnxslim(file)(),
}


def measure(subject: str, settings: Settings) -> list[Row]:
    """All files in the same rounds, so that the fastest of the others is chosen under the same conditions."""
    model, x = build(subject, settings)
    rows = {name: Row(PART, subject, name) for name in TOOLS}
    fastest = Row(PART, subject, "the fastest of these", mark=marks.ONNX)
    with tempfile.TemporaryDirectory() as folder:
        runs, norms = _files(model, x, Path(folder), rows)
        if OWN not in runs or len(runs) == 1:
            fastest.note = fastest.note or "no file to compare with" if OWN in runs else "canonize wrote no file"
            return [*rows.values(), fastest]
        times = interleaved(runs, settings, _fresh_time)
    for name, row in rows.items():
        if name in times:
            compare(row, times[OWN], times[name])
            row.more["batch_norms"] = f"{norms[OWN][0]}, {norms[name][0]}, {norms[name][1]}"
    best = min((name for name in TOOLS if name in times), key=lambda name: rows[name].other)
    compare(fastest, times[OWN], times[best])
    fastest.note = best
    return [*rows.values(), fastest]


def _files(
    model: nn.Module, x: Tensor, folder: Path, rows: dict[str, Row]
) -> tuple[dict[str, Callable[[], Any]], dict[str, tuple[int, int]]]:
    """What opens each file, and its BatchNormalization nodes before and after ONNX Runtime's optimizer."""
    import onnx

    paths: dict[str, Path] = {}
    with quiet():
        own = folder / "canonize.onnx"
        canonize.save(canonize.canonize(model, x, verify=False), own, example_inputs=x)
        paths[OWN] = own
        file = exported(model, x, optimize=True)
        for i, (name, tool) in enumerate(TOOLS.items()):
            try:
                onnx.save_model(tool(file), folder / f"{i}.onnx")
                paths[name] = folder / f"{i}.onnx"
            except Exception as error:
                rows[name].note = said(error)
    runs: dict[str, Callable[[], Any]] = {}
    norms: dict[str, tuple[int, int]] = {}
    for name, path in paths.items():
        try:
            optimized = path.with_suffix(".optimized.onnx")
            _session(path, x, optimized)
            runs[name] = functools.partial(_session, path, x)
            norms[name] = (_batch_norms(path), _batch_norms(optimized))
        except Exception as error:
            if name == OWN:
                raise
            rows[name].note = said(error)
    return runs, norms


def _fresh_time(session: Callable[[], Callable[[], Any]]) -> float:
    """Of a session of its own: where in memory one happens to lie makes all its runs faster or slower."""
    return shortest_time(session())


def _session(path: Path, x: Tensor, optimized: Path | None = None) -> Callable[[], Any]:
    """What runs a file once; its optimized form is written where asked for."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def _batch_norms(path: Path) -> int:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return sum(node.op_type == "BatchNormalization" for node in graph.node)
