"""``canonize explain`` and ``canonize inspect --for``, from the arguments to the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn

import canonize
from canonize.cli import main
from canonize.explain import attribute
from canonize.explain.hdf5 import read
from canonize.explain.images import Normalisation, normalisation_of
from tests.explain.nets import Residual, ready


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained-looking model, its canonical form, and two photographs."""
    folder = tmp_path_factory.mktemp("explain")
    model = ready(Residual)[0].float()
    torch.save(model, folder / "model.pt")
    canonize.save(canonize.canonize(model, torch.rand(2, 3, 32, 32)), folder / "canonical.pt")
    (folder / "photos").mkdir()
    for name in ("china", "flower"):
        Image.fromarray(load_sample_image(f"{name}.jpg")).save(folder / "photos" / f"{name}.jpg")
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def explain(saved: Path, *arguments: object) -> int:
    return run("explain", saved / "model.pt", "--allow", "tests", "--input", "1x3x32x32", *arguments)


def test_a_photograph_becomes_a_picture_of_two_heatmaps(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "heatmap.png"
    assert explain(saved, saved / "photos" / "china.jpg", "-o", out) == 0
    said = capsys.readouterr()
    assert "1 picture, pixels from 0 to 1" in said.out and f"written to {out}" in said.out and not said.err
    picture = np.asarray(Image.open(out).convert("RGB"), dtype=int)
    assert picture.shape[1] > 2 * picture.shape[0], "input, original, canonical in one row"
    thirds = np.array_split(picture, 3, axis=1)
    reds = [int(((part[..., 0] > 150) & (part[..., 1] < 60)).sum()) for part in thirds]
    assert all(count > 100 for count in reds[1:]), "relevance, and a colour bar, in each heatmap"
    assert explain(saved, saved / "photos" / "china.jpg", "-o", tmp_path / "one.png", "--side", "canonical") == 0
    assert Image.open(tmp_path / "one.png").width < picture.shape[1]


def test_arrays_hold_what_the_library_computes(saved: Path, tmp_path: Path) -> None:
    npy, h5 = tmp_path / "relevance.npy", tmp_path / "relevance.h5"
    assert (
        explain(saved, saved / "photos", "-o", npy, "-o", h5, "--target", 2, "--batch", 1, "--set", "epsilon=0.1") == 0
    )
    found, array = read(h5), np.load(npy)
    assert found.attribution.shape == array.shape == (2, 3, 32, 32)
    assert found.names == ["china.jpg", "flower.jpg"] and found.label.tolist() == [2, 2]
    assert found.data is not None and found.data.max() <= 255 and found.data.max() > 100
    assert found.attributes["method"] == "epsilon-plus" and found.attributes["epsilon"] == "0.1"
    model = canonize.load(saved / "model.pt", allow=["tests"]).eval()
    canonical = canonize.canonize(model, torch.rand(2, 3, 32, 32), verify=False)
    wanted = attribute(canonical, (found.data / 255).float(), 2, epsilon=0.1)
    assert isinstance(wanted.relevance, torch.Tensor)
    assert torch.allclose(found.attribution.float(), wanted.relevance, rtol=1e-3, atol=1e-6)
    assert torch.allclose(torch.from_numpy(array), wanted.relevance, rtol=1e-3, atol=1e-6)
    assert torch.allclose(found.prediction.float(), wanted.output, rtol=1e-4, atol=1e-5)


def test_a_folder_of_pictures_can_be_resumed(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "heatmaps"
    assert explain(saved, saved / "photos", "-o", f"{out}/") == 0
    assert sorted(p.name for p in out.iterdir()) == ["china.png", "flower.png"]
    (out / "flower.png").unlink()
    first = (out / "china.png").stat().st_mtime_ns
    assert explain(saved, saved / "photos", "-o", out, "--resume", "--method", "gradient") == 0
    assert (out / "flower.png").exists() and (out / "china.png").stat().st_mtime_ns == first
    capsys.readouterr()
    assert explain(saved, saved / "photos", "-o", out, "--resume") == 0
    assert "everything is there already" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["alpha2-beta1", "epsilon-gamma-box", "excitation backprop", "epsilon", "deep-lift"])
def test_methods_go_by_name(method: str, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "relevance.npy"
    arguments = (saved / "photos" / "flower.jpg", "-o", out, "--method", method, "--normalise", "imagenet")
    assert run("explain", saved / "canonical.pt", "--trust", "--input", "1x3x32x32", *arguments) == 0
    assert np.isfinite(np.load(out)).all() and np.abs(np.load(out)).max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png", "-o", "x.png"], "nowhere.png: there is no such file"),
        (["photos", "-o", "x.gif"], "ends in nothing that canonize explain writes"),
        (["photos", "-o", "no/x.png"], "there is no folder no"),
        (["photos", "-o", "model.pt/x.png"], "there is no folder"),
        (["photos", "-o", "x.png", "--method", "magic"], "there is no method 'magic'"),
        (["photos", "-o", "x.png", "--set", "gamma=1"], "epsilon-plus has no setting 'gamma'"),
        (["photos", "-o", "x.png", "--set", "epsilon=much"], "epsilon=much is no number"),
        (["photos", "-o", "x.png", "--set", "gate=none"], "there is no choice gate='none'"),
        (["photos", "-o", "x.png", "--target", "7"], "there is no class 7"),
        (["photos", "-o", "x.png", "--normalise", "0.5/0"], "does not fit 3 channels"),
        (["photos", "-o", "x.png", "--normalise", "maybe"], "'maybe' is no normalisation"),
        (["photos", "-o", "x.png", "--side", "left"], "there is no side 'left'"),
        (["model.pt", "-o", "x.png"], "is no picture by its name"),
        (["empty", "-o", "x.png"], "holds no pictures"),
        (["broken.png", "-o", "x.png"], "cannot be read as a picture"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(
    arguments: list[str], message: str, saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(saved)
    (saved / "empty").mkdir(exist_ok=True)
    (saved / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    assert explain(saved, *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (saved / "x.png").exists()


def test_a_model_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Sequential(nn.Linear(4, 3)), tmp_path / "dense.pt")
    Image.new("L", (8, 8)).save(tmp_path / "grey.png")
    assert run("explain", tmp_path / "dense.pt", tmp_path / "grey.png", "-o", tmp_path / "x.png") == 2
    assert "which is no picture" in capsys.readouterr().err


def test_grey_pictures_and_odd_shapes_are_cut_to_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 60, 3)), tmp_path / "grey.pt")
    Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (20, 1))).save(tmp_path / "wide.png")
    out = tmp_path / "x.h5"
    assert run("explain", tmp_path / "grey.pt", tmp_path / "wide.png", "-o", out, "--input", "1x1x8x12") == 0
    found = read(out)
    assert found.attribution.shape == (1, 1, 8, 12) and found.data is not None
    row = found.data[0, 0, 0]
    assert (row.diff() > 0).all() and row[0] > 40 and row[-1] < 215, "the middle, not squeezed"


