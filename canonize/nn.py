"""The few modules torch lacks: every operation of a canonical model is a named submodule.

Explainers attach rules to modules by type, so types matter here: a threshold is no ``nn.ReLU`` (zennit would give it
the Pass rule, where the published canonization takes the gradient), ``Sum``, ``Gate`` and ``Concat`` are what a rule
for residual sums, gates and concatenations can be attached to, and everything without a name of its own is a ``Call``.
"""

from __future__ import annotations

import builtins
import copy
import functools
import importlib
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Call",
    "ChannelLinear",
    "ChannelPad",
    "Concat",
    "Constant",
    "Gate",
    "Mean",
    "Offset",
    "RMSNorm",
    "Rearrange",
    "SigmoidGELU",
    "SoftCap",
    "Sum",
    "SumOver",
    "ThreshLeakyReLU",
    "ThreshReLU",
]


class ThreshReLU(nn.Module):
    r"""A rectifier whose kink lies at a threshold per channel.

    .. math:: y = \min(\max(x, \mathrm{lower}), \mathrm{upper})

    Where a BatchNorm :math:`s x + t` in front of a ReLU has moved behind it, the lower bound is :math:`z = -t / s` for
    :math:`s > 0` and the upper bound is :math:`z` for :math:`s < 0` (Eq. 7 of Pahde et al. 2023); a dead channel
    (:math:`s = 0`) has ``lower == upper``; ReLU6 and Hardtanh have two finite bounds.

    Parameters
    ----------
    lower, upper : Tensor, optional
        Bounds, of a shape that broadcasts with the input: ``(1, C, 1, 1)`` for images.

    Notes
    -----
    The gradient is the rule: what is clamped is a constant and gets no relevance (so it is in the published code, whose
    threshold is a forward hook that zennit's Pass never acts on).
    """

    lower: Tensor | None
    upper: Tensor | None

    def __init__(self, lower: Tensor | None = None, upper: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("lower", lower)
        self.register_buffer("upper", upper)

    def forward(self, input: Tensor) -> Tensor:
        """Clamp every channel to its own bounds."""
        return torch.clamp(input, self.lower, self.upper)

    def extra_repr(self) -> str:
        """Say which bounds there are."""
        bounds = [name for name in ("lower", "upper") if getattr(self, name) is not None]
        shape = tuple(getattr(self, bounds[0]).shape) if bounds else ()
        return f"{' and '.join(bounds) or 'unbounded'} {shape}"


class ThreshLeakyReLU(nn.Module):
    r"""A leaky rectifier whose kink lies at a threshold per channel.

    .. math:: y = z + r \max(x - z, 0) + l \min(x - z, 0)

    Parameters
    ----------
    threshold : Tensor
        The kink :math:`z`, of a shape that broadcasts with the input.
    left, right : Tensor
        Slopes below and above the kink.
    """

    threshold: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, threshold: Tensor, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold)
        self.register_buffer("left", left)
        self.register_buffer("right", right)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the two slopes around the kink."""
        distance = input - self.threshold
        return self.threshold + torch.where(distance > 0, self.right, self.left) * distance

    def extra_repr(self) -> str:
        """Say the shape of the threshold."""
        return f"threshold {tuple(self.threshold.shape)}"


class Sum(nn.Module):
    r"""Weighted sum of its inputs, :math:`y = \sum_i w_i x_i` (a residual connection has weights 1, 1)."""

    def __init__(self, weights: Sequence[float] = (1.0, 1.0)) -> None:
        super().__init__()
        self.weights = tuple(weights)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Add the inputs."""
        total = inputs[0] if self.weights[0] == 1 else inputs[0] * self.weights[0]
        for weight, value in zip(self.weights[1:], inputs[1:], strict=True):
            total = torch.add(total, value, alpha=weight) if weight != 1 else torch.add(total, value)
        return total

    def extra_repr(self) -> str:
        """Show the weights where they are not all one."""
        return "" if set(self.weights) == {1.0} else f"weights={self.weights}"


class Gate(nn.Module):
    """Product of a signal and its gate (squeeze-excitation, attention masks): ``y = signal * gate``."""

    def forward(self, signal: Tensor, gate: Tensor) -> Tensor:
        """Multiply the two."""
        return torch.mul(signal, gate)


class Concat(nn.Module):
    """Concatenation of its inputs along ``dim``."""

    def __init__(self, dim: int = 0) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *inputs: Tensor) -> Tensor:
        """Concatenate the inputs."""
        return torch.cat(inputs, self.dim)

    def extra_repr(self) -> str:
        """Show the dimension."""
        return f"dim={self.dim}"


