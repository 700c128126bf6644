"""Random numbers that a model's forward draws while somebody else runs it come from generators of their own.

The global generator is the whole process's: setting it back after a forward would let other threads draw their numbers
twice. So it is neither asked nor set.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from canonize.compat.private import TorchDispatchMode, pytree

_SEED = 0


class Streams:
    """A generator for each device, made when first asked for; it goes on from draw to draw."""

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}

    def on(self, device: torch.device) -> torch.Generator | None:
        """The generator, or None on devices that draw nothing."""
        if device.type == "meta":
            return None
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(_SEED)
        return self._generators[device]


class PrivateRandom(TorchDispatchMode):
    """Inside, what this thread draws without naming a generator comes from `streams`.

    The few operators that take no generator (fused dropout on a GPU) draw from the global one, as ever.

    Parameters
    ----------
    streams : Streams, optional

    Attributes
    ----------
    drew : bool
        Whether anything was drawn.
    """

    supports_higher_order_operators = True

    def __init__(self, streams: Streams | None = None) -> None:
        super().__init__()
        self._streams = streams or Streams()
        self.drew = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()):
            self.drew = True
            taking = _with_generator(func)
            if taking is not None and kwargs.get("generator") is None:
                generator = self._streams.on(_device(args, kwargs))
                if generator is not None:
                    return taking(*args, **{**kwargs, "generator": generator})
        return func(*args, **kwargs)


@functools.lru_cache(maxsize=512)
def _with_generator(func: Any) -> Any:
    """The overload of an operator that takes a generator beside what this one takes."""
    own = [argument.name for argument in func._schema.arguments]
    if "generator" in own:
        return func
    packet = func.overloadpacket
    for name in packet.overloads():
        other = getattr(packet, name)
        names = [argument.name for argument in other._schema.arguments]
        if "generator" in names and [n for n in names if n != "generator"] == own:
            return other
    return None


def _device(args: Any, kwargs: dict[str, Any]) -> torch.device:
    tensor = next((leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    return torch.device("cpu") if tensor is None else tensor.device
