"""Bounding boxes in the XML of Pascal VOC, which ImageNet's localisation data use, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from canonize.errors import InputError

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Objects:
    """The objects of one picture.

    Attributes
    ----------
    size : tuple of int
        Height and width of the picture.
    boxes : dict of str to list of tuple
        By class: (xmin, ymin, xmax, ymax), counted from 1, inclusive.
    """

    size: tuple[int, int]
    boxes: dict[str, list[Box]]


def read_annotation(file: Path, *, difficult: bool = False) -> Objects:
    """Read one annotation.

    Parameters
    ----------
    file : Path
    difficult : bool
        Whether objects that are marked as difficult count.

    Raises
    ------
    InputError
        If it is missing, broken, or has no size.
    """
    try:
        root = ElementTree.parse(file).getroot()
        size = (int(_text(root, "size/height")), int(_text(root, "size/width")))
        boxes: dict[str, list[Box]] = {}
        for item in root.iter("object"):
            if not difficult and item.findtext("difficult", "0").strip() == "1":
                continue
            corners = [float(_text(item, f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax")]
            boxes.setdefault(_text(item, "name"), []).append((corners[0], corners[1], corners[2], corners[3]))
        return Objects(size, boxes)
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise InputError(f"is no annotation ({error})", where=str(file), hint="It should be VOC's XML") from error


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    if found is None:
        raise ValueError(f"there is no {path}")
    return found.strip()
