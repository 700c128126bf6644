"""``.pt``: the module itself, for explainers. Loads with ``canonize.load``, without running code from the file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from canonize.errors import ExportError, LoadError
from canonize.export.atomic import is_disk_error
from canonize.export.reload import check_reload
from canonize.inputs import Inputs
from canonize.loading import load
from canonize.loading.graph_as_data import GraphAsData, NotDescribableError


def write(model: nn.Module, path: Path, inputs: Inputs | None, final: Path) -> list[str]:
    """Pickle `model` to `path`.

    Raises
    ------
    ExportError
        If a part of it cannot be pickled.
    """
    content, notes = _as_data(model)
    try:
        torch.save(content, path)
    except Exception as error:  # pickle complains with whatever the object at fault raises
        if is_disk_error(error):
            raise
        raise ExportError(
            f"the model cannot be pickled ({error})",
            where=str(final),
            hint="Classes and functions defined inside functions cannot: move them to a module, or export to .pt2",
        ) from error
    return notes or _readable(path)


def check(model: nn.Module, path: Path, inputs: Inputs | None, final: Path, static: bool) -> None:
    """Reload in a fresh process; see `check_reload`. A module's sizes are never fixed, whatever `static` says."""
    check_reload(model, path, [] if inputs is None else [inputs], final)


def snippet(path: str) -> str:
    """The lines that load the file."""
    return f"import canonize\nmodel = canonize.load({path!r})"


def _as_data(model: nn.Module) -> tuple[Any, list[str]]:
    """A graph as data, so that reading it runs no code; where that cannot be, the module as it is, and a note."""
    if not isinstance(model, fx.GraphModule):
        return model, []
    try:
        return GraphAsData(model), []
    except NotDescribableError as reason:
        return _without_annotations(model), [f"{reason}: canonize itself reads this file with --trust alone"]


def _readable(path: Path) -> list[str]:
    """A note where canonize itself will not read the file unasked."""
    try:
        load(path)
    except LoadError as error:
        return [f"canonize itself reads this file with --allow or --trust alone: it {error.what}"]
    return []


def _without_annotations(model: nn.Module) -> nn.Module:
    """A twin without the type annotations that torch.fx carries over from the source.

    It writes them into the code of the file, and fails on those that ``from __future__ import annotations`` left as
    text.
    """
    if not isinstance(model, fx.GraphModule) or not any(isinstance(node.type, str) for node in model.graph.nodes):
        return model
    graph = copy.deepcopy(model.graph)
    for node in graph.nodes:
        node.type = None
    twin = fx.GraphModule(model, graph, type(model).__name__)
    vars(twin).update({name: value for name, value in vars(model).items() if name not in vars(twin)})
    return twin.train(model.training)