def test_normalisations_are_found_and_said() -> None:
    class Timm(nn.Module):
        pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3}  # noqa: RUF012

    found = normalisation_of(Timm(), 3, None)
    assert found.mean == (0.5,) * 3 and "the model's own" in found.describe()
    low, high = found.bounds()
    assert low.flatten().tolist() == [-2.0] * 3 and high.flatten().tolist() == [2.0] * 3
    assert torch.equal(found.apply(torch.full((1, 3, 2, 2), 0.75)), torch.ones(1, 3, 2, 2))
    assert normalisation_of(Timm(), 1, None) == Normalisation(
        (0.0,), (1.0,), normalisation_of(nn.Linear(1, 1), 1, None).origin
    )


def test_inspect_for_an_explainer_lists_layers_and_what_to_do(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--allow", "tests", "--input", "1x3x32x32")
    assert run("inspect", saved / "model.pt", *options, "--for", "zennit") == 1
    said = capsys.readouterr().out
    assert "BatchNorm2d" in said and "add is no module" in said and "-> canonize the model" in said
    assert run("inspect", saved / "model.pt", *options, "--for", "captum") == 1
    assert "captum: " in capsys.readouterr().out
    assert run("inspect", saved / "canonical.pt", "--trust", "--input", "1x3x32x32", "--for", "zennit") == 1
    said = capsys.readouterr().out
    assert "2 x Sum" in said and "layer_map()" in said and "BatchNorm" not in said
    assert run("inspect", saved / "model.pt", *options, "--for", "shap") == 2
    assert "there is no explainer 'shap'" in capsys.readouterr().err
