"""Each metric against cases worked by hand; every tensor float64."""

from __future__ import annotations

import math

import pytest
import torch

from canonize.errors import InputError
from canonize.evaluate import metrics
from canonize.evaluate.metrics.robustness import sensitivity

D = torch.float64


def tensor(*values, shape=None):
    made = torch.tensor(values, dtype=D)
    return made if shape is None else made.reshape(shape)


# -- Sparseness


@pytest.mark.parametrize(
    ("values", "gini"),
    [
        ((1, 1, 1, 1), 0.0),
        ((0, 0, 0, 1), 0.75),  # (n - 1) / n: all in one of n
        ((1, 2, 3), 2 / 9),  # (-2 * 1 + 0 * 2 + 2 * 3) / (3 * 6)
        ((-1, 2, -3), 2 / 9),
        ((1e-300, 2e-300, 3e-300), 2 / 9),
    ],
)
def test_sparseness(values, gini):
    assert metrics.sparseness(tensor(values)).item() == pytest.approx(gini, abs=1e-12)


def test_sparseness_of_nothing_is_unknown():
    assert metrics.sparseness(torch.zeros(1, 4)).isnan().all()


# -- Localisation: relevance 4 3 / 2 1 (one negative), object in the upper row

RELEVANCE = tensor(4, 3, -2, 1, shape=(1, 2, 2))
UPPER = torch.tensor([[[True, True], [False, False]]])
DIAGONAL = torch.tensor([[[True, False], [False, True]]])


@pytest.mark.parametrize(("select", "share"), [("positive", 7 / 8), ("all", 7 / 6), ("absolute", 7 / 10)])
def test_mass_accuracy(select, share):
    assert metrics.relevance_mass_accuracy(RELEVANCE, UPPER, select).item() == pytest.approx(share, abs=1e-14)


def test_rank_accuracy():
    assert metrics.relevance_rank_accuracy(RELEVANCE, UPPER).item() == 1.0
    assert metrics.relevance_rank_accuracy(RELEVANCE, DIAGONAL).item() == 0.5


def test_inside_total_ratio_and_its_weighted_form():
    corner = torch.tensor([[[True, False], [False, False]]])
    assert metrics.inside_total_ratio(RELEVANCE, corner).item() == pytest.approx(0.5)
    assert metrics.weighted_inside_total_ratio(RELEVANCE, corner).item() == pytest.approx(2.0)  # a quarter of the area
    even = torch.ones(1, 2, 2, dtype=D)
    assert metrics.weighted_inside_total_ratio(even, corner).item() == pytest.approx(1.0)


def test_an_empty_mask_and_an_empty_heatmap_are_unknown():
    nowhere = torch.zeros_like(UPPER)
    for measure in (metrics.relevance_mass_accuracy, metrics.relevance_rank_accuracy, metrics.inside_total_ratio):
        assert measure(RELEVANCE, nowhere).isnan().all()
    assert metrics.relevance_mass_accuracy(-RELEVANCE.abs(), UPPER).isnan().all()


def test_localisation_does_not_depend_on_the_scale():
    tiny = (RELEVANCE * 1e-40).float()  # below single precision's normal numbers
    assert metrics.relevance_mass_accuracy(tiny, UPPER).item() == pytest.approx(7 / 8, abs=1e-3)


def test_shapes_and_types_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"different shapes.*Sum the heatmaps"):
        metrics.relevance_mass_accuracy(torch.rand(1, 3, 2, 2), UPPER)
    with pytest.raises(InputError, match="boolean"):
        metrics.relevance_rank_accuracy(RELEVANCE, UPPER.double())
    with pytest.raises(InputError, match="no part 'some'"):
        metrics.relevance_mass_accuracy(RELEVANCE, UPPER, "some")  # type: ignore[arg-type]


# -- Perturbation: a model that sums pixels, so that each region's part of the score is known

IMAGE = tensor(*range(1, 17), shape=(1, 1, 4, 4))
ZERO = metrics.make_fill("constant", IMAGE, low=0.0, high=0.0)


def total(images):
    return images.sum((1, 2, 3))


def test_the_curve_most_relevant_first_loses_the_largest_region_first():
    curve = metrics.perturbation_curve(total, IMAGE, IMAGE[:, 0], ZERO, patch=2)
    # 2x2 regions hold 14, 22, 46, 54 of 136.
    assert curve.tolist() == [[136, 82, 36, 14, 0]]


