"""Output shapes of the most common operations by arithmetic: a run on meta tensors costs up to milliseconds each.

Whatever is not plainly covered here is left to that run.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canonize.nn import ChannelPad, Concat, Gate, Sum

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_POOLINGS = {
    nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3, nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3,
}  # fmt: skip
_ADAPTIVE = {nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3}
_ELEMENTWISE: frozenset[Any] = frozenset(
    {operator.add, operator.sub, operator.mul, torch.add, torch.sub, torch.mul, Sum, Gate}
)


# Modules whose output has the shape and dtype of their input.
KEEP_SHAPE = (
    nn.BatchNorm2d, nn.BatchNorm3d, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.Sigmoid, nn.GELU, nn.Hardswish,
    nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Identity, nn.Dropout, nn.Dropout2d,
)  # fmt: skip


def output_of(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The meta tensor that an operation makes of meta tensors; ``None`` where no rule says it.

    Parameters
    ----------
    operation : nn.Module or callable
    args, kwargs
        Its arguments.
    """
    kind = type(operation) if isinstance(operation, nn.Module) else operation
    try:
        rule = _RULES.get(kind)
    except TypeError:  # a callable without a hash
        return None
    if rule is None or not args:
        return None
    if kwargs and (operation is not F.batch_norm or kwargs.get("training")):
        return None
    shape = rule(operation, args)
    first = args[0][0] if isinstance(args[0], list | tuple) else args[0]
    return None if shape is None else torch.empty(shape, dtype=first.dtype, device="meta")


def fixed_dims(module: Any, given: Sequence[int], made: Sequence[int], of_input: Callable[[], set[int]]) -> set[int]:
    """Dimensions of a layer's output that have the same size for every input that the layer takes.

    Parameters
    ----------
    module : nn.Module
    given, made : sequence of int
        Shapes of an input and of its output.
    of_input : callable
        Gives those of the input, where they matter.
    """
    kind: Any = type(module)
    dims = _CONVOLUTIONS.get(kind) or _POOLINGS.get(kind) or _ADAPTIVE.get(kind)
    if dims is not None and not len(given) == len(made) == dims + 2:
        return set()
    if kind in _CONVOLUTIONS:
        return {1}
    if kind is nn.Linear:
        return {len(made) - 1}
    if kind in _POOLINGS:
        return of_input() & {0, 1}
    if kind in _ADAPTIVE:
        wanted = _pair(module.output_size, len(made) - 2)
        return (of_input() & {0, 1}) | {2 + i for i, size in enumerate(wanted) if size is not None}
    if isinstance(module, nn.Flatten):
        behind = set(range(1, len(given)))
        return {1} if (module.start_dim, module.end_dim) == (1, -1) and behind and behind <= of_input() else set()
    return of_input() if isinstance(module, KEEP_SHAPE) and tuple(given) == tuple(made) else set()


