"""Experiments: paired, resumed without loss, the same over processes; refusals; summaries against hand-worked cases."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas
import pytest
import torch

from canonize.errors import CanonizeError, InputError
from canonize.evaluate import runner
from canonize.evaluate.experiment import Experiment, MethodSpec, ModelSource, parse_canonization
from canonize.evaluate.metrics.catalogue import Settings
from canonize.evaluate.networks import NETWORKS, shipped
from canonize.evaluate.runner import Results, Workers, run
from canonize.evaluate.summary import accuracies, summarise
from canonize.evaluate.tables import as_text, make_table
from canonize.nn import Offset, ThreshReLU

VGG = ModelSource("vgg", "shipped:vgg")
HERE = Workers(1, "sequential")
QUICK = Settings(perturbation_steps=3, flipping_steps=3, noise_samples=2)
SMALL = Experiment(
    (VGG,),
    ("digits",),
    methods=("epsilon-plus",),
    metrics=("sparseness", "mass-accuracy", "avg-sensitivity", "random-logit", "pixel-flipping:random"),
    samples=6,
    seeds=(0, 1),
    batch=4,
    settings=QUICK,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return folder, run(SMALL, folder, HERE)


def ordered(frame):
    keys = ["model", "canonization", "data", "method", "seed", "sample", "metric"]
    return frame.sort_values(keys, ignore_index=True)


def test_every_cell_has_every_sample(small):
    _, results = small
    counts = results.frame.groupby(["canonization", "method", "metric", "seed"]).size()
    assert (counts == 6).all() and len(counts) == 2 * 1 * 5 * 2
    assert np.isfinite(results.frame["value"]).all() and not results.failures


def test_canonizations_are_paired(small):
    """What does not depend on the heatmap is the same to the last digit, since samples and noise are."""
    _, results = small
    flipped = results.frame[results.frame["metric"] == "pixel-flipping:random"]
    none, threshold = (flipped[flipped["canonization"] == form].reset_index() for form in ("none", "threshold"))
    np.testing.assert_allclose(none["value"], threshold["value"], atol=1e-6)
    assert (none["predicted"] == threshold["predicted"]).all()
    others = results.frame[results.frame["metric"] == "mass-accuracy"].pivot_table("value", "sample", "canonization")
    assert (others["none"] != others["threshold"]).any()


def test_a_run_that_was_killed_goes_on_without_loss(small, tmp_path, monkeypatch):
    _, whole = small
    measured = []
    honest = runner.measure

    def dies_after_two(task):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(task.key)
        return honest(task)

    monkeypatch.setattr(runner, "measure", dies_after_two)
    with pytest.raises(KeyboardInterrupt):
        run(SMALL, tmp_path, HERE)
    assert len(list((tmp_path / "shards").iterdir())) == 2
    monkeypatch.setattr(runner, "measure", lambda task: (measured.append(task.key), honest(task))[1])
    told = []
    results = run(SMALL, tmp_path, HERE, lambda *told_now: told.append(told_now))
    assert len(measured) == len(set(measured)) == len(list(SMALL.tasks()))
    assert told[0] == ("measuring", 2, 8) and told[-1] == ("measuring", 8, 8)
    pandas.testing.assert_frame_equal(ordered(results.frame), ordered(whole.frame))


def test_processes_give_what_one_gives(small, tmp_path):
    _, alone = small
    together = run(SMALL, tmp_path, Workers(2))
    pandas.testing.assert_frame_equal(ordered(together.frame), ordered(alone.frame), atol=1e-6)


def test_a_cluster_of_two_workers_gives_what_one_process_gives(small, tmp_path):
    """joblib's Dask back end: two processes that a scheduler on the loopback address hands tasks to."""
    distributed = pytest.importorskip("dask.distributed", reason="Dask is not installed (pip install distributed)")
    _, alone = small
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(host="127.0.0.1", **options) as cluster:
        told = []
        workers = Workers(2, "dask", cluster.scheduler_address)
        together = run(SMALL, tmp_path, workers, lambda *now: told.append(now))
    pandas.testing.assert_frame_equal(ordered(together.frame), ordered(alone.frame), atol=1e-6)
    assert told[-1] == ("measuring", 8, 8)


