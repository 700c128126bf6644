"""Data with ground truth: readers for what people have, and two sets that are generated anywhere in seconds."""

from __future__ import annotations

from pathlib import Path

from canonize.errors import InputError
from canonize.evaluate.data.pictures import Transform
from canonize.evaluate.data.samples import DataSet, Samples, collate

__all__ = ["GENERATED", "READ", "DataSet", "Samples", "Transform", "collate", "open_data"]

GENERATED = ("digits", "sort-of-clevr", "sort-of-clevr-simple", "sort-of-clevr-complex")
READ = ("imagenet", "voc", "clevr-xai-simple", "clevr-xai-complex", "folder")


def open_data(spec: str, *, count: int = 1000, seed: int = 0, transform: Transform | None = None) -> DataSet:
    """A data set by name.

    Parameters
    ----------
    spec : str
        A generated one, ``digits``, ``sort-of-clevr`` (``-simple``, ``-complex``); or one that is read, with its
        folder: ``imagenet:FOLDER``, ``voc:FOLDER``, ``clevr-xai-simple:FOLDER``, ``clevr-xai-complex:FOLDER``,
        ``folder:FOLDER``.
    count, seed : int
        Size and seed of a generated one.
    transform : Transform, optional
        For one that is read.

    Raises
    ------
    InputError
        If there is no such data set, or a part of it is missing.
    """
    name, _, folder = spec.partition(":")
    if name in GENERATED:
        return _generated(name, count, seed)
    if name not in READ:
        raise InputError(
            f"there is no data set {name!r}",
            hint=f"Choose {', '.join(GENERATED)}, or {', '.join(f'{known}:FOLDER' for known in READ)}",
        )
    root = Path(folder)
    if not folder or not root.is_dir():
        raise InputError(f"there is no folder {folder!r}", where=name, hint=f"Write {name}:FOLDER")
    return _read(name, root, transform)


def _generated(name: str, count: int, seed: int) -> DataSet:
    if name == "digits":
        from canonize.evaluate.data.digits import PastedDigits

        return PastedDigits(count, seed)
    from canonize.evaluate.data.sort_of_clevr import SortOfClevr

    if name == "sort-of-clevr":
        return SortOfClevr(count, seed)
    return SortOfClevr(count, seed, "simple" if name.endswith("simple") else "complex")


def _read(name: str, root: Path, transform: Transform | None) -> DataSet:
    if name == "imagenet":
        from canonize.evaluate.data.imagenet import ImageNet

        return ImageNet(root, transform)
    if name == "voc":
        from canonize.evaluate.data.voc import PascalVoc

        return PascalVoc(root, transform)
    if name == "folder":
        from canonize.evaluate.data.folder import MaskedFolder

        return MaskedFolder(root, transform)
    from canonize.evaluate.data.clevr_xai import ClevrXai

    return ClevrXai(root, name.removeprefix("clevr-xai-"), transform)
