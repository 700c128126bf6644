"""``canonize evaluate`` and its page, as a user meets them."""

from __future__ import annotations

import re
from dataclasses import replace

import pandas
import pytest
import torch

from canonize.cli import main
from canonize.commands.evaluate import settings_of
from canonize.evaluate.networks import shipped
from canonize.evaluate.presets import PRESETS

SMALL = ["--data", "digits", "-m", "epsilon-plus", "--samples", "4", "--seeds", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluate") / "out"
    metrics = "sparseness,mass-accuracy,mu-weighted,pixel-flipping:lerf:inpainting"
    assert (
        main(["evaluate", "shipped:vgg", *SMALL, "--metric", metrics, "--set", "flipping_steps=2", "-o", str(out)]) == 0
    )
    return out


def test_results_are_written(folder):
    frame = pandas.read_parquet(folder / "results.parquet")
    assert len(frame) == 2 * 4 * 4
    assert len(pandas.read_csv(folder / "summary.csv")) == 2 * 4
    assert "Pixel flipping (LeRF, inpainting) ↑" in (folder / "table.txt").read_text()
    for picture in ("differences.png", "heatmaps-vgg-digits.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_else(folder):
    page = (folder / "report.html").read_text()
    assert page.count("<img") == page.count('src="data:image/png;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert '<td class="best"' in page and "RMA ↑" in page and "answers" in page


def test_names_are_escaped_on_the_page(tmp_path):
    file = tmp_path / "m.pt"
    torch.save(shipped("vgg"), file)
    out = tmp_path / "out"
    arguments = ["--metric", "sparseness", "--trust", "-o", str(out), "-q"]
    assert main(["evaluate", f"<b>={file}", *SMALL, *arguments]) == 0
    assert "&lt;b&gt;" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no model is given"),
        (["shipped:vgg"], "no data are given"),
        (["shipped:vgg", "--data", "digits", "--metric", "sparsness"], "sparseness"),
        (["nowhere.pt", "--data", "digits"], "nowhere.pt"),
        (["shipped:vgg", "--data", "digits", "--set", "patch=big"], "no value of patch"),
        (["shipped:vgg", "--data", "digits", "--set", "size=3"], "no setting 'size'"),
        (["shipped:vgg", "--data", "digits", "--set", "noise_samples=0"], "at least 1"),
        (["shipped:vgg", "--data", "digits", "--set", "pooling=mean"], "no pooling 'mean'"),
        (["shipped:vgg", "--data", "digits", "--set", "growth=0.5"], "at least 1"),
        (["shipped:vgg", "--data", "digits", "--preset", "mine"], "no preset 'mine'"),
        (["shipped:vgg", "--data", "digits", "--device", "nowhere"], "cannot be used"),
        (["shipped:vgg", "--data", "digits", "--backend", "slurm"], "no backend 'slurm'"),
        (["shipped:vgg", "--data", "sort-of-clevr", "--seeds", "1", "--samples", "2"], "nothing could be measured"),
    ],
)
def test_wrong_arguments_are_one_line_and_2(tmp_path, capsys, arguments, said):
    assert main(["evaluate", *arguments, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "Traceback" not in error


def grey() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, 10),
    )  # fmt: skip


def never_right() -> torch.nn.Module:
    """Says the eleventh class of ten."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, 11),
    )  # fmt: skip
    torch.nn.init.constant_(model[-1].bias[10:], 100.0)
    return model


def two_classes() -> torch.nn.Module:
    model = never_right()
    model[-1] = torch.nn.Linear(4, 2)
    return model


def wrong_size() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(7, 10))


@pytest.mark.parametrize("command", ["evaluate", "search"])
@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("grey", "images of 1 channel, the data's have 3"),
        ("never_right", "answers none of 3 samples rightly"),
        ("two_classes", "2 outputs"),
        ("wrong_size", "cannot be called with the data's inputs, 2x3x40x40"),
    ],
)
def test_what_measures_nothing_is_2_and_says_why(tmp_path, capsys, command, factory, said):
    arguments = {
        "evaluate": ["--seeds", "1", "-m", "epsilon-plus", "--metric", "sparseness"],
        "search": ["--trials", "2", "--objective", "sparseness"],
    }[command]
    model = f"tests.evaluate.test_command:{factory}"
    code = main([command, model, "--data", "digits", "--samples", "3", *arguments, "-o", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 2 and (said in error or said.replace("2x3", "3x3") in error)
    assert error.count("\n") == 1 and not (tmp_path / "out" / "report.html").exists()


def test_a_metric_without_its_truth_is_2_and_says_which(tmp_path, capsys):
    """No mask of all objects in the digits; beside a metric that can be measured it is a line of the report."""
    arguments = ["shipped:vgg", *SMALL, "--metric", "mass-accuracy-all"]
    assert main(["evaluate", *arguments, "-o", str(tmp_path / "a")]) == 2
    assert "digits has no such mask" in capsys.readouterr().err
    assert main(["evaluate", *arguments, "--metric", "sparseness", "-o", str(tmp_path / "b")]) == 0
    assert "mass-accuracy-all on digits: it is a number for no sample" in capsys.readouterr().out


def test_wrong_answers_can_be_counted_after_all(tmp_path, capsys):
    arguments = ["tests.evaluate.test_command:never_right", *SMALL, "--metric", "sparseness", "-o", str(tmp_path / "o")]
    assert main(["evaluate", *arguments]) == 2 and "--all-samples" in capsys.readouterr().err
    assert main(["evaluate", *arguments, "--all-samples"]) == 0


def test_a_preset_and_single_settings_on_top_of_it():
    assert settings_of((), "pahde") == PRESETS["pahde"]
    found = settings_of(["patch=4,steps=9", "select=all"], "pahde")
    assert found == replace(PRESETS["pahde"], patch=4, perturbation_steps=9, select="all")
    assert settings_of(["flipping-patch=2"]).flipping_patch == 2


def test_settings_reach_the_numbers(tmp_path):
    """Each of them changes what it is about."""
    base = ["--metric", "mass-accuracy,random-logit,pixel-flipping,faithfulness-correlation,avg-sensitivity", "-q"]
    found = {}
    for setting in ("noise=0.05", "select=absolute", "pooling=max-norm", "flipping_patch=4", "subset=3", "radius=0.5"):
        out = tmp_path / setting
        assert main(["evaluate", "shipped:vgg", *SMALL, *base, "-c", "none", "--set", setting, "-o", str(out)]) == 0
        found[setting] = pandas.read_csv(out / "summary.csv").set_index("metric")["mean"]
    usual = found.pop("noise=0.05")
    changed = {setting: set(usual.index[(means != usual)]) for setting, means in found.items()}
    assert changed["select=absolute"] == {"mass-accuracy"}
    assert changed["flipping_patch=4"] == {"pixel-flipping"}
    assert changed["subset=3"] == {"faithfulness-correlation"}
    assert changed["radius=0.5"] == {"avg-sensitivity"}
    assert changed["pooling=max-norm"] == set(usual.index)


def test_a_folder_that_cannot_be_is_refused(tmp_path, capsys):
    assert main(["evaluate", "shipped:vgg", *SMALL, "-o", str(tmp_path / "a" / "b")]) == 2
    (tmp_path / "file").write_text("")
    assert main(["evaluate", "shipped:vgg", *SMALL, "-o", str(tmp_path / "file")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_the_list_names_metrics_data_and_methods(capsys):
    assert main(["evaluate", "--list"]) == 0
    said = capsys.readouterr().out
    for word in ("mass-accuracy", "pixel-flipping:lerf:inpainting", "voc:FOLDER", "excitation-backprop", "shipped:vgg"):
        assert word in said