def test_one_more_method_measures_that_method_alone(small, monkeypatch):
    folder, _ = small
    asked = []
    honest = runner.measure
    monkeypatch.setattr(runner, "measure", lambda task: (asked.append(task.method), honest(task))[1])
    run(dataclasses.replace(SMALL, methods=("epsilon-plus", "gradient")), folder, HERE)
    assert set(asked) == {"gradient"}


@pytest.mark.parametrize(
    "change", [{"settings": Settings(noise=0.3)}, {"target": "predicted"}, {"metrics": ("sparseness",)}, {"samples": 5}]
)
def test_other_settings_are_never_mixed_in(change):
    keys = {task.key for task in SMALL.tasks()}
    assert not keys & {task.key for task in dataclasses.replace(SMALL, **change).tasks()}


def test_a_changed_file_is_another_model(tmp_path):
    file = tmp_path / "model.pt"
    keys = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        changed = dataclasses.replace(SMALL, models=(ModelSource("m", str(file)),))
        keys.append({task.key for task in changed.tasks()})
    assert not keys[0] & keys[1]


def test_a_method_that_fails_takes_nothing_from_the_others(tmp_path):
    wanted = dataclasses.replace(
        SMALL, methods=("gradient", "epsilon-plus:epsilon=nonsense"), metrics=("sparseness",), seeds=(0,), samples=2
    )
    results = run(wanted, tmp_path, HERE)
    assert set(results.frame["method"]) == {"gradient"}
    assert len(results.failures) == 2 and all("nonsense" in failure.task for failure in results.failures)


