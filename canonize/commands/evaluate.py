"""What ``canonize evaluate`` does once its arguments are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from canonize.errors import ExportError, InputError
from canonize.evaluate.experiment import Experiment, ModelSource
from canonize.evaluate.libraries import need_all
from canonize.evaluate.metrics.catalogue import METRICS, Settings
from canonize.evaluate.page import Section, write_page, write_results, write_sizes
from canonize.evaluate.presets import PRESETS, preset
from canonize.evaluate.runner import Progress, Results, Workers, run
from canonize.evaluate.tables import as_text

GOOD = 0
METHODS = ("excitation-backprop", "alpha2-beta1", "epsilon-plus")
MEASURED = ("sparseness", "region-perturbation", "rank-accuracy", "mass-accuracy", "avg-sensitivity", "random-logit")

Show = Callable[[], AbstractContextManager[Progress | None]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Where:
    """Where results go and who works for them."""

    folder: Path
    workers: Workers
    show: Show
    say: Say


def evaluate(experiment: Experiment, where: Where, *, correct_only: bool) -> int:
    """Carry one experiment out, write and print its results."""
    need_all(experiment.data, experiment.metrics, experiment.methods)
    prepare(where.folder)
    check_device(experiment.device)
    start = time.monotonic()
    results = carried_out(experiment, where)
    section = write_results(results, where.folder, correct_only=correct_only)
    sized = write_sizes(results, where.folder, correct_only=correct_only)
    sections = [section, sized] if sized else [section]
    write_page(where.folder / "report.html", experiment.title, sections, time.monotonic() - start)
    tell(section, where.say)
    where.say(f"\nwritten to {where.folder}: report.html, table.txt, summary.csv, results.parquet, pictures")
    return GOOD


def papers(where: Where, *, samples: int | None, seeds: int | None, trials: int | None) -> int:
    """Both tables and the search, in one page."""
    from canonize.search.papers import TRIALS, gamma_search, localisation, table_1, table_2
    from canonize.search.section import write_search
    from canonize.search.study import default_storage, search

    need_all(("digits",), (), (), extra="search")
    prepare(where.folder)
    start = time.monotonic()
    sections: list[Section] = []
    counts = samples or 64, seeds or 3
    for stem, experiment in (
        ("table-1-", table_1(*counts)),
        ("table-2-", table_2(*counts)),
        ("table-2-max-", table_2(*counts, "max-norm")),
        ("localisation-", localisation(*counts)),
    ):
        results = carried_out(experiment, where)
        sections.append(write_results(results, where.folder, stem))
        where.say(f"\n{experiment.title}\n")
        tell(sections[-1], where.say)
        if stem == "localisation-":
            sections += filter(None, [write_sizes(results, where.folder, stem)])
    wanted = gamma_search(samples=min(samples or 32, 32), trials=trials or TRIALS)
    with where.show() as progress:
        found = search(wanted, default_storage(where.folder), where.workers.jobs, progress)
    sections.append(write_search(found, where.folder, "search-"))
    where.say(f"\n{sections[-1].title}: {sections[-1].lines[0]}\n")
    where.say(as_text(cast(Any, sections[-1].table)))
    seconds = time.monotonic() - start
    write_page(where.folder / "report.html", "What canonization does to explanations", sections, seconds)
    where.say(f"\nwritten to {where.folder} in {seconds:.0f} s; open report.html")
    return GOOD


def listing(say: Say) -> int:
    """Print what there is to choose from."""
    from canonize.evaluate.data import GENERATED, READ
    from canonize.evaluate.networks import NETWORKS
    from canonize.explain.methods import METHODS as EXPLAINED

    say("Metrics (arrow: which way is better)\n")
    for found in METRICS.values():
        say(f"  {found.name:38} {found.arrow or ' '}  {found.group:14} {found.title}")
    say("\nData\n")
    say("  " + ", ".join([*GENERATED, *(f"{name}:FOLDER" for name in READ)]))
    say("\nModels that are shipped\n")
    for name in NETWORKS:
        say(f"  shipped:{name:18} {'sort-of-clevr' if name == 'relation_network' else 'digits'}")
    say("\nPresets of the metrics' settings, and what --set takes\n")
    for name, settings in PRESETS.items():
        changed = [f.name for f in fields(Settings) if getattr(settings, f.name) != getattr(Settings(), f.name)]
        shown = changed if name != "default" else [field.name for field in fields(Settings)]
        say(f"  {name:10} " + ", ".join(f"{key}={getattr(settings, key)}" for key in shown))
    say("\nMethods\n")
    for method in EXPLAINED:
        say(f"  {method.name:22} {method.summary}")
    return GOOD


def experiment_of(
    models: Sequence[str],
    data: Sequence[str],
    canonizations: Sequence[str],
    methods: Sequence[str],
    metrics: Sequence[str],
    *,
    arch: str | None,
    allow: tuple[str, ...],
    trust: bool,
    settings: Settings,
    target: str,
    **more: Any,
) -> Experiment:
    """An experiment as the command line says it.

    Raises
    ------
    InputError
        If it says too little, or a setting that there is not.
    """
    if not models:
        raise InputError("no model is given", hint="Give MODEL ..., or --papers; canonize evaluate --list shows some")
    if not data:
        raise InputError("no data are given", hint="Give --data digits, or --data folder:FOLDER")
    if arch is not None and len(models) > 1:
        raise InputError("--arch is for one model", hint="Give one MODEL")
    return Experiment(
        models=tuple(ModelSource.parse(text, arch=arch, allow=allow, trust=trust) for text in models),
        data=split(data),
        canonizations=split(canonizations) or ("none", "threshold"),
        methods=split(methods) or METHODS,
        metrics=split(metrics) or MEASURED,
        settings=settings,
        target=cast(Literal["label", "predicted"], target),
        **more,
    )


# Shorter names of settings.
ALIASES = {"steps": "perturbation_steps", "samples": "noise_samples", "norm": "normalise"}


def settings_of(given: Sequence[str], base: str = "default") -> Settings:
    """Settings of the metrics: a preset, and ``key=value`` in place of parts of it."""
    known: dict[str, type] = {field.name: type(getattr(Settings(), field.name)) for field in fields(Settings)}
    found = preset(base)
    for text in split(given):
        key, _, value = text.partition("=")
        key = ALIASES.get(key.strip().replace("-", "_"), key.strip().replace("-", "_"))
        if key not in known:
            raise InputError(f"there is no setting {key!r}", hint=f"Settings: {', '.join(known)}")
        try:
            found = replace(found, **{key: known[key](value)})
        except ValueError as error:
            raise InputError(f"{value!r} is no value of {key}", hint=f"It is a {known[key].__name__}") from error
    found.check()
    return found


def split(given: Sequence[str]) -> tuple[str, ...]:
    """Options may be given several times, with commas, or both."""
    return tuple(part.strip() for text in given for part in text.split(",") if part.strip())


def carried_out(experiment: Experiment, where: Where) -> Results:
    """Run with a progress bar, where there is a terminal."""
    with where.show() as progress:
        return run(experiment, where.folder, where.workers, progress)


def tell(section: Section, say: Say) -> None:
    """Print a table, its legend, and what could not be measured."""
    if section.table is not None:
        say(as_text(section.table))
    say(f"\n{section.legend}")
    for line in section.lines:
        say(line)
    for failure in section.failures:
        say(f"not measured: {failure.task}: {failure.reason}")


def prepare(folder: Path) -> None:
    """Make the folder for the results.

    Raises
    ------
    ExportError
        If it cannot be made.
    """
    if not folder.parent.is_dir():
        raise ExportError(f"there is no folder {folder.parent}", where=str(folder), hint="Make it first")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ExportError(f"is no folder ({error.strerror})", where=str(folder), hint="Choose another place") from error


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises
    ------
    InputError
        With the reason that torch gives.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"the device {device} cannot be used ({first})", hint="Try --device cpu") from error
