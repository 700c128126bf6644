"""Plain folders: pictures by class, and masks of the same names beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from canonize.errors import InputError
from canonize.evaluate.data.pictures import ENDINGS, Transform, open_picture, the_folder
from canonize.evaluate.data.samples import Samples, box_of


class MaskedFolder:
    """``images/CLASS/NAME.jpg`` and ``masks/CLASS/NAME.png``, white where the object is.

    Parameters
    ----------
    root : path
    transform : Transform

    Notes
    -----
    Classes are counted in alphabetical order. A picture without a mask is explained and perturbed like any other; the
    metrics that need a mask give NaN for it.

    Raises
    ------
    InputError
        If there is no picture.
    """

    name = "folder"

    def __init__(self, root: Path, transform: Transform | None = None) -> None:
        self.transform = transform or Transform()
        self.low, self.high = self.transform.low, self.transform.high
        images = the_folder(root, "images")
        self.classes = tuple(sorted(folder.name for folder in images.iterdir() if folder.is_dir()))
        self._files = [
            file for label in self.classes for file in sorted((images / label).iterdir()) if file.suffix in ENDINGS
        ]
        self._masks = root / "masks"
        if not self._files:
            raise InputError("there is no picture", where=str(images), hint="Put them in images/CLASS/")

    def __len__(self) -> int:
        return len(self._files)

    def take(self, indices: Sequence[int]) -> Samples:
        """Read the samples with these indices."""
        files = [self._files[index] for index in indices]
        pictures, masks = [], []
        for file in files:
            picture, size = self.transform.picture(file)
            pictures.append(picture)
            masks.append(self._mask(file, size))
        mask = torch.stack(masks)
        return Samples(
            (torch.stack(pictures),),
            torch.tensor([self.classes.index(file.parent.name) for file in files]),
            {"object": mask},
            box_of(mask),
            tuple(f"{file.parent.name}/{file.name}" for file in files),
        )

    def _mask(self, file: Path, size: tuple[int, int]) -> Tensor:
        for ending in ENDINGS:
            candidate = self._masks / file.parent.name / f"{file.stem}{ending}"
            if candidate.is_file():
                found = np.array(open_picture(candidate).convert("L")) > 127
                if found.shape != size:
                    raise InputError(
                        f"is {found.shape[1]}x{found.shape[0]}, its picture {size[1]}x{size[0]}",
                        where=str(candidate),
                        hint="A mask is as large as its picture",
                    )
                return self.transform.mask(found)
        return torch.zeros(self.transform.size, self.transform.size, dtype=torch.bool)
