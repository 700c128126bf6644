r"""Pooling, means, resizing.

An average with weights that sum to one commutes with an affine, :math:`\sum_i w_i (s x_i + t) = s \sum_i w_i x_i + t`.
A maximum commutes with one whose scale is not negative.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from canonize.algebra.affine import Affine
from canonize.flow.edits import PadBefore
from canonize.flow.plan import RefusedError, Step, backward_rule, forward_rule
from canonize.nn import Mean, SumOver

AVERAGE = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
WEIGHTED = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.Upsample,
)
MAXIMUM = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)


def same_everywhere(step: Step, affine: Affine) -> None:
    """Refuse an affine that differs from position to position."""
    spatial = affine.varying() - {0, 1}
    step.require(not spatial, f"it differs along dimension {min(spatial, default=0)}, over which {step.label()} pools")


def only_input(step: Step, incoming: list[Affine | None]) -> Affine:
    """The affine on an operation's only input."""
    if len(incoming) != 1 or incoming[0] is None:
        raise RefusedError(f"{step.label()} has more than one input")
    return incoming[0]


def _batched(step: Step) -> None:
    dims = _dims(step.module)
    rank = len(step.shape(step.network.data_inputs(step.node)[0]))
    step.require(dims is None or rank == dims + 2, f"{step.label()} is called without a batch dimension")


def _dims(module: nn.Module) -> int | None:
    """Number of dimensions that a layer pools over, as the name of its class in torch says."""
    cls = next(cls for cls in (*AVERAGE, *WEIGHTED, *MAXIMUM) if isinstance(module, cls))
    return int(cls.__name__[-2]) if cls.__name__.endswith("d") else None


# --------------------------------------------------------------------------------------------------- averages


@forward_rule(*WEIGHTED)
def average_forward(step: Step, incoming: list[Affine | None]) -> Affine:
    """Global and adaptive average pooling, resizing."""
    affine = only_input(step, incoming)
    _batched(step)
    same_everywhere(step, affine)
    step.pass_through("average")
    return affine


@backward_rule(*WEIGHTED)
def average_backward(step: Step, affine: Affine) -> list[Affine | None]:
    """Global and adaptive average pooling, resizing."""
    _batched(step)
    same_everywhere(step, affine)
    step.pass_through("average")
    return [affine]


@forward_rule(*AVERAGE)
def window_forward(step: Step, incoming: list[Affine | None]) -> Affine:
    """Average pooling; zeros of its padding that count must be what the affine maps to zero."""
    affine = only_input(step, incoming)
    _batched(step)
    same_everywhere(step, affine)
    step.pass_through("average")
    if not affine.is_linear:
        _explicit_padding(step, affine, lambda: step.living_zero(affine))
    return affine


@backward_rule(*AVERAGE)
def window_backward(step: Step, affine: Affine) -> list[Affine | None]:
    """Average pooling; zeros of its padding that count become what the affine maps zero to, its shift."""
    _batched(step)
    same_everywhere(step, affine)
    step.pass_through("average")
    if not affine.is_linear:
        _explicit_padding(step, affine, lambda: affine.shift)
    return [affine]


def _explicit_padding(step: Step, affine: Affine, value_of: Any) -> None:
    module: Any = step.module
    dims = _dims(step.module) or 1
    padding = _tuple(module.padding, dims)
    if getattr(module, "divisor_override", None) is not None:
        kernel = 1
        for size in _tuple(module.kernel_size, dims):
            kernel *= size
        step.require(
            module.divisor_override == kernel and not any(padding) and not module.ceil_mode,
            f"{step.label()} divides by divisor_override, so its weights do not sum to one",
        )
    if not any(padding) or not module.count_include_pad:
        return
    step.require(
        not module.ceil_mode,
        f"{step.label()} counts its padding and rounds its size up, which explicit padding cannot do",
    )
    around = tuple(side for p in reversed(padding) for side in (p, p))
    step.edit(PadBefore(around, value_of(), (("padding", (0,) * dims),)))


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


# --------------------------------------------------------------------------------------------------- maximum


@forward_rule(*MAXIMUM)
def maximum_forward(step: Step, incoming: list[Affine | None]) -> Affine:
    """Max pooling keeps the order that a negative scale would reverse."""
    affine = only_input(step, incoming)
    _check_maximum(step, affine)
    return affine


@backward_rule(*MAXIMUM)
def maximum_backward(step: Step, affine: Affine) -> list[Affine | None]:
    """Max pooling keeps the order that a negative scale would reverse."""
    _check_maximum(step, affine)
    return [affine]


def _check_maximum(step: Step, affine: Affine) -> None:
    module: Any = step.module
    _batched(step)
    step.require(not module.return_indices, f"{step.label()} also returns where its maxima are")
    same_everywhere(step, affine)
    step.require(bool((affine.scale >= 0).all()), f"a negative scale does not pass {step.label()}, which takes maxima")
    step.pass_through("maximum")


# ------------------------------------------------------------------------------------------- means and sums


@forward_rule(Mean, SumOver)
def reduce_forward(step: Step, incoming: list[Affine | None]) -> Affine:
    """A mean keeps the shift's mean; a sum multiplies a shift by the number of positions."""
    affine = only_input(step, incoming)
    module: Any = step.module
    step.pass_through("average")
    shape = step.shape(step.network.data_inputs(step.node)[0])
    across = affine.scale
    step.require(
        all(across.shape[d] == 1 for d in module.dim),
        f"its scale differs along a dimension that {step.label()} adds up",
    )
    shift = affine.shift
    if isinstance(module, SumOver) and not affine.is_linear:
        _require_fixed_count(step, module.dim)
        full = [shape[d] if d in module.dim else size for d, size in enumerate(shift.shape)]
        shift = shift.expand(full).sum(module.dim, keepdim=True)
    else:
        shift = shift.mean(module.dim, keepdim=True)
    scale = across
    if not module.keepdim:
        for dim in sorted(module.dim, reverse=True):
            scale, shift = scale.squeeze(dim), shift.squeeze(dim)
    return Affine(scale, shift)


@backward_rule(Mean, SumOver)
def reduce_backward(step: Step, affine: Affine) -> list[Affine | None]:
    """The inverse way: a sum's shift is shared out over the positions."""
    module: Any = step.module
    step.pass_through("average")
    shape = step.shape(step.network.data_inputs(step.node)[0])
    scale, shift = affine.scale, affine.shift
    if not module.keepdim:
        for dim in sorted(module.dim):
            scale, shift = scale.unsqueeze(dim), shift.unsqueeze(dim)
    if isinstance(module, SumOver) and not affine.is_linear:
        _require_fixed_count(step, module.dim)
        count = 1
        for dim in module.dim:
            count *= shape[dim]
        shift = shift / count
    return [Affine(scale, shift)]


def _require_fixed_count(step: Step, dims: tuple[int, ...]) -> None:
    free = step.network.shapes.free_among(step.network.data_inputs(step.node)[0], set(dims))
    step.require(not free, f"{step.label()} adds up a number of positions that is not fixed, and with it the shift")
