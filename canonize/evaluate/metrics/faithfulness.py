"""Faithfulness correlation: whether the pixels' relevance adds up to what their loss does to the output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from canonize.evaluate.metrics.fill import Fill

Predict = Callable[[Tensor], Tensor]


def faithfulness_correlation(
    predict: Predict,
    images: Tensor,
    relevance: Tensor,
    fill: Fill,
    *,
    subset: int,
    runs: int = 100,
    generators: list[torch.Generator] | None = None,
) -> Tensor:
    r"""Pearson correlation, over random sets :math:`S` of pixels, of relevance and drop of the score.

    .. math:: \mathrm{corr}_S \Big( \sum_{p \in S} r_p,\; f(x) - f(x_{S \leftarrow \text{fill}}) \Big)

    (Bhatt et al. 2020.) Higher is better.

    Parameters
    ----------
    predict : callable
        Images (N, C, H, W) -> scores (N,) of the targets.
    images : Tensor, shape (N, C, H, W)
    relevance : Tensor, shape (N, H, W)
    fill : callable
        See `canonize.evaluate.metrics.fill.make_fill`.
    subset : int
        Pixels in a set.
    runs : int
        Sets.
    generators : list of torch.Generator, optional
        One for each image, on the CPU: an image gets the same sets in every batch and on every device.

    Returns
    -------
    Tensor, shape (N,)
        NaN where the drops or the sums are all the same.
    """
    count, pixels = len(images), relevance[0].numel()
    flat = relevance.flatten(1)
    whole = predict(images)
    drops, sums = [], []
    for _ in range(runs):
        gone = torch.zeros(count, pixels, dtype=torch.bool)
        for image in range(count):
            gone[image, torch.randperm(pixels, generator=generators[image] if generators else None)[:subset]] = True
        gone = gone.to(images.device)
        drops.append(whole - predict(fill(images, gone.view_as(relevance))))
        sums.append((flat * gone).sum(1))
    return correlation(torch.stack(sums, 1), torch.stack(drops, 1))


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation of the rows of two tables (N, K), (N,)."""
    first, second = (rows - rows.mean(1, keepdim=True) for rows in (first, second))
    found: Tensor = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
    return found
