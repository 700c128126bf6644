"""The command line: what can be asked for. What is then done is in ``canonize.commands``.

Nothing here imports torch, so that ``canonize --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from canonize.errors import CanonizeError

GOOD, DIFFERENT, COULD_NOT, INTERRUPTED = 0, 1, 2, 130

HELP = """Fold BatchNorm and all else that explainers have no rule for, and prove the model still the same function.

\b
MODEL  model.pt, weights.pth with --arch, weights.safetensors with --arch, program.pt2,
       graph.onnx, torchvision:NAME, timm:NAME (random weights) or package.module:factory
"""

EPILOG = """\b
Also, each with a --help of its own:
  canonize inspect MODEL   what is not canonical; exit 1 if anything
  canonize verify A B      are two models the same function? exit 1 if not
  canonize patterns        what canonize can fold, one line each

\b
Examples:
  canonize model.pt -o canonical.pt
  canonize weights.pth --arch torchvision:densenet121 -o canonical.pt
  canonize my_package.net:build --input 1x3x64x64 -o out.onnx --report out.json

Exit codes: 0 good, 1 not equivalent or not canonical, 2 could not run.
"""

Model = Annotated[Optional[str], typer.Argument(metavar="MODEL", show_default=False, hidden=True)]  # noqa: UP045 - typer reads this on Python 3.10
Arch = Annotated[
    str | None, typer.Option(metavar="ARCH", help="What weights belong to: torchvision:NAME, timm:NAME, ...")
]
Shapes = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--input", "-i", metavar="SHAPE", help="1x3x224x224 or x:1,3,224,224, once an input."),
]
File = Annotated[Optional[Path], typer.Option("--inputs", metavar="FILE", help="Inputs: .pt .npy .npz .safetensors.")]  # noqa: UP045
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, ...")]
Allow = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--allow", metavar="PACKAGE", help="Package of yours that a pickled model uses."),
]
Trust = Annotated[bool, typer.Option("--trust", help="Run whatever code the file holds.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Every layer on a line of its own.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks.")]
Strategy = Annotated[str, typer.Option(metavar="NAME", help="threshold or untangle: for BatchNorm behind a fork.")]
Skip = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--skip", metavar="PATTERN", help="Pattern to leave alone; see canonize patterns."),
]
Forms = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--form", metavar="FORM", help="Optional form, such as dense_as_convolution; see canonize patterns."),
]
ReportFile = Annotated[Optional[Path], typer.Option("--report", metavar="FILE", help="Also as .json or .txt.")]  # noqa: UP045


def _version(asked: bool) -> None:
    if asked:
        from canonize import __version__

        typer.echo(f"canonize {__version__}")
        raise typer.Exit


def convert(
    model: Model = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", metavar="OUT", help=".pt to explain, .pt2 .onnx to deploy, FOLDER to read."),
    ] = None,
    arch: Arch = None,
    shapes: Shapes = None,
    inputs: File = None,
    strategy: Strategy = "threshold",
    skip: Skip = None,
    form: Forms = None,
    device: Device = "cpu",
    allow: Allow = None,
    trust: Trust = False,
    report: ReportFile = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare with the original.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write OUT.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> int:
    """Replaced by `HELP`."""
    from canonize import commands

    if out is None and not dry_run:
        raise CanonizeError("no place to write to is given", hint="Give -o OUT, or --dry-run")
    source = commands.Source(_wanted(model or arch), arch if model else None, tuple(allow or ()), trust, device)
    return commands.convert(
        source,
        commands.Feed(tuple(shapes or ()), inputs),
        out=out,
        strategy=_strategy(strategy),
        skip=tuple(skip or ()),
        forms=tuple(form or ()),
        report_file=report,
        verify=not no_verify,
        dry_run=dry_run,
        screen=commands.Screen(verbose, quiet),
    )


def inspect(
    model: Model = None,
    arch: Arch = None,
    shapes: Shapes = None,
    inputs: File = None,
    device: Device = "cpu",
    allow: Allow = None,
    trust: Trust = False,
    report: ReportFile = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """List what is not canonical in MODEL, and why it matters. Exit 1 if anything is."""
    from canonize import commands

    source = commands.Source(_wanted(model or arch), arch if model else None, tuple(allow or ()), trust, device)
    return commands.inspect(
        source,
        commands.Feed(tuple(shapes or ()), inputs),
        report_file=report,
        screen=commands.Screen(verbose, quiet),
    )


def verify(
    first: Annotated[str, typer.Argument(metavar="A", help="The reference.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The candidate.")],
    arch: Arch = None,
    shapes: Shapes = None,
    inputs: File = None,
    device: Device = "cpu",
    allow: Allow = None,
    trust: Trust = False,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Compare two models numerically. Exit 1 if they are not the same function."""
    from canonize import commands

    packages = tuple(allow or ())
    return commands.verify(
        commands.Source(first, arch, packages, trust, device),
        commands.Source(second, arch, packages, trust, device),
        commands.Feed(tuple(shapes or ()), inputs),
        seed=seed,
        screen=commands.Screen(verbose, quiet),
    )


