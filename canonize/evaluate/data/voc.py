"""Pascal VOC: for every class in a picture, its boxes and, where there is one, its segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from canonize.errors import InputError
from canonize.evaluate.data.annotations import Objects, read_annotation
from canonize.evaluate.data.pictures import Transform, filled_boxes, open_picture, the_folder
from canonize.evaluate.data.samples import Samples

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class PascalVoc:
    """Pascal VOC 2007 to 2012: a sample is a picture and one of the classes in it.

    Parameters
    ----------
    root : path
        Holds ``JPEGImages``, ``Annotations``, ``ImageSets`` (a year's folder, or ``VOCdevkit`` with years in it).
    transform : Transform
        By default pictures are squeezed into the square, so that no object is lost (Kohlbrenner et al. 2020).
    split : str
        A file in ``ImageSets/Segmentation`` (pictures with masks), else in ``ImageSets/Main``; ``Main/val`` names one.
    year : str, optional
        Of several in the folder.

    Notes
    -----
    Every class in a picture is a sample of its own. It is answered rightly if its output is among as many largest as
    there are classes in the picture. The mask is the class's part of ``SegmentationClass`` where the picture has one,
    its boxes otherwise. Objects marked as difficult do not count; neither does the white border of a segmentation.

    Raises
    ------
    InputError
        If a part is missing.
    """

    name = "voc"
    classes: tuple[str, ...] = CLASSES

    def __init__(
        self, root: Path, transform: Transform | None = None, split: str = "val", year: str | None = None
    ) -> None:
        self.transform = transform or Transform(crop=False)
        self.low, self.high = self.transform.low, self.transform.high
        self._root = _year(root, year)
        names = _split(self._root, split)
        self._objects: dict[str, Objects] = {
            name: read_annotation(self._root / "Annotations" / f"{name}.xml") for name in names
        }
        self._samples = [(name, label) for name in names for label in CLASSES if label in self._objects[name].boxes]
        if not self._samples:
            raise InputError("no picture of the split holds an object", where=str(root), hint="Check its annotations")

    def __len__(self) -> int:
        return len(self._samples)

    def take(self, indices: Sequence[int]) -> Samples:
        """Read the samples with these indices."""
        pictures, masks, boxes, labels, names, present = [], [], [], [], [], []
        for index in indices:
            name, label = self._samples[index]
            picture, size = self.transform.picture(self._root / "JPEGImages" / f"{name}.jpg")
            filled = filled_boxes(self._objects[name].boxes[label], size)
            segmentation = self._root / "SegmentationClass" / f"{name}.png"
            exact = filled
            if segmentation.is_file():
                exact = np.array(open_picture(segmentation)) == CLASSES.index(label) + 1
            pictures.append(picture)
            masks.append(self.transform.mask(exact))
            boxes.append(self.transform.mask(filled))
            labels.append(CLASSES.index(label))
            names.append(f"{name}:{label}")
            present.append(sum(known in CLASSES for known in self._objects[name].boxes))
        return Samples(
            (torch.stack(pictures),),
            torch.tensor(labels),
            {"object": torch.stack(masks)},
            torch.stack(boxes),
            tuple(names),
            torch.tensor(present),
        )


def _year(root: Path, year: str | None) -> Path:
    """The folder of a year: the root itself, or one in it."""
    years = sorted(folder.name.removeprefix("VOC") for folder in root.glob("VOC20*") if folder.is_dir())
    if (root / "JPEGImages").is_dir() and (year is None or root.name == f"VOC{year}"):
        return root
    if year is None and len(years) > 1:
        raise InputError(f"holds the years {' and '.join(years)}", where=str(root), hint=f"Add :year={years[-1]}")
    candidates = [f"VOC{name}/JPEGImages" for name in (years if year is None else [year])]
    return the_folder(root, *(candidates or ["JPEGImages"])).parent


def _split(root: Path, split: str) -> list[str]:
    for name in (split,) if "/" in split else (f"Segmentation/{split}", f"Main/{split}"):
        file = root / "ImageSets" / f"{name}.txt"
        if file.is_file():
            return [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    raise InputError(f"there is no split {split!r}", where=str(root / "ImageSets"), hint="Give one of its files' names")