def test_the_curve_least_relevant_first():
    curve = metrics.perturbation_curve(total, IMAGE, IMAGE[:, 0], ZERO, patch=2, order="lerf", steps=2)
    assert curve.tolist() == [[136, 122, 100]]


def test_regions_at_the_far_border_are_smaller_and_their_relevance_is_no_less_their_own():
    curve = metrics.perturbation_curve(total, IMAGE, IMAGE[:, 0], ZERO, patch=3)
    # Regions of 3x3, 3x1, 1x3, 1x1: 54, 24, 42, 16.
    assert curve.tolist() == [[136, 82, 40, 16, 0]]


def test_several_regions_a_step_and_a_last_step_that_takes_what_is_left():
    curve = metrics.perturbation_curve(total, IMAGE, IMAGE[:, 0], ZERO, regions_per_step=5)
    assert curve.tolist() == [[136, 136 - 70, 136 - 70 - 45, 1, 0]]


def test_region_perturbation_is_the_mean_drop_with_the_first_of_zero():
    score = metrics.region_perturbation(total, IMAGE, IMAGE[:, 0], ZERO, patch=2, steps=2)
    assert score.item() == pytest.approx((0 + 54 + 100) / 3)


def test_area_under_the_curve():
    assert metrics.area_under_curve(tensor(4, 2, 0, shape=(1, 3))).item() == pytest.approx(2.0)
    flipped = metrics.pixel_flipping(total, IMAGE, IMAGE[:, 0], ZERO, patch=2)
    assert flipped.item() == pytest.approx((136 / 2 + 82 + 36 + 14) / 4)


def test_a_random_order_is_the_same_in_every_batch():
    images = torch.rand(3, 1, 4, 4, dtype=D)

    def curve(chosen):
        generators = [torch.Generator().manual_seed(i) for i in chosen]
        some = images[chosen]
        return metrics.perturbation_curve(total, some, some[:, 0], ZERO, order="random", generators=generators)

    together = curve([0, 1, 2])
    assert torch.equal(together[1:], torch.cat([curve([1]), curve([2])]))
    assert not torch.equal(together[0] / together[0, 0], together[1] / together[1, 0])


