r"""What a relation :math:`a v = c u + d` passes: operations that move elements, add them up, or choose among them.

- A movement: a, c, d follow the data.
- A weighted sum over positions: for weights that sum to one, a, c, d as they are; for others d times that sum.
- :math:`\sum_i w_i v_i` with one a and one c for all i: :math:`a \sum w_i v_i = c \sum w_i u_i + \sum w_i d_i`.
- A maximum: where a and c are not negative.
- A product of factors without d: :math:`a_1 a_2 v_1 v_2 = c_1 c_2 u_1 u_2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canonize.nn import ChannelPad
from canonize.verify.certificate.relation import (
    EXACT,
    IDENTITY,
    NOISE,
    Relation,
    half_unit,
    is_rounded,
    number,
    require,
    stored,
)

Shape = tuple[int, ...]


def _per_part(given: Relation, change: Callable[[Tensor], Tensor]) -> Relation:
    left, right, shift = (change(part) for part in given.parts)
    constant, size = (None if part is None else change(part) for part in (given.constant, given.size))
    return Relation(left, right, shift, constant, size).compressed()


def constant_along(given: Relation, dims: Sequence[int], what: str) -> None:
    """Require that a relation does not differ along dimensions, counted from the right."""
    require(not given.varying & set(dims), f"the relation differs along a dimension that {what}")


# ------------------------------------------------------------------------------------------------------ movement


def moved(given: Relation, before: Shape, after: Shape, run: Callable[[Tensor], Any]) -> Relation:
    """Through an operation that only moves elements: by sending the relation itself through it."""
    if given is IDENTITY or all(part.ndim == 0 for part in given.parts):
        return given

    def send(part: Tensor) -> Tensor:
        made = run(part.expand(before).contiguous())
        require(isinstance(made, Tensor) and tuple(made.shape) == after, "the movement cannot be followed")
        tensor: Tensor = made
        return tensor

    return _per_part(given, send)


def concatenated(given: Sequence[Relation], shapes: Sequence[Shape], dim: int) -> Relation:
    """Concatenation: each piece brings its own; ``dim`` counts from the right."""
    if all(relation is IDENTITY for relation in given):
        return IDENTITY
    ndim = max(-dim, *(part.ndim for relation in given for part in relation.parts))

    def joined(parts: Sequence[Tensor]) -> Tensor:
        parts = [part.reshape((1,) * (ndim - part.ndim) + part.shape) for part in parts]
        wide = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
        sizes = ([*wide[:dim], shape[dim], *wide[ndim + dim + 1 :]] for shape in shapes)
        return torch.cat([part.expand(size) for part, size in zip(parts, sizes, strict=True)], dim)

    left, right, shift = (joined([relation.parts[i] for relation in given]) for i in range(3))
    constant = None
    if any(relation.constant is not None for relation in given):
        constant = joined([number(math.nan) if relation.constant is None else relation.constant for relation in given])
    size = joined([relation.terms * relation.left.abs() for relation in given])
    return Relation(left, right, shift, constant, size).compressed()


# ---------------------------------------------------------------------------------------------- sums and products


def summed(given: Sequence[Relation], weights: Sequence[float]) -> Relation:
    """A weighted sum of values with one scale."""
    if all(relation is IDENTITY for relation in given):
        return IDENTITY
    scaled = []
    for relation in given:
        factor = torch.where(relation.left == 0, 1.0, relation.left)
        scaled.append([part / factor for part in relation.parts])
    left, right, _ = scaled[0]
    for other_left, other_right, _ in scaled[1:]:
        alike = _close(left, other_left) and _close(right, other_right)
        require(alike, "the terms of a sum carry different scales", broken=True)
    total, size = left * 0, left * 0
    for relation, (_, _, shift), weight in zip(given, scaled, weights, strict=True):
        total, size = total + shift * weight, size + relation.terms * abs(weight)
    total = torch.where(total.abs() <= NOISE * size, 0.0, total)
    return Relation(left, right, total, size=size).compressed()


def _close(first: Tensor, second: Tensor) -> bool:
    first, second = torch.broadcast_tensors(first, second)
    return bool(((first - second).abs() <= NOISE * first.abs()).all())


def multiplied(given: Sequence[Relation], *, one_number: bool) -> Relation:
    """A product of two values (of two matrices, where one number scales all of each)."""
    left = right = torch.tensor(1.0, dtype=EXACT)
    for relation in given:
        require(not bool(relation.shift.any()), "a shift lies on a factor of a product", broken=True)
        if one_number:
            require(not relation.varying, "more than one number scales a matrix", broken=True)
            relation = _per_part(relation, lambda part: part.reshape(()))
        left, right = left * relation.left, right * relation.right
    return Relation(left, right, torch.zeros_like(left)).compressed()


def reduced(given: Relation, dims: Sequence[int], ndim: int, keepdim: bool, count: int | None) -> Relation:
    """A mean, or a sum of ``count`` positions, over dimensions counted from the left."""
    if given is IDENTITY:
        return given
    across = [dim - ndim if dim >= 0 else dim for dim in dims]
    scales = Relation(given.left, given.right, torch.zeros_like(given.left))
    constant_along(scales, across, "is added up")
    shift = given.shift.reshape((1,) * (ndim - given.shift.ndim) + tuple(given.shift.shape))
    shift = shift.mean(across, keepdim=True)
    if count is not None:
        require(not bool(given.shift.any()) or count > 0, "a shift is added up over a number of positions that is free")
        shift = shift * max(count, 0)
    parts = [part.reshape((1,) * (ndim - part.ndim) + tuple(part.shape)) for part in (given.left, given.right)]
    parts.append(shift)
    if not keepdim:
        for dim in sorted(across):  # from the left, counted from the right: those behind stay where they are
            parts = [part.squeeze(dim) if part.ndim >= -dim else part for part in parts]
    return Relation(*parts).compressed()


# ------------------------------------------------------------------------------------------------ pooling, padding


def pooled(given: Relation, dims: int | None, *, maximum: bool) -> Relation:
    """Pooling over the last dimensions (``None``: all behind the channels)."""
    if given is IDENTITY:
        return given
    spatial = range(-dims, 0) if dims is not None else range(-3, 0)
    if dims is None:  # resizing acts on all dimensions behind batch and channels, and keeps the rank
        spatial = range(0)
        require(len(given.varying) <= 1, "the relation differs along a dimension that is resized")
    constant_along(given, spatial, "is pooled over")
    if maximum:
        positive = bool((given.left >= 0).all() and (given.right >= 0).all())
        require(positive, "a negative scale passes a maximum", broken=True)
    return given


def same_windows(f: Any, g: Any, shape: Shape) -> dict[int, int]:
    r"""Require that a plain pooling has an adaptive one's windows; by dimension, the sizes for which it has.

    Window i of m over n positions goes from :math:`\lfloor i n / m \rfloor` to :math:`\lceil (i + 1) n / m \rceil`:
    where m divides n, those of a plain pooling of size and stride n / m.
    """
    dims = (ADAPTIVE | MAXIMA)[type(f)]
    given = shape[-dims:]
    asked = tuple(f.output_size) if isinstance(f.output_size, tuple | list) else (f.output_size,) * dims
    made = [n if m is None else m for m, n in zip(asked, given, strict=True)]
    good = all(m and n % m == 0 for m, n in zip(made, given, strict=True))
    windows = tuple(n // m for m, n in zip(made, given, strict=True)) if good else ()
    wanted = {"kernel_size": windows, "stride": windows, "padding": (0,) * dims, "dilation": (1,) * dims}
    good = good and all(_wide(getattr(g, name, want), dims) == want for name, want in wanted.items())
    require(good, "its windows are not those of the adaptive pooling", broken=True)
    settings = [getattr(g, name, None) for name in ("divisor_override", "ceil_mode", "return_indices")]
    indices = getattr(f, "return_indices", False)
    require(not any(settings) and not indices, "it is no plain pooling", broken=True)
    return dict(enumerate(given, len(shape) - dims))


def padded(given: Relation, padding: Sequence[int], old: Tensor, new: Tensor, shape: Shape) -> Relation:
    r"""Explicit padding: :math:`a v_0 = c u_0 + d` for the constants; or new channels, which are the same in both."""
    dims = {-1 - i // 2 for i, amount in enumerate(padding) if amount}
    if given.varying & dims:
        same = bool(((old - new.to(EXACT)).abs() <= half_unit(new) * (1 + 1e-6)).all())
        require(same, "channels that a padding adds differ", broken=True)
        amounts = list(padding)

        def grown(fill: float) -> Callable[[Tensor], Tensor]:
            return lambda part: F.pad(part.expand(shape).contiguous(), amounts, value=fill)

        parts = [grown(fill)(part) for part, fill in zip(given.parts, (1.0, 1.0, 0.0), strict=True)]
        return Relation(*parts).compressed()
    left, right, shift = given.parts
    want = torch.where(right == 0, torch.nan, (left * old - shift) / right)
    size = (left.abs() * (old.abs() + given.terms)) / right.abs()
    require(is_rounded(new, want, size), "what is padded is not the same", broken=True)
    return given


def constant_of(module: Any) -> Tensor:
    """What a module pads with, in its own precision, as a relation's tensor."""
    if isinstance(module, ChannelPad):
        return stored(module.value)
    return number(module.value)


