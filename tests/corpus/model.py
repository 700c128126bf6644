"""A small network with a call between an affine that waits to be absorbed and a linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.corpus.spellings import Function

_NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class Scaled(nn.Module):
    """A fixed scale and shift for values without channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.7 - 0.3

    def inverse(self, y: Tensor) -> Tensor:
        return (y + 0.3) / 1.7


class Normed(nn.Module):
    """A BatchNorm with scales of both signs."""

    def __init__(self, like: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        channels = like.shape[1]
        norm = _NORMS[like.ndim](channels, eps=1e-3, dtype=like.dtype)
        norm.running_mean = torch.randn(channels, generator=generator, dtype=like.dtype)
        norm.running_var = torch.rand(channels, generator=generator, dtype=like.dtype) + 0.2
        weight = torch.rand(channels, generator=generator, dtype=like.dtype) + 0.5
        norm.weight = nn.Parameter(weight * (1 - 2.0 * (torch.arange(channels) % 2)).to(weight))
        norm.bias = nn.Parameter(torch.randn(channels, generator=generator, dtype=like.dtype))
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y

    def inverse(self, y: Tensor) -> Tensor:
        norm = self.norm
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        shape = (1, -1) + (1,) * (y.ndim - 2)
        return ((y - shift.reshape(shape)) / scale.reshape(shape)).detach()


def before(like: Tensor, generator: torch.Generator) -> Any:
    """The affine in front of a call whose input is to be like a sample's."""
    normal = like.ndim in _NORMS and like.shape[1] > 0 and like.numel() > 0
    return Normed(like, generator) if normal else Scaled()


class Between(nn.Module):
    """affine -> call -> linear.

    Parameters
    ----------
    call : callable
    sample : SampleInput
        Its input is computed from the network's; the tensors among its other arguments are buffers.
    """

    def __init__(self, call: Function, sample: Any, generator: torch.Generator) -> None:
        super().__init__()
        self.call = call
        leaves, self.spec = pytree.tree_flatten((tuple(sample.args), dict(sample.kwargs)))
        self.plain: list[Any] = []
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self.register_buffer(f"argument_{i}", leaf.detach().clone())
                self.plain.append(None)
            else:
                self.plain.append(leaf)
        self.count = len(leaves)
        self.held = [isinstance(leaf, Tensor) for leaf in leaves]
        inputs = [sample.input] if isinstance(sample.input, Tensor) else list(sample.input)
        self.is_list = not isinstance(sample.input, Tensor)
        self.before = nn.ModuleList([before(tensor, generator) for tensor in inputs])
        self.after: nn.Module | None = None
        self.adapted = -1

    def example(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """What the network must be given for the call to get these inputs."""
        return tuple(own.inverse(tensor) for own, tensor in zip(self.before, inputs, strict=True))  # type: ignore[operator]

    def adapt(self, output: Any) -> None:
        """Put the linear layer behind the first output that it can take."""
        outputs = pytree.tree_leaves(output)
        for i, value in enumerate(outputs):
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim and value.shape[-1]:
                self.after = nn.Linear(value.shape[-1], 3, dtype=value.dtype)
                self.adapted = i
                return

    def between(self, *inputs: Tensor) -> Any:
        """The call on the affine's result."""
        return self.alone([own(x) for own, x in zip(self.before, inputs, strict=True)])

    def alone(self, values: list[Tensor]) -> Any:
        """The call on these values."""
        leaves = [getattr(self, f"argument_{i}") if self.held[i] else self.plain[i] for i in range(self.count)]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return self.call(values if self.is_list else values[0], *args, **kwargs)

    def forward(self, *inputs: Tensor) -> Any:
        output = self.between(*inputs)
        if self.after is None:
            return output
        if isinstance(output, tuple | list):
            return tuple(self.after(value) if i == self.adapted else value for i, value in enumerate(output))
        return self.after(output)