def test_an_order_or_a_fill_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="morf, lerf"):
        metrics.perturbation_curve(total, IMAGE, IMAGE[:, 0], ZERO, order="best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="blur"):
        metrics.make_fill("white noise", IMAGE)  # type: ignore[arg-type]


# -- Fills


def holes(*places):
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    for row, column in places:
        mask[0, row, column] = True
    return mask


@pytest.mark.parametrize(
    ("name", "value"), [("constant", 0.5), ("mean", 8.5), ("black", 1.0), ("blur", (1 * 4 + 2 * 2 + 5 * 2 + 6) / 9)]
)
def test_fills_replace_what_is_gone_and_nothing_else(name, value):
    fill = metrics.make_fill(name, IMAGE, low=0.0, high=1.0, kernel=3)
    filled = fill(IMAGE, holes((0, 0)))
    assert filled[0, 0, 0, 0].item() == pytest.approx(value)
    assert torch.equal(filled.flatten()[1:], IMAGE.flatten()[1:])


def test_blur_with_zeros_around():
    assert metrics.blurred(IMAGE, 3, "zero")[0, 0, 0, 0].item() == pytest.approx((1 + 2 + 5 + 6) / 9)


def test_random_fill_stays_in_its_range_and_is_drawn_once():
    fill = metrics.make_fill("noise", IMAGE.expand(2, 3, 4, 4), low=-2.0, high=-1.0)
    everything = torch.ones(2, 4, 4, dtype=torch.bool)
    filled = fill(IMAGE.expand(2, 3, 4, 4), everything)
    assert -2 <= filled.min() < -1.8 and -1.2 < filled.max() <= -1
    assert torch.equal(filled, fill(filled, everything))


def test_inpainting_continues_what_is_around_and_ends_all_grey():
    flat = torch.full((1, 2, 4, 4), 3.0, dtype=D)
    flat[:, 1] = 0.5
    broken = flat.clone()
    broken[0, :, 1, 1] = 100.0
    fill = metrics.make_fill("inpainting", broken, low=0.0, high=4.0)
    assert torch.allclose(fill(broken, holes((1, 1))), flat, atol=1.5 * 4 / 255)
    assert torch.equal(fill(broken, torch.ones(1, 4, 4, dtype=torch.bool)), torch.full_like(flat, 2.0))


# -- Sensitivity: a linear explanation, so that the change is the noise itself


def test_sensitivity_is_the_relative_change():
    images = torch.rand(3, 1, 4, 4, dtype=D) + 1

    def explain(x):
        return 5 * x[:, 0]

    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    result = sensitivity(explain, images, explain(images), radius=0.25, samples=3, generators=generators)
    for i in range(3):
        again = torch.Generator().manual_seed(i)
        changes = []
        for _ in range(3):
            noise = 0.25 * (2 * torch.rand(1, 4, 4, generator=again, dtype=D) - 1)
            changes.append((noise.norm() / images[i].norm()).item())
        assert result.average[i].item() == pytest.approx(sum(changes) / 3)
        assert result.maximum[i].item() == pytest.approx(max(changes))


def test_noise_can_be_kept_in_the_pixels_range():
    images = torch.ones(1, 1, 2, 2, dtype=D)
    seen = []
    sensitivity(lambda x: (seen.append(x), x[:, 0])[1], images, images[:, 0], radius=9.0, samples=4, high=tensor(1.0))
    assert torch.stack(seen).max() == 1 and torch.stack(seen).min() < -1


# -- Random logit


def test_other_targets_are_other_and_all_of_them_occur():
    targets = torch.arange(4).repeat(100)
    others = metrics.other_targets(targets, 4)
    assert not (others == targets).any()
    assert set(others[targets == 1].tolist()) == {0, 2, 3}
    with pytest.raises(InputError, match="another class"):
        metrics.other_targets(targets, 1)


def test_random_logit_of_heatmaps_that_do_not_know_the_class_is_one():
    relevance = torch.randn(2, 8, 8, dtype=D)
    same = metrics.random_logit(lambda targets: 3 * relevance, relevance, torch.zeros(2))
    assert same.tolist() == pytest.approx([1, 1])
    unlike = metrics.random_logit(lambda targets: torch.randn_like(relevance), relevance, torch.zeros(2))
    assert (unlike.abs() < 0.3).all()


def test_similarity_of_two_constants():
    # Only the first factor is left: (2 a b + C1) / (a a + b b + C1) with C1 = (0.01 * 1)^2.
    one, two = torch.full((1, 9), 1.0, dtype=D), torch.full((1, 9), 2.0, dtype=D)
    assert metrics.structural_similarity(one, two).item() == pytest.approx((4 + 1e-4) / (5 + 1e-4))


# -- Entropy and faithfulness correlation


@pytest.mark.parametrize(
    ("values", "entropy"),
    [
        ((1, 1, 1, 1), math.log(4)),
        ((0, 0, 0, -5), 0.0),
        ((1, -1, 2), 1.5 * math.log(2)),
        ((1e-300, 1e-300), math.log(2)),
    ],
)
def test_entropy(values, entropy):
    assert metrics.entropy(tensor(values)).item() == pytest.approx(entropy, abs=1e-12)


def test_faithfulness_of_what_adds_up_is_one_and_of_its_negative_minus_one():
    """A sum of pixels: each pixel's relevance is what its loss costs."""
    images = torch.rand(3, 1, 4, 4, dtype=D)

    def found(relevance):
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        return metrics.faithfulness_correlation(
            total, images, relevance, ZERO, subset=5, runs=20, generators=generators
        ).tolist()

    assert found(images[:, 0]) == pytest.approx([1, 1, 1]) and found(-images[:, 0]) == pytest.approx([-1, -1, -1])
    assert max(map(abs, found(torch.rand(3, 4, 4, dtype=D)))) < 0.95


# -- From channels to pixels

CHANNELS = tensor(3, -4, shape=(1, 2, 1, 1)).repeat(1, 1, 1, 2) * tensor(1, 0.5)


@pytest.mark.parametrize(
    ("pooling", "values"),
    [
        ("sum", (-1, -0.5)),
        ("pos-sum", (3, 1.5)),
        ("abs-sum", (7, 3.5)),
        ("max-norm", (4, 2)),
        ("l2-norm", (5, 2.5)),
        ("l2-norm-sq", (25 / 16, 25 / 64)),  # of what is divided by the largest, 4
        ("pos-l2-norm-sq", (1, 0.25)),  # of what is divided by the largest, 3
    ],
)
def test_pooling(pooling, values):
    assert metrics.pooled(CHANNELS, pooling).flatten().tolist() == pytest.approx(values)


def test_pooling_squares_nothing_away():
    tiny = (CHANNELS * 1e-30).float()
    assert metrics.pooled(tiny, "pos-l2-norm-sq").flatten().tolist() == pytest.approx([1, 0.25])
    assert not metrics.pooled(torch.zeros(1, 2, 2, 2), "l2-norm-sq").isnan().any()


@pytest.mark.parametrize(("how", "values"), [("none", (3, -4)), ("largest", (0.75, -1)), ("second-moment", None)])
def test_normalisation(how, values):
    heatmap = tensor(3, -4, shape=(1, 1, 2))
    values = values or (3 / 12.5**0.5, -4 / 12.5**0.5)
    assert metrics.normalised(heatmap, how).flatten().tolist() == pytest.approx(values)
    assert metrics.normalised((heatmap * 1e-30).float(), how).isfinite().all()
    assert torch.equal(metrics.normalised(torch.zeros(1, 1, 2), how), torch.zeros(1, 1, 2))


def test_what_counts_of_a_heatmap_is_chosen():
    """4 1 / -3 2: the two largest magnitudes stand in the left column, the two largest values do not."""
    left = torch.tensor([[[True, False], [True, False]]])
    heatmap = tensor(4, 1, -3, 2, shape=(1, 2, 2))
    assert metrics.relevance_rank_accuracy(heatmap, left, "absolute").item() == 1
    assert metrics.relevance_rank_accuracy(heatmap, left, "positive").item() == 0.5
    assert metrics.relevance_rank_accuracy(heatmap, left).item() == 0.5


# -- Steps


@pytest.mark.parametrize(
    ("regions", "steps", "growth", "sizes"),
    [(10, 5, 1.0, [2] * 5), (10, 4, 1.0, [3, 3, 3, 1]), (14, 3, 2.0, [2, 4, 8]), (3, 10, 1.5, [1, 1, 1])],
)
def test_steps_of_pixel_flipping(regions, steps, growth, sizes):
    assert metrics.growing(regions, steps, growth) == sizes


@pytest.mark.parametrize("growth", [1.0, 1.2, 2.0, 7.0])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_all_regions_go_whatever_the_steps(steps, growth):
    for regions in (1, 2, 16, 99):
        sizes = metrics.growing(regions, steps, growth)
        assert sum(sizes) == regions and min(sizes) >= 1 and len(sizes) <= steps + 1


def test_the_area_under_a_curve_with_growing_steps_is_over_the_share_of_pixels():
    flipped = metrics.pixel_flipping(total, IMAGE, IMAGE[:, 0], ZERO, patch=2, regions_per_step=[1, 3])
    # 136 at 0, 82 at a quarter, 0 at the end.
    assert flipped.item() == pytest.approx((136 + 82) / 2 / 4 + 82 / 2 * 3 / 4)


# -- The catalogue


def test_every_metric_has_a_direction_unless_its_order_is_random():
    undirected = [m.name for m in metrics.METRICS.values() if m.better == "neither"]
    assert all(":random" in name or name.endswith("-occlusion") for name in undirected)
    assert len({m.title for m in metrics.METRICS.values()}) == len(metrics.METRICS)


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("entropy", "lower"),
        ("faithfulness-correlation", "higher"),
        ("sparseness", "higher"),
        ("region-perturbation", "higher"),
        ("region-perturbation:lerf", "lower"),
        ("pixel-flipping", "lower"),
        ("pixel-flipping:lerf:inpainting", "higher"),
        ("mu-weighted", "higher"),
        ("avg-sensitivity", "lower"),
        ("random-logit", "lower"),
    ],
)
def test_directions(name, better):
    assert metrics.metric(name).better == better


def test_a_metric_misspelt_is_refused_with_what_was_meant():
    with pytest.raises(InputError, match="sparseness"):
        metrics.metric("sparsness")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_metrics_keep_the_dtype(dtype):
    relevance, mask = torch.rand(2, 4, 4, dtype=dtype), torch.rand(2, 4, 4) > 0.5
    assert metrics.sparseness(relevance).dtype == dtype
    assert metrics.relevance_rank_accuracy(relevance, mask).dtype == dtype
    assert math.isfinite(metrics.relevance_mass_accuracy(relevance, mask).sum())
