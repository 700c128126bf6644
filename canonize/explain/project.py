"""A project around a file of relevances, as ViRelAy opens it: what is shown, which class is which, which analysis.

ViRelAy (Anders et al. 2021, arXiv 2106.13200) reads a YAML file that names an HDF5 data set, attribution databases over
it and analyses of them, and a JSON file that names the classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from canonize.errors import ExportError
from canonize.explain.hdf5 import read
from canonize.export.atomic import write_whole

PROJECT, LABELS, ANALYSIS = "project.yaml", "labels.json", "analysis.h5"


@dataclass(frozen=True)
class Project:
    """What a project says.

    Attributes
    ----------
    name, model, method : str
        Shown to the reader.
    relevances : Path
        A file that `canonize.explain.hdf5.write` wrote.
    classes : sequence of str
        Names of the model's outputs; numbers where there are none.
    strategy : {"predicted_label", "true_label"}
        Which class was explained.
    """

    name: str
    model: str
    method: str
    relevances: Path
    classes: Sequence[str] = ()
    strategy: str = "predicted_label"


def write_project(folder: Path, project: Project) -> None:
    """Write ``project.yaml`` and ``labels.json`` into a folder, which is made.

    Names of classes that are in ``labels.json`` already stay. An analysis is part of the project as soon as a file
    ``analysis.h5`` is in the folder (`examples/spray/analyse.py` makes one); write the project again then.

    Raises
    ------
    ExportError
        If the folder cannot be made.
    ExplainError
        If the file holds no relevances.
    """
    found = read(project.relevances)
    if found.data is None:
        raise ExportError("holds no pictures, which ViRelAy shows", where=str(project.relevances))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"is no folder ({error.strerror})", where=str(folder), hint="Choose another place") from error
    outputs = found.prediction.shape[1]
    classes = list(project.classes) or [f"class {index}" for index in range(outputs)]
    labels = [{"index": i, "word_net_id": f"n{i:08}", "name": name} for i, name in enumerate(classes)]
    if not (folder / LABELS).exists():
        _text(folder / LABELS, json.dumps(labels, indent=1) + "\n")
    height, width = found.data.shape[2:]
    source = _quoted(os.path.relpath(project.relevances.resolve(), folder.resolve()))
    lines = [
        "project:",
        f"  name: {_quoted(project.name)}",
        f"  model: {_quoted(project.model)}",
        f"  label_map: {LABELS}",
        "  dataset:",
        f"    name: {_quoted(project.name)}",
        "    type: hdf5",
        f"    path: {source}",
        f"    input_width: {width}",
        f"    input_height: {height}",
        "    down_sampling_method: none",
        "    up_sampling_method: none",
        "  attributions:",
        f"    attribution_method: {_quoted(project.method)}",
        f"    attribution_strategy: {project.strategy}",
        "    sources:",
        f"      - {source}",
    ]
    if (folder / ANALYSIS).exists():
        lines += ["  analyses:", "    - analysis_method: Spectral analysis", "      sources:", f"        - {ANALYSIS}"]
    _text(folder / PROJECT, "\n".join(lines) + "\n")


def _quoted(text: str) -> str:
    """A YAML string: JSON's strings are."""
    return json.dumps(text, ensure_ascii=False)


def _text(file: Path, text: str) -> None:
    def fill(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    write_whole(file, fill, lambda path: None)
