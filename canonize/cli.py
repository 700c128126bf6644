"""The command line: what can be asked for. What is then done is in ``canonize.commands``.

Nothing here imports torch, so that ``canonize --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from canonize._version import __version__
from canonize.commands.terminal import steady
from canonize.errors import CanonizeError, closest

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
  canonize check A B       B, which canonize made of A, proven again for all inputs; exit 1 if not
  canonize explain MODEL IMAGE -o OUT   heatmaps, before and after
  canonize patterns        what canonize can fold, one line each
  canonize evaluate MODEL  does it help? explanations measured with and without canonization
  canonize search MODEL    the rules and the canonical form whose explanations measure best

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
VerdictFiles = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option("--report", metavar="FILE", help="Also as .json, .xml (JUnit), .md or .txt; may be repeated."),
]


def _version(asked: bool) -> None:
    if asked:
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
    certificate: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--certificate", metavar="FILE", help="Also what canonize check reads, as JSON."),
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare with the original.")] = False,
    paranoid: Annotated[bool, typer.Option("--paranoid", help="Check each rewrite alone, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write OUT.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> int:
    """Replaced by `HELP`."""
    from canonize.commands import common
    from canonize.commands import convert as command

    if out is None and not dry_run:
        raise CanonizeError("no place to write to is given", hint="Give -o OUT, or --dry-run")
    source = common.Source(_wanted(model or arch), arch if model else None, tuple(allow or ()), trust, device)
    return command.convert(
        source,
        common.GivenInputs(tuple(shapes or ()), inputs),
        out=out,
        strategy=_strategy(strategy),
        skip=tuple(skip or ()),
        forms=tuple(form or ()),
        report_file=report,
        certificate=certificate,
        verify=not no_verify,
        paranoid=paranoid,
        dry_run=dry_run,
        screen=common.Screen(verbose, quiet),
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
    explainer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--for", metavar="EXPLAINER", help="zennit or captum: what it has no rule for, instead."),
    ] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """List what is not canonical in MODEL, and why it matters. Exit 1 if anything is."""
    from canonize.commands import common
    from canonize.commands import inspect as command

    source = common.Source(_wanted(model or arch), arch if model else None, tuple(allow or ()), trust, device)
    return command.inspect(
        source,
        common.GivenInputs(tuple(shapes or ()), inputs),
        report_file=report,
        explainer=explainer,
        screen=common.Screen(verbose, quiet),
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
    seed: Annotated[int, typer.Option(metavar="N", help="Of the random inputs.")] = 0,
    report: VerdictFiles = None,
    dump: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--dump", metavar="DIR", help="If they differ: input and activations of the layer."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer inputs: what a conversion checks.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Compare two models numerically. Exit 1 if they are not the same function."""
    from canonize.commands import common
    from canonize.commands import verify as command

    packages = tuple(allow or ())
    return command.verify(
        common.Source(first, arch, packages, trust, device),
        common.Source(second, arch, packages, trust, device),
        common.GivenInputs(tuple(shapes or ()), inputs),
        seed=seed,
        report_files=tuple(report or ()),
        dump=dump,
        quick=quick,
        screen=common.Screen(verbose, quiet),
    )


