"""Symbols and tiny layers on them, to prove the patterns' identities for every number at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy

# Scales that are positive and negative, and numbers of any sign.
up, down = sympy.Symbol("s_up", positive=True), sympy.Symbol("s_down", negative=True)
s, t, x, b = sympy.symbols("s t x b", real=True)
# A distance: every real number is z, z + d or z - d.
d = sympy.Symbol("d", positive=True)


def numbers(name: str, count: int) -> list[sympy.Symbol]:
    """`count` real symbols."""
    return [sympy.Symbol(f"{name}{index}", real=True) for index in range(count)]


def is_zero(expression: Any) -> bool:
    """Whether an expression vanishes whatever its symbols are."""
    return sympy.simplify(sympy.expand(expression)) == 0


def around(kink: Any) -> tuple[Any, Any, Any]:
    """A value on either side of a kink, and the kink."""
    return kink + d, kink - d, kink


def relu(value: Any) -> Any:
    """max(value, 0)."""
    return sympy.Max(sympy.simplify(value), 0)


def leaky(value: Any, slope: Any) -> Any:
    """`value` where it is positive, else `slope` times it."""
    value = sympy.simplify(value)
    return value if value.is_positive else slope * value if value.is_negative else sympy.S.Zero


def convolution(
    signal: Sequence[Any], kernel: Sequence[Any], bias: Any = 0, padding: int = 0, value: Any = 0
) -> list[Any]:
    """One channel, one dimension, cross-correlation as in torch."""
    padded = [value] * padding + list(signal) + [value] * padding
    size = len(kernel)
    return [
        sum(k * p for k, p in zip(kernel, padded[i : i + size], strict=True)) + bias
        for i in range(len(padded) - size + 1)
    ]


def transposed_convolution(
    signal: Sequence[Any], kernel: Sequence[Any], bias: Any = 0, padding: int = 0, stride: int = 1
) -> list[Any]:
    """One channel, one dimension; `padding` crops the output, as in torch."""
    size = (len(signal) - 1) * stride + len(kernel)
    output = [sympy.S(bias)] * size
    for i, value in enumerate(signal):
        for j, k in enumerate(kernel):
            output[i * stride + j] += k * value
    return output[padding : size - padding]
