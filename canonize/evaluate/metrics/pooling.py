"""From relevance of each channel to one number a pixel."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from canonize.errors import InputError

Pooling = Literal["sum", "pos-sum", "abs-sum", "max-norm", "l2-norm", "l2-norm-sq", "pos-l2-norm-sq"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
Normalise = Literal["none", "largest", "second-moment"]
NORMALISATIONS: tuple[str, ...] = get_args(Normalise)


def pooled(relevance: Tensor, pooling: str = "sum") -> Tensor:
    r"""One number a pixel, as Arras et al. 2022 pool channels.

    =================  ==============================
    ``sum``            :math:`\sum_c r_c`
    ``pos-sum``        :math:`\sum_c \max(r_c, 0)`
    ``abs-sum``        :math:`\sum_c |r_c|`
    ``max-norm``       :math:`\max_c |r_c|`
    ``l2-norm``        :math:`\sqrt{\sum_c r_c^2}`
    ``l2-norm-sq``     :math:`\sum_c r_c^2`
    ``pos-l2-norm-sq`` :math:`\sum_c \max(r_c, 0)^2`
    =================  ==============================

    Parameters
    ----------
    relevance : Tensor, shape (N, C, H, W)
    pooling : str

    Returns
    -------
    Tensor, shape (N, H, W)
    """
    if pooling == "sum":
        return relevance.sum(1)
    if pooling == "pos-sum":
        return relevance.clamp(min=0).sum(1)
    if pooling == "abs-sum":
        return relevance.abs().sum(1)
    if pooling == "max-norm":
        return relevance.abs().amax(1)
    if pooling == "l2-norm":
        length: Tensor = relevance.norm(dim=1)
        return length
    if pooling not in ("l2-norm-sq", "pos-l2-norm-sq"):
        raise InputError(f"there is no pooling {pooling!r}", hint=f"Choose one of {', '.join(POOLINGS)}")
    # Squares of what is divided by the largest: those of relevance below 1e-19 would be zero in single precision. No
    # metric depends on a heatmap's scale.
    part = relevance.clamp(min=0) if pooling == "pos-l2-norm-sq" else relevance
    largest = part.abs().amax((1, 2, 3), keepdim=True)
    return (part / largest.where(largest > 0, 1.0)).square().sum(1)


def normalised(heatmaps: Tensor, how: str = "none") -> Tensor:
    r"""Heatmaps (N, H, W), each divided by its largest magnitude or by :math:`\sqrt{\mathrm{mean}(r^2)}`.

    The second moment keeps outliers from deciding (Binder et al. 2023; Pahde et al. 2023 normalise all heatmaps by it).
    A heatmap of zeros stays zero.
    """
    if how == "none":
        return heatmaps
    if how not in NORMALISATIONS:
        raise InputError(f"there is no normalisation {how!r}", hint=f"Choose one of {', '.join(NORMALISATIONS)}")
    largest = heatmaps.abs().amax((1, 2), keepdim=True)
    scaled = heatmaps / largest.where(largest > 0, 1.0)
    if how == "largest":
        return scaled
    moment = scaled.square().mean((1, 2), keepdim=True).sqrt()
    return scaled / moment.where(moment > 0, 1.0)
