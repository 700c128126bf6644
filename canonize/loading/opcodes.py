"""What a pickle would call, found out without calling anything.

torch's weights-only unpickler lets a file call whatever is on its list. A class is on it so that an instance can be
made and filled, which is what pickled modules do; calling it with arguments of the file's choosing would run its
constructor. Here the pickle is followed with names in place of objects, and only calls that ``torch.save`` writes are
let through.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from canonize.errors import LoadError

# Calls by which a few bytes of file ask for any amount of memory, or for memory that nothing has filled.
_SIZED = {"builtins.bytearray", "torch.Tensor", "torch.nn.parameter.Parameter"}
_PUSH = {
    "NONE": lambda arg: None, "NEWTRUE": lambda arg: True, "NEWFALSE": lambda arg: False, "EMPTY_TUPLE": lambda arg: (),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), lambda arg: _Container()),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"), lambda arg: arg
    ),
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STORES = {"APPEND": 1, "SETITEM": 2}


class _Name(str):
    """A class or function that the file names."""


class _Container:
    """A list, dictionary or set; nothing depends on what is in it."""


class _Made:
    """What a call would have given."""


def follow(stream: IO[bytes], is_module: Callable[[str], bool], path: Path) -> None:
    """Follow one pickle, and refuse what no ``torch.save`` writes.

    Parameters
    ----------
    stream : binary file
        At the start of a pickle; left behind its end.
    is_module : callable
        Whether a dotted name is that of a module class: these are made without arguments and never called.
    path : Path
        For the message.

    Raises
    ------
    LoadError
        With the name concerned.
    """
    machine = _Machine(is_module, path)
    try:
        for operation, argument, _ in pickletools.genops(stream):
            machine.step(operation.name, argument)
    except (ValueError, IndexError, KeyError, MemoryError, OverflowError) as error:
        raise LoadError(
            f"cannot be read; it is damaged or no model file ({error or type(error).__name__})",
            where=str(path),
            hint="Save or download it again",
        ) from error


class _Machine:
    def __init__(self, is_module: Callable[[str], bool], path: Path) -> None:
        self.is_module, self.path = is_module, path
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in ("PROTO", "STOP"):
            return
        if name in _PUSH:
            self.stack.append(_PUSH[name](argument))
        elif name == "GLOBAL":
            self.stack.append(_Name(_modern(argument)))
        elif name == "MARK":
            self.marks.append(self.stack)
            self.stack = []
        elif name == "TUPLE":
            items = tuple(self._marked())
            self.stack.append(items)
        elif name in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[name])))
        elif name in ("APPENDS", "SETITEMS"):
            self._marked()
        elif name in _STORES:
            self._pop(_STORES[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "BINPERSID":
            self._pop(1)
            self.stack.append(_Made())
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            self._called(function, arguments)
            self.stack.append(_Made())
        elif name == "NEWOBJ":
            cls, arguments = self._pop(2)
            self._made(cls, arguments)
            self.stack.append(_Made())
        elif name == "BUILD":
            self._pop(1)
        else:
            raise self._refusal(f"holds a pickle with {name}, which torch.save does not write")

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _called(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, _Name):
            raise self._refusal("calls something that it has made itself")
        if self.is_module(function):
            raise self._refusal(f"calls {function}, where a pickled module is made without a call")
        sized = function in _SIZED or function.endswith("Storage")
        if sized and isinstance(arguments, tuple) and any(isinstance(a, int) for a in arguments):
            raise self._refusal(f"asks {function} for memory of its own choosing")

    def _made(self, cls: Any, arguments: Any) -> None:
        if not isinstance(cls, _Name):
            raise self._refusal("makes an instance of something that it has made itself")
        if self.is_module(cls) and arguments != ():
            raise self._refusal(f"makes a {cls} from arguments, where a pickled module has none")
        if cls in _SIZED or cls.endswith(("Tensor", "Storage")):
            raise self._refusal(f"makes a {cls} of its own choosing")

    def _refusal(self, what: str) -> LoadError:
        return LoadError(
            what,
            where=str(self.path),
            hint="No torch.save writes this; get the file from where you trust it, or use --trust if you made it",
        )


def _modern(argument: str) -> str:
    """The dotted name behind a GLOBAL, in the spelling of Python 3, as torch's unpickler reads it."""
    module, _, name = argument.partition(" ")
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[(module, name)]
    else:
        module = IMPORT_MAPPING.get(module, module)
    return f"{module}.{name}"
