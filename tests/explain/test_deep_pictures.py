"""Pictures as a person sees them: 16 bits are not cut off, transparency is white, a class is counted from 0."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from canonize.errors import ExplainError, InputError
from canonize.explain import attribute
from canonize.explain.hdf5 import Relevances, write
from canonize.explain.images import Normalisation, read

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

PLAIN = {1: Normalisation((0.0,), (1.0,), ""), 3: Normalisation((0.0,) * 3, (1.0,) * 3, "")}
RAMP = np.tile(np.linspace(0, 1, 32), (32, 1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bits_are_the_picture_that_8_bits_are(ending: str, channels: int, tmp_path: Path) -> None:
    Image.fromarray((RAMP * 65535).astype("uint16")).save(tmp_path / f"deep.{ending}")
    Image.fromarray((RAMP * 255).astype("uint8")).save(tmp_path / f"flat.{ending}")
    files = [tmp_path / f"{name}.{ending}" for name in ("deep", "flat")]
    deep, flat = read(files, (channels, 32, 32), PLAIN[channels]).inputs
    torch.testing.assert_close(deep, flat, atol=1 / 255, rtol=0)
    assert deep.shape == (channels, 32, 32) and len(deep[0, 0].unique()) == 32


def test_transparent_parts_are_white_whatever_lies_under_them(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), dtype="uint8")
    pixels[:, 4:] = [10, 20, 30, 255]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shown = read([tmp_path / "a.png"], (3, 8, 8), PLAIN[3]).shown[0]
    assert torch.equal(shown[:, :, :4], torch.ones(3, 8, 4))
    torch.testing.assert_close(shown[:, 0, 7], torch.tensor([10.0, 20.0, 30.0]) / 255)


def test_values_that_say_no_white_are_refused(tmp_path: Path) -> None:
    Image.fromarray((RAMP * 1000).astype("float32")).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="which is white"):
        read([tmp_path / "a.tif"], (1, 8, 8), PLAIN[1])
    Image.fromarray(RAMP.astype("float32")).save(tmp_path / "b.tif")
    assert read([tmp_path / "b.tif"], (1, 8, 8), PLAIN[1]).shown.max() > 0.9


@pytest.mark.parametrize("target", [-1, 3, [0, -2]])
def test_there_is_no_class_below_0(target: object) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    with pytest.raises(ExplainError, match="there is no class"):
        attribute(model, torch.rand(2, 1, 2, 2), target, method="gradient")  # type: ignore[arg-type]


def test_labels_that_a_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    for label in (-1, 2**16):
        with pytest.raises(ExplainError, match="labels"):
            write(tmp_path / "a.h5", Relevances(torch.rand(1, 1, 2, 2), torch.rand(1, 3), torch.tensor([label])))
