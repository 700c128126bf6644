"""Sums, gates and concatenations: operations with several inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from canonize.algebra.affine import Affine
from canonize.algebra.weights import LINEAR
from canonize.flow.plan import RefusedError, Step, backward_rule, forward_rule
from canonize.nn import Concat, Gate, Slot, Sum
from canonize.vocabulary import resolve_module, row_of


def _widened(affine: Affine, ndim: int) -> Affine:
    """The same affine on a value that is broadcast to more dimensions."""
    shape = (1,) * (ndim - affine.ndim)
    return Affine(affine.scale.reshape(shape + affine.scale.shape), affine.shift.reshape(shape + affine.shift.shape))


# ------------------------------------------------------------------------------------------------------- Sum


@forward_rule(Sum)
def sum_forward(step: Step, incoming: list[Affine | None]) -> Affine:
    r"""A sum passes affines of one scale, :math:`\sum w_i (s x_i + t_i) = s \sum w_i x_i + \sum w_i t_i`."""
    step.pass_through("sum")
    module: Any = step.module
    ndim = len(step.shape())
    affines = [_widened(a, ndim) for a in incoming if a is not None]
    scale = affines[0].scale
    if len(affines) < len(incoming):
        step.require(
            all(bool((a.scale == 1).all()) for a in affines),
            f"only one side of the sum {step.label()} carries its scale",
        )
    for other in affines[1:]:
        step.require(
            bool(torch.eq(*torch.broadcast_tensors(scale, other.scale)).all()),
            f"the two sides of the sum {step.label()} carry different scales",
        )
    shift: Tensor | None = None
    for weight, affine in zip(module.weights, incoming, strict=True):
        if affine is not None:
            part = _widened(affine, ndim).shift * weight
            shift = part if shift is None else shift + part
    assert shift is not None
    return Affine(scale, shift)


@backward_rule(Sum)
def sum_backward(step: Step, affine: Affine) -> list[Affine | None]:
    """Every side takes the scale, one side takes the shift."""
    step.pass_through("sum")
    module: Any = step.module
    inputs = step.network.data_inputs(step.node)
    step.require(len(set(inputs)) == len(inputs), f"{step.label()} adds a value to itself")
    shapes = [step.shape(node) for node in inputs]
    full = [i for i, shape in enumerate(shapes) if shape == step.shape() and module.weights[i]]
    step.require(bool(full), f"both sides of the sum {step.label()} are broadcast")
    # The shift belongs to a side that ends in a linear layer of its own, where there is one.
    takes = next((i for i in full if isinstance(step.network.module(inputs[i]), LINEAR)), full[0])
    needed: list[Affine | None] = []
    for i, (node, shape) in enumerate(zip(inputs, shapes, strict=True)):
        shift = affine.shift / module.weights[i] if i == takes else torch.zeros_like(affine.shift)
        part = _narrowed(step, Affine(affine.scale, shift).compress(), shape, node)
        needed.append(None if part.is_identity else part)
    return needed


def _narrowed(step: Step, affine: Affine, shape: tuple[int, ...], node: Any) -> Affine:
    """The affine for a side that is broadcast to the sum's shape."""
    extra = affine.ndim - len(shape)
    for dim in affine.varying():
        size = shape[dim - extra] if dim >= extra else 1
        step.require(size > 1, f"{step.label(node)} is broadcast along a dimension along which the affine differs")
    return Affine(affine.scale.reshape(affine.scale.shape[extra:]), affine.shift.reshape(affine.shift.shape[extra:]))


# ------------------------------------------------------------------------------------------------------ Gate


@forward_rule(Gate)
def gate_forward(step: Step, incoming: list[Affine | None]) -> Affine:
    """A product passes scales, not shifts."""
    step.pass_through("gate")
    ndim = len(step.shape())
    scale: Tensor | None = None
    for affine in incoming:
        if affine is None:
            continue
        step.require(affine.is_linear, f"a shift does not pass the product {step.label()}")
        part = _widened(affine, ndim).scale
        scale = part if scale is None else scale * part
    assert scale is not None
    return Affine(scale, torch.zeros((1,) * ndim, dtype=scale.dtype, device=scale.device))


