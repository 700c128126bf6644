"""What each command does once its arguments are read: load, call the library, print, and answer with an exit code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import nn

import canonize
from canonize.errors import InputError, LoadError, NotEquivalentError
from canonize.export import check_output, save
from canonize.export.atomic import write_whole
from canonize.inputs import Inputs, Shape, from_shapes, infer, load_inputs, parse_shape
from canonize.inputs.infer import dtype_and_device
from canonize.loading import Loaded, load_with_notes
from canonize.report import Report, Verdict
from canonize.views.files import VERDICT_ENDINGS, check_report_path, write_verdict
from canonize.views.text import render, render_rich
from canonize.views.verdict import render_verdict

GOOD, DIFFERENT = 0, 1

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Source:
    """A model as the command line names it."""

    name: str
    arch: str | None
    allow: tuple[str, ...]
    trust: bool
    device: str


@dataclass(frozen=True)
class Feed:
    """Inputs as the command line names them."""

    shapes: tuple[str, ...] = ()
    file: Path | None = None


@dataclass(frozen=True)
class Screen:
    """How much is printed."""

    verbose: bool = False
    quiet: bool = False

    def report(self, report: Report) -> None:
        """Print a report to stdout."""
        if not self.quiet:
            render_rich(report, Console(), self.verbose)

    def say(self, text: str) -> None:
        """Print a line to stdout."""
        if not self.quiet:
            print(text)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """A bar on stderr while it is a terminal; None otherwise."""
        console = Console(stderr=True)
        if self.quiet or not console.is_terminal:
            yield None
            return
        from rich.progress import Progress as Bar

        with Bar(console=console, transient=True) as bar:
            tasks: dict[str, Any] = {}

            def advance(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(stage, total=total)
                bar.update(tasks[stage], completed=done, total=total)

            yield advance


def convert(
    source: Source,
    feed: Feed,
    *,
    out: Path | None,
    strategy: Literal["threshold", "untangle"],
    skip: tuple[str, ...],
    forms: tuple[str, ...],
    report_file: Path | None,
    verify: bool,
    paranoid: bool,
    dry_run: bool,
    screen: Screen,
) -> int:
    """Canonize a model and write it. Nothing is written unless it is equivalent."""
    # Everything that can be known to be wrong is said before the long work.
    if out is not None and not dry_run:
        check_output(out)
    _check_report(report_file)
    shapes = [parse_shape(s) for s in feed.shapes]
    loaded = _load(source, shapes)
    _refuse_nan(loaded.model)
    inputs = _inputs(loaded.model, shapes, feed.file)
    try:
        with screen.progress() as progress:
            canonical = canonize.canonize(
                loaded.model,
                inputs,
                strategy=strategy,
                skip=skip,
                forms=forms,
                verify=verify,
                paranoid=paranoid,
                progress=progress,
            )
    except NotEquivalentError as error:
        return _different(error, out)
    report = canonical.report
    assert isinstance(report, Report)
    report.notes[:0] = loaded.notes
    report.source = loaded.source
    if not verify:
        report.notes.append("not verified: --no-verify")
    loader = ""
    if out is not None and not dry_run:
        saved = save(canonical, out, example_inputs=inputs)
        report.notes.extend(saved.notes)
        loader = saved.loader
    _write_report(report, report_file)
    screen.report(report)
    if loader:
        screen.say(f"\nwritten to {out}; load it with\n\n" + "\n".join(f"    {line}" for line in loader.splitlines()))
    elif dry_run:
        screen.say("\ndry run: nothing was written")
    return GOOD


def inspect(
    source: Source, feed: Feed, *, report_file: Path | None, screen: Screen, explainer: str | None = None
) -> int:  # fmt: skip
    """Print what is not canonical in a model; or, for an explainer, what that has no rule for."""
    _check_report(report_file)
    shapes = [parse_shape(s) for s in feed.shapes]
    loaded = _load(source, shapes)
    if explainer is not None:
        from canonize.explain.support import blockers, listed

        found = blockers(loaded.model, _inputs(loaded.model, shapes, feed.file), explainer)
        for line in listed(found):
            screen.say(line)
        screen.say(
            f"{explainer}: {len(found)} layers without a rule" if found else f"{explainer}: every layer has a rule"
        )
        return DIFFERENT if found else GOOD
    report: Report = canonize.inspect(loaded.model, _inputs(loaded.model, shapes, feed.file))
    report.notes[:0] = loaded.notes
    _write_report(report, report_file)
    screen.report(report)
    return GOOD if report.canonical else DIFFERENT


def verify(
    first: Source,
    second: Source,
    feed: Feed,
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
    shapes = [parse_shape(s) for s in feed.shapes]
    reference, candidate = _side(first, shapes), _side(second, shapes)
    for note in (*reference.notes, *candidate.notes):
        screen.say(f"note: {note}")
    inputs = _inputs_of_both(reference.model, candidate.model, shapes, feed.file)
    with screen.progress() as progress:
        verdict: Verdict = canonize.check_equivalence(
            reference.model, candidate.model, inputs, seed=seed, thorough=not quick, progress=progress, dump=dump
        )
    title = f"{first.name} and {second.name} on {inputs.describe()}"
    for path in report_files:
        write_verdict(verdict, path, title)
    screen.say(title)
    screen.say(render_verdict(verdict, screen.verbose))
    if dump is not None and verdict.divergence is not None:
        screen.say(f"input and activations written to {dump}")
    return GOOD if verdict.passed else DIFFERENT


def patterns() -> int:
    """Print the catalogue of patterns, and of optional forms."""
    from canonize.forms import FORMS
    from canonize.patterns import catalogue

    rows: list[tuple[str, str, str]] = [(pattern.name, pattern.strategy, pattern.summary) for pattern in catalogue()]
    rows += [(form.name, "--form", form.summary) for form in FORMS]
    width, when = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, strategy, summary in rows:
        print(f"{name.ljust(width)}  {strategy.ljust(when)}  {summary}")
    return GOOD


def _load(source: Source, shapes: Sequence[Shape] = ()) -> Loaded:
    here = str(Path.cwd())
    if here not in sys.path:  # factories live beside the person who names them
        sys.path.insert(0, here)
    device = _device(source.device)
    loaded = load_with_notes(source.name, source.arch, allow=source.allow, trust=source.trust, shapes=shapes)
    return Loaded(loaded.model.to(device), loaded.notes, loaded.source)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"the device {name} cannot be used ({first})", hint="Try --device cpu") from error
    return device


def _side(source: Source, shapes: Sequence[Shape]) -> Loaded:
    """One side of a comparison: an ``.onnx`` file is run as it is, by ONNX Runtime."""
    path = Path(source.name)
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return _load(source, shapes)
    from canonize.verify.onnx_model import OnnxModel

    model = OnnxModel(path, _device(source.device))
    return Loaded(model, (f"{source.name} is run by ONNX Runtime, {model.session.get_providers()[0]}",))


def _inputs_of_both(first: nn.Module, second: nn.Module, shapes: list[Shape], file: Path | None) -> Inputs:
    from canonize.verify.onnx_model import OnnxModel

    if shapes or file is not None:
        return _inputs(first, shapes, file)
    # A session states its sizes; a module that takes them is asked where the sizes are free.
    sessions = [model for model in (first, second) if isinstance(model, OnnxModel)]
    modules = [model for model in (first, second) if not isinstance(model, OnnxModel)]
    return _inputs(modules[0], shapes, file) if modules and not sessions else sessions[0].example()


def _refuse_nan(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise LoadError(
                f"holds NaN in {int(torch.isnan(tensor).sum())} of {tensor.numel()} numbers",
                where=name,
                hint="Its outputs are NaN whatever comes in: the training diverged, or the file is damaged",
            )


def _inputs(model: nn.Module, shapes: list[Shape], file: Path | None) -> Inputs:
    if shapes and file is not None:
        raise InputError("both --input and --inputs are given", hint="Give shapes or a file")
    if shapes:
        return from_shapes(model, shapes)
    if file is None:
        return infer(model)
    dtype, device = dtype_and_device(model)
    return load_inputs(file).to(device, dtype)


def _different(error: NotEquivalentError, out: Path | None) -> int:
    print(render_verdict(error.verdict) if isinstance(error.verdict, Verdict) else str(error))
    sys.stderr.write(f"canonize: {error.what.splitlines()[0]}{f'; {out} was not written' if out else ''}\n")
    return DIFFERENT


def _check_report(path: Path | None) -> None:
    check_report_path(path, (".json", ".txt"))


def _write_report(report: Report, path: Path | None) -> None:
    if path is not None:
        text = report.to_json() if path.suffix == ".json" else render(report, verbose=True)
        write_whole(path, lambda passing: _put_text(passing, text), lambda passing: None)


def _put_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
