"""Operations that only move elements: per-channel vectors follow the data.

Forward, scale and shift are sent through the operation itself. Backward, a tensor that numbers the input's elements is
sent through, and tells for every output element where it came from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from canonize.algebra.affine import EXACT, Affine
from canonize.flow.plan import RefusedError, Step, backward_rule, forward_rule
from canonize.nn import Rearrange
from canonize.vocabulary import row_of

MOVING_MODULES = (
    Rearrange,
    nn.Flatten,
    nn.Unflatten,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
)
_REFLECTIONS = (
    nn.ReflectionPad1d,
    nn.ReflectionPad2d,
    nn.ReflectionPad3d,
    nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    nn.ReplicationPad3d,
    nn.CircularPad1d,
    nn.CircularPad2d,
    nn.CircularPad3d,
)


def _data(step: Step) -> fx.Node:
    return step.network.data_inputs(step.node)[0]


def _keeps_places(step: Step, *, back: bool = False) -> bool:
    """Whether an operation gives every element back where it was; a cast, if it loses nothing of it.

    Raises
    ------
    RefusedError
        For a cast that rounds: what is rounded may not change. Backwards also for one that widens: what is computed
        behind it in the wider precision may not be computed before it.
    """
    row = row_of(step.module)
    if not isinstance(step.module, Rearrange) or not row.stays:
        return False
    if row.casts:
        shapes = step.network.shapes
        before, after = shapes.value(_data(step)), shapes.value(step.node)
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            raise RefusedError(f"{step.label()} cannot be followed")
        if not _holds(after.dtype, before.dtype) or (back and not _holds(before.dtype, after.dtype)):
            raise RefusedError(f"{step.label()} casts to {str(after.dtype).removeprefix('torch.')}")
    return True


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether a floating dtype has every value of another."""
    if not wide.is_floating_point or not narrow.is_floating_point:
        return wide == narrow
    ours, theirs = torch.finfo(wide), torch.finfo(narrow)
    return ours.eps <= theirs.eps and ours.max >= theirs.max


def _move(step: Step, tensor: Tensor) -> Tensor:
    """Send a tensor of the input's shape through the operation."""
    others = []
    for argument in step.network.data_inputs(step.node)[1:]:
        value = step.network.shapes.value(argument)
        others.append(torch.empty(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value)
    try:
        moved = step.module(tensor, *others)
    except Exception as error:
        raise RefusedError(f"{step.label()} cannot be followed ({type(error).__name__})") from error
    if not isinstance(moved, Tensor) or tuple(moved.shape) != step.shape():
        raise RefusedError(f"{step.label()} cannot be followed")
    return moved


@forward_rule(*MOVING_MODULES, *_REFLECTIONS)
def moves_forward(step: Step, incoming: list[Affine | None]) -> Affine:
    """Scale and shift take the way of the data."""
    affine = incoming[0]
    measures = row_of(step.module).like == "other"  # x.view_as(y): of y only the shape or dtype is looked at
    if affine is None or (any(other is not None for other in incoming[1:]) and not measures):
        raise RefusedError(f"{step.label()} uses the value for something else than moving it")
    step.pass_through("movement")
    if _keeps_places(step):
        return affine
    if not affine.varying():
        return _everywhere(affine, len(step.shape()))
    scale, shift = affine.expanded(step.shape(_data(step)))
    return Affine(_move(step, scale.cpu()).to(scale.device), _move(step, shift.cpu()).to(shift.device)).compress()


@backward_rule(*MOVING_MODULES, *_REFLECTIONS)
def moves_backward(step: Step, affine: Affine) -> list[Affine | None]:
    """Every output element tells its source what it needs; all that come from one source must agree."""
    step.pass_through("movement")
    rest: list[Any] = [None] * (len(step.network.data_inputs(step.node)) - 1)
    if _keeps_places(step, back=True):
        return [affine, *rest]
    shape = step.shape(_data(step))
    shared = len(step.network.readers(_data(step))) > 1
    if not affine.varying() and not shared:
        return [_everywhere(affine, len(shape)), *rest]
    count = 1
    for size in shape:
        count *= size
    numbers = torch.arange(count, dtype=EXACT).reshape(shape)
    places = _move(step, numbers).long().flatten()
    scale, shift = affine.expanded(step.shape())
    sources = [_collect(step, part.cpu().flatten(), places, shape) for part in (scale, shift)]
    # Elements that this operation does not show are free to choose, unless somebody else looks at them.
    filled = [_fill(part, neutral, shared) for part, neutral in zip(sources, (1.0, 0.0), strict=True)]
    needed_scale, needed_shift = (part.to(scale.device) for part in filled)
    return [Affine(needed_scale, needed_shift), *rest]


def _everywhere(affine: Affine, ndim: int) -> Affine:
    """One number for all elements, on a value of another rank."""
    shape = (1,) * ndim
    return Affine(affine.scale.reshape(shape), affine.shift.reshape(shape))


def _collect(step: Step, values: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What each input element needs; NaN where no output shows it."""
    count = 1
    for size in shape:
        count *= size
    found = torch.full((count,), float("nan"), dtype=EXACT)
    found[places] = values
    step.require(
        torch.equal(found[places], values), f"{step.label()} shows one element in places that need different affines"
    )
    return found.reshape(shape)


def _fill(tensor: Tensor, neutral: float, shared: bool) -> Tensor:
    """Shrink to size 1 along every dimension along which the known elements agree; the rest becomes neutral.

    Where the tensor is shared, unknown elements must become neutral: they take no part in the shrinking.
    """
    for dim, size in enumerate(tensor.shape):
        if size == 1:
            continue
        unknown = tensor.isnan()
        largest = torch.where(unknown, -torch.inf, tensor).amax(dim, keepdim=True)
        smallest = torch.where(unknown, torch.inf, tensor).amin(dim, keepdim=True)
        agree = (largest == smallest) | unknown.all(dim, keepdim=True)
        if shared:
            agree = agree & (unknown.all(dim, keepdim=True) | ~unknown.any(dim, keepdim=True))
        if bool(agree.all()):
            tensor = torch.where(unknown.all(dim, keepdim=True), torch.nan, largest)
    return torch.where(tensor.isnan(), neutral, tensor)
