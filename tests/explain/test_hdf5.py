"""The HDF5 file: its layout, and that CoRelAy and ViRelAy read it where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from canonize.errors import ExplainError, ExportError
from canonize.explain.hdf5 import Relevances, as_picture, read, write

COUNT = 8


def relevances() -> Relevances:
    torch.manual_seed(0)
    # Two groups of heatmaps, far apart: something for an analysis to find.
    attribution = torch.randn(COUNT, 3, 6, 5) + 20 * (torch.arange(COUNT) % 2)[:, None, None, None]
    names = [f"{i}.png" for i in range(COUNT)]
    return Relevances(
        attribution,
        torch.randn(COUNT, 4),
        torch.arange(COUNT) % 4,
        torch.randint(0, 256, (COUNT, 3, 6, 5)).float(),
        names=names,
        attributes={"method": "epsilon-plus", "low": torch.zeros(1)},
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "relevance.h5", relevances())
    return tmp_path / "relevance.h5"


def test_what_was_written_is_read(file: Path) -> None:
    wanted, found = relevances(), read(file)
    assert torch.equal(found.attribution.float(), wanted.attribution)
    assert torch.equal(found.prediction.float(), wanted.prediction)
    assert torch.equal(found.label, wanted.label)
    assert wanted.data is not None and found.data is not None and torch.equal(found.data.float(), wanted.data)
    assert found.index is not None and found.index.tolist() == list(range(COUNT))
    assert list(found.names) == list(wanted.names)
    assert found.attributes["method"] == "epsilon-plus" and "tensor" in found.attributes["low"]


def test_the_layout_is_the_documented_one(file: Path) -> None:
    """As in the documentation of ViRelAy: names, axes and types."""
    with h5py.File(file) as opened:
        assert {"attribution", "prediction", "label", "index", "data"} <= set(opened)
        assert opened["attribution"].shape == (COUNT, 3, 6, 5) and opened["attribution"].dtype == np.float32
        assert opened["prediction"].shape == (COUNT, 4) and opened["prediction"].dtype == np.float32
        assert opened["label"].shape == (COUNT,) and opened["label"].dtype == np.uint16
        assert opened["index"].shape == (COUNT,) and opened["index"].dtype == np.uint32


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    wrong = relevances()
    with pytest.raises(ExplainError, match="there are 8 attributions"):
        write(tmp_path / "x.h5", Relevances(wrong.attribution, wrong.prediction[:3], wrong.label))
    with pytest.raises(ExportError, match="there is no folder"):
        write(tmp_path / "no" / "x.h5", wrong)
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ExplainError, match="holds no relevances"):
        read(tmp_path / "text.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["text.h5"]


@pytest.mark.parametrize(("channels", "values"), [(1, [7, 7, 7]), (3, [7, 100, 255]), (2, [54, 54, 54])])
def test_pictures_have_three_channels_of_whole_numbers(channels, values):
    data = torch.tensor([7.4, 100.4, 300.0])[:channels, None, None].expand(1, channels, 2, 2)
    shown = as_picture(data)
    assert shown.dtype == torch.uint8 and shown.shape == (1, 3, 2, 2) and shown[0, :, 0, 0].tolist() == values


def test_dark_pictures_stay_dark(tmp_path):
    """Pixels from 0 to 1 of 255 do not wrap to bright ones, negative ones are black."""
    found = relevances()
    dark = torch.full((COUNT, 3, 6, 5), -0.7)
    write(tmp_path / "r.h5", Relevances(found.attribution, found.prediction, found.label, dark))
    with h5py.File(tmp_path / "r.h5") as opened:
        assert opened["data"].dtype == np.uint8 and opened["data"][:].max() == 0


# Neither is a dependency: ViRelAy is AGPL, CoRelAy GPL and LGPL, and each is for people who have it anyway.
@pytest.mark.skipif(
    importlib.util.find_spec("corelay") is None, reason="CoRelAy is not installed (pip install corelay)"
)
def test_corelay_analyses_it(file: Path) -> None:
    corelay = {
        part: importlib.import_module(f"corelay.{part}")
        for part in ("pipeline.spectral", "processor.clustering", "processor.embedding", "processor.affinity")
    }
    with h5py.File(file) as opened:
        data = opened["attribution"][:].reshape(COUNT, -1)
    analysis: Any = corelay["pipeline.spectral"].SpectralClustering(
        affinity=corelay["processor.affinity"].SparseKNN(n_neighbors=3, symmetric=True),
        embedding=corelay["processor.embedding"].EigenDecomposition(n_eigval=2),
        clustering=corelay["processor.clustering"].KMeans(n_clusters=2),
    )
    groups = analysis(data)
    assert len(set(groups[::2])) == len(set(groups[1::2])) == 1 and groups[0] != groups[1]


@pytest.mark.skipif(
    importlib.util.find_spec("virelay") is None, reason="ViRelAy is not installed (pip install virelay)"
)
def test_virelay_opens_it_as_a_project(file: Path) -> None:
    model: Any = importlib.import_module("virelay.model")
    folder = file.parent
    labels = [{"index": i, "word_net_id": f"n{i:08}", "name": f"class {i}"} for i in range(4)]
    (folder / "labels.json").write_text(json.dumps(labels))
    (folder / "project.yaml").write_text(
        "project:\n  name: p\n  model: m\n  label_map: labels.json\n"
        "  dataset: {name: d, type: hdf5, path: relevance.h5}\n"
        "  attributions: {attribution_method: epsilon-plus, attribution_strategy: predicted_label, "
        "sources: [relevance.h5]}\n"
    )
    project = model.Project(str(folder / "project.yaml"))
    try:
        wanted = relevances()
        attribution = project.get_attribution(3)
        assert np.allclose(np.moveaxis(attribution.data, -1, 0), wanted.attribution[3])
        assert attribution.labels[0].name == "class 3"
        assert np.allclose(attribution.prediction, wanted.prediction[3])
        assert attribution.render_heatmap("seismic").shape == (6, 5, 3)
        assert len(project.dataset) == COUNT and project.dataset[3].labels[0].index == 3
    finally:
        project.close()