class Mean(nn.Module):
    """Mean over dimensions."""

    def __init__(self, dim: Sequence[int], keepdim: bool = False) -> None:
        super().__init__()
        self.dim, self.keepdim = tuple(dim), keepdim

    def forward(self, input: Tensor) -> Tensor:
        """Average over the dimensions."""
        return input.mean(self.dim, self.keepdim)

    def extra_repr(self) -> str:
        """Show the dimensions."""
        return f"dim={self.dim}, keepdim={self.keepdim}"


class SumOver(nn.Module):
    """Sum over dimensions (positions, pairs of objects)."""

    def __init__(self, dim: Sequence[int], keepdim: bool = False) -> None:
        super().__init__()
        self.dim, self.keepdim = tuple(dim), keepdim

    def forward(self, input: Tensor) -> Tensor:
        """Add up along the dimensions."""
        return input.sum(self.dim, self.keepdim)

    def extra_repr(self) -> str:
        """Show the dimensions."""
        return f"dim={self.dim}, keepdim={self.keepdim}"


class RMSNorm(nn.RMSNorm):
    r"""Division by the root mean square, without a weight, whatever precision it computes in.

    .. math:: y = x \Big/ \sqrt{\tfrac{1}{n} \sum_i x_i^2 + \epsilon}

    Parameters
    ----------
    dim : sequence of int
        Dimensions of the mean, counted from the end.
    eps : float
    inner : torch.dtype, optional
        Precision that it computes in; by default its input's.
    back : bool
        Whether the result has the precision of the input, not ``inner``.

    References
    ----------
    Zhang & Sennrich 2019, *Root Mean Square Layer Normalization* (arXiv 1910.07467), Eq. 4.
    """

    def __init__(
        self, dim: Sequence[int], eps: float, inner: torch.dtype | None = None, back: bool = True
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        self.dim, self.eps, self.inner, self.back = tuple(dim), eps, inner, back
        self.normalized_shape, self.elementwise_affine = (), False
        self.register_parameter("weight", None)

    def forward(self, input: Tensor) -> Tensor:
        """Divide by the root mean square."""
        wide = input if self.inner is None else input.to(self.inner)
        result = wide * torch.rsqrt(wide.square().mean(self.dim, keepdim=True) + (self.eps or 0.0))
        return result.to(input.dtype) if self.back else result

    def reset_parameters(self) -> None:
        """There are none."""

    def extra_repr(self) -> str:
        """Show the dimensions and the constant."""
        return f"dim={self.dim}, eps={self.eps}" + (f", inner={self.inner}" if self.inner is not None else "")


class SigmoidGELU(nn.SiLU):
    r"""GELU by a sigmoid, :math:`y = x\, \sigma(\beta x)` (Hendrycks & Gimpel 2016, with :math:`\beta = 1.702`)."""

    def __init__(self, beta: float = 1.702) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, input: Tensor) -> Tensor:
        """Weigh every element by a sigmoid of itself."""
        return input * torch.sigmoid(self.beta * input)

    def extra_repr(self) -> str:
        """Show the factor."""
        return f"beta={self.beta}"


class SoftCap(nn.Tanh):
    r"""A smooth bound, :math:`y = c \tanh(x / c)` (Gemma 2, arXiv 2408.00118)."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, input: Tensor) -> Tensor:
        """Keep every element between the bounds."""
        return self.cap * torch.tanh(input / self.cap)

    def extra_repr(self) -> str:
        """Show the bound."""
        return f"cap={self.cap}"


class ChannelPad(nn.Module):
    """Pad the trailing dimensions with a constant per channel.

    Parameters
    ----------
    padding : sequence of int or Slot
        As in ``torch.nn.functional.pad``: last dimension first, left before right. ``Slot(i)`` stands for the i-th
        argument of the call: an amount that follows from the size of the input.
    value : Tensor
        Constants, of a shape that broadcasts with the input; size 1 along every padded dimension.

    Notes
    -----
    What stands around the image must be what the absorbed BatchNorm maps to zero, ``z = -t / s``: then the padded
    layer behind sees what it saw before.
    """

    value: Tensor

    def __init__(self, padding: Sequence[int | Slot], value: Tensor) -> None:
        super().__init__()
        self.padding = tuple(padding)
        self.register_buffer("value", value)

    def forward(self, input: Tensor, *amounts: int) -> Tensor:
        """Pad with zeros, then put ``value`` wherever a mask says that no input stands."""
        padding = fill(self.padding, (input, *amounts))
        if all(type(amount) is int and amount == 0 for amount in padding):  # no symbol of an exporter among them
            return input
        unpadded = input.ndim - len(padding) // 2
        corner = input[(slice(0, 1),) * unpadded]
        inside = F.pad(torch.ones_like(corner, dtype=torch.bool), padding)
        return torch.where(inside, F.pad(input, padding), self.value)

    def extra_repr(self) -> str:
        """Show the padding."""
        return f"padding={self.padding}, value {tuple(self.value.shape)}"


class ChannelLinear(nn.Conv1d):
    r"""A linear layer of its own for each channel, :math:`y_c = w_c x_c + b_c`, along any dimension.

    A depthwise 1x1 convolution over a tensor of any rank. It is an ``nn.Conv1d`` so that explainers have a rule for it.

    Parameters
    ----------
    channels : int
    dim : int
        Dimension of the channels.
    """

    def __init__(self, channels: int, dim: int = 1) -> None:
        super().__init__(channels, channels, 1, groups=channels)
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """Apply each channel's weight and bias."""
        moved = input.movedim(self.dim, 1)
        flat = moved.flatten(2) if moved.ndim > 2 else moved.unsqueeze(-1)
        output = super().forward(flat)
        return output.reshape(moved.shape).movedim(1, self.dim)


