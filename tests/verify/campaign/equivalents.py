"""Pairs that are the same function and differ by rounding, by the order of sums, or by nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import canonize
from tests.verify.campaign.architectures import make

Make = Callable[[nn.Module, tuple[Tensor, ...]], "tuple[nn.Module, nn.Module]"]


def _canonical(strategy: Any) -> Make:
    def build(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, nn.Module]:
        return model, canonize.canonize(model, inputs, strategy=strategy, copy=True, verify=False)

    return build


def _fused(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, nn.Module]:
    try:
        return model, fuse(model)
    except Exception:  # torch.fx cannot trace it
        return _rounded(model, inputs)


def _rounded(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, nn.Module]:
    """Every weight one rounding step up, down, or where it is."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            way = torch.randint(-1, 2, parameter.shape, generator=generator)
            target = torch.where(way > 0, torch.inf, -torch.inf)
            parameter.copy_(torch.where(way == 0, parameter, torch.nextafter(parameter, target.to(parameter))))
    return model, other


def _channels_last(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, nn.Module]:
    return model, copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, nn.Module]:
    batch = torch.export.Dim("batch", min=1, max=64)
    dynamic = tuple({0: batch} for _ in inputs)
    try:
        program = torch.export.export(model, inputs, dynamic_shapes=dynamic)
    except Exception:
        return _channels_last(model, inputs)
    # An exported program is made for one image size and says so: the verdict is asked for the batch sizes alone.
    return program.module(), model


def _bfloat16(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, nn.Module]:
    narrow = copy.deepcopy(model).bfloat16()
    fed = tuple(t.bfloat16() if t.is_floating_point() else t for t in inputs)
    return narrow, canonize.canonize(narrow, fed, copy=True, verify=False)


def _reference_is_canonical(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, nn.Module]:
    return canonize.canonize(model, inputs, copy=True, verify=False), model


def _float64(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, nn.Module]:
    wide = copy.deepcopy(model).double()
    fed = tuple(t.double() if t.is_floating_point() else t for t in inputs)
    return wide, canonize.canonize(wide, fed, copy=True, verify=False)


KINDS: dict[str, Make] = {
    "canonical, threshold": _canonical("threshold"),
    "canonical, untangle": _canonical("untangle"),
    "canonical as the reference": _reference_is_canonical,
    "canonical in float64": _float64,
    "canonical in bfloat16": _bfloat16,
    "fused by torch.fx": _fused,
    "exported": _exported,
    "weights one rounding step off": _rounded,
    "channels last": _channels_last,
}


def build(kind: str, architecture: str, seed: int) -> tuple[nn.Module, nn.Module, tuple[Tensor, ...]]:
    """A reference, a candidate that is the same function, and example inputs."""
    model, inputs = make(architecture, seed)
    reference, candidate = KINDS[kind](model, inputs)
    dtype = next((p.dtype for p in reference.parameters()), torch.float32)
    return reference, candidate, tuple(t.to(dtype) if t.is_floating_point() else t for t in inputs)
