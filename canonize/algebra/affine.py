r"""The algebra of frozen affines, on tensors, knowing no graph.

An affine is :math:`y = s x + t` with fixed tensors that broadcast with the value they act on. Everything here is
computed in float64; rounding to the model's own dtype happens once, when the canonical model is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

EXACT = torch.float64
# No activation of a working network is larger; what a scale does to anything below this bound decides whether the
# channel is alive in a given dtype.
LARGEST_ACTIVATION = 1e12


@dataclass(frozen=True)
class Affine:
    r"""The map :math:`y = s x + t`.

    Attributes
    ----------
    scale, shift : Tensor
        float64, with as many dimensions as the value; each dimension has size 1 or the value's size.
    """

    scale: Tensor
    shift: Tensor
    compressed: bool = field(default=False, repr=False, compare=False)

    @staticmethod
    def identity(ndim: int, device: torch.device | str = "cpu") -> Affine:
        """The map that changes nothing."""
        shape = (1,) * ndim
        return Affine(torch.ones(shape, dtype=EXACT, device=device), torch.zeros(shape, dtype=EXACT, device=device))

    @property
    def ndim(self) -> int:
        """Number of dimensions of the value it acts on."""
        return self.scale.ndim

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return bool((self.scale == 1).all()) and self.is_linear

    @property
    def is_linear(self) -> bool:
        """Whether there is no shift."""
        return not bool(self.shift.any())

    @property
    def is_finite(self) -> bool:
        """Whether every number in it is."""
        return bool(torch.isfinite(self.scale).all() and torch.isfinite(self.shift).all())

    def after(self, first: Affine) -> Affine:
        r"""Compose: apply ``first``, then this one, :math:`s_2 (s_1 x + t_1) + t_2`."""
        return Affine(self.scale * first.scale, self.scale * first.shift + self.shift).compress()

    def compress(self) -> Affine:
        """The same map with size 1 along every dimension along which it is constant."""
        return self if self.compressed else Affine(_compress(self.scale), _compress(self.shift), compressed=True)

    def unsqueezed(self, ndim: int) -> Affine:
        """The same map for values of more dimensions, along which it does not differ."""
        shape = self.scale.shape + (1,) * (ndim - self.ndim), self.shift.shape + (1,) * (ndim - self.ndim)
        return Affine(self.scale.reshape(shape[0]), self.shift.reshape(shape[1]), compressed=self.compressed)

    def varies_along(self, dim: int) -> bool:
        """Whether the (compressed) map differs along a dimension."""
        return self.scale.shape[dim] > 1 or self.shift.shape[dim] > 1

    def varying(self) -> set[int]:
        """Dimensions along which the (compressed) map differs."""
        return {dim for dim in range(self.ndim) if self.varies_along(dim)}

    def vectors(self, dim: int, size: int) -> tuple[Tensor, Tensor]:
        """Scale and shift as vectors of length ``size`` along ``dim``; nothing else may vary."""
        return _vector(self.scale, dim, size), _vector(self.shift, dim, size)

    def expanded(self, shape: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Scale and shift at the full shape of the value (views, no copies)."""
        shape = tuple(shape)
        return self.scale.expand(shape), self.shift.expand(shape)

    def dead(self, dtype: torch.dtype) -> Tensor:
        r"""Channels that are constant as far as ``dtype`` can tell, as a bool tensor of the broadcast shape.

        A channel is dead where :math:`s = 0`, and where the value :math:`z = -t / s` that it maps to zero overflows
        although :math:`s x` is lost in the rounding of :math:`t` for every activation a network can have.
        """
        scale, shift = torch.broadcast_tensors(self.scale, self.shift)
        limits = torch.finfo(dtype)
        largest = min(limits.max, LARGEST_ACTIVATION)
        overflows = shift.abs() > scale.abs() * (limits.max / 4)
        drowns = scale.abs() * largest <= limits.eps * shift.abs()
        return torch.logical_or(scale == 0, overflows & drowns)

    def zero(self, dtype: torch.dtype) -> Tensor | None:
        r"""The value :math:`z = -t / s` that the map takes to zero; ``None`` where ``dtype`` cannot hold it."""
        if bool((self.scale == 0).any()):
            return None
        zero = _compress(-self.shift / self.scale)
        return zero if bool((zero.abs() <= torch.finfo(dtype).max / 4).all()) else None


