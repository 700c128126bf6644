"""``canonize verify``: whether two model files are the same function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from canonize.commands.common import (
    DIFFERENT,
    GOOD,
    GivenInputs,
    Screen,
    Source,
    device_named,
    given_inputs,
    load_model,
)
from canonize.commands.reports import VERDICT_ENDINGS, check_report_path, write_verdict
from canonize.compat import need
from canonize.errors import LoadError
from canonize.inputs import Inputs, Shape, parse_shape
from canonize.loading import Loaded
from canonize.report import Verdict
from canonize.report.verdict import render_summary, render_verdict
from canonize.verify import check_equivalence
from canonize.verify.onnx_model import OnnxModel


def verify(
    first: Source,
    second: Source,
    feed: GivenInputs,
    *,
    seed: int,
    report_files: tuple[Path, ...],
    dump: Path | None,
    quick: bool,
    screen: Screen,
) -> int:
    """Print whether two models are the same function."""
    for path in report_files:
        check_report_path(path, VERDICT_ENDINGS)
    for source in (first, second):
        if source.name.lower().endswith(".onnx"):
            need(("onnx", "onnxruntime"), "running ONNX files", where=source.name, error=LoadError)
    shapes = [parse_shape(s) for s in feed.shapes]
    reference, candidate = _side(first, shapes), _side(second, shapes)
    for note in (*reference.notes, *candidate.notes):
        screen.say(f"note: {note}")
    inputs = _inputs_of_both(reference.model, candidate.model, shapes, feed.file)
    with screen.progress() as progress:
        verdict: Verdict = check_equivalence(
            reference.model, candidate.model, inputs, seed=seed, thorough=not quick, progress=progress, dump=dump
        )
    title = f"{first.name} and {second.name} on {inputs.describe()}"
    for path in report_files:
        write_verdict(verdict, path, title)
    screen.say(title)
    screen.say(render_verdict(verdict, verbose=True) if screen.verbose else render_summary(verdict))
    if dump is not None and verdict.divergence is not None:
        screen.say(f"input and activations written to {dump}")
    return GOOD if verdict.passed else DIFFERENT


def _side(source: Source, shapes: Sequence[Shape]) -> Loaded:
    """One side of a comparison: an ``.onnx`` file is run as it is, by ONNX Runtime."""
    path = Path(source.name)
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return load_model(source, shapes)
    model = OnnxModel(path, device_named(source.device))
    return Loaded(model, (f"{source.name} is run by ONNX Runtime, {model.session.get_providers()[0]}",))


def _inputs_of_both(first: nn.Module, second: nn.Module, shapes: list[Shape], file: Path | None) -> Inputs:
    if shapes or file is not None:
        return given_inputs(first, shapes, file)
    # A session states its sizes; a module that takes them is asked where the sizes are free.
    sessions = [model for model in (first, second) if isinstance(model, OnnxModel)]
    modules = [model for model in (first, second) if not isinstance(model, OnnxModel)]
    return given_inputs(modules[0], shapes, file) if modules and not sessions else sessions[0].example()