class Offset(nn.Module):
    """Add or multiply by a constant that is not one value per channel (a position embedding, say)."""

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, scale: Tensor | None, shift: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, input: Tensor) -> Tensor:
        """Scale, then shift."""
        if self.scale is not None:
            input = input * self.scale
        return input if self.shift is None else input + self.shift


class Constant(nn.Module):
    """A tensor that does not depend on the input."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        """Return the tensor."""
        return self.value


def assign(input: Any, index: Any, value: Any) -> Any:
    """A copy of a tensor (or of a list) with some items replaced: ``input[index] = value`` out of place."""
    output = input.clone() if isinstance(input, Tensor) else copy.copy(input)
    output[index] = value
    return output


class Slot:
    """Marks, in the arguments of a ``Call``, where the i-th input goes."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __repr__(self) -> str:
        return f"input{self.index}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slot) and other.index == self.index

    def __hash__(self) -> int:
        return hash(("Slot", self.index))


class Call(nn.Module):
    """One call of a function or a tensor method, as a module.

    Parameters
    ----------
    target : str
        ``torch.cumsum`` (an importable name), or ``.cumsum`` (a method of the first argument).
    args, kwargs
        Arguments, with a ``Slot`` where an input goes.
    function : callable, optional
        The function itself, where its name alone does not find it (it was defined inside another function).
    """

    def __init__(
        self,
        target: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        function: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.target, self.args, self.kwargs, self.function = target, args, dict(kwargs or {}), function

    def forward(self, *inputs: Any) -> Any:
        """Call the function with the inputs in their slots."""
        args = fill(self.args, inputs)
        kwargs = fill(self.kwargs, inputs) if self.kwargs else {}
        if self.target.startswith("."):
            return getattr(args[0], self.target[1:])(*args[1:], **kwargs)
        find = resolve if torch.compiler.is_compiling() else _remembered
        return (self.function or find(self.target))(*args, **kwargs)

    def extra_repr(self) -> str:
        """Show the call."""
        shown = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        return f"{self.target}({', '.join(shown)})"


class Rearrange(Call):
    """A call that only moves elements (view, permute, slice, repeat, ...): its outputs are copies of its inputs."""


def fill(template: Any, inputs: Sequence[Any]) -> Any:
    """Put the inputs into the slots of a (nested) argument structure."""
    if isinstance(template, Slot):
        return inputs[template.index]
    if isinstance(template, tuple | list):
        return type(template)(fill(item, inputs) for item in template)
    if isinstance(template, dict):
        return {key: fill(item, inputs) for key, item in template.items()}
    if isinstance(template, slice):
        return slice(*(fill(item, inputs) for item in (template.start, template.stop, template.step)))
    return template


# torch.compile follows attributes of these, and no import.
_HOMES = {"torch": torch, "operator": operator, "builtins": builtins, "math": math}


def resolve(name: str) -> Callable[..., Any]:
    """Find a function by its dotted name (``torch.ops.aten.add.Tensor``, ``mypackage.ops.myfunction``)."""
    head, *parts = name.split(".")
    if head not in _HOMES:
        return _imported(name)
    found: Any = _HOMES[head]
    for part in parts:
        found = getattr(found, part)
    function: Callable[..., Any] = found
    return function


_remembered = functools.cache(resolve)


@functools.cache
def _imported(name: str) -> Callable[..., Any]:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        function: Callable[..., Any] = found
        return function
    raise ImportError(f"no function called {name}")
