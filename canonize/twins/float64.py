"""Running code that names a precision of its own as if it named float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from canonize.compat.private import TorchDispatchMode, pytree

_WIDE = {
    torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128, torch.complex32: torch.complex128,
}  # fmt: skip
_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_LEGACY_NARROW = (
    *(torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor),
    *("torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"),
)
# Tensor methods that name a precision without an argument for it.
_NARROWING_METHODS = ("float", "half", "bfloat16")


class InFloat64(TorchFunctionMode):
    """Reads every float32, float16 or bfloat16 that a forward names, or means by naming none, as float64.

    Models that cast inside (``x.float()`` before a softmax, a float32 grid) would otherwise bring float32 noise into
    a float64 comparison, or refuse to run. What is made without a dtype (``torch.linspace(0, 1, 7)``, ``1 / n`` of an
    integer n) would have torch's default one, which belongs to every thread and is left alone: it is made again with
    its dtype written out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: _widened(value) for name, value in (kwargs or {}).items()}
        args = tuple(_widened(value) for value in args)
        if getattr(func, "__name__", "") in _NARROWING_METHODS and args and isinstance(args[0], Tensor):
            return args[0].double()
        return _computed(func, args, kwargs)


class _OperatorsInFloat64(TorchDispatchMode):
    """The same for the operators of TorchScript, which no function of Python calls."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call gives, in float64 where only torch's default dtype makes it narrower."""
    result = func(*args, **kwargs)
    if type(result) is not Tensor or result.dtype not in _WIDE:
        return result
    leaves, nesting = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if any(tensor.dtype in _WIDE or tensor is result for tensor in tensors):
        return result  # its arguments' dtype, not the default one
    wide = _WIDE[result.dtype]
    attempts = [(args, {**kwargs, "dtype": wide})]
    for integers, masks, numbers in ((True, False, False), (False, False, True), (True, True, False)):
        attempts.append(pytree.tree_unflatten([_wide(leaf, integers, masks, numbers) for leaf in leaves], nesting))
    for given, named in attempts:
        with contextlib.suppress(TypeError, RuntimeError, ValueError, NotImplementedError):
            made = func(*given, **named)
            if isinstance(made, Tensor) and made.dtype == wide and made.shape == result.shape:
                return made
    return result.to(wide)


def _wide(leaf: Any, integers: bool, masks: bool, numbers: bool) -> Any:
    """A tensor of integers or of booleans in float64, or a plain number as a float64 tensor."""
    if isinstance(leaf, Tensor):
        return leaf.double() if (masks if leaf.dtype == torch.bool else integers) else leaf
    return torch.tensor(leaf, dtype=torch.float64) if numbers and isinstance(leaf, float) else leaf


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _NARROW else value
    # x.type(torch.FloatTensor), or its name
    legacy = isinstance(value, type | str) and value in _LEGACY_NARROW
    return torch.float64 if legacy else value


@contextlib.contextmanager
def in_float64(operators: bool = False) -> Iterator[None]:
    """Run what is inside, in this thread, as if every floating dtype were float64.

    Parameters
    ----------
    operators : bool
        Whether to watch TorchScript's operators, too.
    """
    with _OperatorsInFloat64() if operators else contextlib.nullcontext(), InFloat64():
        yield
