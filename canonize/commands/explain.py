"""``canonize explain``: pictures in, heatmaps of the original and the canonical model out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from canonize.api import canonize
from canonize.commands.common import (
    DIFFERENT,
    GOOD,
    GivenInputs,
    Screen,
    Source,
    given_inputs,
    load_model,
    told_different,
)
from canonize.compat import need
from canonize.errors import ExplainError, ExportError, InputError, NotEquivalentError
from canonize.explain import hdf5, images, picture
from canonize.explain.attribution import Attribution, attribute
from canonize.explain.composites import ALLOWED, Choices
from canonize.explain.law import check_unruled
from canonize.explain.methods import Method, find
from canonize.explain.project import LABELS, PROJECT, Project, write_project
from canonize.explain.zennit import is_canonical
from canonize.export.atomic import check_destination, write_whole
from canonize.inputs import Inputs, parse_shape

PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
ARRAYS = (".npy", ".h5", ".hdf5")
ROWS = 16


@dataclass(frozen=True)
class ExplainRequest:
    """What the command line asks for.

    Attributes
    ----------
    pictures : sequence of Path
        Files and folders.
    outputs : sequence of Path
        Pictures, arrays, or a folder.
    method, target, side, strategy : str
    settings : sequence of str
        ``NAME=VALUE``: hyperparameters of the method, and choices of rules.
    normalise : str or None
    batch : int
    forms : sequence of str
    resume : bool
        Leave pictures that are in the folder already.
    compare : sequence of str
        More methods, drawn beside the first.
    project : Path, optional
        Folder for a project of ViRelAy around the relevances.
    """

    pictures: Sequence[Path]
    outputs: Sequence[Path]
    method: str
    target: int | None
    side: str
    strategy: str
    settings: Sequence[str]
    normalise: str | None
    batch: int
    forms: Sequence[str]
    resume: bool
    project: Path | None = None
    compare: Sequence[str] = ()
    unruled: str = "refuse"
    ledger: bool = False


def explain(source: Source, feed: GivenInputs, wish: ExplainRequest, screen: Screen) -> int:
    """Explain pictures and write what is asked for. Nothing is written of a canonical model that is not equivalent."""
    method = find(wish.method)
    choices, hyperparameters = parse_settings(method, wish.settings)
    check_unruled(wish.unruled)
    if wish.target is not None and wish.target < 0:
        raise ExplainError(f"there is no class {wish.target}", hint="Classes are counted from 0")
    if wish.ledger and not (method.kind == "rules" and method.shares):
        raise ExplainError(f"{method.name} shares no relevance out", hint="A ledger belongs to LRP: epsilon-plus, say")
    need(("PIL", *(("captum",) if method.kind == "captum" else ())), f"explaining pictures by {method.name}")
    others = compared(wish, method)
    files = images.find(wish.pictures)
    for output in wish.outputs:
        _check(output, len(files))
    relevances = [output for output in wish.outputs if output.suffix.lower() in ARRAYS[1:]]
    if wish.project is not None and not relevances:
        raise ExportError("a project is about an .h5 file", where=str(wish.project), hint="Add -o NAME.h5")
    if wish.resume:
        files = [file for file in files if not all(_done(output, file) for output in wish.outputs)]
        if not files:
            screen.say("everything is there already")
            return GOOD
    shapes = [parse_shape(s) for s in feed.shapes]
    loaded = load_model(source)
    model = loaded.model.eval()
    sample = given_inputs(model, shapes, feed.file)
    shape = _image_shape(sample)
    normalisation = images.normalisation_of(model, shape[0], wish.normalise)
    read = images.read(files, shape, normalisation)
    for note in loaded.notes:
        screen.say(f"note: {note}")
    screen.say(f"{len(files)} picture{'s' * (len(files) > 1)}, {normalisation.describe()}")

    def bounds(of: Method) -> dict[str, Any]:
        return dict(zip(("low", "high"), normalisation.bounds(), strict=True)) if "low" in of.hyperparameters else {}

    hyperparameters = bounds(method) | hyperparameters
    models, code = _models(model, sample, wish, screen)
    if code != GOOD:
        return code
    found = _explained(models, read, wish, method, choices, hyperparameters, screen)
    for title, attribution in found.items():
        for note in attribution.notes:
            screen.say(f"note: {title}: {note}")
        if wish.ledger:
            for line in f"{title}, {attribution.ledger}".splitlines():
                screen.say(line)
    drawn = {method.name: found}
    for name, (chosen, more) in others.items():
        other = find(name)
        drawn[name] = _explained(models, read, wish, other, chosen, bounds(other) | more, screen)
    for output in wish.outputs:
        _write(output, read, drawn, source.name)
        screen.say(f"written to {output}")
    if wish.project is not None:
        write_project(wish.project, Project(relevances[0].stem, Path(source.name).stem, method.name, relevances[0]))
        screen.say(f"written to {wish.project}: {PROJECT}, {LABELS}")
    return GOOD


def compared(wish: ExplainRequest, first: Method) -> dict[str, tuple[Choices | None, dict[str, Any]]]:
    """The methods to be drawn beside the first, each with those of the settings that it takes."""
    found: dict[str, tuple[Choices | None, dict[str, Any]]] = {}
    for name in wish.compare:
        method = find(name)
        known = {*method.hyperparameters, *(ALLOWED if method.kind == "rules" else ())}
        taken = [text for text in wish.settings if text.partition("=")[0].strip().replace("-", "_") in known]
        if method.kind == "captum":
            need(("captum",), f"explaining pictures by {method.name}")
        if method.name != first.name:
            found[method.name] = parse_settings(method, taken)
    return found


def parse_settings(method: Method, settings: Sequence[str]) -> tuple[Choices | None, dict[str, Any]]:
    """``NAME=VALUE`` as hyperparameters of a method and choices of rules.

    Raises
    ------
    ExplainError
        If one is neither, or its value cannot be read.
    """
    chosen: dict[str, str] = {}
    hyperparameters: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ExplainError(f"{setting!r} is no setting", hint="Write --set NAME=VALUE")
        if name in ALLOWED and method.kind == "rules":
            chosen[name] = value.strip()
        elif name in method.hyperparameters:
            hyperparameters[name] = _value(name, value.strip())
        else:
            known = [*method.hyperparameters, *(ALLOWED if method.kind == "rules" else ())]
            raise ExplainError(f"{method.name} has no setting {name!r}", hint=f"Settings: {', '.join(known) or 'none'}")
    return (Choices(**chosen) if chosen else None), hyperparameters


def _value(name: str, text: str) -> Any:
    if name == "zero_params":
        return text
    try:
        return int(text) if name in ("samples", "steps", "seed") else float(text)
    except ValueError as error:
        raise ExplainError(f"{name}={text} is no number", hint=f"Write --set {name}=0.1, say") from error


def _check(output: Path, count: int) -> None:
    """Everything that can be known to be wrong about an output before the work."""
    if _is_folder(output):
        if output.exists() and not output.is_dir():
            raise ExportError("is a file, not a folder", where=str(output))
        need(("matplotlib",), "drawing heatmaps", where=str(output))
        return
    if output.suffix.lower() not in (*PICTURES, *ARRAYS):
        raise ExportError(
            "ends in nothing that canonize explain writes",
            where=str(output),
            hint=f"Pictures: {' '.join(PICTURES)}; arrays: {' '.join(ARRAYS)}; a picture for each input: a folder",
        )
    check_destination(output)
    drawn = output.suffix.lower() in PICTURES
    need(("matplotlib",) if drawn else ("h5py",) if output.suffix != ".npy" else (), "writing it", where=str(output))
    if drawn and count > ROWS:
        raise ExportError(
            f"{count} pictures do not fit into one",
            where=str(output),
            hint="Give a folder (-o heatmaps/), or -o NAME.h5",
        )


def _is_folder(output: Path) -> bool:
    return output.is_dir() or not output.suffix


def _done(output: Path, file: Path) -> bool:
    return _is_folder(output) and (output / f"{file.stem}.png").exists()


def _image_shape(inputs: Inputs) -> tuple[int, int, int]:
    tensors = inputs.tensors()
    if len(tensors) != 1 or tensors[0].ndim != 4:
        raise InputError(
            f"the model takes {inputs.describe()}, which is no picture",
            hint="Explain it in Python: canonize.explain.attribute(model, inputs)",
        )
    _, channels, height, width = tensors[0].shape
    return channels, height, width


def _models(model: nn.Module, sample: Inputs, wish: ExplainRequest, screen: Screen) -> tuple[dict[str, nn.Module], int]:
    """What is explained: the original, its canonical form, or both."""
    if is_canonical(model):
        return {"canonical": model}, GOOD
    models: dict[str, nn.Module] = {}
    if wish.side in ("both", "original"):
        models["original"] = model
    if wish.side in ("both", "canonical"):
        try:
            with screen.progress() as progress:
                strategy: Any = wish.strategy
                models["canonical"] = canonize(model, sample, strategy=strategy, forms=wish.forms, progress=progress)
        except NotEquivalentError as error:
            told_different(error, None)
            return {}, DIFFERENT
    return models, GOOD


def _explained(
    models: dict[str, nn.Module],
    read: images.Pictures,
    wish: ExplainRequest,
    method: Method,
    choices: Choices | None,
    hyperparameters: dict[str, Any],
    screen: Screen,
) -> dict[str, Attribution]:
    found: dict[str, list[Attribution]] = {title: [] for title in models}
    starts = range(0, len(read.inputs), wish.batch)
    with screen.progress() as progress:
        for done, first in enumerate(starts):
            rows = slice(first, first + wish.batch)
            target: Any = wish.target
            for title, model in models.items():
                part = attribute(
                    model, read.inputs[rows], target, method=method.name, choices=choices, unruled=wish.unruled,
                    ledger=wish.ledger and method.kind == "rules" and method.shares, **hyperparameters,
                )  # fmt: skip
                target = part.target  # both explain what the first decides
                found[title].append(part)
            if progress:
                progress("explain", done + 1, len(starts))
    return {title: _joined(parts) for title, parts in found.items()}


def _joined(parts: list[Attribution]) -> Attribution:
    from canonize.explain.ledger import joined

    first = parts[0]
    tensors = [part.relevance for part in parts]
    return Attribution(
        torch.cat([t for t in tensors if isinstance(t, Tensor)]),
        torch.cat([part.output for part in parts]),
        torch.cat([part.target for part in parts]),
        first.method,
        first.hyperparameters,
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        written=joined([part.ledger for part in parts]) if first.written is not None else None,
    )


Drawn = dict[str, dict[str, Attribution]]


def _write(output: Path, read: images.Pictures, drawn: Drawn, model: str) -> None:
    method, found = next(iter(drawn.items()))
    last = list(found.values())[-1]  # the canonical one, if there is one
    if _is_folder(output):
        output.mkdir(parents=True, exist_ok=True)
        for row, name in enumerate(_distinct(read.names)):
            _draw(output / f"{name}.png", read, drawn, [row])
    elif output.suffix.lower() in PICTURES:
        _draw(output, read, drawn, range(len(read.names)))
    elif output.suffix.lower() == ".npy":
        import numpy

        assert isinstance(last.relevance, Tensor)
        array = last.relevance.float().cpu().numpy()
        write_whole(output, lambda path: numpy.save(path, array), lambda path: numpy.load(path))
    else:
        assert isinstance(last.relevance, Tensor)
        about = {"method": method, "model": model, **{k: str(v) for k, v in last.hyperparameters.items()}}
        hdf5.write(
            output,
            hdf5.Relevances(
                last.relevance.float(),
                last.output.float(),
                last.target,
                read.shown * 255,
                names=read.names,
                attributes=about,
            ),
        )


def _distinct(names: Sequence[str]) -> list[str]:
    """Stems of file names; whole names where two stems are alike."""
    stems = [Path(name).stem for name in names]
    return [stem if stems.count(stem) == 1 else f"{position}_{stem}" for position, stem in enumerate(stems)]


def _draw(output: Path, read: images.Pictures, drawn: Drawn, rows: Sequence[int]) -> None:
    chosen, several = list(rows), len(drawn) > 1
    columns = []
    for method, found in drawn.items():
        first = next(iter(found.values())).heatmap()
        for title, attribution in found.items():
            heatmaps = attribution.heatmap()
            captions = [_caption(attribution, row) for row in chosen]
            if title != next(iter(found)):
                captions = [
                    f"{caption}\ncosine distance {_distance(first[row], heatmaps[row]):.2g}"
                    for caption, row in zip(captions, chosen, strict=True)
                ]
            named = f"{method}\n{title}" if several else title
            columns.append(picture.Column(named, heatmaps[chosen].float().cpu(), captions, peaks=several))
    shown, names = read.shown[chosen], [read.names[row] for row in chosen]
    first_method = find(next(iter(drawn)))
    title = (
        "methods side by side; a cross is on the peak" if several else f"{first_method.name}: {first_method.summary}"
    )
    write_whole(output, lambda path: picture.draw(path, shown, names, columns, title), lambda path: None)


def _distance(first: Tensor, second: Tensor) -> float:
    """One minus the cosine of two heatmaps."""
    return max(0.0, 1 - float(torch.cosine_similarity(first.flatten().double(), second.flatten().double(), dim=0)))


def _caption(attribution: Attribution, row: int) -> str:
    """Which class is explained, and the model's output for it."""
    target = int(attribution.target[row])
    return f"class {target}, output {float(attribution.output[row, target].sum()):.3g}"
