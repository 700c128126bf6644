"""A scripted module -> modules with the same names and weights, whose code is Python's to call."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from canonize.errors import CaptureError
from canonize.twins.module_tree import class_name
from canonize.twins.torchscript.program import Program, ScriptMethod

_OF_TORCH = "__torch__.torch.nn.modules."


class _Held:
    """Keeps a scripted object inside a module without being copied or registered with it."""

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        self.script = script
        self.object: Any = script._c
        self.programs: dict[str, Program] = {}

    def __deepcopy__(self, memo: Any) -> _Held:
        return self


class Scripted(nn.Module):
    """One module of a TorchScript program.

    Attributes
    ----------
    layer : str
        Name of the class where it is one of torch's own layers; empty otherwise.
    """

    def __init__(self, script: torch.jit.ScriptModule, shared: dict[int, Tensor]) -> None:
        super().__init__()
        self._held = _Held(script)
        self.layer = class_name(script) if script._c._type().qualified_name().startswith(_OF_TORCH) else ""
        for name, tensor in script._parameters.items():
            assert isinstance(tensor, Tensor)
            # Tied weights stay tied: TorchScript gives one tensor for both names.
            parameter = shared.setdefault(id(tensor), nn.Parameter(tensor.detach(), tensor.requires_grad))
            self._parameters[name] = parameter  # type: ignore[assignment]
        for name, buffer in script._buffers.items():
            self._buffers[name] = buffer
        for name, child in script._modules.items():
            assert isinstance(child, torch.jit.ScriptModule)
            self._modules[name] = _translated(child, shared)
        self.training = False

    def scripted_attribute(self, name: str) -> Any:
        """An attribute as the program reads it: a child, a tensor or a plain value."""
        if name in self._parameters or name in self._buffers or name in self._modules:
            return getattr(self, name)
        return False if name == "training" else self._own(self._held.object.getattr(name))

    def _own(self, value: Any) -> Any:
        """The module's own tensors in place of others of the same memory (the flat weights of an LSTM)."""
        if isinstance(value, list):
            return [self._own(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        tensors = (*self._parameters.items(), *self._buffers.items())
        same = (name for name, own in tensors if own is not None and _is_same(own, value))
        name = next(same, None)
        return value if name is None else getattr(self, name)

    def scripted_method(self, name: str) -> Program:
        """A method of the program, to be called with the module in front."""
        if name not in self._held.programs:
            self._held.programs[name] = Program(self._held.object._get_method(name).graph)
        return self._held.programs[name]


def _is_same(one: Tensor, other: Tensor) -> bool:
    place = one.data_ptr() == other.data_ptr() and one.storage_offset() == other.storage_offset()
    return place and one.shape == other.shape and one.stride() == other.stride() and one.dtype == other.dtype


def translated(script: torch.jit.ScriptModule) -> Scripted:
    """The modules that interpret a scripted one, in eval mode.

    Parameters
    ----------
    script : torch.jit.ScriptModule
        Never changed; its tensors are shared.

    Raises
    ------
    CaptureError
        If it has no ``forward``.
    """
    if not script._c._has_method("forward"):
        raise CaptureError("its TorchScript has no forward", class_name(script), "Script a module that has one.")
    return _translated(script, {})


def _translated(script: torch.jit.ScriptModule, shared: dict[int, Tensor]) -> Scripted:
    name = class_name(script)
    members = {"__module__": __name__, "__doc__": f"{name}, out of TorchScript.", "forward": _forward(script)}
    cls: type[Scripted] = type(name, (Scripted,), members)
    return cls(script, shared)


def _forward(script: torch.jit.ScriptModule) -> Any:
    """A ``forward`` with the signature of the scripted one."""
    if not script._c._has_method("forward"):  # an LSTM has two of other names: for packed sequences and for tensors

        def other(self: Scripted, method: ScriptMethod, *args: Any) -> Any:
            return self.scripted_method(method.name)(self, *args)

        return other
    arguments = script._c._get_method("forward").schema.arguments
    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    defaults = [a.default_value if a.has_default_value() else empty for a in arguments]
    signature = inspect.Signature(
        [inspect.Parameter(a.name, kind, default=value) for a, value in zip(arguments, defaults, strict=True)]
    )

    def forward(self: Scripted, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], ScriptMethod):
            return self.scripted_method(args[0].name)(self, *args[1:])
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        return self.scripted_method("forward")(*bound.arguments.values())

    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward
