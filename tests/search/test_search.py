"""Searching: spaces, configurations, resuming, sharing a storage, the front."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from canonize.cli import main
from canonize.errors import CanonizeError, InputError
from canonize.evaluate.experiment import ModelSource
from canonize.evaluate.metrics.catalogue import Settings
from canonize.evaluate.plots import png
from canonize.evaluate.subject import data_set, model_in
from canonize.search import (
    SPACES,
    Choice,
    Configuration,
    Range,
    Search,
    Space,
    contours,
    extremes,
    read_space,
    search,
    study,
)
from canonize.search.section import best, write_search

VGG = ModelSource("vgg", "shipped:vgg")
TINY = Space(
    {"canonization": Choice(("none", "threshold")), "gamma.low": Choice((0.0, 1.0)), "gamma.high": Choice((0.1, 2.0))}
)


def wanted(**change):
    base = {"space": TINY, "samples": 3, "trials": 4, "sampler": "grid", "settings": Settings(perturbation_steps=2)}
    return Search(VGG, "digits", **(base | change))


def storage(folder):
    return f"sqlite:///{folder}/study.db"


# -- Spaces


def test_the_papers_grid():
    assert SPACES["papers"].size == 2 * 6**4 == 2592
    for space in SPACES.values():
        space.check()
    assert SPACES["wide"].size is None


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, "no parameters"),
        ({"gamma.top": Choice((1.0,))}, "no parameter 'gamma.top'"),
        ({"gamma.low": Choice(())}, "no values"),
        ({"gamma.low": Choice(("big",))}, "no number"),
        ({"gamma.low": Range(2.0, 1.0)}, "no values between"),
        ({"gamma.low": Range(0.0, 1.0, log=True)}, "logarithm"),
        ({"threshold": Range(0.0, 1.0)}, "is no number"),
        ({"rule.low": Choice(("lrp",))}, "no 'lrp'"),
        ({"front": Choice(("box",))}, "z-box"),
        ({"canonization": Choice(("fold",))}, "no canonization 'fold'"),
    ],
)
def test_spaces_that_mean_nothing_are_refused(parameters, reason):
    with pytest.raises(InputError, match=reason):
        Space(parameters).check()


def test_a_space_from_a_file(tmp_path):
    file = tmp_path / "space.json"
    file.write_text(json.dumps(SPACES["wide"].to_json()))
    assert read_space(str(file)) == SPACES["wide"]
    file.write_text('{"gamma.low": 3}')
    with pytest.raises(InputError, match="is no space"):
        read_space(str(file))
    with pytest.raises(InputError, match="no space 'narrow'"):
        read_space("narrow")


def test_groups_of_ones_own_are_read_and_kept(tmp_path):
    file = tmp_path / "space.json"
    told = {"groups": {"early": "1", "body": ["2-4", "features.1?"]}, "gamma.body": [0, 1], "rule.early": ["z-plus"]}
    file.write_text(json.dumps(told))
    space = read_space(str(file))
    assert space.groups == {"early": ("1",), "body": ("2-4", "features.1?")}
    file.write_text(json.dumps(space.to_json()))
    assert read_space(str(file)) == space
    with pytest.raises(InputError, match=r"no parameter 'gamma.low'.*early"):
        Space({"gamma.low": Choice((1.0,))}, space.groups).check()
    with pytest.raises(InputError, match="has no layers"):
        Space({"gamma.body": Choice((1.0,))}, {"body": ()}).check()
    assert wanted(space=space).fingerprint() != wanted(space=Space(space.parameters, {"body": ("1",)})).fingerprint()


# -- Configurations


def test_every_layer_gets_the_rule_of_its_group():
    from zennit import rules

    model = model_in(VGG, "threshold", "cpu", "digits", 224)
    data = data_set("digits", 0, 4, 224)
    values = {
        "gamma.low": 0.5,
        "rule.middle": "epsilon",
        "epsilon.middle": 0.1,
        "rule.high": "alpha-beta",
        "alpha.high": 2.0,
    }
    values |= {"rule.classifier": "z-plus", "front": "z-box"}
    subject = Configuration(values).subject(model, data.low, data.high)
    from canonize.explain import composite, layer_groups

    mapped = composite("epsilon-plus", layers=subject.layers)
    context: dict[str, object] = {}
    hooks = {name: mapped.mapping(context, name, module) for name, module in model.named_modules()}
    groups = layer_groups(model)
    assert isinstance(hooks["features.0"], rules.ZBox)
    assert groups["low"][0] == "features.0"
    assert {type(hooks[name]) for name in groups["low"][1:]} == {rules.Gamma}
    assert {type(hooks[name]) for name in groups["middle"]} == {rules.Epsilon}
    assert {type(hooks[name]) for name in groups["high"]} == {rules.AlphaBeta}
    assert {type(hooks[name]) for name in groups["classifier"]} == {rules.ZPlus}


def test_layers_get_the_rules_of_groups_of_ones_own():
    from canonize.explain.structure import linear_layers

    model = model_in(VGG, "threshold", "cpu", "digits", 224)
    layers = linear_layers(model)
    groups = {"early": ("1",), "body": ("1-3", "features.*"), "rest": ("classifier.*",)}
    values = {"rule.early": "z-plus", "gamma.body": 0.5, "rule.rest": "epsilon", "epsilon.rest": 0.1}
    rules = Configuration(values, groups).layers(model, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    assert list(rules) == [(layers[0],), tuple(layers[:-2]), tuple(layers[-2:])]  # the first that names a layer counts
    assert list(rules.values()) == ["z-plus", ("gamma", {"gamma": 0.5}), ("epsilon", {"epsilon": 0.1})]
    with pytest.raises(CanonizeError, match="'9-' names none of the 8 linear layers"):
        Configuration({}, {"late": ("9-",)}).layers(model, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))


def test_a_configuration_measures_what_its_method_measures(tmp_path):
    """z-plus in convolutions and epsilon in dense layers is epsilon-plus: the same number as `canonize evaluate`."""
    from canonize.evaluate.experiment import Experiment
    from canonize.evaluate.runner import Workers, run
    from canonize.evaluate.summary import summarise

    values = {f"rule.{group}": "z-plus" for group in ("low", "middle", "high")} | {"rule.classifier": "epsilon"}
    (mean,), (error,) = study.measured(wanted(samples=6), Configuration(values))
    experiment = Experiment((VGG,), ("digits",), ("threshold",), ("epsilon-plus",), ("mass-accuracy",), 6, (0,))
    (row,) = summarise(run(experiment, tmp_path, Workers(1, "sequential"))).to_dict("records")
    assert mean == pytest.approx(row["mean"], abs=1e-6) and error == pytest.approx(row["error"], abs=1e-6)


def test_parameters_of_rules_that_are_not_chosen_are_not_asked_for(tmp_path):
    space = Space(
        {"rule.low": Choice(("gamma", "epsilon")), "gamma.low": Range(0.1, 1.0), "epsilon.low": Range(0.1, 1.0)}
    )
    found = search(wanted(space=space, sampler="random", trials=6), storage(tmp_path))
    chosen = found.trials["rule.low"]
    assert set(chosen) == {"gamma", "epsilon"}
    assert (found.trials["gamma.low"].notna() == (chosen == "gamma")).all()
    assert (found.trials["epsilon.low"].notna() == (chosen == "epsilon")).all()


# -- The search


def test_a_grid_is_tried_whole_and_only_once(tmp_path):
    found = search(wanted(trials=20), storage(tmp_path))
    assert len(found.trials) == TINY.size == 8
    assert not found.trials[list(TINY.parameters)].duplicated().any()
    best_one = found.trials["mass-accuracy"].max()
    assert found.front["mass-accuracy"].tolist() == [best_one]


def test_a_search_goes_on_where_it_stopped(tmp_path):
    first = search(wanted(trials=3), storage(tmp_path))
    told = []
    second = search(wanted(trials=5), storage(tmp_path), progress=lambda *now: told.append(now))
    assert told[0] == ("searching", 3, 5) and len(second.trials) == 5
    kept = second.trials[second.trials["number"].isin(first.trials["number"])].reset_index(drop=True)
    assert kept["mass-accuracy"].tolist() == first.trials["mass-accuracy"].tolist()


def test_another_search_is_not_mixed_in(tmp_path):
    search(wanted(trials=1), storage(tmp_path))
    with pytest.raises(InputError, match="holds another search"):
        search(wanted(trials=1, samples=4), storage(tmp_path))


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.search.test_search import wanted, search
search(wanted(trials=6, sampler="tpe"), {storage!r})
"""


def test_processes_share_one_storage(tmp_path):
    """Two processes that know nothing of each other but the storage, as on two machines."""
    url = storage(tmp_path)
    root = str(Path(__file__).resolve().parents[2])
    program = WORKER.format(root=root, storage=url)
    study.open_study(wanted(trials=6, sampler="tpe"), url, create=True)
    workers = [
        subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, cwd=root) for _ in range(2)
    ]
    for worker in workers:
        _, error = worker.communicate(timeout=300)
        assert worker.returncode == 0, error
    found = search(wanted(trials=6, sampler="tpe"), url)
    # Each may have begun one more when the sixth was done.
    assert 6 <= len(found.trials) <= 7 and found.trials["number"].is_unique


def test_a_journal_is_a_storage_too(tmp_path):
    url = f"journal:{tmp_path}/study.log"
    search(wanted(trials=2), url)
    assert len(search(wanted(trials=3), url).trials) == 3


def test_several_objectives_make_a_front(tmp_path):
    names = ("mass-accuracy", "avg-sensitivity")
    found = search(wanted(objectives=names, trials=8), storage(tmp_path))
    values = found.trials[list(names)].to_numpy()
    for number, (mass, change) in zip(found.trials["number"], values, strict=True):
        beaten = any((m >= mass and c <= change and (m > mass or c < change)) for m, c in values)
        assert beaten != (number in set(found.front["number"]))
    section = write_search(found, tmp_path)
    assert {picture.name for picture in section.pictures} == {
        "extremes.png",
        "lines.png",
        "contours-mass-accuracy.png",
        "contours-avg-sensitivity.png",
        "pareto.png",
        "history.png",
    }
    assert json.loads((tmp_path / "best.json").read_text()) == best(found)


