r"""The relation between a value of the original and a value of the canonical model, element by element.

.. math:: a\, v = c\, u + d

with fixed tensors :math:`a, c, d` that broadcast with the values from the right: a number per channel of an image is
(C, 1, 1). Where :math:`a \neq 0` it says :math:`v = S u + T`; where a BatchNorm's scale was zero it says that
:math:`u = -d / c` is a constant. Dimensions have size 1 where nothing differs, so that it holds for any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from canonize.algebra.exact import exact_value

EXACT = torch.float64
# What float64 itself may be off by in the handful of operations that make one of these numbers.
NOISE = 64 * torch.finfo(EXACT).eps


class NotProvenError(Exception):
    """No rule says that two values agree.

    Parameters
    ----------
    reason : str
    broken : bool
        Whether the two models contradict each other, rather than that no rule is known.
    """

    def __init__(self, reason: str, *, broken: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.broken = reason, broken


def require(condition: bool, reason: str, *, broken: bool = False) -> None:
    """Go on only if a condition holds."""
    if not condition:
        raise NotProvenError(reason, broken=broken)


@dataclass(frozen=True)
class Relation:
    """``left * v = right * u + shift``.

    ``constant`` is the value of u where it is known not to depend on the input. ``size`` is how large the terms were
    that were added up to give the shift: what float64 has lost in them, it is in proportion to that.
    """

    left: Tensor
    right: Tensor
    shift: Tensor
    constant: Tensor | None = None
    size: Tensor | None = None

    @property
    def terms(self) -> Tensor:
        """The size of what was added up to give the shift of :math:`v = S u + T`."""
        size = self.shift.abs() if self.size is None else torch.maximum(self.size, self.shift.abs())
        return size / torch.where(self.left == 0, 1.0, self.left).abs()

    @property
    def is_identity(self) -> bool:
        """Whether the two values are the same."""
        return self is IDENTITY or bool(
            (self.left == self.right).all() and (self.left != 0).all() and not self.shift.any()
        )

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three tensors."""
        return self.left, self.right, self.shift

    @property
    def varying(self) -> set[int]:
        """Dimensions, counted from the right (-1 is the last), along which it differs."""
        return {d - t.ndim for t in self.parts for d in range(t.ndim) if t.shape[d] > 1}

    def solved(self) -> tuple[Tensor, Tensor]:
        r""":math:`S, T` of :math:`v = S u + T`; on channels where u is a constant, :math:`S = 1`.

        Raises
        ------
        NotProvenError
            Where v does not follow from u.
        """
        if self is IDENTITY:
            return self.right, self.shift
        require(bool((self.left != 0).all()), "a channel that was multiplied by zero is read", broken=True)
        scale, shift = torch.broadcast_tensors(self.right / self.left, self.shift / self.left)
        if self.constant is not None:
            known = ~self.constant.isnan()
            scale, shift, known, constant = torch.broadcast_tensors(scale, shift, known, self.constant)
            shift = torch.where(known, scale * constant + shift - constant, shift)
            shift = torch.where(known & (shift.abs() <= NOISE * (constant.abs() + self.terms)), 0.0, shift)
            scale = torch.where(known, torch.ones_like(scale), scale)
        return scale, shift

    def behind(self, scale: Tensor, shift: Tensor) -> Relation:
        r"""For :math:`s v + t` in the place of v, :math:`a (s v + t) = s (c u + d) + a t`.

        Divided by s, where that is not zero. Where both a and s are zero the product says nothing; but there
        :math:`s v + t = t`, and u is the constant :math:`-d / c`.
        """
        left, right, moved = torch.broadcast_tensors(*self.parts)
        shape = torch.broadcast_shapes(left.shape, scale.shape, shift.shape)
        left, right, moved, scale, shift = (t.expand(shape) for t in (left, right, moved, scale, shift))
        # What u took up is what v is multiplied by: nothing is left between s v + t and u but a shift.
        same = (left - scale).abs() <= NOISE * scale.abs()
        dead = (left == 0) & ~same
        factor = torch.where(same | dead, 1.0, torch.where(left == 0, 1.0, scale / torch.where(left == 0, 1.0, left)))
        made_left = torch.where(dead, left, 1.0)
        constant = torch.where((left == 0) & (right != 0), -moved / right, torch.nan)
        if self.constant is not None:
            constant = torch.where(self.constant.isnan(), constant, self.constant)
        size = factor.abs() * self.terms * torch.where(left == 0, 1.0, left).abs() + (made_left * shift).abs()
        brought = _added(factor * moved, made_left * shift, size)
        kept = factor * right
        kept = torch.where((kept - made_left).abs() <= NOISE, made_left, kept)
        return Relation(made_left, kept, brought, _or_none(constant), size).compressed()

    def before(self, scale: Tensor, shift: Tensor) -> Relation:
        r"""For :math:`w = s u + t` in the place of u, :math:`s a v = c w + (s d - c t)`."""
        left, right, moved = self.parts
        constant = None if self.constant is None else scale * self.constant + shift
        size = scale.abs() * self.terms * torch.where(left == 0, 1.0, left).abs() + (right * shift).abs()
        total = _added(scale * moved, -right * shift, size)
        return Relation(scale * left, right.clone(), total, constant, size).compressed()

    def compressed(self) -> Relation:
        """The same with size 1 along every dimension along which nothing differs."""
        parts = [_compress(part) for part in self.parts]
        if all(part.ndim == 0 for part in parts) and parts[0] == parts[1] != 0 and parts[2] == 0:
            return IDENTITY
        left, right, shift = parts
        constant, size = (None if part is None else _compress(part) for part in (self.constant, self.size))
        return Relation(left, right, shift, constant, size)


