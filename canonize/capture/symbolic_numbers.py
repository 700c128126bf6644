"""``int(size)`` and ``float(size)`` in a model's code: Python wants a plain number from them, a trace has a symbol.

``__int__`` must give an ``int``, so a proxy that is asked cannot stay what it is: the size would be fixed to that of
the example. Here the two names give a symbol for a symbol while a model is traced, in the modules that define its
forwards and nowhere else; code there that uses the names in another way (``type(n) is int``) keeps Python's own.
"""

from __future__ import annotations

import contextlib
import dis
import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import torch
from torch import nn

from canonize.capture.proxies import SizedAttribute, SizedProxy, untraced
from canonize.graph.shapes import Unknown

_PROXIES = (SizedProxy, SizedAttribute)
# Classes in classes and tables in tables that are looked through for functions.
_DEEPEST = 3
_SYMBOLS = {int: torch.sym_int, float: torch.sym_float}


@contextlib.contextmanager
def symbolic_numbers(root: nn.Module) -> Iterator[None]:
    """Let ``int`` and ``float`` in the code of a model keep sizes free; to be entered by one trace at a time."""
    replaced: list[tuple[dict[str, Any], str]] = []
    try:
        for namespace in _namespaces(root):
            for kind in _SYMBOLS:
                name = kind.__name__
                if name not in namespace and _is_only_called(namespace, name):
                    namespace[name] = _keeping(kind)
                    replaced.append((namespace, name))
        yield
    finally:
        for namespace, name in replaced:
            del namespace[name]


def _namespaces(root: nn.Module) -> list[dict[str, Any]]:
    """The globals of the forwards, each once; not those of torch's layers."""
    found: dict[int, dict[str, Any]] = {}
    for kind in {type(module) for module in root.modules()}:
        forward = inspect.unwrap(kind.forward)
        namespace = getattr(forward, "__globals__", {})
        if str(namespace.get("__name__", "torch")).partition(".")[0] not in ("torch", "canonize"):
            found[id(namespace)] = namespace
    return list(found.values())


def _is_only_called(namespace: dict[str, Any], name: str) -> bool:
    """Whether the code of a module calls a name somewhere, and does nothing else with it."""
    if sys.version_info < (3, 11):  # bytecode does not tell there what is called
        return False
    uses = [called for code in _codes(namespace) for called in _uses(code, name)]
    return bool(uses) and all(uses)


def _codes(namespace: dict[str, Any]) -> Iterator[CodeType]:
    """Of the functions of a module and of the methods of its classes, and of what is defined in these."""
    waiting = [code for value in list(namespace.values()) for code in _held(value, namespace)]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _held(value: Any, namespace: dict[str, Any], depth: int = 0) -> Iterator[CodeType]:
    """The code of a function that reads these globals, or of those in a class or a container."""
    if isinstance(value, type | dict | list | tuple):
        items = (
            vars(value).values() if isinstance(value, type) else value.values() if isinstance(value, dict) else value
        )
        own = not isinstance(value, type) or value.__module__ == namespace.get("__name__")
        for item in list(items) if own and depth < _DEEPEST else ():
            yield from _held(item, namespace, depth + 1)
        return
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    value = inspect.unwrap(value) if inspect.isfunction(value) else value
    if inspect.isfunction(value) and value.__globals__ is namespace:
        yield value.__code__


def _uses(code: CodeType, name: str) -> Iterator[bool]:
    """For each time that code looks a global name up, whether to call it."""
    if name not in code.co_names:
        return
    for step in dis.get_instructions(code):
        if step.argval == name and step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield step.opname == "LOAD_GLOBAL" and bool((step.arg or 0) & 1)


def _keeping(kind: type) -> Callable[..., Any]:
    """``int`` or ``float``, of a symbol a symbol."""

    def number(*args: Any, **kwargs: Any) -> Any:
        value: Any = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(value, torch.SymInt | torch.SymFloat):
            return _SYMBOLS[kind](value)
        if type(value) not in _PROXIES:
            return kind(*args, **kwargs)
        with untraced(value.tracer):
            known = value.tracer.value_of(value.node)
        if known is Unknown or type(known) not in (int, float):
            return kind(value)
        return value if type(known) is kind else value.tracer.create_proxy("call_function", kind, (value,), {})

    return number
