r"""Linear layers: the weights of the canonical model are those of the original, rescaled and rounded once.

With :math:`x = S u + T` on the input and :math:`w = A y + B` on the output, for all u:

.. math:: A (W_f (S u + T) + b_f) + B = W_g u + b_g \iff
          W_g = A W_f S, \qquad b_g = A (b_f + \textstyle\sum W_f T) + B.

Around an image T is missing; there :math:`u = z` with :math:`S z + T = 0` must have been padded explicitly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canonize.algebra.exact import exact_value
from canonize.nn import ChannelLinear, ChannelPad, Offset
from canonize.verify.certificate.relation import (
    EXACT,
    IDENTITY,
    Relation,
    channels,
    exact,
    half_unit,
    is_rounded,
    number,
    per_channel,
    require,
    stored,
)

CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, *CONVOLUTION, *TRANSPOSED)
# Weights are compared in pieces of so many numbers, which stay in the cache in float64.
_PIECE = 1 << 15


def kind(module: Any) -> type | None:
    """Which of torch's linear layers a module is."""
    return next((cls for cls in (ChannelLinear, *LINEAR) if isinstance(module, cls)), None)


def axis(module: Any) -> int:
    """Where a layer has its channels, counted from the right."""
    return -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)


def same_geometry(first: Any, second: Any) -> bool:
    """Whether two layers look at the same positions of what they read, but for their paddings."""
    names = ("stride", "dilation", "groups", "output_padding", "padding_mode", "dim")
    return (
        kind(first) is kind(second)
        and first.weight.shape == second.weight.shape
        and all(getattr(first, name, None) == getattr(second, name, None) for name in names)
    )


def check_linear(f: Any, g: Any, given: Relation, taken: Relation, pad: ChannelPad | None) -> None:
    r"""Check :math:`W_g = A W_f S` and :math:`b_g = A (b_f + \sum W_f T) + B`; see the head of this file.

    Parameters
    ----------
    f, g : nn.Module
        Linear layers of the original and of the canonical model.
    given, taken : Relation
        On the inputs, and claimed for the outputs.
    pad : ChannelPad or None
        What stands before `g` alone.
    """
    require(same_geometry(f, g), "the two layers look at different positions", broken=True)
    transposed = isinstance(f, TRANSPOSED)
    weight_f, weight_g = exact_value(f.weight).cpu(), g.weight.detach().cpu()
    inputs, outputs = f.weight.shape[1] * f.groups if _grouped(f) else f.weight.shape[1], f.weight.shape[0]
    if transposed:
        inputs, outputs = f.weight.shape[0], f.weight.shape[1] * f.groups
    scale, shift = given.solved()
    where = axis(f)
    scale, shift, terms = (channels(t, where, inputs) for t in (scale, shift, given.terms))
    _check_border(f, g, scale, shift, terms, pad, where)
    # taken: w = A y + B, that is A y = 1 w - B
    factor, added = (channels(t, where, outputs) for t in (taken.left, -taken.shift))
    require(bool((taken.right == 1).all()), "the claimed relation is not of the form w = A y + B", broken=True)
    plain = given is IDENTITY and taken is IDENTITY
    same = plain and (weight_f is g.weight or _shared(weight_f, weight_g))
    groups = int(getattr(f, "groups", 1))
    ok, response, size = True, torch.zeros(outputs, dtype=EXACT), torch.zeros(outputs, dtype=EXACT)
    if not same:
        ok, response, size = _compare(weight_f, weight_g, scale, shift, terms, factor, groups, transposed)
    require(ok, "W_g is not A W_f S rounded once", broken=True)
    bias_f = torch.zeros(outputs, dtype=EXACT) if f.bias is None else exact(f.bias)
    bias_g = torch.zeros(outputs, dtype=weight_g.dtype) if g.bias is None else g.bias
    size = factor.abs() * (bias_f.abs() + size) + added.abs()
    good = is_rounded(bias_g, factor * (bias_f + response) + added, size)
    require(good, "b_g is not A (b_f + sum W_f T) + B rounded once", broken=True)


def _grouped(f: Any) -> bool:
    return hasattr(f, "groups")


def _shared(first: Tensor, second: Tensor | None) -> bool:
    return second is not None and first.dtype == second.dtype and torch.equal(first.cpu(), second.detach().cpu())


