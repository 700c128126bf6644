"""Localisation by the size of the object, and what is drawn beside heatmaps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from canonize.evaluate.experiment import Experiment, ModelSource
from canonize.evaluate.metrics.catalogue import Settings, metric
from canonize.evaluate.object_size import UNIFORM, size_plot, size_table
from canonize.evaluate.page import write_results, write_sizes
from canonize.evaluate.plots import cosine_distance, gallery
from canonize.evaluate.runner import Results, Workers, run
from tests.evaluate.test_runner import made

AREAS = np.array([0.1, 0.3, 0.6, 0.2])
VALUES = np.array([0.4, 0.5, 0.9, 0.2])


def results(**columns):
    rows = [(form, i, 1, 1, v) for form in ("none", "threshold") for i, v in enumerate(VALUES)]
    of = made(rows)
    experiment = dataclasses.replace(of.experiment, metrics=("mu",))
    return Results(of.frame.assign(metric="mu", area=np.tile(AREAS, 2), **columns), (), experiment)


def test_small_objects_have_means_of_their_own():
    table = size_table(results())
    assert table.columns == ("all", "< 50 %", "< 25 %") and table.groups == (("μ ↑", 3),)
    (uniform, none, _) = table.rows
    assert uniform.labels[1] == UNIFORM
    assert [entry.text[:5] for entry in uniform.entries] == ["0.300", "0.200", "0.150"]  # its μ is the box's share
    assert [entry.text[:5] for entry in none.entries] == ["0.500", "0.367", "0.300"]
    assert [entry.note for entry in none.entries] == ["4 objects", "3 objects", "2 objects"]


def test_wrong_answers_and_objects_of_unknown_size_do_not_count():
    right = np.tile([True, False, True, True], 2)
    assert [e.text[:5] for e in size_table(results(right=right)).rows[1].entries] == ["0.500", "0.300", "0.300"]
    assert size_table(Results(results().frame.assign(area=np.nan), (), results().experiment)) is None
    only_large = Results(results().frame.assign(area=0.9), (), results().experiment)
    assert [entry.text for entry in size_table(only_large).rows[1].entries][1:] == ["–", "–"]


def test_the_uniform_heatmap_is_drawn_as_the_share_of_the_box():
    (axis,) = size_plot(results()).axes
    dotted = next(line for line in axis.lines if line.get_label() == UNIFORM)
    assert np.allclose(dotted.get_xdata(), dotted.get_ydata())
    assert size_plot(made([("none", 0, 1, 1, 0.5)])) is None  # no such metric was measured


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    wanted = Experiment(
        (ModelSource("resnet", "shipped:resnet"),),
        ("digits",),
        methods=("epsilon-plus",),
        metrics=("mu", "mu-weighted", "object-occlusion", "context-occlusion"),
        samples=6,
        seeds=(0,),
        settings=Settings(),
    )
    return run(wanted, tmp_path_factory.mktemp("small"), Workers(1, "sequential"))


def test_sizes_are_measured_and_the_decision_rests_on_the_object(small, tmp_path):
    means = small.frame.groupby("metric")["value"].mean()
    assert means["object-occlusion"] > 0.3 and metric("object-occlusion").better == "neither"
    assert small.frame["area"].between(0.1, 0.3).all()
    assert "mu-by-size.png" in {picture.name for picture in write_results(small, tmp_path).pictures}
    assert write_sizes(small, tmp_path).table.rows[0].labels[1] == UNIFORM
    assert UNIFORM in (tmp_path / "sizes.txt").read_text()


def test_heatmaps_stand_with_their_distance_and_a_cross_on_the_peak(small):
    drawn = gallery(small.experiment, "digits", "resnet", shown=2)
    input_0, _, before, _, after, _ = drawn.axes
    assert not input_0.lines and all(len(axis.lines) == 1 for axis in (before, after))
    image = before.images[0].get_array()
    (x,), (y,) = before.lines[0].get_data()
    assert image[int(y), int(x)] == image.max()
    assert before.get_xlabel() == "" and 0 < float(after.get_xlabel()) < 2


def test_cosine_distance():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
    assert cosine_distance(one, 5 * one) == 0 and cosine_distance(one, other) == 1 and cosine_distance(one, -one) == 2
