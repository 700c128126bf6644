"""torch's private names that canonize reads, each with the versions that have it and what is done without it.

Public ways are used wherever there is one. Whatever stands here may be gone in torch's next version: the newest one is
tried by the scheduled job of the test workflow.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import _WrappedHook as WrappedHook
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = [
    "HOMES",
    "FakeTensor",
    "TorchDispatchMode",
    "WrappedHook",
    "autocast_is_on",
    "autograd_of_exports",
    "functions_kept_whole",
    "guards_of",
    "has_kernel",
    "has_tag",
    "inline",
    "new_torchscript_graph",
    "no_dispatch",
    "parse_schema",
    "pytree",
    "without_modes",
    "without_subclasses",
]

# Imported as they are, from torch 2.9 to 2.15 at least. ``TorchDispatchMode`` and ``pytree`` are what torch's own notes
# on extending it work with; a FakeTensor is what torch.export puts in a tensor's place; a ``WrappedHook`` lies in files
# of modules whose hooks were registered with keywords;

# Where torch's own functions say that they are defined: graphs and files name them so. torch 1.8 to 2.15 at least.
HOMES: dict[str, Any] = {
    "torch._C._nn": torch._C._nn,
    "torch._C._VariableFunctions": torch._C._VariableFunctions,
    **{f"torch._C._{family}": getattr(torch._C, f"_{family}") for family in ("linalg", "fft", "special")},
}


def guards_of(program: Any) -> list[str] | None:
    """Conditions on the sizes of its inputs that an exported program holds under, as torch writes them in Python.

    ``ExportedProgram._guards_code``: torch 2.9 to 2.15 at least. The public way, running ``program.module()``, checks
    them and cannot tell them. Without it (None) a graph is held to the sizes that it was captured with.
    """
    found = getattr(program, "_guards_code", None)
    return None if found is None else [str(line) for line in found]


def has_tag(overload: Any, name: str) -> bool:
    """Whether torch tags an operator so.

    ``torch.Tag`` is public; its members are not the same in all versions (``reduction`` and ``out`` are later than
    torch 2.9, where nothing is tagged so).
    """
    tag = getattr(torch.Tag, name, None)
    return tag is not None and tag in overload.tags


def has_kernel(name: str, key: str = "") -> bool:
    """Whether the dispatcher knows an operator (TorchScript has some of its own), for a key if one is given.

    ``_dispatch_has_kernel``, ``_dispatch_has_kernel_for_dispatch_key``: torch 1.8 to 2.15 at least.
    """
    if not torch._C._dispatch_has_kernel(name):
        return False
    return not key or bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def autocast_is_on() -> bool:
    """Whether the calling thread is under autocast, for whatever device.

    ``_is_any_autocast_enabled``: torch 2.4 to 2.15 at least; `torch.is_autocast_enabled` asks for one device.
    """
    asks: Callable[[], bool] | None = getattr(torch._C, "_is_any_autocast_enabled", None)
    return asks() if asks is not None else torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def without_subclasses() -> AbstractContextManager[Any]:
    """Calls take a subclass of Tensor for a tensor. ``DisableTorchFunctionSubclass``: torch 1.13 to 2.15 at least."""
    context: AbstractContextManager[Any] = torch._C.DisableTorchFunctionSubclass()
    return context


def no_dispatch() -> AbstractContextManager[Any]:
    """Past every dispatch mode of the calling thread, at no cost. ``_DisableTorchDispatch``: torch 1.13 to 2.15."""
    context: AbstractContextManager[Any] = torch._C._DisableTorchDispatch()
    return context


def autograd_of_exports() -> Any:
    """Where ``torch.export`` saves random generators. ``_functorch.aot_autograd``: torch 2.3 to 2.15 at least."""
    from torch._functorch import aot_autograd  # it brings torch's compiler with it

    return aot_autograd


def without_modes() -> AbstractContextManager[Any]:
    """Out of every dispatch mode of the calling thread. ``_disable_current_modes``: torch 2.0 to 2.15 at least."""
    context: AbstractContextManager[Any] = _disable_current_modes()
    return context


def functions_kept_whole() -> dict[Any, dict[str, Any]]:
    """What `torch.fx.wrap` keeps whole, by namespace and name; the table itself, which tracing reads.

    ``_symbolic_trace._wrapped_fns_to_patch``: torch 1.8 to 2.15 at least.
    """
    found: dict[Any, dict[str, Any]] = torch.fx._symbolic_trace._wrapped_fns_to_patch
    return found


def parse_schema(text: str) -> Any:
    """The schema that a text writes down. ``torch._C.parse_schema``: torch 1.0 to 2.15 at least."""
    return torch._C.parse_schema(text)


def new_torchscript_graph() -> Any:
    """An empty graph of TorchScript. ``torch._C.Graph``: torch 1.0 to 2.15 at least."""
    return torch._C.Graph()


def inline(graph: Any) -> None:
    """Put the functions that a TorchScript graph calls in their places. ``_jit_pass_inline``: torch 1.0 to 2.15."""
    torch._C._jit_pass_inline(graph)
