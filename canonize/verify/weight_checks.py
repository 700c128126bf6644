"""Do the weights in use hold what the exact ones say? Each may be one rounding away, and no more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from canonize.report.record import Check


def weight_check(other: nn.Module, exact: nn.Module) -> Check | None:
    """Compare each weight with its exact value, element by element.

    Outputs cannot answer this alone: a wrong weight behind a unit that no input happened to switch on shows nowhere,
    and in a half precision it drowns. An element passes if it is the exact value rounded, or within one rounding step
    of its own size.

    Parameters
    ----------
    other : nn.Module
        The candidate in its own precision.
    exact : nn.Module
        The same modules with float64 weights.

    Returns
    -------
    Check or None
        None where the two do not hold the same tensors.
    """
    rounded, wide = _floating(other), _floating(exact)
    if {name: t.shape for name, t in rounded.items()} != {name: t.shape for name, t in wide.items()}:
        return None
    narrow = [t.dtype for t in rounded.values() if t.dtype != torch.float64]
    if not narrow:
        return None
    # In rounding steps of each tensor's own precision, so that models of mixed precision are held to each of them.
    worst, where = 0.0, ""
    for name, tensor in rounded.items():
        steps, element = _steps(tensor, wide[name])
        if steps > worst:
            worst, where = steps, f"{name}[{element}] (flattened)"
    eps = max(torch.finfo(dtype).eps for dtype in narrow)
    precision = str(max(narrow, key=lambda dtype: torch.finfo(dtype).eps)).removeprefix("torch.")
    detail = f"furthest from its exact value: {where}" if where else "each is its exact value, rounded once"
    return Check("weights against their exact values", "weights", precision, worst * eps, eps, worst <= 1, detail)


def _floating(model: nn.Module) -> dict[str, Tensor]:
    held = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in held if tensor.is_floating_point()}


def _steps(tensor: Tensor, exact: Tensor) -> tuple[float, int]:
    """Largest distance of an element from its exact value, in rounding steps, and the element."""
    if not tensor.numel():
        return 0.0, 0
    if torch.equal(tensor, exact.to(tensor.device, tensor.dtype)):
        return 0.0, 0
    info = torch.finfo(tensor.dtype)
    truth = exact.to(tensor.device, torch.float64)
    step = info.eps * truth.abs() + info.tiny * info.eps
    steps = (tensor.double() - truth).abs() / step
    # What overflows or underflows on rounding is far from its exact value, and right all the same.
    steps = torch.where(tensor == truth.to(tensor.dtype), steps.clamp(max=0.5).nan_to_num(0.0), steps)
    steps = steps.nan_to_num(float("inf"), float("inf")).flatten()
    index = int(steps.argmax())
    return float(steps[index]), index