def test_configurations_that_cannot_be_measured_are_counted(tmp_path, monkeypatch):
    honest = study.measured

    def measured(search, configuration):
        if configuration.canonization == "none":
            raise InputError("it is not finite here")
        return honest(search, configuration)

    monkeypatch.setattr(study, "measured", measured)
    found = search(wanted(trials=8), storage(tmp_path))
    assert found.reasons == (("it is not finite here", 4),)
    assert "Not measured (4 times): it is not finite here" in write_search(found, tmp_path).lines
    assert found.failed == 4 and set(found.trials["canonization"]) == {"threshold"}
    monkeypatch.setattr(study, "measured", lambda *_: (_ for _ in ()).throw(InputError("never")))
    with pytest.raises(InputError, match=r"no configuration could be measured \(never\)"):
        search(wanted(trials=2), storage(tmp_path).replace("study.db", "other.db"))


def test_pictures_of_few_configurations_say_so_and_of_many_do_not(tmp_path):
    few = search(wanted(trials=4), storage(tmp_path))
    many = search(wanted(trials=8), storage(tmp_path))
    import pandas

    def titles(figure):
        return {axis.get_title() for axis in figure.axes}

    assert titles(contours.lines(few)) == {contours.FEW} and titles(contours.contours(few, "mass-accuracy")) == {
        "",
        contours.FEW,
    }
    # The same configurations four times over: enough for each mean.
    whole = dataclasses.replace(many, trials=pandas.concat([many.trials] * 4, ignore_index=True))
    assert titles(contours.lines(whole)) == {""} and titles(contours.contours(whole, "mass-accuracy")) == {""}


