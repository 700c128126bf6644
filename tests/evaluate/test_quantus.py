"""The same numbers as Quantus, to 1e-6, wherever Quantus computes them.

Quantus 0.6 with NumPy 2 stumbles in places; what is worked around is said at each place and never touches what it
computes.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from canonize.evaluate import metrics
from canonize.evaluate.metrics.faithfulness import correlation

quantus = pytest.importorskip("quantus", reason="the reference implementation is part of the development environment")

TOLERANCE = 1e-6
CLASSES = 5
SIZE = 16


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def model():
    """Single precision: Quantus hands float32 to the model whatever its dtype is."""
    torch.manual_seed(1)
    made = nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 7 * 7, CLASSES)),
    )
    return made.eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def targets():
    return torch.tensor([0, 1, 2, 3, 4, 2])


@pytest.fixture(scope="module")
def masks():
    return torch.rand(6, SIZE, SIZE, generator=torch.Generator().manual_seed(3)) > 0.6


def gradient(model, images, targets):
    x = images.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(x).gather(1, targets[:, None]).sum(), x)
    return (x * grad).detach()[:, 0]


def explain_for_quantus(model, inputs, targets, **kwargs):
    """Quantus calls its explanation function with arrays."""
    x, y = torch.as_tensor(inputs, dtype=torch.float32), torch.as_tensor(targets)
    return gradient(model, x, y)[:, None].numpy()


@pytest.fixture
def run(model, images, targets, masks):
    """Scores of a Quantus metric. The heatmaps are copied: Sparseness adds to the array it is given."""

    def scores(metric, relevance, **kwargs):
        return np.asarray(
            metric(
                model=model,
                x_batch=images.numpy().copy(),
                y_batch=targets.numpy().copy(),
                a_batch=relevance.numpy()[:, None].copy(),
                s_batch=masks.numpy()[:, None].copy(),
                channel_first=True,
                device="cpu",
                **kwargs,
            ),
            dtype=float,
        )

    return scores


@pytest.fixture(scope="module")
def relevance(model, images, targets):
    return gradient(model, images, targets)


PLAIN = {"normalise": False, "disable_warnings": True}


def agree(ours, theirs):
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=TOLERANCE)


def score(model, targets):
    return lambda x: model(x).softmax(1).gather(1, targets[:, None])[:, 0].detach()


def test_sparseness(run, relevance):
    # In units in which the 1e-7 that Quantus adds is nothing.
    theirs = run(quantus.Sparseness(abs=True, **PLAIN), relevance.double() * 1e9)
    agree(metrics.sparseness(relevance.double()), theirs)


def test_sparseness_as_quantus_runs_it_by_default(run, relevance):
    theirs = run(quantus.Sparseness(disable_warnings=True), relevance.double().abs() + 0.2 * relevance.abs().max())
    agree(metrics.sparseness(relevance.double().abs() + 0.2 * relevance.abs().max()), theirs)


@pytest.mark.parametrize("select", ["all", "absolute"])
def test_mass_accuracy(run, relevance, masks, select):
    theirs = run(quantus.RelevanceMassAccuracy(abs=select == "absolute", **PLAIN), relevance.double())
    agree(metrics.relevance_mass_accuracy(relevance.double(), masks, select), theirs)


def test_rank_accuracy(run, relevance, masks):
    theirs = run(quantus.RelevanceRankAccuracy(**PLAIN), relevance.double())
    agree(metrics.relevance_rank_accuracy(relevance.double(), masks), theirs)


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_region_perturbation(run, model, images, targets, relevance, order):
    """Quantus gives the drops after each step; the area over the curve is their mean with a first drop of zero."""
    theirs = run(
        quantus.RegionPerturbation(patch_size=4, order=order, regions_evaluation=10, perturb_baseline="mean", **PLAIN),
        relevance,
    )
    # Quantus takes the mean of what is left of the image, new at each step; for one step that is the image itself.
    fill = metrics.make_fill("mean", images)
    curve = metrics.perturbation_curve(score(model, targets), images, relevance, fill, patch=4, steps=1, order=order)
    agree(curve[:, 0] - curve[:, 1], theirs[:, 0])


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_region_perturbation_of_all_steps_and_its_area(run, model, images, targets, relevance, order):
    theirs = run(
        quantus.RegionPerturbation(patch_size=4, order=order, regions_evaluation=10, perturb_baseline=0.5, **PLAIN),
        relevance,
    )
    fill = metrics.make_fill("constant", images, low=0.0, high=1.0)
    curve = metrics.perturbation_curve(score(model, targets), images, relevance, fill, patch=4, steps=10, order=order)
    agree(curve[:, :1] - curve[:, 1:], theirs)
    area = metrics.region_perturbation(score(model, targets), images, relevance, fill, patch=4, steps=10, order=order)
    agree(area, np.concatenate([np.zeros((6, 1)), theirs], 1).mean(1))


def test_pixel_flipping_and_its_area(run, model, images, targets, relevance, monkeypatch):
    """``calculate_auc`` calls np.trapz, which NumPy 2 calls np.trapezoid."""
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    flip = {"features_in_step": 16, "perturb_baseline": 0.5, **PLAIN}
    theirs = run(quantus.PixelFlipping(**flip), relevance)
    fill = metrics.make_fill("constant", images, low=0.0, high=1.0)
    curve = metrics.perturbation_curve(score(model, targets), images, relevance, fill, regions_per_step=16)
    agree(curve[:, 1:], theirs)
    # Their curve begins after the first step and runs over steps, not over [0, 1].
    areas = run(quantus.PixelFlipping(return_auc_per_sample=True, **flip), relevance)
    agree(torch.trapezoid(curve[:, 1:].double(), dim=1), areas)


def test_black_is_the_smallest_value(run, model, images, targets, relevance):
    theirs = run(quantus.PixelFlipping(features_in_step=8, perturb_baseline="black", **PLAIN), relevance)
    fill = metrics.make_fill("black", images)
    curve = metrics.perturbation_curve(score(model, targets), images, relevance, fill, regions_per_step=8)
    agree(curve[:, 1:], theirs)


def test_blur(images):
    """``baseline_replacement_by_blur`` wants axes, which the metrics of Quantus 0.6 do not hand it: called directly."""
    rows, columns = np.meshgrid(np.arange(3, 9), np.arange(5, 16), indexing="ij")
    image = images[0].double()
    theirs = quantus.perturb_func.baseline_replacement_by_blur(
        image.numpy().copy(), (rows, columns), indexed_axes=[1, 2], blur_kernel_size=7
    )
    gone = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    gone[0, rows, columns] = True
    fill = metrics.make_fill("blur", image[None], kernel=7, border="zero")
    agree(fill(image[None], gone)[0], theirs)


@pytest.mark.parametrize("which", ["average", "maximum"])
def test_sensitivity(run, model, images, targets, relevance, which):
    """The same noise on both sides: their perturbation is replaced by one that adds ours."""
    radius, samples = 0.2, 4
    noise = [2 * torch.rand(1, SIZE, SIZE, dtype=torch.float64) - 1 for _ in range(samples * len(images))]
    drawn = iter(range(samples))

    def add_noise(arr, indices, **kwargs):
        step = next(drawn)
        together = torch.stack([noise[i * samples + step] for i in range(len(arr))])
        return arr + radius * together.flatten(1).numpy().astype(arr.dtype)

    theirs_kind = {"average": quantus.AvgSensitivity, "maximum": quantus.MaxSensitivity}[which]
    theirs = run(
        theirs_kind(nr_samples=samples, perturb_func=add_noise, **PLAIN), relevance, explain_func=explain_for_quantus
    )

    order = [iter(noise[i * samples : (i + 1) * samples]) for i in range(len(images))]
    calls = iter(range(samples * len(images)))

    def draw(image, generator):
        return next(order[next(calls) % len(images)])

    from canonize.evaluate.metrics import robustness

    patched = pytest.MonkeyPatch()
    patched.setattr(robustness, "_draw", draw)
    try:
        ours = metrics.sensitivity(
            lambda x: gradient(model, x, targets), images, relevance, radius=radius, samples=samples
        )
    finally:
        patched.undo()
    agree(getattr(ours, which), theirs)


def test_random_logit(run, model, images, targets, relevance):
    """Their other classes, which they draw from NumPy's global state, are watched; they divide by the largest value of
    the whole batch unless told the axes of a sample.
    """
    measure = quantus.RandomLogit(
        num_classes=CLASSES, normalise_func_kwargs={"normalise_axes": [1, 2, 3]}, disable_warnings=True
    )
    theirs = run(measure, relevance, explain_func=explain_for_quantus)
    seen = []

    def spy(model, inputs, targets, **kwargs):
        seen.append(np.asarray(targets))
        return explain_for_quantus(model, inputs, targets)

    run(measure, relevance, explain_func=spy)
    others = torch.as_tensor(seen[-1])
    assert not (others == targets).any()
    ours = metrics.random_logit(lambda t: gradient(model, images, t).double(), relevance.double(), others)
    agree(ours, theirs)


def test_similarity_of_images_is_that_of_scikit_image():
    skimage = pytest.importorskip("skimage.metrics", reason="part of the development environment")
    a, b = torch.rand(2, 1, 12, 15, dtype=torch.float64)
    span = float(torch.stack([a, b]).max() - torch.stack([a, b]).min())
    theirs = skimage.structural_similarity(a[0].numpy(), b[0].numpy(), data_range=span)
    assert metrics.structural_similarity(a, b).item() == pytest.approx(theirs, abs=TOLERANCE)


def test_entropy(run, relevance):
    theirs = run(quantus.Complexity(abs=True, **PLAIN), relevance.double())
    agree(metrics.entropy(relevance.double()), theirs)


def test_faithfulness_correlation(run, model, images, targets, relevance):
    """The sets are drawn as Quantus draws them, by NumPy's global generator, in its order."""
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=7, subset_size=40, perturb_baseline="black", abs=False, return_aggregate=False, **PLAIN
    )
    drawn = []
    honest = np.random.choice

    def watched(*arguments, **options):
        drawn.append(honest(*arguments, **options))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(np.random, "choice", watched)
        theirs = run(metric, relevance, softmax=True)
    if len(drawn) != 7 * len(images):
        pytest.skip("this Quantus draws its sets in another way")
    black = metrics.make_fill("black", images)
    watch = score(model, targets)
    for index, own in enumerate(theirs):
        sets = drawn[index :: len(images)]
        masks = torch.zeros(7, SIZE * SIZE, dtype=torch.bool)
        for row, chosen in enumerate(sets):
            masks[row, torch.as_tensor(chosen)] = True
        one = slice(index, index + 1)
        drops = [
            watch(images)[one] - watch(black(images, mask.view(1, SIZE, SIZE).expand(len(images), -1, -1)))[one]
            for mask in masks
        ]
        sums = (relevance[index].flatten() * masks).sum(1)
        found = correlation(sums[None].double(), torch.cat(drops)[None].double())
        assert abs(found.item() - own) < 1e-4
