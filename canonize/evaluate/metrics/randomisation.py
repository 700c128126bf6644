"""Random logit: whether a heatmap says anything about the class it is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from canonize.errors import InputError

ExplainTargets = Callable[[Tensor], Tensor]
"""Targets (N,) -> heatmaps (N, ...) of the same images."""


def other_targets(targets: Tensor, classes: int, generators: list[torch.Generator] | None = None) -> Tensor:
    """For each target (N,) another class, every other one being as likely.

    Raises
    ------
    InputError
        If there is no other class.
    """
    if classes < 2:
        raise InputError(f"random logit needs another class, and there is {classes}", hint="Leave this metric out")
    drawn = [
        int(torch.randint(1, classes, (), generator=generators[i] if generators else None)) for i in range(len(targets))
    ]
    return (targets + torch.tensor(drawn, device=targets.device)) % classes


def random_logit(
    explain: ExplainTargets, relevance: Tensor, others: Tensor, dims: Literal[1, 2] = 1, *, by_largest: bool = True
) -> Tensor:
    """Structural similarity of the heatmap for the target and the one for another class (Sixt et al. 2020).

    Lower is better: a heatmap that is the same for every class explains the image, not the decision.

    Parameters
    ----------
    explain : callable
        Targets (N,) -> heatmaps of the same images.
    relevance : Tensor, shape (N, H, W)
        Heatmaps for the right targets.
    others : Tensor, shape (N,)
        Other classes, as `other_targets` draws them.
    dims : {1, 2}
        Whether the windows of the similarity run over the flattened heatmap, as in Quantus, or over its two dimensions.
    by_largest : bool
        Whether each heatmap is divided by its largest magnitude first; otherwise they are compared as they come.

    Returns
    -------
    Tensor, shape (N,)
        In [-1, 1]; 1 for heatmaps that are the same up to a positive factor.
    """
    ours, theirs = relevance, explain(others)
    if by_largest:
        ours, theirs = _by_largest(ours), _by_largest(theirs)
    if dims == 1:
        ours, theirs = ours.flatten(1), theirs.flatten(1)
    return structural_similarity(ours, theirs)


def structural_similarity(first: Tensor, second: Tensor, window: int = 7) -> Tensor:
    r"""Mean SSIM of pairs of signals or images (Wang et al. 2004), with flat windows and sample covariance.

    .. math:: \frac{(2 \mu_a \mu_b + C_1)(2 \sigma_{ab} + C_2)}
                   {(\mu_a^2 + \mu_b^2 + C_1)(\sigma_a^2 + \sigma_b^2 + C_2)},
              \qquad C_i = (K_i L)^2,\ K = (0.01, 0.03)

    where :math:`L` is the range of the two together. What ``skimage.metrics.structural_similarity`` computes with its
    defaults, for a whole batch at once.

    Parameters
    ----------
    first, second : Tensor, shape (N, L) or (N, H, W)
    window : int
        Side of the windows; only windows that lie inside count.

    Returns
    -------
    Tensor, shape (N,)
    """
    spatial = tuple(range(1, first.ndim))
    both = torch.cat([first.flatten(1), second.flatten(1)], 1)
    span = (both.amax(1) - both.amin(1)).view(-1, *[1] * len(spatial))
    weight = window ** len(spatial)

    def mean(x: Tensor) -> Tensor:
        pool = F.avg_pool1d if len(spatial) == 1 else F.avg_pool2d
        return pool(x[:, None], window, stride=1)[:, 0]

    mean_a, mean_b = mean(first), mean(second)
    unbiased = weight / (weight - 1)
    variance_a = unbiased * (mean(first * first) - mean_a * mean_a)
    variance_b = unbiased * (mean(second * second) - mean_b * mean_b)
    covariance = unbiased * (mean(first * second) - mean_a * mean_b)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    similarity: Tensor = (above / below).mean(spatial)
    return similarity


def _by_largest(relevance: Tensor) -> Tensor:
    """Each heatmap divided by its largest magnitude."""
    return relevance / relevance.abs().amax(tuple(range(1, relevance.ndim)), keepdim=True)
