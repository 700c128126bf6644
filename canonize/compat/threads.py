"""What is the whole process's, changed for the calling thread alone: warnings, printing, functions of other libraries.

Python's filters of warnings, ``sys.stdout`` and the functions of a module belong to every thread. A context that sets
them and sets them back changes what other threads see meanwhile, and two that overlap leave the first one's behind.
What stands here asks which thread is asking instead.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from canonize.compat.private import autograd_of_exports

_LOCK = threading.Lock()


class _Here:
    """The one filter of warnings that matches whatever the thread that made it warns of, until it is told to stop."""

    def __init__(self) -> None:
        self.thread: int | None = threading.get_ident()

    def match(self, text: str) -> bool:
        return self.thread == threading.get_ident()


class _Heard(logging.Filter):
    """Drops the records of the thread that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.thread: int | None = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self.thread


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Ignore the warnings of this thread; other threads' filters stay as they are."""
    here = _Here()
    row: Any = ("ignore", here, Warning, None, 0)
    warnings.filters.insert(0, row)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        here.thread = None  # a copy of the list that another thread has made keeps it: it matches nothing any more
        with contextlib.suppress(ValueError):
            warnings.filters.remove(row)  # type: ignore[attr-defined]


@contextlib.contextmanager
def no_logging() -> Iterator[None]:
    """Drop what this thread logs through torch's loggers and the root's."""
    heard = _Heard()
    handlers = [handler for name in ("torch", None) for handler in logging.getLogger(name).handlers]
    if logging.lastResort is not None:
        handlers.append(logging.lastResort)
    for handler in handlers:
        handler.addFilter(heard)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(heard)


class _Stream:
    """A stream that passes on what other threads write."""

    def __init__(self, below: Any) -> None:
        self.below = below
        self.silent: list[int] = []

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() in self.silent else int(self.below.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


@contextlib.contextmanager
def no_printing(name: str) -> Iterator[None]:
    """Drop what this thread writes to ``sys.stdout`` or ``sys.stderr``.

    Parameters
    ----------
    name : {"stdout", "stderr"}
    """
    me = threading.get_ident()
    with _LOCK:
        current = getattr(sys, name)
        stream = current if type(current) is _Stream else _Stream(current)
        stream.silent.append(me)
        setattr(sys, name, stream)
    try:
        yield
    finally:
        with _LOCK:
            stream.silent.remove(me)
            if not stream.silent and getattr(sys, name) is stream:
                setattr(sys, name, stream.below)


class Replaced:
    """A function of a module, replaced for the calling thread: every other thread calls what was there.

    Parameters
    ----------
    namespace : Any
        The module.
    name : str
        Of the function.
    replacement : callable
        What the calling thread finds inside.
    """

    def __init__(self, namespace: Any, name: str, replacement: Callable[..., Any]) -> None:
        self._namespace, self._name, self._replacement = namespace, name, replacement

    def __enter__(self) -> None:
        with _LOCK:
            current = getattr(self._namespace, self._name)
            table = getattr(current, "_canonize_threads", None)
            if table is None:
                table = {}
                setattr(self._namespace, self._name, _asking(current, table))
            table.setdefault(threading.get_ident(), []).append(self._replacement)

    def __exit__(self, *_: object) -> None:
        with _LOCK:
            current = getattr(self._namespace, self._name)
            table = getattr(current, "_canonize_threads", {})
            mine = table.get(threading.get_ident())
            if mine:
                mine.pop()
                if not mine:
                    del table[threading.get_ident()]
            if not table and hasattr(current, "_canonize_original"):
                setattr(self._namespace, self._name, current._canonize_original)


def _asking(original: Callable[..., Any], table: dict[int, list[Callable[..., Any]]]) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        mine = table.get(threading.get_ident())
        return (mine[-1] if mine else original)(*args, **kwargs)

    found: Any = function
    found._canonize_threads, found._canonize_original = table, original
    return function


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Around ``torch.export``: it says nothing, and does not set the global random generator back.

    Ahead-of-time autograd saves the generator's state and restores it at the end, so that tracing draws nothing. On
    fake tensors nothing is drawn; but the numbers that other threads have drawn meanwhile would come a second time.
    """
    with contextlib.ExitStack() as stack:
        aot_autograd = autograd_of_exports()
        if hasattr(aot_autograd, "preserve_rng_state"):  # torch 2.3 to 2.15 at least
            stack.enter_context(Replaced(aot_autograd, "preserve_rng_state", contextlib.nullcontext))
        stack.enter_context(no_warnings())
        stack.enter_context(no_logging())
        stack.enter_context(no_printing("stderr"))
        yield
