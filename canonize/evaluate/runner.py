"""Carrying an experiment out: tasks over processes or machines by joblib, each result on disk as soon as it is there.

A task's file is named by all that its numbers depend on. A run that was killed therefore goes on where it stopped, a
run with one more method measures that method alone, and nothing that was measured otherwise is ever taken in.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from canonize.errors import CanonizeError, InputError
from canonize.evaluate.experiment import Experiment, MethodSpec, Task
from canonize.evaluate.libraries import require
from canonize.evaluate.metrics.catalogue import metric, seed_of
from canonize.evaluate.noise import MEASURED_TWICE, is_control, noise_of
from canonize.evaluate.subject import Subject, chosen_indices, data_set, load_model, model_in, model_rounded_otherwise
from canonize.export.atomic import write_whole

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[str, int, int], None]
MEASURED = ("control", "sample", "name", "area", "label", "predicted", "right", "metric", "value", "noise")
BACKENDS = ("loky", "threading", "sequential", "dask")


@dataclass(frozen=True)
class Workers:
    """Who does the work.

    Attributes
    ----------
    jobs : int
        Processes; -1 for as many as there are cores.
    backend : {"loky", "threading", "sequential", "dask"}
        joblib's: processes of this machine, or a cluster.
    address : str, optional
        Of the Dask scheduler; a cluster of this machine by default.
    """

    jobs: int = 1
    backend: str = "loky"
    address: str | None = None


@dataclass(frozen=True)
class Failure:
    """A cell of the experiment that could not be measured, and why."""

    task: str
    reason: str


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes
    ----------
    frame : DataFrame
        One row a measurement: model, canonization, data, method, seed, control (whether canonizing cannot change the
        method), sample, name, area (share of the picture that the object's box fills), label, predicted, right
        (whether the model answers rightly), metric, value, noise (how far rounding alone moves the value; NaN where
        that was not measured).
    failures : tuple of Failure
    experiment : Experiment
    """

    frame: pd.DataFrame
    failures: tuple[Failure, ...]
    experiment: Experiment


def run(
    experiment: Experiment, folder: Path, workers: Workers | None = None, progress: Progress | None = None
) -> Results:
    """Measure what is not measured yet, and give all of it.

    Parameters
    ----------
    experiment : Experiment
    folder : Path
        Holds ``shards``; shared by all machines, where there are several.
    workers : Workers, optional
        One process by default.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    Results

    Raises
    ------
    CanonizeError
        If the experiment makes no sense, a model or a data set cannot be opened, or nothing at all could be measured.
    """
    pandas = require("pandas")
    require("pyarrow")
    experiment.check()
    for model in experiment.models:
        load_model(model)
    for spec in experiment.data:
        data_set(spec, 0, 2, experiment.size)
    shards = folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    tasks = list(experiment.tasks())
    left = [task for task in tasks if not _file(shards, task).exists()]
    tell = progress or (lambda stage, done, total: None)
    done = len(tasks) - len(left)
    tell("measuring", done, len(tasks))
    failures: dict[tuple[str, str], Failure] = {}
    for failure in _carried_out(left, shards, workers or Workers()):
        done += 1
        tell("measuring", done, len(tasks))
        if failure is not None:
            failures.setdefault((failure.task, failure.reason), failure)
    files = [file for task in tasks if (file := _file(shards, task)).exists()]
    if not files:
        first = next(iter(failures.values()))
        raise InputError(f"nothing could be measured: {first.reason}", where=first.task, hint="Try another method")
    frame = pandas.concat([pandas.read_parquet(file) for file in files], ignore_index=True)
    return Results(frame, tuple(failures.values()), experiment)


