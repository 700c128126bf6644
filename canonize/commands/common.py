"""What the commands share: how models and inputs are named, what is printed, how a command ends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from canonize.errors import InputError, NotEquivalentError
from canonize.inputs import Inputs, Shape, from_shapes, infer, load_inputs
from canonize.inputs.infer import dtype_and_device
from canonize.loading import Loaded, load_with_notes
from canonize.report import Report, Verdict
from canonize.report.text import render_rich
from canonize.report.verdict import render_verdict

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
class GivenInputs:
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


def load_model(source: Source, shapes: Sequence[Shape] = ()) -> Loaded:
    """The model that the command line names, on the device that it names."""
    here = str(Path.cwd())
    if here not in sys.path:  # factories live beside the person who names them
        sys.path.insert(0, here)
    device = device_named(source.device)
    loaded = load_with_notes(source.name, source.arch, allow=source.allow, trust=source.trust, shapes=shapes)
    return Loaded(loaded.model.to(device), loaded.notes, loaded.source)


def device_named(name: str) -> torch.device:
    """A device by its name.

    Raises
    ------
    InputError
        If it cannot be used here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"the device {name} cannot be used ({first})", hint="Try --device cpu") from error
    return device


def given_inputs(model: nn.Module, shapes: list[Shape], file: Path | None) -> Inputs:
    """The inputs that the command line names; inferred from the model where it names none."""
    if shapes and file is not None:
        raise InputError("both --input and --inputs are given", hint="Give shapes or a file")
    if shapes:
        return from_shapes(model, shapes)
    if file is None:
        return infer(model)
    dtype, device = dtype_and_device(model)
    return load_inputs(file).to(device, dtype)


def told_different(error: NotEquivalentError, out: Path | None) -> int:
    """Print a verdict that did not pass, and answer with the exit code for it."""
    print(render_verdict(error.verdict) if isinstance(error.verdict, Verdict) else str(error))
    sys.stderr.write(f"canonize: {error.what.splitlines()[0]}{f'; {out} was not written' if out else ''}\n")
    return DIFFERENT
