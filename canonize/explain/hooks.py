r"""Rules, as zennit hooks, for the modules that only canonical models have.

zennit's own hooks know modules of one argument. The ones here redistribute relevance over several:

- :class:`SumNorm`: a sum gives each argument its share, :math:`R_i = w_i x_i / y \cdot R`;
- :class:`SignalTakesAll`: of a product, the signal gets all relevance and the gate none (Arras et al. 2017, *Explaining
  Recurrent Neural Network Predictions in Sentiment Analysis*);
- :class:`Uniform`: of a product, each factor gets half (Achtibat et al. 2024, *AttnLRP*, Eq. 14 and 15);
- :class:`SoftmaxTaylor`: softmax as its first-order expansion (AttnLRP, Eq. 13).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from canonize.explain.libraries import require

require("zennit")

from zennit.core import Hook, Stabilizer  # noqa: E402 - only once torchvision can be imported


class SharedHook(Hook, ABC):
    """A hook for modules of several tensor arguments; subclasses say what each of them gets in :meth:`shares`."""

    def pre_forward(self, module: nn.Module, input: tuple[Tensor, ...]) -> Any:
        """Make the first argument require a gradient if any does: that is where zennit looks."""
        if not input[0].requires_grad and any(value.requires_grad for value in input):
            input = (input[0].detach().requires_grad_(), *input[1:])
        return super().pre_forward(module, input)

    def forward(self, module: nn.Module, input: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what the rule needs on the way back."""
        self.stored_tensors["input"] = tuple(value.detach() for value in input)
        self.stored_tensors["output"] = output.detach()

    def backward(
        self, module: nn.Module, grad_input: tuple[Tensor | None, ...], grad_output: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...]:
        """Give every argument its relevance; what is shared among copies (broadcasting) is summed."""
        inputs = self.stored_tensors["input"]
        shares = self.shares(module, inputs, self.stored_tensors["output"], grad_output[0])
        return tuple(
            None if wanted is None else share.sum_to_size(value.shape)
            for wanted, share, value in zip(grad_input, shares, inputs, strict=True)
        )

    @abstractmethod
    def shares(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> Sequence[Tensor]:
        """Relevance of each argument, given that of the output, broadcast to the output's shape at most."""


class SumNorm(SharedHook):
    r"""The rule of zennit's ``Norm`` for a module that adds its arguments: each gets relevance by its share.

    .. math:: R_i = \frac{w_i x_i}{y + \epsilon\, \mathrm{sign}(y)} R

    Parameters
    ----------
    stabilizer : float or callable
        :math:`\epsilon`, as for zennit's rules.
    """

    def __init__(self, stabilizer: Any = 1e-6) -> None:
        super().__init__()
        self.stabilizer = stabilizer

    def copy(self) -> SumNorm:
        """A hook of its own for another module."""
        return type(self)(self.stabilizer)

    def shares(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> list[Tensor]:
        """By share of the sum."""
        stable = Stabilizer.ensure(self.stabilizer)(output)
        return [weight * value / stable * relevance for weight, value in zip(module.weights, inputs, strict=True)]


class SignalTakesAll(SharedHook):
    """A product gives all relevance to one factor, the signal, and none to its gate.

    The signal is the factor of the result's shape, if the other is broadcast to it. Of two such factors it is the one
    that ``signal`` names; if nothing tells them apart, both get half.

    Parameters
    ----------
    signal : int, optional
        Which argument is the signal.
    """

    def __init__(self, signal: int | None = None) -> None:
        super().__init__()
        self.signal = signal

    def copy(self) -> SignalTakesAll:
        """A hook of its own for another module."""
        return type(self)(self.signal)

    def shares(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> list[Tensor]:
        """Everything to the signal."""
        whole = [position for position, value in enumerate(inputs) if value.shape == output.shape]
        signal = whole[0] if len(whole) == 1 else self.signal
        if signal is None:
            return [relevance / len(inputs)] * len(inputs)
        return [relevance if position == signal else torch.zeros_like(relevance) for position in range(len(inputs))]


class Uniform(SharedHook):
    """An elementwise product gives each factor the same relevance (AttnLRP, Eq. 14)."""

    def shares(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> list[Tensor]:
        """An equal part to each."""
        return [relevance / len(inputs)] * len(inputs)


class ProductEpsilon(SharedHook):
    r"""A matrix product shares relevance by contribution, and equally between its two factors (AttnLRP, Eq. 15).

    .. math:: R_{ji} = \sum_p A_{ji} V_{ip} \frac{R_{jp}}{2 O_{jp} + \epsilon}

    Parameters
    ----------
    epsilon : float or callable
    signal : int, optional
        The only factor to get relevance, all of it; by default both get half.
    """

    def __init__(self, epsilon: Any = 1e-6, signal: int | None = None) -> None:
        super().__init__()
        self.epsilon, self.signal = epsilon, signal

    def copy(self) -> ProductEpsilon:
        """A hook of its own for another module."""
        return type(self)(self.epsilon, self.signal)

    def shares(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> list[Tensor]:
        """By contribution, through the product itself."""
        whole = self.signal is not None
        ratio = relevance / Stabilizer.ensure(self.epsilon)(output if whole else 2 * output)
        with torch.enable_grad():
            factors = [value.clone().requires_grad_() for value in inputs]
            gradients = torch.autograd.grad(module.forward(*factors), factors, ratio)
        parts = [value * gradient for value, gradient in zip(inputs, gradients, strict=True)]
        if whole:
            parts = [p if i == self.signal else torch.zeros_like(p) for i, p in enumerate(parts)]
        return parts


class SoftmaxTaylor(SharedHook):
    r"""Softmax, expanded to first order (AttnLRP, Eq. 13): :math:`R_i = x_i (R^{out}_i - s_i \sum_j R^{out}_j)`.

    A masked position (:math:`x_i = -\infty`) gets nothing.
    """

    def shares(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> list[Tensor]:
        """The expansion at the input."""
        change = relevance - output * relevance.sum(module.dim, keepdim=True)
        return [torch.where(inputs[0].isinf(), torch.zeros_like(change), inputs[0] * change)]


class Block(SharedHook):
    """No relevance passes: attention weights are taken as constants (Ali et al. 2022, *XAI for Transformers*)."""

    def shares(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> list[Tensor]:
        """Nothing."""
        return [torch.zeros_like(value) for value in inputs]


class FirstHalf(SharedHook):
    """A gated linear unit, ``signal * sigmoid(gate)`` of two halves of one tensor: the signal half takes all."""

    def shares(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor) -> list[Tensor]:
        """All to the first half."""
        return [torch.cat([relevance, torch.zeros_like(relevance)], module.dim)]
