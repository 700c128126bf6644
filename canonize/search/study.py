"""The search itself, by Optuna: samplers, storage that many processes and machines share, the Pareto front."""

from __future__ import annotations

import collections
import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from canonize.errors import CanonizeError, InputError
from canonize.evaluate.experiment import FORMAT, ModelSource
from canonize.evaluate.libraries import require
from canonize.evaluate.metrics.catalogue import Settings, metric, seed_of
from canonize.evaluate.subject import any_tensor, check_classes, chosen_indices, data_set, model_in, outputs_of
from canonize.search.configure import Configuration
from canonize.search.space import Choice, Space

if TYPE_CHECKING:
    import optuna
    import pandas as pd

# A configuration that ends so takes nothing from the others.
CAUGHT = (CanonizeError, RuntimeError, ValueError, TypeError, NotImplementedError)
Progress = Callable[[str, int, int], None]
SAMPLERS = ("tpe", "random", "grid", "nsga2", "qmc")
# Seconds after which a process that says nothing any more is taken for dead, and its trial is tried again.
HEARTBEAT, GRACE = 30, 120


@dataclass(frozen=True)
class Search:
    """What is searched, on what, for what.

    Attributes
    ----------
    model : ModelSource
    data : str
        As `canonize.evaluate.data.open_data` takes it.
    space : Space
    objectives : tuple of str
        Metrics; more than one make a Pareto front.
    trials : int
        Configurations to try, all processes together, counting those of earlier runs.
    samples, seed : int
        Of the data.
    batch : int
        Samples at once.
    sampler : {"tpe", "random", "grid", "nsga2", "qmc"}
    device : str
    size : int
        Side that pictures from files are brought to.
    settings : Settings
        Of the metrics.
    name : str
        Of the study in its storage.
    """

    model: ModelSource
    data: str
    space: Space
    objectives: tuple[str, ...] = ("mass-accuracy",)
    trials: int = 100
    samples: int = 32
    seed: int = 0
    batch: int = 16
    sampler: Literal["tpe", "random", "grid", "nsga2", "qmc"] = "tpe"
    device: str = "cpu"
    size: int = 224
    settings: Settings = field(default_factory=Settings)
    name: str = "canonize"

    def check(self) -> None:
        """Refuse what could not be searched.

        Raises
        ------
        InputError
            With what there is instead.
        """
        self.space.check()
        self.settings.check()
        if not self.objectives:
            raise InputError("there is no objective", hint="Name a metric")
        for name in self.objectives:
            if metric(name).better == "neither":
                raise InputError(f"{name} has no direction", hint="Search for one that is better higher or lower")
        if self.sampler not in SAMPLERS:
            raise InputError(f"there is no sampler {self.sampler!r}", hint=f"Choose one of {', '.join(SAMPLERS)}")
        if self.sampler == "grid" and self.space.size is None:
            raise InputError("a grid needs values, and the space has ranges", hint="List values, or use --sampler tpe")
        if self.trials < 1 or self.samples < 1 or self.batch < 1:
            raise InputError("there is nothing to search", hint="Give at least one trial, sample, and batch of one")

    def fingerprint(self) -> str:
        """Changes with whatever makes trials of two runs incomparable."""
        kept = [FORMAT, self.model.fingerprint(), self.data, self.space.to_json(), self.objectives, self.samples]
        return json.dumps([*kept, self.seed, self.size, vars(self.settings)], sort_keys=True, default=str)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes
    ----------
    trials : DataFrame
        One row a configuration: ``number``, each parameter, each objective with its standard error (``error:NAME``).
    front : DataFrame
        Those that no other is better than in every objective; the best one where there is one objective.
    failed : int
        Configurations that could not be measured.
    search : Search
    reasons : tuple of (str, int)
        Why not, and how many for each reason, the commonest first.
    """

    trials: pd.DataFrame
    front: pd.DataFrame
    failed: int
    search: Search
    reasons: tuple[tuple[str, int], ...] = ()


def search(wanted: Search, storage: str, jobs: int = 1, progress: Progress | None = None) -> Found:
    """Try configurations until as many as wanted have been tried, and give all of them.

    Parameters
    ----------
    wanted : Search
    storage : str
        ``sqlite:///study.db`` or any other database that Optuna takes, or ``journal:FILE``; the same for every process
        and machine that is to share the work.
    jobs : int
        Processes of this machine.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    Found

    Raises
    ------
    CanonizeError
        If the search makes no sense, its storage holds another one under its name, or nothing could be measured.
    """
    wanted.check()
    check_answers(wanted)
    study = open_study(wanted, storage, create=True)
    tell = progress or (lambda stage, done, total: None)
    left = wanted.trials - tried(study)
    tell("searching", tried(study), wanted.trials)
    if left > 0 and jobs == 1:
        work(wanted, storage, left, 0, lambda study: tell("searching", tried(study), wanted.trials))
    elif left > 0:
        joblib = require("joblib")
        calls = [joblib.delayed(work)(wanted, storage, left, number) for number in range(jobs)]
        with _watched(study, wanted, tell):
            joblib.Parallel(n_jobs=jobs)(calls)
    return collect(wanted, open_study(wanted, storage))


def work(
    wanted: Search, storage: str, trials: int, number: int, after: Callable[[optuna.Study], None] | None = None
) -> None:
    """What one process does: try configurations until all processes together have tried enough."""
    optuna = _optuna()
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    callbacks: list[Any] = [optuna.study.MaxTrialsCallback(wanted.trials, states=states)]
    if after is not None:
        callbacks.append(lambda study, trial: after(study))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        open_study(wanted, storage, number=number).optimize(
            lambda trial: objective(wanted, trial),
            n_trials=trials,
            callbacks=callbacks,
            catch=CAUGHT,
        )


def objective(wanted: Search, trial: optuna.Trial) -> tuple[float, ...]:
    """Measure one configuration: the mean of each objective over the samples that the model gets right."""
    values: dict[str, Any] = {}
    for name, dimension in wanted.space.parameters.items():
        kind, _, group = name.partition(".")
        if kind in ("gamma", "epsilon", "alpha"):
            rule = values.get(f"rule.{group}", "gamma")
            # A parameter of a rule that was not chosen is not asked for, unless a grid wants every one.
            if wanted.sampler != "grid" and rule.partition("-")[0] != kind:
                continue
        values[name] = (
            trial.suggest_categorical(name, dimension.values)
            if isinstance(dimension, Choice)
            else trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
        )
    try:
        means, errors = measured(wanted, Configuration(values, wanted.space.groups))
    except CAUGHT as error:
        # Read where the search is told: Optuna itself keeps no reason.
        said = str(error).strip().splitlines() or [type(error).__name__]
        trial.set_user_attr(
            "reason", said[0] if isinstance(error, CanonizeError) else f"{type(error).__name__}: {said[0]}"
        )
        raise
    trial.set_user_attr("errors", errors)
    return means


def check_answers(wanted: Search) -> None:
    """Refuse a search in which no configuration could be measured, since none of the model's answers count.

    Raises
    ------
    CanonizeError
        If model and data do not fit, or no sample is answered rightly.
    """
    data = data_set(wanted.data, wanted.seed, wanted.samples, wanted.size)
    model = model_in(wanted.model, "none", wanted.device, wanted.data, wanted.size)
    example = any_tensor(model)
    indices = chosen_indices(data, wanted.data, wanted.seed, wanted.samples)
    right = 0
    for first in range(0, len(indices), wanted.batch):
        samples = data.take(indices[first : first + wanted.batch]).to(example.device, example.dtype)
        with torch.no_grad():
            outputs = outputs_of(model, samples.inputs)
        check_classes(outputs, samples)
        right += int(samples.right(outputs).sum())
    if not right:
        raise InputError(
            f"the model answers none of {len(indices)} samples rightly, and wrong answers do not count",
            where=wanted.model.name,
            hint="Give trained weights, or more samples",
        )


def measured(wanted: Search, configuration: Configuration) -> tuple[tuple[float, ...], list[float]]:
    """Means and standard errors of the objectives under one configuration.

    Raises
    ------
    InputError
        If a mean is not finite.
    """
    data = data_set(wanted.data, wanted.seed, wanted.samples, wanted.size)
    model = model_in(wanted.model, configuration.canonization, wanted.device, wanted.data, wanted.size)
    subject = configuration.subject(model, data.low, data.high, wanted.settings)
    indices = chosen_indices(data, wanted.data, wanted.seed, wanted.samples)
    found: dict[str, list[float]] = {name: [] for name in wanted.objectives}
    for first in range(0, len(indices), wanted.batch):
        part = indices[first : first + wanted.batch]
        seeds = tuple(seed_of(wanted.data, wanted.seed, index) for index in part)
        case = subject.case(data.take(part), "label", seeds)
        assert case.right is not None
        right = case.right.cpu()
        for name in wanted.objectives:
            found[name] += metric(name).measure(case).detach().double().cpu()[right].tolist()
    means, errors = [], []
    for name in wanted.objectives:
        # What is unknown (a picture without a mask, an empty heatmap) does not count.
        values = np.asarray(found[name])[np.isfinite(found[name])]
        if not len(values):
            needs = metric(name).needs
            raise InputError(
                f"{name} is a number for no sample",
                hint=f"The heatmap is zero throughout{f', or the data have no {needs}' if needs else ''}",
            )
        means.append(float(values.mean()))
        errors.append(float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan"))
    return tuple(means), errors


def open_study(wanted: Search, storage: str, *, create: bool = False, number: int = 0) -> optuna.Study:
    """The study in its storage.

    Raises
    ------
    InputError
        If the storage cannot be opened, or holds another search under this name.
    """
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = [{"higher": "maximize", "lower": "minimize"}[metric(name).better] for name in wanted.objectives]
    opened = _storage(storage)
    try:
        if create:
            study = optuna.create_study(
                storage=opened, study_name=wanted.name, directions=directions, load_if_exists=True
            )
        else:
            study = optuna.load_study(storage=opened, study_name=wanted.name, sampler=_sampler(wanted, number))
    except Exception as error:  # whatever the database's driver raises
        raise InputError(
            f"the storage cannot be opened ({str(error).splitlines()[0]})", where=storage, hint="Check the URL"
        ) from error
    known = study.user_attrs.get("search")
    if known is None:
        study.set_user_attr("search", wanted.fingerprint())
    elif known != wanted.fingerprint():
        raise InputError(
            f"holds another search under the name {wanted.name!r}", where=storage, hint="Give another --study or folder"
        )
    return study


def _storage(url: str) -> Any:
    optuna = _optuna()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if url.startswith("journal:"):
                return optuna.storages.JournalStorage(
                    optuna.storages.journal.JournalFileBackend(url.removeprefix("journal:"))
                )
            return optuna.storages.RDBStorage(url, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
    except Exception as error:  # whatever the database's driver raises
        raise InputError(
            f"the storage cannot be opened ({str(error).splitlines()[0]})", where=url, hint="Check the URL"
        ) from error


def _sampler(wanted: Search, number: int) -> Any:
    samplers = _optuna().samplers
    seed = (wanted.seed * 1000 + number) % 2**31  # another for each process, or all would try the same
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if wanted.sampler == "grid":
            grid = {name: d.values for name, d in wanted.space.parameters.items() if isinstance(d, Choice)}
            return samplers.GridSampler(grid, seed=seed)
        if wanted.sampler == "tpe":
            return samplers.TPESampler(seed=seed, multivariate=True, group=True)
        if wanted.sampler == "qmc":
            return samplers.QMCSampler(seed=wanted.seed, scramble=True)
        return {"random": samplers.RandomSampler, "nsga2": samplers.NSGAIISampler}[wanted.sampler](seed=seed)


def tried(study: optuna.Study) -> int:
    """How many configurations have been tried, whether they could be measured or not."""
    states = _optuna().trial.TrialState
    return len(study.get_trials(deepcopy=False, states=(states.COMPLETE, states.FAIL)))


def collect(wanted: Search, study: optuna.Study) -> Found:
    """All trials as a table, and the best of them."""
    pandas = require("pandas")
    states = _optuna().trial.TrialState
    complete = study.get_trials(deepcopy=False, states=(states.COMPLETE,))
    failed = study.get_trials(deepcopy=False, states=(states.FAIL,))
    counts = collections.Counter(str(trial.user_attrs.get("reason", "its process was stopped")) for trial in failed)
    reasons = tuple(counts.most_common())
    if not complete:
        told = "; ".join(reason for reason, _ in reasons[:3])
        raise InputError(
            f"no configuration could be measured ({told})",
            where=wanted.model.name,
            hint="Try another space or metric",
        )
    rows = []
    for trial in complete:
        row: dict[str, Any] = {"number": trial.number, **trial.params}
        row |= dict(zip(wanted.objectives, trial.values, strict=True))
        row |= {f"error:{n}": e for n, e in zip(wanted.objectives, trial.user_attrs["errors"], strict=True)}
        rows.append(row)
    best = {trial.number for trial in study.best_trials}
    table = pandas.DataFrame(rows)
    order = [name for name in wanted.space.parameters if name in table]
    errors = [f"error:{name}" for name in wanted.objectives]
    table = table[["number", *order, *wanted.objectives, *errors]].sort_values("number", ignore_index=True)
    front = table[table["number"].isin(best)]
    ascending = metric(wanted.objectives[0]).better == "lower"
    return Found(
        table,
        front.sort_values(wanted.objectives[0], ascending=ascending, ignore_index=True),
        len(failed),
        wanted,
        reasons,
    )


@contextlib.contextmanager
def _watched(study: optuna.Study, wanted: Search, tell: Progress) -> Iterator[None]:
    """Tell how far all processes are while they work."""
    import threading

    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            tell("searching", min(tried(study), wanted.trials), wanted.trials)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _optuna() -> Any:
    return require("optuna", "search")


def default_storage(folder: Path) -> str:
    """SQLite beside the results."""
    return f"sqlite:///{folder.resolve() / 'study.db'}"
