"""The floor below which a difference says nothing: what rounding alone does to a method's numbers.

Canonizing rounds every weight it touches once more. How far that can move a metric is measured, for each model, method
and metric: by the same model once more, each of its weights moved at random by one unit of its last place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from canonize import nn as cnn
from canonize.explain.methods import find
from canonize.twins.copying import twin

# Samples that are measured twice, of the first batch of the first seed.
MEASURED_TWICE = 8
# Rounding adds up otherwise in another model of the same function: differences within this many times the noise are it.
FACTOR = 10.0
# What depends on nothing but the model's function, which canonizing does not change.
FUNCTION_ALONE = ("gradient", "input-x-gradient", "integrated-gradients", "smoothgrad")
# What depends on where the activations stand, too.
BY_ACTIVATION = ("guided-backprop", "deconvnet")


def rounded_otherwise(model: nn.Module) -> nn.Module:
    """A copy of a model, each of its floating numbers multiplied by 1 + eps or 1 - eps at random."""
    generator = torch.Generator().manual_seed(0)

    def moved(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.detach().clone()
        signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.device, tensor.dtype) * 2 - 1
        value = tensor.detach() * (1 + torch.finfo(tensor.dtype).eps * signs)
        return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value

    return twin(model, moved)


def is_control(method: str, model: nn.Module) -> bool:
    """Whether a method explains a canonical model as it explains the original, so that any difference is rounding.

    Parameters
    ----------
    method : str
        Its name, without settings.
    model : nn.Module
        The canonical one.
    """
    name = find(method).name
    if name in BY_ACTIVATION:
        return not any(isinstance(module, cnn.ThreshReLU | cnn.ThreshLeakyReLU) for module in model.modules())
    return name in FUNCTION_ALONE


def noise_of(values: Tensor, again: Tensor) -> Tensor:
    """How far rounding moves each value: the distance to its second measurement, and one unit of its last place."""
    return (again - values).abs() + torch.finfo(values.dtype).eps * values.abs()
