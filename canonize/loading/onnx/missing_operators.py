"""What operators of ONNX compute, where the converter has no function for it, or one that a tracer cannot follow.

Numbers (sizes, axes, borders) come as lists, or as tensors that are read as lists: those of a file's initializers are
part of the call by then, those of inputs are constants while a tracer looks on (`canonize.loading.onnx.numbers`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def as_numbers(value: Any) -> list[Any]:
    """Sizes, axes or borders as a list."""
    numbers = value.tolist() if hasattr(value, "tolist") else value
    return list(numbers) if isinstance(numbers, list | tuple) else [numbers]


def expand_batch(tensor: Tensor, batch_of: Tensor, sizes: list[int], place: int) -> Tensor:
    """`tensor` repeated to `sizes`, where that at `place` is the batch size of another tensor."""
    new = len(sizes) - tensor.dim()
    target: list[Any] = [-1 if size == 1 and index >= new else size for index, size in enumerate(sizes)]
    target[place] = batch_of.shape[0]
    return tensor.expand(target)


def expand(tensor: Tensor, sizes: Any) -> Tensor:
    """`tensor` broadcast with `sizes`, of which a 1 leaves what there is."""
    wanted, rank = [int(size) for size in as_numbers(sizes)], int(tensor.dim())
    new = max(len(wanted) - rank, 0)
    wanted = [1] * (rank - len(wanted)) + wanted
    return tensor.expand([-1 if size == 1 and index >= new else size for index, size in enumerate(wanted)])


def squeeze(tensor: Tensor, axes: Any = None) -> Tensor:
    """Without the dimensions `axes`, or without all of size 1."""
    if axes is None:
        return tensor.squeeze()
    rank = int(tensor.dim())
    for axis in sorted((int(a) % rank for a in as_numbers(axes)), reverse=True):
        tensor = tensor.squeeze(axis)
    return tensor


def unsqueeze(tensor: Tensor, axes: Any) -> Tensor:
    """With dimensions of size 1, which are `axes` of the result."""
    numbers = [int(a) for a in as_numbers(axes)]
    rank = int(tensor.dim()) + len(numbers)
    for axis in sorted(a % rank for a in numbers):
        tensor = tensor.unsqueeze(axis)
    return tensor


def slice_const(tensor: Tensor, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> Tensor:
    """A slice between constants; ONNX writes an open end as the largest number there is."""
    index = [slice(None)] * int(tensor.dim())
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start or None, end if end < 2**31 - 1 else None, step if step != 1 else None)
    if all(part == slice(None) for part in index):
        return tensor
    sliced: Tensor = tensor[tuple(index)]
    return sliced


def pad(tensor: Tensor, pads: Any, value: Any = None, axes: Any = None, mode: str = "constant") -> Tensor:
    """With borders of a constant, of the edge, mirrored at it, or wrapped around; negative ones cut off."""
    rank = int(tensor.dim())
    numbers = [int(p) for p in as_numbers(pads)]
    places = [int(a) % rank for a in as_numbers(axes)] if axes is not None else list(range(rank))
    half = len(numbers) // 2
    if mode == "constant":
        around = [0] * (2 * rank)  # of the last dimension first
        for place, before, after in zip(places, numbers[:half], numbers[half:], strict=True):
            around[2 * (rank - 1 - place) : 2 * (rank - place)] = [before, after]
        number = 0.0 if value is None else as_numbers(value)[0]
        return F.pad(tensor, around, value=number)
    for place, before, after in zip(places, numbers[:half], numbers[half:], strict=True):
        if before or after:
            size = int(tensor.shape[place])
            index = [_source(i, size, mode) for i in range(-before, size + after)]
            tensor = tensor.index_select(place, torch.tensor(index, dtype=torch.int64))
    return tensor


def _source(index: int, size: int, mode: str) -> int:
    if mode == "edge" or size == 1:
        return min(max(index, 0), size - 1)
    if mode == "wrap":
        return index % size
    index %= 2 * size - 2
    return index if index < size else 2 * size - 2 - index


def clip(tensor: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Between two bounds, of which either may be missing; the upper one wins where they cross."""
    if low is not None:
        tensor = torch.maximum(tensor, low) if isinstance(low, Tensor) else tensor.clamp(min=low)
    if high is not None:
        tensor = torch.minimum(tensor, high) if isinstance(high, Tensor) else tensor.clamp(max=high)
    return tensor


def normalize(tensor: Tensor, axis: int, power: int) -> Tensor:
    """Divided by its norm along an axis; what has none is 0."""
    norm = tensor.norm(float(power), dim=axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(tensor), tensor / norm)


def cumulate(tensor: Tensor, axis: Any, exclusive: int, reverse: int, product: bool) -> Tensor:
    """Sums or products of all elements up to each, itself left out where `exclusive`, from the end where `reverse`."""
    place = int(as_numbers(axis)[0])
    work = tensor.flip(place) if reverse else tensor
    summed = torch.cumprod(work, place) if product else torch.cumsum(work, place)
    if exclusive:
        first = torch.ones_like(summed.narrow(place, 0, 1)) if product else torch.zeros_like(summed.narrow(place, 0, 1))
        summed = torch.cat([first, summed.narrow(place, 0, summed.shape[place] - 1)], place)
    summed = summed.to(tensor.dtype)
    return summed.flip(place) if reverse else summed
