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

from canonize.algebra.exact import exact_value
from canonize.nn import ThreshLeakyReLU, ThreshReLU
from canonize.verify.certificate.relation import EXACT, IDENTITY, Relation, is_rounded, require

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
        return Bounds(*(torch.tensor(inf) if held is None else _aligned(held) for held, inf in limits))
    if isinstance(module, nn.Hardtanh):
        return Bounds(torch.tensor(float(module.min_val)), torch.tensor(float(module.max_val)))
    return Bounds(torch.tensor(0.0), torch.tensor(torch.inf))


def _aligned(held: Tensor) -> Tensor:
    held = held.detach()
    while held.ndim and held.shape[0] == 1:
        held = held[0]
    return held


def negligible(scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a channel is a constant: its scale is zero, or lost in the rounding of its shift for every activation."""
    limits = torch.finfo(dtype)
    return (scale == 0) | (scale.abs() * min(limits.max, LARGEST) <= limits.eps * shift.abs())


def check_clamp(f: Any, g: Any, given: Relation, dtype: torch.dtype) -> Relation:
    """A clamp that moved; see the head of this file."""
    old, new = bounds(f), bounds(g)
    scale, shift = given.solved()
    low, high = (exact_value(part).to(EXACT) for part in (old.low, old.high))
    scale, shift, low, high = torch.broadcast_tensors(scale, shift, low, high)
    dead = _dead(scale, shift, dtype)
    safe = torch.where(dead, 1.0, scale)
    first, second = (low - shift) / safe, (high - shift) / safe
    constant = shift.clamp(min=low, max=high)
    want_low = torch.where(dead, constant, torch.minimum(first, second))
    want_high = torch.where(dead, constant, torch.maximum(first, second))
    size = (shift / safe).abs()
    for held, want in ((new.low, want_low), (new.high, want_high)):
        stored = held.to(dtype) if not isinstance(g, ThreshReLU) else held
        shape = torch.broadcast_shapes(stored.shape, want.shape)
        good = is_rounded(stored.expand(shape), want.expand(shape), size.expand(shape))
        require(good, "a threshold is not where S u + T has the original's kink, rounded once", broken=True)
    return _behind(given, dead, constant)


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
        held = [_aligned(part) for part in (g.threshold, g.left, g.right)]
    else:
        own = _slope(g, scale).to(dtype)
        held = [torch.zeros((), dtype=dtype), own, torch.ones((), dtype=dtype)]
    for stored, want in zip(held, (kink, left, right), strict=True):
        shape = torch.broadcast_shapes(stored.shape, want.shape)
        good = is_rounded(stored.expand(shape), want.expand(shape), (shift / safe).abs().expand(shape))
        require(good, "a kink or a slope is not that of the original", broken=True)
    return _behind(given, dead, constant)


def _slope(module: Any, scale: Tensor) -> Tensor:
    if isinstance(module, nn.LeakyReLU):
        return torch.full_like(scale, module.negative_slope)
    slope = exact_value(module.weight).to(EXACT)
    return slope.reshape(()) if slope.numel() == 1 else slope.reshape(-1, *(1,) * max(0, scale.ndim - 1))


def _dead(scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    dead = negligible(scale, shift, dtype)
    # Where the value is no constant the threshold -T/S has to exist.
    overflows = shift.abs() > scale.abs() * (torch.finfo(dtype).max / 4)
    return dead & ((scale == 0) | overflows)


def _behind(given: Relation, dead: Tensor, constant: Tensor) -> Relation:
    if not bool(dead.any()):
        scale, shift = given.solved()
        return IDENTITY if given is IDENTITY else Relation(torch.ones_like(scale), scale, shift).compressed()
    scale, shift = torch.broadcast_tensors(*given.solved())
    scale, shift = scale.expand(dead.shape), shift.expand(dead.shape)
    right, moved = torch.where(dead, 1.0, scale), torch.where(dead, 0.0, shift)
    return Relation(torch.ones_like(right), right, moved, torch.where(dead, constant, torch.nan)).compressed()


def held_constant(clamp: Any, given: Relation, dtype: torch.dtype) -> Relation | None:
    """A clamp that holds constant channels at their values and leaves all others alone; ``None`` if it is another one."""
    limits = bounds(clamp)
    scale, shift = given.solved()
    low, high, scale, shift = torch.broadcast_tensors(
        exact_value(limits.low).to(EXACT), exact_value(limits.high).to(EXACT), scale, shift
    )
    free = low.isinf() & high.isinf() & (low < high)
    held = (low == high) & negligible(scale, shift, dtype)
    if not bool((free | held).all()):
        return None
    stored = limits.low.expand(low.shape)
    if not is_rounded(stored[held], shift[held]):
        return None
    right, moved = torch.where(held, 1.0, scale), torch.where(held, 0.0, shift)
    return Relation(torch.ones_like(right), right, moved, torch.where(held, shift, torch.nan)).compressed()
