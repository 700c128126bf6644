"""Sort-of-CLEVR: scenes of six coloured shapes, questions about one of them or about how they relate, object masks.

The task of Santoro et al. 2017 (arXiv 1706.01427), drawn here from scratch. As in CLEVR-XAI, a *simple* question is
about one object, a *complex* one about several, and the ground truth is the mask of the objects that the answer
follows from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from canonize.evaluate.data.samples import Samples, box_of

SIZE = 64
RADIUS = 5
COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.7, 0.1),
    "blue": (0.1, 0.2, 0.9),
    "orange": (1.0, 0.6, 0.1),
    "cyan": (0.1, 0.9, 0.9),
    "yellow": (0.95, 0.95, 0.1),
}
SHAPES = ("square", "circle")
SIMPLE = ("shape of", "is on the left:", "is on top:")
COMPLEX = ("shape closest to", "shape furthest from", "how many look like")
ANSWERS = ("yes", "no", *SHAPES, *(str(number) for number in range(1, 7)))
QUESTION_LENGTH = len(COLOURS) + 2 + 3

Kind = Literal["simple", "complex", "both"]


class SortOfClevr:
    """Scenes (3, 64, 64) in [-1, 1] with questions (11,) and 10 answers.

    Parameters
    ----------
    count : int
        Number of samples: a scene and a question each.
    seed : int
        Of all that is drawn.
    questions : {"simple", "complex", "both"}
        About one object, about several, or now one, now the other.
    part : {"test", "train"}
        The two share no scene.

    Notes
    -----
    Masks: ``"object"``, what the answer follows from (the object asked about, and for complex questions those it is
    compared with: the closest, the furthest, all that look like it); ``"all"``, every object. A question is one-hot:
    six for the colour, two for simple or complex, three for what is asked.
    """

    classes: tuple[str, ...] = ANSWERS

    def __init__(
        self,
        count: int = 1000,
        seed: int = 0,
        questions: Kind = "both",
        part: Literal["train", "test"] = "test",
    ) -> None:
        self.name = "sort-of-clevr" if questions == "both" else f"sort-of-clevr-{questions}"
        self.count, self.seed, self.questions, self.part = count, seed, questions, part
        self.low, self.high = torch.full((3, 1, 1), -1.0), torch.full((3, 1, 1), 1.0)

    def __len__(self) -> int:
        return self.count

    def take(self, indices: Sequence[int]) -> Samples:
        """Draw the samples with these indices."""
        drawn = [self._draw(int(index)) for index in indices]
        relevant = torch.from_numpy(np.stack([mask for _, _, _, mask, _ in drawn]))
        return Samples(
            (
                torch.from_numpy(np.stack([image for image, *_ in drawn])),
                torch.from_numpy(np.stack([question for _, question, *_ in drawn])),
            ),
            torch.tensor([answer for _, _, answer, *_ in drawn]),
            {"object": relevant, "all": torch.from_numpy(np.stack([whole for *_, whole in drawn]))},
            box_of(relevant),
            tuple(f"scene-{self.seed}-{index}" for index in indices),
        )

    def scene(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Centres (6, 2), as row and column, and shapes (6,) of a scene's objects, by colour."""
        random = self._random(index)
        return _scene(random)

    def _random(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, index, self.part == "train"])

    def _draw(
        self, index: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], int, NDArray[np.bool_], NDArray[np.bool_]]:
        random = self._random(index)
        centres, shapes = _scene(random)
        masks = np.stack([_shape_mask(centre, shape) for centre, shape in zip(centres, shapes, strict=True)])
        image = np.full((SIZE, SIZE, 3), 0.5, dtype=np.float32)  # grey, which a model sees as zero
        for shape_mask, value in zip(masks, COLOURS.values(), strict=True):
            image[shape_mask] = value
        is_complex = {"simple": False, "complex": True, "both": bool(random.integers(2))}[self.questions]
        colour, asked = int(random.integers(len(COLOURS))), int(random.integers(3))
        question, answer, concerned = ask(centres, shapes, colour, is_complex, asked)
        return (
            np.asarray((image * 2 - 1).transpose(2, 0, 1)),
            question,
            answer,
            np.asarray(masks[concerned].any(0)),
            np.asarray(masks.any(0)),
        )


def in_words(question: torch.Tensor) -> str:
    """A question (11,) as a person would read it."""
    colour, kind, asked = (int(part.argmax()) for part in question.split([len(COLOURS), 2, 3]))
    return f"{(SIMPLE, COMPLEX)[kind][asked]} {list(COLOURS)[colour]}"


def _scene(random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    centres: list[NDArray[np.int64]] = []
    while len(centres) < len(COLOURS):
        centre = random.integers(RADIUS + 1, SIZE - RADIUS - 1, 2)
        if all(np.linalg.norm(centre - other) > 2 * RADIUS * 1.42 for other in centres):
            centres.append(centre)
    return np.stack(centres), random.integers(0, 2, len(COLOURS))


def _shape_mask(centre: NDArray[np.int64], shape: int) -> NDArray[np.bool_]:
    rows, columns = np.abs(np.mgrid[0:SIZE, 0:SIZE] - centre[:, None, None])
    mask: NDArray[np.bool_]
    if SHAPES[shape] == "square":
        mask = (rows <= RADIUS) & (columns <= RADIUS)
    else:
        mask = rows**2 + columns**2 <= RADIUS**2 + 1
    return mask


def ask(
    centres: NDArray[np.int64], shapes: NDArray[np.int64], colour: int, is_complex: bool, asked: int
) -> tuple[NDArray[np.float32], int, list[int]]:
    """A question about a scene as numbers (11,), the index of its answer, and the objects the answer follows from."""
    question = np.zeros(QUESTION_LENGTH, dtype=np.float32)
    question[[colour, len(COLOURS) + is_complex, len(COLOURS) + 2 + asked]] = 1
    return question, *_answer(centres, shapes, colour, is_complex, asked)


def _answer(
    centres: NDArray[np.int64], shapes: NDArray[np.int64], colour: int, is_complex: bool, asked: int
) -> tuple[int, list[int]]:
    row, column = centres[colour]
    if not is_complex:
        said = (SHAPES[shapes[colour]], "yes" if column < SIZE / 2 else "no", "yes" if row < SIZE / 2 else "no")
        return ANSWERS.index(said[asked]), [colour]
    if asked == 2:
        alike = [i for i in range(len(COLOURS)) if shapes[i] == shapes[colour]]
        return ANSWERS.index(str(len(alike))), alike
    distances = np.linalg.norm(centres - centres[colour], axis=1)
    distances[colour] = np.inf if asked == 0 else -np.inf
    other = int(distances.argmin() if asked == 0 else distances.argmax())
    return ANSWERS.index(SHAPES[shapes[other]]), [colour, other]
