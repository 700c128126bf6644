"""Readers on tiny trees in the real layouts, and the generated sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from canonize.errors import InputError
from canonize.evaluate.data import Transform, collate, open_data
from canonize.evaluate.data.samples import DataSet, box_of
from canonize.evaluate.data.sort_of_clevr import ANSWERS, COLOURS, SortOfClevr, in_words
from canonize.evaluate.metrics.catalogue import OTHER_MASKS
from tests.evaluate import trees

SQUEEZED = Transform(30, crop=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def green(samples, index=0):
    """Where the picture is green, as the model sees it: (H, W)."""
    image = samples.images[index]
    return image[1] > image[0]


def most(first, second):
    """Whether two masks are the same but for a column at an edge."""
    return (first != second).float().mean() <= 2 / 30


def test_imagenet(tmp_path):
    data = open_data(f"imagenet:{trees.imagenet(tmp_path)}", transform=SQUEEZED)
    samples = data.take([0, 1])
    assert samples.labels.tolist() == [1, 0]  # sorted synsets: n01, n02, n03
    assert data.classes == ("tench", "cat, puss", "dog")
    assert samples.names[0] == "ILSVRC2012_val_00000001"
    assert most(samples.boxes[0], green(samples))
    assert torch.equal(samples.masks["object"], samples.boxes)


def test_a_crop_moves_picture_and_box_alike(tmp_path):
    data = open_data(f"imagenet:{trees.imagenet(tmp_path)}", transform=Transform(28))
    samples = data.take([0])
    assert samples.images.shape == (1, 3, 28, 28)
    assert samples.boxes[0].any() and not samples.boxes[0].all()
    assert most(samples.boxes[0], green(samples))
    assert (samples.images >= data.low - 1e-6).all() and (samples.images <= data.high + 1e-6).all()


def test_voc_one_sample_a_class_and_picture(tmp_path):
    data = open_data(f"voc:{trees.voc(tmp_path)}", transform=SQUEEZED)
    samples = data.take(range(len(data)))
    # The dog of the first picture is marked as difficult.
    assert samples.names == ("2007_000001:cat", "2007_000002:dog", "2007_000002:person")
    assert [data.classes[label] for label in samples.labels.tolist()] == ["cat", "dog", "person"]
    segmented = torch.zeros(30, 30, dtype=torch.bool)
    segmented[8:15, 10:20] = True
    assert most(samples.masks["object"][0], segmented) and most(samples.boxes[0], green(samples))
    assert torch.equal(samples.masks["object"][1], samples.boxes[1])  # a picture without a segmentation


def test_clevr_xai(tmp_path):
    data = open_data(f"clevr-xai-simple:{trees.clevr_xai(tmp_path)}")
    assert len(data) == 2  # the question without a ground truth is left out
    samples = data.take([0, 1])
    assert samples.images.shape == (2, 3, 128, 128)
    assert [data.classes[label] for label in samples.labels.tolist()] == ["cube", "yes"]
    assert samples.masks["object"][0].nonzero()[:, 1].unique().tolist() == list(range(64, 96))
    assert samples.masks["all"][0].float().mean() == 96 / 128
    words = samples.inputs[1]
    assert words.dtype == torch.int64 and words.shape == (2, 6) and (words[1, 3:] == 0).all() and (words[0] > 0).all()


COMPLEX = {"unique": 16, "unique-first": 32, "union": 48, "all": 96}


@pytest.mark.parametrize(
    ("option", "columns"),
    [("", 48), (":mask=unique", 16), (":mask=unique-first", 32), (":mask=unique_firstnonempty", 32), (":mask=all", 96)],
)
def test_complex_questions_take_the_union_and_any_other_mask_that_is_asked_for(tmp_path, option, columns):
    samples = open_data(f"clevr-xai-complex:{trees.clevr_xai(tmp_path)}{option}").take([0, 1])
    assert (samples.masks["object"].float().mean((1, 2)) == columns / 128).all()
    assert {name: int(m[0].float().mean() * 128) for name, m in samples.masks.items() if name != "object"} == COMPLEX
    assert set(COMPLEX) <= set(OTHER_MASKS)  # each is measured by mass-accuracy-NAME


def test_a_truth_that_is_not_there_is_refused_and_never_replaced(tmp_path):
    root = trees.clevr_xai(tmp_path)
    with pytest.raises(InputError, match=r"no folder ground_truth\*simple\*_union"):
        open_data(f"clevr-xai-simple:{root}:mask=union")
    with pytest.raises(InputError, match=r"no mask 'some'.*unique-first"):
        open_data(f"clevr-xai-simple:{root}:mask=some")
    for file in (root / "ground_truth_complex_questions_union").iterdir():
        file.unlink()
    (root / "ground_truth_complex_questions_union").rmdir()
    with pytest.raises(InputError, match=r"_union.*:mask=unique"):
        open_data(f"clevr-xai-complex:{root}")
    (root / "ground_truth_simple_questions_all_objects/7.npy").unlink()
    assert not open_data(f"clevr-xai-simple:{root}").take([1]).masks["all"].any()


def test_voc_is_squeezed_so_that_no_object_is_lost(tmp_path):
    """The person of the second picture stands at its left border, where a crop would cut."""
    data = open_data(f"voc:{trees.voc(tmp_path)}", size=42)
    person = data.take([2]).boxes[0]
    assert person.sum() == (42 * 10 // 60) * (42 * 20 // 40) and person[0, 0]
    assert open_data(f"folder:{trees.masked_folder(tmp_path)}", size=42).transform.crop


def test_voc_year_and_split_are_chosen(tmp_path):
    root = trees.voc(tmp_path)
    main = root / "VOC2012/ImageSets/Main"
    main.mkdir()
    (main / "val.txt").write_text("2007_000002  1\n")
    (main / "train.txt").write_text("2007_000001 -1\n")
    assert len(open_data(f"voc:{root}:split=train")) == 1
    assert [len(open_data(f"voc:{root}:split={split}")) for split in ("val", "Main/val")] == [3, 2]
    (root / "VOC2012").rename(root / "VOC2007")
    trees.voc(root)
    with pytest.raises(InputError, match=r"years 2007 and 2012.*:year=2012"):
        open_data(f"voc:{root}")
    assert len(open_data(f"voc:{root}:year=2007:split=train")) == 1
    assert len(open_data(f"voc:{root}/VOC2012")) == len(open_data(f"voc:{root}:year=2012")) == 3
    with pytest.raises(InputError, match="VOC2010/JPEGImages"):
        open_data(f"voc:{root}:year=2010")
    with pytest.raises(InputError, match="no split 'test'"):
        open_data(f"voc:{root}:year=2012:split=test")
    with pytest.raises(InputError, match=r"no option 'years'.*split, year"):
        open_data(f"voc:{root}:years=2012")


def test_every_class_in_a_picture_is_a_right_answer(tmp_path):
    samples = open_data(f"voc:{trees.voc(tmp_path)}", transform=SQUEEZED).take([0, 1, 2])
    assert samples.present.tolist() == [1, 2, 2]  # cat; dog and person
    outputs = torch.zeros(3, 20)
    outputs[:, samples.labels[1]], outputs[:, samples.labels[2]] = 2.0, 1.0  # dog before person before all others
    assert samples.right(outputs).tolist() == [False, True, True]
    assert samples.to(torch.device("cpu"), torch.float64).present.tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("classes", "labels"),
    [("n02", {1}), ("tench+n02", {0, 1}), ("0", None), ("3", {0, 1}), ("puss", {1}), ("LIST", {0})],
)
def test_imagenet_by_a_list_of_classes(tmp_path, classes, labels):
    root = trees.imagenet(tmp_path)
    if classes == "LIST":
        (tmp_path / "list.txt").write_text("n01 tench\n\n2\n")
        classes = tmp_path / "list.txt"
    if labels is None:
        with pytest.raises(InputError, match="3 classes, not 0"):
            open_data(f"imagenet:{root}:classes={classes}")
        return
    data = open_data(f"imagenet:{root}:classes={classes}")
    assert set(data.take(range(len(data))).labels.tolist()) == labels


def test_a_class_that_imagenet_does_not_have_is_refused(tmp_path):
    with pytest.raises(InputError, match="no class 'unicorn'"):
        open_data(f"imagenet:{trees.imagenet(tmp_path)}:classes=n01+unicorn")
    with pytest.raises(InputError, match="no picture is of these"):
        open_data(f"imagenet:{tmp_path}:classes=dog")


def test_clevr_xai_with_the_dictionaries_of_a_trained_model(tmp_path):
    root = trees.clevr_xai(tmp_path)
    (root / "dic.json").write_text('{"word_dic": {"large": 9}, "answer_dic": {"yes": 2, "cube": 1}}')
    data = open_data(f"clevr-xai-simple:{root}")
    assert data.classes == ("cube", "yes")
    assert data.take([1]).inputs[1][0].tolist() == [0, 0, 9, 0, 0, 0]


def test_a_folder_with_masks(tmp_path):
    data = open_data(f"folder:{trees.masked_folder(tmp_path)}", transform=SQUEEZED)
    samples = data.take([0, 1])
    assert data.classes == ("ant", "zebra") and samples.labels.tolist() == [0, 1]
    assert not samples.masks["object"][0].any()  # a picture without a mask
    assert most(samples.masks["object"][1], green(samples, 1))


def broken_mask(root):
    (root / "masks/zebra/one.png").write_bytes(b"no picture")


def small_mask(root):
    from PIL import Image

    Image.fromarray(np.zeros((3, 3), dtype=np.uint8)).save(root / "masks/zebra/one.png")


@pytest.mark.parametrize(("spoil", "reason"), [(broken_mask, "cannot be read"), (small_mask, "3x3, its picture 60x40")])
def test_a_folder_with_a_wrong_mask_is_refused(tmp_path, spoil, reason):
    root = trees.masked_folder(tmp_path)
    spoil(root)
    with pytest.raises(InputError, match=reason) as error:
        open_data(f"folder:{root}", transform=SQUEEZED).take([1])
    assert "one.png" in str(error.value)


@pytest.mark.parametrize(
    ("make", "spec", "remove", "reason"),
    [
        (trees.imagenet, "imagenet", "LOC_synset_mapping.txt", "is missing"),
        (trees.voc, "voc", "VOC2012/ImageSets/Segmentation/val.txt", "no split"),
        (trees.clevr_xai, "clevr-xai-simple", "CLEVR-XAI_simple_questions.json", "no file"),
        (trees.voc, "voc", "VOC2012/Annotations/2007_000002.xml", "is no annotation"),
    ],
)
def test_an_incomplete_data_set_is_refused_with_what_is_missing(tmp_path, make, spec, remove, reason):
    (make(tmp_path) / remove).unlink()
    with pytest.raises(InputError, match=reason):
        open_data(f"{spec}:{tmp_path}")


def test_data_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no data set 'cifar'.*digits"):
        open_data("cifar")
    with pytest.raises(InputError, match="no folder"):
        open_data(f"voc:{tmp_path}/nowhere")
    with pytest.raises(InputError, match="JPEGImages"):
        open_data(f"voc:{tmp_path}")


# -- Generated


@pytest.mark.parametrize("spec", ["digits", "sort-of-clevr", "sort-of-clevr-simple", "sort-of-clevr-complex"])
def test_generated_samples_depend_on_their_seed_and_index_alone(spec):
    data = open_data(spec, count=50, seed=3)
    assert isinstance(data, DataSet)
    together, alone = data.take([5, 17]), data.take([17])
    assert torch.equal(together.images[1], alone.images[0])
    assert torch.equal(together.labels[1:], alone.labels)
    assert not torch.equal(open_data(spec, seed=4).take([17]).images, alone.images)
    assert (together.images >= data.low).all() and (together.images <= data.high).all()
    assert together.names[1].endswith("17")
    both = collate([data.take([5]), alone])
    assert torch.equal(both.images, together.images) and torch.equal(both.boxes, together.boxes)


def test_digits_are_where_the_mask_says():
    samples = open_data("digits", count=40, seed=0).take(range(40))
    mask = samples.masks["object"]
    assert set(samples.labels.tolist()) == set(range(10))
    assert (mask.flatten(1).sum(1) > 20).all() and (mask.flatten(1).float().mean(1) < 0.3).all()
    assert torch.equal(box_of(mask), samples.boxes) and (mask <= samples.boxes).all()
    # A digit is one colour, apart from its blurred rim: inside, pixels are more alike than in the whole image.
    spread = [float(image[:, m].std()) for image, m in zip(samples.images, mask, strict=True)]
    whole = [float(image.std()) for image in samples.images]
    assert np.mean(spread) < np.mean(whole)


def test_training_and_testing_share_no_digit():
    from canonize.evaluate.data import digits

    train, test = (digits._digits(part)[0] for part in ("train", "test"))
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}


def test_questions_are_answered_rightly():
    data = SortOfClevr(60, seed=1, questions="both")
    samples = data.take(range(60))
    asked = set()
    for index in range(60):
        centres, shapes = data.scene(index)
        words = in_words(samples.inputs[1][index])
        colour = list(COLOURS).index(words.split()[-1])
        answer = ANSWERS[int(samples.labels[index])]
        distances = np.hypot(*(centres - centres[colour]).T)
        others = [i for i in range(6) if i != colour]
        wanted = {
            "shape of": lambda c=colour, s=shapes: ("square", "circle")[s[c]],
            "is on the left:": lambda c=colour, p=centres: "yes" if p[c][1] < 32 else "no",
            "is on top:": lambda c=colour, p=centres: "yes" if p[c][0] < 32 else "no",
            "shape closest to": lambda d=distances, o=others, s=shapes: ("square", "circle")[
                s[min(o, key=d.__getitem__)]
            ],
            "shape furthest from": lambda d=distances, o=others, s=shapes: ("square", "circle")[
                s[max(o, key=d.__getitem__)]
            ],
            "how many look like": lambda c=colour, s=shapes: str((s == s[c]).sum()),
        }
        kind = words.rpartition(" ")[0]
        asked.add(kind)
        assert answer == wanted[kind](), words
        # The mask holds the middle of the object asked about, and every relevant object is one of all objects.
        row, column = centres[colour]
        assert samples.masks["object"][index, row, column]
        assert (samples.masks["object"][index] <= samples.masks["all"][index]).all()
    assert len(asked) == 6


def test_masks_of_simple_questions_are_of_one_object():
    samples = open_data("sort-of-clevr-simple", count=20).take(range(20))
    one = samples.masks["object"].flatten(1).sum(1)
    assert (one < 130).all() and (samples.masks["all"].flatten(1).sum(1) > 4 * one).all()
