"""Real handwritten digits pasted on crops of real photographs, beside strokes that are no digits.

Nothing is downloaded: the digits come with scikit-learn, the photographs with scikit-learn and scikit-image. Every
sample is drawn from its own seed, so that any sample can be made anywhere, alone, in a millisecond.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from canonize.evaluate.data.samples import Samples, box_of
from canonize.evaluate.libraries import require

SIZE = 40
DISTRACTORS = 2
PHOTOS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "rocket")
# Of each photograph, training sees the left three quarters; what is held out is held out with its background.
TRAINING_SHARE = 0.75

Image = NDArray[np.float32]


class PastedDigits:
    """Digits on photographs: 10 classes, images (3, 40, 40) in [-1, 1], mask and box of the digit.

    Parameters
    ----------
    count : int
        Number of samples.
    seed : int
        Of all that is drawn; another seed is another set of samples of the same kind.
    part : {"test", "train"}
        Which digits and which parts of the photographs are used: the two share neither.

    Raises
    ------
    InputError
        If scikit-learn, scikit-image or pillow is missing.
    """

    name = "digits"
    classes: tuple[str, ...] = tuple(str(digit) for digit in range(10))

    def __init__(self, count: int = 1000, seed: int = 0, part: Literal["train", "test"] = "test") -> None:
        self.count, self.seed, self.part = count, seed, part
        self.low, self.high = torch.full((3, 1, 1), -1.0), torch.full((3, 1, 1), 1.0)

    def __len__(self) -> int:
        return self.count

    def take(self, indices: Sequence[int]) -> Samples:
        """Draw the samples with these indices."""
        drawn = [_compose(self.seed, int(index), self.part) for index in indices]
        masks = torch.from_numpy(np.stack([mask for _, mask, _ in drawn]))
        return Samples(
            (torch.from_numpy(np.stack([image for image, _, _ in drawn])),),
            torch.tensor([label for _, _, label in drawn]),
            {"object": masks},
            box_of(masks),
            tuple(f"digit-{self.seed}-{index}" for index in indices),
        )


def _compose(seed: int, index: int, part: str) -> tuple[Image, NDArray[np.bool_], int]:
    """One image (3, H, W) in [-1, 1], the mask (H, W) of its digit, and the digit."""
    random = np.random.default_rng([seed, index, part == "train"])
    images, labels = _digits(part)
    chosen = int(random.integers(len(images)))
    canvas = _crop(random, part)
    places = _places(random, DISTRACTORS + 1)
    for size, top, left in places[1:]:
        _paste(canvas, _scaled(_scrambled(random, images), size), top, left, _colour(random, canvas))
    size, top, left = places[0]
    alpha = _scaled(images[chosen], size)
    _paste(canvas, alpha, top, left, _colour(random, canvas))
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[top : top + size, left : left + size] = alpha > 0.3
    return (canvas * 2 - 1).transpose(2, 0, 1).astype(np.float32), mask, int(labels[chosen])


def _places(random: np.random.Generator, count: int) -> list[tuple[int, int, int]]:
    """Squares (size, top, left) that do not overlap, the digit's first, as many as fit in some tries."""
    found: list[tuple[int, int, int]] = []
    for attempt in range(60):
        size = int(random.integers(16, 21)) if not found else int(random.integers(12, 17))
        top, left = (int(v) for v in random.integers(0, SIZE - size + 1, 2))
        clear = all(
            abs((top + size / 2) - (t + s / 2)) >= (size + s) / 2
            or abs((left + size / 2) - (n + s / 2)) >= (size + s) / 2
            for s, t, n in found
        )
        if clear:
            found.append((size, top, left))
        if len(found) == count or (attempt > 40 and found):
            break
    return found


def _scrambled(random: np.random.Generator, images: Image) -> Image:
    """Quarters of four digits in one square, each turned: strokes of digits that form none."""
    quarters = [
        images[i].reshape(2, 4, 2, 4).transpose(0, 2, 1, 3).reshape(4, 4, 4)
        for i in random.integers(len(images), size=4)
    ]
    turned = [np.rot90(quarter[int(random.integers(4))], int(random.integers(1, 4))) for quarter in quarters]
    return np.block([[turned[0], turned[1]], [turned[2], turned[3]]]).astype(np.float32)


def _colour(random: np.random.Generator, canvas: Image) -> Image:
    """A bright colour on a dark crop, a dark one on a bright crop."""
    level = random.uniform(0.75, 1.0, 3) if canvas.mean() < 0.5 else random.uniform(0.0, 0.25, 3)
    return np.asarray(level, dtype=np.float32)


def _paste(canvas: Image, alpha: Image, top: int, left: int, colour: Image) -> None:
    size = len(alpha)
    region = canvas[top : top + size, left : left + size]
    region += alpha[..., None] * (colour - region)


def _scaled(image: Image, size: int) -> Image:
    """A square image in [0, 1] at another size."""
    pil = require("PIL.Image")
    scaled = np.asarray(pil.fromarray(image).resize((size, size), pil.Resampling.BILINEAR), dtype=np.float32)
    return np.clip(scaled, 0, 1)


def _crop(random: np.random.Generator, part: str) -> Image:
    """A crop (H, W, 3) of one of the photographs, with less contrast than the digits have."""
    photo = _photos(part)[int(random.integers(len(_photos(part))))]
    height, width = photo.shape[0] - SIZE, photo.shape[1] - SIZE
    top, left = int(random.integers(height + 1)), int(random.integers(width + 1))
    crop = photo[top : top + SIZE, left : left + SIZE]
    if random.random() < 0.5:
        crop = crop[:, ::-1]
    middle = crop.mean()
    return np.asarray(np.clip((crop - middle) * 0.6 + middle, 0, 1), dtype=np.float32)


@functools.lru_cache(maxsize=2)
def _digits(part: str) -> tuple[Image, NDArray[np.int64]]:
    """Images (N, 8, 8) in [0, 1] and labels (N,): three quarters are for training, the rest is held out."""
    images, labels = require("sklearn.datasets").load_digits(return_X_y=True)
    chosen = require("sklearn.model_selection").train_test_split(
        images, labels, test_size=0.25, random_state=0, stratify=labels
    )
    x, y = (chosen[0], chosen[2]) if part == "train" else (chosen[1], chosen[3])
    return (x / 16).reshape(-1, 8, 8).astype(np.float32), y.astype(np.int64)


@functools.lru_cache(maxsize=2)
def _photos(part: str) -> tuple[Image, ...]:
    """The photographs (H, W, 3) in [0, 1], about 200 pixels high, without the part that is not for `part`."""
    data, pil = require("skimage.data"), require("PIL.Image")
    samples = require("sklearn.datasets").load_sample_images().images
    found: list[Image] = []
    for photo in [*(getattr(data, name)() for name in PHOTOS), *samples]:
        image = pil.fromarray(photo).convert("RGB")
        scale = 200 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), pil.Resampling.BOX)
        pixels = np.asarray(image, dtype=np.float32) / 255
        border = int(pixels.shape[1] * TRAINING_SHARE)
        found.append(np.asarray(pixels[:, :border] if part == "train" else pixels[:, border:], dtype=np.float32))
    return tuple(found)


def as_pixels(images: Tensor) -> Tensor:
    """Images as the model sees them, [-1, 1], as a screen shows them, [0, 1]."""
    return (images + 1) / 2