def batch_norm(
    weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, eps: float, ndim: int
) -> Affine:
    r"""An evaluated BatchNorm as an affine along dimension 1.

    .. math:: s = \gamma / \sqrt{\sigma^2 + \epsilon}, \qquad t = \beta - \mu s

    with the running mean :math:`\mu` and variance :math:`\sigma^2` (Ioffe & Szegedy 2015; Eq. 2 of Pahde et al. 2023
    writes :math:`\sigma` for the variance).
    """
    scale, shift = _normalising(weight, bias, running_mean, running_var, eps)
    shape = (1, -1) + (1,) * (ndim - 2)
    return Affine(scale.reshape(shape), shift.reshape(shape))


def _normalising(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float | Tensor
) -> tuple[Tensor, Tensor]:
    mean, var = mean.detach().to(EXACT), var.detach().to(EXACT)
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight.detach().to(EXACT)
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias.detach().to(EXACT)
    return scale, shift


@dataclass(frozen=True)
class Statistics:
    """What an evaluated BatchNorm holds; vectors of one length on one device."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    eps: float


def batch_norms(layers: Sequence[Statistics]) -> list[tuple[Affine, bool]]:
    """Many evaluated BatchNorms at once: one by one most of the time goes into starting some dozen operations on each.

    Returns
    -------
    list of (Affine, bool)
        Compressed affines of 2 dimensions, (1, channels); and whether all of their numbers are finite.
    """
    if not layers:
        return []
    sizes = torch.tensor([layer.running_mean.numel() for layer in layers])
    device = layers[0].running_mean.device
    scale, shift = _normalising(
        torch.cat([_or_fill(layer.weight, layer.running_mean, 1) for layer in layers]),
        torch.cat([_or_fill(layer.bias, layer.running_mean, 0) for layer in layers]),
        torch.cat([layer.running_mean for layer in layers]),
        torch.cat([layer.running_var for layer in layers]),
        torch.tensor([layer.eps for layer in layers], dtype=EXACT).repeat_interleave(sizes).to(device),
    )
    ends = sizes.cumsum(0)
    starts = ends - sizes
    wrong = _any_between(starts, ends, ~(torch.isfinite(scale) & torch.isfinite(shift)))
    # Constant where no element differs from the one before it.
    varying = [_any_between(starts, torch.maximum(ends - 1, starts), part[1:] != part[:-1]) for part in (scale, shift)]
    found = []
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        scales, shifts = (
            part[start : end if varies[i] else min(start + 1, end)].reshape(1, -1)
            for part, varies in zip((scale, shift), varying, strict=True)
        )
        found.append((Affine(scales, shifts, compressed=True), not wrong[i]))
    return found


def _or_fill(tensor: Tensor | None, like: Tensor, value: float) -> Tensor:
    return torch.full_like(like, value) if tensor is None else tensor.detach()


def _any_between(starts: Tensor, ends: Tensor, mask: Tensor) -> list[bool]:
    """Whether any element of each part of a mask is true."""
    counts = torch.cat([mask.new_zeros(1, dtype=torch.int64), mask.cumsum(0)]).cpu()
    found: list[bool] = (counts[ends] > counts[starts]).tolist()
    return found


def _compress(tensor: Tensor) -> Tensor:
    for dim, size in enumerate(tensor.shape):
        if size > 1:
            first = tensor.narrow(dim, 0, 1)
            if bool((tensor == first).all()):
                tensor = first
    return tensor.contiguous()


def _vector(tensor: Tensor, dim: int, size: int) -> Tensor:
    return tensor.movedim(dim, -1).reshape(-1).expand(size).contiguous()
