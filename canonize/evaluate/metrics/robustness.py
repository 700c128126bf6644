"""Sensitivity: how much a heatmap changes when the input hardly does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Explain = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) -> heatmaps (N, ...), of the same targets in the same order."""


@dataclass(frozen=True)
class Sensitivity:
    """Both sensitivities of some heatmaps, which one set of noisy images gives.

    Attributes
    ----------
    average, maximum : Tensor, shape (N,)
        Over the noisy copies of each image.
    """

    average: Tensor
    maximum: Tensor


def sensitivity(
    explain: Explain,
    images: Tensor,
    relevance: Tensor,
    *,
    radius: float = 0.2,
    samples: int = 10,
    generators: list[torch.Generator] | None = None,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> Sensitivity:
    r"""Relative change of a heatmap under uniform noise.

    .. math:: s_j = \lVert e(x + \delta_j) - e(x) \rVert_2 \,/\, \lVert e(x) \rVert_2,
              \qquad \delta_j \sim U(-\rho, \rho)

    averaged, or the largest (Yeh et al. 2019; Bhatt et al. 2020). Lower is better.

    Parameters
    ----------
    explain : callable
        Images (N, C, H, W) -> heatmaps (N, ...).
    images : Tensor, shape (N, C, H, W)
    relevance : Tensor, shape (N, ...)
        ``explain(images)``.
    radius : float
        Largest noise :math:`\rho`, in the units of `images`.
    samples : int
        Noisy copies of each image.
    generators : list of torch.Generator, optional
        One for each image, on the CPU: an image then gets the same noise in whatever batch and on whatever device.
    low, high : Tensor, optional
        Noisy images are clamped to this range; by default they are not.

    Returns
    -------
    Sensitivity
        NaN where a heatmap is zero throughout.
    """
    changes = []
    size = relevance.flatten(1)
    norm = size.norm(dim=1)
    for _ in range(samples):
        noise = torch.stack([_draw(images[0], generators[i] if generators else None) for i in range(len(images))])
        noisy = images + radius * noise.to(images)
        if low is not None or high is not None:
            noisy = torch.clamp(noisy, low, high)
        changes.append((explain(noisy).flatten(1) - size).norm(dim=1) / norm)
    all_changes = torch.stack(changes, 1)
    return Sensitivity(all_changes.mean(1), all_changes.amax(1))


def _draw(image: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform noise in [-1, 1) of an image's shape, drawn in float64 whatever the image's dtype."""
    return torch.rand(image.shape, generator=generator, dtype=torch.float64) * 2 - 1
