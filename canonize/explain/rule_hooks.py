r"""Rules, as zennit hooks, for the modules that only canonical models have.

zennit's own hooks know modules of one argument. The ones here redistribute relevance over several:

- :class:`SumNorm`: a sum gives each argument its share, :math:`R_i = w_i x_i / y \cdot R`;
- :class:`ByContribution`: the same for any linear map without weights;
- :class:`SignalTakesAll`: of a product, the signal gets all relevance and the gate none (Arras et al. 2017, *Explaining
  Recurrent Neural Network Predictions in Sentiment Analysis*);
- :class:`Uniform`: of a product, each factor gets half (Achtibat et al. 2024, *AttnLRP*, Eq. 14 and 15);
- :class:`SoftmaxTaylor`: softmax as its first-order expansion (AttnLRP, Eq. 13);
- :class:`RectifiedThreshold`: guided backpropagation and DeconvNet where a ReLU has become a threshold.

Arguments that do not depend on what is explained (constants, masks, sizes) get nothing: a product has one factor then.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from canonize.explain.libraries import require
from canonize.vocabulary.kinds import operands_of, softmax_dim

require("zennit")

from zennit.core import Hook, RemovableHandle, RemovableHandleList, Stabilizer  # noqa: E402 - torchvision comes first


class Entry(torch.autograd.Function):
    """Hands a module its arguments, and on the way back answers with the rule in place of the gradient."""

    @staticmethod
    def forward(ctx: Any, hook: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Copies: modules may write into what they are given."""
        ctx.hook = hook
        ctx.closed = lambda: ((known := hook()) and known.closed()) or set()
        handed = tuple(tensor.clone() for tensor in tensors)
        needed = ctx.needs_input_grad[1:]
        ctx.mark_non_differentiable(*(t for t, need in zip(handed, needed, strict=True) if not need))
        return handed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """The rule's relevances."""
        hook = ctx.hook()
        if hook is None or not hook.active:
            return (None, *gradients)
        return (None, *hook.relevances(gradients))


class Exit(torch.autograd.Function):
    """Hands on a module's output, and on the way back notes the relevance that arrives there."""

    @staticmethod
    def forward(ctx: Any, hook: Any, output: Tensor) -> Tensor:
        """The output."""
        ctx.hook = hook
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """Keep it for the rule."""
        hook = ctx.hook()
        if hook is not None:
            hook.stored_tensors["relevance"] = gradient
        return None, gradient


class SharedHook(Hook, ABC):
    """A hook for modules of several arguments; subclasses say what each of them gets in :meth:`shares`.

    It needs of zennit no more than what composites do with hooks (``copy``, ``register``, ``remove``, ``active``),
    which is the same in all its versions.
    """

    carrying: tuple[bool, ...] | None = None

    def register(self, module: nn.Module) -> RemovableHandleList:
        """Attach it to a module."""
        return RemovableHandleList(
            [
                RemovableHandle(self),
                module.register_forward_pre_hook(self.before),
                module.register_forward_hook(self.behind),
            ]
        )

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Stand in front of the module."""
        self.stored_tensors.clear()
        places = [place for place, value in enumerate(inputs) if isinstance(value, Tensor)]
        needed = [isinstance(value, Tensor) and value.requires_grad for value in inputs]
        if not torch.is_grad_enabled() or not any(needed):
            return None
        if self.carrying is not None and len(self.carrying) == len(needed):  # what the graph says of constants
            told = [a and b for a, b in zip(needed, self.carrying, strict=True)]
            needed = told if any(told) else needed
        self.stored_tensors["module"] = weakref.ref(module)
        self.stored_tensors["inputs"] = tuple(v.detach() if isinstance(v, Tensor) else v for v in inputs)
        self.stored_tensors["needed"] = tuple(needed)
        handed = Entry.apply(weakref.ref(self), *(inputs[place] for place in places))
        given = list(inputs)
        for place, tensor in zip(places, handed, strict=True):
            given[place] = tensor
        return tuple(given)

    def behind(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """Stand behind the module."""
        if "inputs" not in self.stored_tensors or not isinstance(output, Tensor) or not output.requires_grad:
            return None
        self.stored_tensors["output"] = output.detach()
        return Exit.apply(weakref.ref(self), output)

    def relevances(self, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """Relevance of every tensor argument; what is shared among copies (broadcasting) is summed."""
        stored = self.stored_tensors
        if "relevance" not in stored:
            return gradients
        inputs, needed = stored["inputs"], stored["needed"]
        shares = self.shares(stored["module"](), inputs, stored["output"], stored["relevance"], needed)
        return tuple(
            share.sum_to_size(value.shape) if need else torch.zeros_like(value)
            for value, share, need in zip(inputs, shares, needed, strict=True)
            if isinstance(value, Tensor)
        )

    def closed(self) -> set[int]:
        """Which tensor arguments of the latest call get nothing, counted among tensors."""
        stored = self.stored_tensors
        if "output" not in stored:
            return set()
        inputs = stored["inputs"]
        left_out = self.left_out(stored["module"](), inputs, stored["output"], stored["needed"])
        tensors = [place for place, value in enumerate(inputs) if isinstance(value, Tensor)]
        return {tensors.index(place) for place in left_out if place in tensors}

    def left_out(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, carrying: Sequence[bool]
    ) -> Collection[int]:
        """Arguments that the rule gives nothing, whatever the relevance."""
        return ()

    @abstractmethod
    def shares(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, relevance: Tensor, carrying: Sequence[bool]
    ) -> Sequence[Tensor]:
        """Relevance of each argument, given that of the output, broadcast to the output's shape at most."""


