"""ImageNet (ILSVRC) with its bounding boxes, in the layout it is handed out in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from canonize.errors import InputError
from canonize.evaluate.data.annotations import Objects, read_annotation
from canonize.evaluate.data.pictures import Transform, filled_boxes, the_folder
from canonize.evaluate.data.samples import Samples


class ImageNet:
    """The validation pictures that have boxes; mask and box are the boxes of the label's objects.

    Parameters
    ----------
    root : path
        Holds ``Data/CLS-LOC/val/*.JPEG``, ``Annotations/CLS-LOC/val/*.xml`` and ``LOC_synset_mapping.txt`` (the
        files of ILSVRC 2012 to 2017; a folder ``ILSVRC`` around the first two is as well).
    transform : Transform
    classes : str, optional
        Only pictures of these: a file with one class a line, or classes with ``+`` between them, each a synset, a name
        or a number; or how many, drawn as Pahde et al. 2023 drew their 50 (by NumPy, with the seed 0).

    Notes
    -----
    Labels are positions in the sorted list of synsets, as torchvision's and timm's models count them.

    Raises
    ------
    InputError
        If a part is missing.
    """

    name = "imagenet"

    def __init__(self, root: Path, transform: Transform | None = None, classes: str | None = None) -> None:
        self.transform = transform or Transform()
        self.low, self.high = self.transform.low, self.transform.high
        self._pictures = the_folder(root, "Data/CLS-LOC/val", "ILSVRC/Data/CLS-LOC/val", "val")
        self._boxes = the_folder(root, "Annotations/CLS-LOC/val", "ILSVRC/Annotations/CLS-LOC/val")
        self._synsets, self.classes = _synsets(root)
        self._names = [file.stem for file in sorted(self._boxes.glob("*.xml"))]
        if not self._names:
            raise InputError("there is no annotation", where=str(self._boxes), hint="Unpack the bounding boxes there")
        if classes is not None:
            wanted = _chosen(classes, self._synsets, self.classes)
            self._names = [name for name in self._names if self._synset(name) in wanted]
            if not self._names:
                raise InputError("no picture is of these classes", where=classes, hint="Check the list")

    def __len__(self) -> int:
        return len(self._names)

    def take(self, indices: Sequence[int]) -> Samples:
        """Read the samples with these indices."""
        names = [self._names[index] for index in indices]
        pictures, masks, labels = [], [], []
        for name in names:
            objects, synset = self._objects(name), self._synset(name)
            if synset not in self._synsets:
                raise InputError(f"there is no synset {synset!r}", where=name, hint="Check LOC_synset_mapping.txt")
            picture, size = self.transform.picture(self._pictures / f"{name}.JPEG")
            pictures.append(picture)
            masks.append(self.transform.mask(filled_boxes(objects.boxes[synset], size)))
            labels.append(self._synsets[synset])
        boxes = torch.stack(masks)
        return Samples((torch.stack(pictures),), torch.tensor(labels), {"object": boxes}, boxes, tuple(names))

    def _objects(self, name: str) -> Objects:
        return read_annotation(self._boxes / f"{name}.xml", difficult=True)

    def _synset(self, name: str) -> str:
        return next(iter(self._objects(name).boxes), "")


def _chosen(text: str, synsets: dict[str, int], names: tuple[str, ...]) -> set[str]:
    """Synsets of a list of classes; see `ImageNet`."""
    ordered = sorted(synsets, key=synsets.__getitem__)
    file = Path(text)
    if not file.is_file() and text.isdigit():
        if not 0 < int(text) <= len(ordered):
            raise InputError(f"there are {len(ordered)} classes, not {text}", hint="Give a smaller number")
        drawn = np.random.RandomState(0).choice(len(ordered), size=int(text), replace=False)
        return {ordered[index] for index in drawn}
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else text.split("+")
    by_word = {
        name.strip(): synset
        for synset, all_names in zip(ordered, names, strict=True)
        for name in (all_names, *all_names.split(","))
    }
    by_word |= {synset: synset for synset in ordered} | {str(index): synset for index, synset in enumerate(ordered)}
    found = set()
    for line in filter(None, map(str.strip, lines)):
        synset = by_word.get(line) or by_word.get(line.split()[0])
        if synset is None:
            raise InputError(f"there is no class {line!r}", where=text, hint="Give synsets, names or numbers")
        found.add(synset)
    return found


def _synsets(root: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Index by synset, and the classes' names."""
    file = root / "LOC_synset_mapping.txt"
    if not file.is_file():
        raise InputError("is missing", where=str(file), hint="One line a class: n01440764 tench, Tinca tinca")
    lines = sorted(line.split(" ", 1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    return {line[0]: index for index, line in enumerate(lines)}, tuple(line[-1].strip() for line in lines)