def test_an_experiment_in_which_nothing_works_is_an_error(tmp_path):
    wanted = dataclasses.replace(SMALL, methods=("epsilon-plus:epsilon=nonsense",), seeds=(0,), samples=2)
    with pytest.raises(InputError, match="nothing could be measured"):
        run(wanted, tmp_path, HERE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"metrics": ("sparse",)}, "no metric 'sparse'"),
        ({"methods": ("lrp",)}, "no method 'lrp'"),
        ({"methods": ("epsilon-gamma:gamma",)}, "is no setting"),
        ({"methods": ("epsilon-plus:gamma=1",)}, "has no hyperparameter 'gamma'"),
        ({"methods": ("epsilon-plus:initial=two",)}, "no initial relevance 'two'"),
        ({"canonizations": ("fold",)}, "no canonization 'fold'"),
        ({"canonizations": ("threshold-bn",)}, "no pattern 'bn'"),
        ({"models": (VGG, VGG)}, "named twice"),
        ({"seeds": ()}, "no seeds"),
        ({"samples": 0}, "nothing to measure"),
        ({"target": "truth"}, "no target 'truth'"),
        ({"models": (ModelSource("m", "shipped:alexnet"),)}, "no shipped network"),
        ({"data": ("cifar",)}, "no data set"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(tmp_path, change, reason):
    with pytest.raises(CanonizeError, match=reason):
        run(dataclasses.replace(SMALL, **change), tmp_path, HERE)
    assert not (tmp_path / "shards").exists()


def test_spellings():
    method = MethodSpec.parse("epsilon-gamma:gamma=0.5:threshold=gradient:zero_params=bias")
    assert method.name == "epsilon-gamma"
    assert method.hyperparameters == {"gamma": 0.5, "zero_params": "bias"} and method.choices == {
        "threshold": "gradient"
    }
    assert method.initial == "one" and MethodSpec.parse("epsilon-plus:initial=output").initial == "output"
    assert parse_canonization("untangle-bn_linear").skip == ("bn_linear",)
    assert parse_canonization("none").strategy is None
    assert len(parse_canonization("structure").skip) > 5
    assert ModelSource.parse("mine=a/b.pt") == ModelSource("mine", "a/b.pt")
    assert ModelSource.parse("some/folder/net.pt").name == "net"
    assert ModelSource.parse("torchvision:vgg11").name == "vgg11"


def test_partial_canonizations_leave_what_they_say(small):
    from canonize.evaluate.subject import model_in

    def count(form, *kinds):
        return sum(isinstance(m, kinds) for m in model_in(VGG, form, "cpu", "digits", 224).modules())

    affine = (torch.nn.BatchNorm2d, Offset)
    assert [count(form, *affine) for form in ("none", "structure", "threshold")] == [6, 6, 0]
    # Without folding backwards, BatchNorms go through their ReLUs, which get thresholds.
    assert count("threshold", ThreshReLU) == 0 and count("threshold-linear_bn", ThreshReLU) >= 5


# -- Summaries


def made(rows, canonizations=("none", "threshold")):
    columns = ["canonization", "sample", "label", "predicted", "value"]
    frame = pandas.DataFrame(rows, columns=columns).assign(
        model="vgg",
        data="digits",
        method="epsilon-plus",
        metric="mass-accuracy",
        seed=0,
        control=False,
        noise=0.0,
        area=0.2,
    )
    frame["right"] = frame["label"] == frame["predicted"]
    experiment = dataclasses.replace(SMALL, canonizations=canonizations, metrics=("mass-accuracy",))
    return Results(frame, (), experiment)


ROWS = [
    *(("none", i, 1, 1, value) for i, value in enumerate((0.1, 0.5, 0.9))),
    *(("threshold", i, 1, 1, value) for i, value in enumerate((0.21, 0.60, 1.01))),
    ("none", 3, 1, 2, 0.0),
    ("threshold", 3, 1, 2, -100.0),
    ("none", 4, 1, 1, math.nan),
    ("threshold", 4, 1, 1, 5.0),
]


def test_differences_are_paired_and_errors_are_those_of_the_differences():
    table = summarise(made(ROWS[:-2])).set_index("canonization")
    assert table.loc["none", "mean"] == pytest.approx(0.5)
    # Of three values 0.4 apart: standard deviation 0.4, over the square root of three.
    assert table.loc["none", "error"] == pytest.approx(0.4 / 3**0.5)
    assert table.loc["threshold", "difference"] == pytest.approx(0.32 / 3)
    assert table.loc["threshold", "difference_error"] == pytest.approx(0.01 / 3**0.5 / 3**0.5, rel=1e-6)
    assert table.loc["threshold", "verdict"] == "better" and table.loc["none", "verdict"] == ""


def test_wrong_answers_count_only_if_asked_for():
    assert summarise(made(ROWS[:-2]))["count"].tolist() == [3, 3]
    table = summarise(made(ROWS[:-2]), correct_only=False).set_index("canonization")
    assert table["count"].tolist() == [4, 4] and table.loc["threshold", "verdict"] == "unclear"
    assert accuracies(made(ROWS[:-2]))["accuracy"].tolist() == [0.75]


def test_what_is_unknown_does_not_count_and_breaks_no_pair():
    table = summarise(made(ROWS)).set_index("canonization")
    assert table.loc["none", "count"] == 3 and table.loc["threshold", "count"] == 4
    assert table.loc["threshold", "difference"] == pytest.approx(0.32 / 3)


def test_a_table_marks_the_best_and_what_is_more_than_chance():
    text = as_text(make_table(summarise(made(ROWS[:-2]))))
    assert "RMA ↑" in text and "**0.607 ± 0.231** ▲" in text and "| 0.500 ± 0.231 " in text


# -- Shipped networks


@pytest.mark.parametrize("name", list(NETWORKS))
def test_shipped_networks_are_small_and_answer(name):
    from canonize.evaluate.data import open_data
    from canonize.evaluate.networks import SHIPPED

    assert (SHIPPED / f"{name}.safetensors").stat().st_size < 300_000
    samples = open_data("sort-of-clevr-simple" if name == "relation_network" else "digits", seed=9).take(range(200))
    with torch.no_grad():
        right = (shipped(name)(*samples.inputs).argmax(1) == samples.labels).double().mean()
    assert right > 0.85
