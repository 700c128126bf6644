"""CLEVR-XAI: questions about rendered scenes, with the masks of the objects an answer follows from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from canonize.errors import InputError
from canonize.evaluate.data.pictures import ENDINGS, Transform, the_folder
from canonize.evaluate.data.samples import Samples, box_of

# Folders of ground truths begin with this; their ends say which.
GROUND_TRUTH = "ground_truth"
MASKS = {
    "single": ("single_object", "one_object"),
    "unique-first": ("unique_firstnonempty", "unique_first_nonempty", "unique_first"),
    "unique": ("unique",),
    "union": ("union",),
    "all": ("all_objects", "all"),
}
# What an answer follows from, as in Pahde et al. 2023 (section 4.4). Simple ones are about one object.
USUAL = {"simple": ("unique", "single"), "complex": ("union",)}


class ClevrXai:
    """Scenes, questions as word numbers, answers; the ground truth ``object``, and all others that there are, by name.

    Parameters
    ----------
    root : path
        Holds ``images``, a file ``*questions*.json`` for each kind of question, and folders ``ground_truth*`` with one
        boolean array (H, W) a question, named by its number: ``ground_truth_simple_questions_single_object/17.npy``.
    questions : {"simple", "complex"}
    mask : {"single", "unique", "unique-first", "union", "all"}, optional
        Which ground truth ``object`` is; by default ``union`` for complex questions, the unique object for simple ones.
    transform : Transform
        By default pictures are squeezed into 128x128, [0, 1], as the Relation Networks of the literature see them.

    Notes
    -----
    Words and answers are numbered in alphabetical order, words from 1 (0 fills up); ``dic.json`` in the root, with the
    entries ``word_dic`` and ``answer_dic`` that such models are trained with, goes before. Questions without a ground
    truth are left out, as in the published evaluation.

    Raises
    ------
    InputError
        If a part is missing.
    """

    def __init__(
        self, root: Path, questions: str = "simple", transform: Transform | None = None, mask: str | None = None
    ) -> None:
        self.name = f"clevr-xai-{questions}"
        self.transform = transform or Transform(128, False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.low, self.high = self.transform.low, self.transform.high
        self._images = the_folder(root, "images")
        asked = _questions(root, questions)
        self._truths = _ground_truths(root, questions)
        self._truths = {"object": _object(root, questions, mask, self._truths)} | self._truths
        known = {file.stem for file in self._truths["object"].glob("*.npy")}
        self._words, answers = _dictionaries(root, asked)
        self.classes = tuple(sorted(answers, key=lambda answer: answers[answer]))
        self._answers = answers
        self._asked = [item for item in asked if str(item["question_index"]) in known]
        if not self._asked:
            raise InputError(
                "no question has a ground truth", where=str(root), hint="Masks are named by question number"
            )
        self._length = max(len(_split_words(item["question"])) for item in self._asked)

    def __len__(self) -> int:
        return len(self._asked)

    def take(self, indices: Sequence[int]) -> Samples:
        """Read the samples with these indices."""
        items = [self._asked[index] for index in indices]
        masks = {
            name: torch.stack([self._mask(folder / f"{item['question_index']}.npy", name) for item in items])
            for name, folder in self._truths.items()
        }
        return Samples(
            (
                torch.stack([self.transform.picture(self._picture(item))[0] for item in items]),
                torch.stack([self._encoded(item["question"]) for item in items]),
            ),
            torch.tensor([self._answers[str(item["answer"])] for item in items]),
            masks,
            box_of(masks["object"]),
            tuple(f"question-{item['question_index']}" for item in items),
        )

    def _picture(self, item: dict[str, Any]) -> Path:
        name = str(item.get("image_filename") or item["image"])
        file = self._images / name
        return file if file.suffix in ENDINGS else file.with_name(f"{name}.png")

    def _mask(self, file: Path, name: str) -> Tensor:
        if name != "object" and not file.is_file():  # nothing is known by this truth
            return torch.zeros(self.transform.size, self.transform.size, dtype=torch.bool)
        try:
            mask = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"is no mask ({error})", where=str(file), hint="It should be a boolean array") from error
        return self.transform.mask(mask.astype(bool))

    def _encoded(self, question: str) -> Tensor:
        words = [self._words.get(word, 0) for word in _split_words(question)]
        return torch.tensor(words + [0] * (self._length - len(words)))


def _questions(root: Path, kind: str) -> list[dict[str, Any]]:
    files = [file for file in sorted(root.glob("*questions*.json")) if kind in file.name]
    if not files:
        raise InputError(
            f"there is no file *{kind}*questions*.json", where=str(root), hint="Unpack the questions there"
        )
    try:
        found: list[dict[str, Any]] = json.loads(files[0].read_text(encoding="utf-8"))["questions"]
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"holds no questions ({error!r})", where=str(files[0]), hint="It should be CLEVR's JSON"
        ) from error


def _ground_truths(root: Path, kind: str) -> dict[str, Path]:
    """The folder of each ground truth of a kind of questions."""
    folders = [f for f in sorted(root.glob(f"{GROUND_TRUTH}*")) if f.is_dir() and kind in f.name]
    found: dict[str, Path] = {}
    for name, endings in MASKS.items():
        for ending in endings:
            named = [folder for folder in folders if folder.name.lower().endswith(f"_{ending}")]
            if named:
                found.setdefault(name, named[0])
    return found


def _object(root: Path, kind: str, mask: str | None, truths: dict[str, Path]) -> Path:
    """The ground truth that counts."""
    wanted = USUAL.get(kind, ()) if mask is None else (mask.replace("_", "-").replace("firstnonempty", "first"),)
    for name in wanted:
        if name in truths:
            return truths[name]
    if mask is not None and wanted[0] not in MASKS:
        raise InputError(f"there is no mask {mask!r}", hint=f"Choose one of {', '.join(MASKS)}")
    there = f"Add :mask={', or :mask='.join(truths)}" if truths else "Unpack the masks there"
    raise InputError(
        f"there is no folder {GROUND_TRUTH}*{kind}*_{MASKS[wanted[-1]][0]}" if wanted else f"no {kind} questions",
        where=str(root),
        hint=there,
    )


def _dictionaries(root: Path, asked: list[dict[str, Any]]) -> tuple[dict[str, int], dict[str, int]]:
    file = root / "dic.json"
    if file.is_file():
        given = json.loads(file.read_text(encoding="utf-8"))
        answers = {str(key): int(value) for key, value in given["answer_dic"].items()}
        lowest = min(answers.values())  # they are counted from 1 in most such files, classes from 0
        return dict(given["word_dic"]), {key: value - lowest for key, value in answers.items()}
    words = sorted({word for item in asked for word in _split_words(item["question"])})
    return (
        {word: index for index, word in enumerate(words, 1)},
        {answer: index for index, answer in enumerate(sorted({str(item["answer"]) for item in asked}))},
    )


def _split_words(question: str) -> list[str]:
    return re.findall(r"\w+", question.lower())
