"""Pixel flipping as curves and pictures."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from canonize.evaluate.curves import SHOWN, draw_curves, measure_curves
from canonize.evaluate.experiment import Experiment, ModelSource
from canonize.evaluate.metrics.catalogue import Settings
from canonize.evaluate.page import write_results
from canonize.evaluate.runner import Workers, run

WANTED = Experiment(
    (ModelSource("vgg", "shipped:vgg"),),
    ("digits",),
    methods=("epsilon-plus",),
    metrics=("pixel-flipping",),
    samples=5,
    seeds=(0,),
    settings=Settings(flipping_steps=4, flipping_patch=4, growth=2.0),
)


@pytest.fixture(scope="module")
def curves():
    found = measure_curves(WANTED, "digits", "vgg")
    assert found is not None
    return found


def test_steps_grow_until_all_is_gone(curves):
    none = curves.frame[curves.frame["canonization"] == "none"]
    # 100 squares in four steps, each twice as large as the one before: 7, 13, 27, 53.
    assert none["share"].tolist() == pytest.approx([0, 0.07, 0.20, 0.47, 1.0])
    assert none["score"].iloc[0] > 0.8 and none["score"].iloc[-1] < 0.5
    ends = curves.frame.groupby("canonization")["score"].agg(["first", "last"])
    np.testing.assert_allclose(ends.loc["none"], ends.loc["threshold"], atol=1e-5)  # the same function


def test_pictures_vanish(curves):
    for shown in curves.pictures.values():
        grey = ((shown - 0.5).abs() < 1e-6).all(1).double().mean((1, 2))
        assert len(shown) == SHOWN and (grey.diff() > 0).all() and grey[-1] == 1
    assert len(draw_curves(curves).subfigs[1].axes) == 2 * SHOWN


def test_the_mean_of_the_areas_is_the_area_of_the_mean(curves, tmp_path):
    results = run(WANTED, tmp_path, Workers(1, "sequential"))
    section = write_results(results, tmp_path, correct_only=False)
    assert "flipping-vgg-digits.png" in {picture.name for picture in section.pictures}
    frame = pandas.read_csv(tmp_path / "flipping-vgg-digits.csv")
    for form, part in frame.groupby("canonization"):
        area = np.trapezoid(part["score"], part["share"])
        measured = results.frame[results.frame["canonization"] == form]["value"].mean()
        assert area == pytest.approx(measured, abs=1e-5)
