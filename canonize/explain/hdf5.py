"""Relevances in HDF5, laid out as CoRelAy and ViRelAy read them (Anders et al. 2021, arXiv 2106.13200).

One file is both a data set and an attribution database there:

==============  ==================  =======================================================================
``attribution`` (N, C, H, W) float  relevance
``prediction``  (N, classes) float  the model's output
``label``       (N,) uint16         the class: the true one where it is known, else the class explained
``index``       (N,) uint32         which sample of the data set it is
``data``        (N, 3, H, W) uint8  the input as a picture, pixels from 0 to 255
==============  ==================  =======================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from canonize.errors import ExplainError
from canonize.explain.libraries import require
from canonize.export.atomic import check_destination, write_whole


@dataclass(frozen=True)
class Relevances:
    """What such a file holds.

    Attributes
    ----------
    attribution : Tensor, shape (N, C, H, W)
    prediction : Tensor, shape (N, classes)
    label : Tensor, shape (N,), int64
    data : Tensor or None, shape (N, C, H, W)
        From 0 to 255; written in three channels, as ViRelAy shows pictures, whole numbers.
    index : Tensor or None, shape (N,), int64
        By default 0, 1, ...
    names : sequence of str
        Where the samples come from.
    attributes : mapping
        Whatever else is known: method, model, ...
    """

    attribution: Tensor
    prediction: Tensor
    label: Tensor
    data: Tensor | None = None
    index: Tensor | None = None
    names: Sequence[str] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


def write(file: Path, relevances: Relevances) -> None:
    """Write relevances; the file appears whole or not at all.

    Raises
    ------
    ExplainError
        If the numbers of samples differ.
    ExportError
        If the file cannot be written.
    """
    count = len(relevances.attribution)
    index = torch.arange(count) if relevances.index is None else relevances.index
    tensors = {
        "attribution": relevances.attribution,
        "prediction": relevances.prediction,
        "label": relevances.label.to(torch.uint16),
        "index": index.to(torch.uint32),
        **({} if relevances.data is None else {"data": as_picture(relevances.data)}),
    }
    wrong = {name: len(value) for name, value in tensors.items() if len(value) != count}
    if wrong:
        raise ExplainError(f"there are {count} attributions, but {wrong}", where=str(file))
    if count and not 0 <= int(relevances.label.min()) <= int(relevances.label.max()) < 2**16:
        low, high = int(relevances.label.min()), int(relevances.label.max())
        raise ExplainError(
            f"holds labels from 0 to {2**16 - 1}, and {low} to {high} are given",
            where=str(file),
            hint="Count classes from 0",
        )
    h5py = require("h5py")

    def fill(path: Path) -> None:
        with h5py.File(path, "w") as opened:
            for name, value in tensors.items():
                opened.create_dataset(name, data=value.detach().cpu().numpy(), compression="gzip")
            if relevances.names:
                opened.create_dataset("name", data=list(relevances.names), dtype=h5py.string_dtype())
            opened.attrs.update({key: _plain(value) for key, value in relevances.attributes.items()})

    check_destination(file)
    write_whole(file, fill, lambda path: _check(path, count))


def as_picture(data: Tensor) -> Tensor:
    """Inputs (N, C, H, W) from 0 to 255 as colour pictures (N, 3, H, W) uint8; what has not three channels is grey."""
    if data.shape[1] != 3:
        data = data.double().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return data.round().clamp(0, 255).to(torch.uint8)


def _check(path: Path, count: int) -> None:
    """Read back what was written."""
    found = len(read(path).attribution)
    if found != count:
        raise ExplainError(f"{found} of {count} attributions could be read back", where=str(path))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else str(value)


def read(file: Path) -> Relevances:
    """Read such a file.

    Raises
    ------
    ExplainError
        If it is no such file.
    """
    h5py = require("h5py")
    try:
        with h5py.File(file, "r") as opened:

            def tensor(name: str, kind: str) -> Tensor:
                return torch.from_numpy(opened[name][:].astype(kind))

            return Relevances(
                attribution=tensor("attribution", "float64"),
                prediction=tensor("prediction", "float64"),
                label=tensor("label", "int64"),
                data=tensor("data", "float64") if "data" in opened else None,
                index=tensor("index", "int64") if "index" in opened else None,
                names=[text.decode() for text in opened["name"][:]] if "name" in opened else [],
                attributes=dict(opened.attrs),
            )
    except (OSError, KeyError) as error:
        raise ExplainError(
            f"holds no relevances ({error})", where=str(file), hint="canonize explain writes such files: -o NAME.h5"
        ) from error
