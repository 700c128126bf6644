"""Tiny made-up data sets on disk, in exactly the layouts of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 60, 40


def picture(file: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """Red, with the middle third green."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[..., 0] = 255
    pixels[:, size[0] // 3 : 2 * size[0] // 3] = (0, 255, 0)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def annotation(
    file: Path, objects: list[tuple[str, tuple[int, int, int, int]]], difficult: tuple[int, ...] = ()
) -> None:
    """VOC's XML."""
    body = "".join(
        f"<object><name>{name}</name><difficult>{int(i in difficult)}</difficult><bndbox><xmin>{b[0]}</xmin>"
        f"<ymin>{b[1]}</ymin><xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>"
        for i, (name, b) in enumerate(objects)
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"<annotation>{size}{body}</annotation>")


# Columns 21 to 40, counted from 1 and inclusive: the green third.
GREEN = (21, 1, 40, HEIGHT)


def imagenet(root: Path) -> Path:
    for number, synset in enumerate(("n02", "n01"), 1):
        name = f"ILSVRC2012_val_0000000{number}"
        picture(root / "Data/CLS-LOC/val" / f"{name}.JPEG")
        annotation(root / "Annotations/CLS-LOC/val" / f"{name}.xml", [(synset, GREEN)])
    (root / "LOC_synset_mapping.txt").write_text("n02 cat, puss\nn01 tench\nn03 dog\n")
    return root


def voc(root: Path) -> Path:
    year = root / "VOC2012"
    picture(year / "JPEGImages/2007_000001.jpg")
    picture(year / "JPEGImages/2007_000002.jpg")
    annotation(year / "Annotations/2007_000001.xml", [("cat", GREEN), ("dog", (1, 1, 10, 10))], difficult=(1,))
    annotation(year / "Annotations/2007_000002.xml", [("dog", GREEN), ("person", (1, 1, 10, 20))])
    segmentation = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    segmentation[10:20, 20:40] = 8  # cat
    segmentation[9, 20:40] = 255  # border
    image = Image.fromarray(segmentation)
    image.putpalette([value for index in range(256) for value in (index, index, index)])
    (year / "SegmentationClass").mkdir()
    image.save(year / "SegmentationClass/2007_000001.png")
    (year / "ImageSets/Segmentation").mkdir(parents=True)
    (year / "ImageSets/Segmentation/val.txt").write_text("2007_000001\n2007_000002\n")
    return root


def clevr_xai(root: Path) -> Path:
    picture(root / "images/CLEVR_val_000000.png")
    questions = [
        {
            "question_index": 4,
            "image": "CLEVR_val_000000",
            "question": "What shape is the red thing?",
            "answer": "cube",
        },
        {"question_index": 7, "image": "CLEVR_val_000000", "question": "Is it large?", "answer": "yes"},
        {"question_index": 9, "image": "CLEVR_val_000000", "question": "How many?", "answer": "0"},
    ]
    simple, complex_too = "simple_questions", "complex_questions"
    for kind in (simple, complex_too):
        (root / f"CLEVR-XAI_{kind}.json").write_text(json.dumps({"questions": questions}))
    truths = {
        f"{simple}_single_object": slice(64, 96),
        f"{simple}_all_objects": slice(32, 128),
        f"{complex_too}_unique": slice(0, 16),
        f"{complex_too}_unique_firstnonempty": slice(0, 32),
        f"{complex_too}_union": slice(0, 48),
        f"{complex_too}_all_objects": slice(0, 96),
    }
    for kind, columns in truths.items():
        folder = root / f"ground_truth_{kind}"
        folder.mkdir()
        for index in (4, 7):  # the third question has no object
            mask = np.zeros((128, 128), dtype=bool)
            mask[:, columns] = True
            np.save(folder / f"{index}.npy", mask)
    return root


def masked_folder(root: Path) -> Path:
    picture(root / "images/zebra/one.jpg")
    picture(root / "images/ant/two.png")
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[:, 20:40] = 255
    (root / "masks/zebra").mkdir(parents=True)
    Image.fromarray(mask).save(root / "masks/zebra/one.png")
    return root
