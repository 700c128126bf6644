"""Data with ground truth: readers for what people have, and two sets that are generated anywhere in seconds."""

from __future__ import annotations

import re
from pathlib import Path

from canonize.errors import InputError
from canonize.evaluate.data.pictures import Transform
from canonize.evaluate.data.samples import DataSet, Samples, collate

__all__ = ["GENERATED", "OPTIONS", "READ", "DataSet", "Samples", "Transform", "collate", "open_data"]

GENERATED = ("digits", "sort-of-clevr", "sort-of-clevr-simple", "sort-of-clevr-complex")
READ = ("imagenet", "voc", "clevr-xai-simple", "clevr-xai-complex", "folder")
# What may stand behind the folder: ``voc:FOLDER:split=train:year=2007``.
OPTIONS = {
    "imagenet": ("classes",),
    "voc": ("split", "year"),
    "clevr-xai-simple": ("mask",),
    "clevr-xai-complex": ("mask",),
    "folder": (),
}
_OPTION = re.compile(r":([a-z]+)=")


def open_data(
    spec: str, *, count: int = 1000, seed: int = 0, transform: Transform | None = None, size: int | None = None
) -> DataSet:
    """A data set by name.

    Parameters
    ----------
    spec : str
        A generated one, ``digits``, ``sort-of-clevr`` (``-simple``, ``-complex``); or one that is read, with its
        folder and options: ``imagenet:FOLDER:classes=50``, ``voc:FOLDER:split=val:year=2012``,
        ``clevr-xai-simple:FOLDER``, ``clevr-xai-complex:FOLDER:mask=union``, ``folder:FOLDER``.
    count, seed : int
        Size and seed of a generated one.
    transform : Transform, optional
        For one that is read; by default as its papers have it.
    size : int, optional
        Side that photographs are brought to, where no transform is given. Scenes keep theirs.

    Raises
    ------
    InputError
        If there is no such data set or option, or a part of it is missing.
    """
    name, _, rest = spec.partition(":")
    if name in GENERATED:
        return _generated(name, count, seed)
    if name not in READ:
        raise InputError(
            f"there is no data set {name!r}",
            hint=f"Choose {', '.join(GENERATED)}, or {', '.join(f'{known}:FOLDER' for known in READ)}",
        )
    folder, *given = _OPTION.split(rest)
    options = dict(zip(given[::2], given[1::2], strict=True))
    for option in options:
        if option not in OPTIONS[name]:
            known = ", ".join(OPTIONS[name]) or "none"
            raise InputError(f"{name} has no option {option!r}", where=spec, hint=f"Options: {known}")
    root = Path(folder)
    if not folder or not root.is_dir():
        raise InputError(f"there is no folder {folder!r}", where=name, hint=f"Write {name}:FOLDER")
    return _read(name, root, options, transform, size)


def _generated(name: str, count: int, seed: int) -> DataSet:
    if name == "digits":
        from canonize.evaluate.data.digits import PastedDigits

        return PastedDigits(count, seed)
    from canonize.evaluate.data.sort_of_clevr import SortOfClevr

    if name == "sort-of-clevr":
        return SortOfClevr(count, seed)
    return SortOfClevr(count, seed, "simple" if name.endswith("simple") else "complex")


def _read(name: str, root: Path, options: dict[str, str], transform: Transform | None, size: int | None) -> DataSet:
    if name.startswith("clevr-xai"):
        from canonize.evaluate.data.clevr_xai import ClevrXai

        return ClevrXai(root, name.removeprefix("clevr-xai-"), transform, **options)
    # Objects at the border of a photograph count in Pascal VOC: it is squeezed, the others are cropped.
    transform = transform or Transform(size or 224, crop=name != "voc")
    if name == "imagenet":
        from canonize.evaluate.data.imagenet import ImageNet

        return ImageNet(root, transform, **options)
    if name == "voc":
        from canonize.evaluate.data.voc import PascalVoc

        return PascalVoc(root, transform, **options)
    from canonize.evaluate.data.folder import MaskedFolder

    return MaskedFolder(root, transform)