def test_numbers_searched_by_their_logarithm_lie_on_two_logarithmic_axes(tmp_path):
    import pandas

    found = search(wanted(trials=4), storage(tmp_path))
    gammas = {name: Range(0.01, 10.0, log=True) for name in ("gamma.low", "gamma.high")}
    generator = torch.Generator().manual_seed(0)
    drawn = {name: (10 ** (3 * torch.rand(40, generator=generator) - 2)).tolist() for name in gammas}
    trials = pandas.DataFrame(drawn | {"mass-accuracy": [abs(low) for low in drawn["gamma.low"]]})
    space = Space(gammas)
    scattered = dataclasses.replace(
        found,
        search=dataclasses.replace(found.search, space=space),
        trials=trials,
        front=trials.tail(1),
    )
    figure = contours.contours(scattered, "mass-accuracy")
    axis = figure.axes[0]
    assert axis.get_xscale() == axis.get_yscale() == "log" and axis.get_title() == ""
    (tmp_path / "log.png").write_bytes(png(figure))
    few = dataclasses.replace(scattered, trials=trials.head(5))
    assert contours.contours(few, "mass-accuracy").axes[0].get_title() == contours.FEW


def test_the_best_and_the_worst_of_each_objective_are_drawn(tmp_path):
    """Of one that is better low: the best is the lowest. Their heatmaps are those that were measured."""
    names = ("mass-accuracy", "avg-sensitivity")
    found = search(wanted(objectives=names, trials=8), storage(tmp_path))
    chosen = extremes.extremes(found)
    mass, change = found.trials["mass-accuracy"], found.trials["avg-sensitivity"]
    assert [e.value for e in chosen] == [mass.max(), mass.min(), change.min(), change.max()]
    row = found.trials.loc[mass.idxmax()]
    assert chosen[0].parameters == {name: row[name] for name in TINY.parameters}
    assert "best RMA" in chosen[0].label and f"gamma.low={row['gamma.low']:.3g}" in chosen[0].label
    drawn = extremes.draw(found, shown=2)
    assert len(drawn.axes) == 2 * 5 and drawn.axes[2].get_ylabel() == chosen[0].label
    data = data_set("digits", 0, 3, 224)
    form = chosen[0].parameters["canonization"]
    subject = Configuration(chosen[0].parameters).subject(
        model_in(VGG, form, "cpu", "digits", 224), data.low, data.high
    )
    samples = data.take([0, 1])
    wanted_heatmaps = subject.explain(samples.inputs, samples.labels)
    for axis, heatmap in zip(drawn.axes[2:4], wanted_heatmaps, strict=True):
        assert (axis.images[0].get_array() == heatmap.numpy()).all()


def test_titles_are_not_clipped(tmp_path):
    """Of the narrowest picture, two parameters and one canonical form."""
    figure = contours.contours(search(wanted(trials=8), storage(tmp_path)), "mass-accuracy")
    figure.canvas.draw()
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sampler": "best"}, "no sampler 'best'"),
        ({"sampler": "grid", "space": SPACES["wide"]}, "a grid needs values"),
        ({"objectives": ("pixel-flipping:random",)}, "has no direction"),
        ({"objectives": ()}, "no objective"),
        ({"trials": 0}, "nothing to search"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, change, reason):
    with pytest.raises(InputError, match=reason):
        search(wanted(**change), storage(tmp_path))


def test_the_command(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["shipped:vgg", "--data", "digits", "--trials", "3", "--samples", "3", "-o", str(out)]
    assert main(["search", *arguments]) == 0
    said = capsys.readouterr().out
    assert "3 configurations of 2592" in said and "gamma.low" in said
    page = (out / "report.html").read_text()
    assert page.count("<img") >= 3 and "gamma.classifier" in page
    assert (out / "study.db").exists() and len((out / "trials.csv").read_text().splitlines()) == 4
    (chosen,) = json.loads((out / "best.json").read_text())
    assert math.isfinite(chosen["mass-accuracy"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "digits"], "no model"),
        (["shipped:vgg"], "no data"),
        (["shipped:vgg", "--data", "digits", "--space", "narrow"], "no space"),
        (["shipped:vgg", "--data", "digits", "--storage", "nonsense://x"], "storage cannot be opened"),
        (["shipped:vgg", "--data", "digits", "--objective", "beauty"], "no metric"),
    ],
)
def test_wrong_arguments_are_one_line_and_2(tmp_path, capsys, arguments, said):
    assert main(["search", *arguments, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
