"""How few pixels carry a heatmap: Gini index and entropy."""

from __future__ import annotations

import torch
from torch import Tensor


def sparseness(relevance: Tensor) -> Tensor:
    r"""Gini index of a heatmap's magnitudes: 0 where all pixels weigh the same, towards 1 where few carry it all.

    .. math:: G = \frac{\sum_{k=1}^{n} (2 k - n - 1) |r|_{(k)}}{n \sum_{k=1}^{n} |r|_{(k)}}

    with the magnitudes :math:`|r|_{(k)}` in ascending order (Chalasani et al. 2020).

    Parameters
    ----------
    relevance : Tensor, shape (N, ...)
        Heatmaps.

    Returns
    -------
    Tensor, shape (N,)
        NaN where a heatmap is zero throughout.

    Notes
    -----
    ``quantus.Sparseness`` adds 1e-7 to every value after dividing by the largest; this does not, so that the index
    does not depend on the heatmap's scale.
    """
    flat = relevance.flatten(1).abs().sort(1).values
    # Sums of squares of widths: a heatmap of 1e-30 has a sparseness like any other.
    flat = flat / flat[:, -1:]
    count = flat.shape[1]
    weights = torch.arange(1, count + 1, device=flat.device, dtype=flat.dtype) * 2 - count - 1
    return (flat * weights).sum(1) / (count * flat.sum(1))


def entropy(relevance: Tensor) -> Tensor:
    r"""Entropy of a heatmap's magnitudes as shares: 0 where one pixel carries all, :math:`\ln n` where all are alike.

    .. math:: - \sum_p q_p \ln q_p, \qquad q_p = |r_p| \Big/ \sum_{p'} |r_{p'}|

    (Bhatt et al. 2020, *complexity*.) Lower is better.

    Parameters
    ----------
    relevance : Tensor, shape (N, ...)

    Returns
    -------
    Tensor, shape (N,)
        NaN where a heatmap is zero throughout.
    """
    flat = relevance.flatten(1).abs()
    flat = flat / flat.amax(1, keepdim=True)
    found: Tensor = torch.special.entr(flat / flat.sum(1, keepdim=True)).sum(1)
    return found