class SumNorm(SharedHook):
    r"""The rule of zennit's ``Norm`` for a module that adds its arguments: each gets relevance by its share.

    .. math:: R_i = \frac{w_i x_i}{y + \epsilon\, \mathrm{sign}(y)} R

    Parameters
    ----------
    stabilizer : float or callable
        :math:`\epsilon`, as for zennit's rules.
    ratio : callable, optional
        In place of the stabilizer: the relevance over the stabilized output, given both.
    """

    def __init__(self, stabilizer: Any = 1e-6, ratio: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.stabilizer, self.ratio = stabilizer, ratio

    def copy(self) -> SumNorm:
        """A hook of its own for another module."""
        return type(self)(self.stabilizer, self.ratio)

    def divided(self, relevance: Tensor, output: Tensor) -> Tensor:
        """Relevance over the stabilized output."""
        if self.ratio is not None:
            return self.ratio(relevance, output)
        divided: Tensor = relevance / Stabilizer.ensure(self.stabilizer)(output)
        return divided

    def shares(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, relevance: Tensor, carrying: Sequence[bool]
    ) -> list[Tensor]:
        """By share of the sum."""
        ratio = self.divided(relevance, output)
        return [weight * value * ratio for weight, value in zip(module.weights, inputs, strict=True)]


class ByContribution(SumNorm):
    """The same for any map that is linear in the arguments that depend on the input: by contribution to the output."""

    def shares(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, relevance: Tensor, carrying: Sequence[bool]
    ) -> list[Tensor]:
        """Through the map itself."""
        return _contributions(module, inputs, self.divided(relevance, output), carrying)


def _contributions(module: Any, inputs: tuple[Any, ...], ratio: Tensor, carrying: Sequence[bool]) -> list[Any]:
    """Each argument times the gradient that reaches it; of those that carry nothing, zero."""
    with torch.enable_grad():
        given = [v.clone().requires_grad_() if carries else v for v, carries in zip(inputs, carrying, strict=True)]
        wanted = [value for value, carries in zip(given, carrying, strict=True) if carries]
        gradients = iter(torch.autograd.grad(module.forward(*given), wanted, ratio))
    return [v * next(gradients) if carries else v for v, carries in zip(inputs, carrying, strict=True)]


class SignalTakesAll(SharedHook):
    """A product gives all relevance to one factor, the signal, and none to its gate.

    The signal is the only factor that depends on what is explained; else the factor of the result's shape, if the other
    is broadcast to it. Of two such factors it is the one that ``signal`` names; if nothing tells them apart, both get
    half.

    Parameters
    ----------
    signal : int, optional
        Which argument is the signal.
    carrying : tuple of bool, optional
        Which arguments depend on the input, where the model's graph says it.
    """

    def __init__(self, signal: int | None = None, carrying: tuple[bool, ...] | None = None) -> None:
        super().__init__()
        self.signal, self.carrying = signal, carrying

    def copy(self) -> SignalTakesAll:
        """A hook of its own for another module."""
        return type(self)(self.signal, self.carrying)

    def shares(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, relevance: Tensor, carrying: Sequence[bool]
    ) -> list[Tensor]:
        """Everything to the signal."""
        signal = self.chosen(inputs, output, carrying)
        if signal is None:
            return [relevance / sum(carrying)] * len(inputs)
        return [relevance if position == signal else torch.zeros_like(relevance) for position in range(len(inputs))]

    def chosen(self, inputs: tuple[Any, ...], output: Tensor, carrying: Sequence[bool]) -> int | None:
        """Which argument is the signal of this call."""
        alone = [position for position, carries in enumerate(carrying) if carries]
        whole = [p for p, value in enumerate(inputs) if isinstance(value, Tensor) and value.shape == output.shape]
        return alone[0] if len(alone) == 1 else whole[0] if len(whole) == 1 else self.signal

    def left_out(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, carrying: Sequence[bool]
    ) -> Collection[int]:
        """All but the signal."""
        signal = self.chosen(inputs, output, carrying)
        return () if signal is None else [place for place in range(len(inputs)) if place != signal]


class Uniform(SharedHook):
    """An elementwise product gives each factor the same relevance (AttnLRP, Eq. 14)."""

    def shares(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, relevance: Tensor, carrying: Sequence[bool]
    ) -> list[Tensor]:
        """An equal part to each that depends on the input."""
        return [relevance / sum(carrying)] * len(inputs)


class ProductEpsilon(SharedHook):
    r"""A matrix product shares relevance by contribution, and equally between its two factors (AttnLRP, Eq. 15).

    .. math:: R_{ji} = \sum_p A_{ji} V_{ip} \frac{R_{jp}}{2 O_{jp} + \epsilon}

    Where only one factor depends on the input, it gets all: the rule of a linear layer then. A value that is both
    factors counts twice, and a bias that is computed gets its own share of the sum.

    Parameters
    ----------
    epsilon : float or callable
    signal : int, optional
        The only factor to get relevance, all of it; by default both get half.
    carrying : tuple of bool, optional
        Which factors depend on the input, where the model's graph says it.
    ratio : callable, optional
        In place of epsilon: the relevance over the stabilized output, given both.
    """

    def __init__(
        self,
        epsilon: Any = 1e-6,
        signal: int | None = None,
        carrying: tuple[bool, ...] | None = None,
        ratio: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.epsilon, self.signal, self.carrying, self.ratio = epsilon, signal, carrying, ratio

    def copy(self) -> ProductEpsilon:
        """A hook of its own for another module."""
        return type(self)(self.epsilon, self.signal, self.carrying, self.ratio)

    def divided(self, relevance: Tensor, output: Tensor) -> Tensor:
        """Relevance over the stabilized output."""
        if self.ratio is not None:
            return self.ratio(relevance, output)
        divided: Tensor = relevance / Stabilizer.ensure(self.epsilon)(output)
        return divided

    def shares(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, relevance: Tensor, carrying: Sequence[bool]
    ) -> list[Tensor]:
        """By contribution, through the product itself."""
        operands = operands_of(module, len(inputs))
        carried = {place: times for place, times in operands.factors.items() if carrying[place]}
        signal = self.chosen(carrying)
        alone = signal in carried
        degree = carried[signal] if alone and signal is not None else max(sum(carried.values()), 1)
        parts = _contributions(module, inputs, self.divided(relevance, degree * output), carrying)
        if operands.addend is not None and carrying[operands.addend]:
            parts[operands.addend] = parts[operands.addend] * degree
        if alone:
            kept = {signal, operands.addend}
            parts = [part if place in kept else torch.zeros_like(part) for place, part in enumerate(parts)]
        return parts

    def chosen(self, carrying: Sequence[bool]) -> int | None:
        """The only factor that gets relevance."""
        alone = [position for position, carries in enumerate(carrying) if carries]
        return alone[0] if len(alone) == 1 else self.signal

    def left_out(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, carrying: Sequence[bool]
    ) -> Collection[int]:
        """All but the only one."""
        signal = self.chosen(carrying)
        return () if signal is None else [place for place in range(len(inputs)) if place != signal]


class SoftmaxTaylor(SharedHook):
    r"""Softmax, expanded to first order (AttnLRP, Eq. 13): :math:`R_i = x_i (R^{out}_i - s_i \sum_j R^{out}_j)`.

    A masked position (:math:`x_i = -\infty`) gets nothing.
    """

    def shares(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, relevance: Tensor, carrying: Sequence[bool]
    ) -> list[Any]:
        """The expansion at the input."""
        change = relevance - output * relevance.sum(softmax_dim(module), keepdim=True)
        first = torch.where(inputs[0].isinf(), torch.zeros_like(change), inputs[0] * change)
        return [first, *inputs[1:]]


class Block(SharedHook):
    """No relevance passes: attention weights are taken as constants (Ali et al. 2022, *XAI for Transformers*)."""

    def shares(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, relevance: Tensor, carrying: Sequence[bool]
    ) -> list[Any]:
        """Nothing."""
        return [torch.zeros_like(value) if isinstance(value, Tensor) else value for value in inputs]

    def left_out(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, carrying: Sequence[bool]
    ) -> Collection[int]:
        """All."""
        return range(len(inputs))


class FirstHalf(SharedHook):
    """A gated linear unit, ``signal * sigmoid(gate)`` of two halves of one tensor: the signal half takes all."""

    def shares(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, relevance: Tensor, carrying: Sequence[bool]
    ) -> list[Tensor]:
        """All to the first half."""
        return [torch.cat([relevance, torch.zeros_like(relevance)], module.dim)]


class RectifiedReLU(SharedHook):
    """Guided backpropagation, or DeconvNet, at a ReLU, whoever else reads what it reads."""

    def __init__(self, masks: bool = True) -> None:
        super().__init__()
        self.masks = masks

    def copy(self) -> RectifiedReLU:
        """A hook of its own for another module."""
        return type(self)(self.masks)

    def shares(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, relevance: Tensor, carrying: Sequence[bool]
    ) -> list[Tensor]:
        """The gradient where it is positive (and the input is, for guided backpropagation)."""
        kept = relevance.clamp(min=0)
        return [kept * (inputs[0] > 0) if self.masks else kept]


class RectifiedThreshold(SharedHook):
    r"""What guided backpropagation and DeconvNet do at a ReLU, done where the ReLU has become a threshold.

    The gradient behind :math:`\mathrm{ReLU}(s x + t) = s\,\mathrm{ThreshReLU}_z(x) + t` is :math:`s` times what it was
    behind the ReLU: what a ReLU lets pass because it is positive has the sign of :math:`s` here. A channel with a lower
    bound has a positive scale, one with an upper bound a negative one. Channels with two finite bounds come from ReLU6
    and its kin, which neither method bends: their gradient stays.

    Parameters
    ----------
    masks : bool
        Whether nothing passes where the input is beyond the threshold: guided backpropagation. (DeconvNet looks at
        the gradient alone.)
    """

    def __init__(self, masks: bool = True) -> None:
        super().__init__()
        self.masks = masks

    def copy(self) -> RectifiedThreshold:
        """A hook of its own for another module."""
        return type(self)(self.masks)

    def shares(
        self, module: Any, inputs: tuple[Any, ...], output: Tensor, relevance: Tensor, carrying: Sequence[bool]
    ) -> list[Tensor]:
        """The gradient, where its sign is right."""
        infinite = torch.full((), float("inf"), dtype=output.dtype, device=output.device)
        low = -infinite if module.lower is None else module.lower
        high = infinite if module.upper is None else module.upper
        below, above = inputs[0] <= low, inputs[0] >= high
        rises, falls = high.isinf() & low.isfinite(), low.isinf() & high.isfinite()
        bent = (rises & (relevance > 0)) | (falls & (relevance < 0))
        if self.masks:
            bent = bent & ~below & ~above
        kept = (low.isinf() & high.isinf()) | (low.isfinite() & high.isfinite() & (low < high) & ~below & ~above)
        return [relevance * (bent | kept)]