def same_average(f: Any, g: Any, given: Relation, pad: ChannelPad | None, dims: int) -> Relation:
    """Average pooling; zeros of its padding that count are S z + T in the canonical model."""
    settings = ("kernel_size", "stride", "ceil_mode", "divisor_override")
    require(all(_same(getattr(f, s, None), getattr(g, s, None)) for s in settings), "other windows", broken=True)
    own, theirs = (_wide(m.padding, dims) for m in (f, g))
    amounts = (0,) * (2 * dims)
    if pad is not None:
        amounts = tuple(int(a) for a in pad.padding if isinstance(a, int))
        require(f.count_include_pad and not f.ceil_mode, "a padding counts that did not", broken=True)
        scale, shift = given.solved()
        want = torch.where(scale == 0, torch.nan, -shift / scale)
        require(
            is_rounded(constant_of(pad), want, given.terms / scale.abs()), "what is padded is not zero", broken=True
        )
    total = tuple(p + amounts[2 * (dims - 1 - d)] for d, p in enumerate(theirs))
    even = all(amounts[2 * d] == amounts[2 * d + 1] for d in range(dims))
    require(own == total and even, "the two pad by different amounts", broken=True)
    shifted = bool(given.shift.any())
    if shifted:
        require(not any(theirs) or not f.count_include_pad, "zeros count where S z + T = 0 should", broken=True)
        override = getattr(f, "divisor_override", None)
        full = math.prod(_wide(f.kernel_size, dims))
        require(override in (None, full), "the weights of an average do not sum to one", broken=True)
        if override == full:
            require(not any(own) and not f.ceil_mode, "a window at the border does not divide by its size", broken=True)
    return pooled(given, dims, maximum=False)


def _same(first: Any, second: Any) -> bool:
    return bool(first == second)


def _wide(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


AVERAGES: dict[type, int] = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}
ADAPTIVE: dict[type, int] = {nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3}
MAXIMA: dict[type, int] = {
    nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3,
    nn.AdaptiveMaxPool1d: 1, nn.AdaptiveMaxPool2d: 2, nn.AdaptiveMaxPool3d: 3,
}  # fmt: skip
# What an adaptive pooling is for one size.
PLAIN: dict[type, type] = {
    nn.AdaptiveAvgPool1d: nn.AvgPool1d, nn.AdaptiveAvgPool2d: nn.AvgPool2d, nn.AdaptiveAvgPool3d: nn.AvgPool3d,
    nn.AdaptiveMaxPool1d: nn.MaxPool1d, nn.AdaptiveMaxPool2d: nn.MaxPool2d, nn.AdaptiveMaxPool3d: nn.MaxPool3d,
}  # fmt: skip
