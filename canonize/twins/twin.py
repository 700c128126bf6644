"""Copies of a model to run in its place: in eval mode, in its own precision or in float64."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from canonize.twins.copying import eval_twin, twin
from canonize.twins.torchscript import constants
from canonize.twins.writes import has_own_parameters

__all__ = ["device_of", "eval_twin", "float64_twin", "floating_dtype", "let_go"]


def float64_twin(model: nn.Module) -> nn.Module:
    """Copy a model into float64 and put the copy in eval mode.

    Every floating tensor (parameters, buffers, plain attributes, also inside containers) becomes a float64 copy,
    complex ones become complex128, integers are copied as they are. Tied tensors stay tied. Parameters that are
    float64 already are shared.

    Parameters
    ----------
    model : nn.Module
        Never changed.

    Returns
    -------
    nn.Module
        On the same devices.
    """
    wide = twin(model, _to_float64)
    if not any(parameter.dtype == torch.float64 for parameter in model.parameters()):
        has_own_parameters(wide)
    return wide.double() if isinstance(model, torch.jit.ScriptModule) else wide


def _to_float64(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float64 and isinstance(tensor, nn.Parameter) and not tensor.is_inference():
        return tensor
    data = tensor.detach()
    if tensor.is_floating_point():
        wide = data.to(torch.float64, copy=True)
    elif tensor.is_complex():
        wide = data.to(torch.complex128, copy=True)
    else:
        wide = data.clone()
    if not isinstance(tensor, nn.Parameter):
        return wide
    return nn.Parameter(wide, requires_grad=tensor.requires_grad)


def let_go(module: nn.Module) -> None:
    """Empty a twin of its tensors.

    Graph modules and their graphs refer to each other: float64 weights would stay until the collector comes by.
    """
    for part in module.modules():
        if not isinstance(part, torch.jit.ScriptModule):
            part._parameters.clear()
            part._buffers.clear()


def floating_dtype(model: nn.Module) -> torch.dtype | None:
    """The floating dtype that most parameter (else buffer) elements of a model have, or None where it has none."""
    stated = getattr(model, "own_dtype", None)  # a runtime's session
    if isinstance(stated, torch.dtype):
        return stated
    written = constants(model) if isinstance(model, torch.jit.ScriptModule) else []
    for held in (model.parameters(), model.buffers(), written):
        sizes: dict[torch.dtype, int] = {}
        for tensor in held:
            if not is_lazy(tensor) and tensor.is_floating_point():
                sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
        if sizes:
            return max(sizes, key=lambda dtype: sizes[dtype])
    return None


def device_of(model: nn.Module) -> torch.device | None:
    """The device of a model's first parameter or buffer, or None where it has neither."""
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return None if tensor is None else tensor.device