def check(
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help="The model as it was.")],
    canonical: Annotated[str, typer.Argument(metavar="CANONICAL", help="The .pt that canonize made of it.")],
    arch: Arch = None,
    certificate: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--certificate", metavar="FILE", help="By default the one in CANONICAL."),
    ] = None,
    shapes: Shapes = None,
    inputs: File = None,
    allow: Allow = None,
    trust: Trust = False,
    report: Annotated[Optional[Path], typer.Option("--report", metavar="FILE", help="Also as .json.")] = None,  # noqa: UP045
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Prove again, for all inputs, that CANONICAL computes what ORIGINAL does. Exit 1 if a layer is not proven."""
    from canonize.commands import check as command
    from canonize.commands import common

    packages = tuple(allow or ())
    return command.check(
        common.Source(original, arch, packages, trust, "cpu"),
        common.Source(canonical, None, packages, trust, "cpu"),
        common.GivenInputs(tuple(shapes or ()), inputs),
        certificate=certificate,
        report_file=report,
        screen=common.Screen(verbose, quiet),
    )


def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help="As for canonize MODEL -o OUT.")],
    pictures: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", show_default=False, help="Picture files, and folders of them.")
    ],
    out: Annotated[
        list[Path],
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            show_default=False,
            help=".png .pdf .svg: heatmaps side by side; .npy .h5: relevances; NAME/: a picture each. May be repeated.",
        ),
    ],
    method: Annotated[
        str, typer.Option("--method", "-m", metavar="NAME", help="How; see docs/explaining.md.")
    ] = "epsilon-plus",
    target: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--target", "-t", metavar="CLASS", help="Class to explain; what the model decides by default."),
    ] = None,
    side: Annotated[str, typer.Option(metavar="WHICH", help="original, canonical or both.")] = "both",
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--set", metavar="NAME=VALUE", help="epsilon=0.1, gamma=0.5, threshold=gradient, gate=uniform, ..."
        ),
    ] = None,
    normalise: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--normalise", metavar="HOW", help="none, imagenet, or MEAN,.../STD,..."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Pictures at once.")] = 8,
    form: Forms = None,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out pictures whose heatmap is there.")] = False,
    compare: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--compare", metavar="NAME", help="More methods, drawn beside it; may be repeated."),
    ] = None,
    unruled: Annotated[
        str,
        typer.Option("--unruled", metavar="HOW", help="What has no rule: refuse it, or take the plain gradient."),
    ] = "refuse",
    ledger: Annotated[bool, typer.Option("--ledger", help="Say where relevance went, and what kept it.")] = False,
    project: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--project", metavar="DIR", help="A ViRelAy project around the .h5 file."),
    ] = None,
    arch: Arch = None,
    shapes: Shapes = None,
    strategy: Strategy = "threshold",
    device: Device = "cpu",
    allow: Allow = None,
    trust: Trust = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Explain what MODEL sees in pictures: heatmaps of the original and of its canonical form."""
    from canonize.commands import common
    from canonize.commands import explain as command

    if side not in ("original", "canonical", "both"):
        raise CanonizeError(f"there is no side {side!r}", hint="Use original, canonical or both")
    wish = command.ExplainRequest(
        pictures,
        out,
        method,
        target,
        side,
        _strategy(strategy),
        settings or (),
        normalise,
        batch,
        tuple(form or ()),
        resume,
        project,
        [name for given in compare or () for name in given.split(",") if name],
        unruled,
        ledger,
    )
    source = common.Source(model, arch, tuple(allow or ()), trust, device)
    return command.explain(source, common.GivenInputs(tuple(shapes or ())), wish, common.Screen(quiet=quiet))


def patterns(debug: Debug = False) -> int:
    """List what canonize can fold: name, when it runs, what it does."""
    from canonize.commands import patterns as command

    return command.patterns()


Many = Optional[list[str]]  # noqa: UP045
Samples = Annotated[Optional[int], typer.Option(metavar="N", help="Samples for each seed.")]  # noqa: UP045
Folder = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="For all results.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", metavar="N", help="Processes; -1: one a core.")]
Size = Annotated[int, typer.Option(metavar="PIXELS", help="Side that pictures from files are brought to.")]
SettingsOf = Annotated[
    Many,
    typer.Option("--set", metavar="KEY=VALUE", help="Of metrics: patch=8,select=absolute,...; see --list."),
]
Preset = Annotated[str, typer.Option(metavar="NAME", help="Of metrics: default, pahde (the authors' settings).")]


