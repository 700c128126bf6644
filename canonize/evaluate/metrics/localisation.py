"""How much of a heatmap lies where the truth does."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from canonize.errors import InputError

Select = Literal["positive", "all", "absolute"]


def selected(relevance: Tensor, select: Select) -> Tensor:
    """The part of a heatmap that counts: what is positive, everything with its sign, or magnitudes."""
    if select == "positive":
        return relevance.clamp(min=0)
    if select == "absolute":
        return relevance.abs()
    if select == "all":
        return relevance
    raise InputError(f"there is no part {select!r} of a heatmap", hint="Choose positive, all or absolute")


def relevance_mass_accuracy(relevance: Tensor, mask: Tensor, select: Select = "positive") -> Tensor:
    r"""Share of the relevance that lies on the object.

    .. math:: \mathrm{RMA} = \sum_{p \in M} r_p \Big/ \sum_p r_p

    (Arras et al. 2022). With a filled bounding box as the mask this is the inside-total ratio :math:`\mu` of
    Kohlbrenner et al. 2020, Eq. 5.

    Parameters
    ----------
    relevance : Tensor, shape (N, H, W)
    mask : Tensor, shape (N, H, W), bool
    select : {"positive", "all", "absolute"}
        What counts as relevance. ``all`` is what ``quantus.RelevanceMassAccuracy`` does unless told otherwise; with
        negative relevance in it the quotient is no share and may be anything.

    Returns
    -------
    Tensor, shape (N,)
        NaN where the mask is empty or nothing of the heatmap counts.
    """
    _check(relevance, mask)
    # Divided by the largest, so that sums of tiny heatmaps do not vanish in single precision.
    flat, inside = selected(relevance, select).flatten(1), mask.flatten(1)
    flat = flat / flat.abs().amax(1, keepdim=True)
    share = (flat * inside).sum(1) / flat.sum(1)
    return share.masked_fill(~inside.any(1), torch.nan)


def relevance_rank_accuracy(relevance: Tensor, mask: Tensor, select: Select = "all") -> Tensor:
    r"""Share of the object's :math:`K` pixels among the :math:`K` most relevant ones.

    .. math:: \mathrm{RRA} = |\,\mathrm{top}_K(r) \cap M\,| / K, \qquad K = |M|

    (Arras et al. 2022.)

    Parameters
    ----------
    relevance : Tensor, shape (N, H, W)
    mask : Tensor, shape (N, H, W), bool
    select : {"positive", "all", "absolute"}
        What is ranked. That negative relevance does not count changes no rank above zero: ``positive`` is ``all``.

    Returns
    -------
    Tensor, shape (N,)
        NaN where the mask is empty. Pixels of equal relevance rank by position.
    """
    _check(relevance, mask)
    ranked = relevance if select == "positive" else selected(relevance, select)
    order = ranked.flatten(1).argsort(dim=1, descending=True, stable=True)
    inside = mask.flatten(1)
    size = inside.sum(1, keepdim=True)
    ranks = torch.arange(order.shape[1], device=order.device)
    hits = (inside.gather(1, order) & (ranks < size)).sum(1)
    dtype = relevance.dtype
    return hits.to(dtype) / size[:, 0].to(dtype)  # 0 / 0 is the NaN promised


def inside_total_ratio(relevance: Tensor, box: Tensor) -> Tensor:
    r"""Positive relevance inside the bounding box over all positive relevance, :math:`\mu = R_{in} / R_{tot}`.

    Kohlbrenner et al. 2020, Eq. 5 (after Lapuschkin et al. 2016). Shapes as in `relevance_mass_accuracy`.
    """
    return relevance_mass_accuracy(relevance, box, "positive")


def weighted_inside_total_ratio(relevance: Tensor, box: Tensor) -> Tensor:
    r""":math:`\mu_w = \mu \, S_{tot} / S_{in}`: 1 for relevance spread evenly, whatever the size of the object.

    Kohlbrenner et al. 2020, beside their Eq. 5; :math:`S` are areas in pixels. Shapes as in `relevance_mass_accuracy`.
    """
    share = inside_total_ratio(relevance, box)
    inside = box.flatten(1)
    return share * inside.shape[1] / inside.sum(1).to(share.dtype)


def _check(relevance: Tensor, mask: Tensor) -> None:
    if relevance.shape != mask.shape:
        raise InputError(
            f"heatmaps {tuple(relevance.shape)} and masks {tuple(mask.shape)} have different shapes",
            hint="Sum the heatmaps over their channels first",
        )
    if mask.dtype != torch.bool:
        raise InputError(f"a mask is boolean, not {mask.dtype}", hint="Compare it with 0")