@backward_rule(Gate)
def gate_backward(step: Step, affine: Affine) -> list[Affine | None]:
    """A product's scale may go to its signal."""
    step.pass_through("gate")
    step.require(affine.is_linear, f"a shift does not pass the product {step.label()}")
    signal, gate = step.network.data_inputs(step.node)
    step.require(signal is not gate, f"{step.label()} multiplies a value with itself")
    return [_narrowed(step, affine, step.shape(signal), signal), None]


# --------------------------------------------------------------------------------------------------- matmul


def factors(module: object) -> tuple[int, ...]:
    """Which inputs a call is linear in, each alone; one that is used twice stands there twice."""
    operation = resolve_module(module) if row_of(module).linear_in else None
    if operation is None or any(operation.get(name) is not None for name in ("bias", "rounding_mode")):
        return ()
    values = (operation.bound.get(name) for name in operation.linear_in)
    return tuple(value.index for value in values if isinstance(value, Slot))


def product_forward(step: Step, incoming: list[Affine | None]) -> Affine:
    """A product passes one number that scales everything (an attention's temperature)."""
    step.pass_through("gate")
    ndim = len(step.shape())
    linear = factors(step.module)
    step.require(
        all(affine is None or i in linear for i, affine in enumerate(incoming)),
        f"{step.label()} is not linear in what it is given",
    )
    scale: Tensor | None = None
    for i in linear:
        affine = incoming[i]
        if affine is not None:
            _require_one_number(step, affine)
            scale = affine.scale.reshape(()) if scale is None else scale * affine.scale.reshape(())
    assert scale is not None
    return Affine(scale.reshape((1,) * ndim), torch.zeros((1,) * ndim, dtype=scale.dtype, device=scale.device))


def product_backward(step: Step, affine: Affine) -> list[Affine | None]:
    """The first factor takes the number."""
    step.pass_through("gate")
    _require_one_number(step, affine)
    inputs = step.network.data_inputs(step.node)
    linear = factors(step.module)
    first = inputs[linear[0]]
    step.require(
        inputs.count(first) == 1 and linear.count(linear[0]) == 1, f"{step.label()} multiplies a value with itself"
    )
    shape = (1,) * len(step.shape(first))
    taken = Affine(affine.scale.reshape(shape), affine.shift.reshape(shape))
    return [taken if i == linear[0] else None for i in range(len(inputs))]


def _require_one_number(step: Step, affine: Affine) -> None:
    what = f"the product {step.label()}" if len(factors(step.module)) > 1 else step.label()
    step.require(affine.is_linear, f"a shift does not pass {what}")
    step.require(not affine.varying(), f"only one number for all passes {what}")


# ---------------------------------------------------------------------------------------------------- Concat


@forward_rule(Concat)
def concat_forward(step: Step, incoming: list[Affine | None]) -> Affine:
    """Branches without an affine carry the identity."""
    step.pass_through("concat")
    module: Any = step.module
    ndim = len(step.shape())
    dim = module.dim % ndim
    device = next(a.scale.device for a in incoming if a is not None)
    affines = [a if a is not None else Affine.identity(ndim, device) for a in incoming]
    wide = [max(size) for size in zip(*(t.shape for a in affines for t in (a.scale, a.shift)), strict=True)]
    scales, shifts = [], []
    for node, affine in zip(step.network.data_inputs(step.node), affines, strict=True):
        target = list(wide)
        target[dim] = step.shape(node)[dim]
        scales.append(affine.scale.expand(target))
        shifts.append(affine.shift.expand(target))
    return Affine(torch.cat(scales, dim), torch.cat(shifts, dim))


@backward_rule(Concat)
def concat_backward(step: Step, affine: Affine) -> list[Affine | None]:
    """Each branch takes its slice."""
    step.pass_through("concat")
    module: Any = step.module
    dim = module.dim % affine.ndim
    inputs = step.network.data_inputs(step.node)
    if affine.varies_along(dim):
        for node in inputs:
            if step.network.shapes.free_among(node, {dim}):
                raise RefusedError(f"{step.label(node)} has no fixed number of channels")
    needed: list[Affine | None] = []
    start = 0
    for node in inputs:
        size = step.shape(node)[dim]
        part = Affine(_slice(affine.scale, dim, start, size), _slice(affine.shift, dim, start, size)).compress()
        needed.append(None if part.is_identity else part)
        start += size
    return needed


def _slice(tensor: Tensor, dim: int, start: int, size: int) -> Tensor:
    return tensor if tensor.shape[dim] == 1 else tensor.narrow(dim, start, size)
