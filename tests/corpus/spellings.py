"""The ways in which one sample of an operator can be called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from canonize.vocabulary import resolve_call
from canonize.vocabulary.binding import signature

Function = Callable[..., Any]


@dataclass(frozen=True)
class Spelling:
    """One way to make a call.

    Attributes
    ----------
    kind : str
        ``function``, ``method``, ``in place``, ``operator``, ``keywords``, ``axis``, ``packet``, ``overload``.
    call : callable
        Takes the sample's input, then its arguments.
    """

    kind: str
    call: Function


def spellings_of(op: Any, sample: Any) -> Iterator[Spelling]:
    """Those that an ``OpInfo`` has for a sample."""
    input, args, kwargs = sample.input, tuple(sample.args), dict(sample.kwargs)
    yield Spelling("function", op.op)
    if not isinstance(input, Tensor):
        return
    method = getattr(op.method_variant, "__name__", None)
    if method is not None:
        yield Spelling("method", _method(method))
    in_place = getattr(op.inplace_variant, "__name__", None)
    if in_place is not None and in_place.endswith("_") and hasattr(torch.Tensor, in_place):
        yield Spelling("in place", _method(in_place))
    if op.operator_variant is not None:
        yield Spelling("operator", op.operator_variant)
    if op.inplace_operator_variant is not None:
        yield Spelling("in-place operator", op.inplace_operator_variant)
    target = op.op if not inspect.isfunction(op.op) or op.op.__name__ != "<lambda>" else None
    found = None
    if target is not None:
        found = resolve_call(target, (input, *args), kwargs, is_tensor=lambda value: isinstance(value, Tensor))
    if found is not None and found.overload is not None and not op.name.startswith(("linalg", "fft")):
        known = signature(target) if inspect.isfunction(target) else None
        names = list(known.parameters) if known else [argument.name for argument in found.overload._schema.arguments]
        if len(names) > len(args):
            yield Spelling("keywords", _keywords(target, names[1 : len(args) + 1]))
    if "dim" in kwargs:
        yield Spelling("axis", _axis(target or op.op))
    packet = getattr(torch.ops.aten, op.aten_name, None)
    if packet is not None:
        yield Spelling("packet", packet)
        bound = resolve_call(packet, (input, *args), kwargs, is_tensor=lambda value: isinstance(value, Tensor))
        if bound is not None and bound.overload is not None:
            yield Spelling("overload", bound.overload)


def _method(name: str) -> Function:
    return lambda input, *args, **kwargs: getattr(input, name)(*args, **kwargs)


def _keywords(function: Function, names: list[str]) -> Function:
    return lambda input, *args, **kwargs: function(input, **dict(zip(names, args, strict=False)), **kwargs)


def _axis(function: Function) -> Function:
    def call(input: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs = dict(kwargs)
        return function(input, *args, axis=kwargs.pop("dim"), **kwargs)

    return call
