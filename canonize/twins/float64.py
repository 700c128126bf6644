"""Running code that names a precision of its own as if it named float64."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_LEGACY_NARROW = (
    *(torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor),
    *("torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"),
)
# Tensor methods that name a precision without an argument for it.
_NARROWING_METHODS = ("float", "half", "bfloat16")


class InFloat64(TorchFunctionMode):
    """Reads every float32, float16 or bfloat16 that a forward names as float64.

    Models that cast inside (``x.float()`` before a softmax, a float32 grid) would otherwise bring float32 noise into
    a float64 comparison, or refuse to run.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: _widened(value) for name, value in (kwargs or {}).items()}
        args = tuple(_widened(value) for value in args)
        if getattr(func, "__name__", "") in _NARROWING_METHODS and args and isinstance(args[0], Tensor):
            return args[0].double()
        return func(*args, **kwargs)


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _NARROW else value
    # x.type(torch.FloatTensor), or its name
    legacy = isinstance(value, type | str) and value in _LEGACY_NARROW
    return torch.float64 if legacy else value


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Run what is inside as if every floating dtype were float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with InFloat64():
            yield
    finally:
        torch.set_default_dtype(default)