def patterns(debug: Debug = False) -> int:
    """List what canonize can fold: name, when it runs, what it does."""
    from canonize import commands

    return commands.patterns()


STRATEGIES: tuple[Literal["threshold"], Literal["untangle"]] = ("threshold", "untangle")
COMMANDS: dict[str, Callable[..., int]] = {"inspect": inspect, "verify": verify, "patterns": patterns}
# Options without a value, which may stand before a command's name.
FLAGS = {"--debug", "--trust", "--verbose", "-v", "--quiet", "-q"}


def dispatch(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Name of the command asked for, and its arguments; None is `convert`, the command without a name."""
    for position, argument in enumerate(arguments):
        if argument in COMMANDS:
            return argument, [*arguments[:position], *arguments[position + 1 :]]
        if argument not in FLAGS:
            break
    return None, list(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process where not given.

    Returns
    -------
    int
        0 good, 1 not equivalent or not canonical, 2 could not run, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, rest = dispatch(arguments)
    if not arguments:
        rest = ["--help"]
    debug = "--debug" in arguments
    try:
        with _undisturbed(debug):
            result = _command(name).main(
                args=rest, prog_name=f"canonize {name}" if name else "canonize", standalone_mode=False
            )
        sys.stdout.flush()
        if result == INTERRUPTED:  # how some versions of typer pass on a Ctrl-C, others raise Abort
            raise KeyboardInterrupt
        return int(result or GOOD)
    except BrokenPipeError:  # `canonize inspect model.pt | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted; nothing was written")
        return INTERRUPTED
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        _complain(_in_words(error, name, debug))
        return COULD_NOT


@contextlib.contextmanager
def _undisturbed(debug: bool) -> Iterator[None]:
    """Without the warnings of other libraries; and a request to end is an interruption, after which nothing is left."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main_thread else None
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            yield
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)


def _command(name: str | None) -> Any:
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,  # boxes take twice the lines, and the help is to fit a screen
        context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
    )
    if name is None:
        app.command(help=HELP, epilog=EPILOG, options_metavar="-o OUT [OPTIONS]")(convert)
    else:
        app.command()(COMMANDS[name])
    return typer.main.get_command(app)


def _in_words(error: Exception, name: str | None, debug: bool) -> str:
    """One line: what went wrong, where, and what to do next."""
    if isinstance(error, CanonizeError):
        return " ".join(str(error).split())
    if hasattr(error, "format_message"):  # what the parser says of the arguments
        return f"{error.format_message()} (see canonize {name + ' ' if name else ''}--help)"
    first = (str(error).strip().splitlines() or [""])[0][:300]
    if isinstance(error, MemoryError) or "allocate memory" in first or "out of memory" in first:
        asked = re.search(r"tried to allocate (\d+) bytes", first)
        size = f" ({int(asked[1]) / 2**30:,.0f} GB asked for at once)" if asked else ""
        return f"there is not enough memory{size}. Give a smaller --input, or use a machine that has more"
    further = "" if debug else "; --debug shows where"
    return f"unexpected {type(error).__name__}: {first}{further}"


def _wanted(source: str | None) -> str:
    if source is None:
        raise CanonizeError("no model is given", hint="Give MODEL, or --arch alone for random weights")
    return source


def _strategy(name: str) -> Literal["threshold", "untangle"]:
    for known in STRATEGIES:
        if name == known:
            return known
    raise CanonizeError(f"there is no strategy {name!r}", hint="Use threshold or untangle")


def _complain(message: str) -> None:
    sys.stderr.write(f"canonize: {message}\n")


if __name__ == "__main__":
    raise SystemExit(main())