def _compare(
    f: Tensor, g: Tensor, scale: Tensor, shift: Tensor, terms: Tensor, factor: Tensor, groups: int, transposed: bool
) -> tuple[bool, Tensor, Tensor]:
    r"""Whether g = A f S, piece by piece; also :math:`\sum f T` for each output, and the size of its terms."""
    rows, per_group = f.shape[0], f.shape[0] // groups
    step = max(1, _PIECE // max(1, f.shape[1:].numel()))
    outputs = factor.numel()
    response, size = (torch.zeros(outputs, dtype=EXACT) for _ in range(2))
    shifted, good = bool(terms.any()), True
    ones = bool((scale == 1).all())
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        piece = f[part].to(EXACT).reshape(part.stop - part.start, f.shape[1], -1)
        group = torch.arange(part.start, part.stop) // per_group
        across, along = (factor, scale) if transposed else (scale, factor)
        # Of a row the other side's channels are those of its group.
        beside = across.reshape(groups, -1)[group][:, :, None] if groups > 1 else across.reshape(1, -1, 1)
        if shifted and transposed:
            sums = piece.sum(2) * shift[part, None]
            response.view(groups, -1).index_add_(0, group, sums)
            size.view(groups, -1).index_add_(0, group, piece.abs().sum(2) * terms[part, None])
        elif shifted:
            moved, sizes = (t.reshape(groups, -1)[group] if groups > 1 else t.reshape(1, -1) for t in (shift, terms))
            response[part] = (piece.sum(2) * moved).sum(1)
            size[part] = (piece.abs().sum(2) * sizes).sum(1)
        want = piece * along[part, None, None]
        if transposed or not ones:
            want = want * beside
        good = good and is_rounded(g[part].reshape(want.shape), want)
    return good, response, size


def _check_border(
    f: Any, g: Any, scale: Tensor, shift: Tensor, terms: Tensor, pad: ChannelPad | None, where: int
) -> None:
    """Both layers see the same around an image: zeros in the original are S z + T in the canonical model."""
    if isinstance(f, (nn.Linear, ChannelLinear)):
        require(pad is None, "a padding stands before a layer without one", broken=True)
        return
    transposed, shifted = isinstance(f, TRANSPOSED), bool(shift.any())
    amounts = [0] * (2 * len(f.kernel_size))
    if pad is not None:
        given_amounts = [a for a in pad.padding if isinstance(a, int)]
        require(len(given_amounts) == len(pad.padding), "an explicit padding is not known in numbers")
        amounts = [*given_amounts, *amounts[len(given_amounts) :]]
        z = channels(stored(pad.value), where, len(scale))
        want = torch.where((scale == 0) & (shift == 0), exact(z), -shift / scale)
        require(
            is_rounded(z, want, terms / scale.abs()), "what is padded is not what S z + T maps to zero", broken=True
        )
    if transposed:
        _check_crop(f, g, amounts, shifted)
        return
    own, theirs = (list(m._reversed_padding_repeated_twice) for m in (f, g))
    by_zeros = f.padding_mode == "zeros"
    require(len(amounts) == len(own), "more is padded than the layer's own dimensions", broken=True)
    total = [a + b for a, b in zip(amounts, theirs, strict=True)]
    require(own == total, "the two layers pad by different amounts", broken=True)
    require(pad is None or by_zeros, "a padding that repeats the image is explicit", broken=True)
    if shifted and by_zeros:
        require(not any(theirs), "zeros are padded where S z + T = 0 should be", broken=True)


def _check_crop(f: Any, g: Any, amounts: list[int], shifted: bool) -> None:
    """A transposed convolution: every tap of every position lies within the image and the rim around it."""
    for d, (kernel, dilation, stride) in enumerate(zip(f.kernel_size, f.dilation, f.stride, strict=True)):
        before, behind = amounts[2 * (len(f.kernel_size) - 1 - d) : 2 * (len(f.kernel_size) - 1 - d) + 2]
        require(before == behind, "the rim is wider on one side", broken=True)
        require(g.padding[d] == f.padding[d] + before * stride, "the rim is not cropped again", broken=True)
        if shifted:
            reach = dilation * (kernel - 1) - f.padding[d]
            require(stride == 1, "the taps that reach a position differ from position to position")
            require(
                before >= max(0, reach, reach + f.output_padding[d]), "some taps lie outside of the rim", broken=True
            )


# ------------------------------------------------------------------------------------------------ explicit affines


def explicit(module: Any, ndim: int | None) -> tuple[Tensor, Tensor] | None:
    """Scale and shift of a layer that treats each channel alone, as a relation's tensors; ``None`` if it is none."""
    if isinstance(module, Offset):
        parts = (
            number(fill) if value is None else stored(exact(value))
            for value, fill in ((module.scale, 1.0), (module.shift, 0.0))
        )
        scale, shift = parts
        return scale, shift
    if isinstance(module, ChannelLinear):
        if ndim is None:
            return None
        where = module.dim - ndim if module.dim >= 0 else module.dim
    elif isinstance(module, CONVOLUTION):
        plain = all(s == 1 for s in (*module.kernel_size, *module.stride)) and not any(
            module._reversed_padding_repeated_twice
        )
        if not plain or not module.groups == module.in_channels == module.out_channels:
            return None
        where = axis(module)
    else:
        return None
    weight = exact(module.weight).reshape(-1)
    bias = torch.zeros_like(weight) if module.bias is None else exact(module.bias)
    return per_channel(weight, where), per_channel(bias, where)


def check_explicit(scale: Tensor, shift: Tensor, given: Relation, taken: Relation, module: Any, ndim: int) -> None:
    r"""A frozen affine that became a layer: :math:`A (s (S u + T) + t) + B = a u + b`."""
    found = explicit(module, ndim)
    require(found is not None, "an affine became a layer that mixes channels", broken=True)
    assert found is not None
    s, t = given.solved()
    a, b = taken.left, -taken.shift
    names = ("scale", "shift") if isinstance(module, Offset) else ("weight", "bias")
    held = [None if getattr(module, name) is None else stored(getattr(module, name)) for name in names]
    parts = zip(held, found, strict=True)
    weight, bias = (part if own is None else own.reshape(part.shape) if part.ndim else own for own, part in parts)
    size = (a * scale).abs() * given.terms + (a * shift).abs() + b.abs()
    good = is_rounded(weight, a * scale * s)
    require(good, "an explicit layer's weight is not the affine's scale", broken=True)
    good = is_rounded(bias, a * (scale * t + shift) + b, size)
    require(good, "an explicit layer's bias is not the affine's shift", broken=True)


# --------------------------------------------------------------------------------------------- several become one


def apply_exactly(module: Any, inputs: list[Tensor]) -> Tensor:
    """Run a layer in float64, with its weights as they were before they were rounded."""
    twin = copy.copy(module)
    twin.__dict__["_parameters"] = {
        name: None if p is None else nn.Parameter(exact(p), requires_grad=False)
        for name, p in module._parameters.items()
    }
    result: Tensor = twin(*inputs)
    return result


def rounding_of_output(module: Any, u: Tensor, pad: ChannelPad | None) -> Tensor:
    r"""How far rounded numbers can move an output, with h half a unit in the last place.

    :math:`\sum |u| h(W) + h(b)`, and around an image that is padded with z :math:`\sum |W| h(z)`.
    """

    def through(change: Callable[[Tensor], Tensor], value: Tensor, *, biased: bool) -> Tensor:
        twin = copy.copy(module)
        held = {n: p for n, p in module._parameters.items() if p is not None and (biased or n == "weight")}
        changed = {n: nn.Parameter(change(p.detach()), requires_grad=False) for n, p in held.items()}
        twin.__dict__["_parameters"] = dict.fromkeys(module._parameters) | changed
        result: Tensor = twin(value)
        return result

    allowed = through(half_unit, u.abs(), biased=True)
    if pad is not None:
        inside = F.pad(u, [-int(a) for a in pad.padding if isinstance(a, int)])
        rim = ChannelPad(pad.padding, half_unit(pad.value))(torch.zeros_like(inside))
        allowed = allowed + through(lambda p: p.abs().to(EXACT), rim, biased=False)
    return allowed


def sample_size(module: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A small input on which every tap of a convolution meets the border and the inside."""
    if isinstance(module, nn.Linear):
        return (2, *shape[1:])
    windows = zip(module.dilation, module.kernel_size, module.stride, strict=True)
    return (2, module.in_channels, *(2 * d * (k - 1) + s + 1 for d, k, s in windows))


def pad_explicitly(pad: ChannelPad, u: Tensor) -> Tensor:
    """What a padding with constants makes of a value, in float64."""
    amounts = [int(a) for a in pad.padding if isinstance(a, int)]
    inside = F.pad(torch.ones_like(u, dtype=torch.bool), amounts)
    return torch.where(inside, F.pad(u, amounts), exact(pad.value))


__all__ = ["CONVOLUTION", "LINEAR", "TRANSPOSED", "apply_exactly", "check_explicit", "check_linear", "explicit"]
