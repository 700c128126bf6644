"""Inputs on both sides of every threshold: what a random draw leaves untouched is where a wrong bound hides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from canonize.inputs import Inputs
from canonize.nn import ThreshLeakyReLU, ThreshReLU
from canonize.twins.twin import device_of
from canonize.verify import measure, run

# Gradient steps towards thresholds that no input has crossed yet.
STEPS = 8
_STEP, _GROWTH = 0.5, 1.4


@dataclass
class Crossing:
    """Which units of the thresholded activations have been seen below and above their threshold.

    Attributes
    ----------
    below, above, finite : dict
        Qualified name to a boolean for each bound; infinite bounds are no thresholds.
    """

    below: dict[str, Tensor] = field(default_factory=dict)
    above: dict[str, Tensor] = field(default_factory=dict)
    finite: dict[str, Tensor] = field(default_factory=dict)

    def see(self, name: str, distance: Tensor, channels: Tensor) -> None:
        """Note the signs of the distances to the thresholds; `channels` has the shape of the bounds."""
        for seen, now in ((self.below, distance < 0), (self.above, distance > 0)):
            there = _per_bound(now, channels)
            seen[name] = there | seen[name] if name in seen else there

    @property
    def total(self) -> int:
        """Number of thresholds."""
        return sum(int(t.sum()) for t in self.finite.values())

    @property
    def crossed(self) -> int:
        """Number of thresholds with an input on either side."""
        return sum(int((self.below[n] & self.above[n] & self.finite[n]).sum()) for n in self.below)


def _per_bound(values: Tensor, bound: Tensor) -> Tensor:
    """Reduce a boolean of the input's shape to the shape of the bounds: any along what they broadcast over."""
    shape = (1,) * (values.dim() - bound.dim()) + tuple(bound.shape)
    dims = [d for d in range(values.dim()) if shape[d] == 1]
    return values.amax(dims, keepdim=True).expand(shape).reshape(bound.shape) if dims else values.reshape(bound.shape)


def thresholds(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Every activation with thresholds of its own: name, module, thresholds.

    Infinite ones are no thresholds, and dead channels, whose bounds meet, have none to cross.
    """
    for name, module in model.named_modules():
        if isinstance(module, ThreshLeakyReLU):
            yield name, module, module.threshold
        elif isinstance(module, ThreshReLU):
            bounds = [bound for bound in (module.lower, module.upper) if bound is not None]
            dead = bounds[0] == bounds[1] if len(bounds) == 2 else torch.zeros_like(bounds[0], dtype=torch.bool)
            for bound in bounds:
                live = bound.masked_fill(dead, torch.inf)
                if bool(torch.isfinite(live).any()):
                    yield name, module, live


def straddle(model: nn.Module, start: Inputs, dtype: torch.dtype, steps: int = STEPS) -> tuple[list[Inputs], Crossing]:
    """Move inputs until as many thresholds as possible have been seen from both sides.

    Each step follows the gradient of the distances to the thresholds that are still to be crossed, every unit as
    heavy as its scale allows, and goes on from wherever the one before ended.

    Parameters
    ----------
    model : nn.Module
        A twin with ``ThreshReLU`` or ``ThreshLeakyReLU`` layers.
    start : Inputs
        Where to begin.
    dtype : torch.dtype
        To run the model in.
    steps : int

    Returns
    -------
    list of Inputs
        Those that crossed something new, `start` not among them; none where the model has no thresholds.
    Crossing
        What `start` and they have crossed.
    """
    crossing = Crossing()
    if not any(True for _ in thresholds(model)) or not any(t.is_floating_point() for t in start.tensors()):
        return [], crossing
    found: list[Inputs] = []
    place, before = start, -1
    for step in range(steps + 1):
        direction = _look(model, place, dtype, crossing)
        if step and crossing.crossed > before:
            found.append(place)
        before = crossing.crossed
        if direction is None or crossing.crossed == crossing.total:
            break
        # Wider each time: thresholds lie a few units away, or many.
        moves = iter([_GROWTH**step * way for way in direction])
        place = place.map(lambda t, moves=moves: t + next(moves).to(t) if t.is_floating_point() else t)  # type: ignore[misc]
    return found, crossing


def _look(model: nn.Module, inputs: Inputs, dtype: torch.dtype, crossing: Crossing) -> list[Tensor] | None:
    """Run once, note what is crossed, and say where to go for the rest; None where nothing is left or nothing helps."""
    wanted: list[Tensor] = []

    def watch(name: str, bound: Tensor) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            distance = args[0] - bound.to(args[0])
            finite = torch.isfinite(bound)
            crossing.see(name, distance.detach(), bound)
            crossing.finite[name] = finite
            # Up where nothing has been above, down where nothing has been below; per unit, over its own scale.
            missing = (~crossing.above[name]).to(distance) - (~crossing.below[name]).to(distance)
            missing = missing.masked_fill(~finite, 0.0)
            reachable = torch.where(finite, distance, torch.zeros_like(distance))
            towards = reachable * missing / reachable.detach().abs().mean().clamp_min(1e-6)
            if bool(missing.any()) and towards.requires_grad:
                wanted.append(towards.sum() / distance.shape[0])

        return hook

    handles = [m.register_forward_pre_hook(watch(f"{n}:{i}", b)) for i, (n, m, b) in enumerate(thresholds(model))]
    leaves: list[Tensor] = []

    def track(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        leaves.append(tensor.requires_grad_())
        return tensor.clone()

    try:
        with torch.enable_grad():
            prepared = inputs.to(device_of(model), dtype).map(lambda t: t.detach().clone()).map(track)
            run.call(model, prepared, dtype)
            if not wanted:
                return None
            gradients = torch.autograd.grad(torch.stack(wanted).sum(), leaves, allow_unused=True)
    except (run.FailedRunError, RuntimeError):
        return None
    finally:
        for handle in handles:
            handle.remove()
    return [_step(leaf, gradient) for leaf, gradient in zip(leaves, gradients, strict=True)]


def _step(leaf: Tensor, gradient: Tensor | None) -> Tensor:
    if gradient is None or measure.first_nonfinite(gradient) or not bool(gradient.any()):
        return torch.zeros_like(leaf)
    # Every element moves: the way is long, and a few large gradients would take it all.
    return _STEP * gradient.sign()
