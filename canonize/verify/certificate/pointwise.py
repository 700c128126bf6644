r"""Activations: the kink of the canonical one lies where :math:`S u + T` has the original's.

A clamp: :math:`\min(\max(S u + T, l), h) = S \min(\max(u, l'), h') + T` for all u exactly if :math:`l', h'` are
:math:`(l - T)/S, (h - T)/S`, exchanged where :math:`S < 0`. With slopes left and right of a kink at zero, the kink is
at :math:`-T/S` and the slopes are exchanged where :math:`S < 0`. Where :math:`S = 0` the value is a constant c: both
bounds are c (both slopes zero, the kink c), and behind the activation nothing is left to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from canonize.nn import ThreshLeakyReLU, ThreshReLU
from canonize.verify.certificate.relation import (
    IDENTITY,
    Relation,
    exact,
    is_rounded,
    number,
    require,
    stored,
)

CLAMPS = (nn.ReLU, nn.Hardtanh)  # with nn.ReLU6 and ThreshReLU, which are among them
LEAKY = (nn.LeakyReLU, nn.PReLU)
# No activation of a working network is larger. A scale below the rounding of its shift for all of them is zero.
LARGEST = 1e12


@dataclass(frozen=True)
class Bounds:
    """What a clamp clamps to, as stored."""

    low: Tensor
    high: Tensor


def bounds(module: Any) -> Bounds:
    """The bounds of a clamp, in its own precision."""
    if isinstance(module, ThreshReLU):
        limits = zip((module.lower, module.upper), (-torch.inf, torch.inf), strict=True)
        return Bounds(*(number(inf) if held is None else stored(held) for held, inf in limits))
    if isinstance(module, nn.Hardtanh):
        return Bounds(number(module.min_val), number(module.max_val))
    return Bounds(number(0), number(torch.inf))


def negligible(scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a channel is a constant: its scale is zero, or lost in the rounding of its shift for every activation."""
    limits = torch.finfo(dtype)
    return (scale == 0) | (scale.abs() * min(limits.max, LARGEST) <= limits.eps * shift.abs())


def check_clamp(f: Any, g: Any, given: Relation, dtype: torch.dtype) -> Relation:
    """A clamp that moved; see the head of this file."""
    old, new = bounds(f), bounds(g)
    scale, shift = given.solved()
    low, high = (exact(part) for part in (old.low, old.high))
    scale, shift, low, high = torch.broadcast_tensors(scale, shift, low, high)
    dead = _dead(scale, shift, dtype)
    safe = torch.where(dead, 1.0, scale)
    first, second = (low - shift) / safe, (high - shift) / safe
    constant = shift.clamp(min=low, max=high)
    want_low = torch.where(dead, constant, torch.minimum(first, second))
    want_high = torch.where(dead, constant, torch.maximum(first, second))
    size = given.terms / safe.abs()
    for held, want in ((new.low, want_low), (new.high, want_high)):
        own = held if isinstance(g, ThreshReLU) else held.to(dtype)  # as torch compares with a number
        good = is_rounded(own, want, size)
        require(good, "a threshold is not where S u + T has the original's kink, rounded once", broken=True)
    return _behind(given, dead)


def check_leaky(f: Any, g: Any, given: Relation, dtype: torch.dtype) -> Relation:
    """A leaky rectifier that moved; see the head of this file."""
    scale, shift = given.solved()
    slope = _slope(f, scale)
    scale, shift, slope = torch.broadcast_tensors(scale, shift, slope)
    dead = _dead(scale, shift, dtype)
    safe = torch.where(dead, 1.0, scale)
    constant = torch.where(shift > 0, shift, slope * shift)
    one, zero = torch.ones_like(scale), torch.zeros_like(scale)
    kink = torch.where(dead, constant, -shift / safe)
    left = torch.where(dead, zero, torch.where(safe < 0, one, slope))
    right = torch.where(dead, zero, torch.where(safe < 0, slope, one))
    if isinstance(g, ThreshLeakyReLU):
        held = [stored(part) for part in (g.threshold, g.left, g.right)]
    else:
        held = [number(0), _slope(g, scale).to(dtype), number(1)]
    for own, want in zip(held, (kink, left, right), strict=True):
        good = is_rounded(own, want, given.terms / safe.abs())
        require(good, "a kink or a slope is not that of the original", broken=True)
    return _behind(given, dead)


def _slope(module: Any, scale: Tensor) -> Tensor:
    if isinstance(module, nn.LeakyReLU):
        return torch.full_like(scale, module.negative_slope)
    slope = exact(module.weight)
    return slope.reshape(()) if slope.numel() == 1 else slope.reshape(-1, *(1,) * max(0, scale.ndim - 1))


def _dead(scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    dead = negligible(scale, shift, dtype)
    # Where the value is no constant the threshold -T/S has to exist.
    overflows = shift.abs() > scale.abs() * (torch.finfo(dtype).max / 4)
    return dead & ((scale == 0) | overflows)


def _behind(given: Relation, dead: Tensor) -> Relation:
    if not bool(dead.any()):
        scale, shift = given.solved()
        made = Relation(torch.ones_like(scale), scale, shift, size=given.terms)
        return IDENTITY if given is IDENTITY else made.compressed()
    scale, shift = torch.broadcast_tensors(*given.solved())
    scale, shift = scale.expand(dead.shape), shift.expand(dead.shape)
    right, moved = torch.where(dead, 1.0, scale), torch.where(dead, 0.0, shift)
    return Relation(torch.ones_like(right), right, moved, size=given.terms).compressed()


def held_constant(clamp: Any, given: Relation, claimed: Relation, dtype: torch.dtype) -> Relation | None:
    """A clamp that holds constant channels at A v + B and leaves all others alone; ``None`` if it is another one."""
    limits = bounds(clamp)
    factor, added = claimed.left, -claimed.shift
    scale, shift = given.solved()
    low, high, scale, shift, factor, added = torch.broadcast_tensors(
        exact(limits.low), exact(limits.high), scale, shift, factor, added
    )
    free = low.isinf() & high.isinf() & (low < high)
    held = (low == high) & negligible(scale, shift, dtype)
    if not bool((free | held).all()):
        return None
    limit = limits.low.expand(low.shape)
    want = factor * shift + added
    if not is_rounded(limit[held], want[held], (factor.abs() * given.terms + added.abs())[held]):
        return None
    left, right, moved = torch.where(held, factor, 1.0), torch.where(held, 1.0, scale), torch.where(held, -added, shift)
    return Relation(left, right, moved, size=given.terms).compressed()
