"""Relevances handed over to ViRelAy: pictures that it can show, a project around them, an analysis that it opens."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from canonize.cli import main
from canonize.errors import ExplainError, ExportError
from canonize.explain.hdf5 import Relevances, read, write
from canonize.explain.project import Project, write_project

COUNT, CLASSES = 24, 3


def relevances(channels: int = 1) -> Relevances:
    random = torch.Generator().manual_seed(0)
    label = torch.arange(COUNT) % CLASSES
    # Two groups of heatmaps in each class, on the upper or the lower half: something for an analysis to find.
    attribution = torch.randn(COUNT, channels, 8, 8, generator=random)
    attribution[:12, :, :4] += 9
    attribution[12:, :, 4:] += 9
    data = torch.rand(COUNT, channels, 8, 8, generator=random) * 255
    return Relevances(attribution, torch.randn(COUNT, CLASSES, generator=random), label, data)


def test_a_project_names_its_file_from_where_it_stands(tmp_path):
    write(tmp_path / "r.h5", relevances())
    folder = tmp_path / "a" / "project"
    project = Project('zeros: "and" ones', "net", "epsilon-plus", tmp_path / "r.h5", ("zero", "one", "two"))
    write_project(folder, project)
    yaml = pytest.importorskip("yaml", reason="the project is read back with PyYAML")
    told = yaml.safe_load((folder / "project.yaml").read_text())["project"]
    assert told["name"] == 'zeros: "and" ones' and told["attributions"]["attribution_strategy"] == "predicted_label"
    assert (folder / told["dataset"]["path"]).resolve() == (tmp_path / "r.h5").resolve()
    assert told["dataset"]["input_width"] == 8 and "analyses" not in told
    labels = json.loads((folder / "labels.json").read_text())
    assert [entry["name"] for entry in labels] == ["zero", "one", "two"] and labels[2]["index"] == 2
    # What a person has written stays, and an analysis is taken in.
    (folder / "labels.json").write_text("[]")
    (folder / "analysis.h5").write_bytes(b"")
    write_project(folder, project)
    assert (folder / "labels.json").read_text() == "[]"
    assert yaml.safe_load((folder / "project.yaml").read_text())["project"]["analyses"][0]["sources"] == ["analysis.h5"]


def test_what_is_no_project_is_refused(tmp_path):
    with pytest.raises(ExplainError, match="holds no relevances"):
        write_project(tmp_path / "p", Project("n", "m", "x", tmp_path / "nowhere.h5"))
    found = relevances()
    write(tmp_path / "r.h5", Relevances(found.attribution, found.prediction, found.label))
    with pytest.raises(ExportError, match="holds no pictures"):
        write_project(tmp_path / "p", Project("n", "m", "x", tmp_path / "r.h5"))


def test_the_command_writes_one(tmp_path, capsys):
    from PIL import Image

    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(tmp_path / "one.png")
    arguments = ["explain", "examples/digits/densenet.pt", str(tmp_path / "one.png"), "--input", "1x1x32x32"]
    project = ["--project", str(tmp_path / "project")]
    assert main([*arguments, "-o", str(tmp_path / "x.png"), *project]) == 2
    assert "Add -o NAME.h5" in capsys.readouterr().err
    assert main([*arguments, "-o", str(tmp_path / "r.h5"), *project]) == 0
    assert {file.name for file in (tmp_path / "project").iterdir()} == {"project.yaml", "labels.json"}
    data = read(tmp_path / "r.h5").data
    assert data is not None and data.shape == (1, 3, 32, 32) and len(set(data[0, :, 5, 5].tolist())) == 1


def test_methods_are_drawn_side_by_side(tmp_path, monkeypatch):
    """Before and after for each; a cross on each peak; gradients no further apart than rounding."""
    from PIL import Image

    from canonize.explain import picture

    seen = []
    honest = picture.draw
    monkeypatch.setattr(picture, "draw", lambda *given: (seen.append(given), honest(*given))[1])
    Image.fromarray((np.arange(1024) % 251).astype(np.uint8).reshape(32, 32)).save(tmp_path / "one.png")
    arguments = ["explain", "examples/digits/densenet.pt", str(tmp_path / "one.png"), "--input", "1x1x32x32"]
    more = ["--compare", "gradient,epsilon-gamma-box", "--compare", "epsilon-plus", "--set", "epsilon=0.1"]
    assert main([*arguments, "-o", str(tmp_path / "x.png"), *more]) == 0
    columns = seen[0][3]
    assert [column.title for column in columns] == [
        f"{method}\n{side}"
        for method in ("epsilon-plus", "gradient", "epsilon-gamma-box")
        for side in ("original", "canonical")
    ]
    distances = [float(column.captions[0].rpartition(" ")[2]) for column in columns[1::2]]
    assert distances[1] < 1e-6 < distances[0] < 2 and all(column.peaks for column in columns)
    assert "distance" not in columns[0].captions[0]
    seen.clear()
    assert main([*arguments, "-o", str(tmp_path / "x.png")]) == 0
    assert [column.title for column in seen[0][3]] == ["original", "canonical"] and not seen[0][3][0].peaks
    assert main([*arguments, "-o", str(tmp_path / "x.png"), "--compare", "lime"]) == 2


def environment() -> str | None:
    """Python of an environment that `examples/spray/environment.sh` made, or this one where it has both."""
    given = os.environ.get("CANONIZE_SPRAY_PYTHON")
    if given:
        return given
    here = all(importlib.util.find_spec(name) for name in ("corelay", "virelay"))
    return sys.executable if here else None


@pytest.mark.skipif(environment() is None, reason="CoRelAy and ViRelAy are not installed (CANONIZE_SPRAY_PYTHON)")
def test_virelay_shows_pictures_attributions_and_the_analysis(tmp_path):
    write(tmp_path / "r.h5", relevances())
    write_project(tmp_path / "project", Project("digits", "net", "epsilon-plus", tmp_path / "r.h5"))
    python = str(environment())
    analyse = Path(__file__).resolve().parents[2] / "examples/spray/analyse.py"
    options = ["--clusters", "2", "--eigenvalues", "2"]
    subprocess.run([python, str(analyse), str(tmp_path / "project"), *options], check=True, timeout=300)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [python, "-m", "virelay", "-H", "127.0.0.1", "-p", str(port), str(tmp_path / "project/project.yaml")]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert_shown(f"http://127.0.0.1:{port}/api/projects", server)
    finally:
        server.terminate()
        server.wait(timeout=30)


def assert_shown(api: str, server: subprocess.Popen[bytes]) -> None:
    def fetched(path: str) -> bytes:
        with urllib.request.urlopen(f"{api}{path}", timeout=30) as answer:
            content: bytes = answer.read()
            return content

    for _ in range(120):
        try:
            fetched("")
            break
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.5)
    for path in ("/0/dataset/0/image", "/0/attributions/5/heatmap?imageMode=overlay"):
        assert fetched(path)[:2] == b"\xff\xd8"  # a JPEG
    attribution: dict[str, Any] = json.loads(fetched("/0/attributions/5"))
    assert attribution["index"] == 5
    (method,) = json.loads(fetched("/0"))["analysisMethods"]
    assert method["clusterings"] == ["kmeans-02"] and set(method["embeddings"]) == {"spectral", "tsne"}
    assert [category["humanReadableName"] for category in method["categories"]] == ["class 0", "class 1", "class 2"]
    query = urllib.parse.urlencode({"category": "n00000001", "clustering": "kmeans-02", "embedding": "tsne"})
    analysis = json.loads(fetched(f"/0/analyses/{urllib.parse.quote(method['name'])}?{query}"))
    assert len(analysis["embedding"]) == COUNT // CLASSES
    # The two groups, sample by sample.
    clusters = {entry["attributionIndex"]: entry["cluster"] for entry in analysis["embedding"]}
    assert len({clusters[i] for i in clusters if i < 12}) == len({clusters[i] for i in clusters if i >= 12}) == 1
    assert len(set(clusters.values())) == 2
