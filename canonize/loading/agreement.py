"""How far two lists of outputs lie apart, measured against their scale."""

from __future__ import annotations

import torch
from torch import Tensor

# Another process, or another runtime, may split the same sums in another way.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}


def largest_error(expected: list[Tensor], found: list[Tensor]) -> tuple[float, float]:
    """Largest difference over the largest value of its tensor, and what is allowed; infinite where shapes differ."""
    if len(expected) != len(found) or any(a.shape != b.shape for a, b in zip(expected, found, strict=False)):
        return float("inf"), 0.0
    errors = [(0.0, 0.0)]
    for a, b in zip(expected, found, strict=True):
        tolerance = TOLERANCE.get(a.dtype, 0.0)
        wide = torch.complex128 if a.is_complex() else torch.float64
        a, b = a.detach().cpu().to(wide), b.detach().cpu().to(wide)
        if not a.numel() or torch.equal(a, b):
            continue
        # A NaN or an infinity in the same place is the same answer; elsewhere it is a difference without bound.
        finite = torch.isfinite(a) & torch.isfinite(b)
        same = (a == b) | (torch.isnan(a) & torch.isnan(b))
        if not bool((finite | same).all()):
            return float("inf"), tolerance
        difference = (a - b)[finite].abs().max() if bool(finite.any()) else torch.zeros(())
        scale = a[finite].abs().max().clamp_min(torch.finfo(torch.float64).tiny) if bool(finite.any()) else 1.0
        error = float(difference / scale)
        errors.append((error, tolerance))
    return max(errors, key=lambda pair: pair[0] / pair[1] if pair[1] else (float("inf") if pair[0] else -1.0))
