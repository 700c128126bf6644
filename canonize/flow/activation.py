r"""Piecewise-linear activations: the kink moves to a threshold per channel.

With :math:`z = -t/s`, Eq. 7 of Pahde et al. 2023:

.. math:: \mathrm{ReLU}(s x + t) = s\,\mathrm{clamp}(x; z, \infty) + t \quad (s > 0), \qquad
          \mathrm{ReLU}(s x + t) = s\,\mathrm{clamp}(x; -\infty, z) + t \quad (s < 0)

(Eq. 8 there prints the second condition with the sign of :math:`z` reversed.) A dead channel, :math:`s = 0`, is the
constant :math:`\mathrm{ReLU}(t)`: bounds equal to it, and no affine behind. ReLU6 and Hardtanh have two finite bounds;
LeakyReLU and PReLU keep their slopes around the kink.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from canonize.algebra.affine import EXACT, Affine
from canonize.flow.edits import Kink, Threshold
from canonize.flow.plan import RefusedError, Step, forward_rule
from canonize.nn import ThreshLeakyReLU, ThreshReLU


def _channels(step: Step, incoming: list[Affine | None]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scale, shift and the mask of dead channels, broadcast against each other; no mask where none is dead."""
    affine = incoming[0]
    if affine is None:
        raise RefusedError(f"{step.label()} is not reached")
    step.pass_through("activation")
    scale, shift = torch.broadcast_tensors(affine.scale, affine.shift)
    largest = torch.finfo(step.dtype).max / 4
    if not bool((shift.abs() >= scale.abs() * largest).any()):
        return scale, shift, None  # a scale of zero would be found here, too
    dead = affine.dead(step.dtype)
    step.require(
        bool(((shift.abs() <= scale.abs() * largest) | dead).all()),
        f"its scale is so small that the threshold -t/s overflows {step.dtype} at {step.label()}",
    )
    return scale, shift, dead if bool(dead.any()) else None


def _safe(scale: Tensor, dead: Tensor | None) -> Tensor:
    """Scales to divide by."""
    return scale if dead is None else torch.where(dead, torch.ones_like(scale), scale)


def _behind(scale: Tensor, shift: Tensor, dead: Tensor | None) -> Affine:
    return Affine(_safe(scale, dead), shift if dead is None else torch.where(dead, torch.zeros_like(shift), shift))


def _swapped(where: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The two with their elements exchanged in places."""
    if not bool(where.any()):
        return first, second
    return torch.where(where, second, first), torch.where(where, first, second)


def _bounded(step: Step, incoming: list[Affine | None], low: float, high: float) -> Affine:
    """``clamp(s x + t, low, high)`` as ``s clamp(x, ...) + t``."""
    scale, shift, dead = _channels(step, incoming)
    safe = _safe(scale, dead)
    lower, upper = _swapped(safe < 0, (low - shift) / safe, (high - shift) / safe)
    if dead is not None:
        constant = shift.clamp(low, high)
        lower, upper = torch.where(dead, constant, lower), torch.where(dead, constant, upper)
    has_lower, has_upper = bool(torch.isfinite(lower).any()), bool(torch.isfinite(upper).any())
    affine = _behind(scale, shift, dead)
    if low == 0 and not has_upper and not bool(lower.any()):
        return affine  # no shift, no negative scale: the kink stays at zero
    step.edit(Threshold(_tight(lower) if has_lower else None, _tight(upper) if has_upper else None))
    return affine


def _tight(bounds: Tensor) -> Tensor:
    return Affine(bounds, bounds).compress().scale


@forward_rule(ThreshReLU)
def thresholds_pass(step: Step, incoming: list[Affine | None]) -> Affine:
    """A threshold that is there already moves with the affine."""
    module = step.module
    assert isinstance(module, ThreshReLU)
    scale, shift, dead = _channels(step, incoming)
    infinite = torch.full((), float("inf"), dtype=EXACT, device=scale.device)
    low = module.lower.to(EXACT) if module.lower is not None else -infinite
    high = module.upper.to(EXACT) if module.upper is not None else infinite
    safe = _safe(scale, dead)
    first, second = (low - shift) / safe, (high - shift) / safe
    lower, upper = torch.minimum(first, second), torch.maximum(first, second)
    if dead is not None:
        constant = torch.minimum(torch.maximum(shift, low), high)
        lower, upper = torch.where(dead, constant, lower), torch.where(dead, constant, upper)
    step.edit(Threshold(_tight(lower), _tight(upper)))
    return _behind(scale, shift, dead)


@forward_rule(nn.ReLU6, nn.Hardtanh)
def bounded_pass(step: Step, incoming: list[Affine | None]) -> Affine:
    """Two finite bounds."""
    module = step.module
    assert isinstance(module, nn.Hardtanh)
    return _bounded(step, incoming, float(module.min_val), float(module.max_val))


@forward_rule(nn.ReLU)
def rectifier_passes(step: Step, incoming: list[Affine | None]) -> Affine:
    """One bound."""
    return _bounded(step, incoming, 0.0, float("inf"))


@forward_rule(nn.LeakyReLU, nn.PReLU, ThreshLeakyReLU)
def leaky_rectifier_passes(step: Step, incoming: list[Affine | None]) -> Affine:
    r"""Two slopes, :math:`(f(s x + t) - t) / s = z + r \max(x - z, 0) + l \min(x - z, 0)`."""
    module = step.module
    if isinstance(module, ThreshLeakyReLU):
        raise RefusedError(f"{step.label()} has moved already")
    scale, shift, dead = _channels(step, incoming)
    scale, shift, slope = torch.broadcast_tensors(scale, shift, _slope(step, module, scale))
    dead = None if dead is None else dead.expand(scale.shape)
    safe = _safe(scale, dead)
    left, right = _swapped(safe < 0, slope, torch.ones_like(scale))
    kink = -shift / safe
    affine = _behind(scale, shift, dead)
    if dead is None and not bool(kink.any()) and bool((scale > 0).all()):
        return affine
    if dead is not None:
        zero = torch.zeros_like(scale)
        kink = torch.where(dead, torch.where(shift > 0, shift, slope * shift), kink)
        left, right = torch.where(dead, zero, left), torch.where(dead, zero, right)
    step.edit(Kink(_tight(kink), _tight(left), _tight(right)))
    return affine


def _slope(step: Step, module: nn.Module, scale: Tensor) -> Tensor:
    if isinstance(module, nn.LeakyReLU):
        return torch.full_like(scale, module.negative_slope)
    assert isinstance(module, nn.PReLU)
    slope = module.weight.detach().to(EXACT)
    if slope.numel() == 1:
        return slope.reshape(()).expand(scale.shape)
    shape = [1] * scale.ndim
    step.require(scale.ndim >= 2, f"{step.label()} has a slope per channel and no channels")
    shape[1] = slope.numel()
    return slope.reshape(shape)