def _added(first: Tensor, second: Tensor, size: Tensor) -> Tensor:
    """A sum; zero where the two cancel but for float64's own rounding of terms of a size."""
    total = first + second
    return torch.where(total.abs() <= NOISE * size, 0.0, total)


def _or_none(constant: Tensor) -> Tensor | None:
    return None if bool(constant.isnan().all()) else constant


def _compress(tensor: Tensor) -> Tensor:
    for dim, size in enumerate(tensor.shape):
        if size > 1:
            first = tensor.narrow(dim, 0, 1)
            if bool(((tensor == first) | (tensor.isnan() & first.isnan())).all()):
                tensor = first
    while tensor.ndim and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor


IDENTITY = Relation(*(torch.tensor(number, dtype=EXACT) for number in (1.0, 1.0, 0.0)))


def stored(tensor: Tensor) -> Tensor:
    """Numbers of a model as they are, where the checker works; size-1 dimensions on the left are left out."""
    held = tensor.detach().cpu()
    while held.ndim and held.shape[0] == 1:
        held = held[0]
    return held


def exact(tensor: Tensor) -> Tensor:
    """Numbers of a model in float64: what a parameter was rounded from, where that is known."""
    return exact_value(tensor).to("cpu", EXACT)


def number(value: float) -> Tensor:
    """A number as a relation's tensor."""
    return torch.tensor(float(value), dtype=EXACT)


def channels(tensor: Tensor, axis: int, size: int) -> Tensor:
    """A relation's tensor as one number per channel; ``axis`` counts from the right."""
    for dim in range(tensor.ndim):
        require(tensor.shape[dim] == 1 or dim - tensor.ndim == axis, "it differs along a dimension that is added up")
    return tensor.reshape(-1).expand(size)


def per_channel(vector: Tensor, axis: int) -> Tensor:
    """One number per channel, as a relation's tensor; ``axis`` counts from the right."""
    return vector.reshape(-1, *(1,) * (-axis - 1))


# ------------------------------------------------------------------------------------------------------- rounding


def half_unit(held: Tensor) -> Tensor:
    """Half a unit in the last place of each of a model's numbers, in float64."""
    limits = torch.finfo(held.dtype)
    _, exponent = torch.frexp(held.cpu().to(EXACT))
    unit = torch.ldexp(torch.full_like(exponent, limits.eps / 2, dtype=EXACT), exponent)
    return unit.clamp(min=limits.smallest_normal * limits.eps) / 2


def is_rounded(held: Tensor, want: Tensor, size: Tensor | float = 0.0) -> bool:
    """Whether numbers of a model are exact ones rounded once, each to half a unit in its last place.

    Parameters
    ----------
    held : Tensor
        In the model's own dtype.
    want : Tensor
        float64, as the checker works it out; the two are broadcast with each other.
    size : Tensor or float
        Of the terms that were added up to give `want`: float64 rounds, too, in proportion to them.
    """
    held, want, terms = torch.broadcast_tensors(held.detach().cpu(), want, torch.as_tensor(size, dtype=EXACT))
    wrong = want.to(held.dtype) != held
    if not bool(wrong.any()):
        return True
    held, want, terms = held[wrong], want[wrong], terms[wrong]
    allowed = half_unit(held) * (1 + 1e-6) + NOISE * (want.abs() + terms.abs())
    # NaN is nowhere near, and nothing but infinity is near to infinity.
    return bool((((want - held.to(EXACT)).abs() <= allowed) & allowed.isfinite()).all())
