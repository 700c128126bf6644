"""Taking away what a heatmap calls relevant, and watching the model's output: region perturbation, pixel flipping."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from canonize.errors import InputError
from canonize.evaluate.metrics.fill import Fill

Order = Literal["morf", "lerf", "random"]
ORDERS: tuple[str, ...] = get_args(Order)
Predict = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) -> the score (N,) of each image's target."""


def perturbation_curve(
    predict: Predict,
    images: Tensor,
    relevance: Tensor,
    fill: Fill,
    *,
    patch: int = 1,
    regions_per_step: int | Sequence[int] = 1,
    steps: int | None = None,
    order: Order = "morf",
    generators: list[torch.Generator] | None = None,
) -> Tensor:
    """The target's score as more and more regions are taken away.

    Parameters
    ----------
    predict : callable
        Images (N, C, H, W) -> scores (N,) of the targets.
    images : Tensor, shape (N, C, H, W)
    relevance : Tensor, shape (N, H, W)
    fill : callable
        What is put in place; see `canonize.evaluate.metrics.fill.make_fill`.
    patch : int
        Regions are squares of this many pixels a side, from the upper left corner; those at the far borders may be
        smaller. 1 takes single pixels.
    regions_per_step : int or sequence of int
        How many regions go at once; a number for each step where they differ (`growing` makes them).
    steps : int, optional
        How many times; by default until nothing is left (the last step may take fewer regions).
    order : {"morf", "lerf", "random"}
        Most relevant first (by the sum over the region), least relevant first, or any.
    generators : list of torch.Generator, optional
        For the random order, one for each image; on the CPU, so that every batch and device draws the same.

    Returns
    -------
    Tensor, shape (N, 1 + steps)
        Scores; the first is the untouched image's.
    """
    ranks = _ranks(relevance, patch, order, generators)
    rows, columns = math.ceil(images.shape[2] / patch), math.ceil(images.shape[3] / patch)
    if isinstance(regions_per_step, int):
        regions_per_step = [regions_per_step] * math.ceil(rows * columns / regions_per_step)
    gone = list(itertools.accumulate(regions_per_step))[:steps]
    # Rank of each pixel's region: (N, H, W).
    pixel_ranks = ranks.view(-1, rows, columns).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    pixel_ranks = pixel_ranks[:, : images.shape[2], : images.shape[3]]
    scores = [predict(images)]
    scores += [predict(fill(images, pixel_ranks < count)) for count in gone]
    return torch.stack(scores, 1)


def growing(regions: int, steps: int, growth: float = 1.0) -> list[int]:
    """How many regions go in each step: each step `growth` times as many as the one before it, all of them in the end.

    Parameters
    ----------
    regions : int
        In all.
    steps : int
        At most; fewer where each takes at least one.
    growth : float
        1 for steps of one size, of which the last may be smaller.
    """
    if growth == 1:
        size = math.ceil(regions / steps)
        sizes = [size] * (regions // size)
    else:
        first = regions * (growth - 1) / (growth**steps - 1)
        sizes = [max(1, round(first * growth**step)) for step in range(steps)]
        while sum(sizes) > regions:
            sizes.pop()
    return sizes + [regions - sum(sizes)] * (sum(sizes) < regions)


def region_perturbation(
    predict: Predict,
    images: Tensor,
    relevance: Tensor,
    fill: Fill,
    *,
    patch: int = 8,
    steps: int = 100,
    order: Order = "morf",
    generators: list[torch.Generator] | None = None,
) -> Tensor:
    r"""Area over the perturbation curve (AoPC).

    .. math:: \mathrm{AoPC} = \frac{1}{L + 1} \sum_{k=0}^{L} f(x^{(0)}) - f(x^{(k)})

    (Samek et al. 2017, Eq. 12). Most relevant first, the faster the score falls the better: higher is better.

    Parameters
    ----------
    predict, images, relevance, fill, patch, steps, order, generators
        As for `perturbation_curve`; one region a step.

    Returns
    -------
    Tensor, shape (N,)

    Notes
    -----
    ``quantus.RegionPerturbation`` returns the drops :math:`f(x^{(0)}) - f(x^{(k)})` for :math:`k \ge 1` and calls lower
    better, which is what its curves of *scores* would want.
    """
    curve = perturbation_curve(
        predict, images, relevance, fill, patch=patch, steps=steps, order=order, generators=generators
    )
    return (curve[:, :1] - curve).mean(1)


def area_under_curve(curve: Tensor, places: Tensor | None = None) -> Tensor:
    """Mean height of each curve (N, K) by the trapezoid rule, (N,).

    Its points are equally far apart, or stand at `places` (K,), the last of which ends the curve.
    """
    if places is None:
        return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)
    return torch.trapezoid(curve, (places / places[-1]).to(curve), dim=1)


def pixel_flipping(
    predict: Predict,
    images: Tensor,
    relevance: Tensor,
    fill: Fill,
    *,
    patch: int = 1,
    regions_per_step: int | Sequence[int] = 1,
    steps: int | None = None,
    order: Order = "morf",
    generators: list[torch.Generator] | None = None,
) -> Tensor:
    """Area under the curve of scores as pixels are flipped (Bach et al. 2015), the share of pixels running over [0, 1].

    Most relevant first: lower is better. Least relevant first: higher is better. Parameters as for
    `perturbation_curve`; shape (N,).
    """
    curve = perturbation_curve(
        predict,
        images,
        relevance,
        fill,
        patch=patch,
        regions_per_step=regions_per_step,
        steps=steps,
        order=order,
        generators=generators,
    )
    if isinstance(regions_per_step, int):
        return area_under_curve(curve)
    return area_under_curve(curve, torch.tensor([0, *itertools.accumulate(regions_per_step)][: curve.shape[1]]))


def _ranks(relevance: Tensor, patch: int, order: str, generators: list[torch.Generator] | None) -> Tensor:
    """Which region goes when: (N, regions), 0 first."""
    number, height, width = relevance.shape
    # Sums over squares; what the last ones lack is zero.
    padded = F.pad(relevance, (0, -width % patch, 0, -height % patch))
    sums = F.avg_pool2d(padded[:, None], patch).flatten(1)
    if order == "random":
        drawn = [torch.randperm(sums.shape[1], generator=generators[i] if generators else None) for i in range(number)]
        return torch.stack(drawn).to(relevance.device)
    if order not in ("morf", "lerf"):
        raise InputError(f"there is no order {order!r}", hint=f"Choose one of {', '.join(ORDERS)}")
    sequence = sums.argsort(dim=1, descending=order == "morf", stable=True)
    places = torch.arange(sums.shape[1], device=sums.device).expand_as(sequence)
    return torch.empty_like(sequence).scatter_(1, sequence, places)
