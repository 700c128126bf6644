"""Functions that do not see that an argument is a proxy, while a model is traced: they record a call instead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

# Functions that make a tensor from sizes, and do not look whether a size is a proxy.
_FACTORIES = (
    *("zeros", "ones", "full", "empty", "arange", "linspace", "eye", "rand", "randn", "as_tensor", "tensor"),
    *("finfo", "iinfo"),
)
# Functions that look into their arguments.
_SEQUENCES = ("pack_padded_sequence", "pad_packed_sequence", "pack_sequence", "pad_sequence")


def sequence_functions() -> dict[str, Callable[..., Any]]:
    """Those of ``torch.nn.utils.rnn`` that look into their arguments, by name."""
    from torch.nn.utils import rnn

    return {name: getattr(rnn, name) for name in _SEQUENCES}


def factory_functions() -> dict[str, Callable[..., Any]]:
    """Those of ``torch`` that take sizes and dtypes, by name."""
    return {name: getattr(torch, name) for name in _FACTORIES}


class PatchedModule:
    """Replace functions in a namespace by versions that record a call when handed a proxy."""

    def __init__(self, namespace: Any, functions: dict[str, Callable[..., Any]]) -> None:
        self.namespace, self.functions = namespace, functions

    def __enter__(self) -> None:
        for name, function in self.functions.items():
            setattr(self.namespace, name, _recording(function))

    def __exit__(self, *_: object) -> None:
        for name, function in self.functions.items():
            setattr(self.namespace, name, function)


@contextlib.contextmanager
def recorded_autograd_functions() -> Iterator[None]:
    """Keep calls of custom autograd functions whole: their backward is not in their forward."""
    base = torch.autograd.Function
    original = base.__dict__["apply"]

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        real = original.__get__(None, cls)
        own = not cls.__module__.startswith("torch.")  # torch's (checkpointing) only wrap what is to be traced
        for value in (*args, *kwargs.values()):
            if own and isinstance(value, fx.Proxy):
                return value.tracer.create_proxy("call_function", real, args, kwargs)
        return real(*args, **kwargs)

    base.apply = classmethod(apply)  # type: ignore[assignment]
    try:
        yield
    finally:
        base.apply = original  # type: ignore[method-assign]


def _recording(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, fx.Proxy):
                return value.tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return wrapper
