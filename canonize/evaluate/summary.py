"""From one row a measurement to one a cell: means, standard errors, paired differences from the first canonization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from canonize.evaluate.libraries import require
from canonize.evaluate.metrics.catalogue import metric
from canonize.evaluate.runner import Results

if TYPE_CHECKING:
    import pandas as pd

CELL = ["data", "model", "method", "canonization", "metric"]
SAMPLE = ["data", "model", "method", "metric", "seed", "sample"]
# A difference further from zero than this many of its standard errors is called one (two-sided, 95 % for many samples).
LIMIT = 1.96


def summarise(results: Results, *, correct_only: bool = True) -> pd.DataFrame:
    """One row a cell.

    Parameters
    ----------
    results : Results
    correct_only : bool
        Leave out samples that the model gets wrong, as the papers do: what should a heatmap of a wrong answer show?

    Returns
    -------
    DataFrame
        Columns `CELL`, then ``count``, ``mean``, ``error`` (standard error of the mean over samples of all seeds),
        ``difference`` and ``difference_error`` (mean over samples of value minus value in the first canonization, and
        its standard error), ``verdict``: ``better``, ``worse``, ``unclear`` (the difference is within `LIMIT` of its
        standard errors), or empty for the first canonization itself and where there is nothing to compare.

    Notes
    -----
    Samples are the unit: each seed draws others, so that all seeds' samples count together. Differences are taken
    sample by sample before they are averaged; the samples' own differences drop out of their error.
    """
    frame = results.frame
    if correct_only:
        frame = frame[frame["label"] == frame["predicted"]]
    frame = frame[np.isfinite(frame["value"])]
    baseline = results.experiment.canonizations[0]
    reference = frame[frame["canonization"] == baseline].set_index(SAMPLE)["value"].rename("reference")
    frame = frame.join(reference, on=SAMPLE)
    frame = frame.assign(difference=frame["value"] - frame["reference"])
    cells = frame.groupby(CELL, sort=False)
    # pandas' sem divides by n - 1, and gives NaN where a single sample leaves nothing to tell it by.
    table = cells["value"].agg(count="count", mean="mean", error="sem").reset_index()
    paired = cells["difference"].agg(difference="mean", difference_error="sem").reset_index()
    table = table.merge(paired, on=CELL)
    table["verdict"] = [_verdict(row, baseline) for row in table.to_dict("records")]
    return _in_order(table, results)


def _verdict(row: dict[Any, Any], baseline: str) -> str:
    better = metric(row["metric"]).better
    difference, error = row["difference"], row["difference_error"]
    if row["canonization"] == baseline or better == "neither" or not np.isfinite(difference + error):
        return ""
    if abs(difference) <= LIMIT * error or difference == 0:
        return "unclear"
    return "better" if (difference > 0) == (better == "higher") else "worse"


def _in_order(table: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Rows in the order in which the experiment names things."""
    pandas = require("pandas")
    experiment = results.experiment
    orders = {
        "data": list(experiment.data),
        "model": [model.name for model in experiment.models],
        "method": list(experiment.methods),
        "canonization": list(experiment.canonizations),
        "metric": list(experiment.metrics),
    }
    for column, order in orders.items():
        table[column] = pandas.Categorical(table[column], order, ordered=True)
    table = table.sort_values(CELL, ignore_index=True)
    return table.astype(dict.fromkeys(CELL, str))


def accuracies(results: Results) -> pd.DataFrame:
    """Share of right answers of each model on each data set: what is explained is worth knowing."""
    frame = results.frame[results.frame["canonization"] == results.experiment.canonizations[0]]
    frame = frame.drop_duplicates(["data", "model", "seed", "sample"])
    right = (frame["label"] == frame["predicted"]).groupby([frame["data"], frame["model"]], sort=False)
    return right.agg(samples="count", accuracy="mean").reset_index()
