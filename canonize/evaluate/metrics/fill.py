"""What is put where pixels are taken away: a constant, noise, the blurred image, or what the surroundings suggest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from canonize.errors import InputError
from canonize.evaluate.libraries import require

FillName = Literal["constant", "mean", "black", "noise", "blur", "inpainting"]
FILLS: tuple[str, ...] = get_args(FillName)

Fill = Callable[[Tensor, Tensor], Tensor]
"""Images (N, C, H, W) and what is gone (N, H, W) bool -> images with that replaced."""


def make_fill(
    name: FillName,
    images: Tensor,
    *,
    low: Tensor | float = 0.0,
    high: Tensor | float = 1.0,
    kernel: int = 15,
    border: Literal["edge", "zero"] = "edge",
    radius: float = 3.0,
    generators: list[torch.Generator] | None = None,
) -> Fill:
    """A way to replace pixels of `images`.

    Parameters
    ----------
    name : {"constant", "mean", "black", "noise", "blur", "inpainting"}
        ``constant``: grey, the middle between `low` and `high`; ``mean``: the image's mean over all channels;
        ``black``: the image's smallest value (both as in Quantus); ``noise``: one value for each pixel and channel,
        uniform between `low` and `high`, drawn once; ``blur``: the image behind a box filter; ``inpainting``: from the
        border inwards by the fast marching method (Telea 2004), by OpenCV.
    images : Tensor, shape (N, C, H, W)
        The untouched images: whatever depends on the image is taken from these, not from what is left of them.
    low, high : Tensor or float
        Range of the pixels' values; tensors of a shape that broadcasts, (C, 1, 1).
    kernel : int
        Width of the box filter, in pixels.
    border : {"edge", "zero"}
        What the box filter sees around the image.
    radius : float
        How far around a missing pixel inpainting looks, in pixels.
    generators : list of torch.Generator, optional
        For ``noise``, one for each image; on the CPU, so that every batch and device draws the same.

    Returns
    -------
    callable
        Takes images (N, C, H, W) and a mask (N, H, W) of what is gone; gives the images with that replaced. Where
        nothing of an image is left to inpaint from, it becomes grey.

    Raises
    ------
    InputError
        If there is no such fill, or OpenCV is missing for ``inpainting``.
    """
    grey = _as_tensor(low, images) / 2 + _as_tensor(high, images) / 2
    if name == "inpainting":
        return _inpainting(grey, _as_tensor(low, images).amin(), _as_tensor(high, images).amax(), radius)
    if name == "constant":
        replacement = grey.expand_as(images)
    elif name == "mean":
        replacement = images.mean((1, 2, 3), keepdim=True).expand_as(images)
    elif name == "black":
        replacement = images.amin((1, 2, 3), keepdim=True).expand_as(images)
    elif name == "noise":
        each = [
            torch.rand(images.shape[1:], generator=generators[i] if generators else None, dtype=torch.float64)
            for i in range(len(images))
        ]
        drawn = torch.stack(each).to(images)
        lowest = _as_tensor(low, images)
        replacement = lowest + drawn * (_as_tensor(high, images) - lowest)
    elif name == "blur":
        replacement = blurred(images, kernel, border)
    else:
        raise InputError(f"there is no fill {name!r}", hint=f"Choose one of {', '.join(FILLS)}")
    return lambda current, gone: torch.where(gone[:, None], replacement, current)


def blurred(images: Tensor, kernel: int = 15, border: Literal["edge", "zero"] = "edge") -> Tensor:
    """Images (N, C, H, W) behind a box filter of `kernel` pixels; an even kernel looks one pixel further back."""
    before, behind = kernel // 2, (kernel - 1) // 2
    pad = (before, behind, before, behind)
    padded = F.pad(images, pad, mode="replicate") if border == "edge" else F.pad(images, pad)
    return F.avg_pool2d(padded, kernel, stride=1)


def _inpainting(grey: Tensor, low: Tensor, high: Tensor, radius: float) -> Fill:
    cv2 = require("cv2")
    # OpenCV adds a term of size one to every painted value: it wants pixels between 0 and 255.
    scale = 255 / (high - low)

    def fill(current: Tensor, gone: Tensor) -> Tensor:
        filled = current.clone()
        for image, mask, target in zip(current, gone, filled, strict=True):
            if bool(mask.all()):
                target.copy_(grey.expand_as(target))
                continue
            hole = mask.to("cpu", torch.uint8).numpy()
            for channel, plane in zip(((image - low) * scale).to("cpu", torch.float32), target, strict=True):
                painted = torch.from_numpy(cv2.inpaint(channel.contiguous().numpy(), hole, radius, cv2.INPAINT_TELEA))
                plane.copy_(torch.where(mask, painted.to(plane) / scale + low, plane))
        return filled

    return fill


def _as_tensor(value: Tensor | float, images: Tensor) -> Tensor:
    return torch.as_tensor(value).to(images)
