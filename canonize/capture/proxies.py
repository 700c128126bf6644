"""Proxies that answer what a model asks of its values: their kind, their attributes, their length, their sizes.

A wrong answer would be silent: the trace would take a way that the model does not take.
"""

from __future__ import annotations

import builtins
import contextlib
import math
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.proxy import Attribute

from canonize.compat.private import FakeTensor
from canonize.graph.shapes import Unknown

# One trace at a time: what is replaced meanwhile is everybody's.
TRACING = threading.RLock()
# Attributes of what is no tensor: limits of a dtype, fields of a device.
_BESIDE_TENSORS = {"eps", "tiny", "smallest_normal", "bits", "index"}
# Attributes that are compared by their names.
_NAMED = {"dtype", "device", "type", "layout"}


@contextlib.contextmanager
def untraced(tracer: Any) -> Iterator[None]:
    """Run modules for real in the middle of a trace."""
    before, tracer.at_rest = tracer.at_rest, True
    try:
        yield
    finally:
        tracer.at_rest = before


class _Sized:
    """What Python may ask a proxy: its length, its items, its attributes, its value as a number."""

    def __getattr__(self, name: str) -> Any:
        proxy: Any = self
        if name.startswith("__array_"):  # a size is no array to NumPy, but a number
            raise AttributeError(name)
        if not hasattr(Tensor, name) and name not in _BESIDE_TENSORS:
            with untraced(proxy.tracer):
                value = proxy.tracer.value_of(proxy.node)
            if value is not Unknown and not hasattr(value, name):
                raise AttributeError(f"{type(value).__name__} has no attribute {name}")
        if name == "requires_grad":
            proxy.tracer.asks_for_gradients = True
        return SizedAttribute(proxy, name)

    # As a tensor's: NumPy's scalars leave arithmetic to it.
    __array_priority__ = 1000

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        # NumPy computes with sizes as with the numbers that they are; what it makes of them is a constant.
        import numpy

        return numpy.asarray(_plain(self), dtype=dtype)

    def __hash__(self) -> int:
        # Looked up in a table or a set: sizes, dtypes and the like are found by what they are.
        proxy: Any = self
        if not _asked_by_the_model() or proxy.tracer.is_tensor(proxy.node):
            return object.__hash__(self)
        return hash(_plain(proxy))

    def __str__(self) -> str:
        return str(self._shown())

    def __format__(self, spec: str) -> str:
        return format(self._shown(), spec)

    def _shown(self) -> str:
        """What stands in a text. Most texts are messages, for which nothing is worked out; names of dtypes are not."""
        proxy: Any = self
        if _asked_by_the_model(3) and proxy.tracer.is_tensor(proxy.node):
            proxy.tracer.told = True  # whoever reads the text reads values
        named = type(self) is SizedAttribute and proxy.attr in _NAMED
        return str(_plain(proxy)) if named and _asked_by_the_model(3) else repr(self)

    def __ceil__(self) -> Any:
        proxy: Any = self
        return proxy.tracer.create_proxy("call_function", math.ceil, (proxy,), {})

    def __floor__(self) -> Any:
        proxy: Any = self
        return proxy.tracer.create_proxy("call_function", math.floor, (proxy,), {})

    def __round__(self, *digits: Any) -> Any:
        proxy: Any = self
        return proxy.tracer.create_proxy("call_function", round, (proxy, *digits), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        # The call writes into its first argument; ``functionalize`` makes everybody behind it read the result instead.
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __len__(self) -> int:
        # Asked by Python itself; where a forward asks, `truthful_questions` keeps the length of a tensor free.
        proxy: Any = self
        with untraced(proxy.tracer):
            value = proxy.tracer.value_of(proxy.node)
        if isinstance(value, Tensor):
            return int(_plain(proxy.tracer.create_proxy("call_method", "size", (proxy, 0), {})))
        if not isinstance(value, tuple | list):
            raise proxy.tracer.failed(f"{proxy.node.name} has no length while tracing")
        return int(proxy.tracer.count_of(proxy.node, value))

    def __index__(self) -> int:
        return operator.index(_plain(self))

    def __int__(self) -> int:
        return int(_plain(self))

    def __float__(self) -> float:
        return float(_plain(self))


def _writing(name: str) -> Callable[[Any, Any], Any]:
    """What ``x += y`` does: it writes into a tensor, which others may know by another name; a number it replaces."""
    written, pure = getattr(operator, f"i{name}"), getattr(operator, f"__{name}__")

    def method(self: Any, other: Any) -> Any:
        operation = written if self.tracer.is_tensor(self.node) else pure
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul"):
    setattr(_Sized, f"__i{_name}__", _writing(_name))


class SizedProxy(_Sized, fx.Proxy):
    """A value of the graph."""


class SizedAttribute(_Sized, Attribute):
    """An attribute of a value (``x.shape``)."""


def _plain(proxy: Any) -> Any:
    return proxy.tracer.decide(proxy.node)


@contextlib.contextmanager
def symbolic_lengths() -> Iterator[None]:
    """Let ``len`` in a model's code give the number of rows of a tensor without values as the symbol that it is."""
    length = builtins.len

    def length_of(value: Any) -> Any:
        if type(value) is not FakeTensor or not value.ndim or not _asked_by_the_model():
            return length(value)
        return value.shape[0]

    with TRACING:
        builtins.len = length_of
        try:
            yield
        finally:
            builtins.len = length


def _asked_by_the_model(depth: int = 2) -> bool:
    """Whether the code that asks a proxy is a model's own, not torch's or canonize's."""
    module = str(sys._getframe(depth).f_globals.get("__name__", ""))
    return module.partition(".")[0] not in ("torch", "canonize")


@contextlib.contextmanager
def truthful_questions() -> Iterator[None]:
    """Let ``isinstance``, ``len`` and ``torch.is_tensor`` say of a proxy in a model's code what they say of its value.

    Their answer decides which way a forward takes, and no error would tell that it was wrong. The class of a proxy
    cannot lie instead: torch's C++ code asks for it, too.
    """
    real, is_tensor, check, length = builtins.isinstance, torch.is_tensor, torch._check, builtins.len
    proxies = (SizedProxy, SizedAttribute)

    def truthful(value: Any, classes: Any) -> bool:
        if type(value) not in proxies or not _asked_by_the_model():
            return real(value, classes)
        with untraced(value.tracer):
            known = value.tracer.value_of(value.node)
        return real(value, classes) or (known is not Unknown and real(known, classes))

    def says_tensor(value: Any) -> bool:
        return value.tracer.is_tensor(value.node) if type(value) in proxies else is_tensor(value)

    def length_of(value: Any) -> Any:
        if type(value) not in proxies or not _asked_by_the_model():
            return length(value)
        with untraced(value.tracer):
            known = value.tracer.value_of(value.node)
        if not real(known, Tensor):
            return length(value)
        return value.tracer.create_proxy("call_method", "size", (value, 0), {})  # the number of rows stays free

    def checks(condition: Any, *message: Any) -> None:
        if type(condition) not in proxies:  # assertions on values are not part of the function
            check(condition, *message)

    builtins.isinstance, torch.is_tensor, torch._check = truthful, says_tensor, checks  # type: ignore[assignment]
    builtins.len = length_of
    try:
        yield
    finally:
        builtins.isinstance, torch.is_tensor, torch._check = real, is_tensor, check
        builtins.len = length