def _pair(value: Any, dims: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * dims


def _windows(sizes: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[int] | None:
    dims = len(sizes)
    found = []
    for size, k, s, p, d in zip(
        sizes, _pair(kernel, dims), _pair(stride, dims), _pair(padding, dims), _pair(dilation, dims), strict=True
    ):
        count = (size + 2 * p - d * (k - 1) - 1) // s + 1
        if count < 1:
            return None
        found.append(count)
    return found


def _convolution(module: Any, args: tuple[Any, ...]) -> Sequence[int] | None:
    (x,) = args
    if (
        isinstance(module.padding, str)
        or x.dim() != _CONVOLUTIONS[type(module)] + 2
        or x.shape[1] != module.in_channels
    ):
        return None
    sizes = _windows(x.shape[2:], module.kernel_size, module.stride, module.padding, module.dilation)
    return None if sizes is None else (x.shape[0], module.out_channels, *sizes)


def _pooling(module: Any, args: tuple[Any, ...]) -> Sequence[int] | None:
    (x,) = args
    if module.ceil_mode or getattr(module, "return_indices", False) or x.dim() != _POOLINGS[type(module)] + 2:
        return None
    sizes = _windows(x.shape[2:], module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1))
    return None if sizes is None else (*x.shape[:2], *sizes)


def _adaptive(module: Any, args: tuple[Any, ...]) -> Sequence[int] | None:
    (x,) = args
    dims = _ADAPTIVE[type(module)]
    if x.dim() != dims + 2:
        return None
    wanted = _pair(module.output_size, dims)
    return (*x.shape[:2], *(size if out is None else out for size, out in zip(x.shape[2:], wanted, strict=True)))


def _dense(module: Any, args: tuple[Any, ...]) -> Sequence[int] | None:
    (x,) = args
    return (*x.shape[:-1], module.out_features) if x.dim() and x.shape[-1] == module.in_features else None


def _flatten(module: Any, args: tuple[Any, ...]) -> Sequence[int] | None:
    (x,) = args
    return (x.shape[0], x[:1].numel()) if (module.start_dim, module.end_dim) == (1, -1) and x.dim() > 1 else None


def _concatenation(tensors: Sequence[Any], dim: Any) -> Sequence[int] | None:
    first = tensors[0]
    if not isinstance(dim, int) or not all(isinstance(t, Tensor) and t.dim() == first.dim() for t in tensors):
        return None
    if len({t.dtype for t in tensors}) > 1 or not -first.dim() <= dim < first.dim():
        return None
    dim %= first.dim()
    shape = list(first.shape)
    for other in tensors[1:]:
        if any(a != b for i, (a, b) in enumerate(zip(first.shape, other.shape, strict=True)) if i != dim):
            return None
        shape[dim] += other.shape[dim]
    return shape


def _concat_module(module: Any, args: tuple[Any, ...]) -> Sequence[int] | None:
    return _concatenation(args, module.dim)


def _concat_function(_: Any, args: tuple[Any, ...]) -> Sequence[int] | None:
    if not isinstance(args[0], list | tuple) or not args[0] or len(args) > 2:
        return None
    return _concatenation(args[0], args[1] if len(args) == 2 else 0)


def _elementwise(_: Any, args: tuple[Any, ...]) -> Sequence[int] | None:
    first = args[0]
    alike = (isinstance(t, Tensor) and t.shape == first.shape and t.dtype == first.dtype for t in args)
    return first.shape if isinstance(first, Tensor) and all(alike) else None


def _batch_norm(_: Any, args: tuple[Any, ...]) -> Sequence[int] | None:
    x, mean = args[0], args[1] if len(args) > 1 else None
    fits = isinstance(mean, Tensor) and x.dim() > 1 and tuple(mean.shape) == (x.shape[1],) and mean.dtype == x.dtype
    return x.shape if fits and not (len(args) > 5 and args[5]) else None


def _batch_norm_1d(module: Any, args: tuple[Any, ...]) -> Sequence[int] | None:
    (x,) = args
    return x.shape if x.dim() in (2, 3) and x.shape[1] == module.num_features else None


def _padding(module: Any, args: tuple[Any, ...]) -> Sequence[int] | None:
    if len(args) != 1 or not all(isinstance(amount, int) for amount in module.padding):
        return None
    shape = list(args[0].shape)
    for i, amount in enumerate(module.padding):
        shape[len(shape) - 1 - i // 2] += amount
    return shape if all(size > 0 for size in shape) else None


_Rule = Callable[[Any, tuple[Any, ...]], "Sequence[int] | None"]
_RULES: dict[Any, _Rule] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_POOLINGS, _pooling),
    **dict.fromkeys(_ADAPTIVE, _adaptive),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    nn.Linear: _dense,
    nn.Flatten: _flatten,
    Concat: _concat_module,
    torch.cat: _concat_function,
    F.batch_norm: _batch_norm,
    nn.BatchNorm1d: _batch_norm_1d,
    ChannelPad: _padding,
}
