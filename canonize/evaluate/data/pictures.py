"""Picture and mask files, brought to one size, as every reader needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from canonize.errors import InputError
from canonize.evaluate.libraries import require
from canonize.explain.images import opened

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".JPEG", ".JPG", ".PNG")


@dataclass(frozen=True)
class Transform:
    """How a picture file becomes what a model sees.

    Attributes
    ----------
    size : int
        Side of the square, in pixels.
    crop : bool
        Scale the shorter side to 8/7 of `size` and cut out the middle, as torchvision's models want it; otherwise the
        whole picture is squeezed into the square.
    mean, std : tuple of float
        Subtracted from each channel's [0, 1], and divided by.
    """

    size: int = 224
    crop: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def low(self) -> Tensor:
        """What black becomes, (3, 1, 1)."""
        return -self._column(self.mean) / self._column(self.std)

    @property
    def high(self) -> Tensor:
        """What white becomes, (3, 1, 1)."""
        return (1 - self._column(self.mean)) / self._column(self.std)

    def picture(self, file: Path) -> tuple[Tensor, tuple[int, int]]:
        """A picture (3, size, size) as the model sees it, and its (height, width) as it was.

        Raises
        ------
        InputError
            If the file is no picture.
        """
        image = opened(file, "RGB")
        placed = self._placed(image, _pil().Resampling.BILINEAR)
        if placed.mode == "F":  # grey in more than 8 bits, from 0 to 1
            pixels = torch.from_numpy(np.array(placed, dtype=np.float32)).expand(3, -1, -1)
        else:
            pixels = torch.from_numpy(np.array(placed, dtype=np.float32) / 255).permute(2, 0, 1)
        return (pixels - self._column(self.mean)) / self._column(self.std), (image.height, image.width)

    def mask(self, mask: NDArray[np.bool_]) -> Tensor:
        """A mask (H, W) as large as the picture was, moved as the picture is: (size, size) bool."""
        image = _pil().fromarray(mask.astype(np.uint8) * 255)
        return torch.from_numpy(np.array(self._placed(image, _pil().Resampling.NEAREST)) > 127)

    def _placed(self, image: Any, resampling: Any) -> Any:
        if not self.crop:
            return image.resize((self.size, self.size), resampling)
        scale = round(self.size * 8 / 7) / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), resampling)
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))

    @staticmethod
    def _column(values: tuple[float, float, float]) -> Tensor:
        return torch.tensor(values)[:, None, None]


def open_picture(file: Path) -> Any:
    """A picture, read whole.

    Raises
    ------
    InputError
        If it is missing or broken.
    """
    try:
        image = _pil().open(file)
        image.load()
        return image
    except (OSError, ValueError, SyntaxError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read as a picture ({error})"
        raise InputError(reason, where=str(file), hint="Check the data set's files") from error


def filled_boxes(boxes: list[tuple[float, float, float, float]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Boxes (xmin, ymin, xmax, ymax), counted from 1 and inclusive as in Pascal VOC, filled in an (H, W) mask."""
    mask = np.zeros(size, dtype=bool)
    for left, top, right, bottom in boxes:
        mask[max(round(top) - 1, 0) : round(bottom), max(round(left) - 1, 0) : round(right)] = True
    return mask


def the_folder(root: Path, *candidates: str) -> Path:
    """The first of some folders of a data set that exists.

    Raises
    ------
    InputError
        If none does.
    """
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    raise InputError(
        f"there is no folder {' or '.join(candidates)}", where=str(root), hint="Give the folder that holds it"
    )


def _pil() -> Any:
    return require("PIL.Image")
