"""From one row a measurement to one a cell: means, standard errors, paired differences from the first canonization.

A difference is called one where chance and rounding both cannot explain it: its p-value, corrected for all the
comparisons that are made beside it, is small, and it is larger than what rounding does to the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from canonize.evaluate.libraries import require
from canonize.evaluate.metrics.catalogue import metric
from canonize.evaluate.noise import FACTOR
from canonize.evaluate.runner import Failure, Results

if TYPE_CHECKING:
    import pandas as pd

CELL = ["data", "model", "method", "canonization", "metric"]
SAMPLE = ["data", "model", "method", "metric", "seed", "sample"]
# Half the width of a 95 % interval in standard errors, for pictures.
LIMIT = 1.96
# The chance that any verdict of a table is due to chance, where there is no difference at all.
LEVEL = 0.05


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
        its standard error), ``floor`` (what rounding may do to the difference), ``p`` (of the paired t-test) and
        ``p_corrected`` (Holm 1979, over all comparisons of the table), ``control``, ``verdict``: ``better`` or
        ``worse`` (``p_corrected`` is below `LEVEL` and the difference beyond the floor); ``unclear``; ``rounding`` (the
        difference is within the floor); ``control`` for methods that canonizing cannot change (``control differs``
        where it does); empty for the first canonization itself and where there is nothing to compare.

    Notes
    -----
    Samples are the unit: each seed draws others, so that all seeds' samples count together. Differences are taken
    sample by sample before they are averaged; the samples' own differences drop out of their error.
    """
    frame = results.frame
    noise = frame[np.isfinite(frame["noise"])].groupby(CELL, sort=False)["noise"].mean().rename("noise")
    frame = frame[counted(frame, correct_only) & np.isfinite(frame["value"])]
    baseline = results.experiment.canonizations[0]
    reference = frame[frame["canonization"] == baseline].set_index(SAMPLE)["value"].rename("reference")
    frame = frame.join(reference, on=SAMPLE)
    frame = frame.assign(difference=frame["value"] - frame["reference"])
    cells = frame.groupby(CELL, sort=False)
    # pandas' sem divides by n - 1, and gives NaN where a single sample leaves nothing to tell it by.
    table = cells["value"].agg(count="count", mean="mean", error="sem").reset_index()
    paired = cells["difference"].agg(difference="mean", difference_error="sem", pairs="count").reset_index()
    control = cells["control"].all().reset_index()
    table = table.merge(paired, on=CELL).merge(control, on=CELL).join(noise, on=CELL)
    table["floor"] = _floors(table, baseline)
    table["p"] = [_p_value(row) for row in table.to_dict("records")]
    compared = _compared(table, baseline)
    table["p_corrected"] = np.nan
    for family in (compared & ~table["control"], compared & table["control"]):
        table.loc[family, "p_corrected"] = holm(table.loc[family, "p"].to_numpy())
    table["verdict"] = [
        _verdict(row) if asked else "" for row, asked in zip(table.to_dict("records"), compared, strict=True)
    ]
    return _in_order(table.drop(columns=["pairs", "noise"]), results)


def counted(frame: pd.DataFrame, correct_only: bool) -> Any:
    """Which rows of an experiment's measurements count."""
    return frame["right"].astype(bool) if correct_only else frame["right"].notna()


def comparisons(summary: pd.DataFrame) -> int:
    """How many comparisons a table makes: controls are none."""
    return int((summary["p_corrected"].notna() & ~summary["control"]).sum())


def holm(p_values: Any) -> Any:
    r"""p-values corrected for their number, so that the largest of them below a level is below it with all others.

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min\{1, (m - j + 1) \, p_{(j)}\}

    (Holm 1979), which keeps the chance of any false verdict among :math:`m` below the level, however they depend on
    one another.
    """
    order = np.argsort(p_values)
    weighed = (len(p_values) - np.arange(len(p_values))) * np.asarray(p_values)[order]
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(weighed))
    return corrected


def _floors(table: pd.DataFrame, baseline: str) -> list[float]:
    """For each cell the larger noise, its own or the first canonization's, times what it may add up to."""
    key = [name for name in CELL if name != "canonization"]
    first = table[table["canonization"] == baseline].set_index(key)["noise"].rename("noise_before")
    both = table.join(first, on=key)[["noise", "noise_before"]]
    return list(FACTOR * both.max(axis=1).fillna(0.0))


def _p_value(row: dict[Any, Any]) -> float:
    """Two-sided, of the paired t-test that the mean difference is zero."""
    difference, error = row["difference"], row["difference_error"]
    if not np.isfinite(difference + error):
        return np.nan
    if error == 0:
        return float(difference == 0)
    return float(2 * require("scipy.stats").t.sf(abs(difference) / error, row["pairs"] - 1))


def _compared(table: pd.DataFrame, baseline: str) -> Any:
    directed = table["metric"].map(lambda name: metric(name).better != "neither").astype(bool)
    return (table["canonization"] != baseline) & directed & table["p"].notna()


def _verdict(row: dict[Any, Any]) -> str:
    """What a comparison says."""
    difference = row["difference"]
    clear = abs(difference) > row["floor"] and row["p_corrected"] < LEVEL
    if row["control"]:
        return "control differs" if clear else "control"
    if not clear:
        return "rounding" if abs(difference) <= row["floor"] else "unclear"
    return "better" if (difference > 0) == (metric(row["metric"]).better == "higher") else "worse"


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
    right = frame["right"].astype(bool).groupby([frame["data"], frame["model"]], sort=False)
    return right.agg(samples="count", accuracy="mean").reset_index()


def uncounted(results: Results, correct_only: bool) -> tuple[Failure, ...]:
    """What was measured and says nothing, and why.

    Returns
    -------
    tuple of Failure
        For each model none of whose answers count, and each metric that gave no number.
    """
    told: list[Failure] = []
    frame = results.frame
    for row in accuracies(results).itertuples():
        if correct_only and row.accuracy == 0:
            told.append(
                Failure(
                    f"{row.model} on {row.data}",
                    f"the model answers none of {row.samples} samples rightly, and wrong answers do not count",
                )
            )
    missed = frame[counted(frame, correct_only)].groupby(["data", "model", "method", "metric"], sort=False)["value"]
    for (data, model, method, name), values in missed:
        if not np.isfinite(values).any():
            why = {
                "mask": f"the heatmap is zero, or {data} has no such mask",
                "box": f"the heatmap is zero, or {data} has no boxes",
                None: "the heatmap is zero throughout",
            }[metric(name).needs]
            told.append(Failure(f"{model}, {method}, {name} on {data}", f"it is a number for no sample: {why}"))
    return tuple(told)
