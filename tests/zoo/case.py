"""What one small hard model is, and the few helpers that keep their definitions short."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.statistics import harden


@dataclass(frozen=True)
class Case:
    """One small hard model.

    Attributes
    ----------
    name : str
        Unique, says what is hard about it.
    build : callable
        Makes the bare model; :meth:`model` is what tests want.
    inputs : callable
        Batch size to arguments: a tuple, or ``(args, kwargs)``; draws from torch's global generator.
    batch_norms : int
        Batch norm operators that must be left in one forward after canonizing.
    why : str
        Why they are left; empty where `batch_norms` is 0.
    themes : tuple of str
        What the case is about.
    training : bool
        Hand the model over in training mode.
    hardening : dict
        Keyword arguments of :func:`tests.statistics.harden`.
    draw : int
        Another draw of parameters, where the first one leaves nothing of the input.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    batch_norms: int = 0
    why: str = ""
    themes: tuple[str, ...] = ()
    training: bool = False
    hardening: dict[str, bool] = field(default_factory=dict)
    draw: int = 0

    def __post_init__(self) -> None:
        assert bool(self.batch_norms) == bool(self.why), f"{self.name}: say why batch norms stay, and only then"

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model with seeded parameters and hard statistics, in evaluation mode unless the case says otherwise."""
        seed = zlib.crc32(self.name.encode()) + self.draw
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = harden(self.build(), seed, **self.hardening)
        return model.to(dtype).train(self.training) if self.training else model.to(dtype).eval()


def image(channels: int, *size: int) -> Callable[[int], tuple[Tensor]]:
    """Inputs factory: one tensor (N, channels, \\*size), (5, 7) where no size is given."""
    shape = size or (5, 7)
    return lambda batch: (torch.randn(batch, channels, *shape),)


def vector(features: int) -> Callable[[int], tuple[Tensor]]:
    """Inputs factory: one tensor (N, features)."""
    return lambda batch: (torch.randn(batch, features),)


def wired(forward: Callable[..., Any], **modules: nn.Module | nn.Parameter | Tensor) -> nn.Module:
    """A module with this `forward` (its first argument is the module) and these submodules, parameters and buffers."""
    wired_class = type("Wired", (nn.Module,), {"forward": forward})
    module: nn.Module = wired_class()
    for name, value in modules.items():
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            module.register_buffer(name, value)
        else:
            setattr(module, name, value)
    return module


def conv(inputs: int, outputs: int, kernel: Any = 3, dims: int = 2, **options: Any) -> nn.Module:
    """Convolution of `dims` dimensions; transposed with ``transposed=True``."""
    kind = "ConvTranspose" if options.pop("transposed", False) else "Conv"
    layer: nn.Module = getattr(nn, f"{kind}{dims}d")(inputs, outputs, kernel, **options)
    return layer


def norm(channels: int, dims: int = 2, eps: float = 3e-3, **options: Any) -> nn.Module:
    """BatchNorm of `dims` dimensions, with an ``eps`` that cannot be mistaken for the default."""
    layer: nn.Module = getattr(nn, f"BatchNorm{dims}d")(channels, eps=eps, **options)
    return layer


SIZES: dict[int, tuple[int, ...]] = {1: (9,), 2: (5, 7), 3: (4, 5, 3)}