def _carried_out(tasks: list[Task], shards: Path, workers: Workers) -> Iterator[Failure | None]:
    """Carry tasks out, in any order; a failure or None for each."""
    if not tasks:
        return
    joblib = require("joblib")
    if workers.backend not in BACKENDS:
        raise InputError(f"there is no backend {workers.backend!r}", hint=f"Choose one of {', '.join(BACKENDS)}")
    calls = [joblib.delayed(carry_out)(task, shards) for task in tasks]
    with _backend(workers):
        try:
            yield from joblib.Parallel(n_jobs=workers.jobs, return_as="generator_unordered", pre_dispatch="2*n_jobs")(
                calls
            )
        except ValueError as error:
            # Clusters' back ends hand results over only when all are there.
            if "return_as" not in str(error) and "generator" not in str(error):
                raise
            yield from joblib.Parallel(n_jobs=workers.jobs)(calls)


@contextlib.contextmanager
def _backend(workers: Workers) -> Iterator[None]:
    joblib = require("joblib")
    if workers.backend == "dask":
        client = _dask().Client(workers.address)
        try:
            with joblib.parallel_config("dask"):
                yield
        finally:
            client.close()
        return
    with joblib.parallel_config(workers.backend, n_jobs=workers.jobs):
        yield


def _dask() -> Any:
    try:
        return importlib.import_module("dask.distributed")
    except ImportError as error:
        raise InputError("Dask is not installed", hint="Run: pip install distributed") from error


def carry_out(task: Task, shards: Path) -> Failure | None:
    """Measure one task and write its file; what went wrong otherwise.

    A cell that cannot be measured (a method that refuses a model) takes nothing from the others.
    """
    file = _file(shards, task)
    if file.exists():  # another machine was faster
        return None
    try:
        frame = measure(task)
    except CanonizeError as error:
        return Failure(str(task), str(error))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return Failure(str(task), f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
    pandas = require("pandas")
    write_whole(file, frame.to_parquet, pandas.read_parquet)
    return None


def measure(task: Task) -> pd.DataFrame:
    """All metrics of one task, one row a sample and metric."""
    pandas = require("pandas")
    experiment = task.experiment
    if experiment.device == "cpu" and torch.get_num_threads() > 1:
        torch.set_num_threads(1)  # tasks run side by side
    data = data_set(task.data, task.seed, experiment.samples, experiment.size)
    indices = chosen_indices(data, task.data, task.seed, experiment.samples)[task.first : task.last]
    columns: dict[str, Any] = {"model": task.model.name, "canonization": task.canonization, "data": task.data}
    columns |= {"method": task.method, "seed": task.seed}
    if not indices:
        return pandas.DataFrame(columns=[*columns, *MEASURED])
    where = (task.model, task.canonization, experiment.device, task.data, experiment.size)
    model, method = model_in(*where), MethodSpec.parse(task.method)
    samples = data.take(indices)
    seeds = tuple(seed_of(task.data, task.seed, index) for index in indices)
    subject = Subject(model, method, data.low, data.high, settings=experiment.settings)
    case = subject.case(samples, experiment.target, seeds)
    assert case.predicted is not None and case.right is not None
    columns |= {
        "control": is_control(method.name, model),
        "sample": indices,
        "name": list(samples.names),
        "area": [math.nan] * len(indices) if samples.boxes is None else samples.boxes.double().mean((1, 2)).tolist(),
        "label": samples.labels.tolist(),
        "predicted": case.predicted.tolist(),
        "right": case.right.tolist(),
    }
    again = None
    if task.first == 0 and task.seed == experiment.seeds[0]:
        few = min(MEASURED_TWICE, len(indices))
        moved = model_rounded_otherwise(*where)
        subject = Subject(moved, method, data.low, data.high, settings=experiment.settings)
        again = subject.case(data.take(indices[:few]), experiment.target, seeds[:few])
    parts = []
    for name in experiment.metrics:
        measured = metric(name).measure(case).detach()
        noise = torch.full_like(measured, torch.nan)
        if again is not None:
            second = metric(name).measure(again).detach()
            noise[: len(second)] = noise_of(measured[: len(second)], second)
        values, noises = measured.double().cpu().numpy(), noise.double().cpu().numpy()
        parts.append(pandas.DataFrame({**columns, "metric": name, "value": values, "noise": noises}))
    return pandas.concat(parts, ignore_index=True)


def _file(shards: Path, task: Task) -> Path:
    return shards / f"{task.key}.parquet"