def evaluate(
    models: Annotated[Many, typer.Argument(metavar="MODEL...", help="[NAME=]MODEL, or shipped:vgg.")] = None,
    data: Annotated[Many, typer.Option(metavar="DATA", help="digits, voc:FOLDER, ...; see --list.")] = None,
    canonization: Annotated[
        Many, typer.Option("--canonization", "-c", metavar="FORM", help="none, threshold, untangle, structure, ...")
    ] = None,
    method: Annotated[Many, typer.Option("--method", "-m", metavar="METHOD", help="epsilon-plus, ...")] = None,
    metric: Annotated[Many, typer.Option(metavar="METRIC", help="mass-accuracy, ...")] = None,
    out: Folder = Path("evaluation"),
    samples: Samples = None,
    seeds: Annotated[Optional[int], typer.Option(metavar="N", help="Draws of samples and noise.")] = None,  # noqa: UP045
    batch: Annotated[int, typer.Option(metavar="N", help="Samples at once.")] = 16,
    target: Annotated[str, typer.Option(metavar="CLASS", help="Explain the label, or predicted.")] = "label",
    all_samples: Annotated[bool, typer.Option("--all-samples", help="Count wrong answers, too.")] = False,
    settings: SettingsOf = None,
    preset: Preset = "default",
    size: Size = 224,
    jobs: Jobs = 1,
    backend: Annotated[str, typer.Option(metavar="NAME", help="loky, threading, dask (joblib).")] = "loky",
    address: Annotated[Optional[str], typer.Option(metavar="URL", help="Of a Dask scheduler.")] = None,  # noqa: UP045
    papers: Annotated[bool, typer.Option("--papers", help="The papers' tables and search, shipped models.")] = False,
    trials: Annotated[Optional[int], typer.Option(metavar="N", help="Of the search of --papers.")] = None,  # noqa: UP045
    show: Annotated[bool, typer.Option("--list", help="Metrics, data, methods, shipped models.")] = False,
    arch: Arch = None,
    device: Device = "cpu",
    allow: Allow = None,
    trust: Trust = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Measure explanations with and without canonization, paired, with standard errors.

    Options that name something may be given several times or with commas. A run that was stopped goes on when the same
    command is given again.
    """
    from canonize.commands import common
    from canonize.commands import evaluate as command
    from canonize.evaluate.runner import Workers

    screen = common.Screen(quiet=quiet)
    where = command.Where(out, Workers(jobs, backend, address), screen.progress, screen.say)
    if show:
        return command.listing(screen.say)
    if papers:
        return command.papers(where, samples=samples, seeds=seeds, trials=trials)
    experiment = command.experiment_of(
        models or (),
        data or (),
        canonization or (),
        method or (),
        metric or (),
        arch=arch,
        allow=tuple(allow or ()),
        trust=trust,
        settings=command.settings_of(settings or (), preset),
        target=target,
        samples=64 if samples is None else samples,
        seeds=tuple(range(3 if seeds is None else seeds)),
        batch=batch,
        device=device,
        size=size,
    )
    return command.evaluate(experiment, where, correct_only=not all_samples)


def search(
    model: Annotated[Optional[str], typer.Argument(metavar="MODEL", show_default=False)] = None,  # noqa: UP045
    data: Annotated[Optional[str], typer.Option(metavar="DATA", help="As for canonize evaluate.")] = None,  # noqa: UP045
    objective: Annotated[Many, typer.Option("--objective", metavar="METRIC", help="Several: a Pareto front.")] = None,
    space: Annotated[str, typer.Option(metavar="SPACE", help="papers (2 x 6^4), wide, or a JSON file.")] = "papers",
    sampler: Annotated[str, typer.Option(metavar="NAME", help="tpe, random, grid, nsga2, qmc.")] = "tpe",
    trials: Annotated[int, typer.Option(metavar="N", help="Configurations, earlier runs' included.")] = 100,
    samples: Samples = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of samples, noise and sampler.")] = 0,
    batch: Annotated[int, typer.Option(metavar="N", help="Samples at once.")] = 16,
    storage: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="URL", help="Shared by all workers; SQLite in FOLDER by default, journal:FILE, ..."),
    ] = None,
    study: Annotated[str, typer.Option(metavar="NAME", help="Of the search in its storage.")] = "canonize",
    out: Folder = Path("search"),
    settings: SettingsOf = None,
    preset: Preset = "default",
    size: Size = 224,
    jobs: Jobs = 1,
    arch: Arch = None,
    device: Device = "cpu",
    allow: Allow = None,
    trust: Trust = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Search the rules of groups of layers, and the canonical form, whose explanations measure best.

    The same command goes on where it stopped; given on several machines with one --storage, they share the work.
    """
    from canonize.commands import common
    from canonize.commands import evaluate as shared
    from canonize.commands import search as command
    from canonize.evaluate.experiment import ModelSource
    from canonize.evaluate.runner import Workers
    from canonize.search import Search, read_space

    if data is None:
        raise CanonizeError("no data are given", hint="Give --data digits, or --data folder:FOLDER")
    source = ModelSource.parse(_wanted(model), arch=arch, allow=tuple(allow or ()), trust=trust)
    wanted = Search(
        model=source,
        data=data,
        space=read_space(space),
        objectives=shared.split(objective or ()) or ("mass-accuracy",),
        trials=trials,
        samples=32 if samples is None else samples,
        seed=seed,
        batch=batch,
        sampler=sampler,  # type: ignore[arg-type] # checked where all of it is
        device=device,
        size=size,
        settings=shared.settings_of(settings or (), preset),
        name=study,
    )
    screen = common.Screen(quiet=quiet)
    return command.search(wanted, shared.Where(out, Workers(jobs), screen.progress, screen.say), storage)


STRATEGIES: tuple[Literal["threshold"], Literal["untangle"]] = ("threshold", "untangle")
COMMANDS: dict[str, Callable[..., int]] = {
    "inspect": inspect,
    "verify": verify,
    "check": check,
    "explain": explain,
    "patterns": patterns,
    "evaluate": evaluate,
    "search": search,
}
EPILOGS = {
    "explain": "Methods: epsilon-plus, epsilon-plus-flat, alpha2-beta1, alpha2-beta1-flat, epsilon-gamma, "
    "epsilon-gamma-box, epsilon, excitation-backprop, lrp-custom, guided-backprop, deconvnet, gradient, "
    "input-x-gradient, integrated-gradients, smoothgrad, deep-lift. canonize evaluate --list says what each is.",
}
# What these have measured when they are stopped stays, and counts when they go on.
RESUMABLE = {"evaluate", "search"}
# What people call a command that has another name, or none.
OTHER_WORDS = {
    "convert": "canonize MODEL -o OUT: the conversion has no name of its own",
    "canonize": "canonize MODEL -o OUT: the conversion has no name of its own",
    "compare": "canonize verify A B",
    "help": "canonize --help",
    "version": "canonize --version",
}
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
    with steady() as (out, _):
        code = _run(arguments)
        out.flush()
        if out.failure is not None and code == GOOD:
            _complain(f"not all could be printed ({out.failure.strerror})")
            code = COULD_NOT
    return code


def _run(arguments: list[str]) -> int:
    name, rest = dispatch(arguments)
    if not arguments:
        rest = ["--help"]
    debug = "--debug" in arguments
    try:
        if name is None:
            _refuse_mistyped(arguments)
        with _undisturbed(debug):
            result = _command(name).main(
                args=rest, prog_name=f"canonize {name}" if name else "canonize", standalone_mode=False
            )
        if result == INTERRUPTED:  # how some versions of typer pass on a Ctrl-C, others raise Abort
            raise KeyboardInterrupt
        return int(result or GOOD)
    except (KeyboardInterrupt, typer.Abort):
        kept = "what was measured is kept: the same command goes on" if name in RESUMABLE else "nothing was written"
        _complain(f"interrupted; {kept}")
        return INTERRUPTED
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        _complain(_in_words(error, name, debug))
        return COULD_NOT


def _refuse_mistyped(arguments: Sequence[str]) -> None:
    """A word that is no model and nearly a command is a mistyped command."""
    word = next((a for a in arguments if a not in FLAGS), "")
    if not word.replace("-", "").isalpha() or word.startswith("-") or Path(word).exists():
        return
    if word.lower() in OTHER_WORDS:
        raise CanonizeError(f"there is no command {word!r}", hint=f"Write {OTHER_WORDS[word.lower()]}")
    meant = closest(word, COMMANDS)
    if meant:
        raise CanonizeError(f"there is no command {word!r}", hint=f"Did you mean canonize {meant[0]}?")


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
        app.command(epilog=EPILOGS.get(name))(COMMANDS[name])
    return typer.main.get_command(app)


def _in_words(error: Exception, name: str | None, debug: bool) -> str:
    """One line: what went wrong, where, and what to do next."""
    if isinstance(error, CanonizeError):
        return " ".join(error.at_a_shell().split())
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
