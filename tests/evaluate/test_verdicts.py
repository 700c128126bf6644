"""Verdicts: not from rounding, not from many comparisons, not on methods that canonizing cannot change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from canonize.evaluate.experiment import Experiment, ModelSource
from canonize.evaluate.metrics.catalogue import Settings
from canonize.evaluate.noise import is_control, noise_of, rounded_otherwise
from canonize.evaluate.page import write_results
from canonize.evaluate.runner import Results, Workers, run
from canonize.evaluate.subject import model_in
from canonize.evaluate.summary import comparisons, holm, summarise
from canonize.evaluate.tables import as_text, legend, make_table
from tests.evaluate.test_runner import SMALL, made

HERE = Workers(1, "sequential")


def values(before, after, **columns):
    """Measurements of two canonizations, sample by sample."""
    rows = [(form, i, 1, 1, v) for form, of in (("none", before), ("threshold", after)) for i, v in enumerate(of)]
    results = made(rows)
    return Results(results.frame.assign(**columns), (), results.experiment)


def verdict(results):
    (row,) = summarise(results)[lambda table: table["canonization"] == "threshold"].to_dict("records")
    return row


BEFORE = np.linspace(0.2, 0.8, 16)


@pytest.mark.parametrize(("noise", "said"), [(1e-8, "rounding"), (1e-9, "better"), (0.0, "better")])
def test_a_signed_difference_within_rounding_is_rounding(noise, said):
    row = verdict(values(BEFORE, BEFORE + 5e-8 + np.resize([1e-9, -1e-9], 16), noise=noise))
    assert row["p"] < 1e-10 and row["verdict"] == said and row["floor"] == pytest.approx(10 * noise)


@pytest.mark.parametrize(("change", "said"), [(0.0, "control"), (1e-8, "control"), (0.1, "control differs")])
def test_a_control_gets_no_verdict_and_tells_when_it_differs(change, said):
    results = values(BEFORE, BEFORE + change, noise=1e-7, control=True)
    assert verdict(results)["verdict"] == said
    summary = summarise(results)
    assert comparisons(summary) == 0 and "controls are" in legend(summary)
    assert "(control)" in as_text(make_table(summary)) and "**" not in as_text(make_table(summary))


def test_the_noise_of_the_noisier_of_the_two_counts():
    results = values(BEFORE, BEFORE + 5e-8 + np.resize([1e-9, -1e-9], 16), noise=0.0)
    for form in ("none", "threshold"):
        noise = np.where(results.frame["canonization"] == form, 1e-8, np.nan)
        row = verdict(Results(results.frame.assign(noise=noise), (), results.experiment))
        assert row["verdict"] == "rounding"


def test_p_values_are_corrected_as_worked_by_hand():
    # 3 x 0.01, 2 x 0.02 and never below the one before, 1 x 0.04 likewise.
    assert holm([0.02, 0.01, 0.04]).tolist() == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]).tolist() == [1, 1] and holm([0.03]).tolist() == [0.03] and len(holm([])) == 0


def test_one_comparison_of_many_needs_a_smaller_p_than_one_alone():
    random = np.random.default_rng(1)
    after = BEFORE + random.normal(0, 1, 16) * 0.02 + 0.009
    alone = verdict(values(BEFORE, after))
    assert 1e-3 < alone["p"] < 0.05 and alone["verdict"] == "better"
    frames = [values(BEFORE, after).frame]
    for number in range(40):
        unlike = values(BEFORE, BEFORE + random.normal(0, 0.02, 16)).frame
        frames.append(unlike.assign(model=f"other{number}"))
    experiment = dataclasses.replace(
        SMALL,
        models=(*SMALL.models, *(ModelSource(f"other{n}", "x") for n in range(40))),
        metrics=("mass-accuracy",),
    )
    import pandas

    summary = summarise(Results(pandas.concat(frames), (), experiment))
    assert comparisons(summary) == 41 and "41 comparisons" in legend(summary)
    assert set(summary["verdict"]) == {"", "unclear"}


def test_false_verdicts_are_as_rare_as_said():
    """Of 200 tables of 10 comparisons without any difference, at most about 5 % hold a verdict."""
    random = np.random.default_rng(0)
    false = 0
    for _ in range(200):
        p_values = []
        for _ in range(10):
            change = random.normal(0, 1, 16)
            t = abs(change.mean()) / (change.std(ddof=1) / 4)
            from scipy.stats import t as student

            p_values.append(2 * student.sf(t, 15))
        false += bool((holm(p_values) < 0.05).any())
    assert false <= 20


# -- Where the noise is from


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_move_by_one_unit_of_their_last_place_and_the_model_stays(dtype):
    model = model_in(ModelSource("vgg", "shipped:vgg"), "threshold", "cpu", "digits", 224)
    model = __import__("copy").deepcopy(model).to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved = rounded_otherwise(model)
    for name, value in moved.state_dict().items():
        assert torch.equal(model.state_dict()[name], before[name])
        old, new = before[name].double(), value.double()
        if value.is_floating_point():
            near = (new - old).abs() <= 1.51 * torch.finfo(dtype).eps * old.abs()
            assert (near | (new == old)).all()
            assert (new != old)[old.isfinite() & (old != 0)].double().mean() > 0.9
    assert next(moved.parameters()).requires_grad and not moved.training


def test_noise_is_at_least_one_unit_of_the_last_place():
    value = torch.tensor([2.0, float("nan")])
    assert noise_of(value, value)[0] == 2 * torch.finfo(torch.float32).eps and noise_of(value, value)[1].isnan()


@pytest.mark.parametrize(
    ("network", "method", "control"),
    [
        ("densenet", "gradient", True),
        ("densenet", "guided-backprop", False),  # its ReLUs become thresholds
        ("resnet", "guided-backprop", True),
        ("resnet", "deconvnet", True),
        ("resnet", "epsilon-plus", False),
    ],
)
def test_controls_are_what_canonizing_cannot_change(network, method, control):
    model = model_in(ModelSource(network, f"shipped:{network}"), "threshold", "cpu", "digits", 224)
    assert is_control(method, model) == control


@pytest.fixture(scope="module")
def nulls(tmp_path_factory):
    wanted = Experiment(
        (ModelSource("vgg", "shipped:vgg"),),
        ("digits",),
        canonizations=("none", "threshold", "structure"),
        methods=("gradient", "guided-backprop", "epsilon-plus"),
        metrics=("sparseness", "mu", "mass-accuracy", "random-logit", "pixel-flipping:noise"),
        samples=12,
        seeds=(0,),
        batch=12,
        settings=Settings(flipping_steps=4),
    )
    return run(wanted, tmp_path_factory.mktemp("nulls"), HERE)


def test_methods_that_are_the_same_before_and_after_get_no_verdict(nulls):
    """LRP is no control: between two forms that give it the same layers, it is the floor that finds the same."""
    summary = summarise(nulls, correct_only=False)
    said = summary.groupby("method")["verdict"].agg(set)
    assert said["gradient"] == said["guided-backprop"] == {"", "control"}
    lrp = summary[(summary["method"] == "epsilon-plus") & (summary["canonization"] == "structure")]
    assert set(lrp["verdict"]) <= {"rounding", "unclear"} and "rounding" in set(lrp["verdict"])
    assert summary[summary["method"] != "epsilon-plus"]["difference"].abs().max() < 1e-5


def test_only_some_samples_are_measured_twice(nulls):
    twice = nulls.frame[np.isfinite(nulls.frame["noise"]) & (nulls.frame["metric"] == "sparseness")]
    assert (twice.groupby(["canonization", "method"]).size() == 8).all()
    assert (twice["noise"] >= 0).all() and twice["noise"].max() < 1e-3


def test_the_page_shows_controls_as_such(nulls, tmp_path):
    section = write_results(nulls, tmp_path)
    assert "controls are" in section.legend and "=" in (tmp_path / "table.txt").read_text()
    assert "control" in (tmp_path / "summary.csv").read_text().splitlines()[0]
