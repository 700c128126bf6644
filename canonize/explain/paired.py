r"""DeepLIFT's multipliers for what captum has no right rule for, on batches of inputs with their baselines behind.

A product :math:`f(a, b)`, linear in each factor, with the means :math:`\bar a, \bar b` of input and baseline, gives
each factor its Shapley value:

.. math:: f(a, b) - f(a_0, b_0) = f(\Delta a, \bar b) + f(\bar a, \Delta b)

A maximum over a window is :math:`y = x_i`, that of the baseline :math:`y_0 = x_{0,j}`. Where :math:`y > y_0`, position
i has grown by at least :math:`y - y_0` and gets all of it; else position j gets it. Multipliers lie between 0 and 1.
(captum loses what overlapping windows give to one position.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from canonize.graph.network import shell

WINDOWS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)


class PairedProduct(nn.Module):
    """A product that has DeepLIFT's multipliers in the place of its gradient."""

    product: nn.Module

    @classmethod
    def of(cls, product: nn.Module) -> PairedProduct:
        """Around a product, which stays out of what captum looks at."""
        made = cls()
        made.__dict__["product"] = product
        return made

    def forward(self, *factors: Tensor) -> Tensor:
        """The product."""
        output: Tensor = _Product.apply(self.product.forward, *factors)
        return output


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, product: Any, *factors: Tensor) -> Any:
        ctx.product = product
        ctx.save_for_backward(*factors)
        return product(*factors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        means = [_mean_of_pair(factor) for factor in ctx.saved_tensors]
        needed = ctx.needs_input_grad[1:]
        found: list[Tensor | None] = [None] * len(means)
        for place, mean in enumerate(means):
            if not needed[place]:
                continue
            with torch.enable_grad():  # at the mean: a value that is both factors has both multipliers
                given = mean.requires_grad_()
                output = ctx.product(*(given if other == place else value for other, value in enumerate(means)))
            (found[place],) = torch.autograd.grad(output, given, gradient)
            mean.requires_grad_(False)
        return (None, *found)


def _mean_of_pair(factor: Tensor) -> Tensor:
    if factor.ndim == 0 or len(factor) % 2:
        return factor.detach().clone()
    first, second = factor.detach().chunk(2)
    return ((first + second) / 2).repeat(2, *[1] * (factor.ndim - 1))


class PairedMaximum(nn.Module):
    """A maximum over windows that has DeepLIFT's multipliers in the place of its gradient."""

    pool: nn.Module

    @classmethod
    def of(cls, pool: nn.Module) -> PairedMaximum:
        """Around a layer of max-pooling."""
        made = cls()
        inside = shell(pool)
        inside.return_indices = True  # type: ignore[assignment]
        made.__dict__["pool"] = inside
        return made

    def forward(self, values: Tensor) -> Tensor:
        """The maxima."""
        output: Tensor = _Maximum.apply(self.pool.forward, values)
        return output


class _Maximum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pool: Any, values: Tensor) -> Any:
        output, places = pool(values)
        ctx.save_for_backward(values, output, places)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        values, output, places = ctx.saved_tensors
        if len(values) % 2:
            raise ValueError("DeepLIFT needs as many baselines as inputs")
        (value, value0), (high, high0), (at, at0) = (_flat_pair(t) for t in (values, output, places))
        change, rise = value - value0, high - high0
        parts = []
        for part in _flat_pair(gradient):
            passed = torch.zeros_like(value)
            for chosen, where in ((rise > 0, at), (rise < 0, at0)):
                moved = change.gather(2, where)
                # The same position in both: it has changed by just as much as the maximum.
                ratio = torch.where(at == at0, torch.ones_like(rise), rise / torch.where(moved == 0, 1, moved))
                passed.scatter_add_(2, where, part * ratio * chosen)
            still = (rise == 0) & (at == at0)
            parts.append(passed.scatter_add_(2, at, part * still))
        return None, torch.cat(parts).view(values.shape)


def _flat_pair(value: Tensor) -> Sequence[Tensor]:
    """Inputs' half and baselines' half, positions along one dimension."""
    return value.flatten(2).chunk(2)
